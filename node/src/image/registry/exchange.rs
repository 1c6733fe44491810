//! One request to a registry until it is answered: with a token when one is asked for, again after a
//! passing trouble, with a deadline on every wait and a bound on every body. Owns what a refusal
//! means; which requests make a pull is `registry`'s.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderMap, HeaderValue, RANGE, RETRY_AFTER};
use reqwest::{Client, Method, Response, StatusCode, Url};
use tokio::time::timeout;

use super::super::error::ImageError;
use super::super::manifest::{DOCKER_INDEX, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST};
use super::super::reference::Reference;
use super::access::RegistryConfig;
use super::reach::{self, Reach};
use super::token::{self, Tokens};
use crate::causes::with_causes;

/// Tries of one request that meets a passing trouble, and of one place in a download.
pub(super) const TRIES: u32 = 4;
const FIRST_BACKOFF: Duration = Duration::from_millis(150);
/// A registry that asks for more patience than this is told to the operator instead.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(10);
/// As much of a refusal's body as can be worth reading.
const MAX_REFUSAL: u64 = 16 * 1024;

/// What a request is for: decides what a 404 means and what is asked for.
#[derive(Clone, Copy)]
pub(super) enum Ask {
    Manifest,
    /// Only which manifest it is.
    Tag,
    Blob {
        from: u64,
        size: u64,
    },
}

/// The way to one repository of one registry.
pub(super) struct Exchange {
    pub http: Client,
    pub reach: Arc<Reach>,
    pub base: Url,
    /// The registry as people name it; a mirror's is not the reference's.
    pub registry: String,
    pub reference: Reference,
    pub access: Arc<RegistryConfig>,
    pub tokens: Arc<Tokens>,
}

/// Why a request has no answer.
struct Unanswered {
    /// The connection broke after it was made: another may do better at once.
    broken: bool,
    error: ImageError,
}

impl Exchange {
    /// Sends a request until it is answered with success.
    pub(super) async fn get(&self, path: &str, ask: Ask) -> Result<Response, ImageError> {
        let url = self.url(path)?;
        let mut challenged = false;
        let mut tries = 0;
        loop {
            tries += 1;
            let response = match self.send(&url, ask).await {
                Ok(response) => response,
                Err(unanswered) if unanswered.broken && tries < TRIES => {
                    tokio::time::sleep(backoff(tries)).await;
                    continue;
                }
                Err(unanswered) => return Err(unanswered.error),
            };
            let status = response.status();
            if status.is_success() {
                return Ok(response);
            }
            if status == StatusCode::UNAUTHORIZED && !challenged {
                challenged = true;
                if self.authorise(response.headers()).await? {
                    continue;
                }
            }
            let wait = retry_after(&response).unwrap_or_else(|| backoff(tries));
            let passing = status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error();
            if passing && tries < TRIES && wait <= MAX_RETRY_AFTER {
                tokio::time::sleep(wait).await;
                continue;
            }
            return Err(self.refusal(response, ask).await);
        }
    }

    /// A small body as a whole, asked for again when it was cut, with its head.
    pub(super) async fn whole(
        &self,
        path: &str,
        ask: Ask,
        limit: u64,
        what: &str,
    ) -> Result<(HeaderMap, Bytes), ImageError> {
        let mut tries = 0;
        loop {
            tries += 1;
            let response = self.get(path, ask).await?;
            let headers = response.headers().clone();
            match self.collect(response, limit, what).await {
                Err(error) if error.is_network() && tries < TRIES => {
                    tokio::time::sleep(backoff(tries)).await;
                }
                body => return body.map(|body| (headers, body)),
            }
        }
    }

    /// The next piece of a body; `None` at its end.
    pub(super) async fn chunk(&self, response: &mut Response) -> Result<Option<Bytes>, ImageError> {
        match timeout(self.access.patience.idle, response.chunk()).await {
            Err(_) => Err(self.timed_out("a transfer stood still")),
            Ok(Err(e)) => Err(self.network_error(e)),
            Ok(Ok(chunk)) => Ok(chunk),
        }
    }

    fn url(&self, path: &str) -> Result<Url, ImageError> {
        let mut url = self
            .base
            .join(path)
            .map_err(|e| self.error(e.to_string()))?;
        if self.registry != self.reference.registry() {
            // A mirror of many registries is told whose image is meant.
            url.query_pairs_mut()
                .append_pair("ns", self.reference.registry());
        }
        Ok(url)
    }

    async fn send(&self, url: &Url, ask: Ask) -> Result<Response, Unanswered> {
        let method = match ask {
            Ask::Tag => Method::HEAD,
            Ask::Manifest | Ask::Blob { .. } => Method::GET,
        };
        let mut request = self.http.request(method, url.clone());
        match ask {
            Ask::Manifest | Ask::Tag => {
                let kinds = [OCI_INDEX, OCI_MANIFEST, DOCKER_INDEX, DOCKER_MANIFEST].join(", ");
                request = request.header(ACCEPT, kinds);
            }
            Ask::Blob { from, .. } if from > 0 => {
                request = request.header(RANGE, format!("bytes={from}-"));
            }
            Ask::Blob { .. } => {}
        }
        if let Some(known) = self.tokens.get(&self.scope(), Instant::now()) {
            request = request.header(AUTHORIZATION, known);
        }
        match timeout(self.access.patience.answer, request.send()).await {
            Err(_) => Err(Unanswered {
                broken: false,
                error: self.timed_out("no answer to a request"),
            }),
            Ok(Err(e)) => Err(Unanswered {
                broken: !(e.is_connect() || e.is_redirect() || e.is_timeout() || e.is_builder()),
                error: self.network_error(e),
            }),
            Ok(Ok(response)) => Ok(response),
        }
    }

