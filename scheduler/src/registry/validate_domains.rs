//! Whose a host name outside the origin is. One service has a domain, and one namespace has a host with all
//! its paths and what a `*.` covers: nobody takes a part of what another namespace serves.

use super::validate::invalid;
use super::validate_listen::claims;
use super::{Refusal, State};
use crate::model::{Domain, ListenProtocol, Service};

/// The front door's, where a container's TLS goes past it.
const HTTPS: u16 = 443;

/// Whether no other service has what this one, as it is to be, asks for.
pub(super) fn ensure_unclaimed(state: &State, service: &Service) -> Result<(), Refusal> {
    let (domains, past) = (service.domains(), past_the_door(state, service));
    if domains.is_empty() && past.is_empty() {
        return Ok(());
    }
    for other in state.services.values().filter(|s| s.key != service.key) {
        let foreign = other.key.namespace != service.key.namespace;
        let whole = |domain: &Domain, name: &str| {
            domain.host() == name || (foreign && domain.shares_names(name))
        };
        let (theirs, unread) = (other.domains(), past_the_door(state, other));
        for ours in &domains {
            let taken = |d: &Domain| d == ours || (foreign && d.shares_names(ours.host()));
            if let Some(theirs) = theirs.iter().find(|d| taken(d)) {
                let key = &other.key;
                let why = if theirs == ours {
                    format!("`{ours}` is the service {key}'s")
                } else {
                    format!(
                        "`{ours}` shares names with `{theirs}`, which is the service {key}'s in another namespace"
                    )
                };
                return Err(invalid("domains", why));
            }
            if unread.iter().any(|name| whole(ours, name)) {
                let key = &other.key;
                let why =
                    format!("`{ours}` goes to the service {key} unread: it has it in listen.sni");
                return Err(invalid("domains", why));
            }
        }
        let taken = |name: &&&str| theirs.iter().any(|d| whole(d, name));
        if let Some(name) = past.iter().find(taken) {
            let why = format!("`{name}` is among the domains of the service {}", other.key);
            return Err(invalid("listen.sni", why));
        }
    }
    Ok(())
}

