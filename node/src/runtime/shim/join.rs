//! From a fork of the helper to a program in a container: its namespaces and cgroup joined, then
//! everything given up that the container's first program does not have either.
//!
//! libcontainer's own way to join leaves out the filter of system calls, so this is done here, from the
//! configuration the container was made of.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, exit};
use std::time::Duration;

use libcontainer::oci_spec::runtime::Spec;
use rustix::fs::{Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::process::{Pid, PidfdFlags};
use rustix::thread::ThreadNameSpaceType;

use super::super::cgroup::Cgroup;
use super::super::copy;
use super::super::exec::{Request, Work};
use super::super::scratch;
use super::super::seccomp;
use super::super::spec::SecretEnv;
use super::super::user::{self, Resolved};
use super::super::wire::{self, BUNDLE, FailCode, Failure, SHIM, SOCKET, ShimRecord};
use super::{bad, powers};

/// A shim answers at once; a machine under load, in seconds.
const SHIM_PATIENCE: Duration = Duration::from_secs(10);

/// A running container, as found by the helper.
pub(super) struct Place {
    config: Spec,
    secrets: SecretEnv,
    filter: Vec<libc::sock_filter>,
    /// Its first process, which cannot become another one.
    init: OwnedFd,
    pid: i32,
    user: Resolved,
    /// Another one than the container's first program has.
    other_user: bool,
}

impl Place {
    pub(super) fn find(folder: &Path, request: &Request) -> Result<Self, Failure> {
        let gone = || bad(FailCode::WrongState, "the container has ended");
        let init = Pid::from_raw(request.pid)
            .and_then(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok())
            .ok_or_else(gone)?;
        let scratch = scratch::of(folder);
        // Checked after it was opened: the number is the record's process, and stays it.
        let record: Option<ShimRecord> = wire::read_record(&scratch, SHIM);
        let container = record.and_then(|r| r.container).ok_or_else(gone)?;
        if container.pid != request.pid || !container.is_alive() {
            return Err(gone());
        }
        let config = scratch.join(BUNDLE).join("config.json");
        let config = Spec::load(&config)
            .map_err(|e| bad(FailCode::BadSpec, format!("{}: {e}", config.display())))?;
        let own = own_user(&config)?;
        let user = match &request.user {
            Some(name) => {
                let root = root_of(request.pid)
                    .map_err(|e| bad(FailCode::BadRootfs, format!("its root: {e}")))?;
                user::resolve_below(&root, name, &[]).map_err(|m| bad(FailCode::BadUser, m))?
            }
            None => own.clone(),
        };
        let filter = seccomp::compile()
            .map_err(|e| bad(FailCode::StartContainer, format!("the filter: {e}")))?;
        let secrets = secrets_of(&scratch)
            .map_err(|e| bad(FailCode::StartContainer, format!("its secrets: {e}")))?;
        Ok(Self {
            secrets,
            filter,
            init,
            pid: request.pid,
            other_user: (user.uid, user.gid) != (own.uid, own.gid),
            user,
            config,
        })
    }

    /// From now on our children are among the container's processes; we are not.
    pub(super) fn enter_processes(&self) -> Result<(), Failure> {
        rustix::thread::move_into_thread_name_spaces(
            self.init.as_fd(),
            ThreadNameSpaceType::PROCESS_ID,
        )
        .map_err(|e| bad(FailCode::Namespace, format!("its processes: {e}")))
    }

    /// In the fork: goes into the container and runs there what was asked. `tell` hears why not.
    pub(super) fn become_program(
        &self,
        request: Request,
        streams: [OwnedFd; 3],
        mut tell: File,
    ) -> ! {
        let entered = self.enter(&request, streams, &tell);
        let failure = match (entered, request.work) {
            (Err(failure), _) => failure,
            (Ok(()), Work::Run { args, env, .. }) => self.run(&args, &env, request.tty),
            (Ok(()), Work::Copy(job)) => {
                drop(tell);
                // SAFETY: nothing of the host's stays open while we are in there; no owner of a
                // descriptor above 2 is asked any more, as we end here.
                unsafe { libc::close_range(3, libc::c_uint::MAX, 0) };
                exit(copy::run(&job));
            }
        };
        // Nobody to tell is nobody to mind.
        let _ = tell.write_all(&serde_json::to_vec(&failure).unwrap_or_default());
        exit(126);
    }

    fn enter(&self, request: &Request, streams: [OwnedFd; 3], tell: &File) -> Result<(), Failure> {
        let step = |what: &'static str, code| move |e: io::Error| bad(code, format!("{what}: {e}"));
        give_streams(&streams, self.host_user())
            .map_err(step("its streams", FailCode::StartContainer))?;
        self.join_cgroup()?;
        self.join_namespaces()
            .map_err(step("its namespaces", FailCode::Namespace))?;
        take_streams(streams, request.tty)
            .map_err(step("its streams", FailCode::StartContainer))?;
        powers::default_signals();
        powers::limit(&self.config).map_err(step("its limits", FailCode::StartContainer))?;
        let cwd = match &request.work {
            Work::Run { cwd: Some(cwd), .. } => Path::new("/").join(cwd),
            Work::Run { .. } => self.own_cwd(),
            Work::Copy(_) => PathBuf::from("/"),
        };
        go_to(&cwd).map_err(|e| bad(FailCode::BadWorkingDir, format!("{}: {e}", cwd.display())))?;
        powers::drop(&self.config, &self.user, self.other_user)
            .map_err(step("giving up what it may not", FailCode::StartContainer))?;
        die_with_helper(tell).map_err(step("its helper", FailCode::StartContainer))?;
        powers::filter(&self.filter)
            .map_err(step("filtering system calls", FailCode::StartContainer))
    }

    /// The cgroup before the namespaces: inside, its files are read-only. And out of memory kills
    /// the container's programs first, like its first one.
    fn join_cgroup(&self) -> Result<(), Failure> {
        let score = fs::read_to_string(format!("/proc/{}/oom_score_adj", self.pid));
        if let Ok(score) = score {
            // Lowering takes a power a node may lack; then it dies a little earlier.
            let _ = fs::write("/proc/self/oom_score_adj", score.trim());
        }
        let linux = self.config.linux().as_ref();
        let path = linux
            .and_then(|l| l.cgroups_path().as_ref())
            .ok_or_else(|| bad(FailCode::BadSpec, "the container has no cgroup"))?;
        Cgroup::at(path)
            .join()
            .map_err(|e| bad(FailCode::Cgroup, format!("joining {}: {e}", path.display())))
    }

    fn join_namespaces(&self) -> io::Result<()> {
        let mut all = ThreadNameSpaceType::MOUNT
            | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
            | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
            | ThreadNameSpaceType::NETWORK
            | ThreadNameSpaceType::CONTROL_GROUP;
        let user = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/user"));
        // The kernel joins it first, so that the others are joined with its powers.
        if user(&self.pid.to_string())? != user("self")? {
            all |= ThreadNameSpaceType::USER;
        }
        Ok(rustix::thread::move_into_thread_name_spaces(
            self.init.as_fd(),
            all,
        )?)
    }

    /// The program's user as the host numbers it.
    fn host_user(&self) -> (u32, u32) {
        let outside = |file: &str, id: u32| {
            let map = fs::read_to_string(format!("/proc/{}/{file}", self.pid));
            mapped(&map.unwrap_or_default(), id).unwrap_or(id)
        };
        (
            outside("uid_map", self.user.uid),
            outside("gid_map", self.user.gid),
        )
    }

    fn own_cwd(&self) -> PathBuf {
        let process = self.config.process().as_ref();
        process.map_or_else(|| PathBuf::from("/"), |p| p.cwd().clone())
    }

    /// Comes back only with the reason why the program does not run.
    fn run(&self, args: &[String], env: &[(String, String)], tty: bool) -> Failure {
        let own = self
            .config
            .process()
            .as_ref()
            .and_then(|p| p.env().as_ref());
        let own = own.into_iter().flatten().filter_map(|e| e.split_once('='));
        let home = self.other_user.then_some(("HOME", self.user.home.as_str()));
        let term = tty.then_some(("TERM", "xterm"));
        let more = env
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()));
        // Later ones win.
        let secret = self.secrets.iter();
        let all = term
            .into_iter()
            .chain(own)
            .chain(secret)
            .chain(home)
            .chain(more);
        let (program, rest) = (&args[0], &args[1..]);
        let error = Command::new(program)
            .args(rest)
            .env_clear()
            .envs(all)
            .exec();
        let code = if error.kind() == io::ErrorKind::NotFound {
            FailCode::CommandNotFound
        } else {
            FailCode::CommandNotExecutable
        };
        bad(code, format!("cannot run `{program}`: {error}"))
    }
}

