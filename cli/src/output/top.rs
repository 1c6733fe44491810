//! `top`: what nodes counted, turned into rates and sums. Pure arithmetic and a table.

use std::collections::BTreeMap;

use netfabric::wire::usage::{Amounts, InstanceUsage, UsageView};
use serde::Serialize;

use super::plain_table;
use super::words::bytes;

/// What the rows are about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum TopKind {
    Instances,
    Services,
    Nodes,
}

/// One instance, or all of one service or node. Rates are of the last seconds measured.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TopRow {
    pub name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    pub instances: u32,
    pub cpu_cores: f64,
    pub memory_bytes: u64,
    /// 0 is no limit.
    pub memory_limit_bytes: u64,
    /// Time held back by the CPU limit; of several, the worst.
    pub throttled_percent: f64,
    pub network_in_bytes_per_second: f64,
    pub network_out_bytes_per_second: f64,
    pub io_bytes_per_second: f64,
    pub requests_per_second: f64,
    /// Since the beginning; for services with all that is over.
    pub total: Amounts,
}

/// The rows of a kind, the busiest first.
pub fn top_rows(view: &UsageView, kind: TopKind, namespaced: bool) -> Vec<TopRow> {
    let named = |namespace: &dyn ToString, name: &dyn ToString| {
        if namespaced {
            format!("{}/{}", namespace.to_string(), name.to_string())
        } else {
            name.to_string()
        }
    };
    let mut rows: BTreeMap<String, TopRow> = BTreeMap::new();
    for live in &view.instances {
        let name = match kind {
            TopKind::Instances => named(&live.namespace, &live.instance),
            TopKind::Services => named(&live.namespace, &live.service),
            TopKind::Nodes => live.node_name.to_string(),
        };
        let row = rows.entry(name).or_default();
        row.count(live);
        if kind == TopKind::Instances {
            row.node = Some(live.node_name.to_string());
            row.total = live.total.clone();
        }
    }
    for sum in &view.revisions {
        let name = match kind {
            TopKind::Instances => continue,
            TopKind::Services => named(&sum.namespace, &sum.service),
            TopKind::Nodes => sum.node_name.to_string(),
        };
        rows.entry(name).or_default().total.add(&sum.total);
    }
    let mut rows: Vec<TopRow> = rows
        .into_iter()
        .map(|(name, row)| TopRow { name, ..row })
        .collect();
    rows.sort_by(|a, b| {
        let busier = b.cpu_cores.total_cmp(&a.cpu_cores);
        busier.then(b.memory_bytes.cmp(&a.memory_bytes))
    });
    rows
}

impl TopRow {
    fn count(&mut self, live: &InstanceUsage) {
        let seconds = float(live.window_millis.max(1)) / 1000.0;
        let rate = |amount: u64| float(amount) / seconds;
        let window = &live.window;
        self.instances += 1;
        self.memory_bytes += live.memory_bytes;
        self.memory_limit_bytes += live.memory_limit_bytes;
        self.cpu_cores += rate(window.cpu_micros) / 1e6;
        let throttled = rate(window.throttled_micros) / 1e4;
        self.throttled_percent = self.throttled_percent.max(throttled);
        self.network_in_bytes_per_second += rate(window.net_in_bytes);
        self.network_out_bytes_per_second += rate(window.net_out_bytes);
        self.io_bytes_per_second += rate(window.io_read_bytes + window.io_write_bytes);
        self.requests_per_second += rate(window.requests);
    }
}

/// The table, without a line's end.
pub fn top_table(rows: &[TopRow], kind: TopKind, wide: bool) -> String {
    let mut head = match kind {
        TopKind::Instances => vec!["INSTANCE", "NODE"],
        TopKind::Services => vec!["SERVICE", "INSTANCES"],
        TopKind::Nodes => vec!["NODE", "INSTANCES"],
    };
    head.extend([
        "CPU",
        "MEMORY",
        "THROTTLED",
        "NET IN",
        "NET OUT",
        "IO",
        "REQ/S",
    ]);
    if wide {
        head.extend(["REQUESTS", "VCPU-S", "GIB-S"]);
    }
    let cells = rows.iter().map(|row| {
        let second = row.node.clone();
        let mut cells = vec![
            row.name.clone(),
            second.unwrap_or_else(|| row.instances.to_string()),
            format!("{:.2}", row.cpu_cores),
            memory(row),
            format!("{:.0}%", row.throttled_percent),
            per_second(row.network_in_bytes_per_second),
            per_second(row.network_out_bytes_per_second),
            per_second(row.io_bytes_per_second),
            format!("{:.1}", row.requests_per_second),
        ];
        if wide {
            cells.push(row.total.requests.to_string());
            cells.push(vcpu_seconds(&row.total));
            cells.push(gib_seconds(row.total.limit_byte_seconds));
        }
        cells
    });
    plain_table(&head, cells)
}

fn memory(row: &TopRow) -> String {
    let used = bytes(row.memory_bytes);
    match row.memory_limit_bytes {
        0 => used,
        limit => format!("{used} of {}", bytes(limit)),
    }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn per_second(amount: f64) -> String {
    format!("{}/s", bytes(amount.round() as u64))
}

/// What a bill is made from, as lines of `describe`: name and value.
pub(super) fn bill(total: &Amounts) -> Vec<(&'static str, String)> {
    let lived: u64 = total.state_millis.values().sum();
    let request = float(total.request_micros) / 1e6;
    let average = match total.requests {
        0 => String::new(),
        n => format!(", {:.1} ms each", request * 1000.0 / float(n)),
    };
    let lived = float(lived) / 1000.0;
    let memory = format!(
        "{} GiB-seconds held, {} used",
        gib_seconds(total.limit_byte_seconds),
        gib_seconds(total.memory_byte_seconds),
    );
    let network = format!(
        "{} in, {} out",
        bytes(total.net_in_bytes),
        bytes(total.net_out_bytes)
    );
    vec![
        (
            "Requests",
            format!("{} in {request:.3} s{average}", total.requests),
        ),
        ("Instances", format!("{} for {lived:.1} s", total.instances)),
        ("CPU time", format!("{} vCPU-seconds", vcpu_seconds(total))),
        ("Memory time", memory),
        ("Network", network),
    ]
}

fn vcpu_seconds(total: &Amounts) -> String {
    format!("{:.3}", float(total.cpu_micros) / 1e6)
}

fn gib_seconds(byte_seconds: u64) -> String {
    format!("{:.3}", float(byte_seconds) / float(1 << 30))
}

/// Shown with a few digits: what a float loses of such a number nobody sees.
#[allow(clippy::cast_precision_loss)]
fn float(amount: u64) -> f64 {
    amount as f64
}
