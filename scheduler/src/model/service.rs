//! What people deploy: a service in the shape of a Knative Service (`serving.knative.dev/v1`).
//! Front ends (TOML, Knative YAML, Kubernetes, Compose) only translate into this.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{
    Caller, DOMAINS, Dns, Egress, HostAlias, IoLimits, Listen, Name, Rate, RevisionKey, SLOW_START,
    STICKY, ServiceKey, Tmpfs, Ulimit, UnixMs,
};

/// A service as stored in the registry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Service {
    pub key: ServiceKey,
    pub meta: Meta,
    /// The template of the next revision; changing it makes one.
    pub spec: RevisionSpec,
    /// Bounds and aim of the number of instances; changing it makes no revision.
    pub scale: Scale,
    /// Empty means: all to the latest ready revision.
    pub traffic: Vec<TrafficTarget>,
    pub status: ServiceStatus,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Meta {
    pub uid: String,
    /// Counts changes of the template; revision `SERVICE-00003` comes from generation 3.
    pub generation: u64,
    /// Registry index of the last change; the `if_version` of a compare-and-set.
    pub resource_version: u64,
    pub created: UnixMs,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    /// Where containers of the cluster find it, the same on every node; given once, by the registry.
    #[serde(default)]
    pub address: Option<Ipv4Addr>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceStatus {
    pub latest_created: Option<RevisionKey>,
    pub latest_ready: Option<RevisionKey>,
}

/// Where a service's certificate comes from: `acme` has an authority asked for one.
pub const CERTIFICATE: &str = "selvedge.dev/certificate";
/// `allow`: clients of plain HTTP stay there although there is a certificate.
pub const PLAIN_HTTP: &str = "selvedge.dev/plain-http";
/// How many requests a node's doors take for it, as [`Rate`] is written; no bound without it.
pub const RATE: &str = "selvedge.dev/rate";
/// What the first two can be, the default first.
pub const TLS_ANNOTATIONS: [(&str, [&str; 2]); 2] = [
    (CERTIFICATE, ["own", "acme"]),
    (PLAIN_HTTP, ["redirect", "allow"]),
];

/// `v2`: the program is told whose each connection is, by the PROXY protocol's version 2.
pub const PROXY_PROTOCOL: &str = "selvedge.dev/proxy-protocol";
/// What it can be.
pub const PROXY_V2: &str = "v2";

/// Whether an annotation says what doors do: the service's alone, and no new revision's.
#[must_use]
pub fn is_of_the_door(annotation: &str) -> bool {
    [RATE, STICKY, SLOW_START, DOMAINS].contains(&annotation)
        || TLS_ANNOTATIONS.iter().any(|(name, _)| *name == annotation)
}

impl Service {
    #[must_use]
    pub fn wants_acme(&self) -> bool {
        self.meta
            .annotations
            .get(CERTIFICATE)
            .is_some_and(|v| v == "acme")
    }

    #[must_use]
    pub fn allows_plain_http(&self) -> bool {
        self.meta
            .annotations
            .get(PLAIN_HTTP)
            .is_some_and(|v| v == "allow")
    }

    /// How many requests each node's doors take for it.
    #[must_use]
    pub fn rate(&self) -> Option<Rate> {
        self.meta.annotations.get(RATE)?.parse().ok()
    }
}

/// How a revision runs. Immutable once it is a revision's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RevisionSpec {
    /// Hard limit of requests at once per instance; 0 is no limit.
    pub container_concurrency: u32,
    pub timeout_seconds: u32,
    pub service_account_name: Option<String>,
    /// Exactly one until sidecars exist; `validate` refuses more.
    pub containers: Vec<Container>,
    pub volumes: Vec<Volume>,
    pub place: PlacementRules,
    /// Private networks its containers may reach; the public internet is open to all.
    #[serde(default)]
    pub egress: Vec<Egress>,
    /// What it takes besides HTTP.
    #[serde(default)]
    pub listen: Vec<Listen>,
    /// Services that may call it from inside, besides itself; nobody else's containers may. What the
    /// service's template says holds at once, for all its revisions.
    #[serde(default)]
    pub callers: Vec<Caller>,
    /// SIGTERM to SIGKILL.
    pub termination_grace_seconds: u32,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    /// The name the container finds itself under; the instance's where there is none.
    #[serde(default)]
    pub hostname: Option<String>,
    #[serde(default)]
    pub host_aliases: Vec<HostAlias>,
    #[serde(default)]
    pub dns: Dns,
    /// Kernel settings of the container's own namespaces.
    #[serde(default)]
    pub sysctls: BTreeMap<String, String>,
}

