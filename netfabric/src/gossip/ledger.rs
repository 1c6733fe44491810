//! The newest record of every node, and the rule that it never goes backwards.

use std::collections::BTreeMap;
use std::sync::Arc;

use scheduler::fleet::Word;
use scheduler::model::{NodeId, NodeRecord};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::beside::{self, Load, Said, Sections};
use super::record::{self, Purpose, Rejected};
use super::{Heard, Life, Members, Trust};

/// What the carrier holds under a node's name.
pub(super) struct Filed<'a> {
    pub node: NodeId,
    pub incarnation: u64,
    /// The task's restarts within the incarnation: a later one's texts replace an earlier one's.
    pub restart: u64,
    pub text: Option<&'a str>,
    /// What goes beside it.
    pub load: Option<&'a str>,
    pub measured: Option<&'a str>,
}

#[derive(Default)]
pub(super) struct Ledger {
    held: BTreeMap<NodeId, Held>,
    /// Highest (incarnation, seq) seen of each node; kept when its record goes.
    marks: BTreeMap<NodeId, (u64, u64)>,
    /// Texts that were refused or outdated, so that each is judged, and complained of, once.
    refused: BTreeMap<(NodeId, u64, u64, Purpose), String>,
    loads: BTreeMap<NodeId, Beside<Load>>,
    measured: BTreeMap<NodeId, Beside<Sections>>,
}

struct Held {
    record: Word,
    text: String,
    /// It with what goes beside it, as the others in the house see it: made when something of it is new,
    /// and shared by every view until then.
    shown: Heard,
}

struct Beside<T> {
    said: Said<T>,
    text: String,
}

impl Ledger {
    /// Looks at one text; gives the record when it is new and counts.
    pub fn hear(
        &mut self,
        filed: &Filed<'_>,
        cluster_id: &str,
        trust: &dyn Trust,
    ) -> Result<Option<&NodeRecord>, Rejected> {
        let Some(text) = filed.text else {
            return Ok(None);
        };
        let node = filed.node;
        let place = (node, filed.incarnation, filed.restart, Purpose::Record);
        let seen = self.held.get(&node).is_some_and(|held| held.text == text)
            || self
                .refused
                .get(&place)
                .is_some_and(|refused| refused == text);
        if seen
            || self
                .marks
                .get(&node)
                .is_some_and(|mark| filed.incarnation < mark.0)
        {
            return Ok(None);
        }
        match record::open(text, cluster_id, (node, filed.incarnation), trust) {
            Ok(record) => {
                let forward = self.take(record, text);
                if forward {
                    self.refused.remove(&place);
                    self.show(node);
                } else {
                    self.refused.insert(place, text.to_owned());
                }
                Ok(self
                    .held
                    .get(&node)
                    .filter(|_| forward)
                    .map(|held| &*held.record))
            }
            // It may be enrolled at the next look: the registry's news may be later than this.
            Err(Rejected::Unknown) => Ok(None),
            Err(rejected) => {
                self.refused.insert(place, text.to_owned());
                Err(rejected)
            }
        }
    }

    /// Looks at what goes beside the record.
    pub fn hear_beside(
        &mut self,
        filed: &Filed<'_>,
        cluster_id: &str,
        trust: &dyn Trust,
    ) -> Result<(), Rejected> {
        let open = (cluster_id, trust);
        let load = filed.load.map_or(Ok(false), |text| {
            let (held, refused) = (&mut self.loads, &mut self.refused);
            hear_of(held, refused, (Purpose::Load, text), filed, open)
        });
        let measured = filed.measured.map_or(Ok(false), |text| {
            let (held, refused) = (&mut self.measured, &mut self.refused);
            hear_of(held, refused, (Purpose::Measured, text), filed, open)
        });
        if load == Ok(true) || measured == Ok(true) {
            self.show(filed.node);
        }
        load.and(measured).map(drop)
    }

    /// Something of a node is new.
    fn show(&mut self, node: NodeId) {
        let Some(held) = self.held.get_mut(&node) else {
            return;
        };
        let mut record = held.record.clone();
        if let Some(load) = self.loads.get(&node) {
            load.said.apply(&mut record.edit());
        }
        let measured = self.measured.get(&node);
        let measured = measured.filter(|m| m.said.incarnation == record.incarnation);
        held.shown = Heard {
            measured: measured.map_or_else(Arc::default, |m| beside::measured(&m.said.what).into()),
            record,
            life: Life::default(),
        };
    }

