//! Files of configs and secrets: a tmpfs with a link for each key. All of them change at once, by
//! Kubernetes' way: the links lead through `..data`, a link that is exchanged.
//!
//! ```text
//! password -> ..data/password
//! ..data   -> ..v7
//! ..v7/password
//! ```

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, chown, symlink};
use std::path::Path;

use super::content::Content;
use super::{Kind, Owner, VolumeError, mount};

const DATA: &str = "..data";
const NEXT: &str = "..data.next";
const VERSION: &str = "..v";
/// Twice the most an object holds, each key rounded up to a page: both versions are there while
/// they are exchanged.
const BYTES: u64 = 8 << 20;

/// Mounts and fills the volume.
pub(super) fn make(at: &Path, content: &Content, owner: Owner) -> Result<(), VolumeError> {
    mount::tmpfs(at, BYTES, "0755", owner, true)?;
    fill(at, content, owner)?;
    fail::fail_point!("volumes::filled");
    Ok(())
}

/// The version of the object whose files are there.
pub(super) fn version(at: &Path) -> Option<u64> {
    let target = fs::read_link(at.join(DATA)).ok()?;
    target.to_str()?.strip_prefix(VERSION)?.parse().ok()
}

/// Exchanges the files that are there for `content`.
pub(super) fn fill(at: &Path, content: &Content, owner: Owner) -> Result<(), VolumeError> {
    exchange(at, content, owner).map_err(VolumeError::io("cannot write", at))
}

fn exchange(at: &Path, content: &Content, owner: Owner) -> io::Result<()> {
    let name = format!("{VERSION}{}", content.version);
    let folder = at.join(&name);
    // What a daemon that died half way had written.
    mount::absent_is_fine(fs::remove_dir_all(&folder))?;
    fs::create_dir(&folder)?;
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o755))?;
    chown(&folder, Some(owner.uid), Some(owner.gid))?;
    // Only the container's user and group read a secret; a config is nobody's secret.
    let mode = match content.kind {
        Kind::Config => 0o444,
        Kind::Secret => 0o440,
    };
    for (key, bytes) in &content.files {
        let path = folder.join(key);
        let mut options = OpenOptions::new();
        let mut file = options
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&path)?;
        file.write_all(bytes.bytes())?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        chown(&path, Some(owner.uid), Some(owner.gid))?;
    }
    mount::absent_is_fine(fs::remove_file(at.join(NEXT)))?;
    symlink(&name, at.join(NEXT))?;
    fs::rename(at.join(NEXT), at.join(DATA))?;
    tidy(at, content, &name)
}

/// Links for new keys, none for those that are gone, and nothing of older versions.
fn tidy(at: &Path, content: &Content, present: &str) -> io::Result<()> {
    for key in content.files.keys() {
        let link = at.join(key);
        if fs::symlink_metadata(&link).is_err() {
            symlink(Path::new(DATA).join(key), link)?;
        }
    }
    for entry in fs::read_dir(at)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name == DATA || name == present || content.files.contains_key(&name) {
            continue;
        }
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use netfabric::identity::Plain;

    use super::*;

    const ME: Owner = Owner { uid: 0, gid: 0 };

    fn content(version: u64, files: &[(&str, &str)]) -> Content {
        let file =
            |(key, text): &(&str, &str)| ((*key).to_owned(), Plain::from(text.as_bytes().to_vec()));
        Content {
            kind: Kind::Config,
            version,
            files: files.iter().map(file).collect(),
        }
    }

    fn seen(at: &Path) -> BTreeMap<String, String> {
        let entries = fs::read_dir(at).unwrap().flatten();
        let named = entries.map(|e| e.file_name().into_string().unwrap());
        let plain = named.filter(|name| !name.starts_with(".."));
        plain
            .map(|name| (name.clone(), fs::read_to_string(at.join(name)).unwrap()))
            .collect()
    }

    #[test]
    fn a_reader_sees_all_of_one_version_or_all_of_the_other() {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path();
        assert_eq!(version(at), None);
        let texts = |n: u64| (format!("one {n}"), format!("two {n}"));
        let (one, two) = texts(1);
        fill(at, &content(1, &[("one", &one), ("two", &two)]), ME).unwrap();
        let writer = std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut versions = std::collections::BTreeSet::new();
                while !versions.contains("20") {
                    // As a program does that wants a whole: through the folder it once opened.
                    let Ok(folder) = fs::canonicalize(at.join(DATA)) else {
                        continue;
                    };
                    let read = |name| fs::read_to_string(folder.join(name));
                    let (Ok(one), Ok(two)) = (read("one"), read("two")) else {
                        continue;
                    };
                    assert_eq!(one.split(' ').nth(1), two.split(' ').nth(1));
                    versions.extend(one.split(' ').nth(1).map(str::to_owned));
                    let always = fs::read_to_string(at.join("one"));
                    assert!(always.is_ok_and(|text| text.starts_with("one ")));
                }
                versions.len()
            });
            for n in 2..=20 {
                let (one, two) = texts(n);
                fill(at, &content(n, &[("one", &one), ("two", &two)]), ME).unwrap();
            }
            reader.join()
        });
        assert!(writer.is_ok_and(|seen| seen >= 1));
        assert_eq!(version(at), Some(20));
    }

    #[test]
    fn keys_come_and_go_and_a_half_written_version_is_written_anew() {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path();
        fill(at, &content(1, &[("a", "1"), ("b", "1")]), ME).unwrap();
        fs::create_dir(at.join("..v2")).unwrap();
        fs::write(at.join("..v2/junk"), "half").unwrap();
        symlink("..v2", at.join(NEXT)).unwrap();
        fill(at, &content(2, &[("b", "2"), ("c", "2")]), ME).unwrap();
        let want = [("b", "2"), ("c", "2")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        assert_eq!(seen(at), BTreeMap::from(want));
        let left = fs::read_dir(at).unwrap().count();
        assert_eq!(left, 4, "two links, ..data and one version");
    }
}
