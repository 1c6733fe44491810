//! The pool: networks made ahead of need by a keeper in the background, leased in microseconds,
//! removed in the background. Leases are kept on disk, so that a later daemon knows whose is whose.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rtnetlink::Handle;
use scheduler::model::{Egress, InstanceId};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::addresses::Addresses;
use super::firewall::Firewall;
use super::pace::Pace;
use super::{Inward, Lease, NetworkConfig, NetworkError, Slot, Traffic, netns, rules};

/// Networks made at once: the kernel makes them one after the other anyway.
const MAKERS: usize = 2;
/// Networks removed at once: the kernel waits once for all of them, and the firewall forgets them together.
const REMOVERS: usize = 64;
/// After a failure, so that a broken machine is not kept busy failing.
const BACKOFF: Duration = Duration::from_millis(500);

/// The node's container network. Cheap to clone.
#[derive(Clone)]
pub struct Network {
    shared: Arc<Shared>,
}

struct Shared {
    config: NetworkConfig,
    host: Handle,
    bridge: u32,
    firewall: Firewall,
    state: Mutex<State>,
    /// Something for the keeper to do.
    work: Notify,
    /// A network became ready, or none will.
    ready: Notify,
    /// The keeper has ended.
    rested: Notify,
}

struct State {
    addresses: Addresses,
    ready: VecDeque<Slot>,
    leases: BTreeMap<InstanceId, Slot>,
    dirty: VecDeque<Slot>,
    waiting: usize,
    pace: Pace,
    /// When the last one became ready.
    made: Instant,
    last_failure: Option<String>,
    closing: bool,
    keeper_gone: bool,
}

impl Network {
    /// Makes or takes over the bridge and the firewall, keeps what is leased, and begins to fill
    /// the pool. Call [`Network::adopt`] once it is known which instances still run.
    ///
    /// # Errors
    /// What the kernel, the file system or `nft` refused.
    pub async fn open(config: NetworkConfig) -> Result<Self, NetworkError> {
        check(&config)?;
        for folder in ["netns", "leases"] {
            fs::create_dir_all(config.run.join(folder)).map_err(failed("the run folder"))?;
        }
        let host = netns::connect()?;
        let bridge = netns::bridge(&host, &config).await?;
        forward(&config)?;
        let (leases, dirty) = inventory(&config, &host).await?;
        let mut addresses = Addresses::of(config.subnet);
        let known = leases.values().chain(&dirty);
        known.for_each(|slot| addresses.mark(slot.number));
        let slots: Vec<Slot> = leases.values().cloned().collect();
        let led = config
            .inward
            .map(|doors| rules::lead_inward(&config, doors));
        let rules = rules::ruleset(&config, &slots) + &led.unwrap_or_default();
        rules::apply(&rules).await?;
        let state = State {
            addresses,
            ready: VecDeque::new(),
            leases,
            dirty,
            waiting: 0,
            pace: Pace::default(),
            made: Instant::now(),
            last_failure: None,
            closing: false,
            keeper_gone: false,
        };
        let shared = Arc::new(Shared {
            config,
            host,
            bridge,
            firewall: Firewall::default(),
            state: Mutex::new(state),
            work: Notify::new(),
            ready: Notify::new(),
            rested: Notify::new(),
        });
        tokio::spawn(keep(Arc::clone(&shared)));
        Ok(Self { shared })
    }

    /// A network for `instance`: at once from the pool, or as soon as one is made. An instance that
    /// has one gets the same.
    ///
    /// # Errors
    /// None became ready in time, and why not.
    pub async fn acquire(&self, instance: &InstanceId) -> Result<Lease, NetworkError> {
        let asked = Instant::now();
        let mut waiting = Waiting::new(&self.shared);
        loop {
            let mut notified = pin!(self.shared.ready.notified());
            // In the line before looking: each network that becomes ready calls one.
            notified.as_mut().enable();
            if let Some(lease) = self.try_acquire(instance)? {
                self.shared.work.notify_one();
                return Ok(lease);
            }
            waiting.begin();
            self.shared.work.notify_one();
            let deadline = self.given_up(asked);
            // Others have got some meanwhile: the line moves.
            if timeout_at(deadline, notified).await.is_err() && self.given_up(asked) <= deadline {
                let last = self.shared.state().last_failure.clone();
                return Err(NetworkError::NotReady { last });
            }
        }
    }

    /// When who asked then waits no longer, as things are.
    fn given_up(&self, asked: Instant) -> Instant {
        asked.max(self.shared.state().made) + self.shared.config.patience
    }

