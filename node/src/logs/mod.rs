//! Instances' output: read from this node's log files, asked of peers, merged for the operator.
//! The shim writes the files; this room only reads them.

mod files;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::{self, BoxStream};
use futures::{StreamExt, future::join_all};
use netfabric::transport::{Handler, Kind, Mesh, MeshStream};
use netfabric::wire::api::LogLine;
use scheduler::fleet::Fleet;
use scheduler::model::{InstanceId, Name, NodeId, UnixMs};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::agent::Agent;

/// How long a peer has to open its stream, and to send all of its past lines.
const PEER_DEADLINE: Duration = Duration::from_secs(5);
/// How often followed files are looked at while someone follows.
const FOLLOW_PERIOD: Duration = Duration::from_millis(250);
/// Lines on their way to one reader; beyond it the sources wait.
const LINES_IN_FLIGHT: usize = 1024;
/// Which lines someone wants.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LogQuery {
    pub namespace: Name,
    pub service: Option<Name>,
    pub instance: Option<InstanceId>,
    /// So many of the past, newest last.
    pub tail: usize,
    /// Then go on with what comes.
    pub follow: bool,
    pub since: Option<UnixMs>,
    /// Only lines with this text in them.
    #[serde(default)]
    pub grep: Option<String>,
}

impl LogQuery {
    fn wants(&self, time: UnixMs, line: &str) -> bool {
        self.since.is_none_or(|since| time >= since)
            && self.grep.as_ref().is_none_or(|text| line.contains(text))
    }
}

/// The lines of all live nodes: the past in order of time, then, when following, what comes. Each
/// node goes on right behind its own past: clocks that differ lose no line.
pub async fn gather(
    agent: &Agent,
    mesh: &Mesh,
    fleet: &Fleet,
    query: LogQuery,
) -> BoxStream<'static, LogLine> {
    let peers: Vec<NodeId> = fleet
        .nearest()
        .iter()
        .map(|m| m.record.node)
        .filter(|n| *n != fleet.me)
        .collect();
    let remote = join_all(peers.iter().map(|n| past_of(mesh, *n, &query)));
    let ((mut past, followed), remote) = tokio::join!(files::past(agent, &query), remote);
    let (sender, receiver) = mpsc::channel(LINES_IN_FLIGHT);
    for (lines, stream) in remote {
        past.extend(lines);
        if let Some(stream) = stream.filter(|_| query.follow) {
            tokio::spawn(relay(stream, sender.clone()));
        }
    }
    past.sort_by_key(|line| line.time);
    let past = past.split_off(past.len().saturating_sub(query.tail));
    if !query.follow {
        return stream::iter(past).boxed();
    }
    tokio::spawn(files::follow(agent.clone(), query, followed, sender));
    stream::iter(past).chain(receiver_stream(receiver)).boxed()
}

fn receiver_stream(receiver: mpsc::Receiver<LogLine>) -> BoxStream<'static, LogLine> {
    stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|line| (line, receiver))
    })
    .boxed()
}

/// A peer's past lines, and its stream for what follows. One that does not send all of its past in
/// time has that much; one that does not answer has none.
async fn past_of(
    mesh: &Mesh,
    node: NodeId,
    query: &LogQuery,
) -> (Vec<LogLine>, Option<MeshStream>) {
    let mut lines = Vec::new();
    let Some(mut stream) = open(mesh, node, query).await else {
        return (lines, None);
    };
    let read = async {
        // The past ends with an empty frame, or with the stream.
        while let Ok(Some(frame)) = stream.read_frame().await {
            if frame.is_empty() {
                return true;
            }
            lines.extend(serde_json::from_slice::<LogLine>(&frame).ok());
        }
        false
    };
    let whole = tokio::time::timeout(PEER_DEADLINE, read).await;
    // Broken off within a frame, it cannot be read on.
    let stream = matches!(whole, Ok(true)).then_some(stream);
    (lines, stream)
}

async fn open(mesh: &Mesh, node: NodeId, query: &LogQuery) -> Option<MeshStream> {
    let mut stream = mesh.open(node, Kind::Logs, PEER_DEADLINE).await.ok()?;
    stream
        .write_frame(&serde_json::to_vec(query).ok()?)
        .await
        .ok()?;
    Some(stream)
}

async fn relay(mut stream: MeshStream, lines: mpsc::Sender<LogLine>) {
    loop {
        tokio::select! {
            frame = stream.read_frame() => {
                let Ok(Some(frame)) = frame else { return };
                let Ok(line) = serde_json::from_slice(&frame) else { return };
                if lines.send(line).await.is_err() {
                    return;
                }
            }
            () = lines.closed() => return,
        }
    }
}

/// Answers peers' log queries with this node's lines.
pub struct LogServer {
    pub agent: Agent,
}

#[async_trait]
impl Handler for LogServer {
    async fn handle(&self, _from: NodeId, mut stream: MeshStream) {
        let Ok(Ok(Some(frame))) = tokio::time::timeout(PEER_DEADLINE, stream.read_frame()).await
        else {
            return;
        };
        let Ok(query) = serde_json::from_slice::<LogQuery>(&frame) else {
            return;
        };
        let (past, followed) = files::past(&self.agent, &query).await;
        for line in past {
            if send(&mut stream, &line).await.is_none() {
                return;
            }
        }
        if !query.follow || stream.write_frame(b"").await.is_err() {
            return;
        }
        let (sender, mut receiver) = mpsc::channel(LINES_IN_FLIGHT);
        tokio::spawn(files::follow(self.agent.clone(), query, followed, sender));
        while let Some(line) = receiver.recv().await {
            if send(&mut stream, &line).await.is_none() {
                return;
            }
        }
    }
}

async fn send(stream: &mut MeshStream, line: &LogLine) -> Option<()> {
    stream
        .write_frame(&serde_json::to_vec(line).ok()?)
        .await
        .ok()
}

/// Serves log streams of this node to its peers.
pub fn serve(mesh: &Mesh, agent: Agent) {
    mesh.serve(Kind::Logs, Arc::new(LogServer { agent }));
}
