//! The daemon's side of a layer that is shown while it arrives: a file with holes for the raw tar, the
//! chunks that are in it, and in which order the others are fetched. Nothing is said to be in it
//! before its hash was found right. Who fetches is another's.

use std::collections::{BTreeSet, VecDeque};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::net::unix::{ReadHalf, WriteHalf};
use tokio::sync::watch;
use tokio::time::Instant;

use super::super::chunks::ChunkList;
use super::super::error::ImageError;
use super::super::holders::Got;
use super::super::record::MAX_PROFILE;
use super::wire::{self, Ask, News};

pub(super) struct Arriving {
    pub list: ChunkList,
    path: PathBuf,
    tar: File,
    state: Mutex<State>,
    /// Something arrived, is waited for, or failed.
    stir: watch::Sender<()>,
}

struct State {
    here: Vec<bool>,
    /// In the order they came.
    arrived: Vec<usize>,
    /// What they are of the raw tar.
    bytes: u64,
    /// Somebody waits for them, the first the longest.
    wanted: VecDeque<usize>,
    /// All that are waited for: `wanted` and those of them that are being fetched.
    waiting: BTreeSet<usize>,
    fetching: BTreeSet<usize>,
    /// Readers will come to these.
    ahead: VecDeque<usize>,
    /// What an earlier start read, in its order.
    known: VecDeque<usize>,
    /// The others.
    rest: VecDeque<usize>,
    /// The order in which they were first waited for, each once.
    profile: Vec<usize>,
    profiled: BTreeSet<usize>,
    last_want: Instant,
    /// How often nobody could give what was waited for.
    failures: u64,
    /// Nobody fetches, as nobody could give it a moment ago.
    paused: bool,
    void: bool,
    closed: bool,
}

/// Chunks that readers will come to, queued: more is no longer what comes next.
const MAX_AHEAD: usize = 4096;

/// What may be fetched next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pick {
    /// What is waited for.
    Wanted,
    /// That first, then what readers will come to.
    Ahead,
    /// Those first, then what an earlier start read.
    Known,
    /// Everything.
    Any,
}

impl Arriving {
    /// The file at `path`, made or found. What a daemon before this one put into it is looked
    /// through again. `profile` is what an earlier start of the layer read, in its order.
    pub(super) fn open(
        path: &Path,
        list: ChunkList,
        profile: &[usize],
    ) -> Result<Self, ImageError> {
        let disk = |e| ImageError::disk("open", path, e);
        let mut options = File::options();
        let opened = options.read(true).write(true).create(true).truncate(false);
        let tar = opened.open(path).map_err(disk)?;
        let found = tar.metadata().map_err(disk)?.len() > 0;
        tar.set_len(list.raw).map_err(disk)?;
        let count = list.chunks.len();
        let known = profile.iter().copied().filter(|place| *place < count);
        let state = State {
            here: vec![false; count],
            arrived: Vec::new(),
            bytes: 0,
            wanted: VecDeque::new(),
            waiting: BTreeSet::new(),
            fetching: BTreeSet::new(),
            ahead: VecDeque::new(),
            known: known.take(MAX_PROFILE).collect(),
            rest: (0..count).collect(),
            profile: Vec::new(),
            profiled: BTreeSet::new(),
            last_want: Instant::now(),
            failures: 0,
            paused: false,
            void: false,
            closed: false,
        };
        let arriving = Self {
            list,
            path: path.to_owned(),
            tar,
            state: Mutex::new(state),
            stir: watch::Sender::new(()),
        };
        if found {
            arriving.look_through()?;
        }
        Ok(arriving)
    }

