//! How many instances a revision should have: Knative's pod autoscaler (KPA) on requests at once or a second,
//! or on the processors or the memory that instances use, in whole numbers. It owns the arithmetic of windows,
//! panic and zero; it neither gathers the samples nor starts or stops anything.

pub mod forecast;
pub mod ladder;
pub mod schedule;
mod window;

#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_traces;
#[cfg(test)]
mod tests_used;

use std::collections::VecDeque;
use std::fmt;

use crate::model::{Metric, Now, RevisionSpec, Scale, Used};
use window::{Average, Window};

/// Growth of one decision, as a multiple of what is ready.
const MAX_SCALE_UP_RATE: u64 = 1000;
/// Shrinking of one decision: to no less than what is ready divided by this.
const MAX_SCALE_DOWN_RATE: u64 = 2;
/// The panic window as a share of the stable one.
const PANIC_WINDOW_PERCENT: u32 = 10;
/// Panic begins when the panic window asks for this share of what is ready.
const PANIC_THRESHOLD_PERCENT: u64 = 200;
/// Requests a second that an instance is meant to carry where its service says nothing.
const TARGET_RPS: u64 = 200;
/// The least target: 0.01 requests at once.
const MIN_TARGET_MILLI: u64 = 10;
/// Instances of a revision where its service sets no bound of its own.
pub const MAX_INSTANCES: u32 = 1000;
/// Decisions remembered for the scale-down delay; at one a second, its longest hour.
const MAX_DELAYED: usize = 3600;

/// What is used may be so far from what is aimed at, in percent, without anything being done about it:
/// the tolerance of Kubernetes' autoscaler. Processors are never used evenly.
const TOLERANCE_PERCENT: u64 = 10;
/// Shrinking by what is used waits at least so long, as it does there: what an instance uses when another
/// one is gone is known only afterwards.
const USED_DOWN_DELAY_SECONDS: u32 = 300;

/// What a revision's instances are aimed at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Aim {
    pub metric: Metric,
    /// Requests at once or a second per instance, times 1000: the target times the utilization. By what is
    /// used of resources, what an instance is to use, in thousandths of a processor or in MiB.
    pub target_milli: u64,
    pub stable_seconds: u32,
    /// Shrinking waits until no decision of this long a time wanted more; 0 waits for none.
    pub scale_down_delay_seconds: u32,
    /// The least number to rise to from zero; 1 asks for nothing special.
    pub activation: u32,
    /// What a start takes.
    pub start_millis: u64,
}

impl Aim {
    /// The aim of a service's scale for instances of a revision. One that asks for nothing of what its
    /// service is scaled by is scaled by its requests.
    #[must_use]
    pub fn of(scale: &Scale, spec: &RevisionSpec) -> Self {
        let percent = u64::from(scale.utilization_percent);
        let total = match (scale.metric, scale.target) {
            (Metric::Rps, 0) => TARGET_RPS,
            (Metric::Rps, target) => target.into(),
            _ => scale.total_concurrency(spec.container_concurrency).into(),
        };
        // Thousandths times percent is a hundred thousandths: divided by 100 again.
        let requests = (total * 1000 * percent / 100).max(MIN_TARGET_MILLI);
        let used = asked_for(scale.metric, spec).map(|amount| {
            let percent = match scale.target {
                0 => percent,
                target => target.into(),
            };
            (amount.saturating_mul(percent) / 100).max(1)
        });
        let (metric, target_milli, least_delay) = match used {
            Some(target) => (scale.metric, target, USED_DOWN_DELAY_SECONDS),
            None if scale.metric == Metric::Rps => (Metric::Rps, requests, 0),
            None => (Metric::Concurrency, requests, 0),
        };
        Self {
            metric,
            target_milli,
            stable_seconds: scale.window_seconds.max(1),
            scale_down_delay_seconds: scale.down_delay_seconds.max(least_delay),
            activation: scale.activation.max(1),
            start_millis: 0,
        }
    }

    /// The same where a start takes so long. A burst that is over before what it starts is there is not
    /// worth starting for: panic looks no shorter back than a start takes.
    #[must_use]
    pub fn for_starts_of(self, start_millis: u64) -> Self {
        Self {
            start_millis,
            ..self
        }
    }

    fn panic_seconds(&self) -> u32 {
        let start = u32::try_from(self.start_millis.div_ceil(1000)).unwrap_or(u32::MAX);
        let share = self.stable_seconds * PANIC_WINDOW_PERCENT / 100;
        share.max(1).max(start.min(self.stable_seconds))
    }
}

/// What an instance asks for of what is measured: its request, or its limit where it has none. In
/// thousandths of a processor, or in MiB.
#[must_use]
pub fn asked_for(metric: Metric, spec: &RevisionSpec) -> Option<u64> {
    let container = spec.main()?;
    let first = |request: u64, limit: u64| if request > 0 { request } else { limit };
    let amount = match metric {
        Metric::Concurrency | Metric::Rps => 0,
        Metric::Cpu => first(
            container.cpu_request_millis.into(),
            container.cpu_millis.into(),
        ),
        Metric::Memory => {
            first(container.memory_request_bytes, container.memory_bytes).div_ceil(1 << 20)
        }
    };
    (amount > 0).then_some(amount)
}

