//! openraft's view of the network: every call becomes one request over the [`Carrier`]. Owns no
//! connection and no address.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use openraft::error::{
    InstallSnapshotError, NetworkError, PayloadTooLarge, RPCError, RaftError, RemoteError,
    Unreachable,
};
use openraft::network::{Backoff, RPCOption};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
    VoteRequest, VoteResponse,
};
use openraft::{EmptyNode, RaftNetwork, RaftNetworkFactory};
use scheduler::model::NodeId;

use super::types::TypeConfig;
use super::wire::{self, Request, Response, SnapshotChunk, WireError};

/// Brings one request to a node and its answer back.
#[async_trait]
pub trait Carrier: Send + Sync + 'static {
    async fn call(
        &self,
        to: NodeId,
        request: Vec<u8>,
        deadline: Duration,
    ) -> Result<Vec<u8>, CarrierError>;
}

/// The difference matters: after `Lost` the other side may have acted.
#[derive(Debug, thiserror::Error)]
pub enum CarrierError {
    /// The request did not leave this node.
    #[error("cannot be reached: {0}")]
    Unreachable(#[source] io::Error),
    /// The request left, and no answer came.
    #[error("no answer: {0}")]
    Lost(#[source] io::Error),
}

/// Pauses before an unreachable voter is tried again: soon at first, then gently. Replication
/// resumes after at most the last one when the voter returns.
const BACKOFF_MILLIS: [u64; 4] = [100, 250, 500, 1000];

pub(super) struct Network(pub Arc<dyn Carrier>);

pub(super) struct Peer {
    carrier: Arc<dyn Carrier>,
    target: NodeId,
}

/// Why a request brought no answer of its kind.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    #[error(transparent)]
    Carrier(#[from] CarrierError),
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error("refused: {0}")]
    Refused(String),
}

pub(super) async fn call(
    carrier: &dyn Carrier,
    to: NodeId,
    request: &Request,
    tail: &[u8],
    deadline: Duration,
) -> Result<Response, CallError> {
    let bytes = wire::encode(request, tail)?;
    let lost = || CarrierError::Lost(io::ErrorKind::TimedOut.into());
    let answer = tokio::time::timeout(deadline, carrier.call(to, bytes, deadline)).await;
    let answer = answer.map_err(|_| lost())??;
    match wire::decode(&answer)?.0 {
        Response::Refused { message } => Err(CallError::Refused(message)),
        response => Ok(response),
    }
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Peer;

    async fn new_client(&mut self, target: u64, _node: &EmptyNode) -> Peer {
        Peer {
            carrier: self.0.clone(),
            target: NodeId(target),
        }
    }
}

type RpcError<E = openraft::error::Infallible> = RPCError<u64, EmptyNode, RaftError<u64, E>>;

fn unreachable<E: std::error::Error>(error: &CallError) -> RpcError<E> {
    Unreachable::new(error).into()
}

/// The peer answered something that belongs to another question.
fn strange<E: std::error::Error>(response: &Response) -> RpcError<E> {
    let error = io::Error::new(
        io::ErrorKind::InvalidData,
        format!("unexpected {response:?}"),
    );
    NetworkError::new(&error).into()
}

impl RaftNetwork<TypeConfig> for Peer {
    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<u64>, RpcError> {
        let entries = request.entries.len() as u64;
        let request = Request::Append(request);
        match call(
            &*self.carrier,
            self.target,
            &request,
            &[],
            option.hard_ttl(),
        )
        .await
        {
            Ok(Response::Append(response)) => Ok(response),
            Ok(other) => Err(strange(&other)),
            Err(CallError::Wire(WireError::TooLarge(_))) if entries > 1 => {
                Err(PayloadTooLarge::new_entries_hint(entries / 2).into())
            }
            Err(error) => Err(unreachable(&error)),
        }
    }

    async fn install_snapshot(
        &mut self,
        request: InstallSnapshotRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<InstallSnapshotResponse<u64>, RpcError<InstallSnapshotError>> {
        let (chunk, data) = SnapshotChunk::split(request);
        let request = Request::Snapshot(chunk);
        match call(
            &*self.carrier,
            self.target,
            &request,
            &data,
            option.hard_ttl(),
        )
        .await
        {
            Ok(Response::Snapshot(Ok(response))) => Ok(response),
            Ok(Response::Snapshot(Err(error))) => {
                Err(RemoteError::new(self.target.0, error).into())
            }
            Ok(other) => Err(strange(&other)),
            Err(error) => Err(unreachable(&error)),
        }
    }

    async fn vote(
        &mut self,
        request: VoteRequest<u64>,
        option: RPCOption,
    ) -> Result<VoteResponse<u64>, RpcError> {
        let request = Request::Vote(request);
        match call(
            &*self.carrier,
            self.target,
            &request,
            &[],
            option.hard_ttl(),
        )
        .await
        {
            Ok(Response::Vote(response)) => Ok(response),
            Ok(other) => Err(strange(&other)),
            Err(error) => Err(unreachable(&error)),
        }
    }

    fn backoff(&self) -> Backoff {
        let last = BACKOFF_MILLIS[BACKOFF_MILLIS.len() - 1];
        let millis = BACKOFF_MILLIS.into_iter().chain(std::iter::repeat(last));
        Backoff::new(millis.map(Duration::from_millis))
    }
}
