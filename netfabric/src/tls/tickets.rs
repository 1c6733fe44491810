//! Session tickets that every node of the cluster takes: sealed under a key made of the cluster's
//! and of the time, so that nodes agree on it without a word and yesterday's is of no use tomorrow.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::server::ProducesTickets;
use scheduler::model::{Blob, Sealed};

use crate::identity::Vault;

/// One key is sealed with for this long, and opened with for as long again.
const PERIOD: Duration = Duration::from_hours(6);
const PURPOSE: &str = "tls ticket";
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

    fn vault(&self, period: u64) -> Vault {
        self.vault.derive(&format!("tls tickets {period}"))
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
        let Sealed { nonce, text, .. } = self.vault(period).seal_for(PURPOSE, plain).ok()?;
        Some([&period.to_be_bytes()[..], &nonce.0, &text.0].concat())
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        let (number, rest) = ticket.split_first_chunk::<NUMBER>()?;
        let (nonce, text) = rest.split_first_chunk::<NONCE>()?;
        let period = u64::from_be_bytes(*number);
        // The one that begins soon, too: clocks differ.
        if period.abs_diff(self.period()) > 1 {
            return None;
        }
        let sealed = Sealed {
            upon: 0,
            nonce: Blob(nonce.to_vec()),
            text: Blob(text.to_vec()),
        };
        let plain = self.vault(period).open_for(PURPOSE, &sealed).ok()?;
        Some(plain.bytes().to_vec())
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
