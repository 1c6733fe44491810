//! What lies beside a layer's tree so that the tree serves as its chunk store: the recipe and the
//! chunk list. Owns writing both while the layer is unpacked and reading any range of the raw tar
//! back. A layer of an older version has neither, and one whose tar names a file twice cannot be
//! given back: such layers run like others, but are neither verified at rest nor served to peers.

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::OFlags;

use super::chunks::{Chunk, ChunkList};
use super::digest::Digest;
use super::disk;
use super::error::ImageError;
use super::layer::{Layers, MARKER};
use super::recipe::{Recipe, Recorder, Segment};
use super::tree;

pub(super) const RECIPE: &str = "recipe";
pub(super) const CHUNKS: &str = "chunks";
const PROFILE: &str = "profile";
/// First-read chunks that are kept of a start.
pub(super) const MAX_PROFILE: usize = 8 * 1024;

/// A record in the making, beside the tree that is being written.
pub(super) struct Recording {
    pub recorder: Recorder<BufWriter<File>>,
    recipe: PathBuf,
}

impl Recording {
    pub(super) fn begin(content: &Path) -> Result<Self, ImageError> {
        let recipe = content.with_file_name(RECIPE);
        let recorder = File::create_new(&recipe).and_then(|f| Recorder::new(BufWriter::new(f)));
        let recorder = recorder.map_err(|e| ImageError::disk("write", &recipe, e))?;
        Ok(Self { recorder, recipe })
    }

    /// Keeps both files, or neither. Not synced: the whole layer is, before its marker is written.
    pub(super) fn keep(self, list: Option<ChunkList>) -> Result<(), ImageError> {
        let failed = |e| ImageError::disk("write", &self.recipe, e);
        match (self.recorder.finish().map_err(failed)?, list) {
            (Some(mut out), Some(list)) => {
                out.flush().map_err(failed)?;
                let path = self.recipe.with_file_name(CHUNKS);
                fs::write(&path, list.encode()?).map_err(|e| ImageError::disk("write", &path, e))
            }
            _ => fs::remove_file(&self.recipe).map_err(failed),
        }
    }
}

impl Layers {
    /// Whether the layer's tar can be given back.
    pub(super) fn is_recorded(&self, diff_id: &Digest) -> bool {
        self.folder(diff_id).join(CHUNKS).is_file()
    }

    /// How the layer's tar is cut; `None` when that was not recorded.
    pub(super) fn chunk_list(&self, diff_id: &Digest) -> Result<Option<ChunkList>, ImageError> {
        self.beside(diff_id, CHUNKS)?
            .map(|file| ChunkList::decode(BufReader::new(file)))
            .transpose()
    }

    /// How the layer's tar is put together from its tree; `None` when that was not recorded.
    pub(super) fn recipe(&self, diff_id: &Digest) -> Result<Option<Recipe>, ImageError> {
        self.beside(diff_id, RECIPE)?
            .map(|file| Recipe::decode(BufReader::new(file)))
            .transpose()
    }

    /// Which chunks starts read first: places in the list, four bytes each. Nothing where none did.
    pub(super) fn profile(&self, diff_id: &Digest) -> Vec<u8> {
        let file = self.beside(diff_id, PROFILE).ok().flatten();
        let mut bytes = Vec::new();
        let most = MAX_PROFILE * 4;
        // Only an order: unreadable, it is none.
        let _ = file.map(|file| file.take(most as u64).read_to_end(&mut bytes));
        bytes
    }

    pub(super) fn keep_profile(&self, diff_id: &Digest, places: &[usize]) {
        let places = places.iter().filter_map(|place| u32::try_from(*place).ok());
        let bytes: Vec<u8> = places.flat_map(u32::to_le_bytes).collect();
        let path = self.folder(diff_id).join(PROFILE);
        if let Err(error) = fs::write(&path, bytes) {
            tracing::debug!(path = %path.display(), %error, "what was read first is not kept");
        }
    }

