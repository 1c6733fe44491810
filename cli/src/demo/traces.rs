//! Everything a demo leaves in the system, found by its names and removed: processes, mounts,
//! namespaces, links, cgroups, files. Works on a whole demo, on half of one, and on none, also
//! when the daemons were killed. Touches nothing that does not carry the demo's names.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use tokio::time::sleep;

use super::hosts::{BRIDGE, CGROUP, LINK_PREFIX, NETNS_PREFIX};
use super::shell::Run;

/// Written first into a demo's folder; a folder without it is not ours to remove.
pub(super) const MARKER: &str = ".selvedge-demo";
/// In the marker: [`NETNS_DIR`] was a mount before the demo, so it stays one.
const FOUND_MOUNTED: &str = "found /run/netns mounted\n";
/// Remembers the folder, so that `demo down` finds it without being told.
const REMEMBERED: &str = "/run/selvedge-demo.dir";
const NETNS_DIR: &str = "/run/netns";
const CGROUP_ROOT: &str = "/sys/fs/cgroup";
/// A killed process with much memory on a busy machine takes a while to go.
const PATIENCE: Duration = Duration::from_secs(15);
const PACE: Duration = Duration::from_millis(20);

/// What was removed, for the operator.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Removed {
    pub processes: usize,
    pub mounts: usize,
    pub namespaces: usize,
    pub links: usize,
    pub cgroups: usize,
}

impl fmt::Display for Removed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            processes,
            mounts,
            namespaces,
            links,
            cgroups,
        } = self;
        if *self == Self::default() {
            return write!(f, "there was no demo to remove");
        }
        write!(
            f,
            "removed {processes} processes, {mounts} mounts, {namespaces} namespaces, \
             {links} links and {cgroups} cgroups"
        )
    }
}

/// Makes `dir` a demo's folder.
pub(super) fn claim(dir: &Path) -> Result<()> {
    let shown = dir.display();
    let empty = fs::read_dir(dir).map_or(true, |mut entries| entries.next().is_none());
    if !empty && !dir.join(MARKER).exists() {
        bail!("{shown} is not empty and no demo's: choose another with --dir");
    }
    fs::create_dir_all(dir).with_context(|| format!("making {shown}"))?;
    let netns_dir = if netns_dir_is_mounted() {
        FOUND_MOUNTED
    } else {
        ""
    };
    fs::write(dir.join(MARKER), netns_dir).with_context(|| format!("writing to {shown}"))?;
    fs::write(REMEMBERED, dir.as_os_str().as_bytes()).context("remembering the folder")
}

/// Removes every trace; `dir` and the remembered folder are looked into. Twice does no harm.
pub(super) async fn remove(dir: &Path) -> Result<Removed> {
    let mut dirs = BTreeSet::from([absolute(dir)]);
    dirs.extend(
        fs::read(REMEMBERED)
            .ok()
            .map(|p| PathBuf::from(std::ffi::OsStr::from_bytes(&p))),
    );
    let removed = Removed {
        processes: end_processes(&dirs).await?,
        mounts: unmount(&dirs)?,
        namespaces: remove_netns()?,
        links: remove_links().await?,
        cgroups: remove_cgroups().await?,
    };
    release_netns_dir(&dirs)?;
    for dir in &dirs {
        if dir.join(MARKER).exists() {
            fs::remove_dir_all(dir).with_context(|| format!("removing {}", dir.display()))?;
        }
    }
    fs::remove_file(REMEMBERED).ok();
    Ok(removed)
}

fn absolute(dir: &Path) -> PathBuf {
    fs::canonicalize(dir)
        .or_else(|_| std::path::absolute(dir))
        .unwrap_or_else(|_| dir.to_owned())
}

/// A process as /proc shows it.
pub(super) struct Process {
    pub pid: i32,
}

/// All processes of this pid namespace.
pub(super) fn processes() -> impl Iterator<Item = Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|e| {
        Some(Process {
            pid: e.file_name().to_str()?.parse().ok()?,
        })
    })
}

impl Process {
    fn at(&self, file: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{file}", self.pid))
    }

    pub fn words(&self) -> Vec<String> {
        let line = fs::read(self.at("cmdline")).unwrap_or_default();
        let words = line.split(|b| *b == 0).filter(|w| !w.is_empty());
        words
            .map(|w| String::from_utf8_lossy(w).into_owned())
            .collect()
    }

    /// Whether its executable has this name, also when the file was replaced since.
    pub fn runs(&self, program: &str) -> bool {
        let Ok(exe) = fs::read_link(self.at("exe")) else {
            return false;
        };
        let name = exe.file_name().map(|n| n.to_string_lossy().into_owned());
        name.is_some_and(|n| n.trim_end_matches(" (deleted)") == program)
    }

