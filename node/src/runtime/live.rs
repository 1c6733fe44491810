//! The part of an instance's folder that means nothing after a reboot: what its shim listens on and
//! notes, what libcontainer reads and writes. It lies in memory, and the instance's folder has a link
//! to it: making and removing a dozen small files on a disk, for every start, costs more than all the
//! rest of the start once a file system is busy with the files that were just removed.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::Path;

use super::wire::LIVE;

/// Makes the part for the instance in `folder`, empty. What an earlier attempt left there goes.
///
/// # Errors
/// Any of the file operations.
pub fn make(all: &Path, id: &str, folder: &Path) -> io::Result<()> {
    let live = all.join(id);
    let mut maker = fs::DirBuilder::new();
    maker.mode(0o700);
    if let Err(error) = maker.create(&live) {
        if error.kind() != io::ErrorKind::AlreadyExists {
            return Err(error);
        }
        fs::remove_dir_all(&live)?;
        maker.create(&live)?;
    }
    let link = folder.join(LIVE);
    absent_is_fine(fs::remove_file(&link))?;
    symlink(&live, link)
}

/// Whether the part was made and is gone: the machine was restarted since.
#[must_use]
pub fn is_lost(folder: &Path) -> bool {
    let link = folder.join(LIVE);
    link.is_symlink() && !link.exists()
}

/// Removes the part and the link to it, which need not be there.
///
/// # Errors
/// Any of the file operations.
pub fn remove(folder: &Path) -> io::Result<()> {
    let link = folder.join(LIVE);
    match fs::read_link(&link) {
        Ok(live) => {
            absent_is_fine(fs::remove_dir_all(live))?;
            absent_is_fine(fs::remove_file(link))
        }
        Err(error) => absent_is_fine(Err(error)),
    }
}

/// Removes the parts of instances that have no folder: a daemon died between the two.
///
/// # Errors
/// Any of the file operations.
pub fn sweep(all: &Path, instances: &Path) -> io::Result<()> {
    for entry in fs::read_dir(all)? {
        let entry = entry?;
        if !instances.join(entry.file_name()).join(LIVE).is_symlink() {
            absent_is_fine(fs::remove_dir_all(entry.path()))?;
        }
    }
    Ok(())
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_made_lost_and_removed_with_its_link() {
        let root = tempfile::tempdir().unwrap();
        let (all, folder) = (root.path().join("live"), root.path().join("instances/a"));
        fs::create_dir_all(&all).unwrap();
        fs::create_dir_all(&folder).unwrap();
        for _ in 0..2 {
            make(&all, "a", &folder).unwrap();
            fs::write(folder.join(LIVE).join("note"), "").unwrap();
        }
        assert!(all.join("a/note").exists() && !is_lost(&folder));
        fs::create_dir(all.join("b")).unwrap();
        sweep(&all, &root.path().join("instances")).unwrap();
        assert!(all.join("a/note").exists() && !all.join("b").exists());
        fs::remove_dir_all(all.join("a")).unwrap();
        assert!(is_lost(&folder));
        make(&all, "a", &folder).unwrap();
        for _ in 0..2 {
            remove(&folder).unwrap();
            assert_eq!(fs::read_dir(&all).unwrap().count(), 0);
            assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
        }
        assert!(!is_lost(&folder));
    }
}
