//! Answers of the door's own, and the one table of their codes.

use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE, LOCATION, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use scheduler::activate::Refused;
use scheduler::route::Unrouted;

use super::body::Outgoing;
use super::headers::{ERROR, REQUEST_ID};

/// What went wrong, as told in `x-selvedge-error`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    BadRequest,
    MethodNotAllowed,
    NoSuchHost,
    RevisionNotReady,
    QueueFull,
    WaitTimeout,
    StartFailed,
    NoCapacity,
    UpstreamConnect,
    UpstreamReset,
    UpstreamTimeout,
    DoorStopping,
    NoSuchPort,
    CallerRefused,
    HttpsOnly,
    TlsExpected,
    ClientRate,
    ServiceRate,
    SlowBody,
    BodyTooLarge,
    ReplayRefused,
    ReplayTooLarge,
    ReplayNowhere,
}

/// Every code, its word, its status and what it means to the client.
pub const CODES: [(Code, &str, u16, &str); 23] = [
    (
        Code::BadRequest,
        "bad-request",
        400,
        "the request is malformed or ambiguous",
    ),
    (
        Code::MethodNotAllowed,
        "method-not-allowed",
        405,
        "the method is not offered here",
    ),
    (
        Code::NoSuchHost,
        "no-such-host",
        404,
        "no service has this host name",
    ),
    (
        Code::RevisionNotReady,
        "revision-not-ready",
        503,
        "no revision was ever ready",
    ),
    (
        Code::QueueFull,
        "queue-full",
        503,
        "too many requests wait for the revision or this node",
    ),
    (
        Code::WaitTimeout,
        "wait-timeout",
        503,
        "no instance had room within the waiting time",
    ),
    (
        Code::StartFailed,
        "start-failed",
        503,
        "an instance was started and failed",
    ),
    (
        Code::NoCapacity,
        "no-capacity",
        503,
        "no node can take an instance",
    ),
    (
        Code::UpstreamConnect,
        "upstream-connect",
        502,
        "no endpoint could be connected to",
    ),
    (
        Code::UpstreamReset,
        "upstream-reset",
        502,
        "the endpoint broke off before it answered",
    ),
    (
        Code::UpstreamTimeout,
        "upstream-timeout",
        504,
        "no answer within the revision's timeout",
    ),
    (
        Code::DoorStopping,
        "door-stopping",
        503,
        "this node is shutting down",
    ),
    (
        Code::NoSuchPort,
        "no-such-port",
        404,
        "the service takes nothing on this port",
    ),
    (
        Code::CallerRefused,
        "caller-refused",
        403,
        "the service does not let this caller in",
    ),
    (
        Code::HttpsOnly,
        "https-only",
        308,
        "the host has a certificate and the service does not ask for plain HTTP too",
    ),
    (
        Code::TlsExpected,
        "tls-expected",
        400,
        "plain HTTP was spoken to the port of HTTPS",
    ),
    (
        Code::ClientRate,
        "client-rate",
        429,
        "the client has had its rate at this node",
    ),
    (
        Code::ServiceRate,
        "service-rate",
        429,
        "the service has had its rate at this node",
    ),
    (
        Code::SlowBody,
        "slow-body",
        408,
        "the request's body came too slowly",
    ),
    (
        Code::BodyTooLarge,
        "body-too-large",
        413,
        "the request's body is larger than this node's door takes",
    ),
    (
        Code::ReplayRefused,
        "replay-refused",
        502,
        "the instance asked for a replay that is malformed, not allowed or one too many",
    ),
    (
        Code::ReplayTooLarge,
        "replay-too-large",
        413,
        "the instance asked for a replay of a request that is too large for it",
    ),
    (
        Code::ReplayNowhere,
        "replay-nowhere",
        503,
        "there is nothing, and nothing starts, where the instance asked the request to be replayed",
    ),
];

impl Code {
    pub const fn word(self) -> &'static str {
        CODES[self as usize].1
    }

    pub fn status(self) -> StatusCode {
        StatusCode::from_u16(CODES[self as usize].2).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }
}

/// Why a request gets an answer of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Problem {
    pub(super) code: Code,
    pub(super) message: String,
    pub(super) retry_after_seconds: Option<u64>,
    /// Where to go in the place of here.
    pub(super) location: Option<HeaderValue>,
}

