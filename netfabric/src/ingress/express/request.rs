//! Heads of requests that are plain: HTTP/1.1 in the one form in which everybody reads it alike.
//! Whatever is anything else (or wrong) is called odd, and goes to the general way, which knows
//! what to do with it. Nothing here forgives: what is accepted is rebuilt, never copied raw.

use std::mem::MaybeUninit;
use std::ops::Range;

use http::{HeaderName, Method};
use httparse::{Header, ParserConfig, Request, Status};

use crate::ingress::headers::{Bounds, NOT, ONLY, PATIENCE, REVISION, Side};
use crate::ingress::replay;
use crate::ingress::strict::{length, lines_end_well};

/// Room for the headers of one head.
pub(super) type Slots<'b> = [MaybeUninit<Header<'b>>; SLOTS];

const SLOTS: usize = Bounds::PEER.headers;

pub(super) const fn slots<'b>() -> Slots<'b> {
    [const { MaybeUninit::uninit() }; SLOTS]
}

#[derive(Debug)]
pub(super) enum Reading<'h, 'b> {
    /// The head is not whole yet.
    Partial,
    Odd,
    Plain(Plain<'h, 'b>),
}

/// What is left of a plain head; headers that do not go on have no name any more.
#[derive(Debug)]
pub(super) struct Plain<'h, 'b> {
    pub(super) host: &'b str,
    pub(super) ask: Ask,
    pub(super) target: &'b str,
    headers: &'h [Header<'b>],
    told: Told<'b>,
}

/// What another node's door says of a request of its own.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Told<'b> {
    pub(super) revision: Option<&'b [u8]>,
    pub(super) patience: Option<&'b [u8]>,
    /// Which instance is meant, and which is not.
    pub(super) only: Option<&'b [u8]>,
    pub(super) not: Option<&'b [u8]>,
}

/// What must be known of a request once its head is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ask {
    pub(super) method: Method,
    /// The head's length in the client's bytes.
    pub(super) head: usize,
    /// The body's.
    pub(super) body: Option<u64>,
    /// The client will take a further answer on this connection.
    pub(super) keep: bool,
    /// It would rather have JSON.
    pub(super) json: bool,
    /// Where its cookies are, in the client's bytes.
    pub(super) cookies: Range<usize>,
}

/// Reads the head at the beginning of `bytes`.
pub(super) fn read<'h, 'b>(
    bytes: &'b [u8],
    slots: &'h mut Slots<'b>,
    from: Side,
) -> Reading<'h, 'b> {
    let mut request = Request::new(&mut []);
    let parsed =
        ParserConfig::default().parse_request_with_uninit_headers(&mut request, bytes, slots);
    let head = match parsed {
        Ok(Status::Complete(head)) if head <= from.bounds().bytes => head,
        Ok(Status::Partial) if bytes.len() < from.bounds().bytes => return Reading::Partial,
        Ok(_) | Err(_) => return Reading::Odd,
    };
    let Request {
        method: Some(method),
        path: Some(target),
        version: Some(1),
        headers,
    } = request
    else {
        return Reading::Odd;
    };
    let is_small = headers.len() <= from.bounds().headers;
    if !is_small || !lines_end_well(&bytes[..head]) || !is_plain_target(target) {
        return Reading::Odd;
    }
    sift((method, target), (bytes, head), headers, from).map_or(Reading::Odd, Reading::Plain)
}

