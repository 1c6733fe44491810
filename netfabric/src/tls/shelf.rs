//! The certificates of the moment, by the name a client asks for. What is on the shelf changes at
//! once for all that begin from then on; who is in keeps what it has.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::{ALPN_ACME, Bundle, proof};

/// The door's view of all certificates.
#[derive(Debug, Default)]
pub struct Shelf {
    table: ArcSwap<Table>,
}

/// Certificates, and the answers to those who check whether a name is ours.
#[derive(Debug, Default)]
pub struct Table {
    exact: HashMap<String, Arc<CertifiedKey>>,
    /// By what follows the `*.`.
    wild: HashMap<String, Arc<CertifiedKey>>,
    /// HTTP-01: by token, the host it is for and what is said.
    answers: HashMap<String, (String, String)>,
    /// TLS-ALPN-01: by host.
    proofs: HashMap<String, Arc<CertifiedKey>>,
}

impl Table {
    /// Adds a certificate. Where two name the same host the one that was put first is served.
    pub fn put(&mut self, bundle: &Bundle) {
        for host in &bundle.hosts {
            let (table, name) = match host.strip_prefix("*.") {
                Some(parent) => (&mut self.wild, parent),
                None => (&mut self.exact, host.as_str()),
            };
            let certified = || Arc::clone(&bundle.certified);
            table.entry(name.to_owned()).or_insert_with(certified);
        }
    }

    /// Answers an authority that asks `host` for a file (HTTP-01).
    pub fn answer(&mut self, host: &str, token: &str, authorization: &str) {
        let said = (host.to_owned(), authorization.to_owned());
        self.answers.insert(token.to_owned(), said);
    }

    /// Proves `host` to an authority that makes a connection for it (TLS-ALPN-01).
    pub fn prove(&mut self, host: &str, authorization: &str) -> Result<(), rcgen::Error> {
        let certified = proof::certificate(host, authorization)?;
        self.proofs.insert(host.to_owned(), certified);
        Ok(())
    }

    fn find(&self, host: &str) -> Option<&Arc<CertifiedKey>> {
        self.exact.get(host).or_else(|| {
            let (_, parent) = host.split_once('.')?;
            self.wild.get(parent)
        })
    }
}

/// What a client that begins a handshake is to get.
#[derive(Debug)]
pub(crate) enum Choice {
    Certificate,
    Proof(Arc<CertifiedKey>),
    /// Nothing here has that name.
    Unknown,
}

impl Shelf {
    /// Replaces all that is on it.
    pub fn set(&self, table: Table) {
        self.table.store(Arc::new(table));
    }

    /// Whether a certificate names this host, which may be written with a port.
    #[must_use]
    pub fn covers(&self, host: &str) -> bool {
        let table = self.table.load();
        let nothing = table.exact.is_empty() && table.wild.is_empty();
        !nothing && table.find(&plain(host)).is_some()
    }

    /// What the authority is told that asks for this token at this host.
    #[must_use]
    pub fn answer(&self, host: &str, token: &str) -> Option<String> {
        let table = self.table.load();
        let (named, said) = table.answers.get(token)?;
        (*named == plain(host)).then(|| said.clone())
    }

    pub(crate) fn choose(&self, hello: &ClientHello<'_>) -> Choice {
        let Some(host) = hello.server_name().map(str::to_ascii_lowercase) else {
            return Choice::Unknown;
        };
        let table = self.table.load();
        let mut offered = hello.alpn().into_iter().flatten();
        if offered.any(|protocol| protocol == ALPN_ACME) {
            let proof = table.proofs.get(&host);
            return proof.map_or(Choice::Unknown, |p| Choice::Proof(Arc::clone(p)));
        }
        match table.find(&host) {
            Some(_) => Choice::Certificate,
            None => Choice::Unknown,
        }
    }
}

/// A host without its port and the dot at its end, in lower case.
fn plain(host: &str) -> String {
    let host = host.split_once(':').map_or(host, |(name, _port)| name);
    host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase()
}

impl ResolvesServerCert for Shelf {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let host = hello.server_name()?.to_ascii_lowercase();
        self.table.load().find(&host).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::super::bundle::tests::made;
    use super::*;

    fn bundle(hosts: &[&str]) -> Bundle {
        let (chain, key) = made(hosts);
        Bundle::read(chain.as_bytes(), key.as_bytes()).unwrap()
    }

    #[test]
    fn the_exact_name_wins_over_a_star_and_the_first_over_the_second() {
        let (star, exact, later) = (
            bundle(&["*.edge.test"]),
            bundle(&["web.edge.test"]),
            bundle(&["web.edge.test", "*.edge.test"]),
        );
        let mut table = Table::default();
        for bundle in [&star, &exact, &later] {
            table.put(bundle);
        }
        let served = |host| table.find(host).map(Arc::as_ptr);
        let by = |bundle: &Bundle| Some(Arc::as_ptr(&bundle.certified));
        assert_eq!(served("web.edge.test"), by(&exact));
        assert_eq!(served("api.edge.test"), by(&star));
        assert_eq!(served("a.b.edge.test"), None);
        assert_eq!(served("edge.test"), None);
    }

    #[test]
    fn hosts_are_asked_for_as_they_stand_in_requests() {
        let shelf = Shelf::default();
        assert!(!shelf.covers("web.edge.test"));
        let mut table = Table::default();
        table.put(&bundle(&["web.edge.test"]));
        table.answer("new.edge.test", "token", "token.print");
        shelf.set(table);
        for host in ["web.edge.test", "WEB.edge.test:8080", "web.edge.test."] {
            assert!(shelf.covers(host), "{host}");
        }
        assert!(!shelf.covers("new.edge.test"));
        let said = shelf.answer("New.Edge.Test:80", "token");
        assert_eq!(said.as_deref(), Some("token.print"));
        assert_eq!(shelf.answer("web.edge.test", "token"), None);
        assert_eq!(shelf.answer("new.edge.test", "other"), None);
    }
}
