//! What everybody is told: the zone, by UDP within the rates of the asker's network.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tokio::net::UdpSocket;

use super::limit::{Limit, Verdict};
use super::message::{Carrier, refer_to_tcp, reply};
use super::serve::{Server, send};
use super::zone::Zone;

pub(super) struct Outer {
    zone: Zone,
    limit: Mutex<Limit>,
    started: Instant,
}

impl Outer {
    pub(super) fn new(zone: Zone) -> Self {
        Self {
            zone,
            limit: Mutex::new(Limit::new()),
            started: Instant::now(),
        }
    }

    /// What a query by UDP gets.
    fn limited(&self, query: &[u8], from: IpAddr) -> Option<Vec<u8>> {
        let now = self.started.elapsed();
        let mut limit = self.limit.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = match limit.query(from, now) {
            Verdict::Answer => reply(&self.zone, query, Carrier::Udp)?,
            Verdict::Refer => return refer_to_tcp(query),
            Verdict::Nothing => return None,
        };
        match limit.reply(from, &answer, now) {
            Verdict::Answer => Some(answer),
            Verdict::Refer => refer_to_tcp(query),
            Verdict::Nothing => None,
        }
    }
}

impl Server for Outer {
    const CONNECTIONS_OF_ONE: usize = 64;

    fn datagram(self: &Arc<Self>, socket: &Arc<UdpSocket>, query: &[u8], from: SocketAddr) {
        send(socket, self.limited(query, from.ip()), from);
    }

    async fn framed(&self, query: Vec<u8>, _from: IpAddr) -> Option<Vec<u8>> {
        reply(&self.zone, &query, Carrier::Tcp)
    }
}