/// The names whose connections to the port of HTTPS are the service's own to read.
fn past_the_door<'a>(state: &'a State, service: &'a Service) -> Vec<&'a str> {
    let tls = claims(state, service)
        .filter(|l| l.protocol == ListenProtocol::Tls && l.port == HTTPS && !l.private);
    tls.flat_map(|l| &l.sni).map(String::as_str).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{DOMAINS, Listen, MOST_DOMAINS, RevisionState, UnixMs, write_domains};
    use crate::registry::{Action, Command, Outcome, Reply};
    use crate::route::fixture::{add, service_key};

    fn service<'s>(
        state: &'s mut State,
        (namespace, name): (&str, &str),
        domains: &str,
        sni: &[&str],
    ) -> &'s Service {
        add(state, namespace, name, &[RevisionState::Ready], vec![]);
        let key = service_key(namespace, name);
        let service = state.services.get_mut(&key).unwrap();
        let said = (DOMAINS.to_owned(), domains.to_owned());
        service.meta.annotations.extend([said]);
        if !sni.is_empty() {
            service.spec.listen.push(Listen {
                port: HTTPS,
                protocol: ListenProtocol::Tls,
                sni: sni.iter().map(|s| (*s).to_owned()).collect(),
                ..Listen::default()
            });
        }
        service
    }

    #[test]
    fn a_host_is_one_namespaces_and_a_path_one_services() {
        let mut state = State::default();
        service(
            &mut state,
            ("shop", "web"),
            "a.test,*.b.test,c.test/api",
            &[],
        );
        service(&mut state, ("shop", "raw"), "", &["tls.test", "*.d.test"]);
        // Namespace, domains, and what is wrong with them.
        let table = [
            ("shop", "a.test", Some("is the service shop/web's")),
            ("shop", "a.test/api", None),
            ("shop", "c.test", None),
            ("shop", "c.test/api/v1", None),
            ("shop", "www.b.test", None),
            ("shop", "x.d.test", None),
            (
                "shop",
                "tls.test/x",
                Some("goes to the service shop/raw unread"),
            ),
            ("bank", "a.test/api", Some("shares names with `a.test`")),
            ("bank", "c.test", Some("shares names with `c.test/api`")),
            ("bank", "www.b.test", Some("shares names with `*.b.test`")),
            ("bank", "*.b.test", Some("is the service shop/web's")),
            (
                "bank",
                "x.d.test",
                Some("goes to the service shop/raw unread"),
            ),
            ("bank", "*.a.test", None),
            ("bank", "b.test", None),
            ("bank", "x.y.b.test", None),
        ];
        for (namespace, domains, want) in table {
            let mut asked = State::default();
            let asked = service(&mut asked, (namespace, "new"), domains, &[]);
            match (ensure_unclaimed(&state, asked), want) {
                (Ok(()), None) => {}
                (Err(Refusal::Invalid { field, message }), Some(want)) => {
                    assert_eq!(field, "domains", "{namespace} {domains}");
                    assert!(message.contains(want), "{namespace} {domains}: {message}");
                }
                (found, _) => panic!("{namespace} {domains}: {found:?}"),
            }
        }
        // Its own are no hindrance to it.
        let own = &state.services[&service_key("shop", "web")];
        assert_eq!(ensure_unclaimed(&state, own), Ok(()));
    }

    #[test]
    fn tls_of_a_container_takes_no_domain_of_another() {
        let mut state = State::default();
        service(&mut state, ("shop", "web"), "a.test/x,*.b.test", &[]);
        let table = [
            ("shop", "a.test", true),
            ("shop", "www.b.test", false),
            ("bank", "www.b.test", true),
            ("bank", "c.test", false),
        ];
        for (namespace, name, refused) in table {
            let mut asked = State::default();
            let asked = service(&mut asked, (namespace, "new"), "", &[name]);
            let found = ensure_unclaimed(&state, asked);
            assert_eq!(found.is_err(), refused, "{namespace} {name}: {found:?}");
        }
    }

    #[test]
    fn domains_are_given_and_taken_without_a_revision() {
        let mut state = State::default();
        service(&mut state, ("shop", "web"), "a.test", &[]);
        service(&mut state, ("shop", "api"), "", &[]);
        let mut change = |name: &str, add: &[&str], remove: &[&str]| {
            let read = |words: &[&str]| words.iter().map(|w| w.parse().unwrap()).collect();
            let action = Action::ChangeDomains {
                key: service_key("shop", name),
                add: read(add),
                remove: read(remove),
            };
            let at = UnixMs(1);
            match state.apply(&Command { at, action }).0 {
                Reply::Done { outcome, .. } => Ok(outcome),
                Reply::Refused(refusal) => Err(refusal.to_string()),
            }
        };
        let kept = |outcome| match outcome {
            Ok(Outcome::Service {
                service,
                created_revision: None,
            }) => write_domains(&service.domains()),
            other => panic!("{other:?}"),
        };
        assert_eq!(
            kept(change("web", &["b.test/x", "a.test"], &[])),
            "a.test,b.test/x"
        );
        let taken = change("api", &["b.test/x"], &[]).unwrap_err();
        assert_eq!(taken, "domains: `b.test/x` is the service shop/web's");
        assert_eq!(kept(change("web", &[], &["b.test/x", "c.test"])), "a.test");
        assert_eq!(kept(change("api", &["b.test/x"], &[])), "b.test/x");
        assert_eq!(kept(change("web", &[], &["a.test"])), "");
        let many: Vec<String> = (0..=MOST_DOMAINS).map(|i| format!("h{i}.test")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let told = change("web", &many, &[]).unwrap_err();
        assert_eq!(told, "domains: 101 is above 100");
        assert_eq!(
            change("nobody", &[], &[]).unwrap_err(),
            "service shop/nobody does not exist"
        );
    }
}
