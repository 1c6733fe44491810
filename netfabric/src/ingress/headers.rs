//! What of a request's and response's head goes on, and what does not.
//!
//! Heads are rebuilt, never copied raw: hop-by-hop headers and those named by `Connection` end
//! here, what only proxies may say (`Forwarded`, `X-Forwarded-*`) and what only we say
//! (`x-selvedge-*`, `x-request-id`) is taken out and said anew. All else passes unchanged, trace
//! context included.

use std::net::IpAddr;

use base64::Engine as _;
use http::header::{
    CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, EXPECT, FORWARDED, HOST, PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, TE, TRANSFER_ENCODING, UPGRADE,
};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version,
};

use super::door::MAX_HEAD_BYTES;
use super::inward::Call;
use super::problem::{Code, Problem};
use super::replay;

pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// To a peer: which revision is meant, as `NAMESPACE/NAME`.
pub(super) const REVISION: HeaderName = HeaderName::from_static("x-selvedge-revision");
/// To a peer: milliseconds the request may still take.
pub(super) const PATIENCE: HeaderName = HeaderName::from_static("x-selvedge-patience");
/// To a peer: the only instance that is meant, and the one that is not.
pub(super) const ONLY: HeaderName = HeaderName::from_static("x-selvedge-only");
pub(super) const NOT: HeaderName = HeaderName::from_static("x-selvedge-not");
/// From a peer: the instance that answered.
pub(super) const INSTANCE: HeaderName = HeaderName::from_static("x-selvedge-instance");
/// From a peer: nothing of the request reached an instance, and why.
pub(super) const REFUSED: HeaderName = HeaderName::from_static("x-selvedge-refused");
/// `REFUSED` for want of room, as opposed to want of an instance.
pub(super) const FULL: &str = "full";
pub(super) const NOT_HERE: &str = "not-here";
/// `BROKEN` because the time was over.
pub(super) const TIMEOUT: &str = "timeout";
/// From a peer: its instance broke the connection before it answered.
pub(super) const BROKEN: HeaderName = HeaderName::from_static("x-selvedge-broken");
/// To a client: the code of an answer of our own.
pub(super) const ERROR: HeaderName = HeaderName::from_static("x-selvedge-error");

pub(super) const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");
const REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");

/// Headers a request may carry; HTTP/1 counts them while parsing.
pub(super) const MAX_HEADERS: usize = 100;
/// What our own doors add to a head on its way between them, at most: what one of them passes on the other
/// must read.
pub(super) const ADDED_HEADERS: usize = 8;
const ADDED_BYTES: usize = 2048;

/// Who sends a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// Or an instance, which is as little ours.
    Client,
    /// Another node's door: it has vetted the request and said whose it is.
    Peer,
}

/// The most of one head.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) headers: usize,
    pub(super) bytes: usize,
}

impl Bounds {
    pub(super) const CLIENT: Self = Self {
        headers: MAX_HEADERS,
        bytes: MAX_HEAD_BYTES,
    };
    pub(super) const PEER: Self = Self {
        headers: MAX_HEADERS + ADDED_HEADERS,
        bytes: MAX_HEAD_BYTES + ADDED_BYTES,
    };
}

impl Side {
    pub(super) fn bounds(self) -> Bounds {
        match self {
            Self::Client => Bounds::CLIENT,
            Self::Peer => Bounds::PEER,
        }
    }
}

const HOP_BY_HOP: [HeaderName; 8] = [
    CONNECTION,
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRANSFER_ENCODING,
    UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// Names a `Connection` header cannot have removed: they frame or address the message.
const NOT_PER_HOP: [HeaderName; 4] = [HOST, CONTENT_LENGTH, TRANSFER_ENCODING, COOKIE];

/// Who asks, and how it came in.
#[derive(Debug, Clone, Copy)]
pub(super) struct Caller<'a> {
    pub(super) address: IpAddr,
    /// Through TLS.
    pub(super) secure: bool,
    /// A container of this node, by the door that is there for those.
    pub(super) inside: Option<&'a Call>,
}

