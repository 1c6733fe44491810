//! What instances used, as whole numbers that only rise: counted by the node, added up by revision
//! and service, and shown as they are to whoever makes bills or graphs of them.

use std::collections::BTreeMap;

use scheduler::model::{InstanceId, InstanceState, Name, NodeId};
use serde::{Deserialize, Serialize};

/// Declares the counters once, with the sums and differences of all of them.
macro_rules! amounts {
    ($($(#[$doc:meta])* $field:ident,)*) => {
        /// Used from a beginning until now, or between two moments.
        #[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(rename_all = "camelCase", default)]
        pub struct Amounts {
            $($(#[$doc])* pub $field: u64,)*
            /// Instance time by state.
            pub state_millis: BTreeMap<InstanceState, u64>,
        }

        impl Amounts {
            pub fn add(&mut self, more: &Self) {
                $(self.$field = self.$field.saturating_add(more.$field);)*
                for (state, millis) in &more.state_millis {
                    self.spend(*state, *millis);
                }
            }

            /// What came on top of `earlier`.
            #[must_use]
            pub fn since(&self, earlier: &Self) -> Self {
                let before = |state| earlier.state_millis.get(state).copied().unwrap_or(0);
                let states = self.state_millis.iter();
                Self {
                    $($field: self.$field.saturating_sub(earlier.$field),)*
                    state_millis: states
                        .map(|(state, millis)| (*state, millis.saturating_sub(before(state))))
                        .collect(),
                }
            }
        }
    };
}

amounts! {
    /// Instances begun.
    instances,
    /// Containers made anew in an instance that had one.
    restarts,
    cpu_micros,
    /// How long, and how often, the CPU limit held it back.
    throttled_micros,
    throttled_periods,
    /// Memory used, times seconds.
    memory_byte_seconds,
    /// The memory limit, times seconds in which the program could run.
    limit_byte_seconds,
    oom_kills,
    io_read_bytes,
    io_write_bytes,
    net_in_bytes,
    net_in_packets,
    net_out_bytes,
    net_out_packets,
    /// Requests its instances answered, and their time in them, until the last byte.
    requests,
    request_micros,
}

impl Amounts {
    pub fn spend(&mut self, state: InstanceState, millis: u64) {
        let spent = self.state_millis.entry(state).or_default();
        *spent = spent.saturating_add(millis);
    }
}

/// `GET /v1/usage`: of the nodes that answered.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UsageView {
    pub instances: Vec<InstanceUsage>,
    pub revisions: Vec<RevisionUsage>,
    /// Names of nodes that did not answer in time: their part is missing.
    #[serde(default)]
    pub missing: Vec<Name>,
}

/// One instance that is there now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InstanceUsage {
    pub instance: InstanceId,
    pub namespace: Name,
    pub service: Name,
    pub revision: Name,
    pub node: NodeId,
    pub node_name: Name,
    pub state: InstanceState,
    pub memory_bytes: u64,
    /// 0 is no limit.
    pub memory_limit_bytes: u64,
    pub memory_peak_bytes: u64,
    pub pids: u64,
    /// The last time measured: its length, and what was used in it.
    pub window_millis: u64,
    pub window: Amounts,
    /// Since it began.
    pub total: Amounts,
}

/// All that instances of a revision used on one node, those that are gone included.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RevisionUsage {
    pub namespace: Name,
    pub service: Name,
    /// `None` is the sum of old ones.
    pub revision: Option<Name>,
    pub node: NodeId,
    pub node_name: Name,
    pub total: Amounts,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_and_differences_cover_every_counter() {
        let mut one = Amounts {
            cpu_micros: 7,
            net_out_packets: 3,
            ..Amounts::default()
        };
        one.spend(InstanceState::Ready, 5);
        let mut sum = one.clone();
        sum.add(&one);
        assert_eq!((sum.cpu_micros, sum.net_out_packets), (14, 6));
        assert_eq!(sum.state_millis[&InstanceState::Ready], 10);
        assert_eq!(sum.since(&one), one);
        assert_eq!(one.since(&sum).cpu_micros, 0, "never below zero");
    }
}
