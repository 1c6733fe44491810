//! Room on the disk: measures what images take, and removes what `gc` lets go: from time to time,
//! before a pull that would not fit, and when the disk said it is full. Decides nothing itself.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{SystemTime, UNIX_EPOCH};

use super::books::Image;
use super::error::ImageError;
use super::gc::{Ask, Fill, Inventory, Marks, Wanted};
use super::shares::{Share, shares};
use super::store::{Inner, Store};

/// How the disk of the image store is filled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Bytes nothing uses, as far as the images' limit lets them have it.
    pub free: u64,
    /// Bytes of layers, each counted once.
    pub images: u64,
}

/// An image, what it takes and when an instance was last made of it.
#[derive(Debug, Clone)]
pub struct Stocked {
    pub image: std::sync::Arc<Image>,
    /// Bytes no other image has.
    pub own: u64,
    /// Bytes other images have too.
    pub shared: u64,
    /// Seconds of the wall clock.
    pub last_used: u64,
    pub in_use: bool,
}

/// What was removed, or would be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Removed {
    /// Digests with the bytes each set free.
    pub images: Vec<(String, u64)>,
    pub bytes: u64,
}

/// What a prune takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prune {
    /// Images of no deployed revision.
    Unneeded,
    /// Also those of revisions that run elsewhere.
    All,
}

impl Store {
    /// What is held, with sizes and last uses.
    pub async fn stock(&self) -> Result<Vec<Stocked>, ImageError> {
        self.blocking(Inner::stock).await
    }

    /// What the images of each user take, of whom each has these manifest digests; under the empty
    /// name what nobody has.
    pub async fn shares(
        &self,
        users: BTreeMap<String, BTreeSet<String>>,
    ) -> Result<BTreeMap<String, Share>, ImageError> {
        self.blocking(move |inner| Ok(shares(&inner.inventory()?, &users)))
            .await
    }

    /// Brings the disk from above the high mark down to the low one.
    pub async fn collect(&self, marks: Marks, wanted: Wanted) -> Result<Removed, ImageError> {
        self.blocking(move |inner| {
            if marks.limit.is_none() && marks.excess(inner.fill()?, 0) == 0 {
                return Ok(Removed::default());
            }
            let inventory = inner.inventory()?;
            let excess = marks.excess(inner.fill()?, inventory.total());
            if excess == 0 {
                return Ok(Removed::default());
            }
            inner.evict(&inventory, Ask::Bytes(excess), &wanted, false)
        })
        .await
    }

    /// Whether an image that may never be needed is welcome: the disk is below its low mark.
    pub async fn is_roomy(&self) -> Result<bool, ImageError> {
        let (marks, _) = self.inner.housekeeping();
        self.blocking(move |inner| Ok(marks.is_roomy(inner.fill()?, inner.inventory()?.total())))
            .await
    }

    /// Removes what nothing needs, or tells what that would be.
    pub async fn prune(&self, what: Prune, dry_run: bool) -> Result<Removed, ImageError> {
        let (_, wanted) = self.inner.housekeeping();
        let ask = match what {
            Prune::Unneeded => Ask::Unneeded,
            Prune::All => Ask::All,
        };
        self.blocking(move |inner| {
            if !dry_run {
                inner.partials.clear()?;
            }
            inner.evict(&inner.inventory()?, ask, &wanted, dry_run)
        })
        .await
    }

    /// Sees to it that `bytes` more fit, or says why they do not.
    pub(super) async fn make_room(&self, what: &str, bytes: u64) -> Result<(), ImageError> {
        let what = what.to_owned();
        let (marks, wanted) = self.inner.housekeeping();
        self.blocking(move |inner| {
            let inventory = inner.inventory()?;
            let free = inner.room(marks, &inventory)?.free;
            if bytes <= free {
                return Ok(());
            }
            let missing = bytes - free;
            let freeable = freeable(&inventory, &wanted);
            if freeable < missing {
                // Nothing is thrown away for an image that would not fit all the same.
                return Err(ImageError::NoRoom {
                    what,
                    needed: Some(bytes),
                    free,
                    freeable,
                });
            }
            inner.evict(&inventory, Ask::Bytes(missing), &wanted, false)?;
            Ok(())
        })
        .await
    }

    /// What a failed import or second try says: figures, when the cause is a full disk. What the
    /// work left is swept.
    pub(super) async fn told_full(&self, what: &str, error: ImageError) -> ImageError {
        if !error.is_full_disk() {
            return error;
        }
        self.no_room(what).await.unwrap_or(error)
    }

    pub(super) async fn no_room(&self, what: &str) -> Result<ImageError, ImageError> {
        let what = what.to_owned();
        let (marks, wanted) = self.inner.housekeeping();
        self.blocking(move |inner| {
            inner.tidy()?;
            let inventory = inner.inventory()?;
            Ok(ImageError::NoRoom {
                what,
                needed: None,
                free: inner.room(marks, &inventory)?.free,
                freeable: freeable(&inventory, &wanted),
            })
        })
        .await
    }

