//! The UDP socket and the QUIC settings.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{
    AckFrequencyConfig, AsyncTimer, AsyncUdpSocket, ConnectionId, ConnectionIdGenerator,
    EndpointConfig, IdleTimeout, Runtime, TokioRuntime, TransportConfig, VarInt,
};
use ring::hmac;
use socket2::{Domain, Protocol, Type};
use tokio::runtime::Handle;

use super::socket::Socket;
use super::{IDLE_TIMEOUT, KEEP_ALIVE, STREAMS_MAX, TransportError};
use crate::identity::{ALPN_BRANCH, Identity, IdentityError};

/// What one stream may have in flight unread: 20 MB/s at 50 ms.
const STREAM_WINDOW: u32 = 1024 * 1024;
/// What all streams of a connection may have in flight unread. Far more than one stream's, so
/// that slow readers of some streams do not stop the others.
const CONNECTION_WINDOW: u32 = 512 * 1024 * 1024;
/// The same of a connection that a peer's branch made, of which it may have many.
pub(super) const BRANCH_WINDOW: VarInt = VarInt::from_u32(64 * 1024 * 1024);
const SEND_WINDOW: u64 = 16 * 1024 * 1024;
/// Packets a peer may receive before it must acknowledge them; fewer than a connection may send at its beginning, or
/// it would wait for the delay of acknowledgements. The default of one has every second packet answered by one more.
const UNACKNOWLEDGED: u32 = 4;
/// Only the welcome comes on one.
const UNI_STREAMS_MAX: u32 = 4;
/// Asked of the kernel, which may give less: a burst must not overflow while the runtime is busy.
const SOCKET_BUFFER: usize = 2 * 1024 * 1024;

/// The endpoint, and the settings for dialling from it.
pub(super) fn open(
    listen: SocketAddr,
    identity: &Identity,
    runtime: Handle,
) -> Result<(quinn::Endpoint, quinn::ClientConfig), TransportError> {
    let bind_error = |source| TransportError::Bind {
        addr: listen,
        source: Arc::new(source),
    };
    let transport = Arc::new(transport_config());
    let crypto = QuicServerConfig::try_from(identity.server_config()?).map_err(|_| no_suite())?;
    let mut server = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    server
        .transport_config(transport.clone())
        .max_incoming(super::HALF_OPEN_MAX);
    let socket = socket(listen).map_err(bind_error)?;
    let runtime = Arc::new(On(runtime));
    let reset = hmac::Key::new(hmac::HMAC_SHA256, &identity.derive("quic stateless reset"));
    let config = endpoint_config(reset);
    let endpoint =
        quinn::Endpoint::new(config, Some(server), socket, runtime).map_err(bind_error)?;
    Ok((endpoint, client(identity.client_config()?, transport)?))
}

/// The same for a branch of the mesh at `trunk`: it only dials, from any port, and nobody opens streams to it.
pub(super) fn open_branch(
    trunk: SocketAddr,
    identity: &Identity,
    runtime: Handle,
) -> Result<(quinn::Endpoint, quinn::ClientConfig), TransportError> {
    let addr = SocketAddr::new(trunk.ip(), 0);
    let opened = bound(addr).and_then(|socket| {
        let config = EndpointConfig::default();
        quinn::Endpoint::new(config, None, socket, Arc::new(On(runtime)))
    });
    let endpoint = opened.map_err(|source| TransportError::Bind {
        addr,
        source: Arc::new(source),
    })?;
    let mut tls = identity.client_config()?;
    tls.alpn_protocols = vec![ALPN_BRANCH.to_vec()];
    let mut transport = transport_config();
    transport.max_concurrent_bidi_streams(VarInt::from_u32(0));
    Ok((endpoint, client(tls, Arc::new(transport))?))
}

fn client(
    tls: rustls::ClientConfig,
    transport: Arc<TransportConfig>,
) -> Result<quinn::ClientConfig, TransportError> {
    let crypto = QuicClientConfig::try_from(tls).map_err(|_| no_suite())?;
    let mut client = quinn::ClientConfig::new(Arc::new(crypto));
    client.transport_config(transport);
    Ok(client)
}

