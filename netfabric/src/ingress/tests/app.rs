//! An application to stand behind the door, and a client to stand before it.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, stream};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body::Frame;
use http_body_util::{BodyExt, Empty, Full, StreamBody, combinators::BoxBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

type Body = BoxBody<Bytes, Infallible>;
const PATIENCE: Duration = Duration::from_secs(20);

/// Serves until dropped. Paths: `/` its name, `/headers` what it was sent, `/echo` the body back
/// with its trailers, `/whole` the body once all of it was read, `/slow/MS`, `/trailers`, `/stream/COUNT`,
/// `/upgrade` an echo of bytes, `/reset` breaks off, `/flaky` breaks off the first time only. A request
/// with `x-order` is sent on as it says, under the name in `x-by`, unless it is a replay; `/loop` is sent
/// on always, and `/whole` after all of the body was read.
pub struct App {
    pub addr: SocketAddr,
    pub seen: Arc<Seen>,
    task: JoinHandle<()>,
}

#[derive(Default)]
pub struct Seen {
    pub connections: AtomicU32,
    /// Connections that are open.
    pub open: AtomicU32,
    pub requests: AtomicU32,
    pub at_once: AtomicU32,
    pub most_at_once: AtomicU32,
}

struct Open(Arc<Seen>);

impl Open {
    fn new(seen: &Arc<Seen>) -> Self {
        seen.open.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(seen))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Drop for App {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl App {
    pub async fn start(name: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let seen = Arc::new(Seen::default());
        let task = tokio::spawn(serve(listener, name.to_owned(), Arc::clone(&seen)));
        Self { addr, seen, task }
    }
}

async fn serve(listener: TcpListener, name: String, seen: Arc<Seen>) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        seen.connections.fetch_add(1, Ordering::SeqCst);
        let (name, seen) = (name.clone(), Arc::clone(&seen));
        connections.spawn(async move {
            let open = Open::new(&seen);
            let service = service_fn(move |request| {
                let (name, seen) = (name.clone(), Arc::clone(&seen));
                async move { counted(&name, &seen, request).await }
            });
            let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            let io = TokioIo::new(stream);
            let _ended = server.serve_connection_with_upgrades(io, service).await;
            drop(open);
        });
    }
}

async fn counted(
    name: &str,
    seen: &Seen,
    request: Request<Incoming>,
) -> Result<Response<Body>, std::io::Error> {
    let nth = seen.requests.fetch_add(1, Ordering::SeqCst);
    let now = seen.at_once.fetch_add(1, Ordering::SeqCst) + 1;
    seen.most_at_once.fetch_max(now, Ordering::SeqCst);
    let path = request.uri().path().to_owned();
    let answer = match path.as_str() {
        "/reset" => Err(std::io::ErrorKind::ConnectionReset.into()),
        _ if path.strip_prefix("/breaks/") == Some(name) => {
            Err(std::io::ErrorKind::ConnectionReset.into())
        }
        "/flaky" if nth == 0 => Err(std::io::ErrorKind::ConnectionReset.into()),
        _ => Ok(respond(name, &path, request).await),
    };
    seen.at_once.fetch_sub(1, Ordering::SeqCst);
    answer
}

async fn respond(name: &str, path: &str, mut request: Request<Incoming>) -> Response<Body> {
    if let Some(order) = request.headers().get("x-order").cloned() {
        let told = [
            "selvedge-replay-src",
            "fly-replay-src",
            "selvedge-replay-failed",
        ];
        let is_replay = told
            .iter()
            .any(|name| request.headers().contains_key(*name));
        if path == "/whole" && !is_replay {
            request.body_mut().collect().await.unwrap();
        }
        if path == "/loop" || !is_replay {
            let by = request.headers().get("x-by").cloned();
            let by = by.map_or("selvedge-replay".to_owned(), |by| {
                by.to_str().unwrap().to_owned()
            });
            let response = Response::builder().status(409).header(by, order);
            let body = Full::new(Bytes::from("not for clients")).boxed();
            return response.body(body).unwrap();
        }
    }
    if let Some(millis) = path.strip_prefix("/slow/") {
        sleep(Duration::from_millis(millis.parse().unwrap())).await;
        return text(name);
    }
    if let Some(count) = path.strip_prefix("/stream/") {
        let chunks = stream::iter(0..count.parse().unwrap()).map(|_: u32| vec![7u8; 64 * 1024]);
        let frames = chunks.map(|c| Ok(Frame::data(Bytes::from(c))));
        return Response::new(BodyExt::boxed(StreamBody::new(frames)));
    }
    match path {
        "/headers" => {
            let lines = request.headers().iter();
            let lines = lines.map(|(n, v)| format!("{n}: {}\n", v.to_str().unwrap()));
            let version = format!("{:?} {}\n", request.version(), request.uri());
            text(&lines.fold(version, |all, line| all + &line))
        }
        "/echo" => {
            let body = request.into_body().map_err(|e| panic!("{e}")).boxed();
            let mut response = Response::new(body);
            let trailer = HeaderValue::from_static("x-sum");
            response.headers_mut().insert(header::TRAILER, trailer);
            response
        }
        "/whole" => match request.into_body().collect().await {
            Ok(body) => Response::new(Full::new(body.to_bytes()).boxed()),
            Err(_) => text("broken off"),
        },
        "/trailers" => {
            let mut trailers = HeaderMap::new();
            trailers.insert("x-sum", HeaderValue::from_static("42"));
            let frames = [Frame::data(Bytes::from("body")), Frame::trailers(trailers)];
            let body = StreamBody::new(stream::iter(frames.map(Ok)));
            let response = Response::builder().header(header::TRAILER, "x-sum");
            response.body(BodyExt::boxed(body)).unwrap()
        }
        "/upgrade" => {
            let upgrade = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                let mut io = TokioIo::new(upgrade.await.unwrap());
                let mut buffer = [0; 1024];
                while let Ok(count) = io.read(&mut buffer).await {
                    if count == 0 || io.write_all(&buffer[..count]).await.is_err() {
                        break;
                    }
                }
            });
            let response = Response::builder()
                .status(StatusCode::SWITCHING_PROTOCOLS)
                .header(header::CONNECTION, "upgrade")
                .header(header::UPGRADE, "echo");
            response.body(Empty::new().boxed()).unwrap()
        }
        _ => text(name),
    }
}

