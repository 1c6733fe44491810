//! Datagrams on a stream between nodes: a length of two bytes, then as many. Empty ones are
//! carried too.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::net::UdpSocket;
use tokio::sync::watch;

use super::super::door::Phase;
use super::super::stream::Conduit;
use super::relay::Moved;

/// The largest there is.
pub(super) const MAX_DATAGRAM: usize = 65_535;

pub(super) async fn write<W: AsyncWrite + Unpin>(to: &mut W, datagram: &[u8]) -> io::Result<()> {
    let length = u16::try_from(datagram.len()).map_err(io::Error::other)?;
    to.write_all(&[&length.to_be_bytes()[..], datagram].concat())
        .await
}

/// The next one; `None` at the end of the stream.
pub(super) async fn read<R: AsyncRead + Unpin>(from: &mut R) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 2];
    if from.read(&mut length[..1]).await? == 0 {
        return Ok(None);
    }
    from.read_exact(&mut length[1..]).await?;
    let mut datagram = vec![0; u16::from_be_bytes(length).into()];
    from.read_exact(&mut datagram).await?;
    Ok(Some(datagram))
}

/// The next one of a socket's. Room for the largest is only taken when there is one: most flows
/// wait most of the time.
pub(super) async fn receive(socket: &UdpSocket) -> io::Result<Vec<u8>> {
    loop {
        socket.readable().await?;
        let mut datagram = Vec::with_capacity(MAX_DATAGRAM);
        match socket.try_recv_buf(&mut datagram) {
            Ok(_) => return Ok(datagram),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

/// Between a peer's stream and an instance here, until the peer ends it or nothing moves.
pub(super) async fn exchange(
    stream: Box<dyn Conduit>,
    socket: &UdpSocket,
    idle: Duration,
    mut phase: watch::Receiver<Phase>,
) -> io::Result<()> {
    let (mut from, mut to) = split(stream);
    let moved = Moved::new();
    let inwards = async {
        while let Some(datagram) = read(&mut from).await? {
            moved.now();
            // Lost on the way, as datagrams are: an instance that listens no more, say.
            let _ = socket.send(&datagram).await;
        }
        Ok(())
    };
    let outwards = async {
        loop {
            // An error: the program does not listen (any more). The door that asks finds another.
            let datagram = receive(socket).await?;
            moved.now();
            write(&mut to, &datagram).await?;
        }
    };
    tokio::select! {
        ended = inwards => ended,
        ended = outwards => ended,
        () = moved.nothing_for(idle) => Ok(()),
        _ = phase.wait_for(|p| *p == Phase::Closed) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn datagrams_keep_their_edges() {
        let (mut near, mut far) = tokio::io::duplex(64);
        let sent: Vec<Vec<u8>> = vec![vec![], vec![1], vec![7; MAX_DATAGRAM], b"end".to_vec()];
        let all = sent.clone();
        tokio::spawn(async move {
            for datagram in &all {
                write(&mut near, datagram).await.unwrap();
            }
        });
        let mut got = Vec::new();
        while let Some(datagram) = read(&mut far).await.unwrap() {
            got.push(datagram);
        }
        assert_eq!(got, sent);
        let (mut near, mut far) = tokio::io::duplex(64);
        near.write_all(&[0, 9, 1]).await.unwrap();
        drop(near);
        let cut = read(&mut far).await.unwrap_err();
        assert_eq!(cut.kind(), io::ErrorKind::UnexpectedEof);
    }
}
