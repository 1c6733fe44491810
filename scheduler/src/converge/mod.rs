//! The life of the instances on one node: what was asked for and what was seen, turned into the
//! next steps. It starts nothing itself; the agent performs the effects and reports back.
//!
//! ```text
//! admit -> Preparing -> Launching -> Probing -> Ready -> Draining -> Ending -> (removed) Stopped
//!              |            |           |         |                    ^
//!              +------------+-----------+---------+--> Failed          | stop while starting
//! ```
//! Routing is always closed before a program is asked to end.

mod slot;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use crate::model::{
    Exit, FailReason, InstanceId, InstanceState, Now, Resources, RevisionKey, ServiceKey,
};
use slot::{Phase, Slot};

/// The code word of an instance that never listened.
pub const NEVER_READY: &str = "NeverReady";
/// How long other nodes may not have heard of an instance that became ready.
const FRESH_MS: u64 = 2_000;
/// How long an ended instance is still told about, so that others see why.
const REMEMBER_MS: u64 = 60_000;

/// One instance to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admission {
    pub id: InstanceId,
    pub service: ServiceKey,
    pub revision: RevisionKey,
    pub needs: Resources,
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

/// What the agent does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Get the image, root filesystem, network and container; then `on_prepared`.
    Prepare(InstanceId),
    /// Start the user's program; then `on_launched`.
    Launch(InstanceId),
    /// Ask its readiness once, so many milliseconds from now; then `on_probe`.
    Probe {
        id: InstanceId,
        after_ms: u64,
    },
    /// Requests may enter.
    Open(InstanceId),
    /// No further request may enter; `on_drained` when the last one is out.
    Close(InstanceId),
    /// Send its stop signal.
    Terminate(InstanceId),
    Kill(InstanceId),
    /// Take away everything it had; then `on_removed`.
    Remove(InstanceId),
    /// It failed: answer whoever waits for it.
    Failed(InstanceId),
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
}

