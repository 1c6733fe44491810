//! Brings a layer's chunks into its file: from layers that are here, from peers, and last from the
//! layer itself when it came some other way. What is waited for comes first, then what readers will come
//! to, then what earlier starts read, then the rest while nobody asks.

use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use scheduler::model::NodeId;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::super::budget::Budget;
use super::super::error::ImageError;
use super::super::holders::{Got, Holders, Local, locate, read_local};
use super::super::layer::Marker;
use super::super::manifest::{LayerPlan, Packing};
use super::super::peers::Company;
use super::super::recipe::{Recipe, Segment};
use super::super::store::{Inner, Store};
use super::arrival::Arrival;
use super::arriving::Pick;

/// Raw bytes asked for at once. They come in parts, and a reader waits for its own only.
const BATCH: u64 = 1 << 20;
/// A reader asks little: no more than this is taken together.
const QUICK: u64 = 256 << 10;
/// Parts of an answer that are verified and not yet written.
const PARTS_AHEAD: usize = 4;
/// So long after the last reader's wish the rest goes on; an instance that starts asks again and again.
const QUIET: Duration = Duration::from_millis(50);
/// But the rest waits no longer than this between two of its batches.
const MOST_QUIET: Duration = Duration::from_secs(1);

/// Brings all of the layer here and makes it an ordinary one; `None` when peers could not give it, or
/// were found to have lied.
pub(in super::super) async fn arrive(
    store: &Store,
    company: &Company,
    arrival: &Arc<Arrival>,
) -> Result<Option<Marker>, ImageError> {
    if arrival.is_void() {
        return Ok(None);
    }
    let holders = company.near_first(&arrival.diff_id).await;
    if !supply(store, company, arrival, &holders).await? {
        return Ok(None);
    }
    fail::fail_point!("image::coming_whole");
    // It takes a core, and whoever starts meanwhile needs that more.
    quiet(store).await;
    match unpack(store, arrival).await {
        Ok(marker) => {
            let of = Arc::clone(arrival);
            store.blocking(move |inner| settle(inner, &of)).await?;
            let (layer, raw) = (arrival.diff_id.short(), marker.raw);
            tracing::info!(layer, raw, "a layer came from peers while it was read");
            Ok(Some(marker))
        }
        // Every chunk was what the list says: the list is wrong.
        Err(error) if is_of_the_bytes(&error) => {
            void(arrival, &error.to_string());
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Whether the bytes are at fault, and nothing on this node.
fn is_of_the_bytes(error: &ImageError) -> bool {
    let refused = matches!(
        error,
        ImageError::TooLarge { .. } | ImageError::UnsafeLayer { .. }
    );
    refused || error.is_damage()
}

/// A layer that is here, by whatever way, gives those who read its tar what they still wait for; and
/// shows whether what was said of it was right.
pub(in super::super) fn settle(inner: &Inner, arrival: &Arrival) -> Result<(), ImageError> {
    if arrival.is_void() {
        return Ok(());
    }
    let recipe = inner.layers.recipe(&arrival.diff_id)?;
    if recipe.is_none_or(|recipe| merged(&recipe) != merged(&arrival.recipe)) {
        void(arrival, "its tree is another one");
        return Ok(());
    }
    let arriving = &arrival.arriving;
    if !arriving.is_whole()
        && let Some(mut raw) = inner.layers.raw(&arrival.diff_id)?
    {
        let mut bytes = Vec::new();
        for (place, chunk) in arriving.list.chunks.iter().enumerate() {
            raw.read_at(chunk.offset, chunk.len, &mut bytes)?;
            if !arriving.put(place, &bytes)? {
                void(arrival, "its chunks are others");
                return Ok(());
            }
        }
    }
    inner
        .layers
        .keep_profile(&arrival.diff_id, &arriving.profile());
    arriving.close();
    Ok(())
}

fn void(arrival: &Arrival, why: &str) {
    let (layer, author) = (arrival.diff_id.short(), arrival.author);
    tracing::error!(
        layer,
        ?author,
        why,
        "a peer's word for a layer was WRONG: the instances that read it are ended"
    );
    arrival.arriving.void();
}

/// Until no reader of any layer has asked for a moment, or for too long.
async fn quiet(store: &Store) {
    let latest = Instant::now() + MOST_QUIET;
    loop {
        let now = Instant::now();
        let asked = store.inner.coming().last_want();
        let until = asked.map_or(now, |asked| asked + QUIET).min(latest);
        if until <= now {
            return;
        }
        sleep_until(until).await;
    }
}

async fn unpack(store: &Store, arrival: &Arc<Arrival>) -> Result<Marker, ImageError> {
    let unpackers = Arc::clone(&store.inner.unpackers);
    let Ok(_permit) = unpackers.acquire_owned().await else {
        let what = arrival.diff_id.to_string();
        return Err(ImageError::Interrupted { what });
    };
    let plain = LayerPlan {
        digest: arrival.diff_id.clone(),
        size: arrival.arriving.list.raw,
        packing: Packing::Plain,
        diff_id: arrival.diff_id.clone(),
    };
    let path = arrival.tar();
    let work = store.blocking(move |inner| {
        let tar = File::open(&path).map_err(|e| ImageError::disk("open", &path, e))?;
        inner.take_in(tar, &plain, &Budget::new(inner.limits))
    });
    work.await
}

/// Until the whole tar is here; false when no peer is left.
async fn supply(
    store: &Store,
    company: &Company,
    arrival: &Arc<Arrival>,
    holders: &[NodeId],
) -> Result<bool, ImageError> {
    let of = Arc::clone(arrival);
    let local = store.blocking(move |inner| Ok(locate(inner, &of.arriving.list)));
    let lane = Lane {
        store,
        company,
        arrival,
        holders,
        local: Arc::new(local.await?),
    };
    // Readers need not wait behind a batch of the rest.
    tokio::select! {
        readers = lane.run(Pick::Wanted) => readers,
        // Two: while one asks, what the other asked for comes.
        next = lane.run(Pick::Ahead) => next,
        more = lane.run(Pick::Ahead) => more,
        rest = lane.run(Pick::Any) => rest,
    }
}

struct Lane<'a> {
    store: &'a Store,
    company: &'a Company,
    arrival: &'a Arc<Arrival>,
    holders: &'a [NodeId],
    local: Arc<Local>,
}

impl Lane<'_> {
    async fn run(&self, pick: Pick) -> Result<bool, ImageError> {
        let Arrival {
            arriving, diff_id, ..
        } = &**self.arrival;
        let mut stirs = arriving.stirs();
        let compared = self.arrival.author == self.holders.first().copied();
        let of = (diff_id, &arriving.list);
        let holders = Holders::new(self.company, of, self.holders, compared);
        loop {
            stirs.borrow_and_update();
            if arriving.is_whole() || arriving.is_void() {
                return Ok(!arriving.is_void());
            }
            let taken = self.next(pick).await;
            if taken.places.is_empty() {
                // Nobody asks, or others fetch what is left.
                let _ = stirs.changed().await;
            } else if !self.fetch(&taken, &holders).await? {
                return Ok(false);
            }
        }
    }

    async fn next(&self, pick: Pick) -> Taken<'_> {
        let arriving = &self.arrival.arriving;
        let take = |pick, bytes| Taken {
            arrival: self.arrival,
            places: arriving.take(pick, bytes),
        };
        match pick {
            Pick::Wanted => take(pick, QUICK),
            Pick::Ahead | Pick::Known => take(pick, BATCH),
            Pick::Any => {
                let first = take(Pick::Known, BATCH);
                if !first.places.is_empty() {
                    return first;
                }
                quiet(self.store).await;
                take(pick, BATCH)
            }
        }
    }

    /// False when nobody could give these.
    async fn fetch(&self, taken: &Taken<'_>, holders: &Holders<'_>) -> Result<bool, ImageError> {
        let place = |place: &usize| u32::try_from(*place).unwrap_or(u32::MAX);
        let places: Vec<u32> = taken.places.iter().map(place).collect();
        let (parts, mut verified) = mpsc::channel::<Got>(PARTS_AHEAD);
        let of = Arc::clone(self.arrival);
        let keeping = self.store.blocking(move |_| {
            while let Some(part) = verified.blocking_recv() {
                of.arriving.keep(&part)?;
            }
            Ok(())
        });
        let bringing = async {
            let mut got = self.held(&places).await?;
            if !got.is_empty() {
                let _ = parts.send(got.clone()).await;
            }
            let complete = holders.complete(&places, &mut got, Some(&parts)).await;
            drop(parts);
            Ok(complete)
        };
        let (complete, kept) = tokio::join!(bringing, keeping);
        kept.and(complete)
    }

    /// What of these other layers that are here have.
    async fn held(&self, places: &[u32]) -> Result<Got, ImageError> {
        if self.local.is_empty() {
            return Ok(Got::new());
        }
        let (of, local) = (Arc::clone(self.arrival), Arc::clone(&self.local));
        let places = places.to_vec();
        let read = self
            .store
            .blocking(move |inner| Ok(read_local(inner, &of.arriving.list, places, &local)));
        let got = read.await?;
        let found: usize = got.values().map(Bytes::len).sum();
        self.store.inner.tally.add_local(found as u64);
        Ok(got)
    }
}

/// What of it did not come is somebody else's again.
struct Taken<'a> {
    arrival: &'a Arrival,
    places: Vec<usize>,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        if !self.places.is_empty() {
            self.arrival.arriving.give_back(&self.places);
        }
    }
}

/// The same however it was written down: neighbours together.
fn merged(recipe: &Recipe) -> Vec<Segment> {
    let mut all: Vec<Segment> = Vec::new();
    for segment in &recipe.segments {
        match (all.last_mut(), segment) {
            (Some(Segment::Inline(had)), Segment::Inline(more)) => had.extend_from_slice(more),
            (
                Some(Segment::File { path, offset, len }),
                Segment::File {
                    path: same,
                    offset: from,
                    len: more,
                },
            ) if path == same && *offset + *len == *from => *len += more,
            _ => all.push(segment.clone()),
        }
    }
    all
}
