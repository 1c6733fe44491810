//! One layer of a pull: from here, from peers or from the registry, whichever has it first, verified while
//! it streams into its directory. Which layers there are is the pull's.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TryRecvError;

use super::budget::Budget;
use super::error::ImageError;
use super::layer::Marker;
use super::lazy;
use super::manifest::LayerPlan;
use super::peers::Company;
use super::pull::{Progress, ProgressFn};
use super::registry::partial::{self, Keeping, Partial};
use super::registry::{Download, Piece, Registry};
use super::source::Source;
use super::store::{Inner, Store};

/// Pieces between the network and the disk: about half a megabyte. When the disk is slower the
/// network waits.
const PIECES_AHEAD: usize = 32;

/// One layer's download under way.
pub(super) struct Fetch {
    pub store: Store,
    pub company: Option<Arc<Company>>,
    pub registry: Arc<Registry>,
    pub plan: LayerPlan,
    pub budget: Arc<Budget>,
    pub progress: Option<ProgressFn>,
}

impl Fetch {
    pub(super) async fn run(self) -> Result<Marker, ImageError> {
        let diff_id = self.plan.diff_id.clone();
        let held = self
            .store
            .blocking(move |inner| Ok(inner.usable(&diff_id)))
            .await?;
        if let Some(marker) = held {
            return Ok(marker);
        }
        let Some(company) = self.company.clone() else {
            return self.registry_layer().await;
        };
        let arrival = self.store.inner.coming().layer(&self.plan.diff_id);
        let Some(arrival) = arrival else {
            return self.through_sources(&company).await;
        };
        if let Some(marker) = lazy::arrive(&self.store, &company, &arrival).await? {
            return Ok(marker);
        }
        // Whoever reads it waits for the layer as a whole.
        let marker = self.through_sources(&company).await?;
        let settle = move |inner: &Inner| lazy::settle(inner, &arrival);
        self.store.blocking(settle).await?;
        Ok(marker)
    }

    /// From whichever source has it, in their order.
    async fn through_sources(&self, company: &Company) -> Result<Marker, ImageError> {
        let diff_id = &self.plan.diff_id;
        let mut failure = None;
        for source in company.sources(diff_id).await {
            let holders = match source {
                Source::Holders(holders) => holders,
                Source::Elected(node) if company.brought(node, diff_id).await => vec![node],
                Source::Elected(_) => continue,
                Source::Registry => match self.registry_layer().await {
                    Err(error) if error.may_be_elsewhere() => {
                        failure = Some(error);
                        continue;
                    }
                    outcome => return outcome,
                },
            };
            if let Some(marker) = company.layer(&self.plan, &holders).await? {
                return Ok(marker);
            }
        }
        let everybody = company.holders(diff_id, true).await;
        let holders: Vec<_> = everybody.into_iter().collect();
        let last = company.layer(&self.plan, &holders).await?;
        last.ok_or_else(|| {
            failure.unwrap_or_else(|| ImageError::NotHeld {
                digest: diff_id.to_string(),
            })
        })
    }

    /// From the registry or a mirror; from the next of them when what one sent was not the layer.
    async fn registry_layer(&self) -> Result<Marker, ImageError> {
        let mut skip = 0;
        loop {
            let plan = self.plan.clone();
            let partial = self
                .store
                .blocking(move |inner| Ok(inner.partials.of(&plan)));
            let partial = partial.await?;
            let resumed = partial.as_ref().is_some_and(|partial| partial.have() > 0);
            if resumed {
                fail::fail_point!("image::resuming");
            }
            match self.layer_from(skip, partial).await {
                Err(error) if error.is_passing() || error.is_full_disk() => return Err(error),
                // What came earlier may be what is wrong: after a power cut it can be.
                Err(error) if resumed => {
                    tracing::debug!(layer = %self.plan.digest, %error, "fetched from the beginning");
                }
                Err(error) if error.is_damage() && skip + 1 < self.registry.places() => {
                    tracing::warn!(layer = %self.plan.digest, %error, "a mirror is passed over");
                    skip += 1;
                }
                outcome => return outcome,
            }
        }
    }

    async fn layer_from(
        &self,
        skip: usize,
        partial: Option<Partial>,
    ) -> Result<Marker, ImageError> {
        let unpackers = Arc::clone(&self.store.inner.unpackers);
        let Ok(_permit) = unpackers.acquire_owned().await else {
            return Err(ImageError::Interrupted {
                what: self.plan.diff_id.to_string(),
            });
        };
        let (pieces, arriving) = mpsc::channel(PIECES_AHEAD);
        let (plan, budget) = (self.plan.clone(), Arc::clone(&self.budget));
        let done = partial.as_ref().map_or(0, Partial::have);
        let path = partial.as_ref().map(|partial| partial.path().to_owned());
        let packed = Keeping::new(partial, Arriving::new(arriving));
        let unpacked = self
            .store
            .blocking(move |inner| inner.take_in(packed, &plan, &budget));
        let (sent, unpacked) = tokio::join!(self.download(pieces, skip, done), unpacked);
        // A broken download is the cause, and the unpacker's complaint its echo.
        let outcome = sent.and(unpacked);
        if let (Err(error), Some(path)) = (&outcome, path)
            && !error.is_passing()
        {
            partial::remove(&path)?;
        }
        outcome
    }

    async fn download(
        &self,
        pieces: mpsc::Sender<Piece>,
        skip: usize,
        done: u64,
    ) -> Result<(), ImageError> {
        let (digest, total) = (&self.plan.digest, self.plan.size);
        let (inner, told) = (&self.store.inner, AtomicU64::new(done));
        inner.tally.add_local(done);
        let progress = |received| {
            inner.arrived.fetch_add(1, Ordering::Relaxed);
            let before = told.swap(received, Ordering::Relaxed);
            inner.tally.add_registry(received.saturating_sub(before));
            if let Some(tell) = &self.progress {
                tell(Progress {
                    layer: digest.clone(),
                    received,
                    total,
                });
            }
        };
        let mut download = Download {
            digest,
            size: total,
            done,
            pieces,
            progress: &progress,
        };
        self.registry.stream_blob(&mut download, skip).await
    }
}

/// The download as a blocking reader. Its end is an end only when the download says so.
pub(super) struct Arriving {
    pieces: mpsc::Receiver<Piece>,
    current: Bytes,
    ended: bool,
}

impl Arriving {
    pub(super) fn new(pieces: mpsc::Receiver<Piece>) -> Self {
        Self {
            pieces,
            current: Bytes::new(),
            ended: false,
        }
    }
}

impl Read for Arriving {
    /// As much as there is: chunks of peers are small, and each read costs a write to the unpacker.
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let mut length = 0;
        while length < buf.len() && !self.ended {
            if self.current.is_empty() {
                let piece = match self.pieces.try_recv() {
                    Err(TryRecvError::Empty) if length == 0 => self.pieces.blocking_recv(),
                    Err(TryRecvError::Empty) => break,
                    piece => piece.ok(),
                };
                match piece {
                    Some(Piece::Data(bytes)) => self.current = bytes,
                    Some(Piece::End) => self.ended = true,
                    None if length > 0 => break,
                    None => {
                        let what = "a layer".to_owned();
                        return Err(io::Error::other(ImageError::Interrupted { what }));
                    }
                }
            }
            let n = self.current.len().min(buf.len() - length);
            buf[length..length + n].copy_from_slice(&self.current.split_to(n));
            length += n;
        }
        Ok(length)
    }
}
