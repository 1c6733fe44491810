//! From a specification to a container in the OCI state *created*: what the image lacks is made,
//! what cannot work is refused by name, and libcontainer does the rest.

use std::error::Error;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::notify_socket::{NOTIFY_FILE, NotifySocket};
use libcontainer::syscall::syscall::SyscallType;
use pathrs::Root;
use pathrs::flags::OpenFlags;
use rustix::fs::{AtFlags, Gid, Uid};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::super::bundle::{self, Joined};
use super::super::cgroup::{self, Cgroup};
use super::super::disk;
use super::super::scratch;
use super::super::spec::ContainerSpec;
use super::super::user::{self, Resolved};
use super::super::wire::{BUNDLE, ETC, FailCode, Failure};
use super::nursery::Common;
use super::parked::First;
use super::{bad, etc, pipe, sysctl};
use crate::causes::with_causes;
use crate::userns::{self, Block};

/// The folder of libcontainer's records, in the scratch.
const STATE: &str = "state";

pub struct Built {
    pub pid: i32,
    /// A byte in here, and the program starts.
    pub go: OwnedFd,
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
}

/// Makes the container of the instance whose folder is `folder` (afterwards the working folder), in a
/// mount namespace of this process's own. The waiting program does not keep the descriptors in
/// `private` open.
pub fn container(
    spec: &ContainerSpec,
    folder: &Path,
    common: Common,
    private: [RawFd; 2],
) -> Result<Built, Failure> {
    let other = |what: &str, e: io::Error| bad(FailCode::CreateContainer, format!("{what}: {e}"));
    let filter = common.filter.map_err(|e| other("the filter", e))?;
    let parked = common.parked.map_err(|e| {
        let hint = "memory to run a program from (the sysctl vm.memfd_noexec must be less than 2)";
        other(hint, e)
    })?;
    let (go, socket) = socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(|e| other("a socket", e.into()))?;
    let held = Held::open(spec)?;
    if let Some(netns) = &spec.netns {
        sysctl::set(netns, &spec.sysctls).map_err(|m| bad(FailCode::BadLimit, m))?;
    }
    let scratch = scratch::of(folder);
    let mut spec = spec.clone();
    let namespace = |e: io::Error| bad(FailCode::Namespace, format!("a mount namespace: {e}"));
    let carried = common
        .base
        .and_then(|base| base.enter(&mut spec, &scratch))
        .map_err(namespace)?;
    std::env::set_current_dir(folder).map_err(namespace)?;
    let first = First {
        private: private.into_iter().chain(held.descriptors()).collect(),
        filter,
        init: spec.init,
        secrets: spec.secret_env.clone(),
        parked: Arc::new(parked),
        socket: Arc::new(socket),
        file: String::new(),
    };
    let (pid, [stdout, stderr]) = inside(&spec, folder, &scratch, &held.joined(), first)?;
    carried.release().map_err(namespace)?;
    if rustix::io::read(&go, &mut [0]) != Ok(1) {
        let words = said(stderr.as_fd());
        return Err(match spec.memory_bytes {
            // Who is killed says nothing.
            bytes if bytes > 0 && words.is_empty() => bad(FailCode::BadLimit, too_little(bytes)),
            _ => bad(
                FailCode::CreateContainer,
                format!("the first process died before it could wait for the start: {words}"),
            ),
        });
    }
    Ok(Built {
        pid,
        go,
        stdout,
        stderr,
    })
}

/// The same, in that namespace.
fn inside(
    spec: &ContainerSpec,
    folder: &Path,
    scratch: &Path,
    joined: &Joined,
    mut first: First,
) -> Result<Running, Failure> {
    let user = user(spec)?;
    bundle::check_ulimits(spec).map_err(|m| bad(FailCode::BadLimit, m))?;
    if let Some(name) = spec
        .add_capabilities
        .iter()
        .find(|c| !bundle::may_add(c, user.uid))
    {
        return Err(bad(
            FailCode::BadCapability,
            format!("capability {name} is not given"),
        ));
    }
    let root = Root::open(&spec.rootfs).map_err(|e| {
        bad(
            FailCode::BadRootfs,
            format!("{} cannot be opened: {e}", spec.rootfs.display()),
        )
    })?;
    let other = |what: &str, e: io::Error| bad(FailCode::CreateContainer, format!("{what}: {e}"));
    let cwd = working_dir(&root, spec)?;
    first.file = command(&root, spec, &user, &cwd)?;
    // A read-only lower file system may refuse; then what is missing shows below, by name.
    mend(&root, spec.ids);
    etc::write(spec, scratch).map_err(|e| other(ETC, e))?;
    if let Some(block) = spec.ids {
        for folder in [folder, scratch] {
            let_through(folder, block).map_err(|e| other("the instance's folder", e))?;
        }
    }
    write_bundle(spec, &user, joined, scratch).map_err(|e| other(BUNDLE, e))?;
    // libcontainer's child resolves paths with `openat2` as long as it can read its working folder,
    // and otherwise step by step in thousands of calls. The instance's folder is not its to read.
    std::env::set_current_dir("/").map_err(|e| other("/", e))?;
    let built = build(spec, &user, scratch, first);
    std::env::set_current_dir(folder).map_err(|e| other("the instance's folder", e))?;
    let built = built?;
    disk::bound(&Cgroup::at(&spec.cgroup), &spec.io, folder)
        .map_err(|m| bad(FailCode::BadLimit, m))?;
    Ok(built)
}

