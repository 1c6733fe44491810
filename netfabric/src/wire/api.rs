//! What the operator's API says and hears, as JSON: shared by the node that answers and the
//! command line that asks. Only shapes; what they mean is the node's business.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use scheduler::model::{
    Blob, CertificateSource, Domain, FailReason, ImagePin, InstanceId, InstanceState, Name, NodeId,
    ObjectKey, RequestId, Resources, Revision, RevisionKey, RevisionSpec, RevisionState, Role,
    Scale, Service, ServiceKey, TrafficTarget, UnixMs,
};
use scheduler::place::Receipt;
use serde::{Deserialize, Serialize};

use super::decision::Decision;

/// Every path starts with it, `healthz` included.
pub const PREFIX: &str = "/v1";

/// The header with the registry index that an answer about services was read at.
pub const INDEX_HEADER: &str = "selvedge-index";

/// Code words of an [`ApiError`], in the order of the CLI's exit codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ErrorCode {
    NotFound,
    Invalid,
    Conflict,
    CannotPlace,
    NoQuorum,
    Unreachable,
    Unauthorized,
    Image,
    Internal,
    TooLarge,
    Timeout,
    /// What was asked for lies too far back.
    Gone,
}

impl ErrorCode {
    /// The HTTP status that goes with the code.
    #[must_use]
    pub const fn status(self) -> u16 {
        match self {
            Self::NotFound => 404,
            Self::Invalid => 400,
            Self::Conflict => 409,
            Self::CannotPlace | Self::Image => 422,
            Self::NoQuorum | Self::Unreachable => 503,
            Self::Unauthorized => 401,
            Self::Internal => 500,
            Self::TooLarge => 413,
            Self::Timeout => 504,
            Self::Gone => 410,
        }
    }
}

/// What one node's kernel protects its containers with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Diagnosis {
    pub node: Name,
    pub kernel: String,
    pub checks: Vec<Check>,
    /// Services' ports that the node cannot listen on, each with its reason.
    #[serde(default)]
    pub closed_ports: Vec<String>,
}

impl Diagnosis {
    /// Whether nothing is missing that nothing runs safely without.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.checks.iter().all(|check| check.ok || !check.required)
    }
}

/// One protection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Check {
    pub name: String,
    pub ok: bool,
    /// Nothing runs safely without it.
    pub required: bool,
    pub found: String,
    /// What follows when it is missing, and what to do.
    pub effect: String,
    pub advice: String,
}

/// Every answer that is no success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "camelCase")]
#[error("{message}")]
pub struct ApiError {
    pub code: ErrorCode,
    pub message: String,
    /// The next thing to type, or empty.
    #[serde(default)]
    pub hint: String,
    /// `node: reason`, one a line.
    #[serde(default)]
    pub details: Vec<String>,
}

impl ApiError {
    /// An error without hint and details.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            hint: String::new(),
            details: Vec::new(),
        }
    }

    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }

    #[must_use]
    pub fn details(mut self, details: Vec<String>) -> Self {
        self.details = details;
        self
    }
}

/// `GET /v1/version`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VersionView {
    pub version: String,
    pub node: Name,
    pub cluster: String,
}

/// `GET /v1/status`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    pub cluster: ClusterView,
    pub node: NodeRef,
    pub registry: RegistryView,
    pub nodes: Vec<NodeStatus>,
    pub services: u32,
    pub instances: InstanceCounts,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterView {
    pub id: String,
}

/// The node that answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeRef {
    pub id: NodeId,
    pub name: Name,
    pub region: Name,
    pub zone: Name,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RegistryView {
    pub index: u64,
    pub leader: Option<NodeId>,
    pub voters: Vec<NodeId>,
    /// Whether changes can be made, as far as this node knows.
    pub quorum: bool,
    /// The answering node's part.
    pub role: Role,
    /// Why the answering node takes no part at the moment: its own store failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
}

/// `GET /v1/nodes`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a word of its own in the API"
)]
pub struct NodeStatus {
    pub id: NodeId,
    pub name: Name,
    pub region: Name,
    pub zone: Name,
    pub role: Role,
    pub alive: bool,
    pub serving: bool,
    pub cordoned: bool,
    #[serde(default)]
    pub draining: bool,
    /// From the answering node; 0 for itself.
    pub rtt_micros: Option<u32>,
    pub mesh: SocketAddr,
    pub ingress: Vec<IpAddr>,
    pub capacity: Resources,
    pub free: Resources,
    pub registry_index: u64,
    pub version: String,
    /// Instances that are not Parked, Stopped or Failed.
    pub instances: u32,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// Instances by state; states without instances are zero.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct InstanceCounts {
    pub parked: u32,
    pub starting: u32,
    pub ready: u32,
    pub draining: u32,
    pub failed: u32,
    pub frozen: u32,
}

