//! A disk that is full at every step of a pull: for want of files, whose number is bounded, it is full
//! at each file and folder there is to make; for want of bytes, in the middle of them. Refused each
//! time with nothing left, by one and the same store, which pulls once there is room. And at every
//! step of an instance's root.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, mount};

use super::testing::{Hub, Layout, Mounted, impatient, install_tls, temp};
use super::tests_gc::{SmallDisk, names};
use super::tests_peers::noise;
use super::{Image, ImageError, RegistryConfig, Store};

/// All folders of the store but that for uses, where a pull leaves nothing.
const FOLDERS: [&str; 5] = ["blobs/sha256", "layers", "index", "tmp", "partial"];
/// So large, packed too, that its parts are kept; see `partial`.
const LARGE: usize = 1_600_000;
const PAGE: u64 = 4096;

/// A registry with an image of a large layer and of one with folders and links.
struct Source {
    hub: Hub,
    config: RegistryConfig,
}

impl Source {
    fn start() -> Self {
        install_tls();
        let hub = Hub::start();
        let large = |root: &Path| fs::write(root.join("large"), noise(1, LARGE)).unwrap();
        let tree = |root: &Path| {
            fs::create_dir_all(root.join("a/b")).unwrap();
            for name in ["one", "two", "a/b/three"] {
                fs::write(root.join(name), name).unwrap();
            }
            std::os::unix::fs::symlink("one", root.join("link")).unwrap();
            fs::hard_link(root.join("two"), root.join("a/two")).unwrap();
        };
        hub.push(&Layout::new(&[&large, &tree]), "app:1", &[]);
        let mut config = impatient();
        config.insecure.insert(hub.address.to_string());
        Self { hub, config }
    }

    /// Whether the image came; refused, it must have left nothing.
    async fn pulled(&self, store: &Store, disk: &SmallDisk) -> bool {
        let name = self.hub.name("app:1");
        let error = match store.pull_reference(&name, &self.config, None).await {
            Ok(image) => {
                holds(disk, &image);
                return true;
            }
            Err(error) => error,
        };
        assert!(matches!(error, ImageError::NoRoom { .. }), "{error}");
        assert!(error.to_string().contains("bytes are free"), "{error}");
        assert!(store.list().is_empty(), "{error}");
        for folder in FOLDERS {
            assert!(names(disk, folder).is_empty(), "{folder} after {error}");
        }
        false
    }
}

/// The image is whole, and nothing is there beside it, also to the next life of the store.
fn holds(disk: &SmallDisk, image: &Image) {
    let layers = disk.path().join("images/layers");
    let found = |path: &str| {
        let of = |id: &String| {
            layers
                .join(id.trim_start_matches("sha256:"))
                .join("fs")
                .join(path)
        };
        let found = image.layers.iter().map(of).find(|path| path.exists());
        fs::read_to_string(found.unwrap()).unwrap()
    };
    assert!(found("large") == noise(1, LARGE));
    assert_eq!(
        (found("a/b/three"), found("a/two")),
        ("a/b/three".into(), "two".into())
    );
    assert_eq!(names(disk, "layers").len(), image.layers.len());
    assert_eq!(
        (
            names(disk, "index").len(),
            names(disk, "blobs/sha256").len()
        ),
        (1, 2)
    );
    assert!(names(disk, "tmp").is_empty() && names(disk, "partial").is_empty());
}

fn ballast(disk: &SmallDisk, number: usize) -> PathBuf {
    disk.path().join(format!("ballast-{number}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pull_is_refused_at_every_file_that_there_is_no_room_for() {
    let (source, disk) = (Source::start(), SmallDisk::with("64m", 400));
    let store = disk.store();
    let mut made = 0;
    while File::create_new(ballast(&disk, made)).is_ok() {
        made += 1;
    }
    let mut refused = 0;
    while !source.pulled(&store, &disk).await {
        refused += 1;
        made -= 1;
        fs::remove_file(ballast(&disk, made)).unwrap();
    }
    // Two layers with a folder, a tree, a recipe, chunks and a marker each; documents; the record.
    assert!(refused > 20, "refused only {refused} times");
    drop(store);
    assert_eq!(disk.store().list().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_root_is_refused_at_every_file_that_there_is_no_room_for() {
    let (source, disk) = (Source::start(), SmallDisk::with("64m", 400));
    let store = disk.store();
    assert!(source.pulled(&store, &disk).await);
    let image = store.list().remove(0);
    // The instance's folder is on a disk of its own: a root cannot be mounted on one without a name.
    let folder = temp();
    let narrow = folder.path().join("rootfs");
    fs::create_dir(&narrow).unwrap();
    let _narrow = Mounted(folder.path().to_owned());
    mount(
        "narrow",
        &narrow,
        "tmpfs",
        MountFlags::empty(),
        c"nr_inodes=40",
    )
    .unwrap();
    let instance = narrow.join("instance");
    let ballast = |number: usize| narrow.join(format!("ballast-{number}"));
    let mut made = 0;
    while File::create_new(ballast(made)).is_ok() {
        made += 1;
    }
    let mut refused = 0;
    let root = loop {
        match store.snapshot(&image, &instance, None).await {
            Ok(root) => break root,
            Err(error) => assert!(error.to_string().contains("No space left"), "{error}"),
        }
        let left = fs::read_dir(&instance).map_or(0, Iterator::count);
        assert_eq!(left, 0, "after {refused} refusals");
        (refused, made) = (refused + 1, made - 1);
        fs::remove_file(ballast(made)).unwrap();
    };
    // Three folders and what the kernel makes below one of them.
    assert!(refused > 3, "refused only {refused} times");
    assert_eq!(fs::read_to_string(root.rootfs.join("one")).unwrap(), "one");
    root.remove(&store).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pull_is_refused_with_whatever_bytes_there_are_too_few() {
    let (source, disk) = (Source::start(), SmallDisk::with("8m", 0));
    let store = disk.store();
    // From what its largest file alone does not fit into, page by page. How many more it takes is not
    // the same each time: layers are written beside one another.
    let taken = fill_until_pulled(&source, &store, &disk, LARGE as u64).await;
    assert!(taken > LARGE as u64 + PAGE, "{taken}");
    drop(store);
    assert_eq!(disk.store().list().len(), 1);
}

/// Pulls with so many bytes free, and a page more each time; how many it took.
async fn fill_until_pulled(source: &Source, store: &Store, disk: &SmallDisk, mut free: u64) -> u64 {
    let file = File::create(ballast(disk, 0)).unwrap();
    loop {
        let stat = rustix::fs::statvfs(disk.path()).unwrap();
        let used = (stat.f_blocks - stat.f_bfree) * stat.f_frsize - file.metadata().unwrap().len();
        let size = stat.f_blocks * stat.f_frsize - used - free;
        file.set_len(0).unwrap();
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, size).unwrap();
        if source.pulled(store, disk).await {
            return free;
        }
        free += PAGE;
    }
}
