//! Many instances made, crashed in every way and removed, with their networks and root file systems,
//! across daemons that die: afterwards the machine is as it was before.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use node::image::{Image, Limits, Store};
use node::network::{Lease, Network, NetworkError};
use node::runtime::process::Process;
use node::runtime::{ContainerSpec, Runtime, Shims};
use scheduler::model::InstanceId;
use sha2::{Digest, Sha256};

use crate::network::{config, id, on_a_host, sh};
use crate::world::{PATIENCE, World, until};

/// Lives of an instance. `SELVEDGE_TEST_CYCLES=500` makes it five hundred, which takes a busy machine
/// minutes.
const CYCLES: usize = 100;
/// Instances that live at the same time.
const AT_ONCE: usize = 8;
/// Descriptors that other tests may have open: a leak would be one a life, or one a daemon.
const FEW: usize = 40;
/// Every so many groups the daemon dies, once while it is making them.
const DAEMON_DIES: usize = 3;

/// How a container's life ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Its program is done.
    Itself,
    /// The daemon ends it.
    Killed,
    /// Its first process is killed from outside.
    Container,
    /// Its shim is killed.
    Shim,
    /// It never began.
    Created,
    /// It is removed as it runs.
    Running,
}

const ENDS: [End; 6] = [
    End::Itself,
    End::Killed,
    End::Container,
    End::Shim,
    End::Created,
    End::Running,
];

/// What one daemon holds.
struct Daemon {
    shims: Shims,
    net: Network,
    store: Store,
}

impl Daemon {
    async fn open(world: &World) -> Self {
        let mut network = config(world);
        network.pool = AT_ONCE;
        Self {
            shims: world.shims(),
            net: Network::open(network).await.unwrap(),
            store: store(world).await,
        }
    }

    /// Goes without a word to those it runs.
    async fn die(self) {
        self.net.close(false).await.unwrap();
    }

    /// A network, also from a machine that is slow to make one.
    async fn lease(&self, name: &str) -> Lease {
        let end = Instant::now() + PATIENCE;
        loop {
            match self.net.acquire(&id(name)).await {
                Err(NetworkError::NotReady { .. }) if Instant::now() < end => {}
                other => return other.unwrap(),
            }
        }
    }

    /// As an agent makes an instance, up to the start of its program.
    async fn make(&self, world: &World, image: &Image, name: &str, end: End) {
        let lease = self.lease(name).await;
        let folder = world.instance(name);
        let owner = lease.owner().unwrap();
        let snapshot = self.store.snapshot(image, &folder, owner).await.unwrap();
        let group = world.group.join(name);
        let mut spec = ContainerSpec::new(id(name), snapshot.rootfs, group);
        spec.ids = lease.ids;
        spec.netns = Some(lease.netns);
        spec.address = Some(lease.address.into());
        let script = if end == End::Itself {
            "exit 3"
        } else {
            "sleep 1000"
        };
        spec.args = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
        self.shims.create(&spec).await.unwrap();
        if end != End::Created {
            self.shims.start(&spec.id).await.unwrap();
        }
    }

    /// Lets it end, and hears of it.
    async fn end(&self, world: &World, name: &str, end: End) {
        let code = match end {
            End::Itself => 3,
            End::Killed => {
                self.shims.kill(&id(name)).await.unwrap();
                137
            }
            End::Container => {
                world.record(name).container.unwrap().kill();
                137
            }
            End::Shim => {
                world.record(name).shim.kill();
                137
            }
            End::Created | End::Running => return,
        };
        let id = id(name);
        let exit = tokio::time::timeout(PATIENCE, self.shims.exit(&id));
        let exit = exit.await.unwrap().unwrap();
        // Who saw a dead shim's container die first says so; nobody may have.
        let unseen = end == End::Shim && exit.code == 255;
        assert!(exit.code == code || unseen, "{name} {end:?}: {exit:?}");
    }

    /// As an agent removes an instance, whatever there is of it.
    async fn remove(&self, world: &World, name: &str) {
        self.shims.delete(&id(name)).await.unwrap();
        self.store
            .remove_snapshot(&world.instance(name))
            .await
            .unwrap();
        self.net.release(&id(name));
        match fs::remove_dir_all(world.instance(name)) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => panic!("{name}: {e}"),
            _ => {}
        }
    }
}

/// The store of images. An earlier daemon's threads, which would have died with it, may have to end
/// what they are at first: they hold its lock.
async fn store(world: &World) -> Store {
    let mut store = None;
    until("the store to be free", || {
        let opened = Store::open(&world.folder.join("images"), Limits::default());
        store = opened.ok();
        store.is_some()
    })
    .await;
    store.unwrap()
}