    /// The layer's tar, to read from. For many ranges: the recipe is read once.
    pub(super) fn raw(&self, diff_id: &Digest) -> Result<Option<Raw>, ImageError> {
        let recipe = self.recipe(diff_id)?.map(Arc::new);
        recipe
            .map(|recipe| self.raw_by(diff_id, recipe))
            .transpose()
    }

    /// The same for whoever has the recipe.
    pub(super) fn raw_by(&self, diff_id: &Digest, recipe: Arc<Recipe>) -> Result<Raw, ImageError> {
        let path = self.content(diff_id);
        let root = tree::open_root(&path).map_err(|e| ImageError::disk("open", &path, e))?;
        Ok(Raw {
            layer: diff_id.clone(),
            root,
            recipe,
            last: None,
        })
    }

    /// Puts a fresh copy's record and marker in the place of old ones, or of none.
    pub(super) fn replace_record(&self, diff_id: &Digest, fresh: &Path) -> Result<(), ImageError> {
        let folder = self.folder(diff_id);
        for name in [RECIPE, CHUNKS, MARKER] {
            match fs::rename(fresh.join(name), folder.join(name)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(ImageError::disk("replace", &folder.join(name), e));
                }
                _ => {}
            }
        }
        disk::sync_dir(&folder)
    }

    fn beside(&self, diff_id: &Digest, name: &str) -> Result<Option<File>, ImageError> {
        let path = self.folder(diff_id).join(name);
        match File::open(&path) {
            Ok(file) => Ok(Some(file)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(ImageError::disk("open", &path, e)),
        }
    }
}

/// A layer's tar, put together from its tree as it is read.
pub(super) struct Raw {
    layer: Digest,
    root: OwnedFd,
    recipe: Arc<Recipe>,
    /// Large files are read chunk after chunk.
    last: Option<(Vec<u8>, File)>,
}

impl Raw {
    /// The tar's.
    pub(super) fn size(&self) -> u64 {
        self.recipe.raw()
    }

    pub(super) fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    /// The files a stretch of the tar has content of, for people to read.
    pub(super) fn files(&self, chunk: &Chunk) -> Vec<String> {
        let parts = self.recipe.range(chunk.offset, chunk.len.into());
        let paths = parts.filter_map(|(segment, ..)| match segment {
            Segment::Inline(_) => None,
            Segment::File { path, .. } => Some(path),
        });
        paths
            .map(|path| String::from_utf8_lossy(path).escape_debug().to_string())
            .collect()
    }

    /// Puts exactly `len` bytes in the place of what `into` held.
    pub(super) fn read_at(
        &mut self,
        offset: u64,
        len: u32,
        into: &mut Vec<u8>,
    ) -> Result<(), ImageError> {
        let Self {
            layer,
            root,
            recipe,
            last,
        } = self;
        into.clear();
        for (segment, from, part) in recipe.range(offset, len.into()) {
            let part = usize::try_from(part).unwrap_or(usize::MAX);
            match segment {
                Segment::Inline(bytes) => {
                    let from = usize::try_from(from).unwrap_or(usize::MAX);
                    into.extend_from_slice(&bytes[from..from + part]);
                }
                Segment::File { path, offset, .. } => {
                    let at = into.len();
                    into.resize(at + part, 0);
                    let read = file(root, last, path)
                        .and_then(|file| file.read_exact_at(&mut into[at..], offset + from));
                    read.map_err(|e| {
                        let path = String::from_utf8_lossy(path).escape_debug().to_string();
                        ImageError::io(format!("read `{path}` of layer {}", layer.short()), e)
                    })?;
                }
            }
        }
        if into.len() != len as usize {
            let what = format!("layer {}", layer.short());
            return Err(ImageError::malformed(what, "its tar ends before the range"));
        }
        Ok(())
    }
}

fn file<'a>(
    root: &OwnedFd,
    last: &'a mut Option<(Vec<u8>, File)>,
    path: &[u8],
) -> io::Result<&'a File> {
    let open = match last.take() {
        Some(open) if open.0 == path => open,
        _ => (path.to_vec(), tree::open_file(root, path, OFlags::RDONLY)?),
    };
    Ok(&last.insert(open).1)
}
