//! `image push`: an OCI layout to the node, blob by blob, as a registry's client does it. What the
//! node has already does not move.

use std::io::Read;

use bytes::Bytes;
use futures::stream;
use http::Method;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use netfabric::wire::api::HeldImage;
use tokio::sync::mpsc;

use super::layout::{Descriptor, Found, Layout};
use super::sentence;
use crate::client::{Body, encoded};
use crate::failure::Failure;
use crate::output;
use crate::session::Session;

/// How much of a file is read at a time.
const CHUNK: usize = 256 * 1024;
/// Pieces between the disk and the node.
const AHEAD: usize = 4;

/// A name, taken apart as Docker does; without a registry it is nobody's but the fleet's.
#[derive(Debug, PartialEq, Eq)]
struct Name<'a> {
    registry: &'a str,
    repository: &'a str,
    tag: &'a str,
}

impl<'a> Name<'a> {
    fn parse(text: &'a str) -> Result<Self, Failure> {
        if text.contains('@') {
            let message = format!("{text} names a digest: an image is pushed under a tag");
            return Err(Failure::usage(message).hint("for instance app:1"));
        }
        let is_host = |s: &str| s == "localhost" || s.contains(['.', ':']);
        let (registry, rest) = match text.split_once('/') {
            Some((first, rest)) if is_host(first) => (first, rest),
            _ => ("localhost", text),
        };
        let (repository, tag) = rest.rsplit_once(':').unwrap_or((rest, "latest"));
        Ok(Self {
            registry,
            repository,
            tag,
        })
    }

    fn blobs(&self) -> String {
        format!("/v2/{}/blobs", self.repository)
    }
}

pub(super) async fn push(
    source: &std::path::Path,
    reference: &str,
    platform: &str,
    session: &Session,
) -> anyhow::Result<()> {
    let name = Name::parse(reference)?;
    let layout = Layout::open(source)?;
    let found = layout.image(platform)?;
    let (mut sent, mut bytes) = (0, 0);
    for blob in &found.blobs {
        if holds(session, &name, blob).await? {
            continue;
        }
        let size = output::bytes(blob.size);
        session
            .out
            .progress(&format!("sending {} {size}", blob.digest));
        send(session, &name, blob, layout.blob(blob)?).await?;
        sent += 1;
        bytes += blob.size;
    }
    let held = keep(session, &name, found).await?;
    let moved = output::bytes(bytes);
    session.out.progress(&format!("sent {sent} blobs, {moved}"));
    session.out.text_or(
        &held,
        || format!("image/{}", held.reference),
        |_| sentence(&held),
    )
}

/// A head costs nothing; most of a new version is there.
async fn holds(session: &Session, name: &Name<'_>, blob: &Descriptor) -> anyhow::Result<bool> {
    let path = format!("{}/{}", name.blobs(), blob.digest);
    let answer = ask(session, Method::HEAD, &path, name, ("", empty())).await?;
    Ok(answer.is_some())
}

async fn send(
    session: &Session,
    name: &Name<'_>,
    blob: &Descriptor,
    from: Box<dyn Read + Send>,
) -> anyhow::Result<()> {
    let path = format!("{}/uploads/?digest={}", name.blobs(), encoded(&blob.digest));
    let body = ("application/octet-stream", streamed(from));
    let answer = ask(session, Method::POST, &path, name, body).await?;
    answer.ok_or_else(too_old)?;
    Ok(())
}

/// Names what was sent; the node unpacks and verifies it before it answers.
async fn keep(session: &Session, name: &Name<'_>, found: Found) -> anyhow::Result<HeldImage> {
    let path = format!("/v2/{}/manifests/{}", name.repository, name.tag);
    let manifest = Full::new(Bytes::from(found.manifest)).map_err(|never| match never {});
    let body = (found.media_type.as_str(), manifest.boxed_unsync());
    let answer = ask(session, Method::PUT, &path, name, body).await?;
    let digest = answer.ok_or_else(too_old)?;
    let images = super::list(session).await?;
    let image = images.iter().find(|image| image.digest == digest);
    Ok(HeldImage {
        reference: format!("{}/{}:{}", name.registry, name.repository, name.tag),
        bytes: image.map_or(0, |image| image.bytes),
        digest,
    })
}

/// What was made, by its digest; `None` when the node has no such thing.
async fn ask(
    session: &Session,
    method: Method,
    path: &str,
    name: &Name<'_>,
    body: (&str, Body),
) -> Result<Option<String>, Failure> {
    let client = &session.client;
    let answer = client.distribution(method, path, name.registry, body).await;
    answer.map_err(Failure::from)
}

fn too_old() -> Failure {
    Failure::usage("the node takes no pushes over its API")
        .hint("compare the versions: selvedge version")
}

fn empty() -> Body {
    let never = |never: std::convert::Infallible| match never {};
    Full::new(Bytes::new()).map_err(never).boxed_unsync()
}

/// A body that is read while it is sent, on a thread that may wait for the disk.
fn streamed(mut from: Box<dyn Read + Send>) -> Body {
    let (pieces, arriving) = mpsc::channel(AHEAD);
    tokio::task::spawn_blocking(move || {
        loop {
            let mut piece = vec![0; CHUNK];
            let read = from.read(&mut piece);
            let is_end = matches!(read, Ok(0) | Err(_));
            let piece = read.map(|read| {
                piece.truncate(read);
                Frame::data(Bytes::from(piece))
            });
            let is_empty =
                matches!(&piece, Ok(frame) if frame.data_ref().is_some_and(Bytes::is_empty));
            if !is_empty && pieces.blocking_send(piece).is_err() || is_end {
                return;
            }
        }
    });
    let pieces = stream::unfold(arriving, |mut arriving| async move {
        let piece = arriving.recv().await?;
        Some((piece, arriving))
    });
    StreamBody::new(pieces).boxed_unsync()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_apart() {
        let table = [
            ("app", ("localhost", "app", "latest")),
            ("team/app:2", ("localhost", "team/app", "2")),
            ("ghcr.io/acme/app:1", ("ghcr.io", "acme/app", "1")),
            ("127.0.0.1:5000/app", ("127.0.0.1:5000", "app", "latest")),
            ("localhost/app:1", ("localhost", "app", "1")),
        ];
        for (text, (registry, repository, tag)) in table {
            let expected = Name {
                registry,
                repository,
                tag,
            };
            assert_eq!(Name::parse(text).unwrap(), expected, "{text}");
        }
        let refused = Name::parse("app@sha256:00").unwrap_err();
        assert!(refused.message.contains("digest"));
    }
}
