//! Directories that a layer needs and does not describe. Tools that write only what changed leave out
//! the parents, and mean those of the layers below; but overlayfs shows a directory as the highest
//! layer has it, and a layer's tree does not know what it will lie on. So an image whose layers leave
//! it at that gets one more layer of ours on top: these directories, as the layers below describe
//! them, and nothing else. It is a layer like others, named by what is in it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use tar::{Builder, EntryType, Header};

use super::budget::Budget;
use super::digest::Digest;
use super::entry::Meta;
use super::error::ImageError;
use super::layer::Marker;
use super::manifest::{LayerPlan, Packing};
use super::snapshot::{Lower, visible};
use super::store::Inner;
use super::tree;

/// Directories opened in the search, some seconds' worth. Images that people make take thousands.
const MAX_OPENED: u64 = 10_000_000;

/// The layer that is missing.
pub(super) struct Folders {
    pub plan: LayerPlan,
    tar: Vec<u8>,
}

impl Folders {
    pub(super) fn bring_in(self, inner: &Inner) -> Result<Marker, ImageError> {
        match inner.usable(&self.plan.diff_id) {
            Some(marker) => Ok(marker),
            None => inner.take_in(&self.tar[..], &self.plan, &Budget::new(inner.limits)),
        }
    }
}

/// What an image of these layers lacks; mostly nothing. Layers that arrive are as they were told.
pub(super) fn layer(inner: &Inner, diff_ids: &[Digest]) -> Result<Option<Folders>, ImageError> {
    let of = |error| ImageError::io("look for the directories of an image", error);
    let lowers = visible(inner, diff_ids)?;
    let implied = lowers.iter().map(|lower| match lower {
        Lower::Here(path) => tree::listed(path, tree::IMPLIED_LIST),
        Lower::Coming(arrival) => Ok(arrival.implied.clone()),
    });
    let implied = implied.collect::<io::Result<Vec<_>>>().map_err(of)?;
    if implied.iter().all(BTreeSet::is_empty) {
        return Ok(None);
    }
    let mut search = Search {
        layers: Vec::new(),
        left: MAX_OPENED,
    };
    for (lower, implied) in lowers.iter().zip(implied) {
        let directories: Box<dyn Directories> = match lower {
            Lower::Here(path) => Box::new(OnDisk(tree::open_root(path).map_err(of)?)),
            Lower::Coming(arrival) => arrival.directories(&Budget::new(inner.limits))?,
        };
        search.layers.push(Layer {
            directories,
            implied,
        });
    }
    let found = search.missing().map_err(|e| match e.kind() {
        io::ErrorKind::QuotaExceeded => ImageError::TooLarge {
            what: "the search for directories the image's layers do not describe".to_owned(),
            limit: MAX_OPENED,
        },
        _ => of(e),
    })?;
    if found.is_empty() {
        return Ok(None);
    }
    let tar = pack(&found).map_err(of)?;
    Ok(Some(Folders {
        plan: plan(&tar),
        tar,
    }))
}

fn plan(tar: &[u8]) -> LayerPlan {
    let digest = Digest::of(tar);
    LayerPlan {
        digest: digest.clone(),
        size: tar.len() as u64,
        packing: Packing::Plain,
        diff_id: digest,
    }
}

/// The directories of one layer, wherever they are described.
pub(super) trait Directories {
    /// What lies at `path`, in a directory of the layer's.
    fn at(&self, path: &[u8]) -> io::Result<At>;
    /// How the directory at `path` is described, as far as an image can do that.
    fn meta(&self, path: &[u8]) -> io::Result<Meta>;
}

pub(super) enum At {
    Nothing,
    Directory {
        opaque: bool,
    },
    /// A whiteout, or something else in a directory's place.
    Other,
}

/// A layer that is here.
struct OnDisk(OwnedFd);

impl Directories for OnDisk {
    fn at(&self, path: &[u8]) -> io::Result<At> {
        Ok(match tree::open_directory(&self.0, path) {
            Ok(fd) => At::Directory {
                opaque: tree::is_opaque(&fd)?,
            },
            Err(Errno::NOENT) => At::Nothing,
            Err(Errno::NOTDIR | Errno::LOOP) => At::Other,
            Err(errno) => return Err(errno.into()),
        })
    }

