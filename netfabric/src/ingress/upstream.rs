//! One try at one endpoint: an instance here over TCP, or another node's door over a stream.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http_body_util::BodyExt;
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use scheduler::model::{NodeId, Protocol};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::Shared;
use super::attentive::Attentive;
use super::bench::Sent;
use super::body::{Outbound, Spool};
use super::headers::{
    ADDED_HEADERS, BROKEN, FORWARDED_FOR, FULL, MAX_HEADERS, NOT_HERE, REFUSED, to_h2,
};
use super::introduced;
use super::local::{Guard, Slot};
use super::problem::{Code, Problem};
use super::stream::{PeerStream, Stream};

/// An instance is one bridge away: what does not connect within the first of these found its line of
/// connections to accept full, and the kernel would ask again only after a second. Programs take as few as
/// five at once (Python's `http.server`), 128 (Rust's and many others') or 511 (nginx, node).
const CONNECT: [Duration; 5] = [
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(200),
    Duration::from_millis(650),
    Duration::from_secs(2),
];
/// The few bytes that introduce a client fit into any connection.
const INTRODUCE: Duration = Duration::from_secs(1);
/// A node may be a continent away and the first stream to it brings up the connection.
pub(super) const OPEN_STREAM: Duration = Duration::from_secs(3);

type Request = http::Request<Outbound>;

/// Why a try gave no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Trip {
    /// Nothing was sent; the endpoint is not there.
    #[error("cannot connect: {0}")]
    Connect(String),
    /// Nothing was sent; the instance is there, and nobody in it listens on that port of its service.
    #[error("nobody listens: {0}")]
    Port(String),
    /// Nothing was sent; the instance takes no further connection, and answers on those that it has.
    #[error("crowded: {0}")]
    Crowded(String),
    /// Nothing reached an instance; the node has none, or none with room.
    #[error("refused: {}", if *full { "full" } else { "not here" })]
    Refused { full: bool },
    /// It was sent, and the connection broke before an answer.
    #[error("broke off: {0}")]
    Broken(String),
    /// It was sent, and the other node's instance broke off.
    #[error("broke off there: {0}")]
    BrokenThere(String),
}

impl Trip {
    pub(super) fn was_sent(&self) -> bool {
        matches!(self, Self::Broken(_) | Self::BrokenThere(_))
    }

    /// What a peer is told whose request found no instance here after this.
    pub(super) fn refusal(&self) -> &'static str {
        match self {
            Self::Crowded(_) => FULL,
            _ => NOT_HERE,
        }
    }

    pub(super) fn problem(&self) -> Problem {
        let code = if self.was_sent() {
            Code::UpstreamReset
        } else {
            Code::UpstreamConnect
        };
        Problem::new(code, self.to_string())
    }
}

/// Answers up to this size are taken in whole before their head is passed on: until then the
/// request can go elsewhere, should the connection break.
pub(super) const WHOLE_BYTES: u64 = 16 * 1024;

pub(super) struct Answer {
    pub(super) response: Response<Arrival>,
    pub(super) lease: Lease,
}

/// How much of an answer's body is here when its head is passed on.
pub(super) enum Arrival {
    Whole(Bytes),
    Coming(Incoming),
}

/// Takes in the body of an answer that says it is small. HTTP/2's are passed on as they come, for
/// trailers may follow.
async fn arrived(response: Response<Incoming>, lease: Lease) -> Result<Answer, Trip> {
    let (head, body) = response.into_parts();
    let exact = body.size_hint().exact();
    let small = exact.is_some_and(|length| (1..=WHOLE_BYTES).contains(&length));
    let body = if small && !matches!(lease, Lease::Shared { .. }) {
        let collected = body.collect().await;
        let collected = collected.map_err(|e| Trip::Broken(format!("within the answer: {e}")))?;
        Arrival::Whole(collected.to_bytes())
    } else {
        Arrival::Coming(body)
    };
    let response = Response::from_parts(head, body);
    Ok(Answer { response, lease })
}

/// The connection an answer comes over, kept while its body is read.
pub(super) enum Lease {
    /// With the client whose it is alone.
    Pooled(Arc<Slot>, http1::SendRequest<Outbound>, Option<IpAddr>),
    Single {
        _sender: http1::SendRequest<Outbound>,
    },
    Shared {
        _sender: http2::SendRequest<Outbound>,
    },
}

/// What lets a request count as being at an endpoint.
#[derive(Debug)]
pub(super) enum Admission {
    Here(Guard),
    There(Sent),
}

/// What a response's body keeps alive until it is through.
pub(super) struct Escort {
    lease: Option<Lease>,
    request: Option<Arc<Spool>>,
    _admission: Admission,
}

impl Escort {
    pub(super) fn new(lease: Lease, request: Option<Arc<Spool>>, admission: Admission) -> Self {
        Self {
            lease: Some(lease),
            request,
            _admission: admission,
        }
    }

    /// The body was passed on whole: its connection may be used again, unless the answer came
    /// before the request was through.
    pub(super) fn arrived(&mut self) {
        let request_through = self.request.as_ref().is_none_or(|r| r.is_ended());
        let lease = self.lease.take().filter(|_| request_through);
        if let Some(Lease::Pooled(slot, sender, client)) = lease {
            slot.pool().put(sender, client);
        }
    }
}

