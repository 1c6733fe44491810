//! The asker's side of images between nodes: who is asked and in which order, what is asked, and what
//! of the answers is believed. Whoever fails is left out for the rest of this pull, and whoever lies is
//! named in the log. How a layer is put together from answers is `assembly`'s.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, StreamExt};
use netfabric::wire::image::{ImageAnswer, ImageRequest};
use scheduler::model::{ImagePin, NodeId};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

use super::chunks::ChunkList;
use super::digest::Digest;
use super::manifest::Document;
use super::proofs::MAX_PROOF;
use super::signature::Proof;
use super::source::{self, Answers, Near, Neighbour, Source, Waits};
use super::store::Store;

/// Nodes asked before the registry is; all the others only when it fails.
const ASK_FIRST: usize = 16;
/// Nodes asked at once.
const FAN_OUT: usize = 8;
/// Windows of chunks asked for at once, by all layers of a pull together: a peer serves many pulls.
pub(super) const WINDOWS_AT_ONCE: usize = 4;
/// What a chunk list may have, encoded: 32 bytes a chunk and a little.
const MAX_LIST: usize = 80 << 20;
/// The peers of one pull.
pub(super) struct Company {
    pub store: Store,
    pub near: Arc<dyn Near>,
    pub pin: ImagePin,
    /// Whether the site's elected may be asked to pull; not when this pull is for a peer.
    pub elects: bool,
    pub(super) waits: Waits,
    /// To ask for a window.
    pub(super) turns: Semaphore,
    left_out: Mutex<BTreeSet<NodeId>>,
}

impl Company {
    pub(super) fn new(store: Store, near: Arc<dyn Near>, pin: ImagePin, elects: bool) -> Self {
        Self {
            store,
            waits: near.waits(),
            near,
            pin,
            elects,
            turns: Semaphore::new(WINDOWS_AT_ONCE),
            left_out: Mutex::default(),
        }
    }

    /// The same peers for another piece of work, none of them left out.
    pub(super) fn again(&self) -> Self {
        let (near, pin) = (Arc::clone(&self.near), self.pin.clone());
        Self::new(self.store.clone(), near, pin, self.elects)
    }

    pub(super) fn left_out(&self) -> MutexGuard<'_, BTreeSet<NodeId>> {
        self.left_out.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn leave_out(&self, node: NodeId, error: &io::Error) {
        self.left_out().insert(node);
        let image = &self.pin.reference;
        if error.kind() == io::ErrorKind::InvalidData {
            tracing::warn!(%node, image, %error, "a peer gave wrong bytes: left out of this pull");
        } else {
            tracing::debug!(%node, image, %error, "a peer is left out of this pull");
        }
    }

    /// Live peers still counted on, near ones first.
    fn peers(&self) -> Vec<Neighbour> {
        let mut peers = self.near.neighbours();
        let (me, left_out) = (self.near.me(), self.left_out());
        peers.retain(|n| n.node != me && !left_out.contains(&n.node));
        drop(left_out);
        source::nearest(&mut peers);
        peers
    }

    /// The peers that say they hold the image, or all of them.
    fn candidates(&self, everybody: bool) -> Vec<NodeId> {
        let peers = self.peers();
        let says = |n: &&Neighbour| n.images.contains(&self.pin.digest);
        let (told, rest): (Vec<_>, Vec<_>) = peers.iter().partition(says);
        let rest = rest.into_iter().filter(|n| everybody || n.near);
        let most = if everybody { usize::MAX } else { ASK_FIRST };
        let all = told.into_iter().chain(rest).take(most);
        all.map(|n| n.node).collect()
    }

    /// The image's documents from whoever has them, each what its digest says.
    pub(super) async fn documents(&self, everybody: bool) -> Option<(Bytes, Bytes)> {
        let ask = |node| self.documents_of(node);
        self.first(everybody, ask, |_| true).await
    }

    /// The first answer that is sound and wanted, of some nodes asked at once. Who lies is left out.
    async fn first<T: Send, F: Future<Output = io::Result<T>> + Send>(
        &self,
        everybody: bool,
        ask: impl Fn(NodeId) -> F + Send + Sync,
        is_wanted: impl Fn(&T) -> bool + Send + Sync,
    ) -> Option<T> {
        let asked = stream::iter(self.candidates(everybody));
        let answers = asked.map(|node| {
            let answer = ask(node);
            async move { (node, answer.await) }
        });
        let sound = answers
            .buffer_unordered(FAN_OUT)
            .filter_map(|(node, answer)| {
                if let Err(error) = &answer
                    && error.kind() == io::ErrorKind::InvalidData
                {
                    self.leave_out(node, error);
                }
                std::future::ready(answer.ok().filter(&is_wanted))
            });
        sound.boxed().next().await
    }

