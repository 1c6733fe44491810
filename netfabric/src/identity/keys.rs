//! A node's own key pair: made here, kept here.

use std::fmt;
use std::path::Path;

use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PKCS_ED25519};
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use super::{IdentityError, files};

pub(super) const KEY_FILE: &str = "node.key";

/// An Ed25519 key pair. `Debug` shows the public half only.
pub struct NodeKeys {
    /// For signing requests and for the PEM file.
    pair: KeyPair,
    /// The same key, for signing bytes.
    signer: Ed25519KeyPair,
}

impl NodeKeys {
    pub fn generate() -> Result<Self, IdentityError> {
        Self::from_pair(KeyPair::generate_for(&PKCS_ED25519)?)
    }

    pub(super) fn from_pem(pem: &str) -> Result<Self, IdentityError> {
        let pair = KeyPair::from_pem(pem).map_err(|_| IdentityError::Malformed("key file"))?;
        Self::from_pair(pair)
    }

    fn from_pair(pair: KeyPair) -> Result<Self, IdentityError> {
        let signer = Ed25519KeyPair::from_pkcs8_maybe_unchecked(pair.serialized_der())
            .map_err(|_| IdentityError::Malformed("private key"))?;
        Ok(Self { pair, signer })
    }

    /// The keys in `dir`, made and stored there first when there are none: a join that is tried
    /// again after a crash is the same node.
    pub fn load_or_generate(dir: &Path) -> Result<Self, IdentityError> {
        if files::exists(dir, KEY_FILE) {
            return Self::load(dir);
        }
        let keys = Self::generate()?;
        keys.store(dir)?;
        Ok(keys)
    }

    pub(super) fn load(dir: &Path) -> Result<Self, IdentityError> {
        Self::from_pem(&files::read(dir, KEY_FILE)?)
    }

    pub(super) fn store(&self, dir: &Path) -> Result<(), IdentityError> {
        files::private_dir(dir)?;
        files::write(dir, KEY_FILE, self.pair.serialize_pem().as_bytes())
    }

    /// A signing request (PEM): it proves that the asker holds the key, and asks for nothing else.
    pub fn csr(&self) -> Result<String, IdentityError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::CommonName, "selvedge node");
        Ok(params.serialize_request(&self.pair)?.pem()?)
    }

    pub fn public_key(&self) -> [u8; 32] {
        let mut key = [0; 32];
        key.copy_from_slice(self.signer.public_key().as_ref());
        key
    }

    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        self.signer.sign(message).as_ref().to_vec()
    }

    /// The key pair as the certificate library wants it.
    pub(super) fn pair(&self) -> &KeyPair {
        &self.pair
    }

    pub(super) fn private_der(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.pair.serialize_der()).into()
    }
}

impl fmt::Debug for NodeKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeKeys")
            .field("public", &super::hex(&self.public_key()))
            .finish_non_exhaustive()
    }
}