/// `GET /v1/services`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceView {
    pub service: Service,
    /// `http://NAME.ORIGIN`
    pub url: String,
    pub instances: InstanceCounts,
    pub condition: Condition,
}

/// Whether a service works, and if not why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// `True`, `False` or `Unknown`.
    pub ready: String,
    /// A code word, empty when ready.
    #[serde(default)]
    pub reason: String,
    #[serde(default)]
    pub message: String,
}

/// `PUT /v1/services/NS/NAME`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DeployRequest {
    pub spec: RevisionSpec,
    pub scale: Scale,
    #[serde(default)]
    pub traffic: Vec<TrafficTarget>,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    #[serde(default)]
    pub if_version: Option<u64>,
    /// Check everything, change nothing.
    #[serde(default)]
    pub dry_run: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeployResponse {
    /// As stored, or as it would be on a dry run.
    pub service: Service,
    /// The new revision, when template or image changed.
    pub created_revision: Option<RevisionKey>,
    pub image: ImagePin,
    /// The registry index at which it holds.
    pub index: u64,
    /// Where an instance could go now.
    pub receipt: Option<Receipt>,
}

/// `GET /v1/services/NS/NAME/wait`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WaitResponse {
    pub state: RevisionState,
    pub instances: Vec<InstanceView>,
}

/// `POST /v1/services/NS/NAME/scale`, answered with the [`ServiceView`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ScaleRequest {
    pub min: u32,
    /// 0 is no bound.
    pub max: u32,
}

/// `GET /v1/instances`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InstanceView {
    pub id: InstanceId,
    pub namespace: Name,
    pub service: Name,
    pub revision: Name,
    pub node: NodeId,
    pub node_name: Name,
    pub region: Name,
    pub state: InstanceState,
    pub since: UnixMs,
    pub in_flight: u32,
    /// Leases its programs hold for work of their own.
    #[serde(default)]
    pub leases: u32,
    pub failure: Option<FailReason>,
    /// Whether its node is reachable.
    pub alive: bool,
}

/// `GET /v1/explain/…`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// `instance web-00001-x7k2`, `service default/web`, `request 01J…`
    pub subject: String,
    pub receipt: Option<Receipt>,
    pub bill: Option<Bill>,
    /// Sentences, in the order of reading.
    pub why: Vec<String>,
    /// What nodes wrote down about it, the oldest first.
    #[serde(default)]
    pub decisions: Vec<Decision>,
}

/// What a request that had to wait for a start paid, phase by phase.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Bill {
    pub request: RequestId,
    pub service: ServiceKey,
    pub revision: RevisionKey,
    pub instance: Option<InstanceId>,
    /// The node that started the instance.
    pub node: Option<NodeId>,
    /// In order; they sum to about the total.
    pub phases: Vec<Phase>,
    /// The HTTP status the client got; 0 for a connection that passed unread.
    pub status: u16,
    /// The code of an answer of the door's own.
    #[serde(default)]
    pub problem: Option<String>,
    pub at: UnixMs,
    pub total_micros: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Phase {
    /// `queue`, `place`, `pull`, `create`, `start`, `ready`, `proxy`.
    pub name: String,
    pub micros: u64,
}

/// One line of `GET /v1/logs`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LogLine {
    pub time: UnixMs,
    /// The node's name.
    pub node: String,
    pub instance: InstanceId,
    /// `stdout` or `stderr`.
    pub stream: String,
    pub line: String,
    /// A piece of a longer line: the stream's next one goes on with it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub partial: bool,
}

/// One line of `GET /v1/watch`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum WatchLine {
    /// What changed at a registry index; they come in order and without gaps. Steps about nothing
    /// that may be shown are told too, with no changes.
    Step {
        index: u64,
        changes: Vec<WatchChange>,
    },
    /// The watch is alive, and everything up to this index was told.
    Beat { beat: u64 },
    /// The last line: why nothing more will come.
    End { error: ApiError },
}

/// The whole new object, or the key of one that is no more. Join tokens are not shown, nor are the
/// values of configs and secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum WatchChange {
    Cluster(ClusterView),
    Service(Box<Service>),
    ServiceGone(ServiceKey),
    Revision(Box<Revision>),
    RevisionGone(RevisionKey),
    Node(EnrolledNode),
    Config(ObjectView),
    ConfigGone(ObjectKey),
    Secret(ObjectView),
    SecretGone(ObjectKey),
    Volume(VolumeView),
    VolumeGone(ObjectKey),
}

/// A certificate without its key, or a host that waits for its first: `GET /v1/certificates`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CertificateView {
    pub name: String,
    pub source: CertificateSource,
    pub hosts: Vec<String>,
    /// Both are 0 while there is none.
    pub not_before: UnixMs,
    pub not_after: UnixMs,
    pub seconds_left: i64,
    pub state: CertificateState,
    /// Why the last order for it failed.
    pub error: Option<String>,
    /// What `ifVersion` is compared with.
    pub version: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum CertificateState {
    Valid,
    Expiring,
    Expired,
    /// There is none yet.
    OnOrder,
}

