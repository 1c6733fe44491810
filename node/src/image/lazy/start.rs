//! Images that instances are made of before all of them is here: whether one may be, its metadata
//! from a peer, and who brings the rest. Falls back to an ordinary pull wherever it cannot.

use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use scheduler::model::ImagePin;
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio::time::sleep;

use super::super::books::Image;
use super::super::budget::Budget;
use super::super::config::{ConfigFile, ImageConfig};
use super::super::digest::Digest;
use super::super::disk;
use super::super::error::ImageError;
use super::super::implied;
use super::super::manifest::{self, Document, LayerPlan};
use super::super::peers::Company;
use super::super::records::read_all;
use super::super::registry::access::RegistryConfig;
use super::super::snapshot;
use super::super::store::{Hold, Inner, Store};
use super::arrival::Arrival;
use super::show::DEVICE;
use super::told::Told;
use super::{LAIR, SOCKET, links, supply};

/// Where fewer raw bytes are missing, an ordinary pull is as quick. Measured by the bench `lazy` with
/// no line: as quick at 37 MB, 2.4 times as slow at 97 MB.
const LINE: u64 = 64 << 20;
/// A layer below this comes whole before the start, and needs no process that shows it. Chosen: some
/// ten milliseconds of a near peer's time.
const LAYER_LINE: u64 = 8 << 20;
/// The tar, and the tree that is made of it.
const COPIES: u64 = 2;
/// Between two tries to bring what nobody could give.
const AGAIN: Duration = Duration::from_secs(5);
/// Instances given up that nobody has ended yet.
const BROKEN: usize = 64;

/// What a peer told of an image, and what of it is here.
struct Plan {
    pin: ImagePin,
    config: ConfigFile,
    config_digest: Digest,
    layers: Vec<LayerPlan>,
}

impl Store {
    /// An image to make an instance of now: one that is here, or one that is read while it arrives,
    /// or else one that was pulled.
    pub async fn pull_to_start(
        &self,
        pin: &ImagePin,
        config: &Arc<RegistryConfig>,
    ) -> Result<Arc<Image>, ImageError> {
        let digest: Digest = pin.digest.parse()?;
        if self.inner.holds(&pin.digest) {
            // As a whole, and a pull makes it sound where it is not.
            return self.pull(pin, config, None).await;
        }
        let coming = self.inner.coming().image(&digest);
        if let Some(image) = coming {
            return Ok(image);
        }
        let begin = begin(self.clone(), pin.clone(), Arc::clone(config));
        let begun = self.inner.lazy_flights.join(digest.as_str(), begin).await;
        match begun {
            Ok(Some(image)) => Ok(image),
            Ok(None) => self.pull(pin, config, None).await,
            Err(error) => {
                tracing::debug!(image = pin.reference, %error, "pulled as ever");
                self.pull(pin, config, None).await
            }
        }
    }

    /// Hears of instances that are given up; only the first call does.
    pub(super) fn broken(&self, most: usize) -> mpsc::Receiver<PathBuf> {
        let (broken, given_up) = mpsc::channel(most);
        let _ = self.inner.broken.set(broken);
        given_up
    }

    /// Goes on with what an earlier daemon began, and hears the processes that show layers. What is
    /// returned names the folders of instances that can read nothing more. Called once, by whoever
    /// ends them.
    pub fn resume(&self, config: &Arc<RegistryConfig>) -> mpsc::Receiver<PathBuf> {
        let given_up = self.broken(BROKEN);
        let (store, config) = (self.clone(), Arc::clone(config));
        tokio::spawn(async move {
            let images = store.blocking(Inner::reopen_coming).await;
            let images = images.unwrap_or_else(|error| {
                tracing::error!(%error, "layers that were arriving cannot be read");
                Vec::new()
            });
            // Processes ask when they are heard: what they ask for must be known by then.
            match bind(&store.inner.dir) {
                Ok(listener) => drop(tokio::spawn(links::listen(store.clone(), listener))),
                Err(error) => tracing::error!(%error, "images cannot be read while they arrive"),
            }
            for image in images {
                let hold = Hold::new(&store, image.diff_ids().unwrap_or_default());
                go_on(&store, image.pin.clone(), &config, hold);
            }
            links::look(&store).await;
        });
        given_up
    }
}

/// Through a descriptor: the path may be longer than a socket's name.
pub(super) fn bind(images: &Path) -> std::io::Result<UnixListener> {
    let lair = images.join(LAIR);
    disk::remove_all(&lair.join(SOCKET))?;
    let dir = std::fs::File::open(lair)?;
    let through = format!("/proc/self/fd/{}/{SOCKET}", dir.as_raw_fd());
    UnixListener::bind(through)
}

