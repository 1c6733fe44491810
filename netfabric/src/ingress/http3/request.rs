//! One request over HTTP/3: its head is judged where the library does not, it goes the way of all
//! requests, and its answer is passed on as fast as the client takes it.

use std::future::{Future, pending};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use h3::error::{Code, StreamError};
use h3::server::{RequestResolver, RequestStream};
use http::header::{
    CONNECTION, CONTENT_LENGTH, DATE, HeaderMap, HeaderName, HeaderValue, TE, TRANSFER_ENCODING,
    UPGRADE,
};
use http::{Method, Request, Response, StatusCode};
use http_body::Body;
use http_body_util::BodyExt;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::body::Coming;
use super::carrier::{Carrier, Watch};
use super::streams::Writing;
use crate::ingress::body::{Outgoing, Received};
use crate::ingress::door::HEAD_TIME;
use crate::ingress::headers::Caller;
use crate::ingress::stream::WRITE_STALL;
use crate::ingress::strict::length;
use crate::ingress::{Shared, dispatch};

/// As much is written at once; a client has [`WRITE_STALL`] to take it.
const PART: usize = 16 * 1024;
/// The last of an answer is with its client after so long, or the client is gone.
const ARRIVAL: Duration = Duration::from_secs(5);

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    Served,
    /// The client broke it off, or what it sent is no request.
    ByClient,
}

pub(super) async fn serve(
    shared: Arc<Shared>,
    quic: quinn::Connection,
    resolver: RequestResolver<Carrier, Bytes>,
    mut watch: Watch,
) -> Ended {
    let Ok(head) = timeout(HEAD_TIME, resolver.resolve_request()).await else {
        return Ended::ByClient;
    };
    let (request, mut stream) = match head {
        Ok(head) => head,
        Err(error) => {
            tracing::trace!(%error, "no request came of a stream");
            if matches!(error, StreamError::HeaderTooBig { .. }) {
                shared.counters.asked();
                shared.counters.answered(TOO_LARGE.as_u16());
            }
            return Ended::ByClient;
        }
    };
    watch.begin();
    let Ok(length) = length_of(&request) else {
        stream.stop_sending(Code::H3_MESSAGE_ERROR);
        stream.stop_stream(Code::H3_MESSAGE_ERROR);
        return Ended::ByClient;
    };
    let (mut answer, body) = stream.split();
    let (mut body, broken) = Coming::new(body, length);
    body.look().await;
    let caller = Caller {
        address: quic.remote_address().ip(),
        secure: true,
        inside: None,
    };
    let bodiless = request.method() == Method::HEAD;
    let request = request.map(|()| Received::Http3(Box::new(body)));
    let answering = async {
        let response = dispatch::answer(&shared, request, caller, None).await;
        pass_on(&mut answer, response, bodiless).await
    };
    let passed = tokio::select! {
        passed = answering => passed,
        code = told(broken) => Err(code),
        _ = &mut watch.stopped => Err(Code::H3_REQUEST_CANCELLED),
    };
    if let Err(code) = passed {
        answer.stop_stream(code);
        return if code == Code::H3_INTERNAL_ERROR {
            Ended::Served
        } else {
            Ended::ByClient
        };
    }
    // A connection that is closed takes with it what is still on its way.
    let _late = timeout(ARRIVAL, watch.stopped).await;
    Ended::Served
}

/// What the library answers by itself.
const TOO_LARGE: StatusCode = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;

async fn told(broken: oneshot::Receiver<Code>) -> Code {
    match broken.await {
        Ok(code) => code,
        // The body is through.
        Err(_) => pending().await,
    }
}

/// A length that is none, or what belongs to connections of HTTP/1 (RFC 9114, 4.1.2 and 4.2).
#[derive(Debug, PartialEq, Eq)]
struct Malformed;

