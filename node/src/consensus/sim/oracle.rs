//! What must hold in a simulation, whatever breaks: checked on every message, on every step of
//! every replica, and on what clients were told.

use std::collections::BTreeMap;

use scheduler::registry::Change;

use super::trace::{broken, short};
use crate::consensus::Registry;
use crate::consensus::tests::world::token;
use crate::consensus::types::LogId;
use crate::consensus::view::Missing;
use crate::consensus::wire::{self, Request};

/// Changes asked of a view at once: all it has.
const ALL: usize = usize::MAX;

#[derive(Default)]
pub(super) struct Oracle {
    /// Which entry was named committed at an index.
    committed: BTreeMap<u64, LogId>,
    /// What an entry says, by its term, leader and index.
    entries: BTreeMap<LogId, String>,
    /// What changed at a registry index, wherever it was first seen.
    steps: BTreeMap<u64, Vec<Change>>,
    /// Up to where a process's view was looked at, by host and process.
    seen: BTreeMap<(u64, u64), u64>,
    /// Serials whose change was acknowledged, in order of the answers.
    pub acked: Vec<u64>,
    /// The highest index that a change or a read was answered with.
    pub floor: u64,
}

impl Oracle {
    /// A request of `from` to another voter.
    pub fn saw(&mut self, from: u64, request: &[u8]) {
        let Ok((Request::Append(request), _)) = wire::decode::<Request>(request) else {
            return;
        };
        // openraft 0.9 orders leaders by (term, node): one term may have two of them, and the
        // lesser one's entries are no more than those of an earlier term.
        if request.vote.leader_id().voted_for() != Some(from) {
            broken(format_args!("n{from} speaks for {}", request.vote));
        }
        if let Some(mark) = request.leader_commit {
            let known = *self.committed.entry(mark.index).or_insert(mark);
            if known != mark {
                broken(format_args!(
                    "committed {known}, and then {mark} at its index"
                ));
            }
        }
        for entry in &request.entries {
            let says = short(&serde_json::to_vec(&entry.payload).unwrap_or_default());
            let known = self
                .entries
                .entry(entry.log_id)
                .or_insert_with(|| says.clone());
            if *known != says {
                broken(format_args!("two entries are named {}", entry.log_id));
            }
        }
    }

    /// Looks at what a replica went through since it was looked at last.
    pub fn look(&mut self, id: u64, process: u64, registry: &Registry) {
        let from = self.seen.get(&(id, process)).copied().unwrap_or(0);
        let view = registry.view();
        let now = view.index();
        if now < from {
            broken(format_args!("n{id} went back from {from} to {now}"));
        }
        if let Missing::Steps(steps) = view.since(from, ALL) {
            for (index, changes) in steps {
                let known = self.steps.entry(index).or_insert_with(|| changes.clone());
                if *known != changes {
                    broken(format_args!("n{id} changed something else at {index}"));
                }
            }
        }
        self.seen.insert((id, process), now);
    }

    pub fn acked(&mut self, serial: u64, index: u64) {
        self.acked.push(serial);
        self.floor = self.floor.max(index);
    }

    /// A read that began when `acked` changes were acknowledged and `floor` was the highest index.
    pub fn read(&mut self, id: u64, registry: &Registry, index: u64, acked: usize, floor: u64) {
        if index < floor || registry.view().index() < index {
            broken(format_args!(
                "n{id} read {index} after {floor} had been answered"
            ));
        }
        self.has_all(id, registry, acked);
        self.floor = self.floor.max(index);
    }

    /// A replica holds the first `count` acknowledged changes.
    pub fn has_all(&self, id: u64, registry: &Registry, count: usize) {
        let state = registry.view().state();
        for serial in &self.acked[..count] {
            if !state.tokens.contains_key(&token(*serial)) {
                broken(format_args!("n{id} lacks the acknowledged change {serial}"));
                return;
            }
        }
    }
}