impl Default for RevisionSpec {
    fn default() -> Self {
        Self {
            container_concurrency: 0,
            timeout_seconds: 300,
            service_account_name: None,
            containers: Vec::new(),
            volumes: Vec::new(),
            place: PlacementRules::default(),
            egress: Vec::new(),
            listen: Vec::new(),
            callers: Vec::new(),
            termination_grace_seconds: 10,
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            hostname: None,
            host_aliases: Vec::new(),
            dns: Dns::default(),
            sysctls: BTreeMap::new(),
        }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Container {
    pub name: String,
    /// As the operator wrote it; what runs is the revision's pinned digest.
    pub image: String,
    /// Replaces the image's entrypoint when not empty.
    pub command: Vec<String>,
    /// Replaces the image's cmd when not empty.
    pub args: Vec<String>,
    pub working_dir: Option<String>,
    pub env: Vec<EnvVar>,
    pub ports: Vec<ContainerPort>,
    /// 1000 is one core; 0 is no limit.
    pub cpu_millis: u32,
    /// 0 is no limit.
    pub memory_bytes: u64,
    /// 0 is the default of 256.
    pub pids: u32,
    pub readiness: Option<Probe>,
    pub liveness: Option<Probe>,
    pub startup: Option<Probe>,
    pub volume_mounts: Vec<VolumeMount>,
    pub security: SecurityContext,
    /// `Always`, `IfNotPresent` or `Never`: what a deploy takes a tag for. Empty asks the registry
    /// while it can be reached.
    pub image_pull_policy: String,
    /// Its share of CPU when there is not enough for all, and what placement counts; 0 is its limit.
    #[serde(default)]
    pub cpu_request_millis: u32,
    /// Memory left to it when the node runs short, and what placement counts; 0 is its limit.
    #[serde(default)]
    pub memory_request_bytes: u64,
    #[serde(default)]
    pub io: IoLimits,
    #[serde(default)]
    pub ulimits: Vec<Ulimit>,
    #[serde(default)]
    pub tmpfs: Vec<Tmpfs>,
    /// Size of `/dev/shm`; 0 is 64 MiB.
    #[serde(default)]
    pub shm_bytes: u64,
    /// A first process that reaps orphans and passes signals on to the program.
    #[serde(default)]
    pub init: bool,
    /// What asks it to end (`SIGQUIT`); the image's or SIGTERM where there is none.
    #[serde(default)]
    pub stop_signal: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EnvVar {
    pub name: String,
    pub value: String,
    /// `SECRET:KEY` when the value comes from a secret; `value` is then empty.
    pub secret: Option<String>,
    /// `CONFIG:KEY` when it comes from a config, likewise.
    #[serde(default)]
    pub config: Option<String>,
    /// Whether the instance goes without the variable when there is no such key.
    #[serde(default)]
    pub optional: bool,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    #[default]
    Http1,
    /// HTTP/2 with prior knowledge.
    H2c,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerPort {
    pub container_port: u16,
    pub protocol: Protocol,
}

/// A probe with Kubernetes' timings; zero in a timing means its default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Probe {
    pub action: ProbeAction,
    pub initial_delay_seconds: u32,
    pub period_seconds: u32,
    pub timeout_seconds: u32,
    pub success_threshold: u32,
    pub failure_threshold: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ProbeAction {
    /// GET `path` on `port` (0: the service's port); 200 to 399 is a success.
    Http {
        path: String,
        port: u16,
        #[serde(default)]
        headers: BTreeMap<String, String>,
    },
    /// Connect to `port` (0: the service's port).
    Tcp { port: u16 },
    /// `grpc.health.v1.Health/Check` of `service` (empty: the server as a whole) on `port`.
    Grpc { port: u16, service: String },
    /// A command in the container; exit code 0 is a success.
    Exec { command: Vec<String> },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Volume {
    pub name: String,
    pub source: VolumeSource,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum VolumeSource {
    /// Empty at first, gone with the instance. 0 is no size of its own.
    EmptyDir { memory: bool, size_bytes: u64 },
    /// A file for each key. `optional` goes without when there is no such object.
    Secret {
        name: String,
        #[serde(default)]
        optional: bool,
    },
    ConfigMap {
        name: String,
        #[serde(default)]
        optional: bool,
    },
    /// A folder of one node that outlives instances.
    Local { name: String },
    /// A path of the node, where its configuration allows it.
    HostPath { path: String },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VolumeMount {
    pub name: String,
    pub mount_path: String,
    pub read_only: bool,
    pub sub_path: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SecurityContext {
    pub run_as_user: Option<u32>,
    pub run_as_group: Option<u32>,
    pub read_only_root_filesystem: bool,
    /// Capabilities asked for beyond none, e.g. `NET_BIND_SERVICE`.
    pub add_capabilities: Vec<String>,
    /// In place of the numbers: names the image's own `/etc/passwd` and `/etc/group` know.
    #[serde(default)]
    pub run_as_user_name: Option<String>,
    #[serde(default)]
    pub run_as_group_name: Option<String>,
    /// Further groups, by number or by the image's names.
    #[serde(default)]
    pub supplemental_groups: Vec<String>,
}

/// Where instances may run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PlacementRules {
    /// Region names or `prefix*`; empty allows all.
    pub regions: Vec<String>,
    pub spread: Spread,
    /// Node labels that must be equal.
    pub require: BTreeMap<String, String>,
    /// Whether full nodes are shunned or filled up.
    #[serde(default)]
    pub fit: Fit,
    /// Node labels that speak for a node or against it.
    #[serde(default)]
    pub prefer: Vec<Preference>,
    /// How much the nodes' energy figures count, 0 to 100.
    #[serde(default)]
    pub energy: u32,
    /// Where no node has room, instances of lower priority make it. As in Kubernetes: higher is more
    /// important, and 0 is what nobody said anything of.
    #[serde(default)]
    pub priority: i32,
}

/// No priority is higher, or lower than its negative.
pub const MOST_PRIORITY: i32 = 1_000_000_000;

/// Which of two nodes that differ in nothing but how full they are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fit {
    /// The emptier one, whose processors are shared by fewer.
    #[default]
    Spread,
    /// The fuller one, so that others stay free for what is large or can be switched off.
    Pack,
}

/// A label that speaks for a node, or with a negative weight against it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Preference {
    pub label: String,
    pub value: String,
    /// -100 to 100.
    pub weight: i32,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Spread {
    #[default]
    None,
    Zone,
    Region,
}

/// Bounds and aim of the number of instances of a revision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Scale {
    pub min: u32,
    /// 0 is no bound of the service's own.
    pub max: u32,
    /// What the number of instances follows.
    #[serde(default)]
    pub metric: Metric,
    /// Requests at once an instance is meant to carry; 0 takes the concurrency limit or 100. By another
    /// metric the percentage of what an instance asks for that is to be used; 0 takes the utilization.
    pub target: u32,
    /// The share of `target` the autoscaler aims at, in percent.
    pub utilization_percent: u32,
    /// Stable window, and how long without requests before zero.
    pub window_seconds: u32,
    /// Instances a new revision must show ready before it takes traffic.
    pub initial: u32,
    /// Shrinking waits until nothing within this time wanted more; 0 waits for nothing.
    #[serde(default)]
    pub down_delay_seconds: u32,
    /// The least number in a zone that has requests; 0 and 1 ask for nothing special.
    #[serde(default)]
    pub activation: u32,
    /// Minimums at set times, beside `min`.
    #[serde(default)]
    pub schedules: Vec<Schedule>,
}

/// What a number of instances follows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Metric {
    /// Requests at once.
    #[default]
    Concurrency,
    /// Processors used, as a part of what instances ask for.
    Cpu,
    /// Memory used, likewise.
    Memory,
    /// Requests a second.
    Rps,
}

impl Metric {
    /// Whether it is a part of what instances ask for, and not of what is asked of them.
    #[must_use]
    pub fn is_of_resources(self) -> bool {
        matches!(self, Self::Cpu | Self::Memory)
    }
}

impl FromStr for Metric {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "concurrency" => Ok(Self::Concurrency),
            "rps" => Ok(Self::Rps),
            "cpu" => Ok(Self::Cpu),
            "memory" => Ok(Self::Memory),
            _ => Err(format!(
                "`{text}` is no metric: write concurrency, rps, cpu or memory"
            )),
        }
    }
}

/// A minimum that holds at set times.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Schedule {
    /// `MINUTE HOUR DAY MONTH WEEKDAY`, as for cron: the minutes it begins at.
    pub cron: String,
    /// How long it holds from each of them on.
    pub for_seconds: u32,
    pub min: u32,
    /// Minutes that its clock is ahead of UTC.
    #[serde(default)]
    pub utc_offset_minutes: i32,
}

impl Default for Scale {
    fn default() -> Self {
        Self {
            min: 0,
            max: 0,
            metric: Metric::default(),
            target: 0,
            utilization_percent: 70,
            window_seconds: 60,
            initial: 1,
            down_delay_seconds: 0,
            activation: 0,
            schedules: Vec::new(),
        }
    }
}

/// A share of a service's traffic, in percent; the targets of a service sum to 100.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TrafficTarget {
    /// `None` is the latest ready revision.
    pub revision: Option<Name>,
    pub percent: u32,
    /// Reachable as `TAG-NAME.ORIGIN` too.
    pub tag: Option<Name>,
}