/// Lets the container's root, and nobody else of the host's users, pass through the instance's folder to
/// what it mounts. It sees none of that once it is in its own root file system.
fn let_through(folder: &Path, block: Block) -> io::Result<()> {
    std::os::unix::fs::chown(folder, None, Some(block.root()))?;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o710))
}

/// The namespaces a container joins, open: its root cannot follow the host's paths to them.
struct Held {
    network: Option<File>,
    user: Option<OwnedFd>,
}

impl Held {
    fn open(spec: &ContainerSpec) -> Result<Self, Failure> {
        let mut held = Self {
            network: None,
            user: None,
        };
        let Some(path) = &spec.netns else {
            return Ok(held);
        };
        let failed = |e: io::Error| bad(FailCode::Namespace, format!("{}: {e}", path.display()));
        let network = File::open(path).map_err(failed)?;
        if spec.ids.is_some() {
            held.user = Some(userns::owning(network.as_fd()).map_err(failed)?);
        }
        held.network = Some(network);
        Ok(held)
    }

    fn joined(&self) -> Joined {
        Joined {
            network: self.network.as_ref().map(userns::path_of),
            user: self.user.as_ref().map(userns::path_of),
        }
    }

    fn descriptors(&self) -> impl Iterator<Item = RawFd> {
        let (network, user) = (&self.network, &self.user);
        let network = network.as_ref().map(AsRawFd::as_raw_fd);
        network
            .into_iter()
            .chain(user.as_ref().map(AsRawFd::as_raw_fd))
    }
}

/// Whose user the program runs as; in a user namespace only somebody who is in there.
fn user(spec: &ContainerSpec) -> Result<Resolved, Failure> {
    let refuse = |message| bad(FailCode::BadUser, message);
    let user = user::resolve(&spec.rootfs, &spec.user, &spec.groups).map_err(refuse)?;
    let all = [user.uid, user.gid];
    let foreign = all.iter().chain(&user.groups).find(|id| !Block::has(**id));
    match (spec.ids, foreign) {
        (Some(_), Some(id)) => Err(refuse(format!(
            "a container has the ids 0 to {}, and user `{}` needs {id}",
            Block::SIZE - 1,
            spec.user
        ))),
        _ => Ok(user),
    }
}

/// The folder the program starts in, made if missing. The kernel's own trees are no place: a
/// descriptor's path there leads out of the container (CVE-2024-21626).
fn working_dir(root: &Root, spec: &ContainerSpec) -> Result<PathBuf, Failure> {
    let cwd = bundle::working_dir(spec);
    let refuse = |why: String| {
        Err(bad(
            FailCode::BadWorkingDir,
            format!("{}: {why}", cwd.display()),
        ))
    };
    if ["/proc", "/sys", "/dev"]
        .iter()
        .any(|tree| cwd.starts_with(tree))
    {
        return refuse("not a folder to start a program in".to_owned());
    }
    match root.resolve(&cwd) {
        Ok(handle) => match File::from(OwnedFd::from(handle)).metadata() {
            Ok(meta) if meta.is_dir() => Ok(cwd),
            Ok(_) => refuse("not a folder".to_owned()),
            Err(error) => refuse(error.to_string()),
        },
        Err(_) => match make_folder(root, &cwd, 0o755, spec.ids) {
            Ok(()) => Ok(cwd),
            Err(error) => refuse(error.to_string()),
        },
    }
}

