//! Paths of the node: below the prefixes its configuration names, and never out of them, whatever
//! links there are.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use pathrs::Root;
use serde::{Deserialize, Deserializer};

/// `/srv/share`, or `/srv/data:rw` where instances may write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPath {
    pub prefix: PathBuf,
    pub writable: bool,
}

/// Why a path of the node is not given.
#[derive(Debug, thiserror::Error)]
pub enum HostPathError {
    #[error("host path {}: this node allows none there; list it in [runtime] host_paths", path.display())]
    NotAllowed { path: PathBuf },
    #[error("host path {}: {why}", path.display())]
    NotFound { path: PathBuf, why: String },
}

impl<'de> Deserialize<'de> for HostPath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let (path, writable) = match text.strip_suffix(":rw") {
            Some(path) => (path, true),
            None => (text.as_str(), false),
        };
        let prefix = PathBuf::from(path);
        if !is_plain(&prefix) {
            let message = format!("`{text}` is no absolute path (or PATH:rw) below the root");
            return Err(serde::de::Error::custom(message));
        }
        Ok(Self { prefix, writable })
    }
}

/// Absolute, free of `..`, and not the root itself.
fn is_plain(path: &Path) -> bool {
    let mut parts = path.components();
    parts.next() == Some(Component::RootDir)
        && path.components().count() > 1
        && parts.all(|part| matches!(part, Component::Normal(_)))
}

/// A path that may be given.
pub(super) struct Found {
    pub handle: OwnedFd,
    pub read_only: bool,
}

/// Resolves `path` within the longest prefix it is below.
pub(super) fn find(allowed: &[HostPath], path: &Path) -> Result<Found, HostPathError> {
    let not_allowed = || HostPathError::NotAllowed {
        path: path.to_owned(),
    };
    let not_found = |why: String| HostPathError::NotFound {
        path: path.to_owned(),
        why,
    };
    if !is_plain(path) {
        return Err(not_allowed());
    }
    let fitting = allowed.iter().filter(|a| path.starts_with(&a.prefix));
    let nearest = fitting.max_by_key(|a| a.prefix.components().count());
    let nearest = nearest.ok_or_else(not_allowed)?;
    let root = Root::open(&nearest.prefix).map_err(|e| not_found(e.to_string()))?;
    let rest = path.strip_prefix(&nearest.prefix).unwrap_or(Path::new(""));
    let rest = Path::new("/").join(rest);
    let handle = root.resolve(&rest).map_err(|e| not_found(e.to_string()))?;
    let handle = OwnedFd::from(handle);
    let file = fs::File::from(handle);
    let meta = file.metadata().map_err(|e| not_found(e.to_string()))?;
    if !meta.is_dir() && !meta.is_file() {
        return Err(not_found("neither a folder nor a file".to_owned()));
    }
    Ok(Found {
        handle: file.into(),
        read_only: !nearest.writable,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    #[test]
    fn only_what_is_below_a_listed_prefix_is_given() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir_all(at("share/deep")).unwrap();
        fs::create_dir_all(at("share/data")).unwrap();
        fs::create_dir_all(at("secret")).unwrap();
        symlink(at("secret"), at("share/out")).unwrap();
        symlink("../secret", at("share/up")).unwrap();
        let allowed = [
            HostPath {
                prefix: at("share"),
                writable: false,
            },
            HostPath {
                prefix: at("share/data"),
                writable: true,
            },
        ];
        let find = |path: PathBuf| find(&allowed, &path);
        assert!(find(at("share")).unwrap().read_only);
        assert!(find(at("share/deep")).unwrap().read_only);
        assert!(!find(at("share/data")).unwrap().read_only);
        let inode = fs::metadata(at("secret")).unwrap().ino();
        for out in ["share/out", "share/up"] {
            // Either there is no such thing within, or it is another.
            if let Ok(found) = find(at(out)) {
                assert_ne!(
                    fs::File::from(found.handle).metadata().unwrap().ino(),
                    inode
                );
            }
        }
        for bad in [
            at("secret"),
            at("shared"),
            at("share/../secret"),
            PathBuf::from("/"),
            PathBuf::from("share"),
        ] {
            let refused = find(bad.clone());
            assert!(
                matches!(refused, Err(HostPathError::NotAllowed { .. })),
                "{}",
                bad.display()
            );
        }
        let missing = find(at("share/none"));
        assert!(matches!(missing, Err(HostPathError::NotFound { .. })));
    }

    #[test]
    fn prefixes_are_written_with_or_without_rw() {
        #[derive(Deserialize)]
        struct Section {
            paths: Vec<HostPath>,
        }
        let read = |text: &str| toml::from_str::<Section>(text).map(|s| s.paths);
        let paths = read("paths=[\"/srv/share\", \"/srv/data:rw\"]").unwrap();
        assert_eq!(
            (
                paths[0].writable,
                paths[1].writable,
                paths[1].prefix.as_path()
            ),
            (false, true, Path::new("/srv/data"))
        );
        for bad in ["/", "srv", "/srv/../etc", ":rw", "/:rw"] {
            assert!(read(&format!("paths=[\"{bad}\"]")).is_err(), "{bad}");
        }
    }
}
