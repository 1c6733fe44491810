//! A record in its envelope: encoded, packed, signed by its node, and as text for the carrier.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD as BASE64;
use scheduler::model::{NodeId, NodeRecord};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{GossipError, Trust};
use crate::identity::verify;
use crate::wire::codec;

/// Packed size of the largest record: a carrier's message (65,507 bytes) must hold it, as text,
/// beside the digest of a few hundred nodes.
pub const RECORD_LIMIT: usize = 32 * 1024;
/// What it may unpack to; an instance takes some 260 bytes, and packed some 20.
const PLAIN_LIMIT: usize = 1 << 20;
/// zstd's own choice between size and time.
const LEVEL: i32 = 3;
/// The envelope adds a signature and a few lengths; base64 a third.
const TEXT_LIMIT: usize = (RECORD_LIMIT + 128) / 3 * 4 + 4;

#[derive(Serialize, Deserialize)]
struct SignedRecord {
    payload: Vec<u8>,
    signature: Vec<u8>,
}

/// Why a text is no record that counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Rejected {
    #[error("its node is not enrolled")]
    Unknown,
    #[error("it is too large")]
    TooLarge,
    #[error("it is malformed")]
    Malformed,
    #[error("its node did not sign it")]
    Forged,
    #[error("it speaks of another node or another incarnation than it is filed under")]
    Misfiled,
}

/// What a signature is for: one for something else is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Purpose {
    Record,
    Load,
    Measured,
}

impl Purpose {
    const fn prefix(self) -> &'static [u8] {
        match self {
            Self::Record => b"selvedge record\0",
            Self::Load => b"selvedge load\0",
            Self::Measured => b"selvedge measured\0",
        }
    }
}

/// What is signed: a signature from here means nothing anywhere else, nor in another cluster.
fn signed_bytes(purpose: Purpose, cluster_id: &str, payload: &[u8]) -> Vec<u8> {
    [purpose.prefix(), cluster_id.as_bytes(), b"\0", payload].concat()
}

pub(super) fn seal(
    record: &NodeRecord,
    cluster_id: &str,
    sign: impl FnOnce(&[u8]) -> Vec<u8>,
) -> Result<String, GossipError> {
    pack(Purpose::Record, record, cluster_id, sign)
}

/// Opens what was filed under `node` and `incarnation`.
pub(super) fn open(
    text: &str,
    cluster_id: &str,
    (node, incarnation): (NodeId, u64),
    trust: &dyn Trust,
) -> Result<NodeRecord, Rejected> {
    let record: NodeRecord = unpack(text, Purpose::Record, cluster_id, node, trust)?;
    if record.node != node || record.incarnation != incarnation {
        return Err(Rejected::Misfiled);
    }
    Ok(record)
}

/// Encodes, packs and signs; as text for the carrier.
pub(super) fn pack<T: Serialize>(
    purpose: Purpose,
    value: &T,
    cluster_id: &str,
    sign: impl FnOnce(&[u8]) -> Vec<u8>,
) -> Result<String, GossipError> {
    let plain = codec::encode(value)?;
    let payload = zstd::bulk::compress(&plain, LEVEL).map_err(GossipError::Pack)?;
    if plain.len() > PLAIN_LIMIT || payload.len() > RECORD_LIMIT {
        return Err(GossipError::RecordTooLarge { len: payload.len() });
    }
    let signature = sign(&signed_bytes(purpose, cluster_id, &payload));
    Ok(BASE64.encode(codec::encode(&SignedRecord { payload, signature })?))
}

