//! Where peers and floors run: on a world's hosts and in groups that are counted. A program waits
//! in its place, joined to its cgroup and its host, until it is told to begin, because joining a
//! cgroup takes longer than starting a container and is no part of what is measured.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};

use anyhow::{Context as _, Result, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::group::Group;
use crate::world::{Node, World, run};

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
/// Joins, also where its memory may be weighed, and becomes the program, which itself says `waiting`
/// and waits.
const AT_ONCE: &str = r#"
    set -e
    group=$1; shift
    echo $$ >"$group"
    memory=/sys/fs/cgroup/memory/${group#*/cpuacct/}
    if [ -e "$memory" ]; then echo $$ >"$memory"; fi
    exec "$@"
"#;

/// A program in its place, about to begin.
pub struct Waiting {
    child: Running,
    word: ChildStdin,
}

/// Puts a program in its place. Its output goes to `log`.
pub fn waiting(netns: &str, group: &Group, log: &Path, words: &[&str]) -> Result<Waiting> {
    place(WAITING, (netns, group), log, words)
}

/// The same for a program that knows to wait: its own execution is over when it begins.
pub fn waiting_itself(netns: &str, group: &Group, log: &Path, words: &[&str]) -> Result<Waiting> {
    place(AT_ONCE, (netns, group), log, words)
}

fn place(
    script: &str,
    (netns, group): (&str, &Group),
    log: &Path,
    words: &[&str],
) -> Result<Waiting> {
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
        .args(["sh", "-c", script, "sh"])
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
    let mut said = BufReader::new(said);
    said.read_line(&mut line)?;
    ensure!(line == "waiting\n", "`{shown}` did not get to its place");
    Ok(Waiting {
        child: Running { child, said },
        word,
    })
}

impl Waiting {
    pub fn begin(mut self) -> Result<Running> {
        self.say()?;
        Ok(self.child)
    }

    /// Lets it begin; it goes on until its handle is dropped.
    pub fn say(&mut self) -> Result<()> {
        Ok(self.word.write_all(b"begin\n")?)
    }

    /// A line of what it says.
    pub fn hear(&mut self) -> Result<String> {
        let mut line = String::new();
        self.child.said.read_line(&mut line)?;
        Ok(line)
    }
}

/// A program that ends with its handle. What it started itself is found by its group or its host.
pub struct Running {
    child: Child,
    said: BufReader<ChildStdout>,
}

impl Running {
    pub fn wait(&mut self) -> Result<ExitStatus> {
        Ok(self.child.wait()?)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Fails when it has ended already.
        self.child.kill().ok();
        self.child.wait().ok();
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

/// Joins two nodes' hosts by a cable of the kernel's: what one sends to the other goes that way.
pub fn cable(one: &Node, other: &Node) -> Result<()> {
    let ends = [(one, "cable0"), (other, "cable1")];
    let made = ["link", "add", "cable0", "netns", &one.netns, "type", "veth"];
    let peer = ["peer", "name", "cable1", "netns", &other.netns];
    run("ip", made.iter().chain(&peer))?.ok()?;
    for (node, device) in ends {
        run("ip", ["-n", &node.netns, "link", "set", device, "up"])?.ok()?;
    }
    for (node, device, to) in [(one, "cable0", other), (other, "cable1", one)] {
        let (to, from) = (to.address.to_string(), node.address.to_string());
        let way = ["route", "add", &to, "dev", device, "src", &from];
        run("ip", ["-n", &node.netns].iter().chain(&way))?.ok()?;
    }
    Ok(())
}

/// Where the node's only container listens, as its own network says.
pub fn container(node: &Node) -> Result<SocketAddr> {
    let containers = node.containers();
    for pid in &containers {
        let net = format!("--net=/proc/{pid}/ns/net");
        let said = run(
            "nsenter",
            [
                &net, "--", "ip", "-o", "-4", "address", "show", "scope", "global",
            ],
        )?;
        let found = said
            .out
            .split_whitespace()
            .skip_while(|word| *word != "inet")
            .nth(1);
        let ip = found.and_then(|cidr| cidr.split('/').next()?.parse::<IpAddr>().ok());
        if let Some(ip) = ip {
            return Ok((ip, 8080).into());
        }
    }
    anyhow::bail!("no address of a container in {containers:?}")
}