    fn meta(&self, path: &[u8]) -> io::Result<Meta> {
        Meta::of(&tree::open_directory(&self.0, path)?)
    }
}

/// One layer of an image.
struct Layer {
    directories: Box<dyn Directories>,
    implied: BTreeSet<Vec<u8>>,
}

enum Here {
    Nothing,
    Implied,
    Described(Meta),
}

impl Layer {
    /// What the layer has at `path`, and whether layers below it show there. An opaque directory hides
    /// what lies in those below it, not how they are described.
    fn look(&self, path: &[u8], left: &mut u64) -> io::Result<(Here, bool)> {
        let (mut below, mut hides) = (true, false);
        for end in ends(path) {
            *left = left.checked_sub(1).ok_or(io::ErrorKind::QuotaExceeded)?;
            below &= !hides;
            match self.directories.at(&path[..end])? {
                At::Directory { opaque } => hides = opaque,
                At::Nothing => return Ok((Here::Nothing, below)),
                At::Other => return Ok((Here::Nothing, false)),
            }
        }
        Ok(if self.implied.contains(path) {
            (Here::Implied, below)
        } else {
            (Here::Described(self.directories.meta(path)?), below)
        })
    }
}

/// Where each of a path's directories ends, the outermost first.
fn ends(path: &[u8]) -> impl Iterator<Item = usize> {
    let slashes = path.iter().enumerate().filter(|(_, b)| **b == b'/');
    slashes.map(|(at, _)| at).chain([path.len()])
}

/// The layers of an image, the top one first.
struct Search {
    layers: Vec<Layer>,
    left: u64,
}

impl Search {
    /// How a directory is described where it is highest, and whether a higher layer only implies it.
    fn described(&mut self, path: &[u8]) -> io::Result<Option<(Meta, bool)>> {
        let mut covered = false;
        for layer in &self.layers {
            let (here, below) = layer.look(path, &mut self.left)?;
            match here {
                Here::Described(meta) => return Ok(Some((meta, covered))),
                Here::Implied => covered = true,
                Here::Nothing => {}
            }
            if !below {
                break;
            }
        }
        Ok(None)
    }

    /// The directories that do not show as they are described, with those they lie in: else these
    /// would be implied once more.
    fn missing(&mut self) -> io::Result<BTreeMap<Vec<u8>, Meta>> {
        let implied = self.layers.iter().flat_map(|layer| layer.implied.clone());
        let implied: BTreeSet<Vec<u8>> = implied.collect();
        let mut found = BTreeMap::new();
        for path in &implied {
            if !matches!(self.described(path)?, Some((_, true))) {
                continue;
            }
            for end in ends(path) {
                let part = &path[..end];
                if !found.contains_key(part)
                    && let Some((meta, _)) = self.described(part)?
                {
                    found.insert(part.to_vec(), meta);
                }
            }
        }
        Ok(found)
    }
}

