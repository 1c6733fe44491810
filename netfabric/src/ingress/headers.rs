//! What of a request's and response's head goes on, and what does not.
//!
//! Heads are rebuilt, never copied raw: hop-by-hop headers and those named by `Connection` end
//! here, what only proxies may say (`Forwarded`, `X-Forwarded-*`) and what only we say
//! (`x-selvedge-*`, `x-request-id`) is taken out and said anew. All else passes unchanged, trace
//! context included.

use std::net::IpAddr;

use http::header::{
    CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, FORWARDED, HOST, PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION, TE, TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri, Version};

use super::problem::{Code, Problem};

pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// To a peer: which revision is meant, as `NAMESPACE/NAME`.
pub(super) const REVISION: HeaderName = HeaderName::from_static("x-selvedge-revision");
/// To a peer: milliseconds the request may still take.
pub(super) const PATIENCE: HeaderName = HeaderName::from_static("x-selvedge-patience");
/// From a peer: the instance that answered.
pub(super) const INSTANCE: HeaderName = HeaderName::from_static("x-selvedge-instance");
/// From a peer: nothing of the request reached an instance, and why.
pub(super) const REFUSED: HeaderName = HeaderName::from_static("x-selvedge-refused");
/// `REFUSED` for want of room, as opposed to want of an instance.
pub(super) const FULL: &str = "full";
/// From a peer: its instance broke the connection before it answered.
pub(super) const BROKEN: HeaderName = HeaderName::from_static("x-selvedge-broken");
/// To a client: the code of an answer of our own.
pub(super) const ERROR: HeaderName = HeaderName::from_static("x-selvedge-error");

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");
const REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");

/// Headers a request may carry; HTTP/1 counts them while parsing.
pub(super) const MAX_HEADERS: usize = 100;

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
}

impl Head {
    /// Checks a client's request and takes out what does not go on.
    pub(super) fn vet<B>(request: &mut Request<B>) -> Result<Self, Problem> {
        let bad = |why: &'static str| Problem::new(Code::BadRequest, why);
        let method = request.method().clone();
        if method == Method::CONNECT {
            return Err(Problem::new(
                Code::MethodNotAllowed,
                "CONNECT is not offered here",
            ));
        }
        let host = host(request)?;
        let path = request.uri().path_and_query().cloned();
        let path = path.ok_or_else(|| bad("the request names no path"))?;
        let mut headers = std::mem::take(request.headers_mut());
        if headers.len() > MAX_HEADERS {
            return Err(bad("too many headers"));
        }
        let chunked = |v: &HeaderValue| v.as_bytes().eq_ignore_ascii_case(b"chunked");
        let codings = headers.get_all(TRANSFER_ENCODING);
        if codings.iter().count() > 1 || !codings.iter().all(chunked) {
            return Err(bad("the only transfer coding understood is `chunked`"));
        }
        let upgrade = wanted_upgrade(request.version(), &headers);
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
        strip_prefix(&mut headers, "x-forwarded-");
        headers.insert(HOST, host.clone());
        Ok(Self {
            method,
            host,
            target: Uri::from(path),
            headers,
            upgrade,
        })
    }

    /// Says who asked for what, in what only proxies may say.
    pub(super) fn introduce(&mut self, client: IpAddr, id: &HeaderValue) {
        self.headers.insert(REQUEST_ID, id.clone());
        let host = self.host.to_str().unwrap_or_default();
        let client = client.to_canonical();
        let quoted = match client {
            IpAddr::V4(v4) => format!("for={v4};host=\"{host}\";proto=http"),
            IpAddr::V6(v6) => format!("for=\"[{v6}]\";host=\"{host}\";proto=http"),
        };
        if let Ok(forwarded) = HeaderValue::try_from(quoted) {
            self.headers.insert(FORWARDED, forwarded);
        }
        if let Ok(client) = HeaderValue::try_from(client.to_string()) {
            self.headers.insert(FORWARDED_FOR, client);
        }
        self.headers.insert(FORWARDED_HOST, self.host.clone());
        self.headers
            .insert(FORWARDED_PROTO, HeaderValue::from_static("http"));
    }

