//! The OCI distribution protocol, the pulling half: manifests and blobs of one repository, verified
//! or gone on with where a connection broke, from the registry or its mirrors. How a single request
//! is answered is `exchange`'s; what the bytes mean is decided elsewhere.
//!
//! Written on reqwest and not on a registry client crate, because what matters here is what such
//! crates leave out: a bound on a manifest's size, the registry's own words on a refusal, a
//! download that goes on where it broke, and a host without CA certificates, which can still
//! use a registry in plain HTTP.

pub(super) mod access;
mod exchange;
mod helper;
pub(super) mod partial;
pub(super) mod reach;
pub(super) mod token;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::CONTENT_RANGE;
use reqwest::{Response, StatusCode, Url};
use tokio::sync::mpsc;

use super::digest::Digest;
use super::error::ImageError;
use super::reference::Reference;
use super::store::Store;
use access::RegistryConfig;
use exchange::{Ask, Exchange, TRIES, backoff, header};

/// Between connections that each carried something: a registry that cuts them all is not hammered.
const AFTER_PROGRESS: Duration = Duration::from_millis(10);

/// A piece of a download. Without the end, the receiver knows it was cut off.
pub(super) enum Piece {
    Data(Bytes),
    End,
}

/// A blob's download under way.
pub(super) struct Download<'a> {
    pub digest: &'a Digest,
    pub size: u64,
    /// Bytes the receiver has.
    pub done: u64,
    pub pieces: mpsc::Sender<Piece>,
    pub progress: &'a (dyn Fn(u64) + Send + Sync),
}

/// One repository, at its registry and at the mirrors that are asked before it.
pub(super) struct Registry {
    /// The registry itself comes last.
    places: Vec<Exchange>,
}

impl Registry {
    pub(super) fn new(
        store: &Store,
        reference: &Reference,
        config: &RegistryConfig,
    ) -> Result<Self, ImageError> {
        let access = Arc::new(config.clone());
        let own = reference.registry();
        let mirrors = config.mirrors(own).iter().map(String::as_str);
        let registries = mirrors.filter(|mirror| *mirror != own).chain([own]);
        let place = |registry: &str| place(store, reference, &access, registry);
        Ok(Self {
            places: registries.map(place).collect::<Result<_, _>>()?,
        })
    }

    /// The exact bytes of a manifest or index, by digest when there is one, and their digest.
    pub(super) async fn manifest(
        &self,
        digest: Option<&Digest>,
        limit: u64,
    ) -> Result<(Bytes, Digest), ImageError> {
        self.first(|place| manifest(place, digest, limit)).await
    }

    /// Which manifest a tag means, where a registry says so without sending it.
    pub(super) async fn tagged(&self) -> Option<Digest> {
        for place in &self.places {
            let tag = place.reference.tag()?;
            if let Ok(head) = place.get(&format!("manifests/{tag}"), Ask::Tag).await {
                return header(head.headers(), DIGEST)?.parse().ok();
            }
        }
        None
    }

    /// A small blob as a whole, verified.
    pub(super) async fn small_blob(
        &self,
        digest: &Digest,
        limit: u64,
        what: &str,
    ) -> Result<Bytes, ImageError> {
        self.first(|place| small_blob(place, digest, limit, what))
            .await
    }

    /// Sends a blob's bytes down its channel, going on where a connection breaks, at the next place
    /// when one fails. The receiver verifies; when it goes away it has its reason, and this ends
    /// quietly. The first `skip` places are left out.
    pub(super) async fn stream_blob(
        &self,
        download: &mut Download<'_>,
        skip: usize,
    ) -> Result<(), ImageError> {
        let mut failure = None;
        for place in self.places.iter().skip(skip) {
            match stream(place, download).await {
                Ok(()) => return Ok(()),
                Err(error) => failure = Some(passed_on(place, error)),
            }
        }
        Err(failure.unwrap_or_else(|| none_left(download.digest)))
    }

    /// How many places there are to leave out.
    pub(super) fn places(&self) -> usize {
        self.places.len()
    }

    /// Asks place after place; the error is the last one's, the registry's own.
    async fn first<'a, T, F: Future<Output = Result<T, ImageError>>>(
        &'a self,
        ask: impl Fn(&'a Exchange) -> F,
    ) -> Result<T, ImageError> {
        let Some((own, mirrors)) = self.places.split_last() else {
            return Err(none_left("an image"));
        };
        for mirror in mirrors {
            match ask(mirror).await {
                Err(error) => drop(passed_on(mirror, error)),
                found => return found,
            }
        }
        ask(own).await
    }
}

/// The field in which a registry says what its answer's digest is.
const DIGEST: &str = "docker-content-digest";

fn passed_on(place: &Exchange, error: ImageError) -> ImageError {
    tracing::debug!(registry = place.registry, %error, "this registry has not what is wanted");
    error
}

fn none_left(what: impl std::fmt::Display) -> ImageError {
    ImageError::NotHeld {
        digest: what.to_string(),
    }
}

