//! The public door: accepts connections, speaks HTTP/1.1 and HTTP/2 with prior knowledge on
//! them (HTTP/3 is `http3`'s), bounds what a client may use up, and closes without cutting anyone off.

use std::convert::Infallible;
use std::future::{Future, pending};
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::BytesMut;
use http::header::CONNECTION;
use http::{HeaderValue, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::body::{Outgoing, Received};
use super::calm::Calm;
use super::headers::{Bounds, Caller, Side};
use super::local::lock;
use super::stream::{Spoken, Stream, WRITE_STALL, sniff};
use super::streams::{self, Streams};
use super::strict::Strict;
use super::workers::{self, Aboard, Arrived};
use super::{Shared, dispatch, express, introduced, passage, secure};

/// A request's head may take this long to arrive, and an idle connection is kept as long.
pub(super) const HEAD_TIME: Duration = Duration::from_secs(10);
pub(super) const MAX_HEAD_BYTES: usize = 64 * 1024;
/// While the door closes: how long the first request of a connection may take to come.
pub(super) const FIRST_TIME: Duration = Duration::from_millis(300);
pub(super) const MAX_STREAMS: u32 = 100;
/// Streams a client may open and reset at once before it is taken for an attack; and streams that its
/// own faults have reset.
pub(super) const MAX_RESETS: usize = 100;
/// Bytes of bodies that an HTTP/2 client may send before they are wanted, on a stream and on all.
const WINDOW: u32 = 1 << 20;
/// Bytes of one stream's answer that wait for the client's window.
const MAX_SEND_BYTES: usize = 128 * 1024;
/// What a client may have us remember of its headers.
const HEADER_TABLE: u32 = 4096;
/// An HTTP/2 connection without a request is kept so long, however well it answers.
const IDLE_TIME: Duration = Duration::from_mins(3);
/// Connections at once; more wait in the kernel's backlog.
pub(super) const MAX_CONNECTIONS: usize = 20_000;
/// HTTP/2 clients must show they are there.
pub(super) const PING_EVERY: Duration = Duration::from_secs(30);
pub(super) const PING_ANSWER: Duration = Duration::from_secs(10);
/// After a failed accept (out of files): without a pause the loop would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The door's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    Open,
    /// Who is in hears with its next answer that this connection ends; others are still let in.
    Leaving,
    /// Nobody new but from other nodes; who is in may finish.
    Closing,
    /// Other nodes' requests are sent elsewhere too.
    Parting,
    /// Whoever is left is cut off.
    Closed,
}

/// Accepts until the door closes.
pub(super) async fn accept(shared: Arc<Shared>, listener: TcpListener, secure: bool) {
    let mut phase = shared.phase.subscribe();
    loop {
        let permit = tokio::select! {
            permit = Arc::clone(&shared.connections).acquire_owned() => permit,
            _ = phase.wait_for(|p| *p >= Phase::Closing) => return,
        };
        let Ok(permit) = permit else {
            return;
        };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = phase.wait_for(|p| *p >= Phase::Closing) => return,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "a connection was gone at once");
            continue;
        }
        shared.counters.connections.fetch_add(1, Ordering::Relaxed);
        let Ok(stream) = stream.into_std() else {
            continue;
        };
        let arrived = Arrived {
            stream,
            client: peer.ip(),
            secure,
            permit,
        };
        if let Some((arrived, aboard)) = workers::settle(&shared, arrived) {
            tokio::spawn(greet(arrived, aboard));
        }
    }
}

/// Serves a connection that an earlier daemon had, if there is a place for it.
pub(super) fn welcome_back(shared: &Arc<Shared>, stream: std::net::TcpStream) {
    let permit = Arc::clone(&shared.connections).try_acquire_owned();
    let (Ok(permit), Ok(peer)) = (permit, stream.peer_addr()) else {
        return;
    };
    let arrived = Arrived {
        stream,
        client: peer.ip(),
        secure: false,
        permit,
    };
    if let Some((arrived, aboard)) = workers::settle(shared, arrived) {
        tokio::spawn(greet(arrived, aboard));
    }
}

/// Serves a client on this thread.
pub(super) async fn greet(arrived: Arrived, aboard: Aboard) {
    match TcpStream::from_std(arrived.stream) {
        Ok(stream) => arrive(aboard.shared(), stream, arrived.client, arrived.secure).await,
        Err(error) => tracing::warn!(%error, "a connection cannot be served"),
    }
    drop(arrived.permit);
}