    async fn documents_of(&self, node: NodeId) -> io::Result<(Bytes, Bytes)> {
        let image = self.pin.digest.clone();
        let mut answers = self.ask(node, ImageRequest::Documents { image }).await?;
        let mut document = async || match next(&mut answers, self.waits.answer).await? {
            ImageAnswer::Document(bytes) => Ok(Bytes::from(bytes)),
            other => Err(unexpected(other)),
        };
        let (manifest, config) = (document().await?, document().await?);
        let tally = &self.store.inner.tally;
        tally.add_peer(manifest.len() + config.len());
        if Digest::of(&manifest).as_str() != self.pin.digest {
            return Err(lie("a manifest is not the one asked for"));
        }
        let named = match Document::parse("a peer's manifest", &manifest) {
            Ok(Document::Manifest(manifest)) => manifest.config.digest,
            _ => return Err(lie("a manifest is none")),
        };
        if Digest::of(&config).as_str() != named {
            return Err(lie("a configuration is not the image's"));
        }
        Ok((manifest, config))
    }

    /// An index by its digest, from whoever has it.
    pub(super) async fn index(&self, digest: &Digest) -> Option<Bytes> {
        let ask = |node| self.index_of(node, digest);
        self.first(true, ask, |_| true).await
    }

    async fn index_of(&self, node: NodeId, digest: &Digest) -> io::Result<Bytes> {
        let index = digest.to_string();
        let mut answers = self.ask(node, ImageRequest::Index { index }).await?;
        match next(&mut answers, self.waits.answer).await? {
            ImageAnswer::Document(bytes) if Digest::of(&bytes) == *digest => Ok(bytes.into()),
            ImageAnswer::Document(_) => Err(lie("an index is not the one asked for")),
            other => Err(unexpected(other)),
        }
    }

    /// What peers know of who signed the image, until one shows what is wanted.
    pub(super) async fn proof(
        &self,
        everybody: bool,
        shows: impl Fn(&Proof) -> bool + Send + Sync,
    ) -> Option<Proof> {
        let ask = |node| self.proof_of(node);
        self.first(everybody, ask, shows).await
    }

    async fn proof_of(&self, node: NodeId) -> io::Result<Proof> {
        let image = self.pin.digest.clone();
        let mut answers = self.ask(node, ImageRequest::Proof { image }).await?;
        let mut bytes = Vec::new();
        loop {
            match next(&mut answers, self.waits.answer).await? {
                ImageAnswer::Piece(piece) if bytes.len() + piece.len() <= MAX_PROOF => {
                    bytes.extend_from_slice(&piece);
                }
                ImageAnswer::End => break,
                other => return Err(unexpected(other)),
            }
        }
        serde_json::from_slice(&bytes).map_err(|_| lie("a proof is none"))
    }

    /// Where to look for a layer, in order.
    pub(super) async fn sources(&self, layer: &Digest) -> Vec<Source> {
        let holders = self.holders(layer, false).await;
        let neighbours = self.near.neighbours();
        let mut elected = source::elect(&neighbours, &self.pin.digest);
        elected.retain(|node| self.elects && !self.left_out().contains(node));
        source::order(self.near.me(), &neighbours, &holders, &elected)
    }

    /// Who holds a layer of those asked.
    pub(super) async fn holders(&self, layer: &Digest, everybody: bool) -> BTreeSet<NodeId> {
        let asked = self.candidates(everybody);
        let asking = stream::iter(asked).map(|node| async move {
            let held = self.holds(node, layer).await;
            held.unwrap_or(false).then_some(node)
        });
        let answered = asking.buffer_unordered(FAN_OUT);
        answered.filter_map(std::future::ready).collect().await
    }

    async fn holds(&self, node: NodeId, layer: &Digest) -> io::Result<bool> {
        let request = ImageRequest::Holds {
            images: Vec::new(),
            layers: vec![layer.to_string()],
        };
        let mut answers = self.ask(node, request).await?;
        match next(&mut answers, self.waits.quick).await? {
            ImageAnswer::Holds { layers, .. } => Ok(layers == [true]),
            other => Err(unexpected(other)),
        }
    }

    /// Has the elected node pull the image; true when this layer of it is there.
    pub(super) async fn brought(&self, node: NodeId, layer: &Digest) -> bool {
        match timeout(self.waits.most, self.bring(node, layer)).await {
            Ok(Ok(())) => true,
            Ok(Err(error)) => {
                self.leave_out(node, &error);
                false
            }
            Err(_) => {
                self.leave_out(node, &io::ErrorKind::TimedOut.into());
                false
            }
        }
    }

