//! Names for a node's containers: services at their own addresses below one domain, and everything
//! else from the resolvers the node itself asks. Those who ask are the node's own containers, so
//! answers have no limit of rate; what is asked of others for them is bounded, for each and for all.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::{TcpStream, UdpSocket};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::message::{Carrier, reply, unanswered};
use super::serve::{self, Server, frame, read_frame, send};
use super::zone::Zone;
use super::{Answers, DnsConfig, DnsError};
use crate::places::Places;
use crate::sockets::Sockets;

/// What one resolver may take: those who ask try again after five seconds.
const UPSTREAM: Duration = Duration::from_secs(2);
/// Resolvers asked for one question.
const UPSTREAMS: usize = 2;
/// Questions under way to resolvers, of all containers and of one.
const ASKED: usize = 1024;
const ASKED_FOR_ONE: usize = 128;
/// The largest answer by UDP.
const MAX_REPLY: usize = 4096;
const MAX_TCP_REPLY: usize = 65_535;
/// Where a question stands in a query.
const HEADER: usize = 12;

#[derive(Debug, Clone)]
pub struct InnerConfig {
    pub listen: SocketAddr,
    /// What services' names end in.
    pub domain: String,
    /// Seconds an answer may be kept; an address is its service's as long as that exists.
    pub ttl: u32,
    /// Whom the node asks for all other names.
    pub resolvers: Vec<SocketAddr>,
}

/// The running server; dropping it closes its sockets.
pub struct InnerDns {
    local: SocketAddr,
    _tasks: JoinSet<()>,
}

struct Inner {
    zone: Zone,
    domain: String,
    resolvers: Vec<SocketAddr>,
    /// Questions under way to resolvers.
    asked: Arc<Places>,
}

impl InnerDns {
    /// Binds UDP and TCP and answers from then on.
    ///
    /// # Errors
    /// [`DnsError`] when the domain is no name or the port is not to be had.
    pub async fn start(
        config: InnerConfig,
        answers: Arc<dyn Answers>,
        sockets: &Sockets,
    ) -> Result<Self, DnsError> {
        let zone = DnsConfig {
            listen: config.listen,
            origin: config.domain.clone(),
            ttl: config.ttl,
            subnets: Vec::new(),
        };
        let inner = Arc::new(Inner {
            zone: Zone::new(&zone, answers)?,
            domain: config.domain,
            resolvers: config.resolvers,
            asked: Places::new(ASKED, ASKED_FOR_ONE),
        });
        let (local, tasks) = serve::start(config.listen, inner, sockets).await?;
        Ok(Self {
            local,
            _tasks: tasks,
        })
    }

    /// Where it listens, over UDP and TCP alike.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }
}

impl Server for Inner {
    const CONNECTIONS_OF_ONE: usize = 16;

    fn datagram(self: &Arc<Self>, socket: &Arc<UdpSocket>, query: &[u8], from: SocketAddr) {
        if is_within(query, &self.domain) {
            return send(socket, reply(&self.zone, query, Carrier::Udp), from);
        }
        let Some(place) = self.asked.enter(from.ip()) else {
            return;
        };
        let (inner, socket, query) = (Arc::clone(self), Arc::clone(socket), query.to_vec());
        tokio::spawn(async move {
            let answer = ask(&inner.resolvers, &query).await;
            send(&socket, answer.or_else(|| unanswered(&query)), from);
            drop(place);
        });
    }

    async fn framed(&self, query: Vec<u8>, from: IpAddr) -> Option<Vec<u8>> {
        if is_within(&query, &self.domain) {
            return reply(&self.zone, &query, Carrier::Tcp);
        }
        let _place = self.asked.enter(from)?;
        let answer = ask_at_length(&self.resolvers, &query).await;
        answer.or_else(|| unanswered(&query))
    }
}

/// Asks the resolvers in their order.
async fn ask(resolvers: &[SocketAddr], query: &[u8]) -> Option<Vec<u8>> {
    for resolver in resolvers.iter().take(UPSTREAMS) {
        if let Ok(Ok(answer)) = timeout(UPSTREAM, ask_one(*resolver, query)).await {
            return Some(answer);
        }
    }
    None
}

