//! What can go wrong with an image, told so that an operator knows whose turn it is: the name, the
//! network, the registry, the bytes, or this node's disk. Never carries a credential.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::digest::Digest;

/// Errors are `Clone` because every caller waiting for one shared pull gets the same one.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ImageError {
    #[error("`{text}` is not an image reference: {reason}")]
    BadReference { text: String, reason: &'static str },
    #[error("`{text}` is not a digest that is known here: `sha256:` and 64 of 0-9 and a-f")]
    BadDigest { text: String },
    #[error("registry {registry} cannot be reached: {detail}")]
    Unreachable { registry: String, detail: String },
    #[error("registry {registry} did not answer in time: {what}")]
    TimedOut { registry: String, what: String },
    #[error("image {reference} does not exist in the registry")]
    NotFound { reference: String },
    #[error("registry refuses access to {reference}: {detail}")]
    AuthRefused { reference: String, detail: String },
    #[error("registry cannot serve {reference}: {detail}")]
    Registry { reference: String, detail: String },
    #[error("{what} has digest {got}, expected {expected}")]
    DigestMismatch {
        what: String,
        expected: Digest,
        got: Digest,
    },
    #[error("{what} has {got} bytes, its descriptor says {expected}")]
    SizeMismatch {
        what: String,
        expected: u64,
        got: u64,
    },
    #[error("{what} cannot be read: {detail}")]
    Malformed { what: String, detail: String },
    #[error("{what}: {detail} is not supported")]
    Unsupported { what: String, detail: String },
    #[error("{reference} has no image for {wanted}; it offers {offered}")]
    NoPlatform {
        reference: String,
        wanted: String,
        offered: String,
    },
    #[error("{what} is over the limit of {limit}")]
    TooLarge { what: String, limit: u64 },
    #[error("layer {layer} is refused: entry `{entry}`: {reason}")]
    UnsafeLayer {
        layer: String,
        entry: String,
        reason: String,
    },
    #[error("{what} is damaged on this node's disk: {}", text(.files))]
    Damaged {
        what: String,
        files: BTreeSet<String>,
    },
    #[error("{damage}; it could not be brought in again: {cause}")]
    Unhealed {
        damage: String,
        cause: Box<ImageError>,
    },
    #[error("{image} may not run {place}: it needs a signature by {wants}; {detail}")]
    Unsigned {
        image: String,
        place: String,
        wants: String,
        detail: String,
        /// Nobody could be asked.
        passing: bool,
    },
    #[error("image is refused: /{path} must be a directory or absent")]
    UnsafeRoot { path: &'static str },
    #[error("this is no image archive: {detail}")]
    NotAnArchive { detail: String },
    #[error("image {digest} is not held on this node")]
    NotHeld { digest: String },
    #[error("image {digest} is in use by {}", list(.instances))]
    InUse {
        digest: String,
        instances: Vec<PathBuf>,
    },
    #[error("no room for {what}: {}", figures(*.needed, *.free, *.freeable))]
    NoRoom {
        what: String,
        /// Bytes it takes at least, where that is known.
        needed: Option<u64>,
        free: u64,
        /// Bytes of images that nothing here uses.
        freeable: u64,
    },
    #[error("the pull of {what} was cut off because this node is stopping")]
    Interrupted { what: String },
    #[error("{what}: {source}")]
    Io {
        what: String,
        source: Arc<std::io::Error>,
    },
}

impl ImageError {
    /// One code word, for a failed instance's reason.
    pub fn code(&self) -> &'static str {
        match self {
            Self::BadReference { .. } | Self::BadDigest { .. } => "InvalidImageName",
            Self::Unreachable { .. } | Self::TimedOut { .. } => "RegistryUnavailable",
            Self::NotFound { .. } => "ImageNotFound",
            Self::AuthRefused { .. } => "ImageAccessDenied",
            Self::Registry { .. } | Self::Interrupted { .. } => "ImagePull",
            Self::DigestMismatch { .. }
            | Self::SizeMismatch { .. }
            | Self::Damaged { .. }
            | Self::Unhealed { .. } => "ImageCorrupt",
            Self::Malformed { .. } | Self::Unsupported { .. } | Self::NotAnArchive { .. } => {
                "ImageInvalid"
            }
            Self::NoPlatform { .. } => "ImagePlatform",
            Self::TooLarge { .. } => "ImageTooLarge",
            Self::UnsafeLayer { .. } | Self::UnsafeRoot { .. } => "ImageUnsafe",
            Self::Unsigned { .. } => "ImageUnsigned",
            Self::NotHeld { .. } => "ImageNotHeld",
            Self::InUse { .. } => "ImageInUse",
            Self::NoRoom { .. } => "ImageNoRoom",
            Self::Io { .. } => "ImageStore",
        }
    }

    /// Whether the same call may well succeed a little later, with nothing changed here.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Unhealed { cause, .. } => cause.is_passing(),
            Self::Unsigned { passing, .. } => *passing,
            Self::Registry { .. } | Self::Interrupted { .. } => true,
            _ => self.is_network(),
        }
    }

    /// Whether somebody else may have what this registry did not give.
    pub(super) fn may_be_elsewhere(&self) -> bool {
        let refused = matches!(self, Self::NotFound { .. } | Self::AuthRefused { .. });
        self.is_passing() || refused || self.is_damage()
    }

    /// Whether the bytes were not those that were promised.
    pub(super) fn is_damage(&self) -> bool {
        matches!(
            self,
            Self::DigestMismatch { .. } | Self::SizeMismatch { .. } | Self::Malformed { .. }
        )
    }

    pub(super) fn is_network(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::TimedOut { .. })
    }

    /// The disk took no more bytes.
    pub(super) fn is_full_disk(&self) -> bool {
        use std::io::ErrorKind::{QuotaExceeded, StorageFull};
        matches!(self, Self::Io { source, .. } if matches!(source.kind(), StorageFull | QuotaExceeded))
    }

    pub(super) fn io(what: impl Into<String>, source: impl Into<std::io::Error>) -> Self {
        Self::Io {
            what: what.into(),
            source: Arc::new(source.into()),
        }
    }

    /// An error of this node's disk at `path`.
    pub(super) fn disk(verb: &str, path: &Path, source: impl Into<std::io::Error>) -> Self {
        Self::io(format!("{verb} {}", path.display()), source)
    }

    pub(super) fn malformed(what: impl Into<String>, detail: impl fmt::Display) -> Self {
        Self::Malformed {
            what: what.into(),
            detail: format!("{detail}"),
        }
    }
}

fn text(names: &BTreeSet<String>) -> String {
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    names.join(", ")
}

fn list(paths: &[PathBuf]) -> String {
    let names: Vec<_> = paths.iter().map(|p| p.display().to_string()).collect();
    names.join(", ")
}

fn figures(needed: Option<u64>, free: u64, freeable: u64) -> String {
    let needed = needed.map_or_else(
        || "the disk is full".to_owned(),
        |bytes| format!("it takes at least {bytes} bytes"),
    );
    format!(
        "{needed}, {free} bytes are free and {freeable} more would be without images nothing here \
         uses; make room on the disk, or raise `[runtime] image_gc` limit"
    )
}
