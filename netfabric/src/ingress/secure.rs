//! TLS at the door: the handshake, in bounded time, and what plain HTTP gets where a
//! name has a certificate. Which certificate a name has is `tls`'s.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Request, Response};
use rustls::server::Acceptor;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{HandshakeKind, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::{StartHandshake, TlsStream};

use super::body::Outgoing;
use super::door::HEAD_TIME;
use super::headers::Caller;
use super::problem::{Code, Problem};
use super::stream::{Patient, Stream};
use super::{Shared, http3};
use crate::tls::{ALPN_ACME, Choice, Shelf, Tickets, server_config};

/// From the client's first message to the end of the handshake.
pub(super) const HANDSHAKE_TIME: Duration = Duration::from_secs(5);
/// Where TLS begins with this byte, other protocols do not.
const HANDSHAKE_RECORD: u8 = 0x16;
/// Fatal, `unrecognized_name` (RFC 6066, 3).
const UNRECOGNIZED_NAME: [u8; 7] = [0x15, 3, 3, 0, 2, 2, 112];
/// What plain HTTP gets from the port of HTTPS: nothing of the request is read.
const PLAIN_HTTP: &[u8] = b"HTTP/1.1 400 Bad Request\r\n\
    x-selvedge-error: tls-expected\r\ncontent-type: text/plain; charset=utf-8\r\n\
    content-length: 37\r\nconnection: close\r\n\r\n\
    tls-expected: this port speaks HTTPS\n";
/// As much of such a client's words is read.
const PLAIN_BYTES: usize = 64 * 1024;
const CHALLENGES: &str = "/.well-known/acme-challenge/";
const HTTPS_PORT: u16 = 443;

/// What the door has for TLS.
pub(super) struct Secure {
    shelf: Arc<Shelf>,
    config: Arc<ServerConfig>,
    /// Where clients of plain HTTP are sent; without it they stay.
    port: Option<u16>,
    /// Where clients of HTTPS are told that HTTP/3 is spoken.
    alternative: Option<HeaderValue>,
}

impl Secure {
    pub(super) fn new(
        shelf: Arc<Shelf>,
        tickets: Option<Tickets>,
        port: Option<u16>,
        http3: bool,
    ) -> Result<Self, rustls::Error> {
        let config = server_config(Arc::clone(&shelf), tickets)?;
        Ok(Self {
            shelf,
            config: Arc::new(config),
            port,
            alternative: port.filter(|_| http3).and_then(|port| {
                let said = http3::alternative(port);
                HeaderValue::try_from(said).ok()
            }),
        })
    }

    /// What an answer to this caller says of HTTP/3.
    pub(super) fn alternative(&self, caller: Caller<'_>) -> Option<&HeaderValue> {
        self.alternative.as_ref().filter(|_| caller.secure)
    }
}

type Inside<S> = TlsStream<Patient<S>>;

/// Makes a connection a secure one; `None` when that comes to nothing, of which the client was told.
pub(super) async fn handshake<S: Stream>(
    shared: &Shared,
    stream: S,
    seen: Vec<u8>,
) -> Option<Inside<S>> {
    let failed = || {
        let failed = &shared.counters.handshakes_failed;
        failed.fetch_add(1, Ordering::Relaxed);
    };
    let hello = timeout(HEAD_TIME, hello(shared, stream, seen)).await;
    let Ok(Ok(Some(start))) = hello else {
        failed();
        return None;
    };
    let choice = shared.secure.shelf.choose(&start.client_hello());
    match timeout(HANDSHAKE_TIME, finish(shared, start, choice)).await {
        Ok(Ok(inside)) => inside,
        Ok(Err(error)) => {
            tracing::trace!(%error, "a handshake failed");
            failed();
            None
        }
        Err(_) => {
            failed();
            None
        }
    }
}

/// Waits for the client's first message; who speaks HTTP without TLS is answered in it.
async fn hello<S: Stream>(
    shared: &Shared,
    mut stream: S,
    seen: Vec<u8>,
) -> io::Result<Option<StartHandshake<Patient<S>>>> {
    let mut seen = BytesMut::from(seen.as_slice());
    if seen.is_empty() && stream.read_buf(&mut seen).await? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    if seen.first() != Some(&HANDSHAKE_RECORD) {
        if seen.first().is_some_and(u8::is_ascii_uppercase) {
            shared.counters.problem(Code::TlsExpected);
            stream.write_all(PLAIN_HTTP).await?;
            stream.shutdown().await?;
            // What was not read when a connection is closed takes the answer with it.
            while seen.len() < PLAIN_BYTES && stream.read_buf(&mut seen).await? > 0 {}
        }
        return Ok(None);
    }
    let stream = Patient::new(stream, seen);
    LazyConfigAcceptor::new(Acceptor::default(), stream)
        .await
        .map(Some)
}

async fn finish<S: Stream>(
    shared: &Shared,
    mut start: StartHandshake<Patient<S>>,
    choice: Choice,
) -> io::Result<Option<Inside<S>>> {
    match choice {
        Choice::Certificate => {
            let inside = start.into_stream(Arc::clone(&shared.secure.config)).await?;
            let counters = &shared.counters;
            counters.handshakes.fetch_add(1, Ordering::Relaxed);
            if inside.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed) {
                counters.handshakes_resumed.fetch_add(1, Ordering::Relaxed);
            }
            Ok(Some(inside))
        }
        Choice::Proof(proof) => {
            let config = proving(proof).map_err(io::Error::other)?;
            // All that is asked for is the certificate.
            start
                .into_stream(Arc::new(config))
                .await?
                .shutdown()
                .await?;
            Ok(None)
        }
        Choice::Unknown => {
            shared
                .counters
                .unknown_names
                .fetch_add(1, Ordering::Relaxed);
            start.io.write_all(&UNRECOGNIZED_NAME).await?;
            start.io.shutdown().await?;
            Ok(None)
        }
    }
}

