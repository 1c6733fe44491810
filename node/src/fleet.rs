//! Keeps this node's view of the fleet and the routes made from it: whenever gossip, the registry
//! or this node itself changes, both follow and are swapped.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use netfabric::gossip::{Gossip, Heard};
use netfabric::transport::Mesh;
use scheduler::fleet::{Contact, Fleet, Index, Indexed, Member, Reach, Word};
use scheduler::model::{Measured, NodeId};
use scheduler::registry::State;
use scheduler::route::Routes;
use tokio::sync::watch;

use self::measures::{Measures, Sight};
use crate::agent::Experience;
use crate::consensus::{Missing, RING_CHANGES, Registry};

/// How often this node measures.
const PERIOD: Duration = Duration::from_secs(1);
/// After so many periods the view takes in the round trips when nothing else changes.
const VIEW_PERIODS: u32 = 5;

/// What the view is made from and where it goes.
pub struct FleetDriver {
    pub me: NodeId,
    pub origin: String,
    pub mesh: Mesh,
    pub gossip: Gossip,
    pub registry: Registry,
    /// This node's own record, newer than what gossip has of it.
    pub own: watch::Receiver<Word>,
    /// What starts and pulls took here.
    pub experience: watch::Receiver<Arc<Experience>>,
    /// The digests of images held here, and their unpacked sizes.
    pub images: Box<dyn Fn() -> Vec<(String, u64)> + Send + Sync>,
    pub fleet: watch::Sender<Arc<Fleet>>,
    pub routes: Arc<ArcSwap<Routes>>,
}

impl FleetDriver {
    /// Runs until the daemon ends. When this returns there are the first view and the first routes: a
    /// door that opened without them would know of no service.
    pub fn start(mut self) {
        let mut indexer = Indexer::default();
        let mut measures = Measures::new(self.me);
        self.measure(&mut measures);
        // The first record may have been made before anybody watched, and may not change for long.
        self.publish();
        let heard = self.gossip.members().borrow().clone();
        self.rebuild(
            &self.registry.view().state(),
            &heard,
            &measures,
            &mut indexer,
        );
        tokio::spawn(self.run(measures, indexer));
    }

    async fn run(mut self, mut measures: Measures, mut indexer: Indexer) {
        let mut registry = self.registry.view().watch();
        let mut members = self.gossip.members();
        let mut period = tokio::time::interval(PERIOD);
        period.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut periods = 0;
        loop {
            let state = registry.borrow_and_update().clone();
            let heard = members.borrow_and_update().clone();
            self.rebuild(&state, &heard, &measures, &mut indexer);
            let changed = loop {
                tokio::select! {
                    changed = members.changed() => break changed.is_ok(),
                    changed = registry.changed() => break changed.is_ok(),
                    changed = self.own.changed() => {
                        self.publish();
                        break changed.is_ok();
                    }
                    _ = period.tick() => {
                        periods += 1;
                        let news = self.measure(&mut measures);
                        if periods >= VIEW_PERIODS {
                            // What was sent as a load alone may be due as a whole.
                            self.publish();
                        }
                        if news || periods >= VIEW_PERIODS {
                            periods = 0;
                            break true;
                        }
                    }
                }
            };
            if !changed {
                return;
            }
        }
    }

    /// Measures anew, and says whether there is something new to tell.
    fn measure(&self, measures: &mut Measures) -> bool {
        let heard = self.gossip.members().borrow().clone();
        let experience = self.experience.borrow().clone();
        let news = measures.look(&Sight {
            trips: &self.mesh.round_trips(),
            heard: &heard,
            pressure: pressure::read(),
            experience: &experience,
            images: (self.images)(),
        });
        if !news {
            return false;
        }
        if let Err(error) = self.gossip.measure(measures.told()) {
            tracing::error!(%error, "what this node measures is not published");
        }
        true
    }

    fn publish(&mut self) {
        let record = self.own.borrow_and_update().clone();
        if let Err(error) = self.gossip.publish((*record).clone()) {
            tracing::error!(%error, "this node's record is not published");
        }
    }