/// Over a socket of its own: with its random port and the asker's number, hard to guess.
async fn ask_one(resolver: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let any = if resolver.is_ipv4() {
        "0.0.0.0:0"
    } else {
        "[::]:0"
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(resolver).await?;
    socket.send(query).await?;
    let mut buffer = vec![0; MAX_REPLY];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if answers(query, &buffer[..length]) {
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
}

/// Whether a reply is to this query: by its number, and by what was asked.
fn answers(query: &[u8], reply: &[u8]) -> bool {
    let question = |bytes: &[u8]| {
        let end = labels(bytes)?.1;
        Some(bytes.get(HEADER..end + 4)?.to_ascii_lowercase())
    };
    reply.len() >= HEADER && reply[2] & 0x80 != 0 && query.get(..2) == reply.get(..2) && {
        // Some leave the question out of a failure.
        question(reply).is_none_or(|asked| Some(asked) == question(query))
    }
}

async fn ask_at_length(resolvers: &[SocketAddr], query: &[u8]) -> Option<Vec<u8>> {
    let one = async |resolver: &SocketAddr| {
        let mut stream = TcpStream::connect(resolver).await?;
        let frame = frame(query).ok_or(io::ErrorKind::InvalidInput)?;
        stream.write_all(&frame).await?;
        read_frame(&mut stream, MAX_TCP_REPLY).await
    };
    for resolver in resolvers.iter().take(UPSTREAMS) {
        if let Ok(Ok(Some(answer))) = timeout(UPSTREAM, one(resolver)).await
            && answers(query, &answer)
        {
            return Some(answer);
        }
    }
    None
}

/// Whether a query asks for the domain or a name in it. What is no query is answered as such here.
fn is_within(query: &[u8], domain: &str) -> bool {
    let Some((labels, _)) = labels(query) else {
        return true;
    };
    let mut own = domain.rsplit('.');
    let mut asked = labels.iter().rev();
    own.all(|part| {
        let label = asked.next();
        label.is_some_and(|l| l.eq_ignore_ascii_case(part.as_bytes()))
    })
}

/// The labels of the first question, and where they end.
fn labels(message: &[u8]) -> Option<(Vec<&[u8]>, usize)> {
    let mut labels = Vec::new();
    let mut at = HEADER;
    loop {
        let length = usize::from(*message.get(at)?);
        at += 1;
        match length {
            0 => return Some((labels, at)),
            1..=63 => labels.push(message.get(at..at + length)?),
            // A name's first is no pointer.
            _ => return None,
        }
        at += length;
    }
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
    use hickory_proto::rr::{Name, RecordType};
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpSocket;

    use super::super::Client;
    use super::*;

    struct One;

    impl Answers for One {
        fn service_exists(&self, name: &str) -> bool {
            name == "web.shop"
        }
        fn nearest(&self, _: &str, _: &Client) -> Vec<IpAddr> {
            vec!["198.18.0.9".parse().unwrap()]
        }
        fn name_servers(&self) -> Vec<(String, Vec<IpAddr>)> {
            vec![]
        }
        fn serial(&self) -> u64 {
            1
        }
    }

    fn query(name: &str, id: u16) -> Vec<u8> {
        let mut message = Message::new(id, MessageType::Query, OpCode::Query);
        let name = Name::from_ascii(name).unwrap();
        message.add_query(Query::query(name, RecordType::A));
        message.to_vec().unwrap()
    }

    /// A resolver that says `Refused` to everything, which nobody else here does.
    async fn resolver() -> SocketAddr {
        let any = "127.0.0.1:0".parse().unwrap();
        let (addr, udp, tcp) = serve::bind(any).await.unwrap();
        let refuse = |query: &[u8]| {
            let mut reply = query.to_vec();
            reply[2] |= 0x80;
            reply[3] = 5;
            reply
        };
        tokio::spawn(async move {
            let mut buffer = [0; 512];
            loop {
                let (length, from) = udp.recv_from(&mut buffer).await.unwrap();
                // One that is to another query first: it must not be taken.
                let mut other = refuse(&buffer[..length]);
                other[0] ^= 1;
                udp.send_to(&other, from).await.unwrap();
                udp.send_to(&refuse(&buffer[..length]), from).await.unwrap();
            }
        });
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = tcp.accept().await.unwrap();
                let query = read_frame(&mut stream, 512).await.unwrap().unwrap();
                let reply = frame(&refuse(&query)).unwrap();
                stream.write_all(&reply).await.unwrap();
            }
        });
        addr
    }

    async fn asked(server: SocketAddr, query: &[u8], tcp: bool) -> Message {
        let asking = async {
            if tcp {
                let mut stream = TcpStream::connect(server).await.unwrap();
                stream.write_all(&frame(query).unwrap()).await.unwrap();
                return read_frame(&mut stream, 65_535).await.unwrap().unwrap();
            }
            ask_one(server, query).await.unwrap()
        };
        let reply = timeout(Duration::from_secs(10), asking).await.unwrap();
        Message::from_vec(&reply).unwrap()
    }

    #[tokio::test]
    async fn services_are_known_here_and_all_else_is_asked_elsewhere() {
        for tcp in [false, true] {
            let dead = "127.0.0.1:1".parse().unwrap();
            let config = |resolvers| InnerConfig {
                listen: "127.0.0.1:0".parse().unwrap(),
                domain: "internal".into(),
                ttl: 5,
                resolvers,
            };
            let with = config(vec![dead, resolver().await]);
            let server = InnerDns::start(with, Arc::new(One), &Sockets::default())
                .await
                .unwrap();
            let table = [
                ("web.shop.internal.", ResponseCode::NoError, 1),
                ("WEB.shop.Internal.", ResponseCode::NoError, 1),
                ("web.internal.", ResponseCode::NXDomain, 0),
                ("example.com.", ResponseCode::Refused, 0),
                ("internal.example.com.", ResponseCode::Refused, 0),
                ("xinternal.", ResponseCode::Refused, 0),
            ];
            for (name, code, count) in table {
                let reply = asked(server.local_addr(), &query(name, 7), tcp).await;
                assert_eq!(reply.metadata.response_code, code, "{name}");
                assert_eq!(
                    (reply.metadata.id, reply.answers.len()),
                    (7, count),
                    "{name}"
                );
            }
            let alone = InnerDns::start(config(vec![]), Arc::new(One), &Sockets::default())
                .await
                .unwrap();
            let reply = asked(alone.local_addr(), &query("example.com.", 8), tcp).await;
            assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
        }
    }

    /// Connects from an address of loopback, as one container.
    async fn connected(from: &str, server: SocketAddr) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(from.parse().unwrap()).unwrap();
        socket.connect(server).await.unwrap()
    }

    #[tokio::test]
    async fn one_container_leaves_connections_for_others() {
        let config = InnerConfig {
            listen: "127.0.0.1:0".parse().unwrap(),
            domain: "internal".into(),
            ttl: 5,
            resolvers: vec![],
        };
        let server = InnerDns::start(config, Arc::new(One), &Sockets::default())
            .await
            .unwrap();
        let mut greedy = Vec::new();
        for _ in 0..=Inner::CONNECTIONS_OF_ONE {
            greedy.push(connected("127.0.0.1:0", server.local_addr()).await);
        }
        let one_too_many = greedy.last_mut().unwrap();
        let closed = timeout(Duration::from_secs(2), one_too_many.read_u8()).await;
        assert!(closed.expect("it is closed").is_err());
        let mut other = connected("127.0.0.2:0", server.local_addr()).await;
        let query = frame(&query("web.shop.internal.", 7)).unwrap();
        other.write_all(&query).await.unwrap();
        let answered = timeout(Duration::from_secs(10), read_frame(&mut other, 65_535)).await;
        assert!(answered.unwrap().unwrap().is_some());
    }

    proptest::proptest! {
        #[test]
        fn nothing_breaks_it(bytes: Vec<u8>) {
            let _ = (is_within(&bytes, "internal"), answers(&bytes, &bytes), unanswered(&bytes));
        }
    }
}
