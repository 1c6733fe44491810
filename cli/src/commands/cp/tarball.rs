//! Files of this machine as a tar, and a tar as files of this machine. A tar that comes from an
//! instance is a stranger's: nothing of it lands outside the place that was named.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Component, Path, PathBuf};

use tar::{Archive, Builder, EntryType};

/// Links in one tar, which are kept in mind to its end.
const MAX_LINKS: usize = 100_000;
const CHUNK: usize = 64 << 10;

/// The name that stands for `path` in a tar.
pub fn top(path: &Path) -> io::Result<PathBuf> {
    let whole = fs::canonicalize(path)?;
    let name = whole.file_name().map(PathBuf::from);
    name.ok_or_else(|| io::Error::other("a whole machine is not copied"))
}

pub fn pack(path: &Path, top: &Path, to: impl Write) -> io::Result<()> {
    let mut tar = Builder::new(BufWriter::with_capacity(CHUNK, to));
    tar.follow_symlinks(false);
    if fs::metadata(path)?.is_dir() {
        tar.append_dir_all(top, path)?;
    } else {
        tar.append_file(top, &mut File::open(path)?)?;
    }
    tar.into_inner()?.flush()
}

/// Unpacks into the folder `to`, or, when there is none, so that the tar's one top is `to`. Says what
/// was left out.
pub fn unpack(from: impl Read, to: &Path) -> Result<Vec<String>, String> {
    let into_folder = to.is_dir();
    let mut left_out = Vec::new();
    // Made at the end, so that no file is written through one of them.
    let mut links: Vec<(PathBuf, PathBuf)> = Vec::new();
    let broken = |error: io::Error| format!("the copy broke off: {error}");
    for entry in Archive::new(from).entries().map_err(broken)? {
        let mut entry = entry.map_err(broken)?;
        let name = entry.path().map_err(broken)?.into_owned();
        let inside = inside(&name)
            .ok_or_else(|| format!("refused: {} leads out of the copy", name.display()))?;
        let place = if into_folder {
            to.join(&inside)
        } else {
            let mut parts = inside.components();
            parts.next();
            // Joining nothing would add a slash.
            match parts.as_path() {
                rest if rest.as_os_str().is_empty() => to.to_owned(),
                rest => to.join(rest),
            }
        };
        let at = |error: io::Error| format!("{}: {error}", place.display());
        match entry.header().entry_type() {
            EntryType::Directory => fs::create_dir_all(&place).map_err(at)?,
            EntryType::Regular | EntryType::Continuous => {
                let mode = entry.header().mode().map_err(broken)? & 0o777;
                file(&mut entry, &place, mode).map_err(at)?;
            }
            EntryType::Symlink => match entry.link_name().map_err(broken)? {
                Some(target) if stays(&inside, &target) && links.len() < MAX_LINKS => {
                    links.push((place, target.into_owned()));
                }
                _ => left_out.push(format!(
                    "left out, a link that leads away: {}",
                    name.display()
                )),
            },
            _ => left_out.push(format!("left out, no file: {}", name.display())),
        }
    }
    for (place, target) in links {
        link(&place, &target).map_err(|e| format!("{}: {e}", place.display()))?;
    }
    Ok(left_out)
}

/// `name` without what says nothing; none when it leads out.
fn inside(name: &Path) -> Option<PathBuf> {
    let mut inside = PathBuf::new();
    for part in name.components() {
        match part {
            Component::Normal(part) => inside.push(part),
            Component::CurDir => {}
            _ => return None,
        }
    }
    Some(inside)
}

/// Whether a link at `place` to `target` stays below the tar's top.
fn stays(place: &Path, target: &Path) -> bool {
    let mut depth = place.components().count().saturating_sub(2);
    for part in target.components() {
        match part {
            Component::Normal(_) => depth += 1,
            Component::CurDir => {}
            Component::ParentDir if depth > 0 => depth -= 1,
            _ => return false,
        }
    }
    true
}

fn file(from: &mut impl Read, place: &Path, mode: u32) -> io::Result<()> {
    make_way(place)?;
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, mode);
    io::copy(from, &mut options.open(place)?).map(drop)
}

