//! Numbers of instances that follow what is measured in them: processors, memory, requests a second.

use proptest::prelude::*;

use super::*;
use crate::model::Container;

const FREE: Bounds = Bounds { min: 0, max: 1000 };

/// Aimed at six tenths of a core in each.
fn aim() -> Aim {
    aimed(Metric::Cpu)
}

fn aimed(metric: Metric) -> Aim {
    let container = Container {
        cpu_request_millis: 1_000,
        cpu_millis: 4_000,
        memory_bytes: 1_000 << 20,
        ..Container::default()
    };
    let spec = RevisionSpec {
        containers: vec![container],
        ..RevisionSpec::default()
    };
    let scale = Scale {
        metric,
        target: 60,
        ..Scale::default()
    };
    Aim::of(&scale, &spec)
}

/// A fleet that does what is decided: the work is shared by those that are ready, none of which gets
/// more than its limit.
struct Fleet {
    scaler: Autoscaler,
    ready: u32,
    second: u64,
    /// What one can do.
    most: u64,
}

impl Fleet {
    fn new(aim: Aim, ready: u32) -> Self {
        Self {
            scaler: Autoscaler::new(aim, Now(0), ready),
            ready,
            second: 0,
            most: 4_000,
        }
    }

    fn step(&mut self, amount: u64, asked: bool) -> Decision {
        let most = u64::from(self.ready) * self.most;
        let sample = Sample {
            amount: amount.min(most),
            asked,
            ready: self.ready,
        };
        let now = Now(self.second * 1000);
        self.second += 1;
        self.scaler.observe(now, sample);
        let decision = self.scaler.decide(now, &FREE);
        self.ready = decision.wanted;
        decision
    }

    /// How many there were, second by second.
    fn run(&mut self, seconds: u64, amount: impl Fn(u64) -> u64) -> Vec<u32> {
        (0..seconds)
            .map(|second| self.step(amount(second), true).wanted)
            .collect()
    }
}

#[test]
fn the_target_is_a_part_of_what_an_instance_asks_for() {
    assert_eq!((aim().metric, aim().target_milli), (Metric::Cpu, 600));
    let memory = aimed(Metric::Memory);
    assert_eq!((memory.metric, memory.target_milli), (Metric::Memory, 600));
    assert_eq!(memory.scale_down_delay_seconds, USED_DOWN_DELAY_SECONDS);
    let scale = Scale {
        metric: Metric::Cpu,
        ..Scale::default()
    };
    let nothing = Aim::of(&scale, &RevisionSpec::default());
    assert_eq!(nothing.metric, Metric::Concurrency, "it asks for nothing");
}

#[test]
fn by_the_rate_instances_share_what_is_asked_in_a_second() {
    let scale = |target| Scale {
        metric: Metric::Rps,
        target,
        ..Scale::default()
    };
    let spec = RevisionSpec {
        container_concurrency: 1,
        ..RevisionSpec::default()
    };
    let aim = Aim::of(&scale(0), &spec);
    assert_eq!(
        (aim.metric, aim.target_milli),
        (Metric::Rps, 140_000),
        "Knative's 200"
    );
    let aim = Aim::of(&scale(50), &spec);
    assert_eq!(aim.target_milli, 35_000);
    let mut fleet = Fleet::new(aim, 1);
    fleet.most = 1_000_000;
    let seen = fleet.run(120, |_| 340_000);
    assert_eq!(*seen.last().unwrap(), 10, "340 a second in shares of 35");
    let burst = fleet.step(900_000, true);
    let seen = fleet.run(10, |_| 900_000);
    assert!(
        burst.wanted >= 10 && seen[8] >= 26,
        "a burst: {burst:?} {seen:?}"
    );
    let left = (0..200).map(|_| fleet.step(0, false).wanted).last();
    assert_eq!(left, Some(0), "nobody asks");
}

#[test]
fn what_was_measured_of_something_else_counts_nothing() {
    assert_eq!(measured(Metric::Cpu, Some(Used::CpuMillis(7))), 7);
    assert_eq!(measured(Metric::Memory, Some(Used::MemoryMib(7))), 7);
    assert_eq!(measured(Metric::Rps, Some(Used::MilliRequests(7))), 7);
    assert_eq!(measured(Metric::Cpu, Some(Used::MemoryMib(7))), 0);
    assert_eq!(measured(Metric::Rps, Some(Used::CpuMillis(7))), 0);
    assert_eq!(measured(Metric::Memory, None), 0);
}

