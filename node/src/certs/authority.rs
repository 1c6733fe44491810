//! How a certificate authority is spoken to: bounded in time and bytes, over HTTPS alone. The
//! protocol itself is `instant-acme`'s.

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use reqwest::header::{HeaderMap, RETRY_AFTER};
use reqwest::redirect::Policy;
use reqwest::{Certificate, Client};

const CONNECT_TIME: Duration = Duration::from_secs(10);
const ANSWER_TIME: Duration = Duration::from_secs(30);
/// Chains are a few kilobytes, everything else is less.
const ANSWER_BYTES: usize = 256 * 1024;
/// A longer pause than this is asked for again.
const MOST_PATIENCE: Duration = Duration::from_hours(7 * 24);

/// Where the authority is and whom its server is trusted by.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub directory: String,
    /// CA certificates (PEM) in the place of the machine's.
    pub ca_file: Option<PathBuf>,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum PlaceError {
    #[error("cannot read [acme] ca_file {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("no HTTPS client can be made for [acme] directory")]
    Client(#[from] reqwest::Error),
}

impl Place {
    /// A client for one order, and what it is told on the way.
    pub(super) fn client(&self) -> Result<(Box<dyn HttpClient>, Arc<Told>), PlaceError> {
        let mut builder = Client::builder()
            .https_only(true)
            .redirect(Policy::none())
            .connect_timeout(CONNECT_TIME)
            .timeout(ANSWER_TIME);
        if let Some(path) = &self.ca_file {
            let read = std::fs::read(path);
            let path = path.clone();
            let pem = read.map_err(|source| PlaceError::Read { path, source })?;
            builder = builder.tls_certs_only(Certificate::from_pem_bundle(&pem)?);
        }
        let told = Arc::new(Told::default());
        let http = Http {
            client: builder.build()?,
            told: Arc::clone(&told),
        };
        Ok((Box::new(http), told))
    }
}

/// When the authority last said to come again, in milliseconds from then; 0 is never.
#[derive(Debug, Default)]
pub(super) struct Told {
    retry_after: AtomicU64,
    /// What was asked last, for an error that says nothing by itself.
    asked: RwLock<String>,
}

impl Told {
    pub(super) fn retry_after_millis(&self) -> Option<u64> {
        let millis = self.retry_after.load(Ordering::Relaxed);
        (millis > 0).then_some(millis)
    }

    fn asks(&self, url: &str) {
        let mut asked = self.asked.write().unwrap_or_else(PoisonError::into_inner);
        url.clone_into(&mut asked);
    }

    pub(super) fn asked(&self) -> String {
        let asked = self.asked.read();
        asked.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

struct Http {
    client: Client,
    told: Arc<Told>,
}

type Answering = Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>>;

impl HttpClient for Http {
    fn request(&self, request: http::Request<BodyWrapper<Bytes>>) -> Answering {
        let (client, told) = (self.client.clone(), Arc::clone(&self.told));
        Box::pin(async move { exchange(&client, &told, request).await })
    }
}

async fn exchange(
    client: &Client,
    told: &Told,
    request: http::Request<BodyWrapper<Bytes>>,
) -> Result<BytesResponse, Error> {
    let (head, body) = request.into_parts();
    let Ok(body) = body.collect().await;
    let url = head.uri.to_string();
    told.asks(&url);
    let request = client.request(head.method, url).headers(head.headers);
    let sent = request.body(body.to_bytes()).send().await;
    let mut response = sent.map_err(other)?;
    let (status, headers) = (response.status(), response.headers().clone());
    if status.is_client_error() || status.is_server_error() {
        let after = patience(&headers).unwrap_or_default();
        let millis = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
        told.retry_after.store(millis, Ordering::Relaxed);
    }
    let mut bytes = BytesMut::new();
    while let Some(part) = response.chunk().await.map_err(other)? {
        if bytes.len() + part.len() > ANSWER_BYTES {
            return Err(Error::Str("the authority's answer is too large"));
        }
        bytes.extend_from_slice(&part);
    }
    let mut answer = http::Response::new(Full::new(bytes.freeze()));
    *answer.status_mut() = status;
    *answer.headers_mut() = headers;
    Ok(BytesResponse::from(answer))
}

fn other(error: reqwest::Error) -> Error {
    Error::Other(Box::new(error))
}

/// `Retry-After`: seconds, or a date.
fn patience(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let asked = if let Ok(seconds) = value.parse() {
        Duration::from_secs(seconds)
    } else {
        let at = httpdate::parse_http_date(value).ok()?;
        at.duration_since(SystemTime::now()).ok()?
    };
    Some(asked.min(MOST_PATIENCE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_says_when_to_come_again_in_two_ways() {
        let of = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, value.parse().unwrap());
            patience(&headers)
        };
        assert_eq!(of("120"), Some(Duration::from_mins(2)));
        assert_eq!(of("99999999999"), Some(MOST_PATIENCE));
        let soon = SystemTime::now() + Duration::from_hours(1);
        let told = of(&httpdate::fmt_http_date(soon)).unwrap();
        assert!(told > Duration::from_mins(58) && told <= Duration::from_hours(1));
        assert_eq!(of("Fri, 31 Dec 1999 23:59:59 GMT"), None, "over");
        assert_eq!(of("soon"), None);
    }
}
