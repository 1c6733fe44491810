//! The load's thread: sends what is due, keeps the book.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use http::HeaderValue;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::arrivals::{Due, Plan};
use super::connections::Connections;
use super::counters::Counters;
use super::exchange::{Form, exchange};
use super::{Config, MAX_REQUESTS, MAX_UNDER_WAY};
use crate::server::identity::Identity;
use crate::workload::ledger::{ClientLedger, Failure, Outcome};

/// Requests begun before the event loop has its turn, when many are due at once.
const BATCH: usize = 32;

/// What every request of a load needs.
struct Clients {
    form: Form,
    doors: Vec<Connections>,
    counters: Arc<Counters>,
    book: RefCell<ClientLedger>,
    /// Who answered last.
    last: RefCell<Option<Identity>>,
    began: Instant,
    deadline: Duration,
}

/// Sends until told to stop, then waits for what is under way.
pub(super) async fn run(
    config: Config,
    client: u32,
    began: std::time::Instant,
    counters: Arc<Counters>,
    mut stopped: oneshot::Receiver<()>,
) -> Result<ClientLedger> {
    let clients = Rc::new(Clients::new(&config, client, began.into(), counters)?);
    let mut under_way = JoinSet::new();
    let plan = Plan::new(&config).take(MAX_REQUESTS).enumerate();
    for (number, due) in plan {
        let at = clients.began + due.at;
        if Instant::now() < at || number % BATCH == 0 {
            tokio::select! {
                biased;
                _ = &mut stopped => break,
                () = sleep_until(at) => tokio::task::yield_now().await,
            }
        }
        while under_way.try_join_next().is_some() {}
        if under_way.len() < MAX_UNDER_WAY {
            under_way.spawn_local(Rc::clone(&clients).one(due));
        } else {
            clients.counters.shed();
            clients.book.borrow_mut().shed(due.at);
        }
    }
    while let Some(ended) = under_way.join_next().await {
        ended.context("a request's task")?;
    }
    drop(under_way);
    let clients = Rc::into_inner(clients).ok_or_else(|| anyhow!("a request is still under way"))?;
    Ok(clients.book.into_inner())
}

impl Clients {
    fn new(config: &Config, client: u32, began: Instant, counters: Arc<Counters>) -> Result<Self> {
        let doors = config.doors.iter().copied();
        Ok(Self {
            form: Form {
                host: HeaderValue::from_str(&config.host).context("the host")?,
                path: config.path.parse().context("the path")?,
            },
            doors: doors.map(Connections::new).collect(),
            counters,
            book: RefCell::new(ClientLedger::new(client, &config.host, config.seed)?),
            last: RefCell::default(),
            began,
            deadline: config.deadline,
        })
    }

    /// One request from its sending to its outcome.
    async fn one(self: Rc<Self>, due: Due) {
        let Due { at, door, method } = due;
        let id = self.book.borrow_mut().send(method, at);
        self.counters.send();
        let last = self.last.borrow().clone();
        let exchange = exchange(&self.form, &self.doors[door], id, method, last);
        let end = self.began + at + self.deadline;
        let outcome = timeout_at(end, exchange).await.unwrap_or(Outcome::Timeout);
        if let Outcome::Ok { by } = &outcome {
            let mut last = self.last.borrow_mut();
            if last.as_ref() != Some(by) {
                *last = Some(by.clone());
            }
        }
        self.counters.settle(&outcome);
        let took = self.began.elapsed().saturating_sub(at);
        self.book.borrow_mut().settle(Failure {
            id,
            method,
            door,
            at,
            took,
            outcome,
        });
    }
}
