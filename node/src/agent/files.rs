//! What the agent keeps of an instance on disk: enough to adopt it after a restart, and its log for
//! a while after it is gone.
//!
//! ```text
//! DATA/instances/ID/instance.json    revision and receipt (this file)
//! DATA/instances/ID/log, log.1       the shim's
//! DATA/log/NAMESPACE/SERVICE/ID/     logs of instances that are gone, the newest few
//! ```

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use scheduler::model::{InstanceId, Revision, ServiceKey};
use scheduler::place::Receipt;
use serde::{Deserialize, Serialize};

use crate::runtime::wire::{LOG, LOG_BEFORE};

/// Logs of gone instances kept per service.
const KEPT_LOGS: usize = 10;
/// Where an instance's logs gather before they leave its folder.
const BUNDLE: &str = "shelved";

/// What a later daemon must know of an instance to take it over. The revision is kept whole: at
/// boot the registry may not have been read yet, and what runs must not depend on it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct InstanceRecord {
    pub id: InstanceId,
    pub revision: Arc<Revision>,
    pub receipt: Receipt,
}

/// The folders of one node's instances.
#[derive(Debug, Clone)]
pub(super) struct Files {
    instances: PathBuf,
    logs: PathBuf,
}

impl Files {
    pub(super) fn open(data: &Path) -> io::Result<Self> {
        let files = Self {
            instances: data.join("instances"),
            logs: data.join("log"),
        };
        fs::create_dir_all(&files.instances)?;
        fs::create_dir_all(&files.logs)?;
        Ok(files)
    }

    pub(super) fn dir(&self, id: &InstanceId) -> PathBuf {
        self.instances.join(&id.0)
    }

    /// Makes the instance's folder and writes its record durably.
    pub(super) fn record(&self, record: &InstanceRecord) -> io::Result<()> {
        fs::create_dir_all(self.dir(&record.id))?;
        fail::fail_point!("agent::folder_made");
        self.update(record)
    }

    /// Replaces an instance's record. One whose folder is gone by now needs none.
    pub(super) fn update(&self, record: &InstanceRecord) -> io::Result<()> {
        let dir = self.dir(&record.id);
        let temporary = dir.join("instance.json.tmp");
        let mut file = fs::File::create(&temporary)?;
        file.write_all(&serde_json::to_vec(record)?)?;
        file.sync_all()?;
        fail::fail_point!("agent::record_written");
        fs::rename(temporary, dir.join("instance.json"))?;
        fail::fail_point!("agent::recorded");
        Ok(())
    }

