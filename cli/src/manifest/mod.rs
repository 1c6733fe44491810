//! The manifest: a short TOML that says what a service should be, lowered to the words the
//! registry keeps. Pure: text in, a [`Manifest`] or an error with its place out.

mod error;
mod flags;
mod listen;
mod lower;
mod mount;
mod probe;
mod sandbox;
#[cfg(test)]
mod sandbox_tests;
mod section;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use scheduler::model::{Container, Name, RevisionSpec, Scale, TrafficTarget};

pub use error::ManifestError;
pub use flags::override_with;
pub use lower::{env_line, parse};

/// Larger manifests are refused before they are parsed.
pub const MAX_BYTES: usize = 1 << 20;

/// The name Knative gives the one container that serves.
const CONTAINER: &str = "user-container";

/// What a service should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    pub name: Option<Name>,
    pub namespace: Option<Name>,
    pub spec: RevisionSpec,
    pub scale: Scale,
    pub traffic: Vec<TrafficTarget>,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
}

impl Default for Manifest {
    fn default() -> Self {
        let container = Container {
            name: CONTAINER.to_owned(),
            ..Container::default()
        };
        Self {
            name: None,
            namespace: None,
            spec: RevisionSpec {
                containers: vec![container],
                ..RevisionSpec::default()
            },
            scale: Scale::default(),
            traffic: Vec::new(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
        }
    }
}

impl Manifest {
    /// The container that serves; there is always one.
    fn container(&mut self) -> &mut Container {
        if self.spec.containers.is_empty() {
            self.spec.containers = Self::default().spec.containers;
        }
        &mut self.spec.containers[0]
    }

    /// The image as written, empty when none is named.
    pub fn image(&self) -> &str {
        self.spec.main().map_or("", |c| &c.image)
    }
}
