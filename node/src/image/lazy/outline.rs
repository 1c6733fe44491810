//! A layer's tree in memory: names, owners, modes, links, and where in the raw tar each file's content
//! lies. Made by the same reading of the tar that unpacks layers, from its headers alone, so what is
//! refused there is refused here. Pure; content is not its business.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;

use super::super::budget::Budget;
use super::super::entry::{Fault, Inside, Meta};
use super::super::implied::{At, Directories};
use super::super::tree::check_target;
use super::super::unpack::{Sink, Stop, unpack_into};
use super::holes::Holes;

/// The longest name of one file on Linux.
pub(super) const MAX_NAME: usize = 255;
/// What overlayfs asks a lower directory for.
pub(in super::super) const OPAQUE: &[u8] = b"trusted.overlay.opaque";
/// Directories nobody described get the mode every unpacker gives them.
const IMPLIED: u32 = 0o755;
/// Deep names of few bytes make far more directories than there are entries.
const MAX_NODES: usize = 1_000_000;
pub(in super::super) const ROOT: usize = 0;

/// What a name stands for. Several names may stand for one.
#[derive(Debug, Clone)]
pub(in super::super) struct Node {
    pub kind: Kind,
    pub meta: Meta,
    /// Names it has; a directory's are counted by the file system.
    pub links: u32,
}

#[derive(Debug, Clone)]
pub(in super::super) enum Kind {
    Directory {
        names: BTreeMap<Box<[u8]>, usize>,
        parent: usize,
    },
    /// These bytes of the raw tar.
    File(Range<u64>),
    Symlink(Box<[u8]>),
    Whiteout,
}

/// The tree. The root is number 0.
#[derive(Debug)]
pub(in super::super) struct Outline {
    nodes: Vec<Node>,
    opaque_root: bool,
    /// Made because something lies in them, and so far no entry says more of them.
    implied: BTreeSet<Vec<u8>>,
    /// How many were made since somebody asked, and the bytes of their names.
    made_up: (u64, u64),
}

impl Outline {
    /// Reads the tar, of which only what is no file's content has to be there.
    pub(in super::super) fn read(tar: Holes<'_>, budget: &Budget) -> Result<Self, Stop> {
        let mut outline = Self::empty();
        unpack_into(tar, &mut outline, budget, &())?;
        Ok(outline)
    }

    /// The same of a tar that is all there.
    #[cfg(any(test, feature = "fuzz"))]
    pub(in super::super) fn of(tar: impl io::Read, budget: &Budget) -> Result<Self, Stop> {
        let mut outline = Self::empty();
        unpack_into(tar, &mut outline, budget, &())?;
        Ok(outline)
    }

    fn empty() -> Self {
        let nodes = vec![Node::directory(ROOT)];
        Self {
            nodes,
            opaque_root: false,
            implied: BTreeSet::new(),
            made_up: (0, 0),
        }
    }

    pub(in super::super) fn node(&self, number: usize) -> Option<&Node> {
        self.nodes.get(number)
    }

    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Nothing of the layers below shows.
    pub(in super::super) fn opaque_root(&self) -> bool {
        self.opaque_root
    }

    /// The directories that no entry describes.
    pub(in super::super) fn implied(&self) -> &BTreeSet<Vec<u8>> {
        &self.implied
    }

    pub(super) fn child(&self, parent: usize, name: &[u8]) -> Option<usize> {
        match &self.nodes.get(parent)?.kind {
            Kind::Directory { names, .. } => names.get(name).copied(),
            _ => None,
        }
    }

    fn add(&mut self, node: Node) -> Result<usize, Fault> {
        if self.nodes.len() >= MAX_NODES {
            return refused("the layer has too many directories");
        }
        self.nodes.push(node);
        Ok(self.nodes.len() - 1)
    }

    fn names(&mut self, directory: usize) -> Result<&mut BTreeMap<Box<[u8]>, usize>, Fault> {
        match &mut self.nodes[directory].kind {
            Kind::Directory { names, .. } => Ok(names),
            _ => refused("it lies below something that is no directory"),
        }
    }

    /// Gives `node` a name that is free.
    fn name(&mut self, parent: usize, name: &[u8], node: usize) -> Result<(), Fault> {
        self.names(parent)?.insert(name.into(), node);
        Ok(())
    }