/// The secret variables of the container's first program, which its shim keeps.
fn secrets_of(scratch: &Path) -> io::Result<SecretEnv> {
    // A socket's path has room for 108 bytes only.
    let folder = File::open(scratch)?;
    let mut shim = UnixStream::connect(format!("/proc/self/fd/{}/{SOCKET}", folder.as_raw_fd()))?;
    shim.set_read_timeout(Some(SHIM_PATIENCE))?;
    let mut line = serde_json::to_vec(&wire::Request::Secrets)?;
    line.push(b'\n');
    shim.write_all(&line)?;
    wire::read_secrets(shim)
}

/// What a process has as its root.
fn root_of(pid: i32) -> io::Result<pathrs::Root> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(format!("/proc/{pid}/root"), flags, Mode::empty())?;
    Ok(pathrs::Root::from_fd(root))
}

fn own_user(config: &Spec) -> Result<Resolved, Failure> {
    let process = config.process().as_ref();
    let process = process.ok_or_else(|| bad(FailCode::BadSpec, "the container has no program"))?;
    let user = process.user();
    let env = process.env().as_deref().unwrap_or_default();
    let home = env.iter().find_map(|entry| entry.strip_prefix("HOME="));
    Ok(Resolved {
        uid: user.uid(),
        gid: user.gid(),
        groups: user.additional_gids().clone().unwrap_or_default(),
        home: home.unwrap_or("/").to_owned(),
    })
}

