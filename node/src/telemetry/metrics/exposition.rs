//! One moment's counts as text in the format `OpenMetrics`. Labels are bounded: namespace, service
//! and revision for what instances use, and no more than [`MAX_REVISIONS`] of them; fixed words
//! everywhere else.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Mutex;

use netfabric::ingress::{BOUNDS, Counts, Distribution, PHASES};
use netfabric::wire::usage::{Amounts, UsageView};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, NoLabelSet, text,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;
use scheduler::model::Resources;

use super::process::Process;
use crate::image::{ImageCounts, PULL_BOUNDS, Pulls};

/// Certificates shown; those that expire first are.
const MAX_CERTIFICATES: usize = 500;
/// Revisions shown; those that have instances come first.
const MAX_REVISIONS: usize = 500;

type Labels = Vec<(&'static str, String)>;
/// A metric of instances: its name, its help, and the amount it tells.
type Column = (&'static str, &'static str, fn(&Amounts) -> u64);

/// All that is shown.
#[derive(Debug, Clone, Default)]
pub(super) struct Snapshot {
    pub node: String,
    pub doors: Counts,
    pub usage: UsageView,
    pub capacity: Resources,
    pub allocated: Resources,
    pub members_alive: u64,
    pub members_lost: u64,
    /// Decisions that are not on the disk.
    pub decisions_lost: u64,
    pub raft: Raft,
    pub images: ImageCounts,
    /// Each certificate and the seconds it still lasts, the shortest first.
    pub certificates: Vec<(String, i64)>,
    pub process: Process,
}

#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Raft {
    pub leads: bool,
    pub term: u64,
    pub index: u64,
    pub quorum: bool,
}

/// A revision's sum here, and what of it is there now.
#[derive(Debug, Default)]
struct Line {
    total: Amounts,
    memory_bytes: u64,
    instances: u64,
}

pub(super) fn text(snapshot: Snapshot) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Once(Mutex::new(Some(snapshot)))));
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = text::encode(&mut text, &registry);
    text
}

/// Gives its snapshot to the one encoding it is made for.
#[derive(Debug)]
struct Once(Mutex<Option<Snapshot>>);

impl Collector for Once {
    fn encode(&self, encoder: DescriptorEncoder) -> fmt::Result {
        let taken = self.0.lock().ok().and_then(|mut kept| kept.take());
        taken.map_or(Ok(()), |snapshot| Sheet(encoder).all(&snapshot))
    }
}

/// The text in the making.
struct Sheet<'a>(DescriptorEncoder<'a>);

