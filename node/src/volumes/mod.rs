//! What an instance is given besides its image: empty folders, files of configs and secrets, local
//! volumes, paths of the node, and environment variables that come from configs and secrets.
//!
//! Owns `DATA/instances/ID/{volumes,pins}` and `DATA/volumes`. Where things are mounted inside the
//! container is the runtime's business; who may have what is decided by the registry (a local
//! volume's place) and by this node's configuration (host paths).
//!
//! ```text
//! DATA/instances/ID/volumes/NAME          an empty folder or a tmpfs
//! DATA/instances/ID/pins/N                a path of a volume, held against being exchanged
//! DATA/volumes/NAMESPACE/NAME/{claim,data}   a local volume
//! ```

mod content;
mod empty;
mod error;
mod files;
mod host;
mod local;
mod mount;
mod pins;
mod upkeep;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use netfabric::identity::Vault;
use scheduler::model::{
    InstanceId, LocalVolume, Name, NodeId, ObjectKey, Revision, Volume, VolumeSource,
};
use scheduler::registry::{Action, Command, Outcome, Reply, State};

use crate::clock;
use crate::consensus::Registry;
use crate::runtime::{BindMount, ContainerSpec, resolve_user};
use crate::userns;

pub use error::{Kind, VolumeError};
pub use host::{HostPath, HostPathError};
pub use upkeep::Oversize;

const VOLUMES: &str = "volumes";
const PINS: &str = "pins";
/// For the registry to say where a new local volume is.
const CLAIM: Duration = Duration::from_secs(8);

/// Whom a volume's files belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Owner {
    uid: u32,
    gid: u32,
}

/// The container's user, by both its numbers.
struct User {
    /// In the container, and on the disk of a volume that outlives it.
    inside: Owner,
    /// On the host.
    outside: Owner,
    /// Shows such a disk to the container; `None` when both numbers are the same.
    mapped: Option<userns::Owner>,
}

impl User {
    fn of(spec: &ContainerSpec) -> Result<Self, VolumeError> {
        let user = resolve_user(&spec.rootfs, &spec.user, &[]).map_err(VolumeError::User)?;
        let host = |id| spec.ids.map_or(id, |block| block.host_id(id));
        let mapped = spec.ids.zip(spec.netns.as_deref());
        let mapped = mapped.map(|(block, netns)| userns::Owner::of(block, netns));
        let mapped = mapped.transpose();
        Ok(Self {
            inside: Owner {
                uid: user.uid,
                gid: user.gid,
            },
            outside: Owner {
                uid: host(user.uid),
                gid: host(user.gid),
            },
            mapped: mapped.map_err(VolumeError::io("cannot map the owners of", &spec.rootfs))?,
        })
    }
}

/// What the room is told of the node.
#[derive(Debug, Clone)]
pub struct VolumesConfig {
    pub me: NodeId,
    pub data: PathBuf,
    /// `[runtime] host_paths`
    pub host_paths: Vec<HostPath>,
    pub vault: Option<Vault>,
}

/// A handle to the room; cheap to clone.
#[derive(Clone)]
pub struct Volumes(Arc<Inner>);

struct Inner {
    config: VolumesConfig,
    registry: Registry,
    /// Instances whose files are kept up to date and whose folders are measured.
    kept: Mutex<BTreeMap<InstanceId, Kept>>,
    /// Held while files are exchanged and while a local volume is made or removed.
    one: Mutex<()>,
}

/// What is looked after of an instance that runs.
#[derive(Clone)]
struct Kept {
    dir: PathBuf,
    namespace: Name,
    volumes: Vec<Volume>,
}

impl Volumes {
    #[must_use]
    pub fn new(config: VolumesConfig, registry: Registry) -> Self {
        Self(Arc::new(Inner {
            config,
            registry,
            kept: Mutex::default(),
            one: Mutex::default(),
        }))
    }

