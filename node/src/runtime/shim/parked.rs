//! A container's first process until it is started: forked by libcontainer, it takes on the filter of system
//! calls and becomes another program, `node/parked`, which is carried in this binary. A process that was
//! forked to build a container keeps what building took, and that one next to nothing.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::ffi::{CString, OsString, c_char};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt;
use std::ptr;
use std::sync::Arc;

use libcontainer::oci_spec::runtime::Spec;
use libcontainer::workload::{Executor, ExecutorError, ExecutorValidationError};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;

use super::super::spec::SecretEnv;
use super::{init, powers};

/// What it calls itself.
pub const NAME: &str = "selvedge-parked";

const PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/parked"));

/// Its end of the socket: it says by a byte that it waits, and waits for one.
const SOCKET: i32 = 3;

/// The program, in memory that nobody can change: a container's root could reach it by `/proc/1/exe`.
pub(super) fn program() -> io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let memory = match rustix::fs::memfd_create(NAME, flags | MemfdFlags::EXEC) {
        // Before 6.3 the kernel knows no memory that may not be run.
        Err(Errno::INVAL) => rustix::fs::memfd_create(NAME, flags),
        made => made,
    };
    let mut file = File::from(memory?);
    file.write_all(PROGRAM)?;
    let seals = SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&file, seals)?;
    // The kernel runs nothing that somebody has open for writing.
    File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// A container's first process, from the moment libcontainer has made everything else.
#[derive(Clone)]
pub(super) struct First {
    /// Descriptors it is not to keep.
    pub private: Vec<RawFd>,
    pub filter: Vec<libc::sock_filter>,
    /// Whether another process than the program is to be the container's first.
    pub init: bool,
    /// In memory only: the bundle's configuration, which holds the other variables, is a file.
    pub secrets: SecretEnv,
    pub parked: Arc<File>,
    /// Its end.
    pub socket: Arc<OwnedFd>,
    /// The program's, as seen from its working folder.
    pub file: String,
}

impl Executor for First {
    fn validate(&self, _: &Spec) -> Result<(), ExecutorValidationError> {
        // The command was looked for before anything was made. This runs in the container, as its
        // user, last before libcontainer calls it made.
        for fd in &self.private {
            // SAFETY: the shim's, inherited; nothing here uses them.
            unsafe { libc::close(*fd) };
        }
        // SAFETY: a flag on ourselves. Without its shim nothing would read the program's output;
        // a program that changes its user loses the flag, and the next daemon ends it.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        powers::filter(&self.filter).map_err(|e| {
            ExecutorValidationError::ArgValidationError(format!("filtering system calls: {e}"))
        })
    }

    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let args = spec
            .process()
            .as_ref()
            .and_then(|p| p.args().as_ref())
            .filter(|args| !args.is_empty())
            .ok_or(ExecutorError::InvalidArg)?;
        let first = if self.init {
            init::stay_first()
        } else {
            Ok(())
        };
        let Err(error) = first.and_then(|()| self.wait(args));
        eprintln!("selvedge: no process to wait for the start: {error}");
        std::process::exit(126);
    }
}

impl First {
    /// Becomes `parked`, which runs `file` as `args`, in this process's environment and with the secrets,
    /// when a byte comes through the socket.
    fn wait(&self, args: &[String]) -> io::Result<Infallible> {
        let args = args.iter().map(String::as_str);
        let words: Vec<CString> = [NAME, &self.file]
            .into_iter()
            .chain(args)
            .map(CString::new)
            .collect::<Result<_, _>>()?;
        let variables = std::env::vars_os().map(|(name, value)| (name, value.into_vec()));
        let secrets = self.secrets.iter();
        let secrets =
            secrets.map(|(name, value)| (OsString::from(name), value.as_bytes().to_vec()));
        let variables: BTreeMap<OsString, Vec<u8>> = variables.chain(secrets).collect();
        let variables: Vec<CString> = variables
            .into_iter()
            .map(|(name, value)| CString::new([name.into_vec(), value].join(&b'=')))
            .collect::<Result<_, _>>()?;
        // Neither may be where the other has to be.
        let parked = rustix::io::fcntl_dupfd_cloexec(&self.parked, SOCKET + 1)?;
        let socket = rustix::io::fcntl_dupfd_cloexec(&self.socket, SOCKET + 1)?;
        let (words, variables) = (pointers(&words), pointers(&variables));
        // SAFETY: what was behind `SOCKET` is not used again; both arrays end with null and live through
        // the call, as do the strings they point at.
        unsafe {
            if libc::dup2(socket.as_raw_fd(), SOCKET) != -1 {
                libc::syscall(
                    libc::SYS_execveat,
                    parked.as_raw_fd(),
                    c"".as_ptr(),
                    words.as_ptr(),
                    variables.as_ptr(),
                    libc::AT_EMPTY_PATH,
                );
            }
        }
        Err(io::Error::last_os_error())
    }
}

fn pointers(texts: &[CString]) -> Vec<*const c_char> {
    let texts = texts.iter().map(|text| text.as_ptr());
    texts.chain([ptr::null()]).collect()
}