/// Looks at each header; `None` when one is not plain.
fn sift<'h, 'b>(
    (method, target): (&str, &'b str),
    (bytes, head): (&'b [u8], usize),
    headers: &'h mut [Header<'b>],
    from: Side,
) -> Option<Plain<'h, 'b>> {
    let mut host = None;
    let mut told = Told::default();
    let mut cookies = None;
    let mut ask = Ask {
        method: plain_method(method)?,
        head,
        body: None,
        keep: true,
        json: false,
        cookies: 0..0,
    };
    for header in headers.iter_mut() {
        match kind(header.name) {
            Kind::Passes => continue,
            Kind::Proxy if from == Side::Peer => continue,
            Kind::Ours if from == Side::Peer => told.note(header),
            Kind::Ends | Kind::Proxy | Kind::Ours => {}
            Kind::Cookie if cookies.is_none() => {
                cookies = Some(header.value);
                continue;
            }
            Kind::Accept => {
                ask.json |= header.value.windows(4).any(|w| w == b"json");
                continue;
            }
            Kind::Host if host.is_none() => host = Some(plain_host(header.value)?),
            Kind::Length if ask.body.is_none() => ask.body = Some(length(header.value)?),
            Kind::Connection if ask.keep => ask.keep = stays(header.value)?,
            // Not for this way, or there a second time.
            Kind::Odd | Kind::Cookie | Kind::Host | Kind::Length | Kind::Connection => return None,
        }
        header.name = "";
    }
    let host = host?;
    if let Some(value) = cookies {
        let start = value.as_ptr().addr().saturating_sub(bytes.as_ptr().addr());
        ask.cookies = start..start + value.len();
    }
    Some(Plain {
        host,
        ask,
        target,
        headers,
        told,
    })
}

impl<'b> Told<'b> {
    fn note(&mut self, header: &Header<'b>) {
        let is = |name: &HeaderName| header.name.eq_ignore_ascii_case(name.as_str());
        if is(&REVISION) {
            self.revision = Some(header.value);
        } else if is(&PATIENCE) {
            self.patience = Some(header.value);
        } else if is(&ONLY) {
            self.only = Some(header.value);
        } else if is(&NOT) {
            self.not = Some(header.value);
        }
    }
}

impl<'b> Plain<'_, 'b> {
    pub(super) fn told(&self) -> Told<'b> {
        self.told
    }

    /// Writes the head of a peer's request as it goes on: all is said already.
    pub(super) fn write_on(&self, out: &mut Vec<u8>) {
        self.begin(out);
        self.end(out);
    }

    /// Writes the head as it goes on, with what only proxies may say.
    pub(super) fn write(&self, out: &mut Vec<u8>, (client, scheme): (&str, &str), id: &str) {
        self.begin(out);
        let host = self.host.as_bytes();
        let mut put = |parts: &[&[u8]]| parts.iter().for_each(|p| out.extend_from_slice(p));
        let (client, scheme) = (client.as_bytes(), scheme.as_bytes());
        let (open, close): (&[u8], &[u8]) = if client.contains(&b':') {
            (b"\r\nforwarded: for=\"[", b"]\";host=\"")
        } else {
            (b"\r\nforwarded: for=", b";host=\"")
        };
        put(&[b"x-request-id: ", id.as_bytes(), open, client, close, host]);
        put(&[b"\";proto=", scheme, b"\r\nx-forwarded-for: ", client]);
        put(&[b"\r\nx-forwarded-host: ", host]);
        put(&[b"\r\nx-forwarded-proto: ", scheme, b"\r\n"]);
        self.end(out);
    }

    fn begin(&self, out: &mut Vec<u8>) {
        let mut put = |parts: &[&[u8]]| parts.iter().for_each(|p| out.extend_from_slice(p));
        let method = self.ask.method.as_str().as_bytes();
        put(&[
            method,
            b" ",
            self.target.as_bytes(),
            b" HTTP/1.1\r\nhost: ",
            self.host.as_bytes(),
            b"\r\n",
        ]);
        for header in self.headers.iter().filter(|h| !h.name.is_empty()) {
            put(&[header.name.as_bytes(), b": ", header.value, b"\r\n"]);
        }
    }

    fn end(&self, out: &mut Vec<u8>) {
        let mut put = |parts: &[&[u8]]| parts.iter().for_each(|p| out.extend_from_slice(p));
        if let Some(body) = self.ask.body {
            let mut digits = itoa::Buffer::new();
            put(&[b"content-length: ", digits.format(body).as_bytes(), b"\r\n"]);
        }
        put(&[b"\r\n"]);
    }
}

enum Kind {
    Passes,
    /// Belongs to this hop.
    Ends,
    /// Only proxies may say it.
    Proxy,
    /// Between our own doors.
    Ours,
    Host,
    Length,
    Connection,
    Cookie,
    Accept,
    /// Not for this way.
    Odd,
}

