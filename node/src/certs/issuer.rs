//! Orders certificates for the fleet, where this node is the one that does: it holds a lease while
//! there is something to order, and none while there is not. What is ordered when is
//! `scheduler::acme`'s, an order's course is `order`'s.

use std::sync::Arc;
use std::time::Duration;

use netfabric::identity::Vault;
use scheduler::acme::{self, Rules, Step};
use scheduler::fleet::Fleet;
use scheduler::model::{ChallengeKind, Lease, NodeId};
use scheduler::registry::{Action, Command, ISSUER, Outcome, Refusal, Reply, State};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::authority::Place;
use super::order::Attempt;
use crate::clock;
use crate::consensus::Registry;

/// How long a lease is its holder's that is not renewed.
const TERM: Duration = Duration::from_secs(15);
const RENEWAL: Duration = Duration::from_secs(5);
/// No order takes longer.
const ORDER_TIME: Duration = Duration::from_mins(5);
const PROPOSE_TIME: Duration = Duration::from_secs(4);
/// The wall clock may jump: what is due is looked at as often as this.
const LOOK: Duration = Duration::from_mins(1);
/// After a change that could not be made.
const PAUSE: Duration = Duration::from_secs(1);

/// What certificates are ordered with.
#[derive(Clone)]
pub struct Issuer {
    pub me: NodeId,
    pub registry: Registry,
    pub fleet: watch::Receiver<Arc<Fleet>>,
    pub vault: Vault,
    pub settings: Settings,
}

/// As the configuration has it.
#[derive(Debug, Clone)]
pub struct Settings {
    pub(super) place: Place,
    /// `mailto:` URLs.
    pub(super) contact: Vec<String>,
    pub(super) rules: Rules,
}

impl Settings {
    pub fn new(section: &crate::config::AcmeSection, origin: &str) -> Result<Self, &'static str> {
        if !section.directory.starts_with("https://") {
            return Err("`directory` is an https:// URL");
        }
        if !section.terms_agreed {
            return Err("say `terms_agreed = true` once you agree to the authority's terms");
        }
        if section.challenges.is_empty() {
            return Err("`challenges` names none");
        }
        let contact = section.contact.iter();
        Ok(Self {
            place: Place {
                directory: section.directory.clone(),
                ca_file: section.ca_file.clone(),
            },
            contact: contact.map(|mail| format!("mailto:{mail}")).collect(),
            rules: Rules {
                origin: origin.to_owned(),
                per_hour: section.orders_per_hour,
                challenges: section.challenges.clone(),
            },
        })
    }
}

/// Somebody else's lease, and since when it was seen like that.
struct Seen {
    version: u64,
    since: Instant,
}

