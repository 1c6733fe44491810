//! The program of the test image: a web server that answers at once, slowly, or with what a shell
//! script says that it is sent; that switches to an echo, and speaks HTTP/2 to who begins with it.
//! It runs inside containers, logs a line per request and stops at SIGTERM, also as the first
//! process of its pid namespace.

use std::convert::Infallible;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};

const PORT: u16 = 8080;
/// Long enough for requests to overlap.
const SLOW: Duration = Duration::from_millis(200);
const MAX_BODY: usize = 1 << 20;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let mut stop = signal(SignalKind::terminate())?;
    let listener = TcpListener::bind(("0.0.0.0", PORT)).await?;
    loop {
        tokio::select! {
            _ = stop.recv() => return Ok(()),
            accepted = listener.accept() => {
                let (stream, _) = accepted?;
                tokio::spawn(async move {
                    if let Err(error) = connection(stream).await {
                        eprintln!("{error:#}");
                    }
                });
            }
        }
    }
}

/// Requests of one connection, one after the other, until the client leaves.
async fn connection(stream: TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    // A method of HTTP/1.1 has three letters and more, and none begins like HTTP/2's preface.
    let mut first = [0; 3];
    stream.peek(&mut first).await?;
    if first == *b"PRI" {
        return http2(stream).await;
    }
    let mut stream = BufReader::new(stream);
    while let Some(Request {
        method,
        path,
        switches,
        body,
    }) = request(&mut stream).await?
    {
        if switches {
            return echo(stream).await;
        }
        let (status, text) = match (method.as_str(), path.as_str()) {
            ("GET", "/") => ("200 OK", "box\n".to_owned()),
            ("GET", "/slow") => {
                tokio::time::sleep(SLOW).await;
                ("200 OK", "slow\n".to_owned())
            }
            ("POST", "/sh") => ("200 OK", shell(&body).await?),
            _ => ("404 Not Found", format!("no {path}\n")),
        };
        println!("{method} {path} {status}");
        let length = text.len();
        let head = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\n\r\n");
        stream
            .write_all(&[head.as_bytes(), text.as_bytes()].concat())
            .await?;
        stream.flush().await?;
    }
    Ok(())
}

/// Switches protocol: what comes goes back, until the client says no more.
async fn echo(mut stream: BufReader<TcpStream>) -> Result<()> {
    let head = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n";
    stream.write_all(head.as_bytes()).await?;
    println!("echo begins");
    let (mut from, mut to) = tokio::io::split(stream);
    tokio::io::copy(&mut from, &mut to).await?;
    to.shutdown().await?;
    println!("echo ends");
    Ok(())
}

/// HTTP/2: the request's body comes back, with a trailer.
async fn http2(stream: TcpStream) -> Result<()> {
    let service = hyper::service::service_fn(async |request: hyper::Request<Incoming>| {
        let version = request.version();
        let body = request.into_body().collect().await?.to_bytes();
        let mut trailers = HeaderMap::new();
        trailers.insert(
            HeaderName::from_static("box-ends"),
            HeaderValue::from_static("well"),
        );
        let said = Bytes::from([format!("{version:?} ").as_bytes(), &body].concat());
        let said = Full::new(said).with_trailers(async { Some(Ok::<_, Infallible>(trailers)) });
        // Hides the length: who knows it may leave before the trailers.
        let said = said.map_frame(|frame| frame);
        Ok::<_, hyper::Error>(hyper::Response::new(said))
    });
    hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(stream), service)
        .await?;
    Ok(())
}

struct Request {
    method: String,
    path: String,
    /// Whether it asks for another protocol.
    switches: bool,
    body: Vec<u8>,
}

/// The next request; `None` when the client has left.
async fn request(stream: &mut BufReader<TcpStream>) -> Result<Option<Request>> {
    let mut line = String::new();
    if stream.read_line(&mut line).await? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace().map(ToOwned::to_owned);
    let (method, path) = words.next().zip(words.next()).context("no request line")?;
    let (mut length, mut switches) = (0, false);
    loop {
        let mut header = String::new();
        stream.read_line(&mut header).await?;
        match header.trim_end().split_once(':') {
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                length = value.trim().parse()?;
            }
            Some((name, _)) => switches |= name.eq_ignore_ascii_case("upgrade"),
            None => break,
        }
    }
    if length > MAX_BODY {
        bail!("a body of {length} bytes");
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    Ok(Some(Request {
        method,
        path,
        switches,
        body,
    }))
}

/// What `/bin/sh` says to a script, errors included.
async fn shell(script: &[u8]) -> Result<String> {
    let script = format!("exec 2>&1\n{}", String::from_utf8_lossy(script));
    let shell = Command::new("/bin/sh")
        .arg("-c")
        .arg(script)
        .stdin(Stdio::null())
        .output();
    Ok(String::from_utf8_lossy(&shell.await?.stdout).into_owned())
}
