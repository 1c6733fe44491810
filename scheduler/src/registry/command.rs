//! What can be asked of the registry, what it answers, and what followers are told.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::model::{
    AcmeAccount, Blob, Certificate, Config, Domain, ImagePin, Lease, LocalVolume, Name, NodeId,
    NodeIdentity, ObjectKey, Order, Revision, RevisionKey, RevisionSpec, Scale, Sealed, Secret,
    Service, ServiceKey, TrafficTarget, UnixMs,
};

/// A change someone asks for. `at` is the proposer's wall clock: apply reads no clock itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    pub at: UnixMs,
    pub action: Action,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// First command of a cluster's life.
    FoundCluster {
        cluster: ClusterMeta,
        founder: NodeIdentity,
    },
    PutService(Box<PutService>),
    /// Deletes the service and its revisions.
    DeleteService {
        key: ServiceKey,
    },
    SetScale {
        key: ServiceKey,
        scale: Scale,
    },
    SetTraffic {
        key: ServiceKey,
        traffic: Vec<TrafficTarget>,
    },
    /// A pending revision's initial instances were seen ready. Idempotent; ready stays ready.
    MarkReady {
        revision: RevisionKey,
    },
    /// A pending revision will not come up. Ignored when it is ready already.
    MarkFailed {
        revision: RevisionKey,
        reason: String,
        message: String,
    },
    /// `hash` is the lowercase hex SHA-256 of the token's secret.
    CreateToken {
        hash: String,
        expires: UnixMs,
    },
    /// Uses up a token and gives the node its number and role. The node's `id`, `role` and
    /// `enrolled` in `node` are ignored and set by apply.
    Enroll {
        token_hash: String,
        node: NodeIdentity,
    },
    /// Revokes the node's identity.
    RemoveNode {
        node: NodeId,
    },
    /// Creates a config or replaces it whole.
    PutConfig {
        key: ObjectKey,
        data: BTreeMap<String, Blob>,
        /// Refuse unless the stored version is this; `Some(0)` means it must not exist.
        if_version: Option<u64>,
    },
    /// Instances that run keep what they have; new ones that need it fail.
    DeleteConfig {
        key: ObjectKey,
    },
    PutSecret {
        key: ObjectKey,
        data: BTreeMap<String, Sealed>,
        if_version: Option<u64>,
    },
    DeleteSecret {
        key: ObjectKey,
    },
    /// A node wants to keep a local volume; the first that asks gets it. Idempotent.
    ClaimVolume {
        key: ObjectKey,
        node: NodeId,
    },
    /// Its node removes its data. Refused while a service names it.
    DeleteVolume {
        key: ObjectKey,
    },
    /// Creates or replaces a certificate; its version is set by apply. One that was ordered needs the
    /// epoch of the lease it was ordered under, and never replaces an operator's own.
    PutCertificate {
        certificate: Box<Certificate>,
        if_version: Option<u64>,
        epoch: Option<u64>,
    },
    DeleteCertificate {
        name: String,
        epoch: Option<u64>,
    },
    PutOrder {
        order: Box<Order>,
        epoch: u64,
    },
    DeleteOrder {
        host: String,
        epoch: u64,
    },
    PutAccount {
        account: Box<AcmeAccount>,
        epoch: u64,
    },
    /// Takes a lease or renews it; refused unless its version is what was seen.
    TakeLease {
        name: String,
        node: NodeId,
        seen: Option<u64>,
    },
    GiveLease {
        name: String,
        epoch: u64,
    },
    /// The node takes no new instances, or takes them again.
    CordonNode {
        node: NodeId,
        cordoned: bool,
        /// Those it has leave too; a node that is not cordoned does not drain.
        #[serde(default)]
        draining: bool,
    },
    /// Gives a service hosts outside the origin, and takes some away; what is so already stays.
    ChangeDomains {
        key: ServiceKey,
        add: Vec<Domain>,
        remove: Vec<Domain>,
    },
}

/// Creates or changes a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PutService {
    pub key: ServiceKey,
    pub spec: RevisionSpec,
    pub image: ImagePin,
    pub scale: Scale,
    pub traffic: Vec<TrafficTarget>,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    /// Used only when the service is new.
    pub uid: String,
    /// Refuse unless the stored `resource_version` is this; `Some(0)` means it must not exist.
    pub if_version: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterMeta {
    /// Random; nodes of another cluster are refused by it.
    pub id: String,
    /// Lowercase hex SHA-256 of the CA certificate's DER.
    pub ca_hash: String,
    pub created: UnixMs,
}

/// What apply answers to the one who proposed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// `index` is the registry index at which it holds.
    Done {
        index: u64,
        outcome: Outcome,
    },
    Refused(Refusal),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    Nothing,
    /// The service as stored; `created_revision` when the template or image changed.
    Service {
        service: Box<Service>,
        created_revision: Option<RevisionKey>,
    },
    Enrolled(NodeIdentity),
    /// The new version of a config or secret.
    Version(u64),
    Volume(LocalVolume),
    Lease(Lease),
}

/// Why a command changed nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    #[error("{0} does not exist")]
    NotFound(String),
    #[error("{what} was changed meanwhile: expected version {expected}, found {found}")]
    Conflict {
        what: String,
        expected: u64,
        found: u64,
    },
    #[error("{field}: {message}")]
    Invalid { field: String, message: String },
    #[error("the join token is unknown")]
    TokenUnknown,
    #[error("the join token was used already")]
    TokenUsed,
    #[error("the join token has expired")]
    TokenExpired,
    #[error("the name {0} is taken by another node")]
    NameTaken(Name),
    #[error("the cluster was founded already")]
    AlreadyFounded,
    /// A thing that others need is not removed.
    #[error("{what} is used by {by}")]
    InUse { what: String, by: String },
    /// Who asks is no longer the one to do this.
    #[error("the lease {0} is not held, or another node's")]
    Fenced(String),
}

/// What followers of the feed are told: each carries the whole new object, so applying one twice
/// does no harm.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    Cluster(ClusterMeta),
    Service(Box<Service>),
    ServiceGone(ServiceKey),
    Revision(Box<Revision>),
    RevisionGone(RevisionKey),
    Node(NodeIdentity),
    Token { hash: String, token: Token },
    TokenGone { hash: String },
    Config(Box<Config>),
    ConfigGone(ObjectKey),
    Secret(Box<Secret>),
    SecretGone(ObjectKey),
    Volume(LocalVolume),
    VolumeGone(ObjectKey),
    Certificate(Box<Certificate>),
    CertificateGone(String),
    Order(Box<Order>),
    OrderGone(String),
    Account(Box<AcmeAccount>),
    Lease(Lease),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    pub expires: UnixMs,
    pub used: bool,
}
