//! The wire's one thread: it waits for frames, for the next frame to be due and for requests, and
//! feeds the switch. It holds no policy. It ends with its parent, and its devices end with it.

use std::fs::File;
use std::io::{ErrorKind, Read as _, Write as _};
use std::num::NonZeroU64;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tun_rs::{DeviceBuilder, Layer, SyncDevice};

use super::control::{Answer, Connection, Entry, LinkStats, Request};
use super::switch::{Port, Switch};
use super::{Link, Preset};

/// Frames read from one port before the next port has its turn.
const BATCH: usize = 64;
/// No frame is larger: IP packets end at 64 KiB, and devices offload no segmentation.
const MAX_FRAME: usize = 68 << 10;
/// Frames that the kernel holds for a port while the wire is busy.
const DEVICE_QUEUE: u32 = 4000;
const MAX_CLIENTS: usize = 32;
/// The kernel may be late by this many nanoseconds with a timer; its default is 50,000.
const TIMER_SLACK: NonZeroU64 = NonZeroU64::MIN;

/// A switch between hosts, as a process: see `chaos_tests::wire`.
#[derive(Debug, Parser)]
pub struct Settings {
    /// Where to listen for requests.
    #[arg(long)]
    pub socket: PathBuf,
    /// Where to write what was changed when.
    #[arg(long)]
    pub log: PathBuf,
    /// What the links' draws begin with.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// What links are until they are changed.
    #[arg(long, value_enum, default_value = "lan")]
    pub preset: Preset,
}

/// Runs the wire until stdin ends.
pub fn run(settings: &Settings) -> Result<()> {
    be_prompt();
    let mut driver = Driver::new(settings)?;
    while driver.turn()? {}
    Ok(())
}

/// The wire stands for cables, which do not slow down when hosts compute: it goes before all other
/// work and wakes exactly. Neither must be: not every machine allows it, and the wire works without.
fn be_prompt() {
    rustix::thread::set_current_timer_slack(Some(TIMER_SLACK)).ok();
    let own = std::process::id().to_string();
    let chrt = Command::new("chrt")
        .args(["--fifo", "--pid", "1", &own])
        .stdin(Stdio::null())
        .output();
    if !chrt.is_ok_and(|chrt| chrt.status.success()) {
        eprintln!("wire: no real-time priority here, so other work delays frames");
    }
}

struct Driver {
    began: Instant,
    switch: Switch,
    /// By port.
    devices: Vec<Option<SyncDevice>>,
    listener: UnixListener,
    clients: Vec<Connection>,
    log: File,
    buffer: Vec<u8>,
}

/// Who has something for us.
struct Ready {
    stdin: bool,
    listener: bool,
    clients: Vec<usize>,
    ports: Vec<usize>,
}

impl Driver {
    fn new(settings: &Settings) -> Result<Self> {
        let shown = || settings.socket.display().to_string();
        let listener = UnixListener::bind(&settings.socket).with_context(shown)?;
        listener.set_nonblocking(true)?;
        Ok(Self {
            began: Instant::now(),
            switch: Switch::new(settings.seed, settings.preset),
            devices: Vec::new(),
            listener,
            clients: Vec::new(),
            log: File::create(&settings.log)?,
            buffer: vec![0; MAX_FRAME],
        })
    }

    /// Waits and serves once; whether there is more to do.
    fn turn(&mut self) -> Result<bool> {
        let ready = self.wait()?;
        if ready.stdin && !parent_lives() {
            return Ok(false);
        }
        self.deliver();
        for port in ready.ports {
            self.receive(Port(port));
            self.deliver();
        }
        // From the last: serving one may remove it.
        for client in ready.clients.into_iter().rev() {
            self.serve(client);
        }
        if ready.listener {
            self.accept()?;
        }
        Ok(true)
    }

