//! What this node gives its peers of its images: which it holds, their documents, and their layers
//! in chunks. Bounded in what one request may ask; how many are served at once and how fast is the
//! caller's. The asker verifies everything, so nothing is verified here.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use netfabric::wire::image::{BATCH, ImageAnswer, ImageRequest, MAX_ASKED, MAX_RANGES, PIECE};
use scheduler::model::ImagePin;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};
use zstd::bulk::Compressor;

use super::chunks::{Chunk, ChunkList};
use super::digest::Digest;
use super::error::ImageError;
use super::recipe::Recipe;
use super::registry::access::RegistryConfig;
use super::store::{Hold, Inner, Store};

/// zstd: a fast link is not to wait for the packer.
const LEVEL: i32 = 1;
/// How often an asker hears how a pull goes.
const NEWS: Duration = Duration::from_millis(500);
/// A layer that is brought for another: looked for this often.
const LOOK: Duration = Duration::from_millis(50);

/// Layers whose lists stay in memory, and for how long after the last request.
const MOST_RECENT: usize = 4;
const RECENT: Duration = Duration::from_secs(30);

type Answering = mpsc::Sender<ImageAnswer>;

/// Answers one request; the answers end with `End` or `Refused`. Ends early when nobody listens.
pub async fn serve(
    store: &Store,
    registries: &RegistryConfig,
    request: ImageRequest,
    answers: Answering,
) {
    let served = match request {
        ImageRequest::Bring {
            reference,
            image,
            layer,
        } => {
            let pin = ImagePin {
                reference,
                digest: image,
            };
            bring(store, registries, pin, &layer, &answers).await
        }
        request => {
            let to = answers.clone();
            let work = store.blocking(move |inner| answer(inner, request, &to));
            work.await
        }
    };
    let last = match served {
        Ok(()) => ImageAnswer::End,
        Err(error) => ImageAnswer::Refused(error.to_string()),
    };
    // Whoever no longer listens needs no end.
    let _ = answers.send(last).await;
}

/// Pulls for a peer, from the registry or from whom there is: never by asking it of another.
async fn bring(
    store: &Store,
    registries: &RegistryConfig,
    pin: ImagePin,
    layer: &str,
    answers: &Answering,
) -> Result<(), ImageError> {
    let layer: Digest = layer.parse()?;
    let _hold = Hold::new(store, vec![layer.clone()]);
    let pull = store.pull_for_peer(&pin, registries);
    tokio::pin!(pull);
    let mut told = Instant::now();
    loop {
        if store.inner.usable(&layer).is_some() {
            // The pull goes on without us: it is a task of its own.
            return Ok(());
        }
        tokio::select! {
            pulled = &mut pull => return pulled.map(drop),
            () = answers.closed() => return Ok(()),
            () = sleep(LOOK) => {}
        }
        if told.elapsed() >= NEWS {
            told = Instant::now();
            let arrived = store.arrived();
            let _ = answers.send(ImageAnswer::Bringing { arrived }).await;
        }
    }
}

fn answer(inner: &Inner, request: ImageRequest, to: &Answering) -> Result<(), ImageError> {
    match request {
        ImageRequest::Holds { images, layers } => holds(inner, &images, &layers, to),
        ImageRequest::Documents { image } => {
            let (manifest, config) = inner.documents(&image.parse()?)?;
            say(to, ImageAnswer::Document(manifest))?;
            say(to, ImageAnswer::Document(config))
        }
        ImageRequest::ChunkList { layer } => {
            let layer = layer.parse()?;
            let list = inner.layers.chunk_list(&layer)?;
            let list = list.ok_or_else(|| not_held(&layer))?;
            pieces(&list.encode()?, to)
        }
        ImageRequest::Recipe { layer } => {
            let layer = layer.parse()?;
            let recipe = inner.layers.recipe(&layer)?;
            let recipe = recipe.ok_or_else(|| not_held(&layer))?;
            pieces(&recipe.encode()?, to)
        }
        ImageRequest::Profile { layer } => pieces(&inner.layers.profile(&layer.parse()?), to),
        ImageRequest::Chunks { layer, ranges } => chunks(inner, &layer.parse()?, &ranges, to),
        ImageRequest::Index { index } => {
            let index = inner.index(&index.parse()?)?;
            say(to, ImageAnswer::Document(index))
        }
        ImageRequest::Proof { image } => pieces(&inner.proof_bytes(&image.parse()?)?, to),
        ImageRequest::Bring { .. } => Err(ImageError::malformed("a peer's request", "of no kind")),
    }
}

fn holds(
    inner: &Inner,
    images: &[String],
    layers: &[String],
    to: &Answering,
) -> Result<(), ImageError> {
    bounded("digests asked for", images.len() + layers.len(), MAX_ASKED)?;
    let images = images.iter().map(|i| inner.holds(i)).collect();
    let layers = layers.iter().map(|layer| {
        let id: Result<Digest, _> = layer.parse();
        id.is_ok_and(|id| inner.serves(&id))
    });
    let layers = layers.collect();
    say(to, ImageAnswer::Holds { images, layers })
}

