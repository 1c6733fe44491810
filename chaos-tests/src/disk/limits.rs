//! Limits put on what runs already, and lifted again: files of one process (M4), memory, processor
//! and number of processes of a control group (M1 to M3, P5), and a group of its own for a daemon.
//! Owns the kernel's files for both layouts of cgroups. The machines this is built on have version 1
//! alone: version 2 is written from the kernel's manual and not run here.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Resource, Rlimit, prlimit};

use super::mount::require_root;
use crate::world::until;

const PATIENCE: Duration = Duration::from_secs(20);
const ROOT: &str = "/sys/fs/cgroup";
/// The kernel's own for both versions, in microseconds.
const PERIOD: u64 = 100_000;

/// A process that may open few files, until this is healed or dropped.
#[derive(Debug)]
pub struct FewFiles {
    pid: Pid,
    most: u64,
    before: Option<Rlimit>,
}

impl FewFiles {
    /// Only the soft limit goes down: raising the hard one again would take a capability that even
    /// root may lack.
    pub fn on(pid: u32, most: u64) -> Result<Self> {
        let pid = Pid::from_raw(pid.cast_signed()).context("no pid")?;
        let (_, maximum) = files(pid)?;
        let limit = Rlimit {
            current: Some(most),
            maximum: Some(maximum),
        };
        let before = Some(prlimit(Some(pid), Resource::Nofile, limit)?);
        let few = Self { pid, most, before };
        few.check()?;
        Ok(few)
    }

    /// Shows that the process has this limit.
    pub fn check(&self) -> Result<()> {
        let (soft, _) = files(self.pid)?;
        ensure!(soft == self.most, "it may open {soft} files");
        Ok(())
    }

    pub fn heal(mut self) -> Result<()> {
        self.lift()
    }

    fn lift(&mut self) -> Result<()> {
        match self.before.take() {
            None => Ok(()),
            Some(before) => match prlimit(Some(self.pid), Resource::Nofile, before) {
                // Gone, and its limit with it.
                Ok(_) | Err(rustix::io::Errno::SRCH) => Ok(()),
                Err(error) => Err(error).context("lifting the limit"),
            },
        }
    }
}

impl Drop for FewFiles {
    fn drop(&mut self) {
        if let Err(error) = self.lift() {
            eprintln!("{error:#}");
        }
    }
}

/// A process's soft and hard limit of open files.
fn files(pid: Pid) -> Result<(u64, u64)> {
    let limits = fs::read_to_string(format!("/proc/{}/limits", pid.as_raw_nonzero()))?;
    let line = limits
        .lines()
        .find_map(|l| l.strip_prefix("Max open files"));
    let mut words = line.context("no limit of files")?.split_whitespace();
    let mut next = || {
        words
            .next()
            .context("a short line")?
            .parse()
            .context("files")
    };
    Ok((next()?, next()?))
}

/// What a control group may have at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// In bytes.
    Memory(u64),
    /// In hundredths of one core.
    Cpu(u64),
    Processes(u64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

impl Version {
    fn here() -> Self {
        if Path::new(ROOT).join("cgroup.controllers").exists() {
            Self::Two
        } else {
            Self::One
        }
    }
}

impl Limit {
    fn controller(self) -> &'static str {
        match self {
            Self::Memory(_) => "memory",
            Self::Cpu(_) => "cpu",
            Self::Processes(_) => "pids",
        }
    }

    /// The kernel's file below its root, and what is written into it.
    fn file(self, version: Version, cgroup: &str) -> (PathBuf, String) {
        let quota = |hundredths| hundredths * PERIOD / 100;
        let (name, value) = match (version, self) {
            (Version::One, Self::Memory(bytes)) => ("memory.limit_in_bytes", bytes.to_string()),
            (Version::One, Self::Cpu(part)) => ("cpu.cfs_quota_us", quota(part).to_string()),
            (Version::Two, Self::Memory(bytes)) => ("memory.max", bytes.to_string()),
            (Version::Two, Self::Cpu(part)) => ("cpu.max", format!("{} {PERIOD}", quota(part))),
            (_, Self::Processes(most)) => ("pids.max", most.to_string()),
        };
        let controller = match version {
            Version::One => self.controller(),
            Version::Two => "",
        };
        let group = Path::new(controller).join(cgroup.trim_start_matches('/'));
        (group.join(name), value)
    }
}

/// A limit in force on a control group, until it is healed or dropped.
#[derive(Debug)]
pub struct Limited {
    file: PathBuf,
    value: String,
    before: Option<String>,
}

impl Limited {
    /// On a group as a node names it: `/world/node`.
    pub fn on(cgroup: &str, limit: Limit) -> Result<Self> {
        require_root()?;
        let (file, value) = limit.file(Version::here(), cgroup);
        let file = Path::new(ROOT).join(file);
        let before = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        write(&file, &value)?;
        let before = Some(before.trim().to_owned());
        let limited = Self {
            file,
            value,
            before,
        };
        limited.check()?;
        Ok(limited)
    }