    fn rebuild(
        &mut self,
        state: &State,
        heard: &BTreeMap<NodeId, Heard>,
        measures: &Measures,
        indexer: &mut Indexer,
    ) {
        let own = self.own.borrow().clone();
        for (id, identity) in &state.nodes {
            let address = heard
                .get(id)
                .map_or(identity.mesh, |heard| heard.record.mesh);
            if *id != self.me && !identity.revoked {
                self.mesh.set_addr(*id, address);
            }
        }
        let own = (own, Arc::clone(measures.told()));
        let mut fleet = view(self.me, own, heard, state, |id| {
            let rtt = self.mesh.rtt(id)?;
            u32::try_from(rtt.as_micros()).ok()
        });
        fleet.reach.registry = silence(self.registry.status().quorum_ago);
        fleet.index = Indexed(Some(indexer.follow(&self.fleet.borrow(), &fleet)));
        let fleet = Arc::new(fleet);
        self.routes.store(Arc::new(self.reroute(state, &fleet)));
        self.fleet.send_if_modified(|current| {
            let changed = **current != *fleet;
            *current = fleet;
            changed
        });
    }
}

impl FleetDriver {
    /// The routes that follow the present ones; made from nothing when these are too old for that.
    fn reroute(&self, state: &State, fleet: &Fleet) -> Routes {
        let present = self.routes.load();
        let missing = self.registry.view().since(present.index, RING_CHANGES);
        match missing {
            // Steps beyond `state` name services that are joined anew for nothing, and come again.
            Missing::Steps(steps) if present.index > 0 => {
                let changes = steps.iter().flat_map(|(_, changes)| changes);
                present.follow(state, changes, &self.fleet.borrow(), fleet)
            }
            Missing::Steps(_) | Missing::TooMuch => Routes::build(state, fleet, &self.origin),
        }
    }
}

/// The fleet as one value: this node by its own word, the others as heard, revoked ones left out.
fn view(
    me: NodeId,
    (own, measured): (Word, Arc<Measured>),
    heard: &BTreeMap<NodeId, Heard>,
    state: &State,
    rtt: impl Fn(NodeId) -> Option<u32>,
) -> Fleet {
    let enrolled = |id: &NodeId| state.nodes.get(id).is_some_and(|n| !n.revoked);
    let mut members: BTreeMap<NodeId, Member> = heard
        .iter()
        .filter(|(id, _)| **id != me && enrolled(id))
        .map(|(id, heard)| {
            let (record, measured) = (heard.record.clone(), Arc::clone(&heard.measured));
            let mut member = Member::measured(record, measured, heard.life.alive, rtt(*id));
            (member.silent, member.lost) = (heard.life.silent, heard.life.lost);
            (*id, member)
        })
        .collect();
    members.insert(me, Member::measured(own, measured, true, Some(0)));
    let nodes = state.nodes.values().filter(|node| !node.revoked);
    let fleet = Fleet {
        me,
        members,
        volumes: state.volumes.clone(),
        reach: Reach {
            enrolled: u32::try_from(nodes.count()).unwrap_or(u32::MAX),
            registry: Contact::Now,
        },
        ..Fleet::default()
    };
    fleet.reckoned()
}

fn silence(quorum_ago: Option<Duration>) -> Contact {
    Contact::of(quorum_ago.map(|ago| u64::try_from(ago.as_millis()).unwrap_or(u64::MAX)))
}

/// Keeps the index by changes. Readers may hold the newest for a while, so there are two: what is
/// changed is the one before, which has only the last changes to catch up on.
#[derive(Default)]
struct Indexer {
    newest: Arc<Index>,
    before: Arc<Index>,
    /// Nodes that changed between the two.
    behind: Vec<NodeId>,
}

impl Indexer {
    /// The index of `new`, given that the last one was of `old`.
    fn follow(&mut self, old: &Fleet, new: &Fleet) -> Arc<Index> {
        let differs = |id: &&NodeId| old.members.get(id) != new.members.get(id);
        let gone = old
            .members
            .keys()
            .filter(|id| !new.members.contains_key(id));
        let indexed = old.index.0.is_some();
        let mut changed: Vec<NodeId> = gone.copied().collect();
        changed.extend(new.members.keys().filter(|id| !indexed || differs(id)));
        if changed.is_empty() {
            return self.newest.clone();
        }
        // A copy is made only when somebody still reads the one before.
        let index = Arc::make_mut(&mut self.before);
        for node in self.behind.iter().chain(&changed) {
            match new.members.get(node) {
                Some(member) => index.set(member),
                None => index.remove(*node),
            }
        }
        std::mem::swap(&mut self.newest, &mut self.before);
        self.behind = changed;
        self.newest.clone()
    }
}

mod measures;
mod pressure;
#[cfg(test)]
mod tests;
