//! Does what a [`Behaviour`] says and makes the answer.

use std::fmt;
use std::time::Duration;

use anyhow::{Context as _, Result};
use futures::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Bytes, Frame};
use hyper::{Response, StatusCode};
use rustix::time::{ClockId, clock_gettime};

use super::behaviour::{Behaviour, Close};
use super::identity::BINDING;

pub(super) type Body = UnsyncBoxBody<Bytes, Cut>;

/// The connection ends here, as it was asked to.
#[derive(Debug)]
pub(super) struct Cut;

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("cut off on purpose")
    }
}

impl std::error::Error for Cut {}

pub(super) enum Answer {
    Whole(Response<Body>),
    /// None: the connection ends.
    Cut,
}

/// A page of memory, which is not there before something is written to it.
const PAGE: usize = 4096;

/// Does everything that is asked; the body is the binding, over and over when it is to be long.
pub(super) async fn perform(asked: &Behaviour, binding: Option<[u8; BINDING]>) -> Result<Answer> {
    let held = hold(asked.memory);
    if !asked.cpu.is_zero() {
        let cpu = asked.cpu;
        tokio::task::spawn_blocking(move || burn(cpu)).await?;
    }
    if !asked.delay.is_zero() {
        tokio::time::sleep(asked.delay).await;
    }
    drop(held);
    if let Some(code) = asked.exit {
        std::process::exit(code.into());
    }
    if asked.close == Some(Close::Before) {
        return Ok(Answer::Cut);
    }
    let pattern = match binding {
        Some(binding) => Bytes::copy_from_slice(&binding),
        None => Bytes::from_static(b"box\n"),
    };
    let body = match (asked.close, asked.stream) {
        (Some(_), _) => pieces(pattern, 1, Duration::ZERO, true),
        (None, Some((count, apart))) => pieces(pattern, count, apart, false),
        (None, None) => whole(repeated(pattern, asked.bytes)),
    };
    let status = StatusCode::from_u16(asked.status).context("status")?;
    let mut response = Response::new(body);
    *response.status_mut() = status;
    Ok(Answer::Whole(response))
}

/// Memory that is really there.
fn hold(bytes: usize) -> Vec<u8> {
    let mut held = vec![0; bytes];
    held.iter_mut().step_by(PAGE).for_each(|byte| *byte = 1);
    std::hint::black_box(held)
}

/// Spends processor time, however long that takes.
fn burn(time: Duration) {
    let spent = || {
        let now = clock_gettime(ClockId::ThreadCPUTime);
        Duration::try_from(now).unwrap_or_default()
    };
    let end = spent() + time;
    while spent() < end {
        std::hint::black_box((0..1000_u64).sum::<u64>());
    }
}

/// The pattern, or as many bytes of it as are wanted when those are more.
fn repeated(pattern: Bytes, bytes: usize) -> Bytes {
    if bytes <= pattern.len() {
        return pattern;
    }
    let mut long = pattern.repeat(bytes.div_ceil(pattern.len()));
    long.truncate(bytes);
    Bytes::from(long)
}

/// The pattern so many times, so far apart; then the end, or none when it is cut.
fn pieces(pattern: Bytes, count: u32, apart: Duration, cut: bool) -> Body {
    let parts = stream::unfold(0, move |sent| {
        let pattern = pattern.clone();
        async move {
            if sent > 0 {
                tokio::time::sleep(apart).await;
            }
            match sent {
                sent if sent < count => Some((Ok(Frame::data(pattern)), sent + 1)),
                sent if sent == count && cut => Some((Err(Cut), sent + 1)),
                _ => None,
            }
        }
    });
    StreamBody::new(parts).boxed_unsync()
}

fn whole(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

pub(super) fn text(status: StatusCode, text: String) -> Response<Body> {
    let mut response = Response::new(whole(text));
    *response.status_mut() = status;
    response
}

pub(super) fn empty(status: StatusCode) -> Response<Body> {
    text(status, String::new())
}