    /// The directory `path` lies in, made with all above it when it is not there.
    fn parent_of(&mut self, path: &Inside) -> Result<usize, Fault> {
        if path.is_root() {
            return refused("it takes the place of the root");
        }
        if path.name().len() > MAX_NAME {
            return refused("its name is too long");
        }
        let (mut at, mut end) = (ROOT, 0);
        for part in parts(path.parent()) {
            let known = self.nodes.len();
            at = self.make_directory(at, part, false)?;
            let so_far = &path.parent()[..end + part.len()];
            end = so_far.len() + 1;
            if self.nodes.len() > known {
                self.implied.insert(so_far.to_vec());
                self.made_up.0 += 1;
                self.made_up.1 += so_far.len() as u64;
            }
        }
        Ok(at)
    }

    /// Finds `name` in `parent` as a directory, making it when it is not there. One that takes the
    /// place of a whiteout of this layer is opaque. Only a directory's own entry replaces a file.
    fn make_directory(&mut self, parent: usize, name: &[u8], own: bool) -> Result<usize, Fault> {
        if name.len() > MAX_NAME {
            return refused("its name is too long");
        }
        let found = self.child(parent, name);
        let was_whiteout = match found.map(|found| &self.nodes[found].kind) {
            Some(Kind::Directory { .. }) => return Ok(found.unwrap_or(ROOT)),
            Some(Kind::Symlink(_)) if !own => return refused("it leads through a symbolic link"),
            Some(Kind::File(_)) if !own => {
                return refused("it lies below something that is no directory");
            }
            Some(kind) => matches!(kind, Kind::Whiteout),
            None => false,
        };
        if let Some(found) = found {
            self.unlink(found);
        }
        let made = self.add(Node::directory(parent))?;
        self.name(parent, name, made)?;
        if was_whiteout {
            self.set_opaque(made);
        }
        Ok(made)
    }

    /// Makes way for something that is no directory.
    fn clear(&mut self, parent: usize, name: &[u8]) -> Result<(), Fault> {
        let Some(found) = self.child(parent, name) else {
            return Ok(());
        };
        if matches!(self.nodes[found].kind, Kind::Directory { .. }) {
            return refused("it replaces a directory of its own layer");
        }
        self.names(parent)?.remove(name);
        self.unlink(found);
        Ok(())
    }

    fn unlink(&mut self, node: usize) {
        let links = &mut self.nodes[node].links;
        *links = links.saturating_sub(1);
    }

    fn set_opaque(&mut self, directory: usize) {
        set_xattr(&mut self.nodes[directory].meta, OPAQUE, b"y");
    }

    /// The directory at `path`, if all of it is there.
    fn walk(&self, path: &[u8]) -> Result<Option<usize>, Fault> {
        let mut at = ROOT;
        for part in parts(path) {
            let Some(next) = self.child(at, part) else {
                return Ok(None);
            };
            match &self.nodes[next].kind {
                Kind::Directory { .. } => at = next,
                Kind::Symlink(_) => return refused("it leads through a symbolic link"),
                _ => return refused("it lies below something that is no directory"),
            }
        }
        Ok(Some(at))
    }
}

impl Node {
    fn directory(parent: usize) -> Self {
        let names = BTreeMap::new();
        Self {
            kind: Kind::Directory { names, parent },
            meta: Meta {
                mode: IMPLIED,
                ..Meta::default()
            },
            links: 1,
        }
    }

    fn leaf(kind: Kind, meta: Meta) -> Self {
        Self {
            kind,
            meta,
            links: 1,
        }
    }
}

/// A file on its way into an outline: its content is left where it is.
pub(in super::super) struct Described(usize);

impl Sink for Outline {
    type File = Described;

    fn directory(&mut self, path: &Inside, meta: &Meta) -> Result<(), Fault> {
        let found = if path.is_root() {
            ROOT
        } else {
            let parent = self.parent_of(path)?;
            self.make_directory(parent, path.name(), true)?
        };
        self.implied.remove(path.bytes());
        let node = &mut self.nodes[found];
        let had = std::mem::take(&mut node.meta.xattrs);
        node.meta = masked(meta);
        // On a disk attributes add up as well.
        let new = std::mem::replace(&mut node.meta.xattrs, had);
        for (name, value) in new {
            set_xattr(&mut node.meta, &name, &value);
        }
        Ok(())
    }

    fn file(&mut self, path: &Inside, content: Range<u64>, _: &Meta) -> Result<Described, Fault> {
        let parent = self.parent_of(path)?;
        self.clear(parent, path.name())?;
        let made = self.add(Node::leaf(Kind::File(content), Meta::default()))?;
        self.name(parent, path.name(), made)?;
        Ok(Described(made))
    }

