//! Certificates read and turned into TLS 1.3 configurations: mutual between nodes, and pinned to
//! the token's CA hash for a node that has no certificate yet.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring::default_provider};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{CertificateError, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use scheduler::model::{NodeId, UnixMs};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::{IdentityError, authority, sha256_hex};

/// Between nodes: both sides show certificates of the cluster's CA.
pub const ALPN_MESH: &[u8] = b"selvedge/1";
/// On a connection that only the one who dials opens streams on.
pub const ALPN_BRANCH: &[u8] = b"selvedge-branch/1";
/// For a node that joins: only the server shows a certificate.
pub const ALPN_JOIN: &[u8] = b"selvedge-join/1";
/// Every node's certificate is good for this name; the node's own number is checked on top.
pub const MESH_NAME: &str = "mesh.selvedge";

/// The name that binds a certificate to one node of one cluster.
pub(super) fn node_name(node: NodeId, cluster_id: &str) -> String {
    format!("{node}.{cluster_id}.selvedge")
}

/// The one a verified certificate belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    pub node: NodeId,
    pub public_key: [u8; 32],
}

pub(super) struct Ca {
    pub cluster_id: String,
    pub public_key: [u8; 32],
}

pub(super) fn certificate_from_pem(
    pem: &str,
    what: &'static str,
) -> Result<CertificateDer<'static>, IdentityError> {
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|_| IdentityError::Malformed(what))
}

/// Lowercase hex SHA-256 of a CA certificate (PEM)'s DER: what a join token pins.
pub fn ca_hash(ca_pem: &str) -> Result<String, IdentityError> {
    Ok(sha256_hex(&certificate_from_pem(ca_pem, "CA certificate")?))
}

fn parse(der: &[u8]) -> Result<X509Certificate<'_>, IdentityError> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        _ => Err(IdentityError::Malformed("certificate")),
    }
}

fn public_key(certificate: &X509Certificate<'_>) -> Result<[u8; 32], IdentityError> {
    let key: &[u8] = &certificate.public_key().subject_public_key.data;
    key.try_into().map_err(|_| IdentityError::Mismatch {
        what: "certificate",
        why: "its key is not Ed25519",
    })
}

pub(super) fn read_ca(der: &[u8]) -> Result<Ca, IdentityError> {
    let certificate = parse(der)?;
    let name = certificate
        .subject()
        .iter_common_name()
        .next()
        .and_then(|n| n.as_str().ok());
    let cluster_id = name
        .and_then(authority::cluster_of_subject)
        .ok_or(IdentityError::Malformed("CA certificate's subject"))?
        .to_owned();
    Ok(Ca {
        cluster_id,
        public_key: public_key(&certificate)?,
    })
}

/// Reads node number and key from a certificate that TLS has verified already.
pub(super) fn read_peer(der: &[u8], cluster_id: &str) -> Result<Peer, IdentityError> {
    let certificate = parse(der)?;
    let suffix = format!(".{cluster_id}.selvedge");
    let names = certificate
        .subject_alternative_name()
        .map_err(|_| IdentityError::Malformed("certificate"))?
        .map(|extension| extension.value.general_names.clone())
        .unwrap_or_default();
    let node = names
        .iter()
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => name.strip_suffix(&suffix)?.strip_prefix('n'),
            _ => None,
        })
        // Only the one spelling that is ours: no sign, no leading zero.
        .filter(|n| n.bytes().all(|b| b.is_ascii_digit()) && !n.starts_with('0'))
        .find_map(|n| n.parse().ok())
        .map(NodeId)
        .ok_or(IdentityError::Mismatch {
            what: "certificate",
            why: "it names no node of this cluster",
        })?;
    Ok(Peer {
        node,
        public_key: public_key(&certificate)?,
    })
}

/// Whether the CA signed this certificate, whatever the time.
pub(super) fn signed_by(der: &[u8], ca: &Ca) -> Result<bool, IdentityError> {
    let certificate = parse(der)?;
    Ok(super::verify(
        &ca.public_key,
        certificate.tbs_certificate.as_ref(),
        &certificate.signature_value.data,
    ))
}

pub(super) fn expiry(der: &[u8]) -> Result<UnixMs, IdentityError> {
    let seconds = parse(der)?.validity().not_after.timestamp();
    Ok(UnixMs(
        u64::try_from(seconds).unwrap_or(0).saturating_mul(1000),
    ))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(default_provider())
}

fn roots(ca: &CertificateDer<'static>) -> Result<Arc<RootCertStore>, IdentityError> {
    let mut roots = RootCertStore::empty();
    roots.add(ca.clone())?;
    Ok(Arc::new(roots))
}

/// Serves both protocols. A client certificate is optional here because a joiner has none; the
/// transport refuses a mesh connection without one. No session is resumed, so every connection
/// proves itself anew.
pub(super) fn server_config(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    ca: &CertificateDer<'static>,
) -> Result<rustls::ServerConfig, IdentityError> {
    let verifier = WebPkiClientVerifier::builder_with_provider(roots(ca)?, provider())
        .allow_unauthenticated()
        .build()
        .map_err(|_| IdentityError::Malformed("CA certificate"))?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)?;
    config.alpn_protocols = [ALPN_MESH, ALPN_BRANCH, ALPN_JOIN]
        .map(<[u8]>::to_vec)
        .into();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

pub(super) fn client_config(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    ca: &CertificateDer<'static>,
) -> Result<rustls::ClientConfig, IdentityError> {
    let mut config = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots(ca)?)
        .with_client_auth_cert(chain, key)?;
    config.alpn_protocols = vec![ALPN_MESH.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

/// For a joiner: trusts only the CA whose DER has this SHA-256, which the server must present.
pub fn join_client_config(ca_hash: &str) -> Result<rustls::ClientConfig, IdentityError> {
    let verifier = PinnedCa {
        hash: ca_hash.to_owned(),
        provider: provider(),
    };
    let mut config = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN_JOIN.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

#[derive(Debug)]
struct PinnedCa {
    hash: String,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinnedCa {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let ca = intermediates
            .iter()
            .find(|certificate| sha256_hex(certificate) == self.hash)
            .ok_or(CertificateError::UnknownIssuer)?;
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
            .build()
            .map_err(|_| CertificateError::BadEncoding)?
            .verify_server_cert(end_entity, &[], server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::PeerIncompatible(
            rustls::PeerIncompatible::Tls12NotOffered,
        ))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// Wall-clock time of a certificate date, for those who compare it with now.
pub(super) fn as_system_time(at: UnixMs) -> std::time::SystemTime {
    UNIX_EPOCH + Duration::from_millis(at.0)
}
