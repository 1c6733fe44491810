//! Commands about what services are given: configs, secrets, local volumes.

use std::collections::BTreeMap;

use super::apply::Plan;
use super::validate::{ensure, invalid, short};
use super::{Change, Outcome, Refusal, State};
use crate::model::{
    Blob, Config, LocalVolume, NodeId, ObjectKey, Revision, Sealed, Secret, ServiceKey,
};

/// The bounds of configs and secrets, Kubernetes' where it has one.
pub mod limits {
    /// All values of one object.
    pub const OBJECT_BYTES: usize = 1 << 20;
    pub const OBJECT_KEYS: usize = 256;
    /// A key names a file.
    pub const KEY_BYTES: usize = 253;
    /// All configs and secrets together: every node keeps them in memory.
    pub const TOTAL_BYTES: usize = 16 << 20;
    /// Configs, secrets and local volumes together.
    pub const OBJECTS: usize = 10_000;
    /// What sealing adds to a value: its tag.
    pub const SEAL_BYTES: usize = 16;
    pub const NONCE_BYTES: usize = 24;
}

pub(super) fn put_config(
    state: &State,
    key: &ObjectKey,
    data: &BTreeMap<String, Blob>,
    if_version: Option<u64>,
) -> Result<Plan, Refusal> {
    let stored = state.configs.get(key);
    let found = stored.map_or(0, |c| c.version);
    check_version(&format!("config {key}"), if_version, found)?;
    let before = stored.map_or(0, |c| size(&c.data, |v| v.0.len()));
    check_size(state, data, |v| v.0.len(), before, stored.is_none())?;
    if let Some(stored) = stored.filter(|c| c.data == *data) {
        return Ok(version(stored.version, None));
    }
    let config = Config {
        key: key.clone(),
        data: data.clone(),
        version: state.index + 1,
    };
    Ok(version(
        config.version,
        Some(Change::Config(Box::new(config))),
    ))
}

pub(super) fn put_secret(
    state: &State,
    key: &ObjectKey,
    data: &BTreeMap<String, Sealed>,
    if_version: Option<u64>,
) -> Result<Plan, Refusal> {
    let stored = state.secrets.get(key);
    let found = stored.map_or(0, |s| s.version);
    check_version(&format!("secret {key}"), if_version, found)?;
    let before = stored.map_or(0, |s| size(&s.data, plain_len));
    check_size(state, data, plain_len, before, stored.is_none())?;
    let sealed =
        |s: &Sealed| s.nonce.0.len() == limits::NONCE_BYTES && s.text.0.len() >= limits::SEAL_BYTES;
    ensure(data.values().all(sealed), "secret", || {
        "a value is not sealed".to_owned()
    })?;
    if let Some(stored) = stored.filter(|s| s.data == *data) {
        return Ok(version(stored.version, None));
    }
    let secret = Secret {
        key: key.clone(),
        data: data.clone(),
        version: state.index + 1,
    };
    Ok(version(
        secret.version,
        Some(Change::Secret(Box::new(secret))),
    ))
}

fn plain_len(sealed: &Sealed) -> usize {
    sealed.text.0.len().saturating_sub(limits::SEAL_BYTES)
}

fn version(version: u64, change: Option<Change>) -> Plan {
    Plan {
        changes: change.into_iter().collect(),
        outcome: Outcome::Version(version),
    }
}

fn check_version(what: &str, expected: Option<u64>, found: u64) -> Result<(), Refusal> {
    match expected {
        Some(expected) if expected != found => Err(Refusal::Conflict {
            what: what.to_owned(),
            expected,
            found,
        }),
        _ => Ok(()),
    }
}

fn size<V>(data: &BTreeMap<String, V>, len: impl Fn(&V) -> usize) -> usize {
    let values = data.iter().map(|(key, value)| key.len() + len(value));
    values.fold(0, usize::saturating_add)
}

