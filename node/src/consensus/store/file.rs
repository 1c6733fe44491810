//! The store's file: how it comes to be, how it is opened, and what a transaction on it is.

use std::fs::File;
use std::io;
use std::path::Path;

#[cfg(test)]
use redb::StorageBackend;
use redb::{Builder, Database};

use super::record::encode;
use super::{FORMAT, FORMAT_VERSION, LOG, META, NEWCOMER, NODE, StoreError, Tables};
#[cfg(test)]
use crate::consensus::sim::SimFile;

/// redb would take a gigabyte by default; log and snapshot are a few megabytes.
const CACHE_BYTES: usize = 16 << 20;

fn builder() -> Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES);
    // Every page's checksum is looked at. After a clean stop redb would trust what it finds, and
    // a flipped bit could make it panic or answer wrongly much later.
    builder.set_check_integrity_on_open(true);
    builder
}

/// Opens `dir/registry.redb`, or makes it.
pub(super) fn open(dir: &Path, node: u64) -> Result<Database, StoreError> {
    std::fs::create_dir_all(dir).map_err(|source| io_error(dir, source))?;
    let path = dir.join("registry.redb");
    if !path
        .try_exists()
        .map_err(|source| io_error(&path, source))?
    {
        create(dir, &path, node)?;
    }
    let read_the_medium = || {
        let file = File::options().read(true).write(true).open(&path)?;
        // What a killed daemon had written counts only from here on.
        file.sync_data()?;
        // After a sync that failed the kernel shows pages as written that are not: read anew.
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
        Ok(())
    };
    read_the_medium().map_err(|source| io_error(&path, source))?;
    // An existing file is only ever opened: redb's `create` would make an empty database of a
    // file that lost its content.
    Ok(builder().open(&path)?)
}

/// Makes the file under another name first: a crash on the way leaves nothing that looks like a
/// store, so that an empty or cut file under the real name is always damage.
fn create(dir: &Path, path: &Path, node: u64) -> Result<(), StoreError> {
    let unfinished = dir.join("registry.redb.new");
    match std::fs::remove_file(&unfinished) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            return Err(io_error(&unfinished, source));
        }
        _ => {}
    }
    begin(&builder().create(&unfinished)?, node)?;
    std::fs::rename(&unfinished, path).map_err(|source| io_error(path, source))?;
    let synced = File::open(dir).and_then(|dir| dir.sync_all());
    synced.map_err(|source| io_error(dir, source))
}

/// The same steps on a simulated disk.
#[cfg(test)]
pub(super) fn open_simulated(file: &SimFile, node: u64) -> Result<Database, StoreError> {
    if !file.exists() {
        let unfinished = file.unfinished();
        begin(&builder().create_with_backend(unfinished.clone())?, node)?;
        file.rename(&unfinished);
    }
    let read_the_medium = || {
        file.sync_data()?;
        file.forget_clean();
        Ok(())
    };
    read_the_medium().map_err(|source| io_error(Path::new("simulated"), source))?;
    Ok(builder().create_with_backend(file.clone())?)
}

/// What a new store holds: whose it is, and that it has seen nothing yet.
fn begin(db: &Database, node: u64) -> Result<(), StoreError> {
    transact(db, |tables| {
        tables
            .meta
            .insert(FORMAT, encode(FORMAT, &FORMAT_VERSION)?.as_slice())?;
        tables.meta.insert(NODE, encode(NODE, &node)?.as_slice())?;
        tables
            .meta
            .insert(NEWCOMER, encode(NEWCOMER, &true)?.as_slice())?;
        Ok(())
    })
}

/// Runs `work` in one transaction that is on disk when this returns.
pub(super) fn transact<F>(db: &Database, work: F) -> Result<(), StoreError>
where
    F: FnOnce(&mut Tables<'_>) -> Result<(), StoreError>,
{
    let mut txn = db.begin_write()?;
    txn.set_durability(redb::Durability::Immediate)?;
    {
        let mut tables = Tables {
            meta: txn.open_table(META)?,
            log: txn.open_table(LOG)?,
        };
        work(&mut tables)?;
    }
    Ok(txn.commit()?)
}

fn io_error(path: &Path, source: io::Error) -> StoreError {
    StoreError::Io {
        path: path.to_owned(),
        source,
    }
}