fn proving(proof: Arc<CertifiedKey>) -> Result<ServerConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(proof)));
    config.alpn_protocols = vec![ALPN_ACME.to_vec()];
    Ok(config)
}

/// Whether a request that came without TLS may be one that [`instead`] answers.
pub(super) fn may_answer(shared: &Shared, host: &str, target: &str) -> bool {
    target.starts_with(CHALLENGES) || moved(shared, host, target).is_some()
}

/// The port of HTTPS where a host's clients of plain HTTP are sent there.
fn moved(shared: &Shared, host: &str, target: &str) -> Option<u16> {
    let port = shared.secure.port?;
    if !shared.secure.shelf.covers(host) {
        return None;
    }
    let routes = shared.routes.load();
    let found = routes.lookup(host, target)?;
    (!found.service.plain_http).then_some(port)
}

/// What a request that came without TLS gets in the place of its service's answer: the proof that an
/// authority asks for, or the way to HTTPS where the host has a certificate and the service does not
/// also want plain HTTP.
pub(super) fn instead<B>(shared: &Shared, request: &Request<B>) -> Option<Instead> {
    let host = request.headers().get(http::header::HOST);
    let host = host.and_then(|host| host.to_str().ok());
    let authority = request.uri().authority().map(http::uri::Authority::as_str);
    let host = host.or(authority)?;
    if let Some(token) = request.uri().path().strip_prefix(CHALLENGES) {
        // Not ours: a service may have a client of its own for an authority.
        let answer = shared.secure.shelf.answer(host, token);
        return answer.map(Instead::Proof);
    }
    let port = moved(shared, host, request.uri().path())?;
    let name = host.split_once(':').map_or(host, |(name, _port)| name);
    let target = request.uri().path_and_query();
    let target = target.map_or("/", http::uri::PathAndQuery::as_str);
    let location = match port {
        HTTPS_PORT => format!("https://{name}{target}"),
        port => format!("https://{name}:{port}{target}"),
    };
    Some(Instead::Elsewhere(location))
}

pub(super) enum Instead {
    Proof(String),
    Elsewhere(String),
}

impl Instead {
    pub(super) fn response(
        self,
        shared: &Shared,
        id: &HeaderValue,
        json: bool,
    ) -> Response<Outgoing> {
        match self {
            Self::Proof(said) => {
                let mut response = Response::new(Outgoing::Own(Some(Bytes::from(said))));
                let headers = response.headers_mut();
                let kind = HeaderValue::from_static("application/octet-stream");
                headers.insert(CONTENT_TYPE, kind);
                headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
                response
            }
            Self::Elsewhere(location) => {
                let message = format!("this service is at {location}");
                let mut problem = Problem::new(Code::HttpsOnly, message);
                problem.location = HeaderValue::try_from(location).ok();
                shared.counters.problem(problem.code);
                problem.response(id, json)
            }
        }
    }
}
