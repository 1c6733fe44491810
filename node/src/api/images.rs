//! Images of this node: pull, import, list, remove.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use futures::TryStreamExt;
use netfabric::wire::api::{
    HeldImage, ImageShare, ImageUsage, ImageView, PruneRequest, PrunedImages, PullRequest,
};
use netfabric::wire::peer::{PeerRequest, PeerResponse};
use scheduler::model::UnixMs;
use serde::Deserialize;

use super::{Api, Failure, gather};
use crate::image::{ImageError, Prune, Share};

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
    let services = services(&api);
    let of = |digest: &str| services.get(digest).cloned().unwrap_or_default();
    let mut views = Vec::new();
    for stocked in api.images.stock().await? {
        let pin = &stocked.image.pin;
        let mut nodes = holders.remove(&pin.digest).unwrap_or_default();
        nodes.insert(api.name.to_string());
        views.push(ImageView {
            reference: pin.reference.clone(),
            digest: pin.digest.clone(),
            bytes: stocked.own + stocked.shared,
            nodes: nodes.into_iter().collect(),
            own_bytes: stocked.own,
            last_used: Some(UnixMs(stocked.last_used.saturating_mul(1000))),
            services: of(&pin.digest).1.into_iter().collect(),
        });
    }
    for (digest, nodes) in holders {
        let (reference, services) = of(&digest);
        views.push(ImageView {
            reference,
            digest,
            bytes: 0,
            nodes: nodes.into_iter().collect(),
            own_bytes: 0,
            last_used: None,
            services: services.into_iter().collect(),
        });
    }
    Ok(Json(views))
}

/// By digest: the name it was deployed under and the services with revisions of it.
fn services(api: &Api) -> BTreeMap<String, (String, BTreeSet<String>)> {
    let mut all: BTreeMap<String, (String, BTreeSet<String>)> = BTreeMap::new();
    for revision in api.registry.view().state().revisions.values() {
        let (reference, services) = all.entry(revision.image.digest.clone()).or_default();
        reference.clone_from(&revision.image.reference);
        services.insert(revision.service.to_string());
    }
    all
}

/// What images take on all nodes, by the services whose they are.
pub(super) async fn usage(State(api): State<Arc<Api>>) -> Result<Json<ImageUsage>, Failure> {
    let (own, answers) = tokio::join!(shares(&api), gather::others(&api, PeerRequest::ImageUsage));
    let mut usage = ImageUsage {
        shares: own?,
        missing: Vec::new(),
    };
    for (name, answer) in answers {
        let more: Option<Vec<ImageShare>> = match answer {
            Some(PeerResponse::ImageUsage { json }) => serde_json::from_slice(&json).ok(),
            _ => None,
        };
        match more {
            Some(more) => usage.shares.extend(more),
            None => usage.missing.push(name),
        }
    }
    usage
        .shares
        .sort_by(|a, b| (&a.service, &a.node).cmp(&(&b.service, &b.node)));
    Ok(Json(usage))
}

async fn shares(api: &Api) -> Result<Vec<ImageShare>, ImageError> {
    let mut users: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (digest, (_, services)) in services(api) {
        for service in services {
            users.entry(service).or_default().insert(digest.clone());
        }
    }
    let shares = api.images.shares(users).await?;
    let share = |(service, share): (String, Share)| ImageShare {
        service,
        node: api.name.clone(),
        images: share.images,
        bytes: share.bytes,
        own_bytes: share.own,
    };
    Ok(shares.into_iter().map(share).collect())
}

/// This node's part, for a peer.
pub(crate) async fn shares_local(api: &Api) -> Vec<u8> {
    match shares(api).await {
        Ok(shares) => serde_json::to_vec(&shares).unwrap_or_default(),
        // Not to be read as an answer: the asker counts this node as missing.
        Err(error) => {
            tracing::warn!(%error, "what images take cannot be told");
            Vec::new()
        }
    }
}

pub(super) async fn prune(
    State(api): State<Arc<Api>>,
    body: Result<Json<PruneRequest>, JsonRejection>,
) -> Result<Json<PrunedImages>, Failure> {
    let request = body?.0;
    let what = if request.all {
        Prune::All
    } else {
        Prune::Unneeded
    };
    let names: BTreeMap<String, String> = api
        .images
        .list()
        .iter()
        .map(|image| (image.pin.digest.clone(), image.pin.reference.clone()))
        .collect();
    let removed = api.images.prune(what, request.dry_run).await?;
    api.agent.publish();
    let image = |(digest, bytes): (String, u64)| HeldImage {
        reference: names.get(&digest).cloned().unwrap_or_default(),
        digest,
        bytes,
    };
    Ok(Json(PrunedImages {
        images: removed.images.into_iter().map(image).collect(),
        bytes: removed.bytes,
    }))
}

/// Removes one image of this node.
pub(super) async fn delete(
    State(api): State<Arc<Api>>,
    Path(digest): Path<String>,
) -> Result<StatusCode, Failure> {
    api.images.remove(&digest).await?;
    api.agent.publish();
    Ok(StatusCode::NO_CONTENT)
}
