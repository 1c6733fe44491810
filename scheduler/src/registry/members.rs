//! Who belongs to the cluster: its founding, tokens, and nodes that come and go.

use super::apply::Plan;
use super::objects::volumes_of;
use super::validate::{invalid, validate_hash, validate_public_key};
use super::{Change, ClusterMeta, Outcome, Refusal, State, Token};
use crate::model::{NodeId, NodeIdentity, Role, UnixMs};

/// Voters the registry aims at: the loss of one leaves a majority, and each further one slows
/// every commit.
const VOTERS: usize = 3;
/// A token stays this long past its expiry, so that its late user is told "expired" or "used"
/// and not "unknown".
const TOKEN_MEMORY_MILLIS: u64 = 24 * 60 * 60 * 1000;
/// Tokens at once; nobody enrols that many nodes in a token's life.
const MAX_TOKENS: usize = 1000;

pub(super) fn found(
    state: &State,
    at: UnixMs,
    cluster: &ClusterMeta,
    founder: &NodeIdentity,
) -> Result<Plan, Refusal> {
    if state.cluster.is_some() {
        return Err(Refusal::AlreadyFounded);
    }
    validate_public_key(&founder.public_key)?;
    let node = admitted(state, at, founder);
    Ok(Plan {
        changes: vec![Change::Cluster(cluster.clone()), Change::Node(node.clone())],
        outcome: Outcome::Enrolled(node),
    })
}

/// The node with the number and the role it gets.
fn admitted(state: &State, at: UnixMs, node: &NodeIdentity) -> NodeIdentity {
    let voters = voters(state).count();
    NodeIdentity {
        id: NodeId(state.next_node.max(1)),
        role: if voters < VOTERS {
            Role::Voter
        } else {
            Role::Follower
        },
        enrolled: at,
        revoked: false,
        ..node.clone()
    }
}

fn voters(state: &State) -> impl Iterator<Item = &NodeIdentity> {
    state
        .nodes
        .values()
        .filter(|n| !n.revoked && n.role == Role::Voter)
}

pub(super) fn create_token(
    state: &State,
    at: UnixMs,
    hash: &str,
    expires: UnixMs,
) -> Result<Plan, Refusal> {
    validate_hash(hash)?;
    if expires <= at {
        return Err(invalid("ttl", "the token would have expired already"));
    }
    if state.tokens.contains_key(hash) {
        // Never made anew: that would make a used one good again.
        return Ok(Plan::nothing());
    }
    let mut changes = stale_tokens(state, at);
    if state.tokens.len() - changes.len() >= MAX_TOKENS {
        return Err(invalid(
            "token",
            "there are 1000 already: let some expire first",
        ));
    }
    changes.push(Change::Token {
        hash: hash.to_owned(),
        token: Token {
            expires,
            used: false,
        },
    });
    Ok(Plan::quiet(changes))
}

fn stale_tokens(state: &State, at: UnixMs) -> Vec<Change> {
    let forgotten = |t: &Token| t.expires.0.saturating_add(TOKEN_MEMORY_MILLIS) < at.0;
    let hashes = state
        .tokens
        .iter()
        .filter(|(_, t)| forgotten(t))
        .map(|(hash, _)| hash.clone());
    hashes.map(|hash| Change::TokenGone { hash }).collect()
}

pub(super) fn enroll(
    state: &State,
    at: UnixMs,
    hash: &str,
    node: &NodeIdentity,
) -> Result<Plan, Refusal> {
    let token = state.tokens.get(hash).ok_or(Refusal::TokenUnknown)?;
    if token.used {
        // The same node asking again lost the answer, not the right to it.
        return match bearer(state, &node.public_key) {
            Some(known) if !known.revoked && known.name == node.name => Ok(Plan {
                changes: Vec::new(),
                outcome: Outcome::Enrolled(known.clone()),
            }),
            _ => Err(Refusal::TokenUsed),
        };
    }
    if token.expires <= at {
        return Err(Refusal::TokenExpired);
    }
    validate_public_key(&node.public_key)?;
    if bearer(state, &node.public_key).is_some() {
        return Err(invalid(
            "publicKey",
            "belongs to another node, or to one that was removed",
        ));
    }
    if state.node_named(node.name.as_str()).is_some() {
        return Err(Refusal::NameTaken(node.name.clone()));
    }
    let node = admitted(state, at, node);
    let used = Token {
        used: true,
        ..token.clone()
    };
    let mut changes = stale_tokens(state, at);
    changes.push(Change::Token {
        hash: hash.to_owned(),
        token: used,
    });
    changes.push(Change::Node(node.clone()));
    Ok(Plan {
        changes,
        outcome: Outcome::Enrolled(node),
    })
}

fn bearer<'a>(state: &'a State, public_key: &[u8]) -> Option<&'a NodeIdentity> {
    state.nodes.values().find(|n| n.public_key == public_key)
}

pub(super) fn cordon_node(
    state: &State,
    id: NodeId,
    cordoned: bool,
    draining: bool,
) -> Result<Plan, Refusal> {
    let node = state.nodes.get(&id).filter(|node| !node.revoked);
    let node = node.ok_or_else(|| Refusal::NotFound(format!("node {id}")))?;
    if (node.cordoned, node.draining) == (cordoned, draining) {
        return Ok(Plan::nothing());
    }
    let changed = NodeIdentity {
        cordoned,
        draining,
        ..node.clone()
    };
    Ok(Plan::quiet(vec![Change::Node(changed)]))
}

pub(super) fn remove_node(state: &State, id: NodeId) -> Result<Plan, Refusal> {
    let node = state.nodes.get(&id);
    let node = node.ok_or_else(|| Refusal::NotFound(format!("node {id}")))?;
    if node.revoked {
        return Ok(Plan::nothing());
    }
    if voters(state).all(|v| v.id == id) {
        return Err(invalid(
            "node",
            format!(
                "{} is the registry's only voter: without it nothing can be changed",
                node.name
            ),
        ));
    }
    let revoked = NodeIdentity {
        revoked: true,
        ..node.clone()
    };
    // Its local volumes go with it: no other node has their data.
    let mut changes: Vec<_> = volumes_of(state, id).collect();
    changes.push(Change::Node(revoked));
    Ok(Plan::quiet(changes))
}
