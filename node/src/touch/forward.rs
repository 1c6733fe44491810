//! A connection to a port of an instance of this node: its own address and no other.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use netfabric::wire::api::{ApiError, ErrorCode};
use scheduler::model::InstanceId;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{Connection, refused};
use crate::runtime::{self, Runtime};

/// An instance is a bridge away.
const CONNECT: Duration = Duration::from_secs(5);

pub(super) async fn connect(
    runtime: &dyn Runtime,
    id: &InstanceId,
    port: u16,
) -> Result<TcpStream, ApiError> {
    // A frozen program would take the connection and never answer.
    runtime.thaw(id).await.map_err(|error| refused(id, error))?;
    let address = runtime::address(&runtime.folder(id)).ok_or_else(|| {
        ApiError::new(
            ErrorCode::Conflict,
            format!("instance {id} has no address yet"),
        )
    })?;
    let failed = |why: &dyn std::fmt::Display| {
        let message = format!("port {port} of instance {id} takes no connection: {why}");
        ApiError::new(ErrorCode::Unreachable, message)
    };
    match timeout(CONNECT, TcpStream::connect(SocketAddr::new(address, port))).await {
        Ok(Ok(stream)) => {
            // Somebody types at the other end, perhaps.
            let _ = stream.set_nodelay(true);
            Ok(stream)
        }
        Ok(Err(error)) => Err(failed(&error)),
        Err(_) => Err(failed(&"no answer")),
    }
}

/// Bytes both ways until both have ended; either may end first.
pub(super) async fn join(mut connection: impl Connection, mut port: TcpStream) -> io::Result<()> {
    tokio::io::copy_bidirectional(&mut connection, &mut port)
        .await
        .map(drop)
}