    fn look_through(&self) -> Result<(), ImageError> {
        let disk = |e| ImageError::disk("read", &self.path, e);
        let mut bytes = Vec::new();
        for (place, chunk) in self.list.chunks.iter().enumerate() {
            bytes.resize(chunk.len as usize, 0);
            self.tar
                .read_exact_at(&mut bytes, chunk.offset)
                .map_err(disk)?;
            if chunk.holds(&bytes) {
                self.lock().arrive(place, chunk.len);
            }
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The chunks to fetch next, of about so many bytes, in the list's order: those that are waited
    /// for come first. Nobody else is given them before they are put, or given back.
    pub(super) fn take(&self, pick: Pick, bytes: u64) -> Vec<usize> {
        let (mut taken, mut size) = (Vec::new(), 0);
        let mut state = self.lock();
        while size < bytes
            && let Some(place) = state.next(pick)
        {
            state.fetching.insert(place);
            size += u64::from(self.list.chunks[place].len);
            taken.push(place);
        }
        taken.sort_unstable();
        taken
    }

    /// These could not be fetched: somebody else is to.
    pub(super) fn give_back(&self, places: &[usize]) {
        let mut state = self.lock();
        for place in places.iter().rev().copied() {
            state.fetching.remove(&place);
            if state.here[place] {
                continue;
            }
            if state.waiting.contains(&place) {
                state.wanted.push_front(place);
            } else {
                state.rest.push_front(place);
            }
        }
        drop(state);
        self.stir.send_replace(());
    }

    /// Keeps a chunk that came. One that is not what the list says is refused.
    pub(super) fn put(&self, place: usize, bytes: &[u8]) -> Result<bool, ImageError> {
        let Some(chunk) = self.list.chunks.get(place) else {
            return Ok(false);
        };
        if !chunk.holds(bytes) {
            return Ok(false);
        }
        self.write(chunk.offset, bytes)?;
        self.lock().arrive(place, chunk.len);
        self.stir.send_replace(());
        Ok(true)
    }

    /// Keeps chunks that were compared with this list by whoever brought them: neighbours in one
    /// write, and all of them told at once.
    pub(super) fn keep(&self, got: &Got) -> Result<(), ImageError> {
        let mut run: (u64, Vec<u8>) = (0, Vec::new());
        for (place, bytes) in got {
            let Some(chunk) = self.list.chunks.get(*place as usize) else {
                continue;
            };
            if chunk.offset != run.0 + run.1.len() as u64 {
                self.write(run.0, &run.1)?;
                run = (chunk.offset, Vec::new());
            }
            run.1.extend_from_slice(bytes);
        }
        self.write(run.0, &run.1)?;
        let mut state = self.lock();
        for place in got.keys().map(|place| *place as usize) {
            if let Some(chunk) = self.list.chunks.get(place) {
                state.arrive(place, chunk.len);
            }
        }
        drop(state);
        self.stir.send_replace(());
        Ok(())
    }

    fn write(&self, at: u64, bytes: &[u8]) -> Result<(), ImageError> {
        let written = self.tar.write_all_at(bytes, at);
        written.map_err(|e| ImageError::disk("write", &self.path, e))
    }

    /// Whether the whole tar is in the file.
    pub(super) fn is_whole(&self) -> bool {
        let state = self.lock();
        state.arrived.len() == state.here.len()
    }

    /// Bytes of the tar that are in the file.
    pub(super) fn bytes(&self) -> u64 {
        self.lock().bytes
    }

    /// What was waited for, in its order.
    pub(super) fn profile(&self) -> Vec<usize> {
        self.lock().profile.clone()
    }

    /// When somebody last asked.
    pub(super) fn last_want(&self) -> Instant {
        self.lock().last_want
    }

    /// Told whenever there is something new to fetch, or fetched.
    pub(super) fn stirs(&self) -> watch::Receiver<()> {
        self.stir.subscribe()
    }

    /// Whoever waits is told that nobody can give it, and so is whoever asks before [`Self::go_on`].
    /// Says whether anybody did.
    pub(super) fn fail_waiting(&self) -> bool {
        let mut state = self.lock();
        let waited = !state.waiting.is_empty();
        state.waiting.clear();
        let given_up = std::mem::take(&mut state.wanted);
        state.rest.extend(given_up);
        state.failures += 1;
        state.paused = true;
        drop(state);
        self.stir.send_replace(());
        waited
    }

    /// It is being fetched again.
    pub(super) fn go_on(&self) {
        self.lock().paused = false;
    }

    /// Nothing of it is to be read any more.
    pub(super) fn void(&self) {
        self.lock().void = true;
        self.stir.send_replace(());
    }

    /// Nothing more comes, and what came is what it was said to be.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.stir.send_replace(());
    }

    pub(super) fn is_void(&self) -> bool {
        self.lock().void
    }

    /// Speaks with one process that shows the layer, until it ends or has been told all.
    pub(super) async fn serve(&self, link: &mut UnixStream) -> std::io::Result<()> {
        let (from, to) = link.split();
        tokio::select! {
            heard = self.hear(from) => heard,
            told = self.tell(to) => told,
        }
    }

    async fn hear(&self, mut from: ReadHalf<'_>) -> std::io::Result<()> {
        let mut frame = [0; wire::FRAME];
        loop {
            from.read_exact(&mut frame).await?;
            match Ask::decode(frame, self.list.chunks.len()) {
                Some(Ask::Wanted(run)) => self.lock().want(run),
                Some(Ask::Ahead(run)) => self.lock().look_ahead(run),
                None => return Err(std::io::ErrorKind::InvalidData.into()),
            }
            self.stir.send_replace(());
        }
    }

    async fn tell(&self, mut to: WriteHalf<'_>) -> std::io::Result<()> {
        let mut stir = self.stir.subscribe();
        let mut told = Told {
            arrived: 0,
            failures: self.lock().failures,
        };
        loop {
            let (frames, all) = self.lock().news(&mut told);
            to.write_all(&frames).await?;
            if all || stir.changed().await.is_err() {
                return Ok(());
            }
        }
    }
}

/// What one process has been told.
struct Told {
    arrived: usize,
    failures: u64,
}

impl State {
    fn next(&mut self, pick: Pick) -> Option<usize> {
        loop {
            let mut place = self.wanted.pop_front();
            if place.is_none() && pick != Pick::Wanted {
                place = self.ahead.pop_front();
            }
            if place.is_none() && matches!(pick, Pick::Known | Pick::Any) {
                place = self.known.pop_front();
            }
            if place.is_none() && pick == Pick::Any {
                place = self.rest.pop_front();
            }
            let place = place?;
            if !self.here[place] && !self.fetching.contains(&place) {
                return Some(place);
            }
        }
    }

