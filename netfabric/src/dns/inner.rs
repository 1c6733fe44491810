//! Names for a node's containers: services at their own addresses below one domain, and everything
//! else from the resolvers the node itself asks. Those who ask are the node's own containers, so
//! answers have no limit of rate; what is asked of others for them is bounded, for each and for all.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::message::{Carrier, reply, unanswered};
use super::serve::{
    ERROR_PAUSE, MAX_CONNECTIONS, MAX_QUERIES_PER_CONNECTION, MAX_QUERY, TCP_PATIENCE, read_frame,
};
use super::zone::Zone;
use super::{Answers, DnsConfig, DnsError, bind};

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

struct Shared {
    zone: Zone,
    domain: String,
    resolvers: Vec<SocketAddr>,
    asked: Asked,
}

impl InnerDns {
    /// Binds UDP and TCP and answers from then on.
    ///
    /// # Errors
    /// [`DnsError`] when the domain is no name or the port is not to be had.
    pub async fn start(config: InnerConfig, answers: Arc<dyn Answers>) -> Result<Self, DnsError> {
        let listen = config.listen;
        let failed = |source| DnsError::Listen { listen, source };
        let zone = DnsConfig {
            listen,
            origin: config.domain.clone(),
            ttl: config.ttl,
            subnets: Vec::new(),
        };
        let shared = Arc::new(Shared {
            zone: Zone::new(&zone, answers)?,
            domain: config.domain,
            resolvers: config.resolvers,
            asked: Asked::default(),
        });
        let (udp, tcp) = bind(listen).await.map_err(failed)?;
        let local = udp.local_addr().map_err(failed)?;
        let mut tasks = JoinSet::new();
        tasks.spawn(datagrams(Arc::clone(&shared), Arc::new(udp)));
        tasks.spawn(connections(shared, tcp));
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

async fn datagrams(shared: Arc<Shared>, socket: Arc<UdpSocket>) {
    let mut buffer = vec![0; MAX_QUERY];
    loop {
        let (length, from) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                tracing::debug!(%error, "receiving a container's question");
                tokio::time::sleep(ERROR_PAUSE).await;
                continue;
            }
        };
        let query = &buffer[..length];
        if is_within(query, &shared.domain) {
            let answer = reply(&shared.zone, query, Carrier::Udp);
            // A full socket buffer drops the reply, as the network would: never wait here.
            let _ = answer.map(|bytes| socket.try_send_to(&bytes, from));
            continue;
        }
        let Some(place) = Place::take(&shared, from.ip()) else {
            continue;
        };
        let (query, socket) = (query.to_vec(), Arc::clone(&socket));
        tokio::spawn(async move {
            let answer = ask(&place.shared.resolvers, &query).await;
            if let Some(bytes) = answer.or_else(|| unanswered(&query)) {
                let _ = socket.try_send_to(&bytes, from);
            }
        });
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

async fn connections(shared: Arc<Shared>, listener: TcpListener) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    // Owned here, so that connections end with the server.
    let mut connections = JoinSet::new();
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, from)) => {
                let shared = Arc::clone(&shared);
                connections.spawn(async move {
                    if let Err(error) = connection(stream, from.ip(), &shared).await {
                        tracing::debug!(%error, %from, "a container's DNS over TCP");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "accepting a container's DNS over TCP");
                tokio::time::sleep(ERROR_PAUSE).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
}

async fn connection(mut stream: TcpStream, from: IpAddr, shared: &Arc<Shared>) -> io::Result<()> {
    for _ in 0..MAX_QUERIES_PER_CONNECTION {
        let asked = timeout(TCP_PATIENCE, read_frame(&mut stream, MAX_QUERY)).await??;
        let Some(query) = asked else {
            return Ok(());
        };
        let answer = if is_within(&query, &shared.domain) {
            reply(&shared.zone, &query, Carrier::Tcp)
        } else {
            let Some(_place) = Place::take(shared, from) else {
                return Ok(());
            };
            let answer = ask_at_length(&shared.resolvers, &query).await;
            answer.or_else(|| unanswered(&query))
        };
        let Some(frame) = answer.as_deref().and_then(framed) else {
            return Ok(());
        };
        timeout(TCP_PATIENCE, stream.write_all(&frame)).await??;
    }
    Ok(())
}

async fn ask_at_length(resolvers: &[SocketAddr], query: &[u8]) -> Option<Vec<u8>> {
    let one = async |resolver: &SocketAddr| {
        let mut stream = TcpStream::connect(resolver).await?;
        let frame = framed(query).ok_or(io::ErrorKind::InvalidInput)?;
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

fn framed(message: &[u8]) -> Option<Vec<u8>> {
    let length = u16::try_from(message.len()).ok()?;
    Some([&length.to_be_bytes()[..], message].concat())
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

/// Questions under way to resolvers, by who asked.
#[derive(Default)]
struct Asked(Mutex<HashMap<IpAddr, usize>>);

/// One of them.
struct Place {
    shared: Arc<Shared>,
    of: IpAddr,
}

impl Place {
    fn take(shared: &Arc<Shared>, of: IpAddr) -> Option<Self> {
        let mut asked = shared
            .asked
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let all: usize = asked.values().sum();
        let own = asked.get(&of).copied().unwrap_or(0);
        if all >= ASKED || own >= ASKED_FOR_ONE {
            return None;
        }
        asked.insert(of, own + 1);
        drop(asked);
        let shared = Arc::clone(shared);
        Some(Self { shared, of })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let asked = &self.shared.asked.0;
        let mut asked = asked.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = asked.get_mut(&self.of) {
            *count -= 1;
            if *count == 0 {
                asked.remove(&self.of);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
    use hickory_proto::rr::{Name, RecordType};

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
        let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let addr = udp.local_addr().unwrap();
        let tcp = TcpListener::bind(addr).await.unwrap();
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
                let reply = framed(&refuse(&query)).unwrap();
                stream.write_all(&reply).await.unwrap();
            }
        });
        addr
    }

    async fn asked(server: SocketAddr, query: &[u8], tcp: bool) -> Message {
        let asking = async {
            if tcp {
                let mut stream = TcpStream::connect(server).await.unwrap();
                stream.write_all(&framed(query).unwrap()).await.unwrap();
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
            let server = InnerDns::start(with, Arc::new(One)).await.unwrap();
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
            let alone = InnerDns::start(config(vec![]), Arc::new(One))
                .await
                .unwrap();
            let reply = asked(alone.local_addr(), &query("example.com.", 8), tcp).await;
            assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
        }
    }

    #[test]
    fn one_container_leaves_room_for_others() {
        let zone = DnsConfig {
            listen: "127.0.0.1:0".parse().unwrap(),
            origin: "internal".into(),
            ttl: 5,
            subnets: vec![],
        };
        let shared = Arc::new(Shared {
            zone: Zone::new(&zone, Arc::new(One)).unwrap(),
            domain: "internal".into(),
            resolvers: vec![],
            asked: Asked::default(),
        });
        let from = |n: u8| IpAddr::from([10, 0, 0, n]);
        let greedy: Vec<_> = (0..ASKED)
            .filter_map(|_| Place::take(&shared, from(1)))
            .collect();
        assert_eq!(greedy.len(), ASKED_FOR_ONE);
        assert!(Place::take(&shared, from(2)).is_some());
        drop(greedy);
        assert!(shared.asked.0.lock().unwrap().is_empty());
    }

    proptest::proptest! {
        #[test]
        fn nothing_breaks_it(bytes: Vec<u8>) {
            let _ = (is_within(&bytes, "internal"), answers(&bytes, &bytes), unanswered(&bytes));
        }
    }
}
