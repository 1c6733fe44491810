//! The change feed: how the registry reaches nodes that are no voters, from any node that has it.
//! Owns the feed's messages and frames.

mod follow;
mod serve;

use std::time::Duration;

use async_trait::async_trait;
use scheduler::model::NodeId;
use scheduler::registry::State;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

pub(super) use self::follow::{Follower, follow, keep};
pub(super) use self::serve::serve;
use super::network::CarrierError;
use super::view::Step;

const VERSION: u32 = 1;
/// A silent feed is alive if it says so this often.
pub(super) const BEAT: Duration = Duration::from_secs(5);
/// For the other side to take a frame in or to say its first word.
const FRAME_DEADLINE: Duration = Duration::from_secs(10);
const HELLO_BYTES: u32 = 4 << 10;
/// A snapshot of some ten thousand services.
const FRAME_BYTES: u32 = 64 << 20;

/// A duplex byte stream to another node.
pub trait FeedStream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> FeedStream for T {}

/// Where a follower gets its feed.
#[async_trait]
pub trait FeedSource: Send + Sync + 'static {
    /// Nodes to try, near first. This node itself is skipped.
    fn pick(&self) -> Vec<NodeId>;

    async fn open(
        &self,
        node: NodeId,
        deadline: Duration,
    ) -> Result<Box<dyn FeedStream>, CarrierError>;
}

/// The follower's only word.
#[derive(Debug, Serialize, Deserialize)]
struct Hello {
    version: u32,
    cluster: String,
    /// The index it has.
    from: u64,
}

#[derive(Debug, Serialize, Deserialize)]
enum Told {
    Snapshot(Box<State>),
    /// In order, without gaps.
    Steps(Vec<Step>),
    Beat {
        leader: Option<NodeId>,
        quorum_ago_millis: Option<u64>,
    },
    Refused {
        message: String,
    },
}

#[derive(Debug, thiserror::Error)]
pub(super) enum FeedError {
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Carrier(#[from] CarrierError),
    #[error("it took too long")]
    Deadline,
    #[error("a frame of {0} bytes")]
    TooLarge(usize),
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    #[error("version {0} of the feed is not known here")]
    Version(u32),
    #[error("refused: {0}")]
    Refused(String),
    #[error("it is of another cluster")]
    ForeignCluster,
    #[error("index {got} came after {have}")]
    Gap { have: u64, got: u64 },
    #[error("the source itself has heard of no quorum lately")]
    Stale,
}

async fn write_frame<T: Serialize>(
    stream: &mut (impl AsyncWrite + Unpin),
    message: &T,
) -> Result<(), FeedError> {
    let mut frame = vec![0; 4];
    serde_json::to_writer(&mut frame, message)?;
    let length = frame.len() - 4;
    let prefix = u32::try_from(length)
        .ok()
        .filter(|length| *length <= FRAME_BYTES);
    frame[..4].copy_from_slice(&prefix.ok_or(FeedError::TooLarge(length))?.to_be_bytes());
    let write = async {
        stream.write_all(&frame).await?;
        stream.flush().await
    };
    Ok(tokio::time::timeout(FRAME_DEADLINE, write)
        .await
        .map_err(|_| FeedError::Deadline)??)
}

/// The caller sets the deadline.
async fn read_frame<T: DeserializeOwned>(
    stream: &mut (impl AsyncRead + Unpin),
    limit: u32,
) -> Result<T, FeedError> {
    let length = stream.read_u32().await?;
    if length > limit {
        return Err(FeedError::TooLarge(length as usize));
    }
    // Grows with what arrives: a claimed length alone costs nothing.
    let mut frame = Vec::new();
    stream
        .take(u64::from(length))
        .read_to_end(&mut frame)
        .await?;
    if frame.len() < length as usize {
        return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
    }
    Ok(serde_json::from_slice(&frame)?)
}
