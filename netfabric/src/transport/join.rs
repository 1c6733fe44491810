//! How a machine becomes a node: it recognises the cluster by its token's CA hash, shows the
//! token's secret and a signing request, and is given a certificate and the state of the cluster.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use quinn::VarInt;
use quinn::crypto::rustls::QuicClientConfig;
use scheduler::model::{Name, NodeId};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;
use tracing::debug;

use super::{Inner, code, endpoint, lock};
use crate::identity::{
    IdentityError, JoinToken, MESH_NAME, ca_hash, join_client_config, sha256_hex,
};
use crate::wire::frame::{self, FrameError};

/// What anyone on the network may make this node read before it knows them.
const REQUEST_LIMIT: usize = 64 * 1024;
const RESPONSE_LIMIT: usize = 8 * 1024 * 1024;
/// For the request to arrive; a stranger holds no connection longer than this without one.
const READ_DEADLINE: Duration = Duration::from_secs(5);
/// For the cluster to decide, and again for the answer to be taken.
const DECIDE_DEADLINE: Duration = Duration::from_secs(20);
/// Connections of strangers.
pub(super) const CONNECTIONS_MAX: usize = 64;
/// Requests that are being decided.
pub(super) const JOINS_MAX: usize = 16;

/// What a machine asks for. Its name, place and address are its own choice; the cluster checks
/// the name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinRequest {
    pub name: Name,
    pub region: Name,
    pub zone: Name,
    /// Where the cluster will reach it.
    pub mesh: SocketAddr,
    /// Its signing request, PEM.
    pub csr: String,
    pub version: String,
}

/// A node that the newcomer can talk to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinPeer {
    pub node: NodeId,
    pub mesh: SocketAddr,
    pub public_key: Vec<u8>,
}

/// What it is given. `Debug` shows no key.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinResponse {
    pub node: NodeId,
    pub cluster_id: String,
    /// PEM.
    pub certificate: String,
    /// PEM.
    pub ca: String,
    /// PEM, for a node that becomes a voter.
    pub ca_key: Option<String>,
    /// The key under which secrets are sealed, as text; a cluster founded before there was one
    /// has none.
    pub secrets_key: Option<String>,
    pub peers: Vec<JoinPeer>,
    /// The registry's state as JSON.
    pub registry: Vec<u8>,
}

impl std::fmt::Debug for JoinResponse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JoinResponse")
            .field("node", &self.node)
            .field("cluster_id", &self.cluster_id)
            .field("voter", &self.ca_key.is_some())
            .finish_non_exhaustive()
    }
}

/// Why the cluster does not take a machine in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum JoinRefusal {
    #[error("the join token is unknown to the cluster")]
    TokenUnknown,
    #[error("the join token was used already; ask for a new one")]
    TokenUsed,
    #[error("the join token has expired; ask for a new one")]
    TokenExpired,
    #[error("the name {0} is taken by another node")]
    NameTaken(Name),
    #[error("the cluster cannot decide now: {0}")]
    NoQuorum(String),
    #[error("this node takes nobody in at the moment; try again or ask another node")]
    Busy,
    /// The request itself is at fault (signing request, address…): the words say how.
    #[error("{0}")]
    Invalid(String),
}

/// Decides about newcomers.
#[async_trait]
pub trait JoinHandler: Send + Sync + 'static {
    /// `token_hash` is the lowercase hex SHA-256 of the secret that was shown.
    async fn join(
        &self,
        from: SocketAddr,
        token_hash: String,
        request: JoinRequest,
    ) -> Result<JoinResponse, JoinRefusal>;
}

/// Why a join did not succeed, seen from the machine that wants in.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    #[error("cannot open a socket: {0}")]
    Socket(#[from] io::Error),
    #[error("{0}")]
    Identity(#[from] IdentityError),
    #[error("nobody answers at {0}")]
    Unreachable(SocketAddr),
    /// Its certificate, or the CA it hands out, is not from the CA that the token names. In the
    /// first case the token was not sent.
    #[error(
        "the cluster at {0} is not the one this token is for (its CA is another one); \
         nothing was taken from it"
    )]
    WrongCluster(SocketAddr),
    #[error("connecting to {addr}: {source}")]
    Connect {
        addr: SocketAddr,
        source: quinn::ConnectionError,
    },
    #[error("cannot dial {addr}: {source}")]
    Dial {
        addr: SocketAddr,
        source: quinn::ConnectError,
    },
    #[error("talking to {addr}: {source}")]
    Talk {
        addr: SocketAddr,
        source: FrameError,
    },
    #[error("{0}")]
    Refused(#[from] JoinRefusal),
}

/// The secret goes over the wire, so it has no `Debug`.
#[derive(Serialize, Deserialize)]
struct Envelope {
    secret: String,
    request: JoinRequest,
}

