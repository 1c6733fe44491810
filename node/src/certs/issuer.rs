//! Orders certificates for the fleet, where this node is the one that does: it holds a lease while
//! there is something to order, and none while there is not. What is ordered when is
//! `scheduler::acme`'s, an order's course is `order`'s.

use std::sync::Arc;
use std::time::Duration;

use netfabric::identity::Vault;
use scheduler::acme::{self, Rules, Step};
use scheduler::fleet::Fleet;
use scheduler::model::{Certificate, ChallengeKind, Lease, NodeId, Order};
use scheduler::registry::{Action, Command, ISSUER, Outcome, Refusal, Reply, State};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};

use super::authority::Place;
use super::lease::{Held, RENEWAL, Watched};
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
        if section.wildcard && !section.challenges.contains(&ChallengeKind::Dns) {
            return Err("`wildcard` needs \"dns-01\" among the `challenges`");
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
                wildcard: section.wildcard,
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

/// What an authority issued and the registry does not have yet. It outlives the lease that it was
/// ordered under: an authority gives only so many of one.
struct Issued {
    order: Order,
    certificate: Certificate,
}

impl Issued {
    /// Whether the registry has none as good.
    fn is_missing(&self, state: &State) -> bool {
        let known = state.certificates.get(&self.certificate.name);
        known.is_none_or(|known| known.not_after < self.certificate.not_after)
    }

    /// The changes that put it in its place.
    fn actions(&self, epoch: u64) -> [Action; 2] {
        [
            Action::PutOrder {
                order: Box::new(acme::succeeded(&self.order)),
                epoch,
            },
            Action::PutCertificate {
                certificate: Box::new(self.certificate.clone()),
                if_version: None,
                epoch: Some(epoch),
            },
        ]
    }
}

impl Issuer {
    /// Runs until the daemon ends.
    pub async fn run(self) {
        let mut registry = self.registry.view().watch();
        let mut watched = Watched::default();
        let mut issued = None;
        let mut has_room = true;
        loop {
            let state = registry.borrow_and_update().clone();
            let had_room = std::mem::replace(&mut has_room, state.has_room_for_certificates());
            if had_room && !has_room {
                tracing::warn!(
                    "the registry takes no more certificates: hosts without one wait until some are removed (`selvedge cert rm`)"
                );
            }
            issued.take_if(|issued: &mut Issued| !issued.is_missing(&state));
            let idle = match self.next(&state) {
                Step::Wait(until) if issued.is_none() => until.map_or(LOOK, |until| {
                    let left = until.0.saturating_sub(clock::unix().0);
                    Duration::from_millis(left).min(LOOK)
                }),
                _ => self.turn(&state, &mut watched, &mut issued).await,
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
    async fn turn(
        &self,
        state: &State,
        watched: &mut Watched,
        issued: &mut Option<Issued>,
    ) -> Duration {
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
            Ok((index, lease)) => {
                let epoch = lease.epoch;
                let held = Held::new(lease, asked);
                self.work(held, (epoch, index), issued).await;
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

    /// Also returns as of when that is to be seen.
    async fn take(&self, seen: Option<u64>) -> Result<(u64, Lease), Unmade> {
        let action = Action::TakeLease {
            name: ISSUER.to_owned(),
            node: self.me,
            seen,
        };
        match self.propose(&commands([action])).await? {
            (index, Outcome::Lease(lease)) => Ok((index, lease)),
            _ => Err(Refusal::Fenced(ISSUER.to_owned()).into()),
        }
    }

    /// Does all there is to do, while the lease is kept.
    async fn work(&self, held: Held, (epoch, index): (u64, u64), issued: &mut Option<Issued>) {
        tracing::info!(epoch, "ordering certificates");
        let steps = async {
            // All that the holder before did.
            self.registry.view().reached(index).await;
            self.steps(epoch, issued).await;
        };
        tokio::select! {
            () = steps => {
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
            let answer = timeout_at(held.until(), self.take(Some(held.version()))).await;
            let answer = answer.unwrap_or(Err(ProposeError::Unknown.into()));
            let answer = answer.map(|(_, lease)| lease);
            let state = self.registry.view().state();
            match held.on_answer(asked, Instant::now(), answer, state.leases.get(ISSUER)) {
                Some(next) => pause = next,
                None => return,
            }
        }
    }

    async fn steps(&self, epoch: u64, issued: &mut Option<Issued>) {
        loop {
            let state = self.registry.view().state();
            issued.take_if(|issued| !issued.is_missing(&state));
            let done = match self.next(&state) {
                _ if issued.is_some() => self.settle(epoch, issued).await,
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
                Step::Order { host, kind } => self.order(&state, epoch, &host, kind, issued).await,
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
        issued: &mut Option<Issued>,
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
            Ok(Ok(certificate)) => {
                tracing::info!(host, "a certificate was issued");
                *issued = Some(Issued { order, certificate });
                return self.settle(epoch, issued).await;
            }
            Ok(Err(failure)) => failure,
            Err(_) => refused("the order took too long".to_owned()),
        };
        self.fail(epoch, &order, &failure).await
    }

    /// Puts what was issued in its place; it is kept while the lease for that is another's.
    async fn settle(&self, epoch: u64, issued: &mut Option<Issued>) -> Result<Outcome, Unmade> {
        let Some(ready) = issued.as_ref() else {
            return Ok(Outcome::Nothing);
        };
        let done = self.change(ready.actions(epoch)).await;
        if matches!(&done, Err(unmade) if is_fenced(unmade)) {
            return done;
        }
        let settled = issued.take();
        match (done, settled) {
            (Err(unmade), Some(settled)) => {
                let failure = refused(format!(
                    "the registry does not take what was issued: {unmade}"
                ));
                self.fail(epoch, &settled.order, &failure).await
            }
            (done, _) => done,
        }
    }

    async fn fail(
        &self,
        epoch: u64,
        order: &Order,
        failure: &acme::Failure,
    ) -> Result<Outcome, Unmade> {
        tracing::warn!(
            host = order.host,
            error = failure.error,
            "no certificate was issued"
        );
        let order = Box::new(acme::failed(order, clock::unix(), failure));
        self.change([Action::PutOrder { order, epoch }]).await
    }

    /// Makes changes in order, and returns what came of the last. Where nobody knows whether they were
    /// made they are made again, which does no harm, as long as the lease is held. Returns when this node
    /// has seen them: what is decided next must not be decided by what was before.
    pub(super) async fn change(
        &self,
        actions: impl IntoIterator<Item = Action>,
    ) -> Result<Outcome, Unmade> {
        let commands = commands(actions);
        let (index, outcome) = surely(|| self.propose(&commands)).await?;
        self.registry.view().reached(index).await;
        Ok(outcome)
    }

    /// Once; also returns as of when what it did is to be seen.
    async fn propose(&self, commands: &[Command]) -> Result<(u64, Outcome), Unmade> {
        let replies = self.registry.propose_all(commands, PROPOSE_TIME).await?;
        let mut last = (0, Outcome::Nothing);
        for reply in replies {
            match reply {
                Reply::Refused(refusal) => return Err(refusal.into()),
                Reply::Done { index, outcome } => last = (index, outcome),
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
async fn surely<F, T>(ask: impl Fn() -> F) -> Result<T, Unmade>
where
    F: Future<Output = Result<T, Unmade>>,
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

    use scheduler::model::{Blob, CertificateSource, Sealed, UnixMs};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_nobody_knows_of_is_asked_for_again_and_what_is_known_is_not() {
        let unmade = |error| Err(Unmade::Propose(error));
        let table = [
            (vec![Ok(())], true),
            (
                vec![
                    unmade(ProposeError::Unknown),
                    unmade(ProposeError::NoQuorum),
                    unmade(ProposeError::Busy),
                    Ok(()),
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

    /// As after an outage in which the lease ran out, with what was issued just before it.
    #[test]
    fn what_was_issued_is_kept_until_the_registry_has_one_as_good() {
        let certificate = |days: u64| Certificate {
            name: "web.edge.test".to_owned(),
            source: CertificateSource::Acme,
            hosts: vec!["web.edge.test".to_owned()],
            not_before: UnixMs(0),
            not_after: UnixMs(days * 86_400_000),
            chain: String::new(),
            key: Sealed {
                upon: 0,
                nonce: Blob::default(),
                text: Blob::default(),
            },
            version: 0,
        };
        let mut state = State::default();
        let order = acme::begun(&state, "web.edge.test", UnixMs(0));
        let certificate_of_two = certificate(2);
        let issued = Issued {
            order,
            certificate: certificate_of_two,
        };
        assert!(issued.is_missing(&state));
        for (days, is_missing) in [(1, true), (2, false), (3, false)] {
            let known = certificate(days);
            state.certificates.insert(known.name.clone(), known);
            assert_eq!(issued.is_missing(&state), is_missing, "{days} days");
        }
        let epochs = issued.actions(7).map(|action| match action {
            Action::PutOrder { epoch, .. } => Some(epoch),
            Action::PutCertificate { epoch, .. } => epoch,
            _ => None,
        });
        assert_eq!(epochs, [Some(7); 2], "of the lease that is held now");
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
            (
                "contact",
                "wildcard = true\nchallenges = [\"http-01\"]\ncontact",
            ),
        ] {
            assert!(settings(&good.replacen(from, to, 1)).is_err(), "{to}");
        }
    }
}
