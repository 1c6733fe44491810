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
use super::lease::{Held, RENEWAL, TERM, Watched};
use super::order::Attempt;
use crate::clock;
use crate::consensus::{ProposeError, Registry};

/// No order takes longer.
const ORDER_TIME: Duration = Duration::from_mins(5);
const PROPOSE_TIME: Duration = Duration::from_secs(4);
/// The wall clock may jump: what is due is looked at as often as this.
const LOOK: Duration = Duration::from_mins(1);
/// Before a change is asked for again.
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

/// Why a change of the fleet's orders was not made.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unmade {
    #[error(transparent)]
    Propose(#[from] ProposeError),
    #[error(transparent)]
    Refused(#[from] Refusal),
}

impl Issuer {
    /// Runs until the daemon ends.
    pub async fn run(self) {
        let mut registry = self.registry.view().watch();
        let mut watched = Watched::default();
        let mut has_room = true;
        loop {
            let state = registry.borrow_and_update().clone();
            let had_room = std::mem::replace(&mut has_room, state.has_room_for_certificates());
            if had_room && !has_room {
                tracing::warn!(
                    "the registry takes no more certificates: hosts without one wait until some are removed (`selvedge cert rm`)"
                );
            }
            let idle = match self.next(&state) {
                Step::Wait(until) => until.map_or(LOOK, |until| {
                    let left = until.0.saturating_sub(clock::unix().0);
                    Duration::from_millis(left).min(LOOK)
                }),
                _ => self.turn(&state, &mut watched).await,
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
    async fn turn(&self, state: &State, watched: &mut Watched) -> Duration {
        let known = state.leases.get(ISSUER);
        let mine = |lease: &Lease| lease.holder.is_none_or(|holder| holder == self.me);
        if let Some(theirs) = known.filter(|lease| !mine(lease)) {
            let left = watched.left(theirs, Instant::now());
            if !left.is_zero() {
                return left;
            }
        }
        let asked = Instant::now();
        match self.take(known.map(|lease| lease.version)).await {
            Ok(lease) => {
                self.work(Held::new(lease.clone(), asked), lease.epoch)
                    .await;
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
        match self.propose(&commands([action])).await? {
            Outcome::Lease(lease) => Ok(lease),
            _ => Err(Refusal::Fenced(ISSUER.to_owned()).into()),
        }
    }

    /// Does all there is to do, while the lease is kept.
    async fn work(&self, held: Held, epoch: u64) {
        tracing::info!(epoch, "ordering certificates");
        tokio::select! {
            () = self.steps(epoch) => {
                let name = ISSUER.to_owned();
                let given = commands([Action::GiveLease { name, epoch }]);
                if let Err(error) = self.propose(&given).await {
                    tracing::debug!(%error, "the lease is left to run out");
                }
            }
            () = self.keep(held) => {
                tracing::warn!(epoch, "the lease of certificates is lost; another node goes on");
            }
        }
    }

    /// Renews the lease until it is lost.
    async fn keep(&self, mut held: Held) {
        let mut pause = RENEWAL;
        loop {
            sleep(pause).await;
            let asked = Instant::now();
            let answer = timeout(TERM, self.take(Some(held.version()))).await;
            let answer = answer.unwrap_or(Err(ProposeError::Unknown.into()));
            let state = self.registry.view().state();
            match held.on_answer(asked, Instant::now(), answer, state.leases.get(ISSUER)) {
                Some(next) => pause = next,
                None => return,
            }
        }
    }

    async fn steps(&self, epoch: u64) {
        loop {
            let state = self.registry.view().state();
            let done = match self.next(&state) {
                Step::Wait(_) => return,
                Step::ForgetOrder(host) => {
                    let action = Action::DeleteOrder { host, epoch };
                    self.change([action]).await
                }
                Step::ForgetCertificate(name) => {
                    let epoch = Some(epoch);
                    self.change([Action::DeleteCertificate { name, epoch }])
                        .await
                }
                Step::Order { host, kind } => self.order(&state, epoch, &host, kind).await,
            };
            if let Err(error) = done {
                tracing::debug!(%error, "a step of ordering was not made");
                if is_fenced(&error) {
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
        self.change([action]).await?;
        let attempt = Attempt {
            issuer: self,
            epoch,
            order: &order,
            kind,
        };
        let failure = match timeout(ORDER_TIME, attempt.run()).await {
            Ok(Ok(actions)) => {
                tracing::info!(host, "a certificate was issued");
                match self.change(actions).await {
                    Err(unmade) if !is_fenced(&unmade) => refused(format!(
                        "the registry does not take what was issued: {unmade}"
                    )),
                    done => return done,
                }
            }
            Ok(Err(failure)) => failure,
            Err(_) => refused("the order took too long".to_owned()),
        };
        tracing::warn!(host, error = failure.error, "no certificate was issued");
        let order = acme::failed(&order, clock::unix(), &failure);
        let order = Box::new(order);
        self.change([Action::PutOrder { order, epoch }]).await
    }

    /// Makes changes in order, and returns what came of the last. Where nobody knows whether they were
    /// made they are made again, which does no harm, as long as the lease is held.
    pub(super) async fn change(
        &self,
        actions: impl IntoIterator<Item = Action>,
    ) -> Result<Outcome, Unmade> {
        let commands = commands(actions);
        surely(|| self.propose(&commands)).await
    }

    /// Once; returns when this node has seen them.
    async fn propose(&self, commands: &[Command]) -> Result<Outcome, Unmade> {
        let replies = self.registry.propose_all(commands, PROPOSE_TIME).await?;
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

fn commands(actions: impl IntoIterator<Item = Action>) -> Vec<Command> {
    let at = clock::unix();
    let actions = actions.into_iter();
    actions.map(|action| Command { at, action }).collect()
}

/// Asks until it is known what came of it.
async fn surely<F>(ask: impl Fn() -> F) -> Result<Outcome, Unmade>
where
    F: Future<Output = Result<Outcome, Unmade>>,
{
    loop {
        match ask().await {
            Err(Unmade::Propose(error)) if is_open(&error) => {
                tracing::debug!(%error, "a change of orders is asked for again");
                sleep(PAUSE).await;
            }
            known => return known,
        }
    }
}

/// Not made yet, or nobody knows.
fn is_open(error: &ProposeError) -> bool {
    match error {
        ProposeError::NoQuorum
        | ProposeError::StoreFailed(_)
        | ProposeError::Busy
        | ProposeError::Unknown => true,
        ProposeError::TooLarge | ProposeError::Refused(_) => false,
    }
}

fn is_fenced(unmade: &Unmade) -> bool {
    matches!(unmade, Unmade::Refused(Refusal::Fenced(_)))
}

fn refused(error: String) -> acme::Failure {
    acme::Failure {
        error,
        stage: acme::Stage::Refused,
        retry_after_millis: None,
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_nobody_knows_of_is_asked_for_again_and_what_is_known_is_not() {
        let unmade = |error| Err(Unmade::Propose(error));
        let table = [
            (vec![Ok(Outcome::Nothing)], true),
            (
                vec![
                    unmade(ProposeError::Unknown),
                    unmade(ProposeError::NoQuorum),
                    unmade(ProposeError::Busy),
                    Ok(Outcome::Nothing),
                ],
                true,
            ),
            (vec![unmade(ProposeError::TooLarge)], false),
            (
                vec![
                    unmade(ProposeError::Unknown),
                    Err(Refusal::Fenced(ISSUER.to_owned()).into()),
                ],
                false,
            ),
        ];
        for (answers, is_made) in table {
            let answers = RefCell::new(answers.into_iter());
            let next = || answers.borrow_mut().next().expect("asked too often");
            let ask = || std::future::ready(next());
            let made = surely(ask).await;
            assert_eq!(made.is_ok(), is_made, "{made:?}");
            assert!(answers.borrow().len() == 0, "asked too seldom");
        }
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
