//! The ledger against tables of what may happen to a node, and against the truth under random
//! restarts.

use proptest::prelude::*;

use super::*;

const MIB: u64 = 1 << 20;

fn key(service: &str) -> ServiceKey {
    ServiceKey {
        namespace: Name::default_namespace(),
        name: Name::new(service).unwrap(),
    }
}

fn owner(revision: &str) -> Owner {
    Owner {
        service: key("web"),
        revision: Name::new(revision).unwrap(),
        limit_bytes: 100 * MIB,
    }
}

fn id(name: &str) -> InstanceId {
    InstanceId(name.to_owned())
}

/// A reading of a container in control group `origin`.
fn used(origin: u64, cpu_micros: u64, memory_bytes: u64) -> Reading {
    let usage = Usage {
        origin,
        cpu_micros,
        memory_bytes,
        ..Usage::default()
    };
    Reading {
        usage: Some(usage),
        ..Reading::default()
    }
}

fn served(requests: u64) -> Reading {
    Reading {
        served: Some(Served {
            requests,
            request_micros: requests * 10,
        }),
        ..Reading::default()
    }
}

/// As a daemon that was killed after its last writing leaves it to the next.
fn reopened(ledger: &Ledger, boot: &str) -> Ledger {
    let text = serde_json::to_vec(&ledger.book).unwrap();
    Ledger::open(serde_json::from_slice(&text).unwrap(), boot)
}

fn sum(ledger: &Ledger) -> Amounts {
    let mut sum = Amounts::default();
    ledger.totals().values().for_each(|total| sum.add(total));
    sum
}

/// One ready instance, `a` of `web-00001`, since the moment 0.
fn with_one() -> Ledger {
    let mut ledger = Ledger::open(Book::default(), "boot");
    ledger.on_state(0, &id("a"), InstanceState::Ready, 0, || owner("web-00001"));
    ledger
}

#[test]
fn time_is_counted_by_state_and_memory_by_its_limit_and_use() {
    let mut ledger = Ledger::open(Book::default(), "boot");
    let a = id("a");
    let begin = || owner("web-00001");
    ledger.on_state(10_000, &a, InstanceState::Parked, 4_000, begin);
    ledger.on_state(20_000, &a, InstanceState::Starting, 8_000, begin);
    ledger.on_state(21_000, &a, InstanceState::Ready, 500, begin);
    ledger.on_reading(21_000, &a, &used(1, 0, 10 * MIB));
    ledger.on_reading(31_000, &a, &used(1, 0, 30 * MIB));
    ledger.on_end(32_000, &a, &used(1, 0, 30 * MIB));
    let total = sum(&ledger);
    let states = [
        (InstanceState::Parked, 6_000),
        (InstanceState::Starting, 8_500),
        (InstanceState::Ready, 11_500),
    ];
    assert_eq!(total.state_millis, states.into());
    assert_eq!(total.limit_byte_seconds, 20 * 100 * MIB, "parked is free");
    // 15 s at what was first seen, 10 s in between, 1 s at the last.
    assert_eq!(total.memory_byte_seconds, (150 + 200 + 30) * MIB);
}

#[test]
fn a_failed_instance_costs_no_time() {
    let mut ledger = with_one();
    ledger.on_state(5_000, &id("a"), InstanceState::Failed, 2_000, || owner("x"));
    ledger.on_end(60_000, &id("a"), &Reading::default());
    assert_eq!(
        sum(&ledger).state_millis,
        [(InstanceState::Ready, 3_000)].into()
    );
}

#[test]
fn counters_that_begin_anew_are_not_lost_and_not_doubled() {
    let table: &[(&str, &[Reading], u64)] = &[
        ("rising", &[used(1, 5, 0), used(1, 9, 0)], 9),
        ("standing", &[used(1, 5, 0), used(1, 5, 0)], 5),
        (
            "unread",
            &[used(1, 5, 0), Reading::default(), used(1, 9, 0)],
            9,
        ),
        ("another group, lower", &[used(1, 5, 0), used(2, 3, 0)], 8),
        ("another group, higher", &[used(1, 5, 0), used(2, 7, 0)], 12),
        ("the same group, lower", &[used(1, 5, 0), used(1, 3, 0)], 8),
    ];
    for (what, readings, want) in table {
        let mut ledger = with_one();
        for reading in *readings {
            ledger.on_reading(1_000, &id("a"), reading);
        }
        assert_eq!(sum(&ledger).cpu_micros, *want, "{what}");
        let restarts = u64::from(what.starts_with("another"));
        assert_eq!(sum(&ledger).restarts, restarts, "{what}");
    }
}