/// Makes a folder and those above it that are missing, all of them the container's root's.
fn make_folder(root: &Root, path: &Path, mode: u32, ids: Option<Block>) -> io::Result<()> {
    let mut above: Vec<&Path> = path.ancestors().collect();
    above.reverse();
    for folder in above {
        if root.resolve(folder).is_ok() {
            continue;
        }
        let made = root
            .mkdir_all(folder, &fs::Permissions::from_mode(mode))
            .map_err(io::Error::other)?;
        if let Some(block) = ids {
            let (uid, gid) = (Uid::from_raw(block.root()), Gid::from_raw(block.root()));
            let made = OwnedFd::from(made);
            rustix::fs::chownat(made, c"", Some(uid), Some(gid), AtFlags::EMPTY_PATH)?;
        }
    }
    Ok(())
}

/// Finds the command as a shell would, so that its absence has a name before anything is made. Returns the
/// file to run.
fn command(
    root: &Root,
    spec: &ContainerSpec,
    user: &Resolved,
    cwd: &Path,
) -> Result<String, Failure> {
    let name = &spec.args[0];
    let path = bundle::environment(spec, &user.home)
        .into_iter()
        .find_map(|entry| entry.strip_prefix("PATH=").map(str::to_owned))
        .unwrap_or_default();
    let candidates: Vec<String> = if name.contains('/') {
        vec![name.clone()]
    } else {
        path.split(':')
            .map(|folder| format!("{}/{name}", if folder.is_empty() { "." } else { folder }))
            .collect()
    };
    let mut blocked = None;
    for file in candidates {
        let candidate = cwd.join(&file);
        let Ok(handle) = root.resolve(&candidate) else {
            continue;
        };
        match File::from(OwnedFd::from(handle)).metadata() {
            Ok(meta) if meta.is_file() && meta.permissions().mode() & 0o111 != 0 => {
                return Ok(file);
            }
            _ => blocked = blocked.or(Some(candidate)),
        }
    }
    Err(match blocked {
        Some(path) => bad(
            FailCode::CommandNotExecutable,
            format!("`{name}`: {} is no executable file", path.display()),
        ),
        None if name.contains('/') => bad(
            FailCode::CommandNotFound,
            format!("`{name}` is not in the image"),
        ),
        None => bad(
            FailCode::CommandNotFound,
            format!("`{name}` is not in the image (searched {path})"),
        ),
    })
}

/// Makes what minimal images lack: `/tmp`, and plain files to mount ours over where the image has
/// links that lead nowhere (a Debian `resolv.conf` often does).
fn mend(root: &Root, ids: Option<Block>) {
    if root.resolve("/tmp").is_err() {
        let _ = make_folder(root, Path::new("/tmp"), 0o1777, ids);
        if let Ok(tmp) = root.open_subpath("/tmp", OpenFlags::O_DIRECTORY | OpenFlags::O_RDONLY) {
            // mkdir honours the umask, which a shared /tmp must not.
            let _ = tmp.set_permissions(fs::Permissions::from_mode(0o1777));
        }
    }
    for file in etc::FILES {
        let path = Path::new("/etc").join(file);
        if root.readlink(&path).is_ok() {
            let _ = root.remove_file(&path);
        }
    }
}

fn write_bundle(
    spec: &ContainerSpec,
    user: &Resolved,
    joined: &Joined,
    scratch: &Path,
) -> io::Result<()> {
    let etc = scratch.join(ETC);
    let config = bundle::oci_spec(spec, user, joined, &etc).map_err(io::Error::other)?;
    let bundle = scratch.join(BUNDLE);
    fs::create_dir_all(&bundle)?;
    let mut file = io::BufWriter::new(File::create(bundle.join("config.json"))?);
    serde_json::to_writer(&mut file, &config)?;
    file.flush()
}

/// The first process, and where its output comes out.
type Running = (i32, [OwnedFd; 2]);