    async fn bring(&self, node: NodeId, layer: &Digest) -> io::Result<()> {
        let request = ImageRequest::Bring {
            reference: self.pin.reference.clone(),
            image: self.pin.digest.clone(),
            layer: layer.to_string(),
        };
        // All its neighbours ask it in this moment, and some have to connect first.
        let patience = self.waits.answer;
        let asked = timeout(patience, self.near.ask(node, request, patience));
        let mut answers = asked.await??;
        let (mut most, mut since) = (0, Instant::now());
        loop {
            match next(&mut answers, self.waits.answer).await? {
                ImageAnswer::End => return Ok(()),
                ImageAnswer::Bringing { arrived } if arrived > most => {
                    (most, since) = (arrived, Instant::now());
                }
                ImageAnswer::Bringing { .. } if since.elapsed() < self.waits.stall => {}
                ImageAnswer::Bringing { .. } => return Err(io::ErrorKind::TimedOut.into()),
                other => return Err(unexpected(other)),
            }
        }
    }

    pub(super) async fn pieces(
        &self,
        node: NodeId,
        request: ImageRequest,
        most: usize,
    ) -> io::Result<Vec<u8>> {
        let mut answers = self.ask(node, request).await?;
        let mut bytes = Vec::new();
        loop {
            match next(&mut answers, self.waits.answer).await? {
                ImageAnswer::Piece(piece) if bytes.len() + piece.len() <= most => {
                    self.store.inner.tally.add_peer(piece.len());
                    bytes.extend_from_slice(&piece);
                }
                ImageAnswer::Piece(_) => return Err(lie("an answer is too long")),
                ImageAnswer::End => return Ok(bytes),
                other => return Err(unexpected(other)),
            }
        }
    }

    /// How a layer is cut, and how many bytes it took to say that.
    pub(super) async fn list(&self, node: NodeId, layer: &Digest) -> io::Result<(ChunkList, u64)> {
        let layer = layer.to_string();
        let request = ImageRequest::ChunkList { layer };
        let bytes = self.pieces(node, request, MAX_LIST).await?;
        let moved = bytes.len() as u64;
        let decoded = tokio::task::spawn_blocking(move || ChunkList::decode(&bytes[..])).await;
        let list = decoded.map_err(io::Error::other)?.map_err(lie)?;
        if list.raw > self.store.inner.limits.raw {
            return Err(lie("a chunk list is of more than an image may be"));
        }
        Ok((list, moved))
    }

    pub(super) async fn ask(
        &self,
        node: NodeId,
        request: ImageRequest,
    ) -> io::Result<Box<dyn Answers>> {
        let deadline = self.waits.quick;
        timeout(deadline, self.near.ask(node, request, deadline)).await?
    }
}

pub(super) async fn next(
    answers: &mut Box<dyn Answers>,
    deadline: Duration,
) -> io::Result<ImageAnswer> {
    timeout(deadline, answers.next()).await?
}

pub(super) fn unexpected(answer: ImageAnswer) -> io::Error {
    match answer {
        ImageAnswer::Refused(why) => io::Error::other(why),
        _ => lie("an answer to another question"),
    }
}

pub(super) fn lie(why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{open_store, temp};
    use super::super::tests_peers::{Fault, NAME, room};
    use super::*;

    /// An index is what its digest says, or its giver is asked for nothing more.
    #[tokio::test]
    async fn a_peer_that_lies_of_an_index_is_left_out() {
        let dirs = [temp(), temp()];
        let (there, here) = (open_store(&dirs[0]), open_store(&dirs[1]));
        let index = Bytes::from_static(b"{\"schemaVersion\":2,\"manifests\":[]}");
        let digest = Digest::of(&index);
        there.keep_index(&digest, &index).await;
        let faults = [(Fault::Lying, true), (Fault::RefusesAll, true)];
        let pin = ImagePin {
            reference: NAME.to_owned(),
            digest: digest.to_string(),
        };
        let company = |faults: &[(Fault, bool)]| {
            let near = Arc::new(room(&there, "", faults));
            Company::new(here.clone(), near, pin.clone(), false)
        };
        let liars = company(&faults);
        assert_eq!(liars.index(&digest).await, None);
        let left_out: Vec<NodeId> = liars.left_out().iter().copied().collect();
        assert_eq!(left_out, [NodeId(1)]);
        let honest = company(&[faults[0], (Fault::None, false)]);
        assert_eq!(honest.index(&digest).await, Some(index));
    }
}
