//! Images from an archive instead of a registry, verified as strictly as a pull. What an archive says
//! of its images is read by `archive`.

use std::sync::Arc;

use futures::stream::{self, StreamExt};
use scheduler::model::ImagePin;
use tokio::io::AsyncRead;

use super::archive::{Archive, Found};
use super::books::Image;
use super::budget::Budget;
use super::digest::Digest;
use super::error::ImageError;
use super::layer::Marker;
use super::manifest::{self, LayerPlan};
use super::reference::Reference;
use super::spool::{self, Spool};
use super::store::{Hold, Store};

/// Layers of one archive unpacked side by side: the disk they are read from is the one they are
/// written to.
const LAYERS_AT_ONCE: usize = 2;
/// What an archive may hold besides its layers' bytes: documents and padding.
const OVERHEAD: u64 = 64 * 1024 * 1024;

impl Store {
    /// Imports every image of an archive that runs on this machine. `name` overrides the name the
    /// archive gives, and is needed when it gives none and holds several.
    pub async fn import(
        &self,
        reader: impl AsyncRead + Send,
        name: Option<&Reference>,
    ) -> Result<Vec<Arc<Image>>, ImageError> {
        let limits = self.inner.limits;
        let most = limits.raw.saturating_add(OVERHEAD);
        let received = spool::receive(reader, &self.inner.tmp(), most).await;
        let (scratch, file) = match received {
            Ok(received) => received,
            Err(error) => return Err(self.told_full("the archive", error).await),
        };
        fail::fail_point!("image::received");
        let name = name.map(Reference::name);
        let (spool, found) = self
            .blocking(move |inner| {
                let spool = Spool::scan(scratch, file)?;
                let found = Archive {
                    spool: &spool,
                    limits: &inner.limits,
                }
                .images()?;
                if name.is_some() && found.len() > 1 {
                    let detail = "it holds several images, and one name was given".to_owned();
                    return Err(ImageError::NotAnArchive { detail });
                }
                for image in &found {
                    manifest::check_count(image.layers.len(), &inner.limits)?;
                }
                let named = |f: Found| Found {
                    reference: name.clone().unwrap_or(f.reference),
                    ..f
                };
                Ok((
                    Arc::new(spool),
                    found.into_iter().map(named).collect::<Vec<_>>(),
                ))
            })
            .await?;
        fail::fail_point!("image::archive_read");
        let mut images = Vec::new();
        for image in found {
            let name = image.reference.clone();
            match self.bring(image, &spool).await {
                Ok(image) => images.push(image),
                Err(error) => {
                    // The archive's own bytes first: what is told free is free.
                    drop(spool);
                    return Err(self.told_full(&name, error).await);
                }
            }
        }
        Ok(images)
    }

    async fn bring(&self, found: Found, spool: &Arc<Spool>) -> Result<Arc<Image>, ImageError> {
        let pin = ImagePin {
            reference: found.reference,
            digest: found.digest.to_string(),
        };
        self.admit_with(&pin, found.proof).await?;
        match self.sound_as(&found.digest, &pin.reference).await {
            Ok(Some(image)) => return Ok(image),
            Ok(None) | Err(ImageError::Damaged { .. }) => {}
            Err(error) => return Err(error),
        }
        let plans: Vec<LayerPlan> = found.layers.iter().map(|(plan, _)| plan.clone()).collect();
        let _hold = Hold::new(
            self,
            plans.iter().map(|plan| plan.diff_id.clone()).collect(),
        );
        let budget = Budget::new(self.inner.limits);
        // All of them are waited for, so that a failed import leaves nobody writing.
        // Owned items: the compiler cannot see through borrows held across these awaits.
        let markers: Vec<Marker> = stream::iter(found.layers)
            .map(|(plan, member)| self.layer(plan, member, Arc::clone(spool), Arc::clone(&budget)))
            .buffered(LAYERS_AT_ONCE)
            .collect::<Vec<Result<Marker, ImageError>>>()
            .await
            .into_iter()
            .collect::<Result<_, _>>()?;
        if let Some(index) = &found.index {
            self.keep_index(&Digest::of(index), index).await;
        }
        self.finish(pin, (found.manifest, found.config), &plans, markers)
            .await
    }

    async fn layer(
        &self,
        plan: LayerPlan,
        member: String,
        spool: Arc<Spool>,
        budget: Arc<Budget>,
    ) -> Result<Marker, ImageError> {
        let key = plan.diff_id.to_string();
        let store = self.clone();
        let work = async move {
            let work = store.blocking(move |inner| match inner.usable(&plan.diff_id) {
                Some(marker) => Ok(marker),
                None => inner.take_in(spool.open(&member)?, &plan, &budget),
            });
            work.await
        };
        self.inner.layer_flights.join(&key, work).await
    }
}
