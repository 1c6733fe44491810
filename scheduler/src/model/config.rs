//! What services are given besides their image: configs, secrets, and the places of local volumes.
//!
//! A secret is never here in the clear: its values are sealed before they become part of a
//! command, and this crate has no key to open them.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Name, NodeId};

/// A config, a secret or a local volume: `namespace/name`, each kind with names of its own.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ObjectKey {
    pub namespace: Name,
    pub name: Name,
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Values by key, for files and environment variables.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Config {
    pub key: ObjectKey,
    pub data: BTreeMap<String, Blob>,
    /// Registry index of the last change; the `if_version` of a compare-and-set.
    pub version: u64,
}

/// Like a config, with values nobody but a node that runs its users can read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Secret {
    pub key: ObjectKey,
    pub data: BTreeMap<String, Sealed>,
    /// As of a config.
    pub version: u64,
}

/// An encrypted value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Sealed {
    /// The version of the secret this value was sealed upon; part of what is authenticated.
    pub upon: u64,
    pub nonce: Blob,
    pub text: Blob,
}

/// Where a local volume is. Its data stay there for as long as this is so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LocalVolume {
    pub key: ObjectKey,
    pub node: NodeId,
    /// The registry index at which the node got it: one of the same name that was removed and made
    /// anew is another.
    pub claimed: u64,
}

/// Bytes, written as lowercase hex. `Debug` shows their number only.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Blob(pub Vec<u8>);

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "({} bytes)", self.0.len())
    }
}

impl Serialize for Blob {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut text = String::with_capacity(self.0.len() * 2);
        for byte in &self.0 {
            // Writing to a string cannot fail.
            let _ = write!(text, "{byte:02x}");
        }
        serializer.serialize_str(&text)
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        // Never quoted: it may be a secret on its way to being sealed.
        from_hex(&text)
            .map(Self)
            .ok_or_else(|| serde::de::Error::custom("bytes are written as lowercase hex"))
    }
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |c: u8| match c {
        b'0'..=b'9' => Some(c - b'0'),
        b'a'..=b'f' => Some(c - b'a' + 10),
        _ => None,
    };
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    pairs
        .iter()
        .map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_hex_and_not_shown() {
        let blob = Blob(vec![0, 0xab, 0xff]);
        let text = serde_json::to_string(&blob).unwrap();
        assert_eq!(text, "\"00abff\"");
        assert_eq!(serde_json::from_str::<Blob>(&text).unwrap(), blob);
        assert_eq!(format!("{blob:?}"), "(3 bytes)");
        for bad in ["\"0\"", "\"0g\"", "\"AB\"", "\"é\"", "7"] {
            assert!(serde_json::from_str::<Blob>(bad).is_err(), "{bad}");
        }
    }
}
