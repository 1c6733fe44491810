//! The rooms that start a container (images, network, runtime) without the daemon around them, for
//! benchmarks: one word a line on stdin, one answer a line on stdout. Owns no policy and no cleaning
//! up after a crash: everything it makes lies in its folder, its cgroup and the network namespace
//! it runs in, and whoever runs it takes those away.
//!
//! ```text
//! networks N      keeps N networks ready from now on, says when they are and no others
//! program WORDS   what containers run from now on; without words, the image's entrypoint
//! lease N PREFIX  networks for N containers, which stay theirs also when these are deleted
//! create ID       everything but the program running       created ID ADDRESS PID
//! start ID        its program                              started ID
//! begin ID        both, telling the address in between     leased ID ADDRESS, started ID
//! freeze ID, thaw ID
//! delete ID       in the background                        deleted ID
//! many N PREFIX   N containers at once, until they run     many N MICROSECONDS
//! park N PREFIX   N containers at once, not started        park N MICROSECONDS
//! launch N PREFIX starts parked ones, until they run       launch N MICROSECONDS
//! clear           deletes all                              cleared
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use futures::StreamExt as _;
use node::image::{Image, Limits, Store};
use node::network::{Network, NetworkConfig};
use node::runtime::{ContainerSpec, Runtime as _, Shims, ShimsConfig};
use scheduler::model::InstanceId;
use tokio::io::{AsyncBufReadExt as _, BufReader};

const USAGE: &str = "rooms FOLDER CGROUP SUBNET SELVEDGED ARCHIVE";
/// Containers made or removed at once: more than the runtime itself lets through.
const AT_ONCE: usize = 32;
/// How a process is called that is not the program yet.
const NOT_YET: [&str; 2] = [node::runtime::PARKED, "youki"];
/// Between two looks at such a process.
const PAUSE: Duration = Duration::from_micros(200);
const PATIENCE: Duration = Duration::from_mins(2);

struct Rooms {
    folder: PathBuf,
    cgroup: PathBuf,
    network: NetworkConfig,
    networks: Network,
    shims: Shims,
    store: Store,
    image: Arc<Image>,
    program: Mutex<Vec<String>>,
    known: Mutex<BTreeMap<InstanceId, Ipv4Addr>>,
    /// Whose networks stay.
    kept: Mutex<BTreeSet<InstanceId>>,
}

#[tokio::main]
async fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [folder, cgroup, subnet, selvedged, archive] = &words[..] else {
        bail!(USAGE);
    };
    let mut rooms = Rooms::open(Path::new(folder), cgroup, subnet, selvedged, archive).await?;
    say("ready");
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let ["networks", count] = words[..] {
            // The pool's size is a setting of a daemon's: a new daemon takes the network over.
            let all = Arc::get_mut(&mut rooms).context("something is still under way")?;
            all.keep(count.parse()?).await?;
            say(&format!("networks {count}"));
        } else {
            rooms.hear(&words).await.with_context(|| line.clone())?;
        }
    }
    rooms.clear().await?;
    rooms.networks.close(true).await?;
    Ok(())
}

/// One write, so that a line is never seen in halves.
fn say(line: &str) {
    use std::io::Write as _;
    // Nobody listens any more: then the input ends too.
    let _ = std::io::stdout().write_all(format!("{line}\n").as_bytes());
}

impl Rooms {
    async fn open(
        folder: &Path,
        cgroup: &str,
        subnet: &str,
        selvedged: &str,
        archive: &str,
    ) -> Result<Arc<Self>> {
        let store = Store::open(&folder.join("images"), Limits::default())?;
        let images = store
            .import(tokio::fs::File::open(archive).await?, None)
            .await?;
        let mut config = ShimsConfig::new(folder.join("instances"));
        config.binary = selvedged.into();
        let network = NetworkConfig {
            subnet: subnet.parse()?,
            pool: 0,
            ..NetworkConfig::of("rooms", folder.join("run"))
        };
        Ok(Arc::new(Self {
            folder: folder.to_owned(),
            cgroup: cgroup.into(),
            networks: Network::open(network.clone()).await?,
            network,
            shims: Shims::open(config)?,
            store,
            image: images.into_iter().next().context("an archive of nothing")?,
            program: Mutex::default(),
            known: Mutex::default(),
            kept: Mutex::default(),
        }))
    }

