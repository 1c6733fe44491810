//! What happens to the instances of a node: every input, and the steps that follow from it.

use super::probing::{Ask, Kind, pause_ms};
use super::resting::disturbed;
use super::slot::{Origin, Phase, Slot};
use super::{
    Effect, Exit, FailReason, InstanceId, Node, Now, REMEMBER_MS, SHIM_LOST, SIGNAL_AGAIN_MS,
    UNHEALTHY, UNREADY_MOST_MS,
};

impl Node {
    pub fn on_prepared(
        &mut self,
        now: Now,
        id: &InstanceId,
        result: Result<(), FailReason>,
    ) -> Vec<Effect> {
        let Some(slot) = self.slots.get_mut(id) else {
            return Vec::new();
        };
        match (slot.phase, result) {
            (Phase::Preparing | Phase::Parking, Ok(())) if slot.stopping => slot.remove(now),
            (Phase::Preparing, Ok(())) => {
                slot.enter(now, Phase::Launching);
                vec![Effect::Launch(slot.id())]
            }
            (Phase::Preparing, Err(reason)) => slot.fail(now, reason),
            (Phase::Parking, Ok(())) => {
                slot.enter(now, Phase::Parked);
                vec![Effect::Parked(slot.id())]
            }
            (Phase::Parking, Err(_)) => {
                // A start will find out for itself, and tell who waits for it.
                self.pool.forget(&slot.admission.revision);
                slot.remove(now)
            }
            _ => Vec::new(),
        }
    }

    pub fn on_launched(
        &mut self,
        now: Now,
        id: &InstanceId,
        result: Result<(), FailReason>,
    ) -> Vec<Effect> {
        let Some(slot) = self.slots.get_mut(id) else {
            return Vec::new();
        };
        if slot.phase != Phase::Launching {
            return Vec::new();
        }
        match result {
            Err(_) if slot.origin == Origin::Taken && !slot.stopping => {
                // What was wrong with it may be wrong with the others.
                self.pool.forget(&slot.admission.revision);
                slot.origin = Origin::Parked;
                let mut effects = vec![Effect::Again(slot.id())];
                effects.extend(slot.remove(now));
                effects
            }
            Err(reason) => slot.fail(now, reason),
            Ok(()) => {
                slot.enter(now, Phase::Probing);
                match slot.exited.take() {
                    Some(reason) => self.fail(now, id, reason),
                    None if slot.stopping => slot.end(now),
                    None => vec![slot.first_question()],
                }
            }
        }
    }

    /// A probe's answer. Late ones, of instances that moved on, are ignored.
    pub fn on_probed(
        &mut self,
        now: Now,
        id: &InstanceId,
        ask: Ask,
        answer: Result<(), String>,
    ) -> Vec<Effect> {
        let Some(slot) = self.slots.get_mut(id).filter(|s| s.round == ask.round) else {
            return Vec::new();
        };
        match (slot.phase, ask.kind) {
            (Phase::Probing, _) => self.on_first_answer(now, id, ask.kind, answer),
            (Phase::Ready | Phase::Unready { .. }, Kind::Readiness) => {
                on_readiness(now, slot, answer.is_ok())
            }
            (Phase::Ready | Phase::Unready { .. }, Kind::Liveness) => {
                self.on_liveness(now, id, answer)
            }
            _ => Vec::new(),
        }
    }