/// An image of busybox in the store.
async fn image(world: &World, store: &Store) -> Arc<Image> {
    let root = world.rootfs("image");
    let dir = world.folder.join("archive");
    fs::create_dir_all(&dir).unwrap();
    let at = dir.display();
    sh(&format!("tar -C {} -cf {at}/layer.tar .", root.display()));
    let layer = fs::read(dir.join("layer.tar")).unwrap();
    let diff_id = format!("sha256:{}", hex::encode(Sha256::digest(&layer)));
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": { "type": "layers", "diff_ids": [diff_id] },
    });
    let manifest = serde_json::json!([
        { "Config": "config.json", "RepoTags": ["cycles:1"], "Layers": ["layer.tar"] }
    ]);
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
    fs::write(dir.join("manifest.json"), manifest.to_string()).unwrap();
    sh(&format!(
        "cd {at}; tar -cf ../archive.tar manifest.json config.json layer.tar"
    ));
    let archive = tokio::fs::File::open(world.folder.join("archive.tar")).await;
    let images = store.import(archive.unwrap(), None).await.unwrap();
    images[0].clone()
}

/// Everything of this test's that can be left: by kind, what there is.
fn footprint(world: &World) -> BTreeMap<&'static str, Vec<String>> {
    let lines = |text: String| text.lines().map(str::to_owned).collect::<Vec<_>>();
    let folder = format!("{}/", world.folder.display());
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let ours = |line: &&str| line.contains(&folder);
    BTreeMap::from([
        ("cgroups and mounts", world.leftovers()),
        (
            "mounts",
            mounts.lines().filter(ours).map(str::to_owned).collect(),
        ),
        // This thread's network is the test's alone.
        ("links", lines(sh("ip -o link | cut -d: -f2"))),
        ("addresses", lines(sh("ip -o addr | cut -d' ' -f2-7"))),
        ("firewall", lines(sh("nft list ruleset"))),
        ("processes", processes(world)),
        ("files", files(&world.folder)),
    ])
}

/// What has the test's folder among its words or is in one of its cgroups.
fn processes(world: &World) -> Vec<String> {
    let (folder, group) = (world.folder.join(""), world.group.join(""));
    let (folder, group) = (folder.to_string_lossy(), group.to_string_lossy());
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let ours = entries.filter(|entry| {
        let read = |file| fs::read(entry.path().join(file)).unwrap_or_default();
        let (words, groups) = (read("cmdline"), read("cgroup"));
        let has = |text: &[u8], part: &str| String::from_utf8_lossy(text).contains(part);
        has(&words, &folder) || has(&groups, &group)
    });
    let alive = ours.filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        Process::of(pid).map(|process| format!("{process:?}"))
    });
    alive.collect()
}

fn files(folder: &Path) -> Vec<String> {
    let all = sh(&format!("find {} -xdev", folder.display()));
    let mut all: Vec<_> = all.lines().map(str::to_owned).collect();
    all.sort();
    all
}

/// Open descriptors. Where tests share a process, those of others too.
fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

/// One group lives and ends under a daemon that may die on the way; whoever follows it removes all.
async fn live(world: &World, image: &Image, group: usize) {
    let daemon = Daemon::open(world).await;
    daemon.shims.adopt().await.unwrap();
    let members: Vec<(String, End)> = (0..AT_ONCE)
        .map(|n| group * AT_ONCE + n)
        .map(|n| (format!("cycle-{n}"), ENDS[n % ENDS.len()]))
        .collect();
    let making = members
        .iter()
        .map(|(name, end)| daemon.make(world, image, name, *end));
    let making = futures::future::join_all(making);
    let daemon = match group % (2 * DAEMON_DIES) {
        // In the middle of making them, at another step each time.
        0 => {
            let moment = Duration::from_millis(u64::try_from(group * 7 % 150).unwrap());
            let _ = tokio::time::timeout(moment, making).await;
            daemon.die().await;
            Daemon::open(world).await
        }
        DAEMON_DIES => {
            making.await;
            daemon.die().await;
            Daemon::open(world).await
        }
        _ => {
            making.await;
            let ending = members
                .iter()
                .map(|(name, end)| daemon.end(world, name, *end));
            futures::future::join_all(ending).await;
            daemon
        }
    };
    let running: Vec<InstanceId> = daemon
        .shims
        .adopt()
        .await
        .unwrap()
        .into_iter()
        .map(|adopted| adopted.id)
        .collect();
    daemon.net.adopt(&running);
    let removing = members.iter().map(|(name, _)| daemon.remove(world, name));
    futures::future::join_all(removing).await;
    daemon.net.close(true).await.unwrap();
}

/// Waits for what dies in the background.
async fn settle(world: &World, before: &BTreeMap<&'static str, Vec<String>>) {
    let end = Instant::now() + PATIENCE;
    while footprint(world) != *before && Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(footprint(world), *before);
}

#[test]
fn crashed_instances_leave_nothing() {
    let cycles = std::env::var("SELVEDGE_TEST_CYCLES").map_or(CYCLES, |n| n.parse().unwrap());
    on_a_host(move |world| async move {
        let store = store(&world).await;
        let image = image(&world, &store).await;
        drop(store);
        // The first group makes what a node makes once.
        live(&world, &image, 1).await;
        let (before, open) = (footprint(&world), descriptors());
        let began = Instant::now();
        for group in 0..cycles.div_ceil(AT_ONCE) {
            live(&world, &image, group).await;
        }
        println!("{cycles} lives in {:?}", began.elapsed());
        settle(&world, &before).await;
        let more = descriptors().saturating_sub(open);
        assert!(more < FEW, "{more} descriptors more");
    });
}