/// Finds out who a client is, and makes its connection a secure one where that is its port.
async fn arrive(shared: &Arc<Shared>, stream: TcpStream, client: IpAddr, secure: bool) {
    let (stream, seen, address) = if shared.limits.proxy_protocol {
        let Ok(Ok(introduced)) = timeout(HEAD_TIME, introduced(stream, client)).await else {
            return;
        };
        introduced
    } else {
        (stream, Vec::new(), client)
    };
    let caller = Caller {
        address,
        secure,
        inside: None,
    };
    if !secure {
        return guest(shared, (stream, seen), caller).await;
    }
    // What only a container can read, another port's room has: by the name asked for.
    let Some((stream, seen)) = Box::pin(passage::divert(shared, stream, seen, address)).await
    else {
        return;
    };
    // On the heap, so that plain connections do without its room.
    let inside = Box::pin(secure::handshake(shared, stream, seen));
    if let Some(inside) = inside.await {
        Box::pin(guest(shared, (inside, Vec::new()), caller)).await;
    }
}

/// Serves a client: by the express way as long as that goes, then by the general one.
async fn guest<S: Stream + 'static>(
    shared: &Arc<Shared>,
    (stream, seen): (S, Vec<u8>),
    caller: Caller<'static>,
) {
    let Some(handed) = express::serve(shared, (stream, seen), caller).await else {
        return;
    };
    let begun = Arc::new(Mutex::new(handed.resume));
    let seen = BytesMut::from(handed.seen.as_slice());
    let answer = move |shared, request: Request<Incoming>| {
        let resume = lock(&begun).take();
        let request = request.map(Received::from);
        async move { dispatch::answer(&shared, request, caller, resume).await }
    };
    serve(shared, (handed.stream, seen), Side::Client, answer).await;
}

