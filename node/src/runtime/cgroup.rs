//! The control groups of one container, under whichever hierarchy the machine has: version 1
//! with its controllers mounted one by one, or version 2 alone.
//!
//! libcontainer makes them and puts the container in; here they are read, emptied and removed,
//! also when the shim that owned them is gone. Version 1 is what the tests run on.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

const ROOT: &str = "/sys/fs/cgroup";
const PAUSE: Duration = Duration::from_millis(2);
/// Some milliseconds of the kernel's time: who asks meanwhile waits for no more.
const RECLAIMED_AT_ONCE: u64 = 16 << 20;
/// What a group has that was given none, by either version.
const USUAL_SHARES: u64 = 1024;
const USUAL_WEIGHT: u64 = 100;
/// The kernel's bound of weights.
const MOST_WEIGHT: u64 = 10_000;
/// The kernel's bounds of shares.
const LEAST_SHARES: u64 = 2;
const MOST_SHARES: u64 = 262_144;

/// Whether version 2 is the machine's only hierarchy.
#[must_use]
pub fn is_unified() -> bool {
    static UNIFIED: OnceLock<bool> = OnceLock::new();
    *UNIFIED.get_or_init(|| Path::new(ROOT).join("cgroup.controllers").exists())
}

/// The folders of one group, one per hierarchy.
#[derive(Debug, Clone)]
pub struct Cgroup {
    folders: Vec<PathBuf>,
}

impl Cgroup {
    /// The group at `path` (absolute below the cgroup root). It need not exist.
    #[must_use]
    pub fn at(path: &Path) -> Self {
        // Looked for once: what is mounted stays, and groups are read often.
        static ROOTS: OnceLock<Vec<PathBuf>> = OnceLock::new();
        let below = path.strip_prefix("/").unwrap_or(path);
        let roots = ROOTS.get_or_init(hierarchies).iter();
        Self {
            folders: roots.map(|root| root.join(below)).collect(),
        }
    }

    #[must_use]
    pub fn exists(&self) -> bool {
        self.folders.iter().any(|f| f.exists())
    }

    /// The folder in which version 1 keeps `controller`, or version 2's only folder.
    #[must_use]
    pub fn folder(&self, controller: &str) -> Option<PathBuf> {
        match self.folders.as_slice() {
            [only] if is_unified() => Some(only.clone()),
            many => {
                let root = Path::new(ROOT).join(controller);
                many.iter().find(|f| f.starts_with(&root)).cloned()
            }
        }
    }

    /// Processes the kernel killed in it because its memory was used up.
    #[must_use]
    pub fn oom_kills(&self) -> u64 {
        let Some(folder) = self.folder("memory") else {
            return 0;
        };
        let file = if is_unified() {
            "memory.events"
        } else {
            "memory.oom_control"
        };
        let text = fs::read_to_string(folder.join(file)).unwrap_or_default();
        text.lines()
            .filter_map(|line| line.strip_prefix("oom_kill "))
            .find_map(|count| count.trim().parse().ok())
            .unwrap_or(0)
    }

    /// Makes the groups above it under version 2, where libcontainer's own making of them fails when
    /// another container's of the same moment comes first.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn make_above(&self) -> io::Result<()> {
        let above = self.folders.iter().filter_map(|folder| folder.parent());
        above
            .filter(|_| is_unified())
            .try_for_each(fs::create_dir_all)
    }

    /// Puts the calling process into it.
    ///
    /// # Errors
    /// It is nowhere, or the kernel refused.
    pub fn join(&self) -> io::Result<()> {
        let mut joined = false;
        for folder in self.folders.iter().filter(|folder| folder.exists()) {
            fs::write(folder.join("cgroup.procs"), "0")?;
            joined = true;
        }
        if joined {
            Ok(())
        } else {
            Err(io::ErrorKind::NotFound.into())
        }
    }

    /// Has the kernel take back the pages of its processes that can be read again or put to swap, and says
    /// how many bytes that was. It may be less than everything, which is no error. Version 2 takes them
    /// piece by piece, as long as `held` says so; version 1 knows all or nothing.
    ///
    /// # Errors
    /// It has no memory controller, or it is gone.
    pub fn reclaim(&self, held: impl Fn() -> bool) -> io::Result<u64> {
        let folder = self.folder("memory").ok_or(io::ErrorKind::Unsupported)?;
        let (usage, file) = if is_unified() {
            ("memory.current", "memory.reclaim")
        } else {
            ("memory.usage_in_bytes", "memory.force_empty")
        };
        let used = || -> io::Result<u64> {
            let text = fs::read_to_string(folder.join(usage))?;
            text.trim().parse().map_err(io::Error::other)
        };
        let before = used()?;
        let mut left = before;
        while held() && left > 0 {
            let wanted = if is_unified() {
                left.min(RECLAIMED_AT_ONCE)
            } else {
                0
            };
            match fs::write(folder.join(file), wanted.to_string()) {
                // It could not take all of it.
                Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => break,
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => break,
                done => done?,
            }
            left = if is_unified() { left - wanted } else { 0 };
        }
        Ok(before.saturating_sub(used()?))
    }

    /// Sets its share of the processors where others want them too, or the `part`th part of it. `shares`
    /// are as version 1 counts them; `None` is what a group has that was given none.
    ///
    /// # Errors
    /// It has no such controller, or it is gone.
    pub fn set_shares(&self, shares: Option<u64>, part: u64) -> io::Result<()> {
        let folder = self.folder("cpu").ok_or(io::ErrorKind::Unsupported)?;
        if is_unified() {
            let weight = shares.map_or(USUAL_WEIGHT, weight) / part;
            return fs::write(folder.join("cpu.weight"), weight.max(1).to_string());
        }
        let shares = shares.unwrap_or(USUAL_SHARES) / part;
        let shares = shares.max(LEAST_SHARES).to_string();
        fs::write(folder.join("cpu.shares"), shares)
    }

    /// Stops all processes in it, or lets them go on. Returns when the kernel has taken note; they
    /// are still within microseconds.
    ///
    /// # Errors
    /// The machine has no freezer, or it refused.
    pub fn freeze(&self, frozen: bool) -> io::Result<()> {
        let (file, state) = match (is_unified(), frozen) {
            (true, true) => ("cgroup.freeze", "1"),
            (true, false) => ("cgroup.freeze", "0"),
            (false, true) => ("freezer.state", "FROZEN"),
            (false, false) => ("freezer.state", "THAWED"),
        };
        let folder = self.folder("freezer").ok_or(io::ErrorKind::Unsupported)?;
        fs::write(folder.join(file), state)
    }

    /// Kills everything in it and removes it, waiting until `deadline` for the dying to be gone.
    ///
    /// # Errors
    /// The last refusal when it could not be emptied in time.
    pub fn remove(&self, deadline: Duration) -> io::Result<()> {
        // Under version 1 the frozen die of nothing. Not there, or no freezer: nothing is frozen.
        let _ = self.freeze(false);
        let end = Instant::now() + deadline;
        for folder in &self.folders {
            loop {
                match remove_tree(folder) {
                    Ok(()) => break,
                    Err(refusal) if Instant::now() >= end => return Err(refusal),
                    Err(_) => {
                        kill_members(folder);
                        std::thread::sleep(PAUSE);
                    }
                }
            }
        }
        Ok(())
    }
}