    fn wait(&self) -> Result<Ready> {
        let stdin = std::io::stdin();
        let mut fds = vec![
            PollFd::new(&stdin, PollFlags::IN),
            PollFd::new(&self.listener, PollFlags::IN),
        ];
        for client in &self.clients {
            let wanted = if client.owes() {
                PollFlags::OUT
            } else {
                PollFlags::IN
            };
            fds.push(PollFd::new(&client.stream, wanted));
        }
        let ports = self.devices.iter().enumerate();
        let ports: Vec<_> = ports
            .filter_map(|(port, d)| Some((port, d.as_ref()?)))
            .collect();
        for (_, device) in &ports {
            fds.push(PollFd::from_borrowed_fd(device.as_fd(), PollFlags::IN));
        }
        let due = self.switch.poll_timeout();
        let timeout = due.map(|due| due.saturating_sub(self.began.elapsed()));
        let timeout = timeout.map(Timespec::try_from).transpose()?;
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("waiting for frames"),
        }
        let ready = |at: usize| !fds[at].revents().is_empty();
        let first_port = 2 + self.clients.len();
        Ok(Ready {
            stdin: ready(0),
            listener: ready(1),
            clients: (0..self.clients.len()).filter(|c| ready(2 + c)).collect(),
            ports: ports
                .iter()
                .enumerate()
                .filter(|(at, _)| ready(first_port + at))
                .map(|(_, (port, _))| *port)
                .collect(),
        })
    }

    fn receive(&mut self, port: Port) {
        let Some(device) = &self.devices[port.0] else {
            return;
        };
        let now = self.began.elapsed();
        for _ in 0..BATCH {
            match device.recv(&mut self.buffer) {
                Ok(length) => self.switch.on_frame(now, port, &self.buffer[..length]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                // Its namespace is gone and the device with it: the port stays, silent, until its
                // owner unplugs it.
                Err(_) => {
                    self.devices[port.0] = None;
                    return;
                }
            }
        }
    }

    fn deliver(&mut self) {
        let now = self.began.elapsed();
        while let Some(delivery) = self.switch.pop(now) {
            let device = self.devices[delivery.to.0].as_ref();
            if device.is_none_or(|device| device.send(&delivery.frame).is_err()) {
                self.switch.on_refused(&delivery);
            }
        }
    }

    fn accept(&mut self) -> Result<()> {
        match self.listener.accept() {
            // A client too many is closed at once.
            Ok((stream, _)) if self.clients.len() < MAX_CLIENTS => {
                self.clients.push(Connection::new(stream)?);
                Ok(())
            }
            Ok(_) => Ok(()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error).context("accepting a client"),
        }
    }

    fn serve(&mut self, client: usize) {
        let mut connection = self.clients.swap_remove(client);
        // A client that fails has only itself to blame.
        let lives = connection.turn(|request| self.answer(request));
        if lives.unwrap_or(false) {
            self.clients.push(connection);
        }
    }

    fn answer(&mut self, request: Request) -> Answer {
        let log = request.changes().then(|| request.clone());
        let answer = self.perform(request).and_then(|answer| {
            log.map_or(Ok(()), |did| self.note(did))?;
            Ok(answer)
        });
        answer.unwrap_or_else(|error| Answer::Refused(format!("{error:#}")))
    }

    fn note(&mut self, did: Request) -> Result<()> {
        let at = self.began.elapsed().as_secs_f64();
        let mut line = serde_json::to_vec(&Entry { at, did })?;
        line.push(b'\n');
        Ok(self.log.write_all(&line)?)
    }

    fn perform(&mut self, request: Request) -> Result<Answer> {
        let now = self.began.elapsed();
        match request {
            Request::Plug { port, device } => self.plug(&port, &device)?,
            Request::Unplug { port } => {
                let port = self.switch.unplug(&port)?;
                self.devices[port.0] = None;
            }
            Request::Set { from, to, link } => {
                self.switch.change(now, &from, &to, |_| link)?;
            }
            Request::Up { from, to, up } => {
                self.switch
                    .change(now, &from, &to, |link| Link { up, ..link })?;
            }
            Request::Reset => self.switch.reset(now),
            Request::Get { from, to } => return Ok(Answer::Link(self.switch.link(&from, &to)?)),
            Request::Stats => return Ok(Answer::Stats(self.stats())),
        }
        Ok(Answer::Done)
    }

    fn plug(&mut self, port: &str, name: &str) -> Result<()> {
        let device = DeviceBuilder::new()
            .name(name)
            .layer(Layer::L2)
            .tx_queue_len(DEVICE_QUEUE)
            .enable(false)
            .build_sync()
            .with_context(|| format!("making the device {name}"))?;
        device.set_nonblocking(true)?;
        let port = self.switch.plug(port)?;
        ensure!(port.0 <= self.devices.len(), "ports come one by one");
        if port.0 == self.devices.len() {
            self.devices.push(None);
        }
        self.devices[port.0] = Some(device);
        Ok(())
    }

    fn stats(&self) -> Vec<LinkStats> {
        let links = self.switch.links();
        links
            .map(|(from, to, link, counts)| LinkStats {
                from: from.to_owned(),
                to: to.to_owned(),
                link,
                counts,
            })
            .collect()
    }
}

/// The parent holds the other end of stdin and says nothing on it; the kernel closes it when the
/// parent dies, however it dies.
fn parent_lives() -> bool {
    let mut ignored = [0; 64];
    std::io::stdin()
        .read(&mut ignored)
        .is_ok_and(|read| read > 0)
}
