//! Series of samples and the decisions that come of them.

use proptest::prelude::*;

use super::*;

const FREE: Bounds = Bounds { min: 0, max: 1000 };

fn aim(target: u64) -> Aim {
    Aim {
        metric: Metric::Concurrency,
        target_milli: target * 1000,
        stable_seconds: 60,
        scale_down_delay_seconds: 0,
        activation: 1,
        start_millis: 0,
    }
}

fn requests(amount: u64, ready: u32) -> Sample {
    Sample {
        amount,
        asked: amount > 0,
        ready,
    }
}

/// Feeds one sample a second from second `from`, and decides after the last.
fn run(scaler: &mut Autoscaler, from: u64, samples: &[(u64, u32)]) -> Decision {
    let mut last = None;
    for (second, (concurrency, ready)) in (from..).zip(samples) {
        let now = Now(second * 1000);
        scaler.observe(now, requests(concurrency * 1000, *ready));
        last = Some(scaler.decide(now, &FREE));
    }
    last.unwrap()
}

#[test]
fn targets_follow_the_formula() {
    let table = [
        // target, hard limit, utilization -> milli
        (0, 0, 70, 70_000),
        (0, 10, 70, 7_000),
        (50, 0, 70, 35_000),
        (50, 10, 70, 7_000),
        (5, 10, 100, 5_000),
        (0, 1, 70, 700),
        (0, 1, 1, 10),
    ];
    for (target, hard, utilization_percent, expected) in table {
        let scale = Scale {
            target,
            utilization_percent,
            ..Scale::default()
        };
        let spec = RevisionSpec {
            container_concurrency: hard,
            ..RevisionSpec::default()
        };
        let aim = Aim::of(&scale, &spec);
        assert_eq!(
            aim.target_milli, expected,
            "{target} {hard} {utilization_percent}"
        );
    }
    assert_eq!(aim(1).panic_seconds(), 6);
    let short = Aim {
        stable_seconds: 6,
        ..aim(1)
    };
    assert_eq!(short.panic_seconds(), 1, "never below a second");
}

#[test]
fn steady_load_is_divided_by_the_target() {
    for (concurrency, expected) in [(1, 1), (10, 1), (11, 2), (100, 10), (101, 11)] {
        let mut scaler = Autoscaler::new(aim(10), Now(0), 0);
        let ready = u32::try_from(expected).unwrap();
        let decision = run(&mut scaler, 0, &vec![(concurrency, ready); 120]);
        assert_eq!(u64::from(decision.wanted), expected, "{concurrency}");
    }
}

#[test]
fn a_burst_grows_at_once_and_shrinks_only_a_window_later() {
    let mut scaler = Autoscaler::new(aim(10), Now(0), 1);
    let calm = run(&mut scaler, 0, &[(5, 1); 60]);
    assert_eq!((calm.wanted, calm.panic), (1, false));
    let burst = run(&mut scaler, 60, &[(100, 1); 3]);
    assert_eq!(
        (burst.wanted, burst.panic, burst.reason),
        (6, true, Reason::Panic)
    );
    let burst = run(&mut scaler, 63, &[(100, 6); 6]);
    assert_eq!(burst.wanted, 10, "the panic window is full of it");
    let after = run(&mut scaler, 69, &[(5, 10); 50]);
    assert_eq!(
        (after.wanted, after.panic),
        (10, true),
        "no shrinking in panic"
    );
    let later = run(&mut scaler, 119, &[(5, 10); 60]);
    assert_eq!((later.panic, later.wanted), (false, 5), "by halves");
    let later = run(&mut scaler, 179, &[(5, 5); 1]);
    assert_eq!(later.wanted, 2);
}

#[test]
fn growth_is_bounded_by_the_rate_and_the_maximum() {
    let mut scaler = Autoscaler::new(aim(1), Now(0), 1);
    let decision = run(&mut scaler, 0, &[(5000, 1)]);
    assert_eq!((decision.wanted, decision.reason), (1000, Reason::Panic));
    scaler.observe(Now(1000), requests(9_000_000, 2));
    let bounds = Bounds { min: 0, max: 7 };
    let decision = scaler.decide(Now(1000), &bounds);
    assert_eq!((decision.wanted, decision.reason), (7, Reason::Max));
}