/// What `id` of a namespace is outside of it, by its `uid_map`.
fn mapped(map: &str, id: u32) -> Option<u32> {
    map.lines().find_map(|line| {
        let numbers: Vec<u32> = line
            .split_whitespace()
            .filter_map(|n| n.parse().ok())
            .collect();
        let [inside, outside, count] = numbers[..] else {
            return None;
        };
        let within = id.checked_sub(inside).filter(|offset| *offset < count)?;
        outside.checked_add(within)
    })
}

/// The program's own user must be able to open `/dev/stdout` anew. What is no pipe or terminal
/// stays whose it is.
fn give_streams(streams: &[OwnedFd; 3], (uid, gid): (u32, u32)) -> io::Result<()> {
    for stream in streams {
        let kind = rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(stream)?.st_mode);
        match kind {
            rustix::fs::FileType::Fifo => {
                rustix::fs::fchown(stream, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
            }
            _ if std::io::IsTerminal::is_terminal(stream) => {
                rustix::fs::fchown(stream, Some(Uid::from_raw(uid)), None)?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// A session of its own, with the streams as its 0 to 2; everything else closes when it runs.
fn take_streams(streams: [OwnedFd; 3], tty: bool) -> io::Result<()> {
    rustix::process::setsid()?;
    for (to, stream) in (0..).zip(&streams) {
        // SAFETY: open; what was behind 0 to 2 is meant to be closed.
        if unsafe { libc::dup2(stream.as_raw_fd(), to) } == -1 {
            return Err(io::Error::last_os_error());
        }
    }
    drop(streams);
    if tty {
        rustix::process::ioctl_tiocsctty(io::stdin().as_fd())?;
    }
    let flags = libc::CLOSE_RANGE_CLOEXEC.cast_signed();
    // SAFETY: a flag on descriptors.
    match unsafe { libc::close_range(3, libc::c_uint::MAX, flags) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Through no link of the kernel's: a descriptor's path leads out of the container
/// (CVE-2024-21626).
fn go_to(cwd: &Path) -> io::Result<()> {
    let folder = rustix::fs::openat2(
        rustix::fs::CWD,
        cwd,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::NO_MAGICLINKS,
    )?;
    Ok(rustix::process::fchdir(&folder)?)
}

/// The helper's end is the program's. Asked for after the change of user, which forgets it; if the
/// helper ended before, nobody hears us.
fn die_with_helper(tell: &File) -> io::Result<()> {
    // SAFETY: a flag on ourselves.
    if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } == -1 {
        return Err(io::Error::last_os_error());
    }
    let mut fds = [rustix::event::PollFd::new(
        tell,
        rustix::event::PollFlags::empty(),
    )];
    let now = rustix::event::Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    match rustix::event::poll(&mut fds, Some(&now))? {
        0 => Ok(()),
        _ => Err(io::ErrorKind::BrokenPipe.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_found_outside_by_the_map() {
        let map = "         0     100000      65536\n";
        assert_eq!(mapped(map, 0), Some(100_000));
        assert_eq!(mapped(map, 33), Some(100_033));
        assert_eq!(mapped(map, 65_536), None);
        assert_eq!(mapped("0 0 4294967295\n", 7), Some(7));
    }
}
