//! Heads of instances' answers, read strictly and written anew; and the body's way through,
//! whatever its framing is on either side.

use http::{HeaderName, Method, StatusCode};
use httparse::{Header, ParserConfig, Response, Status};

use super::request::Slots;
use crate::ingress::chunks::{Chunks, Malformed};
use crate::ingress::headers::{BROKEN, INSTANCE, REFUSED, Side};
use crate::ingress::replay::{self, Asked};
use crate::ingress::strict::length;

/// Why an answer is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Garbled {
    #[error("its head is malformed")]
    Head,
    #[error("its head is too large")]
    Large,
    #[error("its framing is ambiguous")]
    Framing,
    #[error("it switches protocols unasked")]
    Switch,
    #[error(transparent)]
    Chunks(#[from] Malformed),
}

/// An answer's head; headers that do not go on have no name any more.
#[derive(Debug)]
pub(super) struct Answer<'h, 'b> {
    pub(super) status: u16,
    /// Its length in the instance's bytes.
    pub(super) head: usize,
    pub(super) framing: Framing,
    /// The connection can be used again when the body is through.
    pub(super) keep: bool,
    /// Of another node's door only: an instance may say it too, and is not believed.
    pub(super) told: Told<'b>,
    has_date: bool,
    has_alternative: bool,
    /// What is said in the place of an answer.
    order: Option<(usize, &'b [u8])>,
    headers: &'h [Header<'b>],
}

/// What another node's door says of its answer.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Told<'b> {
    /// Nothing reached an instance, and why.
    pub(super) refused: Option<&'b [u8]>,
    /// An instance there broke off, and how.
    pub(super) broken: Option<&'b [u8]>,
    pub(super) instance: Option<&'b [u8]>,
}

impl<'b> Told<'b> {
    fn note(&mut self, header: &Header<'b>) {
        let is = |name: &HeaderName| header.name.eq_ignore_ascii_case(name.as_str());
        if is(&INSTANCE) {
            self.instance = Some(header.value);
        } else if is(&REFUSED) {
            self.refused = Some(header.value);
        } else if is(&BROKEN) {
            self.broken = Some(header.value);
        }
    }
}

/// Whom an answer goes to.
#[derive(Debug, Clone, Copy)]
pub(super) enum Recipient<'a> {
    /// The client that asked, under this id. Where the instance says nothing of such, it is told of another way
    /// to come (`Alt-Svc`).
    Client {
        id: &'a str,
        alternative: &'a [u8],
        /// What it is told of a split, with the answer.
        cookie: Option<&'a str>,
    },
    /// Another node's door, which is told which instance answered.
    Peer(&'a str),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    /// No body; this is what its length would be, if said.
    Empty(Option<u64>),
    Length(u64),
    Chunked,
    /// Until the connection ends.
    Close,
}

/// Reads the head at the beginning of `bytes`; `None` when it is not whole yet.
pub(super) fn read<'h, 'b>(
    bytes: &'b [u8],
    slots: &'h mut Slots<'b>,
    asked: &Method,
    from: Side,
) -> Result<Option<Answer<'h, 'b>>, Garbled> {
    let mut response = Response::new(&mut []);
    let parsed = ParserConfig::default()
        .parse_response_with_uninit_headers(&mut response, bytes, slots)
        .map_err(|_| Garbled::Head)?;
    let head = match parsed {
        Status::Complete(head) if head <= from.bounds().bytes => head,
        Status::Partial if bytes.len() < from.bounds().bytes => return Ok(None),
        _ => return Err(Garbled::Large),
    };
    if response.headers.len() > from.bounds().headers {
        return Err(Garbled::Large);
    }
    let status = response.code.ok_or(Garbled::Head)?;
    if status < 100 {
        return Err(Garbled::Head);
    }
    if status == StatusCode::SWITCHING_PROTOCOLS {
        return Err(Garbled::Switch);
    }
    let old = response.version != Some(1);
    let said = sift(response.headers)?;
    let bodiless = *asked == Method::HEAD || status < 200 || matches!(status, 204 | 304);
    let framing = match (said.chunked, said.length) {
        _ if bodiless => Framing::Empty(said.length.filter(|_| status != 204)),
        (true, _) if old => return Err(Garbled::Framing),
        (true, _) => Framing::Chunked,
        (false, Some(length)) => Framing::Length(length),
        (false, None) => Framing::Close,
    };
    let doubtful = said.chunked && said.length.is_some();
    let keep = !old && !said.close && !doubtful && framing != Framing::Close;
    Ok(Some(Answer {
        status,
        head,
        framing,
        keep,
        told: said.told,
        has_date: said.has_date,
        has_alternative: said.has_alternative,
        order: said.order,
        headers: response.headers,
    }))
}

