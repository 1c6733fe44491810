//! How many requests this node's doors take from one client and for one service. A node counts what
//! comes in at its own doors and asks no other node: what a peer sends on was counted there.
//!
//! Clients are strangers, so they are kept in a table of fixed size. Who finds no place in it takes
//! that of whoever has used least: to be forgotten is to have the whole rate again, and so nobody is
//! refused for another's sake, however many others there are.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use scheduler::model::{Rate, ServiceKey};

use super::local::lock;
use super::problem::{Code, Problem};
use crate::pace::{Pace, nanos};

/// Clients are looked for among so many places of their set.
const WAYS: usize = 16;
/// 65,536 clients, of 16 bytes each.
const SETS: usize = 4096;

/// The door's rates. Time is what has passed since the door opened.
pub(super) struct Rates {
    clients: Option<Clients>,
    /// Until when services' rates are used up. Only services have places here, and strangers make none.
    services: ArcSwap<HashMap<ServiceKey, Arc<AtomicU64>>>,
    /// Writers of `services` take turns.
    turn: Mutex<()>,
}

impl Rates {
    pub(super) fn new(of_client: Option<Rate>) -> Self {
        Self {
            clients: of_client.map(|rate| Clients::new(rate, SETS)),
            services: ArcSwap::default(),
            turn: Mutex::default(),
        }
    }

    /// One more request of a client's, or why there is none.
    pub(super) fn client(&self, client: IpAddr, now: Duration) -> Result<(), Problem> {
        let Some(clients) = &self.clients else {
            return Ok(());
        };
        clients.take(client, nanos(now)).map_err(|early| {
            let message = format!(
                "the client {} has had its {} at this node",
                client.to_canonical(),
                clients.rate
            );
            Problem::early(Code::ClientRate, message, early)
        })
    }

    /// One more request for a service that has such a rate, or why there is none.
    pub(super) fn service(
        &self,
        service: &ServiceKey,
        rate: Rate,
        now: Duration,
    ) -> Result<(), Problem> {
        let (pace, now) = (Pace::from(rate), nanos(now));
        let used = self.used(service, now);
        let mut taken = Ok(());
        let step = |mut until| {
            taken = pace.take(&mut until, now);
            Some(until)
        };
        let order = Ordering::Relaxed;
        let _always = used.fetch_update(order, order, step);
        taken.map_err(|early| {
            let message = format!("the service {service} has had its {rate} at this node");
            Problem::early(Code::ServiceRate, message, Duration::from_nanos(early))
        })
    }

    fn used(&self, service: &ServiceKey, now: u64) -> Arc<AtomicU64> {
        if let Some(used) = self.services.load().get(service) {
            return Arc::clone(used);
        }
        let _turn = lock(&self.turn);
        let mut services = HashMap::clone(&self.services.load());
        // Whose number has passed needs none.
        services.retain(|key, until| key == service || until.load(Ordering::Relaxed) > now);
        let used = Arc::clone(services.entry(service.clone()).or_default());
        self.services.store(Arc::new(services));
        used
    }
}

/// What is known of clients. One is an address, or a network where one customer has that.
struct Clients {
    rate: Rate,
    pace: Pace,
    /// Keyed, that nobody can choose whose set is theirs too.
    hasher: RandomState,
    sets: Box<[Mutex<[Seen; WAYS]>]>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    client: u64,
    used_until: u64,
}

impl Clients {
    fn new(rate: Rate, sets: usize) -> Self {
        Self {
            rate,
            pace: rate.into(),
            hasher: RandomState::new(),
            sets: (0..sets.max(1)).map(|_| Mutex::default()).collect(),
        }
    }

    fn take(&self, client: IpAddr, now: u64) -> Result<(), Duration> {
        let client = number(client);
        let hash = self.hasher.hash_one(client) % self.sets.len() as u64;
        let mut set = lock(&self.sets[usize::try_from(hash).unwrap_or(0)]);
        let known = set.iter().position(|seen| seen.client == client);
        let at = known.unwrap_or_else(|| {
            let least = set
                .iter()
                .enumerate()
                .min_by_key(|(_, seen)| seen.used_until);
            let at = least.map_or(0, |(at, _)| at);
            set[at] = Seen {
                client,
                used_until: 0,
            };
            at
        });
        let taken = self.pace.take(&mut set[at].used_until, now);
        taken.map_err(Duration::from_nanos)
    }
}