    /// Keeps the record when it is newer than all before it.
    fn take(&mut self, record: NodeRecord, text: &str) -> bool {
        let (node, at) = (record.node, (record.incarnation, record.seq));
        // The same again is welcome when the record itself was dropped meanwhile.
        let again = !self.held.contains_key(&node);
        let forward = self
            .marks
            .get(&node)
            .is_none_or(|mark| at > *mark || (again && at == *mark));
        if forward {
            self.marks.insert(node, at);
            let record = Word::from(record);
            let shown = Heard {
                record: record.clone(),
                measured: Arc::default(),
                life: Life::default(),
            };
            let text = text.to_owned();
            let held = Held {
                record,
                text,
                shown,
            };
            self.held.insert(node, held);
        }
        forward
    }

    /// Drops the records of nodes that are no longer heard of or no longer enrolled.
    pub fn keep(&mut self, heard_of: impl Fn(NodeId) -> bool, trust: &dyn Trust) {
        self.held
            .retain(|node, _| heard_of(*node) && trust.public_key(*node).is_some());
        self.refused.retain(|(node, ..), _| heard_of(*node));
        self.loads.retain(|node, _| self.held.contains_key(node));
        self.measured.retain(|node, _| self.held.contains_key(node));
    }

    /// The view for the others in the house.
    pub fn members(&self, life: impl Fn(NodeId, u64) -> Life) -> Members {
        let entry = |(node, held): (&NodeId, &Held)| {
            let heard = Heard {
                life: life(*node, held.record.incarnation),
                ..held.shown.clone()
            };
            (*node, heard)
        };
        self.held
            .iter()
            .map(entry)
            .collect::<BTreeMap<_, _>>()
            .into()
    }
}