/// The image with its big layers still to come; `None` where that cannot be, or is not worth it.
async fn begin(
    store: Store,
    pin: ImagePin,
    config: Arc<RegistryConfig>,
) -> Result<Option<Arc<Image>>, ImageError> {
    let Some(near) = store.inner.near.get().map(Arc::clone) else {
        return Ok(None);
    };
    let full = store.inner.coming().is_full();
    if full || store.inner.image_flights.is_open(&pin.digest) || !Path::new(DEVICE).exists() {
        return Ok(None);
    }
    let company = Company::new(store.clone(), near, pin.clone(), false);
    let Some(plan) = plan(&store, &company, &pin).await? else {
        return Ok(None);
    };
    let hold = Hold::new(
        &store,
        plan.layers.iter().map(|l| l.diff_id.clone()).collect(),
    );
    let Some(told) = told(&store, &company, &plan).await? else {
        return Ok(None);
    };
    let of = store.clone();
    let begun = store.blocking(move |_| begin_coming(&of, &plan, told));
    let (image, all) = begun.await?;
    drop(hold);
    tracing::info!(image = %pin.reference, "an image is read while it arrives");
    go_on(&store, pin, &config, all);
    Ok(Some(image))
}

/// Brings the rest of an image whose layers are held.
fn go_on(store: &Store, pin: ImagePin, config: &Arc<RegistryConfig>, hold: Hold) {
    let bringing = bring(store.clone(), pin, Arc::clone(config));
    tokio::spawn(async move {
        bringing.await;
        drop(hold);
    });
}

async fn plan(
    store: &Store,
    company: &Company,
    pin: &ImagePin,
) -> Result<Option<Plan>, ImageError> {
    let Some((bytes, config)) = company.documents(false).await else {
        return Ok(None);
    };
    let Document::Manifest(manifest) = Document::parse("a peer's manifest", &bytes)? else {
        return Ok(None);
    };
    let file = ConfigFile::parse(&config)?;
    file.check_platform(&pin.reference)?;
    let layers = manifest::plan(&manifest, &file, &store.inner.limits)?;
    Ok(Some(Plan {
        pin: pin.clone(),
        config: file,
        config_digest: Digest::of(&config),
        layers,
    }))
}

/// What peers say of the layers that are missing, once the small ones among them are here. `None`
/// when it is not worth it, or nobody has them.
async fn told(
    store: &Store,
    company: &Company,
    plan: &Plan,
) -> Result<Option<Vec<(Digest, Told)>>, ImageError> {
    let mut missing: Vec<&LayerPlan> = Vec::new();
    for layer in &plan.layers {
        if store.inner.health.is_damaged(&layer.diff_id) {
            // An ordinary pull mends it.
            return Ok(None);
        }
        let known = store.inner.layers.marker(&layer.diff_id).is_some();
        let coming = store.inner.coming().layer(&layer.diff_id);
        if coming.as_ref().is_some_and(|arrival| arrival.is_void()) {
            return Ok(None);
        }
        let twice = missing.iter().any(|other| other.diff_id == layer.diff_id);
        if !known && coming.is_none() && !twice {
            missing.push(layer);
        }
    }
    let asking = missing.iter().map(|layer| company.told(&layer.diff_id));
    let answers = futures::future::join_all(asking).await;
    let (mut big, mut small, mut bytes) = (Vec::new(), Vec::new(), 0);
    for (layer, answer) in missing.into_iter().zip(answers) {
        let Some(told) = answer else { return Ok(None) };
        bytes += told.list.raw;
        if told.list.raw < LAYER_LINE {
            small.push((layer, told.author));
        } else {
            big.push((layer.diff_id.clone(), told));
        }
    }
    if bytes < LINE || big.is_empty() {
        return Ok(None);
    }
    let room = bytes.saturating_mul(COPIES);
    store.make_room(&plan.pin.reference, room).await?;
    for (layer, author) in small {
        // Through the flight of the layer, in which another pull may bring it already.
        let (company, layer) = (company.again(), layer.clone());
        let key = layer.diff_id.to_string();
        let work = async move {
            let brought = company.layer(&layer, &[author]).await?;
            let digest = layer.diff_id.to_string();
            brought.ok_or(ImageError::NotHeld { digest })
        };
        store.inner.layer_flights.join(&key, work).await?;
    }
    Ok(Some(big))
}

/// The layers arrive from now on, and instances may be made of the image.
fn begin_coming(
    store: &Store,
    plan: &Plan,
    told: Vec<(Digest, Told)>,
) -> Result<(Arc<Image>, Hold), ImageError> {
    let inner = &store.inner;
    let digest: Digest = plan.pin.digest.parse()?;
    let (dir, budget) = (inner.coming().dir(), Budget::new(inner.limits));
    let mut arrivals = Vec::new();
    for (diff_id, told) in told {
        budget.raw(told.list.raw)?;
        arrivals.push(Arrival::begin(&dir, &diff_id, told, &budget)?);
    }
    fail::fail_point!("image::coming_begun");
    for arrival in arrivals {
        inner.coming().add_layer(arrival);
    }
    let entered = enter(store, &digest, plan);
    if entered.is_err() {
        inner.coming().forget(&digest);
    }
    entered
}

