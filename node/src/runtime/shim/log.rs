//! What a container writes: read from its two pipes, cut into lines, kept in two files that
//! take turns. A program that floods is slowed and its excess dropped and counted; it can fill neither
//! the disk nor a processor.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::Serialize;

use super::super::wire::{LOG, LOG_BEFORE, unix_ms};

/// A log file is put away when it has this many bytes; one older is kept.
const FILE_LIMIT: u64 = 4 << 20;
/// Longer lines are kept in pieces.
const LINE_LIMIT: usize = 16 << 10;
/// Bytes a second that are kept, and how many may come at once.
const KEEP_RATE: u64 = 1 << 20;
const KEEP_BURST: u64 = 4 << 20;
/// Bytes a second that are read at all: beyond it the program waits in its write.
const READ_RATE: u64 = 16 << 20;
const CHUNK: usize = 16 << 10;

/// One line of a container's log, as the files hold it.
#[derive(Serialize)]
struct Line<'a> {
    time: u64,
    stream: &'a str,
    #[serde(rename = "line")]
    text: &'a str,
    /// A piece of a longer line: the stream's next one goes on with it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    partial: bool,
}

/// Both streams and their file.
pub struct Output {
    streams: [Stream; 2],
    file: LogFile,
    keep: Bucket,
    read: Bucket,
    dropped: u64,
}

struct Stream {
    name: &'static str,
    /// Closed at the end of the stream.
    pipe: Option<File>,
    partial: Vec<u8>,
}

impl Output {
    /// Into the files of the working folder.
    pub fn new(stdout: OwnedFd, stderr: OwnedFd) -> io::Result<Self> {
        Self::into(Path::new("."), stdout, stderr)
    }

    fn into(folder: &Path, stdout: OwnedFd, stderr: OwnedFd) -> io::Result<Self> {
        let stream = |name, pipe| Stream {
            name,
            pipe: Some(File::from(pipe)),
            partial: Vec::new(),
        };
        Ok(Self {
            streams: [stream("stdout", stdout), stream("stderr", stderr)],
            file: LogFile::open(folder)?,
            keep: Bucket::new(KEEP_RATE, KEEP_BURST),
            read: Bucket::new(READ_RATE, READ_RATE),
            dropped: 0,
        })
    }

    /// What to wait on; nothing while a flood is being slowed.
    pub fn pipes(&mut self) -> impl Iterator<Item = (usize, BorrowedFd<'_>)> {
        let ready = self.read.has_any();
        self.streams
            .iter()
            .enumerate()
            .filter(move |_| ready)
            .filter_map(|(at, s)| s.pipe.as_ref().map(|p| (at, p.as_fd())))
    }

    /// Whether a flood is being slowed, or was and that is still to be told: someone must come back
    /// without being woken.
    pub fn is_slowed(&mut self) -> bool {
        self.dropped > 0 || !self.read.has_any() && self.streams.iter().any(|s| s.pipe.is_some())
    }

