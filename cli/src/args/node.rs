//! The flags of `up` and `join`; their names are the keys of the node's configuration.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use scheduler::model::{Name, units};

use super::deploy::pair;

#[derive(Debug, Clone, Args)]
pub struct UpArgs {
    #[command(flatten)]
    pub node: NodeFlags,
}

/// The join token comes by the global `--token`: two flags of one name cannot be.
#[derive(Debug, Clone, Args)]
#[command(
    about = "Make this machine a node of a cluster",
    long_about = "Make this machine a node of a cluster. --token takes the join token \
                        that `selvedge token create` prints on a member."
)]
pub struct JoinArgs {
    /// The mesh address of any node of the cluster, HOST:PORT
    pub address: String,
    #[command(flatten)]
    pub node: NodeFlags,
}

/// What a node is and where it listens.
#[derive(Debug, Clone, Args)]
pub struct NodeFlags {
    /// The node's name (default: the host's)
    #[arg(long)]
    pub name: Option<Name>,
    /// The latency area it is in
    #[arg(long, default_value = "local")]
    pub region: Name,
    /// The failure domain inside the region (default: the region)
    #[arg(long)]
    pub zone: Option<Name>,
    /// A label that services can ask for
    #[arg(long = "label", value_name = "K=V", value_parser = pair)]
    pub labels: Vec<(String, String)>,
    /// Where the node keeps everything
    #[arg(long, value_name = "DIR", default_value = "/var/lib/selvedge")]
    pub data: PathBuf,
    /// The configuration that is written
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/etc/selvedge/selvedge.toml"
    )]
    pub config: PathBuf,
    /// Where it listens for other nodes (UDP)
    #[arg(long, value_name = "IP:PORT", default_value = "[::]:8422")]
    pub mesh_listen: SocketAddr,
    /// The address other nodes use, IP:PORT or auto
    #[arg(long, value_name = "IP:PORT", default_value = "auto")]
    pub advertise: String,
    /// Where requests come in: :PORT, IP:PORT or off
    #[arg(long, value_name = "LISTEN", default_value = ":80")]
    pub http: String,
    /// Where requests come in over TLS: :PORT, IP:PORT or off
    #[arg(long, value_name = "LISTEN", default_value = ":443")]
    pub https: String,
    /// Where DNS is answered: :PORT, IP:PORT or off
    #[arg(long, value_name = "LISTEN", default_value = ":53")]
    pub dns: String,
    /// The DNS zone of the services
    #[arg(long, value_name = "ZONE", default_value = "edge.internal")]
    pub origin: String,
    /// Where the operator's API listens
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:8420")]
    pub api: SocketAddr,
    /// The cgroup below which instances run
    #[arg(long, value_name = "PATH")]
    pub cgroup: Option<String>,
    /// A registry (HOST:PORT) spoken to without TLS
    #[arg(long, value_name = "HOST:PORT")]
    pub registry_insecure: Vec<String>,
    /// Cores offered to instances (default: what the machine has)
    #[arg(long, value_name = "CORES", value_parser = units::cpu_millis)]
    pub capacity_cpu: Option<u32>,
    /// Memory offered to instances (default: what the machine has)
    #[arg(long, value_name = "BYTES", value_parser = units::bytes)]
    pub capacity_memory: Option<u64>,
    /// What the daemon logs
    #[arg(long, value_name = "FILTER", default_value = "info")]
    pub log: String,
    /// Run the daemon here, until it ends
    #[arg(long, conflicts_with = "no_start")]
    pub foreground: bool,
    /// Write everything, start nothing
    #[arg(long)]
    pub no_start: bool,
}
