//! openraft's own storage suite on the real file, and what a damaged file does.

use std::fs::File;
use std::sync::Arc;

use openraft::storage::{RaftLogStorage, RaftStateMachine};
use openraft::testing::{StoreBuilder, Suite};
use openraft::{CommittedLeaderId, EntryPayload};
use tempfile::TempDir;

use super::*;
use crate::consensus::sim::Disk;
use crate::consensus::types::{Batch, TypeConfig};
use crate::consensus::view::View;

struct Builder;

impl StoreBuilder<TypeConfig, LogStore, Machine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, LogStore, Machine), openraft::StorageError<u64>> {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), 1).unwrap();
        let machine = Machine::load(store.clone(), Arc::new(View::new(16))).unwrap();
        Ok((dir, LogStore(store), machine))
    }
}

#[test]
fn openrafts_storage_suite_passes() {
    Suite::test_all(Builder).unwrap();
}

/// The same suite on the disk that the simulation breaks.
struct SimulatedBuilder;

impl StoreBuilder<TypeConfig, LogStore, Machine, SimFile> for SimulatedBuilder {
    async fn build(&self) -> Result<(SimFile, LogStore, Machine), openraft::StorageError<u64>> {
        let file = Disk::new(1, 1).open();
        let store = Store::open_on(&file, 1).unwrap();
        let machine = Machine::load(store.clone(), Arc::new(View::new(16))).unwrap();
        Ok((file, LogStore(store), machine))
    }
}

#[test]
fn openrafts_storage_suite_passes_on_the_simulated_disk() {
    Suite::test_all(SimulatedBuilder).unwrap();
}

fn entry(index: u64) -> Entry {
    let log_id = LogId::new(CommittedLeaderId::new(1, 1), index);
    Entry {
        log_id,
        payload: EntryPayload::Normal(Batch(vec!["{}".repeat(100)])),
    }
}

async fn filled(dir: &Path) {
    let store = Store::open(dir, 1).unwrap();
    let rows = (1..=5).map(|index| (index, encode("an entry", &entry(index)).unwrap()));
    store.append(rows.collect()).await.unwrap();
}

#[tokio::test]
async fn what_was_written_is_there_after_a_reopen() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path()).await;
    let store = Store::open(dir.path(), 1).unwrap();
    let found = store.entries(.., usize::MAX).unwrap();
    assert_eq!(found.len(), 5);
    assert_eq!(
        store.entries(2.., 1).unwrap().len(),
        1,
        "the first always fits"
    );
    assert!(store.is_newcomer().unwrap());
    store.settle().await.unwrap();
    store.note_committed(Some(entry(4).log_id));
    store.flush_committed().await.unwrap();
    drop(store);
    let store = Store::open(dir.path(), 1).unwrap();
    assert!(!store.is_newcomer().unwrap());
    assert_eq!(store.committed(), Some(entry(4).log_id));
}

#[tokio::test]
async fn another_nodes_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path()).await;
    let refused = Store::open(dir.path(), 2).err();
    assert!(
        matches!(
            refused,
            Some(StoreError::ForeignNode {
                found: 1,
                expected: 2
            })
        ),
        "{refused:?}"
    );
}

#[tokio::test]
async fn an_emptied_file_is_an_error_and_no_new_start() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path()).await;
    File::create(dir.path().join("registry.redb")).unwrap();
    assert!(Store::open(dir.path(), 1).is_err());
}

#[tokio::test]
async fn a_flipped_bit_in_an_entry_is_found_at_open() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path()).await;
    let path = dir.path().join("registry.redb");
    let mut bytes = std::fs::read(&path).unwrap();
    let needle = b"{}{}{}{}";
    let mut at: Vec<usize> = Vec::new();
    for (start, window) in bytes.windows(needle.len()).enumerate() {
        if window == needle {
            at.push(start);
        }
    }
    assert!(!at.is_empty());
    for start in at {
        bytes[start] ^= 0x01;
    }
    std::fs::write(&path, bytes).unwrap();
    // redb's page checksum finds it before the entry's own is looked at.
    let refused = Store::open(dir.path(), 1).err();
    assert!(
        matches!(&refused, Some(StoreError::Database(error))
            if matches!(**error, redb::Error::Corrupted(_))),
        "{refused:?}"
    );
}

#[tokio::test]
async fn a_missing_entry_is_found_at_open() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path()).await;
    let store = Store::open(dir.path(), 1).unwrap();
    store
        .write(|tables| Ok(tables.log.remove(3).map(drop)?))
        .await
        .unwrap();
    drop(store);
    let refused = Store::open(dir.path(), 1).err();
    assert!(
        matches!(refused, Some(StoreError::Corrupt { .. })),
        "{refused:?}"
    );
}

#[tokio::test]
async fn a_commit_mark_without_its_entry_is_not_believed() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path()).await;
    let store = Store::open(dir.path(), 1).unwrap();
    // As when a snapshot that brings entry 9 was noted and the power went before it was written.
    store.note_committed(Some(entry(9).log_id));
    store.flush_committed().await.unwrap();
    drop(store);
    let store = Store::open(dir.path(), 1).unwrap();
    assert_eq!(store.committed(), None);
}

