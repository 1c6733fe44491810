//! The key under which a cluster's secrets are sealed: XChaCha20-Poly1305 with a random nonce for
//! each value. Every node of the cluster holds it; whoever reads a node's registry alone does not.

use std::fmt;
use std::path::Path;

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use ring::hmac;
use scheduler::model::{Blob, ObjectKey, Sealed};
use zeroize::{Zeroize, Zeroizing};

use super::{IdentityError, files, hex, random};

const FILE: &str = "secrets.key";
const KEY_BYTES: usize = 32;
const NONCE_BYTES: usize = 24;

/// Seals and opens the values of secrets. `Debug` does not show the key.
#[derive(Clone)]
pub struct Vault(Zeroizing<[u8; KEY_BYTES]>);

/// The bytes of a secret in the clear. They are wiped when dropped, and `Debug` does not show them.
#[derive(Clone, PartialEq, Eq)]
pub struct Plain(Zeroizing<Vec<u8>>);

/// Which value is meant: one sealed for another place does not open here.
#[derive(Debug, Clone, Copy)]
pub struct Label<'a> {
    pub secret: &'a ObjectKey,
    pub key: &'a str,
}

impl Vault {
    /// A new cluster's.
    pub fn create() -> Result<Self, IdentityError> {
        Ok(Self(Zeroizing::new(random()?)))
    }

    /// As [`Vault::reveal`] wrote it.
    pub fn from_hex(text: &str) -> Result<Self, IdentityError> {
        let malformed = || IdentityError::Malformed("secrets' key");
        let (pairs, rest) = text.trim().as_bytes().as_chunks::<2>();
        let mut key = Zeroizing::new([0; KEY_BYTES]);
        if pairs.len() != KEY_BYTES || !rest.is_empty() {
            return Err(malformed());
        }
        for (byte, pair) in key.iter_mut().zip(pairs) {
            let text = std::str::from_utf8(pair).map_err(|_| malformed())?;
            *byte = u8::from_str_radix(text, 16).map_err(|_| malformed())?;
        }
        Ok(Self(key))
    }

    /// As text, for the file and for a node that joins.
    #[must_use]
    pub fn reveal(&self) -> Zeroizing<String> {
        Zeroizing::new(hex(&*self.0))
    }

    /// The key kept in `dir`; `None` where there is none.
    pub fn load(dir: &Path) -> Result<Option<Self>, IdentityError> {
        if !files::exists(dir, FILE) {
            return Ok(None);
        }
        let mut text = files::read(dir, FILE)?;
        let vault = Self::from_hex(&text);
        text.zeroize();
        vault.map(Some)
    }

    pub fn store(&self, dir: &Path) -> Result<(), IdentityError> {
        files::private_dir(dir)?;
        files::write(dir, FILE, self.reveal().as_bytes())
    }

    /// Seals a value of a secret whose present version is `upon`.
    pub fn seal(&self, label: Label<'_>, upon: u64, plain: &[u8]) -> Result<Sealed, IdentityError> {
        self.seal_with(&label.authenticated(upon), upon, plain)
    }

    /// Opens a value; fails when it was sealed under another key, for another place, or changed.
    pub fn open(&self, label: Label<'_>, sealed: &Sealed) -> Result<Plain, IdentityError> {
        self.open_with(&label.authenticated(sealed.upon), sealed)
    }

    /// Seals what is no secret's value: `purpose` says what it is and whose, and opens it again.
    pub fn seal_for(&self, purpose: &str, plain: &[u8]) -> Result<Sealed, IdentityError> {
        self.seal_with(&authenticated(purpose), 0, plain)
    }

    pub fn open_for(&self, purpose: &str, sealed: &Sealed) -> Result<Plain, IdentityError> {
        self.open_with(&authenticated(purpose), sealed)
    }

