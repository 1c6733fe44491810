//! Which images go when the disk fills: a pure decision over what the store holds. It owns the
//! order and the bounds; measuring, removing and the clock are `room`'s.

use std::collections::{BTreeMap, BTreeSet};

use super::digest::Digest;

/// An image used or brought here this recently stays: a start may be on its way to it.
const GRACE_SECONDS: u64 = 60;

/// When collecting begins and where it ends, in per cent of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Marks {
    pub high: u8,
    pub low: u8,
    /// Bytes the layers may take; `None` leaves them the whole file system.
    pub limit: Option<u64>,
}

impl Default for Marks {
    fn default() -> Self {
        Self {
            high: 85,
            low: 70,
            limit: None,
        }
    }
}

/// How full something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fill {
    pub used: u64,
    pub total: u64,
}

impl Fill {
    /// Bytes over `percent` of the whole.
    fn over(self, percent: u8) -> u64 {
        let mark = u128::from(self.total) * u128::from(percent) / 100;
        self.used
            .saturating_sub(u64::try_from(mark).unwrap_or(u64::MAX))
    }
}

impl Marks {
    /// Bytes to free now: none up to the high mark, beyond it down to the low one. The file system
    /// and the images' own limit each have their say; the larger need wins.
    pub(super) fn excess(self, disk: Fill, images: u64) -> u64 {
        let fills = self.fills(disk, images);
        fills
            .filter(|fill| fill.over(self.high) > 0)
            .map(|fill| fill.over(self.low))
            .max()
            .unwrap_or(0)
    }

    /// Whether there is room for what may be of use one day: nothing is near to be removed.
    pub(super) fn is_roomy(self, disk: Fill, images: u64) -> bool {
        self.fills(disk, images)
            .all(|fill| fill.over(self.low) == 0)
    }

    fn fills(self, disk: Fill, images: u64) -> impl Iterator<Item = Fill> {
        let own = self.limit.map(|total| Fill {
            used: images,
            total,
        });
        [Some(disk), own].into_iter().flatten()
    }
}

/// What somebody outside the store needs of it, by manifest digest.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// An instance placed here runs from it, is parked from it or starts from it.
    pub here: BTreeSet<String>,
    /// A deployed revision runs it somewhere: goes last.
    pub deployed: BTreeSet<String>,
}

/// An image as collecting sees it.
#[derive(Debug, Clone)]
pub(super) struct Held {
    pub digest: Digest,
    pub layers: Vec<Digest>,
    /// Seconds of the wall clock.
    pub last_used: u64,
    /// Instances here have it mounted.
    pub in_use: bool,
}

/// Everything a decision is made of.
#[derive(Debug, Clone, Default)]
pub(super) struct Inventory {
    pub images: Vec<Held>,
    /// Bytes of each layer on disk.
    pub sizes: BTreeMap<Digest, u64>,
    /// Layers that stay whatever becomes of images: pulls count on them, snapshots are made of them.
    pub kept: BTreeSet<Digest>,
    /// Bytes here of layers that are read while they arrive. None of them may go.
    pub arriving: u64,
}

/// What goes, in order, and what that frees.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Plan {
    pub evict: Vec<(Digest, u64)>,
    pub freed: u64,
}

/// How much is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ask {
    /// Stop once this many bytes are free.
    Bytes(u64),
    /// Whatever no deployed revision runs.
    Unneeded,
    /// Whatever may go at all.
    All,
}

impl Inventory {
    /// Bytes of all layers, each counted once.
    pub(super) fn total(&self) -> u64 {
        self.sizes.values().sum::<u64>() + self.arriving
    }

    /// How many images have each layer.
    pub(super) fn sharers(&self) -> BTreeMap<&Digest, usize> {
        let mut sharers = BTreeMap::new();
        for image in &self.images {
            for layer in image.layers.iter().collect::<BTreeSet<_>>() {
                *sharers.entry(layer).or_default() += 1;
            }
        }
        sharers
    }

    fn size(&self, layer: &Digest) -> u64 {
        self.sizes.get(layer).copied().unwrap_or(0)
    }

    /// Least recently used first, those of deployed revisions after all others. An image that frees
    /// nothing by itself still goes when its turn comes: the next may free what both share.
    pub(super) fn plan(&self, ask: Ask, wanted: &Wanted, now: u64) -> Plan {
        let mut turn: Vec<(bool, &Held)> = self
            .images
            .iter()
            .filter(|image| may_go(image, wanted, now))
            .map(|image| (wanted.deployed.contains(image.digest.as_str()), image))
            .collect();
        turn.sort_by_key(|(deployed, image)| (*deployed, image.last_used, &image.digest));
        let mut sharers = self.sharers();
        let mut plan = Plan::default();
        for (deployed, image) in turn {
            match ask {
                Ask::Bytes(bytes) if plan.freed >= bytes => break,
                Ask::Unneeded if deployed => break,
                Ask::Bytes(_) | Ask::Unneeded | Ask::All => {}
            }
            let freed = self.released(image, &mut sharers);
            plan.freed += freed;
            plan.evict.push((image.digest.clone(), freed));
        }
        plan
    }

    /// Takes one image off its layers: the bytes of those nothing else has.
    fn released(&self, image: &Held, sharers: &mut BTreeMap<&Digest, usize>) -> u64 {
        let mut freed = 0;
        for layer in image.layers.iter().collect::<BTreeSet<_>>() {
            let Some(left) = sharers.get_mut(layer) else {
                continue;
            };
            *left -= 1;
            if *left == 0 && !self.kept.contains(layer) {
                freed += self.size(layer);
            }
        }
        freed
    }
}

