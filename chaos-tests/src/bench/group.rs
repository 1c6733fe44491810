//! The CPU time of a system: of every process in its cgroup and of those that ended there. On a
//! loaded machine it is the honest figure. The groups lie below the world's own, so that what is in
//! them goes with the world.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::stats::float;
use crate::world::{PATIENCE, World, run, until};

const V1: &str = "/sys/fs/cgroup/cpuacct";
const V2: &str = "/sys/fs/cgroup";

/// A cgroup that is counted, with all below it.
#[derive(Debug, Clone)]
pub struct Group {
    /// As an OCI bundle names it.
    pub path: String,
    dir: PathBuf,
}

impl Group {
    /// Makes, or finds, `name` in the world's cgroup.
    pub fn of(world: &World, name: &str) -> Result<Self> {
        let dir = world.dir();
        let tag = dir.file_name().context("a world without a name")?;
        let path = format!("/{}/{name}", tag.to_string_lossy());
        let root = if Path::new(V1).exists() { V1 } else { V2 };
        let dir = PathBuf::from(format!("{root}{path}"));
        fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        Ok(Self { path, dir })
    }

    /// The file that takes the pids of members to be.
    pub fn members(&self) -> PathBuf {
        self.dir.join("cgroup.procs")
    }

    pub fn add(&self, pid: u32) -> Result<()> {
        fs::write(self.members(), pid.to_string())
            .with_context(|| format!("{pid} in {}", self.path))
    }

    pub fn pids(&self) -> Result<Vec<i32>> {
        let text = fs::read_to_string(self.members())?;
        let pids: Result<_, _> = text.split_whitespace().map(str::parse).collect();
        Ok(pids?)
    }

    /// Kills who is in it, and waits until none is.
    pub fn end(&self) -> Result<()> {
        until(&format!("{} is empty", self.path), PATIENCE, || {
            let members = fs::read_to_string(self.members())?;
            let pids: Vec<_> = members.split_whitespace().collect();
            if !pids.is_empty() {
                run("kill", ["-9"].into_iter().chain(pids.iter().copied()))?;
            }
            Ok(pids.is_empty().then_some(()))
        })
    }

    /// The folder in which the same group's memory is charged.
    pub fn memory(&self) -> Result<PathBuf> {
        let root = Path::new("/sys/fs/cgroup/memory");
        let root = if root.exists() { root } else { Path::new(V2) };
        let dir = root.join(self.path.trim_start_matches('/'));
        fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        Ok(dir)
    }

    /// CPU time since it was made.
    pub fn used(&self) -> Result<Duration> {
        let read = |file: &str| fs::read_to_string(self.dir.join(file));
        if let Ok(nanos) = read("cpuacct.usage") {
            return Ok(Duration::from_nanos(nanos.trim().parse()?));
        }
        let stat = read("cpu.stat").with_context(|| format!("the CPU time of {}", self.path))?;
        let micros = stat.lines().find_map(|l| l.strip_prefix("usage_usec "));
        let micros = micros.with_context(|| format!("no usage in {stat}"))?;
        Ok(Duration::from_micros(micros.trim().parse()?))
    }
}

/// What several groups have used together.
pub fn used(groups: &[Group]) -> Result<Duration> {
    groups.iter().map(Group::used).sum()
}

/// Microseconds a piece.
pub fn each(used: Duration, operations: u64) -> f64 {
    used.as_secs_f64() * 1e6 / float(operations.max(1))
}
