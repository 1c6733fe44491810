//! `image pull`, `image push`, `image import`, `image ls`, `image rm`, `image prune`.

mod layout;
mod push;

use std::path::{Path, PathBuf};

use anyhow::Context;
use bytes::BytesMut;
use futures::stream;
use http::Method;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use netfabric::wire::api::{
    HeldImage, ImageUsage, ImageView, PruneRequest, PrunedImages, PullRequest,
};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::confirm;
use crate::args::ImageCommand;
use crate::client::{Body, IMAGE_ANSWER, encoded};
use crate::failure::Failure;
use crate::output;
use crate::session::{Session, find};

/// How much of a file is read at a time.
const CHUNK: usize = 256 * 1024;

pub async fn run(command: ImageCommand, session: &Session) -> anyhow::Result<()> {
    match command {
        ImageCommand::Ls => session.out.list(&list(session).await?, false),
        ImageCommand::Usage => usage(session).await,
        ImageCommand::Rm { image } => remove(&image, session).await,
        ImageCommand::Prune { all, dry_run } => prune(all, dry_run, session).await,
        ImageCommand::Pull { reference } => pull(reference, session).await,
        ImageCommand::Push {
            source,
            reference,
            platform,
        } => push::push(&source, &reference, &platform, session).await,
        ImageCommand::Import { file, reference } => import(file, reference, session).await,
    }
}

async fn list(session: &Session) -> anyhow::Result<Vec<ImageView>> {
    let images = session.client.get("/v1/images").await;
    Ok(images.map_err(Failure::from)?)
}

async fn usage(session: &Session) -> anyhow::Result<()> {
    let usage: ImageUsage = session
        .client
        .get("/v1/images/usage")
        .await
        .map_err(Failure::from)?;
    session.out.missing(&usage.missing);
    session.out.list(&usage.shares, false)
}

async fn remove(image: &str, session: &Session) -> anyhow::Result<()> {
    let images = list(session).await?;
    let by_digest = images.iter().find(|i| i.digest == image).cloned();
    let found = match by_digest {
        Some(found) => found,
        None => find(images, image)?,
    };
    confirm::destructive(session, "remove image", &found.reference)?;
    let path = format!("/v1/images/{}", encoded(&found.digest));
    let removed = session.client.change(Method::DELETE, &path).await;
    removed.map_err(Failure::from)?;
    session
        .out
        .progress(&format!("image/{} removed", found.reference));
    Ok(())
}

async fn prune(all: bool, dry_run: bool, session: &Session) -> anyhow::Result<()> {
    if !dry_run {
        confirm::destructive(session, "remove all", "unused-images")?;
    }
    let request = PruneRequest { all, dry_run };
    let pruned: PrunedImages = session
        .client
        .send(Method::POST, "/v1/images/prune", &request, IMAGE_ANSWER)
        .await
        .map_err(Failure::from)?;
    let names = || {
        let names = pruned
            .images
            .iter()
            .map(|i| format!("image/{}", i.reference));
        names.collect::<Vec<_>>().join("\n")
    };
    session
        .out
        .text_or(&pruned, names, |_| told(&pruned, dry_run))
}

/// What went, one image a line, and how much that is.
fn told(pruned: &PrunedImages, dry_run: bool) -> String {
    let verb = if dry_run { "would free" } else { "freed" };
    let sum = format!("{verb} {}", output::bytes(pruned.bytes));
    let lines = pruned.images.iter().map(sentence);
    lines.chain([sum]).collect::<Vec<_>>().join("\n")
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