fn may_go(image: &Held, wanted: &Wanted, now: u64) -> bool {
    let settled = image.last_used.saturating_add(GRACE_SECONDS) <= now;
    !image.in_use && settled && !wanted.here.contains(image.digest.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: u64 = 10_000;

    fn digest(name: &str) -> Digest {
        Digest::of(name.as_bytes())
    }

    fn held(name: &str, layers: &[&str], last_used: u64) -> Held {
        Held {
            digest: digest(name),
            layers: layers.iter().map(|l| digest(l)).collect(),
            last_used,
            in_use: false,
        }
    }

    fn inventory(images: Vec<Held>) -> Inventory {
        let layers = images.iter().flat_map(|image| image.layers.clone());
        let sizes = layers.map(|layer| (layer, 100)).collect();
        Inventory {
            images,
            sizes,
            kept: BTreeSet::new(),
            arriving: 0,
        }
    }

    fn names(plan: &Plan) -> Vec<Digest> {
        plan.evict.iter().map(|(d, _)| d.clone()).collect()
    }

    #[test]
    fn between_the_marks_nothing_is_asked_for_and_beyond_the_way_to_the_low_one() {
        let marks = Marks::default();
        let fill = |used| Fill { used, total: 1000 };
        assert_eq!(marks.excess(fill(850), 0), 0);
        assert_eq!(marks.excess(fill(851), 0), 151);
        let own = Marks {
            limit: Some(200),
            ..marks
        };
        assert_eq!(own.excess(fill(100), 170), 0);
        assert_eq!(own.excess(fill(100), 200), 60);
        assert_eq!(own.excess(fill(900), 200), 200);
    }

    #[test]
    fn the_least_recently_used_goes_first_and_the_deployed_last() {
        let mut store = inventory(vec![
            held("new", &["n"], 30),
            held("old", &["o"], 10),
            held("deployed", &["d"], 5),
            held("running", &["r"], 1),
            held("placed", &["p"], 1),
            held("fresh", &["f"], NOW - 1),
        ]);
        store.images[3].in_use = true;
        let wanted = Wanted {
            here: BTreeSet::from([digest("placed").to_string()]),
            deployed: BTreeSet::from([digest("deployed").to_string()]),
        };
        let all = store.plan(Ask::All, &wanted, NOW);
        assert_eq!(
            names(&all),
            [digest("old"), digest("new"), digest("deployed")]
        );
        assert_eq!(all.freed, 300);
        let unneeded = store.plan(Ask::Unneeded, &wanted, NOW);
        assert_eq!(names(&unneeded), [digest("old"), digest("new")]);
        let some = store.plan(Ask::Bytes(100), &wanted, NOW);
        assert_eq!(names(&some), [digest("old")]);
        assert_eq!(store.plan(Ask::Bytes(0), &wanted, NOW), Plan::default());
    }

    #[test]
    fn a_shared_layer_is_freed_with_its_last_image_and_never_while_kept() {
        let mut store = inventory(vec![
            held("a", &["base", "a"], 1),
            held("b", &["base", "b"], 2),
            held("c", &["coming"], 3),
        ]);
        assert_eq!(store.total(), 400);
        store.kept.insert(digest("coming"));
        let plan = store.plan(Ask::All, &Wanted::default(), NOW);
        let freed: Vec<u64> = plan.evict.iter().map(|(_, bytes)| *bytes).collect();
        assert_eq!(freed, [100, 200, 0]);
    }

    prop_compose! {
        fn any_image()(layers in proptest::collection::vec(0u8..6, 0..5), last_used in 0u64..20_000,
            in_use: bool) -> (Vec<u8>, u64, bool) {
            (layers, last_used, in_use)
        }
    }

    proptest! {
        #[test]
        fn what_is_needed_stays_and_the_figures_are_true(
            images in proptest::collection::vec(any_image(), 0..12),
            kept in proptest::collection::btree_set(0u8..6, 0..3),
            here in proptest::collection::btree_set(0usize..12, 0..3),
            ask in 0u64..500,
        ) {
            let layer = |n: &u8| digest(&format!("layer{n}"));
            let held: Vec<Held> = images.iter().enumerate().map(|(i, (layers, last_used, in_use))| Held {
                digest: digest(&format!("image{i}")),
                layers: layers.iter().map(layer).collect(),
                last_used: *last_used,
                in_use: *in_use,
            }).collect();
            let mut store = inventory(held);
            store.kept = kept.iter().map(layer).collect();
            let here = here.iter().map(|i| digest(&format!("image{i}")).to_string()).collect();
            let wanted = Wanted { here, deployed: BTreeSet::new() };
            let plan = store.plan(Ask::Bytes(ask), &wanted, NOW);
            let gone: BTreeSet<Digest> = names(&plan).into_iter().collect();
            prop_assert_eq!(gone.len(), plan.evict.len());
            let stays: Vec<&Held> =
                store.images.iter().filter(|i| !gone.contains(&i.digest)).collect();
            for image in &store.images {
                let needed = image.in_use || image.last_used + GRACE_SECONDS > NOW
                    || wanted.here.contains(image.digest.as_str());
                prop_assert!(!needed || !gone.contains(&image.digest));
            }
            // The bytes told are those of the layers nobody has any more.
            let left: BTreeSet<&Digest> =
                stays.iter().flat_map(|i| &i.layers).chain(&store.kept).collect();
            let freed: u64 =
                store.sizes.iter().filter(|(l, _)| !left.contains(l)).map(|(_, s)| s).sum();
            prop_assert_eq!(freed, plan.freed);
            // Not one more than was asked for.
            if let Some((_, last)) = plan.evict.last() {
                prop_assert!(plan.freed - last < ask);
            }
            // Enough, or all that may go.
            let possible = store.plan(Ask::All, &wanted, NOW);
            prop_assert!(plan.freed >= ask || plan == possible);
        }
    }
}