    fn try_acquire(&self, instance: &InstanceId) -> Result<Option<Lease>, NetworkError> {
        let config = &self.shared.config;
        let mut state = self.shared.state();
        if state.closing {
            return Err(NetworkError::Closing);
        }
        if let Some(slot) = state.leases.get(instance) {
            return Ok(Some(lease(config, instance, slot)));
        }
        let Some(slot) = state.ready.pop_front() else {
            return Ok(None);
        };
        fail::fail_point!("network::taken");
        let lease = lease(config, instance, &slot);
        if let Err(error) = write_lease(config, &lease) {
            state.ready.push_front(slot);
            return Err(failed("the lease")(error));
        }
        fail::fail_point!("network::leased");
        state.leases.insert(instance.clone(), slot);
        state.pace.taken(Instant::now());
        Ok(Some(lease))
    }

    /// Lets an instance, which has a network, into networks that are closed to others. Kept until the
    /// network is released, also across daemons.
    ///
    /// # Errors
    /// It has no network, or the rules were refused.
    pub async fn open_for(
        &self,
        instance: &InstanceId,
        egress: &[Egress],
    ) -> Result<(), NetworkError> {
        let config = &self.shared.config;
        let slot = {
            let mut state = self.shared.state();
            let slot = state.leases.get_mut(instance);
            let slot = slot.ok_or_else(|| NetworkError::NoLease(instance.clone()))?;
            slot.egress = egress.to_vec();
            slot.clone()
        };
        // Written first: a later daemon takes away what it knows of.
        write_lease(config, &lease(config, instance, &slot)).map_err(failed("the lease"))?;
        self.shared.firewall.apply(rules::open(config, &slot)).await
    }

    /// Takes an instance's network back; it is removed in the background.
    pub fn release(&self, instance: &InstanceId) {
        let mut state = self.shared.state();
        if let Some(slot) = state.leases.remove(instance) {
            // Should it stay, the next daemon removes it.
            let _ = fs::remove_file(lease_file(&self.shared.config, instance));
            fail::fail_point!("network::released");
            state.dirty.push_back(slot);
            self.shared.work.notify_one();
        }
    }

    /// After a restart: `running` keep their networks, all others' are removed. Returns the
    /// leases kept; an instance without one had lost its network (the machine was restarted).
    pub fn adopt(&self, running: &[InstanceId]) -> Vec<Lease> {
        let keep: BTreeSet<&InstanceId> = running.iter().collect();
        let all: Vec<InstanceId> = self.shared.state().leases.keys().cloned().collect();
        all.iter()
            .filter(|id| !keep.contains(id))
            .for_each(|id| self.release(id));
        self.leases()
    }

    /// All leases, by instance.
    #[must_use]
    pub fn leases(&self) -> Vec<Lease> {
        let state = self.shared.state();
        state
            .leases
            .iter()
            .map(|(id, slot)| lease(&self.shared.config, id, slot))
            .collect()
    }

    /// The node's own address on the bridge.
    #[must_use]
    pub fn gateway(&self) -> Ipv4Addr {
        self.shared.config.subnet.gateway()
    }

    /// Whose address it is.
    #[must_use]
    pub fn instance_at(&self, address: Ipv4Addr) -> Option<InstanceId> {
        let state = self.shared.state();
        let mut leases = state.leases.iter();
        let (instance, _) = leases.find(|(_, slot)| slot.address == address)?;
        Some(instance.clone())
    }

    /// Leads containers' connections to services' own addresses, and their questions for names, to
    /// ports of the node's on the bridge.
    ///
    /// # Errors
    /// `nft` refused it, or cannot be run.
    pub async fn lead_inward(&self, doors: Inward) -> Result<(), NetworkError> {
        let script = rules::lead_inward(&self.shared.config, doors);
        self.shared.firewall.apply(script).await
    }

    /// The port of each instance on the bridge.
    pub(super) fn ports(&self) -> Vec<(String, InstanceId)> {
        let state = self.shared.state();
        let leases = state.leases.iter();
        leases
            .map(|(id, slot)| (slot.port.clone(), id.clone()))
            .collect()
    }

    /// What went in and out of one instance. Of all at once, [`Network::traffic`] is cheaper.
    pub async fn traffic_of(&self, instance: &InstanceId) -> Option<Traffic> {
        let slot = self.shared.state().leases.get(instance).cloned()?;
        netns::traffic(&self.shared.host, &slot.port).await
    }

    /// How many networks are ready now.
    #[must_use]
    pub fn ready(&self) -> usize {
        self.shared.state().ready.len()
    }

