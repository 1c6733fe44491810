//! Chunks of one layer from those who hold them: from this node's other layers, verified as they are read,
//! and from peers one after the other, each part verified as it arrives.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use bytes::Bytes;
use netfabric::wire::image::{ImageAnswer, ImageRequest};
use scheduler::model::NodeId;
use tokio::sync::mpsc;

use super::chunks::ChunkList;
use super::digest::Digest;
use super::peers::{Company, lie, next, unexpected};
use super::store::Inner;

/// Those who may still give chunks of one layer by one list.
pub(super) struct Holders<'a> {
    pub(super) company: &'a Company,
    pub(super) layer: &'a Digest,
    pub(super) list: &'a ChunkList,
    pub(super) left: std::collections::VecDeque<NodeId>,
    /// 1 while the first one is the list's author; the others' lists are compared first: a lying
    /// list must not make liars of them.
    pub(super) compared: usize,
    pub(super) moved: u64,
}

pub(super) type Got = BTreeMap<u32, Bytes>;

impl Holders<'_> {
    /// Fetches what of these is not there yet; what one peer gave stays when it fails. Whoever
    /// listens is given each part of it as soon as it is verified.
    pub(super) async fn complete(
        &mut self,
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
            let Some(node) = self.left.front().copied() else {
                return false;
            };
            if let Err(error) = self.from(node, &missing, got, listener).await {
                self.left.pop_front();
                self.compared = 0;
                // Another list than the author's: no fault as long as nobody knows whose is right.
                if error.kind() != io::ErrorKind::Unsupported {
                    self.company.leave_out(node, &error);
                }
            }
        }
    }

    async fn from(
        &mut self,
        node: NodeId,
        missing: &[u32],
        got: &mut Got,
        listener: Option<&mpsc::Sender<Got>>,
    ) -> io::Result<()> {
        if self.compared == 0 {
            if self.company.left_out().contains(&node) {
                return Err(io::ErrorKind::Unsupported.into());
            }
            if self.company.list(node, self.layer).await?.0 != *self.list {
                return Err(io::ErrorKind::Unsupported.into());
            }
            self.compared = 1;
        }
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
                    self.moved += packed.len() as u64;
                    self.company.store.inner.tally.add_peer(packed.len());
                    let part = verified(self.list, now, &packed)?;
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
}

fn verified(list: &ChunkList, indexes: &[u32], packed: &[u8]) -> io::Result<Got> {
    let chunks = indexes.iter().map(|i| &list.chunks[*i as usize]);
    let total: usize = chunks.clone().map(|chunk| chunk.len as usize).sum();
    let mut raw = Bytes::from(zstd::bulk::decompress(packed, total).map_err(lie)?);
    if raw.len() != total {
        return Err(lie("chunks of another size"));
    }
    let mut got = Got::new();
    for (index, chunk) in indexes.iter().zip(chunks) {
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
        let raw = open
            .entry(layer)
            .or_insert_with(|| inner.layers.raw(layer).ok().flatten());
        let Some(raw) = raw else { continue };
        if raw.read_at(*offset, chunk.len, &mut bytes).is_ok() && chunk.holds(&bytes) {
            got.insert(index, Bytes::copy_from_slice(&bytes));
        }
    }
    got
}
