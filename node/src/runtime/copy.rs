//! Files out of a container and into it, as a tar. Runs inside the container, joined like any
//! program there (`shim::join`): as its user, under its filter and limits, with its root as ours.
//! So a link leads where it leads for the container's own programs, and nowhere else.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};
use tar::{Archive, Builder, EntryType, Header};

/// Bytes of files in one copy.
const MAX_BYTES: u64 = 16 << 30;
/// Files, folders and links in one copy.
const MAX_ENTRIES: u64 = 500_000;
const MAX_DEPTH: usize = 128;

/// What is to be copied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum CopyJob {
    /// `path` as a tar on stdout; its entries begin with the path's last name.
    Pack { path: PathBuf },
    /// The tar on stdin. Into the folder `path`, or, with `renames` and no folder there, so that the
    /// tar's one top is `path`.
    Unpack { path: PathBuf, renames: bool },
}

/// Why a copy stopped, for a person.
type Stop = String;

/// Copies between the container and our stdin or stdout; says on stderr why it could not, or what it
/// left out. Returns the exit code.
pub(super) fn run(job: &CopyJob) -> i32 {
    let copied = match job {
        CopyJob::Pack { path } => pack(path, io::stdout().lock(), io::stderr()),
        CopyJob::Unpack { path, renames } => unpack(io::stdin().lock(), path, *renames),
    };
    match copied {
        Ok(()) => 0,
        Err(stop) => {
            eprintln!("{stop}");
            1
        }
    }
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> Stop + '_ {
    move |error| format!("{}: {error}", path.display())
}

/// Counts against the limits.
#[derive(Default)]
struct Budget {
    bytes: u64,
    entries: u64,
}

impl Budget {
    fn take(&mut self, bytes: u64) -> Result<(), Stop> {
        self.entries += 1;
        self.bytes = self.bytes.saturating_add(bytes);
        if self.entries > MAX_ENTRIES {
            return Err(format!("more than {MAX_ENTRIES} files"));
        }
        if self.bytes > MAX_BYTES {
            return Err(format!("more than {} GiB", MAX_BYTES >> 30));
        }
        Ok(())
    }
}

struct Packing<W: Write, E: Write> {
    tar: Builder<W>,
    notes: E,
    budget: Budget,
}

fn pack(path: &Path, to: impl Write, notes: impl Write) -> Result<(), Stop> {
    let mut packing = Packing {
        tar: Builder::new(BufWriter::with_capacity(64 << 10, to)),
        notes,
        budget: Budget::default(),
    };
    let name = path
        .file_name()
        .map_or_else(|| PathBuf::from("."), PathBuf::from);
    // What was named is followed; what lies below is copied as it is.
    let path = fs::canonicalize(path).map_err(at(path))?;
    packing.entry(&path, &name, 0)?;
    let broken = |error: io::Error| format!("the copy broke off: {error}");
    packing
        .tar
        .into_inner()
        .and_then(|mut to| to.flush())
        .map_err(broken)
}

impl<W: Write, E: Write> Packing<W, E> {
    fn entry(&mut self, path: &Path, name: &Path, depth: usize) -> Result<(), Stop> {
        let meta = fs::symlink_metadata(path).map_err(at(path))?;
        let mut header = Header::new_gnu();
        header.set_metadata_in_mode(&meta, tar::HeaderMode::Complete);
        if meta.is_dir() {
            if depth >= MAX_DEPTH {
                return Err(format!("{}: too deep", path.display()));
            }
            self.budget.take(0)?;
            header.set_size(0);
            self.append(&mut header, &name.join(""), io::empty(), path)?;
            let mut names: Vec<_> = fs::read_dir(path)
                .and_then(Iterator::collect::<io::Result<Vec<_>>>)
                .map_err(at(path))?
                .into_iter()
                .map(|entry| entry.file_name())
                .collect();
            names.sort();
            for child in names {
                self.entry(&path.join(&child), &name.join(&child), depth + 1)?;
            }
            Ok(())
        } else if meta.is_symlink() {
            self.budget.take(0)?;
            let target = fs::read_link(path).map_err(at(path))?;
            header.set_size(0);
            self.tar
                .append_link(&mut header, name, target)
                .map_err(at(path))
        } else if meta.is_file() {
            self.file(path, name, &mut header)
        } else {
            // Nobody is left to tell when stderr is closed.
            let _ = writeln!(self.notes, "left out, no file: {}", path.display());
            Ok(())
        }
    }

