//! An OCI image layout on this machine: a folder, or a tar of one. Finds the image in it and gives
//! its blobs; whether they are what they are called is for the node to say.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::failure::Failure;

/// Indexes and manifests; as much as a registry takes.
const MAX_DOCUMENT: u64 = 4 << 20;
/// Files of one archive.
const MAX_ENTRIES: usize = 10_000;
/// An index may name another.
const MAX_NESTING: usize = 3;
const INDEX_TYPES: [&str; 2] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    #[serde(default)]
    pub media_type: String,
    pub digest: String,
    pub size: u64,
    platform: Option<Platform>,
}

#[derive(Debug, Clone, Deserialize)]
struct Platform {
    os: String,
    architecture: String,
}

#[derive(Debug, Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

#[derive(Debug, Deserialize)]
struct Manifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

/// The image of a layout, ready to be sent.
#[derive(Debug)]
pub struct Found {
    pub media_type: String,
    pub manifest: Vec<u8>,
    /// The configuration, then the layers from the lowest.
    pub blobs: Vec<Descriptor>,
}

#[derive(Debug)]
pub enum Layout {
    Folder(PathBuf),
    /// Where each file begins in the archive, and its length.
    Archive(PathBuf, BTreeMap<PathBuf, (u64, u64)>),
}

impl Layout {
    pub fn open(path: &Path) -> Result<Self, Failure> {
        let unreadable = |e: io::Error| cannot_read(path, &e);
        if std::fs::metadata(path).map_err(unreadable)?.is_dir() {
            return Ok(Self::Folder(path.to_owned()));
        }
        let mut files = BTreeMap::new();
        let mut archive = tar::Archive::new(File::open(path).map_err(unreadable)?);
        for entry in archive.entries_with_seek().map_err(unreadable)? {
            let entry = entry.map_err(unreadable)?;
            let name = entry.path().map_err(unreadable)?;
            let name = name.strip_prefix("./").unwrap_or(&name).to_owned();
            files.insert(name, (entry.raw_file_position(), entry.size()));
            if files.len() > MAX_ENTRIES {
                return Err(no_layout(path, "it has too many files"));
            }
        }
        Ok(Self::Archive(path.to_owned(), files))
    }

    fn path(&self) -> &Path {
        match self {
            Self::Folder(path) | Self::Archive(path, _) => path,
        }
    }

    /// The image for a platform (`linux/amd64`).
    pub fn image(&self, platform: &str) -> Result<Found, Failure> {
        let refused = |why: &str| no_layout(self.path(), why);
        let bytes = self.document(Path::new("index.json"))?;
        let mut index: Index = self.parsed(&bytes)?;
        for _ in 0..MAX_NESTING {
            let chosen = match &index.manifests[..] {
                [only] => only.clone(),
                several => {
                    let fits = |d: &&Descriptor| {
                        d.platform
                            .as_ref()
                            .is_some_and(|p| format!("{}/{}", p.os, p.architecture) == platform)
                    };
                    let mut fitting = several.iter().filter(fits);
                    match (fitting.next(), fitting.next()) {
                        (Some(one), None) => one.clone(),
                        (Some(_), Some(_)) => {
                            return Err(refused(&format!("it has several images for {platform}")));
                        }
                        (None, _) => {
                            return Err(refused(&format!("it has no image for {platform}")));
                        }
                    }
                }
            };
            let bytes = self
                .document(&place(&chosen.digest).ok_or_else(|| {
                    refused(&format!("`{}` is no sha256 digest", chosen.digest))
                })?)?;
            if INDEX_TYPES.contains(&chosen.media_type.as_str()) {
                index = self.parsed(&bytes)?;
                continue;
            }
            let manifest: Manifest = self.parsed(&bytes)?;
            let blobs = std::iter::once(manifest.config).chain(manifest.layers);
            return Ok(Found {
                media_type: chosen.media_type,
                manifest: bytes,
                blobs: blobs.collect(),
            });
        }
        Err(refused("its indexes nest too deep"))
    }

    /// A blob's bytes.
    pub fn blob(&self, blob: &Descriptor) -> Result<Box<dyn Read + Send>, Failure> {
        let place = place(&blob.digest).ok_or_else(|| {
            no_layout(
                self.path(),
                &format!("`{}` is no sha256 digest", blob.digest),
            )
        })?;
        let (read, _) = self.file(&place)?;
        Ok(Box::new(read))
    }

    fn parsed<T: for<'a> Deserialize<'a>>(&self, bytes: &[u8]) -> Result<T, Failure> {
        serde_json::from_slice(bytes)
            .map_err(|e| no_layout(self.path(), &format!("a document in it is broken: {e}")))
    }

    fn document(&self, name: &Path) -> Result<Vec<u8>, Failure> {
        let (read, size) = self.file(name)?;
        if size > MAX_DOCUMENT {
            return Err(no_layout(
                self.path(),
                &format!("{} is too large", name.display()),
            ));
        }
        let mut bytes = Vec::new();
        let read = read.take(MAX_DOCUMENT).read_to_end(&mut bytes);
        read.map_err(|e| cannot_read(self.path(), &e))?;
        Ok(bytes)
    }

    fn file(&self, name: &Path) -> Result<(io::Take<File>, u64), Failure> {
        let missing = || no_layout(self.path(), &format!("it has no {}", name.display()));
        let unreadable = |e: io::Error| cannot_read(self.path(), &e);
        match self {
            Self::Folder(folder) => {
                let file = match File::open(folder.join(name)) {
                    Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(missing()),
                    opened => opened.map_err(unreadable)?,
                };
                let size = file.metadata().map_err(unreadable)?.len();
                Ok((file.take(size), size))
            }
            Self::Archive(path, files) => {
                let (start, size) = *files.get(name).ok_or_else(missing)?;
                let mut file = File::open(path).map_err(unreadable)?;
                file.seek(SeekFrom::Start(start)).map_err(unreadable)?;
                Ok((file.take(size), size))
            }
        }
    }
}

/// Where a layout keeps a blob.
fn place(digest: &str) -> Option<PathBuf> {
    let hex = digest.strip_prefix("sha256:")?;
    let is_hex = hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit());
    is_hex.then(|| Path::new("blobs/sha256").join(hex))
}

fn cannot_read(path: &Path, error: &io::Error) -> Failure {
    Failure::usage(format!("cannot read {}: {error}", path.display()))
}

fn no_layout(path: &Path, why: &str) -> Failure {
    Failure::usage(format!("{} is no OCI layout to push: {why}", path.display())).hint(
        "make one: skopeo copy docker-archive:FILE oci:FOLDER; or give the file to `selvedge image import`",
    )
}
