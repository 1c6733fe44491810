//! Requests over HTTP/3, from a client of its library's own.

mod hostile;
mod life;
mod requests;

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use h3::client::{RequestStream, SendRequest};
use h3::error::StreamError;
use h3_quinn::{BidiStream, OpenStreams};
use http::Request;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ConnectionError, Endpoint};

use super::super::{Http3, IngressConfig};
use super::app::Reply;
use super::tls::{Made, made};
use super::world::{Deployed, World};

const WEB: &str = "web.edge.test";

type Talk = RequestStream<BidiStream<Bytes>, Bytes>;

fn on(config: &mut IngressConfig) {
    config.http3 = Some(Http3 { reset_key: [7; 32] });
}

/// A node with HTTP/3 and a certificate for every service.
async fn world(deployed: Deployed) -> (World, Made) {
    let world = World::new(1, deployed, on).await;
    let cert = made(&["*.edge.test"]);
    cert.on(&world);
    (world, cert)
}

fn door(world: &World) -> SocketAddr {
    world.ingress().tls_addrs()[0]
}

/// A connection without HTTP on it yet.
async fn quic(
    door: SocketAddr,
    host: &str,
    cert: &Made,
) -> Result<(Endpoint, quinn::Connection), ConnectionError> {
    let endpoint = Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    let config = client_config(cert);
    let connecting = endpoint.connect_with(config, door, host).unwrap();
    Ok((endpoint, connecting.await?))
}

fn client_config(cert: &Made) -> quinn::ClientConfig {
    let crypto = QuicClientConfig::try_from(cert.client(&["h3"])).unwrap();
    quinn::ClientConfig::new(Arc::new(crypto))
}

struct Client {
    _endpoint: Endpoint,
    quic: quinn::Connection,
    send: SendRequest<OpenStreams, Bytes>,
    /// Ends with the connection, and says how.
    ended: tokio::task::JoinHandle<h3::error::ConnectionError>,
}

impl Client {
    async fn new(world: &World, cert: &Made) -> Self {
        Self::at(door(world), cert).await
    }

    async fn at(door: SocketAddr, cert: &Made) -> Self {
        let connected = quic(door, WEB, cert).await;
        let (endpoint, quic) = connected.unwrap();
        let connection = h3_quinn::Connection::new(quic.clone());
        let (mut driver, send) = h3::client::new(connection).await.unwrap();
        let ended = tokio::spawn(async move { poll_fn(|cx| driver.poll_close(cx)).await });
        Self {
            _endpoint: endpoint,
            quic,
            send,
            ended,
        }
    }

    /// Begins a request; its end is to be said.
    async fn begin(&mut self, request: Request<()>) -> Result<Talk, StreamError> {
        self.send.send_request(request).await
    }

    async fn get(&mut self, path: &str) -> Reply {
        self.send(ask(path).body(()).unwrap(), "").await
    }

    async fn send(&mut self, request: Request<()>, body: impl Into<Bytes>) -> Reply {
        let mut talk = self.begin(request).await.unwrap();
        let body = body.into();
        if !body.is_empty() {
            talk.send_data(body).await.unwrap();
        }
        talk.finish().await.unwrap();
        read(&mut talk).await.unwrap()
    }
}

fn ask(path: &str) -> http::request::Builder {
    Request::get(format!("https://{WEB}{path}"))
}

async fn read(talk: &mut Talk) -> Result<Reply, StreamError> {
    let (head, ()) = talk.recv_response().await?.into_parts();
    let mut body = Vec::new();
    while let Some(mut data) = talk.recv_data().await? {
        body.extend_from_slice(&data.copy_to_bytes(data.remaining()));
    }
    Ok(Reply {
        status: head.status.as_u16(),
        headers: head.headers,
        body: String::from_utf8_lossy(&body).into_owned(),
        trailers: talk.recv_trailers().await?,
    })
}