/// What headers say of the message itself.
#[expect(clippy::struct_excessive_bools, reason = "one for each header")]
#[derive(Default)]
struct Said<'b> {
    told: Told<'b>,
    length: Option<u64>,
    chunked: bool,
    close: bool,
    has_date: bool,
    has_alternative: bool,
    order: Option<(usize, &'b [u8])>,
}

impl<'b> Said<'b> {
    /// Whether the header is an order: of two, ours counts before its alias.
    fn orders(&mut self, name: &str, value: &'b [u8]) -> bool {
        let by = replay::is_order(name);
        if let Some(by) = by
            && self.order.is_none_or(|(before, _)| by < before)
        {
            self.order = Some((by, value));
        }
        by.is_some()
    }
}

fn sift<'b>(headers: &mut [Header<'b>]) -> Result<Said<'b>, Garbled> {
    let mut said = Said::default();
    // Those that `Connection` names end here too; there are hardly ever any.
    let mut named: Vec<String> = Vec::new();
    for header in headers.iter_mut() {
        let is = |other: &str| header.name.eq_ignore_ascii_case(other);
        let ends = match header.name.len() {
            2 => is("te"),
            4 if is("date") => {
                said.has_date = true;
                false
            }
            7 if is("alt-svc") => {
                said.has_alternative = true;
                false
            }
            7 => is("upgrade") || is("trailer"),
            10 if is("connection") => {
                said.close |= connection(header.value, &mut named);
                true
            }
            10 if is("keep-alive") => true,
            10 | 15 => said.orders(header.name, header.value),
            12 => is("x-request-id"),
            14 if is("content-length") => {
                let length = length(header.value).ok_or(Garbled::Framing)?;
                if said.length.is_some_and(|l| l != length) {
                    return Err(Garbled::Framing);
                }
                said.length = Some(length);
                true
            }
            16 => is("proxy-connection"),
            17 if is("transfer-encoding") => {
                if said.chunked || !header.value.eq_ignore_ascii_case(b"chunked") {
                    return Err(Garbled::Framing);
                }
                said.chunked = true;
                true
            }
            18 => is("proxy-authenticate"),
            19 => is("proxy-authorization"),
            _ => false,
        };
        let start = header.name.as_bytes().get(..11);
        let ours = start.is_some_and(|s| s.eq_ignore_ascii_case(b"x-selvedge-"));
        if ours {
            said.told.note(header);
        }
        if ends || ours {
            header.name = "";
        }
    }
    for header in headers.iter_mut().filter(|_| !named.is_empty()) {
        if named.iter().any(|n| n.eq_ignore_ascii_case(header.name)) {
            header.name = "";
        }
    }
    Ok(said)
}

/// Whether a `Connection` header says `close`; what else it names is added to `named`.
fn connection(value: &[u8], named: &mut Vec<String>) -> bool {
    let mut close = false;
    let words = value.split(|b| *b == b',').map(<[u8]>::trim_ascii);
    for word in words.filter_map(|w| std::str::from_utf8(w).ok()) {
        if word.eq_ignore_ascii_case("close") {
            close = true;
        } else if !word.is_empty() && !word.eq_ignore_ascii_case("keep-alive") {
            named.push(word.to_owned());
        }
    }
    close
}

