//! Images between nodes: one request on a stream, then answers until the last. Everything asked
//! for is named by a digest, so that the asker verifies what it gets and trusts nobody.

use serde::{Deserialize, Serialize};

/// Digests in one question.
pub const MAX_ASKED: usize = 256;
/// Ranges of chunks in one request.
pub const MAX_RANGES: usize = 4096;
/// Raw bytes of chunks in one answer, beyond its first chunk.
pub const BATCH: usize = 256 << 10;
/// Bytes of a list or a recipe in one answer.
pub const PIECE: usize = 256 << 10;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ImageRequest {
    /// Which of these (manifest digests, diff ids) are held and can be served.
    Holds {
        images: Vec<String>,
        layers: Vec<String>,
    },
    /// The manifest and the configuration of an image, by the manifest's digest.
    Documents { image: String },
    /// How a layer's tar is cut, by its diff id.
    ChunkList { layer: String },
    /// How a layer's tar is put together from its tree.
    Recipe { layer: String },
    /// Chunks of a layer by their place in its list: the first of each range, and how many.
    Chunks {
        layer: String,
        ranges: Vec<(u32, u32)>,
    },
    /// Please pull this image from its registry, and say when this layer of it is here.
    Bring {
        reference: String,
        image: String,
        layer: String,
    },
    /// Which chunks of a layer starts read first: their places, four bytes each.
    Profile { layer: String },
    /// What shows who signed an image, by its manifest's digest.
    Proof { image: String },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ImageAnswer {
    /// In the order of the question.
    Holds {
        images: Vec<bool>,
        layers: Vec<bool>,
    },
    /// The manifest; the configuration comes next.
    Document(Vec<u8>),
    /// A part of a list or a recipe.
    Piece(Vec<u8>),
    /// The next chunks asked for, one after the other, zstd.
    Chunks {
        count: u32,
        packed: Vec<u8>,
    },
    /// It is being pulled; the number rises as bytes come from registries.
    Bringing {
        arrived: u64,
    },
    /// All is said.
    End,
    Refused(String),
}