/// Shares of version 1 as version 2 weighs them: the conversion of the OCI runtimes (runc 1.3.2 and what follows
/// it, libcontainer among them), which made the group. The usual 1024 are the usual 100.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "of 2 to 262144 comes 1 to 10000"
)]
fn weight(shares: u64) -> u64 {
    let power = (shares.clamp(LEAST_SHARES, MOST_SHARES) as f64).log2();
    let exponent = (power * power + 125.0 * power) / 612.0 - 7.0 / 34.0;
    (10_f64.powf(exponent).ceil() as u64).clamp(1, MOST_WEIGHT)
}

/// Removes a node's own group once no container is left in it. Groups still in use stay.
pub fn remove_if_empty(path: &Path) {
    for folder in Cgroup::at(path).folders {
        // Refused with EBUSY while a container is below it, which is the point.
        let _ = fs::remove_dir(folder);
    }
}

/// Makes the kernel ready for a process to change its group. It waits for all processors to take
/// note of the first such change (8 to 16 ms), and a while after it knows that they have: this is a
/// change from our own group to the same. Blocks as long.
///
/// # Errors
/// Our group is not known, or the kernel refused.
pub fn rouse() -> io::Result<()> {
    let hierarchies = hierarchies();
    let root = hierarchies.first().ok_or(io::ErrorKind::NotFound)?;
    let groups = fs::read_to_string("/proc/self/cgroup")?;
    let own = own_group(&groups, root).ok_or(io::ErrorKind::NotFound)?;
    let own = root.join(own.trim_start_matches('/'));
    fs::write(own.join("cgroup.procs"), std::process::id().to_string())
}

/// Where `groups` (as `/proc/PID/cgroup` says it) has a process in the hierarchy mounted at `root`.
fn own_group<'a>(groups: &'a str, root: &Path) -> Option<&'a str> {
    let name = root.strip_prefix(ROOT).ok()?.to_str()?;
    groups.lines().find_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        (controllers == name).then_some(path)
    })
}

/// The mounted hierarchies a container is put into.
fn hierarchies() -> Vec<PathBuf> {
    if is_unified() {
        return vec![PathBuf::from(ROOT)];
    }
    let Ok(entries) = fs::read_dir(ROOT) else {
        return Vec::new();
    };
    let mut roots: Vec<PathBuf> = entries
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .filter(|path| !path.is_symlink() && path.join("cgroup.procs").exists())
        .filter(|path| !path.ends_with("unified") && !path.ends_with("systemd"))
        .collect();
    roots.sort();
    roots
}

/// Removes `folder` and groups below it; a group that is not there is removed.
fn remove_tree(folder: &Path) -> io::Result<()> {
    match fs::remove_dir(folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(_) => {}
        Ok(()) => return Ok(()),
    }
    for entry in fs::read_dir(folder)?.filter_map(Result::ok) {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(folder)
}

fn kill_members(folder: &Path) {
    let text = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    for pid in text.lines().filter_map(|line| line.parse::<i32>().ok()) {
        super::process::kill(pid, rustix::process::Signal::KILL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_group_is_found_under_either_version() {
        let one = "5:pids:/a:b/c\n4:cpu,cpuacct:/d\n0::/e\n";
        let in_one = |name: &str| own_group(one, &Path::new(ROOT).join(name));
        assert_eq!(in_one("pids"), Some("/a:b/c"));
        assert_eq!(in_one("cpu,cpuacct"), Some("/d"));
        assert_eq!(in_one("memory"), None);
        assert_eq!(own_group("0::/e/f\n", Path::new(ROOT)), Some("/e/f"));
    }

    #[test]
    fn shares_are_weighed_as_runtimes_do() {
        let shares = [2, 512, 1024, 22_000, 262_144];
        assert_eq!(shares.map(weight), [1, 59, 100, 1204, 10_000]);
    }

    #[test]
    fn to_rouse_the_kernel_moves_nobody() {
        let before = fs::read_to_string("/proc/self/cgroup").unwrap();
        rouse().unwrap();
        assert_eq!(before, fs::read_to_string("/proc/self/cgroup").unwrap());
    }
}
