//! Why an instance cannot have what its service asks for, and whose fault that is.

use std::io;
use std::path::{Path, PathBuf};

use scheduler::model::FailReason;

use super::HostPathError;

/// Why an instance cannot have what its service asks for.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    #[error("{kind} `{name}` does not exist")]
    Missing { kind: Kind, name: String },
    #[error("{kind} `{name}` has no key `{key}`")]
    NoKey {
        kind: Kind,
        name: String,
        key: String,
    },
    #[error("key `{key}` of {kind} `{name}` cannot be a variable: {why}")]
    NoVariable {
        kind: Kind,
        name: String,
        key: String,
        why: &'static str,
    },
    #[error("secret `{name}` cannot be read by this node: {why}")]
    Sealed { name: String, why: String },
    #[error("its volume `{name}` is on {on}")]
    Elsewhere { name: String, on: String },
    #[error("no place was agreed for its volume `{name}`: {why}")]
    Unclaimed { name: String, why: String },
    #[error(transparent)]
    Host(#[from] HostPathError),
    #[error("sub path `{path}` of volume `{volume}`: {why}")]
    SubPath {
        volume: String,
        path: String,
        why: String,
    },
    #[error("{0}")]
    User(String),
    #[error("{what} {}: {source}", path.display())]
    Io {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
}

/// Where a value comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Config,
    Secret,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Config => "config",
            Self::Secret => "secret",
        })
    }
}

impl VolumeError {
    /// As the instance that failed by it reports it. `Volume` and `Disk` are the node's fault:
    /// another may do better.
    #[must_use]
    pub fn reason(&self) -> FailReason {
        let code = match self {
            Self::Missing { kind, .. }
            | Self::NoKey { kind, .. }
            | Self::NoVariable { kind, .. } => match kind {
                Kind::Config => "BadConfig",
                Kind::Secret => "BadSecret",
            },
            Self::SubPath { .. } => "BadSubPath",
            Self::User(_) => "BadUser",
            Self::Sealed { .. }
            | Self::Elsewhere { .. }
            | Self::Unclaimed { .. }
            | Self::Host(_) => "Volume",
            Self::Io { .. } => "Disk",
        };
        FailReason {
            code: code.to_owned(),
            message: self.to_string(),
        }
    }

    pub(super) fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { what, path, source }
    }
}
