//! Whatever happens in whatever order: what holds of every instance and of the parked pool.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::tests::{admission, ask, exit};
use super::*;
use crate::autoscale::ladder::FREEZE_AFTER_MS;

/// Enough memory that some may be parked.
const CAPACITY: Resources = Resources {
    cpu_millis: 1_000,
    memory_bytes: 1 << 30,
    instances: 3,
};
const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];

#[derive(Debug, Clone, Copy)]
enum Input {
    Admit,
    Tend(bool),
    Prepared(usize, bool),
    Launched(usize, bool),
    Probe(usize, Kind, bool),
    Idle(usize),
    Cpu(usize, u64),
    Throttled(usize, Froze),
    Frozen(usize, Froze),
    Thawed(usize),
    Exit(usize),
    Stop(usize),
    Drained(usize),
    Unsignalled(usize),
    Removed(usize),
    Timeout,
}

fn input() -> impl Strategy<Value = Input> {
    let one = 0..NAMES.len();
    let kinds = prop_oneof![
        Just(Kind::Startup),
        Just(Kind::Readiness),
        Just(Kind::Liveness)
    ];
    let froze = prop_oneof![Just(Froze::Still), Just(Froze::Busy), Just(Froze::Cannot)];
    prop_oneof![
        3 => Just(Input::Admit),
        3 => any::<bool>().prop_map(Input::Tend),
        4 => (one.clone(), any::<bool>()).prop_map(|(i, ok)| Input::Prepared(i, ok)),
        4 => (one.clone(), any::<bool>()).prop_map(|(i, ok)| Input::Launched(i, ok)),
        6 => (one.clone(), kinds, any::<bool>()).prop_map(|(i, k, ok)| Input::Probe(i, k, ok)),
        2 => one.clone().prop_map(Input::Idle),
        2 => (one.clone(), 0_u64..1_000_000_000).prop_map(|(i, c)| Input::Cpu(i, c)),
        2 => (one.clone(), froze.clone()).prop_map(|(i, f)| Input::Throttled(i, f)),
        2 => (one.clone(), froze).prop_map(|(i, f)| Input::Frozen(i, f)),
        1 => one.clone().prop_map(Input::Thawed),
        1 => one.clone().prop_map(Input::Exit),
        1 => one.clone().prop_map(Input::Stop),
        1 => one.clone().prop_map(Input::Drained),
        1 => one.clone().prop_map(Input::Unsignalled),
        2 => one.prop_map(Input::Removed),
        1 => Just(Input::Timeout),
    ]
}

fn outcome(ok: bool) -> Result<(), FailReason> {
    let failed = || FailReason {
        code: "X".into(),
        message: String::new(),
    };
    if ok { Ok(()) } else { Err(failed()) }
}

/// A node, all it ever wanted, and names for what it parks.
struct Run {
    node: Node,
    now: u64,
    named: usize,
    effects: Vec<Effect>,
}

impl Run {
    fn new() -> Self {
        Self {
            node: Node::new(CAPACITY, 2),
            now: 0,
            named: 0,
            effects: Vec::new(),
        }
    }

    fn admission(&mut self) -> Option<Admission> {
        let name = NAMES.get(self.named)?;
        self.named += 1;
        let plan = Plan {
            delay_ms: 0,
            period_ms: 1_000,
            failures: 2,
            successes: 1,
            floor_ms: 1,
        };
        let probes = Probes {
            readiness: Some(plan),
            liveness: Some(plan),
            startup: None,
        };
        Some(Admission {
            probes,
            ..admission(name)
        })
    }

