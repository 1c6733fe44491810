//! Chunks of one layer from those who hold them: from this node's other layers, verified as they are read,
//! and from peers one after the other, each part verified as it arrives.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use netfabric::wire::image::{ImageAnswer, ImageRequest};
use scheduler::model::NodeId;
use tokio::sync::mpsc;

use super::chunks::{Chunk, ChunkList};
use super::digest::Digest;
use super::peers::{Company, lie, next, unexpected};
use super::store::Inner;

/// Those who may still give chunks of one layer by one list; several stretches of it at once.
pub(super) struct Holders<'a> {
    pub(super) company: &'a Company,
    layer: &'a Digest,
    list: &'a ChunkList,
    left: Mutex<Left>,
    /// While a list is compared, nobody else need.
    comparing: tokio::sync::Mutex<()>,
    moved: AtomicU64,
}

struct Left {
    nodes: VecDeque<NodeId>,
    /// Of the first: it is the list's author, or its own list is the same. Others' are compared first:
    /// a lying list must not make liars of them.
    compared: bool,
}

pub(super) type Got = BTreeMap<u32, Bytes>;

impl<'a> Holders<'a> {
    /// The first is the list's author, unless all are to be compared.
    pub(super) fn new(
        company: &'a Company,
        (layer, list): (&'a Digest, &'a ChunkList),
        nodes: &[NodeId],
        author_first: bool,
    ) -> Self {
        let left = Left {
            nodes: nodes.iter().copied().collect(),
            compared: author_first,
        };
        Self {
            company,
            layer,
            list,
            left: Mutex::new(left),
            comparing: tokio::sync::Mutex::default(),
            moved: AtomicU64::new(0),
        }
    }

    /// The packed bytes they have sent.
    pub(super) fn moved(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }

    fn left(&self) -> MutexGuard<'_, Left> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn first(&self) -> Option<(NodeId, bool)> {
        let left = self.left();
        Some((*left.nodes.front()?, left.compared))
    }

    /// Fetches what of these is not there yet; what one peer gave stays when it fails. Whoever
    /// listens is given each part of it as soon as it is verified.
    pub(super) async fn complete(
        &self,
        places: &[u32],
        got: &mut Got,
        listener: Option<&mpsc::Sender<Got>>,
    ) -> bool {
        loop {
            let missing = places.iter().copied().filter(|i| !got.contains_key(i));
            let missing: Vec<u32> = missing.collect();
            if missing.is_empty() {
                return true;
            }
            let Some((node, compared)) = self.first() else {
                return false;
            };
            let given = match self.compared(node, compared).await {
                Ok(()) => self.from(node, &missing, got, listener).await,
                Err(error) => Err(error),
            };
            if let Err(error) = given {
                self.pass_over(node, &error);
            }
        }
    }

    /// The next one's turn. Several may find at once that it is.
    fn pass_over(&self, node: NodeId, error: &io::Error) {
        let mut left = self.left();
        if left.nodes.front() != Some(&node) {
            return;
        }
        left.nodes.pop_front();
        left.compared = false;
        drop(left);
        // Another list than the author's: no fault as long as nobody knows whose is right.
        if error.kind() != io::ErrorKind::Unsupported {
            self.company.leave_out(node, error);
        }
    }

    /// Whether this node's chunks are by the same list.
    async fn compared(&self, node: NodeId, already: bool) -> io::Result<()> {
        if already {
            return Ok(());
        }
        let _alone = self.comparing.lock().await;
        match self.first() {
            Some((first, compared)) if first == node => {
                if compared {
                    return Ok(());
                }
            }
            // Somebody else has found out.
            _ => return Err(io::ErrorKind::Unsupported.into()),
        }
        if self.company.left_out().contains(&node) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        if self.company.list(node, self.layer).await?.0 != *self.list {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let mut left = self.left();
        left.compared |= left.nodes.front() == Some(&node);
        Ok(())
    }

    async fn from(
        &self,
        node: NodeId,
        missing: &[u32],
        got: &mut Got,
        listener: Option<&mpsc::Sender<Got>>,
    ) -> io::Result<()> {
        let request = ImageRequest::Chunks {
            layer: self.layer.to_string(),
            ranges: ranges(missing),
        };
        let mut answers = self.company.ask(node, request).await?;
        let mut due = missing;
        while !due.is_empty() {
            match next(&mut answers, self.company.waits.answer).await? {
                ImageAnswer::Chunks { count, packed } => {
                    let count = count as usize;
                    if count == 0 || count > due.len() {
                        return Err(lie("chunks nobody asked for"));
                    }
                    let (now, later) = due.split_at(count);
                    let moved = packed.len();
                    self.moved.fetch_add(moved as u64, Ordering::Relaxed);
                    self.company.store.inner.tally.add_peer(moved);
                    let part = self.verified(now, packed).await?;
                    if let Some(listener) = listener {
                        // One that has gone has its reason and tells it.
                        let _ = listener.send(part.clone()).await;
                    }
                    got.extend(part);
                    due = later;
                }
                ImageAnswer::End => return Err(lie("chunks are left out")),
                other => return Err(unexpected(other)),
            }
        }
        Ok(())
    }

    /// Off the runtime's threads: it is all of the work there is with bytes that arrive.
    async fn verified(&self, indexes: &[u32], packed: Vec<u8>) -> io::Result<Got> {
        let chunks = indexes.iter().map(|i| (*i, self.list.chunks[*i as usize]));
        let chunks: Vec<(u32, Chunk)> = chunks.collect();
        let work = tokio::task::spawn_blocking(move || verified(&chunks, &packed));
        work.await.map_err(io::Error::other)?
    }
}

