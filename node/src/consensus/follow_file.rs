//! A follower's last state on disk, so that it boots with nobody in reach. Replaced whole, with a
//! checksum; a damaged file is set aside, never half believed.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use scheduler::registry::State;
use sha2::{Digest, Sha256};

/// The hex of a SHA-256, and a newline, before the JSON.
const HEADER: usize = 65;

#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("{path}: {source}")]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the followed state cannot be written as JSON: {0}")]
    Encode(#[source] serde_json::Error),
}

pub(super) struct FollowFile {
    dir: PathBuf,
    /// In the simulation other threads would disturb the order of things.
    #[cfg(test)]
    pub stores_here: bool,
}

impl FollowFile {
    pub fn new(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            #[cfg(test)]
            stores_here: false,
        }
    }

    fn path(&self) -> PathBuf {
        self.dir.join("followed.json")
    }

    /// The state last stored. A damaged file is renamed and reported as none: unlike a voter's
    /// store it holds nothing that the cluster does not have.
    pub fn load(&self) -> Result<Option<State>, FileError> {
        let path = self.path();
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(FileError::Io { path, source }),
        };
        match decode(&bytes) {
            Ok(state) => Ok(Some(state)),
            Err(why) => {
                let aside = self.dir.join("followed.json.damaged");
                tracing::error!(path = %path.display(), aside = %aside.display(), why,
                    "the followed registry state is damaged; it is set aside and fetched anew");
                fs::rename(&path, &aside).map_err(|source| FileError::Io { path, source })?;
                Ok(None)
            }
        }
    }

    /// Stores on a thread that may block; nothing when the daemon is stopping.
    pub async fn store_aside(self: Arc<Self>, state: Arc<State>) -> Option<Result<(), FileError>> {
        #[cfg(test)]
        if self.stores_here {
            return Some(self.store(&state));
        }
        let stored = tokio::task::spawn_blocking(move || self.store(&state));
        stored.await.ok()
    }

    pub fn store(&self, state: &State) -> Result<(), FileError> {
        let text = serde_json::to_vec(state).map_err(FileError::Encode)?;
        let (path, unfinished) = (self.path(), self.dir.join("followed.json.new"));
        let write = || {
            fs::create_dir_all(&self.dir)?;
            let mut file = File::create(&unfinished)?;
            writeln!(file, "{}", hex::encode(Sha256::digest(&text)))?;
            file.write_all(&text)?;
            file.sync_all()?;
            fs::rename(&unfinished, &path)?;
            File::open(&self.dir)?.sync_all()
        };
        write().map_err(|source| FileError::Io {
            path: path.clone(),
            source,
        })
    }
}

fn decode(bytes: &[u8]) -> Result<State, String> {
    let (header, text) = bytes.split_at_checked(HEADER).ok_or("it is cut")?;
    if header[..HEADER - 1] != *hex::encode(Sha256::digest(text)).as_bytes() {
        return Err("the checksum does not match".to_owned());
    }
    serde_json::from_slice(text).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_comes_back_or_is_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let file = FollowFile::new(dir.path());
        assert!(file.load().unwrap().is_none());
        let state = State {
            index: 7,
            ..State::default()
        };
        file.store(&state).unwrap();
        assert_eq!(file.load().unwrap(), Some(state));

        let mut bytes = fs::read(file.path()).unwrap();
        let last = bytes.len() - 3;
        bytes[last] ^= 1;
        fs::write(file.path(), bytes).unwrap();
        assert!(file.load().unwrap().is_none());
        assert!(!file.path().exists());
        assert!(dir.path().join("followed.json.damaged").exists());
    }
}