    /// After the disk said it is full: sweeps what the failed work left, removes what is not
    /// needed, and returns when trying again may help; if not, the error says the figures.
    pub(super) async fn after_full(&self, what: &str, error: ImageError) -> Result<(), ImageError> {
        if !error.is_full_disk() {
            return Err(error);
        }
        let what = what.to_owned();
        let (marks, wanted) = self.inner.housekeeping();
        self.blocking(move |inner| {
            inner.tidy()?;
            let inventory = inner.inventory()?;
            // How much it would have taken is not known: all that nothing needs makes way first.
            for ask in [Ask::Unneeded, Ask::All] {
                if inner.evict(&inventory, ask, &wanted, false)?.bytes > 0 {
                    return Ok(());
                }
            }
            Err(ImageError::NoRoom {
                what,
                needed: None,
                free: inner.room(marks, &inventory)?.free,
                freeable: freeable(&inventory, &wanted),
            })
        })
        .await
    }
}

impl Inner {
    /// How full the file system is, as `df` counts: what only root may use is not there.
    fn fill(&self) -> Result<Fill, ImageError> {
        let told = rustix::fs::statvfs(&self.dir)
            .map_err(|e| ImageError::disk("measure", &self.dir, e))?;
        let used = told.f_blocks.saturating_sub(told.f_bfree);
        Ok(Fill {
            used: used.saturating_mul(told.f_frsize),
            total: used
                .saturating_add(told.f_bavail)
                .saturating_mul(told.f_frsize),
        })
    }

    fn room(&self, marks: Marks, inventory: &Inventory) -> Result<Room, ImageError> {
        let (fill, images) = (self.fill()?, inventory.total());
        let own = marks
            .limit
            .map_or(u64::MAX, |limit| limit.saturating_sub(images));
        let free = fill.total.saturating_sub(fill.used).min(own);
        // What is on its way has its place already.
        let free = free.saturating_sub(self.coming().weight(&self.layers).due);
        Ok(Room { free, images })
    }

    /// The store as `gc` sees it.
    fn inventory(&self) -> Result<Inventory, ImageError> {
        let (images, kept) = self.holdings()?;
        let mut sizes = BTreeMap::new();
        for layer in self.layers.all()? {
            if let Some(marker) = self.layers.marker(&layer) {
                sizes.insert(layer, marker.raw);
            }
        }
        Ok(Inventory {
            images,
            sizes,
            kept,
            arriving: self.coming().weight(&self.layers).here,
        })
    }

    /// Bytes of layers, each counted once.
    pub(super) fn stored(&self) -> Result<u64, ImageError> {
        Ok(self.inventory()?.total())
    }

    fn stock(&self) -> Result<Vec<Stocked>, ImageError> {
        let inventory = self.inventory()?;
        let sharers = inventory.sharers();
        let mut stock = Vec::new();
        for held in &inventory.images {
            let Some(image) = self.image(&held.digest) else {
                continue;
            };
            let (mut own, mut shared) = (0, 0);
            for layer in held.layers.iter().collect::<BTreeSet<_>>() {
                let bytes = inventory.sizes.get(layer).copied().unwrap_or(0);
                match sharers.get(layer) {
                    Some(0 | 1) | None => own += bytes,
                    Some(_) => shared += bytes,
                }
            }
            stock.push(Stocked {
                image,
                own,
                shared,
                last_used: held.last_used,
                in_use: held.in_use,
            });
        }
        Ok(stock)
    }

    fn evict(
        &self,
        inventory: &Inventory,
        ask: Ask,
        wanted: &Wanted,
        dry_run: bool,
    ) -> Result<Removed, ImageError> {
        let plan = inventory.plan(ask, wanted, now());
        let mut removed = Removed::default();
        for (digest, bytes) in plan.evict {
            let held = inventory.images.iter().find(|held| held.digest == digest);
            let seen = held.map_or(0, |held| held.last_used);
            // Left alone when somebody came to use it since the plan was made.
            if !dry_run && !self.remove_idle(&digest, seen)? {
                continue;
            }
            removed.bytes += bytes;
            removed.images.push((digest.to_string(), bytes));
        }
        if !dry_run && !removed.images.is_empty() {
            tracing::info!(
                images = removed.images.len(),
                bytes = removed.bytes,
                "images removed"
            );
        }
        Ok(removed)
    }
}

fn freeable(inventory: &Inventory, wanted: &Wanted) -> u64 {
    inventory.plan(Ask::All, wanted, now()).freed
}

/// Seconds of the wall clock.
pub(super) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |age| age.as_secs())
}