/// Sends to an instance here that admitted the request, and thaws it first. A switch of protocol is
/// HTTP/1's affair whatever the port speaks.
pub(super) async fn here(slot: &Arc<Slot>, request: Request, switch: bool) -> Result<Answer, Trip> {
    let thawed = slot.thawed().await;
    thawed.map_err(|e| Trip::Connect(format!("{} stays frozen: {e}", slot.id)))?;
    match slot.protocol {
        Protocol::H2c if !switch => here_h2(slot, request).await,
        Protocol::Http1 | Protocol::H2c => here_h1(slot, request).await,
    }
}

/// Whose connection a request needs, where the instance is told. The door that took it in said who asks.
fn client(slot: &Slot, request: &Request) -> Option<IpAddr> {
    let said = request
        .headers()
        .get(FORWARDED_FOR)
        .filter(|_| slot.introduced)?;
    said.to_str().ok()?.parse().ok()
}

async fn here_h1(slot: &Arc<Slot>, mut request: Request) -> Result<Answer, Trip> {
    let client = client(slot, &request);
    loop {
        let pooled = slot.pool().take(client).await;
        let fresh = pooled.is_none();
        let mut sender = match pooled {
            Some(sender) => sender,
            None => speak_h1(introduce(slot, client).await?, MAX_HEADERS).await?,
        };
        match sender.try_send_request(request).await {
            Ok(response) => {
                let lease = Lease::Pooled(Arc::clone(slot), sender, client);
                return arrived(response, lease).await;
            }
            Err(mut error) => match error.take_message() {
                // It was closed while idle and nothing was sent: the next one.
                Some(unsent) if !fresh => request = unsent,
                Some(_) => return Err(Trip::Connect(error.into_error().to_string())),
                None => return Err(Trip::Broken(error.into_error().to_string())),
            },
        }
    }
}

async fn here_h2(slot: &Arc<Slot>, mut request: Request) -> Result<Answer, Trip> {
    to_h2(&mut request);
    let client = client(slot, &request);
    let mut sender = if let Some(sender) = slot.pool().h2(client) {
        sender
    } else {
        let sender = speak_h2(introduce(slot, client).await?).await?;
        slot.pool().put_h2(sender.clone(), client);
        sender
    };
    let sent = sender.try_send_request(request).await;
    let response = sent.map_err(trip)?;
    arrived(response, Lease::Shared { _sender: sender }).await
}

/// Sends to another node's door, one request per stream.
pub(super) async fn there(
    shared: &Shared,
    node: NodeId,
    protocol: Protocol,
    mut request: Request,
    switch: bool,
) -> Result<Answer, Trip> {
    let stream = open(shared, node).await?;
    let (response, lease) = if protocol == Protocol::H2c && !switch {
        to_h2(&mut request);
        let mut sender = speak_h2(stream).await?;
        let sent = sender.try_send_request(request).await;
        (sent.map_err(trip)?, Lease::Shared { _sender: sender })
    } else {
        let mut sender = speak_h1(stream, MAX_HEADERS + ADDED_HEADERS).await?;
        let sent = sender.try_send_request(request).await;
        (sent.map_err(trip)?, Lease::Single { _sender: sender })
    };
    let headers = response.headers();
    if let Some(why) = headers.get(REFUSED) {
        return Err(Trip::Refused { full: why == FULL });
    }
    if let Some(why) = headers.get(BROKEN) {
        return Err(Trip::BrokenThere(format!("{why:?}")));
    }
    arrived(response, lease).await
}

/// What a first stream brings up (the connection, its driver) must outlive this worker's request.
async fn open(shared: &Shared, node: NodeId) -> Result<Box<dyn PeerStream>, Trip> {
    if let Some(stream) = shared.link().open_now(node) {
        return Ok(stream);
    }
    let link = Arc::clone(&shared.link);
    let opening = async move { timeout(OPEN_STREAM, link.open(node, OPEN_STREAM)).await };
    let opened = shared.runtime.spawn(opening).await;
    let opened = opened.map_err(|e| Trip::Connect(e.to_string()))?;
    let stream = opened.map_err(|_| Trip::Connect("no stream in time".to_owned()))?;
    stream.map_err(|e| Trip::Connect(e.to_string()))
}

fn trip(mut error: hyper::client::conn::TrySendError<Request>) -> Trip {
    let unsent = error.take_message().is_some();
    let error = error.into_error();
    if unsent || is_refusal(&error) {
        Trip::Connect(error.to_string())
    } else {
        Trip::Broken(error.to_string())
    }
}

