//! The handle of a running wire: it starts the process, asks it, and ends it.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::control::{Answer, Entry, LinkStats, Request};
use super::{Counts, Link, Preset};
use crate::world::until;

/// The wire answers within microseconds; a loaded machine may take longer.
const PATIENCE: Duration = Duration::from_secs(20);

/// A wire that runs. Any thread may use it; each request is a connection of its own. It ends when
/// this is dropped, or when this process dies.
#[derive(Debug)]
pub struct Wire {
    child: Child,
    socket: PathBuf,
    log: PathBuf,
    preset: Preset,
}

impl Wire {
    /// Starts the program with its socket and log in `dir`; answers when it does.
    pub fn start(program: &Path, dir: &Path, seed: u64, preset: Preset) -> Result<Self> {
        let (socket, log) = (dir.join("wire.sock"), dir.join("wire.log"));
        let word = serde_json::to_value(preset)?;
        let child = Command::new(program)
            .arg("--socket")
            .arg(&socket)
            .arg("--log")
            .arg(&log)
            .args(["--seed", &seed.to_string()])
            .args(["--preset", word.as_str().unwrap_or_default()])
            .stdin(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        let wire = Self {
            child,
            socket,
            log,
            preset,
        };
        until("the wire answers", PATIENCE, || wire.stats().map(Some))?;
        Ok(wire)
    }

    /// What every link is when nothing was set.
    pub fn preset(&self) -> Preset {
        self.preset
    }

    /// Makes a TAP device in this namespace with a port behind it. It may move to another
    /// namespace, be renamed and brought up: the port stays behind it.
    pub fn add_port(&self, port: &str, device: &str) -> Result<()> {
        let (port, device) = (port.to_owned(), device.to_owned());
        self.done(&Request::Plug { port, device })
    }

    /// Takes a port and its device away. Its links keep their settings and counts for the next
    /// port of this name.
    pub fn remove_port(&self, port: &str) -> Result<()> {
        let port = port.to_owned();
        self.done(&Request::Unplug { port })
    }

    /// Sets the way from one port to another; the way back stays as it is.
    pub fn set(&self, from: &str, to: &str, link: Link) -> Result<()> {
        self.set_all(&[from], &[to], link)
    }

    /// Sets every way from one of these ports to one of those.
    pub fn set_all(&self, from: &[&str], to: &[&str], link: Link) -> Result<()> {
        let (from, to) = (owned(from), owned(to));
        self.done(&Request::Set { from, to, link })
    }

    pub fn get(&self, from: &str, to: &str) -> Result<Link> {
        let (from, to) = (from.to_owned(), to.to_owned());
        match self.ask(&Request::Get { from, to })? {
            Answer::Link(link) => Ok(link),
            other => bail!("asked for a link, got {other:?}"),
        }
    }

    /// Nothing passes between these ports and those any more, not even what is on its way.
    pub fn cut(&self, these: &[&str], those: &[&str]) -> Result<()> {
        self.cut_one_way(these, those)?;
        self.cut_one_way(those, these)
    }

    /// Nothing passes from these ports to those; the ways back stay.
    pub fn cut_one_way(&self, from: &[&str], to: &[&str]) -> Result<()> {
        self.up(from, to, false)
    }

    /// Undoes cuts between these ports and those; other settings stay.
    pub fn heal(&self, these: &[&str], those: &[&str]) -> Result<()> {
        self.heal_one_way(these, those)?;
        self.heal_one_way(those, these)
    }

    pub fn heal_one_way(&self, from: &[&str], to: &[&str]) -> Result<()> {
        self.up(from, to, true)
    }

    fn up(&self, from: &[&str], to: &[&str], up: bool) -> Result<()> {
        let (from, to) = (owned(from), owned(to));
        self.done(&Request::Up { from, to, up })
    }

    /// Every link as the preset has it.
    pub fn reset(&self) -> Result<()> {
        self.done(&Request::Reset)
    }

    pub fn stats(&self) -> Result<Stats> {
        match self.ask(&Request::Stats)? {
            Answer::Stats(links) => Ok(Stats(links)),
            other => bail!("asked for stats, got {other:?}"),
        }
    }

    /// What was changed so far, and when.
    pub fn log(&self) -> Result<Vec<Entry>> {
        let text = std::fs::read_to_string(&self.log)?;
        let lines = text.lines().map(serde_json::from_str);
        Ok(lines.collect::<Result<_, _>>()?)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    fn done(&self, request: &Request) -> Result<()> {
        match self.ask(request)? {
            Answer::Done => Ok(()),
            other => bail!("{request:?} got {other:?}"),
        }
    }

    fn ask(&self, request: &Request) -> Result<Answer> {
        let asking = || format!("asking the wire at {}", self.socket.display());
        let mut stream = UnixStream::connect(&self.socket).with_context(asking)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        stream.write_all(&line).with_context(asking)?;
        let mut answer = String::new();
        BufReader::new(stream)
            .read_line(&mut answer)
            .with_context(asking)?;
        match serde_json::from_str(&answer).with_context(asking)? {
            Answer::Refused(why) => bail!("the wire refuses {request:?}: {why}"),
            answer => Ok(answer),
        }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        // Its devices are gone when it is; both fail only when it has ended already.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// All links at one moment.
#[derive(Debug, Clone)]
pub struct Stats(pub Vec<LinkStats>);

impl Stats {
    /// What the link from one port to another has seen.
    pub fn of(&self, from: &str, to: &str) -> Result<Counts> {
        let link = self.0.iter().find(|l| l.from == from && l.to == to);
        let link = link.with_context(|| format!("no link from {from} to {to}"))?;
        Ok(link.counts)
    }
}