    fn netns(&self) -> Option<u64> {
        fs::metadata(self.at("ns/net")).ok().map(|m| m.ino())
    }

    fn in_our_cgroup(&self) -> bool {
        let text = fs::read_to_string(self.at("cgroup")).unwrap_or_default();
        text.lines()
            .any(|line| line.split('/').skip(1).any(|part| part == CGROUP))
    }

    /// A daemon, a shim or the registry of a demo in one of `dirs`. An editor with a file of the
    /// demo open is not.
    fn serves(&self, dirs: &BTreeSet<PathBuf>) -> bool {
        (self.runs("selvedged") || self.runs("docker-registry"))
            && self
                .words()
                .iter()
                .any(|w| dirs.iter().any(|dir| Path::new(w).starts_with(dir)))
    }
}

pub(super) fn kill_9(pid: i32) -> io::Result<()> {
    // `kill` has no safe wrapper in the libraries at hand; the shell's has the same effect.
    let status = std::process::Command::new("kill")
        .args(["-9", &pid.to_string()])
        .status()?;
    if status.success() {
        Ok(())
    } else {
        Err(io::Error::other(format!("kill -9 {pid}")))
    }
}

async fn end_processes(dirs: &BTreeSet<PathBuf>) -> Result<usize> {
    let mut seen = BTreeSet::new();
    let began = Instant::now();
    loop {
        // Again each round: a dying shim may have had a child in the making.
        let netns = our_netns(dirs);
        let ours: Vec<_> = processes()
            .filter(|p| p.pid != std::process::id().cast_signed())
            .filter(|p| {
                p.in_our_cgroup() || p.netns().is_some_and(|n| netns.contains(&n)) || p.serves(dirs)
            })
            .map(|p| p.pid)
            .collect();
        if ours.is_empty() {
            reaped(&seen).await;
            return Ok(seen.len());
        }
        if began.elapsed() > PATIENCE {
            bail!("processes of the demo do not end: {ours:?}");
        }
        for pid in ours {
            seen.insert(pid);
            // It may have ended meanwhile.
            kill_9(pid).ok();
        }
        sleep(PACE).await;
    }
}

/// Waits a moment for init to take note of the dead, so that nobody finds them in `ps`.
async fn reaped(pids: &BTreeSet<i32>) {
    const MOMENT: Duration = Duration::from_secs(3);
    let began = Instant::now();
    let listed = |pid: &i32| Path::new(&format!("/proc/{pid}")).exists();
    while pids.iter().any(listed) && began.elapsed() < MOMENT {
        sleep(PACE).await;
    }
}

/// Inodes of the namespaces pinned under our names or in a demo's folder.
fn our_netns(dirs: &BTreeSet<PathBuf>) -> BTreeSet<u64> {
    let named = netns_files();
    let pinned = mounts()
        .into_iter()
        .filter(|(kind, at)| kind == "nsfs" && below(at, dirs));
    let files = named.into_iter().chain(pinned.map(|(_, at)| at));
    files
        .filter_map(|file| fs::metadata(file).ok())
        .map(|m| m.ino())
        .collect()
}

fn netns_files() -> Vec<PathBuf> {
    let entries = fs::read_dir(NETNS_DIR).into_iter().flatten().flatten();
    let ours = entries.filter(|e| e.file_name().to_string_lossy().starts_with(NETNS_PREFIX));
    ours.map(|e| e.path()).collect()
}

fn below(path: &Path, dirs: &BTreeSet<PathBuf>) -> bool {
    dirs.iter().any(|dir| path.starts_with(dir))
}

/// Type and place of every mount, in the order in which they were made.
fn mounts() -> Vec<(String, PathBuf)> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    text.lines().filter_map(mount_line).collect()
}

fn mount_line(line: &str) -> Option<(String, PathBuf)> {
    let (before, after) = line.split_once(" - ")?;
    let place = before.split(' ').nth(4)?;
    let kind = after.split(' ').next()?;
    // The kernel writes space, tab, newline and backslash as octal.
    let place = [
        ("\\040", " "),
        ("\\011", "\t"),
        ("\\012", "\n"),
        ("\\134", "\\"),
    ]
    .iter()
    .fold(place.to_owned(), |text, (code, plain)| {
        text.replace(code, plain)
    });
    Some((kind.to_owned(), PathBuf::from(place)))
}

fn unmount(dirs: &BTreeSet<PathBuf>) -> Result<usize> {
    let ours: Vec<_> = mounts()
        .into_iter()
        .filter(|(_, at)| below(at, dirs))
        .collect();
    for (_, at) in ours.iter().rev() {
        detach(at).with_context(|| format!("unmounting {}", at.display()))?;
    }
    Ok(ours.len())
}

