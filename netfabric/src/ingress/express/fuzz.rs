//! The express way's part of `crate::fuzz`: heads are written anew, and must say what was read.

use http::Method;

use super::request::{self, Reading};
use super::response::{self, Answer, Framing, Recipient, Through};
use crate::ingress::chunks::Chunks;
use crate::ingress::door::MAX_HEAD_BYTES;
use crate::ingress::headers::{MAX_HEADERS, Side};
use crate::ingress::strict;

/// A head that we wrote may be longer than one that we read.
fn is_longer_than_read(head: &[u8]) -> bool {
    memchr::memchr_iter(b'\n', head).count() > MAX_HEADERS || head.len() >= MAX_HEAD_BYTES
}

/// What goes on of a plain head is one plain head that asks for the same, and the other way's reader
/// sees its end where this one does.
pub(crate) fn request(bytes: &[u8]) {
    let mut slots = request::slots();
    let Reading::Plain(plain) = request::read(bytes, &mut slots, Side::Client) else {
        return;
    };
    let framed = strict::framed(bytes);
    assert_eq!(framed, Some((plain.ask.head, plain.ask.body.unwrap_or(0))));
    let mut out = Vec::new();
    plain.write(&mut out, ("192.0.2.1", "http"), "ID");
    if is_longer_than_read(&out) {
        return;
    }
    let mut slots = request::slots();
    let Reading::Plain(again) = request::read(&out, &mut slots, Side::Client) else {
        panic!(
            "what goes on is not plain: {:?}",
            String::from_utf8_lossy(&out)
        );
    };
    assert_eq!(again.ask.head, out.len());
    assert_eq!((again.host, again.target), (plain.host, plain.target));
    let said = |ask: &request::Ask| (ask.method.clone(), ask.body);
    assert_eq!(said(&again.ask), said(&plain.ask));
}

/// What a client gets of an answer's head says the same, and its body is the same however it came.
pub(crate) fn response(bytes: &[u8]) {
    for asked in [Method::GET, Method::HEAD] {
        let mut slots = request::slots();
        let Ok(Some(answer)) = response::read(bytes, &mut slots, &asked, Side::Client) else {
            continue;
        };
        assert!(answer.head <= bytes.len());
        if !answer.is_interim() {
            head(&answer, &asked);
            let body = &bytes[answer.head..];
            let whole = passed(answer.framing, body, body.len().max(1));
            assert_eq!(passed(answer.framing, body, 3), whole);
        }
    }
}

fn head(answer: &Answer<'_, '_>, asked: &Method) {
    let mut out = Vec::new();
    answer.write(
        &mut out,
        Recipient::Client {
            id: "ID",
            alternative: b"",
            cookie: None,
        },
        false,
    );
    if is_longer_than_read(&out) {
        return;
    }
    let mut slots = request::slots();
    let again = response::read(&out, &mut slots, asked, Side::Peer);
    let Ok(Some(again)) = again else {
        panic!("{again:?}: {:?}", String::from_utf8_lossy(&out));
    };
    let framing = match answer.framing {
        Framing::Close => Framing::Chunked,
        framing => framing,
    };
    let want = (answer.status, out.len(), framing);
    assert_eq!((again.status, again.head, again.framing), want);
}

/// A body as the client understands it; how much of the bytes was its; and whether it is whole.
fn passed(framing: Framing, body: &[u8], step: usize) -> Option<(Vec<u8>, usize, bool)> {
    let mut through = Through::new(framing);
    let (mut out, mut used) = (Vec::new(), 0);
    for part in body.chunks(step) {
        used += through.pass(part, &mut out).ok()?;
    }
    let whole = through.end(&mut out);
    if matches!(framing, Framing::Empty(_) | Framing::Length(_)) {
        return Some((out, used, whole));
    }
    let (mut chunks, mut data) = (Chunks::default(), Vec::new());
    let taken = chunks.take(&out, |d| data.extend_from_slice(d));
    assert_eq!((taken, chunks.is_over()), (Ok(out.len()), whole));
    Some((data, used, whole))
}
