//! What of the routes is not found by a host name: services by a node's port, by the name a TLS
//! client asks for, by their own address inside; and who may call them there.

use std::net::Ipv4Addr;
use std::sync::Arc;

use super::{RevisionRoute, Routes, ServiceRoute};
use crate::model::{Listen, ListenProtocol, ServiceKey, Socket, wildcard_over};

impl Routes {
    /// Ports that a node listens on for its services.
    pub fn sockets(&self) -> impl Iterator<Item = Socket> {
        self.sockets.keys().copied()
    }

    /// Whether both have the same ports, told at a glance: false may be wrong.
    #[must_use]
    pub fn same_sockets(&self, other: &Self) -> bool {
        self.sockets.ptr_eq(&other.sockets)
    }

    /// Whether services have this port.
    #[must_use]
    pub fn has_socket(&self, socket: Socket) -> bool {
        self.sockets.contains_key(&socket)
    }

    /// The service that has a port for itself, with what it says of it; `None` also for a port that TLS clients share.
    #[must_use]
    pub fn at_socket(&self, socket: Socket) -> Option<&Arc<ServiceRoute>> {
        let keys = self.sockets.get(&socket)?;
        let services = keys.iter().filter_map(|key| self.services.get(key));
        let mut alone = services.filter(|s| s.claims(socket).any(|l| l.sni.is_empty()));
        alone.next()
    }

    /// The service whose TLS connections on `port` ask for `name` (lower case): by its own name
    /// before a `*.` that covers it.
    #[must_use]
    pub fn by_server_name(&self, port: u16, name: &str) -> Option<&Arc<ServiceRoute>> {
        let socket = Socket { udp: false, port };
        let keys = self.sockets.get(&socket)?;
        let with = |wanted: &str| {
            let mut services = keys.iter().filter_map(|key| self.services.get(key));
            services.find(|s| {
                let tls = s
                    .claims(socket)
                    .filter(|l| l.protocol == ListenProtocol::Tls);
                tls.flat_map(|l| &l.sni).any(|n| n == wanted)
            })
        };
        let found = with(name).or_else(|| with(&wildcard_over(name)?))?;
        // A service's own host name is its alone, whoever asks for it.
        let owned = super::host::within(name, &self.origin).and_then(|label| self.find(label));
        let owner = owned
            .map(|m| &m.service.key)
            .or_else(|| self.domain_owner(name));
        owner
            .is_none_or(|owner| *owner == found.key)
            .then_some(found)
    }

    /// The service that containers find at `address`.
    #[must_use]
    pub fn at_address(&self, address: Ipv4Addr) -> Option<&Arc<ServiceRoute>> {
        self.services.get(self.addresses.get(&address)?)
    }

    /// The address of a service by its name below `internal`, in lower case: `web.shop`; `web` is of the default
    /// namespace. A tag is no name there.
    #[must_use]
    pub fn address_of(&self, name: &str) -> Option<Ipv4Addr> {
        self.hosts.get(super::host::shortest(name))?.address
    }

    pub(super) fn note_inner(&mut self, route: &ServiceRoute) {
        for socket in route.sockets() {
            let keys = self.sockets.entry(socket).or_default();
            if let Err(at) = keys.binary_search(&route.key) {
                keys.insert(at, route.key.clone());
            }
        }
        if let Some(address) = route.address {
            self.addresses.insert(address, route.key.clone());
        }
    }

    pub(super) fn forget_inner(&mut self, route: &ServiceRoute) {
        for socket in route.sockets() {
            let Some(keys) = self.sockets.get_mut(&socket) else {
                continue;
            };
            keys.retain(|key| *key != route.key);
            if keys.is_empty() {
                self.sockets.remove(&socket);
            }
        }
        if let Some(address) = route.address {
            self.addresses.remove(&address);
        }
    }
}

impl ServiceRoute {
    /// Whether `caller`'s containers may call it: its own may, others where it says so.
    #[must_use]
    pub fn admits(&self, caller: &ServiceKey) -> bool {
        *caller == self.key || self.callers.iter().any(|c| c.covers(caller))
    }

    fn listens(&self) -> impl Iterator<Item = &Listen> {
        self.shares
            .iter()
            .flat_map(|(_, revision)| &revision.listens)
    }

    fn claims(&self, socket: Socket) -> impl Iterator<Item = &Listen> {
        let public = self.listens().filter(|l| !l.private);
        public.filter(move |l| l.socket() == socket)
    }

    fn sockets(&self) -> impl Iterator<Item = Socket> {
        self.listens().filter(|l| !l.private).map(Listen::socket)
    }
}