    fn arrive(&mut self, place: usize, length: u32) {
        self.fetching.remove(&place);
        self.waiting.remove(&place);
        if !std::mem::replace(&mut self.here[place], true) {
            self.arrived.push(place);
            self.bytes += u64::from(length);
        }
    }

    fn want(&mut self, run: Range<usize>) {
        self.last_want = Instant::now();
        let missing = run.clone().any(|place| !self.here[place]);
        self.failures += u64::from(self.paused && missing);
        for place in run {
            if self.profile.len() < MAX_PROFILE && self.profiled.insert(place) {
                self.profile.push(place);
            }
            if self.paused {
                continue;
            }
            let new = !self.here[place] && self.waiting.insert(place);
            // One that is being fetched is waited for all the same, should that fail.
            if new && !self.fetching.contains(&place) {
                self.wanted.push_back(place);
            }
        }
    }

    fn look_ahead(&mut self, run: Range<usize>) {
        self.last_want = Instant::now();
        let room = MAX_AHEAD.saturating_sub(self.ahead.len());
        let missing = run.filter(|place| !self.here[*place] && !self.fetching.contains(place));
        self.ahead.extend(missing.take(room));
    }

    /// What is new since `told`, neighbours together, and whether it is the last of all.
    fn news(&self, told: &mut Told) -> (Vec<u8>, bool) {
        let fresh = &self.arrived[told.arrived..];
        told.arrived = self.arrived.len();
        let runs = fresh.chunk_by(|a, b| a + 1 == *b);
        let runs = runs.filter_map(|run| Some(*run.first()?..*run.last()? + 1));
        let mut frames: Vec<u8> = runs.flat_map(|run| News::Here(run).encode()).collect();
        if std::mem::replace(&mut told.failures, self.failures) != self.failures {
            frames.extend(News::Failed.encode());
        }
        if self.void {
            frames.extend(News::Void.encode());
        } else if self.closed {
            frames.extend(News::Done.encode());
        }
        // Until then what is whole may still be found to be another layer.
        (frames, self.void || self.closed)
    }
}
