//! The asker's side of images between nodes: finds who holds a layer, waits for the one who pulls
//! for the site, and puts the layer's tar together from chunks held here and chunks of peers. Every
//! chunk is verified as it arrives and the whole by its diff id; whoever fails is left out for the
//! rest of this pull, and whoever lies is named in the log.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, StreamExt};
use netfabric::wire::image::{ImageAnswer, ImageRequest};
use scheduler::model::{ImagePin, NodeId};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use super::budget::Budget;
use super::chunks::ChunkList;
use super::digest::Digest;
use super::error::ImageError;
use super::fetch::Arriving;
use super::holders::{Holders, locate, read_local};
use super::layer::Marker;
use super::manifest::{Document, LayerPlan, Packing};
use super::proofs::MAX_PROOF;
use super::registry::Piece;
use super::signature::Proof;
use super::source::{self, Answers, Near, Neighbour, Source, Waits};
use super::store::Store;

/// Nodes asked before the registry is; all the others only when it fails.
const ASK_FIRST: usize = 16;
/// Nodes asked at once.
const FAN_OUT: usize = 8;
/// Raw bytes of the tar prepared at a time, in memory.
const WINDOW: u64 = 4 << 20;
/// What a chunk list may have, encoded: 32 bytes a chunk and a little.
const MAX_LIST: usize = 80 << 20;
/// Windows and local pieces between peers and the unpacker.
const PIECES_AHEAD: usize = 32;

