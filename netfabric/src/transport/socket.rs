//! The UDP socket under QUIC. The library's own asks the kernel to tell of room for more as well as of what came, and
//! so is woken after each packet that it sent, when the kernel lets go of it; and it asks for more until there is
//! nothing. This one asks for room only when there was none, and takes a short batch for all there was.

use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use quinn::udp::{BATCH_SIZE, RecvMeta, Transmit, UdpSocketState};
use quinn::{AsyncUdpSocket, UdpPoller};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

#[derive(Debug)]
pub(super) struct Socket {
    incoming: AsyncFd<UdpSocket>,
    state: UdpSocketState,
    /// There was no room to send when it was last tried.
    full: AtomicBool,
}

impl Socket {
    /// In the runtime that this is called in.
    pub(super) fn new(socket: UdpSocket) -> io::Result<Self> {
        let state = UdpSocketState::new((&socket).into())?;
        let incoming = watched(socket, Interest::READABLE)?;
        Ok(Self {
            incoming,
            state,
            full: AtomicBool::new(false),
        })
    }

    fn socket(&self) -> &UdpSocket {
        self.incoming.get_ref()
    }
}

fn would_block(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
}

#[expect(
    unsafe_code,
    reason = "there is no safe way to be told of one thing alone"
)]
fn watched(socket: UdpSocket, interest: Interest) -> io::Result<AsyncFd<UdpSocket>> {
    // SAFETY: the socket owns its descriptor and has the same until it is dropped, with what watches it.
    let watched = unsafe { AsyncFd::register_with_interest(socket, interest) };
    watched.map_err(io::Error::from)
}

impl AsyncUdpSocket for Socket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Room {
            socket: self,
            waits: None,
        })
    }

    fn try_send(&self, transmit: &Transmit) -> io::Result<()> {
        let sent = self.state.send(self.socket().into(), transmit);
        if sent.as_ref().is_err_and(would_block) {
            self.full.store(true, Ordering::Relaxed);
        }
        sent
    }

    fn poll_recv(
        &self,
        cx: &mut Context,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let most = bufs.len().min(BATCH_SIZE);
        loop {
            let mut ready = ready!(self.incoming.poll_read_ready(cx))?;
            let received = self.state.recv(self.socket().into(), bufs, meta);
            if received.as_ref().map_or_else(would_block, |n| *n < most) {
                // What came since then is told of anew.
                ready.clear_ready();
            }
            match received {
                Err(error) if would_block(&error) => {}
                received => return Poll::Ready(received),
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket().local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.state.max_gso_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.state.gro_segments()
    }

    fn may_fragment(&self) -> bool {
        self.state.may_fragment()
    }
}

/// Asked before each packet, it knows of room until there was none. Then the kernel is asked, through a file
/// descriptor of its own for as long as it is waited.
#[derive(Debug)]
struct Room {
    socket: Arc<Socket>,
    waits: Option<AsyncFd<UdpSocket>>,
}

impl UdpPoller for Room {
    fn poll_writable(mut self: Pin<&mut Self>, cx: &mut Context) -> Poll<io::Result<()>> {
        let waits = match self.waits.take() {
            Some(waits) => waits,
            None if !self.socket.full.load(Ordering::Relaxed) => return Poll::Ready(Ok(())),
            None => watched(self.socket.socket().try_clone()?, Interest::WRITABLE)?,
        };
        let room = waits.poll_write_ready(cx).map_ok(drop);
        if room.is_pending() {
            self.waits = Some(waits);
        } else {
            self.socket.full.store(false, Ordering::Relaxed);
        }
        room
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::task::Waker;
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    const BATCH: usize = 4;

    fn socket() -> Arc<Socket> {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_nonblocking(true).unwrap();
        Arc::new(Socket::new(socket).unwrap())
    }

    fn to<'a>(destination: &Socket, contents: &'a [u8]) -> Transmit<'a> {
        Transmit {
            destination: destination.local_addr().unwrap(),
            ecn: None,
            contents,
            segment_size: None,
            src_ip: None,
        }
    }

    /// How many datagrams a call gave.
    async fn receive(socket: &Socket) -> usize {
        let mut room = [[0; 128]; BATCH];
        let mut bufs = room.each_mut().map(|b| IoSliceMut::new(b));
        let mut meta = [RecvMeta::default(); BATCH];
        let got = poll_fn(|cx| socket.poll_recv(cx, &mut bufs, &mut meta)).await;
        let datagrams = |m: &RecvMeta| m.len / m.stride;
        meta[..got.unwrap()].iter().map(datagrams).sum()
    }

    #[tokio::test]
    async fn whatever_comes_is_told_of_in_batches_short_and_full() {
        let (from, into) = (socket(), socket());
        for sent in [1, BATCH - 1, BATCH, BATCH + 1, 3 * BATCH] {
            for _ in 0..sent {
                from.try_send(&to(&into, b"word")).unwrap();
            }
            let mut got = 0;
            while got < sent {
                let more = timeout(Duration::from_secs(10), receive(&into)).await;
                got += more.expect("something is left");
            }
            assert_eq!(got, sent);
        }
        let nothing = timeout(Duration::from_millis(50), receive(&into));
        assert!(nothing.await.is_err());
    }

    #[tokio::test]
    async fn the_kernel_is_asked_for_room_only_when_there_was_none() {
        let socket = socket();
        let mut rooms = [(); 2].map(|()| socket.clone().create_io_poller());
        let now = rooms[0]
            .as_mut()
            .poll_writable(&mut Context::from_waker(Waker::noop()));
        assert!(now.is_ready());
        for _ in 0..3 {
            socket.full.store(true, Ordering::Relaxed);
            for room in &mut rooms {
                let now = room
                    .as_mut()
                    .poll_writable(&mut Context::from_waker(Waker::noop()));
                assert!(now.is_pending(), "it is not known yet");
            }
            for room in &mut rooms {
                let told = poll_fn(|cx| room.as_mut().poll_writable(cx));
                let told = timeout(Duration::from_secs(10), told).await;
                told.expect("there is room").unwrap();
            }
            assert!(!socket.full.load(Ordering::Relaxed));
        }
    }
}