impl RevisionRoute {
    /// What the revision says of a port of its service's.
    #[must_use]
    pub fn listen(&self, socket: Socket) -> Option<&Listen> {
        self.listens.iter().find(|l| l.socket() == socket)
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{add, fleet, service_key};
    use super::*;
    use crate::model::{RevisionState, ServiceKey};
    use crate::registry::{Change, State};

    fn listen(port: u16, protocol: ListenProtocol, sni: &[&str], private: bool) -> Listen {
        Listen {
            port,
            protocol,
            sni: sni.iter().map(|s| (*s).to_owned()).collect(),
            private,
            ..Listen::default()
        }
    }

    /// `default/NAME` with one ready revision that listens so, and an address.
    fn serve(state: &mut State, name: &str, listens: Vec<Listen>, last: u8) -> ServiceKey {
        add(state, "default", name, &[RevisionState::Ready], vec![]);
        let key = service_key("default", name);
        let service = state.services.get_mut(&key).unwrap();
        service.meta.address = Some(Ipv4Addr::new(198, 18, 0, last));
        let revision = service.status.latest_ready.clone().unwrap();
        state.revisions.get_mut(&revision).unwrap().spec.listen = listens;
        key
    }

    #[test]
    fn ports_names_and_addresses_lead_to_their_services() {
        use ListenProtocol::{Tcp, Tls, Udp};
        let mut state = State::default();
        let db = vec![
            listen(5432, Tcp, &[], false),
            listen(9000, Tcp, &[], true),
            listen(53, Udp, &[], false),
        ];
        serve(&mut state, "db", db, 1);
        let a = vec![listen(
            443,
            Tls,
            &["a.test", "*.b.test", "*.edge.test"],
            false,
        )];
        serve(&mut state, "a", a, 2);
        serve(
            &mut state,
            "b",
            vec![listen(443, Tls, &["x.b.test"], false)],
            3,
        );
        let routes = Routes::build(&state, &fleet(), "edge.test");
        let all: Vec<String> = routes.sockets().map(|s| s.to_string()).collect();
        assert_eq!(all, ["443/tcp", "5432/tcp", "53/udp"]);
        let named = |route: Option<&Arc<ServiceRoute>>| route.map(|r| r.key.name.to_string());
        let socket = |port, udp| Socket { udp, port };
        assert_eq!(
            named(routes.at_socket(socket(5432, false))).as_deref(),
            Some("db")
        );
        assert_eq!(
            named(routes.at_socket(socket(53, true))).as_deref(),
            Some("db")
        );
        for absent in [socket(9000, false), socket(5432, true), socket(443, false)] {
            assert_eq!(named(routes.at_socket(absent)), None, "{absent}");
        }
        let table = [
            (443, "a.test", Some("a")),
            (443, "x.b.test", Some("b")),
            (443, "y.b.test", Some("a")),
            (443, "b.test", None),
            (443, "z.y.b.test", None),
            (443, "db.edge.test", None),
            (443, "a.edge.test", Some("a")),
            (443, "nobody.edge.test", Some("a")),
            (5432, "a.test", None),
        ];
        for (port, name, want) in table {
            assert_eq!(
                named(routes.by_server_name(port, name)).as_deref(),
                want,
                "{name}"
            );
        }
        let address = Ipv4Addr::new(198, 18, 0, 1);
        assert_eq!(named(routes.at_address(address)).as_deref(), Some("db"));
        assert_eq!(routes.address_of("db"), Some(address));
        assert_eq!(routes.address_of("db.default"), Some(address));
        assert_eq!(routes.address_of("db.shop"), None);
        let revision = routes.service(&service_key("default", "db")).unwrap();
        let revision = revision.pick_revision(0, None).unwrap();
        let inner = revision.listen(socket(9000, false)).unwrap();
        assert!(inner.private && revision.listen(socket(9001, false)).is_none());
    }

    #[test]
    fn what_goes_is_forgotten_whole() {
        let mut state = State::default();
        let before = fleet();
        let empty = Routes::build(&state, &before, "edge.test");
        let one = vec![listen(5432, ListenProtocol::Tcp, &[], false)];
        let key = serve(&mut state, "db", one, 1);
        let routes = Routes::build(&state, &before, "edge.test");
        state.services.clear();
        state.revisions.clear();
        let gone = [Change::ServiceGone(key)];
        assert_eq!(routes.follow(&state, &gone, &before, &before), empty);
    }

    #[test]
    fn nobody_calls_unasked() {
        let mut state = State::default();
        let key = serve(&mut state, "db", vec![], 1);
        let callers = ["shop/web", "bank/*"].map(|c| c.parse().unwrap());
        state.services.get_mut(&key).unwrap().spec.callers = callers.into();
        let routes = Routes::build(&state, &fleet(), "edge.test");
        let db = routes.service(&key).unwrap();
        let table = [
            ("default", "db", true),
            ("default", "web", false),
            ("shop", "web", true),
            ("shop", "api", false),
            ("bank", "any", true),
        ];
        for (namespace, name, want) in table {
            assert_eq!(
                db.admits(&service_key(namespace, name)),
                want,
                "{namespace}/{name}"
            );
        }
    }
}
