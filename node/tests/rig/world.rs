//! What the tests stand on: a folder, a cgroup and a root filesystem made of busybox, all named by
//! this process and gone after the test, however it ended.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use node::runtime::cgroup::{self, Cgroup};
use node::runtime::process::Process;
use node::runtime::scratch;
use node::runtime::wire::{SHIM, ShimRecord, read_record};
use node::runtime::{ContainerSpec, Runtime, Shims, ShimsConfig};
use node::userns::Block;
use scheduler::model::InstanceId;

/// Long enough for a loaded machine, and for one that is emulated (`deploy/check-v2`).
pub const PATIENCE: Duration = Duration::from_mins(1);

static COUNT: AtomicU32 = AtomicU32::new(0);

pub struct World {
    pub folder: PathBuf,
    pub group: PathBuf,
}

impl World {
    pub fn new() -> Self {
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("selvedge-rig-{}-{count}", std::process::id());
        let folder = std::env::temp_dir().join(&name);
        fs::create_dir_all(folder.join("instances")).unwrap();
        Self {
            folder,
            group: Path::new("/").join(name),
        }
    }

    pub fn shims(&self) -> Shims {
        let mut config = ShimsConfig::new(self.folder.join("instances"));
        config.binary = env!("CARGO_BIN_EXE_selvedged").into();
        Shims::open(config).unwrap()
    }

    /// A root filesystem with busybox for everything.
    pub fn rootfs(&self, name: &str) -> PathBuf {
        let root = self.folder.join("roots").join(name);
        for folder in ["bin", "etc", "proc", "sys", "dev", "root"] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
        for applet in [
            "sh", "sleep", "cat", "ls", "mount", "unshare", "httpd", "wget", "nc", "id", "tail",
            "ping", "arping", "touch", "ps", "dd", "pwd", "true", "ip", "kill", "env", "hostname",
            "seq", "sed", "chroot", "mkdir", "mknod", "wc", "head", "stty", "tty", "test", "grep",
        ] {
            std::os::unix::fs::symlink("busybox", root.join("bin").join(applet)).unwrap();
        }
        fs::write(
            root.join("etc/passwd"),
            "root:x:0:0::/root:/bin/sh\nweb:x:33:44::/:/bin/sh\n",
        )
        .unwrap();
        fs::write(
            root.join("etc/group"),
            "root:x:0:\nweb:x:44:\nlog:x:4:web\n",
        )
        .unwrap();
        root
    }

    pub fn spec(&self, name: &str, script: &str) -> ContainerSpec {
        let group = self.group.join(name);
        let mut spec = ContainerSpec::new(InstanceId(name.to_owned()), self.rootfs(name), group);
        spec.args = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
        Self::map(&mut spec, Self::ids());
        spec
    }

    /// The ids of containers that are given none of their own.
    pub fn ids() -> Option<Block> {
        Block::number(std::process::id() % Block::COUNT)
    }

    /// Gives a container its ids, and its root filesystem to them, as an image's layers would be shown.
    pub fn map(spec: &mut ContainerSpec, ids: Option<Block>) {
        spec.ids = ids;
        let root = ids.map_or(0, Block::root).to_string();
        let owner = format!("{root}:{root}");
        let args = ["-Rh", &owner];
        let given = std::process::Command::new("chown")
            .args(args)
            .arg(&spec.rootfs)
            .status();
        assert!(given.unwrap().success());
    }

    pub fn instance(&self, name: &str) -> PathBuf {
        self.folder.join("instances").join(name)
    }

    /// Runs a container to its end; what it wrote and its exit code.
    pub async fn run_spec(&self, spec: &ContainerSpec) -> (String, i32) {
        let shims = self.shims();
        shims.create(spec).await.unwrap();
        shims.start(&spec.id).await.unwrap();
        let exit = tokio::time::timeout(PATIENCE, shims.exit(&spec.id))
            .await
            .unwrap()
            .unwrap();
        let text = self.output(&spec.id.0);
        shims.delete(&spec.id).await.unwrap();
        (text, exit.code)
    }

    pub fn output(&self, name: &str) -> String {
        let lines = node::runtime::logs::tail(&self.instance(name), 1000).unwrap();
        lines
            .iter()
            .map(|l| l.line.as_str())
            .collect::<Vec<_>>()
            .join("\n")
    }

    pub fn record(&self, name: &str) -> ShimRecord {
        read_record(&scratch::of(&self.instance(name)), SHIM).expect("a shim's record")
    }

    /// Nothing of ours is in a cgroup or mounted.
    pub fn leftovers(&self) -> Vec<String> {
        let mut left = Vec::new();
        for controller in ["memory", "pids", "cpu", "devices", "freezer"] {
            let below = Cgroup::at(&self.group).folder(controller).unwrap();
            if let Ok(entries) = fs::read_dir(&below) {
                let groups = entries.filter_map(Result::ok).filter(|e| e.path().is_dir());
                left.extend(groups.map(|e| e.path().display().to_string()));
            }
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        // With its end: the worlds 1 and 12 begin alike.
        let folder = format!("{}/", self.folder.display());
        left.extend(
            mounts
                .lines()
                // Memory for passing files is there as long as the world is.
                .filter(|l| l.contains(&folder) && !l.contains("/scratch "))
                .map(str::to_owned),
        );
        left
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let instances = fs::read_dir(self.folder.join("instances"));
        for entry in instances.into_iter().flatten().filter_map(Result::ok) {
            if let Some(record) = read_record::<ShimRecord>(&scratch::of(&entry.path()), SHIM) {
                let both: [Option<Process>; 2] = [Some(record.shim), record.container];
                both.into_iter().flatten().for_each(Process::kill);
            }
        }
        // A test that failed before it closed its network.
        for entry in fs::read_dir(self.folder.join("run/netns"))
            .into_iter()
            .flatten()
            .flatten()
        {
            let flags = rustix::mount::UnmountFlags::DETACH;
            let _ = rustix::mount::unmount(entry.path(), flags);
        }
        let _ = Cgroup::at(&self.group).remove(PATIENCE);
        let scratch = self.folder.join("scratch");
        let _ = rustix::mount::unmount(scratch, rustix::mount::UnmountFlags::DETACH);
        cgroup::remove_if_empty(&self.group);
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Waits for a condition, not for luck.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "waited too long for: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
