//! Tars: one as it comes, its checksums put right so that a search gets past them, and one of names that
//! bear on each other: whiteouts, links, directories in each other's way.

use tar::{EntryType, Header};

use super::trees;

const BLOCK: usize = 512;
const CHECKSUM: std::ops::Range<usize> = 148..156;
const SIZE: std::ops::Range<usize> = 124..136;
/// More of it is a search for nothing new.
const MOST: usize = 64 << 10;
const MOST_ENTRIES: usize = 48;

pub(super) fn tar(bytes: &[u8]) {
    let mut tar = bytes[..bytes.len().min(MOST)].to_vec();
    let mut at = 0;
    while let Some(header) = tar.get_mut(at..at + BLOCK) {
        header[CHECKSUM].fill(b' ');
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[CHECKSUM].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let size = std::str::from_utf8(&header[SIZE]).unwrap_or_default();
        let size = size.trim_matches(['\0', ' ']);
        let size = usize::from_str_radix(size, 8).unwrap_or(0).min(MOST);
        at += BLOCK + size.next_multiple_of(BLOCK);
    }
    trees::alike(&tar);
}

/// Three bytes an entry: what it is, its name, what it points at.
pub(super) fn whiteouts(bytes: &[u8]) {
    let mut made = Made::default();
    for [kind, name, link] in bytes.as_chunks().0.iter().take(MOST_ENTRIES) {
        let kind = match kind % 5 {
            0 => EntryType::Directory,
            1 => EntryType::Symlink,
            2 => EntryType::Link,
            _ => EntryType::Regular,
        };
        let data: &[u8] = if kind == EntryType::Regular {
            &[*link]
        } else {
            &[]
        };
        made.entry(kind, &path(*name), &path(*link), data);
    }
    trees::alike(&made.end());
}

/// Up to three parts of few names.
fn path(byte: u8) -> String {
    const NAMES: [&str; 8] = ["", "a", "b", ".wh.a", ".wh..wh..opq", ".wh.b", "c", ".."];
    let part = |shift: u8| NAMES[usize::from(byte >> shift & 7)];
    // The first has two bits only.
    let parts = [NAMES[usize::from(byte >> 6)], part(3), part(0)];
    parts.join("/").trim_start_matches('/').to_owned()
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let mut plain = Made::default();
    plain.entry(EntryType::Directory, "a/", "", b"");
    plain.entry(EntryType::Regular, "a/b", "", b"bytes");
    plain.entry(EntryType::Symlink, "a/s", "b", b"");
    plain.entry(EntryType::Link, "a/l", "a/b", b"");
    let mut odd = Made::default();
    odd.entry(EntryType::GNULongName, "././@LongLink", "", &[b'n'; 150]);
    odd.entry(EntryType::Regular, "n", "", b"");
    let times = b"30 mtime=1700000000.123456789\n19 SCHILY.xattr.u=v\n";
    odd.entry(EntryType::XHeader, "pax", "", times);
    odd.entry(EntryType::Regular, "x/y", "", b"1");
    odd.entry(EntryType::Regular, "x/.wh.y", "", b"");
    odd.entry(EntryType::Regular, "x/.wh..wh..opq", "", b"");
    vec![plain.end(), odd.end()]
}

/// A tar, entry by entry.
#[derive(Default)]
struct Made(Vec<u8>);

impl Made {
    fn entry(&mut self, kind: EntryType, name: &str, link: &str, data: &[u8]) {
        let mut header = Header::new_gnu();
        let old = header.as_old_mut();
        old.name[..name.len()].copy_from_slice(name.as_bytes());
        old.linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_uid(1000);
        header.set_gid(0);
        header.set_mtime(1_000_000_000);
        header.set_size(data.len() as u64);
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(BLOCK), 0);
    }

    fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 2 * BLOCK, 0);
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What lies in a directory that hands its group down belongs to whom the layer says all the same.
    #[test]
    fn a_directory_that_nobody_described_takes_no_group_from_above() {
        let mut made = Made::default();
        made.entry(EntryType::Directory, "a/", "", b"");
        let header = Header::from_byte_slice(&made.0[..BLOCK]);
        let mut header = header.clone();
        header.set_mode(0o2755);
        header.set_gid(7);
        header.set_cksum();
        made.0[..BLOCK].copy_from_slice(header.as_bytes());
        made.entry(EntryType::Regular, "a/b/c", "", b"1");
        trees::alike(&made.end());
    }
}
