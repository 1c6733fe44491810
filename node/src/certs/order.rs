//! The course of one order at an authority: account, challenge, certificate.

use std::sync::Arc;
use std::time::Duration;

use instant_acme::{
    Account, AccountCredentials, AuthorizationStatus, ChallengeType, Error, Identifier, NewAccount,
    NewOrder, OrderStatus, RetryPolicy,
};
use netfabric::tls::Bundle;
use scheduler::acme::{Failure, Stage};
use scheduler::model::{
    AcmeAccount, Certificate, CertificateSource, Challenge, ChallengeKind, Order,
};
use scheduler::registry::Action;
use zeroize::Zeroizing;

use super::authority::Told;
use super::issuer::Issuer;
use super::purpose;
use crate::causes::with_causes;
use crate::clock;

/// Until every node answers for a host. One that is not heard of for longer is left out.
const EVERYWHERE: Duration = Duration::from_secs(10);
/// An authority's checks take seconds, its issuing as many.
const CHECKS: RetryPolicy = RetryPolicy::new()
    .initial_delay(Duration::from_millis(300))
    .backoff(1.5)
    .timeout(Duration::from_mins(1));

/// One order of the holder of the lease.
pub(super) struct Attempt<'a> {
    pub issuer: &'a Issuer,
    pub epoch: u64,
    pub order: &'a Order,
    pub kind: ChallengeKind,
}

