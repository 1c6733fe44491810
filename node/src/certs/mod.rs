//! Certificates on this node: what the registry has of them goes onto the front door's shelf, keys
//! opened in memory alone. Ordering them is `issuer`'s, on one node at a time.

mod authority;
mod issuer;
mod lease;
mod order;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use netfabric::identity::Vault;
use netfabric::tls::{Bundle, Shelf, Table};
use scheduler::model::{Certificate, CertificateSource, Challenge, ChallengeKind, Order};
use scheduler::registry::State;
use tokio::sync::watch;

pub use issuer::{Issuer, Settings};

/// Changes closer together than this are taken up together.
const SETTLE: Duration = Duration::from_millis(20);

/// What a certificate's key is sealed for.
#[must_use]
pub fn purpose(name: &str) -> String {
    format!("certificate {name}")
}

/// Fills the shelf as the registry has it, at once: whoever opens a door next has certificates. What is
/// returned keeps it so, until the daemon ends.
pub fn follow(
    mut registry: watch::Receiver<Arc<State>>,
    vault: Option<Vault>,
    shelf: Arc<Shelf>,
) -> impl Future<Output = ()> {
    let mut keeper = Keeper {
        vault,
        opened: HashMap::new(),
    };
    let state = registry.borrow_and_update().clone();
    shelf.set(keeper.table(&state));
    let mut shown = Mark::of(&state);
    async move {
        while registry.changed().await.is_ok() {
            tokio::time::sleep(SETTLE).await;
            let state = registry.borrow_and_update().clone();
            let now = Mark::of(&state);
            if shown != now {
                shelf.set(keeper.table(&state));
                shown = now;
            }
        }
    }
}

/// What of a state the shelf is made from.
#[derive(PartialEq)]
struct Mark {
    certificates: Vec<(String, u64)>,
    challenges: Vec<(String, Challenge)>,
}

impl Mark {
    fn of(state: &State) -> Self {
        let certificates = state.certificates.values();
        let challenges = state.orders.values();
        Self {
            certificates: certificates.map(|c| (c.name.clone(), c.version)).collect(),
            challenges: challenges
                .filter_map(|o| Some((o.host.clone(), o.challenge.clone()?)))
                .collect(),
        }
    }
}

struct Keeper {
    /// Without it no key can be opened.
    vault: Option<Vault>,
    /// By name, of the version that was opened; `None` where that came to nothing.
    opened: HashMap<String, (u64, Option<Bundle>)>,
}

impl Keeper {
    fn table(&mut self, state: &State) -> Table {
        self.opened
            .retain(|name, _| state.certificates.contains_key(name));
        let mut table = Table::default();
        for certificate in in_order(state) {
            if let Some(bundle) = self.bundle(certificate) {
                table.put(bundle);
            }
        }
        for order in state.orders.values() {
            answer(&mut table, order);
        }
        table
    }

    fn bundle(&mut self, certificate: &Certificate) -> Option<&Bundle> {
        let known = self.opened.get(&certificate.name);
        if known.is_none_or(|(version, _)| *version != certificate.version) {
            let opened = open(self.vault.as_ref()?, certificate);
            let bundle = opened
                .inspect_err(|error| {
                    tracing::error!(certificate = certificate.name, %error, "a certificate cannot be served");
                })
                .ok();
            let name = certificate.name.clone();
            self.opened.insert(name, (certificate.version, bundle));
        }
        self.opened.get(&certificate.name)?.1.as_ref()
    }
}

/// An operator's own before those that were ordered, then the one that lasts longest.
fn in_order(state: &State) -> Vec<&Certificate> {
    let mut all: Vec<&Certificate> = state.certificates.values().collect();
    all.sort_by_key(|c| {
        let ordered = c.source == CertificateSource::Acme;
        (ordered, std::cmp::Reverse(c.not_after), c.name.clone())
    });
    all
}

fn open(vault: &Vault, certificate: &Certificate) -> anyhow::Result<Bundle> {
    let key = vault.open_for(&purpose(&certificate.name), &certificate.key)?;
    Ok(Bundle::read(certificate.chain.as_bytes(), key.bytes())?)
}

fn answer(table: &mut Table, order: &Order) {
    let Some(challenge) = &order.challenge else {
        return;
    };
    match challenge.kind {
        ChallengeKind::Http => {
            table.answer(&order.host, &challenge.token, &challenge.authorization);
        }
        ChallengeKind::TlsAlpn => {
            if let Err(error) = table.prove(&order.host, &challenge.authorization) {
                tracing::warn!(host = order.host, %error, "no proof can be made");
            }
        }
        // `names` answers it.
        ChallengeKind::Dns => {}
    }
}

#[cfg(test)]
mod tests {
    use scheduler::model::UnixMs;

    use super::*;

    fn certificate(name: &str, source: CertificateSource, not_after: u64) -> Certificate {
        Certificate {
            name: name.to_owned(),
            source,
            hosts: vec!["web.test".to_owned()],
            not_before: UnixMs(0),
            not_after: UnixMs(not_after),
            chain: String::new(),
            key: Vault::create().unwrap().seal_for("x", b"y").unwrap(),
            version: 1,
        }
    }

    #[test]
    fn an_own_one_is_served_before_one_that_was_ordered_and_the_longest_first() {
        let mut state = State::default();
        for one in [
            certificate("ordered", CertificateSource::Acme, 900),
            certificate("short", CertificateSource::Own, 100),
            certificate("long", CertificateSource::Own, 200),
        ] {
            state.certificates.insert(one.name.clone(), one);
        }
        let names: Vec<&str> = in_order(&state).iter().map(|c| c.name.as_str()).collect();
        assert_eq!(names, ["long", "short", "ordered"]);
    }

    #[test]
    fn a_key_that_does_not_open_keeps_no_other_certificate_off_the_shelf() {
        let vault = Vault::create().unwrap();
        let mut state = State::default();
        let sealed = vault.seal_for(&purpose("bad"), b"no key").unwrap();
        let bad = Certificate {
            key: sealed,
            ..certificate("bad", CertificateSource::Own, 1)
        };
        state.certificates.insert("bad".to_owned(), bad);
        let stranger = certificate("stranger", CertificateSource::Own, 1);
        state.certificates.insert("stranger".to_owned(), stranger);
        let mut keeper = Keeper {
            vault: Some(vault),
            opened: HashMap::new(),
        };
        let _table = keeper.table(&state);
        assert!(keeper.opened.values().all(|(_, bundle)| bundle.is_none()));
        state.certificates.clear();
        let _table = keeper.table(&state);
        assert!(keeper.opened.is_empty(), "what is gone is forgotten");
    }
}
