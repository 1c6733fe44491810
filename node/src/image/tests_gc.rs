//! Collecting and full disks, on real stores: what goes, what stays, and what a refusal leaves.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount,
    fsopen,
};

use super::testing::{
    Hub, Layout, Mounted, Tar, base, impatient, install_tls, oci_archive, open_at, open_store, temp,
};
use super::{Image, ImageError, Marks, Prune, Store, Wanted};

const MIB: usize = 1 << 20;

/// A layer with one file of bytes that do not pack.
fn layer(name: &str, bytes: usize) -> Vec<u8> {
    let mut seed = name
        .bytes()
        .fold(1u64, |a, b| a.wrapping_mul(31) + u64::from(b));
    let noise = |_| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed.to_le_bytes()[0]
    };
    let data: Vec<u8> = (0..bytes).map(noise).collect();
    let tar = Tar::default();
    tar.entry(tar::EntryType::Regular, name.as_bytes(), b"", &data)
        .end()
}

async fn import(store: &Store, layers: &[Vec<u8>]) -> Result<Arc<Image>, ImageError> {
    let archive = oci_archive(layers);
    let mut images = store.import(std::io::Cursor::new(archive), None).await?;
    Ok(images.remove(0))
}

/// A small file system that only this process can see, gone with it.
pub(super) struct SmallDisk(OwnedFd);

impl SmallDisk {
    fn new(size: &str) -> Self {
        Self::with(size, 0)
    }

    /// As many bytes and as many inodes; no number is no bound.
    pub(super) fn with(size: &str, inodes: u32) -> Self {
        let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
        fsconfig_set_string(&context, "size", size).unwrap();
        fsconfig_set_string(&context, "nr_inodes", inodes.to_string()).unwrap();
        fsconfig_create(&context).unwrap();
        let flags = (FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty());
        Self(fsmount(&context, flags.0, flags.1).unwrap())
    }

    pub(super) fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.0.as_raw_fd()).into()
    }

    pub(super) fn store(&self) -> Store {
        open_at(&self.path().join("images"))
    }
}

fn nobody_wants() -> Wanted {
    Wanted::default()
}

