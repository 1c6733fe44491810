//! Leases by which the programs of an instance say that they work although nobody asks them anything:
//! while one is held, the instance is neither held still nor stopped for having nothing to do.
//!
//! Owns the socket of each instance that asks for one (`selvedge.dev/busy`), which its programs find
//! at [`SOCKET`], and what is said there. What a lease amounts to is decided by the machine of
//! instances and by stewards.
//!
//! ```text
//! busy [SECONDS [WHAT]]     ok SECONDS      a lease from now on, or the one held for longer
//! free                      ok              it is over
//! ```
//! A lease ends with its time, with its connection, and so with the program that holds it. Who is on
//! the other side is a stranger: lines, their number and the connections are bounded, and nobody's
//! pace takes more of the daemon than a few lines a second.

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use netfabric::ingress::{Awake, Local};
use scheduler::model::{InstanceId, RevisionSpec};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::runtime::{BindMount, scratch};

/// The annotation of a revision whose instances have the socket: `selvedge.dev/busy: "on"`.
pub(super) const BUSY: &str = "selvedge.dev/busy";
pub(super) const ON: &str = "on";
/// Where the instance has the folder of the socket: a folder, so that a later daemon's socket is seen.
const FOLDER: &str = "/run/selvedge";
/// What its programs connect to, also told by the variable [`VARIABLE`].
pub(super) const SOCKET: &str = "/run/selvedge/busy.sock";
pub(super) const VARIABLE: &str = "SELVEDGE_BUSY";
/// In the scratch of the instance.
const PLACE: &str = "busy";
const NAME: &str = "busy.sock";

/// Connections of one instance at once; further ones wait with the kernel.
const CONNECTIONS: usize = 8;
/// A lease that names no time.
const USUAL_SECONDS: u32 = 60;
/// The longest of one asking. Who works for longer asks again, and so shows that it lives.
const LONGEST_SECONDS: u32 = 3600;
/// A line of the protocol, and what of it may be the work's name.
const LINE_BYTES: usize = 160;
const WHAT_CHARS: usize = 64;
/// A connection that holds no lease and says nothing.
const SILENCE: Duration = Duration::from_secs(10);
/// Between two lines of a connection, and between two connections of an instance.
const PACE: Duration = Duration::from_millis(50);
/// For an answer of a few bytes to be taken.
const PATIENCE: Duration = Duration::from_secs(5);
/// An instance that holds a lease before requests may enter is kept awake from when they may.
const RETRY: Duration = Duration::from_secs(1);

/// Whether instances of the revision have the socket.
pub(super) fn is_wanted(spec: &RevisionSpec) -> bool {
    spec.annotations.get(BUSY).is_some_and(|v| v == ON)
}

/// A lease as it is told to people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    pub what: String,
    pub seconds_left: u64,
}

/// The sockets of all instances here; cheap to clone.
#[derive(Clone)]
pub(super) struct Leases(Arc<Shared>);

struct Shared {
    local: Arc<Local>,
    doors: Mutex<BTreeMap<InstanceId, Door>>,
}

/// One instance's.
struct Door {
    accepting: AbortHandle,
    held: Arc<Mutex<Book>>,
}

/// What is held, by connection.
#[derive(Debug, Default)]
struct Book {
    next: u64,
    leases: BTreeMap<u64, (String, Instant)>,
}

impl Leases {
    pub(super) fn new(local: Arc<Local>) -> Self {
        Self(Arc::new(Shared {
            local,
            doors: Mutex::default(),
        }))
    }

