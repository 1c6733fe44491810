//! Where a service may go beyond the public internet: a network, and ports in it, as people write them.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Networks that no service is let into: this host, link-local (cloud metadata), multicast, reserved.
const NEVER: [(Ipv4Addr, u8); 5] = [
    (Ipv4Addr::UNSPECIFIED, 8),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(224, 0, 0, 0), 4),
    (Ipv4Addr::new(240, 0, 0, 0), 4),
];

/// `10.0.0.0/8`, `10.1.2.3:443` or `10.1.0.0/16:8000-8099`: TCP and UDP to all addresses of a network, on
/// one port, a range of them or all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Egress {
    base: Ipv4Addr,
    prefix: u8,
    ports: Option<(u16, u16)>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EgressError {
    #[error("`{0}` is no network like 10.0.0.0/8 or 10.1.2.3:443")]
    Unreadable(String),
    #[error("`{0}` has bits set beyond its prefix")]
    NotABase(String),
    #[error(
        "`{0}` has room for the node itself, link-local or multicast addresses, which stay closed"
    )]
    Never(String),
}

impl Egress {
    /// The network, as `10.0.0.0/8`.
    #[must_use]
    pub fn network(&self) -> String {
        format!("{}/{}", self.base, self.prefix)
    }

    /// The first and the last port; `None` is all.
    #[must_use]
    pub fn ports(&self) -> Option<(u16, u16)> {
        self.ports
    }

    /// Whether it lets through to `address` on `port`.
    #[must_use]
    pub fn covers(&self, address: Ipv4Addr, port: u16) -> bool {
        let inside = (address.to_bits() ^ self.base.to_bits()) & mask(self.prefix) == 0;
        inside
            && self
                .ports
                .is_none_or(|(first, last)| (first..=last).contains(&port))
    }

    fn touches(&self, base: Ipv4Addr, prefix: u8) -> bool {
        let shorter = mask(prefix.min(self.prefix));
        (base.to_bits() ^ self.base.to_bits()) & shorter == 0
    }
}

fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
}

fn ports(text: &str) -> Option<(u16, u16)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    (first > 0 && first <= last).then_some((first, last))
}

impl FromStr for Egress {
    type Err = EgressError;

    fn from_str(text: &str) -> Result<Self, EgressError> {
        let shown = || text.chars().take(60).collect::<String>();
        let unreadable = || EgressError::Unreadable(shown());
        let (network, ports) = match text.split_once(':') {
            Some((network, list)) => (network, Some(ports(list).ok_or_else(unreadable)?)),
            None => (text, None),
        };
        let (base, prefix) = network.split_once('/').unwrap_or((network, "32"));
        let base: Ipv4Addr = base.parse().map_err(|_| unreadable())?;
        let prefix = prefix
            .parse()
            .ok()
            .filter(|p| *p <= 32)
            .ok_or_else(unreadable)?;
        if base.to_bits() & !mask(prefix) != 0 {
            return Err(EgressError::NotABase(shown()));
        }
        let egress = Self {
            base,
            prefix,
            ports,
        };
        if NEVER
            .iter()
            .any(|(base, prefix)| egress.touches(*base, *prefix))
        {
            return Err(EgressError::Never(shown()));
        }
        Ok(egress)
    }
}

impl TryFrom<String> for Egress {
    type Error = EgressError;
    fn try_from(text: String) -> Result<Self, EgressError> {
        text.parse()
    }
}

impl From<Egress> for String {
    fn from(egress: Egress) -> Self {
        egress.to_string()
    }
}

impl fmt::Display for Egress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.base)?;
        if self.prefix < 32 {
            write!(f, "/{}", self.prefix)?;
        }
        match self.ports {
            None => Ok(()),
            Some((first, last)) if first == last => write!(f, ":{first}"),
            Some((first, last)) => write!(f, ":{first}-{last}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_and_ports_are_read_as_written() {
        for text in [
            "10.0.0.0/8",
            "10.1.2.3:443",
            "10.1.0.0/16:8000-8099",
            "203.0.113.9",
        ] {
            assert_eq!(text.parse::<Egress>().unwrap().to_string(), text);
        }
        let one: Egress = "10.1.0.0/16:8000-8099".parse().unwrap();
        let at = |text: &str| text.parse::<Ipv4Addr>().unwrap();
        for (address, port, covered) in [
            ("10.1.0.0", 8000, true),
            ("10.1.255.255", 8099, true),
            ("10.1.255.255", 8100, false),
            ("10.2.0.0", 8000, false),
            ("10.0.255.255", 8000, false),
        ] {
            assert_eq!(one.covers(at(address), port), covered, "{address}:{port}");
        }
    }

    #[test]
    fn nonsense_and_what_is_never_opened_are_refused() {
        for text in [
            "",
            "10.0.0.0/33",
            "10.0.0.0/8:0",
            "10.0.0.0/8:9-8",
            "10.0.0.0/8:http",
            "::1",
            "x",
            "10.0.0.0/8:",
            "10.0.0.0/8:70000",
        ] {
            let refused = text.parse::<Egress>();
            assert!(
                matches!(refused, Err(EgressError::Unreadable(_))),
                "{text}: {refused:?}"
            );
        }
        let refused = "10.0.0.1/8".parse::<Egress>();
        assert!(
            matches!(refused, Err(EgressError::NotABase(_))),
            "{refused:?}"
        );
        for text in [
            "0.0.0.0/0",
            "127.0.0.1",
            "169.254.169.254:80",
            "169.254.0.0/17",
            "128.0.0.0/1",
            "224.0.0.1",
            "255.255.255.255",
            "160.0.0.0/3",
        ] {
            let refused = text.parse::<Egress>();
            assert!(
                matches!(refused, Err(EgressError::Never(_))),
                "{text}: {refused:?}"
            );
        }
    }
}
