//! Certificates of hosts, what is known of getting one from an authority, and leases: who does what
//! only one node may do.

use serde::{Deserialize, Serialize};

use super::{NodeId, Sealed, UnixMs};

/// A certificate that every node serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Certificate {
    /// What it is called: an operator's word, or the host it was ordered for.
    pub name: String,
    pub source: CertificateSource,
    /// In lower case; `*.` stands for one label.
    pub hosts: Vec<String>,
    pub not_before: UnixMs,
    pub not_after: UnixMs,
    /// PEM, the host's own first.
    pub chain: String,
    /// PEM.
    pub key: Sealed,
    /// Registry index of the last change.
    pub version: u64,
}

impl Certificate {
    /// The chain's text, and the key's.
    pub const MAX_PEM: usize = 64 * 1024;
    pub const MAX_HOSTS: usize = 100;

    /// How long it still lasts; less than nothing once it has expired.
    #[must_use]
    pub fn seconds_left(&self, now: UnixMs) -> i64 {
        let left = i128::from(self.not_after.0) - i128::from(now.0);
        i64::try_from(left / 1000).unwrap_or(i64::MAX)
    }
}

/// DNS's own bound.
pub const HOST_BYTES: usize = 253;

/// Whether a text is a host name in lower case, or one with `*` for its first label.
#[must_use]
pub fn is_host(text: &str) -> bool {
    let rest = text.strip_prefix("*.").unwrap_or(text);
    let label = |label: &str| {
        let fine = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_".contains(&b);
        (1..=63).contains(&label.len()) && label.bytes().all(fine)
    };
    text.len() <= HOST_BYTES && rest.split('.').all(label)
}

/// The name with `*` for its first label that stands for a host too.
#[must_use]
pub fn wildcard_over(host: &str) -> Option<String> {
    host.split_once('.')
        .map(|(_, parent)| format!("*.{parent}"))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CertificateSource {
    /// An operator brought it.
    Own,
    /// An authority issued it on our order.
    Acme,
}

/// What is known of ordering a host's certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Order {
    pub host: String,
    /// When orders were begun, as far back as that counts.
    pub begun: Vec<UnixMs>,
    /// Orders that the authority refused since the last one that came to a certificate.
    pub failures: u32,
    /// Times it was not there since it last answered.
    #[serde(default)]
    pub misses: u32,
    /// No further one before then.
    pub not_before: UnixMs,
    /// Why the last one failed.
    pub error: Option<String>,
    /// What the authority may ask any node for now.
    pub challenge: Option<Challenge>,
}

/// How an authority is shown that a host is ours. The authorization is no secret: it is told to
/// whoever asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Challenge {
    pub kind: ChallengeKind,
    pub token: String,
    pub authorization: String,
}

/// Written as the authorities call them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChallengeKind {
    /// A file over plain HTTP.
    #[serde(rename = "http-01")]
    Http,
    /// A certificate in a TLS handshake.
    #[serde(rename = "tls-alpn-01")]
    TlsAlpn,
    /// A record in our own zone.
    #[serde(rename = "dns-01")]
    Dns,
}

/// Who we are to an authority.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AcmeAccount {
    /// The URL of its directory.
    pub directory: String,
    /// Its key and its number.
    pub credentials: Sealed,
}

/// The right of one node to do what only one may do.
///
/// No clock is agreed on: the holder renews it, and whoever saw the same version for its whole term
/// by a clock of its own may take it. The epoch rises with every new holder, and what the old one
/// still asks for under its epoch is refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Lease {
    pub name: String,
    /// `None`: it was given back.
    pub holder: Option<NodeId>,
    pub epoch: u64,
    /// Registry index of the last renewal.
    pub version: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_host_names_are_hosts() {
        let (label, name) = ("l".repeat(63), "a.".repeat(126) + "a");
        for good in ["web.test", "*.web.test", "_dmarc.a-1.test", &label, &name] {
            assert!(is_host(good), "{good}");
        }
        let (label, name) = (label + "l", name + "b");
        for bad in [
            "", "a..b", "*", "*.*.a", "a.*.b", "**.a", "a b", "A.test", "ä.test", ".a", "a.",
            &label, &name,
        ] {
            assert!(!is_host(bad), "{bad}");
        }
    }
}
