//! `/metrics`: what this node counts, for Prometheus, gathered when it is asked for. It listens on
//! loopback unless the configuration says otherwise: names of services and their load are nobody's
//! business who is not let in, and this door asks for no token.

mod exposition;
mod process;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use netfabric::ingress::Ingress;
use scheduler::fleet::Fleet;
use scheduler::model::{Name, NodeId, Resources, UnixMs};
use scheduler::registry::State as RegistryState;
use tokio::net::TcpListener;
use tokio::sync::watch::Receiver;

use crate::agent::Agent;
use crate::clock;
use crate::consensus::{Part, Registry};
use crate::image::ImageCounts;
use crate::images::Images;
use crate::meter::{Meter, UsageQuery};
use crate::telemetry::decisions::Decisions;
use exposition::{Raft, Snapshot};

/// Counters younger than this are not read again for a scrape.
const FRESH: Duration = Duration::from_secs(1);
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The rooms that count something.
pub struct Sources {
    pub me: NodeId,
    pub name: Name,
    pub registry: Registry,
    pub fleet: Receiver<Arc<Fleet>>,
    pub agent: Agent,
    pub meter: Meter,
    pub images: Images,
    pub ingress: Arc<Ingress>,
    pub decisions: Decisions,
}

/// Answers scrapes on a bound listener until the task is dropped.
pub async fn serve(sources: Arc<Sources>, listener: TcpListener) -> io::Result<()> {
    let routes = Router::new()
        .route("/metrics", get(scrape))
        .with_state(sources);
    axum::serve(listener, routes).await
}

async fn scrape(State(sources): State<Arc<Sources>>) -> Response {
    sources.meter.refresh(FRESH).await;
    let images = sources.images.counts().await.unwrap_or_else(|error| {
        tracing::warn!(%error, "images are left out of the metrics");
        ImageCounts::default()
    });
    let text = exposition::text(sources.snapshot(images));
    ([(CONTENT_TYPE, OPENMETRICS)], text).into_response()
}

impl Sources {
    fn snapshot(&self, images: ImageCounts) -> Snapshot {
        let fleet = self.fleet.borrow().clone();
        let record = self.agent.record().borrow().clone();
        let status = self.registry.status();
        let alive = fleet.members.values().filter(|m| m.alive).count();
        let less = |all: Resources, free: Resources| Resources {
            cpu_millis: all.cpu_millis.saturating_sub(free.cpu_millis),
            memory_bytes: all.memory_bytes.saturating_sub(free.memory_bytes),
            instances: all.instances.saturating_sub(free.instances),
        };
        Snapshot {
            node: self.name.to_string(),
            doors: self.ingress.counts(),
            usage: self.meter.view(&UsageQuery::default(), self.me, &self.name),
            capacity: record.capacity,
            allocated: less(record.capacity, record.free),
            members_alive: alive as u64,
            members_lost: (fleet.members.len() - alive) as u64,
            decisions_lost: self.decisions.lost(),
            raft: Raft {
                leads: status.part == Part::Leader,
                term: status.term,
                index: status.index,
                quorum: status.quorum,
            },
            images,
            certificates: lasting(&self.registry.view().state(), clock::unix()),
            process: process::read(),
        }
    }
}

/// How many seconds each certificate still lasts, the shortest first.
fn lasting(state: &RegistryState, now: UnixMs) -> Vec<(String, i64)> {
    let all = state.certificates.values();
    let mut all: Vec<_> = all.map(|c| (c.name.clone(), c.seconds_left(now))).collect();
    all.sort_by_key(|(_, left)| *left);
    all
}