/// The same directories give the same bytes.
fn pack(found: &BTreeMap<Vec<u8>, Meta>) -> io::Result<Vec<u8>> {
    let mut tar = Builder::new(Vec::new());
    for (path, meta) in found {
        // With all of it in the extended header, no field is too small.
        let (seconds, nanos) = meta.mtime;
        let mut records = vec![
            ("path".to_owned(), path.clone()),
            ("uid".to_owned(), meta.uid.to_string().into_bytes()),
            ("gid".to_owned(), meta.gid.to_string().into_bytes()),
            ("mtime".to_owned(), time(seconds, nanos).into_bytes()),
        ];
        for (name, value) in &meta.xattrs {
            let name = String::from_utf8_lossy(name);
            records.push((format!("SCHILY.xattr.{name}"), value.clone()));
        }
        let records = records
            .iter()
            .map(|(key, value)| (key.as_str(), &value[..]));
        tar.append_pax_extensions(records)?;
        let mut header = Header::new_ustar();
        header.set_entry_type(EntryType::Directory);
        header.set_mode(meta.mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(0);
        header.set_cksum();
        tar.append(&header, io::empty())?;
    }
    tar.into_inner()
}

/// Seconds with a fraction; before 1970 the kernel's fraction counts up from an earlier second.
fn time(seconds: i64, nanos: u32) -> String {
    if seconds < 0 && nanos > 0 {
        let (whole, rest) = (seconds + 1, 1_000_000_000 - nanos);
        return format!("-{}.{rest:09}", whole.unsigned_abs());
    }
    format!("{seconds}.{nanos:09}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Limits;
    use crate::image::testing::{Tar, open_store, temp};

    /// Layers made of these tars, the lowest first, and what they lack.
    fn lacking(tars: Vec<Tar>) -> Vec<(String, u32)> {
        let dir = temp();
        let store = open_store(&dir);
        let layers = &store.inner.layers;
        let bring = |tar: &[u8]| {
            let plan = plan(tar);
            let brought = layers.bring_in(tar, &plan, &Budget::new(Limits::default()));
            brought.expect("a layer");
            plan.diff_id
        };
        let below: Vec<Digest> = tars.into_iter().map(|tar| bring(&tar.end())).collect();
        let Some(folders) = layer(&store.inner, &below).expect("found") else {
            return Vec::new();
        };
        let id = bring(&folders.tar);
        assert_eq!(id, folders.plan.diff_id);
        let all = crate::image::field::facts_below(&layers.content(&id));
        let root = layers.content(&id);
        let named = all.into_iter().filter(|(path, _)| *path != root);
        named
            .map(|(path, facts)| {
                let name = path
                    .strip_prefix(&root)
                    .expect("below")
                    .display()
                    .to_string();
                (name, facts.inode.0 & 0o7777)
            })
            .collect()
    }

    fn dirs(modes: &[(&str, u32)]) -> Tar {
        modes.iter().fold(Tar::default(), |tar, (name, mode)| {
            let mut header = Header::new_gnu();
            header.set_path(name).expect("short");
            header.set_entry_type(EntryType::Directory);
            header.set_mode(*mode);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(7);
            header.set_size(0);
            tar.header(&header, b"")
        })
    }

    #[test]
    fn what_a_layer_implies_is_as_the_layers_below_describe_it() {
        let base = || dirs(&[("a", 0o711), ("a/b", 0o1777), ("a/b/c", 0o750)]);
        let file = || Tar::default().file("a/b/f", "x");
        let owned = |list: &[(&str, u32)]| -> Vec<(String, u32)> {
            list.iter().map(|(n, m)| ((*n).to_owned(), *m)).collect()
        };
        let both = owned(&[("a", 0o711), ("a/b", 0o1777)]);
        let table = [
            ("nothing is implied", vec![base()], vec![]),
            ("nothing is below", vec![file()], vec![]),
            ("described below", vec![base(), file()], both.clone()),
            (
                "far below",
                vec![base(), Tar::default().file("z", ""), file()],
                both.clone(),
            ),
            (
                "implied twice",
                vec![base(), file(), Tar::default().file("a/b/g", "")],
                both.clone(),
            ),
            (
                "a whiteout implies too",
                vec![base(), Tar::default().file("a/b/.wh.c", "")],
                both,
            ),
            (
                "described again above",
                vec![base(), file(), dirs(&[("a", 0o700), ("a/b", 0o700)])],
                vec![],
            ),
            (
                "its parent described above",
                vec![base(), file(), dirs(&[("a", 0o700)])],
                owned(&[("a", 0o700), ("a/b", 0o1777)]),
            ),
            (
                "hidden by an opaque directory",
                vec![
                    base(),
                    Tar::default().file("a/.wh..wh..opq", "").file("a/b/f", "x"),
                ],
                owned(&[("a", 0o711)]),
            ),
            (
                "hidden by a whiteout in between",
                vec![base(), Tar::default().file(".wh.a", ""), file()],
                vec![],
            ),
            (
                "gone above",
                vec![base(), file(), Tar::default().file(".wh.a", "")],
                vec![],
            ),
            (
                "hidden by an opaque root",
                vec![
                    base(),
                    Tar::default().file(".wh..wh..opq", "").file("a/b/f", "x"),
                ],
                vec![],
            ),
        ];
        for (what, tars, expected) in table {
            assert_eq!(lacking(tars), expected, "{what}");
        }
    }

    #[test]
    fn times_before_the_epoch_are_written_as_they_are_read() {
        for (seconds, nanos, text) in [(1, 5, "1.000000005"), (-2, 750_000_000, "-1.250000000")] {
            assert_eq!(time(seconds, nanos), text);
        }
    }
}
