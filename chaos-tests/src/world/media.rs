//! Which disks the nodes of a world work on.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result};

use super::World;
use super::node::Node;
use crate::disk::Disk;

/// What a node's disk is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Media {
    /// A folder on the machine's own disk.
    #[default]
    Plain,
    /// A memory disk of so many bytes and inodes, all of which can be filled.
    Small { bytes: u64, inodes: u64 },
    /// A disk that loses what was not synced when the node loses its power.
    Powered,
    /// A disk whose device can fail.
    Failing,
    /// A disk whose calls can be made to fail, for the registry's file alone.
    Faulty,
}

/// The disks by their nodes' names.
pub(super) type Disks = BTreeMap<String, Mutex<Disk>>;

impl Media {
    pub(super) fn mount(self, node: &Node) -> Result<Disk> {
        Ok(match self {
            Self::Plain => Disk::Plain,
            Self::Small { bytes, inodes } => Disk::small(&node.dir, bytes, inodes)?.into(),
            Self::Powered => Disk::powered(&node.dir)?.into(),
            Self::Failing => Disk::failing(&node.dir)?.into(),
            Self::Faulty => Disk::faulty(&node.dir.join("registry"))?.into(),
        })
    }
}

impl World {
    /// The disk a node works on.
    pub fn disk(&self, node: &str) -> Result<MutexGuard<'_, Disk>> {
        let disk = self.disks.get(node);
        let disk = disk.with_context(|| format!("{node} has no disk of its own"))?;
        Ok(disk.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