/// Whether the stream's other end says that nobody took the request.
fn is_refusal(error: &(dyn std::error::Error + 'static)) -> bool {
    let refused = |io: &io::Error| io.kind() == io::ErrorKind::ConnectionRefused;
    let mut next = Some(error);
    while let Some(error) = next {
        let h2 = error
            .downcast_ref::<h2::Error>()
            .and_then(h2::Error::get_io);
        if h2.or(error.downcast_ref()).is_some_and(refused) {
            return true;
        }
        next = error.source();
    }
    false
}

/// Connects to a port of an instance.
pub(super) async fn connect(slot: &Slot, addr: SocketAddr) -> Result<TcpStream, Trip> {
    let answered = slot.requests();
    let connected = connect_to(addr).await;
    connected.map_err(|error| {
        let why = format!("{addr}: {error}");
        match error.kind() {
            io::ErrorKind::ConnectionRefused if addr != slot.addr => Trip::Port(why),
            io::ErrorKind::TimedOut if slot.requests() != answered => Trip::Crowded(why),
            _ => Trip::Connect(why),
        }
    })
}

/// Connects, and says whose connection it is where the instance is told that. Clients send their requests
/// over connections of any number, so a port of theirs would mean nothing.
async fn introduce(slot: &Slot, client: Option<IpAddr>) -> Result<TcpStream, Trip> {
    let mut stream = connect(slot, slot.addr).await?;
    if slot.introduced {
        let said = client.map_or_else(
            || introduced::OWN.to_vec(),
            |client| introduced::write(SocketAddr::new(client, 0), slot.addr),
        );
        let sent = timeout(INTRODUCE, stream.write_all(&said)).await;
        let sent = sent.unwrap_or_else(|late| Err(late.into()));
        sent.map_err(|e| Trip::Connect(format!("{}: {e}", slot.addr)))?;
    }
    Ok(stream)
}

async fn connect_to(addr: SocketAddr) -> io::Result<TcpStream> {
    for patience in CONNECT {
        if let Ok(connected) = timeout(patience, TcpStream::connect(addr)).await {
            let stream = connected?;
            stream.set_nodelay(true)?;
            return Ok(stream);
        }
    }
    let kind = io::ErrorKind::TimedOut;
    Err(io::Error::new(kind, "takes no connection"))
}

async fn speak_h1<S: Stream + 'static>(
    stream: S,
    headers: usize,
) -> Result<http1::SendRequest<Outbound>, Trip> {
    let shaken = http1::Builder::new()
        .max_headers(headers)
        .max_buf_size(super::door::MAX_HEAD_BYTES)
        .handshake(TokioIo::new(Attentive::new(stream)))
        .await;
    let (sender, connection) = shaken.map_err(|e| Trip::Connect(e.to_string()))?;
    // Ends with the sender and the answer's body; its errors reach whoever waits on either.
    tokio::spawn(connection.with_upgrades());
    Ok(sender)
}

async fn speak_h2<S: Stream + 'static>(stream: S) -> Result<http2::SendRequest<Outbound>, Trip> {
    let shaken = http2::Builder::new(TokioExecutor::new())
        .handshake(TokioIo::new(stream))
        .await;
    let (sender, connection) = shaken.map_err(|e| Trip::Connect(e.to_string()))?;
    tokio::spawn(connection);
    Ok(sender)
}

#[cfg(test)]
mod tests {
    use scheduler::model::{InstanceId, Name, RevisionKey};
    use tokio::net::{TcpListener, TcpSocket};

    use super::super::local::Local;
    use super::*;

    /// An instance that has not accepted any connection yet, and all that it takes until it does.
    fn crowded() -> (Arc<Slot>, TcpListener, Vec<std::net::TcpStream>) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(1).unwrap();
        let addr = listener.local_addr().unwrap();
        let one = || std::net::TcpStream::connect_timeout(&addr, Duration::from_millis(20));
        let line = std::iter::from_fn(|| one().ok()).collect();
        let (local, id) = (Local::new(), InstanceId("web-00001-a".into()));
        let revision = RevisionKey {
            namespace: Name::default_namespace(),
            name: Name::new("web-00001").unwrap(),
        };
        local.open(id.clone(), revision, addr, Protocol::Http1, 0, false);
        (local.slot(&id).unwrap(), listener, line)
    }

    #[tokio::test]
    async fn a_full_line_of_connections_is_asked_again() {
        let (slot, listener, line) = crowded();
        let accepting = async {
            let mut accepted = Vec::new();
            tokio::task::yield_now().await;
            while accepted.len() <= line.len() {
                accepted.push(listener.accept().await.unwrap());
            }
        };
        let (connected, ()) = tokio::join!(connect(&slot, slot.addr), accepting);
        connected.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_answers_others_is_crowded_and_not_gone() {
        let (slot, _listener, _line) = crowded();
        let answering = async {
            tokio::task::yield_now().await;
            slot.answered();
        };
        let (crowded, ()) = tokio::join!(connect(&slot, slot.addr), answering);
        assert!(matches!(crowded, Err(Trip::Crowded(_))), "{crowded:?}");
        let guard = slot.admit().unwrap();
        guard.blame(&crowded.unwrap_err());
        assert!(!slot.health.is_ejected());
        let silent = connect(&slot, slot.addr).await.unwrap_err();
        assert!(matches!(silent, Trip::Connect(_)), "{silent:?}");
        guard.blame(&silent);
        assert!(slot.health.is_ejected());
    }
}
