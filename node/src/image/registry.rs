//! The OCI distribution protocol, the pulling half: manifests and blobs of one repository, with
//! tokens, resumed downloads, bounded bodies and a deadline on every wait. What the bytes mean is
//! decided elsewhere.
//!
//! Written on reqwest and not on a registry client crate, because what matters here is what such
//! crates leave out: a bound on a manifest's size, the registry's own words on a refusal, a
//! download that goes on where it broke, and a host without CA certificates, which can still
//! use a registry in plain HTTP.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderMap, HeaderValue, RANGE, RETRY_AFTER};
use reqwest::{Client, Response, StatusCode, Url};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::access::{Credentials, Patience, RegistryConfig};
use super::digest::Digest;
use super::error::ImageError;
use super::manifest::{DOCKER_INDEX, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST};
use super::reference::Reference;
use super::token;

/// Tries of one request that meets a passing trouble, and of one place in a download.
const TRIES: u32 = 4;
/// A connection that carried this much before it broke starts the count anew.
const WORTHWHILE: u64 = 1024 * 1024;
const FIRST_BACKOFF: Duration = Duration::from_millis(150);
/// A registry that asks for more patience than this is told to the operator instead.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(10);
/// As much of a refusal's body as can be worth reading.
const MAX_REFUSAL: u64 = 16 * 1024;

/// A piece of a download. Without the end, the receiver knows it was cut off.
pub(super) enum Piece {
    Data(Bytes),
    End,
}

/// One repository of one registry.
pub(super) struct Registry {
    http: Client,
    base: Url,
    reference: Reference,
    credentials: Option<Credentials>,
    patience: Patience,
    /// The `Authorization` header the registry last took.
    authorization: Mutex<Option<HeaderValue>>,
}

/// What a request is for: decides what a 404 means and what is asked for.
#[derive(Clone, Copy)]
enum Ask {
    Manifest,
    Blob { from: u64, size: u64 },
}

impl Registry {
    pub(super) fn new(
        http: Client,
        reference: &Reference,
        config: &RegistryConfig,
    ) -> Result<Self, ImageError> {
        let registry = reference.registry();
        let scheme = if config.is_plain_http(registry) {
            "http"
        } else {
            "https"
        };
        let text = format!(
            "{scheme}://{}/v2/{}/",
            reference.host(),
            reference.repository()
        );
        let base = Url::parse(&text).map_err(|_| ImageError::BadReference {
            text: reference.name(),
            reason: "its registry is no host name",
        })?;
        Ok(Self {
            http,
            base,
            reference: reference.clone(),
            credentials: config.credentials.get(registry).cloned(),
            patience: config.patience,
            authorization: Mutex::new(None),
        })
    }

    /// The exact bytes of a manifest or index, by digest when there is one, and their digest.
    pub(super) async fn manifest(
        &self,
        digest: Option<&Digest>,
        limit: u64,
    ) -> Result<(Bytes, Digest), ImageError> {
        let tag = self.reference.tag().unwrap_or("latest");
        let by = digest.map_or(tag, Digest::as_str);
        let response = self.get(&format!("manifests/{by}"), Ask::Manifest).await?;
        let told = header(response.headers(), "docker-content-digest").map(str::to_owned);
        let bytes = self.collect(response, limit, "manifest").await?;
        let got = Digest::of(&bytes);
        // What the registry says of its own answer counts too, when it is in our algorithm.
        let told = told.and_then(|told| told.parse::<Digest>().ok());
        match digest.cloned().or(told) {
            Some(expected) if expected != got => {
                let what = format!("the manifest of {}", self.reference.name());
                Err(ImageError::DigestMismatch {
                    what,
                    expected,
                    got,
                })
            }
            _ => Ok((bytes, got)),
        }
    }

