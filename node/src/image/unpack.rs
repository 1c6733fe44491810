//! One layer's tar, entry by entry, into a [`Sink`]: a [`Tree`] on the disk, or one in memory. Decides
//! what an entry may be; where it may go is the sink's. Whiteouts of the image specification become
//! overlayfs's. Blocking.

use std::io::{self, Read};
use std::ops::Range;
use std::path::Path;

use tar::{Archive, Entry, EntryType};

use super::budget::{Budget, Spent};
use super::entry::{Fault, Inside, Meta};
use super::error::ImageError;
use super::pax::Pax;
use super::recipe::Notes;
use super::tree::Tree;

/// Extended headers hold names, times and small attributes.
const MAX_EXTENSION: u64 = 1024 * 1024;
const MAX_XATTR: usize = 64 * 1024;
const COPY_BUFFER: usize = 128 * 1024;
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// The old AUFS driver's own marks, which some images still carry.
const AUFS: &[u8] = b".wh..wh.";

/// What a layer's entries are put into. Every kind of it takes and refuses the same ones.
pub(super) trait Sink {
    /// A regular file that is being written.
    type File;

    /// Makes a directory, or describes one that is already there.
    fn directory(&mut self, path: &Inside, meta: &Meta) -> Result<(), Fault>;
    /// Makes a new regular file, whose content is these bytes of the raw tar. What `meta` says of it
    /// need not hold before [`Sink::finish_file`].
    fn file(
        &mut self,
        path: &Inside,
        content: Range<u64>,
        meta: &Meta,
    ) -> Result<Self::File, Fault>;
    fn write(file: &mut Self::File, bytes: &[u8]) -> io::Result<()>;
    /// Describes a file whose content is written.
    fn finish_file(&mut self, file: Self::File, meta: &Meta) -> Result<(), Fault>;
    fn symlink(&mut self, path: &Inside, target: &[u8], meta: &Meta) -> Result<(), Fault>;
    /// Gives a file of this layer a second name.
    fn hardlink(&mut self, path: &Inside, target: &Inside) -> Result<(), Fault>;
    /// Hides the lower layers' `path`. What this layer itself has there stays visible.
    fn whiteout(&mut self, path: &Inside) -> Result<(), Fault>;
    /// Hides everything the lower layers have in the directory `path` lies in.
    fn opaque(&mut self, path: &Inside) -> Result<(), Fault>;
    /// Directories that were made without an entry of their own, and the bytes of their names, since
    /// this was asked before: one entry can bring many.
    fn take_made_up(&mut self) -> (u64, u64);
    /// Sets what could not be set before and says whether the root hides the lower layers.
    fn finish(&mut self) -> Result<bool, Fault>;
}

/// What came out of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Unpacked {
    pub entries: u64,
    /// Nothing of the layers below shows.
    pub opaque_root: bool,
}

/// Why a layer was not unpacked, before it is known under which name to tell it.
#[derive(Debug)]
pub(super) enum Stop {
    Refused {
        entry: String,
        reason: String,
    },
    Disk {
        entry: String,
        source: io::Error,
    },
    /// The stream itself: cut off, damaged, or over a limit.
    Stream(io::Error),
    Limit(ImageError),
}

/// Unpacks the tar in `reader` below `into`, an empty directory. Reads to the end of the archive,
/// not of the reader.
/// What it reads, and whose content that is, is told to `notes`.
pub(super) fn unpack(
    reader: impl Read,
    into: &Path,
    budget: &Budget,
    notes: &impl Notes,
) -> Result<Unpacked, Stop> {
    let disk = |source| Stop::Disk {
        entry: into.display().to_string(),
        source,
    };
    let mut tree = Tree::open(into).map_err(disk)?;
    let unpacked = unpack_into(reader, &mut tree, budget, notes)?;
    if tree.has_replaced() {
        notes.lose();
    }
    Ok(unpacked)
}