/// Asks the cluster at `addr` to take this machine in. The token is sent only to a server whose
/// certificate comes from the CA that the token names.
pub async fn enroll(
    addr: SocketAddr,
    token: &JoinToken,
    request: JoinRequest,
    deadline: Duration,
) -> Result<JoinResponse, JoinError> {
    let crypto = QuicClientConfig::try_from(join_client_config(token.ca_hash())?)
        .map_err(|_| IdentityError::Malformed("TLS configuration"))?;
    let runtime =
        quinn::default_runtime().ok_or_else(|| io::Error::other("there is no async runtime"))?;
    let socket = endpoint::client_socket(addr)?;
    let endpoint = quinn::Endpoint::new(quinn::EndpointConfig::default(), None, socket, runtime)?;
    let client = quinn::ClientConfig::new(Arc::new(crypto));
    let talk = async {
        let conn = endpoint
            .connect_with(client, addr, MESH_NAME)
            .map_err(|source| JoinError::Dial { addr, source })?
            .await
            .map_err(|source| refused_connection(addr, source))?;
        let envelope = Envelope {
            secret: token.secret().to_owned(),
            request,
        };
        let answer = exchange(&conn, &envelope)
            .await
            .map_err(|source| JoinError::Talk { addr, source })?;
        conn.close(code::CLOSING, b"done");
        let response = answer?;
        if ca_hash(&response.ca)? != token.ca_hash() {
            return Err(JoinError::WrongCluster(addr));
        }
        Ok(response)
    };
    let result = timeout(deadline, talk)
        .await
        .unwrap_or(Err(JoinError::Unreachable(addr)));
    endpoint.close(code::CLOSING, b"done");
    // Only so that the goodbye leaves.
    let _ = timeout(Duration::from_millis(200), endpoint.wait_idle()).await;
    result
}

fn refused_connection(addr: SocketAddr, source: quinn::ConnectionError) -> JoinError {
    match &source {
        quinn::ConnectionError::TimedOut => JoinError::Unreachable(addr),
        // Our own TLS refused the server's certificate.
        quinn::ConnectionError::TransportError(error) if is_certificate_alert(error.code) => {
            JoinError::WrongCluster(addr)
        }
        _ => JoinError::Connect { addr, source },
    }
}

/// The TLS alerts about certificates: 42 to 46 and 48 (RFC 8446, 6.2).
fn is_certificate_alert(code: quinn::TransportErrorCode) -> bool {
    const CRYPTO: u64 = 0x100;
    matches!(u64::from(code).checked_sub(CRYPTO), Some(42..=46 | 48))
}

async fn exchange(
    conn: &quinn::Connection,
    envelope: &Envelope,
) -> Result<Result<JoinResponse, JoinRefusal>, FrameError> {
    let (mut send, mut recv) = conn.open_bi().await.map_err(io::Error::from)?;
    frame::write_value(&mut send, envelope, REQUEST_LIMIT).await?;
    // Fails only when the server has stopped reading; the answer says why.
    let _ = send.finish();
    frame::read_value(&mut recv, RESPONSE_LIMIT).await
}

/// Serves one stranger: one request, one answer.
pub(super) async fn serve(inner: &Arc<Inner>, conn: quinn::Connection) {
    conn.set_max_concurrent_bi_streams(VarInt::from_u32(1));
    conn.set_max_concurrent_uni_streams(VarInt::from_u32(0));
    let Ok(_connection) = inner.join_connections.clone().try_acquire_owned() else {
        return conn.close(code::BUSY, b"busy");
    };
    let read = async {
        let (send, mut recv) = conn.accept_bi().await.map_err(io::Error::from)?;
        let envelope: Envelope = frame::read_value(&mut recv, REQUEST_LIMIT).await?;
        Ok::<_, FrameError>((send, envelope))
    };
    let (mut send, envelope) = match timeout(READ_DEADLINE, read).await {
        Ok(Ok(read)) => read,
        Ok(Err(error)) => {
            debug!(remote = %conn.remote_address(), %error, "a join that is none");
            return conn.close(code::MALFORMED, b"malformed");
        }
        Err(_) => return conn.close(code::ABORTED, b"too slow"),
    };
    let answer = decide(inner, super::canonical(conn.remote_address()), envelope).await;
    let reply = async {
        frame::write_value(&mut send, &answer, RESPONSE_LIMIT).await?;
        let _ = send.finish();
        // Until the joiner has it all and hangs up.
        conn.closed().await;
        Ok::<_, FrameError>(())
    };
    if let Ok(Err(error)) = timeout(DECIDE_DEADLINE, reply).await {
        debug!(remote = %conn.remote_address(), %error, "a join could not be answered");
    }
    conn.close(code::CLOSING, b"done");
}

async fn decide(
    inner: &Inner,
    from: SocketAddr,
    envelope: Envelope,
) -> Result<JoinResponse, JoinRefusal> {
    let _permit = inner
        .joins
        .clone()
        .try_acquire_owned()
        .map_err(|_| JoinRefusal::Busy)?;
    let handler = lock(&inner.join).clone().ok_or(JoinRefusal::Busy)?;
    let token_hash = sha256_hex(envelope.secret.as_bytes());
    match timeout(
        DECIDE_DEADLINE,
        handler.join(from, token_hash, envelope.request),
    )
    .await
    {
        Ok(answer) => answer,
        Err(_) => Err(JoinRefusal::NoQuorum("no decision in time".to_owned())),
    }
}

/// Which of this machine's addresses reaches `target`: for a node told to advertise the one that
/// fits. Sends nothing.
pub fn advertise_addr(target: SocketAddr) -> io::Result<IpAddr> {
    let any: SocketAddr = if target.is_ipv6() {
        (std::net::Ipv6Addr::UNSPECIFIED, 0).into()
    } else {
        (std::net::Ipv4Addr::UNSPECIFIED, 0).into()
    };
    let socket = UdpSocket::bind(any)?;
    socket.connect(target)?;
    Ok(super::canonical(socket.local_addr()?).ip())
}

#[cfg(test)]
#[path = "join_tests.rs"]
mod tests;
