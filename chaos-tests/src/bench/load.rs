//! A closed loop of HTTP/1.1: so many connections, each asking again as soon as it is answered. One
//! thread, one epoll, ready-made bytes, two system calls a request: the asker must be cheap beside
//! what it asks. It counts its own CPU time. Knows nothing of what is asked.

use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use hdrhistogram::Histogram;
use rustix::buffer::spare_capacity;
use rustix::event::epoll;
use rustix::time::{ClockId, Timespec, clock_gettime};

use super::answer;
use super::stats::float;

/// Asked and answered before anything counts: connections and pools are made meanwhile.
const WARMING: Duration = Duration::from_millis(200);
/// What is still under way at the end is waited for, so that the next system finds a quiet machine.
const LEAVING: Duration = Duration::from_secs(5);
const BUFFER: usize = 16 << 10;
const EVENTS: usize = 512;

#[derive(Debug, Clone)]
pub enum Door {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// What to ask, how, and for how long.
#[derive(Debug, Clone)]
pub struct Load<'a> {
    pub door: Door,
    pub connections: usize,
    pub time: Duration,
    /// Each connection sends them by turns, from a turn of its own on.
    pub requests: &'a [Vec<u8>],
}

#[derive(Debug)]
pub struct Measured {
    /// Answers in `time`, a second.
    pub rate: f64,
    /// All answers, also of before and after.
    pub answered: u64,
    /// In microseconds.
    pub latency: Histogram<u64>,
    /// CPU time of the asker.
    pub cpu: Duration,
}

struct Connection {
    fd: OwnedFd,
    read: Vec<u8>,
    turn: usize,
    asked: Instant,
    busy: bool,
}

struct Asker<'a> {
    load: &'a Load<'a>,
    connections: Vec<Connection>,
    counted: u64,
    answered: u64,
    latency: Histogram<u64>,
    /// What counts is answered between these two.
    from: Instant,
    until: Instant,
}

/// Asks until the time is over. An answer other than 200 ends it: a fast refusal is no result.
pub fn drive(load: &Load) -> Result<Measured> {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let connections: Result<Vec<_>> = (0..load.connections).map(|_| open(&load.door)).collect();
    let connections = connections.with_context(|| format!("connecting to {:?}", load.door))?;
    for (number, connection) in connections.iter().enumerate() {
        let data = epoll::EventData::new_u64(number as u64);
        epoll::add(&epoll, &connection.fd, data, epoll::EventFlags::IN)?;
    }
    let began = clock();
    let from = Instant::now() + WARMING;
    let mut asker = Asker {
        load,
        connections,
        counted: 0,
        answered: 0,
        latency: Histogram::new(3)?,
        from,
        until: from + load.time,
    };
    asker.run(&epoll)?;
    Ok(Measured {
        rate: rate(asker.counted, load.time),
        answered: asker.answered,
        latency: asker.latency,
        cpu: clock().saturating_sub(began),
    })
}

impl Asker<'_> {
    fn run(&mut self, epoll: &OwnedFd) -> Result<()> {
        for number in 0..self.connections.len() {
            self.connections[number].turn = number;
            self.ask(number)?;
        }
        let tick = Timespec::try_from(Duration::from_millis(100))?;
        let mut events = Vec::with_capacity(EVENTS);
        while self.connections.iter().any(|c| c.busy) {
            epoll::wait(epoll, spare_capacity(&mut events), Some(&tick))?;
            for event in events.drain(..) {
                self.hear(usize::try_from(event.data.u64())?)?;
            }
            ensure!(Instant::now() < self.until + LEAVING, "answers are missing");
        }
        Ok(())
    }

    fn ask(&mut self, number: usize) -> Result<()> {
        let connection = &mut self.connections[number];
        let requests = self.load.requests;
        let request = &requests[connection.turn % requests.len()];
        connection.turn += 1;
        connection.asked = Instant::now();
        connection.busy = true;
        let written = rustix::io::write(&connection.fd, request)?;
        ensure!(
            written == request.len(),
            "a request that does not fit its socket"
        );
        Ok(())
    }

    fn hear(&mut self, number: usize) -> Result<()> {
        let connection = &mut self.connections[number];
        let count = rustix::io::read(&connection.fd, spare_capacity(&mut connection.read))?;
        ensure!(count > 0, "the connection was closed");
        let Some(answer) = answer::first(&connection.read)? else {
            connection.read.reserve(BUFFER);
            return Ok(());
        };
        if answer.status != 200 || connection.read.len() != answer.length {
            bail!("{}", String::from_utf8_lossy(&connection.read));
        }
        connection.read.clear();
        connection.busy = false;
        let (now, asked) = (Instant::now(), connection.asked);
        self.answered += 1;
        if now >= self.until {
            return Ok(());
        }
        if now >= self.from {
            self.counted += 1;
            let took = u64::try_from((now - asked).as_micros())?;
            self.latency.record(took.max(1))?;
        }
        self.ask(number)
    }
}

fn open(door: &Door) -> Result<Connection> {
    let fd: OwnedFd = match door {
        Door::Tcp(address) => {
            let stream = TcpStream::connect(address)?;
            stream.set_nodelay(true)?;
            stream.set_nonblocking(true)?;
            stream.into()
        }
        Door::Unix(path) => {
            let stream = UnixStream::connect(path)?;
            stream.set_nonblocking(true)?;
            stream.into()
        }
    };
    Ok(Connection {
        fd,
        read: Vec::with_capacity(BUFFER),
        turn: 0,
        asked: Instant::now(),
        busy: false,
    })
}

/// CPU time of this thread.
pub(super) fn clock() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::try_from(now).unwrap_or_default()
}

pub(super) fn rate(count: u64, time: Duration) -> f64 {
    float(count) / time.as_secs_f64()
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::net::TcpListener;
    use std::thread::JoinHandle;

    use super::*;

    /// Answers what one client asks; returns the paths in their order.
    fn server(status: &'static str) -> (Door, JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let door = Door::Tcp(listener.local_addr().unwrap());
        let serving = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let lines = BufReader::new(stream.try_clone().unwrap()).lines();
            let mut paths = Vec::new();
            for line in lines.map_while(Result::ok).filter(|l| l.starts_with("GET")) {
                paths.push(line.split(' ').nth(1).unwrap().to_owned());
                let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
                // The client may have left.
                stream.write_all(answer.as_bytes()).ok();
            }
            paths
        });
        (door, serving)
    }

    fn load(door: Door, requests: &[Vec<u8>]) -> Load<'_> {
        Load {
            door,
            connections: 1,
            time: Duration::from_millis(50),
            requests,
        }
    }

    #[test]
    fn every_answer_is_counted_and_requests_take_turns() {
        let requests = ["/a", "/b"].map(|path| format!("GET {path} HTTP/1.1\r\n\r\n").into_bytes());
        let (door, serving) = server("200 OK");
        let measured = drive(&load(door, &requests)).unwrap();
        let paths = serving.join().unwrap();
        assert_eq!(paths.len() as u64, measured.answered);
        assert!(measured.latency.len() > 1 && measured.latency.len() < measured.answered);
        let turns = paths.iter().zip(["/a", "/b"].into_iter().cycle());
        assert!(turns.into_iter().all(|(path, turn)| path == turn));
    }

    #[test]
    fn a_refusal_is_no_result() {
        let (door, serving) = server("503 No");
        let error = drive(&load(door, &[b"GET / HTTP/1.1\r\n\r\n".to_vec()])).unwrap_err();
        assert!(error.to_string().contains("503 No"), "{error:#}");
        serving.join().unwrap();
    }
}