    /// Makes all that the revision asks for below the instance's folder `dir`, puts it into `spec`,
    /// and looks after it from then on. What a failure leaves, [`Volumes::remove`] takes away.
    ///
    /// # Errors
    /// The first thing the instance cannot have.
    pub async fn equip(
        &self,
        revision: &Revision,
        dir: &Path,
        spec: &mut ContainerSpec,
    ) -> Result<(), VolumeError> {
        let state = self.0.registry.view().state();
        let vault = self.0.config.vault.as_ref();
        let given = content::environment(&state, vault, revision)?;
        spec.env.extend(given.plain);
        spec.secret_env = given.secret;
        let volumes = used(revision);
        if volumes.is_empty() {
            return Ok(());
        }
        let local = self.claim_all(&state, revision, &volumes).await?;
        self.keep(&spec.id, dir, revision);
        let (this, revision, dir) = (self.clone(), revision.clone(), dir.to_owned());
        let asked = spec.clone();
        let made = tokio::task::spawn_blocking(move || {
            let user = User::of(&asked)?;
            let binds = this.make(&state, &revision, &dir, &user, &local)?;
            // What changed meanwhile was not seen by who follows the registry: there was no file.
            let newest = this.0.registry.view().state();
            let (namespace, volumes) = (revision.key.namespace.clone(), used(&revision));
            this.refresh_all(
                &newest,
                &Kept {
                    dir,
                    namespace,
                    volumes,
                },
            )?;
            Ok::<_, VolumeError>(binds)
        });
        let made = made.await.map_err(io::Error::other);
        spec.mounts
            .extend(made.map_err(VolumeError::io("prepare", Path::new(VOLUMES)))??);
        Ok(())
    }

    /// Where each local volume of the revision is on this node.
    async fn claim_all(
        &self,
        state: &State,
        revision: &Revision,
        volumes: &[Volume],
    ) -> Result<BTreeMap<String, LocalVolume>, VolumeError> {
        let mut all = BTreeMap::new();
        for name in volumes.iter().filter_map(Volume::local) {
            let key = object(&revision.key.namespace, name)?;
            let volume = match state.volumes.get(&key) {
                Some(known) => known.clone(),
                // Once in a volume's life: from then on its place is known without asking.
                None => self.claim(key).await?,
            };
            if volume.node != self.0.config.me {
                let holder = state.nodes.get(&volume.node);
                return Err(VolumeError::Elsewhere {
                    name: name.to_owned(),
                    on: holder.map_or_else(|| volume.node.to_string(), |n| n.name.to_string()),
                });
            }
            all.insert(name.to_owned(), volume);
        }
        Ok(all)
    }

    async fn claim(&self, key: ObjectKey) -> Result<LocalVolume, VolumeError> {
        let name = key.name.to_string();
        let command = Command {
            at: clock::unix(),
            action: Action::ClaimVolume {
                key,
                node: self.0.config.me,
            },
        };
        let unclaimed = |why: String| VolumeError::Unclaimed { name, why };
        match self.0.registry.propose(&command, CLAIM).await {
            Ok(Reply::Done {
                outcome: Outcome::Volume(volume),
                ..
            }) => Ok(volume),
            Ok(Reply::Done { .. }) => Err(unclaimed("the registry answered no place".to_owned())),
            Ok(Reply::Refused(refusal)) => Err(unclaimed(refusal.to_string())),
            Err(error) => Err(unclaimed(error.to_string())),
        }
    }

    fn make(
        &self,
        state: &State,
        revision: &Revision,
        dir: &Path,
        user: &User,
        local: &BTreeMap<String, LocalVolume>,
    ) -> Result<Vec<BindMount>, VolumeError> {
        let mut roots = BTreeMap::new();
        for volume in used(revision) {
            let root = self.make_one(state, revision, dir, user, local, &volume)?;
            roots.insert(volume.name.clone(), (root, volume));
        }
        let mounts = revision.spec.main().map(|c| c.volume_mounts.as_slice());
        let mut pins = pins::Pins::new(dir.join(PINS));
        let mut binds = Vec::new();
        for wanted in mounts.unwrap_or_default() {
            let Some((root, volume)) = roots.get(&wanted.name) else {
                continue;
            };
            let Some(root) = root else { continue };
            let source = match wanted.sub_path.as_deref().filter(|p| !p.is_empty()) {
                None => pins.whole(root, user)?,
                Some(sub) => pins.below(root, &volume.name, sub, user)?,
            };
            binds.push(BindMount {
                source,
                destination: PathBuf::from(&wanted.mount_path),
                read_only: wanted.read_only || root.read_only,
                no_exec: root.no_exec,
            });
        }
        // A mount below another comes after it.
        binds.sort_by_key(|bind| bind.destination.components().count());
        fail::fail_point!("volumes::equipped");
        Ok(binds)
    }

