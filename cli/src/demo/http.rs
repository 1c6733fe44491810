//! The demo's own HTTP client: one request on one fresh connection, with a deadline, and a load
//! that is bounded in rate, time and requests at once. It knows nothing of nodes.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{Mutex, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

const MAX_BODY: usize = 8 << 20;
/// Requests of a load that may be open at once; more are counted as failed, not sent.
const MAX_IN_FLIGHT: usize = 256;
/// Distinct failures worth showing.
const MAX_REASONS: usize = 5;

/// An answer that arrived in full.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    pub status: u16,
    pub request_id: Option<String>,
    pub body: String,
    pub took: Duration,
}

/// GET `http://host/path` from the front door at `door`.
pub(super) async fn get(
    door: SocketAddr,
    host: &str,
    path: &str,
    deadline: Duration,
) -> Result<Answer> {
    let began = Instant::now();
    let exchange = async {
        let stream = TcpStream::connect(door).await.context("connecting")?;
        exchange(stream, host, path, began).await
    };
    timeout(deadline, exchange)
        .await
        .with_context(|| format!("no answer in {deadline:?}"))?
}

/// GET `path` of the operator's API behind the unix socket `socket`.
pub(super) async fn api<T: DeserializeOwned>(socket: &Path, path: &str) -> Result<T> {
    const DEADLINE: Duration = Duration::from_secs(10);
    let exchange = async {
        let stream = UnixStream::connect(socket).await.context("connecting")?;
        exchange(stream, "localhost", path, Instant::now()).await
    };
    let what = || format!("asking {} for {path}", socket.display());
    let answer = timeout(DEADLINE, exchange)
        .await
        .with_context(what)?
        .with_context(what)?;
    if answer.status != 200 {
        bail!("{}: {} {}", what(), answer.status, answer.body);
    }
    serde_json::from_str(&answer.body).with_context(what)
}

async fn exchange<S>(stream: S, host: &str, path: &str, began: Instant) -> Result<Answer>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // Ends with the connection, which ends when `sender` is dropped.
    tokio::spawn(connection);
    let request = http::Request::get(path)
        .header(http::header::HOST, host)
        .header(http::header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())?;
    let response = sender
        .send_request(request)
        .await
        .context("sending the request")?;
    let status = response.status().as_u16();
    let id = response.headers().get("x-request-id");
    let request_id = id.and_then(|v| v.to_str().ok()).map(ToOwned::to_owned);
    let body = Limited::new(response.into_body(), MAX_BODY).collect().await;
    let body = body
        .map_err(|e| anyhow::anyhow!("reading the answer: {e}"))?
        .to_bytes();
    let body = String::from_utf8_lossy(&body).into_owned();
    Ok(Answer {
        status,
        request_id,
        body,
        took: began.elapsed(),
    })
}

/// A bounded load: `per_second` requests for `span`, spread over doors and hosts in turn.
#[derive(Debug, Clone)]
pub(super) struct Load {
    pub doors: Vec<SocketAddr>,
    pub hosts: Vec<String>,
    pub per_second: u32,
    pub span: Duration,
    pub deadline: Duration,
}

/// What became of a load.
#[derive(Debug, Clone, Default)]
pub(super) struct Tally {
    pub sent: u64,
    pub failed: u64,
    pub slowest: Duration,
    /// The first few failures, in words.
    pub reasons: Vec<String>,
}

impl Load {
    /// Runs it to its end. Requests leave on time whether or not earlier ones have been answered.
    pub async fn run(self) -> Tally {
        let places = Arc::new(Semaphore::new(MAX_IN_FLIGHT));
        let tally = Arc::new(Mutex::new(Tally::default()));
        let number = AtomicU64::new(0);
        let mut beat = interval(Duration::from_secs(1) / self.per_second.max(1));
        beat.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let end = Instant::now() + self.span;
        let mut requests = JoinSet::new();
        while Instant::now() < end {
            beat.tick().await;
            let turn = usize::try_from(number.fetch_add(1, Ordering::Relaxed)).unwrap_or(0);
            let door = self.doors[turn % self.doors.len()];
            let host = self.hosts[turn / self.doors.len() % self.hosts.len()].clone();
            let (tally, deadline) = (tally.clone(), self.deadline);
            let place = places.clone().try_acquire_owned();
            requests.spawn(async move {
                let result = match place {
                    Ok(_place) => get(door, &host, "/", deadline).await,
                    Err(_) => Err(anyhow::anyhow!("{MAX_IN_FLIGHT} requests are open already")),
                };
                tally.lock().await.count(&host, door, result);
            });
            while requests.try_join_next().is_some() {}
        }
        while requests.join_next().await.is_some() {}
        tally.lock().await.clone()
    }
}

impl Tally {
    fn count(&mut self, host: &str, door: SocketAddr, result: Result<Answer>) {
        self.sent += 1;
        let reason = match result {
            Ok(answer) => {
                self.slowest = self.slowest.max(answer.took);
                if (200..300).contains(&answer.status) {
                    return;
                }
                format!(
                    "{host} at {}: {} {}",
                    door.ip(),
                    answer.status,
                    answer.body.trim_end()
                )
            }
            Err(error) => format!("{host} at {}: {error:#}", door.ip()),
        };
        self.failed += 1;
        if self.reasons.len() < MAX_REASONS && !self.reasons.contains(&reason) {
            self.reasons.push(reason);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// Answers 200 to all but every fourth connection.
    async fn flaky() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            for turn in 0.. {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut head = [0; 1024];
                let _ = stream.read(&mut head).await;
                let status = if turn % 4 == 3 { "503 No" } else { "200 OK" };
                let text = format!(
                    "HTTP/1.1 {status}\r\nx-request-id: r{turn}\r\ncontent-length: 2\r\n\r\nhi"
                );
                let _ = stream.write_all(text.as_bytes()).await;
            }
        });
        address
    }

    #[tokio::test]
    async fn a_request_and_a_load_are_counted() {
        let door = flaky().await;
        let answer = get(door, "web.test", "/", Duration::from_secs(5))
            .await
            .unwrap();
        assert_eq!((answer.status, answer.body.as_str()), (200, "hi"));
        assert_eq!(answer.request_id.as_deref(), Some("r0"));
        let load = Load {
            doors: vec![door],
            hosts: vec!["web.test".into()],
            per_second: 200,
            span: Duration::from_millis(200),
            deadline: Duration::from_secs(5),
        };
        let tally = load.run().await;
        assert!(tally.sent >= 30, "{tally:?}");
        assert!(
            tally.failed * 5 > tally.sent && tally.failed * 3 < tally.sent,
            "{tally:?}"
        );
        assert!(tally.reasons[0].contains("503"), "{tally:?}");
    }

    #[tokio::test]
    async fn a_closed_door_is_a_failure_not_a_hang() {
        let door = TcpListener::bind("127.0.0.1:0")
            .await
            .unwrap()
            .local_addr()
            .unwrap();
        assert!(
            get(door, "web.test", "/", Duration::from_secs(5))
                .await
                .is_err()
        );
    }
}
