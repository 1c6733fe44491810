//! One instance's place in its life.

use super::{Admission, Effect};
use crate::model::{FailReason, InstanceId, InstanceState, Now};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Preparing,
    Launching,
    Probing,
    Ready,
    /// Closed; requests still in it have until then.
    Draining {
        until: Now,
    },
    /// Told to end; `kill_at` is `None` once it was killed.
    Ending {
        kill_at: Option<Now>,
    },
    Removing,
    /// Told about until then.
    Ended {
        forget: Now,
    },
}

impl Phase {
    pub(super) const fn state(self) -> InstanceState {
        match self {
            Self::Preparing | Self::Launching | Self::Probing => InstanceState::Starting,
            Self::Ready => InstanceState::Ready,
            Self::Draining { .. } | Self::Ending { .. } => InstanceState::Draining,
            Self::Removing | Self::Ended { .. } => InstanceState::Stopped,
        }
    }

    pub(super) const fn deadline(self) -> Option<Now> {
        match self {
            Self::Draining { until } => Some(until),
            Self::Ending { kill_at } => kill_at,
            Self::Ended { forget } => Some(forget),
            Self::Preparing | Self::Launching | Self::Probing | Self::Ready | Self::Removing => {
                None
            }
        }
    }
}

#[derive(Debug, Clone)]
pub(super) struct Slot {
    pub(super) admission: Admission,
    pub(super) phase: Phase,
    pub(super) since: Now,
    /// Asked to stop while it was still being prepared or launched.
    pub(super) stopping: bool,
    pub(super) failure: Option<FailReason>,
    /// What the last failed probe was told.
    pub(super) heard: String,
}

impl Slot {
    pub(super) const fn new(now: Now, admission: Admission, phase: Phase) -> Self {
        Self {
            admission,
            phase,
            since: now,
            stopping: false,
            failure: None,
            heard: String::new(),
        }
    }

    pub(super) fn id(&self) -> InstanceId {
        self.admission.id.clone()
    }

    /// On its way, or ready so lately that not everybody knows.
    pub(super) fn is_fresh(&self, now: Now) -> bool {
        !self.stopping
            && match self.phase {
                Phase::Preparing | Phase::Launching | Phase::Probing => true,
                Phase::Ready => now.since(self.since) < super::FRESH_MS,
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
        !matches!(self.phase, Phase::Ended { .. })
    }

    pub(super) fn enter(&mut self, now: Now, phase: Phase) {
        self.phase = phase;
        self.since = now;
    }

    /// Asks the program to end, and sets when it is killed.
    pub(super) fn end(&mut self, now: Now) -> Vec<Effect> {
        let kill_at = Some(now.plus(self.admission.grace_ms));
        self.enter(now, Phase::Ending { kill_at });
        vec![Effect::Terminate(self.id())]
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

    /// Not ready in time. The removal kills it.
    pub(super) fn never_ready(&mut self, now: Now) -> Vec<Effect> {
        let seconds = self.admission.start_deadline_ms / 1000;
        let mut message = format!(
            "did not become ready within {seconds} s of its start: does it listen on 0.0.0.0:{} (PORT)?",
            self.admission.port
        );
        if !self.heard.is_empty() {
            message = format!("{message} Last probe: {}", self.heard);
        }
        self.fail(
            now,
            FailReason {
                code: super::NEVER_READY.to_owned(),
                message,
            },
        )
    }
}