    /// Opens the socket of the instance with the folder `dir`, and says what of it to mount.
    ///
    /// # Errors
    /// The kernel's, by place.
    pub(super) fn open(&self, id: &InstanceId, dir: &Path) -> io::Result<BindMount> {
        let place = scratch::of(dir).join(PLACE);
        fs::create_dir_all(&place)?;
        // Whoever its programs run as; nobody else has a way to it.
        fs::set_permissions(&place, Permissions::from_mode(0o755))?;
        let listener = listen(&place)?;
        let held = Arc::<Mutex<Book>>::default();
        let accepting = tokio::spawn(accept(
            listener,
            self.0.local.clone(),
            id.clone(),
            held.clone(),
        ));
        let door = Door {
            accepting: accepting.abort_handle(),
            held,
        };
        self.doors().insert(id.clone(), door);
        Ok(BindMount {
            source: place,
            destination: FOLDER.into(),
            read_only: true,
            no_exec: true,
        })
    }

    /// The instance is over. Connections end with its programs.
    pub(super) fn close(&self, id: &InstanceId) {
        self.doors().remove(id);
    }

    /// How many leases its programs hold.
    pub(super) fn count(&self, id: &InstanceId) -> u32 {
        let doors = self.doors();
        let held = doors
            .get(id)
            .map_or(0, |door| lock(&door.held).leases.len());
        u32::try_from(held).unwrap_or(u32::MAX)
    }

    pub(super) fn held(&self, id: &InstanceId) -> Vec<Held> {
        let now = Instant::now();
        let doors = self.doors();
        let Some(door) = doors.get(id) else {
            return Vec::new();
        };
        let book = lock(&door.held);
        let held = |(what, until): &(String, Instant)| Held {
            what: what.clone(),
            seconds_left: until.saturating_duration_since(now).as_secs(),
        };
        book.leases.values().map(held).collect()
    }

    fn doors(&self) -> MutexGuard<'_, BTreeMap<InstanceId, Door>> {
        lock(&self.0.doors)
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Through the folder's descriptor: a socket's path has room for 108 bytes only.
fn listen(place: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(place.join(NAME)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let folder = File::open(place)?;
    let at = PathBuf::from(format!("/proc/self/fd/{}/{NAME}", folder.as_raw_fd()));
    let listener = UnixListener::bind(&at)?;
    fs::set_permissions(&at, Permissions::from_mode(0o666))?;
    Ok(listener)
}

/// Lets connections in at a pace, as many as may be, for as long as the instance is here.
async fn accept(listener: UnixListener, local: Arc<Local>, id: InstanceId, held: Arc<Mutex<Book>>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    // Never closed.
    while let Ok(place) = places.clone().acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                let (local, id, held) = (local.clone(), id.clone(), held.clone());
                tokio::spawn(async move {
                    // What was wrong with it is the program's to find out.
                    let _ = serve(stream, &local, &id, &held).await;
                    drop(place);
                });
            }
            Err(error) => tracing::debug!(instance = %id, %error, "no lease is taken"),
        }
        sleep(PACE).await;
    }
}

/// One connection, until it ends. Its lease ends with it.
async fn serve(
    stream: UnixStream,
    local: &Local,
    id: &InstanceId,
    held: &Mutex<Book>,
) -> io::Result<()> {
    let (reading, mut writing) = stream.into_split();
    let mut lines = BufReader::with_capacity(LINE_BYTES, reading);
    let lease = Lease::new(held);
    let mut awake: Option<Awake> = None;
    let mut line = Vec::new();
    let mut heard = Instant::now();
    loop {
        let now = Instant::now();
        let until = match lease.until() {
            Some(until) if until <= now => {
                lease.end();
                (awake, heard) = (None, now);
                None
            }
            until => until,
        };
        if until.is_some() && awake.is_none() {
            awake = local.keep_awake(id).await?;
        }
        let deadline = match until {
            Some(until) if awake.is_some() => until,
            Some(until) => until.min(now + RETRY),
            None => heard + SILENCE,
        };
        match timeout_at(deadline, read_line(&mut lines, &mut line)).await {
            Err(_) if until.is_some() => continue,
            // Its place is another's.
            Err(_) => return Ok(()),
            Ok(read) => {
                if !read? {
                    return Ok(());
                }
            }
        }
        heard = Instant::now();
        let answer = match parse(&line) {
            Ok(Ask::Busy { seconds, what }) => {
                lease.hold(what, heard + Duration::from_secs(seconds.into()));
                // Only then is it said: who was told may rely on it.
                if awake.is_none() {
                    awake = local.keep_awake(id).await?;
                }
                format!("ok {seconds}\n")
            }
            Ok(Ask::Free) => {
                lease.end();
                awake = None;
                "ok\n".to_owned()
            }
            Err(wrong) => format!("error: {wrong}\n"),
        };
        line.clear();
        let said = timeout(PATIENCE, writing.write_all(answer.as_bytes())).await;
        said.map_err(|_| io::ErrorKind::TimedOut)??;
        sleep(PACE).await;
    }
}

