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
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::watch;

use super::super::chunks::ChunkList;
use super::super::error::ImageError;
use super::wire;

/// First-read chunks that are kept of a start: what the next one has brought first.
const MAX_PROFILE: usize = 8 * 1024;

pub(super) struct Arriving {
    list: ChunkList,
    path: PathBuf,
    tar: File,
    state: Mutex<State>,
    news: watch::Sender<()>,
}

#[derive(Default)]
struct State {
    here: Vec<bool>,
    /// In the order they came.
    arrived: Vec<usize>,
    /// Somebody waits for them, the first the longest.
    wanted: VecDeque<usize>,
    /// The order in which the others are fetched.
    rest: VecDeque<usize>,
    /// The order in which they were first waited for, each once.
    profile: Vec<usize>,
    profiled: BTreeSet<usize>,
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
        tar.set_len(list.raw).map_err(disk)?;
        let count = list.chunks.len();
        let known = profile.iter().copied().filter(|place| *place < count);
        let state = State {
            here: vec![false; count],
            rest: known.chain(0..count).collect(),
            ..State::default()
        };
        let arriving = Self {
            list,
            path: path.to_owned(),
            tar,
            state: Mutex::new(state),
            news: watch::Sender::new(()),
        };
        arriving.look_through()?;
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
                self.lock().arrive(place);
            }
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The chunk to fetch next, each once: those that are waited for come first.
    pub(super) fn next(&self) -> Option<usize> {
        let mut state = self.lock();
        loop {
            let place = match state.wanted.pop_front() {
                Some(place) => place,
                None => state.rest.pop_front()?,
            };
            if !state.here[place] {
                return Some(place);
            }
        }
    }

    /// Keeps a chunk that came. One that is not what the list says is refused, and asked for again.
    pub(super) fn put(&self, place: usize, bytes: &[u8]) -> Result<bool, ImageError> {
        let Some(chunk) = self.list.chunks.get(place) else {
            return Ok(false);
        };
        if !chunk.holds(bytes) {
            self.lock().rest.push_front(place);
            return Ok(false);
        }
        let written = self.tar.write_all_at(bytes, chunk.offset);
        written.map_err(|e| ImageError::disk("write", &self.path, e))?;
        self.lock().arrive(place);
        self.news.send_replace(());
        Ok(true)
    }

    /// Whether the whole tar is in the file.
    pub(super) fn is_whole(&self) -> bool {
        let state = self.lock();
        state.arrived.len() == state.here.len()
    }

    /// What was waited for, in its order.
    pub(super) fn profile(&self) -> Vec<usize> {
        self.lock().profile.clone()
    }

    /// Speaks with one process that shows the layer, until it ends.
    pub(super) async fn serve(&self, link: UnixStream) -> std::io::Result<()> {
        let (from, to) = link.into_split();
        tokio::select! {
            heard = self.hear(from) => heard,
            told = self.tell(to) => told,
        }
    }

    async fn hear(&self, mut from: OwnedReadHalf) -> std::io::Result<()> {
        let mut frame = [0; wire::FRAME];
        loop {
            from.read_exact(&mut frame).await?;
            let Some(run) = wire::decode(frame, self.list.chunks.len()) else {
                return Err(std::io::ErrorKind::InvalidData.into());
            };
            self.lock().want(run);
        }
    }

    async fn tell(&self, mut to: OwnedWriteHalf) -> std::io::Result<()> {
        let mut news = self.news.subscribe();
        let mut told = 0;
        loop {
            let frames = self.lock().frames(&mut told);
            to.write_all(&frames).await?;
            if news.changed().await.is_err() {
                return Ok(());
            }
        }
    }
}

impl State {
    fn arrive(&mut self, place: usize) {
        if !std::mem::replace(&mut self.here[place], true) {
            self.arrived.push(place);
        }
    }

    fn want(&mut self, run: Range<usize>) {
        for place in run {
            if self.profile.len() < MAX_PROFILE && self.profiled.insert(place) {
                self.profile.push(place);
            }
            // As many as there are chunks at most.
            if !self.here[place] && !self.wanted.contains(&place) {
                self.wanted.push_back(place);
            }
        }
    }

    /// What arrived since `told`, neighbours together.
    fn frames(&self, told: &mut usize) -> Vec<u8> {
        let fresh = &self.arrived[*told..];
        *told = self.arrived.len();
        let runs = fresh.chunk_by(|a, b| a + 1 == *b);
        let runs = runs.filter_map(|run| Some(*run.first()?..run.last()? + 1));
        runs.flat_map(|run| wire::encode(&wire::run(&run)))
            .collect()
    }
}
