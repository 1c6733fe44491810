//! The shown layer's side of the daemon's socket: which chunks are here, and the reads that wait for
//! others. Without a daemon they go on waiting, and what is here is still read.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use rustix::net::{SendFlags, send};

use super::super::chunks::ChunkList;
use super::ahead::Runs;
use super::fs::{Supply, Then};
use super::wire::{self, Ask, Hello, News};

/// How long a daemon that is away is left alone.
const RETRY: Duration = Duration::from_millis(100);

/// Serves what has arrived. Its thread ends with it.
pub(super) struct Arrivals(Arc<Shared>);

struct Shared {
    list: ChunkList,
    /// The raw tar; what has not arrived is holes.
    tar: File,
    state: Mutex<State>,
}

struct State {
    here: Vec<bool>,
    /// Nothing more comes.
    settled: bool,
    /// Nothing of it is to be read any more.
    void: bool,
    /// As many as the kernel has reads under way.
    waiting: Vec<Waiting>,
    link: Option<UnixStream>,
    runs: Runs,
}

struct Waiting {
    range: Range<u64>,
    chunks: Range<usize>,
    then: Then,
}

impl Arrivals {
    /// `tar` is filled by the daemon that listens at `socket`, now or later.
    pub(super) fn follow(
        list: ChunkList,
        tar: File,
        socket: &Path,
        hello: &Hello,
    ) -> io::Result<Self> {
        let hello = hello.encode()?;
        let state = State {
            here: vec![false; list.chunks.len()],
            settled: false,
            void: false,
            waiting: Vec::new(),
            link: None,
            runs: Runs::default(),
        };
        let state = Mutex::new(state);
        let shared = Arc::new(Shared { list, tar, state });
        let (weak, socket) = (Arc::downgrade(&shared), socket.to_owned());
        std::thread::Builder::new()
            .name("arrivals".to_owned())
            .spawn(move || follow(&weak, &socket, &hello))?;
        Ok(Self(shared))
    }
}

impl Drop for Arrivals {
    fn drop(&mut self) {
        if let Some(link) = &self.0.lock().link {
            // Its thread waits in a read.
            let _ = link.shutdown(std::net::Shutdown::Both);
        }
    }
}

impl Supply for Arrivals {
    fn read(&self, range: Range<u64>, file: &Range<u64>, then: Then) {
        let shared = &self.0;
        let chunks = covering(&shared.list, &range);
        let mut state = shared.lock();
        if state.settled {
            shared.find(&mut state, chunks.clone());
        }
        let all = state.here[chunks.clone()].iter().all(|here| *here);
        let ahead = state.runs.read(&range, file);
        if state.void || (state.settled && !all) {
            drop(state);
            return then(Err(io::ErrorKind::InvalidData.into()));
        }
        if !all {
            state.ask(&Ask::Wanted(chunks.clone()));
        }
        if let Some(ahead) = ahead {
            state.ask_ahead(covering(&shared.list, &ahead));
        }
        if all {
            drop(state);
            return then(shared.read(&range));
        }
        state.waiting.push(Waiting {
            range,
            chunks,
            then,
        });
    }
}

impl State {
    /// Asks for what of these is not here, if anything is.
    fn ask_ahead(&mut self, chunks: Range<usize>) {
        let missing = |place: &usize| !self.here[*place];
        let first = chunks.clone().find(missing);
        if let Some(first) = first {
            self.ask(&Ask::Ahead(first..chunks.end));
        }
    }