impl Caller<'_> {
    /// As it is told to the application.
    pub(super) fn scheme(self) -> &'static str {
        if self.secure { "https" } else { "http" }
    }

    /// Whose requests are counted: containers of this node are not.
    pub(super) fn client(self) -> Option<IpAddr> {
        self.inside.is_none().then_some(self.address)
    }
}

/// The head of a request, checked and cleaned, ready to be sent on any number of times.
#[derive(Debug, Clone)]
pub(super) struct Head {
    pub(super) method: Method,
    /// As the client named it, port included.
    pub(super) host: HeaderValue,
    target: Uri,
    headers: HeaderMap,
    /// The protocol the client wants to switch to.
    pub(super) upgrade: Option<HeaderValue>,
    /// It wants to on one stream of HTTP/2 (RFC 8441), and is answered in that form.
    pub(super) on_stream: bool,
}

impl Head {
    /// Checks a client's request and takes out what does not go on.
    pub(super) fn vet<B>(request: &mut Request<B>) -> Result<Self, Problem> {
        Self::within(Bounds::CLIENT, request)
    }

    fn within<B>(bounds: Bounds, request: &mut Request<B>) -> Result<Self, Problem> {
        let bad = |why: &'static str| Problem::new(Code::BadRequest, why);
        let on_stream = is_websocket_on_stream(request);
        let method = match request.method() {
            &Method::CONNECT if on_stream => Method::GET,
            &Method::CONNECT => {
                let message = "CONNECT is not offered here";
                return Err(Problem::new(Code::MethodNotAllowed, message));
            }
            method => method.clone(),
        };
        let host = host(request)?;
        let path = request.uri().path_and_query().cloned();
        let path = path.ok_or_else(|| bad("the request names no path"))?;
        let mut headers = std::mem::take(request.headers_mut());
        if headers.len() > bounds.headers {
            return Err(bad("too many headers"));
        }
        let chunked = |v: &HeaderValue| v.as_bytes().eq_ignore_ascii_case(b"chunked");
        let codings = headers.get_all(TRANSFER_ENCODING);
        if codings.iter().count() > 1 || !codings.iter().all(chunked) {
            return Err(bad("the only transfer coding understood is `chunked`"));
        }
        let upgrade = if on_stream {
            headers.insert(SEC_WEBSOCKET_KEY, websocket_key());
            Some(HeaderValue::from_static("websocket"))
        } else {
            wanted_upgrade(request.version(), &headers)
        };
        join_cookies(&mut headers);
        scrub(&mut headers, upgrade.as_ref());
        for name in [
            CONTENT_LENGTH,
            EXPECT,
            HTTP2_SETTINGS,
            FORWARDED,
            REAL_IP,
            REQUEST_ID,
        ] {
            headers.remove(name);
        }
        for name in &replay::TOLD {
            headers.remove(name);
        }
        strip_prefix(&mut headers, "x-forwarded-");
        headers.insert(HOST, host.clone());
        Ok(Self {
            method,
            host,
            target: Uri::from(path),
            headers,
            upgrade,
            on_stream,
        })
    }

    /// Says who asked for what, in what only proxies may say.
    pub(super) fn introduce(&mut self, caller: Caller<'_>, id: &HeaderValue) {
        self.headers.insert(REQUEST_ID, id.clone());
        let host = self.host.to_str().unwrap_or_default();
        let (client, scheme) = (caller.address.to_canonical(), caller.scheme());
        let quoted = match client {
            IpAddr::V4(v4) => format!("for={v4};host=\"{host}\";proto={scheme}"),
            IpAddr::V6(v6) => format!("for=\"[{v6}]\";host=\"{host}\";proto={scheme}"),
        };
        if let Ok(forwarded) = HeaderValue::try_from(quoted) {
            self.headers.insert(FORWARDED, forwarded);
        }
        if let Ok(client) = HeaderValue::try_from(client.to_string()) {
            self.headers.insert(FORWARDED_FOR, client);
        }
        self.headers.insert(FORWARDED_HOST, self.host.clone());
        self.headers
            .insert(FORWARDED_PROTO, HeaderValue::from_static(scheme));
    }