/// By length first: most names are none of these.
fn kind(name: &str) -> Kind {
    let is = |other: &str| name.eq_ignore_ascii_case(other);
    let found = match name.len() {
        2 if is("te") => Kind::Odd,
        4 if is("host") => Kind::Host,
        6 if is("accept") => Kind::Accept,
        6 if is("cookie") => Kind::Cookie,
        6 if is("expect") => Kind::Odd,
        7 if is("upgrade") || is("trailer") => Kind::Odd,
        9 if is("forwarded") => Kind::Proxy,
        9 if is("x-real-ip") => Kind::Ends,
        10 if is("connection") => Kind::Connection,
        10 if is("keep-alive") => Kind::Ends,
        12 if is("x-request-id") => Kind::Proxy,
        14 | 17 | 19 | 22 if replay::is_told(name) => Kind::Proxy,
        14 if is("content-length") => Kind::Length,
        14 if is("http2-settings") => Kind::Odd,
        16 if is("proxy-connection") => Kind::Ends,
        17 if is("transfer-encoding") => Kind::Odd,
        18 if is("proxy-authenticate") => Kind::Ends,
        19 if is("proxy-authorization") => Kind::Ends,
        _ => Kind::Passes,
    };
    let ours = |prefix: &str| {
        let start = name.as_bytes().get(..prefix.len());
        start.is_some_and(|s| s.eq_ignore_ascii_case(prefix.as_bytes()))
    };
    match found {
        Kind::Passes if ours("x-forwarded-") => Kind::Proxy,
        Kind::Passes if ours("x-selvedge-") => Kind::Ours,
        found => found,
    }
}

fn plain_method(method: &str) -> Option<Method> {
    Some(match method {
        "GET" => Method::GET,
        "HEAD" => Method::HEAD,
        "POST" => Method::POST,
        "PUT" => Method::PUT,
        "DELETE" => Method::DELETE,
        "PATCH" => Method::PATCH,
        "OPTIONS" => Method::OPTIONS,
        _ => return None,
    })
}

/// Origin form, of characters that every parser lets pass.
fn is_plain_target(target: &str) -> bool {
    let fine = |b: u8| b.is_ascii_alphanumeric() || b"/?-._~!$&'()*+,;=:@%[]".contains(&b);
    target.starts_with('/') && target.bytes().all(fine)
}

/// The rules of `headers::host`.
fn plain_host(value: &[u8]) -> Option<&str> {
    let fine = |b: &u8| b.is_ascii_alphanumeric() || b"-._:[]~%".contains(b);
    let all = !value.is_empty() && value.iter().all(fine);
    std::str::from_utf8(value).ok().filter(|_| all)
}

