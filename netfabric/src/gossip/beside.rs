//! What goes beside a record, under keys of its own, so that a small change is not the whole record over
//! again: the load its instances carry, and what the node measures. Each is signed as the record is. A
//! node of an earlier version passes over keys it does not know.

use scheduler::model::{Demand, Measured, NodeId, NodeRecord, Pulls};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::record::{Purpose, Rejected, pack, unpack};
use super::{GossipError, Trust};
use crate::wire::codec;

/// Parts of [`Measured`] told apart by number, so that those of later versions can be passed over.
const COORDINATE: u8 = 1;
const PRESSURE: u8 = 2;
const STARTS: u8 = 3;
const PULLS: u8 = 4;
/// Parts that are read; no node has more to say.
const SECTIONS_MAX: usize = 32;

/// Something a node says, with when it says it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Said<T> {
    pub node: NodeId,
    pub incarnation: u64,
    /// Rises with everything it says of that kind.
    pub seq: u64,
    pub what: T,
}

impl<T: Serialize + DeserializeOwned> Said<T> {
    pub fn seal(
        &self,
        purpose: Purpose,
        cluster_id: &str,
        sign: impl FnOnce(&[u8]) -> Vec<u8>,
    ) -> Result<String, GossipError> {
        pack(purpose, self, cluster_id, sign)
    }

    /// Opens what was filed under `node` and `incarnation`.
    pub fn open(
        text: &str,
        purpose: Purpose,
        cluster_id: &str,
        (node, incarnation): (NodeId, u64),
        trust: &dyn Trust,
    ) -> Result<Self, Rejected> {
        let said: Self = unpack(text, purpose, cluster_id, node, trust)?;
        if said.node != node || said.incarnation != incarnation {
            return Err(Rejected::Misfiled);
        }
        Ok(said)
    }
}

/// What of a record changes with every request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Load {
    /// The number of the record it goes with.
    of: u64,
    registry_index: u64,
    demand: Vec<Demand>,
    /// Requests now and on average in each of the record's instances, in their order.
    instances: Vec<(u32, u32)>,
}

impl Load {
    /// What makes `record` of `whole`, if it differs in nothing else.
    pub fn between(whole: &NodeRecord, record: &NodeRecord) -> Option<Self> {
        if bare(whole) != bare(record) {
            return None;
        }
        let instances = record.instances.iter();
        Some(Self {
            of: whole.seq,
            registry_index: record.registry_index,
            demand: record.demand.clone(),
            instances: instances
                .map(|i| (i.in_flight, i.concurrency_milli))
                .collect(),
        })
    }
}

impl Said<Load> {
    /// Brings the record up to it, if it is the one it goes with.
    pub fn apply(&self, record: &mut NodeRecord) {
        let load = &self.what;
        let goes = (self.incarnation, load.of) == (record.incarnation, record.seq)
            && load.instances.len() == record.instances.len();
        if !goes {
            return;
        }
        record.seq = self.seq.max(record.seq);
        record.registry_index = load.registry_index;
        record.demand.clone_from(&load.demand);
        for (report, (in_flight, milli)) in record.instances.iter_mut().zip(&load.instances) {
            (report.in_flight, report.concurrency_milli) = (*in_flight, *milli);
        }
    }
}

/// The record without what a load brings.
fn bare(record: &NodeRecord) -> NodeRecord {
    let mut bare = record.clone();
    (bare.seq, bare.registry_index) = (0, 0);
    bare.demand.clear();
    for report in &mut bare.instances {
        (report.in_flight, report.concurrency_milli) = (0, 0);
    }
    bare
}

/// [`Measured`] as it travels: each part by its number.
pub(super) type Sections = Vec<(u8, Vec<u8>)>;

pub(super) fn sections(measured: &Measured) -> Result<Sections, GossipError> {
    let mut sections = Sections::new();
    if let Some(coordinate) = &measured.coordinate {
        sections.push((COORDINATE, codec::encode(coordinate)?));
    }
    if let Some(pressure) = &measured.pressure {
        sections.push((PRESSURE, codec::encode(pressure)?));
    }
    if !measured.starts.is_empty() {
        sections.push((STARTS, codec::encode(&measured.starts)?));
    }
    if measured.pulls != Pulls::default() {
        sections.push((PULLS, codec::encode(&measured.pulls)?));
    }
    Ok(sections)
}

