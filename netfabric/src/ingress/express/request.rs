//! Heads of requests that are plain: HTTP/1.1 in the one form in which everybody reads it alike.
//! Whatever is anything else (or wrong) is called odd, and goes to the general way, which knows
//! what to do with it. Nothing here forgives: what is accepted is rebuilt, never copied raw.

use std::mem::MaybeUninit;

use http::Method;
use httparse::{Header, ParserConfig, Request, Status};

use crate::ingress::door::MAX_HEAD_BYTES;
use crate::ingress::headers::MAX_HEADERS;

/// Room for the headers of one head.
pub(super) type Slots<'b> = [MaybeUninit<Header<'b>>; MAX_HEADERS];

pub(super) const fn slots<'b>() -> Slots<'b> {
    [const { MaybeUninit::uninit() }; MAX_HEADERS]
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
    target: &'b str,
    headers: &'h [Header<'b>],
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
}

/// Reads the head at the beginning of `bytes`.
pub(super) fn read<'h, 'b>(bytes: &'b [u8], slots: &'h mut Slots<'b>) -> Reading<'h, 'b> {
    let mut request = Request::new(&mut []);
    let parsed =
        ParserConfig::default().parse_request_with_uninit_headers(&mut request, bytes, slots);
    let head = match parsed {
        Ok(Status::Complete(head)) if head <= MAX_HEAD_BYTES => head,
        Ok(Status::Partial) if bytes.len() < MAX_HEAD_BYTES => return Reading::Partial,
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
    if !lines_end_well(&bytes[..head]) || !is_plain_target(target) {
        return Reading::Odd;
    }
    sift(method, target, head, headers).map_or(Reading::Odd, Reading::Plain)
}

/// Looks at each header; `None` when one is not plain.
fn sift<'h, 'b>(
    method: &str,
    target: &'b str,
    head: usize,
    headers: &'h mut [Header<'b>],
) -> Option<Plain<'h, 'b>> {
    let mut host = None;
    let mut cookies = 0;
    let mut ask = Ask {
        method: plain_method(method)?,
        head,
        body: None,
        keep: true,
        json: false,
    };
    for header in headers.iter_mut() {
        match kind(header.name) {
            Kind::Passes => continue,
            Kind::Odd => return None,
            Kind::Ends => {}
            Kind::Cookie if cookies == 0 => {
                cookies = 1;
                continue;
            }
            Kind::Accept => {
                ask.json |= header.value.windows(4).any(|w| w == b"json");
                continue;
            }
            Kind::Host if host.is_none() => host = Some(plain_host(header.value)?),
            Kind::Length if ask.body.is_none() => ask.body = Some(length(header.value)?),
            Kind::Connection if ask.keep => ask.keep = stays(header.value)?,
            Kind::Cookie | Kind::Host | Kind::Length | Kind::Connection => return None,
        }
        header.name = "";
    }
    let host = host?;
    Some(Plain {
        host,
        ask,
        target,
        headers,
    })
}

impl Plain<'_, '_> {
    /// Writes the head as it goes on, with what only proxies may say.
    pub(super) fn write(&self, out: &mut Vec<u8>, client: &str, id: &str) {
        let host = self.host.as_bytes();
        let mut put = |parts: &[&[u8]]| parts.iter().for_each(|p| out.extend_from_slice(p));
        let method = self.ask.method.as_str().as_bytes();
        put(&[
            method,
            b" ",
            self.target.as_bytes(),
            b" HTTP/1.1\r\nhost: ",
            host,
            b"\r\n",
        ]);
        for header in self.headers.iter().filter(|h| !h.name.is_empty()) {
            put(&[header.name.as_bytes(), b": ", header.value, b"\r\n"]);
        }
        let client = client.as_bytes();
        let (open, close): (&[u8], &[u8]) = if client.contains(&b':') {
            (b"\r\nforwarded: for=\"[", b"]\";host=\"")
        } else {
            (b"\r\nforwarded: for=", b";host=\"")
        };
        put(&[b"x-request-id: ", id.as_bytes(), open, client, close, host]);
        put(&[b"\";proto=http\r\nx-forwarded-for: ", client]);
        put(&[
            b"\r\nx-forwarded-host: ",
            host,
            b"\r\nx-forwarded-proto: http\r\n",
        ]);
        if let Some(body) = self.ask.body {
            let mut digits = itoa::Buffer::new();
            put(&[b"content-length: ", digits.format(body).as_bytes(), b"\r\n"]);
        }
        put(&[b"\r\n"]);
    }
}

enum Kind {
    Passes,
    /// Belongs to this hop, or is ours to say.
    Ends,
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
        9 if is("forwarded") || is("x-real-ip") => Kind::Ends,
        10 if is("connection") => Kind::Connection,
        10 if is("keep-alive") => Kind::Ends,
        12 if is("x-request-id") => Kind::Ends,
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
        Kind::Passes if ours("x-forwarded-") || ours("x-selvedge-") => Kind::Ends,
        found => found,
    }
}

/// No line of the head ends in a line feed alone.
fn lines_end_well(head: &[u8]) -> bool {
    memchr::memchr_iter(b'\n', head).all(|at| at > 0 && head[at - 1] == b'\r')
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

/// Digits and nothing else, and not so many that it could overflow.
pub(super) fn length(value: &[u8]) -> Option<u64> {
    let digits = (1..=18).contains(&value.len()) && value.iter().all(u8::is_ascii_digit);
    let digits = std::str::from_utf8(value).ok().filter(|_| digits);
    digits?.parse().ok()
}

/// Whether the connection stays, by a `Connection` header that says nothing else.
fn stays(value: &[u8]) -> Option<bool> {
    if value.eq_ignore_ascii_case(b"keep-alive") {
        Some(true)
    } else {
        value.eq_ignore_ascii_case(b"close").then_some(false)
    }
}
