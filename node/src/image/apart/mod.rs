//! Unpacking in a process of its own: decoders and the tar reader handle bytes a stranger chose, and
//! whoever finds a way to take them over has a process that can do nothing but fill one folder. Owns
//! that process from its start to its end; what it does is `unpack_verified`'s, as it is without it.
//!
//! ```text
//! daemon                                   `selvedged unpack ORDER`
//!   packed bytes         -- stdin -->      confines itself, unpacks into the folder it stands in
//!   shared budget        <- stdout --      what it spends, then one verdict
//!   checks what is left in the folder, marks opaque directories, syncs, names the layer
//! ```
//!
//! The process checks the digests itself, and the daemon believes it: the raw bytes are nowhere else, and
//! to digest the packed ones once more would cost a core as long as inflating them does. Whoever takes the
//! process over can therefore fill the one layer that it was asked for with what it likes. That layer is
//! named by a diff id that the configuration of the very image it came with names, and the bytes that
//! took it over came by that image's own digest: nobody who does not run that image is any worse off.

mod process;
mod wire;

pub use process::main;

use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};

use super::budget::Budget;
use super::error::ImageError;
use super::layer::{self, Marker};
use super::manifest::LayerPlan;
use wire::{Order, Word};

/// What the process calls itself.
const NAME: &str = "selvedge-unpack";
/// How long it may leave bytes lying, and how long it may take after the last of them. Both are for
/// a process that hangs: time that is spent working has a limit of its own.
const PATIENCE: Duration = Duration::from_mins(2);
const TICK: Duration = Duration::from_secs(1);
const PIECE: usize = 128 * 1024;
/// Of the pipe that feeds it: fewer wake-ups than with the usual 64 KiB.
const PIPE: usize = 1024 * 1024;

/// Unpacks and verifies a layer into `folder`, where an empty `fs` is, by a process of `program`.
pub(super) fn unpack(
    program: &Path,
    folder: &Path,
    packed: impl Read,
    plan: &LayerPlan,
    budget: &Budget,
) -> Result<Marker, ImageError> {
    let name = format!("layer {}", plan.diff_id.short());
    let failed = |what: &str, e: io::Error| ImageError::io(format!("{what} {name}"), e);
    let mut unpacker = Unpacker::start(program, folder, &Order::new(plan, budget))
        .map_err(|e| failed("start the process that unpacks", e))?;
    let packed = packed.take(plan.size.saturating_add(1));
    let (fed, heard) = unpacker
        .converse(packed, budget)
        .map_err(|e| failed("talk to the process that unpacks", e))?;
    let status = unpacker
        .end()
        .map_err(|e| failed("wait for the process that unpacks", e))?;
    // The reader's own error is the cause, and everything else its echo.
    if let Err(e) = fed {
        return Err(layer::carried(&e).unwrap_or_else(|| failed("read", e)));
    }
    let heard = heard.map_err(|error| layer::of_layer(&name, error));
    let marker = match heard? {
        Some(verdict) => verdict?,
        None => return Err(died(&name, status, budget.limits().seconds)),
    };
    let promised = (plan.diff_id.as_str(), plan.digest.as_str(), plan.size);
    if (
        marker.diff_id.as_str(),
        marker.digest.as_str(),
        marker.packed,
    ) != promised
    {
        return Err(ImageError::malformed(name, "its unpacker tells of another"));
    }
    check_left(folder).map_err(|e| failed("check what was unpacked of", e))?;
    Ok(marker)
}

/// The process; killed and reaped with its value.
struct Unpacker {
    child: Child,
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
}

type Fed = io::Result<()>;
type Heard = Result<Option<Result<Marker, ImageError>>, ImageError>;

impl Unpacker {
    fn start(program: &Path, folder: &Path, order: &Order) -> io::Result<Self> {
        let mut child = Command::new(program)
            .arg("unpack")
            .arg(order.encode()?)
            .current_dir(folder)
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let stdin = child.stdin.take().map(OwnedFd::from);
        let stdout = child.stdout.take().map(OwnedFd::from);
        let this = Self {
            child,
            stdin,
            stdout,
        };
        if let Some(stdin) = &this.stdin {
            rustix::fs::fcntl_setfl(stdin, OFlags::NONBLOCK)?;
            // A user over its share of pipe memory gets a smaller one.
            let _ = rustix::pipe::fcntl_setpipe_size(stdin, PIPE);
        }
        Ok(this)
    }

    /// Feeds it here and hears it on a thread: either may have to wait.
    fn converse(&mut self, packed: impl Read, budget: &Budget) -> io::Result<(Fed, Heard)> {
        let (Some(stdin), Some(stdout)) = (self.stdin.take(), self.stdout.take()) else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        let raw = i32::try_from(self.child.id()).map_err(io::Error::other)?;
        let pid = Pid::from_raw(raw).ok_or(io::ErrorKind::NotFound)?;
        let all_fed = AtomicBool::new(false);
        thread::scope(|scope| {
            let hearing =
                thread::Builder::new()
                    .name(NAME.to_owned())
                    .spawn_scoped(scope, || {
                        let heard = hear(stdout, budget, &all_fed);
                        if heard.is_err() {
                            kill(pid);
                        }
                        heard
                    })?;
            let fed = feed(packed, &stdin, PATIENCE);
            if fed.is_err() {
                kill(pid);
            }
            drop(stdin);
            all_fed.store(true, Ordering::Release);
            let heard = hearing
                .join()
                .map_err(|_| io::Error::other("its listener panicked"))?;
            Ok((fed, heard))
        })
    }

