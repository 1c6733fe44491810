//! An instance's root file system: the image's layers, read-only, under a directory of its own.
//! Overlayfs; the mount outlives this process on purpose, as the container on it does.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

use super::books::Image;
use super::digest::Digest;
use super::disk::{self, Scratch};
use super::error::ImageError;
use super::layer::Layers;
use super::lazy::{self, Arrival, Point};
use super::store::{Inner, Store};
use crate::userns::{Owner, Shown};

const ROOTFS: &str = "rootfs";
const UPPER: &str = "upper";
const WORK: &str = "work";
/// Where old kernels must see the layers while they are mounted.
const SHOWN: &str = "layers";
/// Where layers that arrive are shown while the root is mounted; overlayfs holds them after that.
const COMING: &str = "coming";
/// The runtime mounts on these: a link there would be followed out of the container's root.
const MOUNT_POINTS: [&str; 3] = ["proc", "sys", "dev"];
/// What one layer costs in the option string (`/proc/self/fd/NNNNN:`) times the most layers there
/// can be must stay below a page, which is all mount(2) takes.
const MAX_OPTIONS: usize = 4095;

/// A mounted root file system. Dropping it changes nothing: see [`Store::remove_snapshot`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    pub rootfs: PathBuf,
    instance: PathBuf,
}

impl Snapshot {
    /// Unmounts it and keeps what the instance wrote, for somebody to look at.
    pub async fn unmount(&self) -> Result<(), ImageError> {
        let rootfs = self.rootfs.clone();
        let done = tokio::task::spawn_blocking(move || unmount(&rootfs)).await;
        done.unwrap_or_else(|_| {
            Err(ImageError::Interrupted {
                what: "an unmount".to_owned(),
            })
        })
    }

    /// Unmounts it and deletes what the instance wrote.
    pub async fn remove(self, store: &Store) -> Result<(), ImageError> {
        store.remove_snapshot(&self.instance).await
    }
}

impl Store {
    /// Mounts `image` at `instance/rootfs`, with what the instance writes kept below `instance`.
    /// Anything an earlier life left there is removed first. With an `owner` the files belong to the
    /// root of its user namespace and so on, although on disk they keep the owners the image gave.
    pub async fn snapshot(
        &self,
        image: &Image,
        instance: &Path,
        owner: Option<Owner>,
    ) -> Result<Snapshot, ImageError> {
        let (digest, diff_ids) = (image.digest()?, image.diff_ids()?);
        self.verified(image).await?;
        let instance = instance.to_owned();
        self.blocking(move |inner| {
            inner.begin_use(&instance, &digest)?;
            // Now that they are known to be in use they are mended, not replaced.
            let sound = inner.none_damaged(&diff_ids);
            let mounted = sound.and_then(|()| clear(&instance)).and_then(|()| {
                lay_out(&instance, owner.as_ref())?;
                fail::fail_point!("image::laid_out");
                mount(inner, &diff_ids, &instance, owner.as_ref())
            });
            fail::fail_point!("image::mounted");
            if let Err(error) = mounted {
                // The mount's error is the one to tell.
                let _ = clear(&instance).and_then(|()| inner.end_use(&instance));
                return Err(error);
            }
            Ok(Snapshot {
                rootfs: instance.join(ROOTFS),
                instance,
            })
        })
        .await
    }

    /// The snapshot an earlier process of this node left mounted for an instance, if it is.
    pub async fn adopt_snapshot(&self, instance: &Path) -> Option<Snapshot> {
        let instance = instance.to_owned();
        let found = self.blocking(move |_| {
            let rootfs = instance.join(ROOTFS);
            let mounted = is_mount_point(&rootfs, &instance);
            Ok(mounted.then_some(Snapshot { rootfs, instance }))
        });
        found.await.ok().flatten()
    }

    /// Unmounts and deletes an instance's root file system. Nothing there is fine.
    pub async fn remove_snapshot(&self, instance: &Path) -> Result<(), ImageError> {
        let instance = instance.to_owned();
        self.blocking(move |inner| {
            clear(&instance)?;
            fail::fail_point!("image::unmounted");
            inner.end_use(&instance)
        })
        .await
    }
}

fn lay_out(instance: &Path, owner: Option<&Owner>) -> Result<(), ImageError> {
    if !instance.exists() {
        disk::create_private_dirs(instance)?;
    }
    // The upper directory's owner and mode are those of the container's `/`.
    for name in [ROOTFS, UPPER, WORK] {
        disk::create_dir(&instance.join(name))?;
    }
    if let Some(owner) = owner {
        let root = owner.block.root();
        let upper = instance.join(UPPER);
        std::os::unix::fs::chown(&upper, Some(root), Some(root))
            .map_err(|e| ImageError::disk("give away", &upper, e))?;
    }
    Ok(())
}