fn verified(chunks: &[(u32, Chunk)], packed: &[u8]) -> io::Result<Got> {
    let total: usize = chunks.iter().map(|(_, chunk)| chunk.len as usize).sum();
    let mut raw = Bytes::from(zstd::bulk::decompress(packed, total).map_err(lie)?);
    if raw.len() != total {
        return Err(lie("chunks of another size"));
    }
    let mut got = Got::new();
    for (index, chunk) in chunks {
        let bytes = raw.split_to(chunk.len as usize);
        if !chunk.holds(&bytes) {
            return Err(lie("a chunk has not the hash it should have"));
        }
        got.insert(*index, bytes);
    }
    Ok(got)
}

fn ranges(indexes: &[u32]) -> Vec<(u32, u32)> {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for index in indexes {
        match ranges.last_mut() {
            Some((first, many)) if *first + *many == *index => *many += 1,
            _ => ranges.push((*index, 1)),
        }
    }
    ranges
}

/// Where chunks of the list lie in other layers held here.
pub(super) type Local = BTreeMap<[u8; 32], (Digest, u64)>;

pub(super) fn locate(inner: &Inner, list: &ChunkList) -> Local {
    let wanted: BTreeSet<&[u8; 32]> = list.chunks.iter().map(|chunk| &chunk.hash).collect();
    let mut local = Local::new();
    for layer in inner.layers.all().unwrap_or_default() {
        if inner.layers.marker(&layer).is_none() {
            continue;
        }
        // One that cannot be read has nothing for us. A damaged one has all but what is damaged.
        let Ok(Some(held)) = inner.layers.chunk_list(&layer) else {
            continue;
        };
        for chunk in held.chunks {
            if wanted.contains(&chunk.hash) {
                local.insert(chunk.hash, (layer.clone(), chunk.offset));
            }
        }
    }
    local
}

/// What of these can be read here, verified.
pub(super) fn read_local(
    inner: &Inner,
    list: &ChunkList,
    places: impl IntoIterator<Item = u32>,
    local: &Local,
) -> Got {
    let mut open = BTreeMap::new();
    let (mut got, mut bytes) = (Got::new(), Vec::new());
    for index in places {
        let chunk = &list.chunks[index as usize];
        let Some((layer, offset)) = local.get(&chunk.hash) else {
            continue;
        };
        let raw = open.entry(layer).or_insert_with(|| {
            // Not read anew for every window.
            let (_, recipe) = inner.recent.of(inner, layer).ok().flatten()?;
            inner.layers.raw_by(layer, recipe).ok()
        });
        let Some(raw) = raw else { continue };
        if raw.read_at(*offset, chunk.len, &mut bytes).is_ok() && chunk.holds(&bytes) {
            got.insert(index, Bytes::copy_from_slice(&bytes));
        }
    }
    got
}
