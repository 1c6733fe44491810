//! A layer's tree on the disk beside the tree that its recipe describes: which names there are, what each
//! stands for, its mode, its owner, where links lead, what is hidden. Contents are the chunks' business,
//! times nobody's.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Gid, Mode, Stat, Uid};

use super::lazy::{Kind, Node, OPAQUE, Outline, ROOT};
use super::tree;

/// Shown every name that should be there, before it is compared, with what is there of it.
type See<'a> = dyn FnMut(&OwnedFd, &[u8], &Node, Option<&Stat>) -> io::Result<()> + 'a;

/// The names that are not as they should be, `most` of them.
pub(super) fn differences(
    outline: &Outline,
    content: &Path,
    most: usize,
) -> io::Result<BTreeSet<String>> {
    let root = tree::open_root(content)?;
    let mut found = BTreeSet::new();
    let mut open = vec![(Vec::new(), ROOT)];
    while let Some((path, number)) = open.pop() {
        if found.len() >= most {
            break;
        }
        let (here, strangers) =
            directory(outline, &root, (&path, number), &mut |_, _, _, _| Ok(()))?;
        found.extend(strangers.iter().map(|name| shown(&path, name)));
        open.extend(here);
    }
    Ok(found.into_iter().take(most).collect())
}

/// Gives files and directories the mode and the owner they should have. What is missing, or is something
/// else, stays as it is.
pub(super) fn put_right(outline: &Outline, content: &Path) -> io::Result<()> {
    let root = tree::open_root(content)?;
    let mut open = vec![(Vec::new(), ROOT)];
    let mut see = |parent: &OwnedFd, name: &[u8], node: &Node, stat: Option<&Stat>| {
        let Some(stat) = stat.filter(|stat| is_kind(node, stat)) else {
            return Ok(());
        };
        let (uid, gid) = (node.meta.uid, node.meta.gid);
        let (owner, nofollow) = (
            (Uid::from_raw(uid), Gid::from_raw(gid)),
            AtFlags::SYMLINK_NOFOLLOW,
        );
        let given = !is_owned(node, stat);
        if given {
            rustix::fs::chownat(parent, name, Some(owner.0), Some(owner.1), nofollow)?;
        }
        // A link has no mode. There is nobody who could put one in the place of what was just seen.
        if has_mode(node) && (given || !is_moded(node, stat)) {
            let mode = Mode::from_raw_mode(node.meta.mode & 0o7777);
            rustix::fs::chmodat(parent, name, mode, AtFlags::empty())?;
        }
        Ok(())
    };
    while let Some((path, number)) = open.pop() {
        open.extend(directory(outline, &root, (&path, number), &mut see)?.0);
    }
    Ok(())
}

type Below = Vec<(Vec<u8>, usize)>;

/// One directory: those in it, and the names that are not as they should be.
fn directory(
    outline: &Outline,
    root: &OwnedFd,
    (path, number): (&[u8], usize),
    see: &mut See<'_>,
) -> io::Result<(Below, Vec<Vec<u8>>)> {
    let (mut below, mut strange) = (Vec::new(), Vec::new());
    let Some(Kind::Directory { names, .. }) = outline.node(number).map(|node| &node.kind) else {
        return Ok((below, strange));
    };
    let open = if path.is_empty() {
        root.try_clone()?
    } else {
        tree::open_directory(root, path)?
    };
    let mut there = listed(&open)?;
    for (name, number) in names {
        there.remove(&**name);
        let Some(node) = outline.node(*number) else {
            continue;
        };
        let stat = rustix::fs::statat(&open, &**name, AtFlags::SYMLINK_NOFOLLOW).ok();
        see(&open, name, node, stat.as_ref())?;
        let fits = stat.is_some_and(|stat| is_kind(node, &stat) && is_same(node, &stat));
        if !fits || !leads_there(&open, name, node)? {
            strange.push(name.to_vec());
        }
        if matches!(node.kind, Kind::Directory { .. })
            && stat.is_some_and(|stat| is_kind(node, &stat))
        {
            let inside = joined(path, name);
            let hides = tree::is_opaque(&tree::open_directory(root, &inside)?)?;
            if hides != node.meta.xattrs.iter().any(|(had, _)| had == OPAQUE) {
                strange.push(name.to_vec());
            }
            below.push((inside, *number));
        }
    }
    strange.extend(there);
    Ok((below, strange))
}

fn listed(directory: &OwnedFd) -> io::Result<BTreeSet<Vec<u8>>> {
    let mut names = BTreeSet::new();
    for entry in rustix::fs::Dir::read_from(directory)? {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.insert(name);
        }
    }
    Ok(names)
}

fn is_kind(node: &Node, stat: &Stat) -> bool {
    let kind = FileType::from_raw_mode(stat.st_mode);
    match node.kind {
        Kind::Directory { .. } => kind == FileType::Directory,
        Kind::File(_) => kind == FileType::RegularFile,
        Kind::Symlink(_) => kind == FileType::Symlink,
        Kind::Whiteout => kind == FileType::CharacterDevice && stat.st_rdev == 0,
    }
}

fn has_mode(node: &Node) -> bool {
    matches!(node.kind, Kind::Directory { .. } | Kind::File(_))
}

fn is_moded(node: &Node, stat: &Stat) -> bool {
    stat.st_mode & 0o7777 == node.meta.mode & 0o7777
}

fn is_owned(node: &Node, stat: &Stat) -> bool {
    matches!(node.kind, Kind::Whiteout)
        || (stat.st_uid, stat.st_gid) == (node.meta.uid, node.meta.gid)
}

fn is_same(node: &Node, stat: &Stat) -> bool {
    let long = match &node.kind {
        // What is shorter has lost chunks; what is longer has not.
        Kind::File(content) => u64::try_from(stat.st_size) == Ok(content.end - content.start),
        _ => true,
    };
    long && is_owned(node, stat) && (!has_mode(node) || is_moded(node, stat))
}

fn leads_there(directory: &OwnedFd, name: &[u8], node: &Node) -> io::Result<bool> {
    let Kind::Symlink(target) = &node.kind else {
        return Ok(true);
    };
    match rustix::fs::readlinkat(directory, name, Vec::new()) {
        Ok(there) => Ok(there.to_bytes() == &**target),
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

fn joined(path: &[u8], name: &[u8]) -> Vec<u8> {
    if path.is_empty() {
        return name.to_vec();
    }
    [path, b"/", name].concat()
}

/// For people.
fn shown(path: &[u8], name: &[u8]) -> String {
    let path = joined(path, name);
    String::from_utf8_lossy(&path).escape_debug().to_string()
}
