//! What runs short while a container is made: processes, room on the disk, memory. Whatever the step, the
//! refusal says what is missing, nothing stays behind, and with more of it the same container runs.

use std::fs;
use std::path::PathBuf;

use node::runtime::cgroup::{self, Cgroup};
use node::runtime::{ContainerSpec, Runtime, RuntimeError, Shims, scratch};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::world::{PATIENCE, World, until};

/// A group that may have only so many processes.
struct Few(PathBuf);

impl Few {
    fn new(world: &World) -> Self {
        let few = Self(world.group.with_extension("few"));
        if cgroup::is_unified() {
            fs::write("/sys/fs/cgroup/cgroup.subtree_control", "+pids").unwrap();
        }
        fs::create_dir(few.folder()).unwrap();
        few
    }

    fn folder(&self) -> PathBuf {
        Cgroup::at(&self.0).folder("pids").unwrap()
    }

    fn add(&self, pid: &str) {
        fs::write(self.folder().join("cgroup.procs"), pid).unwrap();
    }

    fn allow(&self, count: &str) {
        fs::write(self.folder().join("pids.max"), count).unwrap();
    }
}

impl Drop for Few {
    fn drop(&mut self) {
        // After the nursery, which was in it.
        let _ = Cgroup::at(&self.0).remove(PATIENCE);
    }
}

/// The process that these shims are forked from.
async fn nursery(world: &World, shims: &Shims) -> String {
    shims.adopt().await.unwrap();
    let folder = world.folder.to_string_lossy().into_owned();
    let ours = |pid: &String| {
        let words = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        words.starts_with("selvedge-shim") && words.contains(&folder)
    };
    let find = || {
        let all = fs::read_dir("/proc").unwrap().flatten();
        let mut names = all.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.find(ours)
    };
    until("a nursery", || find().is_some()).await;
    find().unwrap()
}

/// The refusal, and that nothing is left of the container.
async fn refused(world: &World, shims: &Shims, spec: &ContainerSpec) -> RuntimeError {
    let error = shims.create(spec).await.expect_err("it was made");
    let scratch = scratch::of(&world.instance(&spec.id.0));
    assert!(!scratch.exists(), "{} is left: {error}", scratch.display());
    assert_eq!(world.leftovers(), Vec::<String>::new(), "{error}");
    error
}

async fn runs(world: &World, shims: &Shims, spec: &ContainerSpec) {
    shims.create(spec).await.unwrap();
    shims.start(&spec.id).await.unwrap();
    let exit = tokio::time::timeout(PATIENCE, shims.exit(&spec.id)).await;
    assert_eq!(exit.unwrap().unwrap().code, 0);
    assert_eq!(world.output(&spec.id.0), "ran");
    shims.delete(&spec.id).await.unwrap();
}

#[tokio::test]
async fn without_processes_each_step_says_so_and_leaves_nothing() {
    let world = World::new();
    let few = Few::new(&world);
    let shims = world.shims();
    few.add(&nursery(&world, &shims).await);
    let spec = world.spec("crowded", "echo ran");
    // The nursery itself, then its shim too: the next one finds no place.
    for count in ["1", "2"] {
        few.allow(count);
        let said = refused(&world, &shims, &spec).await.to_string();
        let why = [
            "Resource temporarily unavailable",
            "no room for another process",
        ];
        assert!(why.iter().any(|why| said.contains(why)), "{said}");
    }
    few.allow("max");
    runs(&world, &shims, &spec).await;
    drop(shims);
}

#[tokio::test]
async fn limits_too_low_to_be_made_in_are_named_and_leave_nothing() {
    let world = World::new();
    let shims = world.shims();
    let enough = world.spec("small", "echo ran");
    for (pids, memory, named) in [
        (1, 0, "limit of 1 processes"),
        (0, 256 << 10, "memory limit of 262144 bytes"),
    ] {
        let mut spec = enough.clone();
        (spec.pids, spec.memory_bytes) = (pids, memory);
        let error = refused(&world, &shims, &spec).await;
        assert!(error.to_string().contains(named), "{error}");
        assert_eq!(error.reason().code, "BadLimit");
    }
    runs(&world, &shims, &enough).await;
}

/// A file system in memory for the folder of instances.
struct Narrow(PathBuf);

impl Narrow {
    fn new(world: &World) -> Self {
        let folder = world.folder.join("instances");
        mount("narrow", &folder, "tmpfs", MountFlags::empty(), c"mode=711").unwrap();
        Self(folder)
    }

    /// Room for so many files from now on.
    fn allow(&self, files: u64) {
        let options = std::ffi::CString::new(format!("nr_inodes={files}")).unwrap();
        rustix::mount::mount_remount(&self.0, MountFlags::empty(), options.as_c_str()).unwrap();
    }

    /// As many as there are.
    fn files(&self) -> u64 {
        let room = rustix::fs::statfs(&self.0).unwrap();
        room.f_files - room.f_ffree
    }
}

impl Drop for Narrow {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

#[tokio::test]
async fn without_room_on_the_disk_each_step_says_so_and_leaves_nothing() {
    let world = World::new();
    let disk = Narrow::new(&world);
    let shims = world.shims();
    let spec = world.spec("full", "echo ran");
    let before = disk.files();
    let mut refusals = 0;
    loop {
        disk.allow(before + refusals);
        let made = shims.create(&spec).await;
        let Err(error) = made else { break };
        let said = error.to_string();
        assert!(said.contains("No space left on device"), "{said}");
        assert!(!scratch::of(&world.instance("full")).exists(), "{said}");
        let files = fs::read_dir(world.instance("full")).map_or(0, Iterator::count);
        assert_eq!(files, 0, "{said}");
        refusals += 1;
        assert!(refusals < 100, "never enough: {said}");
    }
    assert!(refusals > 1, "the disk was never full");
    shims.delete(&spec.id).await.unwrap();
    disk.allow(before + 100);
    runs(&world, &shims, &spec).await;
    drop(shims);
}
