//! A node's first files: who it is, how it is set up, and how its registry begins. They are
//! written whole, or taken back.

use std::path::{Path, PathBuf};

use anyhow::Context;
use netfabric::identity::{Authority, Identity, Vault, sha256_hex};

use crate::args::NodeFlags;
use crate::failure::{Exit, Failure};
use crate::files;

/// Tells the daemon to found the cluster at its first start.
const FOUND: &str = "registry/found";
/// What a follower (or a voter to be) knows at its first start.
const FOLLOWED: &str = "registry/followed.json";
const NODE_KEY: &str = "node.key";

/// The folder and file of a node to be.
pub struct Home {
    pub data: PathBuf,
    config: PathBuf,
    had_key: bool,
}

impl Home {
    /// Refuses when this machine is a node already.
    pub fn vacant(flags: &NodeFlags) -> anyhow::Result<Self> {
        let identity = flags.data.join("identity");
        if Identity::is_in(&identity) {
            let node = Identity::load(&identity).map_or_else(
                |_| "a node".to_owned(),
                |me| format!("node {} of cluster {}", me.node(), me.cluster_id()),
            );
            let message = format!(
                "this machine is {node} already (see {})",
                flags.data.display()
            );
            return Err(Failure::new(Exit::Conflict, message)
                .hint("look at it: selvedge status; another one here: --data DIR --config FILE")
                .into());
        }
        if flags.config.exists() {
            let message = format!("{} exists, and is not overwritten", flags.config.display());
            return Err(Failure::new(Exit::Conflict, message)
                .hint("move it away, or name another: --config FILE")
                .into());
        }
        let registry = flags.data.join("registry");
        if std::fs::read_dir(&registry).is_ok_and(|mut files| files.next().is_some()) {
            let message = format!("{} holds an earlier node's registry", registry.display());
            return Err(Failure::new(Exit::Conflict, message)
                .hint("move it away, or start elsewhere: --data DIR")
                .into());
        }
        let had_key = identity.join(NODE_KEY).exists();
        Ok(Self {
            data: flags.data.clone(),
            config: flags.config.clone(),
            had_key,
        })
    }

    /// Makes the folders, so that a disk that cannot be written is seen before a token is used.
    pub fn prepare(&self) -> anyhow::Result<()> {
        for folder in [self.identity(), self.data.join("registry")] {
            files::private_folder(&folder)
                .with_context(|| format!("cannot make {}", folder.display()))?;
        }
        Ok(())
    }

    pub fn identity(&self) -> PathBuf {
        self.data.join("identity")
    }

    /// The files of a cluster's first node. The identity comes last: with it the node exists.
    pub fn found(&self, authority: &Authority, me: &Identity, config: &str) -> anyhow::Result<()> {
        authority.store(&self.identity())?;
        Vault::create()?.store(&self.identity())?;
        write(&self.config, config.as_bytes())?;
        write(&self.data.join(FOUND), authority.cluster_id().as_bytes())?;
        Ok(me.store(&self.identity())?)
    }

    /// The files of a node that was taken in; `authority` when it becomes a voter, `vault` when the
    /// cluster has a key for secrets.
    pub fn joined(
        &self,
        authority: Option<&Authority>,
        vault: Option<&Vault>,
        me: &Identity,
        registry: &[u8],
        config: &str,
    ) -> anyhow::Result<()> {
        write(&self.config, config.as_bytes())?;
        // With its checksum before it, as the node stores it itself.
        let mut followed = sha256_hex(registry).into_bytes();
        followed.push(b'\n');
        followed.extend_from_slice(registry);
        write(&self.data.join(FOLLOWED), &followed)?;
        if let Some(authority) = authority {
            authority.store(&self.identity())?;
        }
        if let Some(vault) = vault {
            vault.store(&self.identity())?;
        }
        Ok(me.store(&self.identity())?)
    }

    /// Takes back what was written, so that the next try starts from nothing. The log stays; so
    /// does a key when `keep_key`: the cluster may have enrolled it without us hearing so, and
    /// takes the same key in again with the same token.
    pub fn undo(&self, keep_key: bool) {
        let identity = self.identity();
        // Best effort: each file is gone or was never there.
        for file in [
            "node.pem",
            "node.json",
            "ca.pem",
            "ca.key",
            "secrets.key",
            "operator.token",
        ] {
            let _ = std::fs::remove_file(identity.join(file));
        }
        if !self.had_key && !keep_key {
            let _ = std::fs::remove_file(identity.join(NODE_KEY));
        }
        let _ = std::fs::remove_file(&self.config);
        let _ = std::fs::remove_dir_all(self.data.join("registry"));
        let _ = std::fs::remove_dir(identity);
        let _ = std::fs::remove_dir(&self.data);
    }
}

fn write(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    files::write_private(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}
