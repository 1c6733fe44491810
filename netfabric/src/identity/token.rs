//! The text that lets a node join: which cluster (the hash of its CA) and a single-use secret.

use std::fmt;
use std::str::FromStr;

use super::{IdentityError, hex, random, sha256_hex};

const VERSION: &str = "sv1";
const CA_HASH_LEN: usize = 64;
const SECRET_LEN: usize = 32;

/// `sv1.<SHA-256 of the CA certificate, hex>.<secret, 32 hex digits>`.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    ca_hash: String,
    secret: String,
}

/// Why a text is no join token. Never carries the text: it may hold a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("a join token looks like sv1.HASH.SECRET: expected 3 parts, found {0}")]
    Parts(usize),
    #[error("this join token is of another version (expected one that starts with `sv1.`)")]
    Version,
    #[error("the join token's cluster hash must be 64 lowercase hex digits; was it cut?")]
    CaHash,
    #[error("the join token's secret must be 32 lowercase hex digits; was it cut?")]
    Secret,
}

impl JoinToken {
    /// A new token for the cluster whose CA has this hash.
    pub fn create(ca_hash: String) -> Result<Self, IdentityError> {
        Ok(Self {
            ca_hash,
            secret: hex(&random::<{ SECRET_LEN / 2 }>()?),
        })
    }

    /// Lowercase hex SHA-256 of the CA certificate's DER: the joiner accepts no other cluster.
    pub fn ca_hash(&self) -> &str {
        &self.ca_hash
    }

    /// What is shown to the cluster, once its CA was recognised.
    pub(crate) fn secret(&self) -> &str {
        &self.secret
    }

    /// Lowercase hex SHA-256 of the secret's text: what the registry keeps.
    pub fn secret_hash(&self) -> String {
        sha256_hex(self.secret.as_bytes())
    }

    /// The whole token, to be shown to the operator once. `Debug` does not show it.
    pub fn reveal(&self) -> String {
        format!("{VERSION}.{}.{}", self.ca_hash, self.secret)
    }
}

/// Whether `text` is exactly `len` lowercase hex digits.
fn is_hex(text: &str, len: usize) -> bool {
    text.len() == len && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

impl FromStr for JoinToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let parts: Vec<&str> = text.trim().split('.').collect();
        let [version, ca_hash, secret] = parts[..] else {
            return Err(TokenError::Parts(parts.len()));
        };
        if version != VERSION {
            return Err(TokenError::Version);
        }
        if !is_hex(ca_hash, CA_HASH_LEN) {
            return Err(TokenError::CaHash);
        }
        if !is_hex(secret, SECRET_LEN) {
            return Err(TokenError::Secret);
        }
        Ok(Self {
            ca_hash: ca_hash.to_owned(),
            secret: secret.to_owned(),
        })
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken")
            .field("ca_hash", &self.ca_hash)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_its_text_and_hides_its_secret() {
        let token = JoinToken::create("ab".repeat(32)).unwrap();
        assert_eq!(token.reveal().parse::<JoinToken>().unwrap(), token);
        assert_eq!(
            format!("  {}\n", token.reveal())
                .parse::<JoinToken>()
                .unwrap(),
            token
        );
        assert!(!format!("{token:?}").contains(token.secret()));
        assert_eq!(token.secret_hash().len(), 64);
    }

    #[test]
    fn bad_tokens_say_what_is_wrong() {
        let (hash, secret) = ("a".repeat(64), "b".repeat(32));
        for (text, error) in [
            (String::new(), TokenError::Parts(1)),
            (format!("sv1.{hash}"), TokenError::Parts(2)),
            (format!("sv1.{hash}.{secret}.x"), TokenError::Parts(4)),
            (format!("sv2.{hash}.{secret}"), TokenError::Version),
            (format!("sv1.{}.{secret}", &hash[1..]), TokenError::CaHash),
            (
                format!("sv1.{hash}.{}", secret.to_uppercase()),
                TokenError::Secret,
            ),
            (format!("sv1.{hash}.{}é", &secret[2..]), TokenError::Secret),
        ] {
            assert_eq!(text.parse::<JoinToken>(), Err(error), "{text}");
        }
    }
}
