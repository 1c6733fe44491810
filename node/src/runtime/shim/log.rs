//! What a container writes: read from its two pipes, cut into lines, kept in two files that
//! take turns. A program that floods is slowed and its excess dropped and counted; it can fill neither
//! the disk nor a processor.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
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
    pub fn new(stdout: OwnedFd, stderr: OwnedFd) -> io::Result<Self> {
        let stream = |name, pipe| Stream {
            name,
            pipe: Some(File::from(pipe)),
            partial: Vec::new(),
        };
        Ok(Self {
            streams: [stream("stdout", stdout), stream("stderr", stderr)],
            file: LogFile::open()?,
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

    /// Whether a flood is being slowed: someone must come back without being woken.
    pub fn is_slowed(&mut self) -> bool {
        !self.read.has_any() && self.streams.iter().any(|s| s.pipe.is_some())
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
        if !rest.is_empty() {
            let mut batch = Vec::new();
            self.line(at, &rest, &mut batch);
            self.file.write(&batch);
        }
    }

    fn append(&mut self, at: usize, mut bytes: &[u8]) {
        let mut batch = Vec::new();
        while !bytes.is_empty() {
            let mut partial = std::mem::take(&mut self.streams[at].partial);
            let room = LINE_LIMIT - partial.len();
            let end = bytes.iter().take(room).position(|b| *b == b'\n');
            let (piece, rest, whole) = match end {
                Some(end) => (&bytes[..end], &bytes[end + 1..], true),
                None if bytes.len() >= room => (&bytes[..room], &bytes[room..], true),
                None => (bytes, &bytes[bytes.len()..], false),
            };
            bytes = rest;
            partial.extend_from_slice(piece);
            if whole {
                self.line(at, &partial, &mut batch);
                partial.clear();
            }
            self.streams[at].partial = partial;
        }
        self.file.write(&batch);
    }

    fn line(&mut self, at: usize, text: &[u8], batch: &mut Vec<u8>) {
        if !self.keep.has_any() {
            self.dropped += 1;
            return;
        }
        if self.dropped > 0 {
            let note = format!(
                "selvedge: {} lines dropped: more than 1 MiB/s",
                self.dropped
            );
            self.dropped = 0;
            push(batch, "stderr", &note);
        }
        let before = batch.len();
        push(batch, self.streams[at].name, &String::from_utf8_lossy(text));
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

fn push(batch: &mut Vec<u8>, stream: &str, text: &str) {
    // Writing to memory cannot fail.
    let _ = serde_json::to_writer(
        &mut *batch,
        &Line {
            time: unix_ms(),
            stream,
            text,
        },
    );
    batch.push(b'\n');
}

/// The file in the working folder that is written now.
struct LogFile {
    file: File,
    size: u64,
}

impl LogFile {
    fn open() -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(LOG)?;
        let size = file.metadata()?.len();
        Ok(Self { file, size })
    }

    fn write(&mut self, batch: &[u8]) {
        if batch.is_empty() {
            return;
        }
        if self.size + batch.len() as u64 > FILE_LIMIT && self.size > 0 {
            // A full disk must not stop the program: its log has a gap then.
            let _ = fs::rename(LOG, LOG_BEFORE);
            if let Ok(fresh) = Self::open() {
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