    /// It starts: its startup probe is asked until it succeeds, then its readiness.
    fn on_first_answer(
        &mut self,
        now: Now,
        id: &InstanceId,
        kind: Kind,
        answer: Result<(), String>,
    ) -> Vec<Effect> {
        let Some(slot) = self.slots.get_mut(id) else {
            return Vec::new();
        };
        let (plan, patience) = match (kind, slot.admission.probes.startup) {
            (Kind::Startup, Some(plan)) => (Some(plan), plan.budget_ms()),
            _ => (
                slot.admission.probes.readiness,
                slot.admission.start_deadline_ms,
            ),
        };
        match answer {
            Ok(()) if kind == Kind::Startup => {
                slot.started = true;
                slot.enter(now, Phase::Probing);
                vec![slot.first_question()]
            }
            Ok(()) => {
                slot.enter(now, Phase::Ready);
                slot.ready_at = Some(now);
                let mut effects = vec![Effect::Open(slot.id())];
                effects.extend(slot.questions(true));
                let (asked, revision) = (slot.asked, slot.admission.revision.clone());
                self.pool.started(asked, now, &revision);
                effects
            }
            Err(said) => {
                let waited = now.since(slot.since);
                if waited >= patience {
                    let reason = slot.never_ready(patience, &said);
                    return self.fail(now, id, reason);
                }
                let floor = plan.map_or(1, |plan| plan.floor_ms);
                vec![slot.question(kind, pause_ms(waited).max(floor))]
            }
        }
    }

    fn on_liveness(
        &mut self,
        now: Now,
        id: &InstanceId,
        answer: Result<(), String>,
    ) -> Vec<Effect> {
        let Some(slot) = self.slots.get_mut(id) else {
            return Vec::new();
        };
        let Some(plan) = slot.admission.probes.liveness else {
            return Vec::new();
        };
        let streak = slot.liveness.note(answer.is_ok());
        match answer {
            Err(said) if streak >= plan.failures => {
                let message = format!("its liveness probe failed {streak} times in a row: {said}");
                self.give_up(now, id, message)
            }
            answer => {
                let mut effects = vec![slot.question(Kind::Liveness, plan.period_ms)];
                effects.extend(answer.err().and_then(|_| disturbed(slot)));
                effects
            }
        }
    }

    /// The program ended by itself or because it was told to. `said` are its last log lines.
    pub fn on_exit(&mut self, now: Now, id: &InstanceId, exit: &Exit, said: &str) -> Vec<Effect> {
        let Some(slot) = self.slots.get_mut(id) else {
            return Vec::new();
        };
        match slot.phase {
            Phase::Ending { .. } | Phase::Draining { .. } | Phase::Parked => slot.remove(now),
            Phase::Launching if slot.origin == Origin::Taken => {
                // Before its launch was told: either that failed, or its program was this quick.
                slot.exited = Some(exit_reason(exit, true, said));
                Vec::new()
            }
            Phase::Parking | Phase::Removing | Phase::Ended { .. } => Vec::new(),
            phase => {
                let early = !matches!(phase, Phase::Ready | Phase::Frozen | Phase::Unready { .. });
                self.fail(now, id, exit_reason(exit, early, said))
            }
        }
    }

