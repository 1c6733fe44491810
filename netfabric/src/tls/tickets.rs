//! Session tickets that every node of the cluster takes: sealed under a key made of the cluster's
//! and of the time, so that nodes agree on it without a word and yesterday's is of no use tomorrow.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use rustls::server::ProducesTickets;

use crate::identity::Vault;

/// One key is sealed with for this long, and opened with for as long again.
const PERIOD: Duration = Duration::from_hours(6);
const NONCE: usize = 24;
/// The period's number, in front of the nonce.
const NUMBER: usize = 8;

/// Seals and opens tickets. `Debug` shows no key.
#[derive(Clone)]
pub struct Tickets {
    vault: Vault,
    clock: fn() -> SystemTime,
}

impl Tickets {
    #[must_use]
    pub fn new(vault: Vault) -> Self {
        Self {
            vault,
            clock: SystemTime::now,
        }
    }

    fn period(&self) -> u64 {
        let since = (self.clock)().duration_since(UNIX_EPOCH);
        since.map_or(0, |d| d.as_secs()) / PERIOD.as_secs()
    }

    fn cipher(&self, period: u64) -> XChaCha20Poly1305 {
        let key = self.vault.derive(&format!("tls tickets {period}"));
        XChaCha20Poly1305::new((&*key).into())
    }
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        u32::try_from(PERIOD.as_secs()).unwrap_or(u32::MAX)
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let period = self.period();
        let nonce: [u8; NONCE] = rand::random();
        let number = period.to_be_bytes();
        let payload = Payload {
            msg: plain,
            aad: &number,
        };
        let text = self.cipher(period).encrypt(&XNonce::from(nonce), payload);
        Some([&number[..], &nonce, &text.ok()?].concat())
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        let (number, rest) = ticket.split_first_chunk::<NUMBER>()?;
        let (nonce, text) = rest.split_first_chunk::<NONCE>()?;
        let period = u64::from_be_bytes(*number);
        // The one that begins soon, too: clocks differ.
        if period.abs_diff(self.period()) > 1 {
            return None;
        }
        let payload = Payload {
            msg: text,
            aad: number,
        };
        let plain = self.cipher(period).decrypt(&XNonce::from(*nonce), payload);
        plain.ok()
    }
}

impl fmt::Debug for Tickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tickets(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(vault: &Vault, clock: fn() -> SystemTime) -> Tickets {
        Tickets {
            vault: vault.clone(),
            clock,
        }
    }

    fn hours(count: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_hours(count)
    }

    #[test]
    fn nodes_of_one_cluster_take_each_others_tickets_for_a_while() {
        let vault = Vault::create().unwrap();
        let ticket = at(&vault, || hours(605)).encrypt(b"session").unwrap();
        let opened = |clock| at(&vault, clock).decrypt(&ticket);
        let session = Some(b"session".to_vec());
        assert_eq!(opened(|| hours(605)), session);
        assert_eq!(opened(|| hours(611)), session, "in the period after");
        assert_eq!(opened(|| hours(599)), session, "by a clock that is behind");
        assert_eq!(opened(|| hours(612)), None, "two periods after");
        let stranger = at(&Vault::create().unwrap(), || hours(605));
        assert_eq!(stranger.decrypt(&ticket), None);
    }

    #[test]
    fn what_was_changed_or_cut_does_not_open() {
        let tickets = Tickets::new(Vault::create().unwrap());
        let ticket = tickets.encrypt(b"session").unwrap();
        assert_ne!(ticket, tickets.encrypt(b"session").unwrap());
        for at in 0..ticket.len() {
            let mut bad = ticket.clone();
            bad[at] ^= 1;
            assert_eq!(tickets.decrypt(&bad), None, "byte {at}");
            assert_eq!(tickets.decrypt(&ticket[..at]), None, "cut at {at}");
        }
    }
}