    fn file(&mut self, path: &Path, name: &Path, header: &mut Header) -> Result<(), Stop> {
        // It may have become a pipe or a link meanwhile, which must neither block nor lead away.
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(path)
            .map_err(at(path))?;
        let meta = file.metadata().map_err(at(path))?;
        if !meta.is_file() {
            return Err(format!("{}: changed while it was read", path.display()));
        }
        let size = meta.size();
        self.budget.take(size)?;
        header.set_size(size);
        // One that shrinks leaves zeros, as its size was promised; one that grows is cut.
        let exact = file.take(size).chain(io::repeat(0)).take(size);
        self.append(header, name, exact, path)
    }

    fn append(
        &mut self,
        header: &mut Header,
        name: &Path,
        data: impl Read,
        path: &Path,
    ) -> Result<(), Stop> {
        self.tar.append_data(header, name, data).map_err(at(path))
    }
}

/// Where the tar's entries go.
struct Target {
    folder: PathBuf,
    /// Stands for every entry's first name.
    top: Option<PathBuf>,
}

impl Target {
    fn find(path: &Path, renames: bool) -> Result<Self, Stop> {
        if fs::metadata(path).is_ok_and(|meta| meta.is_dir()) {
            let (folder, top) = (path.to_owned(), None);
            return Ok(Self { folder, top });
        }
        let folder = path.parent().unwrap_or(Path::new("/")).to_owned();
        let name = path.file_name().filter(|_| renames);
        let Some(name) = name else {
            return Err(format!("{}: there is no such folder", path.display()));
        };
        if !fs::metadata(&folder).is_ok_and(|meta| meta.is_dir()) {
            return Err(format!("{}: there is no such folder", folder.display()));
        }
        let top = Some(PathBuf::from(name));
        Ok(Self { folder, top })
    }

    /// An entry's place; none for the folder itself.
    fn place(&self, name: &Path) -> Result<Option<PathBuf>, Stop> {
        let mut inside = PathBuf::new();
        for part in name.components() {
            match part {
                Component::Normal(part) => inside.push(part),
                Component::CurDir => {}
                _ => return Err(format!("{}: leads out of the copy", name.display())),
            }
        }
        if let Some(top) = &self.top {
            let mut parts = inside.components();
            parts.next();
            // Joining nothing would add a slash.
            inside = match parts.as_path() {
                rest if rest.as_os_str().is_empty() => top.clone(),
                rest => top.join(rest),
            };
        }
        Ok((!inside.as_os_str().is_empty()).then(|| self.folder.join(inside)))
    }
}

fn unpack(from: impl Read, path: &Path, renames: bool) -> Result<(), Stop> {
    let target = Target::find(path, renames)?;
    let mut budget = Budget::default();
    let broken = |error: io::Error| format!("the copy broke off: {error}");
    for entry in Archive::new(from).entries().map_err(broken)? {
        let mut entry = entry.map_err(broken)?;
        budget.take(entry.size())?;
        let name = entry.path().map_err(broken)?.into_owned();
        if name.components().count() > MAX_DEPTH {
            return Err(format!("{}: too deep", name.display()));
        }
        let Some(place) = target.place(&name)? else {
            continue;
        };
        let mode = entry.header().mode().map_err(broken)? & 0o777;
        match entry.header().entry_type() {
            EntryType::Directory => folder(&place, mode).map_err(at(&place))?,
            EntryType::Regular | EntryType::Continuous => {
                file(&mut entry, &place, mode).map_err(at(&place))?;
            }
            EntryType::Symlink => {
                let to = entry.link_name().map_err(broken)?;
                let to = to.ok_or_else(|| format!("{}: a link to nothing", name.display()))?;
                make_way(&place).map_err(at(&place))?;
                std::os::unix::fs::symlink(to, &place).map_err(at(&place))?;
            }
            _ => eprintln!("left out, no file: {}", name.display()),
        }
    }
    Ok(())
}