#[test]
fn work_is_shared_until_each_uses_what_is_aimed_at() {
    let mut fleet = Fleet::new(aim(), 1);
    fleet.run(180, |_| 2_900);
    assert_eq!(fleet.ready, 5, "2.9 cores in shares of 0.6");
    let decision = fleet.step(2_900, true);
    assert_eq!(decision.reason, Reason::Cpu);
    // Less work: nobody goes for five minutes, and then as many as are not needed.
    let later = fleet.run(900, |_| 1_100);
    assert!(later[..290].iter().all(|n| *n == 5), "{later:?}");
    assert_eq!(fleet.ready, 2);
}

#[test]
fn about_what_is_aimed_at_is_left_alone() {
    let mut fleet = Fleet::new(aim(), 10);
    assert!(fleet.run(600, |_| 6_500).iter().all(|n| *n == 10));
    let mut fleet = Fleet::new(aim(), 10);
    fleet.run(600, |_| 6_700);
    assert_eq!(fleet.ready, 12, "eleven hundredths above it");
}

#[test]
fn who_is_asked_nothing_goes_whatever_it_uses_and_who_is_asked_stays() {
    let mut fleet = Fleet::new(aimed(Metric::Memory), 2);
    fleet.run(100, |_| 900);
    let counts: Vec<u32> = (0..120).map(|_| fleet.step(900, false).wanted).collect();
    assert!(counts[..58].iter().all(|n| *n == 2), "{counts:?}");
    assert_eq!(counts[119], 0);
    // Requests that only wait use nothing.
    let mut fleet = Fleet::new(aim(), 1);
    assert!(fleet.run(900, |_| 0).iter().all(|n| *n == 1));
}

#[test]
fn a_held_request_starts_the_first_one() {
    let mut fleet = Fleet::new(aim(), 0);
    assert_eq!(fleet.step(0, false).wanted, 0);
    assert_eq!(fleet.step(0, true).wanted, 1);
}

#[test]
fn another_metric_begins_anew() {
    let mut scaler = Autoscaler::new(aim(), Now(0), 3);
    let sample = |amount| Sample {
        amount,
        asked: true,
        ready: 3,
    };
    for second in 0..60 {
        scaler.observe(Now(second * 1000), sample(900_000));
    }
    scaler.set_aim(aimed(Metric::Memory));
    scaler.observe(Now(60_000), sample(1_700));
    let decision = scaler.decide(Now(60_000), &FREE);
    assert_eq!((decision.wanted, decision.panic), (3, true), "{decision:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Under steady work with noise of a few percent the number is found and then stays.
    #[test]
    fn steady_work_is_no_cause_to_change(
        work in 1_u64..40_000,
        begin in 1_u32..60,
        noise in proptest::collection::vec(95_u64..=105, 30),
    ) {
        let mut fleet = Fleet::new(aim(), begin);
        fleet.run(2_400, |_| work);
        let found = fleet.ready;
        let ideal = u32::try_from(work.div_ceil(600)).unwrap().max(1);
        let aimed = u64::from(found) * 600;
        let near = work.abs_diff(aimed) * 10 <= aimed;
        prop_assert!(found == ideal || near, "{found} {ideal}");
        let noisy = |second: u64| work * noise[usize::try_from(second % 30).unwrap()] / 100;
        let counts = fleet.run(1_800, noisy);
        let changes = counts.windows(2).filter(|pair| pair[0] != pair[1]).count();
        prop_assert!(changes <= 2, "{changes} changes: {counts:?}");
    }

    /// Whatever is measured, the bounds hold and a service that is asked something has an instance.
    #[test]
    fn bounds_hold(
        amounts in proptest::collection::vec((0_u64..u64::from(u32::MAX), any::<bool>()), 1..200),
        (min, more) in (0_u32..20, 0_u32..50),
    ) {
        let bounds = Bounds { min, max: min + more.max(1) };
        let mut scaler = Autoscaler::new(aim(), Now(0), 0);
        let mut ready = 0;
        for (second, (amount, asked)) in (0..).zip(amounts) {
            let now = Now(second * 1000);
            scaler.observe(now, Sample { amount, asked, ready });
            ready = scaler.decide(now, &bounds).wanted;
            prop_assert!((bounds.min..=bounds.max).contains(&ready));
            prop_assert!(ready > 0 || !asked);
        }
    }
}
