//! Places where a daemon built for tests can be made to die: between any two steps of an instance's
//! life, of an image's way here, and of a change of the registry. Owns their table and the dying.
//! A build without the feature `failpoints` has none of them.
//!
//! The steps inside a shim are not among them: it is a process of its own, which tests kill.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::{Signal, getpid, kill_process};

/// Names the file in which a test writes the name of the point to die at. Read at each point, so
/// that a daemon boots in peace and dies at the step that is provoked then.
const ORDER: &str = "SELVEDGE_DIE_AT";

/// Every point: its name, and what has just been done; what comes next.
const POINTS: [(&str, &str); 89] = [
    ("image::resolved", "a name has its digest; it is told"),
    (
        "image::planned",
        "the documents are here; the layers are fetched",
    ),
    (
        "image::received",
        "an archive is here; its members are read",
    ),
    (
        "image::archive_read",
        "its documents are read; its layers are unpacked",
    ),
    (
        "image::layer_begun",
        "a layer has a scratch folder; it is unpacked",
    ),
    (
        "image::piece_kept",
        "a piece of a layer is kept, in case the rest does not come; more comes",
    ),
    (
        "image::resuming",
        "a part of a layer is here from before; the rest is asked for",
    ),
    (
        "image::list_taken",
        "a peer said how a layer is cut; its chunks are asked for",
    ),
    (
        "image::window_passed",
        "a window of chunks went to be unpacked; the next is fetched",
    ),
    (
        "image::layer_unpacked",
        "a layer is unpacked and verified; it is synced",
    ),
    (
        "image::layer_marked",
        "a layer is marked complete; it gets its name",
    ),
    (
        "image::layer_named",
        "a layer is in its place; it is counted on",
    ),
    (
        "image::documents_kept",
        "the documents are kept; the record is written",
    ),
    (
        "image::recorded",
        "the image is recorded; it is in the books",
    ),
    (
        "image::coming_begun",
        "a layer that is to be read while it arrives has its folder; its image counts",
    ),
    (
        "image::coming_recorded",
        "instances may be made of an image that is not all here; the rest is brought",
    ),
    (
        "image::coming_mounted",
        "an arriving layer is mounted; a process is to show it",
    ),
    (
        "image::coming_shown",
        "a process shows it; the root is mounted on it",
    ),
    (
        "image::coming_whole",
        "all bytes of an arriving layer are here; it is unpacked",
    ),
    (
        "image::coming_settled",
        "it is a layer like any other; how it came is forgotten",
    ),
    (
        "image::upload_begun",
        "an upload has a file; its client is told",
    ),
    (
        "image::upload_written",
        "a piece of a blob is written; its client is told",
    ),
    (
        "image::blob_arrived",
        "a blob is whole; it waits for its manifest",
    ),
    (
        "image::push_kept",
        "a pushed image is kept; its client is told",
    ),
    (
        "image::struck",
        "an image is out of the books; its record goes",
    ),
    ("image::unrecorded", "its record is gone; its layers go"),
    (
        "image::layer_buried",
        "a layer of nobody's is out of sight; so are the others soon",
    ),
    (
        "image::buried",
        "all of an image is out of sight; its bytes go",
    ),
    ("image::removed", "its bytes are gone; that is told"),
    ("image::use_noted", "a use is noted; its folders are made"),
    ("image::laid_out", "the folders are there; they are mounted"),
    ("image::mounted", "the root is mounted; a container is made"),
    ("image::unmounted", "the root is gone; its use ends"),
    (
        "network::named",
        "a file has the namespace's name; it is made",
    ),
    (
        "network::kept",
        "the namespace is bound to it; it gets a cable",
    ),
    ("network::paired", "the cable is there; its end is isolated"),
    (
        "network::plugged",
        "the cable is up; its end inside gets an address",
    ),
    (
        "network::made",
        "the network is whole; the firewall may admit it already",
    ),
    ("network::admitted", "it is admitted; it joins the pool"),
    ("network::taken", "it left the pool; its lease is written"),
    ("network::leased", "its lease is written; it is handed out"),
    ("network::released", "its lease is gone; it is removed"),
    (
        "network::unplugged",
        "the cable is gone; the firewall forgets it",
    ),
    (
        "network::dismissed",
        "the firewall forgot it; its file is removed",
    ),
    ("network::removed", "all of it is gone; its number is free"),
    (
        "agent::admitted",
        "there is room for an instance; its image is fetched",
    ),
    (
        "agent::folder_made",
        "it has a folder; its record is written",
    ),
    (
        "agent::record_written",
        "the record is on disk; it gets its name",
    ),
    (
        "agent::recorded",
        "the record is in its place; root and network are made",
    ),
    (
        "volumes::local_made",
        "a local volume has its folder; its claim is written",
    ),
    (
        "volumes::laid_out",
        "a volume has its folder; memory is mounted on it",
    ),
    ("volumes::mounted", "it is mounted; its files are written"),
    ("volumes::filled", "its files are there; it is a volume"),
    (
        "volumes::equipped",
        "an instance's volumes are there; its container is made",
    ),
    (
        "volumes::unmounted",
        "an instance's volumes are unmounted; their folders go",
    ),
    (
        "runtime::spec_written",
        "the specification is there; a shim is started",
    ),
    (
        "runtime::shim_spawned",
        "the shim is started; it makes the container",
    ),
    (
        "runtime::created",
        "the container is made; it is remembered",
    ),
    ("agent::prepared", "all is prepared; the program is started"),
    (
        "agent::parked",
        "a container waits for a start; nobody asked for it",
    ),
    (
        "agent::unparked",
        "a start has a parked container; its program is started",
    ),
    ("runtime::started", "the program runs; that is told"),
    ("agent::launched", "the program runs; it is probed"),
    ("agent::opened", "requests may enter; who waits is answered"),
    (
        "agent::frozen",
        "an idle instance is held still; that is told",
    ),
    (
        "agent::thawed",
        "it goes on; the request that came is sent to it",
    ),
    (
        "agent::closed",
        "no request enters; those inside are waited for",
    ),
    (
        "agent::drained",
        "no request is inside; the program is signalled",
    ),
    (
        "runtime::signalled",
        "the program is signalled; its end is awaited",
    ),
    (
        "runtime::exit_told",
        "the shim told the end; it is passed on",
    ),
    ("agent::exited", "the end is known; the last lines are read"),
    (
        "runtime::deleting",
        "the container is to go; its shim is told",
    ),
    (
        "agent::deleted",
        "the container is gone; its network is given back",
    ),
    ("agent::cleared", "the root is gone; the log is put away"),
    (
        "agent::log_shelved",
        "the log is put away; the folder is removed",
    ),
    (
        "agent::retired",
        "the folder is gone; the instance is forgotten",
    ),
    (
        "agent::found",
        "a new daemon found containers; it takes them over",
    ),
    (
        "agent::leases_adopted",
        "it knows whose networks are whose; it opens instances",
    ),
    (
        "agent::adopted",
        "it took over all there is; it goes on booting",
    ),
    ("consensus::voted", "a vote is on disk; it is sent"),
    (
        "consensus::proposed",
        "a change is to be made; an entry is handed in",
    ),
    ("consensus::appending", "an entry came; it is written"),
    ("consensus::appended", "it is on disk; it counts"),
    ("consensus::applied", "it is applied; watchers hear of it"),
    ("consensus::agreed", "it holds; who asked is answered"),
    (
        "consensus::snapshot_built",
        "a snapshot is built; it is written",
    ),
    (
        "consensus::snapshot_written",
        "the snapshot is on disk; it counts",
    ),
    (
        "consensus::purging",
        "old entries are to go; they are deleted",
    ),
    (
        "consensus::purged",
        "old entries are gone; the log begins later",
    ),
];

