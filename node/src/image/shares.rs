//! Whose the bytes on this disk are: what each user of images has alone, and what it has at all.
//! Pure; the store is measured by `room`.

use std::collections::{BTreeMap, BTreeSet};

use super::digest::Digest;
use super::gc::Inventory;

/// What one user's images take here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Share {
    pub images: u32,
    /// Of their layers, each counted once.
    pub bytes: u64,
    /// What of it no other user's images have.
    pub own: u64,
}

/// By user, of whom each has these manifest digests; images nobody has are the empty name's.
pub(super) fn shares(
    inventory: &Inventory,
    users: &BTreeMap<String, BTreeSet<String>>,
) -> BTreeMap<String, Share> {
    let mut shares: BTreeMap<String, Share> = BTreeMap::new();
    let mut having: BTreeMap<&Digest, BTreeSet<&str>> = BTreeMap::new();
    for image in &inventory.images {
        let has =
            |(_, digests): &(&String, &BTreeSet<String>)| digests.contains(image.digest.as_str());
        let mut names: Vec<&str> = users.iter().filter(has).map(|(n, _)| n.as_str()).collect();
        if names.is_empty() {
            names.push("");
        }
        for name in names {
            shares.entry(name.to_owned()).or_default().images += 1;
            for layer in &image.layers {
                having.entry(layer).or_default().insert(name);
            }
        }
    }
    for (layer, names) in having {
        let bytes = inventory.sizes.get(layer).copied().unwrap_or(0);
        for name in &names {
            let share = shares.entry((*name).to_owned()).or_default();
            share.bytes += bytes;
            share.own += if names.len() == 1 { bytes } else { 0 };
        }
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::super::gc::Held;
    use super::*;

    #[test]
    fn a_layer_is_counted_once_for_each_user_and_is_own_when_nobody_else_has_it() {
        let digest = |text: &str| Digest::of(text.as_bytes());
        let held = |name: &str, layers: &[&str]| Held {
            digest: digest(name),
            layers: layers.iter().map(|layer| digest(layer)).collect(),
            last_used: 0,
            in_use: false,
        };
        let sizes = [("base", 100), ("a", 10), ("b", 5), ("old", 1)];
        let inventory = Inventory {
            images: vec![
                held("a:1", &["base", "a"]),
                held("a:2", &["base", "a", "b"]),
                held("other", &["base", "b"]),
                held("forgotten", &["old", "base"]),
            ],
            sizes: sizes.map(|(name, size)| (digest(name), size)).into(),
            ..Inventory::default()
        };
        let of = |names: &[&str]| names.iter().map(|n| digest(n).to_string()).collect();
        let users = [
            ("default/a".to_owned(), of(&["a:1", "a:2"])),
            ("default/b".to_owned(), of(&["other", "not held"])),
            ("default/none".to_owned(), of(&["not held"])),
        ];
        let told = shares(&inventory, &users.into());
        let share = |images, bytes, own| Share { images, bytes, own };
        let expected = [
            (String::new(), share(1, 101, 1)),
            ("default/a".to_owned(), share(2, 115, 10)),
            ("default/b".to_owned(), share(1, 105, 0)),
        ];
        assert_eq!(told, expected.into());
    }
}
