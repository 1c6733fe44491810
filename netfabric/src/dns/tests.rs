//! Real queries over loopback against a zone held in memory.

use std::collections::BTreeMap;
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::opt::{ClientSubnet, EdnsCode, EdnsOption};
use hickory_proto::rr::{Name as DnsName, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::*;
use crate::sockets::Sockets;

const PATIENCE: Duration = Duration::from_secs(5);

/// Services by relative name; `many` has more front doors than a datagram holds.
struct Fixed {
    services: BTreeMap<&'static str, Vec<IpAddr>>,
}

impl Answers for Fixed {
    fn service_exists(&self, name: &str) -> bool {
        self.services.contains_key(name)
    }
    fn encloses(&self, name: &str) -> bool {
        self.services
            .keys()
            .any(|s| s.ends_with(&format!(".{name}")))
    }
    fn nearest(&self, name: &str, client: &Client) -> Vec<IpAddr> {
        match client.region.as_ref().map(Name::as_str) {
            Some("lis") => vec![ip("10.77.0.13")],
            _ => self.services.get(name).cloned().unwrap_or_default(),
        }
    }
    fn texts(&self, name: &str) -> Vec<String> {
        let here = name == "_acme-challenge.web";
        here.then(|| "proof".to_owned()).into_iter().collect()
    }
    fn name_servers(&self) -> Vec<(String, Vec<IpAddr>)> {
        vec![
            ("par-1.ns".into(), vec![ip("10.77.0.11")]),
            ("fra-1.ns".into(), vec![ip("10.77.0.12"), ip("fd00::12")]),
        ]
    }
    fn serial(&self) -> u64 {
        (1 << 32) + 42
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

async fn server() -> Dns {
    let many = (0..100u8).map(|i| IpAddr::from([10, 0, 0, i])).collect();
    let services = BTreeMap::from([
        ("web", vec![ip("10.77.0.11"), ip("fd00::11")]),
        ("api.shop", vec![ip("10.77.0.12")]),
        ("many", many),
    ]);
    let config = DnsConfig {
        listen: "127.0.0.1:0".parse().unwrap(),
        origin: "Edge.Example".into(),
        ttl: 5,
        subnets: vec![(
            "198.51.100.0/22".parse().unwrap(),
            Name::new("lis").unwrap(),
        )],
    };
    Dns::start(config, Arc::new(Fixed { services }), &Sockets::default())
        .await
        .unwrap()
}

fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
    message.add_query(Query::query(DnsName::from_ascii(name).unwrap(), kind));
    message
}

async fn udp_bytes(dns: &Dns, bytes: &[u8]) -> Vec<u8> {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(bytes, dns.local_addr()).await.unwrap();
    let mut buffer = vec![0; 65_535];
    let length = timeout(PATIENCE, socket.recv(&mut buffer))
        .await
        .expect("a reply")
        .unwrap();
    buffer.truncate(length);
    buffer
}

async fn udp(dns: &Dns, message: &Message) -> Message {
    let bytes = udp_bytes(dns, &message.to_vec().unwrap()).await;
    Message::from_vec(&bytes).unwrap()
}

async fn tcp(dns: &Dns, messages: &[Message]) -> Vec<Message> {
    let mut stream = TcpStream::connect(dns.local_addr()).await.unwrap();
    let mut replies = Vec::new();
    for message in messages {
        let bytes = message.to_vec().unwrap();
        stream
            .write_u16(u16::try_from(bytes.len()).unwrap())
            .await
            .unwrap();
        stream.write_all(&bytes).await.unwrap();
        let length = timeout(PATIENCE, stream.read_u16())
            .await
            .expect("a reply")
            .unwrap();
        let mut reply = vec![0; usize::from(length)];
        timeout(PATIENCE, stream.read_exact(&mut reply))
            .await
            .expect("all of it")
            .unwrap();
        replies.push(Message::from_vec(&reply).unwrap());
    }
    replies
}

fn data(message: &Message) -> Vec<String> {
    message.answers.iter().map(|r| r.data.to_string()).collect()
}

fn has_soa(message: &Message) -> bool {
    matches!(&message.authorities[..], [r] if r.record_type() == RecordType::SOA && r.ttl == 5)
}

#[tokio::test]
async fn a_service_answers_with_its_front_doors_by_family() {
    let dns = server().await;
    let reply = udp(&dns, &question("web.edge.example.", RecordType::A)).await;
    assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
    assert!(reply.metadata.authoritative && !reply.metadata.recursion_available);
    assert_eq!(reply.metadata.id, 4711);
    assert_eq!(data(&reply), ["10.77.0.11"]);
    assert_eq!(reply.answers[0].ttl, 5);
    assert!(reply.edns.is_none(), "no EDNS unless asked");
    let six = udp(&dns, &question("web.edge.example.", RecordType::AAAA)).await;
    assert_eq!(data(&six), ["fd00::11"]);
    let in_namespace = udp(&dns, &question("api.shop.edge.example.", RecordType::A)).await;
    assert_eq!(data(&in_namespace), ["10.77.0.12"]);
}

#[tokio::test]
async fn a_text_is_there_for_who_asks_for_it() {
    let dns = server().await;
    let name = "_acme-challenge.web.edge.example.";
    let reply = udp(&dns, &question(name, RecordType::TXT)).await;
    assert_eq!(data(&reply), ["proof"]);
    let other = udp(&dns, &question(name, RecordType::A)).await;
    assert_eq!(other.metadata.response_code, ResponseCode::NoError);
    assert!(other.answers.is_empty() && has_soa(&other));
    let none = question("_acme-challenge.api.edge.example.", RecordType::TXT);
    let none = udp(&dns, &none).await;
    assert_eq!(none.metadata.response_code, ResponseCode::NXDomain);
}

#[tokio::test]
async fn case_does_not_matter_and_comes_back_as_asked() {
    let dns = server().await;
    let reply = udp(&dns, &question("WeB.eDGe.eXample.", RecordType::A)).await;
    assert_eq!(data(&reply), ["10.77.0.11"]);
    assert_eq!(reply.queries[0].name().to_ascii(), "WeB.eDGe.eXample.");
    assert_eq!(reply.answers[0].name.to_ascii(), "WeB.eDGe.eXample.");
}

#[tokio::test]
async fn what_is_not_there_is_told_apart() {
    let dns = server().await;
    for (name, kind, code, soa) in [
        (
            "nothing.edge.example.",
            RecordType::A,
            ResponseCode::NXDomain,
            true,
        ),
        (
            "a.web.edge.example.",
            RecordType::A,
            ResponseCode::NXDomain,
            true,
        ),
        (
            "web.edge.example.",
            RecordType::TXT,
            ResponseCode::NoError,
            true,
        ),
        (
            "api.shop.edge.example.",
            RecordType::AAAA,
            ResponseCode::NoError,
            true,
        ),
        (
            "shop.edge.example.",
            RecordType::A,
            ResponseCode::NoError,
            true,
        ),
        (
            "ns.edge.example.",
            RecordType::A,
            ResponseCode::NoError,
            true,
        ),
        ("edge.example.", RecordType::A, ResponseCode::NoError, true),
        ("example.", RecordType::A, ResponseCode::Refused, false),
        (
            "web.other.example.",
            RecordType::A,
            ResponseCode::Refused,
            false,
        ),
        (
            "notedge.example.",
            RecordType::A,
            ResponseCode::Refused,
            false,
        ),
        (".", RecordType::NS, ResponseCode::Refused, false),
        (
            "edge.example.",
            RecordType::AXFR,
            ResponseCode::Refused,
            false,
        ),
        (
            "edge.example.",
            RecordType::IXFR,
            ResponseCode::Refused,
            false,
        ),
    ] {
        let reply = udp(&dns, &question(name, kind)).await;
        assert_eq!(reply.metadata.response_code, code, "{name} {kind}");
        assert!(reply.answers.is_empty(), "{name} {kind}");
        assert_eq!(soa, reply.metadata.authoritative, "{name} {kind}");
        assert_eq!(
            soa,
            !reply.authorities.is_empty() && has_soa(&reply),
            "{name} {kind}"
        );
    }
}

#[tokio::test]
async fn the_origin_has_soa_and_name_servers_with_glue() {
    let dns = server().await;
    let soa = udp(&dns, &question("edge.example.", RecordType::SOA)).await;
    assert_eq!(
        data(&soa),
        ["par-1.ns.edge.example. hostmaster.edge.example. 42 60 30 86400 5"]
    );
    let ns = udp(&dns, &question("edge.example.", RecordType::NS)).await;
    assert_eq!(
        data(&ns),
        ["par-1.ns.edge.example.", "fra-1.ns.edge.example."]
    );
    assert_eq!(ns.additionals.len(), 3);
    let a = udp(&dns, &question("fra-1.ns.edge.example.", RecordType::A)).await;
    assert_eq!(data(&a), ["10.77.0.12"]);
}

#[tokio::test]
async fn any_is_minimal() {
    let dns = server().await;
    let reply = udp(&dns, &question("web.edge.example.", RecordType::ANY)).await;
    assert_eq!(reply.answers.len(), 1);
    assert_eq!(reply.answers[0].record_type(), RecordType::HINFO);
}

fn with_edns(mut message: Message, payload: u16, subnet: Option<(&str, u8)>) -> Message {
    let mut edns = Edns::new();
    edns.set_max_payload(payload);
    if let Some((address, length)) = subnet {
        let subnet = ClientSubnet::new(ip(address), length, 0);
        edns.options_mut().insert(EdnsOption::Subnet(subnet));
    }
    message.edns = Some(edns);
    message
}

fn scope(message: &Message) -> Option<(String, u8, u8)> {
    match message.edns.as_ref()?.option(EdnsCode::Subnet)? {
        EdnsOption::Subnet(s) => Some((s.addr().to_string(), s.source_prefix(), s.scope_prefix())),
        _ => None,
    }
}

#[tokio::test]
async fn the_clients_subnet_chooses_the_region_and_its_scope_comes_back() {
    let dns = server().await;
    let web = || question("web.edge.example.", RecordType::A);
    for (subnet, answer, scope_back) in [
        (("198.51.100.0", 24), "10.77.0.13", 22),
        (("203.0.113.0", 24), "10.77.0.11", 24),
        (("0.0.0.0", 0), "10.77.0.11", 0),
    ] {
        let reply = udp(&dns, &with_edns(web(), 4096, Some(subnet))).await;
        assert_eq!(data(&reply), [answer], "{subnet:?}");
        let echoed = Some((subnet.0.to_owned(), subnet.1, scope_back));
        assert_eq!(scope(&reply), echoed, "{subnet:?}");
        assert_eq!(reply.edns.unwrap().max_payload(), 1232);
    }
    let nothing = question("nothing.edge.example.", RecordType::A);
    let reply = udp(&dns, &with_edns(nothing, 4096, Some(("198.51.100.0", 24)))).await;
    assert_eq!(scope(&reply).unwrap().2, 0, "the same for everybody");
    let plain = udp(&dns, &with_edns(web(), 4096, None)).await;
    assert_eq!(
        (data(&plain), scope(&plain)),
        (vec!["10.77.0.11".to_owned()], None)
    );
    let dirty = udp(&dns, &with_edns(web(), 4096, Some(("198.51.101.0", 23)))).await;
    assert_eq!(
        dirty.metadata.response_code,
        ResponseCode::FormErr,
        "host bits set"
    );
}

#[tokio::test]
async fn a_large_answer_is_truncated_over_udp_and_whole_over_tcp() {
    let dns = server().await;
    let many = question("many.edge.example.", RecordType::A);
    let with_big_buffer = with_edns(question("many.edge.example.", RecordType::A), 65_000, None);
    for (query, limit) in [(&many, 512), (&with_big_buffer, 1232)] {
        let bytes = udp_bytes(&dns, &query.to_vec().unwrap()).await;
        assert!(bytes.len() <= limit);
        let reply = Message::from_vec(&bytes).unwrap();
        assert!(reply.metadata.truncation && reply.answers.is_empty());
        assert_eq!(reply.edns.is_some(), query.edns.is_some());
    }
    let web = question("web.edge.example.", RecordType::A);
    let replies = tcp(&dns, &[many, web]).await;
    assert!(!replies[0].metadata.truncation);
    assert_eq!(replies[0].answers.len(), 100);
    assert_eq!(
        data(&replies[1]),
        ["10.77.0.11"],
        "a connection carries several queries"
    );
}

#[tokio::test]
async fn who_asks_the_same_too_often_is_sent_to_tcp() {
    let dns = server().await;
    let web = with_edns(question("web.edge.example.", RecordType::A), 4096, None);
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(dns.local_addr()).await.unwrap();
    let asked = web.to_vec().unwrap();
    // One answer or referral after the other; twenty are answered at once.
    let mut buffer = [0; 512];
    let referral = loop {
        socket.send(&asked).await.unwrap();
        let patience = Duration::from_millis(200);
        let Ok(Ok(length)) = timeout(patience, socket.recv(&mut buffer)).await else {
            continue;
        };
        let reply = Message::from_vec(&buffer[..length]).unwrap();
        if reply.metadata.truncation {
            break reply;
        }
        assert_eq!(data(&reply), ["10.77.0.11"]);
    };
    assert!(referral.answers.is_empty() && referral.metadata.id == web.metadata.id);
    assert_eq!(referral.queries, web.queries);
    let replies = tcp(&dns, &[web]).await;
    assert_eq!(data(&replies[0]), ["10.77.0.11"]);
}

#[tokio::test]
async fn malformed_queries_get_an_error_or_silence() {
    let dns = server().await;
    let web = question("web.edge.example.", RecordType::A);
    let whole = web.to_vec().unwrap();
    let code = |bytes: Vec<u8>| bytes[3] & 0x0f;
    // A header that claims 65535 questions, one cut short, a status query, a new EDNS version.
    let mut claims = whole.clone();
    claims[4..6].copy_from_slice(&[0xff, 0xff]);
    assert_eq!(code(udp_bytes(&dns, &claims).await), 1);
    assert_eq!(code(udp_bytes(&dns, &whole[..20]).await), 1);
    let mut status = whole.clone();
    status[2] |= 2 << 3;
    assert_eq!(code(udp_bytes(&dns, &status).await), 4);
    let mut newer = with_edns(question("web.edge.example.", RecordType::A), 4096, None);
    newer.edns.as_mut().unwrap().set_version(1);
    let reply = udp(&dns, &newer).await;
    assert_eq!(u16::from(reply.metadata.response_code), 16, "BADVERS");
    // Replies and fragments are not answered; the next good query is.
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut response = whole.clone();
    response[2] |= 0x80;
    for silent in [&response[..], &whole[..5], &[]] {
        socket.send_to(silent, dns.local_addr()).await.unwrap();
    }
    socket.send_to(&whole, dns.local_addr()).await.unwrap();
    let mut buffer = [0; 512];
    let length = timeout(PATIENCE, socket.recv(&mut buffer))
        .await
        .unwrap()
        .unwrap();
    let first = Message::from_vec(&buffer[..length]).unwrap();
    assert_eq!(first.metadata.response_code, ResponseCode::NoError);
}

#[tokio::test]
async fn closing_frees_the_port() {
    let dns = server().await;
    let address = dns.local_addr();
    dns.close().await;
    UdpSocket::bind(address).await.unwrap();
}

proptest::proptest! {
    #[test]
    fn no_bytes_panic_it(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..300)) {
        let config = DnsConfig {
            listen: "127.0.0.1:0".parse().unwrap(),
            origin: "edge.example".into(),
            ttl: 5,
            subnets: Vec::new(),
        };
        let services = BTreeMap::new();
        let zone = zone::Zone::new(&config, Arc::new(Fixed { services })).unwrap();
        for carrier in [message::Carrier::Udp, message::Carrier::Tcp] {
            let mut query = question("web.edge.example.", RecordType::A).to_vec().unwrap();
            query.extend(&bytes);
            query[11] = 1;
            let _ = message::reply(&zone, &bytes, carrier);
            let _ = message::reply(&zone, &query, carrier);
        }
        let referred = message::refer_to_tcp(&bytes);
        proptest::prop_assert!(referred.is_none_or(|reply| reply.len() <= bytes.len()));
    }
}