fn chunks(
    inner: &Inner,
    layer: &Digest,
    ranges: &[(u32, u32)],
    to: &Answering,
) -> Result<(), ImageError> {
    bounded("ranges asked for", ranges.len(), MAX_RANGES)?;
    let known = inner.recent.of(inner, layer)?;
    let (list, recipe) = known.ok_or_else(|| not_held(layer))?;
    let mut raw = inner.layers.raw_by(layer, recipe)?;
    let mut packer = Compressor::new(LEVEL).map_err(|e| ImageError::io("pack", e))?;
    let (mut count, mut batch, mut one) = (0, Vec::with_capacity(BATCH), Vec::new());
    for (first, many) in ranges {
        let (from, many) = (*first as usize, *many as usize);
        let range: &[Chunk] = list
            .chunks
            .get(from..from.saturating_add(many))
            .ok_or_else(|| ImageError::malformed("a peer's request", "a chunk is not there"))?;
        for chunk in range {
            raw.read_at(chunk.offset, chunk.len, &mut one)?;
            if !batch.is_empty() && batch.len() + one.len() > BATCH {
                pack(&mut packer, &mut count, &mut batch, to)?;
            }
            batch.extend_from_slice(&one);
            count += 1;
        }
    }
    if count > 0 {
        pack(&mut packer, &mut count, &mut batch, to)?;
    }
    Ok(())
}

fn pack(
    packer: &mut Compressor<'_>,
    count: &mut u32,
    batch: &mut Vec<u8>,
    to: &Answering,
) -> Result<(), ImageError> {
    let packed = packer.compress(batch);
    let packed = packed.map_err(|e| ImageError::io("pack", e))?;
    batch.clear();
    let count = std::mem::take(count);
    say(to, ImageAnswer::Chunks { count, packed })
}

fn pieces(bytes: &[u8], to: &Answering) -> Result<(), ImageError> {
    for piece in bytes.chunks(PIECE) {
        say(to, ImageAnswer::Piece(piece.to_vec()))?;
    }
    Ok(())
}

/// Waits while the link is full.
fn say(to: &Answering, answer: ImageAnswer) -> Result<(), ImageError> {
    to.blocking_send(answer).map_err(|_| {
        let what = "an answer nobody waits for".to_owned();
        ImageError::Interrupted { what }
    })
}

/// What chunks of the last layers are found by, for peers and for layers that are put together here of
/// others: both want a few at a time, and often.
#[derive(Default)]
pub(super) struct Recent(Mutex<Vec<(Digest, Known, std::time::Instant)>>);

type Known = (Arc<ChunkList>, Arc<Recipe>);

impl Recent {
    pub(super) fn of(&self, inner: &Inner, layer: &Digest) -> Result<Option<Known>, ImageError> {
        let now = std::time::Instant::now();
        if let Some((_, known, used)) = self.lock().iter_mut().find(|(id, ..)| id == layer) {
            *used = now;
            return Ok(Some(known.clone()));
        }
        let (list, recipe) = (inner.layers.chunk_list(layer)?, inner.layers.recipe(layer)?);
        let (Some(list), Some(recipe)) = (list, recipe) else {
            return Ok(None);
        };
        let known = (Arc::new(list), Arc::new(recipe));
        self.keep(layer, known.clone(), now);
        Ok(Some(known))
    }

    /// Others may have read it at the same time: it is kept once.
    fn keep(&self, layer: &Digest, known: Known, now: std::time::Instant) {
        let mut all = self.lock();
        all.retain(|(id, ..)| id != layer);
        all.sort_by_key(|(_, _, used)| std::cmp::Reverse(*used));
        all.truncate(MOST_RECENT - 1);
        all.push((layer.clone(), known, now));
    }

    /// An idle node keeps none.
    pub(super) fn let_go(&self) {
        self.lock().retain(|(_, _, used)| used.elapsed() < RECENT);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(Digest, Known, std::time::Instant)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn bounded(what: &str, count: usize, limit: usize) -> Result<(), ImageError> {
    if count > limit {
        let (what, limit) = (what.to_owned(), limit as u64);
        return Err(ImageError::TooLarge { what, limit });
    }
    Ok(())
}

fn not_held(layer: &Digest) -> ImageError {
    ImageError::NotHeld {
        digest: layer.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_layers_are_kept_once_each() {
        let (recent, begin) = (Recent::default(), std::time::Instant::now());
        let kept = |from: u64, layers: &[u64]| {
            for (second, layer) in (from..).zip(layers) {
                let now = begin + Duration::from_secs(second);
                let layer = Digest::of(&layer.to_be_bytes());
                recent.keep(&layer, Known::default(), now);
            }
            recent.lock().len()
        };
        assert_eq!(kept(0, &[1, 1, 2, 1]), 2);
        assert_eq!(kept(4, &[3, 4, 5, 6, 7, 3]), MOST_RECENT);
        let of = |layer: u64| Digest::of(&layer.to_be_bytes());
        let ids: Vec<_> = recent.lock().iter().map(|(id, ..)| id.clone()).collect();
        assert!(
            [3, 5, 6, 7].map(of).iter().all(|id| ids.contains(id)),
            "{ids:?}"
        );
    }
}