    /// Takes one chunk from a stream that has something.
    pub fn take(&mut self, at: usize) {
        let mut chunk = [0; CHUNK];
        let Some(pipe) = self.streams[at].pipe.as_mut() else {
            return;
        };
        match pipe.read(&mut chunk) {
            Ok(0) => self.close(at),
            Ok(count) => {
                self.read.spend(count as u64);
                self.append(at, &chunk[..count]);
            }
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) => {}
            Err(_) => self.close(at),
        }
    }

    /// Takes what is left after the container's end: every writer is dead, so this is bounded by
    /// what a pipe holds.
    pub fn finish(&mut self) {
        for at in 0..self.streams.len() {
            for _ in 0..MOST_CHUNKS_LEFT {
                if self.streams[at].pipe.is_none() || !readable(&self.streams[at]) {
                    break;
                }
                self.take(at);
            }
            self.close(at);
        }
    }

    fn close(&mut self, at: usize) {
        let rest = std::mem::take(&mut self.streams[at].partial);
        self.streams[at].pipe = None;
        let mut batch = Vec::new();
        if !rest.is_empty() {
            self.line(at, &rest, false, &mut batch);
        }
        if self.streams.iter().all(|s| s.pipe.is_none()) {
            self.tell_dropped(&mut batch);
        }
        self.file.write(&batch);
    }

    /// After a flood: says what of it is missing, as soon as there is room to say so.
    pub fn settle(&mut self) {
        if self.dropped > 0 && self.keep.has_any() {
            let mut batch = Vec::new();
            self.tell_dropped(&mut batch);
            self.file.write(&batch);
        }
    }

    fn tell_dropped(&mut self, batch: &mut Vec<u8>) {
        let dropped = std::mem::take(&mut self.dropped);
        if dropped > 0 {
            let note = format!("selvedge: {dropped} lines dropped: more than 1 MiB/s");
            push(batch, "stderr", &note, false);
        }
    }

    fn append(&mut self, at: usize, mut bytes: &[u8]) {
        let mut batch = Vec::new();
        while !bytes.is_empty() {
            let mut partial = std::mem::take(&mut self.streams[at].partial);
            let room = LINE_LIMIT - partial.len();
            let end = bytes.iter().take(room).position(|b| *b == b'\n');
            // A line that just fits is whole: its end may be the next byte.
            let (piece, rest, kept) = match end {
                Some(end) => (&bytes[..end], &bytes[end + 1..], Some(false)),
                None if bytes.len() > room => (&bytes[..room], &bytes[room..], Some(true)),
                None => (bytes, &bytes[bytes.len()..], None),
            };
            let (piece, rest, kept) = match (kept, rest.first()) {
                (Some(true), Some(b'\n')) => (piece, &rest[1..], Some(false)),
                same => (piece, rest, same.0),
            };
            bytes = rest;
            partial.extend_from_slice(piece);
            if let Some(goes_on) = kept {
                self.line(at, &partial, goes_on, &mut batch);
                partial.clear();
            }
            self.streams[at].partial = partial;
        }
        self.file.write(&batch);
    }

    fn line(&mut self, at: usize, text: &[u8], partial: bool, batch: &mut Vec<u8>) {
        if !self.keep.has_any() {
            self.dropped += 1;
            return;
        }
        self.tell_dropped(batch);
        let before = batch.len();
        let text = String::from_utf8_lossy(text);
        push(batch, self.streams[at].name, &text, partial);
        self.keep.spend((batch.len() - before) as u64);
    }
}

/// A pipe holds 64 KiB unless the program enlarged it, to a megabyte at most.
const MOST_CHUNKS_LEFT: usize = 128;

fn readable(stream: &Stream) -> bool {
    let Some(pipe) = &stream.pipe else {
        return false;
    };
    let mut fds = [rustix::event::PollFd::new(
        pipe,
        rustix::event::PollFlags::IN,
    )];
    let zero = rustix::event::Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    rustix::event::poll(&mut fds, Some(&zero)).is_ok_and(|ready| ready > 0)
}

fn push(batch: &mut Vec<u8>, stream: &str, text: &str, partial: bool) {
    // Writing to memory cannot fail.
    let _ = serde_json::to_writer(
        &mut *batch,
        &Line {
            time: unix_ms(),
            stream,
            text,
            partial,
        },
    );
    batch.push(b'\n');
}

/// The file that is written now.
struct LogFile {
    folder: PathBuf,
    file: File,
    size: u64,
}

impl LogFile {
    fn open(folder: &Path) -> io::Result<Self> {
        let path = folder.join(LOG);
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        let size = file.metadata()?.len();
        let folder = folder.to_owned();
        Ok(Self { folder, file, size })
    }

    fn write(&mut self, batch: &[u8]) {
        if batch.is_empty() {
            return;
        }
        if self.size + batch.len() as u64 > FILE_LIMIT && self.size > 0 {
            // A full disk must not stop the program: its log has a gap then.
            let _ = fs::rename(self.folder.join(LOG), self.folder.join(LOG_BEFORE));
            if let Ok(fresh) = Self::open(&self.folder) {
                *self = fresh;
            }
        }
        if self.file.write_all(batch).is_ok() {
            self.size += batch.len() as u64;
        }
    }
}

