//! The UDP socket of HTTP/3 and the settings of QUIC on it: in numbers those of HTTP/2, as far as there
//! are such.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use quinn::crypto::rustls::QuicServerConfig;
use quinn::{IdleTimeout, TransportConfig, VarInt};
use ring::hmac;

use super::{HALF_OPEN_MAX, Http3};
use crate::ingress::door::{MAX_STREAMS, PING_ANSWER, PING_EVERY};
use crate::ingress::sockets::Sockets;
use crate::transport::{endpoint_config, udp_socket};

/// Three that every client opens, and some of which nobody knows what they mean.
const ONE_WAY_MAX: u32 = 8;
/// What one stream may have in flight unread, as over HTTP/2.
const STREAM_WINDOW: u32 = 1024 * 1024;
/// What all streams of a connection may have in flight unread. Heads of requests count too: bodies that
/// wait for an instance must not hold them up.
const CONNECTION_WINDOW: u32 = 4 * STREAM_WINDOW;
/// What is kept until a client has it.
const SEND_WINDOW: u64 = 2 * 1024 * 1024;

/// Listens at `addr`, with the socket of the daemon before this one where there is one.
pub(in crate::ingress) fn open(
    addr: SocketAddr,
    tls: rustls::ServerConfig,
    http3: &Http3,
    kept: &Sockets,
) -> io::Result<quinn::Endpoint> {
    let crypto = QuicServerConfig::try_from(tls).map_err(io::Error::other)?;
    let mut server = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    server
        .transport_config(Arc::new(transport_config()))
        .max_incoming(HALF_OPEN_MAX);
    let socket = if let Some(handed) = kept.udp(addr) {
        handed
    } else {
        let socket = udp_socket(addr)?;
        kept.keep(true, addr, &socket);
        socket
    };
    let runtime = quinn::default_runtime();
    let runtime = runtime.ok_or_else(|| io::Error::other("there is no async runtime"))?;
    let reset = hmac::Key::new(hmac::HMAC_SHA256, &http3.reset_key);
    quinn::Endpoint::new(endpoint_config(reset), Some(server), socket, runtime)
}

fn transport_config() -> TransportConfig {
    let mut config = TransportConfig::default();
    let idle = PING_EVERY + PING_ANSWER;
    config
        .keep_alive_interval(Some(PING_EVERY))
        .max_idle_timeout(IdleTimeout::try_from(idle).ok())
        .max_concurrent_bidi_streams(VarInt::from_u32(MAX_STREAMS))
        .max_concurrent_uni_streams(VarInt::from_u32(ONE_WAY_MAX))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW))
        .send_window(SEND_WINDOW)
        .datagram_receive_buffer_size(None);
    config
}
