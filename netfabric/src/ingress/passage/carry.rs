//! One connection's or flow's way to an instance: as a request's, but that nothing can be repeated
//! once an instance has it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use scheduler::model::{InstanceId, Listen, NodeId};
use tokio::io::AsyncWriteExt;
use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout, timeout_at};
use ulid::Ulid;

use super::super::Shared;
use super::super::dispatch::{Called, Quest, Source};
use super::super::introduced;
use super::super::local::Guard;
use super::super::problem::{Code, Problem};
use super::super::sticky::Visitor;
use super::super::stream::Conduit;
use super::super::upstream::{Admission, OPEN_STREAM, Trip, connect};
use super::Way;
use super::relay::{Joined, relay};
use crate::sockets::Held;
use crate::wire::frame;
use crate::wire::passage::{FRAME_LIMIT, OpenPassage, PassageAnswer};

/// What a peer may take to connect to an instance, and thaw it before.
const PEER_ANSWER: Duration = Duration::from_secs(5);

/// An instance that was connected to.
pub(super) struct Reached {
    pub(super) end: End,
    pub(super) listen: Listen,
    /// The connection counts in the instance as long as this is held.
    pub(super) admission: Admission,
}

/// The way to it.
pub(super) enum End {
    Bytes(Box<dyn Conduit>),
    /// To an instance here, datagram by datagram.
    Datagrams(UdpSocket),
    /// Through a peer, framed.
    Framed(Box<dyn Conduit>),
}

/// Carries a client's connection until it ends.
pub(in super::super) async fn carry(shared: Arc<Shared>, client: Box<dyn Conduit>, way: Way) {
    let reached = match reach(&shared, &way).await {
        Ok(reached) => reached,
        Err(_told) => return client.cut(),
    };
    let Reached {
        end,
        listen,
        admission: _counted,
    } = reached;
    let (End::Bytes(mut server) | End::Framed(mut server)) = end else {
        return client.cut();
    };
    let first = if listen.proxy_protocol {
        introduced::write(way.client, way.server)
    } else {
        Vec::new()
    };
    let first = [first, way.seen].concat();
    let idle = Duration::from_secs(listen.idle_seconds().into());
    if !matches!(timeout(idle, server.write_all(&first)).await, Ok(Ok(()))) {
        server.cut();
        return client.cut();
    }
    let joined = Joined {
        client,
        server,
        held: Held::default(),
        idle,
    };
    let counts = (&shared.passages.sent, &shared.passages.received);
    if let Err(error) = relay(&shared, joined, counts).await {
        tracing::debug!(service = %way.service, port = %way.socket, %error, "a connection broke off");
    }
}

/// Finds an instance and connects to it, waking one if need be. What becomes of it is written down
/// here, also when nothing does.
pub(super) async fn reach(shared: &Arc<Shared>, way: &Way) -> Result<Reached, Code> {
    let arrival = Instant::now();
    let called = Called::Service(&way.service);
    let asked = (Ulid::generate(), arrival);
    let quest = Quest::new(shared, called, Visitor::default(), asked).await;
    let mut quest = quest.map_err(|problem| told(shared, way, &problem))?;
    match search(&mut quest, way).await {
        Ok((reached, source)) => {
            shared.passages.opened.fetch_add(1, Ordering::Relaxed);
            quest.record(0, Some(source), None);
            Ok(reached)
        }
        Err(problem) => {
            let code = told(shared, way, &problem);
            quest.record(0, None, Some(code.word()));
            Err(code)
        }
    }
}

fn told(shared: &Shared, way: &Way, problem: &Problem) -> Code {
    let code = problem.code;
    shared.counters.problem(code);
    let message = &problem.message;
    tracing::debug!(service = %way.service, port = %way.socket, code = code.word(), message, "refused");
    code
}

