//! The life of the instances on one node: what was asked for and what was seen, turned into the
//! next steps. It starts nothing itself; the agent performs the effects and reports back.
//!
//! ```text
//!  park -> Parking -> Parked                   Unready <-> Ready <-> Frozen
//!                       |                                    |
//! admit -> Preparing -> Launching -> Probing ----------------+-> Draining -> Ending -> (removed)
//!              |            |           |                    |                 ^
//!              +------------+-----------+--------------------+--> Failed       | stop while starting
//! ```
//! Routing is always closed before a program is asked to end, and a frozen one is thawed. `life`
//! has the inputs; `parking`, `probing` and `backoff` what the pool, the probes and repeated
//! failures amount to.

mod backoff;
mod life;
mod parking;
mod probing;
mod resting;
mod slot;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_pool;
#[cfg(test)]
mod tests_random;
#[cfg(test)]
mod tests_resting;

use std::collections::BTreeMap;

use crate::model::{
    Exit, FailReason, InstanceId, InstanceState, Now, Resources, RevisionKey, ServiceKey,
};
use backoff::Backoff;
pub use backoff::CRASH_LOOP;
use parking::Pool;
pub use probing::{Ask, Kind, Plan, Probes};
use slot::{Origin, Phase, Sleep, Slot};

/// The code word of an instance that never listened.
pub const NEVER_READY: &str = "NeverReady";
/// The code word of an instance that its liveness probe gave up.
pub const UNHEALTHY: &str = "Unhealthy";
/// The code word of an instance that went with its shim, the process that keeps it.
pub const SHIM_LOST: &str = "ShimLost";
/// How long other nodes may not have heard of an instance that became ready.
const FRESH_MS: u64 = 2_000;
/// How long an ended instance is still told about, so that others see why.
const REMEMBER_MS: u64 = 60_000;
/// Between two tries to signal an instance.
const SIGNAL_AGAIN_MS: u64 = 1_000;
/// One that was ready and is not again within this is replaced: it holds its room for nothing.
const UNREADY_MOST_MS: u64 = 600_000;

/// One instance to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admission {
    pub id: InstanceId,
    pub service: ServiceKey,
    pub revision: RevisionKey,
    pub needs: Resources,
    /// When it was asked for, where that was before it is admitted: askers may wait in a line.
    pub asked: Option<Now>,
    /// Where it is expected to listen.
    pub port: u16,
    /// Requests that wait for it.
    pub promised: u32,
    /// Launch to ready; then it failed.
    pub start_deadline_ms: u64,
    /// Close to the stop signal, for requests still in it.
    pub drain_ms: u64,
    /// Stop signal to kill.
    pub grace_ms: u64,
    pub probes: Probes,
    /// Whether it may be frozen while nobody asks it anything.
    pub freezes: bool,
    /// Whether what it computes then is work, which is not held still.
    pub works_unasked: bool,
}

/// Why this node takes no more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoRoom {
    #[error("needs {want} mCPU, {free} free")]
    Cpu { want: u32, free: u32 },
    #[error("needs {want} bytes of memory, {free} free")]
    Memory { want: u64, free: u64 },
    #[error("runs {0} instances, as many as it may")]
    Instances(u32),
}

/// Why this node does not start an instance.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
    /// The revision failed here again and again.
    #[error("{}: {}", .0.code, .0.message)]
    CrashLoop(FailReason),
}

/// What the agent does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Get the image, root filesystem, network and container; then `on_prepared`.
    Prepare(InstanceId),
    /// It is prepared and waits for a start.
    Parked(InstanceId),
    /// One more of the revision is to be parked: `park` it under a new name.
    Park(RevisionKey),
    /// Start the user's program; then `on_launched`.
    Launch(InstanceId),
    /// A parked container could not be started: start another for whoever waits for this one.
    Again(InstanceId),
    /// Ask once, so many milliseconds from now; then `on_probed`.
    Probe {
        id: InstanceId,
        ask: Ask,
        after_ms: u64,
    },
    /// Requests may enter.
    Open(InstanceId),
    /// No request may enter for now; those in it go on.
    Shut(InstanceId),
    /// Requests may enter again.
    Reopen(InstanceId),
    /// Leave it a small share of the processor, if no request is in it; then `on_throttled`.
    Throttle(InstanceId),
    /// Give it its share again.
    Wake(InstanceId),
    /// Hold it still, if no request is in it; then `on_frozen`.
    Freeze(InstanceId),
    /// Take back the memory of a frozen one that it can read again.
    Reclaim(InstanceId),
    /// No further request may enter, and it is thawed; `on_drained` when the last one is out.
    Close(InstanceId),
    /// Send its stop signal; `on_unsignalled` if it cannot be sent.
    Terminate(InstanceId),
    /// The same with SIGKILL.
    Kill(InstanceId),
    /// Take away everything it had; then `on_removed`.
    Remove(InstanceId),
    /// It failed: answer whoever waits for it.
    Failed(InstanceId),
}