/// The peers of one pull.
pub(super) struct Company {
    pub store: Store,
    pub near: Arc<dyn Near>,
    pub pin: ImagePin,
    /// Whether the site's elected may be asked to pull; not when this pull is for a peer.
    pub elects: bool,
    pub(super) waits: Waits,
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
        let asked = self.candidates(everybody);
        let mut found = stream::iter(asked)
            .map(|node| async move {
                match self.documents_of(node).await {
                    Ok(documents) => Some(documents),
                    Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                        self.leave_out(node, &error);
                        None
                    }
                    Err(_) => None,
                }
            })
            .buffer_unordered(FAN_OUT)
            .filter_map(std::future::ready)
            .boxed();
        found.next().await
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

    /// What peers know of who signed the image, one after the other, until one shows what is wanted.
    pub(super) async fn proof(
        &self,
        everybody: bool,
        shows: impl Fn(&Proof) -> bool + Sync,
    ) -> Option<Proof> {
        let asked = stream::iter(self.candidates(everybody)).map(|node| self.proof_of(node));
        let given = asked.buffer_unordered(FAN_OUT);
        let mut fitting = given
            .filter_map(|proof| std::future::ready(proof.ok().filter(|proof| shows(proof))))
            .boxed();
        fitting.next().await
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
        let elected = source::elect(&neighbours, &self.pin.digest)
            .filter(|node| self.elects && !self.left_out().contains(node));
        source::order(self.near.me(), &neighbours, &holders, elected)
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
        let mut answers = self.ask(node, request).await?;
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

    /// A layer from these peers, the first one first; `None` when they could not give it.
    pub(super) async fn layer(
        &self,
        plan: &LayerPlan,
        holders: &[NodeId],
    ) -> Result<Option<Marker>, ImageError> {
        for (at, author) in holders.iter().enumerate() {
            if self.left_out().contains(author) {
                continue;
            }
            let (list, moved) = match self.list(*author, &plan.diff_id).await {
                Ok((list, moved)) => (Arc::new(list), moved),
                Err(error) => {
                    self.leave_out(*author, &error);
                    continue;
                }
            };
            fail::fail_point!("image::list_taken");
            match self.assemble(plan, (&list, moved), &holders[at..]).await {
                Ok(marker) => return Ok(Some(marker)),
                Err(error @ ImageError::Io { .. }) => return Err(error),
                // Nobody is left who could go on.
                Err(ImageError::Interrupted { .. }) => {}
                // All chunks were what the list says: the list is wrong.
                Err(error) => self.leave_out(*author, &lie(error)),
            }
        }
        Ok(None)
    }

    /// Those who may give chunks of a layer; the first is the list's author unless all are compared.
    pub(super) fn holders_of<'a>(
        &'a self,
        layer: &'a Digest,
        list: &'a ChunkList,
        holders: &[NodeId],
        author_first: bool,
    ) -> Holders<'a> {
        Holders {
            company: self,
            layer,
            list,
            left: holders.iter().copied().collect(),
            compared: usize::from(author_first),
            moved: 0,
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

    async fn assemble(
        &self,
        plan: &LayerPlan,
        (list, told): (&Arc<ChunkList>, u64),
        holders: &[NodeId],
    ) -> Result<Marker, ImageError> {
        let interrupted = || ImageError::Interrupted {
            what: plan.diff_id.to_string(),
        };
        let unpackers = Arc::clone(&self.store.inner.unpackers);
        let _permit = unpackers.acquire_owned().await.map_err(|_| interrupted())?;
        let plain = LayerPlan {
            digest: plan.diff_id.clone(),
            size: list.raw,
            packing: Packing::Plain,
            diff_id: plan.diff_id.clone(),
        };
        let (pieces, arriving) = mpsc::channel(PIECES_AHEAD);
        let unpacked = self.store.blocking(move |inner| {
            // A budget of its own: what a liar wasted is not the image's.
            let budget = Budget::new(inner.limits);
            let arriving = Arriving::new(arriving);
            inner.take_in(arriving, &plain, &budget)
        });
        let feeding = self.feed(&plan.diff_id, list, holders, pieces);
        let (fed, unpacked) = tokio::join!(feeding, unpacked);
        match (fed, unpacked) {
            (Some(moved), Ok(marker)) => {
                let (layer, raw, moved) = (plan.diff_id.short(), list.raw, told + moved);
                tracing::info!(layer, raw, moved, "a layer came from peers");
                Ok(marker)
            }
            (None, _) => Err(interrupted()),
            (_, unpacked) => unpacked,
        }
    }

    /// The tar in its order, window by window; the packed bytes that peers sent. `None` when no
    /// peer is left. An unpacker that gave up says why itself.
    async fn feed(
        &self,
        layer: &Digest,
        list: &Arc<ChunkList>,
        holders: &[NodeId],
        pieces: mpsc::Sender<Piece>,
    ) -> Option<u64> {
        let wanted = Arc::clone(list);
        let local = self.store.blocking(move |inner| Ok(locate(inner, &wanted)));
        let local = Arc::new(local.await.unwrap_or_default());
        let mut holders = self.holders_of(layer, list, holders, true);
        for window in windows(list) {
            let (wanted, known) = (Arc::clone(list), Arc::clone(&local));
            let range = window.clone();
            let here = self
                .store
                .blocking(move |inner| Ok(read_local(inner, &wanted, range, &known)));
            let mut got = here.await.unwrap_or_default();
            let found: usize = got.values().map(Bytes::len).sum();
            self.store.inner.tally.add_local(found as u64);
            let places: Vec<u32> = window.collect();
            if !holders.complete(&places, &mut got, None).await {
                return None;
            }
            for bytes in got.into_values() {
                if pieces.send(Piece::Data(bytes)).await.is_err() {
                    return Some(holders.moved);
                }
            }
            fail::fail_point!("image::window_passed");
        }
        let _ = pieces.send(Piece::End).await;
        Some(holders.moved)
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

/// Stretches of the list that are handled at once.
fn windows(list: &ChunkList) -> Vec<std::ops::Range<u32>> {
    let (mut windows, mut start, mut bytes) = (Vec::new(), 0, 0);
    for (index, chunk) in (0u32..).zip(&list.chunks) {
        if bytes >= WINDOW {
            windows.push(start..index);
            (start, bytes) = (index, 0);
        }
        bytes += u64::from(chunk.len);
    }
    let end = u32::try_from(list.chunks.len()).unwrap_or(u32::MAX);
    windows.push(start..end);
    windows
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
