//! Clients of the registry: they put, read, compare and delete a few services through the real API
//! of real nodes, by seed, and keep a history. Values are services whose annotation carries a
//! serial; their image is one that the nodes hold, so that no put needs anything but the registry.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use futures::future::try_join_all;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::sync::watch;

use super::api::{Door, Ended, Mark, Template};
use super::history::{Event, History, Numbers, Op, Phase, Recorder, Scan, Told, WatchNote, now};
use super::watcher;

/// How long the registry may need after the load until it can be read once more.
const LAST_SCAN: Duration = Duration::from_mins(1);
const SCAN_PAUSE: Duration = Duration::from_millis(100);
/// After the last scan, watches have to see by then what it saw.
const CATCH_UP: Duration = Duration::from_secs(30);
/// Shares of the operations, in percent.
pub(super) type Mix = &'static [(Op, u32)];
const MIX: Mix = &[
    (Op::Put, 35),
    (Op::Get, 35),
    (Op::Stale, 10),
    (Op::Cas, 17),
    (Op::Del, 3),
];

/// Which operations, on what, and how values carry their serials.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kind {
    pub mix: Mix,
    pub mark: Mark,
    /// What the services' names begin with.
    pub prefix: &'static str,
    /// No serial is higher; who would need one ends.
    pub serials: u64,
}

const REGISTER: Kind = Kind {
    mix: MIX,
    mark: Mark::Annotation,
    prefix: "key",
    serials: u64::MAX,
};

/// What is asked, by whom and for how long.
#[derive(Debug, Clone)]
pub struct Plan {
    pub seed: u64,
    /// Every second one stays with a node; the others move on when theirs fails them.
    pub clients: usize,
    pub keys: usize,
    pub watchers: usize,
    /// Between two operations of a client, on average.
    pub pace: Duration,
    pub lasting: Duration,
    /// A service that exists, with an image every node holds and the pull policy `Never`.
    pub like: String,
    /// Where the history goes.
    pub dir: PathBuf,
}

/// What the clients were told.
#[derive(Debug, Clone, Default)]
pub struct Run {
    pub history: History,
    pub watches: Vec<Vec<WatchNote>>,
    /// A consistent read of everything after the last operation.
    pub last: Scan,
}

/// A load that runs by itself.
pub struct Load {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Run>>,
}

/// Starts a load on these nodes.
pub fn start(plan: Plan, doors: Vec<Door>) -> Load {
    start_kind(plan, doors, REGISTER)
}

pub(super) fn start_kind(plan: Plan, doors: Vec<Door>, kind: Kind) -> Load {
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(run(plan, doors, kind, stopped))
    });
    Load { stop, thread }
}

impl Load {
    /// Ends it before its time.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Waits until its time is up.
    pub fn finish(self) -> Result<Run> {
        let joined = self.thread.join();
        joined.map_err(|_| anyhow!("the load panicked"))?
    }
}

/// What all clients of a run share.
struct Shared {
    doors: Vec<Door>,
    template: Template,
    kind: Kind,
    keys: Vec<String>,
    processes: Numbers,
    serials: Numbers,
    pace: Duration,
    end: Instant,
    stop: Arc<AtomicBool>,
}

async fn run(plan: Plan, doors: Vec<Door>, kind: Kind, stop: Arc<AtomicBool>) -> Result<Run> {
    let first = doors.first().context("a load needs a node")?;
    let template = first.template(&plan.like, kind.mark).await?;
    let start = first.scan(kind.mark).await?.at;
    let shared = Arc::new(Shared {
        template,
        kind,
        keys: (0..plan.keys)
            .map(|n| format!("svc/{}-{n}", kind.prefix))
            .collect(),
        processes: Numbers::from(1),
        serials: Numbers::from(1),
        pace: plan.pace,
        end: Instant::now() + plan.lasting,
        stop,
        doors,
    });
    let (goal, goals) = watch::channel(None);
    let watches = (0..plan.watchers).map(|n| {
        let watched = watcher::Watched {
            doors: shared.doors.clone(),
            first: n,
            after: start,
            mark: kind.mark,
            goal: goals.clone(),
            dir: plan.dir.clone(),
        };
        tokio::spawn(watched.run())
    });
    let watches: Vec<_> = watches.collect();
    let clients = (0..plan.clients)
        .map(|n| Client::new(n, &plan, shared.clone()))
        .collect::<Result<Vec<_>>>()?;
    let events = try_join_all(clients.into_iter().map(Client::run)).await?;
    let last = last_scan(&shared.doors, kind.mark).await?;
    goal.send_replace(Some((last.at, Instant::now() + CATCH_UP)));
    let watches = try_join_all(watches).await?;
    Ok(Run {
        history: History::of(events.into_iter().flatten())?,
        watches: watches.into_iter().collect::<Result<_>>()?,
        last,
    })
}

