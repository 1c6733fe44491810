//! `selvedged lazy`: the process that shows one arriving layer to one instance. Started by the daemon
//! and alive as long as the mount is, whatever becomes of the daemon. Reads that wait for a daemon wait
//! until there is one.
//!
//! Before it looks at a byte that a peer gave it has only what it needs: the layer's three files, open
//! for reading; the kernel's device, which it was given as its standard input; and a root in which
//! nothing but the daemon's socket is. No capability is left to it, and no system call that opens a file.

use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::ExitCode;

use fuser::{Config, Session, SessionACL};
use rustix::thread::CapabilitySet;

use super::super::budget::{Budget, Limits};
use super::super::confine::{self, Kept};
use super::super::digest::Digest;
use super::arrival::{self, Parts};
use super::arrivals::Arrivals;
use super::fs::LayerFs;
use super::wire::Hello;
use super::{NAME, SOCKET};
use crate::userns::Block;

/// To speak with the daemon.
const CALLS: [&str; 4] = ["connect", "sendto", "recvfrom", "shutdown"];
/// What it may write: its complaints.
const LOG: u64 = 1 << 20;

/// `args` is what follows `lazy`. Must be called before the process has a second thread.
pub fn main(args: &[OsString]) -> ExitCode {
    let [folder, instance, block] = args else {
        eprintln!("usage: selvedged lazy FOLDER INSTANCE BLOCK (the daemon calls this itself)");
        return ExitCode::from(2);
    };
    match run(Path::new(folder), Path::new(instance), block) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("selvedge-lazy: {}: {error}", folder.display());
            ExitCode::FAILURE
        }
    }
}

fn run(folder: &Path, instance: &Path, block: &OsString) -> io::Result<()> {
    rustix::process::setsid()?;
    let device = io::stdin().as_fd().try_clone_to_owned()?;
    close_stdin()?;
    let block: Option<Block> = serde_json::from_slice(block.as_encoded_bytes())?;
    let parts = Parts::open(folder).map_err(io::Error::other)?;
    confine::enter(&Kept {
        name: NAME,
        capabilities: CapabilitySet::empty(),
        calls: &CALLS,
        sockets: true,
        file: LOG,
        limits: &[],
    })?;
    let (recipe, list, tar) = parts.read().map_err(io::Error::other)?;
    let name = folder.file_name().and_then(|name| name.to_str());
    let layer = name.and_then(Digest::from_hex);
    let layer = layer.ok_or_else(|| io::Error::other("the folder is not named by a layer"))?;
    let budget = Budget::new(Limits::default());
    let outline = arrival::outline(&layer, &recipe, &budget).map_err(io::Error::other)?;
    drop(recipe);
    let hello = Hello {
        layer: layer.to_string(),
        instance: instance.to_owned(),
    };
    let arrivals = Arrivals::follow(list, tar, Path::new(SOCKET), &hello)?;
    let shown = LayerFs::new(outline, arrivals, block);
    Session::from_fd(shown, device, SessionACL::All, Config::default())?.run()
}

/// Only the session has the device: when it ends, the mount is dead.
fn close_stdin() -> io::Result<()> {
    let null = std::fs::File::open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    Ok(())
}
