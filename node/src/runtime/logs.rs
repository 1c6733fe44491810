//! Reading what containers wrote: the last lines, and what comes after. The shim writes; two
//! files take turns (`log`, and `log.1` before it).

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use scheduler::model::UnixMs;
use serde::{Deserialize, Serialize};

use super::wire::{LOG, LOG_BEFORE};

/// Lines handed out by one reading of a follower.
const MAX_BATCH: usize = 1000;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    pub time: UnixMs,
    /// `stdout` or `stderr`.
    pub stream: String,
    pub line: String,
    /// A piece of a longer line: the stream's next one goes on with it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub partial: bool,
}

/// The last `count` lines in `folder`, oldest first. No log is no lines.
///
/// # Errors
/// A file that is there but cannot be read.
pub fn tail(folder: &Path, count: usize) -> io::Result<Vec<LogLine>> {
    Ok(tail_and_follow(folder, count, |_| true)?.0)
}

/// The last `count` lines that are wanted, and a follower that goes on right behind what was read:
/// no line is between them, and none in both.
///
/// # Errors
/// A file that is there but cannot be read.
pub fn tail_and_follow(
    folder: &Path,
    count: usize,
    wanted: impl Fn(&LogLine) -> bool,
) -> io::Result<(Vec<LogLine>, Follower)> {
    let mut follower = Follower::from_start(folder);
    let mut last = VecDeque::new();
    let mut take = |line| {
        if wanted(&line) {
            last.push_back(line);
        }
        if last.len() > count {
            last.pop_front();
        }
    };
    let (before, current) = both(folder)?;
    for file in [before, current].into_iter().flatten() {
        follower.offset = read_from(&file, 0, usize::MAX, &mut take)?;
        follower.file = Some(file);
    }
    Ok((last.into(), follower))
}

/// Reads on where it stopped, across a change of files.
#[derive(Debug)]
pub struct Follower {
    folder: PathBuf,
    /// Kept open: so its rest can be read when it is gone, and no other file gets its number.
    file: Option<File>,
    offset: u64,
}

impl Follower {
    /// Follows the log in `folder` from its first line.
    #[must_use]
    pub fn from_start(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            file: None,
            offset: 0,
        }
    }

    /// The log's folder has been moved as it is.
    pub fn moved_to(&mut self, folder: &Path) {
        if self.folder != folder {
            folder.clone_into(&mut self.folder);
        }
    }

    /// What has come since. Never waits.
    ///
    /// # Errors
    /// A log that is there but cannot be read.
    pub fn next_lines(&mut self) -> io::Result<Vec<LogLine>> {
        let mut lines = Vec::new();
        let mut push = |line| lines.push(line);
        let (before, current) = both(&self.folder)?;
        let Some(current) = current else {
            return Ok(lines);
        };
        let read = self.file.as_ref().map(number).transpose()?;
        if read != Some(number(&current)?) {
            if let Some(file) = &self.file {
                read_from(file, self.offset, usize::MAX, &mut push)?;
            }
            // Another one that came and was put away meanwhile.
            if let Some(before) = before
                && read != Some(number(&before)?)
            {
                read_from(&before, 0, usize::MAX, &mut push)?;
            }
            self.file = None;
            self.offset = 0;
        }
        self.offset = read_from(&current, self.offset, MAX_BATCH, &mut push)?;
        self.file = Some(current);
        Ok(lines)
    }
}

/// The file that was put away and the one that is written. The latter is opened first: when they
/// change turns just then, it is both, and counts as the latter.
fn both(folder: &Path) -> io::Result<(Option<File>, Option<File>)> {
    let current = open(&folder.join(LOG))?;
    let before = open(&folder.join(LOG_BEFORE))?;
    let numbers = (
        before.as_ref().map(number).transpose()?,
        current.as_ref().map(number).transpose()?,
    );
    let before = before.filter(|_| numbers.0 != numbers.1);
    Ok((before, current))
}

fn number(file: &File) -> io::Result<u64> {
    Ok(file.metadata()?.ino())
}

fn open(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// Whole lines from `offset` on; returns where the next one begins.
fn read_from(
    mut file: &File,
    mut offset: u64,
    most: usize,
    take: &mut impl FnMut(LogLine),
) -> io::Result<u64> {
    file.seek(SeekFrom::Start(offset))?;
    let mut reader = BufReader::new(file);
    let mut line = Vec::new();
    for _ in 0..most {
        line.clear();
        let count = reader.read_until(b'\n', &mut line)?;
        if line.last() != Some(&b'\n') {
            break;
        }
        offset += count as u64;
        if let Ok(parsed) = serde_json::from_slice(&line) {
            take(parsed);
        }
    }
    Ok(offset)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn lines(numbers: std::ops::Range<u32>) -> String {
        let line = |n| format!("{{\"time\":{n},\"stream\":\"stdout\",\"line\":\"{n}\"}}\n");
        numbers.map(line).collect()
    }

    fn texts(lines: &[LogLine]) -> Vec<&str> {
        lines.iter().map(|l| l.line.as_str()).collect()
    }

    #[test]
    fn the_tail_spans_both_files() {
        let folder = tempfile::tempdir().unwrap();
        assert!(tail(folder.path(), 5).unwrap().is_empty());
        fs::write(folder.path().join(LOG_BEFORE), lines(0..3)).unwrap();
        fs::write(folder.path().join(LOG), lines(3..5) + "{\"half").unwrap();
        assert_eq!(texts(&tail(folder.path(), 3).unwrap()), ["2", "3", "4"]);
    }

    #[test]
    fn a_follower_survives_the_change_of_files() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join(LOG);
        fs::write(&log, lines(0..2)).unwrap();
        let (past, mut follower) = tail_and_follow(folder.path(), 1, |_| true).unwrap();
        assert_eq!(texts(&past), ["1"]);
        assert!(follower.next_lines().unwrap().is_empty());
        fs::write(&log, lines(0..3)).unwrap();
        assert_eq!(texts(&follower.next_lines().unwrap()), ["2"]);
        fs::write(&log, lines(0..4)).unwrap();
        fs::rename(&log, folder.path().join(LOG_BEFORE)).unwrap();
        fs::write(&log, lines(4..5)).unwrap();
        assert_eq!(texts(&follower.next_lines().unwrap()), ["3", "4"]);
        // Twice since, the last words of the one that is gone by now among them.
        fs::write(&log, lines(4..6)).unwrap();
        for n in 6..8 {
            fs::rename(&log, folder.path().join(LOG_BEFORE)).unwrap();
            fs::write(&log, lines(n..n + 1)).unwrap();
        }
        assert_eq!(texts(&follower.next_lines().unwrap()), ["5", "6", "7"]);
    }

    #[test]
    fn a_tail_counts_only_what_is_wanted() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(LOG), lines(0..100)).unwrap();
        let odd = |line: &LogLine| line.time.0 % 2 == 1;
        let (past, mut follower) = tail_and_follow(folder.path(), 2, odd).unwrap();
        assert_eq!(texts(&past), ["97", "99"]);
        assert!(follower.next_lines().unwrap().is_empty());
        // Its folder is put away, as after the instance's end.
        let shelf = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(LOG), lines(0..101)).unwrap();
        fs::rename(folder.path().join(LOG), shelf.path().join(LOG)).unwrap();
        follower.moved_to(shelf.path());
        assert_eq!(texts(&follower.next_lines().unwrap()), ["100"]);
    }
}