/// Why a change of the fleet's orders was not made.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unmade {
    #[error(transparent)]
    Propose(#[from] crate::consensus::ProposeError),
    #[error(transparent)]
    Refused(#[from] Refusal),
}

impl Issuer {
    /// Runs until the daemon ends.
    pub async fn run(self) {
        let mut registry = self.registry.view().watch();
        let mut seen = None;
        loop {
            let state = registry.borrow_and_update().clone();
            let idle = match self.next(&state) {
                Step::Wait(until) => until.map_or(LOOK, |until| {
                    let left = until.0.saturating_sub(clock::unix().0);
                    Duration::from_millis(left).min(LOOK)
                }),
                _ => self.turn(&state, &mut seen).await,
            };
            tokio::select! {
                changed = registry.changed() => if changed.is_err() {
                    return;
                },
                () = sleep(idle) => {}
            }
        }
    }

    fn next(&self, state: &State) -> Step {
        acme::step(state, clock::unix(), &self.settings.rules)
    }

    /// There is something to do: does it where it is this node's turn. Returns when to look again.
    async fn turn(&self, state: &State, seen: &mut Option<Seen>) -> Duration {
        let known = state.leases.get(ISSUER);
        let mine = |lease: &Lease| lease.holder.is_none_or(|holder| holder == self.me);
        if let Some(theirs) = known.filter(|lease| !mine(lease)) {
            let left = watched(theirs, seen);
            if !left.is_zero() {
                return left;
            }
        }
        match self.take(known.map(|lease| lease.version)).await {
            Ok(lease) => {
                *seen = None;
                self.work(lease).await;
                Duration::ZERO
            }
            // Another was faster.
            Err(Unmade::Refused(_)) => PAUSE,
            Err(error) => {
                tracing::debug!(%error, "the lease of certificates cannot be taken");
                PAUSE
            }
        }
    }

    async fn take(&self, seen: Option<u64>) -> Result<Lease, Unmade> {
        let action = Action::TakeLease {
            name: ISSUER.to_owned(),
            node: self.me,
            seen,
        };
        match self.change(action).await? {
            Outcome::Lease(lease) => Ok(lease),
            _ => Err(Refusal::Fenced(ISSUER.to_owned()).into()),
        }
    }

    /// Does all there is to do, while the lease is kept.
    async fn work(&self, lease: Lease) {
        tracing::info!(epoch = lease.epoch, "ordering certificates");
        let epoch = lease.epoch;
        tokio::select! {
            () = self.steps(epoch) => {
                let name = ISSUER.to_owned();
                if let Err(error) = self.change(Action::GiveLease { name, epoch }).await {
                    tracing::debug!(%error, "the lease is left to run out");
                }
            }
            () = self.keep(lease) => {
                tracing::warn!(epoch, "the lease of certificates is lost; another node goes on");
            }
        }
    }

    /// Renews the lease until it is lost.
    async fn keep(&self, mut lease: Lease) {
        let mut until = Instant::now() + TERM;
        loop {
            sleep(RENEWAL).await;
            let begun = Instant::now();
            match timeout(TERM, self.take(Some(lease.version))).await {
                Ok(Ok(renewed)) if renewed.epoch == lease.epoch => {
                    (lease, until) = (renewed, begun + TERM);
                }
                Ok(Ok(_) | Err(Unmade::Refused(_))) => return,
                Ok(Err(_)) | Err(_) if Instant::now() >= until => return,
                Ok(Err(_)) | Err(_) => {}
            }
        }
    }

    async fn steps(&self, epoch: u64) {
        loop {
            let state = self.registry.view().state();
            let done = match self.next(&state) {
                Step::Wait(_) => return,
                Step::ForgetOrder(host) => self.change(Action::DeleteOrder { host, epoch }).await,
                Step::ForgetCertificate(name) => {
                    let epoch = Some(epoch);
                    self.change(Action::DeleteCertificate { name, epoch }).await
                }
                Step::Order { host, kind } => self.order(&state, epoch, &host, kind).await,
            };
            if let Err(error) = done {
                tracing::debug!(%error, "a step of ordering is tried again");
                if matches!(&error, Unmade::Refused(refusal) if is_fenced(refusal)) {
                    return;
                }
                sleep(PAUSE).await;
            }
        }
    }

    /// One order, from its beginning to a certificate or a failure that is written down.
    async fn order(
        &self,
        state: &State,
        epoch: u64,
        host: &str,
        kind: ChallengeKind,
    ) -> Result<Outcome, Unmade> {
        let order = acme::begun(state, host, clock::unix());
        let action = Action::PutOrder {
            order: Box::new(order.clone()),
            epoch,
        };
        self.change(action).await?;
        let attempt = Attempt {
            issuer: self,
            epoch,
            order: &order,
            kind,
        };
        let failure = match timeout(ORDER_TIME, attempt.run()).await {
            Ok(Ok(actions)) => {
                tracing::info!(host, "a certificate was issued");
                match self.change_all(actions).await {
                    Err(Unmade::Refused(refusal)) if !is_fenced(&refusal) => acme::Failure {
                        error: format!("the registry does not take what was issued: {refusal}"),
                        counted: true,
                        retry_after_millis: None,
                    },
                    done => return done,
                }
            }
            Ok(Err(failure)) => failure,
            Err(_) => acme::Failure {
                error: "the order took too long".to_owned(),
                counted: true,
                retry_after_millis: None,
            },
        };
        tracing::warn!(host, error = failure.error, "no certificate was issued");
        let order = acme::failed(&order, clock::unix(), &failure);
        let order = Box::new(order);
        self.change(Action::PutOrder { order, epoch }).await
    }

    pub(super) async fn change(&self, action: Action) -> Result<Outcome, Unmade> {
        self.change_all(vec![action]).await
    }

    /// Makes changes in order, and returns what came of the last when this node has seen them.
    pub(super) async fn change_all(&self, actions: Vec<Action>) -> Result<Outcome, Unmade> {
        let at = clock::unix();
        let commands: Vec<Command> = actions
            .into_iter()
            .map(|action| Command { at, action })
            .collect();
        let replies = self.registry.propose_all(&commands, PROPOSE_TIME).await?;
        let mut last = Outcome::Nothing;
        for reply in replies {
            match reply {
                Reply::Refused(refusal) => return Err(refusal.into()),
                Reply::Done { index, outcome } => {
                    // A copy that lags longer than this is looked at as it is.
                    let _ = timeout(PROPOSE_TIME, self.registry.view().reached(index)).await;
                    last = outcome;
                }
            }
        }
        Ok(last)
    }

    /// Waits until every living node has a change, as far as gossip tells, for at most `patience`.
    pub(super) async fn everywhere(&self, index: u64, patience: Duration) {
        let mut fleet = self.fleet.clone();
        let known = |fleet: &Arc<Fleet>| {
            let mut others = fleet.members.values().filter(|m| m.alive);
            others.all(|m| m.record.registry_index >= index)
        };
        tokio::select! {
            _ = fleet.wait_for(known) => {}
            () = sleep_until(Instant::now() + patience) => {}
        }
    }
}

fn is_fenced(refusal: &Refusal) -> bool {
    matches!(refusal, Refusal::Fenced(_))
}

/// How much is left of another node's lease: its term, from when its version was first seen.
fn watched(lease: &Lease, seen: &mut Option<Seen>) -> Duration {
    let now = Instant::now();
    let since = match seen {
        Some(seen) if seen.version == lease.version => seen.since,
        _ => {
            *seen = Some(Seen {
                version: lease.version,
                since: now,
            });
            now
        }
    };
    (since + TERM).saturating_duration_since(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(version: u64) -> Lease {
        Lease {
            name: ISSUER.to_owned(),
            holder: Some(NodeId(2)),
            epoch: 1,
            version,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_is_anothers_until_it_stood_still_for_its_term() {
        let mut seen = None;
        assert_eq!(watched(&lease(7), &mut seen), TERM);
        tokio::time::advance(TERM.saturating_sub(RENEWAL)).await;
        assert_eq!(watched(&lease(7), &mut seen), RENEWAL);
        assert_eq!(watched(&lease(8), &mut seen), TERM, "it was renewed");
        tokio::time::advance(TERM).await;
        assert_eq!(watched(&lease(8), &mut seen), Duration::ZERO);
    }

    #[test]
    fn what_the_section_must_say() {
        let good =
            "directory = \"https://ca.test/dir\"\nterms_agreed = true\ncontact = [\"a@b.test\"]\n";
        let settings = |text: &str| {
            let section = toml::from_str(text).unwrap();
            Settings::new(&section, "edge.test").map(|s| s.contact)
        };
        assert_eq!(settings(good).unwrap(), ["mailto:a@b.test"]);
        for (from, to) in [
            ("https", "http"),
            ("true", "false"),
            ("contact", "challenges = []\ncontact"),
        ] {
            assert!(settings(&good.replacen(from, to, 1)).is_err(), "{to}");
        }
    }
}