    /// Ends the keeper. With `remove_all` nothing of this network is left, whatever runs in it;
    /// without, everything stays for the next daemon.
    ///
    /// # Errors
    /// What could not be removed.
    pub async fn close(&self, remove_all: bool) -> Result<(), NetworkError> {
        self.shared.state().closing = true;
        self.shared.ready.notify_waiters();
        loop {
            let rested = self.shared.rested.notified();
            self.shared.work.notify_one();
            if self.shared.state().keeper_gone {
                break;
            }
            rested.await;
        }
        if remove_all {
            self.remove_all().await
        } else {
            Ok(())
        }
    }

    async fn remove_all(&self) -> Result<(), NetworkError> {
        let Shared { config, host, .. } = &*self.shared;
        let slots: Vec<Slot> = {
            let mut state = self.shared.state();
            let leased: Vec<Slot> = std::mem::take(&mut state.leases).into_values().collect();
            let State { ready, dirty, .. } = &mut *state;
            ready
                .drain(..)
                .chain(dirty.drain(..))
                .chain(leased)
                .collect()
        };
        for slots in slots.chunks(REMOVERS) {
            remove(&self.shared, slots).await?;
        }
        rules::apply(&rules::clear(config)).await?;
        netns::remove_link(host, &config.bridge).await?;
        stop_forwarding(config);
        for folder in ["netns", "leases"] {
            fs::remove_dir_all(config.run.join(folder)).map_err(failed("the run folder"))?;
        }
        Ok(())
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts one more wanted network while its owner waits.
struct Waiting<'a> {
    shared: &'a Shared,
    counted: bool,
}

impl<'a> Waiting<'a> {
    fn new(shared: &'a Shared) -> Self {
        Self {
            shared,
            counted: false,
        }
    }

