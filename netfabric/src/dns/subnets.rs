//! Networks in CIDR form and the longest match among them. Pure.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use scheduler::model::Name;

/// A network: `10.1.0.0/16`, `2001:db8::/32`. Host bits are cleared when it is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cidr {
    network: IpAddr,
    length: u8,
}

/// Why a text is no [`Cidr`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a network: write it as 10.1.0.0/16 or 2001:db8::/32")]
pub struct CidrError {
    pub text: String,
}

impl Cidr {
    /// `None` when `length` is more than the family has bits.
    #[must_use]
    pub fn new(address: IpAddr, length: u8) -> Option<Self> {
        let network = masked(address.to_canonical(), length)?;
        Some(Self { network, length })
    }

    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        masked(address.to_canonical(), self.length) == Some(self.network)
    }

    #[must_use]
    pub fn length(&self) -> u8 {
        self.length
    }
}

impl FromStr for Cidr {
    type Err = CidrError;
    fn from_str(text: &str) -> Result<Self, CidrError> {
        let parse = || {
            let (address, length) = text.split_once('/')?;
            Self::new(address.parse().ok()?, length.parse().ok()?)
        };
        parse().ok_or_else(|| CidrError {
            text: text.chars().take(80).collect(),
        })
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.length)
    }
}

/// The most specific network of `table` that holds all of `address/length`, and its region.
pub(super) fn longest_match(
    table: &[(Cidr, Name)],
    address: IpAddr,
    length: u8,
) -> Option<&(Cidr, Name)> {
    table
        .iter()
        .filter(|(cidr, _)| cidr.length <= length && cidr.contains(address))
        .max_by_key(|(cidr, _)| cidr.length)
}

fn masked(address: IpAddr, length: u8) -> Option<IpAddr> {
    match address {
        IpAddr::V4(v4) if length <= 32 => {
            let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
            Some(IpAddr::V4((v4.to_bits() & mask).into()))
        }
        IpAddr::V6(v6) if length <= 128 => {
            let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
            Some(IpAddr::V6((v6.to_bits() & mask).into()))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_parse_and_clear_host_bits() {
        for (text, shown) in [
            ("10.1.2.3/16", "10.1.0.0/16"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("192.0.2.1/32", "192.0.2.1/32"),
            ("2001:db8:1::1/32", "2001:db8::/32"),
            ("::1/128", "::1/128"),
        ] {
            assert_eq!(text.parse::<Cidr>().unwrap().to_string(), shown);
        }
        for bad in [
            "",
            "10.0.0.0",
            "10.0.0.0/33",
            "::/129",
            "10.0.0/8",
            "x/8",
            "10.0.0.0/-1",
        ] {
            assert!(bad.parse::<Cidr>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_longest_network_that_holds_the_whole_subnet_wins() {
        let table: Vec<(Cidr, Name)> = [("10.0.0.0/8", "eu"), ("10.7.0.0/16", "lis")]
            .map(|(c, r)| (c.parse().unwrap(), Name::new(r).unwrap()))
            .into();
        let region = |ip: &str, length| {
            longest_match(&table, ip.parse().unwrap(), length).map(|(_, r)| r.as_str())
        };
        assert_eq!(region("10.7.1.0", 24), Some("lis"));
        assert_eq!(
            region("10.7.0.0", 12),
            Some("eu"),
            "a /12 is not inside a /16"
        );
        assert_eq!(region("10.8.1.0", 24), Some("eu"));
        assert_eq!(region("11.0.0.0", 24), None);
        assert_eq!(region("::ffff:10.7.1.1", 32), Some("lis"));
    }
}
