//! A layer put together from what is here and what is not: given how its tar is cut, the chunks
//! that older layers have are read from their trees, and only the others are asked for. Owns the
//! search and the reader; where missing chunks come from is the caller's.

use std::collections::BTreeMap;
use std::io::{self, Read};

use super::chunks::{Chunk, ChunkList};
use super::digest::Digest;
use super::error::ImageError;
use super::layer::Layers;
use super::record::Raw;

/// A chunk's place in a layer that is here.
#[derive(Clone, Copy)]
struct Place {
    /// Of [`Assembly::sources`].
    source: usize,
    offset: u64,
}

/// What is here of a layer that is not. Made for one fetch and gone with it: an idle node keeps no
/// index.
pub(super) struct Assembly {
    list: ChunkList,
    here: BTreeMap<[u8; 32], Place>,
    sources: Vec<Raw>,
}

impl Layers {
    /// Looks in all complete layers for the chunks of `list`. A layer whose record cannot be read
    /// has nothing to give.
    pub(super) fn assembly(&self, list: ChunkList) -> Result<Assembly, ImageError> {
        let mut wanted: BTreeMap<[u8; 32], Option<Place>> =
            list.chunks.iter().map(|chunk| (chunk.hash, None)).collect();
        let mut sources = Vec::new();
        for diff_id in self.all()? {
            if let Some(raw) = self.search(&diff_id, &mut wanted, sources.len()) {
                sources.push(raw);
            }
        }
        let found = wanted.into_iter();
        let here = found.filter_map(|(hash, place)| Some((hash, place?)));
        Ok(Assembly {
            list,
            here: here.collect(),
            sources,
        })
    }

    /// Notes the first place of every wanted chunk; the layer is opened only when it has one.
    fn search(
        &self,
        diff_id: &Digest,
        wanted: &mut BTreeMap<[u8; 32], Option<Place>>,
        source: usize,
    ) -> Option<Raw> {
        self.marker(diff_id)?;
        let list = self.chunk_list(diff_id).ok()??;
        let has = |chunk: &Chunk| matches!(wanted.get(&chunk.hash), Some(None));
        if !list.chunks.iter().any(has) {
            return None;
        }
        let raw = self.raw(diff_id).ok()??;
        for chunk in &list.chunks {
            if let Some(place @ None) = wanted.get_mut(&chunk.hash) {
                let offset = chunk.offset;
                *place = Some(Place { source, offset });
            }
        }
        Some(raw)
    }
}

impl Assembly {
    /// The chunks to ask for, in the order the reader will want them. One that comes twice is
    /// asked for twice.
    pub(super) fn missing(&self) -> impl Iterator<Item = &Chunk> {
        let chunks = self.list.chunks.iter();
        chunks.filter(|chunk| !self.here.contains_key(&chunk.hash))
    }

    /// The layer's tar as a reader, for `Packing::Plain`. `missing` is called for the missing chunks
    /// in their order, so that it may fetch ahead, and besides for a local chunk that turns out to
    /// be damaged. Every chunk is verified, wherever it came from.
    pub(super) fn reader<F>(self, missing: F) -> Assembling<F>
    where
        F: FnMut(&Chunk) -> io::Result<Vec<u8>>,
    {
        Assembling {
            assembly: self,
            missing,
            next: 0,
            bytes: Vec::new(),
            at: 0,
        }
    }

    /// Reads a chunk that is here; false when it is not, or no longer what it was.
    fn read_here(&mut self, chunk: &Chunk, into: &mut Vec<u8>) -> bool {
        let Some(place) = self.here.get(&chunk.hash) else {
            return false;
        };
        let source = &mut self.sources[place.source];
        source.read_at(place.offset, chunk.len, into).is_ok() && chunk.holds(into)
    }
}

/// See [`Assembly::reader`]. Holds one chunk at a time.
pub(super) struct Assembling<F> {
    assembly: Assembly,
    missing: F,
    next: usize,
    bytes: Vec<u8>,
    at: usize,
}

impl<F: FnMut(&Chunk) -> io::Result<Vec<u8>>> Read for Assembling<F> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.at == self.bytes.len() {
            let Some(chunk) = self.assembly.list.chunks.get(self.next).copied() else {
                return Ok(0);
            };
            if !self.assembly.read_here(&chunk, &mut self.bytes) {
                self.bytes = (self.missing)(&chunk)?;
                if !chunk.holds(&self.bytes) {
                    self.bytes.clear();
                    self.at = 0;
                    let what = format!("the chunk at {}", chunk.offset);
                    let error = ImageError::malformed(what, "its bytes are not the promised ones");
                    return Err(io::Error::other(error));
                }
            }
            self.next += 1;
            self.at = 0;
        }
        let n = buf.len().min(self.bytes.len() - self.at);
        buf[..n].copy_from_slice(&self.bytes[self.at..self.at + n]);
        self.at += n;
        Ok(n)
    }
}
