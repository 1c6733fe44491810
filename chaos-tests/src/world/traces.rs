//! What a world leaves in the system, found by its tag and removed: processes (of nodes, the wire
//! and the registry of images), mounts, namespaces, links, cgroups, files. Also the worlds of tests
//! that were killed before they could tidy up.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::node::pids;
use super::shell::{run, until};
use crate::disk::clock;

pub(super) const NAME: &str = "selvedge-e2e";
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// The names one world's things carry. Unique while its process lives.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Tag {
    pub pid: u32,
    pub number: u32,
}

impl Tag {
    pub fn name(&self) -> String {
        format!("{NAME}-{}-{}", self.pid, self.number)
    }

    pub fn dir(&self) -> PathBuf {
        std::env::temp_dir().join(self.name())
    }

    /// Short: the kernel's limit is 15 characters.
    pub fn link(&self, what: &str) -> String {
        format!("sv{}n{}-{what}", self.pid, self.number)
    }

    fn parse(name: &str) -> Option<Self> {
        let mut numbers = name.strip_prefix(NAME)?.strip_prefix('-')?.split('-');
        let pid = numbers.next()?.parse().ok()?;
        Some(Self {
            pid,
            number: numbers.next()?.parse().ok()?,
        })
    }
}

/// Removes the worlds of processes that are no more. One sweeper of the machine at a time: each ends
/// whatever has a dead world's folder among its words, the other's `umount` too.
pub(super) fn sweep() -> Result<()> {
    let all = std::env::temp_dir();
    let lock = fs::File::open(&all).with_context(|| format!("opening {}", all.display()))?;
    lock.lock().context("waiting for other sweeps to end")?;
    let folders = [all, PathBuf::from("/run/netns")];
    let entries = folders
        .iter()
        .flat_map(|folder| fs::read_dir(folder).into_iter().flatten());
    let names = entries
        .flatten()
        .filter_map(|e| Tag::parse(&e.file_name().to_string_lossy()));
    let dead = names.filter(|tag| !Path::new(&format!("/proc/{}", tag.pid)).exists());
    dead.collect::<BTreeSet<_>>().iter().try_for_each(remove)
}

/// Removes everything with this tag.
pub(super) fn remove(tag: &Tag) -> Result<()> {
    let dir = tag.dir();
    end_processes(&dir, &format!("/{}", tag.name()), &netns_files(tag))?;
    unmount_below(&dir)?;
    for file in netns_files(tag) {
        run("umount", [Path::new("--lazy"), &file])?;
        gone(fs::remove_file(&file)).with_context(|| format!("removing {}", file.display()))?;
    }
    for entry in fs::read_dir("/sys/class/net")?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(&tag.link("")) {
            // It may go by itself meanwhile, with the wire that held it.
            run("ip", ["link", "delete", &name])?;
        }
    }
    until("the world's cgroups end", PATIENCE, || {
        Ok(remove_cgroups(&tag.name()).map(|()| Some(()))?)
    })?;
    gone(fs::remove_dir_all(&dir)).with_context(|| format!("removing {}", dir.display()))?;
    // Of daemons with a wrong clock, and of programs that they ran.
    clock::sweep()
}

/// A world of a killed test may be swept by several others at once: whoever removed it, it is gone.
fn gone(removed: std::io::Result<()>) -> std::io::Result<()> {
    match removed {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Kills until nothing runs in the cgroup, in these network namespaces or those pinned in the
/// folder, and no program of ours has the folder among its words.
pub(super) fn end_processes(dir: &Path, cgroup: &str, hosts: &[PathBuf]) -> Result<()> {
    until("the processes end", PATIENCE, || {
        thaw(Path::new(&format!("/sys/fs/cgroup/freezer{cgroup}")));
        let pids = processes(dir, cgroup, hosts);
        let args: Vec<_> = pids.iter().map(ToString::to_string).collect();
        if !args.is_empty() {
            run("kill", ["-9".to_owned()].into_iter().chain(args))?;
        }
        Ok(pids.is_empty().then_some(()))
    })
}

/// The frozen die of nothing. A group that is not there has none.
fn thaw(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            thaw(&entry.path());
        }
    }
    fs::write(dir.join("freezer.state"), "THAWED").ok();
}

/// Unmounts what is mounted below the folder, the last first.
pub(super) fn unmount_below(dir: &Path) -> Result<()> {
    for at in mounts().into_iter().rev().filter(|at| at.starts_with(dir)) {
        run("umount", [Path::new("--lazy"), &at])?.ok()?;
    }
    Ok(())
}

fn netns_files(tag: &Tag) -> Vec<PathBuf> {
    let prefix = format!("{}-", tag.name());
    let entries = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    let ours = entries.filter(|e| e.file_name().to_string_lossy().starts_with(&prefix));
    ours.map(|e| e.path()).collect()
}

/// Where something is mounted, in the order in which it was.
fn mounts() -> Vec<PathBuf> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    text.lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(PathBuf::from)
        .collect()
}

/// See [`end_processes`].
fn processes(dir: &Path, cgroup: &str, hosts: &[PathBuf]) -> Vec<u32> {
    let inode = |path: PathBuf| fs::metadata(path).ok().map(|m| m.ino());
    let pinned = mounts()
        .into_iter()
        .filter(|at| at.starts_with(dir) && at != dir);
    let netns: BTreeSet<_> = hosts
        .iter()
        .cloned()
        .chain(pinned)
        .filter_map(inode)
        .collect();
    let (within, cgroup) = (format!("{}/", dir.display()), format!("{cgroup}/"));
    let ours = |pid: &u32| {
        let proc = PathBuf::from(format!("/proc/{pid}"));
        let read = |file: &str| fs::read(proc.join(file)).unwrap_or_default();
        let cgroups = String::from_utf8_lossy(&read("cgroup")).into_owned();
        let words = String::from_utf8_lossy(&read("cmdline")).into_owned();
        cgroups
            .lines()
            .any(|line| format!("{line}/").contains(&cgroup))
            || words.contains(&within) && words.contains("selvedge")
            || inode(proc.join("ns/net")).is_some_and(|n| netns.contains(&n))
    };
    pids()
        .filter(|pid| *pid != std::process::id())
        .filter(ours)
        .collect()
}

/// Removes this cgroup and those below it, in every hierarchy.
pub(super) fn remove_cgroups(cgroup: &str) -> std::io::Result<()> {
    fn tree(dir: &Path) -> std::io::Result<()> {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            if entry.path().is_dir() {
                tree(&entry.path())?;
            }
        }
        gone(fs::remove_dir(dir))
    }
    let root = PathBuf::from("/sys/fs/cgroup");
    let controllers = fs::read_dir(&root)?.flatten().map(|c| c.path());
    let roots = controllers.chain([root]);
    let trees = roots.map(|root| root.join(cgroup.trim_start_matches('/')));
    trees.filter(|t| t.is_dir()).try_for_each(|t| tree(&t))
}