    /// A small blob as a whole, verified.
    pub(super) async fn small_blob(
        &self,
        digest: &Digest,
        limit: u64,
        what: &str,
    ) -> Result<Bytes, ImageError> {
        let ask = Ask::Blob {
            from: 0,
            size: limit,
        };
        let response = self.get(&format!("blobs/{digest}"), ask).await?;
        let bytes = self.collect(response, limit, what).await?;
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

    /// Sends a blob's bytes down `pieces`, going on where a connection breaks. The receiver
    /// verifies; when it goes away it has its reason, and this ends quietly.
    pub(super) async fn stream_blob(
        &self,
        digest: &Digest,
        size: u64,
        pieces: &mpsc::Sender<Piece>,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), ImageError> {
        let mut done = 0;
        let mut tries = 0;
        loop {
            let before = done;
            let outcome = self
                .stream_from(digest, &mut done, size, pieces, progress)
                .await;
            tries = if done - before >= WORTHWHILE {
                1
            } else {
                tries + 1
            };
            match outcome {
                Ok(()) => return Ok(()),
                // A refusal was already tried again; only the transfer itself is worth another go.
                Err(error) if error.is_network() && tries < TRIES => {
                    tracing::debug!(%digest, done, %error, "download goes on after a break");
                    tokio::time::sleep(backoff(tries)).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn stream_from(
        &self,
        digest: &Digest,
        done: &mut u64,
        size: u64,
        pieces: &mpsc::Sender<Piece>,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), ImageError> {
        let ask = Ask::Blob { from: *done, size };
        let mut response = self.get(&format!("blobs/{digest}"), ask).await?;
        // A registry that cannot resume sends it all again.
        let mut skip = if response.status() == StatusCode::PARTIAL_CONTENT {
            0
        } else {
            *done
        };
        while let Some(mut chunk) = self.chunk(&mut response).await? {
            let skipped = skip.min(chunk.len() as u64);
            skip -= skipped;
            let _ = chunk.split_to(usize::try_from(skipped).unwrap_or(chunk.len()));
            *done += chunk.len() as u64;
            if !chunk.is_empty() && pieces.send(Piece::Data(chunk)).await.is_err() {
                return Ok(());
            }
            progress(*done);
            if *done > size {
                break;
            }
        }
        if *done < size {
            let detail = format!("blob {} ended at {done} of {size} bytes", digest.short());
            let registry = self.reference.registry().to_owned();
            return Err(ImageError::Unreachable { registry, detail });
        }
        // A closed channel here means the receiver stopped early: it has said why.
        let _ = pieces.send(Piece::End).await;
        Ok(())
    }

    /// Sends a request until it is answered with success: with a token when one is asked for,
    /// again after a passing trouble.
    async fn get(&self, path: &str, ask: Ask) -> Result<Response, ImageError> {
        let url = self
            .base
            .join(path)
            .map_err(|e| self.registry_error(e.to_string()))?;
        let mut challenged = false;
        let mut tries = 0;
        loop {
            tries += 1;
            let response = self.send(&url, ask).await?;
            let status = response.status();
            let wait = retry_after(&response).unwrap_or_else(|| backoff(tries));
            if status.is_success() {
                return Ok(response);
            }
            if status == StatusCode::UNAUTHORIZED && !challenged {
                challenged = true;
                if let Some(header) = self.authorise(response.headers()).await? {
                    *self
                        .authorization
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner) = Some(header);
                    continue;
                }
            }
            let passing = status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error();
            if passing && tries < TRIES && wait <= MAX_RETRY_AFTER {
                tokio::time::sleep(wait).await;
                continue;
            }
            return Err(self.refusal(response, ask).await);
        }
    }

    async fn send(&self, url: &Url, ask: Ask) -> Result<Response, ImageError> {
        let mut request = self.http.get(url.clone());
        match ask {
            Ask::Manifest => {
                let kinds = [OCI_INDEX, OCI_MANIFEST, DOCKER_INDEX, DOCKER_MANIFEST].join(", ");
                request = request.header(ACCEPT, kinds);
            }
            Ask::Blob { from, .. } if from > 0 => {
                request = request.header(RANGE, format!("bytes={from}-"));
            }
            Ask::Blob { .. } => {}
        }
        let known = self
            .authorization
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        if let Some(value) = known {
            request = request.header(AUTHORIZATION, value);
        }
        match timeout(self.patience.answer, request.send()).await {
            Err(_) => Err(self.timed_out("no answer to a request")),
            Ok(Err(e)) => Err(self.network_error(e)),
            Ok(Ok(response)) => Ok(response),
        }
    }

    /// Answers the registry's challenge; `None` when we have nothing to answer it with.
    async fn authorise(&self, headers: &HeaderMap) -> Result<Option<HeaderValue>, ImageError> {
        let Some(challenge) = token::challenge(headers) else {
            return Ok(None);
        };
        let asked = token::answer(
            &self.http,
            &self.base,
            &challenge,
            self.credentials.as_ref(),
        );
        match timeout(self.patience.answer, asked).await {
            Err(_) => Err(self.timed_out("no token was given")),
            Ok(Ok(header)) => Ok(header),
            Ok(Err(token::Refusal::Network(e))) => Err(self.network_error(e)),
            Ok(Err(token::Refusal::Said(detail))) => {
                let reference = self.reference.name();
                Err(ImageError::AuthRefused { reference, detail })
            }
        }
    }

    /// The error for an answer that is no success.
    async fn refusal(&self, response: Response, ask: Ask) -> ImageError {
        let status = response.status();
        let words = match self.collect(response, MAX_REFUSAL, "refusal").await {
            Ok(body) => registry_words(&body),
            Err(_) => None,
        };
        let detail = match words {
            Some(words) => format!("{status}: {words}"),
            None => status.to_string(),
        };
        let reference = self.reference.to_string();
        match (status, ask) {
            (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, _) => {
                ImageError::AuthRefused { reference, detail }
            }
            (StatusCode::RANGE_NOT_SATISFIABLE, Ask::Blob { from, size }) => {
                let what = format!("a blob of {reference}");
                ImageError::SizeMismatch {
                    what,
                    expected: size,
                    got: from,
                }
            }
            (StatusCode::NOT_FOUND, Ask::Manifest) => ImageError::NotFound { reference },
            _ => self.registry_error(detail),
        }
    }

    async fn collect(
        &self,
        mut response: Response,
        limit: u64,
        what: &str,
    ) -> Result<Bytes, ImageError> {
        let too_large = || ImageError::TooLarge {
            what: what.to_owned(),
            limit,
        };
        if response
            .content_length()
            .is_some_and(|length| length > limit)
        {
            return Err(too_large());
        }
        let mut body = Vec::new();
        while let Some(chunk) = self.chunk(&mut response).await? {
            if (body.len() + chunk.len()) as u64 > limit {
                return Err(too_large());
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body.into())
    }

    async fn chunk(&self, response: &mut Response) -> Result<Option<Bytes>, ImageError> {
        match timeout(self.patience.idle, response.chunk()).await {
            Err(_) => Err(self.timed_out("a transfer stood still")),
            Ok(Err(e)) => Err(self.network_error(e)),
            Ok(Ok(chunk)) => Ok(chunk),
        }
    }

    fn timed_out(&self, what: &str) -> ImageError {
        let registry = self.reference.registry().to_owned();
        ImageError::TimedOut {
            registry,
            what: what.to_owned(),
        }
    }

    fn network_error(&self, error: reqwest::Error) -> ImageError {
        let registry = self.reference.registry().to_owned();
        ImageError::Unreachable {
            registry,
            detail: chain(&error.without_url()),
        }
    }

    fn registry_error(&self, detail: String) -> ImageError {
        ImageError::Registry {
            reference: self.reference.name(),
            detail,
        }
    }
}

/// An error with its causes: the innermost is the one that helps ("connection refused").
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let more = cause.to_string();
        if !text.ends_with(&more) {
            text = format!("{text}: {more}");
        }
        source = cause.source();
    }
    text
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// Doubles with each try, with up to a half more at random, so that a herd of nodes spreads out.
fn backoff(tries: u32) -> Duration {
    let wait = FIRST_BACKOFF.saturating_mul(1 << tries.saturating_sub(1).min(6));
    wait.mul_f64(1.0 + rand::random::<f64>() / 2.0)
}

fn retry_after(response: &Response) -> Option<Duration> {
    let seconds = header(response.headers(), RETRY_AFTER.as_str())?
        .trim()
        .parse()
        .ok()?;
    Some(Duration::from_secs(seconds))
}

/// `{"errors":[{"code","message"}]}`, for people.
fn registry_words(body: &[u8]) -> Option<String> {
    let body: serde_json::Value = serde_json::from_slice(body).ok()?;
    let first = body.get("errors")?.get(0)?;
    let text = |field: &str| {
        first
            .get(field)
            .and_then(|v| v.as_str())
            .unwrap_or_default()
    };
    let words = format!("{} {}", text("code"), text("message"));
    let words: String = words.trim().escape_debug().take(300).collect();
    (!words.is_empty()).then_some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_registrys_words_are_bounded_and_printable() {
        let body = br#"{"errors":[{"code":"DENIED","message":"no\u001b[2J"}]}"#;
        assert_eq!(registry_words(body).expect("words"), "DENIED no\\u{1b}[2J");
        let long = format!(
            r#"{{"errors":[{{"code":"X","message":"{}"}}]}}"#,
            "a".repeat(5000)
        );
        assert_eq!(registry_words(long.as_bytes()).expect("words").len(), 300);
        for nothing in [
            &b"<html>"[..],
            b"{}",
            br#"{"errors":[]}"#,
            br#"{"errors":[{}]}"#,
        ] {
            assert_eq!(registry_words(nothing), None);
        }
    }

    #[test]
    fn waits_grow_and_stay_bounded() {
        assert!(backoff(1) >= FIRST_BACKOFF);
        assert!(backoff(u32::MAX) <= FIRST_BACKOFF * 64 * 3 / 2);
    }
}
