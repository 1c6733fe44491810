//! A real systemd that keeps a node's daemon by the unit that is shipped: an instance of a user's, which
//! needs no machine of its own, in the node's network and in cgroups of the world's.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use super::node::Node;
use super::shell::{Outcome, run_with, until};
use super::traces::PATIENCE;

const UNIT: &str = "selvedged.service";
/// systemd only starts where systemd was booted, which it takes from this folder.
const BOOTED: &str = "/run/systemd/system";
/// The first of these that is a hierarchy is the one that systemd keeps its units in, below the group
/// that it starts in. Started in the root of it, it moves everything there aside and its units stay.
const HIERARCHIES: [&str; 3] = [
    "/sys/fs/cgroup/unified",
    "/sys/fs/cgroup/systemd",
    "/sys/fs/cgroup",
];
/// Becomes systemd, in the group that its first word names.
const ENTER: &str = "echo $$ > \"$0/cgroup.procs\" && exec \"$@\"";

/// Ends with its systemd and daemon.
pub struct Systemd {
    home: PathBuf,
    child: Child,
}

impl Systemd {
    /// Takes over a node whose daemon does not run, and starts it.
    pub fn supervise(node: &Node) -> Result<Self> {
        ensure!(node.daemon().is_none(), "{} runs its daemon", node.name);
        let home = node.dir().join("systemd");
        let units = home.join(".config/systemd/user");
        let ours = units.join(format!("{UNIT}.d"));
        fs::create_dir_all(&ours)?;
        let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
        fs::copy(shipped.join(UNIT), units.join(UNIT))?;
        let log = node.dir().join("log/selvedged.log");
        let here = format!(
            "[Service]\nExecStart=\nExecStart={} --config {}\nStandardOutput=append:{}\nStandardError=inherit\n",
            node.programs.join("selvedged").display(),
            node.config().display(),
            log.display(),
        );
        fs::write(ours.join("here.conf"), here)?;
        let systemd = Self {
            child: start(node, &home)?,
            home,
        };
        systemd.ctl(&["start", UNIT])?.ok()?;
        Ok(systemd)
    }

    fn ctl(&self, args: &[&str]) -> Result<Outcome> {
        let mut command = Command::new("systemctl");
        command.arg("--user").args(args);
        run_with(command.env("XDG_RUNTIME_DIR", &self.home), "")
    }

    /// As after an upgrade; returns when the new daemon serves.
    pub fn restart(&self) -> Result<()> {
        self.ctl(&["restart", UNIT])?.ok().map(drop)
    }

    /// Kills the daemon, and returns while it is away.
    pub fn kill(&self) -> Result<()> {
        let kill = ["kill", "--signal=KILL", "--kill-who=main", UNIT];
        self.ctl(&kill)?.ok().map(drop)
    }

    pub fn stop(&self) -> Result<()> {
        self.ctl(&["stop", UNIT])?.ok().map(drop)
    }

    /// How often systemd started the daemon again by itself.
    pub fn restarts(&self) -> Result<u32> {
        let shown = self.ctl(&["show", "--value", "--property=NRestarts", UNIT])?;
        Ok(shown.ok()?.out.trim().parse()?)
    }
}

impl Drop for Systemd {
    fn drop(&mut self) {
        // It ends its daemon; what it does not, the world does.
        let ended = self.stop().and_then(|()| self.ctl(&["exit"]).map(drop));
        if ended.is_err() {
            self.child.kill().ok();
        }
        self.child.wait().ok();
    }
}

fn start(node: &Node, home: &Path) -> Result<Child> {
    // One at a time makes the folder, and takes it away once it was seen.
    let run = fs::File::open("/run")?;
    run.lock()?;
    let made = !Path::new(BOOTED).exists();
    fs::create_dir_all(BOOTED)?;
    let below = HIERARCHIES
        .into_iter()
        .find(|dir| Path::new(dir).join("cgroup.procs").exists());
    let beside = Path::new(node.cgroup()).with_file_name(format!("systemd-{}", node.name));
    let group = format!("{}{}", below.context("no cgroups")?, beside.display());
    fs::create_dir_all(&group)?;
    let child = Command::new("nsenter")
        .arg(format!("--net=/run/netns/{}", node.netns))
        .args(["--", "sh", "-c", ENTER, &group])
        .args(["/lib/systemd/systemd", "--user", "--log-target=console"])
        .env("XDG_RUNTIME_DIR", home)
        .env("HOME", home)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(fs::File::create(home.join("log"))?)
        .spawn()
        .context("running systemd")?;
    let listens = home.join("systemd/private");
    let up = until("systemd answers", PATIENCE, || {
        Ok(listens.exists().then_some(()))
    });
    if made {
        fs::remove_dir(BOOTED)?;
    }
    up?;
    Ok(child)
}