/// The length that a head names, if it does.
fn length_of<B>(request: &Request<B>) -> Result<Option<u64>, Malformed> {
    const OF_CONNECTIONS: [HeaderName; 5] = [
        CONNECTION,
        TRANSFER_ENCODING,
        UPGRADE,
        HeaderName::from_static("keep-alive"),
        HeaderName::from_static("proxy-connection"),
    ];
    let headers = request.headers();
    let trailers = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"trailers");
    let foreign = OF_CONNECTIONS.iter().any(|name| headers.contains_key(name));
    if foreign || !headers.get_all(TE).iter().all(trailers) {
        return Err(Malformed);
    }
    let mut named = headers.get_all(CONTENT_LENGTH).iter();
    match (named.next(), named.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => length(value.as_bytes()).map(Some).ok_or(Malformed),
        (Some(_), Some(_)) => Err(Malformed),
    }
}

/// Passes an answer on; the code is what its stream is broken off with.
async fn pass_on(
    stream: &mut RequestStream<Writing, Bytes>,
    response: Response<Outgoing>,
    bodiless: bool,
) -> Result<(), Code> {
    let (mut head, mut body) = response.into_parts();
    if head.status.is_informational() {
        // Nothing was asked for that could be switched to.
        return Err(Code::H3_INTERNAL_ERROR);
    }
    complete(&mut head.headers, &body);
    patient(stream.send_response(Response::from_parts(head, ()))).await?;
    if !bodiless {
        while let Some(frame) = body.frame().await {
            // It broke off: what is cut short must not look whole.
            let frame = frame.map_err(|_| Code::H3_INTERNAL_ERROR)?;
            match frame.into_data() {
                Ok(mut data) => {
                    while !data.is_empty() {
                        let part = data.split_to(data.len().min(PART));
                        patient(stream.send_data(part)).await?;
                    }
                }
                Err(frame) => {
                    if let Ok(trailers) = frame.into_trailers() {
                        patient(stream.send_trailers(trailers)).await?;
                    }
                }
            }
        }
    }
    drop(body);
    patient(stream.finish()).await
}

/// Says what hyper does where it is not said.
fn complete(headers: &mut HeaderMap, body: &Outgoing) {
    headers.remove(CONNECTION);
    if let Some(length) = body.size_hint().exact().filter(|length| *length > 0) {
        let length = || HeaderValue::from(length);
        headers.entry(CONTENT_LENGTH).or_insert_with(length);
    }
    if !headers.contains_key(DATE)
        && let Ok(date) = HeaderValue::try_from(httpdate::fmt_http_date(SystemTime::now()))
    {
        headers.insert(DATE, date);
    }
}

/// Waits for a client to take what is sent to it, for so long.
async fn patient(sending: impl Future<Output = Result<(), StreamError>>) -> Result<(), Code> {
    match timeout(WRITE_STALL, sending).await {
        Ok(sent) => sent.map_err(|error| {
            tracing::trace!(%error, "an answer ends");
            Code::H3_REQUEST_CANCELLED
        }),
        Err(_) => Err(Code::H3_REQUEST_CANCELLED),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_head_may_not_say() {
        type Lines<'a> = &'a [(&'a str, &'a str)];
        let table: &[(Lines<'_>, Result<Option<u64>, Malformed>)] = &[
            (&[], Ok(None)),
            (&[("content-length", "5")], Ok(Some(5))),
            (&[("te", "trailers"), ("x", "y")], Ok(None)),
            (
                &[("content-length", "5"), ("content-length", "5")],
                Err(Malformed),
            ),
            (&[("content-length", "+5")], Err(Malformed)),
            (&[("te", "gzip")], Err(Malformed)),
            (&[("connection", "close")], Err(Malformed)),
            (&[("transfer-encoding", "chunked")], Err(Malformed)),
            (&[("upgrade", "websocket")], Err(Malformed)),
            (&[("keep-alive", "5")], Err(Malformed)),
            (&[("proxy-connection", "x")], Err(Malformed)),
        ];
        for (headers, want) in table {
            let mut request = Request::builder();
            for (name, value) in *headers {
                request = request.header(*name, *value);
            }
            let got = length_of(&request.body(()).unwrap());
            assert_eq!(got, *want, "{headers:?}");
        }
    }
}