#[test]
fn zero_takes_a_whole_idle_window() {
    let mut scaler = Autoscaler::new(aim(10), Now(0), 0);
    assert_eq!(run(&mut scaler, 0, &[(3, 0), (3, 1), (0, 1)]).wanted, 1);
    let idle = run(&mut scaler, 3, &[(0, 1); 57]);
    assert_eq!(
        (idle.wanted, idle.reason),
        (1, Reason::Stable),
        "still in the window"
    );
    let idle = run(&mut scaler, 60, &[(0, 1); 2]);
    assert_eq!((idle.wanted, idle.reason), (0, Reason::Zero));
    let mut fresh = Autoscaler::new(aim(10), Now(0), 0);
    let decision = run(&mut fresh, 0, &[(0, 0); 100]);
    assert_eq!((decision.wanted, decision.reason), (0, Reason::Zero));
    let decision = run(&mut fresh, 100, &[(0, 1)]);
    assert_eq!(
        (decision.wanted, decision.reason),
        (1, Reason::Idle),
        "it just came up"
    );
    assert_eq!(run(&mut fresh, 101, &[(0, 1); 60]).wanted, 0);
    scaler.observe(Now(70_000), requests(1, 1));
    let faint = scaler.decide(Now(129_000), &FREE);
    assert_eq!(faint.wanted, 1, "the faintest request holds it");
}

#[test]
fn without_measurements_the_scale_is_kept() {
    let mut scaler = Autoscaler::new(aim(10), Now(0), 4);
    let decision = scaler.decide(Now(500_000), &FREE);
    assert_eq!((decision.wanted, decision.reason), (4, Reason::NoData));
    run(&mut scaler, 500, &[(10, 4)]);
    let decision = scaler.decide(Now(561_000), &FREE);
    assert_eq!((decision.wanted, decision.reason), (4, Reason::NoData));
}

#[test]
fn whoever_takes_over_does_not_shrink_for_a_window() {
    let mut scaler = Autoscaler::new(aim(10), Now(0), 8);
    let decision = run(&mut scaler, 0, &[(1, 8); 60]);
    assert_eq!((decision.wanted, decision.panic), (8, true));
    let decision = run(&mut scaler, 60, &[(1, 8); 3]);
    assert_eq!((decision.wanted, decision.panic), (4, false));
}

#[test]
fn the_scale_down_delay_holds_the_most() {
    let delayed = Aim {
        scale_down_delay_seconds: 20,
        stable_seconds: 6,
        ..aim(10)
    };
    let mut scaler = Autoscaler::new(delayed, Now(0), 1);
    let decision = run(&mut scaler, 0, &[(15, 2); 10]);
    assert_eq!(decision.wanted, 2);
    let held = run(&mut scaler, 10, &[(1, 2); 18]);
    assert_eq!((held.wanted, held.reason), (2, Reason::Delay));
    let free = run(&mut scaler, 28, &[(1, 2); 12]);
    assert_eq!((free.wanted, free.reason), (1, Reason::Stable));
}

#[test]
fn an_activation_scale_is_risen_to() {
    let active = Aim {
        activation: 3,
        ..aim(10)
    };
    let mut scaler = Autoscaler::new(active, Now(0), 0);
    assert_eq!(run(&mut scaler, 0, &[(0, 0)]).wanted, 0);
    assert_eq!(run(&mut scaler, 1, &[(1, 0)]).wanted, 3);
}

#[test]
fn a_changed_window_keeps_what_was_measured() {
    let mut scaler = Autoscaler::new(aim(10), Now(0), 1);
    run(&mut scaler, 0, &[(10, 1); 30]);
    scaler.set_aim(Aim {
        stable_seconds: 10,
        ..aim(5)
    });
    assert_eq!(scaler.decide(Now(29_000), &FREE).wanted, 2);
}

proptest! {
    #[test]
    fn decisions_keep_their_bounds(
        target in 1_u64..200,
        (min, span) in (0_u32..5, 0_u32..20),
        samples in prop::collection::vec((0_u64..2_000_000, 0_u32..30, 0_u64..5_000), 1..200),
    ) {
        let bounds = Bounds { min, max: min + span.max(1) };
        let mut scaler = Autoscaler::new(aim(target), Now(0), 0);
        let mut now = Now(0);
        for (concurrency, ready, step) in samples {
            now = now.plus(step);
            scaler.observe(now, requests(concurrency, ready));
            let decision = scaler.decide(now, &bounds);
            prop_assert!((bounds.min..=bounds.max).contains(&decision.wanted));
            if concurrency > 0 {
                prop_assert!(decision.wanted > 0, "zero with requests in it");
            }
        }
    }

    #[test]
    fn a_herd_wants_no_more_than_its_share(herd in 1_u64..5_000, target in 1_u64..200) {
        let mut scaler = Autoscaler::new(aim(target), Now(0), 0);
        let expected = herd.div_ceil(target).min(1000);
        let decision = run(&mut scaler, 0, &[(herd, 0), (herd, 1), (herd, 1)]);
        prop_assert_eq!(u64::from(decision.wanted), expected);
        let served = run(&mut scaler, 3, &[(0, 2); 20]);
        prop_assert!(u64::from(served.wanted) <= expected);
    }
}
