//! Images between nodes: one request on a stream, then answers until the last. Everything asked
//! for is named by a digest, so that the asker verifies what it gets and trusts nobody.
//!
//! Bytes go through `serde_bytes`: the same form on the wire, written as a whole and not one by one.

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
    /// An index that led to an image, by its own digest.
    Index { index: String },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ImageAnswer {
    /// In the order of the question.
    Holds {
        images: Vec<bool>,
        layers: Vec<bool>,
    },
    /// An index; or the manifest, and the configuration comes next.
    Document(#[serde(with = "serde_bytes")] Vec<u8>),
    /// A part of a list or a recipe.
    Piece(#[serde(with = "serde_bytes")] Vec<u8>),
    /// The next chunks asked for, one after the other, zstd.
    Chunks {
        count: u32,
        #[serde(with = "serde_bytes")]
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::codec;

    /// What nodes of earlier versions say.
    #[derive(Serialize)]
    enum OneByOne {
        #[expect(dead_code, reason = "it only has its place")]
        Holds,
        Document(Vec<u8>),
        Piece(Vec<u8>),
        Chunks {
            count: u32,
            packed: Vec<u8>,
        },
    }

    #[test]
    fn bytes_have_the_form_they_always_had() {
        let bytes: Vec<u8> = (0..=255).cycle().take(70_000).collect();
        let all = || bytes.clone();
        let (count, packed) = (7, all());
        let pairs = [
            (ImageAnswer::Document(all()), OneByOne::Document(all())),
            (ImageAnswer::Piece(all()), OneByOne::Piece(all())),
            (
                ImageAnswer::Chunks {
                    count,
                    packed: all(),
                },
                OneByOne::Chunks { count, packed },
            ),
        ];
        for (new, old) in pairs {
            let encoded = codec::encode(&new).unwrap();
            assert_eq!(encoded, codec::encode(&old).unwrap());
            assert_eq!(codec::decode::<ImageAnswer>(&encoded).unwrap(), new);
        }
    }
}