impl Answer<'_, '_> {
    pub(super) fn is_interim(&self) -> bool {
        self.status < 200
    }

    /// Where the instance has the request sent in the place of answering it.
    pub(super) fn asked(&self) -> Option<Asked> {
        let (by, order) = self.order?;
        let order = String::from_utf8_lossy(order).into_owned();
        Some(Asked { by, order })
    }

    /// Writes the head as the recipient gets it.
    pub(super) fn write(&self, out: &mut Vec<u8>, to: Recipient<'_>, close: bool) {
        status_line(out, self.status);
        let mut put = |parts: &[&[u8]]| parts.iter().for_each(|p| out.extend_from_slice(p));
        for header in self.headers.iter().filter(|h| !h.name.is_empty()) {
            put(&[header.name.as_bytes(), b": ", header.value, b"\r\n"]);
        }
        match self.framing {
            Framing::Length(length) | Framing::Empty(Some(length)) => {
                let mut digits = itoa::Buffer::new();
                put(&[
                    b"content-length: ",
                    digits.format(length).as_bytes(),
                    b"\r\n",
                ]);
            }
            Framing::Chunked | Framing::Close => put(&[b"transfer-encoding: chunked\r\n"]),
            Framing::Empty(None) => {}
        }
        match to {
            Recipient::Client {
                id,
                alternative,
                cookie,
            } => {
                if let Some(cookie) = cookie {
                    put(&[b"set-cookie: ", cookie.as_bytes(), b"\r\n"]);
                }
                put(&[b"x-request-id: ", id.as_bytes(), b"\r\n"]);
                if !self.has_alternative && !alternative.is_empty() {
                    put(&[b"alt-svc: ", alternative, b"\r\n"]);
                }
            }
            Recipient::Peer(instance) => {
                let name = INSTANCE;
                let name = name.as_str().as_bytes();
                put(&[name, b": ", instance.as_bytes(), b"\r\n"]);
                if let Some((by, order)) = self.order {
                    put(&[replay::order_name(by).as_bytes(), b": ", order, b"\r\n"]);
                }
            }
        }
        last_lines(out, !self.has_date, close);
    }
}

pub(super) fn status_line(out: &mut Vec<u8>, status: u16) {
    let mut digits = itoa::Buffer::new();
    let reason = StatusCode::from_u16(status).ok();
    let reason = reason.and_then(|s| s.canonical_reason()).unwrap_or("");
    for part in ["HTTP/1.1 ", digits.format(status), " ", reason, "\r\n"] {
        out.extend_from_slice(part.as_bytes());
    }
}

/// The date when it is wanted, whether the connection ends, and the end of the head.
pub(super) fn last_lines(out: &mut Vec<u8>, date: bool, close: bool) {
    if date {
        super::scratch::put_date(out);
    }
    if close {
        out.extend_from_slice(b"connection: close\r\n");
    }
    out.extend_from_slice(b"\r\n");
}

/// A body on its way through.
#[derive(Debug)]
pub(super) enum Through {
    Length(u64),
    Chunked(Chunks),
    Close,
    Over,
}

impl Through {
    pub(super) fn new(framing: Framing) -> Self {
        match framing {
            Framing::Empty(_) | Framing::Length(0) => Self::Over,
            Framing::Length(length) => Self::Length(length),
            Framing::Chunked => Self::Chunked(Chunks::default()),
            Framing::Close => Self::Close,
        }
    }

    pub(super) fn is_over(&self) -> bool {
        matches!(self, Self::Over)
    }

