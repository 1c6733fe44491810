//! Addresses for a DNS name: the front doors nearest to who asks.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use super::{Routes, host};
use crate::fleet::{Fleet, Member};
use crate::model::Name;

/// Addresses in one answer, of each family: enough to survive a dead one, few enough to be near.
const MAX_ANSWERS: usize = 3;

/// What a name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resolution {
    /// An existing service: front doors, best first. Never empty while any node has an address.
    Service(Addresses),
    /// The origin itself.
    Origin(Addresses),
    /// Under the origin, but no service.
    Unknown,
    /// Not ours to answer.
    Foreign,
}

/// Front doors of both families, best first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Addresses {
    pub v4: Vec<std::net::Ipv4Addr>,
    pub v6: Vec<std::net::Ipv6Addr>,
}

/// An address range, as a network address and a prefix length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subnet {
    address: IpAddr,
    prefix: u8,
}

/// Why a text is no [`Subnet`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an address range such as 192.0.2.0/24")]
pub struct SubnetError(String);

/// Resolves `name` for a client. `client` is its own address or subnet, when the question said
/// so; otherwise it is taken to be near the asked node. `regions` maps address ranges to regions;
/// beyond it, a client in a node's own /24 or /48 is in that node's region.
#[must_use]
pub fn resolve(
    routes: &Routes,
    fleet: &Fleet,
    regions: &[(Subnet, Name)],
    name: &str,
    client: Option<IpAddr>,
) -> Resolution {
    let addresses = || {
        let region = client.and_then(|c| client_region(fleet, regions, c));
        front_doors(fleet, region)
    };
    if host::is_origin(name, &routes.origin) {
        return Resolution::Origin(addresses());
    }
    if host::within(name, &routes.origin).is_none() {
        return Resolution::Foreign;
    }
    match routes.lookup(name) {
        Some(_) => Resolution::Service(addresses()),
        None => Resolution::Unknown,
    }
}

/// The region a client address lies in: the longest matching range, else a node's neighbour.
fn client_region<'a>(
    fleet: &'a Fleet,
    regions: &'a [(Subnet, Name)],
    client: IpAddr,
) -> Option<&'a Name> {
    let listed = regions.iter().filter(|(subnet, _)| subnet.contains(client));
    if let Some((_, region)) = listed.max_by_key(|(subnet, _)| subnet.prefix) {
        return Some(region);
    }
    let near = |m: &&Member| m.record.ingress.iter().any(|a| neighbours(*a, client));
    let member = fleet.members.values().find(near);
    member.map(|m| &m.record.region)
}

fn neighbours(a: IpAddr, b: IpAddr) -> bool {
    let prefix = if a.is_ipv4() { 24 } else { 48 };
    Subnet { address: a, prefix }.contains(b)
}

/// Front doors in `region` (this node's own when unknown) first, then by round trip from here.
/// Serving nodes; when there is none, live ones; when there is none, all that were ever seen.
fn front_doors(fleet: &Fleet, region: Option<&Name>) -> Addresses {
    let me = fleet.members.get(&fleet.me);
    let region = region.or(me.map(|m| &m.record.region));
    let mut members: Vec<&Member> = fleet.members.values().collect();
    members.sort_by_key(|m| {
        let elsewhere = region != Some(&m.record.region);
        let me = m.record.node == fleet.me;
        let rtt = m.rtt_micros.unwrap_or(u32::MAX);
        (elsewhere, !me, rtt, m.record.node)
    });
    let grades: [fn(&Member) -> bool; 3] = [|m| m.alive && m.record.serving, |m| m.alive, |_| true];
    let of = |grade: fn(&Member) -> bool| {
        let chosen = members.iter().filter(move |m| grade(m));
        chosen.flat_map(|m| m.record.ingress.iter().copied())
    };
    let grade = grades.into_iter().find(|g| of(*g).next().is_some());
    grade.map_or_else(Addresses::default, |grade| gather(of(grade)))
}

fn gather(addresses: impl Iterator<Item = IpAddr>) -> Addresses {
    let mut answer = Addresses::default();
    for address in addresses {
        match address {
            IpAddr::V4(a) if answer.v4.len() < MAX_ANSWERS && !answer.v4.contains(&a) => {
                answer.v4.push(a);
            }
            IpAddr::V6(a) if answer.v6.len() < MAX_ANSWERS && !answer.v6.contains(&a) => {
                answer.v6.push(a);
            }
            _ => {}
        }
    }
    answer
}

impl Subnet {
    /// Whether `ip` lies in it. Families never match each other.
    #[must_use]
    pub fn contains(&self, ip: IpAddr) -> bool {
        match (self.address, ip) {
            (IpAddr::V4(net), IpAddr::V4(ip)) => {
                let shift = 32 - u32::from(self.prefix.min(32));
                let cut = |a: u32| a.checked_shr(shift).unwrap_or(0);
                cut(net.to_bits()) == cut(ip.to_bits())
            }
            (IpAddr::V6(net), IpAddr::V6(ip)) => {
                let shift = 128 - u32::from(self.prefix.min(128));
                let cut = |a: u128| a.checked_shr(shift).unwrap_or(0);
                cut(net.to_bits()) == cut(ip.to_bits())
            }
            _ => false,
        }
    }
}

impl FromStr for Subnet {
    type Err = SubnetError;

    fn from_str(text: &str) -> Result<Self, SubnetError> {
        let refuse = || SubnetError(text.chars().take(80).collect());
        let (address, prefix) = text.split_once('/').ok_or_else(refuse)?;
        let address: IpAddr = address.parse().map_err(|_| refuse())?;
        let prefix: u8 = prefix.parse().map_err(|_| refuse())?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        if prefix > longest {
            return Err(refuse());
        }
        Ok(Self { address, prefix })
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}
