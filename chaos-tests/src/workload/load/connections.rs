//! The connections to one door: kept alive and used again, the last first.

use std::cell::RefCell;
use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

pub(super) type Connection = SendRequest<Full<Bytes>>;

pub(super) struct Connections {
    door: SocketAddr,
    /// As many as were ever used at once, which the load bounds.
    idle: RefCell<Vec<Connection>>,
}

impl Connections {
    pub fn new(door: SocketAddr) -> Self {
        Self {
            door,
            idle: RefCell::default(),
        }
    }

    /// One that is ready for a request.
    pub async fn take(&self) -> Result<Connection> {
        loop {
            let idle = self.idle.borrow_mut().pop();
            let Some(mut connection) = idle else {
                return self.open().await;
            };
            if connection.ready().await.is_ok() {
                return Ok(connection);
            }
        }
    }

    /// Gives back one whose answer was read to its end.
    pub fn give(&self, connection: Connection) {
        if !connection.is_closed() {
            self.idle.borrow_mut().push(connection);
        }
    }

    pub async fn open(&self) -> Result<Connection> {
        let stream = TcpStream::connect(self.door).await.context("connecting")?;
        stream.set_nodelay(true)?;
        let (connection, driver) = http1::handshake(TokioIo::new(stream)).await?;
        // Ends when the connection is dropped on this side or closed on the other; what it says
        // of a request's failure, the request hears as well.
        tokio::task::spawn_local(driver);
        Ok(connection)
    }
}
