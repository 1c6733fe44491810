//! Probes with Kubernetes' timings: what a service asks for, and what a row of answers means. The
//! asking itself is the agent's.

use crate::model::{Container, Probe, ProbeAction};

/// Defaults of Kubernetes.
const PERIOD_SECONDS: u32 = 10;
const FAILURES: u32 = 3;
const SUCCESSES: u32 = 1;
/// A program is not run in the instance more often than this, however eager the start.
const EXEC_PAUSE_MS: u64 = 100;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Until it succeeds once, no other is asked.
    Startup,
    /// Whether requests may enter.
    Readiness,
    /// Whether it is worth keeping.
    Liveness,
}

/// One question, and to which row of them it belongs: answers to an earlier row mean nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ask {
    pub kind: Kind,
    pub round: u32,
}

/// How often one probe is asked, and how many answers make a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    pub delay_ms: u64,
    pub period_ms: u64,
    pub failures: u32,
    pub successes: u32,
    /// The shortest pause between two, while a start waits for it.
    pub floor_ms: u64,
}

/// The probes a service defines.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Probes {
    pub startup: Option<Plan>,
    pub readiness: Option<Plan>,
    pub liveness: Option<Plan>,
}

impl Probes {
    #[must_use]
    pub fn of(container: &Container) -> Self {
        let plan = |probe: &Option<Probe>| probe.as_ref().map(Plan::of);
        Self {
            startup: plan(&container.startup),
            readiness: plan(&container.readiness),
            liveness: plan(&container.liveness),
        }
    }
}

impl Plan {
    fn of(probe: &Probe) -> Self {
        let or = |value: u32, default: u32| if value == 0 { default } else { value };
        let millis = |seconds: u32| u64::from(seconds) * 1_000;
        Self {
            delay_ms: millis(probe.initial_delay_seconds),
            period_ms: millis(or(probe.period_seconds, PERIOD_SECONDS)),
            failures: or(probe.failure_threshold, FAILURES),
            successes: or(probe.success_threshold, SUCCESSES),
            floor_ms: match probe.action {
                ProbeAction::Exec { .. } => EXEC_PAUSE_MS,
                _ => 1,
            },
        }
    }

    /// How long it may fail from the start on.
    #[must_use]
    pub fn budget_ms(&self) -> u64 {
        self.delay_ms + self.period_ms * u64::from(self.failures)
    }
}

/// Equal answers since the last other one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Streak {
    good: bool,
    length: u32,
}

impl Streak {
    /// One more answer; how many of its kind there are now.
    pub(super) fn note(&mut self, good: bool) -> u32 {
        if self.good != good {
            *self = Self { good, length: 0 };
        }
        self.length = self.length.saturating_add(1);
        self.length
    }
}

/// How long to wait before the next question to a program that starts: a millisecond while a quick
/// one comes up, wider for slow ones, so that waiting for one costs the node next to nothing.
pub(super) fn pause_ms(waited_ms: u64) -> u64 {
    match waited_ms {
        0..50 => 1,
        50..500 => 5,
        500..5_000 => 25,
        _ => 200,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_in_a_timing_is_kubernetes_default() {
        let probe = Probe {
            action: ProbeAction::Tcp { port: 0 },
            initial_delay_seconds: 0,
            period_seconds: 0,
            timeout_seconds: 0,
            success_threshold: 0,
            failure_threshold: 0,
        };
        let plan = Plan::of(&probe);
        assert_eq!((plan.period_ms, plan.failures), (10_000, 3));
        assert_eq!((plan.successes, plan.budget_ms()), (1, 30_000));
    }

    #[test]
    fn an_answer_of_the_other_kind_ends_a_streak() {
        let mut streak = Streak::default();
        let answers = [true, false, false, true, true, true, false];
        assert_eq!(answers.map(|a| streak.note(a)), [1, 1, 2, 1, 2, 3, 1]);
    }
}
