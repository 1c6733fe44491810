//! A certificate with its chain and its key, as an operator or an authority hands it over: read
//! strictly, so that what is taken can be served.

use std::sync::Arc;

use rustls::crypto::ring::sign::any_supported_type;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use scheduler::model::{Certificate, UnixMs, is_host};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// The certificate and those above it.
const CHAIN: usize = 10;

/// Why a certificate is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    #[error("the {what} has more than {} bytes", Certificate::MAX_PEM)]
    TooLarge { what: &'static str },
    #[error("the chain holds no certificate in PEM form")]
    NoCertificate,
    #[error("the chain holds more than {} certificates", CHAIN)]
    LongChain,
    #[error("certificate {number} of the chain cannot be read")]
    Unreadable { number: usize },
    #[error(
        "certificate {number} of the chain was not issued by the next one: put the server's own \
         first and each issuer after it"
    )]
    OutOfOrder { number: usize },
    #[error("the key file holds no private key in PEM form (an encrypted one cannot be used)")]
    NoKey,
    #[error("the private key is of a kind that is not understood: use ECDSA P-256 or RSA")]
    OddKey,
    #[error("the private key is not this certificate's")]
    WrongKey,
    #[error("the certificate names no host (as a subject alternative name)")]
    NoHost,
    #[error("the certificate names more than {} hosts", Certificate::MAX_HOSTS)]
    ManyHosts,
    #[error("the certificate names `{0}`, which is no host name")]
    BadHost(String),
    #[error("the certificate expired {days} days ago")]
    Expired { days: u64 },
    #[error("the certificate is not valid before {hours} hours from now")]
    TooEarly { hours: u64 },
}

/// A certificate that can be served.
#[derive(Debug, Clone)]
pub struct Bundle {
    /// The names it is good for, in lower case; `*.` stands for one label.
    pub hosts: Vec<String>,
    pub not_before: UnixMs,
    pub not_after: UnixMs,
    pub(super) certified: Arc<CertifiedKey>,
}

impl Bundle {
    /// Reads the chain, the server's own certificate first, and its key.
    pub fn read(chain: &[u8], key: &[u8]) -> Result<Self, BundleError> {
        let chain = read_chain(chain)?;
        let (hosts, not_before, not_after) = read_leaf(&chain)?;
        if key.len() > Certificate::MAX_PEM {
            return Err(BundleError::TooLarge { what: "key" });
        }
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| BundleError::NoKey)?;
        let key = any_supported_type(&key).map_err(|_| BundleError::OddKey)?;
        let certified = CertifiedKey::new(chain, key);
        certified.keys_match().map_err(|_| BundleError::WrongKey)?;
        Ok(Self {
            hosts,
            not_before,
            not_after,
            certified: Arc::new(certified),
        })
    }

    /// Whether clients would take it now.
    pub fn check(&self, now: UnixMs) -> Result<(), BundleError> {
        const HOUR: u64 = 60 * 60 * 1000;
        if self.not_after <= now {
            let days = (now.0 - self.not_after.0) / (24 * HOUR);
            return Err(BundleError::Expired { days });
        }
        // Nobody's clock is exact.
        if self.not_before.0 > now.0 + HOUR {
            let hours = (self.not_before.0 - now.0) / HOUR;
            return Err(BundleError::TooEarly { hours });
        }
        Ok(())
    }
}

