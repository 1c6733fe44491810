//! This node's place in a cluster: its key, its certificate and the CA it trusts.

use std::fmt;
use std::path::Path;
use std::time::SystemTime;

use ring::hkdf;
use rustls_pki_types::CertificateDer;
use scheduler::model::{NodeId, UnixMs};
use serde::{Deserialize, Serialize};

use super::authority::CA_FILE;
use super::tls::{self, Peer};
use super::{IdentityError, NodeKeys, files, sha256_hex};

const CERTIFICATE_FILE: &str = "node.pem";
const CARD_FILE: &str = "node.json";

/// A node that has joined. `Debug` shows no key.
pub struct Identity {
    node: NodeId,
    cluster_id: String,
    keys: NodeKeys,
    certificate: CertificateDer<'static>,
    certificate_pem: String,
    ca: CertificateDer<'static>,
    ca_pem: String,
    expires: UnixMs,
}

/// `node.json`: for people and for other tools; the certificate is what counts.
#[derive(Serialize, Deserialize)]
struct Card {
    node: NodeId,
    cluster: String,
}

impl Identity {
    /// Puts the parts together and checks that they belong together.
    pub fn new(keys: NodeKeys, certificate_pem: &str, ca_pem: &str) -> Result<Self, IdentityError> {
        let certificate = tls::certificate_from_pem(certificate_pem, "node certificate")?;
        let ca_der = tls::certificate_from_pem(ca_pem, "CA certificate")?;
        let ca = tls::read_ca(&ca_der)?;
        let Peer { node, public_key } = tls::read_peer(&certificate, &ca.cluster_id)?;
        let unfit = |why| IdentityError::Mismatch {
            what: "node certificate",
            why,
        };
        if public_key != keys.public_key() {
            return Err(unfit("it was made for another key"));
        }
        if !tls::signed_by(&certificate, &ca)? {
            return Err(unfit("the cluster's CA did not sign it"));
        }
        Ok(Self {
            node,
            cluster_id: ca.cluster_id,
            keys,
            expires: tls::expiry(&certificate)?,
            certificate,
            certificate_pem: certificate_pem.to_owned(),
            ca: ca_der,
            ca_pem: ca_pem.to_owned(),
        })
    }

    /// Reads `dir/{ca.pem,node.pem,node.key}`.
    pub fn load(dir: &Path) -> Result<Self, IdentityError> {
        let keys = NodeKeys::load(dir)?;
        Self::new(
            keys,
            &files::read(dir, CERTIFICATE_FILE)?,
            &files::read(dir, CA_FILE)?,
        )
    }

    /// Whether a node has joined here: its certificate is the last file written.
    pub fn is_in(dir: &Path) -> bool {
        files::exists(dir, CERTIFICATE_FILE)
    }

    pub fn store(&self, dir: &Path) -> Result<(), IdentityError> {
        files::private_dir(dir)?;
        self.keys.store(dir)?;
        files::write(dir, CA_FILE, self.ca_pem.as_bytes())?;
        let card = Card {
            node: self.node,
            cluster: self.cluster_id.clone(),
        };
        let card = serde_json::to_vec_pretty(&card).expect("a number and a text are always JSON");
        files::write(dir, CARD_FILE, &card)?;
        files::write(dir, CERTIFICATE_FILE, self.certificate_pem.as_bytes())
    }

    pub fn node(&self) -> NodeId {
        self.node
    }

    pub fn cluster_id(&self) -> &str {
        &self.cluster_id
    }

    pub fn public_key(&self) -> [u8; 32] {
        self.keys.public_key()
    }

