//! An image archive on this disk while it is imported: the order of its members is the sender's, so
//! it is kept whole first, bounded, and then read by name. Interprets nothing.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use tar::{Archive, EntryType};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::disk::Scratch;
use super::entry::Inside;
use super::error::ImageError;
use super::pax::Pax;

/// Between two pieces of an upload.
const IDLE: Duration = Duration::from_mins(1);
const CHUNK: usize = 256 * 1024;
/// Members of an archive: layers, documents and Docker's leftovers, a few for each layer.
const MAX_MEMBERS: usize = 4096;
const MAX_EXTENSION: u64 = 64 * 1024;
const MAX_DEPTH: usize = 16;

/// A whole archive, by member.
pub(super) struct Spool {
    file: File,
    members: BTreeMap<Vec<u8>, Member>,
    _scratch: Scratch,
}

#[derive(Debug, Clone)]
enum Member {
    File {
        at: u64,
        size: u64,
    },
    /// `docker save` links a layer it has already written.
    Link {
        to: Vec<u8>,
    },
}

/// Receives an archive into `tmp`.
pub(super) async fn receive(
    reader: impl AsyncRead + Send,
    tmp: &Path,
    limit: u64,
) -> Result<(Scratch, File), ImageError> {
    let scratch = Scratch::reserve(tmp);
    let path = scratch.path().to_owned();
    let fail = |e: io::Error| ImageError::disk("write", &path, e);
    let mut options = tokio::fs::OpenOptions::new();
    let opened = options
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)
        .await;
    let mut file = opened.map_err(fail)?;
    let mut reader = std::pin::pin!(reader);
    let mut buffer = vec![0; CHUNK];
    let mut received = 0;
    loop {
        let read = timeout(IDLE, reader.read(&mut buffer)).await;
        let read = read.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        let n = read.map_err(|e| ImageError::io("receive the archive", e))?;
        if n == 0 {
            break;
        }
        received += n as u64;
        if received > limit {
            return Err(ImageError::TooLarge {
                what: "the archive".to_owned(),
                limit,
            });
        }
        file.write_all(&buffer[..n]).await.map_err(fail)?;
    }
    file.flush().await.map_err(fail)?;
    Ok((scratch, file.into_std().await))
}

impl Spool {
    /// Lists the archive's members. Blocking.
    pub(super) fn scan(scratch: Scratch, mut file: File) -> Result<Self, ImageError> {
        let not = |detail: &str| ImageError::NotAnArchive {
            detail: detail.to_owned(),
        };
        let told = |e: io::Error| not(&format!("it is not a sound tar ({e})"));
        file.seek(SeekFrom::Start(0))
            .map_err(|e| ImageError::disk("read", scratch.path(), e))?;
        let mut magic = [0; 4];
        if file.read_at(&mut magic, 0).is_ok_and(|n| n > 2) && magic.starts_with(&[0x1f, 0x8b]) {
            return Err(not("it is compressed with gzip: unpack it first"));
        }
        let mut members = BTreeMap::new();
        let mut archive = Archive::new(&file);
        let (mut name, mut link) = (None, None);
        for entry in archive.entries_with_seek().map_err(told)?.raw(true) {
            let mut entry = entry.map_err(told)?;
            let kind = entry.header().entry_type();
            if matches!(
                kind,
                EntryType::GNULongName | EntryType::GNULongLink | EntryType::XHeader
            ) {
                if entry.size() > MAX_EXTENSION {
                    return Err(not("an extended header is too large"));
                }
                let mut bytes = Vec::new();
                entry.read_to_end(&mut bytes).map_err(told)?;
                match kind {
                    EntryType::XHeader => {
                        let pax = Pax::parse(&bytes).map_err(not)?;
                        if pax.size.is_some() {
                            return Err(not("a member is larger than 8 GiB"));
                        }
                        (name, link) = (pax.path.or(name), pax.linkpath.or(link));
                    }
                    EntryType::GNULongName => name = Some(until_nul(&bytes)),
                    _ => link = Some(until_nul(&bytes)),
                }
                continue;
            }
            let raw = name
                .take()
                .unwrap_or_else(|| entry.path_bytes().into_owned());
            let to = link
                .take()
                .or_else(|| entry.link_name_bytes().map(Into::into));
            let Ok(path) = Inside::new(&raw, MAX_DEPTH) else {
                return Err(not("a member's name leads out of it"));
            };
            let member = match (kind, to) {
                (EntryType::Regular | EntryType::Continuous, _) => Member::File {
                    at: entry.raw_file_position(),
                    size: entry.size(),
                },
                (EntryType::Symlink, Some(to)) => match beside(&path, &to) {
                    Some(to) => Member::Link { to },
                    None => continue,
                },
                (EntryType::Link, Some(to)) => Member::Link { to },
                _ => continue,
            };
            if members.len() >= MAX_MEMBERS {
                return Err(not("it has too many members"));
            }
            members.insert(path.bytes().to_vec(), member);
        }
        Ok(Self {
            file,
            members,
            _scratch: scratch,
        })
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    /// Where a member's content is; follows one link, inside the archive.
    fn find(&self, name: &str) -> Option<(u64, u64)> {
        let direct = self.members.get(name.as_bytes())?;
        let member = match direct {
            Member::Link { to } => self.members.get(to)?,
            Member::File { .. } => direct,
        };
        match member {
            Member::File { at, size } => Some((*at, *size)),
            Member::Link { .. } => None,
        }
    }

    pub(super) fn size(&self, name: &str) -> Result<u64, ImageError> {
        self.find(name)
            .map(|(_, size)| size)
            .ok_or_else(|| missing(name))
    }

    /// A small member as a whole.
    pub(super) fn document(&self, name: &str, limit: u64) -> Result<Vec<u8>, ImageError> {
        if self.size(name)? > limit {
            return Err(ImageError::TooLarge {
                what: format!("`{name}`"),
                limit,
            });
        }
        let mut bytes = Vec::new();
        let read = self.open(name)?.read_to_end(&mut bytes);
        read.map_err(|e| ImageError::io(format!("read `{name}` of the archive"), e))?;
        Ok(bytes)
    }

    /// A member to read through. Several can be open at once.
    pub(super) fn open(&self, name: &str) -> Result<impl Read + use<>, ImageError> {
        let (at, left) = self.find(name).ok_or_else(|| missing(name))?;
        let file = self
            .file
            .try_clone()
            .map_err(|e| ImageError::io("read the archive", e))?;
        Ok(BufReader::with_capacity(CHUNK, Span { file, at, left }))
    }
}

fn missing(name: &str) -> ImageError {
    let name: String = name.escape_debug().take(200).collect();
    ImageError::NotAnArchive {
        detail: format!("it has no `{name}`"),
    }
}

fn until_nul(bytes: &[u8]) -> Vec<u8> {
    bytes.split(|b| *b == 0).next().unwrap_or_default().to_vec()
}

/// The member a relative symbolic link at `path` means, by its text alone: `../ID/layer.tar`.
fn beside(path: &Inside, target: &[u8]) -> Option<Vec<u8>> {
    let mut parts: Vec<&[u8]> = path.parent().split(|b| *b == b'/').collect();
    parts.retain(|part| !part.is_empty());
    for part in target.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    (target.first() != Some(&b'/')).then(|| parts.join(&b'/'))
}

/// A part of a file, read at its own position.
struct Span {
    file: File,
    at: u64,
    left: u64,
}

impl Read for Span {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let most = buf
            .len()
            .min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let n = self.file.read_at(&mut buf[..most], self.at)?;
        self.at += n as u64;
        self.left -= n as u64;
        Ok(n)
    }
}
