//! Where peers and floors run: on a world's hosts and in groups that are counted. A program waits
//! in its place, joined to its cgroup and its host, until it is told to begin, because joining a
//! cgroup takes longer than starting a container and is no part of what is measured.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};

use anyhow::{Context as _, Result, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::group::Group;
use crate::world::{World, run};

/// Joins, hides the empty cgroup v2 mount that keeps crun from choosing v1, waits for a line,
/// becomes the program.
const WAITING: &str = r#"
    set -e
    group=$1; shift
    echo $$ >"$group"
    if [ -d /sys/fs/cgroup/cpuacct ] && [ -d /sys/fs/cgroup/unified ]; then
        umount /sys/fs/cgroup/unified
    fi
    echo waiting
    read -r _
    exec "$@" </dev/null >&2
"#;

/// A program in its place, about to begin.
pub struct Waiting {
    child: Running,
    word: ChildStdin,
}

/// Puts a program in its place. Its output goes to `log`.
pub fn waiting(netns: &str, group: &Group, log: &Path, words: &[&str]) -> Result<Waiting> {
    let shown = words.join(" ");
    let netns = format!("--net=/run/netns/{netns}");
    let mut child = Command::new("nsenter")
        .args([
            &netns,
            "--",
            "unshare",
            "--mount",
            "--propagation",
            "private",
        ])
        .args(["sh", "-c", WAITING, "sh"])
        .arg(group.members())
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(File::options().create(true).append(true).open(log)?)
        .spawn()
        .with_context(|| format!("running `{shown}`"))?;
    let (word, said) = (child.stdin.take(), child.stdout.take());
    let (word, said) = word.zip(said).context("no pipes")?;
    let mut line = String::new();
    BufReader::new(said).read_line(&mut line)?;
    ensure!(line == "waiting\n", "`{shown}` did not get to its place");
    Ok(Waiting {
        child: Running(child),
        word,
    })
}

impl Waiting {
    pub fn begin(mut self) -> Result<Running> {
        self.word.write_all(b"begin\n")?;
        Ok(self.child)
    }
}

/// A program that ends with its handle. What it started itself is found by its group or its host.
pub struct Running(Child);

impl Running {
    pub fn wait(&mut self) -> Result<ExitStatus> {
        Ok(self.0.wait()?)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Fails when it has ended already.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// A host that is no node: only its loopback is up. Its name carries the world's, so it goes with
/// it.
pub fn host(world: &World, name: &str) -> Result<String> {
    let dir = world.dir();
    let tag = dir.file_name().context("a world without a name")?;
    let netns = format!("{}-{name}", tag.to_string_lossy());
    run("ip", ["netns", "add", &netns])?.ok()?;
    run("ip", ["-n", &netns, "link", "set", "lo", "up"])?.ok()?;
    Ok(netns)
}

/// Runs `work` on a thread of its own that is on that host.
pub fn on_host<T: Send>(netns: &str, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let file = File::open(Path::new("/run/netns").join(netns))?;
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?;
            work()
        });
        let ended = thread.join();
        ended.unwrap_or_else(|_| anyhow::bail!("a thread on {netns} panicked"))
    })
}