fn clear(instance: &Path) -> Result<(), ImageError> {
    for name in [ROOTFS, SHOWN] {
        unmount(&instance.join(name))?;
    }
    hide(instance)?;
    for name in [ROOTFS, SHOWN, WORK, UPPER] {
        let path = instance.join(name);
        disk::remove_all(&path).map_err(|e| ImageError::disk("remove", &path, e))?;
    }
    Ok(())
}

/// Takes the layers that arrive out of sight. Whoever has them mounted goes on reading them.
fn hide(instance: &Path) -> Result<(), ImageError> {
    let coming = instance.join(COMING);
    if !coming.exists() {
        return Ok(());
    }
    for name in disk::names(&coming)? {
        unmount(&coming.join(name))?;
    }
    disk::remove_all(&coming).map_err(|e| ImageError::disk("remove", &coming, e))
}

/// Lazily, so that a process that still has a file open there holds up nobody; what it holds is
/// let go when it ends.
fn unmount(rootfs: &Path) -> Result<(), ImageError> {
    let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
    loop {
        match rustix::mount::unmount(rootfs, flags) {
            // Mounts may lie on top of each other.
            Ok(()) => {}
            Err(Errno::INVAL | Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            Err(e) => return Err(ImageError::disk("unmount", rootfs, e)),
        }
    }
}

fn is_mount_point(path: &Path, parent: &Path) -> bool {
    match (fs::symlink_metadata(path), fs::symlink_metadata(parent)) {
        (Ok(path), Ok(parent)) => path.is_dir() && path.dev() != parent.dev(),
        _ => false,
    }
}

/// Whether an instance's root is still mounted, readable or not.
pub(super) fn is_mounted(instance: &Path) -> bool {
    let rootfs = instance.join(ROOTFS);
    match fs::symlink_metadata(&rootfs) {
        Ok(_) => is_mount_point(&rootfs, instance),
        Err(error) => error.kind() == io::ErrorKind::NotConnected,
    }
}

/// Whether a layer of an instance's root is shown by a process that is gone.
pub(super) fn is_dead(instance: &Path) -> bool {
    // A name the kernel has not heard before: it asks the process.
    let asked = instance.join(ROOTFS).join(Scratch::name());
    let found = fs::symlink_metadata(asked);
    found.is_err_and(|error| error.kind() == io::ErrorKind::NotConnected)
}

/// Mounts through descriptors: the option string stays short whatever the folders are called, and
/// no character in a path can be taken for an option.
fn mount(
    inner: &Inner,
    diff_ids: &[Digest],
    instance: &Path,
    owner: Option<&Owner>,
) -> Result<(), ImageError> {
    let layers = &inner.layers;
    let shown = owner.map(|owner| show(layers, owner)).transpose()?;
    let lowers = visible(inner, diff_ids)?;
    let lowers: Vec<OwnedFd> = lowers
        .iter()
        .map(|lower| match (lower, &shown) {
            (Lower::Coming(arrival), _) => show_coming(arrival, instance, owner),
            (Lower::Here(path), Some(tree)) => open_at(
                tree.as_fd(),
                path.strip_prefix(layers.dir()).unwrap_or(path),
            ),
            (Lower::Here(path), None) => open(path),
        })
        .collect::<Result<_, _>>()?;
    let (upper, work) = (open(&instance.join(UPPER))?, open(&instance.join(WORK))?);
    let name = |fd: &OwnedFd| format!("/proc/self/fd/{}", fd.as_raw_fd());
    let lower: Vec<String> = lowers.iter().map(name).collect();
    // Volatile: an instance does not outlive this node's kernel, so its writes need no sync
    // (0.25 ms to set up instead of 1 to 5 on ext4).
    let options = format!(
        "lowerdir={},upperdir={},workdir={},volatile",
        lower.join(":"),
        name(&upper),
        name(&work)
    );
    let rootfs = instance.join(ROOTFS);
    let fail = |e: io::Error| ImageError::disk("mount", &rootfs, e);
    if options.len() > MAX_OPTIONS {
        return Err(fail(Errno::TOOBIG.into()));
    }
    let options = CString::new(options).map_err(|e| fail(e.into()))?;
    let flags = MountFlags::NODEV;
    let mount = || rustix::mount::mount("overlay", &rootfs, "overlay", flags, options.as_c_str());
    match shown {
        Some(tree) => tree.build_on((&instance.join(SHOWN), &instance.join(WORK)), mount),
        None => mount().map_err(io::Error::from),
    }
    .map_err(fail)?;
    hide(instance)
}

/// A layer that arrives, shown by a process of its own. The kernel cannot map owners on such a mount
/// everywhere: the process does.
fn show_coming(
    arrival: &Arrival,
    instance: &Path,
    owner: Option<&Owner>,
) -> Result<OwnedFd, ImageError> {
    let at = instance.join(COMING).join(arrival.diff_id.hex());
    disk::create_private_dirs(&at)?;
    lazy::show(arrival, &at, instance, owner.map(|owner| owner.block))?;
    open(&at)
}

/// All layers with their owners mapped: one mount for however many, which overlayfs copies.
fn show(layers: &Layers, owner: &Owner) -> Result<Shown, ImageError> {
    owner
        .show(layers.dir())
        .map_err(|e| ImageError::disk("map the owners of", layers.dir(), e))
}

fn open(path: &Path) -> Result<OwnedFd, ImageError> {
    open_at(CWD, path)
}

fn open_at(folder: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd, ImageError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(folder, path, flags, Mode::empty())
        .map_err(|e| ImageError::disk("open", path, e))
}

/// The directories to mount, the top layer first. A layer that comes twice counts where it is
/// highest (overlayfs takes none twice, and what the lower copy brings the higher one brings
/// again); below a layer with an opaque root nothing shows.
pub(super) fn visible(inner: &Inner, diff_ids: &[Digest]) -> Result<Vec<Lower>, ImageError> {
    let mut seen: Vec<&Digest> = Vec::new();
    let mut lowers = Vec::new();
    for diff_id in diff_ids.iter().rev() {
        let (lower, opaque_root) = lower(inner, diff_id)?;
        if !seen.contains(&diff_id) {
            seen.push(diff_id);
            lowers.push(lower);
        }
        if opaque_root {
            break;
        }
    }
    Ok(lowers)
}

/// A layer, as its tree is to be had.
pub(super) enum Lower {
    Here(PathBuf),
    Coming(Arc<Arrival>),
}

impl Lower {
    /// What a name in its root is.
    fn point(&self, name: &str) -> Option<Point> {
        use std::os::unix::fs::FileTypeExt as _;
        let path = match self {
            Self::Here(path) => path.join(name),
            Self::Coming(arrival) => return arrival.point(name),
        };
        let meta = fs::symlink_metadata(path).ok()?;
        Some(if meta.is_dir() {
            Point::Directory
        } else if meta.file_type().is_char_device() && meta.rdev() == 0 {
            Point::Whiteout
        } else {
            Point::Other
        })
    }
}

fn lower(inner: &Inner, diff_id: &Digest) -> Result<(Lower, bool), ImageError> {
    let here = || {
        let marker = inner.layers.marker(diff_id)?;
        Some((
            Lower::Here(inner.layers.content(diff_id)),
            marker.opaque_root,
        ))
    };
    let coming = || {
        let arrival = inner.coming().layer(diff_id)?;
        let opaque_root = arrival.opaque_root;
        Some((Lower::Coming(arrival), opaque_root))
    };
    // One that came between the two looks is here.
    let found = here().or_else(coming).or_else(here);
    found.ok_or_else(|| ImageError::NotHeld {
        digest: diff_id.to_string(),
    })
}

/// Refuses an image whose `/proc`, `/sys` or `/dev` is anything but a directory or absent.
pub(super) fn check_root(inner: &Inner, diff_ids: &[Digest]) -> Result<(), ImageError> {
    let lowers = visible(inner, diff_ids)?;
    for name in MOUNT_POINTS {
        // The highest layer that has the name decides; a whiteout is a device and hides the rest.
        let found = lowers.iter().find_map(|lower| lower.point(name));
        if found == Some(Point::Other) {
            return Err(ImageError::UnsafeRoot { path: name });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Limits;

    #[test]
    fn the_options_of_the_most_layers_fit_in_a_page() {
        let longest = "/proc/self/fd/20000:".len();
        let fixed = "lowerdir=,upperdir=,workdir=,volatile".len() + 2 * longest;
        // One more: the layer of implied directories.
        let layers = Limits::default().layers + 1;
        assert!(layers * longest + fixed <= MAX_OPTIONS);
    }
}