    /// Asks an instance to end. Unknown and ended ones give `false`.
    pub fn on_stop(&mut self, now: Now, id: &InstanceId) -> (bool, Vec<Effect>) {
        let Some(slot) = self.slots.get_mut(id) else {
            return (false, Vec::new());
        };
        match slot.phase {
            Phase::Parking | Phase::Preparing | Phase::Launching => {
                slot.stopping = true;
                (true, Vec::new())
            }
            Phase::Parked => (true, slot.remove(now)),
            Phase::Probing => (true, slot.end(now)),
            Phase::Ready | Phase::Frozen | Phase::Unready { .. } => {
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

    /// A signal did not reach it, for a cause that may pass (no file descriptor was left). That it is
    /// gone is told by `on_exit`.
    pub fn on_unsignalled(&mut self, now: Now, id: &InstanceId) {
        let phase = self.slots.get_mut(id).map(|slot| &mut slot.phase);
        if let Some(Phase::Ending { again_at, .. }) = phase {
            *again_at = Some(now.plus(SIGNAL_AGAIN_MS));
        }
    }

    /// Everything the instance had is gone. One that failed is told about for as long as its
    /// revision is not started again because of it.
    pub fn on_removed(&mut self, now: Now, id: &InstanceId) {
        let Some(slot) = self.slots.get_mut(id) else {
            return;
        };
        if slot.phase != Phase::Removing {
            return;
        }
        let mut forget = now.plus(REMEMBER_MS);
        if slot.failure.is_some() {
            let until = self.backoff.until(&slot.admission.revision);
            forget = until.map_or(forget, |until| until.max(forget));
            slot.phase = Phase::Ended { forget };
        } else if slot.origin == Origin::Parked {
            // It never was anybody's.
            self.slots.remove(id);
        } else {
            slot.enter(now, Phase::Ended { forget });
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
        let mut hopeless = Vec::new();
        for slot in self.slots.values_mut() {
            match slot.phase {
                Phase::Draining { until } if until <= now => effects.extend(slot.end(now)),
                Phase::Unready { until } if until <= now => hopeless.push(slot.id()),
                _ => effects.extend(slot.due(now)),
            }
        }
        for id in hopeless {
            let minutes = UNREADY_MOST_MS / 60_000;
            let message = format!("its readiness probe failed for {minutes} minutes");
            effects.extend(self.give_up(now, &id, message));
        }
        effects
    }

    /// It failed by itself: take it away.
    fn fail(&mut self, now: Now, id: &InstanceId, reason: FailReason) -> Vec<Effect> {
        let reason = self.counted(now, id, reason);
        let slot = self.slots.get_mut(id);
        slot.map_or_else(Vec::new, |slot| slot.fail(now, reason))
    }

    /// Its probes give it up: let it end.
    fn give_up(&mut self, now: Now, id: &InstanceId, message: String) -> Vec<Effect> {
        let code = UNHEALTHY.to_owned();
        let reason = self.counted(now, id, FailReason { code, message });
        let slot = self.slots.get_mut(id);
        slot.map_or_else(Vec::new, |slot| slot.give_up(now, reason))
    }

    /// A failure of a program that ran counts against its revision; returns it as it is told. One
    /// that served and went with its shim did not fail by itself.
    fn counted(&mut self, now: Now, id: &InstanceId, reason: FailReason) -> FailReason {
        match self.slots.get(id) {
            Some(slot) if slot.phase.runs() && reason.code != SHIM_LOST => {
                let ran_ms = slot.ready_at.map_or(0, |at| now.since(at));
                let revision = &slot.admission.revision;
                self.backoff.failed(now, revision, ran_ms, reason)
            }
            _ => reason,
        }
    }
}

/// An answer of the readiness probe of an instance that was ready.
fn on_readiness(now: Now, slot: &mut Slot, good: bool) -> Vec<Effect> {
    let Some(plan) = slot.admission.probes.readiness else {
        return Vec::new();
    };
    let streak = slot.readiness.note(good);
    let mut effects = vec![slot.question(Kind::Readiness, plan.period_ms)];
    if !good {
        effects.extend(disturbed(slot));
    }
    match (slot.phase, good) {
        (Phase::Ready, false) if streak >= plan.failures => {
            let until = now.plus(UNREADY_MOST_MS);
            slot.enter(now, Phase::Unready { until });
            effects.push(Effect::Shut(slot.id()));
        }
        (Phase::Unready { .. }, true) if streak >= plan.successes => {
            slot.enter(now, Phase::Ready);
            effects.push(Effect::Reopen(slot.id()));
        }
        _ => {}
    }
    effects
}

fn exit_reason(exit: &Exit, early: bool, said: &str) -> FailReason {
    let how = match exit.signal {
        _ if exit.lost => {
            "its shim, the process that keeps it, was gone and it was ended".to_owned()
        }
        Some(signal) => format!("was killed by signal {signal}"),
        None => format!("exited with code {}", exit.code),
    };
    let (code, mut message) = if exit.oom {
        (
            "OOMKilled",
            "ran out of memory and was killed: raise its memory limit".to_owned(),
        )
    } else if exit.lost && !early {
        (SHIM_LOST, how)
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