    fn take(&mut self, input: Input) {
        self.now += 700;
        let at = Now(self.now);
        let name = |i: usize| InstanceId(NAMES[i].to_owned());
        let node = &mut self.node;
        let effects = match input {
            Input::Admit => {
                let taken = self.admission().map(|a| self.node.admit(at, a));
                taken.and_then(Result::ok).map(|t| t.1).unwrap_or_default()
            }
            Input::Tend(serves) => {
                let mut effects = node.tend(at, |_| serves);
                if effects.iter().any(|e| matches!(e, Effect::Park(_)))
                    && let Some(admission) = self.admission()
                {
                    effects.extend(self.node.park(at, admission));
                }
                effects
            }
            Input::Prepared(i, ok) => node.on_prepared(at, &name(i), outcome(ok)),
            Input::Launched(i, ok) => node.on_launched(at, &name(i), outcome(ok)),
            Input::Probe(i, kind, ok) => {
                let round = node.slots.get(&name(i)).map_or(0, |slot| slot.round);
                let said = if ok { Ok(()) } else { Err("no".to_owned()) };
                node.on_probed(at, &name(i), ask(kind, round), said)
            }
            Input::Idle(i) => node.on_idle(&name(i), FREEZE_AFTER_MS),
            Input::Cpu(i, micros) => {
                node.on_cpu(at, &name(i), Some(micros));
                Vec::new()
            }
            Input::Throttled(i, froze) => {
                node.on_throttled(&name(i), froze);
                Vec::new()
            }
            Input::Frozen(i, froze) => node.on_frozen(at, &name(i), froze),
            Input::Thawed(i) => node.on_thawed(at, &name(i)),
            Input::Exit(i) => node.on_exit(at, &name(i), &exit(1, false), ""),
            Input::Stop(i) => node.on_stop(at, &name(i)).1,
            Input::Drained(i) => node.on_drained(at, &name(i)),
            Input::Unsignalled(i) => {
                node.on_unsignalled(at, &name(i));
                Vec::new()
            }
            Input::Removed(i) => {
                node.on_removed(at, &name(i));
                Vec::new()
            }
            Input::Timeout => node.on_timeout(at),
        };
        self.effects.extend(effects);
    }
}

proptest! {
    #[test]
    fn whatever_happens(inputs in prop::collection::vec(input(), 0..80)) {
        let mut run = Run::new();
        for input in inputs {
            run.take(input);
            let parked = run.node.slots.values().filter(|s| {
                matches!(s.phase, Phase::Parked | Phase::Parking)
            });
            prop_assert!(parked.count() <= 2, "more are parked than may be");
            let real = run.node.slots.values().filter(|s| s.holds_resources()).count();
            prop_assert!(real <= 3, "parking took nobody's room and gave none away");
        }
        let mut at: BTreeMap<InstanceId, Vec<&Effect>> = BTreeMap::new();
        for effect in &run.effects {
            let (Effect::Launch(id) | Effect::Open(id) | Effect::Close(id)
                | Effect::Terminate(id) | Effect::Remove(id) | Effect::Prepare(id)) = effect
            else {
                continue;
            };
            at.entry(id.clone()).or_default().push(effect);
        }
        for (id, effects) in at {
            let place = |wanted: &Effect| effects.iter().position(|e| *e == wanted);
            let times = |wanted: &Effect| effects.iter().filter(|e| **e == wanted).count();
            // Above all: no two starts on one parked container.
            for once in [Effect::Prepare(id.clone()), Effect::Launch(id.clone()),
                         Effect::Open(id.clone()), Effect::Remove(id.clone())] {
                prop_assert!(times(&once) <= 1, "{effects:?}");
            }
            if let (Some(open), Some(end)) =
                (place(&Effect::Open(id.clone())), place(&Effect::Terminate(id.clone())))
            {
                let close = place(&Effect::Close(id.clone()));
                prop_assert!(close.is_some_and(|c| open < c && c < end), "{effects:?}");
            }
        }
    }

    /// From wherever it is, an instance that is asked to stop ends, and gives back what it took.
    #[test]
    fn everything_ends(inputs in prop::collection::vec(input(), 0..80)) {
        let mut run = Run::new();
        for input in inputs {
            run.take(input);
        }
        for i in 0..NAMES.len() {
            run.take(Input::Stop(i));
        }
        for i in 0..NAMES.len() {
            for step in [Input::Prepared(i, true), Input::Launched(i, true), Input::Drained(i),
                         Input::Exit(i), Input::Removed(i)] {
                run.take(step);
            }
        }
        prop_assert_eq!(run.node.free(), CAPACITY);
        for seen in run.node.seen() {
            prop_assert!(seen.state.is_over(), "{:?}", seen);
        }
        run.now += 1_000_000;
        run.take(Input::Timeout);
        prop_assert_eq!(run.node.seen().count(), 0);
    }
}
