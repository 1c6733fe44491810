//! Searches for a node that starts an instance, on behalf of a door or of a steward, and what else a
//! steward orders.

use std::collections::{BTreeSet, VecDeque};

use scheduler::activate::Refused;
use scheduler::model::{
    InstanceId, LocalVolume, Name, NodeId, ObjectKey, Revision, RevisionKey, UnixMs,
};
use scheduler::place::{AT_THE_DOOR, Ask, Receipt, place};
use scheduler::registry::{Action, Outcome, Reply};
use scheduler::steward::{Order, Steward};

use super::agent::Wish;
use super::host::{EPOCH, Errand, Rumour};
use super::network::SILENCE;
use super::plan::Bug;
use super::queue::Millis;
use super::world::{Event, World};

/// Nodes that a door asks for one instance.
const NODES_ASKED: u32 = 5;
/// Orders of one steward under way.
const STARTS_AT_ONCE: usize = 32;
/// A node that does not know the revision yet is given so long to learn of it.
const LEARN: Millis = 2_000;
const LEARN_LOOK: Millis = 50;
/// An instance that a door had started counts before gossip shows it.
const FRESH: Millis = 10_000;
const EJECTED: Millis = 5_000;

/// Looking for a node.
#[derive(Debug)]
pub(super) struct Search {
    asker: usize,
    life: u64,
    revision: RevisionKey,
    purpose: Purpose,
    receipt: Receipt,
    /// Who is asked now.
    at: usize,
    pub held: u32,
    index: u64,
    asked: u32,
    waited: Millis,
    avoid: BTreeSet<NodeId>,
    /// Rises with every node asked: late answers are void.
    step: u64,
}

#[derive(Debug)]
enum Purpose {
    Door,
    /// With the nodes that are left to ask.
    Steward(VecDeque<NodeId>),
}

impl World {
    /// The host's steward looks, and its orders are carried out.
    pub(super) fn steward(&mut self, host: usize) {
        if self.plan.bug == Some(Bug::Forgetful) {
            self.hosts[host].steward = Steward::new();
        }
        let clock = self.hosts[host].clock(self.queue.now());
        let own = &mut self.hosts[host];
        let unix = UnixMs(EPOCH + clock.0);
        let orders = own.steward.tick(clock, unix, &own.state, &own.fleet);
        for order in orders {
            self.carry_out(host, order);
        }
    }

    fn carry_out(&mut self, host: usize, order: Order) {
        match order {
            Order::Start { revision, receipt } => {
                self.hosts[host].waiting.push_back((revision, receipt));
                self.next_order(host);
            }
            Order::Stop {
                instance,
                node,
                cause,
            } => {
                let to = number_of(node);
                self.note(format_args!(
                    "host {host} orders {instance} to stop: {cause}"
                ));
                if self.plan.bug != Some(Bug::NeverStops) && self.network.reaches(host, to) {
                    let way = self
                        .network
                        .one_way(self.hosts[host].spot, self.hosts[to].spot);
                    self.queue.after(way, Event::Stop(to, instance));
                }
            }
            Order::Ready { revision } => self.suggest(host, Action::MarkReady { revision }),
            Order::Fail {
                revision,
                reason,
                message,
            } => self.suggest(
                host,
                Action::MarkFailed {
                    revision,
                    reason,
                    message,
                },
            ),
        }
    }

    /// Proposes a change once; the steward does so again.
    fn suggest(&mut self, host: usize, action: Action) {
        if !self.has_registry(host) {
            return;
        }
        let now = self.queue.now();
        self.note(format_args!("host {host} proposes {action:?}"));
        if self.log.propose(now, action).is_some() {
            self.announce();
        }
    }

    fn next_order(&mut self, host: usize) {
        while self.hosts[host].errands < STARTS_AT_ONCE {
            let Some((revision, receipt)) = self.hosts[host].waiting.pop_front() else {
                return;
            };
            self.hosts[host].errands += 1;
            self.oracle.ordered(self.queue.now(), host, &receipt);
            let nodes = receipt.ranked().map(|(node, _)| node).collect();
            self.note(format_args!(
                "host {host} orders {}: {}",
                revision.name, receipt.cause
            ));
            let purpose = Purpose::Steward(nodes);
            let errand = self.search(host, revision, purpose, receipt, 0);
            self.ask_next(errand);
        }
    }

    /// A door looks for a node.
    pub(super) fn door_search(&mut self, host: usize, revision: &RevisionKey, held: u32) {
        let receipt = empty(revision, self.hosts[host].node);
        let errand = self.search(host, revision.clone(), Purpose::Door, receipt, held);
        self.ask_next(errand);
    }

