//! What the checkers are tested with: operations in short, and a register that is linearizable by
//! construction, with clients that overlap, lose replies and have their lost writes applied late.

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::workload::history::{
    History, Op, Operation, Outcome, Scan, Seen, Told, WatchEvent, WatchNote,
};

pub(super) const KEY: &str = "svc/a";

/// Begin and end.
type Time = (u64, u64);

fn operation(op: Op, (invoked, returned): Time, told: Told) -> Operation {
    Operation {
        process: invoked,
        node: "n1".to_owned(),
        op,
        key: KEY.to_owned(),
        value: None,
        expect: None,
        invoked,
        returned: Some(returned),
        outcome: Outcome::Ok(told),
    }
}

fn written(value: Option<u64>, rev: Option<u64>) -> Told {
    let value = rev.and(value);
    let at = None;
    Told { value, rev, at }
}

pub(super) fn put(time: Time, serial: u64, rev: u64) -> Operation {
    let told = written(Some(serial), Some(rev));
    Operation {
        value: Some(serial),
        ..operation(Op::Put, time, told)
    }
}

pub(super) fn cas(time: Time, expect: u64, serial: u64, rev: Option<u64>) -> Operation {
    Operation {
        value: Some(serial),
        expect: Some(expect),
        ..operation(Op::Cas, time, written(Some(serial), rev))
    }
}

pub(super) fn del(time: Time, rev: Option<u64>) -> Operation {
    operation(Op::Del, time, written(None, rev))
}

/// `seen` is serial and version.
pub(super) fn get(time: Time, seen: Option<(u64, u64)>, at: u64) -> Operation {
    let told = Told {
        value: seen.map(|(v, _)| v),
        rev: seen.map(|(_, rev)| rev),
        at: Some(at),
    };
    operation(Op::Get, time, told)
}

pub(super) fn stale(time: Time, seen: Option<(u64, u64)>, at: u64) -> Operation {
    Operation {
        op: Op::Stale,
        ..get(time, seen, at)
    }
}

/// The same with its answer lost.
pub(super) fn open(operation: Operation) -> Operation {
    Operation {
        returned: None,
        outcome: Outcome::Info("lost".to_owned()),
        ..operation
    }
}

pub(super) fn failed(operation: Operation) -> Operation {
    Operation {
        outcome: Outcome::Fail("no quorum".to_owned()),
        ..operation
    }
}

pub(super) fn history(operations: Vec<Operation>) -> History {
    History { operations }
}

/// The end: the one key as serial and version.
pub(super) fn last(seen: Option<(u64, u64)>, at: u64) -> Scan {
    let seen = seen.map(|(v, rev)| (KEY.to_owned(), Seen { v, rev }));
    let keys = seen.into_iter().collect();
    Scan { at, keys }
}

const CLIENTS: usize = 6;
const KEYS: u64 = 2;
const OPERATIONS: usize = 160;
/// Of a hundred replies.
const LOST: u32 = 4;

/// A run of the register.
pub(super) struct Simulated {
    pub history: History,
    pub watch: Vec<WatchNote>,
    pub last: Scan,
}

enum Next {
    Invoke(usize),
    /// The operation happens, for the client's sake or nobody's.
    Apply(usize),
}

struct Register {
    rng: StdRng,
    /// The states by index.
    states: Vec<BTreeMap<String, Seen>>,
    operations: Vec<Operation>,
    watch: Vec<WatchNote>,
    known: Vec<BTreeMap<String, u64>>,
    agenda: BTreeMap<(u64, usize), Next>,
    entries: usize,
}