    fn begin(&mut self) {
        if !self.counted {
            self.counted = true;
            self.shared.state().waiting += 1;
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if self.counted {
            self.shared.state().waiting -= 1;
        }
    }
}

/// The keeper: makes what is missing, removes what was given back, rests in between.
async fn keep(shared: Arc<Shared>) {
    let mut making: JoinSet<Result<Slot, (Slot, NetworkError)>> = JoinSet::new();
    let mut removing: JoinSet<Vec<(Slot, Result<(), NetworkError>)>> = JoinSet::new();
    loop {
        let closing = shared.state().closing;
        if closing && making.is_empty() && removing.is_empty() {
            break;
        }
        while !closing && making.len() < MAKERS {
            let Some(slot) = next_wanted(&shared, making.len()) else {
                break;
            };
            making.spawn(make(Arc::clone(&shared), slot));
        }
        if !closing && removing.is_empty() {
            let unwanted = unwanted(&shared);
            if !unwanted.is_empty() {
                removing.spawn(discard(Arc::clone(&shared), unwanted));
            }
        }
        let held = { shared.state().pace.until(Instant::now()) };
        tokio::select! {
            () = shared.work.notified() => {}
            () = sleep_until(held.unwrap_or_else(Instant::now)), if held.is_some() => {}
            Some(made) = making.join_next() => {
                if let Ok(made) = made { took(&shared, made); }
            }
            Some(removed) = removing.join_next() => {
                for (slot, result) in removed.into_iter().flatten() { gave_back(&shared, &slot, result); }
            }
        }
    }
    shared.state().keeper_gone = true;
    shared.rested.notify_waiters();
}

/// A number for one more network, if one is wanted.
fn next_wanted(shared: &Shared, making: usize) -> Option<Slot> {
    let mut state = shared.state();
    let held = state.pace.until(Instant::now()).is_some();
    let pool = if held { 0 } else { shared.config.pool };
    if state.ready.len() + making >= pool + state.waiting {
        return None;
    }
    let number = state.addresses.take();
    if number.is_none() {
        state.last_failure = Some(NetworkError::Full(shared.config.subnet).to_string());
    }
    number.map(|number| shared.config.slot(number))
}

/// The next to remove: not beside a start, unless somebody waits for their places.
fn unwanted(shared: &Shared) -> Vec<Slot> {
    let mut state = shared.state();
    let held = state.pace.until(Instant::now()).is_some();
    if held && !(state.waiting > 0 && state.addresses.is_full()) {
        return Vec::new();
    }
    let count = state.dirty.len().min(REMOVERS);
    state.dirty.drain(..count).collect()
}

async fn make(shared: Arc<Shared>, slot: Slot) -> Result<Slot, (Slot, NetworkError)> {
    let work = Arc::clone(&shared);
    let wanted = slot.clone();
    let made = tokio::task::spawn_blocking(move || netns::make(&work.config, work.bridge, &wanted));
    let made = async {
        let made = made.await;
        fail::fail_point!("network::made");
        made.unwrap_or_else(|e| Err(failed("a thread")(io::Error::other(e))))
    };
    // By its name, which is known before it is there.
    let admitted = shared.firewall.apply(rules::admit(&shared.config, &slot));
    match tokio::join!(made, admitted) {
        (Ok(()), Ok(())) => {
            fail::fail_point!("network::admitted");
            Ok(slot)
        }
        (Err(error), _) | (_, Err(error)) => {
            // Its place in the keeper's hands is what slows the next try.
            tokio::time::sleep(BACKOFF).await;
            Err((slot, error))
        }
    }
}

fn took(shared: &Shared, made: Result<Slot, (Slot, NetworkError)>) {
    let mut state = shared.state();
    match made {
        Ok(slot) => {
            state.last_failure = None;
            state.made = Instant::now();
            state.ready.push_back(slot);
            drop(state);
            shared.ready.notify_one();
        }
        Err((slot, error)) => {
            tracing::warn!(%error, "a container network could not be made");
            state.last_failure = Some(error.to_string());
            state.dirty.push_back(slot);
        }
    }
}

async fn discard(shared: Arc<Shared>, slots: Vec<Slot>) -> Vec<(Slot, Result<(), NetworkError>)> {
    if remove(&shared, &slots).await.is_ok() {
        return slots.into_iter().map(|slot| (slot, Ok(()))).collect();
    }
    // One that cannot be removed must not keep the others.
    let mut all = Vec::new();
    for slot in slots {
        let removed = remove(&shared, std::slice::from_ref(&slot)).await;
        all.push((slot, removed));
    }
    if all.iter().any(|(_, removed)| removed.is_err()) {
        tokio::time::sleep(BACKOFF).await;
    }
    all
}

fn gave_back(shared: &Shared, slot: &Slot, removed: Result<(), NetworkError>) {
    let mut state = shared.state();
    match removed {
        Ok(()) => state.addresses.give_back(slot.number),
        Err(error) => {
            tracing::warn!(%error, port = slot.port, "a container network could not be removed");
            state.dirty.push_back(slot.clone());
        }
    }
}

/// The cables first: from then on nothing reaches the containers or comes from them.
async fn remove(shared: &Shared, slots: &[Slot]) -> Result<(), NetworkError> {
    let ports: Vec<String> = slots.iter().map(|slot| slot.port.clone()).collect();
    let unplugged = tokio::task::spawn_blocking(move || {
        let ports: Vec<&str> = ports.iter().map(String::as_str).collect();
        netns::remove_links(&ports)
    });
    unplugged
        .await
        .unwrap_or_else(|e| Err(failed("a thread")(io::Error::other(e))))?;
    fail::fail_point!("network::unplugged");
    for slot in slots {
        netns::forget(&shared.host, shared.bridge, slot).await;
    }
    let forget = slots
        .iter()
        .map(|slot| rules::dismiss(&shared.config, slot));
    shared.firewall.apply(forget.collect()).await?;
    fail::fail_point!("network::dismissed");
    for slot in slots {
        netns::unbind(&slot.netns).map_err(failed("a namespace's file"))?;
    }
    fail::fail_point!("network::removed");
    Ok(())
}

/// What an earlier daemon left: leases whose networks are whole, and the rest, to be removed.
async fn inventory(
    config: &NetworkConfig,
    host: &Handle,
) -> Result<(BTreeMap<InstanceId, Slot>, VecDeque<Slot>), NetworkError> {
    let prefix = config.port_prefix();
    let ports: BTreeSet<String> = netns::links(host, &prefix).await.into_iter().collect();
    let mut leases = BTreeMap::new();
    let mut found: BTreeSet<u32> = ports
        .iter()
        .filter_map(|port| u32::from_str_radix(port.strip_prefix(&prefix)?, 16).ok())
        .collect();
    for (name, _) in list(&config.run.join("netns"))? {
        found.extend(name.parse::<u32>().ok());
    }
    for (_, path) in list(&config.run.join("leases"))? {
        let text = fs::read(&path).map_err(failed("a lease"))?;
        let slot = serde_json::from_slice::<Lease>(&text)
            .ok()
            .map(|lease| (lease.instance.clone(), kept(config, lease)))
            .filter(|(_, s)| ports.contains(&s.port) && netns::is_bound(&s.netns));
        if let Some((instance, slot)) = slot {
            found.remove(&slot.number);
            leases.insert(instance, slot);
        } else {
            fs::remove_file(&path).map_err(failed("a lease"))?;
        }
    }
    let dirty = found
        .into_iter()
        .map(|number| config.slot(number))
        .collect();
    Ok((leases, dirty))
}

fn list(folder: &Path) -> Result<Vec<(String, PathBuf)>, NetworkError> {
    let entries = fs::read_dir(folder).map_err(failed("the run folder"))?;
    let named = |entry: fs::DirEntry| Some((entry.file_name().into_string().ok()?, entry.path()));
    Ok(entries.filter_map(Result::ok).filter_map(named).collect())
}

fn lease(config: &NetworkConfig, instance: &InstanceId, slot: &Slot) -> Lease {
    Lease {
        instance: instance.clone(),
        netns: slot.netns.clone(),
        address: slot.address,
        gateway: config.subnet.gateway(),
        ids: slot.ids,
        egress: slot.egress.clone(),
        number: slot.number,
    }
}

/// A slot as it was made, by a daemon that may have had other means.
fn kept(config: &NetworkConfig, lease: Lease) -> Slot {
    Slot {
        ids: lease.ids,
        egress: lease.egress,
        ..config.slot(lease.number)
    }
}

fn lease_file(config: &NetworkConfig, instance: &InstanceId) -> PathBuf {
    config.run.join("leases").join(&instance.0)
}

/// Whole or not at all: on a full disk neither half a lease is left nor the former one lost. No fsync: a machine
/// that restarts has no namespaces either.
fn write_lease(config: &NetworkConfig, lease: &Lease) -> io::Result<()> {
    if !crate::runtime::is_safe_id(&lease.instance.0) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let file = lease_file(config, &lease.instance);
    let new = config
        .run
        .join("leases")
        .join(format!("{}.new", lease.instance));
    let written = fs::write(&new, serde_json::to_vec(lease)?).and_then(|()| fs::rename(&new, file));
    if written.is_err() {
        let _ = fs::remove_file(new);
    }
    written
}

/// Names that end up in `nft` scripts and in the kernel.
fn check(config: &NetworkConfig) -> Result<(), NetworkError> {
    for (name, most) in [(&config.bridge, 15), (&config.table, 64)] {
        let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
            || (most == 15 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-'));
        if !plain
            || name.is_empty()
            || name.len() > most
            || !name.as_bytes()[0].is_ascii_alphabetic()
        {
            return Err(NetworkError::BadName(name.clone()));
        }
    }
    Ok(())
}

const FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";

fn forward_note(config: &NetworkConfig) -> PathBuf {
    config.run.join("forwarding-was-off")
}

/// Lets this host route, and remembers if it did not.
fn forward(config: &NetworkConfig) -> Result<(), NetworkError> {
    let was = fs::read_to_string(FORWARD).map_err(failed(FORWARD))?;
    if was.trim() != "1" {
        fs::write(forward_note(config), "").map_err(failed("the run folder"))?;
        fs::write(FORWARD, "1").map_err(failed(FORWARD))?;
    }
    Ok(())
}

fn stop_forwarding(config: &NetworkConfig) {
    if fs::remove_file(forward_note(config)).is_ok() {
        let _ = fs::write(FORWARD, "0");
    }
}

fn failed(what: &'static str) -> impl FnOnce(io::Error) -> NetworkError {
    move |source| NetworkError::Io { what, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_that_cannot_be_written_leaves_what_was_there() {
        /// A file system with room for one page.
        struct Full(tempfile::TempDir);
        impl Drop for Full {
            fn drop(&mut self) {
                let detach = rustix::mount::UnmountFlags::DETACH;
                let _ = rustix::mount::unmount(self.0.path(), detach);
            }
        }
        let full = Full(tempfile::tempdir().unwrap());
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("none", full.0.path(), "tmpfs", flags, c"size=4096").unwrap();
        let config = NetworkConfig::of("par-1", full.0.path());
        fs::create_dir(config.run.join("leases")).unwrap();
        let of = |name: &str| lease(&config, &InstanceId(name.to_owned()), &config.slot(5));
        write_lease(&config, &of("web-1")).unwrap();
        let before = fs::read(lease_file(&config, &of("web-1").instance)).unwrap();
        for name in ["web-1", "web-2"] {
            let error = write_lease(&config, &of(name)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::StorageFull, "{name}");
        }
        let left = list(&config.run.join("leases")).unwrap();
        assert_eq!(left.len(), 1, "{left:?}");
        assert_eq!(fs::read(&left[0].1).unwrap(), before);
    }
}