fn link(place: &Path, target: &Path) -> io::Result<()> {
    make_way(place)?;
    std::os::unix::fs::symlink(target, place)
}

/// Takes away what has the name, unless it is a folder, and makes the folders above it.
fn make_way(place: &Path) -> io::Result<()> {
    match fs::symlink_metadata(place) {
        Ok(meta) if meta.is_dir() => Err(io::ErrorKind::IsADirectory.into()),
        Ok(_) => fs::remove_file(place),
        Err(_) => match place.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => fs::create_dir_all(parent),
            _ => Ok(()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let folder = format!("selvedge-cp-{}-{name}", std::process::id());
            let folder = std::env::temp_dir().join(folder);
            fs::create_dir_all(&folder).unwrap();
            Self(folder)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn what_is_packed_is_unpacked_equal() {
        let folder = Folder::new("equal");
        let from = folder.0.join("from");
        fs::create_dir_all(from.join("sub")).unwrap();
        fs::write(from.join("sub/a"), vec![7; 100_000]).unwrap();
        std::os::unix::fs::symlink("sub/a", from.join("link")).unwrap();
        let mut tar = Vec::new();
        pack(&from, &top(&from).unwrap(), &mut tar).unwrap();
        let to = folder.0.join("to");
        fs::create_dir(&to).unwrap();
        for (target, top) in [
            (to.clone(), to.join("from")),
            (to.join("new"), to.join("new")),
        ] {
            assert_eq!(unpack(&tar[..], &target), Ok(Vec::new()));
            assert_eq!(fs::read(top.join("sub/a")).unwrap(), vec![7; 100_000]);
            assert_eq!(fs::read_link(top.join("link")).unwrap(), Path::new("sub/a"));
        }
        let mut tar = Vec::new();
        pack(&from.join("sub/a"), Path::new("a"), &mut tar).unwrap();
        assert_eq!(unpack(&tar[..], &to.join("b")), Ok(Vec::new()));
        assert_eq!(fs::metadata(to.join("b")).unwrap().len(), 100_000);
    }

    #[test]
    fn a_strangers_tar_stays_where_it_was_told() {
        let folder = Folder::new("stranger");
        let victim = folder.0.join("victim");
        fs::create_dir(&victim).unwrap();
        let to = folder.0.join("to");
        fs::create_dir(&to).unwrap();
        let mut tar = Builder::new(Vec::new());
        let entry = |kind, size| {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_size(size);
            header.set_mode(0o644);
            header
        };
        for (name, target) in [("t/out", "../.."), ("t/abs", "/etc"), ("t/in", "./sub")] {
            let mut header = entry(EntryType::Symlink, 0);
            tar.append_link(&mut header, name, target).unwrap();
        }
        tar.append_link(&mut entry(EntryType::Link, 0), "t/hard", "/etc/passwd")
            .unwrap();
        tar.append_data(&mut entry(EntryType::Regular, 1), "t/in/x", &b"x"[..])
            .unwrap();
        let tar = tar.into_inner().unwrap();
        // A link in the place of a folder that a file made: the file wins, the link is an error.
        let said = unpack(&tar[..], &to).unwrap_err();
        assert!(said.contains("t/in"), "{said}");
        assert!(!to.join("t/out").is_symlink() && !to.join("t/abs").is_symlink());
        assert!(!to.join("t/hard").exists());

        let mut tar = Builder::new(Vec::new());
        let mut header = entry(EntryType::Regular, 0);
        header.as_mut_bytes()[..11].copy_from_slice(b"../victim/x");
        header.set_cksum();
        tar.append(&header, io::empty()).unwrap();
        let said = unpack(&tar.into_inner().unwrap()[..], &to).unwrap_err();
        assert!(said.contains("leads out"), "{said}");
        assert!(!victim.join("x").exists());
        for (place, target, want) in [
            ("t/a", "b", true),
            ("t/a", "../b", false),
            ("t/sub/a", "../b", true),
            ("t/sub/a", "../../b", false),
            ("t/a", "/b", false),
            ("a", "b", true),
            ("a", "../b", false),
        ] {
            assert_eq!(
                stays(Path::new(place), Path::new(target)),
                want,
                "{place} -> {target}"
            );
        }
    }
}
