//! Authoritative DNS for one origin: `NAME.ORIGIN` answers with the front doors nearest to whoever
//! asks. Owns the sockets, the wire format and the zone's shape; it does not own what exists or
//! which front door is near: that is asked of [`Answers`], which the node builds over
//! `scheduler::route`.
//!
//! The loops are our own over `hickory-proto` and not `hickory-server`: its listener accepts TCP
//! without bound and writes two log lines per query, and a function from bytes to bytes tests well.
//!
//! `outer` is that server; `inner` is another one, for a node's own containers. Both listen by `serve`.
//!
//! Known limit: replies to a wildcard listener leave from the address the kernel's routing picks;
//! a host with several addresses names the one it serves DNS on in `[dns] listen`.

#[cfg(any(test, feature = "fuzz"))]
pub(crate) mod fuzz;
mod inner;
mod limit;
mod message;
mod outer;
mod serve;
mod subnets;
mod zone;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use scheduler::model::Name;
use tokio::task::JoinSet;

use crate::sockets::Sockets;

pub use inner::{InnerConfig, InnerDns};
pub use subnets::{Cidr, CidrError};

/// What the zone is made of, as it is at the moment of a query. Every method is called per query
/// and must not block.
///
/// A `name` is relative to the origin, in lower case and without a trailing dot: `web` is service
/// `web` of the default namespace, `web.shop` is service `web` of namespace `shop`.
pub trait Answers: Send + Sync + 'static {
    /// Whether a service (or a tag of one) has this name.
    fn service_exists(&self, name: &str) -> bool;

    /// Whether some service's name ends in `.name`: a namespace. Such a name has no records but
    /// exists, else resolvers may conclude that nothing below it does (RFC 8020).
    fn encloses(&self, name: &str) -> bool {
        let _ = name;
        false
    }

    /// Front doors for an existing service, nearest first; of both families, the zone sorts them.
    /// Never empty for an existing service while any front door is known.
    fn nearest(&self, name: &str, client: &Client) -> Vec<IpAddr>;

    /// Texts at a name that is no service's, for a moment: what an authority looks for.
    fn texts(&self, name: &str) -> Vec<String> {
        let _ = name;
        Vec::new()
    }

    /// Name servers of the origin: names relative to it (`ns1`, `par-1.ns`) and their addresses.
    fn name_servers(&self) -> Vec<(String, Vec<IpAddr>)>;

    /// Rises with every change; the SOA's serial is its low 32 bits.
    fn serial(&self) -> u64;
}

/// Who an answer is for. Both `None`: somebody near the asked node, as far as is known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Client {
    /// The network address of the client's subnet, when the resolver told it (RFC 7871).
    pub subnet: Option<IpAddr>,
    /// The region the operator's table gives that subnet.
    pub region: Option<Name>,
}

#[derive(Debug, Clone)]
pub struct DnsConfig {
    pub listen: SocketAddr,
    /// The zone, without a leading dot: `edge.example`.
    pub origin: String,
    /// Seconds an answer (also a negative one) may be cached.
    pub ttl: u32,
    /// Which client networks belong to which region; the longest match wins.
    pub subnets: Vec<(Cidr, Name)>,
}

#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    #[error("`{origin}` is no DNS name to answer for")]
    Origin {
        origin: String,
        #[source]
        source: hickory_proto::ProtoError,
    },
    #[error("cannot listen for DNS on {listen}")]
    Listen {
        listen: SocketAddr,
        #[source]
        source: io::Error,
    },
}

/// The running server; dropping it closes its sockets.
pub struct Dns {
    local: SocketAddr,
    tasks: JoinSet<()>,
}

impl Dns {
    /// Binds UDP and TCP on `config.listen` and answers from then on.
    ///
    /// # Errors
    /// [`DnsError`] when the origin is no name or the port is not to be had.
    pub async fn start(
        config: DnsConfig,
        answers: Arc<dyn Answers>,
        sockets: &Sockets,
    ) -> Result<Self, DnsError> {
        let outer = outer::Outer::new(zone::Zone::new(&config, answers)?);
        let (local, tasks) = serve::start(config.listen, Arc::new(outer), sockets).await?;
        Ok(Self { local, tasks })
    }

    /// Where it listens, over UDP and TCP alike.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Stops answering.
    pub async fn close(mut self) {
        self.tasks.shutdown().await;
    }
}

#[cfg(test)]
mod tests;
