//! The door for containers of this node that call services: their connections to a service's own
//! address are led here by the firewall. Who calls is known by the address, which cannot be forged;
//! whether it may is the called service's to say. Port 80 is HTTP, whatever the request calls its
//! host; every other port is one of the service's own, and passes unread.

use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use http::{HeaderValue, Request, Response};
use hyper::body::Incoming;
use scheduler::model::{ServiceKey, Socket};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep};
use ulid::Ulid;

use super::body::Outgoing;
use super::dispatch::{self, Called, Quest, Resume};
use super::door::{self, Phase};
use super::headers::{Caller, REQUEST_ID};
use super::passage::{Way, carry};
use super::problem::{Code, Problem, accepts_json};
use super::stream::Conduit;
use super::{Shared, workers};

const HTTP: u16 = 80;
/// After a failed accept (out of files): without a pause the loop would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

pub(super) fn bind(addr: SocketAddr) -> Result<(TcpListener, SocketAddr), (SocketAddr, io::Error)> {
    let bound = workers::listener(addr).and_then(|l| l.local_addr().map(|addr| (l, addr)));
    bound.map_err(|error| (addr, error))
}

/// Accepts until the door closes.
pub(super) async fn accept(shared: Arc<Shared>, listener: TcpListener) {
    let mut phase = shared.phase.subscribe();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = phase.wait_for(|p| *p > Phase::Open) => return,
        };
        match accepted {
            Ok((stream, client)) => {
                let shared = Arc::clone(&shared);
                tokio::spawn(async move {
                    // None: it came by itself, not led by the firewall, and means nobody.
                    if let Some(meant) = meant(&stream) {
                        serve(shared, stream, client, meant).await;
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a container's connection");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Where the container meant to go.
fn meant(stream: &TcpStream) -> Option<SocketAddrV4> {
    let original = socket2::SockRef::from(stream).original_dst_v4().ok()?;
    original.as_socket_ipv4()
}

/// Serves one connection of a container's.
pub(super) async fn serve(
    shared: Arc<Shared>,
    stream: TcpStream,
    client: SocketAddr,
    meant: SocketAddrV4,
) {
    let Some(_place) = shared.passages.inside.enter(client.ip()) else {
        return Box::new(stream).cut();
    };
    let called = shared
        .routes
        .load()
        .at_address(*meant.ip())
        .map(|s| s.key.clone());
    let (Some(service), Ok(())) = (called, stream.set_nodelay(true)) else {
        return Box::new(stream).cut();
    };
    if !admitted(&shared, client.ip(), &service) {
        refuse(&shared, client.ip(), &service).await;
        return Box::new(stream).cut();
    }
    if meant.port() == HTTP {
        return http(&shared, stream, client.ip(), service).await;
    }
    let socket = Socket {
        udp: false,
        port: meant.port(),
    };
    let way = Way {
        service,
        socket,
        client,
        server: meant.into(),
        seen: Vec::new(),
    };
    carry(Arc::clone(&shared), Box::new(stream), way).await;
}

/// Whether the container at `address` may call the service.
fn admitted(shared: &Shared, address: IpAddr, service: &ServiceKey) -> bool {
    let Some(caller) = shared.callers.who(address) else {
        return false;
    };
    let routes = shared.routes.load();
    routes.service(service).is_some_and(|s| s.admits(&caller))
}

/// Writes down that a caller was turned away; a service that has no revision yet has no lines.
async fn refuse(shared: &Arc<Shared>, address: IpAddr, service: &ServiceKey) {
    let caller = shared.callers.who(address).map(|key| key.to_string());
    let caller = caller.unwrap_or_else(|| address.to_string());
    tracing::debug!(%service, caller, "a caller is not let in");
    shared.counters.problem(Code::CallerRefused);
    let ready = shared
        .routes
        .load()
        .service(service)
        .is_some_and(|s| s.pick_revision(0, None).is_ok());
    let called = Called::Service(service);
    if ready && let Ok(quest) = Quest::new(shared, called, Ulid::generate(), Instant::now()).await {
        quest.record(0, None, Some(Code::CallerRefused.word()));
    }
}

async fn http(shared: &Arc<Shared>, stream: TcpStream, client: IpAddr, service: ServiceKey) {
    let answer = move |shared, request| {
        let service = service.clone();
        async move { answer(&shared, request, client, &service).await }
    };
    door::serve(shared, (stream, BytesMut::new()), Phase::Closing, answer).await;
}

/// Answers one request of a container's. The policy may have changed since it connected.
async fn answer(
    shared: &Arc<Shared>,
    request: Request<Incoming>,
    client: IpAddr,
    service: &ServiceKey,
) -> Response<Outgoing> {
    shared.counters.asked();
    shared.retries.earn();
    let id = Ulid::generate();
    let quest = if admitted(shared, client, service) {
        Quest::new(shared, Called::Service(service), id, Instant::now()).await
    } else {
        let message = format!("{service} does not let this caller in");
        Err(Problem::new(Code::CallerRefused, message))
    };
    let problem = match quest {
        Ok(quest) => {
            let resume = Some(Box::new(Resume::new(quest, None)));
            let caller = Caller {
                address: client,
                secure: false,
                inside: true,
            };
            return dispatch::answer(shared, request, caller, resume).await;
        }
        Err(problem) => problem,
    };
    shared.counters.problem(problem.code);
    let id = HeaderValue::try_from(id.to_string()).unwrap_or(HeaderValue::from_static("-"));
    let mut response = problem.response(&id, accepts_json(request.headers()));
    shared.counters.answered(response.status().as_u16());
    response.headers_mut().insert(REQUEST_ID, id);
    response
}
