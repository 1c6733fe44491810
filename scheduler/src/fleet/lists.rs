//! Lists found by what they are of, a revision or an image: one look where a tree takes one for each of its
//! levels, none of which is at hand among a hundred thousand. Nobody walks them, so that their order tells
//! nothing.

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

/// What can have nothing to tell any more.
pub(super) trait Lapses: Default {
    fn is_over(&self) -> bool;
}

/// By a key and its hash. What is over is forgotten.
#[derive(Debug, Clone)]
pub(super) struct Lists<K, V>(HashTable<(u64, K, V)>);

impl<K, V> Default for Lists<K, V> {
    fn default() -> Self {
        Self(HashTable::new())
    }
}

impl<K: Eq + Clone, V: Lapses> Lists<K, V> {
    pub fn get(&self, hash: u64, key: &K) -> Option<&V> {
        let found = self.0.find(spread(hash), |(_, known, _)| known == key);
        found.map(|(_, _, value)| value)
    }

    pub fn change(&mut self, hash: u64, key: &K, change: impl FnOnce(&mut V)) {
        let is_it = |(_, known, _): &(u64, K, V)| known == key;
        match self
            .0
            .entry(spread(hash), is_it, |(hash, ..)| spread(*hash))
        {
            Entry::Occupied(mut found) => {
                let value = &mut found.get_mut().2;
                change(value);
                if value.is_over() {
                    found.remove();
                }
            }
            Entry::Vacant(place) => {
                let mut value = V::default();
                change(&mut value);
                if !value.is_over() {
                    place.insert((hash, key.clone(), value));
                }
            }
        }
    }
}

/// A table goes by the first and the last bits of a hash, and FNV's first differ little where names do.
fn spread(hash: u64) -> u64 {
    let spread = (hash ^ (hash >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    spread ^ (spread >> 32)
}
