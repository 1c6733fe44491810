//! Requests over TLS, and what plain HTTP gets beside it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{Empty, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use rustls::{AlertDescription, ClientConfig, ClientConnection, HandshakeKind, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::app::{Reply, get, raw, read, request};
use super::world::{Deployed, ORIGIN, World, eventually};
use crate::tls::{Bundle, Table};

const WEB: &str = "web.edge.test";

/// A certificate, and a client's settings that trust it alone.
pub struct Made {
    pub bundle: Bundle,
    chain: CertificateDer<'static>,
    roots: RootCertStore,
}

pub fn made(hosts: &[&str]) -> Made {
    let (chain, key) = crate::tls::made(hosts);
    let bundle = Bundle::read(chain.as_bytes(), key.as_bytes()).unwrap();
    let chain = CertificateDer::from_pem_slice(chain.as_bytes()).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(chain.clone()).unwrap();
    Made {
        bundle,
        chain,
        roots,
    }
}

impl Made {
    pub fn client(&self, alpn: &[&str]) -> Arc<ClientConfig> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider);
        let config = config.with_safe_default_protocol_versions().unwrap();
        let mut config = config
            .with_root_certificates(self.roots.clone())
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
        Arc::new(config)
    }

    pub fn on(&self, world: &World) {
        for node in &world.nodes {
            let mut table = Table::default();
            table.put(&self.bundle);
            node.shelf.set(table);
        }
    }
}

fn door(world: &World) -> SocketAddr {
    world.nodes[0].ingress().tls_addrs()[0]
}

pub async fn connect(
    door: SocketAddr,
    host: &str,
    config: &Arc<ClientConfig>,
) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(door).await?;
    let name = ServerName::try_from(host.to_owned()).unwrap();
    TlsConnector::from(config.clone())
        .connect(name, stream)
        .await
}

pub async fn h1(stream: TlsStream<TcpStream>, request: Request<Full<Bytes>>) -> Reply {
    let shaken = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = shaken.unwrap();
    tokio::spawn(connection);
    read(sender.send_request(request).await.unwrap()).await
}

pub async fn h2(stream: TlsStream<TcpStream>, request: http::request::Builder) -> Reply {
    let io = TokioIo::new(stream);
    let shaken = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await;
    let (mut sender, connection) = shaken.unwrap();
    tokio::spawn(connection);
    let request = request.body(Empty::<Bytes>::new()).unwrap();
    read(sender.send_request(request).await.unwrap()).await
}

fn body(text: impl Into<Bytes>) -> Full<Bytes> {
    Full::new(text.into())
}

fn alert(error: &std::io::Error) -> Option<AlertDescription> {
    let inner = error.get_ref()?.downcast_ref::<rustls::Error>()?;
    match inner {
        rustls::Error::AlertReceived(alert) => Some(*alert),
        _ => None,
    }
}

#[tokio::test]
async fn both_versions_of_http_are_served_and_the_app_is_told() {
    let world = World::one(Deployed::default()).await;
    let _app = world.run(1, "a").await;
    let cert = made(&["*.edge.test"]);
    cert.on(&world);

    let client = cert.client(&["http/1.1"]);
    let stream = connect(door(&world), WEB, &client).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    let reply = h1(stream, request("/headers").body(body("")).unwrap()).await;
    assert_eq!(reply.status, 200);
    assert!(
        reply.body.contains("x-forwarded-proto: https\n"),
        "{reply:?}"
    );
    assert!(reply.body.contains(";proto=https\n"), "{reply:?}");

    let client = cert.client(&["h2", "http/1.1"]);
    let stream = connect(door(&world), WEB, &client).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let io = TokioIo::new(stream);
    let shaken = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await;
    let (mut sender, connection) = shaken.unwrap();
    tokio::spawn(connection);
    for path in ["/headers", "/trailers"] {
        let url = format!("https://{WEB}{path}");
        let request = Request::get(url).header("te", "trailers");
        let request = request.body(Empty::<Bytes>::new()).unwrap();
        let reply = read(sender.send_request(request).await.unwrap()).await;
        assert_eq!(reply.status, 200);
        match path {
            "/headers" => assert!(reply.body.contains("x-forwarded-proto: https\n")),
            _ => assert_eq!(reply.trailers.unwrap()["x-sum"], "42"),
        }
    }
    assert_eq!(world.ingress().counts().handshakes, 2);
}

