//! What configs and secrets have in common: a change of some keys, made by compare-and-set against
//! the newest state, and views without values.

use std::collections::BTreeMap;

use axum::extract::rejection::JsonRejection;
use axum::{Json, extract::Query};
use netfabric::wire::api::{ApiError, ErrorCode, ObjectChange, ObjectView};
use scheduler::model::{Config, Name, ObjectKey, Secret};
use scheduler::registry::{self, Action, Outcome, object_limits};
use serde::Deserialize;

use super::{Api, Failure};

/// Tries of a change that others overtake.
const ATTEMPTS: usize = 5;

#[derive(Debug, Default, Deserialize)]
pub(super) struct Scope {
    pub namespace: Option<Name>,
}

impl Scope {
    pub(super) fn covers(&self, key: &ObjectKey) -> bool {
        self.namespace.as_ref().is_none_or(|n| *n == key.namespace)
    }
}

pub(super) type Scoped = Query<Scope>;

pub(super) fn object_key(namespace: String, name: String) -> Result<ObjectKey, Failure> {
    Ok(ObjectKey {
        namespace: Name::new(namespace)?,
        name: Name::new(name)?,
    })
}

/// Makes a change: `make` turns the state and the change into an action that fails when the object
/// is not as it was in the state.
pub(super) async fn change(
    api: &Api,
    body: Result<Json<ObjectChange>, JsonRejection>,
    make: impl Fn(&registry::State, &ObjectChange) -> Result<Action, Failure>,
) -> Result<u64, Failure> {
    let Json(wanted) = body?;
    let mut attempt = 1;
    loop {
        let state = api.newest().await?;
        match api.change(make(&state, &wanted)?).await {
            Ok((_, Outcome::Version(version))) => return Ok(version),
            Ok(_) => {
                let message = "the registry answered no version";
                return Err(Failure(ApiError::new(ErrorCode::Internal, message)));
            }
            Err(failure)
                if failure.0.code == ErrorCode::Conflict
                    && wanted.if_version.is_none()
                    && attempt < ATTEMPTS =>
            {
                attempt += 1;
            }
            Err(failure) => return Err(failure),
        }
    }
}

/// The keys an object has after the change, those it keeps from before.
pub(super) fn kept<V: Clone>(
    what: &str,
    stored: Option<&BTreeMap<String, V>>,
    wanted: &ObjectChange,
) -> Result<BTreeMap<String, V>, Failure> {
    let mut data = stored.cloned().unwrap_or_default();
    for key in &wanted.remove {
        if data.remove(key).is_none() {
            return Err(Failure::not_found(format!("{what} has no key `{key}`")));
        }
    }
    if wanted.replace {
        data.clear();
    }
    Ok(data)
}

pub(super) fn config_view(config: &Config) -> ObjectView {
    let sizes = config.data.iter().map(|(key, v)| (key.clone(), v.0.len()));
    view(&config.key, sizes.collect(), config.version)
}

pub(super) fn secret_view(secret: &Secret) -> ObjectView {
    let size = |len: usize| len.saturating_sub(object_limits::SEAL_BYTES);
    let sizes = secret.data.iter();
    let sizes = sizes.map(|(key, v)| (key.clone(), size(v.text.0.len())));
    view(&secret.key, sizes.collect(), secret.version)
}

fn view(key: &ObjectKey, keys: BTreeMap<String, usize>, version: u64) -> ObjectView {
    ObjectView {
        namespace: key.namespace.clone(),
        name: key.name.clone(),
        keys,
        version,
    }
}