    /// Writes what is the body's of `bytes` in the client's framing; returns how many are.
    pub(super) fn pass(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<usize, Malformed> {
        let used = match self {
            Self::Length(left) => {
                let most = usize::try_from(*left).unwrap_or(usize::MAX);
                let mine = most.min(bytes.len());
                out.extend_from_slice(&bytes[..mine]);
                *left -= mine as u64;
                if *left > 0 {
                    return Ok(mine);
                }
                mine
            }
            Self::Chunked(chunks) => {
                let used = chunks.take(bytes, |data| chunk(out, data))?;
                if !chunks.is_over() {
                    return Ok(used);
                }
                out.extend_from_slice(LAST_CHUNK);
                used
            }
            Self::Close => {
                chunk(out, bytes);
                return Ok(bytes.len());
            }
            Self::Over => return Ok(0),
        };
        *self = Self::Over;
        Ok(used)
    }

    /// The connection ended. Says whether the body had, too.
    pub(super) fn end(&mut self, out: &mut Vec<u8>) -> bool {
        if matches!(self, Self::Close) {
            out.extend_from_slice(LAST_CHUNK);
            *self = Self::Over;
        }
        self.is_over()
    }
}

const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

fn chunk(out: &mut Vec<u8>, data: &[u8]) {
    use std::io::Write as _;
    if data.is_empty() {
        return;
    }
    // Writing to memory does not fail.
    let _ = write!(out, "{:x}\r\n", data.len());
    out.extend_from_slice(data);
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::super::request::slots;
    use super::*;

    type Want = Result<(Framing, bool), Garbled>;

    #[test]
    fn framing_is_read_strictly() {
        let ok = "HTTP/1.1 200 OK";
        let table: &[(&str, &str, Want)] = &[
            (ok, "content-length: 5", Ok((Framing::Length(5), true))),
            (
                ok,
                "Content-Length: 5\r\ncontent-length: 5",
                Ok((Framing::Length(5), true)),
            ),
            (
                ok,
                "content-length: 5\r\ncontent-length: 6",
                Err(Garbled::Framing),
            ),
            (ok, "content-length: 5, 5", Err(Garbled::Framing)),
            (ok, "content-length: -5", Err(Garbled::Framing)),
            (
                ok,
                "transfer-encoding: chunked",
                Ok((Framing::Chunked, true)),
            ),
            (
                ok,
                "transfer-encoding: gzip, chunked",
                Err(Garbled::Framing),
            ),
            (
                ok,
                "transfer-encoding: chunked\r\ntransfer-encoding: chunked",
                Err(Garbled::Framing),
            ),
            (
                ok,
                "transfer-encoding: chunked\r\ncontent-length: 5",
                Ok((Framing::Chunked, false)),
            ),
            (
                ok,
                "connection: close\r\ncontent-length: 5",
                Ok((Framing::Length(5), false)),
            ),
            (
                ok,
                "connection: keep-alive, Close\r\ncontent-length: 5",
                Ok((Framing::Length(5), false)),
            ),
            (ok, "x: y", Ok((Framing::Close, false))),
            (
                "HTTP/1.0 200 OK",
                "content-length: 5",
                Ok((Framing::Length(5), false)),
            ),
            (
                "HTTP/1.0 200 OK",
                "transfer-encoding: chunked",
                Err(Garbled::Framing),
            ),
            ("HTTP/1.1 204 No", "x: y", Ok((Framing::Empty(None), true))),
            (
                "HTTP/1.1 204 No",
                "content-length: 5",
                Ok((Framing::Empty(None), true)),
            ),
            (
                "HTTP/1.1 304 No",
                "content-length: 5",
                Ok((Framing::Empty(Some(5)), true)),
            ),
            (
                "HTTP/1.1 103 Hints",
                "link: x",
                Ok((Framing::Empty(None), true)),
            ),
            ("HTTP/1.1 101 Switch", "upgrade: x", Err(Garbled::Switch)),
            ("HTTP/1.1 099 Odd", "x: y", Err(Garbled::Head)),
            ("HTTP/2.0 200 OK", "x: y", Err(Garbled::Head)),
            ("ICY 200 OK", "x: y", Err(Garbled::Head)),
        ];
        for (line, headers, want) in table {
            let head = format!("{line}\r\n{headers}\r\n\r\n");
            let mut slots = slots();
            let answer = read(head.as_bytes(), &mut slots, &Method::GET, Side::Client);
            let got = answer.map(|a| a.map(|a| (a.framing, a.keep)).unwrap());
            assert_eq!(got, *want, "{head:?}");
        }
        let head = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n";
        let mut slots = slots();
        let answer = read(head, &mut slots, &Method::HEAD, Side::Client)
            .unwrap()
            .unwrap();
        assert_eq!(answer.framing, Framing::Empty(Some(5)));
    }

    #[test]
    fn what_goes_on_of_an_answer() {
        let head = "HTTP/1.1 201 Whatever\r\nDate: today\r\nConnection: x-hop, keep-alive\r\nX-Hop: 1\r\n\
            keep-alive: 5\r\nx-selvedge-refused: a lie\r\nx-request-id: another\r\nset-cookie: a\r\n\
            set-cookie: b\r\ntrailer: x\r\nContent-Length: 007\r\n\r\n";
        let mut slots = slots();
        let answer = read(head.as_bytes(), &mut slots, &Method::GET, Side::Client);
        let mut out = Vec::new();
        let to = Recipient::Client {
            id: "ID",
            alternative: b"",
            cookie: Some("c"),
        };
        answer.unwrap().unwrap().write(&mut out, to, true);
        let want = "HTTP/1.1 201 Created\r\nDate: today\r\nset-cookie: a\r\nset-cookie: b\r\n\
            content-length: 7\r\nset-cookie: c\r\nx-request-id: ID\r\nconnection: close\r\n\r\n";
        assert_eq!(String::from_utf8(out).unwrap(), want);
    }

    #[test]
    fn an_order_is_read_and_does_not_go_on() {
        let table = [
            ("fly-replay: region=a", Some((1, "region=a"))),
            ("Selvedge-Replay: region=b", Some((0, "region=b"))),
            (
                "fly-replay: region=a\r\nselvedge-replay: region=b",
                Some((0, "region=b")),
            ),
            (
                "selvedge-replay: region=b\r\nFly-Replay: region=a",
                Some((0, "region=b")),
            ),
            ("fly-replays: region=a", None),
        ];
        for (headers, want) in table {
            let head = format!("HTTP/1.1 200 OK\r\n{headers}\r\ncontent-length: 0\r\n\r\n");
            let mut slots = slots();
            let answer = read(head.as_bytes(), &mut slots, &Method::GET, Side::Client);
            let answer = answer.unwrap().unwrap();
            let asked = answer.asked().map(|asked| (asked.by, asked.order));
            assert_eq!(asked, want.map(|(by, order)| (by, order.to_owned())));
            let mut out = Vec::new();
            let to = Recipient::Client {
                id: "ID",
                alternative: b"",
                cookie: None,
            };
            answer.write(&mut out, to, false);
            let out = String::from_utf8(out).unwrap();
            assert!(want.is_none() || !out.contains("region"), "{out}");
        }
    }

    #[test]
    fn a_body_ends_where_its_framing_says() {
        let table: &[(Framing, &[u8], &str, usize)] = &[
            (Framing::Length(3), b"abcd", "abc", 3),
            (
                Framing::Chunked,
                b"2\r\nab\r\n0\r\n\r\nHTTP",
                "2\r\nab\r\n0\r\n\r\n",
                12,
            ),
            (Framing::Empty(Some(3)), b"abc", "", 0),
        ];
        for (framing, bytes, want, used) in table {
            let (mut through, mut out) = (Through::new(*framing), Vec::new());
            assert_eq!(through.pass(bytes, &mut out), Ok(*used));
            assert!(through.is_over());
            assert_eq!(String::from_utf8(out).unwrap(), *want);
        }
        let (mut through, mut out) = (Through::new(Framing::Close), Vec::new());
        through.pass(b"ab", &mut out).unwrap();
        assert!(!through.is_over() && through.end(&mut out));
        assert_eq!(out, b"2\r\nab\r\n0\r\n\r\n");
        let mut through = Through::new(Framing::Length(3));
        through.pass(b"ab", &mut out).unwrap();
        assert!(!through.end(&mut out), "it ended early");
    }
}
