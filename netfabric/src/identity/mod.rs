//! Who is who: the cluster's authority, a node's key and certificate, join tokens, and the TLS
//! configurations made of them. It opens no connection and knows no peer addresses.
//!
//! Every key is Ed25519. A node's private key is made on the node and never leaves it; the
//! authority's key travels only to nodes that become voters, the key of the cluster's secrets to all.

mod authority;
mod files;
mod keys;
mod node;
mod tls;
mod token;
mod vault;

use std::io;
use std::path::PathBuf;

use ring::digest;
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{ED25519, UnparsedPublicKey};

pub use authority::{Authority, csr_public_key};
pub use keys::NodeKeys;
pub use node::Identity;
pub use tls::{ALPN_BRANCH, ALPN_JOIN, ALPN_MESH, MESH_NAME, Peer, ca_hash, join_client_config};
pub use token::{JoinToken, TokenError};
pub use vault::{Label, Plain, Vault};

/// What can go wrong with keys, certificates and their files.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("{}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("the {0} is malformed")]
    Malformed(&'static str),
    #[error("the {what} does not fit: {why}")]
    Mismatch {
        what: &'static str,
        why: &'static str,
    },
    #[error("certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    #[error("the system gave no random bytes")]
    Random,
}

/// Whether `signature` over `message` was made with the key whose public half is `public_key`.
pub fn verify(public_key: &[u8], message: &[u8], signature: &[u8]) -> bool {
    UnparsedPublicKey::new(&ED25519, public_key)
        .verify(message, signature)
        .is_ok()
}

/// Lowercase hex SHA-256.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(digest::digest(&digest::SHA256, bytes).as_ref())
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}

fn random<const N: usize>() -> Result<[u8; N], IdentityError> {
    let mut bytes = [0; N];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| IdentityError::Random)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_the_known_one() {
        assert_eq!(
            sha256_hex(b"abc"),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }
}
