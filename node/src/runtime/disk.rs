//! Bounds on what a container does with the disk its node keeps data on, under either cgroup
//! hierarchy. libcontainer's own way cannot weigh under version 2 and gives no reason when a
//! kernel lacks a file, so they are written here, once the container's group is there.
//!
//! Version 1 counts only what goes to the disk directly or by a sync; version 2 counts all of it.
//! Version 1 is what the tests run on.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use scheduler::model::IoLimits;

use super::cgroup::{Cgroup, is_unified};

/// Bounds the group's use of the disk that holds `folder`.
///
/// # Errors
/// A sentence saying what this node's kernel or disk cannot do.
pub fn bound(group: &Cgroup, limits: &IoLimits, folder: &Path) -> Result<(), String> {
    if *limits == IoLimits::default() {
        return Ok(());
    }
    let unified = is_unified();
    let controller = group
        .folder("blkio")
        .ok_or("this node's kernel has no controller for disks (blkio)")?;
    let disk = disk_of(folder)?;
    for (files, text) in settings(unified, limits, &disk) {
        let file = files
            .iter()
            .map(|name| controller.join(name))
            .find(|path| path.exists())
            .ok_or_else(|| format!("this node's kernel has no {}", files.join(" or ")))?;
        fs::write(&file, &text).map_err(|e| {
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            format!("{name} does not take `{text}`: {e}")
        })?;
    }
    Ok(())
}

type Setting = (&'static [&'static str], String);

/// What to write, each into the first of its files that exists.
fn settings(unified: bool, limits: &IoLimits, disk: &str) -> Vec<Setting> {
    let bounds = [
        (limits.read_bps, "rbps", &["blkio.throttle.read_bps_device"]),
        (
            limits.write_bps,
            "wbps",
            &["blkio.throttle.write_bps_device"],
        ),
        (
            limits.read_iops,
            "riops",
            &["blkio.throttle.read_iops_device"],
        ),
        (
            limits.write_iops,
            "wiops",
            &["blkio.throttle.write_iops_device"],
        ),
    ];
    let mut all: Vec<Setting> = Vec::new();
    for (value, key, file) in bounds.into_iter().filter(|(value, ..)| *value > 0) {
        if unified {
            all.push((&["io.max"], format!("{disk} {key}={value}")));
        } else {
            all.push((file, format!("{disk} {value}")));
        }
    }
    if limits.weight > 0 {
        let files: &[&str] = if unified {
            &["io.weight", "io.bfq.weight"]
        } else {
            &["blkio.bfq.weight", "blkio.weight"]
        };
        all.push((files, limits.weight.to_string()));
    }
    all
}

/// `MAJOR:MINOR` of the whole disk below the file system of `folder`: the kernel bounds no parts.
fn disk_of(folder: &Path) -> Result<String, String> {
    let cannot = |why: &dyn std::fmt::Display| format!("{}: {why}", folder.display());
    let device = fs::metadata(folder).map_err(|e| cannot(&e))?.dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    if major == 0 {
        return Err(cannot(
            &"is on no disk of its own, whose use could be bounded",
        ));
    }
    let number = format!("{major}:{minor}");
    let known = PathBuf::from("/sys/dev/block").join(&number);
    if !known.join("partition").exists() {
        return Ok(number);
    }
    // `/sys/dev/block/8:1` leads to `…/sda/sda1`.
    let whole = || -> io::Result<String> {
        let part = fs::canonicalize(&known)?;
        let disk = part.parent().ok_or(io::ErrorKind::NotFound)?;
        Ok(fs::read_to_string(disk.join("dev"))?.trim().to_owned())
    };
    whole().map_err(|e| cannot(&e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_hierarchies_are_told_in_their_words() {
        let limits = IoLimits {
            weight: 200,
            read_bps: 1 << 20,
            write_bps: 0,
            read_iops: 0,
            write_iops: 50,
        };
        let said = |unified| {
            settings(unified, &limits, "8:0")
                .into_iter()
                .map(|(files, text)| format!("{} {text}", files[0]))
                .collect::<Vec<_>>()
        };
        assert_eq!(
            said(true),
            [
                "io.max 8:0 rbps=1048576",
                "io.max 8:0 wiops=50",
                "io.weight 200"
            ]
        );
        assert_eq!(
            said(false),
            [
                "blkio.throttle.read_bps_device 8:0 1048576",
                "blkio.throttle.write_iops_device 8:0 50",
                "blkio.bfq.weight 200",
            ]
        );
    }

    #[test]
    fn what_is_in_memory_is_on_no_disk() {
        let said = disk_of(Path::new("/proc")).unwrap_err();
        assert_eq!(
            said,
            "/proc: is on no disk of its own, whose use could be bounded"
        );
    }
}
