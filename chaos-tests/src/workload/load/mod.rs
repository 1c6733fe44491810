//! A load: HTTP clients that send requests when they are due, whether earlier ones were answered or
//! not, through the front doors of several nodes, and keep a book of each. One thread of its own.
//!
//! Latency is measured from when a request was meant to be sent, so that a client that falls behind
//! cannot hide it. The clock's grain is a millisecond: a request may leave so much later.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use chaos_tests::workload::load::{Config, Load};
//! let doors = vec!["10.0.0.11:80".parse()?, "10.0.0.12:80".parse()?];
//! let load = Load::start(Config::new("web.example", &doors).rate(200.0))?;
//! std::thread::sleep(std::time::Duration::from_secs(10)); // Whatever is done to the cluster.
//! println!("so far: {:?}", load.count());
//! println!("{}", load.stop()?.summary());
//! # Ok(())
//! # }
//! ```

mod arrivals;
mod connections;
mod counters;
mod exchange;
mod sender;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use rustix::process::{Resource, getrlimit};
use tokio::runtime;
use tokio::sync::oneshot;
use tokio::task::LocalSet;

pub use arrivals::Arrivals;
use counters::Counters;

use super::ledger::{ClientLedger, Count};

/// Requests under way at once. Beyond it the client sheds: it must not take the machine down when
/// nothing answers any more.
pub const MAX_UNDER_WAY: usize = 4096;
/// Descriptors the process needs besides those of its requests.
const OTHER_FILES: u64 = 256;
/// A load ends by itself after so many requests.
pub const MAX_REQUESTS: usize = 10_000_000;
const DEADLINE: Duration = Duration::from_secs(10);

/// What is sent, how often, where to.
#[derive(Debug, Clone)]
pub struct Config {
    /// The `host` of every request.
    pub host: String,
    /// Which of them a request goes through is drawn by the seed.
    pub doors: Vec<SocketAddr>,
    /// Path and query; see [`crate::server::behaviour`] for what the query may ask.
    pub path: String,
    /// Requests a second.
    pub rate: f64,
    pub arrivals: Arrivals,
    /// Of the requests; the others are GETs.
    pub posts: f64,
    /// From when a request was meant to be sent.
    pub deadline: Duration,
    pub seed: u64,
}

impl Config {
    /// 100 GETs and POSTs a second, evenly.
    pub fn new(host: &str, doors: &[SocketAddr]) -> Self {
        Self {
            host: host.to_owned(),
            doors: doors.to_vec(),
            path: "/do".to_owned(),
            rate: 100.0,
            arrivals: Arrivals::Even,
            posts: 0.5,
            deadline: DEADLINE,
            seed: 1,
        }
    }

    #[must_use]
    pub fn rate(self, rate: f64) -> Self {
        Self { rate, ..self }
    }

    #[must_use]
    pub fn poisson(self, seed: u64) -> Self {
        Self {
            arrivals: Arrivals::Poisson,
            seed,
            ..self
        }
    }

    #[must_use]
    pub fn path(self, path: &str) -> Self {
        let path = path.to_owned();
        Self { path, ..self }
    }

    #[must_use]
    pub fn posts(self, posts: f64) -> Self {
        Self { posts, ..self }
    }

    #[must_use]
    pub fn deadline(self, deadline: Duration) -> Self {
        Self { deadline, ..self }
    }
}

/// A load that runs. It ends when it is stopped, or dropped.
pub struct Load {
    began: Instant,
    counters: Arc<Counters>,
    /// Nothing is sent any more when this goes.
    stop: oneshot::Sender<()>,
    thread: JoinHandle<Result<ClientLedger>>,
}

impl Load {
    pub fn start(config: Config) -> Result<Self> {
        static CLIENTS: AtomicU32 = AtomicU32::new(1);
        ensure!(!config.doors.is_empty(), "a load needs a door");
        ensure!(config.rate > 0.0, "a load of {} a second", config.rate);
        let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let needed = MAX_UNDER_WAY as u64 + OTHER_FILES;
        ensure!(
            files >= needed,
            "a load needs {needed} open files: ulimit -n says {files}"
        );
        let client = CLIENTS.fetch_add(1, Ordering::Relaxed);
        let counters = Arc::<Counters>::default();
        let (stop, stopped) = oneshot::channel();
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("a runtime for the load")?;
        let shared = Arc::clone(&counters);
        let began = Instant::now();
        let run = move || {
            let run = sender::run(config, client, began, shared, stopped);
            LocalSet::new().block_on(&runtime, run)
        };
        let thread = std::thread::Builder::new().name(format!("load-{client}"));
        Ok(Self {
            began,
            counters,
            stop,
            thread: thread.spawn(run)?,
        })
    }

    /// How long it runs: the clock of its book.
    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// What happened until now.
    pub fn count(&self) -> Count {
        self.counters.count()
    }

    /// Sends no more, waits for what is under way, which its deadline bounds, and gives the book.
    pub fn stop(self) -> Result<ClientLedger> {
        drop(self.stop);
        let ended = self.thread.join();
        ended.map_err(|_| anyhow!("the load's thread panicked"))?
    }
}

#[cfg(test)]
mod tests;