#[tokio::test]
async fn a_splits_cookie_goes_only_where_it_came_from() {
    let deployed = Deployed {
        split: vec![50, 50],
        sticky: Some("on"),
        ..Deployed::default()
    };
    let world = World::one(deployed).await;
    let _apps = [
        world.run(1, "web-00001-a").await,
        world.run(1, "web-00002-b").await,
    ];
    let cert = made(&["*.edge.test"]);
    cert.on(&world);
    let client = cert.client(&["http/1.1"]);
    // By the express way and, for its `te`, by the general one.
    for te in ["", "trailers"] {
        let stream = connect(door(&world), WEB, &client).await.unwrap();
        let asked = request("/").header(if te.is_empty() { "x-none" } else { "te" }, te);
        let reply = h1(stream, asked.body(body("")).unwrap()).await;
        let told = reply.header("set-cookie");
        assert!(told.ends_with("; HttpOnly; SameSite=Lax; Secure"), "{told}");
    }
}

/// What TLS holds back must go out all the same, and what a client sends while it is answered too.
#[tokio::test]
async fn large_bodies_pass_whole_both_ways() {
    let world = World::one(Deployed::default()).await;
    let _app = world.run(1, "a").await;
    let cert = made(&[WEB]);
    cert.on(&world);
    let client = cert.client(&[]);
    let fresh = || async { connect(door(&world), WEB, &client).await.unwrap() };
    let reply = h1(fresh().await, request("/stream/64").body(body("")).unwrap()).await;
    assert_eq!(reply.body.len(), 64 * 64 * 1024);
    for length in [10, 20_000, 1_000_000] {
        let text = "x".repeat(length);
        let post = request("/echo").method("POST").body(body(text.clone()));
        let reply = h1(fresh().await, post.unwrap()).await;
        assert!(reply.body == text, "{length}");
    }
    // One after the other on one connection, the second sent before the first was answered.
    let mut stream = fresh().await;
    let one = format!("GET /name HTTP/1.1\r\nhost: {WEB}\r\n\r\n");
    let last = one.replace("\r\n\r\n", "\r\nconnection: close\r\n\r\n");
    stream.write_all((one + &last).as_bytes()).await.unwrap();
    let mut all = String::new();
    stream.read_to_string(&mut all).await.unwrap();
    assert_eq!(all.matches("HTTP/1.1 200 OK").count(), 2, "{all}");
}

#[tokio::test]
async fn who_names_no_host_of_ours_is_refused_with_an_alert() {
    let world = World::one(Deployed::default()).await;
    let cert = made(&[WEB]);
    cert.on(&world);
    for host in ["other.edge.test", "127.0.0.1"] {
        let refused = connect(door(&world), host, &cert.client(&["h2"])).await;
        let told = alert(&refused.unwrap_err());
        assert_eq!(told, Some(AlertDescription::UnrecognisedName), "{host}");
    }
    assert_eq!(world.ingress().counts().unknown_names, 2);
    // With a proof for it alone, a host is still no host to others.
    let mut table = Table::default();
    table.prove("new.edge.test", "token.print").unwrap();
    world.nodes[0].shelf.set(table);
    let refused = connect(door(&world), "new.edge.test", &cert.client(&[])).await;
    assert!(refused.is_err());
}