    /// With a key for one purpose, the same on every node of the cluster.
    #[must_use]
    pub fn derive(&self, purpose: &str) -> Self {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &*self.0);
        let tag = hmac::sign(&key, format!("selvedge key for {purpose}").as_bytes());
        let mut derived = Zeroizing::new([0; KEY_BYTES]);
        derived.copy_from_slice(tag.as_ref());
        Self(derived)
    }

    fn seal_with(&self, aad: &[u8], upon: u64, plain: &[u8]) -> Result<Sealed, IdentityError> {
        let nonce: [u8; NONCE_BYTES] = random()?;
        let payload = Payload { msg: plain, aad };
        let text = self.cipher().encrypt(&XNonce::from(nonce), payload);
        Ok(Sealed {
            upon,
            nonce: Blob(nonce.to_vec()),
            // Fails only beyond 256 GiB.
            text: Blob(text.map_err(|_| IdentityError::Malformed("secret"))?),
        })
    }

    fn open_with(&self, aad: &[u8], sealed: &Sealed) -> Result<Plain, IdentityError> {
        let wrong = || IdentityError::Mismatch {
            what: "sealed secret",
            why: "it was not sealed with this cluster's key for this place",
        };
        let nonce: [u8; NONCE_BYTES] = sealed.nonce.0.as_slice().try_into().map_err(|_| wrong())?;
        let payload = Payload {
            msg: &sealed.text.0,
            aad,
        };
        let plain = self.cipher().decrypt(&XNonce::from(nonce), payload);
        Ok(Plain(Zeroizing::new(plain.map_err(|_| wrong())?)))
    }

    fn cipher(&self) -> XChaCha20Poly1305 {
        XChaCha20Poly1305::new((&*self.0).into())
    }
}

/// Begins unlike any secret's label.
fn authenticated(purpose: &str) -> Vec<u8> {
    format!("selvedge sealed {purpose}").into_bytes()
}

impl Label<'_> {
    /// Names hold no slash, so no two labels are the same text.
    fn authenticated(&self, upon: u64) -> Vec<u8> {
        format!("selvedge secret {}/{}/{upon}", self.secret, self.key).into_bytes()
    }
}

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Vault(…)")
    }
}

impl Plain {
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl From<Vec<u8>> for Plain {
    fn from(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }
}

impl fmt::Debug for Plain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Plain(…)")
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use scheduler::model::Name;

    use super::*;

    fn secret(name: &str) -> ObjectKey {
        ObjectKey {
            namespace: Name::default_namespace(),
            name: Name::new(name).unwrap(),
        }
    }

    #[test]
    fn a_value_opens_where_it_was_sealed_for_and_nowhere_else() {
        let (vault, other) = (Vault::create().unwrap(), Vault::create().unwrap());
        let (db, web) = (secret("db"), secret("web"));
        let label = |secret, key| Label { secret, key };
        let sealed = vault.seal(label(&db, "url"), 7, b"hunter2").unwrap();
        let opened = vault.open(label(&db, "url"), &sealed).unwrap();
        assert_eq!(opened.bytes(), b"hunter2");

        assert!(vault.open(label(&web, "url"), &sealed).is_err());
        assert!(vault.open(label(&db, "uri"), &sealed).is_err());
        assert!(other.open(label(&db, "url"), &sealed).is_err());
        let mut older = sealed.clone();
        older.upon = 6;
        assert!(vault.open(label(&db, "url"), &older).is_err());
        let mut changed = sealed.clone();
        changed.text.0[0] ^= 1;
        assert!(vault.open(label(&db, "url"), &changed).is_err());
        let twice = vault.seal(label(&db, "url"), 7, b"hunter2").unwrap();
        assert_ne!(twice.nonce, sealed.nonce, "equal values do not look equal");
    }

    #[test]
    fn other_things_are_sealed_for_one_purpose_each() {
        let (vault, other) = (Vault::create().unwrap(), Vault::create().unwrap());
        let sealed = vault.seal_for("certificate web", b"key").unwrap();
        let opened = vault.open_for("certificate web", &sealed).unwrap();
        assert_eq!(opened.bytes(), b"key");
        assert!(vault.open_for("certificate api", &sealed).is_err());
        assert!(other.open_for("certificate web", &sealed).is_err());
        let (a, b) = (vault.derive("a"), vault.derive("b"));
        assert!(a.0 != b.0 && a.0 == vault.derive("a").0 && a.0 != other.derive("a").0);
        assert_ne!(a.0, vault.0, "the key itself is nobody's");
    }

    #[test]
    fn the_key_is_kept_for_its_owner_alone_and_never_shown() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Vault::load(dir.path()).unwrap().is_none());
        let vault = Vault::create().unwrap();
        vault.store(dir.path()).unwrap();
        let mode = std::fs::metadata(dir.path().join(FILE)).unwrap();
        assert_eq!(mode.permissions().mode() & 0o777, 0o600);
        let again = Vault::load(dir.path()).unwrap().unwrap();
        assert_eq!(again.reveal(), vault.reveal());
        let plain = Plain::from(b"hunter2".to_vec());
        let shown = format!("{vault:?} {plain:?}");
        assert!(!shown.contains("hunter2") && !shown.contains(vault.reveal().as_str()));
        for bad in ["", "00", &"zz".repeat(32), &"00".repeat(33)] {
            assert!(Vault::from_hex(bad).is_err(), "{bad}");
        }
    }
}
