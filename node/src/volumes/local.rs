//! Local volumes: folders of this node that outlive instances. The registry says which are here;
//! a folder of one that was removed, or was removed and made anew, is deleted.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use scheduler::model::{LocalVolume, Name, NodeId, ObjectKey};
use scheduler::registry::State;

use super::{Owner, VolumeError, empty, mount};

const DATA: &str = "data";
/// Holds the registry index at which the volume became this node's.
const CLAIM: &str = "claim";

/// The folder of a volume that is here, made when it is new.
pub(super) fn make(
    root: &Path,
    volume: &LocalVolume,
    owner: Owner,
) -> Result<PathBuf, VolumeError> {
    let home = home(root, &volume.key);
    let data = home.join(DATA);
    if claim(&home) == Some(volume.claimed) && data.is_dir() {
        return Ok(data);
    }
    // What is here is of another life: a removed volume's, or half made.
    mount::absent_is_fine(fs::remove_dir_all(&home))
        .map_err(VolumeError::io("cannot remove", &home))?;
    mount::folder(&data)?;
    empty::give(&data, owner, 0o755)?;
    fail::fail_point!("volumes::local_made");
    write_claim(&home, volume.claimed).map_err(VolumeError::io("cannot write", &home))?;
    Ok(data)
}

fn home(root: &Path, key: &ObjectKey) -> PathBuf {
    root.join(key.namespace.as_str()).join(key.name.as_str())
}

fn claim(home: &Path) -> Option<u64> {
    fs::read_to_string(home.join(CLAIM))
        .ok()?
        .trim()
        .parse()
        .ok()
}

fn write_claim(home: &Path, index: u64) -> io::Result<()> {
    let temporary = home.join("claim.tmp");
    let mut file = File::create(&temporary)?;
    writeln!(file, "{index}")?;
    file.sync_all()?;
    fs::rename(temporary, home.join(CLAIM))?;
    File::open(home)?.sync_all()
}

/// Removes volumes the registry no longer has here. One whose claim lies beyond `state` is not
/// judged: a copy of the registry that is behind must cost nobody data.
pub(super) fn sweep(root: &Path, state: &State, me: NodeId) -> Result<(), VolumeError> {
    for namespace in mount::entries(root)? {
        for home in mount::entries(&namespace)? {
            let (Some(key), Some(claimed)) = (key(&home), claim(&home)) else {
                continue;
            };
            let here = state.volumes.get(&key);
            let mine = here.is_some_and(|v| v.node == me && v.claimed == claimed);
            if mine || state.index < claimed {
                continue;
            }
            tracing::info!(volume = %key, "removing a volume that was deleted");
            fs::remove_dir_all(&home).map_err(VolumeError::io("cannot remove", &home))?;
        }
    }
    Ok(())
}

fn key(home: &Path) -> Option<ObjectKey> {
    let name = |path: &Path| Name::new(path.file_name()?.to_str()?).ok();
    Some(ObjectKey {
        namespace: name(home.parent()?)?,
        name: name(home)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: Owner = Owner { uid: 0, gid: 0 };

    fn volume(node: u64, claimed: u64) -> LocalVolume {
        LocalVolume {
            key: ObjectKey {
                namespace: Name::default_namespace(),
                name: Name::new("db").unwrap(),
            },
            node: NodeId(node),
            claimed,
        }
    }

    fn state(index: u64, volume: Option<LocalVolume>) -> State {
        State {
            index,
            volumes: volume.into_iter().map(|v| (v.key.clone(), v)).collect(),
            ..State::default()
        }
    }

    #[test]
    fn data_stay_as_long_as_the_claim_and_no_longer() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let data = make(root, &volume(1, 7), ME).unwrap();
        fs::write(data.join("row"), "1").unwrap();
        assert_eq!(make(root, &volume(1, 7), ME).unwrap(), data);
        let sweep = |state: State| sweep(root, &state, NodeId(1)).unwrap();
        for kept in [state(9, Some(volume(1, 7))), state(6, None), state(0, None)] {
            sweep(kept);
            assert!(data.join("row").exists());
        }
        let anew = make(root, &volume(1, 9), ME).unwrap();
        assert!(!anew.join("row").exists(), "removed and made anew: empty");
        fs::write(anew.join("row"), "2").unwrap();
        sweep(state(10, Some(volume(2, 10))));
        assert!(!anew.exists(), "it is another node's now");
        make(root, &volume(1, 11), ME).unwrap();
        sweep(state(12, None));
        assert!(!data.exists());
    }

    #[test]
    fn a_half_made_volume_is_made_anew() {
        let folder = tempfile::tempdir().unwrap();
        let half = folder.path().join("default/db/data");
        fs::create_dir_all(&half).unwrap();
        fs::write(half.join("junk"), "").unwrap();
        let data = make(folder.path(), &volume(1, 7), ME).unwrap();
        assert_eq!(fs::read_dir(data).unwrap().count(), 0);
    }
}
