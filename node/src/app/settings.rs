//! What the rooms are told of the configuration: each function derives one room's settings.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use netfabric::dns::InnerConfig;
use netfabric::identity::{Identity, Vault};
use netfabric::ingress::{Http3, IngressConfig};
use netfabric::transport::join;
use scheduler::model::{NodeId, NodeIdentity, Role};

use crate::agent::{INTERNAL, RecordBase};
use crate::clock;
use crate::config::{Address, Auto, Config};
use crate::consensus::Registry;
use crate::network::NetworkConfig;
use crate::volumes::VolumesConfig;

/// Containers keep a service's address for so many seconds: it is the service's as long as that exists.
const INNER_TTL: u32 = 5;
/// The label with the machine's architecture, in the words of images (`amd64`, `arm64`).
const ARCH_LABEL: &str = "selvedge.dev/arch";

/// What of this node's record stays as long as the daemon runs.
pub(super) fn record_base(config: &Config, node: NodeId, mesh: SocketAddr) -> RecordBase {
    RecordBase {
        node,
        name: config.node.name.clone(),
        region: config.node.region.clone(),
        zone: config.node.zone.clone(),
        labels: labels(config),
        incarnation: clock::unix().0,
        mesh,
        ingress: ingress_addresses(config, mesh),
    }
}

/// What its operator says of it, and what it knows itself.
fn labels(config: &Config) -> BTreeMap<String, String> {
    let mut labels = config.node.labels.clone();
    let arch = crate::image::host_architecture().to_owned();
    labels.entry(ARCH_LABEL.to_owned()).or_insert(arch);
    labels
}

pub(super) fn founder(config: &Config, identity: &Identity, mesh: SocketAddr) -> NodeIdentity {
    NodeIdentity {
        id: identity.node(),
        name: config.node.name.clone(),
        region: config.node.region.clone(),
        zone: config.node.zone.clone(),
        mesh,
        public_key: identity.public_key().to_vec(),
        role: Role::Voter,
        enrolled: clock::unix(),
        revoked: false,
        cordoned: false,
        draining: false,
    }
}

pub(super) fn advertised(config: &Config) -> Result<SocketAddr> {
    let found = match config.mesh.advertise {
        Auto::Set(Address(address)) => return Ok(address),
        Auto::Auto => {
            // Nothing is sent: it asks the kernel which address would be the source.
            let far = SocketAddr::from(([192, 0, 2, 1], config.mesh.listen.port()));
            join::advertise_addr(config.mesh.seeds.first().copied().unwrap_or(far))
        }
    };
    let ip = found.context("[mesh] advertise: no address was found by itself; name one")?;
    Ok(SocketAddr::new(ip, config.mesh.listen.port()))
}

pub(super) fn ingress_addresses(config: &Config, mesh: SocketAddr) -> Vec<IpAddr> {
    if config.ingress.addresses.is_empty() {
        vec![mesh.ip()]
    } else {
        config.ingress.addresses.clone()
    }
}

pub(super) fn seeds(config: &Config, registry: &Registry, me: NodeId) -> Vec<SocketAddr> {
    let state = registry.view().state();
    let known = state
        .nodes
        .values()
        .filter(|n| !n.revoked && n.id != me)
        .map(|n| n.mesh);
    let mut seeds: Vec<SocketAddr> = config.mesh.seeds.iter().copied().chain(known).collect();
    seeds.sort();
    seeds.dedup();
    seeds
}

pub(super) fn cgroup(config: &Config) -> String {
    config
        .runtime
        .cgroup
        .clone()
        .unwrap_or_else(|| format!("/selvedge/{}", config.node.name))
}

pub(super) fn network_config(config: &Config, data: &Path) -> Result<NetworkConfig> {
    let subnet = config.runtime.subnet.parse();
    Ok(NetworkConfig {
        subnet: subnet.map_err(|e| anyhow::anyhow!("[runtime] subnet: {e}"))?,
        pool: config.runtime.network_pool,
        deny_ports: own_ports(config),
        ..NetworkConfig::of(config.node.name.as_str(), data.join("run"))
    })
}

/// Ports that are the node's own on whatever address.
fn own_ports(config: &Config) -> Vec<u16> {
    let metrics = config.observe.metrics.0.map(|address| address.port());
    let always = [config.mesh.listen.port(), config.api.listen.port()];
    always.into_iter().chain(metrics).collect()
}

pub(super) fn volumes_config(config: &Config, data: &Path, me: NodeId) -> Result<VolumesConfig> {
    Ok(VolumesConfig {
        me,
        data: data.to_owned(),
        host_paths: config.runtime.host_paths.clone(),
        vault: Vault::load(&data.join("identity"))?,
    })
}

/// `reset_key` is for clients of HTTP/3 that still talk to a daemon that is gone.
pub(super) fn ingress_config(
    config: &Config,
    gateway: Ipv4Addr,
    reset_key: [u8; 32],
) -> IngressConfig {
    IngressConfig {
        inner: Some((gateway, 0).into()),
        listen: config.ingress.http.0.into_iter().collect(),
        listen_tls: config.ingress.https.0.into_iter().collect(),
        http3: config.ingress.http3.then_some(Http3 { reset_key }),
        activation_queue: config.ingress.activation_queue,
        activation_timeout: config.ingress.activation_timeout.0,
        proxy_protocol: config.ingress.proxy_protocol,
        max_body: config.ingress.max_body.0,
        client_rate: config.ingress.client_rate.0,
        ..IngressConfig::default()
    }
}

/// The node's own resolvers serve its containers too.
pub(super) fn inner_dns_config(gateway: Ipv4Addr, resolvers: &[SocketAddr]) -> InnerConfig {
    InnerConfig {
        listen: (gateway, 0).into(),
        domain: INTERNAL.to_owned(),
        ttl: INNER_TTL,
        resolvers: resolvers.to_vec(),
    }
}

/// The operator token, made at the first start.
pub(super) fn operator_token(data: &Path) -> Result<String> {
    let path = data.join("identity/operator.token");
    if let Ok(token) = fs::read_to_string(&path) {
        return Ok(token.trim().to_owned());
    }
    let token = format!("{:032x}", rand::random::<u128>());
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)?;
    writeln!(file, "{token}")?;
    file.sync_all()?;
    Ok(token)
}
