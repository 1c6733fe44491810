//! Images of this node: pull, import, list.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Query, State};
use futures::TryStreamExt;
use netfabric::wire::api::{HeldImage, ImageView, PullRequest};
use serde::Deserialize;

use super::{Api, Failure};

pub(super) async fn pull(
    State(api): State<Arc<Api>>,
    body: Result<Json<PullRequest>, JsonRejection>,
) -> Result<Json<HeldImage>, Failure> {
    let image = api.images.pull_reference(&body?.0.reference).await?;
    api.agent.publish();
    Ok(Json(held(&image)))
}

#[derive(Debug, Deserialize)]
pub(super) struct ImportQuery {
    reference: Option<String>,
}

pub(super) async fn import(
    State(api): State<Arc<Api>>,
    Query(query): Query<ImportQuery>,
    body: Body,
) -> Result<Json<Vec<HeldImage>>, Failure> {
    let stream = body.into_data_stream().map_err(std::io::Error::other);
    let reader = Box::pin(tokio_util::io::StreamReader::new(stream));
    let imported = api
        .images
        .import(reader, query.reference.as_deref())
        .await?;
    api.agent.publish();
    Ok(Json(imported.iter().map(|image| held(image)).collect()))
}

fn held(image: &crate::image::Image) -> HeldImage {
    HeldImage {
        reference: image.pin.reference.clone(),
        digest: image.pin.digest.clone(),
        bytes: image.bytes,
    }
}

/// Images by digest with the nodes that hold them. References and sizes are this node's own; of an
/// image only others hold, the digest is all that gossip carries.
pub(super) async fn list(State(api): State<Arc<Api>>) -> Result<Json<Vec<ImageView>>, Failure> {
    let mut holders: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for member in api.fleet().members.values().filter(|m| m.alive) {
        for digest in &member.record.images {
            holders
                .entry(digest.clone())
                .or_default()
                .insert(member.record.name.to_string());
        }
    }
    let state = api.registry.view().state();
    let mut views = Vec::new();
    for image in api.images.list() {
        let mut nodes = holders.remove(&image.pin.digest).unwrap_or_default();
        nodes.insert(api.name.to_string());
        views.push(ImageView {
            reference: image.pin.reference.clone(),
            digest: image.pin.digest.clone(),
            bytes: image.bytes,
            nodes: nodes.into_iter().collect(),
        });
    }
    for (digest, nodes) in holders {
        let known = state.revisions.values().find(|r| r.image.digest == digest);
        let reference = known.map(|r| r.image.reference.clone()).unwrap_or_default();
        views.push(ImageView {
            reference,
            digest,
            bytes: 0,
            nodes: nodes.into_iter().collect(),
        });
    }
    Ok(Json(views))
}
