//! Taking over what an earlier daemon left: running instances are kept as they are, probed and
//! opened again, thawed if they were frozen; everything else of an earlier life is removed. Nothing here asks the registry.

use std::collections::BTreeMap;

use scheduler::model::InstanceId;

use super::busy;
use super::driver::Driver;
use super::files::InstanceRecord;
use super::work::{Work, admission};
use crate::clock;
use crate::runtime::AdoptedState;

impl Driver {
    /// Takes over what runs and removes what does not, the parked with it.
    pub(super) async fn adopt(&mut self) -> anyhow::Result<()> {
        // Of every folder, also of those that hold no container yet.
        let found = self.tools.runtime.adopt().await?;
        fail::fail_point!("agent::found");
        for adopted in found {
            let running = adopted.state == AdoptedState::Running;
            let record = self.tools.files.read(&adopted.id);
            match record.clone() {
                Some(record) if running => {
                    self.receipts
                        .keep(adopted.id.clone(), record.receipt.clone());
                    let stop_signal = adopted.spec.map_or(libc::SIGTERM, |s| s.stop_signal);
                    self.work
                        .insert(adopted.id.clone(), Work::new(record, stop_signal));
                }
                _ => {
                    tracing::info!(instance = %adopted.id, state = ?adopted.state, "removing what an earlier daemon left");
                    self.remove_leftover(&adopted.id, record).await;
                }
            }
        }
        self.take_over().await;
        fail::fail_point!("agent::adopted");
        Ok(())
    }

    async fn remove_leftover(&self, id: &InstanceId, record: Option<InstanceRecord>) {
        if let Some(record) = record {
            self.remove_by_and_by(record).await;
        } else {
            let dir = self.tools.files.dir(id);
            let removed = self.tools.runtime.delete(id).await;
            let unmounted = self.tools.images.store().remove_snapshot(&dir).await;
            // Nothing below a mount that stays may be touched: it is not the instance's alone.
            let freed = self.tools.volumes.remove(id, &dir).await;
            let gone = freed.is_ok() && std::fs::remove_dir_all(&dir).is_ok();
            if removed.is_err() || unmounted.is_err() || !gone {
                tracing::warn!(instance = %id, "a leftover could not be removed");
            }
        }
    }

    /// Now if it can be; what stands in the way does not hold up the others.
    async fn remove_by_and_by(&self, record: InstanceRecord) {
        if self.tools.remove_once(&record).await.is_err() {
            let tools = self.tools.clone();
            tokio::spawn(async move { tools.remove(&record).await });
        }
    }

    /// Probes and opens what runs and still has its network.
    async fn take_over(&mut self) {
        let running: Vec<InstanceId> = self.work.keys().cloned().collect();
        let leases = self.tools.network.adopt(&running);
        fail::fail_point!("agent::leases_adopted");
        let addresses: BTreeMap<_, _> = leases
            .into_iter()
            .map(|lease| (lease.instance, lease.address))
            .collect();
        for id in running {
            let Some(work) = self.work.get_mut(&id) else {
                continue;
            };
            work.address = addresses.get(&id).copied();
            if work.address.is_some() {
                // Frozen or not, nobody knows any more.
                if let Err(error) = self.tools.runtime.thaw(&id).await {
                    tracing::warn!(instance = %id, %error, "cannot be thawed");
                }
                let Some(work) = self.work.get(&id) else {
                    continue;
                };
                tracing::info!(instance = %id, "adopted");
                let dir = self.tools.files.dir(&id);
                self.tools.volumes.keep(&id, &dir, &work.record.revision);
                if busy::is_wanted(&work.record.revision.spec)
                    && let Err(error) = self.tools.leases.open(&id, &dir)
                {
                    tracing::warn!(instance = %id, %error, "its programs can take no lease");
                }
                let admission = admission(&id, &work.record.revision);
                let effects = self.node.adopt(clock::now(), admission);
                self.watch_exit(&id);
                self.perform(effects);
            } else if let Some(work) = self.work.remove(&id) {
                tracing::warn!(instance = %id, "an instance lost its network");
                self.remove_by_and_by(work.record).await;
            }
        }
    }
}