impl Sheet<'_> {
    fn all(&mut self, snapshot: &Snapshot) -> fmt::Result {
        self.info(snapshot)?;
        self.instances(&snapshot.usage)?;
        self.door(&snapshot.doors)?;
        self.tls(snapshot)?;
        self.cold_starts(&snapshot.doors)?;
        self.node(snapshot)?;
        self.images(&snapshot.images)?;
        self.process(&snapshot.process)
    }

    fn info(&mut self, snapshot: &Snapshot) -> fmt::Result {
        let labels: Labels = vec![
            ("version", env!("CARGO_PKG_VERSION").to_owned()),
            ("node", snapshot.node.clone()),
        ];
        let name = "selvedge_build";
        let mut metric =
            self.0
                .encode_descriptor(name, "What runs here", None, MetricType::Info)?;
        metric.encode_info(&labels)
    }

    fn instances(&mut self, usage: &UsageView) -> fmt::Result {
        let (lines, left_out) = lines(usage);
        let counted: [Column; 9] = [
            ("restarts", "Containers made anew", |a| a.restarts),
            ("oom_kills", "Processes killed for lack of memory", |a| {
                a.oom_kills
            }),
            (
                "throttled_periods",
                "Periods cut short by the CPU limit",
                |a| a.throttled_periods,
            ),
            ("io_read_bytes", "Read from disks", |a| a.io_read_bytes),
            ("io_written_bytes", "Written to disks", |a| a.io_write_bytes),
            ("network_in_bytes", "Received", |a| a.net_in_bytes),
            ("network_out_bytes", "Sent", |a| a.net_out_bytes),
            ("requests", "Requests answered", |a| a.requests),
            ("started", "Instances begun", |a| a.instances),
        ];
        for (name, help, amount) in counted {
            let rows = lines
                .iter()
                .map(|(labels, l)| (labels.clone(), amount(&l.total)));
            self.counter(&format!("selvedge_instance_{name}"), help, rows)?;
        }
        let timed: [Column; 3] = [
            ("cpu", "CPU time used", |a| a.cpu_micros),
            ("throttled", "Time held back by the CPU limit", |a| {
                a.throttled_micros
            }),
            ("request", "Time requests spent in instances", |a| {
                a.request_micros
            }),
        ];
        for (name, help, micros) in timed {
            let rows = lines
                .iter()
                .map(|(labels, l)| (labels.clone(), seconds(micros(&l.total))));
            self.counter(&format!("selvedge_instance_{name}_seconds"), help, rows)?;
        }
        let there = |l: &&(Labels, Line)| l.1.instances > 0;
        let memory = lines
            .iter()
            .filter(there)
            .map(|(labels, l)| (labels.clone(), l.memory_bytes));
        self.gauge("selvedge_instance_memory_bytes", "Memory used now", memory)?;
        let count = lines
            .iter()
            .filter(there)
            .map(|(labels, l)| (labels.clone(), l.instances));
        self.gauge("selvedge_instances", "Instances here now", count)?;
        let name = "selvedge_metrics_revisions_left_out";
        self.gauge(name, "Revisions too many to be shown", one(left_out))
    }

    fn door(&mut self, counts: &Counts) -> fmt::Result {
        let classes = counts.classes.iter().enumerate();
        let classes = classes.map(|(at, n)| (vec![("code", format!("{}xx", at + 1))], *n));
        let name = "selvedge_ingress_requests";
        self.counter(name, "Requests answered by class of status", classes)?;
        let problems = counts.problems.iter();
        let problems = problems.map(|(code, n)| (vec![("reason", code.clone())], *n));
        let name = "selvedge_ingress_rejected";
        self.counter(name, "Answers of the door's own, by reason", problems)?;
        for (name, help, count) in [
            (
                "selvedge_ingress_received",
                "Requests received",
                counts.requests,
            ),
            (
                "selvedge_ingress_connections",
                "Connections accepted",
                counts.connections,
            ),
            (
                "selvedge_ingress_retries",
                "Second tries at another endpoint",
                counts.retries,
            ),
            (
                "selvedge_ingress_replays",
                "Requests that instances sent elsewhere in the place of an answer",
                counts.replays,
            ),
            (
                "selvedge_ingress_tunnels",
                "Connections that switched protocol",
                counts.tunnels,
            ),
            (
                "selvedge_ingress_sent_to_peers",
                "Sent on to another node",
                counts.sent_to_peers,
            ),
            (
                "selvedge_ingress_served_for_peers",
                "Served for another node",
                counts.served_for_peers,
            ),
            (
                "selvedge_ingress_cold_requests",
                "Requests that waited for room",
                counts.cold,
            ),
            (
                "selvedge_ingress_passages",
                "Connections and flows passed unread",
                counts.passages,
            ),
            (
                "selvedge_ingress_datagrams_dropped",
                "Datagrams that found no room",
                counts.datagrams_dropped,
            ),
            ("selvedge_ingress_starts", "Starts asked for", counts.starts),
            (
                "selvedge_ingress_starts_failed",
                "Starts that failed",
                counts.starts_failed,
            ),
        ] {
            self.counter(name, help, one(count))?;
        }
        let ways = ["in", "out"].into_iter().zip(counts.passage_bytes);
        let ways = ways.map(|(way, n)| (vec![("direction", way.to_owned())], n));
        let name = "selvedge_ingress_passage_bytes";
        self.counter(
            name,
            "Bytes passed unread, to containers and from them",
            ways,
        )?;
        let name = "selvedge_ingress_open_passages";
        let help = "Connections and flows that pass unread now";
        self.gauge(name, help, one(counts.open_passages))?;
        let answered: u64 = counts.classes.iter().sum();
        let inflight = counts.requests.saturating_sub(answered);
        let name = "selvedge_ingress_inflight_requests";
        self.gauge(name, "Requests that have no answer yet", one(inflight))?;
        self.gauge(
            "selvedge_ingress_queue_depth",
            "Requests waiting for room",
            one(counts.held),
        )?;
        let name = "selvedge_ingress_open_connections";
        self.gauge(name, "Connections open now", one(counts.open_connections))
    }

    fn tls(&mut self, snapshot: &Snapshot) -> fmt::Result {
        let doors = &snapshot.doors;
        let row = |word: &str, count| (vec![("result", word.to_owned())], count);
        let full = doors.handshakes.saturating_sub(doors.handshakes_resumed);
        let handshakes = [
            row("full", full),
            row("resumed", doors.handshakes_resumed),
            row("failed", doors.handshakes_failed),
            row("unknown-name", doors.unknown_names),
        ];
        let name = "selvedge_ingress_tls_handshakes";
        self.counter(name, "TLS handshakes, by what came of them", handshakes)?;
        let certificates = snapshot.certificates.iter().take(MAX_CERTIFICATES);
        let rows = certificates.map(|(name, left)| (vec![("certificate", name.clone())], *left));
        let name = "selvedge_certificate_expiry_seconds";
        self.gauge(name, "How long a certificate still lasts", rows)
    }

    fn cold_starts(&mut self, counts: &Counts) -> fmt::Result {
        let name = "selvedge_cold_start_seconds";
        let help = "Requests that waited for room, until their answer began";
        self.histogram(name, help, [(Labels::new(), &counts.cold_starts)])?;
        let phases = PHASES.iter().zip(&counts.phases);
        let phases = phases.map(|(name, d)| (vec![("phase", (*name).to_owned())], d));
        let name = "selvedge_cold_start_phase_seconds";
        self.histogram(name, "Steps of the starts this door asked for", phases)
    }

    fn node(&mut self, snapshot: &Snapshot) -> fmt::Result {
        for (name, help, r) in [
            (
                "selvedge_node_capacity",
                "Offered to instances",
                snapshot.capacity,
            ),
            (
                "selvedge_node_allocated",
                "Promised to instances",
                snapshot.allocated,
            ),
        ] {
            let row = |word: &str, amount| (vec![("resource", word.to_owned())], amount);
            let rows = [
                row("cpu_cores", f64::from(r.cpu_millis) / 1000.0),
                row("memory_bytes", float(r.memory_bytes)),
                row("instances", f64::from(r.instances)),
            ];
            self.gauge(name, help, rows)?;
        }
        let state = |word: &str, count| (vec![("state", word.to_owned())], count);
        let members = [
            state("alive", snapshot.members_alive),
            state("lost", snapshot.members_lost),
        ];
        self.gauge(
            "selvedge_gossip_members",
            "Nodes as gossip has them",
            members,
        )?;
        self.counter(
            "selvedge_decisions_lost",
            "Decisions that were not written down, for explain to find",
            one(snapshot.decisions_lost),
        )?;
        let Raft {
            leads,
            term,
            index,
            quorum,
        } = snapshot.raft;
        for (name, help, value) in [
            (
                "selvedge_raft_is_leader",
                "Whether this node leads",
                u64::from(leads),
            ),
            (
                "selvedge_raft_has_quorum",
                "Whether changes can be made",
                u64::from(quorum),
            ),
            ("selvedge_raft_term", "The term; 0 on followers", term),
            (
                "selvedge_raft_commit_index",
                "The registry's index here",
                index,
            ),
        ] {
            self.gauge(name, help, one(value))?;
        }
        Ok(())
    }

    fn images(&mut self, counts: &ImageCounts) -> fmt::Result {
        let row = |word: &str, pulls| (vec![("result", word.to_owned())], Histogram::from(pulls));
        let pulls = [row("ok", &counts.pulled), row("failed", &counts.failed)];
        let name = "selvedge_image_pull_seconds";
        self.histogram(name, "Pulls of images that were not here", pulls)?;
        let row = |word: &str, bytes| (vec![("source", word.to_owned())], bytes);
        let moved = [
            row("registry", counts.moved.registry),
            row("peer", counts.moved.peer),
            row("local", counts.moved.local),
        ];
        let name = "selvedge_image_pull_bytes";
        self.counter(name, "Bytes of pulled images, by where from", moved)?;
        let name = "selvedge_image_store_bytes";
        self.gauge(name, "Layers held here, each once", one(counts.stored))
    }

    fn process(&mut self, process: &Process) -> fmt::Result {
        let cpu = float(process.cpu_millis) / 1000.0;
        let name = "process_cpu_seconds";
        self.counter(name, "CPU time of the daemon", one(cpu))?;
        let name = "process_resident_memory_bytes";
        self.gauge(name, "Memory of the daemon", one(process.memory_bytes))?;
        let name = "process_open_fds";
        self.gauge(name, "Open files of the daemon", one(process.open_fds))
    }

    fn counter<V: EncodeCounterValue>(
        &mut self,
        name: &str,
        help: &str,
        rows: impl IntoIterator<Item = (Labels, V)>,
    ) -> fmt::Result {
        let mut metric = self
            .0
            .encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, value) in rows {
            let mut row = metric.encode_family(&labels)?;
            row.encode_counter::<NoLabelSet, _, u64>(&value, None)?;
        }
        Ok(())
    }

    fn gauge<V: EncodeGaugeValue>(
        &mut self,
        name: &str,
        help: &str,
        rows: impl IntoIterator<Item = (Labels, V)>,
    ) -> fmt::Result {
        let mut metric = self
            .0
            .encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (labels, value) in rows {
            metric.encode_family(&labels)?.encode_gauge(&value)?;
        }
        Ok(())
    }

    fn histogram<'d>(
        &mut self,
        name: &str,
        help: &str,
        rows: impl IntoIterator<Item = (Labels, impl Into<Histogram<'d>>)>,
    ) -> fmt::Result {
        let mut metric = self
            .0
            .encode_descriptor(name, help, None, MetricType::Histogram)?;
        for (labels, told) in rows {
            let told: Histogram = told.into();
            let bounds = told.bounds.iter().map(|bound| seconds(*bound));
            let bounds = bounds.chain([f64::INFINITY]);
            let classes: Vec<(f64, u64)> = bounds.zip(told.classes.iter().copied()).collect();
            let (sum, count) = (seconds(told.sum_micros), told.classes.iter().sum());
            let mut row = metric.encode_family(&labels)?;
            row.encode_histogram::<NoLabelSet>(sum, count, &classes, None)?;
        }
        Ok(())
    }
}

