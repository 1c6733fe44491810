//! Paths within volumes, held: a mount of our own on what was found, so that nobody who may write
//! in the volume puts a link in its place before the container is made.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use pathrs::Root as Within;

use super::{Root, User, VolumeError, empty, mount};
use crate::userns;

/// The pins of one instance.
pub(super) struct Pins {
    folder: PathBuf,
    next: u32,
}

impl Pins {
    pub(super) const fn new(folder: PathBuf) -> Self {
        Self { folder, next: 0 }
    }

    /// A whole volume as the container's `user` is to see it.
    pub(super) fn whole(&mut self, root: &Root, user: &User) -> Result<PathBuf, VolumeError> {
        match &user.mapped {
            Some(mapped) if root.lent => self.lend(mapped, &root.path),
            _ => Ok(root.path.clone()),
        }
    }

    /// The path `sub` in a volume, made as a folder of `user`'s when there is none and the volume
    /// can be written.
    pub(super) fn below(
        &mut self,
        root: &Root,
        volume: &str,
        sub: &str,
        user: &User,
    ) -> Result<PathBuf, VolumeError> {
        let owner = if root.lent { user.inside } else { user.outside };
        let wrong = |why: String| VolumeError::SubPath {
            volume: volume.to_owned(),
            path: sub.to_owned(),
            why,
        };
        let within = Within::open(&root.path).map_err(|e| wrong(e.to_string()))?;
        let handle = match within.resolve(sub) {
            Ok(handle) => handle,
            Err(error) if root.read_only => return Err(wrong(error.to_string())),
            Err(_) => {
                use std::os::unix::fs::PermissionsExt as _;
                let mode = fs::Permissions::from_mode(0o755);
                let made = within.mkdir_all(sub, &mode);
                let made = made.map_err(|e| wrong(e.to_string()))?;
                let made = OwnedFd::from(made);
                empty::give(&through(&made), owner, 0o755)?;
                within.resolve(sub).map_err(|e| wrong(e.to_string()))?
            }
        };
        let handle = OwnedFd::from(handle);
        match &user.mapped {
            Some(mapped) if root.lent => self.lend(mapped, &through(&handle)),
            _ => {
                let pin = self.next();
                bind(&handle, &pin)?;
                Ok(pin)
            }
        }
    }

    fn lend(&mut self, mapped: &userns::Owner, source: &Path) -> Result<PathBuf, VolumeError> {
        let pin = self.next();
        place(source, &pin)?;
        let lent = mapped.lend(source, &pin);
        lent.map_err(VolumeError::io("cannot mount", &pin))?;
        Ok(pin)
    }

    fn next(&mut self) -> PathBuf {
        let pin = self.folder.join(self.next.to_string());
        self.next += 1;
        pin
    }
}

/// Mounts what `handle` is of on `pin`, which is made.
pub(super) fn bind(handle: &OwnedFd, pin: &Path) -> Result<(), VolumeError> {
    let source = through(handle);
    place(&source, pin)?;
    rustix::mount::mount_bind(&source, pin)
        .map_err(|error| VolumeError::io("cannot mount", pin)(error.into()))
}

/// Makes what a mount of `source` can lie on.
fn place(source: &Path, pin: &Path) -> Result<(), VolumeError> {
    let meta = fs::metadata(source).map_err(VolumeError::io("cannot mount", pin))?;
    if meta.is_dir() {
        return mount::way(pin);
    }
    pin.parent().map_or(Ok(()), mount::way)?;
    File::create(pin)
        .map(drop)
        .map_err(VolumeError::io("cannot make", pin))
}

fn through(handle: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", handle.as_raw_fd()))
}

/// Unmounts and removes the pins: each as the empty folder or file it is, so that nothing of what
/// was mounted there can be touched.
pub(super) fn remove(folder: &Path) -> Result<(), VolumeError> {
    for pin in mount::entries(folder)? {
        mount::unmount(&pin)?;
        let removed = match fs::remove_dir(&pin) {
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => fs::remove_file(&pin),
            other => other,
        };
        mount::absent_is_fine(removed).map_err(VolumeError::io("cannot remove", &pin))?;
    }
    mount::absent_is_fine(fs::remove_dir(folder)).map_err(VolumeError::io("cannot remove", folder))
}