#[tokio::test]
async fn plain_http_at_the_port_of_https_is_told() {
    let world = World::one(Deployed::default()).await;
    let said = raw(
        door(&world),
        b"GET / HTTP/1.1\r\nhost: web.edge.test\r\n\r\n",
    )
    .await;
    assert!(said.starts_with("HTTP/1.1 400 "), "{said}");
    let (head, body) = said.split_once("\r\n\r\n").unwrap();
    assert!(head.contains("x-selvedge-error: tls-expected"));
    let length = format!("content-length: {}\r\n", body.len());
    assert!(head.contains(&length), "{said}");
    for garbage in [&b"\x16\x03\x01\x00\x05hello"[..], b"\x00\x00", b"\xff"] {
        let said = raw(door(&world), garbage).await;
        assert!(!said.contains("HTTP"), "{said}");
    }
    eventually("failed handshakes are counted", || {
        world.ingress().counts().handshakes_failed == 4
    })
    .await;
}

#[tokio::test]
async fn plain_http_is_sent_to_https_where_there_is_a_certificate() {
    let world = World::one(Deployed::default()).await;
    let _app = world.run(1, "a").await;
    assert_eq!(get(world.door(), "/").await.status, 200, "no certificate");
    made(&[&format!("*.{ORIGIN}")]).on(&world);
    let reply = get(world.door(), "/a?b=c").await;
    assert_eq!(reply.status, 308);
    assert_eq!(reply.header("x-selvedge-error"), "https-only");
    let port = door(&world).port();
    let there = format!("https://{WEB}:{port}/a?b=c");
    assert_eq!(reply.header("location"), there);
    let counted = world.ingress().counts().problems;
    assert!(counted.contains(&("https-only".into(), 1)), "{counted:?}");
    let unknown = Request::get("/").header("host", "none.edge.test");
    let unknown = super::app::send(world.door(), unknown.body(body("")).unwrap()).await;
    assert_eq!(unknown.status, 404, "nowhere to send it");

    let both = Deployed {
        plain_http: true,
        ..Deployed::default()
    };
    let world = World::one(both).await;
    let _app = world.run(1, "a").await;
    made(&[WEB]).on(&world);
    assert_eq!(get(world.door(), "/").await.status, 200, "it wants both");
}

#[tokio::test]
async fn an_authority_finds_its_proofs_on_every_door() {
    let world = World::new(2, Deployed::default(), |_| {}).await;
    let _app = world.run(1, "a").await;
    let cert = made(&[WEB]);
    for node in &world.nodes {
        let mut table = Table::default();
        table.put(&cert.bundle);
        table.answer(WEB, "token", "token.print");
        table.prove(WEB, "token.print").unwrap();
        node.shelf.set(table);
    }
    for node in &world.nodes {
        let plain = node.ingress().addrs()[0];
        let reply = get(plain, "/.well-known/acme-challenge/token").await;
        assert_eq!((reply.status, reply.body.as_str()), (200, "token.print"));
        // It proves with a certificate that nobody trusts.
        let mut client = (*cert.client(&["acme-tls/1"])).clone();
        client
            .dangerous()
            .set_certificate_verifier(Arc::new(Anyone));
        let tls = node.ingress().tls_addrs()[0];
        let stream = connect(tls, WEB, &Arc::new(client)).await.unwrap();
        let shown = &stream.get_ref().1.peer_certificates().unwrap()[0];
        assert_ne!(*shown, cert.chain);
        // And to all others with its own.
        let stream = connect(tls, WEB, &cert.client(&["h2"])).await.unwrap();
        let shown = &stream.get_ref().1.peer_certificates().unwrap()[0];
        assert_eq!(*shown, cert.chain);
    }
    // A token of somebody else's is the service's affair, over plain HTTP too.
    let other = get(world.door(), "/.well-known/acme-challenge/other").await;
    assert_eq!(other.status, 200, "{other:?}");
    assert_eq!(other.body, "a");
}

#[derive(Debug)]
struct Anyone;

impl rustls::client::danger::ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        rustls::crypto::ring::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