    /// Signs bytes with the node's key; [`super::verify`] checks it.
    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        self.keys.sign(message)
    }

    /// When the node's certificate ends.
    pub fn expires(&self) -> UnixMs {
        self.expires
    }

    pub fn is_expired(&self) -> bool {
        SystemTime::now() >= tls::as_system_time(self.expires)
    }

    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// Lowercase hex SHA-256 of the CA certificate's DER.
    pub fn ca_hash(&self) -> String {
        sha256_hex(&self.ca)
    }

    /// TLS for accepting: mesh and join. The CA goes along for joiners that know only its hash.
    pub fn server_config(&self) -> Result<rustls::ServerConfig, IdentityError> {
        let chain = vec![self.certificate.clone(), self.ca.clone()];
        tls::server_config(chain, self.keys.private_der(), &self.ca)
    }

    /// TLS for connecting to other nodes.
    pub fn client_config(&self) -> Result<rustls::ClientConfig, IdentityError> {
        tls::client_config(
            vec![self.certificate.clone()],
            self.keys.private_der(),
            &self.ca,
        )
    }

    /// Whose certificate this is, which TLS has verified already.
    pub fn peer(&self, certificate: &[u8]) -> Result<Peer, IdentityError> {
        tls::read_peer(certificate, &self.cluster_id)
    }

    /// A secret that only this node can compute, the same after every restart.
    pub fn derive(&self, purpose: &str) -> [u8; 32] {
        let mut key = [0; 32];
        let salt = hkdf::Salt::new(hkdf::HKDF_SHA256, b"selvedge node secret");
        salt.extract(self.keys.pair().serialized_der())
            .expand(&[purpose.as_bytes()], hkdf::HKDF_SHA256)
            .and_then(|okm| okm.fill(&mut key))
            .expect("32 bytes is the length HKDF-SHA256 was asked for");
        key
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("node", &self.node)
            .field("cluster_id", &self.cluster_id)
            .field("expires", &self.expires)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Authority, verify};
    use super::*;

    fn enrol(authority: &Authority, node: u64) -> Identity {
        let keys = NodeKeys::generate().unwrap();
        let certificate = authority.sign(&keys.csr().unwrap(), NodeId(node)).unwrap();
        Identity::new(keys, &certificate, authority.ca_pem()).unwrap()
    }

    #[test]
    fn it_survives_its_files() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::create().unwrap();
        let made = enrol(&authority, 7);
        assert!(!Identity::is_in(dir.path()));
        made.store(dir.path()).unwrap();
        assert!(Identity::is_in(dir.path()));
        let loaded = Identity::load(dir.path()).unwrap();
        assert_eq!(loaded.node(), NodeId(7));
        assert_eq!(loaded.cluster_id(), authority.cluster_id());
        assert_eq!(loaded.public_key(), made.public_key());
        assert_eq!(loaded.derive("x"), made.derive("x"));
        assert_ne!(loaded.derive("x"), made.derive("y"));
        assert!(!loaded.is_expired());
        let left = tls::as_system_time(loaded.expires())
            .duration_since(SystemTime::now())
            .unwrap();
        assert!((29..=30).contains(&(left.as_secs() / 86_400)), "{left:?}");
    }

    #[test]
    fn parts_that_do_not_belong_together_are_refused() {
        let (a, b) = (Authority::create().unwrap(), Authority::create().unwrap());
        let keys = || NodeKeys::generate().unwrap();
        let mine = keys();
        let good = a.sign(&mine.csr().unwrap(), NodeId(1)).unwrap();
        assert!(
            Identity::new(keys(), &good, a.ca_pem()).is_err(),
            "another key"
        );
        assert!(
            Identity::new(mine, &good, b.ca_pem()).is_err(),
            "another cluster's CA"
        );
        let mine = keys();
        assert!(
            Identity::new(mine, a.ca_pem(), a.ca_pem()).is_err(),
            "the CA is no node"
        );
    }

    #[test]
    fn signatures_hold_and_forgeries_do_not() {
        let authority = Authority::create().unwrap();
        let (one, two) = (enrol(&authority, 1), enrol(&authority, 2));
        let signature = one.sign(b"hello");
        assert!(verify(&one.public_key(), b"hello", &signature));
        assert!(!verify(&one.public_key(), b"hellO", &signature));
        assert!(!verify(&two.public_key(), b"hello", &signature));
        assert!(!verify(b"short", b"hello", &signature));
    }
}