    /// The record of an instance, if its folder holds a whole one.
    pub(super) fn read(&self, id: &InstanceId) -> Option<InstanceRecord> {
        let bytes = fs::read(self.dir(id).join("instance.json")).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    /// Moves an ended instance's log to where old logs are kept, and removes its folder. One that
    /// said nothing, as the parked do, leaves nothing.
    pub(super) fn retire(&self, id: &InstanceId, service: &ServiceKey) -> io::Result<()> {
        let dir = self.dir(id);
        let said = |name: &&str| fs::metadata(dir.join(name)).is_ok_and(|log| log.len() > 0);
        let logs: Vec<&str> = [LOG_BEFORE, LOG].into_iter().filter(said).collect();
        let bundle = dir.join(BUNDLE);
        if !logs.is_empty() || bundle.exists() {
            fs::create_dir_all(&bundle)?;
            for name in logs {
                fs::rename(dir.join(name), bundle.join(name))?;
            }
            // It comes to the shelf whole: others that retire prune there.
            let shelf = self.shelf(service);
            fs::create_dir_all(&shelf)?;
            fs::rename(bundle, shelf.join(&id.0))?;
            prune(&shelf)?;
        }
        fail::fail_point!("agent::log_shelved");
        absent_is_fine(fs::remove_dir_all(dir))?;
        fail::fail_point!("agent::retired");
        Ok(())
    }

    fn shelf(&self, service: &ServiceKey) -> PathBuf {
        self.logs
            .join(service.namespace.as_str())
            .join(service.name.as_str())
    }

    /// Folders with the logs of a service's gone instances.
    pub(super) fn retired(&self, service: &ServiceKey) -> Vec<(InstanceId, PathBuf)> {
        let entries = fs::read_dir(self.shelf(service)).into_iter().flatten();
        let named = entries.filter_map(|entry| {
            let entry = entry.ok()?;
            Some((
                InstanceId(entry.file_name().into_string().ok()?),
                entry.path(),
            ))
        });
        named.collect()
    }
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Keeps the newest logs of a shelf, also where several do so at once.
fn prune(shelf: &Path) -> io::Result<()> {
    let entries = fs::read_dir(shelf)?.filter_map(Result::ok);
    let mut kept: Vec<(SystemTime, PathBuf)> = entries
        .map(|entry| (last_said(&entry.path()), entry.path()))
        .collect();
    kept.sort();
    for (_, path) in kept.iter().rev().skip(KEPT_LOGS) {
        absent_is_fine(fs::remove_dir_all(path))?;
    }
    Ok(())
}

/// When the logs of a folder were last written to. Not when the folder changed: one that is being
/// removed, or was when its daemon died, would be the newest.
fn last_said(folder: &Path) -> SystemTime {
    let written = |name| fs::metadata(folder.join(name)).ok()?.modified().ok();
    let times = [LOG, LOG_BEFORE].into_iter().filter_map(written);
    times.max().unwrap_or(SystemTime::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use scheduler::model::Name;

    use super::*;

    #[test]
    fn a_retired_instance_leaves_its_log_and_only_the_newest_logs_stay() {
        let data = tempfile::tempdir().unwrap();
        let files = Files::open(data.path()).unwrap();
        let name = |text: &str| Name::new(text).unwrap();
        let service = ServiceKey {
            namespace: name("default"),
            name: name("web"),
        };
        for n in 0..KEPT_LOGS + 3 {
            let id = InstanceId(format!("web-00001-{n}"));
            fs::create_dir_all(files.dir(&id)).unwrap();
            fs::write(files.dir(&id).join(LOG), "{}\n").unwrap();
            files.retire(&id, &service).unwrap();
            assert!(!files.dir(&id).exists());
        }
        assert_eq!(files.retired(&service).len(), KEPT_LOGS);
        // Many go at once.
        std::thread::scope(|scope| {
            for n in 0..40 {
                let (files, service) = (&files, &service);
                scope.spawn(move || {
                    let id = InstanceId(format!("web-00002-{n}"));
                    fs::create_dir_all(files.dir(&id)).unwrap();
                    fs::write(files.dir(&id).join(LOG), "{}\n").unwrap();
                    files.retire(&id, service).unwrap();
                });
            }
        });
        assert_eq!(files.retired(&service).len(), KEPT_LOGS);
        // A removal that was cut short leaves no log, and takes none's place.
        fs::create_dir(files.shelf(&service).join("web-00001-half")).unwrap();
        let next = InstanceId("web-00003-0".to_owned());
        fs::create_dir_all(files.dir(&next)).unwrap();
        fs::write(files.dir(&next).join(LOG), "{}\n").unwrap();
        files.retire(&next, &service).unwrap();
        let kept = files.retired(&service);
        assert_eq!(kept.len(), KEPT_LOGS);
        assert!(kept.iter().all(|(_, folder)| folder.join(LOG).exists()));
        let silent = InstanceId("web-00001-silent".to_owned());
        fs::create_dir_all(files.dir(&silent)).unwrap();
        fs::write(files.dir(&silent).join(LOG), "").unwrap();
        files.retire(&silent, &service).unwrap();
        let kept = files.retired(&service);
        assert!(kept.iter().all(|(id, _)| *id != silent), "it took a place");
    }
}