/// Reads who the load balancer says it speaks for.
async fn introduced<S: Stream>(
    mut stream: S,
    balancer: IpAddr,
) -> io::Result<(S, Vec<u8>, IpAddr)> {
    let mut seen = Vec::new();
    loop {
        let read = introduced::read(&seen).map_err(io::Error::other)?;
        if let Some(introduction) = read {
            seen.drain(..introduction.length);
            return Ok((stream, seen, introduction.client.unwrap_or(balancer)));
        }
        if stream.read_buf(&mut seen).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// Serves one connection or stream, of which some was read before, with `answer`. As the door closes, for peers when it is closed, it takes no further
/// request, of which its client hears before where the protocol has words for it; when the door is closed it is cut off.
pub(super) async fn serve<S, F, R>(
    shared: &Arc<Shared>,
    (stream, seen): (S, BytesMut),
    from: Side,
    answer: F,
) where
    S: Stream + 'static,
    F: Fn(Arc<Shared>, Request<Incoming>) -> R + Send + 'static,
    R: Future<Output = Response<Outgoing>> + Send + 'static,
{
    let until = match from {
        Side::Client => Phase::Closing,
        Side::Peer => Phase::Closed,
    };
    let mut phase = shared.phase.subscribe();
    let closing = async {
        let closing = phase.wait_for(|p| *p >= until).await.map(drop);
        // Let in a moment ago, its first request is on its way.
        sleep(FIRST_TIME).await;
        closing
    };
    let sniffed = tokio::select! {
        biased;
        sniffed = timeout(HEAD_TIME, sniff(stream, seen)) => sniffed,
        _ = closing => return,
    };
    let Ok(Ok((stream, spoken))) = sniffed else {
        return;
    };
    let answering = Arc::clone(shared);
    let service = service_fn(move |request: Request<Incoming>| {
        let (shared, version) = (Arc::clone(&answering), request.version());
        // It is large, and what runs it moves it about.
        let answered = Box::pin(answer(Arc::clone(&shared), request));
        async move {
            let mut response = answered.await;
            if version >= Version::HTTP_2 {
                let own = || Instant::now() + WRITE_STALL;
                streams::taken_by(response.body().until().unwrap_or_else(own));
            }
            let leaving = until < Phase::Closed && *shared.phase.borrow() > Phase::Open;
            let switches = response.status() == StatusCode::SWITCHING_PROTOCOLS;
            if leaving && version < Version::HTTP_2 && !switches {
                let close = HeaderValue::from_static("close");
                response.headers_mut().insert(CONNECTION, close);
            }
            Ok::<_, Infallible>(response)
        }
    });
    match spoken {
        Spoken::Http1 => {
            let io = TokioIo::new(Strict::new(stream, from.bounds()));
            let connection = http1_settings(from.bounds()).serve_connection(io, service);
            drive(connection.with_upgrades(), phase, until, pending()).await;
        }
        Spoken::Http2 => {
            let streams = Streams::new();
            let io = TokioIo::new(Calm::new(stream));
            let connection =
                http2_settings(streams.clone(), from.bounds()).serve_connection(io, service);
            let until = match until {
                Phase::Closing => Phase::Leaving,
                other => other,
            };
            drive(connection, phase, until, streams.idle_for(IDLE_TIME)).await;
        }
    }
}

fn http1_settings(bounds: Bounds) -> http1::Builder {
    let mut settings = http1::Builder::new();
    settings
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_headers(bounds.headers)
        .max_buf_size(bounds.bytes);
    settings
}

fn http2_settings(streams: Streams, bounds: Bounds) -> http2::Builder<Streams> {
    let mut settings = http2::Builder::new(streams);
    settings
        .timer(TokioTimer::new())
        .max_header_list_size(u32::try_from(bounds.bytes).unwrap_or(u32::MAX))
        .enable_connect_protocol()
        .max_concurrent_streams(MAX_STREAMS)
        .max_pending_accept_reset_streams(MAX_RESETS)
        .max_local_error_reset_streams(MAX_RESETS)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .max_send_buf_size(MAX_SEND_BYTES)
        .header_table_size(HEADER_TABLE)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_ANSWER);
    settings
}

/// A connection that can be asked to end after what it is doing.
trait Graceful: Future<Output = Result<(), hyper::Error>> {
    fn finish(self: Pin<&mut Self>);
}

impl<I, S> Graceful for http1::UpgradeableConnection<I, S>
where
    Self: Future<Output = Result<(), hyper::Error>>,
    I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
    S: hyper::service::HttpService<Incoming, ResBody = Outgoing>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    fn finish(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

impl<I, S> Graceful for http2::Connection<I, S, Streams>
where
    Self: Future<Output = Result<(), hyper::Error>>,
    I: hyper::rt::Read + hyper::rt::Write + Unpin,
    S: hyper::service::HttpService<Incoming, ResBody = Outgoing>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    Streams: hyper::rt::bounds::Http2ServerConnExec<S::Future, Outgoing>,
{
    fn finish(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

async fn drive(
    connection: impl Graceful,
    mut phase: watch::Receiver<Phase>,
    until: Phase,
    idle: impl Future<Output = ()>,
) {
    let mut connection = std::pin::pin!(connection);
    let mut ended = None;
    tokio::select! {
        done = connection.as_mut() => ended = Some(done),
        _ = phase.wait_for(|p| *p >= until) => connection.as_mut().finish(),
        () = idle => connection.as_mut().finish(),
    }
    if ended.is_none() {
        tokio::select! {
            done = connection.as_mut() => ended = Some(done),
            _ = phase.wait_for(|p| *p == Phase::Closed) => {}
        }
    }
    if let Some(Err(error)) = ended {
        tracing::trace!(%error, "a connection ended");
    }
}

#[cfg(test)]
mod tests {
    use hyper::client::conn::http2 as client;
    use hyper_util::rt::TokioExecutor;
    use tokio::io::duplex;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_http2_connection_without_requests_ends_in_order() {
        let (near, far) = duplex(64 * 1024);
        let streams = Streams::new();
        let service = service_fn(|_: Request<Incoming>| async {
            Ok::<_, Infallible>(Response::new(Outgoing::Own(None)))
        });
        let settings = http2_settings(streams.clone(), Bounds::CLIENT);
        let served = settings.serve_connection(TokioIo::new(Calm::new(far)), service);
        let phase = watch::Sender::new(Phase::Open);
        let idle = async move { streams.idle_for(IDLE_TIME).await };
        tokio::spawn(drive(served, phase.subscribe(), Phase::Leaving, idle));
        let shaken = client::handshake(TokioExecutor::new(), TokioIo::new(near)).await;
        let (mut sender, connection) = shaken.unwrap();
        let begun = Instant::now();
        let ended = tokio::spawn(connection);
        let ask = || {
            let request = Request::builder().uri("http://web.test/");
            request
                .body(http_body_util::Empty::<bytes::Bytes>::new())
                .unwrap()
        };
        for _ in 0..3 {
            sleep(IDLE_TIME * 9 / 10).await;
            assert!(
                sender
                    .send_request(ask())
                    .await
                    .unwrap()
                    .status()
                    .is_success()
            );
        }
        ended.await.unwrap().unwrap();
        assert!(begun.elapsed() >= IDLE_TIME * 37 / 10);
        assert!(begun.elapsed() < 4 * IDLE_TIME);
    }
}