/// The runtime that drives connections, whoever uses them.
#[derive(Debug)]
struct On(Handle);

impl Runtime for On {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
        let _inside = self.0.enter();
        TokioRuntime.new_timer(at)
    }

    fn spawn(&self, future: Pin<Box<dyn Future<Output = ()> + Send>>) {
        self.0.spawn(future);
    }

    fn wrap_udp_socket(&self, socket: UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        let _inside = self.0.enter();
        Ok(Arc::new(Socket::new(socket)?))
    }

    fn now(&self) -> Instant {
        TokioRuntime.now()
    }
}

/// The ring provider has the suite QUIC begins with, so this is never seen.
fn no_suite() -> TransportError {
    IdentityError::Malformed("TLS configuration").into()
}

/// Reset tokens come from a key of the node's: after a restart, those who still talk to the old process
/// are told at once, instead of waiting until the idle timeout.
pub(crate) fn endpoint_config(reset: hmac::Key) -> EndpointConfig {
    let mut config = EndpointConfig::new(Arc::new(reset));
    config.cid_generator(|| Box::new(RandomIds));
    config
}

/// Random connection ids. The library's own are recognised only by the process that made them, and
/// packets with others are dropped without a reset.
struct RandomIds;

const ID_LEN: usize = 8;

impl ConnectionIdGenerator for RandomIds {
    fn generate_cid(&mut self) -> ConnectionId {
        ConnectionId::new(&rand::random::<[u8; ID_LEN]>())
    }

    fn cid_len(&self) -> usize {
        ID_LEN
    }

    fn cid_lifetime(&self) -> Option<std::time::Duration> {
        None
    }
}

fn transport_config() -> TransportConfig {
    let mut config = TransportConfig::default();
    let idle = IdleTimeout::try_from(IDLE_TIMEOUT).expect("15 s fits in a QUIC integer");
    let mut acknowledged = AckFrequencyConfig::default();
    acknowledged.ack_eliciting_threshold(VarInt::from_u32(UNACKNOWLEDGED));
    config
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_idle_timeout(Some(idle))
        .max_concurrent_bidi_streams(VarInt::from_u32(STREAMS_MAX))
        .max_concurrent_uni_streams(VarInt::from_u32(UNI_STREAMS_MAX))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW))
        .send_window(SEND_WINDOW)
        .datagram_receive_buffer_size(None)
        .ack_frequency_config(Some(acknowledged));
    config
}

/// A socket on `listen`; `[::]` takes IPv4 as well, and becomes `0.0.0.0` where IPv6 is missing.
fn socket(listen: SocketAddr) -> io::Result<UdpSocket> {
    match bound(listen) {
        Err(error) if listen.is_ipv6() && listen.ip().is_unspecified() && no_ipv6(&error) => {
            bound(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), listen.port()))
        }
        result => result,
    }
}

/// EAFNOSUPPORT or EADDRNOTAVAIL: the kernel has no IPv6, or no IPv6 address.
fn no_ipv6(error: &io::Error) -> bool {
    const EAFNOSUPPORT: i32 = 97;
    error.raw_os_error() == Some(EAFNOSUPPORT) || error.kind() == io::ErrorKind::AddrNotAvailable
}

pub(crate) fn bound(addr: SocketAddr) -> io::Result<UdpSocket> {
    let socket = socket2::Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
    if addr.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    // Best effort: the kernel's limit may be lower, and small buffers only cost speed.
    let _ = socket.set_recv_buffer_size(SOCKET_BUFFER);
    let _ = socket.set_send_buffer_size(SOCKET_BUFFER);
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    Ok(socket.into())
}

/// A socket for a client that has no mesh yet: any port, of the family `target` needs.
pub(super) fn client_socket(target: SocketAddr) -> io::Result<UdpSocket> {
    let any = if target.is_ipv6() {
        "[::]:0"
    } else {
        "0.0.0.0:0"
    };
    bound(any.parse().expect("a literal address"))
}