/// How much is used of what is measured, in the same units; nothing where something else was measured.
#[must_use]
pub fn measured(metric: Metric, used: Option<Used>) -> u64 {
    match (metric, used) {
        (Metric::Rps, Some(Used::MilliRequests(amount)))
        | (Metric::Cpu, Some(Used::CpuMillis(amount)))
        | (Metric::Memory, Some(Used::MemoryMib(amount))) => amount.into(),
        _ => 0,
    }
}

/// What was seen at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    /// Of all instances together, and of what waits for one, in the units of [`Aim::target_milli`].
    pub amount: u64,
    /// Whether anything is asked of them at all: only then are they kept.
    pub asked: bool,
    pub ready: u32,
}

/// Bounds of the number of instances, applied last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    pub min: u32,
    pub max: u32,
}

impl Bounds {
    #[must_use]
    pub fn of(scale: &Scale) -> Self {
        let max = if scale.max == 0 {
            MAX_INSTANCES
        } else {
            scale.max
        };
        Self {
            min: scale.min.min(max),
            max,
        }
    }
}

/// How many instances are wanted, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision {
    pub wanted: u32,
    pub panic: bool,
    pub reason: Reason,
}

/// What settled a decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Nothing was observed for a whole window: the scale is kept.
    NoData,
    /// The stable window asks for it.
    Stable,
    /// The same, by requests a second.
    Rate,
    /// What its instances use of processors asks for it.
    Cpu,
    /// What they use of memory does.
    Memory,
    /// A burst: the number only grows until the burst is a stable window past.
    Panic,
    /// More was wanted within the scale-down delay.
    Delay,
    /// Nothing is asked of it, but not for long enough yet to go to zero.
    Idle,
    /// Nothing was asked of it for the whole window.
    Zero,
    /// By its history, a request may come any moment.
    Expected,
    /// By its history, none comes soon.
    Unlikely,
    /// Its programs hold leases: they work, whoever asks them anything.
    Leased,
    Min,
    Max,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::NoData => "no measurements",
            Self::Stable => "average concurrency",
            Self::Rate => "the rate of requests",
            Self::Cpu => "the processors its instances use",
            Self::Memory => "the memory its instances use",
            Self::Panic => "a burst of requests",
            Self::Delay => "scale-down delay",
            Self::Idle => "idle, but not for long enough",
            Self::Zero => "idle for the whole window",
            Self::Expected => "requests are expected by its history",
            Self::Unlikely => "idle, and none is expected soon by its history",
            Self::Leased => "its programs hold leases for work of their own",
            Self::Min => "the service's minimum",
            Self::Max => "the service's maximum",
        })
    }
}

/// The autoscaler of one revision.
#[derive(Debug, Clone)]
pub struct Autoscaler {
    aim: Aim,
    samples: Window,
    ready: u32,
    /// When the present panic was last confirmed.
    panic_since: Option<Now>,
    max_panic: u64,
    /// When it last had requests, or was first seen with instances: zero is counted from here.
    busy: Option<Now>,
    /// Whether it had some when it was last looked at.
    asked: bool,
    delayed: VecDeque<(Now, u64)>,
}

impl Autoscaler {
    /// Begins with `ready` instances there. More than one begins in panic: whoever takes over
    /// must not shrink what it has not measured yet.
    #[must_use]
    pub fn new(aim: Aim, now: Now, ready: u32) -> Self {
        let panicking = ready > 1;
        Self {
            aim,
            samples: Window::new(aim.stable_seconds),
            ready,
            panic_since: panicking.then_some(now),
            max_panic: if panicking { ready.into() } else { 0 },
            busy: (ready > 0).then_some(now),
            asked: false,
            delayed: VecDeque::new(),
        }
    }

    /// Follows a change of the service's scale without forgetting what was measured.
    pub fn set_aim(&mut self, aim: Aim) {
        if aim.metric != self.aim.metric {
            // They were of something else.
            self.samples = Window::new(aim.stable_seconds);
        } else if aim.stable_seconds != self.aim.stable_seconds {
            self.samples.resize(aim.stable_seconds);
        }
        self.aim = aim;
    }

    pub fn observe(&mut self, now: Now, sample: Sample) {
        let Sample {
            amount,
            asked,
            ready,
        } = sample;
        self.samples.record(now, amount);
        let woke = self.ready == 0 && ready > 0;
        if asked || woke || self.busy.is_none() {
            self.busy = Some(now);
        }
        self.asked = asked;
        self.ready = ready;
    }