fn text(text: &str) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::from(text.to_owned())).boxed());
    let headers = response.headers_mut();
    headers.insert("x-selvedge-refused", HeaderValue::from_static("a lie"));
    headers.insert("keep-alive", HeaderValue::from_static("timeout=5"));
    response
}

#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: String,
    pub trailers: Option<HeaderMap>,
}

impl Reply {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |v| v.to_str().unwrap())
    }
}

/// One request on a connection of its own.
pub async fn send<B>(door: SocketAddr, request: Request<B>) -> Reply
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let sent = async {
        let stream = TcpStream::connect(door).await.unwrap();
        let shaken = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = shaken.unwrap();
        tokio::spawn(connection);
        read(sender.send_request(request).await.unwrap()).await
    };
    timeout(PATIENCE, sent)
        .await
        .expect("the door answers in time")
}

pub async fn read(response: Response<Incoming>) -> Reply {
    let (parts, body) = response.into_parts();
    let body = body.collect().await.unwrap();
    let trailers = body.trailers().cloned();
    Reply {
        status: parts.status.as_u16(),
        headers: parts.headers,
        body: String::from_utf8_lossy(&body.to_bytes()).into_owned(),
        trailers,
    }
}

pub fn request(path: &str) -> http::request::Builder {
    Request::builder()
        .uri(path)
        .header(header::HOST, "web.edge.test")
}

pub async fn get(door: SocketAddr, path: &str) -> Reply {
    send(door, request(path).body(Empty::<Bytes>::new()).unwrap()).await
}

pub async fn post(door: SocketAddr, path: &str, body: impl Into<Bytes>) -> Reply {
    let request = request(path).method("POST");
    send(door, request.body(Full::new(body.into())).unwrap()).await
}

/// Bytes in, bytes out, until the door closes the connection.
pub async fn raw(door: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(door).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    let _reset = timeout(PATIENCE, read)
        .await
        .expect("the door closes in time");
    String::from_utf8_lossy(&answer).into_owned()
}
