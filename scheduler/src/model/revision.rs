//! An immutable version of a service.

use serde::{Deserialize, Serialize};

use super::{RevisionKey, RevisionSpec, ServiceKey, UnixMs};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Revision {
    pub key: RevisionKey,
    pub service: ServiceKey,
    pub generation: u64,
    pub created: UnixMs,
    pub spec: RevisionSpec,
    pub image: ImagePin,
    pub state: RevisionState,
}

/// The image a revision runs, for ever: resolved once at deploy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImagePin {
    /// Normalised, without digest: `registry/repository:tag`.
    pub reference: String,
    /// `sha256:…` of the platform's manifest.
    pub digest: String,
}

/// Whether the revision has ever shown its initial instances ready. Decided once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RevisionState {
    Pending,
    Ready,
    /// `reason` is a short code word, `message` is for people.
    Failed {
        reason: String,
        message: String,
    },
}
