//! Which node should start an instance, and why not the others.

mod receipt;

pub use receipt::{Candidate, Receipt, Rejection, Verdict};

use std::collections::BTreeSet;

use crate::fleet::Fleet;
use crate::model::{NodeId, Revision};

/// What is asked of placement.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ask {
    /// Where the demand is: round trips are this node's.
    pub from: NodeId,
    /// Nodes that refused or failed a moment ago.
    pub avoid: BTreeSet<NodeId>,
    /// Why it is asked: `request`, `scale-up`, `initial`, `minimum`, …
    pub cause: String,
}

/// Ranks the nodes for one new instance of `revision`, best first, with a verdict on every node.
#[must_use]
pub fn place(_fleet: &Fleet, _revision: &Revision, _ask: &Ask) -> Receipt {
    unimplemented!("helper")
}
