//! `port-forward`: ports of this machine's loopback that lead to ports of an instance, until ctrl-c.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::Context;
use futures::future::select_all;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::args::{PortForwardArgs, Ports};
use crate::failure::Failure;
use crate::printer;
use crate::session::Session;

/// Connections at once; more wait to be accepted.
const MAX_CONNECTIONS: usize = 128;

pub async fn run(args: PortForwardArgs, session: &Session) -> anyhow::Result<()> {
    // Said at once, not at the first connection.
    let instance = session.instance_of(&args.name).await?;
    let mut listening = Vec::new();
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    for ports in &args.ports {
        let at = SocketAddr::from((Ipv4Addr::LOCALHOST, ports.local));
        let listener = TcpListener::bind(at).await;
        let listener = listener.with_context(|| format!("cannot listen on {at}"))?;
        let at = listener.local_addr()?;
        // Data: with local port 0 somebody must learn which it became.
        printer::line(format!("{at} -> {instance} port {}", ports.remote))?;
        let accepting = accept(
            listener,
            *ports,
            args.name.clone(),
            session.clone(),
            room.clone(),
        );
        listening.push(Box::pin(accepting));
    }
    tokio::select! {
        (failed, ..) = select_all(listening) => failed,
        _ = tokio::signal::ctrl_c() => Ok(()),
    }
}

async fn accept(
    listener: TcpListener,
    ports: Ports,
    name: String,
    session: Session,
    room: Arc<Semaphore>,
) -> anyhow::Result<()> {
    loop {
        let permit = room.clone().acquire_owned().await?;
        let (stream, _) = listener.accept().await?;
        let (name, session) = (name.clone(), session.clone());
        tokio::spawn(async move {
            let _permit = permit;
            if let Err(error) = forward(stream, ports.remote, &name, &session).await {
                printer::failure(&Failure::from_error(error));
            }
        });
    }
}

async fn forward(
    mut stream: TcpStream,
    port: u16,
    name: &str,
    session: &Session,
) -> anyhow::Result<()> {
    // Anew for each: instances of a service come and go.
    let instance = session.instance_of(name).await?;
    let what = format!("port-forward?port={port}");
    let connection = session.touch(&instance, &what, &()).await?;
    let mut connection = TokioIo::new(connection);
    // Either side may break it off; both know.
    let _ = tokio::io::copy_bidirectional(&mut stream, &mut connection).await;
    Ok(())
}