    /// Shows that the kernel has the limit.
    pub fn check(&self) -> Result<()> {
        let now = fs::read_to_string(&self.file)?;
        ensure!(
            now.trim() == self.value,
            "{} says {now}",
            self.file.display()
        );
        Ok(())
    }

    pub fn heal(mut self) -> Result<()> {
        self.lift()
    }

    fn lift(&mut self) -> Result<()> {
        match self.before.take() {
            // The group may have gone meanwhile, and its limit with it.
            Some(before) if self.file.exists() => write(&self.file, &before),
            _ => Ok(()),
        }
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        if let Err(error) = self.lift() {
            eprintln!("{error:#}");
        }
    }
}

/// A group of its own for one process and those it starts, until it is dropped; a daemon's
/// containers have groups of theirs. Put it below the world's group, which the reaper removes.
#[derive(Debug)]
pub struct Cage {
    cgroup: String,
    pid: u32,
    /// The group's folders, and those the process came from.
    folders: Vec<(PathBuf, PathBuf)>,
}

impl Cage {
    pub fn around(pid: u32, cgroup: &str) -> Result<Self> {
        let cage = Self::beside(pid, cgroup)?;
        cage.enter()?;
        Ok(cage)
    }

    /// A group for the process, which does not enter it yet: under version 1 the kernel refuses
    /// a limit of memory below what a group has already taken.
    pub fn beside(pid: u32, cgroup: &str) -> Result<Self> {
        require_root()?;
        let mut cage = Self {
            cgroup: cgroup.to_owned(),
            pid,
            folders: Vec::new(),
        };
        let name = cgroup.trim_start_matches('/');
        for root in roots() {
            let from = root.join(group_of(pid, &root)?.trim_start_matches('/'));
            let own = root.join(name);
            fs::create_dir_all(&own).with_context(|| own.display().to_string())?;
            cage.folders.push((own, from));
        }
        Ok(cage)
    }

    pub fn enter(&self) -> Result<()> {
        let mut groups = self.folders.iter().map(|(own, _)| own.join("cgroup.procs"));
        groups.try_for_each(|group| write(&group, &self.pid.to_string()))
    }

    pub fn limit(&self, limit: Limit) -> Result<Limited> {
        Limited::on(&self.cgroup, limit)
    }

    /// In how many periods of the processor's limit somebody in here had to wait.
    pub fn held_back(&self) -> Result<u64> {
        let stats = self.folders.iter().map(|(own, _)| own.join("cpu.stat"));
        let texts = stats.filter_map(|stat| fs::read_to_string(stat).ok());
        let counts = texts.filter_map(|text| {
            let count = text.lines().find_map(|l| l.strip_prefix("nr_throttled "))?;
            count.parse().ok()
        });
        counts.max().context("no cpu.stat counts")
    }

    fn open(&self) -> Result<()> {
        for (own, from) in &self.folders {
            if Path::new("/proc").join(self.pid.to_string()).exists() {
                // It may end between these lines; then nothing is left to move.
                write(&from.join("cgroup.procs"), &self.pid.to_string()).ok();
            }
            until("the cage is empty", PATIENCE, || {
                for pid in fs::read_to_string(own.join("cgroup.procs"))?.lines() {
                    write(&from.join("cgroup.procs"), pid).ok();
                }
                Ok(fs::remove_dir(own).map(Some)?)
            })?;
        }
        Ok(())
    }
}

impl Drop for Cage {
    fn drop(&mut self) {
        if let Err(error) = self.open() {
            eprintln!("{}: {error:#}", self.cgroup);
        }
    }
}

/// The trees that the limits of this room live in.
fn roots() -> Vec<PathBuf> {
    match Version::here() {
        Version::Two => vec![PathBuf::from(ROOT)],
        Version::One => ["memory", "cpu", "pids"]
            .map(|controller| Path::new(ROOT).join(controller))
            .to_vec(),
    }
}

/// The group a process is in, of the tree at this root.
fn group_of(pid: u32, root: &Path) -> Result<String> {
    let controller = root.file_name().unwrap_or_default().to_string_lossy();
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let group = groups.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, group) = (parts.next()?, parts.next()?);
        let same = controllers.split(',').any(|c| c == controller);
        let unified = controllers.is_empty() && root == Path::new(ROOT);
        (same || unified).then(|| group.to_owned())
    });
    group.with_context(|| format!("process {pid} is in no group of {controller}"))
}