    fn search(
        &mut self,
        host: usize,
        revision: RevisionKey,
        purpose: Purpose,
        receipt: Receipt,
        held: u32,
    ) -> Errand {
        let errand = self.number();
        let search = Search {
            asker: host,
            life: self.hosts[host].life,
            index: self.hosts[host].state.index,
            revision,
            purpose,
            receipt,
            at: host,
            held,
            asked: 0,
            waited: 0,
            avoid: BTreeSet::new(),
            step: 0,
        };
        self.searches.insert(errand, search);
        errand
    }

    /// Asks the next node, or gives up.
    fn ask_next(&mut self, errand: Errand) {
        let Some(mut search) = self.searches.remove(&errand) else {
            return;
        };
        let node = match &mut search.purpose {
            Purpose::Steward(nodes) => nodes.pop_front(),
            Purpose::Door if search.asked < NODES_ASKED => {
                let own = &self.hosts[search.asker];
                let ejected = own.ejected.keys().copied();
                let ask = Ask {
                    from: own.node,
                    avoid: search.avoid.iter().copied().chain(ejected).collect(),
                    cause: AT_THE_DOOR.to_owned(),
                    ..Ask::default()
                };
                let revision = own.state.revisions.get(&search.revision);
                let receipt = revision.map(|revision| place(&own.fleet, revision, &ask));
                search.receipt = receipt.unwrap_or_else(|| empty(&search.revision, own.node));
                search.receipt.ranked().next().map(|(node, _)| node)
            }
            Purpose::Door => None,
        };
        let Some(node) = node else {
            let reasons = search.receipt.refusals();
            return self.end_search(&search, Err(reasons.join("; ")));
        };
        search.at = number_of(node);
        search.asked += 1;
        search.step += 1;
        let (asker, at, step) = (search.asker, search.at, search.step);
        self.searches.insert(errand, search);
        if self.hosts[at].up && self.network.reaches(asker, at) {
            let way = self
                .network
                .one_way(self.hosts[asker].spot, self.hosts[at].spot);
            let way = if asker == at { 0 } else { way };
            self.queue.after(way, Event::Called(errand, step));
        } else {
            let silent = Event::Answered(errand, step, Err("unreachable".to_owned()));
            self.queue.after(SILENCE, silent);
        }
    }

    pub(super) fn on_called(&mut self, errand: Errand, step: u64) {
        let Some(search) = self.searches.get_mut(&errand).filter(|s| s.step == step) else {
            return;
        };
        let host = search.at;
        if !self.hosts[host].up {
            let silent = Event::Answered(errand, step, Err("unreachable".to_owned()));
            return self.queue.after(SILENCE, silent);
        }
        let known = self.hosts[host].state.revisions.get(&search.revision);
        let Some(revision) = known.cloned() else {
            let behind = self.hosts[host].state.index < search.index;
            if behind && search.waited < LEARN {
                search.waited += LEARN_LOOK;
                return self.queue.after(LEARN_LOOK, Event::Called(errand, step));
            }
            return self.answer(
                host,
                errand,
                Err("the revision is not known here".to_owned()),
            );
        };
        let service = self.hosts[host].state.services.get(&revision.service);
        let concurrency = revision.spec.container_concurrency;
        let wish = Wish {
            errand,
            held: search.held,
            capacity: service.map_or(1, |s| s.scale.total_concurrency(concurrency)),
            revision: std::sync::Arc::new(revision),
            steward: search.receipt.steward(),
        };
        if let Err(why) = self.admit(host, &wish) {
            self.answer(host, errand, Err(why));
        }
    }

    /// The asked node's answer goes back.
    pub(super) fn answer(
        &mut self,
        host: usize,
        errand: Errand,
        result: Result<InstanceId, String>,
    ) {
        let Some(search) = self.searches.get(&errand).filter(|s| s.at == host) else {
            return;
        };
        let (asker, step) = (search.asker, search.step);
        if self.network.reaches(host, asker) {
            let way = self
                .network
                .one_way(self.hosts[host].spot, self.hosts[asker].spot);
            let way = if asker == host { 0 } else { way };
            self.queue.after(way, Event::Answered(errand, step, result));
        } else {
            let silent = Event::Answered(errand, step, Err("unreachable".to_owned()));
            self.queue.after(SILENCE, silent);
        }
    }

