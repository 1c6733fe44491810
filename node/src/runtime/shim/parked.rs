//! The program that a container's first process is until it is started: `node/parked`, carried in this
//! binary. A process that was forked to build a container keeps what building took, and this one next
//! to nothing.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::ffi::{CString, OsString, c_char};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::ptr;

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;

use super::super::spec::SecretEnv;

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

/// Becomes `parked`, which runs `file` as `args`, in this process's environment and with `secrets`, when a
/// byte comes through `socket`.
pub(super) fn wait(
    parked: &File,
    socket: &OwnedFd,
    file: &str,
    args: &[String],
    secrets: &SecretEnv,
) -> io::Result<Infallible> {
    let args = args.iter().map(String::as_str);
    let words: Vec<CString> = [NAME, file]
        .into_iter()
        .chain(args)
        .map(CString::new)
        .collect::<Result<_, _>>()?;
    let variables = std::env::vars_os().map(|(name, value)| (name, value.into_vec()));
    let secrets = secrets.iter();
    let secrets = secrets.map(|(name, value)| (OsString::from(name), value.as_bytes().to_vec()));
    let variables: BTreeMap<OsString, Vec<u8>> = variables.chain(secrets).collect();
    let variables: Vec<CString> = variables
        .into_iter()
        .map(|(name, value)| CString::new([name.into_vec(), value].join(&b'=')))
        .collect::<Result<_, _>>()?;
    // Neither may be where the other has to be.
    let parked = rustix::io::fcntl_dupfd_cloexec(parked, SOCKET + 1)?;
    let socket = rustix::io::fcntl_dupfd_cloexec(socket, SOCKET + 1)?;
    let (words, variables) = (pointers(&words), pointers(&variables));
    // SAFETY: what was behind `SOCKET` is not used again; both arrays end with null and live through the
    // call, as do the strings they point at.
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

fn pointers(texts: &[CString]) -> Vec<*const c_char> {
    let texts = texts.iter().map(|text| text.as_ptr());
    texts.chain([ptr::null()]).collect()
}
