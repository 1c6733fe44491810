//! Whom the node asks for names, and its containers through it. The asking is `netfabric::dns`'s.

use std::fs;
use std::net::{IpAddr, SocketAddr};

pub(crate) const FILE: &str = "/etc/resolv.conf";

/// The node's own, as they are now.
#[must_use]
pub(crate) fn resolvers() -> Vec<SocketAddr> {
    parsed(&fs::read_to_string(FILE).unwrap_or_default())
}

fn parsed(text: &str) -> Vec<SocketAddr> {
    let named = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let server = words.next() == Some("nameserver");
        let ip: IpAddr = words.next().filter(|_| server)?.parse().ok()?;
        Some(SocketAddr::new(ip, 53))
    });
    named.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_of_name_servers_are_resolvers() {
        let text = "# by hand\nsearch x.test\nnameserver 9.9.9.9 # quad\n nameserver\t2620:fe::9\n\
                    nameserver\nnameserver dns.test\n;nameserver 1.1.1.1\noptions edns0\n";
        let want = ["9.9.9.9:53", "[2620:fe::9]:53"];
        assert_eq!(parsed(text), want.map(|a| a.parse().unwrap()));
        assert_eq!(parsed(""), []);
    }
}