    /// The request for one try, in the form of HTTP/1.1.
    pub(super) fn request<B>(&self, body: B) -> Request<B> {
        let mut request = Request::new(body);
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.target.clone();
        *request.headers_mut() = self.headers.clone();
        request
    }

    pub(super) fn content_type(&self) -> Option<&HeaderValue> {
        self.headers.get(CONTENT_TYPE)
    }

    /// Says something more to whom it is sent to from now on, in the place of what was said before.
    pub(super) fn say(&mut self, name: HeaderName, value: HeaderValue) {
        self.headers.insert(name, value);
    }

    /// What of its host the client asked for.
    pub(super) fn path(&self) -> &str {
        self.target.path()
    }

    /// What the client sent of cookies, in one line.
    pub(super) fn cookies(&self) -> &[u8] {
        self.headers.get(COOKIE).map_or(b"", HeaderValue::as_bytes)
    }

    /// Repeating it does no more than doing it once (RFC 9110, 9.2.2).
    pub(super) fn is_idempotent(&self) -> bool {
        self.method.is_idempotent()
    }

    /// A peer's request as our own door sent it: it was vetted there, and our own headers in it
    /// are for us.
    pub(super) fn from_peer<B>(request: &mut Request<B>) -> Result<Self, Problem> {
        let headers = std::mem::take(request.headers_mut());
        let ours = |name| headers.get(&name).cloned();
        let id = ours(REQUEST_ID);
        let proxies = [FORWARDED, FORWARDED_FOR, FORWARDED_HOST, FORWARDED_PROTO];
        let passed = proxies.into_iter().chain(replay::TOLD);
        let passed = passed.map(|name| (name.clone(), ours(name)));
        let passed: Vec<_> = passed.collect();
        *request.headers_mut() = headers;
        let mut head = Self::within(Bounds::PEER, request)?;
        let said = passed.into_iter().chain([(REQUEST_ID, id)]);
        for (name, value) in said.filter_map(|(n, v)| v.map(|v| (n, v))) {
            head.headers.insert(name, value);
        }
        Ok(head)
    }
}

/// Turns a request of HTTP/1.1 form into one of HTTP/2: the authority moves into the target.
pub(super) fn to_h2<B>(request: &mut Request<B>) {
    let host = request.headers_mut().remove(HOST);
    let mut parts = std::mem::take(request.uri_mut()).into_parts();
    parts.scheme = Some(http::uri::Scheme::HTTP);
    parts.authority = host.and_then(|h| http::uri::Authority::try_from(h.as_bytes()).ok());
    if parts.authority.is_none() {
        parts.authority = Some(http::uri::Authority::from_static("localhost"));
    }
    *request.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
    *request.version_mut() = Version::HTTP_2;
    request.headers_mut().remove(CONNECTION);
}

/// Cleans a response's head on its way to the client.
pub(super) fn clean_response(status: StatusCode, headers: &mut HeaderMap) {
    let switching = status == StatusCode::SWITCHING_PROTOCOLS;
    let upgrade = headers.get(UPGRADE).filter(|_| switching).cloned();
    scrub(headers, upgrade.as_ref());
    headers.remove(REQUEST_ID);
}

/// A switch of protocols that was agreed to, told as HTTP/2 does on a stream: a success, and bytes.
pub(super) fn switched_on_stream<B>(response: &mut Response<B>) {
    *response.status_mut() = StatusCode::OK;
    let headers = response.headers_mut();
    for name in [UPGRADE, CONNECTION, SEC_WEBSOCKET_ACCEPT] {
        headers.remove(name);
    }
}

/// WebSocket on one stream of HTTP/2. An instance is asked for it as HTTP/1.1 does.
fn is_websocket_on_stream<B>(request: &Request<B>) -> bool {
    let protocol = request.extensions().get::<hyper::ext::Protocol>();
    let websocket = protocol.is_some_and(|p| p.as_str().eq_ignore_ascii_case("websocket"));
    websocket && request.method() == Method::CONNECT
}

