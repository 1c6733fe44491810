//! The node's configuration: one TOML file, unknown keys refused with their line, units in values.
//! The only reader of that file; each room gets the section that is its own.

mod values;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use scheduler::model::{ChallengeKind, Name};
use serde::Deserialize;

use crate::image::{Marks, SignatureRule};
use crate::volumes::HostPath;

pub use values::{Address, Auto, Bytes, ClientRate, Cpu, FromText, Listen, Span};

/// Larger files are refused before they are parsed.
const MAX_BYTES: u64 = 256 * 1024;

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the configuration {path}: {source}")]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("the configuration {path} has {bytes} bytes, more than {MAX_BYTES}")]
    TooLarge { path: PathBuf, bytes: u64 },
    #[error("the configuration {path} is wrong: {source}")]
    Parse {
        path: PathBuf,
        source: Box<toml::de::Error>,
    },
    #[error("the configuration {path} is wrong: {what}")]
    Unfit { path: PathBuf, what: &'static str },
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub node: NodeSection,
    #[serde(default)]
    pub capacity: CapacitySection,
    #[serde(default)]
    pub mesh: MeshSection,
    #[serde(default)]
    pub api: ApiSection,
    #[serde(default)]
    pub images: ImagesSection,
    #[serde(default)]
    pub ingress: IngressSection,
    /// Without it no certificates are ordered by this node.
    #[serde(default)]
    pub acme: Option<AcmeSection>,
    #[serde(default)]
    pub dns: DnsSection,
    #[serde(default)]
    pub runtime: RuntimeSection,
    #[serde(default)]
    pub observe: ObserveSection,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeSection {
    pub name: Name,
    pub region: Name,
    pub zone: Name,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    #[serde(default = "default_data")]
    pub data: PathBuf,
}

fn default_data() -> PathBuf {
    "/var/lib/selvedge".into()
}

/// What this node offers to instances. `auto` is what the machine has, less the reserve.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CapacitySection {
    pub cpu: Auto<Cpu>,
    pub memory: Auto<Bytes>,
    pub reserve: Reserve,
    pub max_instances: u32,
}

/// Instances of one node. A bridge of Linux has 1024 ports: one for each of them, and some for what is being made
/// and removed.
const MOST_INSTANCES: u32 = 1_000;

impl CapacitySection {
    fn check(&self) -> Result<(), &'static str> {
        if self.max_instances > MOST_INSTANCES {
            return Err(
                "`[capacity] max_instances` is above 1000: the bridge of a node has no more ports",
            );
        }
        Ok(())
    }
}