    /// What a token is kept under.
    fn scope(&self) -> (String, Option<String>) {
        let known = self.access.credentials.get(&self.registry);
        let user = known.map(|credentials| credentials.username.clone());
        (self.base.to_string(), user)
    }

    /// Answers the registry's challenge; says whether there was anything to answer it with.
    async fn authorise(&self, headers: &HeaderMap) -> Result<bool, ImageError> {
        self.tokens.forget(&self.scope());
        let Some(challenge) = token::challenge(headers) else {
            return Ok(false);
        };
        let refused = |detail| ImageError::AuthRefused {
            reference: self.reference.name(),
            detail,
        };
        let credentials = self.access.secret(&self.registry).await.map_err(refused)?;
        let place = (&self.base, &*self.reach);
        let asked = token::answer(&self.http, place, &challenge, credentials.as_ref());
        match timeout(self.access.patience.answer, asked).await {
            Err(_) => Err(self.timed_out("no token was given")),
            Ok(Ok(Some(grant))) => {
                self.tokens.keep(self.scope(), &grant, Instant::now());
                Ok(true)
            }
            Ok(Ok(None)) => Ok(false),
            Ok(Err(token::Refusal::Network(e))) => Err(self.network_error(e)),
            Ok(Err(token::Refusal::Said(detail))) => Err(refused(detail)),
        }
    }

    /// The error for an answer that is no success.
    async fn refusal(&self, response: Response, ask: Ask) -> ImageError {
        let status = response.status();
        let wait = retry_after(&response).filter(|wait| *wait > MAX_RETRY_AFTER);
        let words = match self.collect(response, MAX_REFUSAL, "refusal").await {
            Ok(body) => registry_words(&body),
            Err(_) => None,
        };
        let mut detail = match words {
            Some(words) => format!("{status}: {words}"),
            None => status.to_string(),
        };
        if let Some(wait) = wait {
            detail = format!(
                "{detail}; it asks to be left alone for {} s",
                wait.as_secs()
            );
        }
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
            (StatusCode::NOT_FOUND, Ask::Manifest | Ask::Tag) => ImageError::NotFound { reference },
            _ => self.error(detail),
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

    fn timed_out(&self, what: &str) -> ImageError {
        ImageError::TimedOut {
            registry: self.registry.clone(),
            what: what.to_owned(),
        }
    }

    fn network_error(&self, error: reqwest::Error) -> ImageError {
        let detail = with_causes(&error.without_url());
        if detail.contains(reach::REFUSED) || detail.contains(reach::TOO_MANY) {
            // Asking again leads to the same place.
            return self.error(detail);
        }
        ImageError::Unreachable {
            registry: self.registry.clone(),
            detail,
        }
    }

    pub(super) fn error(&self, detail: String) -> ImageError {
        ImageError::Registry {
            reference: self.reference.name(),
            detail,
        }
    }
}

pub(super) fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).map(HeaderValue::to_str)?.ok()
}

/// Doubles with each try, with up to a half more at random, so that a herd of nodes spreads out.
pub(super) fn backoff(tries: u32) -> Duration {
    let wait = FIRST_BACKOFF.saturating_mul(1 << tries.saturating_sub(1).min(6));
    wait.mul_f64(1.0 + rand::random::<f64>() / 2.0)
}

fn retry_after(response: &Response) -> Option<Duration> {
    let told = header(response.headers(), RETRY_AFTER.as_str())?;
    wait_of(told, SystemTime::now())
}

/// Seconds, or the date from which a registry may be asked again; one that has passed is now.
fn wait_of(told: &str, now: SystemTime) -> Option<Duration> {
    let told = told.trim();
    if let Ok(seconds) = told.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let until = httpdate::parse_http_date(told).ok()?;
    Some(until.duration_since(now).unwrap_or_default())
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
    fn a_wait_is_told_in_seconds_or_as_a_date() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        for (told, want) in [
            ("120", Some(120)),
            (" 0 ", Some(0)),
            ("Sun, 06 Nov 1994 08:50:37 GMT", Some(60)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(0)),
            ("Sat, 05 Nov 1994 08:49:37 GMT", Some(0)),
            // The two old forms, which a recipient takes too.
            ("Sunday, 06-Nov-94 08:49:47 GMT", Some(10)),
            ("Sun Nov  6 08:49:47 1994", Some(10)),
            ("-1", None),
            ("1.5", None),
            ("soon", None),
            ("", None),
            ("Sun, 06 Nov 1994 08:61:37 GMT", None),
        ] {
            assert_eq!(wait_of(told, now), want.map(Duration::from_secs), "{told}");
        }
    }

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