    fn write(_: &mut Described, _: &[u8]) -> io::Result<()> {
        Ok(())
    }

    fn finish_file(&mut self, file: Described, meta: &Meta) -> Result<(), Fault> {
        let node = &mut self.nodes[file.0];
        node.meta = masked(meta);
        let xattrs = std::mem::take(&mut node.meta.xattrs);
        for (name, value) in xattrs {
            set_xattr(&mut node.meta, &name, &value);
        }
        Ok(())
    }

    fn symlink(&mut self, path: &Inside, target: &[u8], meta: &Meta) -> Result<(), Fault> {
        check_target(target)?;
        let parent = self.parent_of(path)?;
        self.clear(parent, path.name())?;
        let meta = Meta {
            mode: 0o777,
            xattrs: Vec::new(),
            ..meta.clone()
        };
        let made = self.add(Node::leaf(Kind::Symlink(target.into()), meta))?;
        self.name(parent, path.name(), made)
    }

    fn hardlink(&mut self, path: &Inside, target: &Inside) -> Result<(), Fault> {
        const OUTSIDE: &str = "it is a hard link to a file outside this layer";
        if target.is_root() || target == path {
            return refused("it is a hard link to itself or to the root");
        }
        let Some(source) = self.walk(target.parent())? else {
            return refused(OUTSIDE);
        };
        let Some(node) = self.child(source, target.name()) else {
            return refused(OUTSIDE);
        };
        if !matches!(self.nodes[node].kind, Kind::File(_) | Kind::Symlink(_)) {
            return refused("it is a hard link to something that is no file");
        }
        let parent = self.parent_of(path)?;
        self.clear(parent, path.name())?;
        self.nodes[node].links += 1;
        self.name(parent, path.name(), node)
    }

    fn whiteout(&mut self, path: &Inside) -> Result<(), Fault> {
        let parent = self.parent_of(path)?;
        let found = self.child(parent, path.name());
        match found.map(|found| (found, &self.nodes[found].kind)) {
            None => {
                let made = self.add(Node::leaf(Kind::Whiteout, Meta::default()))?;
                self.name(parent, path.name(), made)
            }
            Some((found, Kind::Directory { .. })) => {
                self.set_opaque(found);
                Ok(())
            }
            Some(_) => Ok(()),
        }
    }

    fn opaque(&mut self, path: &Inside) -> Result<(), Fault> {
        if path.parent().is_empty() {
            self.opaque_root = true;
            return Ok(());
        }
        let parent = self.parent_of(path)?;
        self.set_opaque(parent);
        Ok(())
    }

    fn take_made_up(&mut self) -> (u64, u64) {
        std::mem::take(&mut self.made_up)
    }

    fn finish(&mut self) -> Result<bool, Fault> {
        Ok(self.opaque_root)
    }
}

impl Directories for Outline {
    fn at(&self, path: &[u8]) -> io::Result<At> {
        let opaque = |number: usize| {
            let mut xattrs = self.nodes[number].meta.xattrs.iter();
            xattrs.any(|(name, _)| name == OPAQUE)
        };
        Ok(match self.walk(path) {
            Ok(Some(number)) => At::Directory {
                opaque: opaque(number),
            },
            Ok(None) => At::Nothing,
            Err(_) => At::Other,
        })
    }

    fn meta(&self, path: &[u8]) -> io::Result<Meta> {
        let found = self.walk(path).ok().flatten();
        let number = found.ok_or(io::ErrorKind::NotFound)?;
        let mut meta = self.nodes[number].meta.clone();
        meta.xattrs.retain(|(name, _)| name.starts_with(b"user."));
        Ok(meta)
    }
}

fn masked(meta: &Meta) -> Meta {
    let mut meta = meta.clone();
    meta.mode &= 0o7777;
    meta
}

fn set_xattr(meta: &mut Meta, name: &[u8], value: &[u8]) {
    match meta.xattrs.iter_mut().find(|(had, _)| had == name) {
        Some((_, had)) => *had = value.to_vec(),
        None => meta.xattrs.push((name.to_vec(), value.to_vec())),
    }
}

fn parts(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|b| *b == b'/').filter(|part| !part.is_empty())
}

fn refused<T>(reason: &str) -> Result<T, Fault> {
    Err(Fault::Refused(reason.to_owned()))
}