impl Node {
    #[must_use]
    pub fn new(capacity: Resources) -> Self {
        Self {
            capacity,
            slots: BTreeMap::new(),
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

    /// Why the instance failed, if it did.
    #[must_use]
    pub fn failure(&self, id: &InstanceId) -> Option<&FailReason> {
        self.slots.get(id)?.failure.as_ref()
    }

    /// Takes on an instance, if there is room.
    pub fn admit(&mut self, now: Now, admission: Admission) -> Result<Vec<Effect>, NoRoom> {
        self.room_for(admission.needs)?;
        let id = admission.id.clone();
        let previous = self
            .slots
            .insert(id.clone(), Slot::new(now, admission, Phase::Preparing));
        assert!(previous.is_none(), "instance {id} was admitted twice");
        Ok(vec![Effect::Prepare(id)])
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
        let id = admission.id.clone();
        self.slots
            .insert(id.clone(), Slot::new(now, admission, Phase::Probing));
        vec![Effect::Probe { id, after_ms: 0 }]
    }

    pub fn on_prepared(
        &mut self,
        now: Now,
        id: &InstanceId,
        result: Result<(), FailReason>,
    ) -> Vec<Effect> {
        self.step(id, Phase::Preparing, |slot| match result {
            Err(reason) => slot.fail(now, reason),
            Ok(()) if slot.stopping => slot.remove(now),
            Ok(()) => {
                slot.enter(now, Phase::Launching);
                vec![Effect::Launch(slot.id())]
            }
        })
    }

    pub fn on_launched(
        &mut self,
        now: Now,
        id: &InstanceId,
        result: Result<(), FailReason>,
    ) -> Vec<Effect> {
        self.step(id, Phase::Launching, |slot| match result {
            Err(reason) => slot.fail(now, reason),
            Ok(()) if slot.stopping => slot.end(now),
            Ok(()) => {
                slot.enter(now, Phase::Probing);
                vec![Effect::Probe {
                    id: slot.id(),
                    after_ms: 0,
                }]
            }
        })
    }

    /// What a failed probe was told, for the case that the instance fails by it.
    pub fn heard(&mut self, id: &InstanceId, said: String) {
        if let Some(slot) = self.slots.get_mut(id) {
            slot.heard = said;
        }
    }

    /// A readiness probe's result. Late results, of instances that moved on, are ignored.
    pub fn on_probe(&mut self, now: Now, id: &InstanceId, ready: bool) -> Vec<Effect> {
        let Some(slot) = self.slots.get_mut(id) else {
            return Vec::new();
        };
        if slot.phase != Phase::Probing {
            return Vec::new();
        }
        if ready {
            slot.enter(now, Phase::Ready);
            return vec![Effect::Open(id.clone())];
        }
        let waited = now.since(slot.since);
        if waited >= slot.admission.start_deadline_ms {
            return slot.never_ready(now);
        }
        vec![Effect::Probe {
            id: id.clone(),
            after_ms: probe_pause_ms(waited),
        }]
    }

    /// The program ended by itself or because it was told to. `said` are its last log lines.
    pub fn on_exit(&mut self, now: Now, id: &InstanceId, exit: &Exit, said: &str) -> Vec<Effect> {
        let Some(slot) = self.slots.get_mut(id) else {
            return Vec::new();
        };
        match slot.phase {
            Phase::Ending { .. } | Phase::Draining { .. } => slot.remove(now),
            Phase::Removing | Phase::Ended { .. } => Vec::new(),
            Phase::Preparing | Phase::Launching | Phase::Probing | Phase::Ready => {
                let early = slot.phase != Phase::Ready;
                slot.fail(now, exit_reason(exit, early, said))
            }
        }
    }

    /// Asks an instance to end. Unknown and ended ones give `false`.
    pub fn on_stop(&mut self, now: Now, id: &InstanceId) -> (bool, Vec<Effect>) {
        let Some(slot) = self.slots.get_mut(id) else {
            return (false, Vec::new());
        };
        match slot.phase {
            Phase::Preparing | Phase::Launching => {
                slot.stopping = true;
                (true, Vec::new())
            }
            Phase::Probing => (true, slot.end(now)),
            Phase::Ready => {
                let until = now.plus(slot.admission.drain_ms);
                slot.enter(now, Phase::Draining { until });
                (true, vec![Effect::Close(id.clone())])
            }
            Phase::Draining { .. } | Phase::Ending { .. } => (true, Vec::new()),
            Phase::Removing | Phase::Ended { .. } => (false, Vec::new()),
        }
    }

    /// The last request left a closed instance.
    pub fn on_drained(&mut self, now: Now, id: &InstanceId) -> Vec<Effect> {
        match self.slots.get_mut(id) {
            Some(slot) if matches!(slot.phase, Phase::Draining { .. }) => slot.end(now),
            _ => Vec::new(),
        }
    }

    /// Everything the instance had is gone.
    pub fn on_removed(&mut self, now: Now, id: &InstanceId) {
        if let Some(slot) = self.slots.get_mut(id)
            && slot.phase == Phase::Removing
        {
            let phase = Phase::Ended {
                forget: now.plus(REMEMBER_MS),
            };
            if slot.failure.is_some() {
                slot.phase = phase;
            } else {
                slot.enter(now, phase);
            }
        }
    }

    /// When `on_timeout` has something to do.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Now> {
        self.slots
            .values()
            .filter_map(|slot| slot.phase.deadline())
            .min()
    }

    pub fn on_timeout(&mut self, now: Now) -> Vec<Effect> {
        self.slots
            .retain(|_, slot| !matches!(slot.phase, Phase::Ended { forget } if forget <= now));
        let mut effects = Vec::new();
        for slot in self.slots.values_mut() {
            match slot.phase {
                Phase::Draining { until } if until <= now => effects.extend(slot.end(now)),
                Phase::Ending { kill_at: Some(at) } if at <= now => {
                    slot.phase = Phase::Ending { kill_at: None };
                    effects.push(Effect::Kill(slot.id()));
                }
                _ => {}
            }
        }
        effects
    }

    fn step(
        &mut self,
        id: &InstanceId,
        expected: Phase,
        next: impl FnOnce(&mut Slot) -> Vec<Effect>,
    ) -> Vec<Effect> {
        match self.slots.get_mut(id) {
            Some(slot) if slot.phase == expected => next(slot),
            _ => Vec::new(),
        }
    }
}

/// How long to wait before the next readiness probe: a millisecond while a quick program comes up,
/// wider for slow ones, so that waiting for one costs the node next to nothing.
fn probe_pause_ms(waited_ms: u64) -> u64 {
    match waited_ms {
        0..50 => 1,
        50..500 => 5,
        500..5_000 => 25,
        _ => 200,
    }
}

fn exit_reason(exit: &Exit, early: bool, said: &str) -> FailReason {
    let how = match exit.signal {
        Some(signal) => format!("was killed by signal {signal}"),
        None => format!("exited with code {}", exit.code),
    };
    let (code, mut message) = if exit.oom {
        (
            "OOMKilled",
            "ran out of memory and was killed: raise its memory limit".to_owned(),
        )
    } else if early {
        ("Exited", format!("{how} before it was ready"))
    } else {
        ("Exited", how)
    };
    if !said.is_empty() {
        message.push_str("; its last lines:\n");
        message.push_str(said);
    }
    FailReason {
        code: code.to_owned(),
        message,
    }
}
