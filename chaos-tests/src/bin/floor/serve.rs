//! A web server that says one thing as fast as a thread can: one epoll, two system calls a request.
//! It reads no more of a request than where its head ends, and the path: `/1024` is so many bytes.

use std::collections::BTreeMap;
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd as _;

use anyhow::Result;
use rustix::buffer::spare_capacity;
use rustix::event::epoll;
use rustix::net::sockopt::set_socket_send_buffer_size;

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nbox\n";
const END: &[u8] = b"\r\n\r\n";
const LISTENER: u64 = 0;
const BUFFER: usize = 16 << 10;
/// The longest body it gives, which must fit a socket's buffer whole.
const LONGEST: usize = 64 << 10;
const EVENTS: usize = 512;

pub fn serve(port: u16) -> Result<()> {
    let listener = TcpListener::bind(("0.0.0.0", port))?;
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let watch = |fd: std::os::fd::BorrowedFd, number| {
        epoll::add(
            &epoll,
            fd,
            epoll::EventData::new_u64(number),
            epoll::EventFlags::IN,
        )
    };
    watch(listener.as_fd(), LISTENER)?;
    let mut clients: BTreeMap<u64, Client> = BTreeMap::new();
    let mut long = BTreeMap::new();
    let mut next = LISTENER;
    let mut events = Vec::with_capacity(EVENTS);
    loop {
        epoll::wait(&epoll, spare_capacity(&mut events), None)?;
        for event in events.drain(..) {
            let number = event.data.u64();
            if number == LISTENER {
                let (stream, _) = listener.accept()?;
                stream.set_nodelay(true)?;
                stream.set_nonblocking(true)?;
                next += 1;
                watch(stream.as_fd(), next)?;
                let read = Vec::with_capacity(BUFFER);
                let client = Client {
                    stream,
                    read,
                    roomy: false,
                };
                clients.insert(next, client);
            } else if clients
                .get_mut(&number)
                .is_some_and(|c| c.answer(&mut long).is_none())
            {
                clients.remove(&number);
            }
        }
    }
}

struct Client {
    stream: TcpStream,
    /// Of a head that is not whole yet.
    read: Vec<u8>,
    /// What it gets may be long.
    roomy: bool,
}

impl Client {
    /// Answers what has come; `None` when the client is gone or says too much.
    fn answer(&mut self, long: &mut BTreeMap<usize, Vec<u8>>) -> Option<()> {
        let count = rustix::io::read(&self.stream, spare_capacity(&mut self.read)).ok()?;
        if self.read.ends_with(END) {
            let answer = match wanted(&self.read) {
                None => ANSWER,
                Some(length) => {
                    if !self.roomy {
                        set_socket_send_buffer_size(&self.stream, 4 * LONGEST).ok()?;
                        self.roomy = true;
                    }
                    long.entry(length).or_insert_with(|| body(length))
                }
            };
            let written = rustix::io::write(&self.stream, answer).ok()?;
            if written < answer.len() {
                return None;
            }
            self.read.clear();
        }
        (count > 0 && self.read.len() < BUFFER).then_some(())
    }
}

/// The length in the path, when there is one.
fn wanted(head: &[u8]) -> Option<usize> {
    let path = head.strip_prefix(b"GET /")?;
    let digits = path.iter().take_while(|b| b.is_ascii_digit()).count();
    let length: usize = std::str::from_utf8(&path[..digits]).ok()?.parse().ok()?;
    Some(length.min(LONGEST))
}

fn body(length: usize) -> Vec<u8> {
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n");
    let mut answer = head.into_bytes();
    answer.resize(answer.len() + length, b'x');
    answer
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;

    #[test]
    fn a_whole_head_is_answered_and_half_of_one_is_not() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut asking = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (stream, _) = listener.accept().unwrap();
        let read = Vec::with_capacity(BUFFER);
        let mut client = Client {
            stream,
            read,
            roomy: false,
        };

        let mut long = BTreeMap::new();
        asking.write_all(b"GET / HTTP/1.1\r\n").unwrap();
        assert!(client.answer(&mut long).is_some());
        assert!(!client.read.is_empty(), "it waits for the rest");

        asking.write_all(b"\r\n").unwrap();
        assert!(client.answer(&mut long).is_some());
        let mut answer = [0; ANSWER.len()];
        asking.read_exact(&mut answer).unwrap();
        assert_eq!(answer, ANSWER);

        asking.write_all(b"GET /65536 HTTP/1.1\r\n\r\n").unwrap();
        assert!(client.answer(&mut long).is_some());
        let mut answer = vec![0; body(LONGEST).len()];
        asking.read_exact(&mut answer).unwrap();
        assert!(answer.ends_with(b"xxx"));

        drop(asking);
        assert!(client.answer(&mut long).is_none(), "the client is gone");
    }
}
