//! Paths within volumes, held: a mount of our own on what was found, so that nobody who may write
//! in the volume puts a link in its place before the container is made.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use pathrs::Root as Within;

use super::{Owner, Root, VolumeError, empty, mount};

/// The pins of one instance.
pub(super) struct Pins {
    folder: PathBuf,
    next: u32,
}

impl Pins {
    pub(super) const fn new(folder: PathBuf) -> Self {
        Self { folder, next: 0 }
    }

    /// The path `sub` in a volume, made as a folder of `owner`'s when there is none and the volume
    /// can be written.
    pub(super) fn below(
        &mut self,
        root: &Root,
        volume: &str,
        sub: &str,
        owner: Owner,
    ) -> Result<PathBuf, VolumeError> {
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
        let pin = self.folder.join(self.next.to_string());
        self.next += 1;
        bind(&handle.into(), &pin)?;
        Ok(pin)
    }
}

/// Mounts what `handle` is of on `pin`, which is made.
pub(super) fn bind(handle: &OwnedFd, pin: &Path) -> Result<(), VolumeError> {
    let wrong = |error: io::Error| VolumeError::io("cannot mount", pin)(error);
    let source = through(handle);
    if fs::metadata(&source).map_err(wrong)?.is_dir() {
        mount::folder(pin)?;
    } else {
        pin.parent().map_or(Ok(()), mount::folder)?;
        File::create(pin).map_err(VolumeError::io("cannot make", pin))?;
    }
    rustix::mount::mount_bind(&source, pin)
        .map_err(|error| VolumeError::io("cannot mount", pin)(error.into()))
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
