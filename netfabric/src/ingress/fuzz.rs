//! The front door's part of `crate::fuzz`: what clients and load balancers say, and what instances answer.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::executor::block_on;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf, join, sink};

use super::chunks::{Chunks, Malformed};
use super::headers::Bounds;
use super::{calm, introduced as introduction, passage, strict as reader};

pub(crate) use super::express::fuzz::{request, response};

/// More takes time and reaches nothing new: what has a size is bounded at any size.
const MOST: usize = 8 * 1024;

fn texts(all: &[&str]) -> Vec<Vec<u8>> {
    all.iter().map(|text| text.as_bytes().to_vec()).collect()
}

pub(crate) fn requests() -> Vec<Vec<u8>> {
    texts(&[
        "GET /a?b=c HTTP/1.1\r\nhost: web.test\r\naccept: application/json\r\ncookie: a=1\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: web.test:80\r\ncontent-length: 3\r\nconnection: close\r\n\r\nboxGET / HTTP/1.1\r\n",
        "POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n3;x=y\r\nbox\r\n0\r\nx: 1\r\n\r\nGET / HTTP/1.1\r\nhost: h\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: h\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n\n\nanything",
    ])
}

pub(crate) fn responses() -> Vec<Vec<u8>> {
    texts(&[
        "HTTP/1.1 200 OK\r\ncontent-length: 3\r\ndate: x\r\nx-own: 1\r\n\r\nbox",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nconnection: x-own\r\nx-own: 1\r\n\r\n2\r\nbo\r\n1\r\nx\r\n0\r\n\r\n",
        "HTTP/1.0 404 No\r\n\r\nuntil the end",
        "HTTP/1.1 304 Same\r\ncontent-length: 10\r\n\r\n",
    ])
}

pub(crate) fn codings() -> Vec<Vec<u8>> {
    texts(&[
        "3\r\nbox\r\n0\r\n\r\n",
        "1;ext=\"x\"\r\n.\r\n00\r\nx-sum: 1\r\n\r\nmore",
    ])
}

/// A body is the same however it is cut.
pub(crate) fn chunks(bytes: &[u8]) {
    let take = |step: usize| {
        let mut chunks = Chunks::default();
        let (mut data, mut used) = (Vec::new(), 0);
        for part in bytes.chunks(step) {
            used += chunks.take(part, |d| data.extend_from_slice(d))?;
        }
        Ok::<_, Malformed>((data, used, chunks.is_over()))
    };
    let whole = take(bytes.len().max(1));
    for step in [1, 3] {
        assert_eq!(take(step), whole, "in steps of {step}");
    }
    if let Ok((data, used, _)) = whole {
        assert!(data.len() <= used && used <= bytes.len());
    }
}

/// Bytes that come in steps.
struct Steps<'a>(&'a [u8], usize);

impl AsyncRead for Steps<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let step = self.1.min(self.0.len()).min(buf.remaining());
        let (now, later) = self.0.split_at(step);
        buf.put_slice(now);
        self.0 = later;
        Poll::Ready(Ok(()))
    }
}

/// What hyper gets is what came, or a refusal after the beginning of it, however it came.
pub(crate) fn strict(bytes: &[u8]) {
    let bytes = &bytes[..bytes.len().min(MOST)];
    let passed = |step: usize| {
        let stream = join(Steps(bytes, step), sink());
        let mut all = Vec::new();
        let read = block_on(reader::Strict::new(stream, Bounds::CLIENT).read_to_end(&mut all));
        read.map(|_| all).map_err(|error| error.kind())
    };
    let whole = passed(MOST);
    for step in [5, 100] {
        assert_eq!(passed(step), whole, "in steps of {step}");
    }
    if let Ok(all) = whole {
        assert!(bytes.starts_with(&all) || reader::ends_refused(&all));
    }
}

pub(crate) fn introductions() -> Vec<Vec<u8>> {
    let address = |text: &str| text.parse().ok();
    let pairs = [
        ("192.0.2.1:4000", "10.0.0.1:80"),
        ("[2001:db8::1]:4000", "[2001:db8::2]:443"),
    ];
    let written = pairs.into_iter().filter_map(|(client, server)| {
        Some(introduction::write(address(client)?, address(server)?))
    });
    let said = texts(&[
        "PROXY TCP4 192.0.2.1 10.0.0.1 8080 80\r\nGET /",
        "PROXY UNKNOWN\r\n",
    ]);
    let own = [introduction::OWN.to_vec()];
    written.chain(said).chain(own).collect()
}

/// It ends where it says, and not before.
pub(crate) fn introduced(bytes: &[u8]) {
    let Ok(Some(read)) = introduction::read(bytes) else {
        return;
    };
    assert!(read.length <= bytes.len());
    assert_eq!(introduction::read(&bytes[..read.length]), Ok(Some(read)));
    for short in [0, read.length / 2, read.length - 1] {
        assert_eq!(introduction::read(&bytes[..short]), Ok(None), "{short}");
    }
}

pub(crate) fn greetings() -> Vec<Vec<u8>> {
    let greeting = |name: &'static str| {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .ok()?
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        let name = ServerName::try_from(name).ok()?;
        let mut client = ClientConnection::new(Arc::new(config), name).ok()?;
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).ok()?;
        Some(bytes)
    };
    ["db.example.com", "192.0.2.1"]
        .into_iter()
        .filter_map(greeting)
        .collect()
}

/// Names that are asked for are looked up in lower case.
pub(crate) fn hello(bytes: &[u8]) {
    if let Some(name) = passage::hello::asked_for(bytes) {
        assert!(
            !name.is_empty() && !name.bytes().any(|b| b.is_ascii_uppercase()),
            "{name}"
        );
    }
}

pub(crate) fn frame_seeds() -> Vec<Vec<u8>> {
    let settings = b"\0\0\x06\x04\0\0\0\0\0\0\x04\0\0\xff\xff".to_vec();
    let request = b"\0\0\x03\x01\x05\0\0\0\x01\x82\x86\x84".to_vec();
    let empty = b"\0\0\0\0\0\0\0\0\x01".to_vec();
    vec![[settings, request, empty].concat()]
}

/// Heads are where they are, however the bytes come.
pub(crate) fn frames(bytes: &[u8]) {
    let whole = calm::heads(bytes, bytes.len().max(1));
    for step in [1, 7] {
        assert_eq!(calm::heads(bytes, step), whole, "in steps of {step}");
    }
}