#[test]
fn a_restarted_daemon_goes_on_from_the_last_book() {
    let mut ledger = with_one();
    ledger.on_reading(1_000, &id("a"), &used(1, 500, MIB));
    ledger.on_reading(1_000, &id("a"), &served(7));
    let mut ledger = reopened(&ledger, "boot");
    // The group went on, the door counts from zero and has come further than before.
    ledger.on_state(9_000, &id("a"), InstanceState::Ready, 9_000, || owner("x"));
    ledger.on_reading(9_000, &id("a"), &used(1, 800, MIB));
    ledger.on_reading(9_000, &id("a"), &served(9));
    let total = sum(&ledger);
    assert_eq!((total.cpu_micros, total.requests), (800, 16));
    assert_eq!(total.state_millis, [(InstanceState::Ready, 9_000)].into());
    assert_eq!(total.memory_byte_seconds, 9 * MIB);
    assert_eq!((total.instances, total.restarts), (1, 0));
}

#[test]
fn after_a_boot_what_was_there_is_over_as_last_written() {
    let mut ledger = with_one();
    ledger.on_reading(1_000, &id("a"), &used(1, 500, MIB));
    let before = sum(&ledger);
    let ledger = reopened(&ledger, "another boot");
    assert!(ledger.book.live.is_empty());
    assert_eq!(sum(&ledger), before);
}

#[test]
fn an_end_counts_once_however_often_it_is_told() {
    let mut ledger = with_one();
    ledger.on_end(1_000, &id("a"), &used(1, 500, 0));
    let once = sum(&ledger);
    assert_eq!((once.cpu_micros, once.instances), (500, 1));
    for mut told in [reopened(&ledger, "boot"), ledger] {
        told.on_end(2_000, &id("a"), &used(1, 500, 0));
        // A record from before the end, and one after it.
        told.on_state(2_000, &id("a"), InstanceState::Draining, 0, || owner("x"));
        told.on_reading(2_000, &id("a"), &used(1, 900, 0));
        told.on_present(&BTreeSet::new());
        assert_eq!(sum(&told), once);
        assert!(told.book.live.is_empty());
    }
}

#[test]
fn what_vanished_without_a_word_is_over() {
    let mut ledger = with_one();
    ledger.on_reading(1_000, &id("a"), &used(1, 500, 0));
    ledger.on_present(&BTreeSet::from([&id("a")]));
    assert_eq!(ledger.book.live.len(), 1);
    ledger.on_present(&BTreeSet::from([&id("b")]));
    assert!(ledger.book.live.is_empty());
    assert_eq!(sum(&ledger).cpu_micros, 500);
}

#[test]
fn windows_are_the_difference_between_two_looks() {
    let mut ledger = with_one();
    let look = |ledger: &mut Ledger, at, cpu| {
        ledger.on_reading(at, &id("a"), &used(1, cpu, 0));
        ledger.on_window(at);
        let window = &ledger.book.live[&id("a")].window;
        (window.millis, window.amounts.cpu_micros)
    };
    assert_eq!(
        look(&mut ledger, 4_000, 100),
        (4_000, 100),
        "since its birth"
    );
    assert_eq!(look(&mut ledger, 4_500, 150), (4_000, 100), "too short");
    assert_eq!(look(&mut ledger, 6_000, 300), (2_000, 200));
    let mut ledger = reopened(&ledger, "boot");
    assert_eq!(look(&mut ledger, 90_000, 900), (0, 0), "nothing is known");
    assert_eq!(look(&mut ledger, 91_000, 950), (1_000, 50));
}

#[test]
fn only_news_makes_the_books_dirty() {
    let mut ledger = with_one();
    ledger.on_reading(1_000, &id("a"), &used(1, 500, MIB));
    ledger.dirty = false;
    ledger.on_reading(2_000, &id("a"), &used(1, 500, 2 * MIB));
    ledger.on_state(3_000, &id("a"), InstanceState::Ready, 3_000, || owner("x"));
    ledger.on_window(3_000);
    assert!(!ledger.dirty, "time passed, no more");
    ledger.on_reading(4_000, &id("a"), &used(1, 501, 0));
    assert!(ledger.dirty);
}

#[test]
fn the_books_stay_small_and_lose_no_sum_but_of_what_is_forgotten() {
    let mut ledger = Ledger::open(Book::default(), "boot");
    let end = |ledger: &mut Ledger, n: usize, service: &str, revision: &str| {
        let owner = Owner {
            service: key(service),
            ..owner(revision)
        };
        ledger.on_state(0, &id(&format!("i{n}")), InstanceState::Ready, 0, || owner);
        ledger.on_end(0, &id(&format!("i{n}")), &used(1, 1, 0));
    };
    for n in 0..MAX_REVISIONS + 30 {
        end(&mut ledger, n, "web", &format!("web-{n:05}"));
    }
    ledger.tidy(UnixMs(0), |_| true);
    let folder = &ledger.book.services[&key("web")];
    assert_eq!(folder.revisions.len(), MAX_REVISIONS);
    assert_eq!(folder.older.cpu_micros, 30);
    assert!(
        !folder
            .revisions
            .contains_key(&Name::new("web-00029").unwrap())
    );
    assert_eq!(sum(&ledger).cpu_micros, 50);

    for n in 0..MAX_DELETED + 30 {
        end(&mut ledger, 1_000 + n, &format!("gone-{n:05}"), "r");
    }
    let there = |k: &ServiceKey| *k == key("web");
    ledger.tidy(UnixMs(5), there);
    assert_eq!(ledger.book.services.len(), 1 + MAX_DELETED);
    assert_eq!(ledger.book.ended.len(), MAX_ENDED);
    ledger.tidy(UnixMs(4 + REMEMBERED), there);
    assert_eq!(
        ledger.book.services.len(),
        1 + MAX_DELETED,
        "not a moment early"
    );
    // One comes back before it is forgotten.
    ledger.tidy(UnixMs(5 + REMEMBERED), |k| {
        there(k) || *k == key("gone-00900")
    });
    assert_eq!(ledger.book.services.len(), 2);
}