fn write(file: &Path, text: &str) -> Result<()> {
    fs::write(file, text).with_context(|| format!("writing {text} to {}", file.display()))
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use super::*;

    /// A shell that does each script it is sent in turn.
    struct Shell(Child);

    impl Shell {
        fn new() -> Result<Self> {
            let mut command = Command::new("bash");
            let command = command.stdin(Stdio::piped()).stdout(Stdio::piped());
            Ok(Self(command.stderr(Stdio::null()).spawn()?))
        }

        fn says(&mut self, script: &str) -> Result<String> {
            use std::io::{BufRead as _, BufReader, Write as _};
            let stdin = self.0.stdin.as_mut().context("no stdin")?;
            writeln!(stdin, "{script}")?;
            let mut line = String::new();
            let stdout = self.0.stdout.as_mut().context("no stdout")?;
            // One byte at a time in effect: nothing beyond the line may be swallowed.
            BufReader::with_capacity(1, stdout).read_line(&mut line)?;
            Ok(line.trim().to_owned())
        }
    }

    impl Drop for Shell {
        fn drop(&mut self) {
            self.0.kill().ok();
            self.0.wait().ok();
        }
    }

    fn cage(shell: &Shell, what: &str) -> Result<Cage> {
        let name = format!("/selvedge-disk-{}-{what}", std::process::id());
        Cage::around(shell.0.id(), &name)
    }

    #[test]
    fn a_process_runs_out_of_files_and_gets_them_back() -> Result<()> {
        let mut shell = Shell::new()?;
        let open = "if (exec 3<>/dev/null 4<&3 5<&3 6<&3); then echo yes; else echo no; fi";
        ensure!(shell.says(open)? == "yes");
        let few = FewFiles::on(shell.0.id(), 5)?;
        ensure!(shell.says(open)? == "no");
        few.heal()?;
        ensure!(shell.says(open)? == "yes");
        Ok(())
    }

    #[test]
    fn a_full_group_forks_no_more_until_it_is_healed() -> Result<()> {
        let mut shell = Shell::new()?;
        let cage = cage(&shell, "pids")?;
        let fork = "timeout 5 true && echo yes || echo no";
        ensure!(shell.says(fork)? == "yes");
        let limited = cage.limit(Limit::Processes(2))?;
        // bash tries again for some seconds before it gives up.
        ensure!(shell.says(fork)? == "no");
        limited.heal()?;
        ensure!(shell.says(fork)? == "yes");
        Ok(())
    }

    #[test]
    fn a_group_out_of_memory_loses_a_process() -> Result<()> {
        let mut shell = Shell::new()?;
        let cage = cage(&shell, "memory")?;
        let eat = "(head -c 64M /dev/zero | tail -c 64M >/dev/null) && echo yes || echo no";
        ensure!(shell.says(eat)? == "yes");
        let limited = cage.limit(Limit::Memory(16 << 20))?;
        ensure!(shell.says(eat)? == "no");
        limited.heal()?;
        ensure!(shell.says(eat)? == "yes");
        Ok(())
    }

    #[test]
    fn a_limit_that_was_there_first_ends_who_enters() -> Result<()> {
        let mut shell = Shell::new()?;
        let name = format!("/selvedge-disk-{}-first", std::process::id());
        let cage = Cage::beside(shell.0.id(), &name)?;
        let limited = cage.limit(Limit::Memory(256 << 10))?;
        ensure!(shell.says("echo here")? == "here");
        cage.enter()?;
        let end = "x=$(head -c 8M /dev/zero | tr '\\0' x); echo $((${#x} >> 20))";
        ensure!(shell.says(end)? != "8");
        limited.heal()
    }

    #[test]
    fn a_group_on_a_tenth_of_a_core_is_held_back() -> Result<()> {
        let mut shell = Shell::new()?;
        let cage = cage(&shell, "cpu")?;
        let spin = "for ((i = 0; i < 200000; i++)); do :; done; echo done";
        shell.says(spin)?;
        ensure!(cage.held_back()? == 0);
        let _limited = cage.limit(Limit::Cpu(10))?;
        shell.says(spin)?;
        ensure!(cage.held_back()? > 0);
        Ok(())
    }

    #[test]
    fn a_dropped_cage_leaves_no_group_and_its_process_alive() -> Result<()> {
        let mut shell = Shell::new()?;
        let cage = cage(&shell, "drop")?;
        let folders = cage.folders.clone();
        drop(cage);
        ensure!(folders.iter().all(|(own, _)| !own.exists()), "{folders:?}");
        ensure!(shell.says("echo here")? == "here");
        Ok(())
    }

    #[test]
    fn each_version_has_its_files() {
        let file = |version, limit: Limit| {
            let (path, value) = limit.file(version, "/w/n");
            format!("{} {value}", path.display())
        };
        let (one, two) = (Version::One, Version::Two);
        for (version, limit, expected) in [
            (one, Limit::Memory(9), "memory/w/n/memory.limit_in_bytes 9"),
            (one, Limit::Cpu(10), "cpu/w/n/cpu.cfs_quota_us 10000"),
            (one, Limit::Processes(2), "pids/w/n/pids.max 2"),
            (two, Limit::Memory(9), "w/n/memory.max 9"),
            (two, Limit::Cpu(10), "w/n/cpu.max 10000 100000"),
            (two, Limit::Processes(2), "w/n/pids.max 2"),
        ] {
            assert_eq!(file(version, limit), expected);
        }
    }
}
