//! Secrets: list, change, delete. Values come in and are sealed here, before anything else sees
//! them; none goes out.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, Query, State};
use netfabric::identity::{Label, Vault};
use netfabric::wire::api::{ApiError, ErrorCode, ObjectChange, ObjectView};
use scheduler::model::{ObjectKey, Sealed, Secret};
use scheduler::registry::Action;

use super::objects::{self, Scoped, object_key, secret_view};
use super::{Api, Failure};

fn no_secret(key: &ObjectKey) -> Failure {
    Failure::not_found(format!("secret {key} does not exist"))
}

pub(super) async fn list(
    State(api): State<Arc<Api>>,
    Query(scope): Scoped,
) -> Json<Vec<ObjectView>> {
    let state = api.registry.view().state();
    let secrets = state.secrets.values().filter(|s| scope.covers(&s.key));
    Json(secrets.map(secret_view).collect())
}

pub(super) async fn get(
    State(api): State<Arc<Api>>,
    Path((namespace, name)): Path<(String, String)>,
) -> Result<Json<ObjectView>, Failure> {
    let key = object_key(namespace, name)?;
    let state = api.registry.view().state();
    let secret = state.secrets.get(&key).ok_or_else(|| no_secret(&key))?;
    Ok(Json(secret_view(secret)))
}

pub(super) async fn patch(
    State(api): State<Arc<Api>>,
    Path((namespace, name)): Path<(String, String)>,
    body: Result<Json<ObjectChange>, JsonRejection>,
) -> Result<Json<ObjectView>, Failure> {
    let key = object_key(namespace, name)?;
    let vault = api.vault.as_ref().ok_or_else(no_key)?;
    let version = objects::change(&api, body, |state, wanted| {
        let stored = state.secrets.get(&key);
        let what = format!("secret {key}");
        let mut data = objects::kept(&what, stored.map(|s| &s.data), wanted)?;
        let upon = stored.map_or(0, |s| s.version);
        for (name, value) in &wanted.set {
            let sealed = seal(vault, &key, name, stored, &value.0)?;
            data.insert(name.clone(), sealed);
        }
        Ok(Action::PutSecret {
            key: key.clone(),
            data,
            if_version: Some(wanted.if_version.unwrap_or(upon)),
        })
    });
    let version = version.await?;
    let state = api.registry.view().state();
    let secret = state.secrets.get(&key).filter(|s| s.version >= version);
    secret
        .map(|secret| Json(secret_view(secret)))
        .ok_or_else(|| no_secret(&key))
}

/// A value that is there already stays as it was sealed: setting it again changes nothing.
fn seal(
    vault: &Vault,
    secret: &ObjectKey,
    key: &str,
    stored: Option<&Secret>,
    value: &[u8],
) -> Result<Sealed, Failure> {
    let label = Label { secret, key };
    let before = stored.and_then(|s| s.data.get(key));
    let same = |sealed: &&Sealed| vault.open(label, sealed).is_ok_and(|p| p.bytes() == value);
    if let Some(same) = before.filter(same) {
        return Ok(same.clone());
    }
    let upon = stored.map_or(0, |s| s.version);
    vault.seal(label, upon, value).map_err(|error| {
        let message = format!("the value cannot be sealed: {error}");
        Failure(ApiError::new(ErrorCode::Internal, message))
    })
}

fn no_key() -> Failure {
    let message =
        "this node holds no key for secrets: its cluster was founded before there was one";
    Failure(ApiError::new(ErrorCode::Internal, message))
}

pub(super) async fn delete(
    State(api): State<Arc<Api>>,
    Path((namespace, name)): Path<(String, String)>,
) -> Result<Json<serde_json::Value>, Failure> {
    let key = object_key(namespace, name)?;
    let (index, _) = api.change(Action::DeleteSecret { key }).await?;
    Ok(Json(serde_json::json!({ "index": index })))
}