    /// A daemon that does not take it hears on its next connection what is waited for.
    fn ask(&mut self, ask: &Ask) {
        let Some(link) = &self.link else { return };
        let frame = ask.encode();
        let sent = send(link, &frame, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
        if sent != Ok(frame.len()) {
            let _ = link.shutdown(std::net::Shutdown::Both);
            self.link = None;
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self, range: &Range<u64>) -> io::Result<Vec<u8>> {
        let length = usize::try_from(range.end - range.start).map_err(io::Error::other)?;
        let mut bytes = vec![0; length];
        self.tar.read_exact_at(&mut bytes, range.start)?;
        Ok(bytes)
    }

    /// A new connection: everything that is waited for is said again.
    fn connected(&self, link: &UnixStream) -> io::Result<()> {
        let mut state = self.lock();
        state.link = Some(link.try_clone()?);
        let wanted: Vec<_> = state.waiting.iter().map(|w| w.chunks.clone()).collect();
        for chunks in wanted {
            state.ask(&Ask::Wanted(chunks));
        }
        Ok(())
    }

    /// Marks what of these chunks is in the tar, by their hashes.
    fn find(&self, state: &mut State, chunks: Range<usize>) {
        for place in chunks {
            let chunk = &self.list.chunks[place];
            let range = chunk.offset..chunk.offset + u64::from(chunk.len);
            let held = || self.read(&range).is_ok_and(|bytes| chunk.holds(&bytes));
            state.here[place] = state.here[place] || held();
        }
    }

    /// The daemon is done with the tar.
    fn settle(&self) {
        let mut state = self.lock();
        if std::mem::replace(&mut state.settled, true) {
            return;
        }
        let wanted: Vec<_> = state.waiting.iter().map(|w| w.chunks.clone()).collect();
        for chunks in wanted {
            self.find(&mut state, chunks);
        }
        drop(state);
        self.answer();
        self.fail();
    }

    /// Nobody can give what is waited for.
    fn fail(&self) {
        let waiting = std::mem::take(&mut self.lock().waiting);
        for Waiting { then, .. } in waiting {
            then(Err(io::ErrorKind::HostUnreachable.into()));
        }
    }

    fn hear(&self, news: News) {
        match news {
            News::Here(run) => {
                self.lock().here[run].fill(true);
                self.answer();
            }
            News::Failed => self.fail(),
            News::Done => self.settle(),
            News::Void => {
                self.lock().void = true;
                self.fail();
            }
        }
    }

    /// Reads that have all their chunks.
    fn answer(&self) {
        let mut guard = self.lock();
        let state = &mut *guard;
        let here = &state.here;
        let ready: Vec<_> = state
            .waiting
            .extract_if(.., |w| here[w.chunks.clone()].iter().all(|here| *here))
            .collect();
        drop(guard);
        for Waiting { range, then, .. } in ready {
            then(self.read(&range));
        }
    }
}

/// The places of the chunks that hold `range`, which is not empty.
fn covering(list: &ChunkList, range: &Range<u64>) -> Range<usize> {
    let first = list
        .chunks
        .partition_point(|chunk| chunk.offset + u64::from(chunk.len) <= range.start);
    let end = list
        .chunks
        .partition_point(|chunk| chunk.offset < range.end);
    first..end.max(first)
}

/// Hears what arrives, from one daemon after another.
fn follow(shared: &Weak<Shared>, socket: &PathBuf, hello: &[u8]) {
    while shared.strong_count() > 0 {
        if let Ok(link) = UnixStream::connect(socket) {
            hear(shared, link, hello);
        }
        std::thread::sleep(RETRY);
    }
}

/// Until the daemon, or what is served, has gone.
fn hear(shared: &Weak<Shared>, mut link: UnixStream, hello: &[u8]) {
    if link.write_all(hello).is_err() {
        return;
    }
    if let Some(shared) = shared.upgrade()
        && shared.connected(&link).is_err()
    {
        return;
    }
    let mut frame = [0; wire::FRAME];
    while link.read_exact(&mut frame).is_ok() {
        let Some(shared) = shared.upgrade() else {
            return;
        };
        // No news of this list: not a daemon that knows this layer.
        let Some(news) = News::decode(frame, shared.list.chunks.len()) else {
            return;
        };
        shared.hear(news);
    }
}
