//! What proves to a certificate authority that a name is ours, made from its challenge's key
//! authorization, which any node has from the registry.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rcgen::{CertificateParams, CustomExtension, KeyPair};
use ring::digest::{SHA256, digest};
use rustls::crypto::ring::sign::any_supported_type;
use rustls::sign::CertifiedKey;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

/// The text of the TXT record at `_acme-challenge.HOST` (RFC 8555, 8.4).
#[must_use]
pub fn dns_value(authorization: &str) -> String {
    URL_SAFE_NO_PAD.encode(digest(&SHA256, authorization.as_bytes()))
}

/// The certificate that carries the proof (RFC 8737). Nobody else has a use for it, nor for its key.
pub(super) fn certificate(
    host: &str,
    authorization: &str,
) -> Result<Arc<CertifiedKey>, rcgen::Error> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(vec![host.to_owned()])?;
    let digest = digest(&SHA256, authorization.as_bytes());
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest.as_ref())];
    let certificate = params.self_signed(&key)?;
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let key = any_supported_type(&key).map_err(|_| rcgen::Error::KeyGenerationUnavailable)?;
    let chain = vec![certificate.der().clone()];
    Ok(Arc::new(CertifiedKey::new(chain, key)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_record_is_the_digest_in_base64() {
        // The empty text's SHA-256.
        let want = "47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU";
        assert_eq!(dns_value(""), want);
    }

    #[test]
    fn the_certificate_carries_the_digest_as_a_critical_extension() {
        use x509_parser::prelude::{FromDer, X509Certificate};
        let certified = certificate("web.test", "token.print").unwrap();
        let (_, read) = X509Certificate::from_der(&certified.cert[0]).unwrap();
        let named = |e: &&x509_parser::prelude::X509Extension<'_>| {
            e.oid.to_id_string() == "1.3.6.1.5.5.7.1.31"
        };
        let extension = read.extensions().iter().find(named).unwrap();
        assert!(extension.critical);
        let want = digest(&SHA256, b"token.print");
        assert_eq!(&extension.value[2..], want.as_ref());
    }
}