/// The same into any kind of tree, an empty one.
pub(super) fn unpack_into(
    reader: impl Read,
    tree: &mut impl Sink,
    budget: &Budget,
    notes: &impl Notes,
) -> Result<Unpacked, Stop> {
    let mut unpacking = Unpacking {
        tree,
        budget,
        notes,
        buffer: vec![0; COPY_BUFFER],
        pending: Pending::default(),
        last: Vec::new(),
        entries: 0,
    };
    let mut archive = Archive::new(reader);
    // Raw: the crate would read extended headers of any size into memory.
    for entry in archive.entries().map_err(Stop::Stream)?.raw(true) {
        let mut entry = entry.map_err(|e| broken(&unpacking.last, e))?;
        unpacking.entry(&mut entry)?;
    }
    if !unpacking.pending.is_empty() {
        let why = "the archive ends after an extended header";
        return Err(refuse(&unpacking.last, why));
    }
    let opaque_root = unpacking.tree.finish().map_err(|fault| stop(b".", fault))?;
    Ok(Unpacked {
        entries: unpacking.entries,
        opaque_root,
    })
}

/// What the headers before an entry say about it.
#[derive(Default)]
struct Pending {
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    pax: Option<Pax>,
}

impl Pending {
    fn is_empty(&self) -> bool {
        self.name.is_none() && self.link.is_none() && self.pax.is_none()
    }
}

struct Unpacking<'a, S, N> {
    tree: &'a mut S,
    budget: &'a Budget,
    notes: &'a N,
    buffer: Vec<u8>,
    pending: Pending,
    /// The name of the entry before, or of this one: a broken stream has no better place.
    last: Vec<u8>,
    entries: u64,
}