/// Keeps what is newer than all of its kind before it, and says whether it is.
fn hear_of<T: Serialize + DeserializeOwned>(
    held: &mut BTreeMap<NodeId, Beside<T>>,
    refused: &mut BTreeMap<(NodeId, u64, u64, Purpose), String>,
    (purpose, text): (Purpose, &str),
    filed: &Filed<'_>,
    (cluster_id, trust): (&str, &dyn Trust),
) -> Result<bool, Rejected> {
    let (node, incarnation) = (filed.node, filed.incarnation);
    let place = (node, incarnation, filed.restart, purpose);
    let before = held.get(&node);
    let outdated = before.is_some_and(|b| b.text == text || b.said.incarnation > incarnation);
    if outdated || refused.get(&place).is_some_and(|known| known == text) {
        return Ok(false);
    }
    match Said::<T>::open(text, purpose, cluster_id, (node, incarnation), trust) {
        Ok(said) => {
            let at = |said: &Said<T>| (said.incarnation, said.seq);
            let news = before.is_none_or(|before| at(&said) > at(&before.said));
            if news {
                let text = text.to_owned();
                held.insert(node, Beside { said, text });
            } else {
                refused.insert(place, text.to_owned());
            }
            Ok(news)
        }
        // It may be enrolled at the next look.
        Err(Rejected::Unknown) => Ok(false),
        Err(rejected) => {
            refused.insert(place, text.to_owned());
            Err(rejected)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Enrolled, record};
    use super::*;
    use crate::identity::Identity;
    use crate::transport::testing::Cluster;

    fn sealed(identity: &Identity, incarnation: u64, seq: u64) -> String {
        let mut said = record(identity.node().0, 8422);
        (said.incarnation, said.seq) = (incarnation, seq);
        record::seal(&said, "c", |bytes| identity.sign(bytes)).unwrap()
    }

    fn filed(node: NodeId, incarnation: u64, text: &str) -> Filed<'_> {
        Filed {
            node,
            incarnation,
            restart: 0,
            text: Some(text),
            load: None,
            measured: None,
        }
    }

    #[test]
    fn records_never_go_backwards() {
        let one = Cluster::found().identity(1);
        let trust = Enrolled::of(&[&one]);
        let mut ledger = Ledger::default();
        for (incarnation, seq, counts) in [
            (2, 5, true),
            (2, 5, false),
            (2, 4, false),
            (1, 9, false),
            (2, 6, true),
            (3, 1, true),
            (2, 7, false),
        ] {
            let text = sealed(&one, incarnation, seq);
            let heard = ledger
                .hear(&filed(NodeId(1), incarnation, &text), "c", &trust)
                .unwrap();
            assert_eq!(heard.is_some(), counts, "{incarnation}.{seq}");
        }
        let members = ledger.members(|_, incarnation| Life {
            alive: incarnation == 3,
            ..Life::default()
        });
        let Heard { record, life, .. } = &members[&NodeId(1)];
        assert_eq!((record.incarnation, record.seq, life.alive), (3, 1, true));
    }

    #[test]
    fn a_forged_text_is_judged_once_and_does_no_harm() {
        let cluster = Cluster::found();
        let (one, two) = (cluster.identity(1), cluster.identity(2));
        let trust = Enrolled::of(&[&one, &two]);
        let mut ledger = Ledger::default();
        let good = sealed(&one, 1, 1);
        ledger
            .hear(&filed(NodeId(1), 1, &good), "c", &trust)
            .unwrap()
            .unwrap();
        let mut said = record(1, 8422);
        (said.incarnation, said.seq) = (1, 99);
        let forged = record::seal(&said, "c", |bytes| two.sign(bytes)).unwrap();
        let first = ledger.hear(&filed(NodeId(1), 1, &forged), "c", &trust);
        assert_eq!(first.unwrap_err(), Rejected::Forged);
        assert!(
            ledger
                .hear(&filed(NodeId(1), 1, &forged), "c", &trust)
                .unwrap()
                .is_none()
        );
        assert_eq!(
            ledger.members(|_, _| Life::default())[&NodeId(1)]
                .record
                .seq,
            1
        );
        let next = sealed(&one, 1, 2);
        assert!(
            ledger
                .hear(&filed(NodeId(1), 1, &next), "c", &trust)
                .unwrap()
                .is_some()
        );
    }

    #[test]
    fn a_revoked_nodes_record_goes() {
        let one = Cluster::found().identity(1);
        let trust = Enrolled::of(&[&one]);
        let mut ledger = Ledger::default();
        let text = sealed(&one, 1, 1);
        ledger
            .hear(&filed(NodeId(1), 1, &text), "c", &trust)
            .unwrap()
            .unwrap();
        ledger.keep(|_| true, &trust);
        assert_eq!(ledger.members(|_, _| Life::default()).len(), 1);
        trust.revoke(NodeId(1));
        ledger.keep(|_| true, &trust);
        assert!(ledger.members(|_, _| Life::default()).is_empty());
        assert!(
            ledger
                .hear(&filed(NodeId(1), 1, &text), "c", &trust)
                .unwrap()
                .is_none()
        );
    }

    #[test]
    fn a_load_goes_with_its_record_and_no_other() {
        let cluster = Cluster::found();
        let (one, two) = (cluster.identity(1), cluster.identity(2));
        let trust = Enrolled::of(&[&one, &two]);
        let mut whole = record(1, 8422);
        (whole.incarnation, whole.seq) = (1, 3);
        let load = |identity: &Identity, of: u64, seq: u64, index: u64| {
            let mut whole = whole.clone();
            whole.seq = of;
            let mut now = whole.clone();
            (now.seq, now.registry_index) = (seq, index);
            let said = Said {
                node: NodeId(1),
                incarnation: 1,
                seq,
                what: Load::between(&whole, &now).unwrap(),
            };
            said.seal(Purpose::Load, "c", |bytes| identity.sign(bytes))
                .unwrap()
        };
        let text = record::seal(&whole, "c", |bytes| one.sign(bytes)).unwrap();
        // The load, and what number and index the record then has.
        let cases = [
            (load(&one, 3, 4, 7), Some((4, 7))),
            (load(&one, 3, 6, 9), Some((6, 9))),
            (load(&one, 3, 5, 8), Some((6, 9))),
            (load(&one, 4, 9, 5), Some((3, 0))),
            (load(&two, 3, 99, 1), None),
            // A record is no load.
            (text.clone(), None),
        ];
        let mut ledger = Ledger::default();
        ledger
            .hear(&filed(NodeId(1), 1, &text), "c", &trust)
            .unwrap();
        for (number, (load, shown)) in cases.into_iter().enumerate() {
            let filed = Filed {
                load: Some(&load),
                ..filed(NodeId(1), 1, &text)
            };
            let heard = ledger.hear_beside(&filed, "c", &trust);
            let members = ledger.members(|_, _| Life::default());
            let record = &members[&NodeId(1)].record;
            match shown {
                Some(shown) => {
                    heard.unwrap();
                    assert_eq!((record.seq, record.registry_index), shown, "case {number}");
                }
                None => assert_eq!(heard, Err(Rejected::Forged), "case {number}"),
            }
        }
    }
}
