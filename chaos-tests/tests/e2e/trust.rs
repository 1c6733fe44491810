//! Certificates with the right names and the wrong signer.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use chaos_tests::world::{Node, PATIENCE, World, run, until};
use netfabric::identity::{ALPN_MESH, Authority, Identity, MESH_NAME, NodeKeys};
use netfabric::transport::{Admit, Kind, Mesh};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, KeyUsagePurpose};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use scheduler::model::NodeId;

const KINDS: [Kind; 6] = [
    Kind::Gossip,
    Kind::Raft,
    Kind::Peer,
    Kind::Proxy,
    Kind::Feed,
    Kind::Logs,
];
const OPENING: Duration = Duration::from_secs(5);
/// Several gossip rounds and several turns of redialling.
const KNOCKING: Duration = Duration::from_secs(8);

/// A node of the cluster comes back with its own key, number and names, and with the cluster's id
/// in the name of its authority, but signed by another key: no side takes it for a member. With its
/// true certificate it is one again.
#[test]
fn a_certificate_of_another_authority_is_refused() -> Result<()> {
    let world = World::of(&["par-1", "fra-1"])?;
    let (par, fra) = (&world["par-1"], &world["fra-1"]);
    let home = world.dir().join("fra-1/identity");
    let kept = world.dir().join("fra-1-identity");
    run("cp", [Path::new("-a"), &home, &kept])?.ok()?;
    let sees = |alive: bool| {
        until("the other node is seen as it is", PATIENCE, || {
            Ok((is_alive(par, "fra-1")? == alive).then_some(()))
        })
    };
    sees(true)?;
    fra.kill()?;
    sees(false)?;

    forge(&home)?;
    ensure!(streams_opened(par, &kept)? == KINDS.len(), "the true one");
    ensure!(streams_opened(par, &home)? == 0, "a stream opened");
    let server = world.dir().join("par-1/identity");
    handshake(&server, &kept).context("the true one")?;
    let refused = handshake(&server, &home).err().context("it was let in")?;
    let refused = format!("{refused:#}");
    ensure!(
        refused.contains("the server: invalid peer certificate"),
        "{refused}"
    );
    fra.start()?;
    let end = Instant::now() + KNOCKING;
    while Instant::now() < end {
        ensure!(!is_alive(par, "fra-1")?, "the forged node is a member");
        ensure!(!is_alive(fra, "par-1")?, "the forged node sees the cluster");
        std::thread::sleep(Duration::from_millis(200)); // A look now and then.
    }
    fra.kill()?;

    std::fs::remove_dir_all(&home)?;
    run("cp", [Path::new("-a"), &kept, &home])?.ok()?;
    fra.start()?;
    sees(true)
}

fn is_alive(asked: &Node, name: &str) -> Result<bool> {
    let status = asked.status()?;
    let nodes = status["nodes"].as_array().context("a list of nodes")?;
    Ok(nodes
        .iter()
        .any(|n| n["name"] == name && n["alive"] == true))
}

/// Replaces the authority of the identity in `home` with a namesake and signs anew; nothing else
/// changes.
fn forge(home: &Path) -> Result<()> {
    let truth = Identity::load(home)?;
    let authority = namesake(truth.cluster_id())?;
    ensure!(authority.cluster_id() == truth.cluster_id());
    ensure!(authority.ca_hash() != truth.ca_hash());
    let keys = NodeKeys::load_or_generate(home)?;
    let certificate = authority.sign(&keys.csr()?, truth.node())?;
    let forged = Identity::new(keys, &certificate, authority.ca_pem())?;
    ensure!(forged.public_key() == truth.public_key() && forged.node() == truth.node());
    authority.store(home)?;
    forged.store(home)?;
    Ok(())
}

/// Another authority with the same cluster id.
fn namesake(cluster_id: &str) -> Result<Authority> {
    let key = KeyPair::generate_for(&rcgen::PKCS_ED25519)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    let name = format!("selvedge {cluster_id}");
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let certificate = params.self_signed(&key)?.pem();
    Ok(Authority::from_pem(&certificate, &key.serialize_pem())?)
}

struct Anyone;

impl Admit for Anyone {
    fn admits(&self, _: NodeId) -> bool {
        true
    }
}

/// How many kinds of streams open to a running node for the identity in `home`.
fn streams_opened(node: &Node, home: &Path) -> Result<usize> {
    let door = SocketAddr::from((node.address, 8422));
    let identity = Arc::new(Identity::load(home)?);
    tokio::runtime::Runtime::new()?.block_on(async {
        let mesh = Mesh::bind("0.0.0.0:0".parse()?, identity, Arc::new(Anyone))?;
        let mut opened = 0;
        for kind in KINDS {
            opened += usize::from(mesh.open_addr(door, kind, OPENING).await.is_ok());
        }
        mesh.close().await;
        Ok(opened)
    })
}

/// What the node at `server` says to a client with the identity in `client`. The client trusts the
/// server's authority, so that only the server has something to refuse.
fn handshake(server: &Path, client: &Path) -> Result<()> {
    let shown = CertificateDer::from_pem_file(client.join("node.pem"))?;
    let key = PrivateKeyDer::from_pem_file(client.join("node.key"))?;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(server.join("ca.pem"))?)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![shown], key)?;
    config.alpn_protocols = vec![ALPN_MESH.to_vec()];
    let mesh = ServerName::try_from(MESH_NAME)?;
    let mut client = rustls::ClientConnection::new(Arc::new(config), mesh)?;
    let config = Identity::load(server)?.server_config()?;
    let mut server = rustls::ServerConnection::new(Arc::new(config))?;
    while client.wants_write() || server.wants_write() {
        let mut wire = Vec::new();
        client.write_tls(&mut wire)?;
        server.read_tls(&mut wire.as_slice())?;
        server.process_new_packets().context("the server")?;
        let mut wire = Vec::new();
        server.write_tls(&mut wire)?;
        client.read_tls(&mut wire.as_slice())?;
        client.process_new_packets().context("the client")?;
    }
    ensure!(!client.is_handshaking() && !server.is_handshaking());
    Ok(())
}
