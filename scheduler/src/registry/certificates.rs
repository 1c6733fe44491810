//! Commands about certificates, the orders for them, and the lease of who orders.

use std::collections::BTreeSet;

use super::apply::Plan;
use super::objects::limits::{NONCE_BYTES, SEAL_BYTES};
use super::validate::ensure;
use super::{Action, Change, Outcome, Refusal, State};
use crate::model::{
    AcmeAccount, Certificate, CertificateSource, HOST_BYTES, Lease, NodeId, Order, Sealed, UnixMs,
    is_host, wildcard_over,
};

/// The lease of the node that orders certificates.
pub const ISSUER: &str = "certificates";

pub mod limits {
    /// All certificates together: every node keeps them in memory.
    pub const TOTAL_BYTES: usize = 32 << 20;
    /// What renewals may be larger than what they replace, all together.
    pub const RENEWAL_BYTES: usize = 8 << 20;
    pub const CERTIFICATES: usize = 5_000;
    pub const ORDERS: usize = 5_000;
    pub const ACCOUNTS: usize = 16;
    pub const LEASES: usize = 16;
    /// A token, an authorization, an error, an account: each is short.
    pub const TEXT_BYTES: usize = 4 * 1024;
    pub const BEGUN: usize = 100;
}

pub(super) fn plan(state: &State, action: &Action) -> Result<Plan, Refusal> {
    match action {
        Action::PutCertificate {
            certificate,
            if_version,
            epoch,
        } => put_certificate(state, certificate, *if_version, *epoch),
        Action::DeleteCertificate { name, epoch } => delete_certificate(state, name, *epoch),
        Action::PutOrder { order, epoch } => put_order(state, order, *epoch),
        Action::DeleteOrder { host, epoch } => {
            fenced(state, *epoch)?;
            let known = state.orders.contains_key(host);
            let gone = known.then(|| Change::OrderGone(host.clone()));
            Ok(Plan::quiet(gone.into_iter().collect()))
        }
        Action::PutAccount { account, epoch } => put_account(state, account, *epoch),
        Action::TakeLease { name, node, seen } => take_lease(state, name, *node, *seen),
        Action::GiveLease { name, epoch } => Ok(give_lease(state, name, *epoch)),
        // The others' are `apply`'s.
        _ => Ok(Plan::nothing()),
    }
}

/// Only who holds the lease speaks for the fleet to an authority.
fn fenced(state: &State, epoch: u64) -> Result<(), Refusal> {
    match state.leases.get(ISSUER) {
        Some(lease) if lease.epoch == epoch && lease.holder.is_some() => Ok(()),
        _ => Err(Refusal::Fenced(ISSUER.to_owned())),
    }
}

fn put_certificate(
    state: &State,
    certificate: &Certificate,
    if_version: Option<u64>,
    epoch: Option<u64>,
) -> Result<Plan, Refusal> {
    let stored = state.certificates.get(&certificate.name);
    match (certificate.source, epoch) {
        (CertificateSource::Own, _) => {}
        (CertificateSource::Acme, Some(epoch)) => fenced(state, epoch)?,
        (CertificateSource::Acme, None) => return Err(Refusal::Fenced(ISSUER.to_owned())),
    }
    let found = stored.map_or(0, |c| c.version);
    let own = stored.is_some_and(|c| c.source == CertificateSource::Own);
    let taken = certificate.source == CertificateSource::Acme && own;
    if taken || if_version.is_some_and(|expected| expected != found) {
        return Err(Refusal::Conflict {
            what: format!("certificate {}", certificate.name),
            expected: if_version.unwrap_or(0),
            found,
        });
    }
    validate(certificate)?;
    let has_place = match stored {
        None => state.has_room_for_certificates(),
        // Whoever renews needs no new place.
        Some(stored) => {
            let others = state.certificates_bytes() - bytes(stored);
            others + bytes(certificate) <= limits::TOTAL_BYTES + limits::RENEWAL_BYTES
        }
    };
    ensure(has_place, "certificate", || {
        "there are too many already: remove some first".to_owned()
    })?;
    let certificate = Certificate {
        version: state.index + 1,
        ..certificate.clone()
    };
    Ok(Plan {
        outcome: Outcome::Version(certificate.version),
        changes: vec![Change::Certificate(Box::new(certificate))],
    })
}

fn bytes(certificate: &Certificate) -> usize {
    certificate.chain.len() + certificate.key.text.0.len()
}

fn validate(certificate: &Certificate) -> Result<(), Refusal> {
    named(&certificate.name)?;
    ensure(
        certificate.chain.len() <= Certificate::MAX_PEM
            && (1..=Certificate::MAX_HOSTS).contains(&certificate.hosts.len())
            && certificate.hosts.iter().all(|h| is_host(h))
            && is_sealed(&certificate.key, Certificate::MAX_PEM),
        "certificate",
        || {
            "is too large, names no host, too many or what is none, or its key is not sealed"
                .to_owned()
        },
    )
}

fn is_sealed(sealed: &Sealed, most: usize) -> bool {
    let text = sealed.text.0.len();
    sealed.nonce.0.len() == NONCE_BYTES && text >= SEAL_BYTES && text <= most + SEAL_BYTES
}

/// A word, a host, or a host with a star.
fn named(name: &str) -> Result<(), Refusal> {
    let fine = |b: u8| b.is_ascii_alphanumeric() || b"-_.*".contains(&b);
    let good = !name.is_empty() && name.len() <= HOST_BYTES && name.bytes().all(fine);
    ensure(good, "name", || {
        "is written in up to 253 letters, digits, '-', '_', '.' and '*'".to_owned()
    })
}

