//! Local volumes: where they are, and their removal.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, State};
use netfabric::wire::api::VolumeView;
use scheduler::model::LocalVolume;
use scheduler::registry::{self, Action};

use super::objects::{Scoped, object_key};
use super::{Api, Failure};

pub(super) fn view(state: &registry::State, volume: &LocalVolume) -> VolumeView {
    let node = state.nodes.get(&volume.node);
    VolumeView {
        namespace: volume.key.namespace.clone(),
        name: volume.key.name.clone(),
        node: volume.node,
        node_name: node.map(|n| n.name.to_string()).unwrap_or_default(),
    }
}

pub(super) async fn list(
    State(api): State<Arc<Api>>,
    Query(scope): Scoped,
) -> Json<Vec<VolumeView>> {
    let state = api.registry.view().state();
    let volumes = state.volumes.values().filter(|v| scope.covers(&v.key));
    Json(volumes.map(|volume| view(&state, volume)).collect())
}

pub(super) async fn delete(
    State(api): State<Arc<Api>>,
    Path((namespace, name)): Path<(String, String)>,
) -> Result<Json<serde_json::Value>, Failure> {
    let key = object_key(namespace, name)?;
    let (index, _) = api.change(Action::DeleteVolume { key }).await?;
    Ok(Json(serde_json::json!({ "index": index })))
}