impl Problem {
    pub(super) fn new(code: Code, message: impl Into<String>) -> Self {
        let unavailable = code.status() == StatusCode::SERVICE_UNAVAILABLE;
        Self {
            code,
            message: message.into(),
            retry_after_seconds: unavailable.then_some(1),
            location: None,
        }
    }

    /// The revision's timeout is over and no answer began.
    pub(super) fn late() -> Self {
        Self::new(Code::UpstreamTimeout, "no answer within the timeout")
    }

    pub(super) fn refused(reason: &Refused, retry_after_millis: u64) -> Self {
        let code = match reason {
            Refused::QueueFull => Code::QueueFull,
            Refused::WaitTimeout => Code::WaitTimeout,
            Refused::StartFailed { .. } => Code::StartFailed,
            Refused::NoCapacity { .. } => Code::NoCapacity,
        };
        let mut problem = Self::new(code, reason.to_string());
        problem.retry_after_seconds = Some(retry_after_millis.div_ceil(1000).max(1));
        problem
    }

    /// A request that comes too early, and by how much.
    pub(super) fn early(code: Code, message: String, by: Duration) -> Self {
        let mut problem = Self::new(code, message);
        let rest = u64::from(by.subsec_nanos() > 0);
        problem.retry_after_seconds = Some((by.as_secs() + rest).max(1));
        problem
    }

    /// The answer: JSON for who accepts it, a line of text for all others.
    pub(super) fn response(&self, id: &HeaderValue, json: bool) -> Response<Outgoing> {
        let (kind, body) = self.body(id.to_str().unwrap_or_default(), json);
        let mut response = Response::new(Outgoing::Own(Some(Bytes::from(body))));
        *response.status_mut() = self.code.status();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(ERROR, HeaderValue::from_static(self.code.word()));
        headers.insert(REQUEST_ID, id.clone());
        if let Some(location) = &self.location {
            headers.insert(LOCATION, location.clone());
        }
        if let Some(seconds) = self.retry_after_seconds {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }

    fn body(&self, request: &str, json: bool) -> (&'static str, String) {
        let (code, message) = (self.code.word(), &self.message);
        if json {
            let body = serde_json::json!({ "code": code, "message": message, "request": request });
            return ("application/json", format!("{body}\n"));
        }
        let text = format!("{code}: {message} (request {request})\n");
        ("text/plain; charset=utf-8", text)
    }
}

impl From<Unrouted> for Problem {
    fn from(unrouted: Unrouted) -> Self {
        Self::new(Code::RevisionNotReady, unrouted.to_string())
    }
}

/// Whether the client would rather have JSON.
pub(super) fn accepts_json(headers: &HeaderMap) -> bool {
    let accept = headers.get(ACCEPT).and_then(|v| v.to_str().ok());
    accept.is_some_and(|a| a.contains("json"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_the_order_of_the_codes() {
        for (index, (code, word, status, _)) in CODES.iter().enumerate() {
            assert_eq!(*code as usize, index, "{word}");
            assert_eq!(code.status().as_u16(), *status);
        }
    }

    #[test]
    fn unavailable_always_says_when_to_come_again() {
        let refused = Problem::refused(&Refused::WaitTimeout, 1_200);
        let response = refused.response(&HeaderValue::from_static("ID"), false);
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()["retry-after"], "2");
        assert_eq!(response.headers()["x-selvedge-error"], "wait-timeout");
        for (code, word, status, _) in CODES {
            let problem = Problem::new(code, "x");
            assert_eq!(
                problem.retry_after_seconds.is_some(),
                status == 503,
                "{word}"
            );
        }
        for (millis, seconds) in [(1, 1), (1_000, 1), (1_001, 2), (90_000, 90)] {
            let by = Duration::from_millis(millis);
            let early = Problem::early(Code::ClientRate, String::new(), by);
            assert_eq!(early.retry_after_seconds, Some(seconds), "{millis}");
        }
    }

    #[test]
    fn the_body_suits_the_client() {
        let problem = Problem::new(Code::NoSuchHost, "no service at `x`");
        let text = problem.body("R1", false).1;
        assert_eq!(text, "no-such-host: no service at `x` (request R1)\n");
        let json: serde_json::Value = serde_json::from_str(&problem.body("R1", true).1).unwrap();
        assert_eq!(json["code"], "no-such-host");
        assert_eq!(json["request"], "R1");
    }
}
