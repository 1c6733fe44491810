//! DNS's part of `crate::fuzz`.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RecordType};

use super::message::{Carrier, refer_to_tcp, reply, unanswered};
use super::zone::Zone;
use super::{Answers, Client, DnsConfig};

/// The most that a datagram of ours has.
const DATAGRAM: usize = 1232;

/// `web` alone, with more addresses than a datagram holds.
struct One;

impl Answers for One {
    fn service_exists(&self, name: &str) -> bool {
        name == "web"
    }
    fn nearest(&self, _: &str, _: &Client) -> Vec<IpAddr> {
        (0..200).map(|n| Ipv4Addr::from_bits(n).into()).collect()
    }
    fn name_servers(&self) -> Vec<(String, Vec<IpAddr>)> {
        vec![("par-1.ns".to_owned(), vec![Ipv4Addr::LOCALHOST.into()])]
    }
    fn serial(&self) -> u64 {
        7
    }
}

fn zone() -> Option<Zone> {
    let config = DnsConfig {
        listen: (Ipv4Addr::LOCALHOST, 0).into(),
        origin: "edge.test".to_owned(),
        ttl: 5,
        subnets: vec![],
    };
    Zone::new(&config, Arc::new(One)).ok()
}

pub(crate) fn queries() -> Vec<Vec<u8>> {
    let query = |(name, kind, edns)| {
        let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
        message.add_query(Query::query(Name::from_ascii(name).ok()?, kind));
        message.edns = edns;
        message.to_vec().ok()
    };
    let all = [
        ("web.edge.test.", RecordType::A, None),
        ("WEB.Edge.test.", RecordType::AAAA, Some(Edns::new())),
        ("edge.test.", RecordType::SOA, None),
        ("no.edge.test.", RecordType::ANY, Some(Edns::new())),
        ("elsewhere.test.", RecordType::TXT, None),
    ];
    all.into_iter().filter_map(query).collect()
}

/// Who is answered hears of the query that was sent, in no more than there is room for; what is said
/// without a look is no larger than what was asked.
pub(crate) fn query(bytes: &[u8]) {
    let Some(zone) = zone() else { return };
    for carrier in [Carrier::Udp, Carrier::Tcp] {
        let Some(said) = reply(&zone, bytes, carrier) else {
            continue;
        };
        assert_eq!(said[..2], bytes[..2], "another query's number");
        assert!(said[2] & 0x80 != 0, "no reply");
        assert!(Message::from_vec(&said).is_ok(), "{said:?}");
        assert!(
            carrier == Carrier::Tcp || said.len() <= DATAGRAM,
            "{}",
            said.len()
        );
        assert_eq!(reply(&zone, &said, carrier), None, "a reply to a reply");
    }
    if let Some(said) = refer_to_tcp(bytes) {
        assert!(said.len() <= bytes.len() && said[2] & 0x82 == 0x82);
    }
    if let Some(said) = unanswered(bytes) {
        assert!(said.len() <= bytes.len().max(12) && said[..2] == bytes[..2]);
    }
}