impl<S: Sink, N: Notes> Unpacking<'_, S, N> {
    fn entry<R: Read>(&mut self, entry: &mut Entry<'_, R>) -> Result<(), Stop> {
        let own = entry.header().path_bytes().into_owned();
        match entry.header().entry_type() {
            EntryType::GNULongName => {
                let text = until_nul(extension(entry)?);
                once(&mut self.pending.name, text, &own)
            }
            EntryType::GNULongLink => {
                let text = until_nul(extension(entry)?);
                once(&mut self.pending.link, text, &own)
            }
            EntryType::XHeader => {
                let pax = Pax::parse(&extension(entry)?).map_err(|e| refuse(&own, e))?;
                once(&mut self.pending.pax, pax, &own)
            }
            EntryType::XGlobalHeader => {
                let pax = Pax::parse(&extension(entry)?).map_err(|e| refuse(&own, e))?;
                // Tools disagree on what a global name or size means.
                if pax.is_idle() {
                    Ok(())
                } else {
                    Err(refuse(&own, "a global header sets fields"))
                }
            }
            kind => self.described(entry, kind),
        }
    }

    /// An entry proper: names it, checks what every kind has in common, and writes it.
    fn described<R: Read>(
        &mut self,
        entry: &mut Entry<'_, R>,
        kind: EntryType,
    ) -> Result<(), Stop> {
        let Pending { name, link, pax } = std::mem::take(&mut self.pending);
        let pax = pax.unwrap_or_default();
        let raw = match (&pax.path, name) {
            (Some(_), Some(name)) => return Err(refuse(&name, "it is named twice")),
            (Some(path), None) => path.clone(),
            (None, Some(name)) => name,
            (None, None) => entry.header().path_bytes().into_owned(),
        };
        self.entries += 1;
        self.last.clone_from(&raw);
        let within = self.budget.entry(raw.len());
        within.map_err(|error| Stop::Limit(at_entry(&raw, error)))?;
        if pax.size.is_some_and(|size| size != entry.size()) {
            return Err(refuse(&raw, "its two headers disagree on its size"));
        }
        let target = pax.linkpath.clone().or(link).or_else(|| link_name(entry));
        let at = |fault| stop(&raw, fault);
        let path = Inside::new(&raw, self.budget.limits().depth).map_err(at)?;
        // Before POSIX a directory was a file whose name ends in a slash.
        let kind = match kind {
            EntryType::Regular | EntryType::Continuous if raw.ends_with(b"/") => {
                EntryType::Directory
            }
            kind => kind,
        };
        let meta = meta(entry, pax).map_err(|reason| refuse(&raw, reason))?;
        self.write(entry, kind, &path, target.as_deref(), &meta)
            .map_err(|e| match e {
                Wrong::Fault(fault) => stop(&raw, fault),
                Wrong::Stream(e) => broken(&raw, e),
            })?;
        let (entries, names) = self.tree.take_made_up();
        let made_up = Spent {
            raw: 0,
            entries,
            names,
        };
        let within = self.budget.charge(made_up);
        within.map_err(|error| Stop::Limit(at_entry(&raw, error)))
    }

    fn write<R: Read>(
        &mut self,
        entry: &mut Entry<'_, R>,
        kind: EntryType,
        path: &Inside,
        target: Option<&[u8]>,
        meta: &Meta,
    ) -> Result<(), Wrong> {
        let is_file = matches!(kind, EntryType::Regular | EntryType::Continuous);
        if !is_file && entry.size() > 0 {
            return Err(refused("it has content but is no file"));
        }
        if path
            .parent()
            .split(|b| *b == b'/')
            .any(|part| part.starts_with(WHITEOUT))
        {
            return Err(refused("it lies below a whiteout"));
        }
        if path.name().starts_with(WHITEOUT) {
            return Ok(self.whiteout(path)?);
        }
        match (kind, target) {
            (EntryType::Regular | EntryType::Continuous, _) => {
                let at = entry.raw_file_position();
                let content = at..at.saturating_add(entry.size());
                let mut file = self.tree.file(path, content, meta)?;
                self.notes.begin_file(path.bytes());
                self.copy(entry, &mut file)?;
                self.notes.end_file();
                Ok(self.tree.finish_file(file, meta)?)
            }
            (EntryType::Directory, _) => Ok(self.tree.directory(path, meta)?),
            (EntryType::Symlink, Some(to)) => Ok(self.tree.symlink(path, to, meta)?),
            (EntryType::Link, Some(to)) => {
                let to = Inside::new(to, self.budget.limits().depth)?;
                Ok(self.tree.hardlink(path, &to)?)
            }
            (EntryType::Symlink | EntryType::Link, None) => Err(refused("it is a link to nothing")),
            (EntryType::Char | EntryType::Block, _) => Err(refused("it is a device")),
            (EntryType::Fifo, _) => Err(refused("it is a named pipe")),
            (EntryType::GNUSparse, _) => Err(refused("sparse files are not supported")),
            _ => Err(refused("it is of an unknown kind")),
        }
    }

    fn whiteout(&mut self, path: &Inside) -> Result<(), Fault> {
        if path.name() == OPAQUE {
            return self.tree.opaque(path);
        }
        if path.name().starts_with(AUFS) {
            return Ok(());
        }
        match &path.name()[WHITEOUT.len()..] {
            b"" | b"." | b".." => Err(Fault::Refused("it is a whiteout of no name".to_owned())),
            hidden => self.tree.whiteout(&path.sibling(hidden)),
        }
    }

    fn copy<R: Read>(&mut self, entry: &mut Entry<'_, R>, file: &mut S::File) -> Result<(), Wrong> {
        let mut left = entry.size();
        while left > 0 {
            let n = match entry.read(&mut self.buffer) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                read => read.map_err(Wrong::Stream)?,
            };
            if n == 0 {
                return Err(Wrong::Stream(io::ErrorKind::UnexpectedEof.into()));
            }
            S::write(file, &self.buffer[..n]).map_err(Fault::Disk)?;
            left = left.saturating_sub(n as u64);
        }
        Ok(())
    }
}

enum Wrong {
    Fault(Fault),
    Stream(io::Error),
}

