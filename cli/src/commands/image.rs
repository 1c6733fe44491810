//! `image pull`, `image import`, `image ls`.

use std::path::{Path, PathBuf};

use anyhow::Context;
use bytes::BytesMut;
use futures::stream;
use http::Method;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use netfabric::wire::api::{HeldImage, ImageView, PullRequest};
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::args::ImageCommand;
use crate::client::{Body, IMAGE_ANSWER, encoded};
use crate::failure::Failure;
use crate::output;
use crate::session::Session;

/// How much of a file is read at a time.
const CHUNK: usize = 256 * 1024;

pub async fn run(command: ImageCommand, session: &Session) -> anyhow::Result<()> {
    match command {
        ImageCommand::Ls => {
            let images: Vec<ImageView> = session
                .client
                .get("/v1/images")
                .await
                .map_err(Failure::from)?;
            session.out.list(&images, false)
        }
        ImageCommand::Pull { reference } => pull(reference, session).await,
        ImageCommand::Import { file, reference } => import(file, reference, session).await,
    }
}

async fn pull(reference: String, session: &Session) -> anyhow::Result<()> {
    session.out.progress(&format!("pulling {reference}"));
    let request = PullRequest { reference };
    let held: HeldImage = session
        .client
        .send(Method::POST, "/v1/images/pull", &request, IMAGE_ANSWER)
        .await
        .map_err(Failure::from)?;
    session.out.text_or(
        &held,
        || format!("image/{}", held.reference),
        |_| sentence(&held),
    )
}

async fn import(file: PathBuf, reference: Option<String>, session: &Session) -> anyhow::Result<()> {
    let body = if file == Path::new("-") {
        streamed(tokio::io::stdin())
    } else {
        let open = tokio::fs::File::open(&file).await;
        let open = open.with_context(|| format!("cannot read {}", file.display()))?;
        if open.metadata().await?.is_dir() {
            let message = format!("{} is a folder, not an archive", file.display());
            return Err(Failure::usage(message)
                .hint("pack it: tar -C FOLDER -cf image.tar .")
                .into());
        }
        streamed(open)
    };
    let path = match &reference {
        Some(reference) => format!("/v1/images/import?reference={}", encoded(reference)),
        None => "/v1/images/import".to_owned(),
    };
    session
        .out
        .progress(&format!("importing {}", file.display()));
    let held: Vec<HeldImage> = session
        .client
        .upload(&path, body)
        .await
        .map_err(Failure::from)?;
    let names = || {
        held.iter()
            .map(|h| format!("image/{}", h.reference))
            .collect::<Vec<_>>()
            .join("\n")
    };
    let text = || held.iter().map(sentence).collect::<Vec<_>>().join("\n");
    session.out.text_or(&held, names, |_| text())
}

fn sentence(held: &HeldImage) -> String {
    format!(
        "{} {} {}",
        held.reference,
        held.digest,
        output::bytes(held.bytes)
    )
}

/// A body that sends what `source` gives, without holding it.
fn streamed(source: impl AsyncRead + Send + Unpin + 'static) -> Body {
    let frames = stream::try_unfold(source, |mut source| async move {
        let mut chunk = BytesMut::with_capacity(CHUNK);
        let read = source.read_buf(&mut chunk).await?;
        Ok((read > 0).then(|| (Frame::data(chunk.freeze()), source)))
    });
    StreamBody::new(frames).boxed_unsync()
}