/// A history of the register by seed.
pub(super) fn simulate(seed: u64) -> Simulated {
    let mut register = Register {
        rng: StdRng::seed_from_u64(seed),
        states: vec![BTreeMap::new()],
        operations: Vec::new(),
        watch: Vec::new(),
        known: vec![BTreeMap::new(); CLIENTS],
        agenda: BTreeMap::new(),
        entries: 0,
    };
    register.note(0, WatchEvent::Open { after: 0 });
    for client in 0..CLIENTS {
        register.plan(client as u64, Next::Invoke(client));
    }
    while let Some(((t, _), next)) = register.agenda.pop_first() {
        match next {
            Next::Invoke(client) => register.invoke(t, client),
            Next::Apply(operation) => register.apply(t, operation),
        }
    }
    let at = register.index();
    let keys = register.states.pop().unwrap_or_default();
    Simulated {
        history: history(register.operations),
        watch: register.watch,
        last: Scan { at, keys },
    }
}

impl Register {
    fn index(&self) -> u64 {
        self.states.len() as u64 - 1
    }

    fn plan(&mut self, t: u64, next: Next) {
        self.entries += 1;
        self.agenda.insert((t, self.entries), next);
    }

    fn note(&mut self, t: u64, what: WatchEvent) {
        let node = "n1".to_owned();
        self.watch.push(WatchNote { t, node, what });
    }

    fn invoke(&mut self, t: u64, client: usize) {
        let number = self.operations.len();
        if number == OPERATIONS {
            return;
        }
        let op = match self.rng.random_range(0..100) {
            0..30 => Op::Put,
            30..65 => Op::Get,
            65..75 => Op::Stale,
            75..92 => Op::Cas,
            _ => Op::Del,
        };
        let key = format!("svc/{}", self.rng.random_range(0..KEYS));
        let writes = matches!(op, Op::Put | Op::Cas);
        let expect = self.known[client].get(&key).copied().unwrap_or(0);
        let took = self.rng.random_range(2..40);
        let lost = op.writes() && self.rng.random_range(0..100) < LOST;
        self.operations.push(Operation {
            process: number as u64,
            value: writes.then_some(number as u64 + 1),
            expect: (op == Op::Cas).then_some(expect),
            key,
            node: format!("n{}", client % 3),
            returned: (!lost).then_some(t + took),
            outcome: Outcome::Info("lost".to_owned()),
            ..operation(op, (t, 0), Told::default())
        });
        let late = if lost { 1000 } else { took };
        let happens = t + self.rng.random_range(1..late);
        if !lost || self.rng.random_bool(0.6) {
            self.plan(happens, Next::Apply(number));
        }
        let pause = self.rng.random_range(1..60);
        self.plan(t + took + pause, Next::Invoke(client));
    }

    fn apply(&mut self, t: u64, number: usize) {
        if self.rng.random_bool(0.1) {
            // Somebody else's change.
            self.push(t, Vec::new());
        }
        let asked = self.operations[number].clone();
        let told = match asked.op {
            Op::Get => self.shown(self.index(), &asked.key),
            Op::Stale => {
                let behind = self.rng.random_range(0..3).min(self.index());
                let at = self.index() - behind;
                let node = self.operations.iter().filter(|o| o.node == asked.node);
                let shown = node.filter_map(|o| o.told()?.at).max();
                self.shown(at.max(shown.unwrap_or(0)), &asked.key)
            }
            _ => self.write(t, &asked),
        };
        if asked.returned.is_some() {
            self.operations[number].outcome = Outcome::Ok(told);
            let client = number % CLIENTS;
            if asked.op != Op::Stale {
                self.known[client].insert(asked.key, told.rev.unwrap_or(0));
            }
        }
    }

    fn write(&mut self, t: u64, asked: &Operation) -> Told {
        let present = self.states.last().and_then(|state| state.get(&asked.key));
        let version = present.map_or(0, |seen| seen.rev);
        let fits = match asked.op {
            Op::Cas => asked.expect == Some(version),
            Op::Del => present.is_some(),
            _ => true,
        };
        if !fits {
            return Told::default();
        }
        let rev = self.index() + 1;
        let seen = asked.value.map(|v| Seen { v, rev });
        self.push(t, vec![(asked.key.clone(), seen)]);
        written(asked.value, Some(rev))
    }

