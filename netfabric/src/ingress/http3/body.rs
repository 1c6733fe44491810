//! A request's body as it comes from a client that speaks HTTP/3. What is wrong with it, and that the
//! client broke it off, is not the instance's affair: it is told to whoever serves the request, who lets
//! go of the body. For the instance it just does not go on until then.

use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h3::error::{Code, StreamError};
use h3::server::RequestStream;
use http_body::{Body, Frame, SizeHint};
use tokio::sync::oneshot;

use super::streams::Reading;
use crate::ingress::body::BoxError;

pub(in crate::ingress) struct Coming {
    stream: RequestStream<Reading, Bytes>,
    at: At,
    /// What is missing of the length that the head names.
    left: Option<u64>,
    /// The first frame, looked at before somebody reads.
    first: Option<Frame<Bytes>>,
    /// Tells that the request is over, with the code that its stream ends with.
    broken: Option<oneshot::Sender<Code>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Data,
    Trailers,
    Over,
    Broken,
}

impl Coming {
    /// The body, and what tells that it is broken.
    pub(super) fn new(
        stream: RequestStream<Reading, Bytes>,
        length: Option<u64>,
    ) -> (Self, oneshot::Receiver<Code>) {
        let (broken, told) = oneshot::channel();
        let coming = Self {
            stream,
            at: At::Data,
            left: length,
            first: None,
            broken: Some(broken),
        };
        (coming, told)
    }

    /// Takes in what is here already: that there is no body, mostly.
    pub(super) async fn look(&mut self) {
        poll_fn(|cx| {
            if let Poll::Ready(first) = self.poll_next(cx) {
                self.first = first;
            }
            Poll::Ready(())
        })
        .await;
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Frame<Bytes>>> {
        if self.at == At::Data {
            match ready!(self.stream.poll_recv_data(cx)) {
                Ok(Some(mut data)) => {
                    let data = data.copy_to_bytes(data.remaining());
                    return self.count(data);
                }
                Ok(None) if self.left.is_some_and(|left| left > 0) => {
                    return self.break_off(Code::H3_MESSAGE_ERROR);
                }
                Ok(None) => self.at = At::Trailers,
                Err(error) => return self.lose(&error),
            }
        }
        if self.at == At::Trailers {
            match ready!(self.stream.poll_recv_trailers(cx)) {
                Ok(trailers) => {
                    self.at = At::Over;
                    return Poll::Ready(trailers.map(Frame::trailers));
                }
                Err(error) => return self.lose(&error),
            }
        }
        match self.at {
            At::Broken => Poll::Pending,
            _ => Poll::Ready(None),
        }
    }

    /// More than the head names is no more of the message.
    fn count(&mut self, data: Bytes) -> Poll<Option<Frame<Bytes>>> {
        if let Some(left) = &mut self.left {
            match left.checked_sub(data.len() as u64) {
                Some(rest) => *left = rest,
                None => return self.break_off(Code::H3_MESSAGE_ERROR),
            }
        }
        Poll::Ready(Some(Frame::data(data)))
    }

    fn lose(&mut self, error: &StreamError) -> Poll<Option<Frame<Bytes>>> {
        let code = match error {
            StreamError::StreamError { code, .. } => *code,
            StreamError::HeaderTooBig { .. } => Code::H3_EXCESSIVE_LOAD,
            _ => Code::H3_REQUEST_CANCELLED,
        };
        self.break_off(code)
    }

    fn break_off(&mut self, code: Code) -> Poll<Option<Frame<Bytes>>> {
        self.at = At::Broken;
        self.stream.stop_sending(code);
        if let Some(broken) = self.broken.take() {
            // Whoever no longer listens is done with the request.
            let _ = broken.send(code);
        }
        Poll::Pending
    }
}

impl Body for Coming {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        let frame = match this.first.take() {
            Some(first) => Some(first),
            None => ready!(this.poll_next(cx)),
        };
        Poll::Ready(frame.map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        self.at == At::Over && self.first.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        let looked = self.first.as_ref().and_then(Frame::data_ref);
        let looked = looked.map_or(0, |data| data.len() as u64);
        match self.left {
            Some(left) => SizeHint::with_exact(left.saturating_add(looked)),
            None => SizeHint::default(),
        }
    }
}

impl fmt::Debug for Coming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Coming")
            .field("at", &self.at)
            .field("left", &self.left)
            .finish_non_exhaustive()
    }
}