impl From<Fault> for Wrong {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

fn refused(reason: &str) -> Wrong {
    Wrong::Fault(Fault::Refused(reason.to_owned()))
}

fn refuse(entry: &[u8], reason: &str) -> Stop {
    stop(entry, Fault::Refused(reason.to_owned()))
}

fn stop(entry: &[u8], fault: Fault) -> Stop {
    let entry = shown(entry);
    match fault {
        Fault::Refused(reason) => Stop::Refused { entry, reason },
        Fault::Disk(source) => Stop::Disk { entry, source },
    }
}

/// The stream broke, or went over a limit, at this entry or right after it.
fn broken(entry: &[u8], error: io::Error) -> Stop {
    match error.get_ref().and_then(|e| e.downcast_ref::<ImageError>()) {
        Some(limit @ ImageError::TooLarge { .. }) => Stop::Limit(at_entry(entry, limit.clone())),
        Some(_) => Stop::Stream(error),
        None if entry.is_empty() => Stop::Stream(error),
        None => {
            let what = format!("{error}, near entry `{}`", shown(entry));
            Stop::Stream(io::Error::new(error.kind(), what))
        }
    }
}

fn at_entry(entry: &[u8], error: ImageError) -> ImageError {
    match error {
        ImageError::TooLarge { what, limit } if !entry.is_empty() => ImageError::TooLarge {
            what: format!("entry `{}`: {what}", shown(entry)),
            limit,
        },
        other => other,
    }
}

/// For people: no control characters, and not four kilobytes of it.
fn shown(entry: &[u8]) -> String {
    let text = String::from_utf8_lossy(entry);
    text.escape_debug().take(200).collect()
}

fn once<T>(slot: &mut Option<T>, value: T, header: &[u8]) -> Result<(), Stop> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(refuse(header, "an extended header comes twice")),
    }
}

/// An extended header's content, bounded.
fn extension<R: Read>(entry: &mut Entry<'_, R>) -> Result<Vec<u8>, Stop> {
    let own = entry.header().path_bytes().into_owned();
    if entry.size() > MAX_EXTENSION {
        return Err(refuse(&own, "an extended header is too large"));
    }
    let mut bytes = Vec::new();
    let read = entry.read_to_end(&mut bytes);
    read.map_err(|e| broken(&own, e))?;
    if bytes.len() as u64 != entry.size() {
        return Err(broken(&own, io::ErrorKind::UnexpectedEof.into()));
    }
    Ok(bytes)
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|b| *b == 0) {
        bytes.truncate(end);
    }
    bytes
}

fn link_name<R: Read>(entry: &Entry<'_, R>) -> Option<Vec<u8>> {
    entry
        .header()
        .link_name_bytes()
        .map(std::borrow::Cow::into_owned)
}

/// Owner, mode, time and the extended attributes an image may set: the `user.` ones, as programs put
/// them there. Dropped, as they are by who unpacks without rights:
/// - `security.capability`: containers run with `no_new_privs`, so it can grant nothing here; but the
///   kernel refuses to run a program whose file asks for more than the container may have, and one
///   like `ping` then fails that would have managed without.
/// - other `security.` ones, ACLs and `trusted.` ones: labels and rules of the machine they come from.
/// - `user.overlay.`: overlayfs would take them for its own.
fn meta<R: Read>(entry: &Entry<'_, R>, pax: Pax) -> Result<Meta, &'static str> {
    const FIELD: &str = "its header is malformed";
    let header = entry.header();
    let id = |given: Option<u64>, field: io::Result<u64>| {
        let id = match given {
            Some(id) => id,
            None => field.map_err(|_| FIELD)?,
        };
        u32::try_from(id)
            .ok()
            .filter(|id| *id != u32::MAX)
            .ok_or("its owner is out of range")
    };
    let mtime = match pax.mtime {
        Some(time) => time,
        None => (
            i64::try_from(header.mtime().map_err(|_| FIELD)?).map_err(|_| FIELD)?,
            0,
        ),
    };
    let mut xattrs = pax.xattrs;
    xattrs.retain(|(name, value)| {
        name.starts_with(b"user.")
            && !name.starts_with(b"user.overlay.")
            && name.len() < 256
            && !name.contains(&0)
            && value.len() <= MAX_XATTR
    });
    Ok(Meta {
        mode: header.mode().map_err(|_| FIELD)?,
        uid: id(pax.uid, header.uid())?,
        gid: id(pax.gid, header.gid())?,
        mtime,
        xattrs,
    })
}