/// So many bytes a second, some of them at once. May go below zero: the next ones wait longer.
struct Bucket {
    rate: u64,
    burst: u64,
    level: i64,
    at: Instant,
}

impl Bucket {
    fn new(rate: u64, burst: u64) -> Self {
        Self {
            rate,
            burst,
            level: burst.cast_signed(),
            at: Instant::now(),
        }
    }

    fn has_any(&mut self) -> bool {
        let elapsed = u64::try_from(self.at.elapsed().as_millis()).unwrap_or(u64::MAX);
        let fresh = elapsed.saturating_mul(self.rate) / 1000;
        if fresh > 0 {
            self.at = Instant::now();
            let level = self.level.saturating_add_unsigned(fresh);
            self.level = level.min(self.burst.cast_signed());
        }
        self.level > 0
    }

    fn spend(&mut self, bytes: u64) {
        self.level = self.level.saturating_sub_unsigned(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::logs::tail;
    use super::*;

    /// What an output that is fed these chunks on stdout has in its files.
    fn kept(folder: &Path, chunks: &[&[u8]]) -> Vec<(String, String, bool)> {
        let null = || OwnedFd::from(File::open("/dev/null").unwrap());
        let mut output = Output::into(folder, null(), null()).unwrap();
        for chunk in chunks {
            output.append(0, chunk);
        }
        output.finish();
        let lines = tail(folder, usize::MAX).unwrap();
        lines
            .into_iter()
            .map(|l| (l.stream, l.line, l.partial))
            .collect()
    }

    #[test]
    fn lines_are_kept_to_the_byte_and_long_ones_in_marked_pieces() {
        let folder = tempfile::tempdir().unwrap();
        let json = r#"{"level":"info","msg":"a \"b\" \u00e9","n":1.50}"#;
        let (just, over) = ("x".repeat(LINE_LIMIT), "y".repeat(LINE_LIMIT + 1));
        let text = format!("{json}\n\n{just}\n{over}\nno end");
        let stdout = |text: &str, partial| ("stdout".to_owned(), text.to_owned(), partial);
        let want = [
            stdout(json, false),
            stdout("", false),
            stdout(&just, false),
            stdout(&over[..LINE_LIMIT], true),
            stdout("y", false),
            stdout("no end", false),
        ];
        assert_eq!(kept(folder.path(), &[text.as_bytes()]), want);
        // The same, whatever the reads cut it into.
        for size in [1000, LINE_LIMIT, 7777] {
            let folder = tempfile::tempdir().unwrap();
            let chunks: Vec<&[u8]> = text.as_bytes().chunks(size).collect();
            assert_eq!(kept(folder.path(), &chunks), want, "{size}");
        }
    }

    #[test]
    fn a_flood_is_cut_and_counted_and_its_files_are_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let line = [&[b'z'; 999][..], b"\n"].concat();
        let flood = line.repeat(16);
        let lines = kept(folder.path(), &vec![&flood[..]; 1000]);
        let count = |text: &str| -> u64 {
            let words = text
                .strip_prefix("selvedge: ")
                .and_then(|t| t.split(' ').next());
            words.and_then(|n| n.parse().ok()).unwrap_or(0)
        };
        let told: u64 = lines.iter().map(|(_, text, _)| count(text)).sum();
        let kept = lines
            .iter()
            .filter(|(stream, ..)| stream == "stdout")
            .count() as u64;
        assert!(told > 0 && lines.last().unwrap().1.contains("lines dropped"));
        // Rotation may have taken the oldest away; nothing is missing beyond that.
        assert!(
            kept + told <= 16_000 && kept >= 3000,
            "{kept} kept, {told} dropped"
        );
        for name in [LOG, LOG_BEFORE] {
            let size = fs::metadata(folder.path().join(name)).unwrap().len();
            assert!(size <= FILE_LIMIT, "{name}: {size}");
        }
    }
}