/// Unmounts at once; what still uses it keeps it until it lets go.
fn detach(at: &Path) -> io::Result<()> {
    let lazy = std::process::Command::new("umount")
        .arg("--lazy")
        .arg("--")
        .arg(at)
        .output()?;
    if lazy.status.success() {
        return Ok(());
    }
    Err(io::Error::other(
        String::from_utf8_lossy(&lazy.stderr).trim().to_owned(),
    ))
}

fn remove_netns() -> Result<usize> {
    let ours = netns_files();
    for file in &ours {
        // An interrupted `ip netns add` leaves a file without a namespace.
        if mounts().iter().any(|(_, at)| at == file) {
            detach(file)?;
        }
        fs::remove_file(file).with_context(|| format!("removing {}", file.display()))?;
    }
    Ok(ours.len())
}

/// `ip netns add` mounts its folder over itself; where it was not so before the demo, and nobody
/// has a namespace there, it is so no more.
fn release_netns_dir(dirs: &BTreeSet<PathBuf>) -> Result<()> {
    let mut markers = dirs
        .iter()
        .filter_map(|dir| fs::read_to_string(dir.join(MARKER)).ok());
    let made_by_us = markers.any(|marker| marker != FOUND_MOUNTED);
    let empty = fs::read_dir(NETNS_DIR).is_ok_and(|mut entries| entries.next().is_none());
    if made_by_us && empty && netns_dir_is_mounted() {
        detach(Path::new(NETNS_DIR)).context("unmounting the folder of namespaces")?;
    }
    Ok(())
}

fn netns_dir_is_mounted() -> bool {
    mounts().iter().any(|(_, at)| at == Path::new(NETNS_DIR))
}

async fn remove_links() -> Result<usize> {
    let mut removed = 0;
    for entry in fs::read_dir("/sys/class/net")
        .context("listing links")?
        .flatten()
    {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name == BRIDGE || name.starts_with(LINK_PREFIX) {
            let gone = Run::new("ip")
                .args(["link", "delete", &name])
                .outcome()
                .await?;
            // A veth goes with its namespace, which goes a moment after its last process.
            if gone.code != 0 && entry.path().exists() {
                bail!("removing link {name}: {}", gone.stderr.trim());
            }
            removed += 1;
        }
    }
    Ok(removed)
}

/// One tree per v1 controller, or one in all on v2.
async fn remove_cgroups() -> Result<usize> {
    let mut trees = vec![PathBuf::from(CGROUP_ROOT).join(CGROUP)];
    let controllers = fs::read_dir(CGROUP_ROOT).into_iter().flatten().flatten();
    trees.extend(controllers.map(|c| c.path().join(CGROUP)));
    let mut removed = 0;
    for tree in trees.iter().filter(|t| t.is_dir()) {
        let began = Instant::now();
        // A process leaves its cgroup a moment after it has been reaped.
        while let Err(error) = remove_cgroup_tree(tree, &mut removed) {
            if began.elapsed() > PATIENCE {
                return Err(error).with_context(|| format!("removing {}", tree.display()));
            }
            sleep(PACE).await;
        }
    }
    Ok(removed)
}

fn remove_cgroup_tree(dir: &Path, removed: &mut usize) -> io::Result<()> {
    for entry in fs::read_dir(dir)?.flatten() {
        if entry.file_type()?.is_dir() {
            remove_cgroup_tree(&entry.path(), removed)?;
        }
    }
    fs::remove_dir(dir)?;
    *removed += 1;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_lines_are_read() {
        let line = r"36 35 98:0 / /var/lib/a\040b/merged rw,noatime shared:1 - overlay overlay rw";
        let read = mount_line(line).unwrap();
        assert_eq!(
            read,
            ("overlay".to_owned(), PathBuf::from("/var/lib/a b/merged"))
        );
        assert_eq!(mount_line("garbage"), None);
    }

    #[test]
    fn a_folder_with_other_things_in_it_is_not_taken() {
        let dir = std::env::temp_dir().join(format!("selvedge-claim-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("letter.txt"), "dear").unwrap();
        let error = claim(&dir).unwrap_err().to_string();
        fs::remove_dir_all(&dir).unwrap();
        assert!(error.contains("no demo's"), "{error}");
    }

    #[test]
    fn a_process_is_known_by_its_program() {
        let me = Process {
            pid: std::process::id().cast_signed(),
        };
        let exe = std::env::current_exe().unwrap();
        assert!(me.runs(&exe.file_name().unwrap().to_string_lossy()));
        assert!(!me.runs("selvedged") && !me.in_our_cgroup());
        assert!(me.netns().is_some() && !me.words().is_empty());
    }
}
