//! One instance's place in its life.

use super::probing::{Ask, Kind, Plan, Streak};
use super::resting::Readings;
use super::{Admission, Effect};
use crate::autoscale::forecast::Forecast;
use crate::model::{FailReason, InstanceId, InstanceState, Now};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Being prepared for nobody yet.
    Parking,
    /// Prepared; a start needs nothing but its program.
    Parked,
    Preparing,
    Launching,
    Probing,
    Ready,
    /// Held still while nobody asks it anything.
    Frozen,
    /// It was ready, and its readiness probe says it is not; until then it may become so again.
    Unready {
        until: Now,
    },
    /// Closed; requests still in it have until then.
    Draining {
        until: Now,
    },
    /// Told to end; `kill_at` is `None` once it was killed. What did not reach it is sent again at
    /// `again_at`.
    Ending {
        kill_at: Option<Now>,
        again_at: Option<Now>,
    },
    Removing,
    /// Told about until then.
    Ended {
        forget: Now,
    },
}

impl Phase {
    const fn state(self) -> InstanceState {
        match self {
            Self::Parking | Self::Parked => InstanceState::Parked,
            // One that is not ready again yet is on its way as one that never was.
            Self::Preparing | Self::Launching | Self::Probing | Self::Unready { .. } => {
                InstanceState::Starting
            }
            Self::Ready => InstanceState::Ready,
            Self::Frozen => InstanceState::Frozen,
            Self::Draining { .. } | Self::Ending { .. } => InstanceState::Draining,
            Self::Removing | Self::Ended { .. } => InstanceState::Stopped,
        }
    }

    pub(super) fn deadline(self) -> Option<Now> {
        match self {
            Self::Unready { until } | Self::Draining { until } => Some(until),
            Self::Ending { kill_at, again_at } => kill_at.into_iter().chain(again_at).min(),
            Self::Ended { forget } => Some(forget),
            _ => None,
        }
    }

    /// Its program was started and nobody told it to end.
    pub(super) const fn runs(self) -> bool {
        matches!(
            self,
            Self::Probing | Self::Ready | Self::Frozen | Self::Unready { .. }
        )
    }
}

/// Whose container it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// Nobody's: kept for a start to come, with nothing set aside of what it needs.
    Parked,
    /// A start's that took a parked one.
    Taken,
    /// A start's that it was made for.
    Made,
}

/// What its phase does not say of an instance that nobody asks anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sleep {
    None,
    /// It is being throttled.
    Dozes,
    /// It has a small share of the processor.
    Light,
    /// It is being frozen.
    Begins,
    /// It gave its memory back.
    Deep,
}

#[derive(Debug, Clone)]
pub(super) struct Slot {
    pub(super) admission: Admission,
    pub(super) phase: Phase,
    pub(super) since: Now,
    /// When the start was asked for that it is for.
    pub(super) asked: Now,
    pub(super) origin: Origin,
    /// Asked to stop while it was still being prepared or launched.
    pub(super) stopping: bool,
    pub(super) failure: Option<FailReason>,
    /// It ended while its launch was under way.
    pub(super) exited: Option<FailReason>,
    /// When requests could enter first.
    pub(super) ready_at: Option<Now>,
    pub(super) sleep: Sleep,
    /// Whether it may be throttled.
    pub(super) yields: bool,
    /// What it uses of processors while nobody asks it anything.
    pub(super) readings: Readings,
    /// When requests came that let it go on.
    pub(super) forecast: Forecast,
    /// Its startup probe succeeded.
    pub(super) started: bool,
    /// Answers to earlier rounds of questions mean nothing.
    pub(super) round: u32,
    pub(super) readiness: Streak,
    pub(super) liveness: Streak,
}

impl Slot {
    pub(super) fn new(now: Now, admission: Admission, phase: Phase) -> Self {
        Self {
            asked: admission.asked.unwrap_or(now),
            admission,
            phase,
            since: now,
            origin: match phase {
                Phase::Parking => Origin::Parked,
                _ => Origin::Made,
            },
            stopping: false,
            failure: None,
            exited: None,
            ready_at: None,
            sleep: Sleep::None,
            yields: true,
            readings: Readings::default(),
            forecast: Forecast::default(),
            started: false,
            round: 0,
            readiness: Streak::default(),
            liveness: Streak::default(),
        }
    }

    pub(super) fn id(&self) -> InstanceId {
        self.admission.id.clone()
    }

    /// On its way, or ready so lately that not everybody knows.
    pub(super) fn is_fresh(&self, now: Now) -> bool {
        let lately = || {
            self.ready_at
                .is_some_and(|at| now.since(at) < super::FRESH_MS)
        };
        !self.stopping
            && match self.phase {
                Phase::Preparing | Phase::Launching | Phase::Probing => true,
                Phase::Ready => lately(),
                _ => false,
            }
    }