/// Reads on until `line` is a whole one; false when there is none any more. May be given up and called
/// again.
async fn read_line<R: AsyncBufRead + Unpin>(lines: &mut R, line: &mut Vec<u8>) -> io::Result<bool> {
    loop {
        let given = lines.fill_buf().await?;
        if given.is_empty() {
            return Ok(false);
        }
        let end = given.iter().position(|byte| *byte == b'\n');
        let part = &given[..end.unwrap_or(given.len())];
        if line.len() + part.len() > LINE_BYTES {
            return Err(io::ErrorKind::InvalidData.into());
        }
        line.extend_from_slice(part);
        let taken = part.len() + usize::from(end.is_some());
        lines.consume(taken);
        if end.is_some() {
            return Ok(true);
        }
    }
}

/// What one connection holds.
struct Lease<'a> {
    book: &'a Mutex<Book>,
    number: u64,
}

impl<'a> Lease<'a> {
    fn new(book: &'a Mutex<Book>) -> Self {
        let mut open = lock(book);
        open.next += 1;
        let number = open.next;
        drop(open);
        Self { book, number }
    }

    fn until(&self) -> Option<Instant> {
        lock(self.book).leases.get(&self.number).map(|held| held.1)
    }

    fn hold(&self, what: String, until: Instant) {
        lock(self.book).leases.insert(self.number, (what, until));
    }

    fn end(&self) {
        lock(self.book).leases.remove(&self.number);
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        self.end();
    }
}

/// What a line asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Ask {
    Busy { seconds: u32, what: String },
    Free,
}

fn parse(line: &[u8]) -> Result<Ask, String> {
    const HELP: &str = "write `busy`, `busy SECONDS`, `busy SECONDS WHAT` or `free`";
    let text = str::from_utf8(line).map_err(|_| HELP.to_owned())?.trim();
    let (word, rest) = text.split_once(' ').unwrap_or((text, ""));
    match (word, rest.trim()) {
        ("free", "") => Ok(Ask::Free),
        ("busy", "") => Ok(Ask::Busy {
            seconds: USUAL_SECONDS,
            what: String::new(),
        }),
        ("busy", rest) => {
            let (number, what) = rest.split_once(' ').unwrap_or((rest, ""));
            let plain = number.bytes().all(|byte| byte.is_ascii_digit());
            let seconds = number.parse().ok().filter(|_| plain);
            let seconds = seconds.filter(|s| (1..=LONGEST_SECONDS).contains(s));
            let wrong = || format!("SECONDS is a number from 1 to {LONGEST_SECONDS}");
            let what = what.trim();
            if what.chars().count() > WHAT_CHARS || what.contains(char::is_control) {
                return Err(format!(
                    "WHAT has at most {WHAT_CHARS} characters that print"
                ));
            }
            Ok(Ask::Busy {
                seconds: seconds.ok_or_else(wrong)?,
                what: what.to_owned(),
            })
        }
        _ => Err(HELP.to_owned()),
    }
}

#[cfg(test)]
#[path = "busy_tests.rs"]
mod tests;