/// Names of what is in one of the store's folders.
pub(super) fn names(disk: &SmallDisk, folder: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(disk.path().join("images").join(folder)).unwrap();
    entries
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_its_limit_the_store_loses_what_was_not_used_for_longest() {
    // How full this machine's own disk is must not count.
    let (disk, dir) = (SmallDisk::new("64m"), temp());
    let store = disk.store();
    let shared = layer("shared", MIB);
    let mut images = Vec::new();
    for name in ["a", "b", "c", "d"] {
        let image = import(&store, &[shared.clone(), layer(name, MIB)])
            .await
            .unwrap();
        images.push(image);
    }
    for (image, used) in images.iter().zip([40, 10, 20, 30]) {
        store.age(image, used);
    }
    let instance = dir.path().join("i");
    let _guard = Mounted(instance.clone());
    let snapshot = store.snapshot(&images[1], &instance, None).await.unwrap();
    store.age(&images[1], 10);

    let stock = store.stock().await.unwrap();
    let b = stock.iter().find(|s| s.image.pin == images[1].pin).unwrap();
    assert!(b.in_use && b.own > MIB as u64 && b.shared > MIB as u64);
    // Five megabytes and a little, shared counted once: over 85 % of these, and under 70 % with
    // two layers less.
    let marks = Marks {
        limit: Some(5 * MIB as u64),
        ..Marks::default()
    };
    let removed = store.collect(marks, nobody_wants()).await.unwrap();
    let gone: Vec<&str> = removed.images.iter().map(|(d, _)| d.as_str()).collect();
    assert_eq!(gone, [&images[2].pin.digest, &images[3].pin.digest]);
    assert!(removed.bytes >= 2 * MIB as u64);
    assert_eq!(store.list().len(), 2);
    assert!(snapshot.rootfs.join("b").exists());
    let again = store.collect(marks, nobody_wants()).await.unwrap();
    assert_eq!(again.images, []);
    snapshot.remove(&store).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_use_outlives_the_daemon() {
    let dir = temp();
    let store = open_store(&dir);
    let image = import(&store, &[layer("a", 10)]).await.unwrap();
    let record = dir.path().join("images/index");
    let record = fs::read_dir(record)
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let long_ago = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000);
    fs::File::options()
        .write(true)
        .open(record)
        .unwrap()
        .set_modified(long_ago)
        .unwrap();
    drop(store);
    let store = open_store(&dir);
    assert_eq!(store.stock().await.unwrap()[0].last_used, 1_000_000);
    let instance = dir.path().join("i");
    let _guard = Mounted(instance.clone());
    let snapshot = store.snapshot(&image, &instance, None).await.unwrap();
    snapshot.remove(&store).await.unwrap();
    drop(store);
    let store = open_store(&dir);
    assert!(store.stock().await.unwrap()[0].last_used > 1_000_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prune_takes_what_no_service_needs_and_says_so_before() {
    let dir = temp();
    let store = open_store(&dir);
    let (old, deployed) = (
        import(&store, &[layer("old", 10)]).await.unwrap(),
        import(&store, &[layer("deployed", 10)]).await.unwrap(),
    );
    let dry = store.prune(Prune::All, true).await.unwrap();
    assert_eq!(
        dry.images,
        [],
        "nobody said yet what is needed: everything is"
    );
    let digest = deployed.pin.digest.clone();
    let wanted = move || Wanted {
        here: BTreeSet::new(),
        deployed: BTreeSet::from([digest.clone()]),
    };
    store.keep_house(Marks::default(), Arc::new(wanted));
    store.age(&old, 1);
    store.age(&deployed, 1);
    let dry = store.prune(Prune::Unneeded, true).await.unwrap();
    assert_eq!(store.list().len(), 2);
    let done = store.prune(Prune::Unneeded, false).await.unwrap();
    assert_eq!((&dry, dry.images.len()), (&done, 1));
    assert!(store.get(&old.pin.digest).is_none() && store.get(&deployed.pin.digest).is_some());
    store.prune(Prune::All, false).await.unwrap();
    assert_eq!(store.list().len(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_import_onto_a_full_disk_is_refused_and_leaves_nothing() {
    let disk = SmallDisk::new("8m");
    let store = disk.store();
    let small = import(&store, &[layer("small", MIB)]).await.unwrap();
    let before = names(&disk, "layers");
    let refused = import(&store, &[layer("fits", MIB), layer("large", 3 * MIB)]).await;
    let Err(ImageError::NoRoom { free, .. }) = refused else {
        panic!("{refused:?}")
    };
    assert!(free > 3 * MIB as u64, "{free}");
    assert_eq!(names(&disk, "layers"), before);
    assert_eq!(names(&disk, "tmp"), BTreeSet::new());
    assert!(store.get(&small.pin.digest).is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pull_makes_room_where_it_can_and_else_says_the_figures() {
    install_tls();
    let (hub, disk) = (Hub::start(), SmallDisk::new("8m"));
    let layout = Layout::new(&[&base]);
    hub.push(&layout, "app:1", &[]);
    let store = disk.store();
    let old = import(&store, &[layer("old", 2 * MIB)]).await.unwrap();
    let more = import(&store, &[layer("more", 2 * MIB)]).await.unwrap();
    fs::write(disk.path().join("ballast"), vec![1; 3 * MIB]).unwrap();
    let name = hub.name("app:1");
    let mut config = impatient();
    config.insecure.insert(hub.address.to_string());

    // Busybox takes two megabytes unpacked, and everything here is needed.
    let refused = store.pull_reference(&name, &config, None).await;
    let Err(error @ ImageError::NoRoom { freeable: 0, .. }) = refused else {
        panic!("{refused:?}")
    };
    assert!(error.to_string().contains("bytes are free"), "{error}");
    assert_eq!(names(&disk, "tmp"), BTreeSet::new());
    assert_eq!(names(&disk, "layers").len(), 2);

    store.age(&old, 1);
    let needed = more.pin.digest.clone();
    let wanted = move || Wanted {
        here: BTreeSet::from([needed.clone()]),
        deployed: BTreeSet::new(),
    };
    store.keep_house(Marks::default(), Arc::new(wanted));
    let image = store.pull_reference(&name, &config, None).await.unwrap();
    assert!(store.get(&image.pin.digest).is_some() && store.get(&more.pin.digest).is_some());
    assert!(store.get(&old.pin.digest).is_none());
}