    fn end(&mut self) -> io::Result<ExitStatus> {
        self.child.wait()
    }
}

impl Drop for Unpacker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// It is not reaped before both sides are done with it, so the number is still its own.
fn kill(pid: Pid) {
    let _ = kill_process(pid, Signal::KILL);
}

/// Passes everything on. An unpacker that wants no more has its reasons, and tells them.
fn feed(mut packed: impl Read, to: &OwnedFd, patience: Duration) -> io::Result<()> {
    let mut piece = vec![0; PIECE];
    loop {
        let n = match packed.read(&mut piece) {
            Ok(0) => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            read => read?,
        };
        match give(to, &piece[..n], patience) {
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            given => given?,
        }
    }
}

fn give(to: &OwnedFd, mut bytes: &[u8], patience: Duration) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(to, bytes) {
            Ok(n) => bytes = &bytes[n..],
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                if !ready(to, PollFlags::OUT, patience)? {
                    let why = "the process that unpacks it takes no bytes";
                    return Err(io::Error::new(io::ErrorKind::TimedOut, why));
                }
            }
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Whether something can be done with `fd` before the time is over.
fn ready(fd: impl AsFd, flags: PollFlags, within: Duration) -> io::Result<bool> {
    let deadline = Instant::now() + within;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(&fd, flags)], Some(&left)) {
            Err(Errno::INTR) => {}
            polled => return Ok(polled? > 0),
        }
    }
}

/// Charges what the unpacker spends to the image's budget until it gives its verdict.
fn hear(from: OwnedFd, budget: &Budget, all_fed: &AtomicBool) -> Heard {
    let broken = |e: io::Error| ImageError::io("hear the process that unpacks", e);
    let mut words = BufReader::new(Patient {
        from: File::from(from),
        all_fed,
    });
    while let Some(word) = Word::read(&mut words).map_err(broken)? {
        match word {
            Word::Spent(more) => budget.charge(more)?,
            Word::Done(marker) => return Ok(Some(Ok(marker))),
            Word::Failed(failure) => return Ok(Some(Err(failure.into()))),
        }
    }
    Ok(None)
}

/// Waits as long as a download takes, and not much longer than its end.
struct Patient<'a> {
    from: File,
    all_fed: &'a AtomicBool,
}

impl Read for Patient<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let mut waited = Duration::ZERO;
        while !ready(&self.from, PollFlags::IN, TICK)? {
            if self.all_fed.load(Ordering::Acquire) {
                waited += TICK;
            }
            if waited >= PATIENCE {
                let why = "it has all bytes and comes to no end";
                return Err(io::Error::new(io::ErrorKind::TimedOut, why));
            }
        }
        self.from.read(buf)
    }
}

/// It ended without a word.
fn died(name: &str, status: ExitStatus, seconds: u64) -> ImageError {
    if status.signal() == Some(Signal::XCPU.as_raw()) {
        return ImageError::TooLarge {
            what: format!("{name}: the seconds its unpacking takes"),
            limit: seconds,
        };
    }
    let why = io::Error::other(format!("the process that did it ended early ({status})"));
    ImageError::io(format!("unpack {name}"), why)
}

/// Refuses a folder in which anything but a layer's parts lies, or a part that is not what it should
/// be: from here on the daemon opens them by name.
fn check_left(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        let fits = match entry.file_name().to_str() {
            Some(layer::CONTENT) => kind.is_dir(),
            Some(part) => layer::BESIDE.contains(&part) && kind.is_file(),
            None => false,
        };
        if !fits {
            let what = format!("`{}` does not belong there", entry.path().display());
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_takes_no_bytes_is_given_up() {
        let (_kept, to) = rustix::pipe::pipe().expect("a pipe");
        rustix::fs::fcntl_setfl(&to, OFlags::NONBLOCK).expect("set");
        let error = feed(io::repeat(0), &to, Duration::from_millis(1)).expect_err("full");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn a_process_that_is_gone_is_fed_no_more() {
        let (gone, to) = rustix::pipe::pipe().expect("a pipe");
        drop(gone);
        assert!(feed(io::repeat(0), &to, PATIENCE).is_ok());
    }

    #[test]
    fn a_folder_with_anything_strange_is_refused() {
        let strange = |make: &dyn Fn(&Path) -> io::Result<()>| {
            let dir = crate::image::testing::temp();
            fs::create_dir(dir.path().join("fs")).expect("made");
            fs::write(dir.path().join("recipe"), "").expect("written");
            check_left(dir.path()).expect("a layer's own parts");
            make(dir.path()).expect("made");
            check_left(dir.path()).is_err()
        };
        let link =
            |name: &str, dir: &Path| std::os::unix::fs::symlink("/etc/hostname", dir.join(name));
        assert!(strange(&|dir| link("complete", dir)));
        assert!(strange(&|dir| link("chunks", dir)));
        assert!(strange(&|dir| fs::create_dir(dir.join("chunks"))));
        assert!(strange(&|dir| {
            fs::remove_dir(dir.join("fs"))?;
            link("fs", dir)
        }));
    }
}