#[tokio::test]
async fn a_session_of_one_node_is_resumed_on_another() {
    let world = World::new(2, Deployed::default(), |_| {}).await;
    let _app = world.run(1, "a").await;
    let cert = made(&[WEB]);
    cert.on(&world);
    for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider);
        let config = config.with_protocol_versions(&[version]).unwrap();
        let config = config
            .with_root_certificates(cert.roots.clone())
            .with_no_client_auth();
        let client = Arc::new(config);
        let mut kinds = Vec::new();
        for node in [0, 1] {
            let door = world.nodes[node].ingress().tls_addrs()[0];
            let mut stream = connect(door, WEB, &client).await.unwrap();
            // Tickets come with the first bytes of an answer.
            let get = format!("GET / HTTP/1.1\r\nhost: {WEB}\r\nconnection: close\r\n\r\n");
            stream.write_all(get.as_bytes()).await.unwrap();
            let mut all = String::new();
            stream.read_to_string(&mut all).await.unwrap();
            kinds.push(stream.get_ref().1.handshake_kind().unwrap());
        }
        let want = [HandshakeKind::Full, HandshakeKind::Resumed];
        assert_eq!(kinds, want, "{version:?}");
    }
    assert_eq!(world.nodes[1].ingress().counts().handshakes_resumed, 2);
}

/// Clients that come and go while the certificate is replaced, again and again.
#[tokio::test]
async fn a_certificate_is_replaced_without_a_failed_request() {
    let world = Arc::new(World::one(Deployed::default()).await);
    let _app = world.run(1, "a").await;
    let (one, other) = (made(&[WEB]), made(&[WEB]));
    one.on(&world);
    let mut both = one.roots.clone();
    both.add(other.chain.clone()).unwrap();
    let trusting = Made {
        bundle: one.bundle.clone(),
        chain: one.chain.clone(),
        roots: both,
    };
    let (over, served) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU32::new(0)),
    );
    let (running, count, door) = (over.clone(), served.clone(), door(&world));
    let asking = tokio::spawn(async move {
        let client = trusting.client(&[]);
        while !running.load(Ordering::Relaxed) {
            let stream = connect(door, WEB, &client).await.unwrap();
            let reply = h1(stream, request("/").body(body("")).unwrap()).await;
            assert_eq!(reply.status, 200);
            count.fetch_add(1, Ordering::Relaxed);
        }
    });
    for turn in 0..20_u32 {
        let now = if turn % 2 == 0 { &other } else { &one };
        now.on(&world);
        let before = served.load(Ordering::Relaxed);
        eventually("requests go on", || served.load(Ordering::Relaxed) > before).await;
    }
    over.store(true, Ordering::Relaxed);
    asking.await.unwrap();
    assert_eq!(world.ingress().counts().handshakes_failed, 0);
}

/// Those who connect and say nothing, and those who stop in the middle of a handshake.
#[tokio::test]
async fn slow_handshakes_end_and_keep_nobody_else_out() {
    let world = World::one(Deployed::default()).await;
    let _app = world.run(1, "a").await;
    let cert = made(&[WEB]);
    cert.on(&world);
    // From elsewhere: other tests look for free ports at this address.
    let connected = async || {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.3:0".parse().unwrap()).unwrap();
        socket.connect(door(&world)).await.unwrap()
    };
    let mut silent = Vec::new();
    for _ in 0..300 {
        silent.push(connected().await);
    }
    let name = ServerName::try_from(WEB).unwrap();
    let mut hello = Vec::new();
    let mut client = ClientConnection::new(cert.client(&[]), name).unwrap();
    client.write_tls(&mut hello).unwrap();
    let mut stuck = Vec::new();
    for _ in 0..600 {
        let mut stream = connected().await;
        stream.write_all(&hello).await.unwrap();
        stuck.push(stream);
    }
    let stream = connect(door(&world), WEB, &cert.client(&[])).await.unwrap();
    let reply = h1(stream, request("/").body(body("")).unwrap()).await;
    assert_eq!(reply.status, 200);
    let failed = || world.ingress().counts().handshakes_failed;
    assert_eq!(failed(), 0, "it waited for none of them to end");
    // Those that are stuck are let go of within their time.
    for stream in &mut stuck {
        let mut rest = Vec::new();
        let ended = tokio::time::timeout(Duration::from_secs(30), stream.read_to_end(&mut rest));
        assert!(ended.await.is_ok(), "it is closed");
    }
    eventually("they are counted", || failed() >= 600).await;
}