    /// A failed instance is told about as failed from the moment it fails.
    pub(super) const fn state(&self) -> InstanceState {
        if self.failure.is_some() {
            InstanceState::Failed
        } else {
            self.phase.state()
        }
    }

    pub(super) const fn holds_resources(&self) -> bool {
        !matches!(self.origin, Origin::Parked) && !matches!(self.phase, Phase::Ended { .. })
    }

    /// It uses the machine up to be ready soon.
    pub(super) fn is_starting(&self, now: Now) -> bool {
        match self.phase {
            Phase::Preparing | Phase::Launching => true,
            Phase::Probing => now.since(self.since) < super::FRESH_MS,
            _ => false,
        }
    }

    pub(super) fn enter(&mut self, now: Now, phase: Phase) {
        self.phase = phase;
        self.since = now;
        if self.sleep == Sleep::Deep {
            self.sleep = Sleep::None;
        }
    }

    /// The first question to a program that was just started, or is taken over.
    pub(super) fn first_question(&self) -> Effect {
        let probes = &self.admission.probes;
        let (kind, plan) = match probes.startup {
            Some(plan) if !self.started => (Kind::Startup, Some(plan)),
            _ => (Kind::Readiness, probes.readiness),
        };
        self.question(kind, plan.map_or(0, |plan| plan.delay_ms))
    }

    pub(super) fn question(&self, kind: Kind, after_ms: u64) -> Effect {
        Effect::Probe {
            id: self.id(),
            ask: Ask {
                kind,
                round: self.round,
            },
            after_ms,
        }
    }

    /// Begins a new round of the questions that go on while it is ready. `began` is its first: its
    /// program may still be busy with its own beginning.
    pub(super) fn questions(&mut self, began: bool) -> Vec<Effect> {
        self.round += 1;
        let probes = self.admission.probes;
        let first = |plan: Plan| {
            let delay = if began { plan.delay_ms } else { 0 };
            delay.max(plan.period_ms)
        };
        let readiness = probes
            .readiness
            .map(|plan| self.question(Kind::Readiness, plan.period_ms));
        let liveness = probes
            .liveness
            .map(|plan| self.question(Kind::Liveness, first(plan)));
        readiness.into_iter().chain(liveness).collect()
    }

    /// Asks the program to end, and sets when it is killed.
    pub(super) fn end(&mut self, now: Now) -> Vec<Effect> {
        let kill_at = Some(now.plus(self.admission.grace_ms));
        let ending = Phase::Ending {
            kill_at,
            again_at: None,
        };
        self.enter(now, ending);
        vec![Effect::Terminate(self.id())]
    }

    /// What an instance that is ending is due to be sent: the first kill, or again what did not
    /// reach it.
    pub(super) fn due(&mut self, now: Now) -> Option<Effect> {
        let Phase::Ending { kill_at, again_at } = &mut self.phase else {
            return None;
        };
        let is_due = |at: &mut Now| *at <= now;
        let killed = kill_at.take_if(is_due).is_some();
        if again_at.take_if(is_due).is_none() && !killed {
            return None;
        }
        if kill_at.is_some() {
            return Some(Effect::Terminate(self.id()));
        }
        *again_at = None;
        Some(Effect::Kill(self.id()))
    }

    pub(super) fn remove(&mut self, now: Now) -> Vec<Effect> {
        self.enter(now, Phase::Removing);
        vec![Effect::Remove(self.id())]
    }

    /// It failed by itself: close it, tell, and take it away.
    pub(super) fn fail(&mut self, now: Now, reason: FailReason) -> Vec<Effect> {
        self.failure = Some(reason);
        let mut effects = vec![Effect::Close(self.id()), Effect::Failed(self.id())];
        effects.extend(self.remove(now));
        effects
    }

    /// It runs and is not worth keeping: close it, tell, and let it end in its own way.
    pub(super) fn give_up(&mut self, now: Now, reason: FailReason) -> Vec<Effect> {
        self.failure = Some(reason);
        let mut effects = vec![Effect::Close(self.id()), Effect::Failed(self.id())];
        effects.extend(self.end(now));
        effects
    }

    /// Why it failed that was not ready in time.
    pub(super) fn never_ready(&self, waited_ms: u64, said: &str) -> FailReason {
        let (seconds, port) = (waited_ms / 1_000, self.admission.port);
        FailReason {
            code: super::NEVER_READY.to_owned(),
            message: format!(
                "did not become ready within {seconds} s of its start: does it listen on 0.0.0.0:{port} (PORT)? Asked, it said: {said}"
            ),
        }
    }
}
