//! What a reader will come to next: reads that follow one another make a run, and the longer it is
//! the further ahead of it is asked. Pure; knows nothing of chunks.

use std::collections::VecDeque;
use std::ops::Range;

/// Runs followed at once: a program reads a few files side by side.
const RUNS: usize = 16;
/// Between a read and the next of its run: a header, or what the kernel had already.
const GAP: u64 = 64 << 10;
/// Asked ahead of a run that has just begun.
const FIRST: u64 = 256 << 10;
/// Asked ahead of a long one.
const MOST: u64 = 2 << 20;

/// The runs of one layer, the latest in front.
#[derive(Debug, Default)]
pub(super) struct Runs(VecDeque<Run>);

#[derive(Debug)]
struct Run {
    /// Where its next read begins.
    next: u64,
    /// Asked for up to here.
    asked: u64,
    ahead: u64,
}

impl Runs {
    /// These bytes are read: what to ask for now that nobody waits for yet. May reach beyond the end.
    pub(super) fn read(&mut self, range: &Range<u64>) -> Option<Range<u64>> {
        let follows = |run: &Run| (run.next..=run.next + GAP).contains(&range.start);
        let Some(found) = self.0.iter().position(follows) else {
            self.0.push_front(Run {
                next: range.end,
                asked: range.end,
                ahead: FIRST,
            });
            self.0.truncate(RUNS);
            return None;
        };
        let mut run = self.0.remove(found)?;
        run.next = range.end;
        let (from, to) = (run.asked.max(range.end), range.end + run.ahead);
        // Half at a time: not a few bytes with each read.
        let asks = to.saturating_sub(from) >= run.ahead / 2;
        if asks {
            run.asked = to;
            run.ahead = (run.ahead * 2).min(MOST);
        }
        self.0.push_front(run);
        asks.then_some(from..to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ: u64 = 128 << 10;

    #[test]
    fn scattered_reads_ask_for_nothing() {
        let mut runs = Runs::default();
        for at in [0, 50, 20, 90, 10] {
            let at = at * MOST;
            assert_eq!(runs.read(&(at..at + READ)), None);
        }
    }

    #[test]
    fn a_run_is_never_caught_up_with_and_nothing_is_asked_twice() {
        let mut runs = Runs::default();
        let (mut asked, mut questions) = (READ, 0);
        for n in 0..200 {
            let read = n * READ..(n + 1) * READ;
            if let Some(more) = runs.read(&read) {
                assert_eq!(more.start, asked.max(read.end));
                assert!(more.end - read.end <= MOST);
                (asked, questions) = (more.end, questions + 1);
            }
            assert!(n == 0 || asked > read.end, "read {n} was not asked for");
        }
        assert!(questions < 40, "{questions} questions");
    }

    #[test]
    fn files_read_side_by_side_are_runs_of_their_own() {
        let mut runs = Runs::default();
        let files: Vec<u64> = (0..RUNS as u64).map(|n| n * 100 * MOST).collect();
        for file in &files {
            assert_eq!(runs.read(&(*file..file + READ)), None);
        }
        for file in &files {
            let (at, end) = (file + READ, file + 2 * READ);
            assert_eq!(runs.read(&(at..end)), Some(end..end + FIRST));
        }
        // One more, and the one nobody read for longest is forgotten.
        runs.read(&(u64::MAX / 2..u64::MAX / 2 + READ));
        assert_eq!(runs.read(&(2 * READ..3 * READ)), None);
    }
}
