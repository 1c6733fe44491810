//! What a peer says of a layer before any of it is here: its tree, how its tar is cut, and what starts
//! elsewhere read first.

use std::io;

use netfabric::wire::image::ImageRequest;
use scheduler::model::NodeId;

use super::super::chunks::ChunkList;
use super::super::digest::Digest;
use super::super::peers::{Company, lie};
use super::super::recipe::Recipe;
use super::super::record::MAX_PROFILE;
use super::super::source;

/// What a recipe may have, encoded: the tar headers of as many files as an image may have.
const MAX_RECIPE: usize = 64 << 20;

pub(in super::super) struct Told {
    pub author: NodeId,
    pub list: ChunkList,
    pub recipe: Recipe,
    /// What earlier starts read first.
    pub profile: Vec<usize>,
}

impl Company {
    /// Who holds a layer, near ones first.
    pub(super) async fn near_first(&self, layer: &Digest) -> Vec<NodeId> {
        let mut holders = self.holders(layer, false).await;
        if holders.is_empty() {
            holders = self.holders(layer, true).await;
        }
        let mut neighbours = self.near.neighbours();
        source::nearest(&mut neighbours);
        let nodes = neighbours.into_iter().map(|n| n.node);
        nodes.filter(|node| holders.contains(node)).collect()
    }

    /// What the nearest who can says of a layer's tree; `None` when nobody does.
    pub(super) async fn told(&self, layer: &Digest) -> Option<Told> {
        for node in self.near_first(layer).await {
            match self.told_by(node, layer).await {
                Ok(told) => return Some(told),
                Err(error) => self.leave_out(node, &error),
            }
        }
        None
    }

    pub(super) async fn told_by(&self, author: NodeId, layer: &Digest) -> io::Result<Told> {
        let (list, _) = self.list(author, layer).await?;
        let request = |layer| ImageRequest::Recipe { layer };
        let bytes = self
            .pieces(author, request(layer.to_string()), MAX_RECIPE)
            .await?;
        let decoded = tokio::task::spawn_blocking(move || Recipe::decode(&bytes[..])).await;
        let recipe = decoded.map_err(io::Error::other)?.map_err(lie)?;
        if recipe.raw() != list.raw {
            return Err(lie("a recipe is not of its chunk list's tar"));
        }
        let request = ImageRequest::Profile {
            layer: layer.to_string(),
        };
        // Only an order: without it the start is slower.
        let profile = self.pieces(author, request, MAX_PROFILE * 4).await;
        let places = profile.unwrap_or_default();
        let places = places.as_chunks().0.iter();
        Ok(Told {
            author,
            list,
            recipe,
            profile: places.map(|p| u32::from_le_bytes(*p) as usize).collect(),
        })
    }
}
