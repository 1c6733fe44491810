//! The cluster's certificate authority: founds a cluster and signs its nodes' certificates.

use std::fmt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyUsagePurpose, PKCS_ED25519, PublicKeyData,
    SerialNumber,
};
use rustls_pki_types::CertificateDer;
use scheduler::model::NodeId;

use super::tls::{MESH_NAME, node_name};
use super::{IdentityError, JoinToken, NodeKeys, files, hex, random, sha256_hex, tls};

pub(super) const CA_FILE: &str = "ca.pem";
const CA_KEY_FILE: &str = "ca.key";
/// The CA outlives the hardware; its rotation is a deliberate act.
const CA_LIFE: Duration = Duration::from_hours(10 * 365 * 24);
/// Short enough that a lost node's certificate dies by itself, long enough for a long holiday.
const LEAF_LIFE: Duration = Duration::from_hours(30 * 24);
/// Nodes' clocks may be a little behind the signer's.
const BACKDATE: Duration = Duration::from_mins(5);
/// Subject of every CA: this and the cluster id.
const CA_PREFIX: &str = "selvedge ";

/// The CA certificate with its private key. `Debug` does not show the key.
pub struct Authority {
    cluster_id: String,
    pem: String,
    der: CertificateDer<'static>,
    keys: NodeKeys,
}

impl Authority {
    /// Founds a new cluster: a random id, a key, a self-signed certificate.
    pub fn create() -> Result<Self, IdentityError> {
        let cluster_id = hex(&random::<8>()?);
        let keys = NodeKeys::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::CommonName, format!("{CA_PREFIX}{cluster_id}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        validity(&mut params, CA_LIFE)?;
        let certificate = params.self_signed(keys.pair())?;
        Ok(Self {
            cluster_id,
            pem: certificate.pem(),
            der: certificate.into(),
            keys,
        })
    }

    /// The authority a founder or a new voter was handed.
    pub fn from_pem(ca_pem: &str, key_pem: &str) -> Result<Self, IdentityError> {
        let der = tls::certificate_from_pem(ca_pem, "CA certificate")?;
        let keys = NodeKeys::from_pem(key_pem)?;
        let ca = tls::read_ca(&der)?;
        if ca.public_key != keys.public_key() {
            return Err(IdentityError::Mismatch {
                what: "CA key",
                why: "it is not the key of this CA certificate",
            });
        }
        Ok(Self {
            cluster_id: ca.cluster_id,
            pem: ca_pem.to_owned(),
            der,
            keys,
        })
    }

    pub fn load(dir: &Path) -> Result<Self, IdentityError> {
        Self::from_pem(&files::read(dir, CA_FILE)?, &files::read(dir, CA_KEY_FILE)?)
    }

    /// Whether this node holds the authority's key.
    pub fn is_in(dir: &Path) -> bool {
        files::exists(dir, CA_KEY_FILE)
    }

    pub fn store(&self, dir: &Path) -> Result<(), IdentityError> {
        files::private_dir(dir)?;
        files::write(dir, CA_FILE, self.pem.as_bytes())?;
        files::write(dir, CA_KEY_FILE, self.key_pem().as_bytes())
    }

    /// Signs the key of a signing request (PEM) for a node. Nothing else in the request counts.
    pub fn sign(&self, csr_pem: &str, node: NodeId) -> Result<String, IdentityError> {
        let request = CertificateSigningRequestParams::from_pem(csr_pem)
            .map_err(|_| IdentityError::Malformed("signing request"))?;
        if PublicKeyData::algorithm(&request.public_key) != &PKCS_ED25519 {
            return Err(IdentityError::Mismatch {
                what: "signing request",
                why: "its key is not Ed25519",
            });
        }
        let names = vec![node_name(node, &self.cluster_id), MESH_NAME.to_owned()];
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::CommonName, node.to_string());
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.use_authority_key_identifier_extension = true;
        validity(&mut params, LEAF_LIFE)?;
        let issuer = Issuer::from_ca_cert_der(&self.der, self.keys.pair())?;
        Ok(params.signed_by(&request.public_key, &issuer)?.pem())
    }

    /// A new single-use token. The registry is told its [`JoinToken::secret_hash`].
    pub fn token(&self) -> Result<JoinToken, IdentityError> {
        JoinToken::create(self.ca_hash())
    }

    pub fn cluster_id(&self) -> &str {
        &self.cluster_id
    }

    pub fn ca_pem(&self) -> &str {
        &self.pem
    }

    /// Lowercase hex SHA-256 of the CA certificate's DER.
    pub fn ca_hash(&self) -> String {
        sha256_hex(&self.der)
    }

    /// The private key, for a node that becomes a voter. Never log it.
    pub fn key_pem(&self) -> String {
        self.keys.pair().serialize_pem()
    }
}

/// The Ed25519 key that a signing request (PEM) is about; its own signature on it was checked.
pub fn csr_public_key(csr_pem: &str) -> Result<[u8; 32], IdentityError> {
    let request = CertificateSigningRequestParams::from_pem(csr_pem)
        .map_err(|_| IdentityError::Malformed("signing request"))?;
    let not_ed25519 = IdentityError::Mismatch {
        what: "signing request",
        why: "its key is not Ed25519",
    };
    if PublicKeyData::algorithm(&request.public_key) != &PKCS_ED25519 {
        return Err(not_ed25519);
    }
    request
        .public_key
        .der_bytes()
        .try_into()
        .map_err(|_| not_ed25519)
}

/// From a little ago for `life`, under a serial number of its own.
fn validity(params: &mut CertificateParams, life: Duration) -> Result<(), IdentityError> {
    let from = SystemTime::now() - BACKDATE;
    params.not_before = from.into();
    params.not_after = (from + life).into();
    let mut serial = random::<16>()?;
    // Serial numbers are positive: the top bit is the sign.
    serial[0] &= 0x7f;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    Ok(())
}

/// The cluster id in a CA's subject.
pub(super) fn cluster_of_subject(common_name: &str) -> Option<&str> {
    let id = common_name.strip_prefix(CA_PREFIX)?;
    let valid = id.len() == 16 && id.bytes().all(|b| b.is_ascii_hexdigit());
    valid.then_some(id)
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("cluster_id", &self.cluster_id)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_survives_its_files_which_are_private() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("identity");
        assert!(!Authority::is_in(&home));
        let made = Authority::create().unwrap();
        made.store(&home).unwrap();
        let loaded = Authority::load(&home).unwrap();
        assert_eq!(loaded.cluster_id(), made.cluster_id());
        assert_eq!(loaded.ca_hash(), made.ca_hash());
        assert!(Authority::is_in(&home));
        let bits = |p: &Path| std::fs::metadata(p).unwrap().permissions().mode() & 0o777;
        assert_eq!(bits(&home), 0o700);
        assert_eq!(bits(&home.join(CA_KEY_FILE)), 0o600);
        assert!(!format!("{made:?}").contains("PRIVATE"));
    }

    #[test]
    fn a_key_of_another_authority_is_refused() {
        let (a, b) = (Authority::create().unwrap(), Authority::create().unwrap());
        let error = Authority::from_pem(a.ca_pem(), &b.key_pem()).unwrap_err();
        assert!(matches!(error, IdentityError::Mismatch { .. }), "{error}");
    }

    #[test]
    fn a_request_that_is_no_request_is_refused() {
        let authority = Authority::create().unwrap();
        for bad in [
            "",
            "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n",
            authority.ca_pem(),
        ] {
            assert!(authority.sign(bad, NodeId(1)).is_err(), "{bad}");
        }
    }
}
