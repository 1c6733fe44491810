//! The replicated state: commands in, replies and changes out. Deterministic: equal states and
//! equal commands give equal results on every replica.

mod command;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use command::{
    Action, Change, ClusterMeta, Command, Outcome, PutService, Refusal, Reply, Token,
};

use crate::model::{NodeId, NodeIdentity, Revision, RevisionKey, Service, ServiceKey};

/// Everything people decided and nodes agreed on. Maps serialize as lists of pairs where their
/// keys are no strings, so that JSON can hold them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Rises by one with every applied command that changed something.
    pub index: u64,
    pub cluster: Option<ClusterMeta>,
    #[serde(with = "pairs")]
    pub nodes: BTreeMap<NodeId, NodeIdentity>,
    pub next_node: u64,
    pub tokens: BTreeMap<String, Token>,
    #[serde(with = "pairs")]
    pub services: BTreeMap<ServiceKey, Service>,
    #[serde(with = "pairs")]
    pub revisions: BTreeMap<RevisionKey, Revision>,
}

impl State {
    /// Applies one command: the reply to its proposer and the changes followers are told.
    /// A refused command changes nothing, the index included.
    pub fn apply(&mut self, _command: &Command) -> (Reply, Vec<Change>) {
        unimplemented!("helper")
    }

    /// Applies a change from the feed, bringing the state to `index`.
    pub fn follow(&mut self, _index: u64, _changes: &[Change]) {
        unimplemented!("helper")
    }
}

mod pairs {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<K: Serialize, V: Serialize, S: Serializer>(
        map: &BTreeMap<K, V>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(map.iter())
    }

    pub fn deserialize<'de, K, V, D>(deserializer: D) -> Result<BTreeMap<K, V>, D::Error>
    where
        K: Deserialize<'de> + Ord,
        V: Deserialize<'de>,
        D: Deserializer<'de>,
    {
        Vec::<(K, V)>::deserialize(deserializer).map(|pairs| pairs.into_iter().collect())
    }
}
