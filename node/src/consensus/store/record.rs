//! One record of the store: a checksum, then JSON (or a snapshot's bytes).

use serde::Serialize;
use sha2::{Digest, Sha256};

use super::{StoreError, corrupt};
use crate::consensus::types::Entry;

/// Bytes of SHA-256 before every value: redb does not check pages on ordinary reads.
const SEAL_BYTES: usize = 8;

pub(super) fn decode_entry(index: u64, value: &[u8]) -> Result<Entry, StoreError> {
    let what = format!("log {index}");
    let entry: Entry =
        serde_json::from_slice(unseal(&what, value)?).map_err(|why| corrupt(&what, why))?;
    if entry.log_id.index == index {
        Ok(entry)
    } else {
        Err(corrupt(
            what,
            format!("it says it is {}", entry.log_id.index),
        ))
    }
}

/// A record as it lies in the file: checksum, then JSON.
pub(super) fn encode<T: Serialize>(what: &str, value: &T) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(value)
        .map(|text| seal(&text))
        .map_err(|why| corrupt(what, why))
}

pub(super) fn seal(bytes: &[u8]) -> Vec<u8> {
    let mut sealed = Vec::with_capacity(SEAL_BYTES + bytes.len());
    sealed.extend_from_slice(&Sha256::digest(bytes)[..SEAL_BYTES]);
    sealed.extend_from_slice(bytes);
    sealed
}

pub(super) fn unseal<'a>(what: &str, sealed: &'a [u8]) -> Result<&'a [u8], StoreError> {
    let Some((sum, bytes)) = sealed.split_at_checked(SEAL_BYTES) else {
        return Err(corrupt(what, "too short for a checksum"));
    };
    if Sha256::digest(bytes)[..SEAL_BYTES] == *sum {
        Ok(bytes)
    } else {
        Err(corrupt(what, "the checksum does not match"))
    }
}
