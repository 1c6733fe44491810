//! The program of the test image: a web server that answers at once, slowly, or with what a shell
//! script says that it is sent. It runs inside containers, logs a line per request and stops at
//! SIGTERM, also as the first process of its pid namespace.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
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
    let mut stream = BufReader::new(stream);
    while let Some((method, path, body)) = request(&mut stream).await? {
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

/// Method, path and body; `None` when the client has left.
async fn request(stream: &mut BufReader<TcpStream>) -> Result<Option<(String, String, Vec<u8>)>> {
    let mut line = String::new();
    if stream.read_line(&mut line).await? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace().map(ToOwned::to_owned);
    let (method, path) = words.next().zip(words.next()).context("no request line")?;
    let mut length = 0;
    loop {
        let mut header = String::new();
        stream.read_line(&mut header).await?;
        match header.trim_end().split_once(':') {
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                length = value.trim().parse()?;
            }
            Some(_) => {}
            None => break,
        }
    }
    if length > MAX_BODY {
        bail!("a body of {length} bytes");
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    Ok(Some((method, path, body)))
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
