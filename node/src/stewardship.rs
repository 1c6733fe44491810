//! Drives the pure steward: looks once a second, and at once when the registry or the fleet
//! changed, and carries its orders out.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use netfabric::ingress::Starter;
use netfabric::wire::decision::Deed;
use netfabric::wire::peer::{StartRefusal, StartRequest};
use scheduler::fleet::Fleet;
use scheduler::model::{InstanceId, NodeId, RevisionKey, ServiceKey};
use scheduler::place::Receipt;
use scheduler::registry::{Action, Command};
use scheduler::steward::{Order, Steward};
use tokio::sync::{Semaphore, watch};

use crate::clock;
use crate::consensus::Registry;
use crate::peers::Peers;
use crate::telemetry::decisions::Told;

/// How often nothing happening is looked at.
const PERIOD: Duration = Duration::from_secs(1);
/// Changes closer together than this are looked at together.
const SETTLE: Duration = Duration::from_millis(50);
/// Starts under way on this node's order; others wait for their turn.
const STARTS_AT_ONCE: usize = 32;
/// A start includes pulling the image.
const START_PATIENCE: Duration = Duration::from_mins(5);
/// What the steward could not propose now it finds again at its next tick.
const PROPOSE_DEADLINE: Duration = Duration::from_secs(4);

/// What orders are carried out with.
#[derive(Clone)]
pub struct Stewardship {
    pub registry: Registry,
    pub fleet: watch::Receiver<Arc<Fleet>>,
    pub peers: Peers,
    steward: Arc<Mutex<Steward>>,
    starts: Arc<Semaphore>,
}

impl Stewardship {
    pub fn new(registry: Registry, fleet: watch::Receiver<Arc<Fleet>>, peers: Peers) -> Self {
        Self {
            registry,
            fleet,
            peers,
            steward: Arc::new(Mutex::new(Steward::new())),
            starts: Arc::new(Semaphore::new(STARTS_AT_ONCE)),
        }
    }

    /// Runs until the daemon ends.
    pub async fn run(mut self) {
        let mut registry = self.registry.view().watch();
        let mut period = tokio::time::interval(PERIOD);
        period.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let changed = tokio::select! {
                _ = period.tick() => Ok(()),
                changed = registry.changed() => changed,
                changed = self.fleet.changed() => changed,
            };
            if changed.is_err() {
                return;
            }
            tokio::time::sleep(SETTLE).await;
            let (state, fleet) = (
                registry.borrow_and_update().clone(),
                self.fleet.borrow_and_update().clone(),
            );
            let heard = self.registry.status().quorum_ago.is_some();
            let mut steward = self.steward();
            steward.doubt(!heard);
            let orders = steward.tick(clock::now(), clock::unix(), &state, &fleet);
            drop(steward);
            for order in orders {
                tokio::spawn(self.clone().carry_out(order, state.index));
            }
        }
    }

    fn steward(&self) -> std::sync::MutexGuard<'_, Steward> {
        self.steward.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn carry_out(self, order: Order, index: u64) {
        match order {
            Order::Start { revision, receipt } => self.start(revision, receipt, index).await,
            Order::Stop {
                instance,
                node,
                cause,
            } => {
                self.note_stop(node, &instance, &cause);
                self.peers.stop(node, &instance, &cause).await;
            }
            Order::Ready { revision } => self.propose(Action::MarkReady { revision }).await,
            Order::Fail {
                revision,
                reason,
                message,
            } => {
                if let Some(service) = self.service_of(&revision) {
                    let told = Told {
                        why: format!("{reason}: {message}"),
                        ..Told::default()
                    };
                    self.note(Deed::Failed, (&service, &revision), told);
                }
                self.propose(Action::MarkFailed {
                    revision,
                    reason,
                    message,
                })
                .await;
            }
        }
    }

    async fn start(&self, revision: RevisionKey, receipt: Receipt, index: u64) {
        // Never closed.
        let Ok(_turn) = self.starts.acquire().await else {
            return;
        };
        let Some(service) = self.service_of(&revision) else {
            return;
        };
        let patience_millis = u64::try_from(START_PATIENCE.as_millis()).unwrap_or(u64::MAX);
        let mut last = "no node can take it".to_owned();
        let nodes: Vec<_> = receipt.ranked().map(|(node, _)| node).collect();
        for node in nodes {
            let request = StartRequest {
                service: service.clone(),
                revision: revision.clone(),
                index,
                request: None,
                receipt: receipt.clone(),
                held: 0,
                patience_millis,
            };
            match self.peers.start(node, request).await {
                Ok(started) => {
                    tracing::debug!(%revision, instance = %started.instance, "started");
                    self.note_start(&service, receipt, Ok(started.instance));
                    return self
                        .steward()
                        .on_start_result(clock::now(), &revision, Ok(()));
                }
                // It was tried and failed: another node would hardly fare better.
                Err(failed @ StartRefusal::Failed { .. }) => {
                    last = failed.to_string();
                    break;
                }
                Err(refusal) => last = refusal.to_string(),
            }
        }
        self.note_start(&service, receipt, Err(&last));
        self.steward()
            .on_start_result(clock::now(), &revision, Err(last));
    }

    fn service_of(&self, revision: &RevisionKey) -> Option<ServiceKey> {
        let state = self.registry.view().state();
        state.revisions.get(revision).map(|r| r.service.clone())
    }

    /// Why there is one more, or why there is not.
    fn note_start(
        &self,
        service: &ServiceKey,
        receipt: Receipt,
        came: Result<InstanceId, &String>,
    ) {
        let cause = match receipt.why.as_str() {
            "" => receipt.cause.clone(),
            why => format!("{}: {why}", receipt.cause),
        };
        let revision = receipt.revision.clone();
        let (deed, told) = match came {
            Ok(instance) => (
                Deed::Scaled,
                Told {
                    instance: Some(instance),
                    why: cause,
                    receipt: Some(receipt),
                },
            ),
            Err(last) => (
                Deed::Unplaced,
                Told {
                    instance: None,
                    why: format!("{cause}; {last}"),
                    receipt: Some(receipt),
                },
            ),
        };
        self.note(deed, (service, &revision), told);
    }

    fn note_stop(&self, node: NodeId, instance: &InstanceId, cause: &str) {
        let fleet = self.fleet.borrow().clone();
        let reports = fleet.members.get(&node).map(|m| &m.record.instances);
        let report = reports.and_then(|all| all.iter().find(|r| r.id == *instance));
        // A node's own agent writes down what it stops.
        if let Some(report) = report.filter(|_| node != self.peers.me) {
            let told = Told {
                instance: Some(instance.clone()),
                why: cause.to_owned(),
                receipt: None,
            };
            self.note(Deed::Retired, (&report.service, &report.revision), told);
        }
    }

    fn note(&self, deed: Deed, subject: (&ServiceKey, &RevisionKey), told: Told) {
        self.peers.decisions.note(deed, subject, told);
    }

    async fn propose(&self, action: Action) {
        let command = Command {
            at: clock::unix(),
            action,
        };
        if let Err(error) = self.registry.propose(&command, PROPOSE_DEADLINE).await {
            tracing::debug!(%error, "a change will be proposed again");
        }
    }
}