/// The table as text, a point a line; nothing in a build that has none.
#[must_use]
pub fn table() -> Option<String> {
    let line = |(name, between): &(&str, &str)| format!("{name}\t{between}\n");
    fail::has_failpoints().then(|| POINTS.iter().map(line).collect())
}

/// From now on the process may die at a point, if its environment says where that is written.
///
/// # Errors
/// A point that cannot be prepared.
pub fn arm() -> Result<(), String> {
    let Some(order) = std::env::var_os(ORDER).filter(|_| fail::has_failpoints()) else {
        return Ok(());
    };
    for (point, _) in POINTS {
        let order = order.clone();
        fail::cfg_callback(point, move || pass(point, Path::new(&order)))?;
    }
    Ok(())
}

/// A death is told once, however many threads come to its point.
static DIES: AtomicBool = AtomicBool::new(false);

fn pass(point: &str, order: &Path) {
    if std::fs::read_to_string(order).is_ok_and(|wanted| wanted == point) {
        if DIES.swap(true, Ordering::SeqCst) {
            // Another thread came here first, and says so.
            loop {
                std::thread::park();
            }
        }
        eprintln!("selvedged: dies at {point}");
        // Nothing unwinds, nothing is flushed, no destructor runs.
        let _ = kill_process(getpid(), Signal::KILL);
        std::process::abort();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::PathBuf;

    use super::*;

    fn sources(folder: &Path) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(folder).unwrap().flatten();
        let below = |path: PathBuf| {
            if path.is_dir() {
                sources(&path)
            } else {
                vec![path]
            }
        };
        entries.flat_map(|entry| below(entry.path())).collect()
    }

    #[test]
    fn the_table_has_every_point_of_the_source_once() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let mut used = Vec::new();
        for file in sources(&root) {
            if file.ends_with("failpoints.rs") {
                continue;
            }
            let text = std::fs::read_to_string(&file).unwrap();
            let after = text.split("fail_point!(\"").skip(1);
            used.extend(after.map(|rest| rest.split('"').next().unwrap().to_owned()));
        }
        used.sort();
        let listed: BTreeSet<_> = POINTS.iter().map(|(name, _)| (*name).to_owned()).collect();
        assert_eq!(listed.len(), POINTS.len(), "a name is listed twice");
        assert_eq!(used, listed.into_iter().collect::<Vec<_>>());
    }

    #[test]
    fn a_build_without_the_feature_has_no_table() {
        assert_eq!(table().is_some(), cfg!(feature = "failpoints"));
    }
}