/// Whether the connection stays, by a `Connection` header that says nothing else.
fn stays(value: &[u8]) -> Option<bool> {
    if value.eq_ignore_ascii_case(b"keep-alive") {
        Some(true)
    } else {
        value.eq_ignore_ascii_case(b"close").then_some(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What goes on of a plain request; `None` for an odd one.
    fn onward(head: &str) -> Option<String> {
        let mut slots = slots();
        match read(head.as_bytes(), &mut slots, Side::Client) {
            Reading::Plain(plain) => {
                let mut out = Vec::new();
                plain.write(&mut out, ("192.0.2.1", "http"), "ID");
                Some(String::from_utf8(out).unwrap())
            }
            Reading::Odd => None,
            Reading::Partial => panic!("partial: {head:?}"),
        }
    }

    const OURS: &str = "x-request-id: ID\r\nforwarded: for=192.0.2.1;host=\"web.test\";proto=http\r\n\
        x-forwarded-for: 192.0.2.1\r\nx-forwarded-host: web.test\r\nx-forwarded-proto: http\r\n";

    #[test]
    fn what_goes_on_of_a_plain_head() {
        let table = [
            ("GET /a?b=%20c HTTP/1.1", "", ""),
            (
                "GET / HTTP/1.1",
                "X-Own: 1\r\nAccept: */*\r\n",
                "X-Own: 1\r\nAccept: */*\r\n",
            ),
            ("GET / HTTP/1.1", "cookie: a=1\r\n", "cookie: a=1\r\n"),
            (
                "GET / HTTP/1.1",
                "connection: keep-alive\r\nkeep-alive: 5\r\n",
                "",
            ),
            (
                "GET / HTTP/1.1",
                "Connection: Close\r\nproxy-connection: x\r\n",
                "",
            ),
            (
                "GET / HTTP/1.1",
                "forwarded: for=6.6.6.6\r\nX-Forwarded-For: 6.6.6.6\r\nx-forwarded-port: 1\r\nx-real-ip: 6.6.6.6\r\n",
                "",
            ),
            (
                "GET / HTTP/1.1",
                "X-Selvedge-Revision: a/b\r\nX-Request-Id: mine\r\n",
                "",
            ),
            (
                "GET / HTTP/1.1",
                "Fly-Replay-Src: a\r\nselvedge-replay-failed: b\r\nselvedge-replay-src: c\r\n",
                "",
            ),
            (
                "GET / HTTP/1.1",
                "proxy-authorization: x\r\nx-y:  spaced \t\r\n",
                "x-y: spaced\r\n",
            ),
            (
                "DELETE / HTTP/1.1",
                "traceparent: 00-1-2-01\r\n",
                "traceparent: 00-1-2-01\r\n",
            ),
        ];
        for (line, sent, passed) in table {
            let got = onward(&format!("{line}\r\nHost: web.test\r\n{sent}\r\n"));
            let want = format!("{line}\r\nhost: web.test\r\n{passed}{OURS}\r\n");
            assert_eq!(got, Some(want), "{line} {sent:?}");
        }
        let post = onward("POST / HTTP/1.1\r\nhost: web.test\r\ncontent-length: 4\r\n\r\nbody");
        let want = format!("POST / HTTP/1.1\r\nhost: web.test\r\n{OURS}content-length: 4\r\n\r\n");
        assert_eq!(post, Some(want));
        let mut slots = slots();
        let Reading::Plain(plain) = read(
            b"GET / HTTP/1.1\r\nhost: h\r\n\r\n",
            &mut slots,
            Side::Client,
        ) else {
            panic!("a plain head");
        };
        let mut out = Vec::new();
        plain.write(&mut out, ("2001:db8::1", "https"), "ID");
        let out = String::from_utf8(out).unwrap();
        assert!(out.contains("for=\"[2001:db8::1]\";host=\"h\";"), "{out}");
        assert!(out.contains("x-forwarded-for: 2001:db8::1\r\n"), "{out}");
        assert!(out.contains(";proto=https\r\n") && out.contains("-proto: https\r\n"));
    }

    #[test]
    fn all_that_could_be_read_in_two_ways_is_odd() {
        let lines = [
            "GET / HTTP/1.0\r\nhost: h",
            "GET / HTTP/2.0\r\nhost: h",
            "PRI * HTTP/2.0",
            "GET http://h/ HTTP/1.1\r\nhost: h",
            "GET * HTTP/1.1\r\nhost: h",
            "GET /#x HTTP/1.1\r\nhost: h",
            "GET /\"<> HTTP/1.1\r\nhost: h",
            "CONNECT h:80 HTTP/1.1\r\nhost: h",
            "BREW / HTTP/1.1\r\nhost: h",
            "get / HTTP/1.1\r\nhost: h",
            "GET / HTTP/1.1",
            "GET / HTTP/1.1\r\nhost:",
            "GET / HTTP/1.1\r\nhost: h\r\nhost: h",
            "GET / HTTP/1.1\r\nhost: a b",
            "GET / HTTP/1.1\r\nhost: user@h",
            "GET / HTTP/1.1\r\nhost: h/x",
            "GET / HTTP/1.1\r\nhost : h",
            "GET / HTTP/1.1\nhost: h",
            "GET / HTTP/1.1\r\nhost: h\r\nx: a\r\n b",
            "GET / HTTP/1.1\r\nhost: h\r\nx: a\nb: c",
            "GET / HTTP/1.1\r\nhost: h\r\ncookie: a\r\ncookie: b",
            "GET / HTTP/1.1\r\nhost: h\r\nconnection: upgrade\r\nupgrade: x",
            "GET / HTTP/1.1\r\nhost: h\r\nconnection: x-private",
            "GET / HTTP/1.1\r\nhost: h\r\nconnection: close\r\nconnection: keep-alive",
            "GET / HTTP/1.1\r\nhost: h\r\nte: trailers",
            "POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 1\r\ncontent-length: 1",
            "POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 1, 1",
            "POST / HTTP/1.1\r\nhost: h\r\ncontent-length: +1",
            "POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 0x1",
            "POST / HTTP/1.1\r\nhost: h\r\ncontent-length: ",
            "POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 99999999999999999999",
            "POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked",
            "POST / HTTP/1.1\r\nhost: h\r\nTransfer-Encoding: xchunked\r\ncontent-length: 1",
            "POST / HTTP/1.1\r\nhost: h\r\nexpect: 100-continue\r\ncontent-length: 1",
        ];
        for line in lines {
            assert_eq!(onward(&format!("{line}\r\n\r\n")), None, "{line:?}");
        }
        let many = "x: 1\r\n".repeat(Bounds::CLIENT.headers + 1);
        assert_eq!(onward(&format!("GET / HTTP/1.1\r\n{many}\r\n")), None);
        let long = "y".repeat(Bounds::CLIENT.bytes);
        let long = format!("GET / HTTP/1.1\r\nhost: h\r\nx: {long}");
        let mut slots = slots();
        assert!(matches!(
            read(long.as_bytes(), &mut slots, Side::Client),
            Reading::Odd
        ));
    }

    #[test]
    fn a_head_is_waited_for_until_it_is_whole() {
        let head = "GET / HTTP/1.1\r\nhost: h\r\nx: y\r\n\r\n";
        for end in 0..head.len() {
            let mut slots = slots();
            let reading = read(&head.as_bytes()[..end], &mut slots, Side::Client);
            assert!(matches!(reading, Reading::Partial), "{end}");
        }
        let both = format!("{head}{head}");
        let mut slots = slots();
        let Reading::Plain(plain) = read(both.as_bytes(), &mut slots, Side::Client) else {
            panic!("a plain head");
        };
        assert_eq!(plain.ask.head, head.len(), "the next one is not its own");
        assert!(plain.ask.keep && plain.ask.body.is_none());
    }

    #[test]
    fn cookies_are_found_where_they_are() {
        let cookies = |bytes: &[u8]| {
            let mut slots = slots();
            let Reading::Plain(plain) = read(bytes, &mut slots, Side::Client) else {
                panic!("a plain head");
            };
            let found = bytes.get(plain.ask.cookies).unwrap_or_default();
            String::from_utf8(found.to_vec()).unwrap()
        };
        let with = b"GET / HTTP/1.1\r\nhost: h\r\nCookie:  a=1; b=2 \r\nx: y\r\n\r\n";
        assert_eq!(cookies(with), "a=1; b=2");
        assert_eq!(cookies(b"GET / HTTP/1.1\r\nhost: h\r\ncookie:\r\n\r\n"), "");
        assert_eq!(cookies(b"GET / HTTP/1.1\r\nhost: h\r\n\r\n"), "");
    }

    /// Pieces of heads, among them all that smuggling is done with.
    fn piece() -> impl proptest::strategy::Strategy<Value = String> {
        use proptest::prelude::*;
        let known = proptest::sample::select(vec![
            "host: h",
            "host: g",
            "Host:h",
            "content-length: 3",
            "Content-Length: 03",
            "content-length: 3, 3",
            "transfer-encoding: chunked",
            "Transfer-Encoding:\tchunked",
            "transfer-encoding : chunked",
            "connection: close",
            "connection: content-length",
            "connection: keep-alive",
            "x-selvedge-revision: a/b",
            "x-forwarded-for: 6.6.6.6",
            "x: \u{b}y",
            "x: a\rb",
            "x:",
            ": x",
            "x",
            " folded",
            "te: trailers",
            "cookie: a=b",
        ]);
        let end = proptest::sample::select(vec!["\r\n", "\r\n", "\r\n", "\n", "\r", ""]);
        (known, end).prop_map(|(line, end)| format!("{line}{end}"))
    }

    proptest::proptest! {
        #[test]
        fn what_is_plain_is_written_in_one_way_only(pieces in proptest::collection::vec(piece(), 0..6)) {
            let head = format!("POST /x HTTP/1.1\r\nhost: h\r\n{}\r\n", pieces.concat());
            let mut own = slots();
            if let Reading::Plain(plain) = read(head.as_bytes(), &mut own, Side::Client) {
                let mut out = Vec::new();
                plain.write(&mut out, ("192.0.2.1", "http"), "ID");
                let mut headers = [httparse::EMPTY_HEADER; 64];
                let mut again = Request::new(&mut headers);
                let parsed = again.parse(&out).unwrap();
                proptest::prop_assert!(parsed.is_complete() && parsed.unwrap() == out.len());
                let count = |name: &str| again.headers.iter().filter(|h| h.name.eq_ignore_ascii_case(name)).count();
                proptest::prop_assert_eq!(count("host"), 1);
                proptest::prop_assert_eq!(count("x-forwarded-for"), 1);
                proptest::prop_assert_eq!(count("content-length"), usize::from(plain.ask.body.is_some()));
                for never in ["transfer-encoding", "connection", "te", "x-selvedge-revision"] {
                    proptest::prop_assert_eq!(count(never), 0, "{}", never);
                }
                proptest::prop_assert_eq!(again.path, Some("/x"));
            }
        }

        #[test]
        fn nothing_breaks_it(bytes: Vec<u8>) {
            let mut own = slots();
            if let Reading::Plain(plain) = read(&bytes, &mut own, Side::Client) {
                proptest::prop_assert!(plain.ask.head <= bytes.len());
            }
        }
    }
}
