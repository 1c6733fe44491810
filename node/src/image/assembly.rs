//! A layer's tar put together from chunks held here and chunks of peers, in its order, while it is
//! unpacked. Every chunk is verified as it arrives and the whole by its diff id. Fetching, packing at the
//! other end, verifying and unpacking overlap: several windows are on their way at once.

use std::ops::Range;
use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{self, StreamExt};
use scheduler::model::NodeId;
use tokio::sync::{Semaphore, SemaphorePermit, mpsc};

use super::budget::Budget;
use super::chunks::ChunkList;
use super::digest::Digest;
use super::error::ImageError;
use super::fetch::Arriving;
use super::holders::{Got, Holders, Local, locate, read_local};
use super::layer::Marker;
use super::manifest::{LayerPlan, Packing};
use super::peers::{Company, WINDOWS_AT_ONCE, lie};
use super::registry::Piece;

/// Raw bytes of the tar that are fetched together. While one such window is on its way, another is packed
/// by the peer and a third verified here; all of them are in memory.
const WINDOW: u64 = 1 << 20;
/// Windows of a layer in memory, some on their way and some waiting for the unpacker.
const WINDOWS_AHEAD: usize = WINDOWS_AT_ONCE + 2;
/// Chunks between the windows and the unpacker: about a megabyte.
const PIECES_AHEAD: usize = 64;

impl Company {
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

    /// The tar in its order, window by window, while the next ones are fetched; the packed bytes
    /// that peers sent. `None` when no peer is left. An unpacker that gave up says why itself.
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
        let holders = Holders::new(self, (layer, list), holders, true);
        let room = Semaphore::new(WINDOWS_AHEAD);
        let (fetched, ready) = mpsc::channel(WINDOWS_AHEAD);
        let fetching = async {
            // Here, so that whoever feeds hears of the end.
            let fetched = fetched;
            let windows = stream::iter(windows(list)).map(|window| async {
                let room = room.acquire().await.ok()?;
                let got = self.window(list, window, &local, &holders).await?;
                Some((got, room))
            });
            let mut windows = pin!(windows.buffered(WINDOWS_AT_ONCE));
            // There is room: peers are listened to also while the unpacker takes nothing.
            while let Some(window) = windows.next().await
                && fetched.send(window).await.is_ok()
            {}
        };
        let mut feeding = pin!(feed_from(ready, &pieces));
        let fed = tokio::select! {
            fed = &mut feeding => fed,
            () = fetching => feeding.await,
        };
        fed.map(|()| holders.moved())
    }

    /// All chunks of a window, of this node's other layers where they have them.
    async fn window(
        &self,
        list: &Arc<ChunkList>,
        window: Range<u32>,
        local: &Arc<Local>,
        holders: &Holders<'_>,
    ) -> Option<Got> {
        let places: Vec<u32> = window.clone().collect();
        let mut got = Got::new();
        if !local.is_empty() {
            let (wanted, known) = (Arc::clone(list), Arc::clone(local));
            let here = self
                .store
                .blocking(move |inner| Ok(read_local(inner, &wanted, window, &known)));
            got = here.await.unwrap_or_default();
            let found: usize = got.values().map(Bytes::len).sum();
            self.store.inner.tally.add_local(found as u64);
        }
        let _turn = self.turns.acquire().await.ok()?;
        let complete = holders.complete(&places, &mut got, None).await;
        complete.then_some(got)
    }
}

/// Passes windows on as they come; `None` when one does not.
async fn feed_from(
    mut ready: mpsc::Receiver<Option<(Got, SemaphorePermit<'_>)>>,
    pieces: &mpsc::Sender<Piece>,
) -> Option<()> {
    while let Some(window) = ready.recv().await {
        let (got, _room) = window?;
        for bytes in got.into_values() {
            if pieces.send(Piece::Data(bytes)).await.is_err() {
                return Some(());
            }
        }
        fail::fail_point!("image::window_passed");
    }
    let _ = pieces.send(Piece::End).await;
    Some(())
}

/// Stretches of the list that are handled at once.
fn windows(list: &ChunkList) -> Vec<Range<u32>> {
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