/// What came of a freeze.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Froze {
    Still,
    /// A request came first.
    Busy,
    /// The machine cannot; it is not asked to again.
    Cannot,
}

/// What an instance looks like from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen<'a> {
    pub id: &'a InstanceId,
    pub service: &'a ServiceKey,
    pub revision: &'a RevisionKey,
    pub state: InstanceState,
    pub since: Now,
    pub failure: Option<&'a FailReason>,
}

/// All instances of one node.
#[derive(Debug, Clone)]
pub struct Node {
    capacity: Resources,
    slots: BTreeMap<InstanceId, Slot>,
    pool: Pool,
    backoff: Backoff,
}

impl Node {
    /// A node with room for `capacity` that keeps up to `parked` containers parked.
    #[must_use]
    pub fn new(capacity: Resources, parked: u32) -> Self {
        Self {
            capacity,
            slots: BTreeMap::new(),
            pool: Pool::new(parked),
            backoff: Backoff::default(),
        }
    }

    /// What is left for further instances.
    #[must_use]
    pub fn free(&self) -> Resources {
        let mut free = self.capacity;
        for needs in self
            .slots
            .values()
            .filter(|s| s.holds_resources())
            .map(|s| s.admission.needs)
        {
            free.cpu_millis = free.cpu_millis.saturating_sub(needs.cpu_millis);
            free.memory_bytes = free.memory_bytes.saturating_sub(needs.memory_bytes);
            free.instances = free.instances.saturating_sub(1);
        }
        free
    }

    #[must_use]
    pub fn capacity(&self) -> Resources {
        self.capacity
    }