fn delete_certificate(state: &State, name: &str, epoch: Option<u64>) -> Result<Plan, Refusal> {
    if let Some(epoch) = epoch {
        fenced(state, epoch)?;
    }
    if !state.certificates.contains_key(name) {
        return Err(Refusal::NotFound(format!("certificate {name}")));
    }
    Ok(Plan::quiet(vec![Change::CertificateGone(name.to_owned())]))
}

fn put_order(state: &State, order: &Order, epoch: u64) -> Result<Plan, Refusal> {
    fenced(state, epoch)?;
    named(&order.host)?;
    let challenge = order.challenge.iter();
    let mut texts = challenge
        .flat_map(|c| [&c.token, &c.authorization])
        .chain(&order.error);
    let known = state.orders.get(&order.host);
    ensure(
        texts.all(|text| text.len() <= limits::TEXT_BYTES)
            && order.begun.len() <= limits::BEGUN
            && state.has_place_for_order(&order.host),
        "order",
        || "is too large, or there are too many".to_owned(),
    )?;
    if known == Some(order) {
        return Ok(Plan::nothing());
    }
    Ok(Plan::quiet(vec![Change::Order(Box::new(order.clone()))]))
}

fn put_account(state: &State, account: &AcmeAccount, epoch: u64) -> Result<Plan, Refusal> {
    fenced(state, epoch)?;
    let known = state.accounts.contains_key(&account.directory);
    ensure(
        account.directory.len() <= limits::TEXT_BYTES
            && is_sealed(&account.credentials, limits::TEXT_BYTES)
            && (known || state.accounts.len() < limits::ACCOUNTS),
        "account",
        || "is too large or not sealed, or there are too many".to_owned(),
    )?;
    Ok(Plan::quiet(vec![Change::Account(Box::new(
        account.clone(),
    ))]))
}

/// Takes or renews: whoever does has seen the newest version, or none where there is none.
fn take_lease(state: &State, name: &str, node: NodeId, seen: Option<u64>) -> Result<Plan, Refusal> {
    named(name)?;
    let stored = state.leases.get(name);
    let found = stored.map(|lease| lease.version);
    if found != seen {
        return Err(Refusal::Conflict {
            what: format!("lease {name}"),
            expected: seen.unwrap_or(0),
            found: found.unwrap_or(0),
        });
    }
    if state.nodes.get(&node).is_none_or(|n| n.revoked) {
        return Err(Refusal::NotFound(format!("node {node}")));
    }
    ensure(
        stored.is_some() || state.leases.len() < limits::LEASES,
        "lease",
        || "there are too many".to_owned(),
    )?;
    let epoch = match stored {
        Some(lease) if lease.holder == Some(node) => lease.epoch,
        Some(lease) => lease.epoch + 1,
        None => 1,
    };
    let lease = Lease {
        name: name.to_owned(),
        holder: Some(node),
        epoch,
        version: state.index + 1,
    };
    Ok(Plan {
        changes: vec![Change::Lease(lease.clone())],
        outcome: Outcome::Lease(lease),
    })
}

/// Given back by who still holds it; by anyone else that changes nothing.
fn give_lease(state: &State, name: &str, epoch: u64) -> Plan {
    let stored = state.leases.get(name);
    let mine = stored.filter(|lease| lease.epoch == epoch && lease.holder.is_some());
    let given = mine.map(|lease| {
        Change::Lease(Lease {
            holder: None,
            version: state.index + 1,
            ..lease.clone()
        })
    });
    Plan::quiet(given.into_iter().collect())
}

impl State {
    /// Whether one more certificate is taken in. What is there already can be renewed in any case.
    #[must_use]
    pub fn has_room_for_certificates(&self) -> bool {
        self.certificates.len() < limits::CERTIFICATES
            && self.certificates_bytes() < limits::TOTAL_BYTES
    }

    fn certificates_bytes(&self) -> usize {
        self.certificates.values().map(bytes).sum()
    }

    /// Whether an order is taken in: one for a certificate that is there already always has its place.
    #[must_use]
    pub fn has_place_for_order(&self, host: &str) -> bool {
        self.orders.len() < limits::ORDERS
            || self.orders.contains_key(host)
            || self.certificates.contains_key(host)
    }

    /// What operators' own certificates are good for now.
    #[must_use]
    pub fn own_hosts(&self, now: UnixMs) -> Hosts<'_> {
        let own = |c: &&Certificate| c.source == CertificateSource::Own && c.not_after > now;
        self.hosts(own)
    }

    /// What certificates are good for now, whoever they come from.
    #[must_use]
    pub fn secure_hosts(&self, now: UnixMs) -> Hosts<'_> {
        self.hosts(|c| c.not_before <= now && now < c.not_after)
    }

    fn hosts(&self, which: impl Fn(&&Certificate) -> bool) -> Hosts<'_> {
        let found = self.certificates.values().filter(which);
        Hosts(found.flat_map(|c| &c.hosts).map(String::as_str).collect())
    }
}

/// The names in certificates, to look a host up in.
#[derive(Debug)]
pub struct Hosts<'a>(BTreeSet<&'a str>);

impl Hosts<'_> {
    /// Whether one of them is good for a host, given in lower case; `*.` stands for one label.
    #[must_use]
    pub fn cover(&self, host: &str) -> bool {
        let has = |name: String| self.0.contains(name.as_str());
        self.0.contains(host) || wildcard_over(host).is_some_and(has)
    }
}