    /// How many instances there should be.
    pub fn decide(&mut self, now: Now, bounds: &Bounds) -> Decision {
        let stable = self.samples.average(now, self.aim.stable_seconds);
        let panic = self.samples.average(now, self.aim.panic_seconds());
        let Some(stable) = stable else {
            return bounded(u64::from(self.ready), false, Reason::NoData, *bounds);
        };
        let ready = u64::from(self.ready.max(1));
        let used = self.aim.metric.is_of_resources();
        // Memory is used and processors turn although nobody asks for anything: that keeps nobody.
        if used && self.is_forsaken(now) {
            self.delayed.clear();
            (self.panic_since, self.max_panic) = (None, 0);
            return bounded(0, false, Reason::Zero, *bounds);
        }
        // The panic window may be empty where the stable one is not: measurements stopped a
        // moment ago. That is no burst.
        let (stable, burst) = if used {
            let least = 1; // It is asked for something.
            let stable = tolerated(stable, self.aim.target_milli, ready).max(least);
            // What is used of processors and memory jumps at every start: no burst either.
            (stable, 0)
        } else {
            let burst = panic.map_or(0, |p| p.in_shares_of(self.aim.target_milli));
            (stable.in_shares_of(self.aim.target_milli), burst)
        };

        let most = ready * MAX_SCALE_UP_RATE;
        let least = ready / MAX_SCALE_DOWN_RATE;
        let mut desired = self.activated(stable, stable.clamp(least, most));
        let mut reason = match self.aim.metric {
            Metric::Concurrency => Reason::Stable,
            Metric::Rps => Reason::Rate,
            Metric::Cpu => Reason::Cpu,
            Metric::Memory => Reason::Memory,
        };

        self.judge_panic(now, burst * 100 >= ready * PANIC_THRESHOLD_PERCENT);
        if self.panic_since.is_some() {
            let burst = self.activated(burst, burst.clamp(least, most));
            self.max_panic = self.max_panic.max(desired).max(burst);
            desired = self.max_panic;
            reason = Reason::Panic;
        }
        let delayed = self.delay(now, desired);
        if delayed > desired {
            (desired, reason) = (delayed, Reason::Delay);
        }
        if desired == 0 {
            (desired, reason) = self.idle(now);
        }
        bounded(desired, self.panic_since.is_some(), reason, *bounds)
    }

    fn activated(&self, asked: u64, scale: u64) -> u64 {
        if asked > 0 {
            scale.max(u64::from(self.aim.activation))
        } else {
            scale
        }
    }

    fn judge_panic(&mut self, now: Now, over: bool) {
        let calm = |since: Now| now.since(since) > u64::from(self.aim.stable_seconds) * 1000;
        if over {
            self.panic_since = Some(now);
        } else if self.panic_since.is_some_and(calm) {
            self.panic_since = None;
            self.max_panic = 0;
        }
    }

    /// The most that was desired within the scale-down delay.
    fn delay(&mut self, now: Now, desired: u64) -> u64 {
        let delay = u64::from(self.aim.scale_down_delay_seconds) * 1000;
        if delay == 0 {
            self.delayed.clear();
            return desired;
        }
        // Only a falling sequence can matter: what is no more than a later one never is the most.
        while self.delayed.back().is_some_and(|(_, d)| *d <= desired) {
            self.delayed.pop_back();
        }
        self.delayed.push_back((now, desired));
        let late = |(at, _): &(Now, u64)| now.since(*at) > delay;
        while self.delayed.front().is_some_and(late) || self.delayed.len() > MAX_DELAYED {
            self.delayed.pop_front();
        }
        self.delayed.front().map_or(desired, |(_, d)| *d)
    }

    /// Whether nothing was asked of it for a window, or for longer where shrinking is to wait longer.
    fn is_forsaken(&self, now: Now) -> bool {
        let patience = match self.aim.scale_down_delay_seconds {
            own if own > USED_DOWN_DELAY_SECONDS => own,
            _ => self.aim.stable_seconds,
        };
        let long = |busy: Now| now.since(busy) >= u64::from(patience) * 1000;
        !self.asked && (self.ready == 0 || self.busy.is_none_or(long))
    }

    /// Zero only once nothing was asked for a whole window: an instance that just came up has
    /// measured nothing either.
    fn idle(&self, now: Now) -> (u64, Reason) {
        let window = u64::from(self.aim.stable_seconds) * 1000;
        let long = self.busy.is_none_or(|busy| now.since(busy) >= window);
        if self.ready == 0 || long {
            (0, Reason::Zero)
        } else {
            (1, Reason::Idle)
        }
    }
}

/// How many are to share what is used; as many as there are while that is about what is aimed at.
fn tolerated(used: Average, target: u64, ready: u64) -> u64 {
    let aimed = u128::from(target) * u128::from(ready) * u128::from(used.seconds);
    let (used_percent, aimed_percent) = (u128::from(used.sum) * 100, aimed * 100);
    let tolerance = aimed * u128::from(TOLERANCE_PERCENT);
    if used_percent.abs_diff(aimed_percent) <= tolerance {
        ready
    } else {
        used.in_shares_of(target)
    }
}

fn bounded(desired: u64, panic: bool, reason: Reason, bounds: Bounds) -> Decision {
    let (min, max) = (u64::from(bounds.min), u64::from(bounds.max));
    let (wanted, reason) = if desired > max {
        (max, Reason::Max)
    } else if desired < min {
        (min, Reason::Min)
    } else {
        (desired, reason)
    };
    Decision {
        wanted: u32::try_from(wanted).unwrap_or(u32::MAX),
        panic,
        reason,
    }
}
