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
}

/// The last `count` lines in `folder`, oldest first. No log is no lines.
///
/// # Errors
/// A file that is there but cannot be read.
pub fn tail(folder: &Path, count: usize) -> io::Result<Vec<LogLine>> {
    let mut last = VecDeque::new();
    for name in [LOG_BEFORE, LOG] {
        let file = match File::open(folder.join(name)) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(e),
        };
        for line in BufReader::new(file).split(b'\n') {
            // A line being written now is not one yet.
            if let Ok(line) = serde_json::from_slice::<LogLine>(&line?) {
                last.push_back(line);
                if last.len() > count {
                    last.pop_front();
                }
            }
        }
    }
    Ok(last.into())
}

/// Reads on where it stopped, across a change of files.
#[derive(Debug)]
pub struct Follower {
    folder: PathBuf,
    inode: u64,
    offset: u64,
}

impl Follower {
    /// Follows the log in `folder` from its end.
    #[must_use]
    pub fn from_end(folder: &Path) -> Self {
        let (inode, offset) =
            std::fs::metadata(folder.join(LOG)).map_or((0, 0), |meta| (meta.ino(), meta.len()));
        Self {
            folder: folder.to_owned(),
            inode,
            offset,
        }
    }

    /// Follows it from its first line.
    #[must_use]
    pub fn from_start(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            inode: 0,
            offset: 0,
        }
    }

    /// What has come since. Never waits.
    ///
    /// # Errors
    /// A log that is there but cannot be read.
    pub fn next_lines(&mut self) -> io::Result<Vec<LogLine>> {
        let mut lines = Vec::new();
        let Some(current) = open(&self.folder.join(LOG))? else {
            return Ok(lines);
        };
        let inode = current.metadata()?.ino();
        if inode != self.inode {
            // The rest of the file that was put away, if it is the one we read.
            if let Some(before) = open(&self.folder.join(LOG_BEFORE))?
                && (before.metadata()?.ino() == self.inode || self.inode == 0)
            {
                read_from(before, self.offset, usize::MAX, &mut lines)?;
            }
            self.inode = inode;
            self.offset = 0;
        }
        self.offset = read_from(current, self.offset, MAX_BATCH, &mut lines)?;
        Ok(lines)
    }
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
    mut file: File,
    mut offset: u64,
    most: usize,
    lines: &mut Vec<LogLine>,
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
            lines.push(parsed);
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
        let mut follower = Follower::from_end(folder.path());
        assert!(follower.next_lines().unwrap().is_empty());
        fs::write(&log, lines(0..3)).unwrap();
        assert_eq!(texts(&follower.next_lines().unwrap()), ["2"]);
        fs::write(&log, lines(0..4)).unwrap();
        fs::rename(&log, folder.path().join(LOG_BEFORE)).unwrap();
        fs::write(&log, lines(4..5)).unwrap();
        assert_eq!(texts(&follower.next_lines().unwrap()), ["3", "4"]);
    }
}