impl Default for CapacitySection {
    fn default() -> Self {
        Self {
            cpu: Auto::Auto,
            memory: Auto::Auto,
            reserve: Reserve::default(),
            max_instances: 500,
        }
    }
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Reserve {
    pub cpu: Cpu,
    pub memory: Bytes,
}

impl Default for Reserve {
    fn default() -> Self {
        Self {
            cpu: Cpu(200),
            memory: Bytes(256 << 20),
        }
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MeshSection {
    pub listen: SocketAddr,
    /// The address peers use; `auto` is the one this node reaches its first seed from.
    pub advertise: Auto<Address>,
    pub seeds: Vec<SocketAddr>,
}

impl Default for MeshSection {
    fn default() -> Self {
        let any = std::net::Ipv6Addr::UNSPECIFIED;
        Self {
            listen: (any, 8422).into(),
            advertise: Auto::Auto,
            seeds: Vec::new(),
        }
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ApiSection {
    pub listen: SocketAddr,
}

impl Default for ApiSection {
    fn default() -> Self {
        Self {
            listen: (std::net::Ipv4Addr::LOCALHOST, 8420).into(),
        }
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ImagesSection {
    /// Where `docker push` reaches this node. Plain HTTP, so loopback alone; off unless asked for.
    pub listen: Listen,
    /// Which images need whose signature; none by default.
    pub signatures: Vec<SignaturesSection>,
}

/// One of `keys` (files in PEM form) must have signed every image that begins as one of `images`, in
/// each of `namespaces`. Without `images` that is every image, without `namespaces` everywhere.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignaturesSection {
    #[serde(default)]
    pub namespaces: Vec<Name>,
    #[serde(default)]
    pub images: Vec<String>,
    pub keys: Vec<PathBuf>,
}

impl SignaturesSection {
    pub fn rule(&self) -> SignatureRule {
        SignatureRule {
            namespaces: self.namespaces.iter().map(ToString::to_string).collect(),
            images: self.images.clone(),
            keys: self.keys.clone(),
        }
    }
}

impl Default for ImagesSection {
    fn default() -> Self {
        Self {
            listen: Listen(None),
            signatures: Vec::new(),
        }
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct IngressSection {
    pub http: Listen,
    /// Where TLS is spoken, with the cluster's certificates.
    pub https: Listen,
    /// Addresses clients reach this door at, for DNS; empty takes the mesh address.
    pub addresses: Vec<std::net::IpAddr>,
    pub activation_queue: usize,
    pub activation_timeout: Span,
    /// Every connection comes through a load balancer that begins it with the PROXY protocol.
    pub proxy_protocol: bool,
    /// What the body of a client's request may have; gRPC's streams may have more.
    pub max_body: Bytes,
    /// Requests that this node's doors take from one client: an address, or of IPv6 a /64.
    pub client_rate: ClientRate,
    /// Whether HTTP/3 is spoken too, over UDP where `https` is.
    pub http3: bool,
}

impl IngressSection {
    /// What does not go together.
    fn check(&self) -> Result<(), &'static str> {
        if self.http3 && self.https.0.is_none() {
            return Err("`[ingress] http3` needs `https`, at whose address it is spoken");
        }
        if self.http3 && self.proxy_protocol {
            return Err(
                "`[ingress] http3` does not go with `proxy_protocol`: over UDP nobody says whose a connection is",
            );
        }
        Ok(())
    }
}

impl Default for IngressSection {
    fn default() -> Self {
        Self {
            http: Listen::port(80),
            https: Listen::port(443),
            addresses: Vec::new(),
            activation_queue: 1000,
            activation_timeout: Span(Duration::from_secs(30)),
            proxy_protocol: false,
            max_body: Bytes(100 << 20),
            client_rate: ClientRate(None),
            http3: false,
        }
    }
}

/// The authority that is asked for certificates of services that want one. Every node that has this
/// section can order for the fleet; one does at a time.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AcmeSection {
    /// The URL of its directory.
    pub directory: String,
    /// The operator's agreement to its terms of service.
    #[serde(default)]
    pub terms_agreed: bool,
    /// Mail addresses for what the authority has to say.
    #[serde(default)]
    pub contact: Vec<String>,
    /// CA certificates (PEM) that its server is trusted by, in the place of the machine's.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// Orders of the whole fleet within an hour, at most.
    #[serde(default = "default_orders")]
    pub orders_per_hour: usize,
    /// How a host is shown to be ours, the preferred way first.
    #[serde(default = "default_challenges")]
    pub challenges: Vec<ChallengeKind>,
    /// One certificate for all hosts of a namespace under the origin.
    #[serde(default)]
    pub wildcard: bool,
}

fn default_orders() -> usize {
    20
}

fn default_challenges() -> Vec<ChallengeKind> {
    vec![
        ChallengeKind::Http,
        ChallengeKind::TlsAlpn,
        ChallengeKind::Dns,
    ]
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DnsSection {
    pub listen: Listen,
    pub origin: String,
    pub ttl: Span,
    /// Which region a client subnet (`192.0.2.0/24`) is near to.
    pub subnets: BTreeMap<String, Name>,
}

impl Default for DnsSection {
    fn default() -> Self {
        Self {
            listen: Listen::port(53),
            origin: "edge.internal".to_owned(),
            ttl: Span(Duration::from_secs(5)),
            subnets: BTreeMap::new(),
        }
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RuntimeSection {
    /// Below it every instance has its cgroup.
    pub cgroup: Option<String>,
    /// The containers' subnet; only this node sees it, so all nodes may use the same.
    pub subnet: String,
    /// How single registries (`host:port`) are spoken to.
    pub registries: BTreeMap<String, RegistrySection>,
    /// Prepared network namespaces kept in stock.
    pub network_pool: usize,
    /// Containers kept prepared up to the start of their program, at most; 0 keeps none.
    pub parked: u32,
    /// Bytes of images a second that each peer gets from this node; without it, as many as the
    /// link carries beside everything else.
    pub image_peer_rate: Option<Bytes>,
    /// Bytes of images an hour, unpacked, that are brought here before anything here is started
    /// from them, because this node is likely to be asked to; 0 brings none.
    pub image_prefetch: Bytes,
    /// Paths of this machine that services may mount: `/srv/share`, or `/srv/data:rw` to write.
    pub host_paths: Vec<HostPath>,
    /// How full images may make the disk.
    pub image_gc: ImageGcSection,
    /// Whether an instance may start while its image still arrives from peers.
    pub image_lazy: ImageLazy,
}

/// `on`: where a peer holds an image and much of it is missing here, an instance starts at once and
/// reads its files as they come. Until all is here, one peer's word is taken for what the layers look
/// like; `image::lazy` says exactly what is trusted. `off`: nothing runs before all of it is verified.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageLazy {
    #[default]
    Off,
    On,
}

/// Beyond `high` per cent of the disk unused images are removed until it is `low`. With `limit`
/// the same holds of that many bytes of images, whatever the disk has.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ImageGcSection {
    pub high: u8,
    pub low: u8,
    pub limit: Option<Bytes>,
}

impl Default for ImageGcSection {
    fn default() -> Self {
        let marks = Marks::default();
        Self {
            high: marks.high,
            low: marks.low,
            limit: None,
        }
    }
}

impl ImageGcSection {
    /// The marks, or what is wrong with them.
    pub fn marks(self) -> Result<Marks, &'static str> {
        if self.high > 100 || self.low == 0 || self.low >= self.high {
            return Err("0 < low < high <= 100, in per cent");
        }
        Ok(Marks {
            high: self.high,
            low: self.low,
            limit: self.limit.map(|bytes| bytes.0),
        })
    }
}

impl Default for RuntimeSection {
    fn default() -> Self {
        Self {
            cgroup: None,
            subnet: "10.201.0.0/16".to_owned(),
            registries: BTreeMap::new(),
            network_pool: 4,
            parked: 256,
            image_peer_rate: None,
            image_prefetch: Bytes(1 << 30),
            host_paths: Vec::new(),
            image_gc: ImageGcSection::default(),
            image_lazy: ImageLazy::default(),
        }
    }
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RegistrySection {
    /// Plain HTTP, without TLS.
    pub insecure: bool,
    /// A file of CA certificates (PEM) that its certificate may be signed by too.
    pub ca: Option<PathBuf>,
    /// Registries (`host:port`) that are asked before it, in this order. How they are spoken to
    /// stands in sections of their own.
    pub mirror: Vec<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ObserveSection {
    /// A `tracing` filter: `info`, `node=debug,warn`, …
    pub log: String,
    /// Where `/metrics` is served. On loopback by default: it asks for no token.
    pub metrics: Listen,
}

impl Default for ObserveSection {
    fn default() -> Self {
        Self {
            log: "info".to_owned(),
            metrics: Listen(Some((std::net::Ipv4Addr::LOCALHOST, 8421).into())),
        }
    }
}

impl Config {
    /// Reads and checks the file at `path`.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let read = |source| ConfigError::Read {
            path: path.to_owned(),
            source,
        };
        let bytes = std::fs::metadata(path).map_err(read)?.len();
        if bytes > MAX_BYTES {
            return Err(ConfigError::TooLarge {
                path: path.to_owned(),
                bytes,
            });
        }
        let text = std::fs::read_to_string(path).map_err(read)?;
        let config: Self = toml::from_str(&text).map_err(|source| ConfigError::Parse {
            path: path.to_owned(),
            source: Box::new(source),
        })?;
        let unfit = |what| ConfigError::Unfit {
            path: path.to_owned(),
            what,
        };
        config.ingress.check().map_err(unfit)?;
        config.capacity.check().map_err(unfit)?;
        Ok(config)
    }
}
