//! openraft's own storage suite on the real file, and what a damaged file does.

use std::fs::File;
use std::sync::Arc;

use openraft::testing::{StoreBuilder, Suite};
use openraft::{CommittedLeaderId, EntryPayload};
use tempfile::TempDir;

use super::*;
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
    let refused = Store::open(dir.path(), 1).err();
    assert!(
        matches!(refused, Some(StoreError::Corrupt { .. })),
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
