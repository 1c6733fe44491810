//! `describe`: everything about one thing, as text.

use std::collections::BTreeMap;
use std::fmt::Write;

use netfabric::wire::api::{Diagnosis, InstanceView, NodeStatus, ServiceView};
use netfabric::wire::usage::Amounts;
use scheduler::model::{
    Listen, ListenProtocol, PlacementRules, Protocol, Revision, RevisionSpec, RevisionState,
    Spread, TrafficTarget, UnixMs,
};

use super::doctor::isolation;
use super::rows::{distance, limit, node_condition, revision_state, role, scale_bounds};
use super::words::{age, bytes, cores, or_dash, time};
use super::{View, sandbox, table, top};

/// Lines of `Name:  value`.
#[derive(Default)]
struct Sheet(String);

impl Sheet {
    fn line(&mut self, name: &str, value: impl AsRef<str>) {
        let mut lines = value.as_ref().lines();
        let label = format!("{name}:");
        let _ = writeln!(self.0, "{label:<14} {}", lines.next().unwrap_or("-"));
        for more in lines {
            let _ = writeln!(self.0, "{:<14} {more}", "");
        }
    }

    /// Only when there is something to say.
    fn some(&mut self, name: &str, value: impl AsRef<str>) {
        if !value.as_ref().is_empty() {
            self.line(name, value);
        }
    }

    fn title(&mut self, text: &str) {
        let _ = writeln!(self.0, "\n{text}");
    }

    fn instances(&mut self, instances: &[InstanceView], now: UnixMs) {
        self.title("Instances");
        if instances.is_empty() {
            self.0.push_str("none\n");
        } else {
            let view = View {
                wide: false,
                namespaced: false,
                now,
            };
            let _ = writeln!(self.0, "{}", table(instances, &view));
        }
    }
}

pub fn describe_service(
    view: &ServiceView,
    revisions: &[Revision],
    instances: &[InstanceView],
    used: Option<&Amounts>,
    now: UnixMs,
) -> String {
    let service = &view.service;
    let mut sheet = Sheet::default();
    sheet.line("Name", service.key.name.as_str());
    sheet.line("Namespace", service.key.namespace.as_str());
    sheet.line("URL", &view.url);
    let inside = view.service.meta.address.map(|a| a.to_string());
    sheet.some("Inside", inside.unwrap_or_default());
    sheet.line("Ready", &view.condition.ready);
    sheet.some("Reason", &view.condition.reason);
    sheet.some("Message", &view.condition.message);
    let scale = &service.scale;
    let target = scale.total_concurrency(service.spec.container_concurrency);
    let aim = format!(
        "{}, aims at {}% of {target} at once each, window {}s",
        scale_bounds(scale),
        scale.utilization_percent,
        scale.window_seconds,
    );
    sheet.line("Scale", aim);
    sheet.line("Traffic", traffic(&service.traffic));
    sheet.line("Created", created(service.meta.created, now));
    sheet.line("Version", service.meta.resource_version.to_string());
    sheet.some("Labels", pairs(&service.meta.labels));
    sheet.some("Annotations", pairs(&service.meta.annotations));
    sheet.title("Template");
    template(&mut sheet, &service.spec);
    if let Some(used) = used {
        sheet.title("Used");
        for (name, value) in top::bill(used) {
            sheet.line(name, value);
        }
    }
    sheet.title("Revisions");
    let plain = View {
        wide: false,
        namespaced: false,
        now,
    };
    let _ = writeln!(sheet.0, "{}", table(revisions, &plain));
    sheet.instances(instances, now);
    sheet.0
}

pub fn describe_revision(revision: &Revision, instances: &[InstanceView], now: UnixMs) -> String {
    let mut sheet = Sheet::default();
    sheet.line("Name", revision.key.name.as_str());
    sheet.line("Namespace", revision.key.namespace.as_str());
    sheet.line("Service", revision.service.name.as_str());
    sheet.line("State", revision_state(&revision.state));
    if let RevisionState::Failed { message, .. } = &revision.state {
        sheet.line("Message", message);
    }
    sheet.line("Created", created(revision.created, now));
    sheet.line("Digest", &revision.image.digest);
    sheet.title("Template");
    template(&mut sheet, &revision.spec);
    sheet.instances(instances, now);
    sheet.0
}

pub fn describe_instance(instance: &InstanceView, now: UnixMs) -> String {
    let mut sheet = Sheet::default();
    sheet.line("Name", instance.id.to_string());
    sheet.line("Namespace", instance.namespace.as_str());
    sheet.line("Service", instance.service.as_str());
    sheet.line("Revision", instance.revision.as_str());
    let lost = if instance.alive {
        ""
    } else {
        ", its node is lost"
    };
    sheet.line(
        "State",
        format!("{} for {}{lost}", instance.state, age(instance.since, now)),
    );
    sheet.line(
        "Node",
        format!("{} ({})", instance.node_name, instance.node),
    );
    sheet.line("Region", instance.region.as_str());
    sheet.line("In flight", instance.in_flight.to_string());
    if let Some(failure) = &instance.failure {
        sheet.line("Failure", &failure.code);
        sheet.line("Message", &failure.message);
    }
    sheet.0
}