/// `PUT /v1/certificates/NAME`, answered with the [`CertificateView`]. `Debug` shows no key.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CertificateChange {
    /// PEM: the host's own certificate first, each issuer after it.
    pub chain: String,
    /// PEM.
    pub key: String,
    #[serde(default)]
    pub if_version: Option<u64>,
}

impl std::fmt::Debug for CertificateChange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CertificateChange(…)")
    }
}

/// `PATCH /v1/services/NS/NAME/domains`, answered with the [`ServiceView`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DomainsChange {
    #[serde(default)]
    pub add: Vec<Domain>,
    #[serde(default)]
    pub remove: Vec<Domain>,
}

/// A host outside the origin, and whose it is: `GET /v1/domains`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DomainView {
    pub domain: Domain,
    pub namespace: Name,
    pub service: Name,
    /// What is known of a certificate for the host; `None` where nobody asked for one.
    pub certificate: Option<CertificateState>,
    /// Why the last order for it failed.
    #[serde(default)]
    pub error: Option<String>,
}

/// A config or a secret without its values: `GET /v1/configs`, `GET /v1/secrets`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectView {
    pub namespace: Name,
    pub name: Name,
    /// Its keys and how many bytes each has.
    pub keys: BTreeMap<String, usize>,
    /// What `ifVersion` is compared with.
    pub version: u64,
}

/// `GET /v1/configs/NS/NAME`. There is no such answer for secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConfigView {
    pub namespace: Name,
    pub name: Name,
    pub data: BTreeMap<String, Blob>,
    pub version: u64,
}

/// `PATCH /v1/configs/NS/NAME` and `PATCH /v1/secrets/NS/NAME`, answered with the [`ObjectView`]:
/// sets and removes keys and leaves the others. `Debug` shows no values.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ObjectChange {
    /// Values in lowercase hex.
    #[serde(default)]
    pub set: BTreeMap<String, Blob>,
    #[serde(default)]
    pub remove: Vec<String>,
    /// Whether keys that are not set go.
    #[serde(default)]
    pub replace: bool,
    #[serde(default)]
    pub if_version: Option<u64>,
}

/// `GET /v1/volumes`: a local volume and where it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VolumeView {
    pub namespace: Name,
    pub name: Name,
    pub node: NodeId,
    /// Empty when the node is not known any more.
    pub node_name: String,
}

/// A node as the registry knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EnrolledNode {
    pub id: NodeId,
    pub name: Name,
    pub region: Name,
    pub zone: Name,
    pub role: Role,
    pub revoked: bool,
}

/// `POST /v1/images/pull`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PullRequest {
    pub reference: String,
}

/// The header that names the registry of what is pushed over the API; without it, `localhost`.
pub const REGISTRY: &str = "selvedge-registry";

/// An image a node holds now, after a pull or an import.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HeldImage {
    pub reference: String,
    pub digest: String,
    pub bytes: u64,
}

/// `GET /v1/images`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageView {
    pub reference: String,
    pub digest: String,
    pub bytes: u64,
    /// Names of the nodes that hold it.
    pub nodes: Vec<String>,
    /// What of `bytes` no other image of the answering node has.
    #[serde(default)]
    pub own_bytes: u64,
    /// When an instance of the answering node was last made of it.
    #[serde(default)]
    pub last_used: Option<UnixMs>,
    /// `NAMESPACE/NAME` of the services that have revisions of it.
    #[serde(default)]
    pub services: Vec<String>,
}

/// `GET /v1/images/usage`: what images take on the nodes' disks, and whose they are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageUsage {
    pub shares: Vec<ImageShare>,
    /// Nodes that did not answer.
    pub missing: Vec<Name>,
}

/// What the images of one service take on one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageShare {
    /// `NAMESPACE/NAME`; empty for images that no service has a revision of.
    pub service: String,
    pub node: Name,
    pub images: u32,
    /// Of their layers, each counted once.
    pub bytes: u64,
    /// What of it no other service's images have.
    pub own_bytes: u64,
}

/// `POST /v1/images/prune`: removes what the answering node does not need.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PruneRequest {
    /// Also images of deployed revisions that this node does not run.
    #[serde(default)]
    pub all: bool,
    /// Only tell what would go.
    #[serde(default)]
    pub dry_run: bool,
}

/// What a prune removed, or would.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PrunedImages {
    /// Their `bytes` are those set free.
    pub images: Vec<HeldImage>,
    pub bytes: u64,
}

/// `POST /v1/tokens`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TokenRequest {
    pub ttl_seconds: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TokenResponse {
    pub token: String,
    /// The mesh address to join.
    pub address: String,
    /// `selvedge join ADDR --token T`
    pub line: String,
    pub expires: UnixMs,
}