/// HTTP/2's form has no key, HTTP/1.1's must have one (RFC 6455, 4.1).
fn websocket_key() -> HeaderValue {
    let nonce: [u8; 16] = rand::random();
    let key = base64::engine::general_purpose::STANDARD.encode(nonce);
    HeaderValue::try_from(key).unwrap_or(HeaderValue::from_static(""))
}

/// The one host a request names: `Host`, or HTTP/2's authority; both must agree when both are
/// there, and so must an absolute target's.
fn host<B>(request: &Request<B>) -> Result<HeaderValue, Problem> {
    let bad = |why: &'static str| Problem::new(Code::BadRequest, why);
    let mut named = request.headers().get_all(HOST).iter();
    let header = named.next();
    if named.next().is_some() {
        return Err(bad("more than one Host header"));
    }
    let authority = request.uri().authority().map(http::uri::Authority::as_str);
    let same = |h: &&HeaderValue| {
        authority.is_none_or(|a| h.as_bytes().eq_ignore_ascii_case(a.as_bytes()))
    };
    let host = match (header, authority) {
        (Some(header), _) if same(&header) => header.clone(),
        (Some(_), _) => return Err(bad("Host and the request's target disagree")),
        (None, Some(authority)) => {
            HeaderValue::from_str(authority).map_err(|_| bad("the host is malformed"))?
        }
        (None, None) => return Err(bad("no Host header")),
    };
    let fine = |b: &u8| b.is_ascii_alphanumeric() || b"-._:[]~%".contains(b);
    if host.is_empty() || !host.as_bytes().iter().all(fine) {
        return Err(bad("the host is malformed"));
    }
    Ok(host)
}

/// The protocol in `Upgrade` when `Connection` asks for it. `h2c` is not taken up (RFC 9113 did
/// away with it): the request is answered in HTTP/1.1, as the client must allow.
fn wanted_upgrade(version: Version, headers: &HeaderMap) -> Option<HeaderValue> {
    let asked = connection_tokens(headers).any(|t| t.eq_ignore_ascii_case("upgrade"));
    let upgrade = headers.get(UPGRADE)?;
    let h2c = upgrade.as_bytes().eq_ignore_ascii_case(b"h2c");
    (version == Version::HTTP_11 && asked && !h2c).then(|| upgrade.clone())
}

fn connection_tokens(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let values = headers.get_all(CONNECTION).into_iter();
    values
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .map(str::trim)
        .filter(|t| !t.is_empty())
}

/// Removes what belongs to one hop and what is ours. `TE: trailers` and `Trailer` stay: trailers
/// go through. An upgrade stays when there is one.
fn scrub(headers: &mut HeaderMap, upgrade: Option<&HeaderValue>) {
    let named: Vec<HeaderName> = connection_tokens(headers)
        .filter_map(|t| HeaderName::from_bytes(t.as_bytes()).ok())
        .filter(|name| !NOT_PER_HOP.contains(name))
        .collect();
    for name in named {
        headers.remove(name);
    }
    let trailers = headers
        .get_all(TE)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .any(|t| t.trim().eq_ignore_ascii_case("trailers"));
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    strip_prefix(headers, "x-selvedge-");
    if let Some(upgrade) = upgrade {
        headers.insert(UPGRADE, upgrade.clone());
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    }
}

fn strip_prefix(headers: &mut HeaderMap, prefix: &str) {
    let named = headers.keys().filter(|n| n.as_str().starts_with(prefix));
    let named: Vec<HeaderName> = named.cloned().collect();
    for name in named {
        headers.remove(name);
    }
}

/// HTTP/2 may split cookies over several headers; HTTP/1 has one (RFC 9113, 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(COOKIE).iter().nth(1).is_none() {
        return;
    }
    let crumbs: Vec<&[u8]> = headers
        .get_all(COOKIE)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect();
    if let Ok(cookie) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..])) {
        headers.insert(COOKIE, cookie);
    }
}