    async fn keep(&mut self, count: usize) -> Result<()> {
        self.networks.close(false).await?;
        self.network.pool = count;
        self.networks = Network::open(self.network.clone()).await?;
        let end = Instant::now() + PATIENCE;
        // Also until those given back are gone: removing them is work too.
        while self.networks.ready() < count || self.on_disk()? > count + self.leases() {
            ensure!(Instant::now() < end, "the networks are not ready");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(())
    }

    fn on_disk(&self) -> Result<usize> {
        Ok(std::fs::read_dir(self.folder.join("run/netns"))?.count())
    }

    fn leases(&self) -> usize {
        self.networks.leases().len()
    }

    async fn hear(self: &Arc<Self>, words: &[&str]) -> Result<()> {
        match words {
            ["program", words @ ..] => {
                let words = words.iter().map(|&word| word.to_owned()).collect();
                *self.program.lock().unwrap_or_else(PoisonError::into_inner) = words;
                say("program");
            }
            ["create", id] => {
                let (address, pid) = self.create(&InstanceId((*id).to_owned()), |_| ()).await?;
                say(&format!("created {id} {address} {pid}"));
            }
            ["start", id] => {
                self.shims.start(&InstanceId((*id).to_owned())).await?;
                say(&format!("started {id}"));
            }
            ["begin", id] => {
                let leased = |address| say(&format!("leased {id} {address}"));
                let id = InstanceId((*id).to_owned());
                self.create(&id, leased).await?;
                self.shims.start(&id).await?;
                say(&format!("started {id}"));
            }
            ["freeze", id] => {
                self.shims.freeze(&InstanceId((*id).to_owned())).await?;
                say(&format!("frozen {id}"));
            }
            ["thaw", id] => {
                self.shims.thaw(&InstanceId((*id).to_owned())).await?;
                say(&format!("thawed {id}"));
            }
            ["delete", id] => {
                let (rooms, id) = (Arc::clone(self), InstanceId((*id).to_owned()));
                tokio::spawn(async move {
                    let deleted = rooms.delete(&id).await;
                    // What comes next may want them alone.
                    drop(rooms);
                    match deleted {
                        Ok(()) => say(&format!("deleted {id}")),
                        Err(error) => say(&format!("failed {id}: {error:#}")),
                    }
                });
            }
            ["many" | "park" | "launch", count, prefix] => {
                let took = self.many(words[0], count.parse()?, prefix).await?;
                say(&format!("{} {count} {}", words[0], took.as_micros()));
            }
            ["lease", count, prefix] => {
                self.lease(count.parse()?, prefix).await?;
                say(&format!("lease {count}"));
            }
            ["clear"] => {
                self.clear().await?;
                say("cleared");
            }
            _ => bail!("no such word"),
        }
        Ok(())
    }

    async fn many(&self, what: &str, count: usize, prefix: &str) -> Result<Duration> {
        let began = Instant::now();
        let one = |number: usize| async move {
            let id = InstanceId(format!("{prefix}-{number}"));
            if what != "launch" {
                self.create(&id, |_| ()).await?;
            }
            if what != "park" {
                self.shims.start(&id).await?;
            }
            anyhow::Ok(())
        };
        let mut all = futures::stream::iter((0..count).map(one)).buffer_unordered(AT_ONCE);
        while let Some(made) = all.next().await {
            made?;
        }
        if what != "park" {
            for number in 0..count {
                self.running(&InstanceId(format!("{prefix}-{number}")))
                    .await?;
            }
        }
        Ok(began.elapsed())
    }

    /// Returns when the container's first process has become its program.
    async fn running(&self, id: &InstanceId) -> Result<()> {
        let pid = self.shims.pid(id).context("no such container")?;
        let name = format!("/proc/{pid}/comm");
        loop {
            let name = std::fs::read_to_string(&name)?;
            if !NOT_YET.iter().any(|not| name.starts_with(not)) {
                return Ok(());
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn lease(&self, count: usize, prefix: &str) -> Result<()> {
        let one = |number: usize| async move {
            let id = InstanceId(format!("{prefix}-{number}"));
            self.networks.acquire(&id).await?;
            self.kept().insert(id);
            anyhow::Ok(())
        };
        let mut all = futures::stream::iter((0..count).map(one)).buffer_unordered(AT_ONCE);
        while let Some(leased) = all.next().await {
            leased?;
        }
        Ok(())
    }

    async fn create(&self, id: &InstanceId, leased: impl Fn(Ipv4Addr)) -> Result<(Ipv4Addr, i32)> {
        let dir = self.folder.join("instances").join(&id.0);
        self.shims.expect();
        let lease = self.networks.acquire(id).await?;
        leased(lease.address);
        let owner = lease.owner()?;
        let snapshot = self.store.snapshot(&self.image, &dir, owner).await?;
        let mut spec = ContainerSpec::new(id.clone(), snapshot.rootfs, self.cgroup.join(&id.0));
        let program = self
            .program
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        spec.args = if program.is_empty() {
            let config = &self.image.config;
            config
                .entrypoint
                .iter()
                .chain(&config.cmd)
                .cloned()
                .collect()
        } else {
            program
        };
        spec.ids = lease.ids;
        spec.netns = Some(lease.netns);
        spec.address = Some(lease.address.into());
        self.known().insert(id.clone(), lease.address);
        let made = self.shims.create(&spec).await?;
        Ok((lease.address, made.pid))
    }

    async fn delete(&self, id: &InstanceId) -> Result<()> {
        self.shims.delete(id).await?;
        let kept = self.kept().contains(id);
        if !kept {
            self.networks.release(id);
        }
        let dir = self.folder.join("instances").join(&id.0);
        self.store.remove_snapshot(&dir).await?;
        tokio::fs::remove_dir_all(&dir).await?;
        self.known().remove(id);
        Ok(())
    }

    async fn clear(&self) -> Result<()> {
        let all: Vec<InstanceId> = self.known().keys().cloned().collect();
        let mut all =
            futures::stream::iter(all.iter().map(|id| self.delete(id))).buffer_unordered(AT_ONCE);
        while let Some(deleted) = all.next().await {
            deleted?;
        }
        Ok(())
    }

    fn kept(&self) -> MutexGuard<'_, BTreeSet<InstanceId>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<InstanceId, Ipv4Addr>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