/// What of it this version knows and can be true.
pub(super) fn measured(sections: &Sections) -> Measured {
    let mut measured = Measured::default();
    for (number, bytes) in sections.iter().take(SECTIONS_MAX) {
        match *number {
            COORDINATE => measured.coordinate = codec::decode(bytes).ok(),
            PRESSURE => measured.pressure = codec::decode(bytes).ok(),
            STARTS => measured.starts = codec::decode(bytes).unwrap_or_default(),
            PULLS => measured.pulls = codec::decode(bytes).unwrap_or_default(),
            // Of a later version.
            _ => {}
        }
    }
    measured.within_reason()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use scheduler::model::{Coordinate, Name, Pressure, RevisionKey, StartHistogram};

    use super::super::record::tests::{digest, instance};
    use super::super::tests::record;
    use super::*;

    fn told() -> Measured {
        let start = |service: u64| {
            let mut starts = StartHistogram::new(RevisionKey {
                namespace: Name::default_namespace(),
                name: Name::new(format!("service-{service}-00001")).unwrap(),
            });
            (0..40).for_each(|n| starts.note(40_000 + service * 9_000 + n * n * 500));
            starts
        };
        let image = |number: u64| {
            let hash = u64::from_str_radix(&digest(number)[..16], 16).unwrap();
            (hash, u32::try_from(number * 7_919 % 900_000).unwrap())
        };
        let mut images: Vec<_> = (0..20).map(image).collect();
        images.sort_unstable();
        Measured {
            coordinate: Some(Coordinate {
                at: [-17_012, 3_699, -21_182, -9_044],
                height: 312,
                error_permille: 42,
            }),
            pressure: Some(Pressure {
                cpu_permille: 150,
                memory_permille: 0,
                io_permille: 50,
            }),
            starts: (0..20).map(start).collect(),
            pulls: Pulls {
                kib_per_second: Some(31_000),
                images,
            },
        }
    }

    #[test]
    fn two_hundred_instances_and_all_that_is_measured_fit_eight_kilobytes() {
        let mut said = record(1, 8422);
        said.instances = (0..200).map(instance).collect();
        said.images = (0..20).map(|n| format!("sha256:{}", digest(n))).collect();
        let whole = super::super::record::seal(&said, "c", |_| vec![0; 64]).unwrap();
        let mut busy = said.clone();
        for (number, report) in (0_u32..).zip(&mut busy.instances) {
            (report.in_flight, report.concurrency_milli) = (number % 9, number * 91 % 4_000);
        }
        let load = Said {
            node: NodeId(1),
            incarnation: 1,
            seq: 2,
            what: Load::between(&said, &busy).unwrap(),
        };
        let load = load.seal(Purpose::Load, "c", |_| vec![0; 64]).unwrap();
        let measured = Said {
            node: NodeId(1),
            incarnation: 1,
            seq: 2,
            what: sections(&told()).unwrap(),
        };
        let measured = measured.seal(Purpose::Measured, "c", |_| vec![0; 64]);
        let all = [whole.len(), load.len(), measured.unwrap().len()];
        assert!(all.iter().sum::<usize>() <= 8 << 10, "{all:?}");
        assert!(load.len() * 4 <= whole.len(), "{all:?}");
    }

    #[test]
    fn parts_of_a_later_version_are_passed_over() {
        let mut sections = sections(&told()).unwrap();
        assert_eq!(measured(&sections), told());
        sections.insert(0, (77, vec![1, 2, 3]));
        sections.push((PRESSURE + 100, Vec::new()));
        assert_eq!(measured(&sections), told());
        // A part that changed beyond reading is none; the others are.
        sections.retain(|(number, _)| *number != PRESSURE);
        sections.push((PRESSURE, vec![9, 9]));
        let read = measured(&sections);
        assert_eq!((read.pressure, read.coordinate), (None, told().coordinate));
    }

    proptest! {
        #[test]
        fn junk_never_panics(sections: Vec<(u8, Vec<u8>)>) {
            let sections = sections.into_iter().map(|(n, bytes)| (n % 6, bytes)).collect();
            let _ = measured(&sections);
        }
    }
}
