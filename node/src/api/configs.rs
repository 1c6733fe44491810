//! Configs: list, read, change, delete.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, Query, State};
use netfabric::wire::api::{ConfigView, ObjectChange, ObjectView};
use scheduler::model::ObjectKey;
use scheduler::registry::Action;

use super::objects::{self, Scoped, config_view, object_key};
use super::{Api, Failure};

fn no_config(key: &ObjectKey) -> Failure {
    Failure::not_found(format!("config {key} does not exist"))
}

pub(super) async fn list(
    State(api): State<Arc<Api>>,
    Query(scope): Scoped,
) -> Json<Vec<ObjectView>> {
    let state = api.registry.view().state();
    let configs = state.configs.values().filter(|c| scope.covers(&c.key));
    Json(configs.map(config_view).collect())
}

pub(super) async fn get(
    State(api): State<Arc<Api>>,
    Path((namespace, name)): Path<(String, String)>,
) -> Result<Json<ConfigView>, Failure> {
    let key = object_key(namespace, name)?;
    let state = api.registry.view().state();
    let config = state.configs.get(&key).ok_or_else(|| no_config(&key))?;
    Ok(Json(ConfigView {
        namespace: key.namespace,
        name: key.name,
        data: config.data.clone(),
        version: config.version,
    }))
}

pub(super) async fn patch(
    State(api): State<Arc<Api>>,
    Path((namespace, name)): Path<(String, String)>,
    body: Result<Json<ObjectChange>, JsonRejection>,
) -> Result<Json<ObjectView>, Failure> {
    let key = object_key(namespace, name)?;
    let version = objects::change(&api, body, |state, wanted| {
        let stored = state.configs.get(&key);
        let what = format!("config {key}");
        let mut data = objects::kept(&what, stored.map(|c| &c.data), wanted)?;
        data.extend(wanted.set.clone());
        let found = stored.map_or(0, |c| c.version);
        Ok(Action::PutConfig {
            key: key.clone(),
            data,
            if_version: Some(wanted.if_version.unwrap_or(found)),
        })
    });
    let version = version.await?;
    let state = api.registry.view().state();
    let config = state.configs.get(&key).filter(|c| c.version >= version);
    config
        .map(|config| Json(config_view(config)))
        .ok_or_else(|| no_config(&key))
}

pub(super) async fn delete(
    State(api): State<Arc<Api>>,
    Path((namespace, name)): Path<(String, String)>,
) -> Result<Json<serde_json::Value>, Failure> {
    let key = object_key(namespace, name)?;
    let (index, _) = api.change(Action::DeleteConfig { key }).await?;
    Ok(Json(serde_json::json!({ "index": index })))
}