/// A consistent read of everything at whichever node can give one.
pub async fn last_scan(doors: &[Door], mark: Mark) -> Result<Scan> {
    let until = Instant::now() + LAST_SCAN;
    for door in doors.iter().cycle() {
        match door.scan(mark).await {
            Ok(scan) => return Ok(scan),
            Err(error) if Instant::now() > until => {
                return Err(error.context("the registry cannot be read after the load"));
            }
            Err(_) => tokio::time::sleep(SCAN_PAUSE).await,
        }
    }
    Err(anyhow!("there is no node to read at"))
}

struct Client {
    shared: Arc<Shared>,
    rng: StdRng,
    process: u64,
    door: usize,
    roams: bool,
    /// The newest version it saw of each key; 0 is none.
    known: BTreeMap<String, u64>,
    recorder: Recorder,
}

impl Client {
    fn new(number: usize, plan: &Plan, shared: Arc<Shared>) -> Result<Self> {
        let seed = plan.seed.wrapping_mul(1_000_003) + number as u64;
        Ok(Self {
            rng: StdRng::seed_from_u64(seed),
            process: shared.processes.next(),
            door: number % shared.doors.len(),
            roams: number % 2 == 1,
            known: BTreeMap::new(),
            recorder: Recorder::create(&plan.dir, &format!("client-{number}"))?,
            shared,
        })
    }

    async fn run(mut self) -> Result<Vec<Event>> {
        while Instant::now() < self.shared.end && !self.shared.stop.load(Ordering::Relaxed) {
            let pause = self.shared.pace.mul_f64(self.rng.random_range(0.0..2.0));
            tokio::time::sleep(pause).await;
            if !self.step().await? {
                break;
            }
        }
        Ok(self.recorder.into_events())
    }

    /// One operation; false when there is no serial left for it.
    async fn step(&mut self) -> Result<bool> {
        let op = self.choose();
        let key = self.shared.keys[self.rng.random_range(0..self.shared.keys.len())].clone();
        let numbered = matches!(op, Op::Put | Op::Cas | Op::Scale);
        let serial = numbered.then(|| self.shared.serials.next());
        if serial.is_some_and(|serial| serial > self.shared.kind.serials) {
            return Ok(false);
        }
        let expect = (op == Op::Cas).then(|| self.known.get(&key).copied().unwrap_or(0));
        let door = self.shared.doors[self.door].clone();
        let event = Event {
            i: 0,
            p: self.process,
            e: Phase::Invoke,
            t: now(),
            op,
            k: key.clone(),
            v: serial,
            expect,
            rev: None,
            at: None,
            node: door.node.clone(),
            why: String::new(),
        };
        self.recorder.note(event.clone())?;
        let ended = self.ask(&door, &event).await;
        self.recorder.note(end(event, &ended))?;
        if ended.phase == Phase::Info {
            self.process = self.shared.processes.next();
        }
        if ended.phase != Phase::Ok && self.roams {
            self.door = (self.door + 1) % self.shared.doors.len();
        }
        self.learn(op, key, &ended);
        Ok(true)
    }

    fn choose(&mut self) -> Op {
        let mut drawn = self.rng.random_range(0..100);
        for (op, share) in self.shared.kind.mix {
            if drawn < *share {
                return *op;
            }
            drawn -= share;
        }
        Op::Get
    }

    async fn ask(&self, door: &Door, event: &Event) -> Ended {
        let (template, key) = (&self.shared.template, &event.k);
        match (event.op, event.v) {
            (Op::Put | Op::Cas, Some(serial)) => {
                door.put(template, key, serial, event.expect).await
            }
            (Op::Scale, Some(serial)) => door.scale(key, serial).await,
            (Op::Del, _) => door.delete(key).await,
            (op, _) => door.get(key, template.mark, op == Op::Get).await,
        }
    }

    fn learn(&mut self, op: Op, key: String, ended: &Ended) {
        if ended.phase != Phase::Ok || op == Op::Stale {
            return;
        }
        match (op, ended.told) {
            (Op::Del, _) => self.known.insert(key, 0),
            // Refused: what it knew is old, and no more is told.
            (Op::Cas, Told { rev: None, .. }) => None,
            (_, told) => self.known.insert(key, told.rev.unwrap_or(0)),
        };
    }
}

/// The event that ends an operation.
pub fn end(invoked: Event, ended: &Ended) -> Event {
    Event {
        e: ended.phase,
        t: now(),
        v: ended.told.value,
        rev: ended.told.rev,
        at: ended.told.at,
        why: ended.why.clone(),
        ..invoked
    }
}
