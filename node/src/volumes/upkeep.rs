//! The room's one task: files of running instances follow the registry, deleted local volumes go,
//! and folders on disk are measured against their limits.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::PoisonError;
use std::time::Duration;

use scheduler::model::{InstanceId, VolumeSource};
use scheduler::registry::State;
use tokio::sync::mpsc;

use super::{Kept, Owner, VOLUMES, VolumeError, Volumes, content, empty, files, local};

/// How often folders with a limit are measured: a kubelet's pace.
const MEASURE: Duration = Duration::from_secs(10);
/// What could not be done is tried again after it.
const AGAIN: Duration = Duration::from_secs(5);

/// An instance whose folder on disk has outgrown its limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Oversize {
    pub instance: InstanceId,
    pub volume: String,
    pub bytes: u64,
    pub limit: u64,
}

impl Volumes {
    /// Runs until the registry or whoever hears of oversized folders is gone.
    pub async fn run(self, oversized: mpsc::Sender<Oversize>) {
        let mut states = self.0.registry.view().watch();
        let mut measure = tokio::time::interval(MEASURE);
        measure.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let state = states.borrow_and_update().clone();
            let this = self.clone();
            let followed = tokio::task::spawn_blocking(move || this.follow(&state)).await;
            let pause = async {
                match followed {
                    Ok(true) => std::future::pending().await,
                    Ok(false) | Err(_) => tokio::time::sleep(AGAIN).await,
                }
            };
            tokio::pin!(pause);
            loop {
                tokio::select! {
                    changed = states.changed() => {
                        if changed.is_err() {
                            return;
                        }
                        break;
                    }
                    () = &mut pause => break,
                    _ = measure.tick() => {
                        let this = self.clone();
                        let found = tokio::task::spawn_blocking(move || this.measure()).await;
                        for one in found.unwrap_or_default() {
                            if oversized.send(one).await.is_err() {
                                return;
                            }
                        }
                    }
                }
            }
        }
    }

    /// Brings all files up to `state`; whether all of it could be done.
    pub(super) fn follow(&self, state: &State) -> bool {
        let kept = self.kept().clone();
        let mut done = true;
        for (id, kept) in kept {
            if let Err(error) = self.refresh_all(state, &kept) {
                // One that is being removed needs no files.
                done &= !self.kept().contains_key(&id);
                tracing::warn!(instance = %id, %error, "files are not up to date");
            }
        }
        let _one = self.0.one.lock().unwrap_or_else(PoisonError::into_inner);
        let root = self.0.config.data.join(VOLUMES);
        if let Err(error) = local::sweep(&root, state, self.0.config.me) {
            tracing::warn!(%error, "a deleted volume is not gone yet");
            done = false;
        }
        done
    }

    /// Brings one instance's files up to `state`.
    pub(super) fn refresh_all(&self, state: &State, kept: &Kept) -> Result<(), VolumeError> {
        let _one = self.0.one.lock().unwrap_or_else(PoisonError::into_inner);
        for volume in &kept.volumes {
            let at = kept.dir.join(VOLUMES).join(&volume.name);
            self.refresh(state, kept, &volume.source, &at)?;
        }
        Ok(())
    }

    /// An object that is gone leaves its files as they are: what runs goes on with what it has.
    fn refresh(
        &self,
        state: &State,
        kept: &Kept,
        source: &VolumeSource,
        at: &Path,
    ) -> Result<(), VolumeError> {
        let newest = content::version(state, &kept.namespace, source);
        // Versions rise: an older state never takes back what a newer one gave.
        if files::version(at).is_none_or(|present| newest.is_none_or(|new| new <= present)) {
            return Ok(());
        }
        let vault = self.0.config.vault.as_ref();
        let Some(content) = content::files(state, vault, &kept.namespace, source)? else {
            return Ok(());
        };
        let meta = std::fs::metadata(at).map_err(VolumeError::io("cannot read", at))?;
        let owner = Owner {
            uid: meta.uid(),
            gid: meta.gid(),
        };
        files::fill(at, &content, owner)
    }

    fn measure(&self) -> Vec<Oversize> {
        let kept = self.kept().clone();
        let mut found = Vec::new();
        for (instance, kept) in kept {
            for volume in &kept.volumes {
                let VolumeSource::EmptyDir {
                    memory: false,
                    size_bytes: limit,
                } = volume.source
                else {
                    continue;
                };
                if limit == 0 {
                    continue;
                }
                let at = kept.dir.join(VOLUMES).join(&volume.name);
                let bytes = empty::used(&at, limit.saturating_mul(2));
                if bytes > limit {
                    found.push(Oversize {
                        instance: instance.clone(),
                        volume: volume.name.clone(),
                        bytes,
                        limit,
                    });
                }
            }
        }
        found
    }
}
