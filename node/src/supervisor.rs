//! Whoever starts the daemon and starts it again: systemd, or another that speaks as it does
//! (`sd_notify(3)`, `sd_listen_fds(3)`). It hears when the daemon serves and when it stops, and keeps the
//! front door's sockets and those of DNS from one daemon to the next. Without one everything goes on as
//! well, but who comes while no daemon runs is refused.

use std::env;
use std::net::TcpListener;
use std::os::fd::{BorrowedFd, OwnedFd};

use listenfd::ListenFd;
use netfabric::sockets::{Handed, SocketStore, Sockets};
use rustix::net::sockopt;
use sd_notify::NotifyState;

/// The sockets that the daemon before this one left, and a keeper for new ones. To be called before
/// there is a second thread: it changes the environment.
pub fn sockets() -> Sockets {
    let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
    let names: Vec<_> = names.split(':').collect();
    let mut handed = ListenFd::from_env();
    let sockets = (0..handed.len()).filter_map(|at| {
        let name = names.get(at).copied().unwrap_or_default();
        if Handed::is_part(name) {
            // One of the two ends, or what is held between them.
            let end = handed.take_tcp_listener(at);
            let part = end.map(|end| end.map(OwnedFd::from)).or_else(|_| {
                let held = handed.take_unix_listener(at);
                held.map(|held| held.map(OwnedFd::from))
            });
            return part.ok()?.map(|fd| Handed::Part(name.to_owned(), fd));
        }
        let tcp = handed.take_tcp_listener(at);
        let taken = match tcp {
            Ok(socket) => Ok(socket.map(listener_or_connection)),
            Err(_) => handed
                .take_udp_socket(at)
                .map(|socket| socket.map(Handed::Udp)),
        };
        taken.unwrap_or_else(|error| {
            tracing::warn!(%error, "the supervisor handed over what is no socket of a door");
            None
        })
    });
    let store: Option<Box<dyn SocketStore>> = env::var_os("NOTIFY_SOCKET")
        .is_some()
        .then(|| Box::new(Supervisor) as _);
    let sockets = sockets.filter(|socket| socket.set_nonblocking().is_ok());
    Sockets::new(sockets.collect(), store)
}

fn listener_or_connection(socket: TcpListener) -> Handed {
    if sockopt::socket_acceptconn(&socket).unwrap_or(true) {
        Handed::Tcp(socket)
    } else {
        Handed::Idle(OwnedFd::from(socket).into())
    }
}

/// The daemon serves.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// The daemon lets who is in finish, and ends.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "the supervisor does not hear");
    }
}

fn hand(state: &[NotifyState<'_>], socket: BorrowedFd<'_>) {
    if let Err(error) = sd_notify::notify_with_fds(state, &[socket]) {
        tracing::warn!(?state, %error, "the supervisor does not keep a socket: it is closed with this daemon");
    }
}

struct Supervisor;

impl SocketStore for Supervisor {
    fn keep(&self, name: &str, socket: BorrowedFd<'_>) {
        hand(&[NotifyState::FdStore, NotifyState::FdName(name)], socket);
    }

    fn keep_whatever_comes(&self, name: &str, socket: BorrowedFd<'_>) {
        let unwatched = NotifyState::Custom("FDPOLL=0");
        hand(
            &[NotifyState::FdStore, NotifyState::FdName(name), unwatched],
            socket,
        );
    }

    fn forget(&self, name: &str) {
        tell(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)]);
    }
}