fn build(
    spec: &ContainerSpec,
    user: &Resolved,
    scratch: &Path,
    first: First,
) -> Result<Running, Failure> {
    let other = |e: io::Error| bad(FailCode::CreateContainer, e.to_string());
    let (stdout, out) = pipe().map_err(other)?;
    let (stderr, err) = pipe().map_err(other)?;
    let on_host = |id| spec.ids.map_or(id, |block| block.host_id(id));
    for end in [&out, &err] {
        // The program's own user must be able to open /dev/stdout anew.
        let (uid, gid) = (on_host(user.uid), on_host(user.gid));
        let owner = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        rustix::fs::fchown(end.as_fd(), owner.0, owner.1).map_err(|e| other(e.into()))?;
    }
    let null = File::open("/dev/null").map_err(other)?;
    // Rust ignores SIGPIPE at start; the program must inherit the default.
    pipe_signal(libc::SIG_DFL);
    let made = ContainerBuilder::new(spec.id.0.clone(), SyscallType::default())
        .with_root_path(scratch.join(STATE))
        .map(|builder| {
            builder
                .with_executor(first)
                .with_stdin(null)
                .with_stdout(out)
                .with_stderr(err)
        })
        .and_then(|builder| {
            builder
                .as_init(scratch.join(BUNDLE))
                .with_systemd(false)
                .build()
        });
    pipe_signal(libc::SIG_IGN);
    let container = made.map_err(|error| classify(&error, &said(stderr.as_fd()), spec))?;
    bound_swap(spec);
    let pid = container.pid().map_or(0, nix_pid);
    // What libcontainer calls the start: here the first process goes on to wait for ours. It keeps records
    // that nobody else asks for.
    let waits = scratch.join(STATE).join(&spec.id.0).join(NOTIFY_FILE);
    NotifySocket::new(waits)
        .notify_container_start()
        .map_err(|e| bad(FailCode::CreateContainer, e.to_string()))?;
    forget_state(scratch).map_err(other)?;
    Ok((pid, [stdout, stderr]))
}

/// Removes libcontainer's own records.
pub(super) fn forget_state(scratch: &Path) -> io::Result<()> {
    fs::remove_dir_all(scratch.join(STATE))
}

/// libcontainer speaks of pids in a type of a crate we do not otherwise need.
fn nix_pid(pid: impl Into<libc::pid_t>) -> i32 {
    pid.into()
}

fn pipe_signal(handler: libc::sighandler_t) {
    // SAFETY: sets a disposition, no handler of ours runs.
    unsafe { libc::signal(libc::SIGPIPE, handler) };
}

/// Under version 2 libcontainer leaves swap unbounded when it should be zero, and one process of
/// a killed container would live on without the others. Best effort: old kernels lack the files.
fn bound_swap(spec: &ContainerSpec) {
    if !cgroup::is_unified() || spec.memory_bytes == 0 {
        return;
    }
    if let Some(folder) = Cgroup::at(&spec.cgroup).folder("memory") {
        let _ = fs::write(folder.join("memory.swap.max"), "0");
        let _ = fs::write(folder.join("memory.oom.group"), "1");
    }
}

/// What libcontainer's child said before it gave up: the error it sends has lost its causes.
fn said(stderr: BorrowedFd<'_>) -> String {
    let mut buffer = vec![0; 4096];
    let count = rustix::io::read(stderr, &mut buffer).unwrap_or(0);
    buffer.truncate(count);
    String::from_utf8_lossy(&buffer).trim().replace('\n', "; ")
}

/// Gives libcontainer's refusal a name. Text is the only thing that comes from its child.
fn classify(error: &dyn Error, said: &str, spec: &ContainerSpec) -> Failure {
    let mut text = with_causes(error);
    if !said.is_empty() {
        text = format!("{text} ({said})");
    }
    let lower = text.to_lowercase();
    if let Some(limit) = limit_behind(&lower, spec) {
        return bad(FailCode::BadLimit, format!("{limit} ({text})"));
    }
    let code = [
        ("not found in $path", FailCode::CommandNotFound),
        (
            "does not have correct permissions",
            FailCode::CommandNotExecutable,
        ),
        ("current working directory is safe", FailCode::BadWorkingDir),
        ("cgroup", FailCode::Cgroup),
        ("mount", FailCode::Mount),
        ("rootfs", FailCode::Mount),
        ("namespace", FailCode::Namespace),
    ]
    .into_iter()
    .find(|(sign, _)| lower.contains(sign))
    .map_or(FailCode::CreateContainer, |(_, code)| code);
    bad(code, text)
}

fn too_little(bytes: u64) -> String {
    format!("killed while it was made: a memory limit of {bytes} bytes is too low")
}

/// The limit that a step most likely ran into: libcontainer keeps the kernel's reason to itself, and has
/// taken the container's groups away.
fn limit_behind(text: &str, spec: &ContainerSpec) -> Option<String> {
    let (pids, memory) = (spec.pids, spec.memory_bytes);
    if text.contains("launch init process") && pids > 0 {
        Some(format!(
            "its limit of {pids} processes leaves no room for its first"
        ))
    } else if ["launch init process", "create intermediate process"]
        .iter()
        .any(|step| text.contains(step))
    {
        Some("this node has no room for another process".to_owned())
    } else if memory > 0
        && text.contains("brokenchannel")
        && ["waiting for intermediate process", "waiting for init ready"]
            .iter()
            .any(|step| text.contains(step))
    {
        Some(too_little(memory))
    } else {
        None
    }
}