    fn push(&mut self, t: u64, changes: Vec<(String, Option<Seen>)>) {
        let mut state = self.states.last().cloned().unwrap_or_default();
        for (key, seen) in &changes {
            match seen {
                Some(seen) => state.insert(key.clone(), *seen),
                None => state.remove(key),
            };
        }
        self.states.push(state);
        let index = self.index();
        self.note(t, WatchEvent::Step { index, changes });
    }

    fn shown(&self, at: u64, key: &str) -> Told {
        let state = usize::try_from(at).ok().and_then(|at| self.states.get(at));
        let seen = state.and_then(|state| state.get(key));
        Told {
            value: seen.map(|seen| seen.v),
            rev: seen.map(|seen| seen.rev),
            at: Some(at),
        }
    }
}

/// How a history is made wrong.
#[derive(Debug, Clone, Copy)]
pub(super) enum Lie {
    /// A read shows what was there before a write that had been acknowledged.
    OldRead,
    /// A read shows what nobody wrote.
    Phantom,
    /// A write that somebody saw is called not done.
    Denied,
    /// The last acknowledged write of a key is gone at the end.
    Lost,
}

pub(super) const LIES: [Lie; 4] = [Lie::OldRead, Lie::Phantom, Lie::Denied, Lie::Lost];

impl Lie {
    /// Tells it at a place by seed; false when there is none.
    pub fn tell(self, run: &mut Simulated, seed: u64) -> bool {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut places = self.places(run);
        if places.is_empty() {
            return false;
        }
        let (at, seen) = places.swap_remove(rng.random_range(0..places.len()));
        let operation = &mut run.history.operations[at];
        match (self, &mut operation.outcome) {
            (Self::OldRead, Outcome::Ok(told)) => {
                let (v, rev) = seen;
                (told.value, told.rev) = (Some(v), Some(rev));
                told.at = Some(rev);
            }
            (Self::Phantom, Outcome::Ok(told)) => told.value = Some(1_000_000),
            (Self::Denied, outcome) => *outcome = Outcome::Fail("no quorum".to_owned()),
            (Self::Lost, _) => drop(run.last.keys.remove(&operation.key)),
            _ => return false,
        }
        true
    }

    fn places(self, run: &Simulated) -> Vec<(usize, (u64, u64))> {
        let all = &run.history.operations;
        let place = |(at, o): (usize, &Operation)| {
            let seen = o.told().and_then(|told| told.value.zip(told.rev));
            let fits = match self {
                Self::OldRead => return older(run, at).map(|seen| (at, seen)),
                Self::Phantom => o.op == Op::Get && seen.is_some(),
                Self::Denied => {
                    let read = |r: &&Operation| {
                        r.op == Op::Get && r.told().is_some_and(|t| t.rev == o.wrote_at())
                    };
                    o.wrote_at().is_some() && o.op != Op::Del && all.iter().any(|r| read(&r))
                }
                Self::Lost => {
                    let open = all
                        .iter()
                        .any(|d| d.is_open() && d.op == Op::Del && d.key == o.key);
                    let end = run.last.keys.get(&o.key).map(|seen| seen.rev);
                    o.wrote_at().is_some() && o.wrote_at() == end && !open
                }
            };
            fits.then_some((at, (0, 0)))
        };
        all.iter().enumerate().filter_map(place).collect()
    }
}

/// What was there before the newest write that was acknowledged when a read began. Both writes
/// follow each other in time: no order could explain it.
fn older(run: &Simulated, at: usize) -> Option<(u64, u64)> {
    let read = &run.history.operations[at];
    read.told().filter(|_| read.op == Op::Get)?;
    let own = run.history.operations.iter().filter(|o| o.key == read.key);
    let before = |t: u64| {
        let ended = move |o: &&Operation| o.returned.is_some_and(|end| end < t);
        let writes = own.clone().filter(ended).filter(|o| o.wrote_at().is_some());
        writes.max_by_key(|o| o.wrote_at())
    };
    let newest = before(read.invoked)?;
    let older = before(newest.invoked)?;
    Some((older.value?, older.wrote_at()?))
}
