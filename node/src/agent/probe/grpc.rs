//! `grpc.health.v1.Health/Check` over HTTP/2 without TLS: SERVING is a yes. Its two messages are
//! small enough to be written and read by hand.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http2;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::Patient;
use crate::causes::with_causes;

/// No answer of a health service is nearly as large.
const MAX_ANSWER: usize = 4096;

pub(super) async fn ask(at: &Patient, service: &str) -> Result<(), String> {
    let stream = at.connect().await?;
    let beside = Beside(Tasks::default());
    let asked = exchange(at, stream, service, beside.0.clone());
    let status = at.within("answer", asked).await??;
    match status {
        1 => Ok(()),
        0 => Err("UNKNOWN, not SERVING".to_owned()),
        2 => Err("NOT_SERVING".to_owned()),
        3 => Err("SERVICE_UNKNOWN, not SERVING".to_owned()),
        other => Err(format!("status {other}, not SERVING")),
    }
}

async fn exchange(
    at: &Patient,
    stream: TcpStream,
    service: &str,
    tasks: Tasks,
) -> Result<u64, String> {
    let odd = |error: hyper::Error| format!("no gRPC answer: {}", with_causes(&error));
    let io = TokioIo::new(stream);
    let (mut sender, connection) = http2::handshake(tasks.clone(), io).await.map_err(odd)?;
    // Its end shows in the request's.
    tasks.set().spawn(async { drop(connection.await) });
    let uri = format!("http://{}/grpc.health.v1.Health/Check", at.address);
    let request = Request::post(uri)
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header(
            "user-agent",
            concat!("kube-probe/1.34 selvedge/", env!("CARGO_PKG_VERSION")),
        )
        .body(Full::new(Bytes::from(message(service))))
        .map_err(|error| error.to_string())?;
    read(sender.send_request(request).await.map_err(odd)?).await
}

/// The serving status of an answer.
async fn read(answer: Response<Incoming>) -> Result<u64, String> {
    let (head, body) = answer.into_parts();
    if head.status != http::StatusCode::OK {
        return Err(format!(
            "HTTP status {}: no gRPC server",
            head.status.as_u16()
        ));
    }
    // A refusal may come without a body, its status among the headers.
    refused(&head.headers)?;
    let body = Limited::new(body, MAX_ANSWER).collect().await;
    let body = body.map_err(|error| format!("no gRPC answer: {}", with_causes(&*error)))?;
    if let Some(trailers) = body.trailers() {
        refused(trailers)?;
    }
    serving(&body.to_bytes()).ok_or_else(|| "no gRPC answer: not a health status".to_owned())
}

fn refused(headers: &HeaderMap) -> Result<(), String> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    match text("grpc-status") {
        None | Some("0") => Ok(()),
        Some("5") => Err("the server does not know this service (grpc-status 5)".to_owned()),
        Some("12") => Err("the server has no health service (grpc-status 12)".to_owned()),
        Some(code) => {
            let why: String = text("grpc-message")
                .unwrap_or("")
                .chars()
                .take(200)
                .collect();
            Err(format!("grpc-status {code} {why}").trim().to_owned())
        }
    }
}

/// A `HealthCheckRequest` with gRPC's five bytes before it. Names have at most 256 bytes.
fn message(service: &str) -> Vec<u8> {
    let mut request = Vec::new();
    if !service.is_empty() {
        request.push(0x0a);
        varint(&mut request, service.len());
        request.extend(service.as_bytes());
    }
    let length = u32::try_from(request.len()).unwrap_or(u32::MAX);
    let mut framed = vec![0];
    framed.extend(length.to_be_bytes());
    framed.extend(request);
    framed
}

fn varint(out: &mut Vec<u8>, mut value: usize) {
    while value >= 0x80 {
        out.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    out.push(value.to_le_bytes()[0]);
}

/// The `status` of a framed `HealthCheckResponse`; unset it is 0.
fn serving(framed: &[u8]) -> Option<u64> {
    let (&[0, a, b, c, d], mut rest) = framed.split_first_chunk()? else {
        return None;
    };
    if usize::try_from(u32::from_be_bytes([a, b, c, d])).ok()? != rest.len() {
        return None;
    }
    let mut status = 0;
    while !rest.is_empty() {
        let key = take_varint(&mut rest)?;
        match (key >> 3, key & 7) {
            (1, 0) => status = take_varint(&mut rest)?,
            (_, 0) => drop(take_varint(&mut rest)?),
            (_, 1) => rest = rest.get(8..)?,
            (_, 2) => {
                let length = usize::try_from(take_varint(&mut rest)?).ok()?;
                rest = rest.get(length..)?;
            }
            (_, 5) => rest = rest.get(4..)?,
            _ => return None,
        }
    }
    Some(status)
}

fn take_varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, after) = rest.split_first()?;
        *rest = after;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// What hyper runs beside us for one connection.
#[derive(Clone, Default)]
struct Tasks(Arc<Mutex<JoinSet<()>>>);

impl Tasks {
    fn set(&self) -> MutexGuard<'_, JoinSet<()>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Tasks {
    fn execute(&self, task: F) {
        self.set().spawn(task);
    }
}

/// Ends all of it with the question: a server that says nothing would keep its connection for ever.
struct Beside(Tasks);

impl Drop for Beside {
    fn drop(&mut self) {
        self.0.set().abort_all();
    }
}
