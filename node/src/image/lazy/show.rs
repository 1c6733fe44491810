//! Mounts a layer that arrives, and starts the process that shows it. The process outlives the
//! daemon, as the containers that read it do: it ends with the last mount of the layer's.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::process::Stdio;

use rustix::mount::{MountFlags, mount};

use super::super::error::ImageError;
use super::arrival::Arrival;
use super::{LAIR, NAME};
use crate::userns::Block;

/// Where the kernel is spoken to.
pub(in super::super) const DEVICE: &str = "/dev/fuse";
/// Through /proc the binary is found even after an upgrade replaced it.
const BINARY: &str = "/proc/self/exe";
/// What the process has to complain of, in its instance's folder.
const LOG: &str = "lazy.log";

/// Shows `arrival` at the folder `at` for an instance, with the owners of its block. Answers before
/// the process does: the kernel waits for it where it must.
pub(in super::super) fn show(
    arrival: &Arrival,
    at: &Path,
    instance: &Path,
    block: Option<Block>,
) -> Result<(), ImageError> {
    let device = File::options().read(true).write(true).open(DEVICE);
    let device = device.map_err(|e| ImageError::disk("open", Path::new(DEVICE), e))?;
    let fail = |e: std::io::Error| ImageError::disk("show a layer at", at, e);
    let options = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions",
        device.as_raw_fd()
    );
    let options = CString::new(options).map_err(|e| fail(e.into()))?;
    let flags = MountFlags::RDONLY | MountFlags::NODEV;
    mount("selvedge", at, "fuse.selvedge", flags, options.as_c_str())
        .map_err(|e| fail(e.into()))?;
    fail::fail_point!("image::coming_mounted");
    let folder = arrival.folder();
    let images = folder.parent().and_then(Path::parent).unwrap_or(folder);
    let log = File::create(instance.join(LOG)).map_err(fail)?;
    let block = serde_json::to_string(&block).map_err(|e| fail(e.into()))?;
    let mut command = tokio::process::Command::new(BINARY);
    command
        .arg0(NAME)
        .arg("lazy")
        .args([folder, instance])
        .arg(block)
        .env_clear()
        // It sees no other, and the socket's name may be too long from elsewhere.
        .current_dir(images.join(LAIR))
        .stdin(Stdio::from(device))
        .stdout(Stdio::null())
        .stderr(log);
    // Our end of the device is closed from here on: without the process the mount is dead.
    let mut process = command.spawn().map_err(fail)?;
    drop(command);
    fail::fail_point!("image::coming_shown");
    tokio::spawn(async move {
        let _ = process.wait().await;
    });
    Ok(())
}