#[tokio::test]
async fn the_log_is_purged_for_a_leaders_snapshot_when_that_is_on_disk() {
    let disk = filled_simulated().await;
    let store = Store::open_on(&disk.open(), 1).unwrap();
    let mut machine = Machine::load(store.clone(), Arc::new(View::new(16))).unwrap();
    let snapshot = machine.begin_receiving_snapshot().await.unwrap();
    assert!(snapshot.get_ref().is_empty());
    let mut log = LogStore(store.clone());
    let purge = tokio::spawn(async move { log.purge(entry(9).log_id).await });
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    assert_eq!(store.read_purged().unwrap(), None);
    let meta = SnapshotMeta {
        last_log_id: Some(entry(9).log_id),
        ..SnapshotMeta::default()
    };
    let state = scheduler::registry::State::default();
    let body = serde_json::json!({ "format": 1, "state": state });
    let body = Box::new(std::io::Cursor::new(serde_json::to_vec(&body).unwrap()));
    machine.install_snapshot(&meta, body).await.unwrap();
    purge.await.unwrap().unwrap();
    assert_eq!(store.read_purged().unwrap(), Some(entry(9).log_id));
}

/// A disk with five entries, all synced, and the process that wrote them gone.
async fn filled_simulated() -> Disk {
    let disk = Disk::new(1, 1);
    let store = Store::open_on(&disk.open(), 1).unwrap();
    let rows = (1..=5).map(|index| (index, encode("an entry", &entry(index)).unwrap()));
    store.append(rows.collect()).await.unwrap();
    disk
}

async fn append_one(store: &Store, index: u64) -> Result<(), StoreError> {
    let row = encode("an entry", &entry(index)).unwrap();
    store.append(vec![(index, row)]).await
}

#[tokio::test]
async fn after_a_failed_sync_nothing_is_written_or_read_any_more() {
    let disk = filled_simulated().await;
    let store = Store::open_on(&disk.open(), 1).unwrap();
    disk.faults(|faults| faults.sync_fails_after = Some(0));
    assert!(append_one(&store, 6).await.is_err());
    // The disk works again, and this process does not know what it has.
    assert!(append_one(&store, 6).await.is_err());
    assert!(append_one(&store, 7).await.is_err());
    assert!(store.flush_committed().await.is_ok(), "nothing to write");
}

#[tokio::test]
async fn what_a_failed_sync_left_in_the_page_cache_is_not_believed() {
    for seed in 0..20 {
        let disk = Disk::new(1, seed);
        let store = Store::open_on(&disk.open(), 1).unwrap();
        append_one(&store, 1).await.unwrap();
        disk.faults(|faults| faults.sync_fails_after = Some(0));
        assert!(append_one(&store, 2).await.is_err());
        drop(store);
        // What the next process finds, it has to find again when the power goes.
        let store = Store::open_on(&disk.open(), 1).unwrap();
        let found = store.entries(.., usize::MAX).unwrap();
        disk.cut_power();
        drop(store);
        let store = Store::open_on(&disk.open(), 1).unwrap();
        assert_eq!(store.entries(.., usize::MAX).unwrap(), found, "seed {seed}");
    }
}

#[tokio::test]
async fn what_was_synced_outlives_power_cuts_and_what_was_not_is_whole_or_gone() {
    for seed in 0..80 {
        let disk = Disk::new(1, seed);
        let store = Store::open_on(&disk.open(), 1).unwrap();
        let after = u32::try_from(seed).unwrap() % 60;
        disk.faults(|faults| faults.power_fails_after = Some(after));
        let mut written = 0;
        while append_one(&store, written + 1).await.is_ok() {
            written += 1;
        }
        drop(store);
        let store = Store::open_on(&disk.open(), 1).unwrap();
        let found = store.entries(.., usize::MAX).unwrap().len() as u64;
        assert!(
            found == written || found == written + 1,
            "seed {seed}: {found} of {written}"
        );
    }
}

#[tokio::test]
async fn no_flipped_bit_passes_for_another_content() {
    let disk = filled_simulated().await;
    // An orderly end: after a crash, damage to the last transaction looks like a torn one.
    drop(Store::open_on(&disk.open(), 1).unwrap());
    let read = |disk: &Disk| {
        let store = Store::open_on(&disk.copy().open(), 1).ok()?;
        Some((
            store.entries(.., usize::MAX).unwrap(),
            store.read_vote().unwrap(),
        ))
    };
    let whole = read(&disk);
    let mut refused = 0;
    for _ in 0..150 {
        let rotten = disk.copy();
        rotten.rot(16);
        match read(&rotten) {
            None => refused += 1,
            found => assert_eq!(found, whole),
        }
    }
    assert!(refused > 8, "the flips have to hit something: {refused}");
}