/// What the node signed for that purpose.
pub(super) fn unpack<T: DeserializeOwned>(
    text: &str,
    purpose: Purpose,
    cluster_id: &str,
    node: NodeId,
    trust: &dyn Trust,
) -> Result<T, Rejected> {
    let key = trust.public_key(node).ok_or(Rejected::Unknown)?;
    if text.len() > TEXT_LIMIT {
        return Err(Rejected::TooLarge);
    }
    let bytes = BASE64.decode(text).map_err(|_| Rejected::Malformed)?;
    let SignedRecord { payload, signature } =
        codec::decode_within(&bytes, TEXT_LIMIT).map_err(|_| Rejected::Malformed)?;
    if payload.len() > RECORD_LIMIT {
        return Err(Rejected::TooLarge);
    }
    if !verify(
        &key,
        &signed_bytes(purpose, cluster_id, &payload),
        &signature,
    ) {
        return Err(Rejected::Forged);
    }
    let plain = zstd::bulk::decompress(&payload, PLAIN_LIMIT).map_err(|_| Rejected::Malformed)?;
    codec::decode(&plain).map_err(|_| Rejected::Malformed)
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use scheduler::model::{
        InstanceId, InstanceReport, InstanceState, Name, RevisionKey, ServiceKey, UnixMs,
    };

    use super::super::tests::{Enrolled, record};
    use super::*;
    use crate::transport::testing::Cluster;

    #[test]
    fn only_the_nodes_own_word_counts() {
        let cluster = Cluster::found();
        let (one, two) = (cluster.identity(1), cluster.identity(2));
        let trust = Enrolled::of(&[&one, &two]);
        let mut said = record(1, 8422);
        said.incarnation = 3;
        let sealed = seal(&said, "c", |bytes| one.sign(bytes)).unwrap();
        let open = |text: &str, cluster: &str, of| open(text, cluster, of, &trust);
        assert_eq!(open(&sealed, "c", (NodeId(1), 3)).unwrap(), said);
        assert_eq!(open(&sealed, "d", (NodeId(1), 3)), Err(Rejected::Forged));
        assert_eq!(open(&sealed, "c", (NodeId(2), 3)), Err(Rejected::Forged));
        assert_eq!(open(&sealed, "c", (NodeId(9), 3)), Err(Rejected::Unknown));
        assert_eq!(open(&sealed, "c", (NodeId(1), 4)), Err(Rejected::Misfiled));
        // Two speaks of one, with its own valid signature.
        let forged = seal(&said, "c", |bytes| two.sign(bytes)).unwrap();
        assert_eq!(open(&forged, "c", (NodeId(1), 3)), Err(Rejected::Forged));
        assert_eq!(open(&forged, "c", (NodeId(2), 3)), Err(Rejected::Misfiled));
        let huge = "A".repeat(TEXT_LIMIT + 1);
        assert_eq!(open(&huge, "c", (NodeId(1), 3)), Err(Rejected::TooLarge));
    }

    #[test]
    fn an_oversized_record_is_not_sent() {
        let mut said = record(1, 8422);
        for images in [
            vec!["x".repeat(PLAIN_LIMIT)],
            (0..2_000).map(digest).collect(),
        ] {
            said.images = images;
            let error = seal(&said, "c", |_| vec![0; 64]).unwrap_err();
            assert!(
                matches!(error, GossipError::RecordTooLarge { .. }),
                "{error}"
            );
        }
    }

    /// 64 digits that repeat nothing.
    pub(in super::super) fn digest(number: u64) -> String {
        let mut dice = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut word = || {
            dice ^= dice << 13;
            dice ^= dice >> 7;
            dice ^= dice << 17;
            format!("{dice:016x}")
        };
        (0..4).map(|_| word()).collect()
    }

    pub(in super::super) fn instance(number: u64) -> InstanceReport {
        let revision = format!("service-{}-00001", number % 20);
        let namespace = Name::default_namespace();
        InstanceReport {
            id: InstanceId(format!("{revision}-{}", &digest(number)[..5])),
            revision: RevisionKey {
                namespace: namespace.clone(),
                name: Name::new(revision).unwrap(),
            },
            service: ServiceKey {
                name: Name::new(format!("service-{}", number % 20)).unwrap(),
                namespace,
            },
            state: InstanceState::Ready,
            since: UnixMs(1_764_000_000_000 + number * 1_117),
            in_flight: u32::try_from(number % 7).unwrap(),
            concurrency_milli: u32::try_from(number * 37 % 5_000).unwrap(),
            failure: None,
            steward: None,
            activity: scheduler::model::Activity::default(),
        }
    }

    #[test]
    fn hundreds_of_instances_fit_a_record() {
        for (count, most) in [(200, 8 << 10), (1_000, RECORD_LIMIT)] {
            let mut said = record(1, 8422);
            said.instances = (0..count).map(instance).collect();
            let sealed = seal(&said, "c", |_| vec![0; 64]).unwrap();
            assert!(sealed.len() <= most, "{count}: {}", sealed.len());
        }
    }

    #[test]
    fn the_largest_record_fits_its_envelope() {
        let mut said = record(1, 8422);
        // Sixteen digits of 64 are eight bytes, and cannot be packed tighter.
        said.images = (0..950).map(digest).collect();
        let sealed = seal(&said, "c", |_| vec![0; 64]).unwrap();
        assert!(sealed.len() > TEXT_LIMIT * 8 / 10, "{}", sealed.len());
        assert!(sealed.len() <= TEXT_LIMIT);
    }

    proptest! {
        #[test]
        fn junk_never_panics(text in ".{0,200}", bytes: Vec<u8>) {
            struct Anyone;
            impl Trust for Anyone {
                fn public_key(&self, _: NodeId) -> Option<[u8; 32]> {
                    Some([7; 32])
                }
            }
            let filed = (NodeId(1), 1);
            prop_assert!(open(&text, "c", filed, &Anyone).is_err());
            prop_assert!(open(&BASE64.encode(bytes), "c", filed, &Anyone).is_err());
        }
    }
}
