//! The facts: read from `/proc`, `/sys` and the node's own folders, as they are and without a judgement.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};

use scheduler::model::UnixMs;

use crate::clock;
use crate::runtime::cgroup;

/// `OVERLAYFS_SUPER_MAGIC`, `NFS_SUPER_MAGIC` and FUSE's: no upper layer can be on these.
const NO_UPPER: [(u64, &str); 3] = [
    (0x794c_7630, "overlayfs"),
    (0x6969, "nfs"),
    (0x6573_5546, "fuse"),
];

/// What the checks judge by. Tests make their own.
#[derive(Debug, Clone, Default)]
#[allow(clippy::struct_excessive_bools, reason = "facts, each of its own kind")]
pub struct Ground {
    pub kernel: String,
    /// What a filter may do to a system call; empty without filters.
    pub seccomp: String,
    pub unified: bool,
    /// Controllers of whichever hierarchy there is.
    pub controllers: Vec<String>,
    pub freezer: bool,
    pub counts_swap: bool,
    pub has_swap: bool,
    /// Why the node's rules do not stand, if they do not.
    pub firewall: Option<String>,
    pub filesystems: String,
    /// What kind of file system the data is on, when no upper layer can be.
    pub no_upper: Option<&'static str>,
    pub lsm: Option<String>,
    pub pressure: bool,
    pub open_files: u64,
    pub pids: u64,
    /// How far the clock is before the cluster's founding, in milliseconds.
    pub clock_behind: u64,
    pub vulnerable: Vec<String>,
    pub core_piped: bool,
    /// Those the daemon found at its start, which is not looked at again.
    pub resolvers: Vec<SocketAddr>,
}

impl Ground {
    pub fn look(data: &Path, table: &str, founded: UnixMs) -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let unified = cgroup::is_unified();
        let kind = rustix::fs::statfs(data).map_or(0, |stat| stat.f_type.unsigned_abs());
        let files = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        Self {
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            seccomp: read("/proc/sys/kernel/seccomp/actions_avail"),
            unified,
            controllers: controllers(unified),
            freezer: unified || Path::new("/sys/fs/cgroup/freezer").is_dir(),
            counts_swap: counts_swap(unified),
            has_swap: read("/proc/swaps").lines().count() > 1,
            firewall: firewall(table),
            filesystems: read("/proc/filesystems"),
            no_upper: NO_UPPER
                .iter()
                .find(|(magic, _)| *magic == kind)
                .map(|(_, name)| *name),
            lsm: fs::read_to_string("/sys/kernel/security/lsm").ok(),
            pressure: Path::new("/proc/pressure/memory").exists(),
            open_files: files.maximum.unwrap_or(u64::MAX),
            pids: read("/proc/sys/kernel/pid_max").trim().parse().unwrap_or(0),
            clock_behind: founded.0.saturating_sub(clock::unix().0),
            vulnerable: vulnerable(),
            core_piped: read("/proc/sys/kernel/core_pattern").starts_with('|'),
            resolvers: Vec::new(),
        }
    }
}

fn controllers(unified: bool) -> Vec<String> {
    if unified {
        let text = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
        return text.split_whitespace().map(str::to_owned).collect();
    }
    let mounted = fs::read_dir("/sys/fs/cgroup")
        .into_iter()
        .flatten()
        .flatten();
    mounted
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

/// Version 2 shows the file in every group but the root.
fn counts_swap(unified: bool) -> bool {
    if !unified {
        return Path::new("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes").exists();
    }
    let groups = fs::read_dir("/sys/fs/cgroup")
        .into_iter()
        .flatten()
        .flatten();
    groups
        .into_iter()
        .any(|group| group.path().join("memory.swap.max").exists())
}

fn firewall(table: &str) -> Option<String> {
    for family in ["bridge", "ip"] {
        let list = Command::new("nft")
            .args(["list", "table", family, table])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .output();
        match list {
            Err(error) => return Some(format!("nft cannot be run: {error}")),
            Ok(said) if !said.status.success() => {
                return Some(format!("table {family} {table} is gone"));
            }
            Ok(_) => {}
        }
    }
    None
}

/// Processor flaws that the kernel knows of and does not guard against.
fn vulnerable() -> Vec<String> {
    let all = fs::read_dir("/sys/devices/system/cpu/vulnerabilities")
        .into_iter()
        .flatten()
        .flatten();
    let open = all.filter(|entry| {
        fs::read_to_string(entry.path()).is_ok_and(|text| text.starts_with("Vulnerable"))
    });
    let mut names: Vec<String> = open
        .filter_map(|e| e.file_name().into_string().ok())
        .collect();
    names.sort();
    names
}
