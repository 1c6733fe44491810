//! One question, one answer: a frame each way on a stream of its own.

use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use scheduler::model::NodeId;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, timeout, timeout_at};
use tracing::debug;

use super::{Handler, Kind, Mesh, MeshStream, REQUEST_DEADLINE, TransportError, code};
use crate::wire::codec;

/// A live peer acknowledges within its round trip; a silence this long raises doubts.
const SILENCE: Duration = Duration::from_millis(300);

impl Mesh {
    /// Asks a node and waits for its answer, all within `deadline`.
    pub async fn call<Q, A>(
        &self,
        to: NodeId,
        kind: Kind,
        question: &Q,
        deadline: Duration,
    ) -> Result<A, TransportError>
    where
        Q: Serialize + Sync + ?Sized,
        A: DeserializeOwned,
    {
        let until = Instant::now() + deadline;
        let question = codec::encode(question)?;
        let mut stream = self.open(to, kind, deadline).await?;
        let (asked, received) = (Instant::now(), stream.pulse().1);
        if let Ok(result) = timeout_at(until, ask(&mut stream, &question)).await {
            return result;
        }
        if asked.elapsed() >= SILENCE {
            stream.doubt(received);
        }
        stream.end_with(code::ABORTED);
        Err(TransportError::Deadline("waiting for the answer"))
    }

    /// Answers every call of `kind` with what `answer` returns.
    pub fn serve_calls<Q, A, F, W>(&self, kind: Kind, answer: F)
    where
        Q: DeserializeOwned + Send + 'static,
        A: Serialize + Send + Sync + 'static,
        F: Fn(NodeId, Q) -> W + Send + Sync + 'static,
        W: Future<Output = A> + Send + 'static,
    {
        self.serve(
            kind,
            Arc::new(Calls {
                answer,
                types: PhantomData,
            }),
        );
    }
}

async fn ask<A: DeserializeOwned>(
    stream: &mut MeshStream,
    question: &[u8],
) -> Result<A, TransportError> {
    let kind = stream.kind();
    let failed = |error| TransportError::frame(kind, error);
    if let Err(error) = stream.write_frame(question).await {
        return Err(failed(error));
    }
    // Fails only when the peer has stopped the stream; the read says why.
    let _ = stream.finish().await;
    stream.read_value().await.map_err(failed)
}

struct Calls<Q, F> {
    answer: F,
    types: PhantomData<fn(Q)>,
}

#[async_trait]
impl<Q, A, F, W> Handler for Calls<Q, F>
where
    Q: DeserializeOwned + Send + 'static,
    A: Serialize + Send + Sync + 'static,
    F: Fn(NodeId, Q) -> W + Send + Sync + 'static,
    W: Future<Output = A> + Send + 'static,
{
    async fn handle(&self, from: NodeId, mut stream: MeshStream) {
        let kind = stream.kind();
        let question = match timeout(REQUEST_DEADLINE, stream.read_value::<Q>()).await {
            Ok(Ok(question)) => question,
            Ok(Err(error)) => {
                debug!(node = %from, ?kind, %error, "a call that is no call");
                return stream.end_with(code::MALFORMED);
            }
            Err(_) => return stream.end_with(code::ABORTED),
        };
        let answer = (self.answer)(from, question).await;
        match timeout(REQUEST_DEADLINE, stream.write_value(&answer)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                debug!(node = %from, ?kind, %error, "an answer could not be given");
                stream.end_with(code::ABORTED);
            }
            Err(_) => stream.end_with(code::ABORTED),
        }
    }
}