/// A client's own number: IPv6 has 64 bits for a customer's network, and from `ff00::/8`, where those
/// of IPv4 are put, nobody sends.
fn number(client: IpAddr) -> u64 {
    match client.to_canonical() {
        IpAddr::V4(v4) => (0xffff_ffff << 32) | u64::from(v4.to_bits()),
        IpAddr::V6(v6) => u64::try_from(v6.to_bits() >> 64).unwrap_or(u64::MAX),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn clients_are_addresses_of_ipv4_and_networks_of_ipv6() {
        let one = number(ip("2001:db8:0:7::1"));
        assert_eq!(one, number(ip("2001:db8:0:7:ffff::2")));
        assert_ne!(one, number(ip("2001:db8:0:8::1")));
        assert_eq!(number(ip("192.0.2.1")), number(ip("::ffff:192.0.2.1")));
        assert_ne!(number(ip("192.0.2.1")), number(ip("192.0.2.2")));
    }

    #[test]
    fn each_has_its_own_rate_and_hears_when_to_come_again() {
        let rates = Rates::new(Some("2/s".parse().unwrap()));
        let now = Duration::from_secs(9);
        for client in ["192.0.2.1", "192.0.2.2"] {
            assert!(rates.client(ip(client), now).is_ok() && rates.client(ip(client), now).is_ok());
            let problem = rates.client(ip(client), now).unwrap_err();
            assert_eq!(
                problem.retry_after_seconds,
                Some(1),
                "half a second, rounded up"
            );
            assert!(problem.message.contains(client), "{}", problem.message);
        }
        let off = Rates::new(None);
        assert!((0..9_999).all(|_| off.client(ip("192.0.2.1"), now).is_ok()));
    }

    #[test]
    fn services_have_theirs_and_a_change_holds_at_once() {
        let rates = Rates::new(None);
        let key = |name: &str| ServiceKey {
            namespace: scheduler::model::Name::default_namespace(),
            name: scheduler::model::Name::new(name).unwrap(),
        };
        let rate = |text: &str| text.parse::<Rate>().unwrap();
        let now = Duration::from_secs(9);
        let slow = rate("1/h");
        assert!(rates.service(&key("web"), slow, now).is_ok());
        let problem = rates.service(&key("web"), slow, now).unwrap_err();
        assert_eq!(problem.retry_after_seconds, Some(3600));
        assert!(rates.service(&key("api"), slow, now).is_ok());
        let soon = now + Duration::from_millis(10);
        assert!(rates.service(&key("web"), rate("100/s"), soon).is_err());
        let soon = soon + Duration::from_millis(10);
        assert!(rates.service(&key("web"), rate("100/s"), soon).is_ok());
        // Who has rested has no place.
        let later = now + Duration::from_hours(2);
        assert!(rates.service(&key("new"), slow, later).is_ok());
        assert_eq!(rates.services.load().len(), 1);
    }

    #[test]
    fn workers_together_let_no_more_through() {
        let rates = Rates::new(Some("100/s".parse().unwrap()));
        let now = Duration::from_secs(9);
        let key = ServiceKey {
            namespace: scheduler::model::Name::default_namespace(),
            name: scheduler::model::Name::new("web").unwrap(),
        };
        let (mut of_client, mut of_service) = (0, 0);
        std::thread::scope(|scope| {
            let worker = || {
                let client = (0..500).filter(|_| rates.client(ip("192.0.2.1"), now).is_ok());
                let client = client.count();
                let rate = "50/s".parse().unwrap();
                let service = (0..500).filter(|_| rates.service(&key, rate, now).is_ok());
                (client, service.count())
            };
            let workers: Vec<_> = (0..4).map(|_| scope.spawn(worker)).collect();
            for worker in workers {
                let (client, service) = worker.join().unwrap();
                of_client += client;
                of_service += service;
            }
        });
        assert_eq!((of_client, of_service), (100, 50));
    }

    /// A crowd's sender: few that come often, and any of the internet's.
    fn sender() -> impl Strategy<Value = IpAddr> {
        prop_oneof![
            (0u8..40).prop_map(|last| IpAddr::from([203, 0, 113, last])),
            any::<u32>().prop_map(|bits| Ipv4Addr::from_bits(bits).into()),
            any::<u128>().prop_map(|bits| Ipv6Addr::from_bits(bits).into()),
        ]
    }

    proptest! {
        #[test]
        fn an_honest_client_is_let_in_whoever_else_comes_and_memory_stays(
            crowd in prop::collection::vec((sender(), 0u64..3_000_000), 1..1500),
        ) {
            // Two sets: the honest one shares its own with half of the crowd.
            let clients = Clients::new("100/s burst 5".parse().unwrap(), 2);
            let honest = ip("198.51.100.7");
            let (mut now, mut next) = (0, 0);
            for (sender, pause) in crowd {
                now += pause;
                if sender != honest {
                    let _ = clients.take(sender, now);
                }
                while next <= now {
                    prop_assert!(clients.take(honest, now).is_ok(), "at {now}");
                    next = now + 10_000_000;
                }
            }
            prop_assert_eq!(clients.sets.len(), 2);
            prop_assert_eq!(std::mem::size_of_val(&*clients.sets[0].lock().unwrap()), WAYS * 16);
        }

        #[test]
        fn a_flood_of_few_is_held_to_its_rate(floods in 1u8..=16, rounds in 1usize..40) {
            let clients = Clients::new("100/s burst 5".parse().unwrap(), 1);
            let mut granted = vec![0; usize::from(floods)];
            for round in 0..rounds as u64 {
                for flood in 0..floods {
                    for _ in 0..20 {
                        let from = IpAddr::from([203, 0, 113, flood]);
                        let taken = clients.take(from, 1_000_000_000 + round * 10_000_000);
                        granted[usize::from(flood)] += usize::from(taken.is_ok());
                    }
                }
            }
            prop_assert!(granted.iter().all(|count| *count == 5 + rounds - 1), "{granted:?}");
        }
    }
}