async fn search(quest: &mut Quest, way: &Way) -> Result<(Reached, Source), Problem> {
    let mut next = None;
    loop {
        let admission = match next.take() {
            Some(admission) => admission,
            None => quest.admission().await?,
        };
        let Some(listen) = quest.route.listen(way.socket).cloned() else {
            let message = format!("{} takes nothing on {}", quest.route.key, way.socket);
            return Err(Problem::new(Code::NoSuchPort, message));
        };
        let tried = timeout_at(quest.deadline, attempt(quest, &admission, &listen)).await;
        match tried.map_err(|_| Problem::late())? {
            Ok((end, source)) => {
                let reached = Reached {
                    end,
                    listen,
                    admission,
                };
                return Ok((reached, source));
            }
            Err(trip) if quest.again(&admission, &trip, false, true) => {
                // Nothing is waited for or started for a closed port: who is there is asked.
                if matches!(trip, Trip::Port(_)) {
                    next = Some(quest.room().ok_or_else(|| trip.problem())?);
                }
            }
            Err(trip) => return Err(trip.problem()),
        }
    }
}

async fn attempt(
    quest: &Quest,
    admission: &Admission,
    listen: &Listen,
) -> Result<(End, Source), Trip> {
    let udp = listen.socket().udp;
    match admission {
        Admission::Here(guard) => {
            let end = here(guard, udp, listen.to).await?;
            let source = Source {
                instance: Some(Arc::clone(&guard.slot.id)),
                node: quest.shared.me(),
            };
            Ok((end, source))
        }
        Admission::There(sent) => {
            let wish = OpenPassage {
                revision: quest.route.key.clone(),
                port: listen.to,
                udp,
                idle_seconds: listen.idle_seconds(),
            };
            let (stream, instance) = there(&quest.shared, sent.node, &wish).await?;
            let end = if udp {
                End::Framed(stream)
            } else {
                End::Bytes(stream)
            };
            let source = Source {
                instance: Some(Arc::new(instance)),
                node: sent.node,
            };
            Ok((end, source))
        }
    }
}

/// Connects to an instance here that admitted the connection, and thaws it first.
pub(super) async fn here(guard: &Guard, udp: bool, port: u16) -> Result<End, Trip> {
    let slot = &guard.slot;
    let thawed = slot.thawed().await;
    thawed.map_err(|e| Trip::Connect(format!("{} stays frozen: {e}", slot.id)))?;
    let addr = match port {
        0 => slot.addr,
        port => SocketAddr::new(slot.addr.ip(), port),
    };
    if udp {
        let none = |e| Trip::Connect(format!("{addr}: {e}"));
        let socket = towards(addr).await.map_err(none)?;
        slot.paid();
        return Ok(End::Datagrams(socket));
    }
    let stream = connect(slot, addr).await?;
    slot.answered();
    Ok(End::Bytes(Box::new(stream)))
}

async fn towards(addr: SocketAddr) -> io::Result<UdpSocket> {
    let any: SocketAddr = if addr.is_ipv4() {
        ([0, 0, 0, 0], 0).into()
    } else {
        ([0; 16], 0).into()
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(addr).await?;
    Ok(socket)
}

async fn there(
    shared: &Shared,
    node: NodeId,
    wish: &OpenPassage,
) -> Result<(Box<dyn Conduit>, InstanceId), Trip> {
    let broken = |e: &dyn std::fmt::Display| Trip::Connect(e.to_string());
    let opened = timeout(OPEN_STREAM, shared.link.open_passage(node, OPEN_STREAM)).await;
    let opened = opened.map_err(|_| Trip::Connect("no stream in time".to_owned()))?;
    let mut stream = opened.map_err(|e| broken(&e))?;
    shared
        .counters
        .sent_to_peers
        .fetch_add(1, Ordering::Relaxed);
    let asking = async {
        frame::write_value(&mut stream, wish, FRAME_LIMIT).await?;
        frame::read_value(&mut stream, FRAME_LIMIT).await
    };
    let answer = timeout(PEER_ANSWER, asking).await;
    let answer = answer.map_err(|_| Trip::Connect("no answer in time".to_owned()))?;
    match answer.map_err(|e| broken(&e))? {
        PassageAnswer::Open(instance) => {
            shared.nodes.of(node).answered();
            Ok((stream, instance))
        }
        PassageAnswer::Full => Err(Trip::Refused { full: true }),
        PassageAnswer::NotHere => Err(Trip::Refused { full: false }),
        PassageAnswer::Closed => Err(Trip::Port(format!("port {} at node {node}", wish.port))),
    }
}