fn enter(store: &Store, digest: &Digest, plan: &Plan) -> Result<(Arc<Image>, Hold), ImageError> {
    let inner = &store.inner;
    let mut diff_ids: Vec<Digest> = plan.layers.iter().map(|l| l.diff_id.clone()).collect();
    let raw = |diff_id: &Digest| {
        let coming = inner.coming().layer(diff_id).map(|a| a.arriving.list.raw);
        let here = || inner.layers.marker(diff_id).map(|marker| marker.raw);
        coming.or_else(here).unwrap_or(0)
    };
    let bytes = diff_ids.iter().map(raw).sum();
    let folders = implied::layer(inner, &diff_ids)?;
    diff_ids.extend(folders.as_ref().map(|folders| folders.plan.diff_id.clone()));
    let hold = Hold::new(store, diff_ids.clone());
    if let Some(folders) = folders {
        folders.bring_in(inner)?;
    }
    snapshot::check_root(inner, &diff_ids)?;
    let image = Arc::new(Image::new(
        plan.pin.clone(),
        ImageConfig::from(&plan.config),
        diff_ids.iter().map(Digest::to_string).collect(),
        bytes,
        &plan.config_digest,
    ));
    let mut coming = inner.coming();
    coming.enter(digest, Arc::clone(&image));
    coming.record(&image)?;
    drop(coming);
    fail::fail_point!("image::coming_recorded");
    Ok((image, hold))
}

impl Inner {
    /// What an earlier daemon began and instances still read; the rest is removed.
    fn reopen_coming(&self) -> Result<Vec<Arc<Image>>, ImageError> {
        let dir = self.coming().dir();
        let mut images = Vec::new();
        for (path, image) in read_all::<Image>(&dir)? {
            let digest = image.digest()?;
            if !self.is_used(&digest) {
                disk::remove_all(&path).map_err(|e| ImageError::disk("remove", &path, e))?;
                continue;
            }
            for diff_id in image.diff_ids()? {
                self.reopen_layer(&dir, &diff_id);
            }
            let image = Arc::new(image);
            self.coming().enter(&digest, Arc::clone(&image));
            images.push(image);
        }
        for name in disk::names(&dir)? {
            let layer = Digest::from_hex(&name);
            let path = dir.join(&name);
            if layer.is_some_and(|layer| self.coming().layer(&layer).is_none()) {
                disk::remove_all(&path).map_err(|e| ImageError::disk("remove", &path, e))?;
            }
        }
        Ok(images)
    }

    fn reopen_layer(&self, dir: &Path, diff_id: &Digest) {
        let there = dir.join(diff_id.hex()).is_dir();
        if !there || self.coming().layer(diff_id).is_some() {
            return;
        }
        match Arrival::reopen(dir, diff_id, &Budget::new(self.limits)) {
            Ok(arrival) => self.coming().add_layer(arrival),
            Err(error) => {
                tracing::error!(layer = diff_id.short(), %error, "a layer that was arriving cannot be read");
            }
        }
    }
}

/// Makes the image an ordinary one, as often as it takes while instances need it.
pub(super) async fn bring(store: Store, pin: ImagePin, config: Arc<RegistryConfig>) {
    let Ok(digest) = pin.digest.parse::<Digest>() else {
        return;
    };
    loop {
        for arrival in store.inner.coming().layers(&digest) {
            arrival.arriving.go_on();
        }
        let Err(error) = store.pull(&pin, &config, None).await else {
            break;
        };
        let needed = store.inner.is_used(&digest);
        tracing::error!(image = %pin.reference, %error, needed,
            "an image that is read while it arrives cannot be had: what waits for it fails");
        let arrivals = store.inner.coming().layers(&digest);
        for arrival in arrivals {
            arrival.arriving.fail_waiting();
        }
        if !needed {
            break;
        }
        sleep(AGAIN).await;
    }
    let arrivals = store.inner.coming().layers(&digest);
    for arrival in arrivals {
        let settled = store.blocking(move |inner| match inner.layers.marker(&arrival.diff_id) {
            Some(_) => supply::settle(inner, &arrival),
            None => Ok(()),
        });
        if let Err(error) = settled.await {
            tracing::error!(image = %pin.reference, %error, "a layer's readers cannot be given the rest");
        }
    }
    fail::fail_point!("image::coming_settled");
    store.inner.coming().forget(&digest);
}