fn folder(place: &Path, mode: u32) -> io::Result<()> {
    if fs::metadata(place).is_ok_and(|meta| meta.is_dir()) {
        return Ok(());
    }
    make_way(place)?;
    fs::create_dir_all(place)?;
    // Its owner must be able to fill it.
    fs::set_permissions(place, fs::Permissions::from_mode(mode | 0o700))
}

fn file(from: &mut impl Read, place: &Path, mode: u32) -> io::Result<()> {
    make_way(place)?;
    let mut file: File = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(place)?;
    io::copy(from, &mut file)?;
    // What the umask took.
    file.set_permissions(fs::Permissions::from_mode(mode))
}

/// Takes away what has the name, unless it is a folder, and makes the folders above it.
fn make_way(place: &Path) -> io::Result<()> {
    match fs::symlink_metadata(place) {
        Ok(meta) if meta.is_dir() => Err(io::ErrorKind::IsADirectory.into()),
        Ok(_) => fs::remove_file(place),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            place.parent().map_or(Ok(()), fs::create_dir_all)
        }
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let from = root.path().join("from");
        fs::create_dir_all(from.join("sub")).unwrap();
        fs::write(from.join("a"), vec![7; 100_000]).unwrap();
        fs::write(from.join("sub").join("n".repeat(150)), "long").unwrap();
        std::os::unix::fs::symlink("../a", from.join("sub/link")).unwrap();
        fs::create_dir(root.path().join("to")).unwrap();
        root
    }

    fn packed(path: &Path) -> (Vec<u8>, String) {
        let (mut tar, mut notes) = (Vec::new(), Vec::new());
        pack(path, &mut tar, &mut notes).unwrap();
        (tar, String::from_utf8(notes).unwrap())
    }

    #[test]
    fn what_is_packed_is_unpacked_equal() {
        let root = tree();
        let fifo = root.path().join("from/pipe");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &fifo,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        let (tar, notes) = packed(&root.path().join("from"));
        assert!(notes.contains("from/pipe"), "{notes}");
        let to = root.path().join("to");
        for (target, top) in [
            (to.clone(), to.join("from")),
            (to.join("new"), to.join("new")),
        ] {
            unpack(&tar[..], &target, true).unwrap();
            assert_eq!(fs::read(top.join("a")).unwrap(), vec![7; 100_000]);
            let long = top.join("sub").join("n".repeat(150));
            assert_eq!(fs::read_to_string(long).unwrap(), "long");
            assert_eq!(
                fs::read_link(top.join("sub/link")).unwrap(),
                Path::new("../a")
            );
            assert!(!top.join("pipe").exists());
        }
        // Once more over what is there, and a single file under another name.
        unpack(&tar[..], &to, true).unwrap();
        let (tar, _) = packed(&root.path().join("from/a"));
        unpack(&tar[..], &to.join("b"), true).unwrap();
        assert_eq!(fs::metadata(to.join("b")).unwrap().len(), 100_000);
    }

    #[test]
    fn what_leads_out_or_nowhere_is_refused() {
        let root = tree();
        let to = root.path().join("to");
        let mut tar = Builder::new(Vec::new());
        let mut header = Header::new_gnu();
        header.set_size(0);
        header.set_mode(0o644);
        header.as_mut_bytes()[..9].copy_from_slice(b"../escape");
        header.set_cksum();
        tar.append(&header, io::empty()).unwrap();
        let tar = tar.into_inner().unwrap();
        let stop = unpack(&tar[..], &to, false).unwrap_err();
        assert!(stop.contains("leads out"), "{stop}");
        assert!(!root.path().join("escape").exists());
        for (path, renames) in [("to/none", false), ("none/none", true)] {
            let stop = unpack(&tar[..], &root.path().join(path), renames).unwrap_err();
            assert!(stop.contains("no such folder"), "{stop}");
        }
        assert!(pack(&root.path().join("none"), io::sink(), io::sink()).is_err());
    }
}
