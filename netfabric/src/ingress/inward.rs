//! The door for containers of this node that call services: their connections to a service's own
//! address are led here by the firewall. Who calls is known by the address, which cannot be forged;
//! whether it may is the called service's to say. Port 80 is HTTP, whatever the request calls its
//! host; every other port is one of the service's own, and passes unread.

use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use http::Request;
use hyper::body::Incoming;
use scheduler::model::{ServiceKey, Socket};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep};
use ulid::Ulid;

use super::body::Received;
use super::dispatch::{self, Called, Quest};
use super::door::{self, Phase};
use super::headers::{Caller, Side};
use super::passage::{Way, carry};
use super::problem::{Code, Problem};
use super::stream::Conduit;
use super::{Shared, workers};
use crate::sockets::Sockets;

const HTTP: u16 = 80;
/// After a failed accept (out of files): without a pause the loop would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

pub(super) fn bind(
    addr: SocketAddr,
    kept: &Sockets,
) -> Result<(TcpListener, SocketAddr), (SocketAddr, io::Error)> {
    let bound = || {
        if let Some(handed) = kept.tcp_on(addr.ip()) {
            let addr = handed.local_addr()?;
            return Ok((TcpListener::from_std(handed)?, addr));
        }
        let listener = workers::listener(addr)?;
        let addr = listener.local_addr()?;
        kept.keep(false, addr, &listener);
        Ok((listener, addr))
    };
    bound().map_err(|error| (addr, error))
}

/// Accepts until the door closes.
pub(super) async fn accept(shared: Arc<Shared>, listener: TcpListener) {
    let mut phase = shared.phase.subscribe();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = phase.wait_for(|p| *p >= Phase::Closing) => return,
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

/// Who calls whom, as long as a connection lasts.
#[derive(Debug)]
pub(super) struct Call {
    caller: Option<ServiceKey>,
    service: ServiceKey,
}

impl Call {
    /// The called service, where it lets the caller in: that may have changed since the last request.
    pub(super) fn admitted(&self, shared: &Shared) -> Result<&ServiceKey, Problem> {
        let (routes, service) = (shared.routes.load(), &self.service);
        let admits = |caller| routes.service(service).is_some_and(|s| s.admits(caller));
        if self.caller.as_ref().is_some_and(admits) {
            return Ok(service);
        }
        let message = format!("{service} does not let this caller in");
        Err(Problem::new(Code::CallerRefused, message))
    }

    /// Whose container calls.
    pub(super) fn caller(&self) -> Option<&ServiceKey> {
        self.caller.as_ref()
    }

    /// Writes down that the caller was turned away; a service that has no revision yet has no lines.
    fn refused(&self, shared: &Arc<Shared>, problem: &Problem) {
        shared.counters.problem(problem.code);
        let called = Called::Service(&self.service);
        let quest = Quest::at_once(shared, called, Ulid::generate(), Instant::now());
        if let Some(quest) = quest {
            quest.record(0, None, Some(problem.code.word()));
        }
    }
}

/// Serves one connection of a container's.
pub(super) async fn serve(
    shared: Arc<Shared>,
    stream: TcpStream,
    client: SocketAddr,
    meant: SocketAddrV4,
) {
    let places = match meant.port() {
        HTTP => &shared.passages.calls,
        _ => &shared.passages.inside,
    };
    let Some(_place) = places.enter(client.ip()) else {
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
    let caller = shared.callers.who(client.ip());
    let call = Call { caller, service };
    if let Err(problem) = call.admitted(&shared) {
        let Call { caller, service } = &call;
        tracing::debug!(%service, ?caller, %client, "a caller is not let in");
        call.refused(&shared, &problem);
        return Box::new(stream).cut();
    }
    if meant.port() == HTTP {
        return http(&shared, stream, client.ip(), call).await;
    }
    let socket = Socket {
        udp: false,
        port: meant.port(),
    };
    let way = Way {
        service: call.service,
        socket,
        client,
        server: meant.into(),
        seen: Vec::new(),
    };
    carry(Arc::clone(&shared), Box::new(stream), way).await;
}

async fn http(shared: &Arc<Shared>, stream: TcpStream, address: IpAddr, call: Call) {
    let call = Arc::new(call);
    let answer = move |shared, request: Request<Incoming>| {
        let call = Arc::clone(&call);
        async move {
            let caller = Caller {
                address,
                secure: false,
                inside: Some(&call),
            };
            let request = request.map(Received::from);
            dispatch::answer(&shared, request, caller, None).await
        }
    };
    door::serve(shared, (stream, BytesMut::new()), Side::Client, answer).await;
}