#[derive(Debug, Clone)]
enum Step {
    /// The instance uses CPU, and is asked by requests.
    Work(usize, u64),
    Look,
    /// The books are written.
    Write,
    /// The daemon stops orderly, or is killed; another one comes.
    Restart,
    Kill,
    End(usize),
    /// The container is made anew within its instance.
    Anew(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let which = 0..4_usize;
    let step = prop_oneof![
        5 => (which.clone(), 1..1000_u64).prop_map(|(i, n)| Step::Work(i, n)),
        3 => Just(Step::Look),
        2 => Just(Step::Write),
        1 => Just(Step::Restart),
        1 => Just(Step::Kill),
        1 => which.clone().prop_map(Step::End),
        1 => which.prop_map(Step::Anew),
    ];
    proptest::collection::vec(step, 1..80)
}

/// An instance as the kernel and the door have it.
#[derive(Debug, Clone, Default)]
struct Truth {
    origin: u64,
    cpu: u64,
    door: u64,
    life: usize,
}

/// The node, the file, and what really was used.
struct World {
    ledger: Ledger,
    file: Book,
    instances: Vec<Truth>,
    now: u64,
    used: u64,
    /// Used since the books were last written.
    unwritten: u64,
    /// What killed daemons may have lost at most.
    risked: u64,
}

impl World {
    fn name(&self, at: usize) -> InstanceId {
        id(&format!("i{at}-{}", self.instances[at].life))
    }

    fn look_at(&mut self, at: usize) {
        let (name, truth) = (self.name(at), self.instances[at].clone());
        self.ledger
            .on_state(self.now, &name, InstanceState::Ready, 0, || owner("r"));
        self.ledger
            .on_reading(self.now, &name, &used(truth.origin, truth.cpu, 0));
        self.ledger.on_reading(self.now, &name, &served(truth.door));
    }

    fn look(&mut self) {
        (0..self.instances.len()).for_each(|at| self.look_at(at));
        self.ledger.on_window(self.now);
    }

    fn write(&mut self) {
        self.look();
        let text = serde_json::to_vec(&self.ledger.book).unwrap();
        self.file = serde_json::from_slice(&text).unwrap();
        self.unwritten = 0;
    }

    /// The next daemon: its door counts from zero, the kernel's counters went on.
    fn boot(&mut self) {
        self.ledger = Ledger::open(self.file.clone(), "boot");
        self.instances.iter_mut().for_each(|i| i.door = 0);
        let names: Vec<InstanceId> = (0..self.instances.len()).map(|at| self.name(at)).collect();
        self.look();
        self.ledger.on_present(&names.iter().collect());
    }

    fn step(&mut self, step: &Step) {
        self.now += 1_000;
        match *step {
            Step::Work(at, n) => {
                self.instances[at].cpu += n;
                self.instances[at].door += n;
                self.used += n;
                self.unwritten += n;
            }
            Step::Look => self.look(),
            Step::Write => self.write(),
            Step::Restart => {
                self.write();
                self.boot();
            }
            Step::Kill => {
                self.risked += self.unwritten;
                self.unwritten = 0;
                self.boot();
            }
            Step::End(at) => {
                self.look_at(at);
                let name = self.name(at);
                self.ledger.on_end(self.now, &name, &Reading::default());
                let life = self.instances[at].life + 1;
                self.instances[at] = Truth {
                    origin: self.now,
                    life,
                    ..Truth::default()
                };
            }
            Step::Anew(at) => {
                // The agent has it read before it is made anew.
                self.look_at(at);
                self.instances[at].origin = self.now;
                self.instances[at].cpu = 0;
            }
        }
    }
}

proptest! {
    #[test]
    fn the_sum_is_the_truth_but_for_what_a_killed_daemon_had_not_written(steps in steps()) {
        let mut world = World {
            ledger: Ledger::open(Book::default(), "boot"),
            file: Book::default(),
            instances: vec![Truth { origin: 1, ..Truth::default() }; 4],
            now: 0,
            used: 0,
            unwritten: 0,
            risked: 0,
        };
        world.file.boot = "boot".to_owned();
        for step in &steps {
            world.step(step);
            world.look();
            let sum = sum(&world.ledger);
            for counted in [sum.cpu_micros, sum.requests] {
                prop_assert!(counted <= world.used, "{counted} of {}: counted twice", world.used);
                prop_assert!(counted + world.risked >= world.used, "{counted} of {}", world.used);
            }
        }
    }
}