    /// Every instance known, ended ones for a while.
    pub fn seen(&self) -> impl Iterator<Item = Seen<'_>> {
        self.slots.iter().map(|(id, slot)| Seen {
            id,
            service: &slot.admission.service,
            revision: &slot.admission.revision,
            state: slot.state(),
            since: slot.since,
            failure: slot.failure.as_ref(),
        })
    }

    #[must_use]
    pub fn knows(&self, id: &InstanceId) -> bool {
        self.slots.contains_key(id)
    }

    /// Why the instance failed, if it did.
    #[must_use]
    pub fn failure(&self, id: &InstanceId) -> Option<&FailReason> {
        self.slots.get(id)?.failure.as_ref()
    }

    /// Instances to be asked how long nobody asked them anything; then `on_cpu`, `on_idle` or `on_thawed`.
    pub fn idlers(&self) -> impl Iterator<Item = (&InstanceId, InstanceState)> {
        let may = |slot: &Slot| match slot.phase {
            Phase::Ready => matches!(slot.sleep, Sleep::None | Sleep::Light),
            Phase::Frozen => true,
            _ => false,
        };
        let idlers = self.slots.iter().filter(move |(_, slot)| may(slot));
        idlers.map(|(id, slot)| (id, slot.state()))
    }

    /// Takes on an instance, if there is room. A parked container of its revision is taken, and
    /// then the instance has that one's name.
    pub fn admit(
        &mut self,
        now: Now,
        admission: Admission,
    ) -> Result<(InstanceId, Vec<Effect>), Refused> {
        if let Some(reason) = self.backoff.refuses(now, &admission.revision) {
            return Err(Refused::CrashLoop(reason));
        }
        self.room_for(admission.needs)?;
        if let Some(slot) = self.parked(&admission.revision) {
            return Ok(unpark(now, slot, admission));
        }
        let id = admission.id.clone();
        let previous = self
            .slots
            .insert(id.clone(), Slot::new(now, admission, Phase::Preparing));
        assert!(previous.is_none(), "instance {id} was admitted twice");
        Ok((id.clone(), vec![Effect::Prepare(id)]))
    }

    /// The best one for a start: one that is prepared, or else one that soon will be.
    fn parked(&mut self, revision: &RevisionKey) -> Option<&mut Slot> {
        let fit = |slot: &&mut Slot| {
            slot.admission.revision == *revision
                && !slot.stopping
                && matches!(slot.phase, Phase::Parked | Phase::Parking)
        };
        let fitting = self.slots.values_mut().filter(fit);
        fitting.min_by_key(|slot| slot.phase != Phase::Parked)
    }

    fn room_for(&self, needs: Resources) -> Result<(), NoRoom> {
        let free = self.free();
        if free.instances == 0 {
            return Err(NoRoom::Instances(self.capacity.instances));
        }
        if needs.cpu_millis > free.cpu_millis {
            return Err(NoRoom::Cpu {
                want: needs.cpu_millis,
                free: free.cpu_millis,
            });
        }
        if needs.memory_bytes > free.memory_bytes {
            return Err(NoRoom::Memory {
                want: needs.memory_bytes,
                free: free.memory_bytes,
            });
        }
        Ok(())
    }

    /// Finds an instance of the revision that is on its way, or so fresh that the asker could not
    /// know of it, and can carry `held` more requests than it was promised to: several front doors
    /// that ask in the same moment then share one. `capacity` is what an instance carries at once.
    pub fn share(
        &mut self,
        now: Now,
        revision: &RevisionKey,
        held: u32,
        capacity: u32,
    ) -> Option<InstanceId> {
        let slot = self.slots.values_mut().find(|slot| {
            let promised = slot.admission.promised;
            slot.admission.revision == *revision
                && slot.is_fresh(now)
                && promised.saturating_add(held) <= capacity
        })?;
        slot.admission.promised = slot.admission.promised.saturating_add(held);
        Some(slot.id())
    }

    /// Takes over an instance that a former daemon left running: it is probed and opened, not
    /// started. Adopted instances are never refused, even beyond the capacity.
    pub fn adopt(&mut self, now: Now, admission: Admission) -> Vec<Effect> {
        let slot = Slot::new(now, admission, Phase::Probing);
        // Its program began long ago.
        let question = slot.question(Kind::Readiness, 0);
        self.slots.insert(slot.id(), slot);
        vec![question]
    }

    /// Puts a container by for a start to come.
    pub fn park(&mut self, now: Now, admission: Admission) -> Vec<Effect> {
        let id = admission.id.clone();
        let previous = self
            .slots
            .insert(id.clone(), Slot::new(now, admission, Phase::Parking));
        assert!(previous.is_none(), "instance {id} was parked twice");
        vec![Effect::Prepare(id)]
    }

    /// Looks after the parked pool: what is too much goes, and what is missing is made, one at a
    /// time and never while an instance starts. Requests are sent to the revisions that `serves`
    /// names; nothing is parked of others. Call it after every input, and once a second.
    pub fn tend(&mut self, now: Now, serves: impl Fn(&RevisionKey) -> bool) -> Vec<Effect> {
        self.pool.retain(now, serves);
        let mut wanted = self.pool.wanted(now, self.capacity, self.free());
        let mut effects = Vec::new();
        for slot in self.slots.values_mut() {
            let parked = matches!(slot.phase, Phase::Parked | Phase::Parking);
            if !parked || slot.stopping {
                continue;
            }
            let left = wanted.iter_mut().find(|w| w.0 == slot.admission.revision);
            match left {
                Some((_, count)) if *count > 0 => *count -= 1,
                _ if slot.phase == Phase::Parked => effects.extend(slot.remove(now)),
                _ => slot.stopping = true,
            }
        }
        let mut slots = self.slots.values();
        if !slots.any(|slot| slot.is_starting(now) || slot.phase == Phase::Parking) {
            let missing = wanted.into_iter().find(|(_, count)| *count > 0);
            effects.extend(missing.map(|(revision, _)| Effect::Park(revision)));
        }
        effects
    }
}

fn unpark(now: Now, slot: &mut Slot, admission: Admission) -> (InstanceId, Vec<Effect>) {
    let id = slot.id();
    slot.asked = admission.asked.unwrap_or(now);
    slot.admission = Admission {
        id: id.clone(),
        ..admission
    };
    if slot.phase == Phase::Parking {
        slot.origin = Origin::Made;
        slot.enter(now, Phase::Preparing);
        return (id, Vec::new());
    }
    slot.origin = Origin::Taken;
    slot.enter(now, Phase::Launching);
    (id.clone(), vec![Effect::Launch(id)])
}
