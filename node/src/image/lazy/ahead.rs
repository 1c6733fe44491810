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
    /// The end of the file that it is in.
    file: u64,
    /// It came here from another file, and may go on to the next.
    files: bool,
}

impl Runs {
    /// These bytes of a file are read: what to ask for now that nobody waits for yet. Not beyond the
    /// file, unless whole files are read one after another; then it may reach beyond the end of all.
    pub(super) fn read(&mut self, range: &Range<u64>, file: &Range<u64>) -> Option<Range<u64>> {
        let follows = |run: &Run| (run.next..=run.next + GAP).contains(&range.start);
        let found = self.0.iter().position(follows);
        let mut run = match found.and_then(|found| self.0.remove(found)) {
            Some(run) => Run {
                next: range.end,
                files: run.files || run.file != file.end,
                file: file.end,
                ..run
            },
            None => Run {
                next: range.end,
                asked: range.end,
                ahead: FIRST,
                file: file.end,
                files: false,
            },
        };
        // Most files are read from their beginning on; elsewhere it takes a second read to tell.
        let begins = found.is_some() || range.start == file.start;
        let most = if run.files { u64::MAX } else { file.end };
        let (from, to) = (
            run.asked.max(range.end),
            range.end.saturating_add(run.ahead).min(most),
        );
        // Half at a time, or the rest: not a few bytes with each read.
        let enough = to == most || to.saturating_sub(from) >= run.ahead / 2;
        let asks = begins && from < to && enough;
        if asks {
            run.asked = to;
            run.ahead = (run.ahead * 2).min(MOST);
        }
        self.0.push_front(run);
        self.0.truncate(RUNS);
        asks.then_some(from..to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ: u64 = 128 << 10;

    #[test]
    fn scattered_reads_ask_for_nothing() {
        let (mut runs, file) = (Runs::default(), 0..u64::MAX);
        for at in [1, 50, 20, 90, 10] {
            let at = at * MOST;
            assert_eq!(runs.read(&(at..at + READ), &file), None);
        }
    }

    #[test]
    fn a_run_is_never_caught_up_with_and_nothing_is_asked_twice() {
        let (mut runs, file) = (Runs::default(), 0..300 * READ);
        let (mut asked, mut questions) = (READ, 0);
        for n in 0..300 {
            let read = n * READ..(n + 1) * READ;
            if let Some(more) = runs.read(&read, &file) {
                assert_eq!(more.start, asked.max(read.end));
                assert!(more.end <= file.end && more.end - read.end <= MOST);
                (asked, questions) = (more.end, questions + 1);
            }
            assert!(asked > read.end || asked == file.end, "read {n}");
        }
        assert!(questions < 60, "{questions} questions");
    }

    #[test]
    fn only_who_reads_files_in_their_order_is_asked_beyond_one_for() {
        let (mut runs, first, second) = (Runs::default(), 0..READ, READ..2 * READ);
        assert_eq!(runs.read(&first, &first), None, "it is read whole");
        let beyond = runs.read(&second, &second);
        assert_eq!(beyond, Some(second.end..second.end + FIRST));
    }

    #[test]
    fn files_read_side_by_side_are_runs_of_their_own() {
        let mut runs = Runs::default();
        let file = |n: u64| n * 100 * MOST..(n + 1) * 100 * MOST;
        for n in 0..RUNS as u64 {
            let (at, end) = (file(n).start, file(n).start + READ);
            let asked = runs.read(&(at..end), &file(n));
            assert_eq!(asked, Some(end..end + FIRST));
        }
        for n in 0..RUNS as u64 {
            let (at, end) = (file(n).start + READ, file(n).start + 2 * READ);
            let asked = runs.read(&(at..end), &file(n));
            assert_eq!(asked, Some(at + FIRST..end + 2 * FIRST));
        }
        // One more, and the one nobody read for longest is forgotten.
        let more = file(99);
        runs.read(&(more.start..more.start + READ), &more);
        assert_eq!(runs.read(&(2 * READ..3 * READ), &file(0)), None);
    }
}