    /// One volume on the host; `None` when there is nothing to mount.
    fn make_one(
        &self,
        state: &State,
        revision: &Revision,
        dir: &Path,
        user: &User,
        local: &BTreeMap<String, LocalVolume>,
        volume: &Volume,
    ) -> Result<Option<Root>, VolumeError> {
        let at = dir.join(VOLUMES).join(&volume.name);
        match &volume.source {
            VolumeSource::EmptyDir { memory, size_bytes } => {
                let limit = revision.spec.main().map_or(0, |c| c.memory_bytes);
                let size = memory.then(|| empty::size(*size_bytes, limit));
                empty::make(&at, size, user.outside)?;
                Ok(Some(Root::writable(at)))
            }
            VolumeSource::ConfigMap { .. } | VolumeSource::Secret { .. } => {
                let namespace = &revision.key.namespace;
                let vault = self.0.config.vault.as_ref();
                let content = content::files(state, vault, namespace, &volume.source)?;
                let Some(content) = content else {
                    return Ok(None);
                };
                files::make(&at, &content, user.outside)?;
                Ok(Some(Root {
                    path: at,
                    lent: false,
                    read_only: true,
                    no_exec: true,
                }))
            }
            VolumeSource::Local { name } => {
                let Some(place) = local.get(name) else {
                    return Ok(None);
                };
                let _one = self.0.one.lock().unwrap_or_else(PoisonError::into_inner);
                let path = local::make(&self.0.config.data.join(VOLUMES), place, user.inside)?;
                Ok(Some(Root {
                    lent: true,
                    ..Root::writable(path)
                }))
            }
            VolumeSource::HostPath { path } => {
                let pin = dir.join(PINS).join(format!("host-{}", volume.name));
                let found = host::find(&self.0.config.host_paths, Path::new(path))?;
                pins::bind(&found.handle, &pin)?;
                Ok(Some(Root {
                    path: pin,
                    lent: false,
                    read_only: found.read_only,
                    no_exec: false,
                }))
            }
        }
    }

    /// Looks after an instance from now on: its files follow the registry, its folders are
    /// measured.
    pub fn keep(&self, id: &InstanceId, dir: &Path, revision: &Revision) {
        let volumes = used(revision);
        if volumes.is_empty() {
            return;
        }
        let kept = Kept {
            dir: dir.to_owned(),
            namespace: revision.key.namespace.clone(),
            volumes,
        };
        self.kept().insert(id.clone(), kept);
    }

    /// Takes away what an instance had, but not its local volumes. Nothing there is fine.
    ///
    /// # Errors
    /// What is still there; nothing below a mount that stays was touched.
    pub async fn remove(&self, id: &InstanceId, dir: &Path) -> Result<(), VolumeError> {
        self.kept().remove(id);
        let dir = dir.to_owned();
        let removed = tokio::task::spawn_blocking(move || {
            pins::remove(&dir.join(PINS))?;
            mount::remove(&dir.join(VOLUMES))
        });
        removed
            .await
            .map_err(io::Error::other)
            .map_err(VolumeError::io("remove", Path::new(VOLUMES)))?
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, BTreeMap<InstanceId, Kept>> {
        self.0.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A volume as it lies on the host.
struct Root {
    path: PathBuf,
    /// It outlives the instance: its owners on the disk are the container's own numbers.
    lent: bool,
    /// Whatever the mount asks for.
    read_only: bool,
    no_exec: bool,
}

impl Root {
    const fn writable(path: PathBuf) -> Self {
        Self {
            path,
            lent: false,
            read_only: false,
            no_exec: false,
        }
    }
}

/// The volumes that are mounted somewhere.
fn used(revision: &Revision) -> Vec<Volume> {
    let mounts = revision.spec.main().map(|c| c.volume_mounts.as_slice());
    let mounts = mounts.unwrap_or_default();
    let mounted = |v: &&Volume| mounts.iter().any(|m| m.name == v.name);
    revision
        .spec
        .volumes
        .iter()
        .filter(mounted)
        .cloned()
        .collect()
}

/// The key of an object a revision names; the registry took in no name that is none.
fn object(namespace: &Name, name: &str) -> Result<ObjectKey, VolumeError> {
    let parsed = Name::new(name).map_err(|error| VolumeError::Unclaimed {
        name: name.to_owned(),
        why: error.to_string(),
    });
    Ok(ObjectKey {
        namespace: namespace.clone(),
        name: parsed?,
    })
}
