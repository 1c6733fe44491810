//! A closed loop of HTTP/1.1: so many connections, each asking again as soon as it is answered. One thread, one
//! epoll, ready-made bytes, two system calls a request: the asker must be cheap beside what it asks. It counts its
//! own CPU time. Knows nothing of what is asked.

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
    // No run counts to 2^52.
    #[allow(clippy::cast_precision_loss)]
    let count = count as f64;
    count / time.as_secs_f64()
}
