//! The program of the test image, which every service of a test runs: a web server that says who it
//! is, does what a request asks of it, and writes down whose requests it served. It knows nothing of
//! worlds, clients or checks; they read what it says.
//!
//! | request | answer |
//! | --- | --- |
//! | `GET /` | `box` at once |
//! | `GET /slow` | `slow` after 200 ms |
//! | `POST /sh` | what a shell says to the body |
//! | `POST /busy` | what the node says to the body as a line about a lease |
//! | any with `upgrade:` | 101, then an echo until the client says no more |
//! | `/do?delay=50ms&status=503…` | see [`behaviour`] |
//! | HTTP/2 elsewhere | the version and the body, with a trailer |
//!
//! A request with `x-load-id` is one of a load's: its answer binds the id and the server's identity,
//! and it is written to stdout before it is handled.

mod answer;
pub mod behaviour;
mod exchange;
pub mod identity;
mod lease;
pub mod probe;
pub mod served;
pub mod settings;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};

use exchange::Server;
use identity::Identity;
use served::Served;
use settings::Settings;

/// How long nothing is accepted after an accept failed, for instance for lack of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// Serves until SIGTERM; the exit code.
pub async fn serve(settings: Settings, identity: Identity) -> Result<u8> {
    let mut stop = signal(SignalKind::terminate())?;
    tokio::select! {
        () = tokio::time::sleep(settings.start_delay) => {}
        _ = stop.recv(), if !settings.ignore_term => return Ok(settings.exit_code.unwrap_or(0)),
    }
    let listener = TcpListener::bind(("0.0.0.0", settings.port)).await?;
    tokio::select! {
        () = accept(&listener, &settings, identity) => {}
        () = terminated(&mut stop, settings.ignore_term) => {}
    }
    Ok(settings.exit_code.unwrap_or(0))
}

/// Ends when the process is asked to and means to obey.
async fn terminated(stop: &mut tokio::signal::unix::Signal, ignore: bool) {
    loop {
        stop.recv().await;
        if !ignore {
            return;
        }
        println!("box ignores SIGTERM");
    }
}

/// Accepts connections for ever.
pub async fn accept(listener: &TcpListener, settings: &Settings, identity: Identity) {
    println!("box begins {identity}");
    let server = Arc::new(Server::new(identity, Served::default(), settings));
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let server = Arc::clone(&server);
                tokio::spawn(async move {
                    // A client that leaves early, or that was left on purpose, is nothing to tell.
                    connection(stream, server).await.ok();
                });
            }
            Err(error) => {
                eprintln!("accepting: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, server: Arc<Server>) -> Result<()> {
    stream.set_nodelay(true)?;
    // A method of HTTP/1.1 has three letters and more, and none begins like HTTP/2's preface.
    let mut first = [0; 3];
    stream.peek(&mut first).await?;
    let service = service_fn(move |request: Request<Incoming>| {
        let server = Arc::clone(&server);
        async move { server.handle(request).await }
    });
    let io = TokioIo::new(stream);
    if first == *b"PRI" {
        let http2 = http2::Builder::new(TokioExecutor::new());
        http2.serve_connection(io, service).await?;
    } else {
        let http1 = http1::Builder::new();
        http1.serve_connection(io, service).with_upgrades().await?;
    }
    Ok(())
}