/// The way to the reference's repository at `registry`, its own or a mirror's.
fn place(
    store: &Store,
    reference: &Reference,
    access: &Arc<RegistryConfig>,
    registry: &str,
) -> Result<Exchange, ImageError> {
    let own = registry == reference.registry();
    let host = if own { reference.host() } else { registry };
    let plain = access.is_plain_http(registry);
    let scheme = if plain { "http" } else { "https" };
    let bad = |reason| ImageError::BadReference {
        text: format!("{registry}/{}", reference.repository()),
        reason,
    };
    let text = format!("{scheme}://{host}/v2/{}/", reference.repository());
    let base = Url::parse(&text).map_err(|_| bad("its registry is no host name"))?;
    let name = base.host_str().unwrap_or_default();
    if reach::is_forbidden(name) {
        return Err(bad("its registry is where clouds keep a machine's secrets"));
    }
    let (http, reach) = store.inner.client(name, registry, access)?;
    Ok(Exchange {
        http,
        reach,
        base,
        registry: registry.to_owned(),
        reference: reference.clone(),
        access: Arc::clone(access),
        tokens: Arc::clone(&store.inner.tokens),
    })
}

async fn manifest(
    place: &Exchange,
    digest: Option<&Digest>,
    limit: u64,
) -> Result<(Bytes, Digest), ImageError> {
    let tag = place.reference.tag().unwrap_or("latest");
    let by = digest.map_or(tag, Digest::as_str);
    let path = format!("manifests/{by}");
    let (head, bytes) = place.whole(&path, Ask::Manifest, limit, "manifest").await?;
    let got = Digest::of(&bytes);
    // What the registry says of its own answer counts too, when it is in our algorithm.
    let told = header(&head, DIGEST).and_then(|told| told.parse().ok());
    match digest.cloned().or(told) {
        Some(expected) if expected != got => {
            let what = format!("the manifest of {}", place.reference.name());
            Err(ImageError::DigestMismatch {
                what,
                expected,
                got,
            })
        }
        _ => Ok((bytes, got)),
    }
}

async fn small_blob(
    place: &Exchange,
    digest: &Digest,
    limit: u64,
    what: &str,
) -> Result<Bytes, ImageError> {
    let ask = Ask::Blob {
        from: 0,
        size: limit,
    };
    let path = format!("blobs/{digest}");
    let (_, bytes) = place.whole(&path, ask, limit, what).await?;
    let got = Digest::of(&bytes);
    if got == *digest {
        return Ok(bytes);
    }
    Err(ImageError::DigestMismatch {
        what: what.to_owned(),
        expected: digest.clone(),
        got,
    })
}

/// A blob from one place, as long as each few connections bring something.
async fn stream(place: &Exchange, download: &mut Download<'_>) -> Result<(), ImageError> {
    let mut tries = 0;
    loop {
        let before = download.done;
        let outcome = stream_on(place, download).await;
        tries = if download.done > before { 0 } else { tries + 1 };
        match outcome {
            // A refusal was already tried again; only the transfer itself is worth another go.
            Err(error) if error.is_network() && tries < TRIES => {
                let (digest, done) = (download.digest, download.done);
                tracing::debug!(%digest, done, %error, "download goes on after a break");
                let wait = match tries {
                    0 => AFTER_PROGRESS,
                    tries => backoff(tries),
                };
                tokio::time::sleep(wait).await;
            }
            ended => return ended,
        }
    }
}

async fn stream_on(place: &Exchange, download: &mut Download<'_>) -> Result<(), ImageError> {
    let (digest, size, from) = (download.digest, download.size, download.done);
    if from < size || size == 0 {
        let ask = Ask::Blob { from, size };
        let mut response = place.get(&format!("blobs/{digest}"), ask).await?;
        // A registry that cannot resume sends it all again.
        let mut skip = from - begins(place, &response, from)?;
        while let Some(mut chunk) = place.chunk(&mut response).await? {
            let skipped = skip.min(chunk.len() as u64);
            skip -= skipped;
            let _ = chunk.split_to(usize::try_from(skipped).unwrap_or(chunk.len()));
            download.done += chunk.len() as u64;
            if !chunk.is_empty() && download.pieces.send(Piece::Data(chunk)).await.is_err() {
                return Ok(());
            }
            (download.progress)(download.done);
            if download.done > size {
                break;
            }
        }
    }
    let done = download.done;
    if done < size {
        let detail = format!("blob {} ended at {done} of {size} bytes", digest.short());
        let registry = place.registry.clone();
        return Err(ImageError::Unreachable { registry, detail });
    }
    // A closed channel here means the receiver stopped early: it has said why.
    let _ = download.pieces.send(Piece::End).await;
    Ok(())
}

/// Where in the blob an answer begins.
fn begins(place: &Exchange, response: &Response, asked: u64) -> Result<u64, ImageError> {
    if response.status() != StatusCode::PARTIAL_CONTENT {
        return Ok(0);
    }
    let range = header(response.headers(), CONTENT_RANGE.as_str());
    let from = range.and_then(|range| {
        let (from, _) = range.trim().strip_prefix("bytes ")?.split_once('-')?;
        from.parse::<u64>().ok()
    });
    match from {
        Some(from) if from <= asked => Ok(from),
        // Said by few, meant by all: it begins where it was asked to.
        None if range.is_none() => Ok(asked),
        _ => Err(place.error("it sends another part of a blob than was asked for".to_owned())),
    }
}