/// How often something took how long, by whichever bounds.
struct Histogram<'a> {
    bounds: &'a [u64],
    /// One more than bounds, each for itself.
    classes: &'a [u64],
    sum_micros: u64,
}

impl<'a> From<&'a Distribution> for Histogram<'a> {
    fn from(told: &'a Distribution) -> Self {
        Self {
            bounds: &BOUNDS,
            classes: &told.classes,
            sum_micros: told.sum_micros,
        }
    }
}

impl<'a> From<&'a Pulls> for Histogram<'a> {
    fn from(told: &'a Pulls) -> Self {
        Self {
            bounds: &PULL_BOUNDS,
            classes: &told.classes,
            sum_micros: told.sum_micros,
        }
    }
}

/// Sums by revision with their labels, as many as are shown, and how many are not.
fn lines(usage: &UsageView) -> (Vec<(Labels, Line)>, u64) {
    let mut lines: BTreeMap<(&str, &str, &str), Line> = BTreeMap::new();
    for sum in &usage.revisions {
        // Old revisions have no name of their own; the word is no name a revision can have.
        let revision = sum.revision.as_ref().map_or("_older", |name| name.as_str());
        let key = (sum.namespace.as_str(), sum.service.as_str(), revision);
        lines.entry(key).or_default().total.add(&sum.total);
    }
    for live in &usage.instances {
        let key = (
            live.namespace.as_str(),
            live.service.as_str(),
            live.revision.as_str(),
        );
        let line = lines.entry(key).or_default();
        line.memory_bytes += live.memory_bytes;
        line.instances += 1;
    }
    let mut lines: Vec<_> = lines.into_iter().collect();
    lines.sort_by_key(|(_, line)| line.instances == 0);
    let left_out = lines.len().saturating_sub(MAX_REVISIONS) as u64;
    lines.truncate(MAX_REVISIONS);
    let labelled = lines
        .into_iter()
        .map(|((namespace, service, revision), line)| {
            let labels = vec![
                ("namespace", namespace.to_owned()),
                ("service", service.to_owned()),
                ("revision", revision.to_owned()),
            ];
            (labels, line)
        });
    (labelled.collect(), left_out)
}

/// A single value without labels.
fn one<V>(value: V) -> [(Labels, V); 1] {
    [(Labels::new(), value)]
}

fn seconds(micros: u64) -> f64 {
    float(micros) / 1e6
}

/// Exact up to 2^53, which in microseconds is three centuries.
#[allow(clippy::cast_precision_loss)]
fn float(value: u64) -> f64 {
    value as f64
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