/// What ends an attempt.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error(transparent)]
    Authority(#[from] Error),
    #[error(transparent)]
    Place(#[from] super::authority::PlaceError),
    #[error(transparent)]
    Unmade(#[from] super::issuer::Unmade),
    #[error("{0}")]
    Refused(String),
    #[error("what the authority issued cannot be served: {0}")]
    Unusable(#[from] netfabric::tls::BundleError),
    #[error("a key cannot be sealed or opened")]
    Vault(#[from] netfabric::identity::IdentityError),
}

impl Attempt<'_> {
    /// The certificate, which is in no place yet, or why there is none.
    pub(super) async fn run(&self) -> Result<Certificate, Failure> {
        let place = &self.issuer.settings.place;
        let mut is_known = true;
        loop {
            let client = place.client();
            let (client, told) = client.map_err(|e| failure(&e.into(), Stage::Unplaced, None))?;
            let mut stage = Stage::Unplaced;
            let run = async {
                let account = self.account(client, is_known).await?;
                let names = [Identifier::Dns(self.order.host.clone())];
                let order = account.new_order(&NewOrder::new(&names)).await?;
                stage = Stage::Placed;
                self.issue(order).await
            };
            match run.await {
                // It was removed there, or the authority began anew.
                Err(ended) if is_known && is_stranger(&ended) => is_known = false,
                done => return done.map_err(|ended| failure(&ended, stage, Some(&told))),
            }
        }
    }

    /// The fleet's account: the one that is known, or a new one, made at the first order.
    async fn account(
        &self,
        client: Box<dyn instant_acme::HttpClient>,
        is_known: bool,
    ) -> Result<Account, Ended> {
        let Issuer {
            registry,
            vault,
            settings,
            ..
        } = self.issuer;
        let directory = &settings.place.directory;
        let sealed_for = format!("acme account {directory}");
        let builder = Account::builder_with_http(client);
        let state = registry.view().state();
        let known = state.accounts.get(directory).filter(|_| is_known);
        if let Some(known) = known {
            let plain = vault.open_for(&sealed_for, &known.credentials)?;
            let credentials: AccountCredentials =
                serde_json::from_slice(plain.bytes()).map_err(Error::from)?;
            return Ok(builder.from_credentials(credentials).await?);
        }
        let contact: Vec<&str> = settings.contact.iter().map(String::as_str).collect();
        let wanted = NewAccount {
            contact: &contact,
            terms_of_service_agreed: true,
            only_return_existing: false,
        };
        let (account, credentials) = builder.create(&wanted, directory.clone(), None).await?;
        let plain = serde_json::to_vec(&credentials).map_err(Error::from)?;
        let plain = Zeroizing::new(plain);
        let account_kept = AcmeAccount {
            directory: directory.clone(),
            credentials: vault.seal_for(&sealed_for, &plain)?,
        };
        let action = Action::PutAccount {
            account: Box::new(account_kept),
            epoch: self.epoch,
        };
        self.issuer.change([action]).await?;
        Ok(account)
    }

    async fn issue(&self, mut order: instant_acme::Order) -> Result<Certificate, Ended> {
        let host = &self.order.host;
        self.prove(&mut order).await?;
        let status = order.poll_ready(&CHECKS).await?;
        if !matches!(status, OrderStatus::Ready | OrderStatus::Valid) {
            return Err(Ended::Refused(refusal(&mut order).await));
        }
        let key = Zeroizing::new(order.finalize().await?);
        let chain = order.poll_certificate(&CHECKS).await?;
        let bundle = Bundle::read(chain.as_bytes(), key.as_bytes())?;
        bundle.check(clock::unix())?;
        let key = self.issuer.vault.seal_for(&purpose(host), key.as_bytes())?;
        Ok(Certificate {
            name: host.clone(),
            source: CertificateSource::Acme,
            hosts: bundle.hosts,
            not_before: bundle.not_before,
            not_after: bundle.not_after,
            chain,
            key,
            version: 0,
        })
    }

    /// Has every node answer for the host, and the authority look.
    async fn prove(&self, order: &mut instant_acme::Order) -> Result<(), Ended> {
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization?;
            match authorization.status {
                AuthorizationStatus::Valid => continue,
                AuthorizationStatus::Pending => {}
                status => {
                    return Err(Ended::Refused(format!("the authorization is {status:?}")));
                }
            }
            let kind = match self.kind {
                ChallengeKind::Http => ChallengeType::Http01,
                ChallengeKind::TlsAlpn => ChallengeType::TlsAlpn01,
                ChallengeKind::Dns => ChallengeType::Dns01,
            };
            let offered = authorization.challenge(kind);
            let unknown = || Ended::Refused(format!("the authority offers no {:?}", self.kind));
            let mut challenge = offered.ok_or_else(unknown)?;
            let shown = Challenge {
                kind: self.kind,
                token: challenge.token.clone(),
                authorization: challenge.key_authorization().as_str().to_owned(),
            };
            let action = Action::PutOrder {
                order: Box::new(Order {
                    challenge: Some(shown),
                    ..self.order.clone()
                }),
                epoch: self.epoch,
            };
            self.issuer.change([action]).await?;
            let index = self.issuer.registry.view().index();
            self.issuer.everywhere(index, EVERYWHERE).await;
            challenge.set_ready().await?;
            tracing::info!(host = self.order.host, "an order waits for the authority");
        }
        Ok(())
    }
}

/// Why the authority does not believe that a host is ours, in its words.
async fn refusal(order: &mut instant_acme::Order) -> String {
    let mut authorizations = order.authorizations();
    while let Some(Ok(mut authorization)) = authorizations.next().await {
        let Ok(state) = authorization.refresh().await else {
            continue;
        };
        let mut errors = state.challenges.iter().filter_map(|c| c.error.as_ref());
        if let Some(error) = errors.next() {
            return error.to_string();
        }
    }
    "the authority refused the order and did not say why".to_owned()
}

/// The authority does not know our account.
fn is_stranger(ended: &Ended) -> bool {
    let Ended::Authority(Error::Api(problem)) = ended else {
        return false;
    };
    let kind = problem.r#type.as_deref();
    kind.is_some_and(|kind| kind.ends_with(":accountDoesNotExist"))
}

/// It said nothing: neither what is wrong, nor that it is not done yet.
fn is_out_of_reach(ended: &Ended) -> bool {
    let Ended::Authority(error) = ended else {
        return false;
    };
    !matches!(error, Error::Api(_) | Error::Timeout(_))
}

/// `stage` is what it was at when nobody had refused it.
fn failure(ended: &Ended, stage: Stage, told: Option<&Arc<Told>>) -> Failure {
    let ours = matches!(ended, Ended::Place(_) | Ended::Unmade(_));
    let is_refused = !ours && !is_out_of_reach(ended);
    let asked = told.filter(|_| !is_refused).map(|told| told.asked());
    let asked = asked.filter(|asked| !asked.is_empty());
    let at = asked
        .map(|asked| format!(" (asking {asked})"))
        .unwrap_or_default();
    Failure {
        error: format!("{}{at}", with_causes(ended)),
        stage: if is_refused { Stage::Refused } else { stage },
        retry_after_millis: told.and_then(|told| told.retry_after_millis()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_authority_that_had_an_order_counts_it() {
        let lost = || Ended::Authority(Error::Str("connection reset"));
        let late = Ended::Authority(Error::Timeout(None));
        let ours = Ended::Unmade(crate::consensus::ProposeError::TooLarge.into());
        let no = Ended::Refused("no".to_owned());
        let table = [
            (lost(), Stage::Unplaced, Stage::Unplaced),
            (lost(), Stage::Placed, Stage::Placed),
            (ours, Stage::Placed, Stage::Placed),
            (late, Stage::Placed, Stage::Refused),
            (no, Stage::Placed, Stage::Refused),
        ];
        for (ended, stage, want) in table {
            assert_eq!(failure(&ended, stage, None).stage, want, "{ended:?}");
        }
    }
}
