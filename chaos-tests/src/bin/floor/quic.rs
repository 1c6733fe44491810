//! One QUIC stream with nothing around it: what the relay between two nodes is measured against.
//! `quic-send PORT BYTES CERT` writes its certificate to that file and so many bytes to each who comes;
//! `quic-take ADDRESS CERT` takes them and says how many nanoseconds that took, from asking to the end.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use quinn::{ClientConfig, Endpoint, ServerConfig, TransportConfig, VarInt};
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

const NAME: &str = "floor.test";
/// As large as those between nodes, so that neither waits for leave to send.
const WINDOW: u32 = 16 << 20;
const PIECE: usize = 64 << 10;

fn transport() -> Arc<TransportConfig> {
    let mut config = TransportConfig::default();
    config
        .stream_receive_window(VarInt::from_u32(WINDOW))
        .receive_window(VarInt::from_u32(WINDOW))
        .send_window(WINDOW.into());
    Arc::new(config)
}

#[tokio::main]
pub async fn send(port: u16, bytes: usize, file: &Path) -> Result<()> {
    let pair = rcgen::generate_simple_self_signed([NAME.to_owned()])?;
    let key =
        PrivateKeyDer::try_from(pair.signing_key.serialize_der()).map_err(anyhow::Error::msg)?;
    let mut config = ServerConfig::with_single_cert(vec![pair.cert.der().clone()], key)?;
    config.transport_config(transport());
    let endpoint = Endpoint::server(config, ([0, 0, 0, 0], port).into())?;
    std::fs::write(file, pair.cert.der())?;
    let piece = vec![b'x'; PIECE];
    while let Some(incoming) = endpoint.accept().await {
        let connection = incoming.await?;
        let (mut out, _asked) = connection.accept_bi().await?;
        let mut left = bytes;
        while left > 0 {
            let now = left.min(PIECE);
            out.write_all(&piece[..now]).await?;
            left -= now;
        }
        out.finish()?;
        connection.closed().await;
    }
    Ok(())
}

#[tokio::main]
pub async fn take(server: SocketAddr, file: &Path) -> Result<()> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(std::fs::read(file)?))?;
    let mut config = ClientConfig::with_root_certificates(Arc::new(roots))?;
    config.transport_config(transport());
    let mut endpoint = Endpoint::client(([0, 0, 0, 0], 0).into())?;
    endpoint.set_default_client_config(config);
    let connection = endpoint.connect(server, NAME)?.await?;
    let began = Instant::now();
    let (mut out, mut answer) = connection.open_bi().await?;
    out.write_all(b"go").await?;
    let mut bytes = 0;
    while let Some(chunk) = answer.read_chunk(PIECE, true).await? {
        bytes += chunk.bytes.len();
    }
    ensure!(bytes > 0, "nothing came");
    println!("{}", began.elapsed().as_nanos());
    connection.close(VarInt::from_u32(0), b"");
    endpoint.wait_idle().await;
    drop(out);
    Ok(())
}

/// The provider of ciphers for both.
pub fn ciphers() -> Result<()> {
    let installed = rustls::crypto::ring::default_provider().install_default();
    installed
        .ok()
        .context("a provider of ciphers is there already")
}