    /// The request for one try, in the form of HTTP/1.1.
    pub(super) fn request<B>(&self, body: B) -> Request<B> {
        let mut request = Request::new(body);
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.target.clone();
        *request.headers_mut() = self.headers.clone();
        request
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
        let passed = [FORWARDED, FORWARDED_FOR, FORWARDED_HOST, FORWARDED_PROTO].map(|name| {
            let value = ours(name.clone());
            (name, value)
        });
        *request.headers_mut() = headers;
        let mut head = Self::vet(request)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    fn request(lines: &[(&str, &str)]) -> Request<()> {
        let mut request = Request::builder().uri("/p?q=1");
        for (name, value) in lines {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap()
    }

    fn passed(lines: &[(&str, &str)]) -> Vec<String> {
        let mut head = Head::vet(&mut request(lines)).unwrap();
        head.introduce([192, 0, 2, 1].into(), &HeaderValue::from_static("ID"));
        let request = head.request(());
        assert_eq!(request.uri(), "/p?q=1");
        let lines = request.headers().iter();
        let mut lines: Vec<_> = lines
            .map(|(n, v)| format!("{n}: {}", v.to_str().unwrap()))
            .collect();
        lines.sort();
        lines
    }

    const OURS: [&str; 6] = [
        "forwarded: for=192.0.2.1;host=\"web.test\";proto=http",
        "host: web.test",
        "x-forwarded-for: 192.0.2.1",
        "x-forwarded-host: web.test",
        "x-forwarded-proto: http",
        "x-request-id: ID",
    ];

    #[test]
    fn what_goes_on_and_what_does_not() {
        let table: &[(&[(&str, &str)], &[&str])] = &[
            (&[], &[]),
            (
                &[("traceparent", "00-1-2-01"), ("x-own", "1")],
                &["traceparent: 00-1-2-01", "x-own: 1"],
            ),
            (
                &[
                    ("connection", "close, X-Secret"),
                    ("x-secret", "1"),
                    ("keep-alive", "5"),
                ],
                &[],
            ),
            (
                &[("connection", "host, cookie"), ("cookie", "a=1")],
                &["cookie: a=1"],
            ),
            (
                &[("cookie", "a=1"), ("cookie", "b=2")],
                &["cookie: a=1; b=2"],
            ),
            (
                &[("te", "gzip, trailers"), ("trailer", "x-sum")],
                &["te: trailers", "trailer: x-sum"],
            ),
            (
                &[
                    ("te", "gzip"),
                    ("proxy-authorization", "x"),
                    ("proxy-connection", "x"),
                ],
                &[],
            ),
            (
                &[
                    ("x-forwarded-for", "6.6.6.6"),
                    ("x-forwarded-port", "1"),
                    ("forwarded", "for=6.6.6.6"),
                ],
                &[],
            ),
            (&[("x-real-ip", "6.6.6.6"), ("x-request-id", "mine")], &[]),
            (
                &[("x-selvedge-revision", "a/b"), ("x-selvedge-anything", "1")],
                &[],
            ),
            (&[("content-length", "3"), ("expect", "100-continue")], &[]),
            (&[("transfer-encoding", "chunked")], &[]),
            (
                &[("connection", "Upgrade"), ("upgrade", "websocket")],
                &["connection: upgrade", "upgrade: websocket"],
            ),
            (&[("upgrade", "websocket")], &[]),
            (
                &[
                    ("connection", "upgrade, http2-settings"),
                    ("upgrade", "h2c"),
                    ("http2-settings", "x"),
                ],
                &[],
            ),
        ];
        for (lines, want) in table {
            let lines: Vec<_> = [("host", "web.test")]
                .iter()
                .chain(*lines)
                .copied()
                .collect();
            let mut want: Vec<_> = want.iter().chain(&OURS).map(ToString::to_string).collect();
            want.sort();
            assert_eq!(passed(&lines), want, "{lines:?}");
        }
    }

    #[test]
    fn doubtful_requests_are_refused() {
        let host = ("host", "web.test");
        let table: &[&[(&str, &str)]] = &[
            &[],
            &[host, host],
            &[("host", "")],
            &[("host", "user@web.test")],
            &[("host", "web.test/x")],
            &[("host", "a b")],
            &[host, ("transfer-encoding", "gzip, chunked")],
            &[host, ("transfer-encoding", "xchunked")],
            &[
                host,
                ("transfer-encoding", "chunked"),
                ("transfer-encoding", "chunked"),
            ],
        ];
        for lines in table {
            assert!(Head::vet(&mut request(lines)).is_err(), "{lines:?}");
        }
        let mut absolute = request(&[host]);
        *absolute.uri_mut() = Uri::from_static("http://other.test/");
        assert!(Head::vet(&mut absolute).is_err());
        *absolute.uri_mut() = Uri::from_static("http://WEB.test/x");
        absolute
            .headers_mut()
            .insert(HOST, HeaderValue::from_static("web.TEST"));
        let head = Head::vet(&mut absolute).unwrap();
        assert_eq!(head.request(()).uri(), "/x");
        let mut many = request(&[host]);
        for i in 0..=MAX_HEADERS {
            let name = HeaderName::try_from(format!("x-{i}")).unwrap();
            many.headers_mut()
                .insert(name, HeaderValue::from_static("1"));
        }
        assert!(Head::vet(&mut many).is_err());
    }

    #[test]
    fn a_peer_keeps_what_the_first_door_said() {
        let mut first = Head::vet(&mut request(&[("host", "web.test")])).unwrap();
        first.introduce([192, 0, 2, 1].into(), &HeaderValue::from_static("ID"));
        let mut sent = first.request(());
        let revision = HeaderValue::from_static("default/web-00001");
        sent.headers_mut().insert(REVISION, revision);
        let second = Head::from_peer(&mut sent).unwrap();
        let request = second.request(());
        assert_eq!(request.headers()[FORWARDED_FOR], "192.0.2.1");
        assert_eq!(request.headers()[REQUEST_ID], "ID");
        assert!(!request.headers().contains_key(REVISION));
    }

    #[test]
    fn h2_carries_the_authority_in_its_target() {
        let head = Head::vet(&mut request(&[("host", "web.test:8080")])).unwrap();
        let mut request = head.request(());
        to_h2(&mut request);
        assert_eq!(request.uri(), "http://web.test:8080/p?q=1");
        assert!(!request.headers().contains_key(HOST));
    }
}
