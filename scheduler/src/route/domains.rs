//! Services by host names of people's own: an exact host before a `*.` that covers it, and of one host's
//! paths the longest that covers the request's.

use std::borrow::Cow;
use std::sync::Arc;

use super::{Match, Routes, ServiceRoute, host};
use crate::model::{Domain, ServiceKey, wildcard_over};

/// A domain, and whose it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mapped {
    domain: Domain,
    service: Arc<ServiceRoute>,
}

impl Routes {
    /// The service of a `Host` header outside the origin, for a request's target.
    pub(super) fn by_domain(&self, host: &str, target: &str) -> Option<Match<'_>> {
        if self.domains.is_empty() {
            return None;
        }
        let path = target.split_once('?').map_or(target, |(path, _)| path);
        let covers = |mapped: &&Mapped| mapped.domain.covers_path(path);
        let mut names = candidates(host::bare(host));
        let found = names.find_map(|name| self.domains.get(&*name)?.iter().find(covers))?;
        Some(Match {
            service: &found.service,
            tag: None,
            path: found.domain.path(),
        })
    }

    /// Whose a host name outside the origin is, whatever path of it; the same namespace has them all.
    pub(super) fn domain_owner(&self, host: &str) -> Option<&ServiceKey> {
        let mut names = candidates(host::bare(host));
        let found = names.find_map(|name| self.domains.get(&*name)?.first())?;
        Some(&found.service.key)
    }

    pub(super) fn note_domains(&mut self, route: &Arc<ServiceRoute>) {
        for domain in &route.domains {
            let named = self.domains.entry(domain.host().to_owned()).or_default();
            let order = |d: &Domain, key: &ServiceKey| (usize::MAX - d.path().len(), key.clone());
            let place = order(domain, &route.key);
            let at = named.partition_point(|m| order(&m.domain, &m.service.key) < place);
            let mapped = Mapped {
                domain: domain.clone(),
                service: Arc::clone(route),
            };
            named.insert(at, mapped);
        }
    }

    pub(super) fn forget_domains(&mut self, route: &ServiceRoute) {
        for domain in &route.domains {
            let Some(named) = self.domains.get_mut(domain.host()) else {
                continue;
            };
            named.retain(|m| m.service.key != route.key);
            if named.is_empty() {
                self.domains.remove(domain.host());
            }
        }
    }
}

/// The names under which a host may be found, the first one before the other.
fn candidates(host: &str) -> impl Iterator<Item = Cow<'_, str>> {
    let host = if host.bytes().any(|b| b.is_ascii_uppercase()) {
        Cow::Owned(host.to_ascii_lowercase())
    } else {
        Cow::Borrowed(host)
    };
    let over = wildcard_over(&host).map(Cow::Owned);
    std::iter::once(host).chain(over)
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{add, fleet, service_key};
    use super::*;
    use crate::model::{DOMAINS, RevisionState};
    use crate::registry::{Change, State};

    fn serve(state: &mut State, namespace: &str, name: &str, domains: &str) -> ServiceKey {
        add(state, namespace, name, &[RevisionState::Ready], vec![]);
        let key = service_key(namespace, name);
        let service = state.services.get_mut(&key).unwrap();
        let said = (DOMAINS.to_owned(), domains.to_owned());
        service.meta.annotations.extend([said]);
        key
    }

    fn found<'r>(routes: &'r Routes, host: &str, target: &str) -> Option<(&'r str, &'r str)> {
        let found = routes.lookup(host, target)?;
        Some((found.service.key.name.as_str(), found.path))
    }

    #[test]
    fn the_nearest_host_and_the_longest_path_win() {
        let mut state = State::default();
        serve(
            &mut state,
            "default",
            "web",
            "a.test, www.a.test/app,web.edge.test",
        );
        serve(&mut state, "default", "api", "a.test/api,a.test/api/old");
        serve(&mut state, "default", "new", "a.test/api/new");
        serve(&mut state, "shop", "any", "*.a.test");
        let routes = Routes::build(&state, &fleet(), "edge.test");
        let table = [
            ("a.test", "/", Some(("web", ""))),
            ("A.Test.:8080", "/x?y=/api", Some(("web", ""))),
            ("a.test", "/api", Some(("api", "/api"))),
            ("a.test", "/api?x", Some(("api", "/api"))),
            ("a.test", "/apix", Some(("web", ""))),
            ("a.test", "/api/new/1", Some(("new", "/api/new"))),
            ("a.test", "/api/old", Some(("api", "/api/old"))),
            ("a.test", "*", Some(("web", ""))),
            ("www.a.test", "/app/1", Some(("web", "/app"))),
            ("www.a.test", "/", Some(("any", ""))),
            ("x.a.test", "/", Some(("any", ""))),
            ("y.x.a.test", "/", None),
            ("b.test", "/", None),
            ("test", "/", None),
            ("", "/", None),
            ("[::1]:80", "/", None),
            // The origin's names are their services' alone.
            ("web.edge.test", "/api", Some(("web", ""))),
            ("any.edge.test", "/", None),
        ];
        for (host, target, want) in table {
            assert_eq!(found(&routes, host, target), want, "{host}{target}");
        }
        let owner = |host| routes.domain_owner(host).map(|key| key.name.as_str());
        assert_eq!(owner("WWW.a.test"), Some("web"));
        assert_eq!([owner("x.a.test"), owner("b.test")], [Some("any"), None]);
    }

    #[test]
    fn what_is_taken_back_is_forgotten_whole() {
        let mut state = State::default();
        let fleet = fleet();
        let api = serve(&mut state, "default", "api", "a.test/api");
        let before = Routes::build(&state, &fleet, "edge.test");
        let web = serve(&mut state, "default", "web", "a.test,*.a.test");
        let added = Change::Service(Box::new(state.services[&web].clone()));
        let both = before.follow(&state, [&added], &fleet, &fleet);
        assert_eq!(both, Routes::build(&state, &fleet, "edge.test"));
        assert_eq!(found(&both, "a.test", "/"), Some(("web", "")));
        let service = state.services.get_mut(&web).unwrap();
        service.meta.annotations.clear();
        let less = Change::Service(Box::new(service.clone()));
        let less = both.follow(&state, [&less], &fleet, &fleet);
        assert_eq!(found(&less, "a.test", "/"), None);
        assert_eq!(found(&less, "a.test", "/api"), Some(("api", "/api")));
        state.services.remove(&web);
        state.revisions.retain(|_, r| r.service == api);
        let gone = both.follow(&state, [&Change::ServiceGone(web)], &fleet, &fleet);
        assert_eq!(gone, before);
    }
}