/// Checks the keys of an object, its size, and that of all together once it is stored in the place
/// of one of `before` bytes.
fn check_size<V>(
    state: &State,
    data: &BTreeMap<String, V>,
    len: impl Fn(&V) -> usize,
    before: usize,
    new: bool,
) -> Result<(), Refusal> {
    for key in data.keys() {
        check_key(key)?;
    }
    let keys = data.len();
    ensure(keys <= limits::OBJECT_KEYS, "data", || {
        format!("has {keys} keys, above {}", limits::OBJECT_KEYS)
    })?;
    let bytes = size(data, len);
    ensure(bytes <= limits::OBJECT_BYTES, "data", || {
        format!("has {bytes} bytes, above 1 MiB: put large files into an image")
    })?;
    let configs = state.configs.values().map(|c| size(&c.data, |v| v.0.len()));
    let secrets = state.secrets.values().map(|s| size(&s.data, plain_len));
    let total: usize = configs.chain(secrets).sum();
    let total = total.saturating_sub(before).saturating_add(bytes);
    ensure(total <= limits::TOTAL_BYTES, "data", || {
        "all configs and secrets would have more than 16 MiB together: remove some first".to_owned()
    })?;
    ensure(!new || has_room(state), "data", too_many)
}

fn has_room(state: &State) -> bool {
    state.configs.len() + state.secrets.len() + state.volumes.len() < limits::OBJECTS
}

fn too_many() -> String {
    format!(
        "there are {} configs, secrets and volumes already: remove some first",
        limits::OBJECTS
    )
}

/// A key becomes the name of a file, and must not be one of those by which files are exchanged.
fn check_key(key: &str) -> Result<(), Refusal> {
    let letters = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let good = !key.is_empty()
        && key.len() <= limits::KEY_BYTES
        && key.bytes().all(letters)
        && key != "."
        && !key.starts_with("..");
    ensure(good, "data", || {
        format!(
            "`{}` is no key: use up to 253 letters, digits, '-', '_' and '.', not beginning with two dots",
            short(key)
        )
    })
}

pub(super) fn delete_config(state: &State, key: &ObjectKey) -> Result<Plan, Refusal> {
    if !state.configs.contains_key(key) {
        return Err(Refusal::NotFound(format!("config {key}")));
    }
    Ok(Plan::quiet(vec![Change::ConfigGone(key.clone())]))
}

pub(super) fn delete_secret(state: &State, key: &ObjectKey) -> Result<Plan, Refusal> {
    if !state.secrets.contains_key(key) {
        return Err(Refusal::NotFound(format!("secret {key}")));
    }
    Ok(Plan::quiet(vec![Change::SecretGone(key.clone())]))
}

pub(super) fn claim_volume(state: &State, key: &ObjectKey, node: NodeId) -> Result<Plan, Refusal> {
    if let Some(held) = state.volumes.get(key) {
        // Who lost the race is told who won it.
        return Ok(Plan {
            changes: Vec::new(),
            outcome: Outcome::Volume(held.clone()),
        });
    }
    let valid = state.nodes.get(&node).is_some_and(|n| !n.revoked);
    if !valid {
        return Err(Refusal::NotFound(format!("node {node}")));
    }
    if !has_room(state) {
        return Err(invalid("volume", too_many()));
    }
    let volume = LocalVolume {
        key: key.clone(),
        node,
        claimed: state.index + 1,
    };
    Ok(Plan {
        changes: vec![Change::Volume(volume.clone())],
        outcome: Outcome::Volume(volume),
    })
}

pub(super) fn delete_volume(state: &State, key: &ObjectKey) -> Result<Plan, Refusal> {
    if !state.volumes.contains_key(key) {
        return Err(Refusal::NotFound(format!("volume {key}")));
    }
    if let Some(service) = user_of_volume(state, key) {
        return Err(Refusal::InUse {
            what: format!("volume {key}"),
            by: format!("service {service}"),
        });
    }
    Ok(Plan::quiet(vec![Change::VolumeGone(key.clone())]))
}

/// A service whose instances could have the volume mounted, now or at their next start.
fn user_of_volume(state: &State, key: &ObjectKey) -> Option<ServiceKey> {
    let names = |r: &&Revision| {
        let mut locals = r.spec.volumes.iter().filter_map(|v| v.local());
        r.key.namespace == key.namespace && locals.any(|name| name == key.name.as_str())
    };
    let serves = |r: &&Revision| {
        let service = state.services.get(&r.service);
        service.is_some_and(|s| {
            s.status.latest_created.as_ref() == Some(&r.key) || s.routed().contains(&r.key)
        })
    };
    let mut users = state.revisions.values().filter(names).filter(serves);
    users.next().map(|r| r.service.clone())
}

/// The volumes that are lost with a node.
pub(super) fn volumes_of(state: &State, node: NodeId) -> impl Iterator<Item = Change> {
    let lost = state.volumes.values().filter(move |v| v.node == node);
    lost.map(|v| Change::VolumeGone(v.key.clone()))
}
