//! The daemon of a node as its supervisor and its misfortunes handle it: started, ended, killed,
//! standing still, exchanged for another build.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::disk::Prefix;

use super::node::{Node, pids};
use super::shell::{run, until};

const STARTING: Duration = Duration::from_mins(1);
/// A daemon lets requests end before it does.
const STOPPING: Duration = Duration::from_secs(30);

/// How a daemon is started when not as usual.
#[derive(Debug, Clone, Default)]
pub struct Launch {
    /// The folder of another build's programs.
    pub programs: Option<PathBuf>,
    pub prefix: Prefix,
}

impl Node {
    /// The daemon's pid; its shims are other processes.
    pub fn daemon(&self) -> Option<u32> {
        let config = self.config().to_string_lossy().into_owned();
        let mut daemons = pids().filter(|pid| {
            let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let words = String::from_utf8_lossy(&words).into_owned();
            let words: Vec<_> = words.split('\0').collect();
            let program = words.first().is_some_and(|w| w.ends_with("selvedged"));
            program && words.contains(&config.as_str()) && !words.contains(&"shim")
        });
        daemons.next()
    }

    fn running(&self) -> Result<u32> {
        self.daemon()
            .with_context(|| format!("{} runs no daemon", self.name))
    }

    /// `kill -9` of the daemon.
    pub fn kill(&self) -> Result<()> {
        self.end("-KILL", STARTING)
    }

    /// Asks the daemon to end, as its supervisor would, and waits until it has.
    pub fn stop(&self) -> Result<()> {
        self.end("-TERM", STOPPING)
    }

    fn end(&self, signal: &str, within: Duration) -> Result<()> {
        send(self.running()?, signal)?;
        self.is_gone(within)
    }

    fn is_unlocked(&self) -> bool {
        let lock = std::fs::File::open(self.dir.join("run/lock"));
        lock.is_err() || lock.is_ok_and(|lock| lock.try_lock().is_ok())
    }

    /// `SIGSTOP`: the daemon lives and does nothing.
    pub fn pause(&self) -> Result<()> {
        let pid = self.running()?;
        send(pid, "-STOP")?;
        until("the daemon stands still", STARTING, || {
            Ok(stands_still(pid)?.then_some(()))
        })
    }

    pub fn resume(&self) -> Result<()> {
        send(self.running()?, "-CONT")
    }

    /// Whether a paused daemon is here.
    pub fn is_paused(&self) -> Result<bool> {
        stands_still(self.running()?)
    }

    /// When the daemon was started again so far; it did not run just before.
    pub fn starts(&self) -> Vec<Instant> {
        let starts = self.starts.lock();
        starts.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Starts the daemon as a supervisor would; answers when its API does.
    pub fn start(&self) -> Result<()> {
        self.start_with(&Launch::default())
    }

    /// Starts the daemon in another way; answers when its API does.
    pub fn start_with(&self, launch: &Launch) -> Result<()> {
        self.launch(launch)?;
        until(&format!("{} answers", self.name), STARTING, || {
            self.status().map(Some)
        })
        .map(drop)
    }

    /// The same for a daemon that may never answer.
    pub fn launch(&self, launch: &Launch) -> Result<()> {
        ensure!(
            self.daemon().is_none(),
            "{} runs its daemon already",
            self.name
        );
        std::fs::create_dir_all(self.dir.join("log"))?;
        let log = self.dir.join("log/selvedged.log");
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(log)?;
        let mut starts = self.starts.lock().unwrap_or_else(PoisonError::into_inner);
        starts.push(Instant::now());
        drop(starts);
        let netns = format!("--net=/run/netns/{}", self.netns);
        let programs = launch.programs.as_deref().unwrap_or(&self.programs);
        let mut daemon = Command::new("setsid")
            .args(["nsenter", &netns, "--"])
            .args(&launch.prefix.words)
            .arg(programs.join("selvedged"))
            .arg("--config")
            .arg(self.config())
            .envs(launch.prefix.env.iter().cloned())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("starting selvedged")?;
        // Whoever started it takes note of its end: an ended daemon would stay a zombie.
        std::thread::spawn(move || daemon.wait());
        Ok(())
    }

    /// Adds lines to the daemon's configuration, and starts it anew with them.
    pub fn configure(&self, lines: &str) -> Result<()> {
        self.stop()?;
        let file = std::fs::File::options().append(true).open(self.config());
        writeln!(file?, "\n{lines}")?;
        self.start()
    }

    /// Adds lines to the `[runtime]` section of the daemon's configuration, for its next start.
    pub fn configure_runtime(&self, lines: &str) -> Result<()> {
        self.configure_section("runtime", lines)
    }

    /// The same for another section.
    pub fn configure_section(&self, name: &str, lines: &str) -> Result<()> {
        let section = format!("[{name}]\n");
        let text = std::fs::read_to_string(self.config())?;
        let more = format!("{section}{lines}\n");
        let changed = if text.contains(&section) {
            text.replacen(&section, &more, 1)
        } else {
            format!("{text}\n{more}")
        };
        Ok(std::fs::write(self.config(), changed)?)
    }

    /// The operator's token of this node.
    pub fn token(&self) -> Result<String> {
        let token = std::fs::read_to_string(self.dir.join("identity/operator.token"))?;
        Ok(token.trim().to_owned())
    }

    /// Waits until the daemon has ended by itself, and its lock is free.
    pub fn is_gone(&self, within: Duration) -> Result<()> {
        // Its command line goes a moment before its files do, and the next daemon wants its lock.
        until("the daemon is gone", within, || {
            Ok((self.daemon().is_none() && self.is_unlocked()).then_some(()))
        })
    }

    /// The end of the daemon's log, for a failing test.
    pub fn log(&self) -> String {
        let text = std::fs::read_to_string(self.dir.join("log/selvedged.log")).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}

fn stands_still(pid: u32) -> Result<bool> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The state follows the name, which is in brackets and may hold anything.
    let state = stat
        .rsplit_once(") ")
        .and_then(|(_, rest)| rest.chars().next());
    Ok(state == Some('T'))
}

fn send(pid: u32, signal: &str) -> Result<()> {
    run("kill", [signal, &pid.to_string()])?.ok().map(drop)
}