pub fn describe_node(
    node: &NodeStatus,
    diagnosis: Option<&Diagnosis>,
    instances: &[InstanceView],
    now: UnixMs,
) -> String {
    let mut sheet = Sheet::default();
    sheet.line("Name", node.name.as_str());
    sheet.line("Id", node.id.to_string());
    sheet.line("Status", node_condition(node));
    sheet.line("Role", role(node.role));
    sheet.line("Region", node.region.as_str());
    sheet.line("Zone", node.zone.as_str());
    sheet.line("Version", or_dash(node.version.clone()));
    sheet.line("Mesh", node.mesh.to_string());
    let ingress: Vec<String> = node.ingress.iter().map(ToString::to_string).collect();
    sheet.line("Ingress", or_dash(ingress.join(", ")));
    let rtt = node
        .rtt_micros
        .map_or_else(|| "not measured".to_owned(), distance);
    sheet.line("Round trip", rtt);
    let of = |free: String, all: String| format!("{free} free of {all}");
    sheet.line(
        "CPU",
        of(cores(node.free.cpu_millis), cores(node.capacity.cpu_millis)),
    );
    sheet.line(
        "Memory",
        of(
            bytes(node.free.memory_bytes),
            bytes(node.capacity.memory_bytes),
        ),
    );
    sheet.line(
        "Room",
        format!(
            "{} of {} instances",
            node.free.instances, node.capacity.instances
        ),
    );
    sheet.some("Isolation", isolation(diagnosis));
    let closed = diagnosis.map_or(&[][..], |d| &d.closed_ports);
    sheet.some("Closed ports", closed.join("\n"));
    sheet.line("Registry", format!("index {}", node.registry_index));
    sheet.some("Labels", pairs(&node.labels));
    sheet.instances(instances, now);
    sheet.0
}

fn template(sheet: &mut Sheet, spec: &RevisionSpec) {
    let Some(main) = spec.main() else { return };
    sheet.line("Image", &main.image);
    sheet.some("Command", main.command.join(" "));
    sheet.some("Args", main.args.join(" "));
    let port = spec.port();
    let protocol = if port.protocol == Protocol::H2c {
        "h2c"
    } else {
        "http1"
    };
    sheet.line("Port", format!("{} ({protocol})", port.container_port));
    sheet.line("CPU", limit(main.cpu_millis, cores));
    sheet.line("Memory", limit(main.memory_bytes, bytes));
    sheet.line(
        "At once",
        limit(spec.container_concurrency, |n| format!("{n} requests")),
    );
    sheet.line("Timeout", format!("{}s", spec.timeout_seconds));
    let probe = main
        .readiness
        .as_ref()
        .map_or_else(|| "tcp".to_owned(), sandbox::probe);
    sheet.line("Readiness", probe);
    for (name, value) in sandbox::lines(spec, main) {
        sheet.some(name, value);
    }
    let env: Vec<String> = main
        .env
        .iter()
        .map(|var| match &var.secret {
            Some(secret) => format!("{} from secret {secret}", var.name),
            None => format!("{}={}", var.name, var.value),
        })
        .collect();
    sheet.some("Environment", env.join("\n"));
    sheet.some("Place", rules(&spec.place));
    let egress: Vec<String> = spec.egress.iter().map(ToString::to_string).collect();
    sheet.some("Reaches", egress.join(" "));
    let listens: Vec<String> = spec.listen.iter().map(listen).collect();
    sheet.some("Listens", listens.join("\n"));
    let callers: Vec<String> = spec.callers.iter().map(ToString::to_string).collect();
    sheet.some("Callers", callers.join(" "));
}

fn listen(of: &Listen) -> String {
    let mut parts = vec![of.socket().to_string()];
    if of.protocol == ListenProtocol::Tls {
        parts.push(format!("for TLS to {}", of.sni.join(" ")));
    }
    if of.to != 0 {
        parts.push(format!("to {}", of.to));
    }
    if of.private {
        parts.push("inside only".to_owned());
    }
    if of.proxy_protocol {
        parts.push("by the PROXY protocol".to_owned());
    }
    parts.join(", ")
}

fn rules(place: &PlacementRules) -> String {
    let mut parts = Vec::new();
    if !place.regions.is_empty() {
        parts.push(format!("regions {}", place.regions.join(" ")));
    }
    match place.spread {
        Spread::None => {}
        Spread::Zone => parts.push("spread over zones".to_owned()),
        Spread::Region => parts.push("spread over regions".to_owned()),
    }
    if !place.require.is_empty() {
        parts.push(format!(
            "labels {}",
            pairs(&place.require).replace('\n', " ")
        ));
    }
    parts.join(", ")
}

fn traffic(targets: &[TrafficTarget]) -> String {
    if targets.is_empty() {
        return "100% to the latest ready revision".to_owned();
    }
    let target = |t: &TrafficTarget| {
        let revision = t.revision.as_ref().map_or("latest", |r| r.as_str());
        let tag = t
            .tag
            .as_ref()
            .map_or_else(String::new, |tag| format!(" (tag {tag})"));
        format!("{}% to {revision}{tag}", t.percent)
    };
    targets.iter().map(target).collect::<Vec<_>>().join("\n")
}

fn created(at: UnixMs, now: UnixMs) -> String {
    format!("{} ({} ago)", time(at), age(at, now))
}

fn pairs(map: &BTreeMap<String, String>) -> String {
    map.iter()
        .map(|(k, v)| format!("{k}={v}"))
        .collect::<Vec<_>>()
        .join("\n")
}
