//! Instances that compute although nobody asks them anything, and how deep they sleep.

use super::probing::{Kind, Plan};
use super::tests::{admission, ask};
use super::*;
use crate::autoscale::ladder::{FREEZE_AFTER_MS, THROTTLE_AFTER_MS};

fn id() -> InstanceId {
    InstanceId("i".to_owned())
}

/// One that is ready, and is asked whether it lives.
fn ready(change: impl FnOnce(&mut Admission)) -> Node {
    let capacity = Resources {
        cpu_millis: 4_000,
        memory_bytes: 1 << 30,
        instances: 4,
    };
    let mut node = Node::new(capacity, 0);
    let mut wanted = admission("i");
    wanted.needs.cpu_millis = 1_000;
    wanted.needs.memory_bytes = 256 << 20;
    wanted.probes.liveness = Some(Plan {
        delay_ms: 0,
        period_ms: 1_000,
        failures: 3,
        successes: 1,
        floor_ms: 1,
    });
    change(&mut wanted);
    node.admit(Now(0), wanted).unwrap();
    node.on_prepared(Now(0), &id(), Ok(()));
    node.on_launched(Now(0), &id(), Ok(()));
    node.on_probed(Now(0), &id(), ask(Kind::Readiness, 0), Ok(()));
    node
}

/// Idle from `from` on, second by second, using so many thousandths of a processor; what followed, with
/// everything done that was asked for.
fn idle(node: &mut Node, from: u64, seconds: u64, millis: u64) -> Vec<(u64, Effect)> {
    let mut followed = Vec::new();
    for second in 0..=seconds {
        let now = Now(from + second * 1000);
        node.on_cpu(now, &id(), Some(now.0 * millis));
        for effect in node.on_idle(&id(), second * 1000) {
            match &effect {
                Effect::Throttle(id) => node.on_throttled(id, Froze::Still),
                Effect::Freeze(id) => {
                    let _ = node.on_frozen(now, id, Froze::Still);
                }
                _ => {}
            }
            followed.push((second, effect));
        }
    }
    followed
}

#[test]
fn who_computes_unasked_leaves_the_processor_to_others_and_goes_on() {
    let mut node = ready(|_| ());
    let throttled = (THROTTLE_AFTER_MS / 1000, Effect::Throttle(id()));
    let once = std::slice::from_ref(&throttled);
    assert_eq!(idle(&mut node, 1_000, 300, 400), once);
    assert!(node.sleeps(&id()).unwrap().contains("unasked"));
    // A request came and went: it has its share, and begins anew.
    assert_eq!(node.on_thawed(Now(400_000), &id()), []);
    node.on_cpu(Now(400_000), &id(), None);
    assert_eq!(node.sleeps(&id()), None);
    assert_eq!(idle(&mut node, 401_000, 5, 400), [throttled]);
    // It is done with its work.
    let frozen = idle(&mut node, 500_000, 30, 2);
    assert_eq!(frozen, [(FREEZE_AFTER_MS / 1000, Effect::Freeze(id()))]);
}

#[test]
fn work_that_ends_while_it_is_idle_is_past_after_a_window() {
    let mut node = ready(|_| ());
    let mut used = 0;
    let mut frozen_at = None;
    for second in 0..60_u64 {
        let now = Now(second * 1000);
        used += if second < 20 { 500_000 } else { 1_000 };
        node.on_cpu(now, &id(), Some(used));
        for effect in node.on_idle(&id(), second * 1000) {
            match effect {
                Effect::Freeze(_) => frozen_at = frozen_at.or(Some(second)),
                Effect::Throttle(id) => node.on_throttled(&id, Froze::Still),
                _ => {}
            }
        }
    }
    let at = frozen_at.expect("it was never frozen");
    assert!((28..=31).contains(&at), "{at}");
}

#[test]
fn who_says_that_only_requests_count_is_frozen_at_work() {
    let mut node = ready(|a| a.works_unasked = false);
    let followed = idle(&mut node, 0, 20, 900);
    assert_eq!(
        followed,
        [(2, Effect::Throttle(id())), (10, Effect::Freeze(id()))]
    );
    let mut never = ready(|a| a.freezes = false);
    assert_eq!(idle(&mut never, 0, 60, 900), [(2, Effect::Throttle(id()))]);
    assert_eq!(idle(&mut ready(|a| a.freezes = false), 0, 60, 1), []);
}

#[test]
fn a_probe_that_fails_lets_a_throttled_one_go_on_for_good() {
    let mut node = ready(|_| ());
    idle(&mut node, 0, 5, 400);
    let round = node.slots[&id()].round;
    let said = Err("timed out".to_owned());
    let effects = node.on_probed(Now(6_000), &id(), ask(Kind::Liveness, round), said);
    assert!(effects.contains(&Effect::Wake(id())), "{effects:?}");
    assert_eq!(
        idle(&mut node, 7_000, 60, 400),
        [],
        "its probes suffer from it"
    );
}

#[test]
fn what_cannot_be_throttled_is_not_tried_again() {
    let mut node = ready(|_| ());
    node.on_cpu(Now(0), &id(), Some(0));
    node.on_cpu(Now(5_000), &id(), Some(2_000_000));
    assert_eq!(node.on_idle(&id(), 5_000), [Effect::Throttle(id())]);
    assert_eq!(node.on_idle(&id(), 6_000), [], "it is being throttled");
    node.on_throttled(&id(), Froze::Busy);
    assert_eq!(node.on_idle(&id(), 7_000), [Effect::Throttle(id())]);
    node.on_throttled(&id(), Froze::Cannot);
    assert_eq!(node.on_idle(&id(), 8_000), []);
}

/// One that is asked once in ten minutes gives its memory back as soon as it is frozen, and one that may
/// be asked any moment keeps it.
#[test]
fn memory_follows_the_odds_of_the_next_request() {
    let reclaimed_after = |pause: u64| {
        let mut node = ready(|_| ());
        let mut now = 0;
        let mut last = None;
        for _ in 0..20 {
            node.on_idle(&id(), FREEZE_AFTER_MS);
            node.on_frozen(Now(now + FREEZE_AFTER_MS), &id(), Froze::Still);
            let seconds = FREEZE_AFTER_MS / 1000 + 1..pause;
            let mut rests = seconds.filter(|s| !node.rest(Now(now + s * 1000)).is_empty());
            last = rests.next();
            now += pause * 1000;
            node.on_thawed(Now(now), &id());
        }
        last
    };
    let first = {
        let mut node = ready(|_| ());
        node.on_idle(&id(), FREEZE_AFTER_MS);
        node.on_frozen(Now(FREEZE_AFTER_MS), &id(), Froze::Still);
        let mut seconds = FREEZE_AFTER_MS / 1000 + 1..36_000;
        seconds
            .find(|s| !node.rest(Now(s * 1000)).is_empty())
            .unwrap()
    };
    let known = reclaimed_after(3_600).unwrap();
    assert!(known < 15 && known < first, "{known} {first}");
    assert_eq!(reclaimed_after(40), None, "it will be asked in a moment");
}