impl RevisionSpec {
    /// The one container that serves requests.
    #[must_use]
    pub fn main(&self) -> Option<&Container> {
        self.containers.first()
    }

    /// Whether connections to the port of requests begin with the PROXY protocol.
    #[must_use]
    pub fn proxy_protocol(&self) -> bool {
        self.annotations
            .get(PROXY_PROTOCOL)
            .is_some_and(|v| v == PROXY_V2)
    }

    /// The port requests go to: the declared one or 8080.
    #[must_use]
    pub fn port(&self) -> ContainerPort {
        self.main()
            .and_then(|c| c.ports.first().copied())
            .unwrap_or(ContainerPort {
                container_port: 8080,
                protocol: Protocol::Http1,
            })
    }
}

impl Volume {
    /// The name of the local volume it is, if it is one.
    #[must_use]
    pub fn local(&self) -> Option<&str> {
        match &self.source {
            VolumeSource::Local { name } => Some(name),
            _ => None,
        }
    }
}

impl Scale {
    /// Requests at once an instance is counted on to carry before utilization: the explicit
    /// target bounded by the hard limit, the hard limit, or 100.
    #[must_use]
    pub fn total_concurrency(&self, container_concurrency: u32) -> u32 {
        let target = match self.metric {
            Metric::Concurrency => self.target,
            _ => 0,
        };
        match (target, container_concurrency) {
            (0, 0) => 100,
            (0, hard) => hard,
            (target, 0) => target,
            (target, hard) => target.min(hard),
        }
    }
}
