//! How this node's part of the registry stands: for operators, gossip and the feed's beats.

use std::time::Duration;

use openraft::ServerState;
use scheduler::model::{NodeId, Role};

use super::batch::QUORUM_SILENCE;
use super::feed;
use super::keeper::Outage;
use super::registry::Registry;
use super::types::Metrics;

/// A node's part in the registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Leader,
    /// A voter that follows the leader.
    Voter,
    Candidate,
    /// A voter-to-be that is not a member yet, or copies the log.
    Learner,
    /// Follows the feed.
    Follower,
    /// A voter whose store failed: it follows the feed until it can vote again.
    Out,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    pub part: Part,
    pub leader: Option<NodeId>,
    /// Zero on followers.
    pub term: u64,
    /// As Raft has them; on followers as the registry names them.
    pub voters: Vec<NodeId>,
    /// The registry index this node has.
    pub index: u64,
    /// Whether changes can be expected to succeed.
    pub quorum: bool,
    /// How long ago a quorum was known to live.
    pub quorum_ago: Option<Duration>,
    /// Why this voter takes no part at the moment.
    pub failed: Option<Outage>,
}

impl Registry {
    pub fn status(&self) -> Status {
        match self.voter() {
            Some(voter) => {
                let metrics = voter.raft.metrics().borrow().clone();
                self.voter_status(&metrics)
            }
            None => match self.outage() {
                Some(outage) => self.out_status(&outage),
                None => self.follower_status(),
            },
        }
    }

    fn voter_status(&self, metrics: &Metrics) -> Status {
        let part = match metrics.state {
            // The keeper is about to notice.
            _ if metrics.running_state.is_err() => Part::Out,
            ServerState::Leader => Part::Leader,
            ServerState::Follower => Part::Voter,
            ServerState::Candidate => Part::Candidate,
            ServerState::Learner | ServerState::Shutdown => Part::Learner,
        };
        let quorum_ago = match part {
            Part::Leader if metrics.membership_config.voter_ids().count() == 1 => {
                Some(Duration::ZERO)
            }
            Part::Leader => metrics.millis_since_quorum_ack.map(Duration::from_millis),
            _ => self.view().staleness(),
        };
        Status {
            part,
            leader: metrics
                .current_leader
                .map(NodeId)
                .filter(|leader| part != Part::Out || *leader != self.node()),
            term: metrics.current_term,
            voters: metrics.membership_config.voter_ids().map(NodeId).collect(),
            index: self.view().index(),
            quorum: metrics.running_state.is_ok()
                && quorum_ago.is_some_and(|ago| ago < QUORUM_SILENCE),
            quorum_ago,
            failed: None,
        }
    }

    /// As a follower's: what it needs to know is whether others can be sent changes. When it led
    /// until now, whoever told so has not heard that it does no longer.
    fn out_status(&self, outage: &Outage) -> Status {
        let status = self.follower_status();
        let leader = status.leader.filter(|leader| *leader != self.node());
        Status {
            part: Part::Out,
            leader,
            quorum: status.quorum && leader.is_some(),
            failed: Some(outage.clone()),
            ..status
        }
    }

    fn follower_status(&self) -> Status {
        let state = self.view().state();
        let voters = state
            .nodes
            .values()
            .filter(|node| node.role == Role::Voter && !node.revoked);
        let quorum_ago = self.view().staleness();
        Status {
            part: Part::Follower,
            leader: self.view().leader(),
            term: 0,
            voters: voters.map(|node| node.id).collect(),
            index: state.index,
            quorum: quorum_ago.is_some_and(|ago| ago < QUORUM_SILENCE + feed::BEAT),
            quorum_ago,
            failed: None,
        }
    }
}