fn read_chain(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, BundleError> {
    if pem.len() > Certificate::MAX_PEM {
        return Err(BundleError::TooLarge { what: "chain" });
    }
    let mut chain = Vec::new();
    for (at, certificate) in CertificateDer::pem_slice_iter(pem).enumerate() {
        if at == CHAIN {
            return Err(BundleError::LongChain);
        }
        chain.push(certificate.map_err(|_| BundleError::Unreadable { number: at + 1 })?);
    }
    if chain.is_empty() {
        return Err(BundleError::NoCertificate);
    }
    Ok(chain)
}

/// The names and the life of the first one; the others must lead up from it.
fn read_leaf(chain: &[CertificateDer<'_>]) -> Result<(Vec<String>, UnixMs, UnixMs), BundleError> {
    let mut read = Vec::new();
    for (at, der) in chain.iter().enumerate() {
        let unreadable = BundleError::Unreadable { number: at + 1 };
        match X509Certificate::from_der(der) {
            Ok(([], certificate)) => read.push(certificate),
            _ => return Err(unreadable),
        }
    }
    for (at, pair) in read.windows(2).enumerate() {
        if pair[0].issuer().as_raw() != pair[1].subject().as_raw() {
            return Err(BundleError::OutOfOrder { number: at + 1 });
        }
    }
    let leaf = read.first().ok_or(BundleError::NoCertificate)?;
    let millis = |seconds: i64| UnixMs(u64::try_from(seconds).unwrap_or(0).saturating_mul(1000));
    let validity = leaf.validity();
    Ok((
        hosts(leaf)?,
        millis(validity.not_before.timestamp()),
        millis(validity.not_after.timestamp()),
    ))
}

fn hosts(leaf: &X509Certificate<'_>) -> Result<Vec<String>, BundleError> {
    let names = leaf.subject_alternative_name().ok().flatten();
    let names = names.map_or(&[][..], |names| &names.value.general_names);
    let mut hosts = Vec::new();
    for name in names {
        // Of addresses and mailboxes no client asks by name.
        let GeneralName::DNSName(host) = name else {
            continue;
        };
        let host = host.to_ascii_lowercase();
        if !is_host(&host) {
            return Err(BundleError::BadHost(host.escape_debug().take(80).collect()));
        }
        if !hosts.contains(&host) {
            hosts.push(host);
        }
        if hosts.len() > Certificate::MAX_HOSTS {
            return Err(BundleError::ManyHosts);
        }
    }
    if hosts.is_empty() {
        return Err(BundleError::NoHost);
    }
    Ok(hosts)
}

#[cfg(test)]
pub(crate) mod tests {
    use rcgen::{CertificateParams, Issuer, KeyPair};

    use super::*;

    /// A self-signed certificate for `hosts` and its key, as PEM.
    pub(crate) fn made(hosts: &[&str]) -> (String, String) {
        let hosts: Vec<String> = hosts.iter().map(|h| (*h).to_owned()).collect();
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(hosts).unwrap().self_signed(&key);
        (certificate.unwrap().pem(), key.serialize_pem())
    }

    fn read(chain: &str, key: &str) -> Result<Bundle, BundleError> {
        Bundle::read(chain.as_bytes(), key.as_bytes())
    }

    #[test]
    fn a_good_one_says_its_names_and_its_life() {
        let (chain, key) = made(&["Web.Test", "*.edge.test", "web.test"]);
        let bundle = read(&chain, &key).unwrap();
        assert_eq!(bundle.hosts, ["web.test", "*.edge.test"]);
        assert!(bundle.not_before < bundle.not_after);
        assert_eq!(bundle.check(bundle.not_before), Ok(()));
        let late = bundle.check(bundle.not_after);
        assert_eq!(late, Err(BundleError::Expired { days: 0 }));
        let early = bundle.check(UnixMs(0));
        assert!(matches!(early, Err(BundleError::TooEarly { .. })));
    }

    #[test]
    fn what_cannot_be_served_is_refused_with_the_reason() {
        let (chain, key) = made(&["web.test"]);
        let (other, wrong) = made(&["other.test"]);
        let (nobody, nobodys) = made(&[]);
        let (many, manys) = {
            let hosts: Vec<String> = (0..101).map(|i| format!("h{i}.test")).collect();
            made(&hosts.iter().map(String::as_str).collect::<Vec<_>>())
        };
        let large = "x".repeat(Certificate::MAX_PEM + 1);
        let garbage = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let table = [
            (chain.clone(), wrong, BundleError::WrongKey),
            (chain.clone(), String::new(), BundleError::NoKey),
            (chain.clone(), chain.clone(), BundleError::NoKey),
            (String::new(), key.clone(), BundleError::NoCertificate),
            (key.clone(), key.clone(), BundleError::NoCertificate),
            (chain.repeat(11), key.clone(), BundleError::LongChain),
            (large, key.clone(), BundleError::TooLarge { what: "chain" }),
            (
                garbage.to_owned(),
                key.clone(),
                BundleError::Unreadable { number: 1 },
            ),
            (nobody, nobodys, BundleError::NoHost),
            (many, manys, BundleError::ManyHosts),
        ];
        for (chain, key, want) in table {
            assert_eq!(read(&chain, &key).map(|b| b.hosts), Err(want));
        }
        // Self-signed ones of rcgen all have the same name, so this needs issuers that differ.
        let ca = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![]).unwrap();
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, "the CA");
        let ca_pem = params.self_signed(&ca).unwrap().pem();
        let issuer = Issuer::new(params, ca);
        let leaf_key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(vec!["web.test".to_owned()]).unwrap();
        let leaf = leaf.signed_by(&leaf_key, &issuer).unwrap().pem();
        let leaf_key = leaf_key.serialize_pem();
        assert!(read(&format!("{leaf}{ca_pem}"), &leaf_key).is_ok());
        let misordered = read(&format!("{leaf}{other}"), &leaf_key);
        assert_eq!(
            misordered.map(|b| b.hosts),
            Err(BundleError::OutOfOrder { number: 1 })
        );
    }
}