    pub(super) fn on_answered(
        &mut self,
        errand: Errand,
        step: u64,
        result: Result<InstanceId, String>,
    ) {
        let Some(search) = self.searches.get(&errand).filter(|s| s.step == step) else {
            return;
        };
        let (asker, life, at) = (search.asker, search.life, search.at);
        if !self.lives(asker, life) {
            self.searches.remove(&errand);
            return;
        }
        match result {
            Ok(instance) => {
                if let Some(search) = self.searches.remove(&errand) {
                    self.end_search(&search, Ok(instance));
                }
            }
            Err(why) => {
                let node = self.hosts[at].node;
                if let Some(search) = self.searches.get_mut(&errand) {
                    search.avoid.insert(node);
                }
                if why == "unreachable" && asker != at {
                    let until = self.queue.now() + EJECTED;
                    self.hosts[asker].ejected.insert(node, until);
                }
                self.note(format_args!("host {asker} is refused by {at}: {why}"));
                self.ask_next(errand);
            }
        }
    }

    fn end_search(&mut self, search: &Search, result: Result<InstanceId, String>) {
        let (host, now) = (search.asker, self.queue.now());
        let clock = self.hosts[host].clock(now);
        match &search.purpose {
            Purpose::Steward(_) => {
                let steward = &mut self.hosts[host].steward;
                steward.on_start_result(clock, &search.revision, result.map(drop));
                self.hosts[host].errands -= 1;
                self.next_order(host);
            }
            Purpose::Door => {
                let result = result.map_err(|reason| Refused::NoCapacity {
                    reasons: vec![reason],
                });
                if result.is_ok() {
                    self.oracle.decided(now, host, &search.receipt);
                }
                if let (Ok(instance), true) = (&result, search.at != host) {
                    let rumour = Rumour {
                        until: now + FRESH,
                        revision: search.revision.clone(),
                        node: self.hosts[search.at].node,
                        instance: Some(instance.clone()),
                    };
                    self.hosts[host]
                        .bare
                        .retain(|r| r.node != rumour.node || r.revision != rumour.revision);
                    self.hosts[host].fresh.push(rumour);
                }
                self.on_search_ended(host, &search.revision, result.map(drop));
            }
        }
    }

    /// Whoever waits for an answer of a host that died hears nothing of it.
    pub(super) fn lose_calls(&mut self, host: usize) {
        let lost = self
            .searches
            .iter()
            .filter(|(_, s)| s.at == host && s.asker != host);
        let lost: Vec<(Errand, u64)> = lost.map(|(errand, s)| (*errand, s.step)).collect();
        for (errand, step) in lost {
            let silent = Event::Answered(errand, step, Err("unreachable".to_owned()));
            self.queue.after(SILENCE, silent);
        }
        self.searches.retain(|_, search| search.asker != host);
    }

    /// The host becomes the holder of the revision's local volumes, or somebody else is.
    pub(super) fn claim_volumes(&mut self, host: usize, revision: &Revision) -> Result<(), String> {
        if self.plan.bug == Some(Bug::SharesVolumes) {
            return Ok(());
        }
        let node = self.hosts[host].node;
        for volume in &revision.spec.volumes {
            let name = volume.local().and_then(|name| Name::new(name).ok());
            let Some(name) = name else { continue };
            let key = ObjectKey {
                namespace: revision.key.namespace.clone(),
                name,
            };
            let known = self.hosts[host].state.volumes.get(&key).map(|v| v.node);
            let holder = known.or_else(|| self.claim(host, key, node));
            match holder {
                Some(holder) if holder == node => {}
                Some(holder) => return Err(format!("its volume is on {holder}")),
                None => return Err("the registry is not reached".to_owned()),
            }
        }
        Ok(())
    }

    fn claim(&mut self, host: usize, key: ObjectKey, node: NodeId) -> Option<NodeId> {
        if !self.has_registry(host) {
            return None;
        }
        let now = self.queue.now();
        let reply = self.log.propose(now, Action::ClaimVolume { key, node })?;
        self.announce();
        match reply {
            Reply::Done {
                outcome: Outcome::Volume(LocalVolume { node, .. }),
                ..
            } => Some(node),
            _ => None,
        }
    }
}

fn empty(revision: &RevisionKey, node: NodeId) -> Receipt {
    Receipt {
        revision: revision.clone(),
        decided_by: node,
        cause: AT_THE_DOOR.to_owned(),
        why: String::new(),
        verdicts: Vec::new(),
        inputs: scheduler::place::Inputs::default(),
        passed: scheduler::place::Passed::default(),
        displaces: None,
    }
}

pub(super) fn number_of(node: NodeId) -> usize {
    usize::try_from(node.0.saturating_sub(1)).unwrap_or(0)
}
