//! The text is read back by a checker of the format, and must say what was counted.

use netfabric::wire::usage::{InstanceUsage, RevisionUsage};
use scheduler::model::{InstanceId, InstanceState, Name, NodeId};

use super::*;

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn revision(service: &str, number: u64, cpu_micros: u64) -> RevisionUsage {
    RevisionUsage {
        namespace: name("default"),
        service: name(service),
        revision: (number > 0).then(|| name(&format!("{service}-{number:05}"))),
        node: NodeId(1),
        node_name: name("par-1"),
        total: Amounts {
            cpu_micros,
            requests: 7,
            oom_kills: 2,
            ..Amounts::default()
        },
    }
}

fn instance(service: &str, number: u64) -> InstanceUsage {
    InstanceUsage {
        instance: InstanceId(format!("{service}-{number:05}-a")),
        namespace: name("default"),
        service: name(service),
        revision: name(&format!("{service}-{number:05}")),
        node: NodeId(1),
        node_name: name("par-1"),
        state: InstanceState::Ready,
        memory_bytes: 4096,
        memory_limit_bytes: 0,
        memory_peak_bytes: 0,
        pids: 1,
        window_millis: 0,
        window: Amounts::default(),
        total: Amounts::default(),
    }
}

/// Reads the text strictly: every sample belongs to the family declared last, no series
/// comes twice, no family is declared twice, the end is marked.
fn read(text: &str) -> BTreeMap<String, f64> {
    let body = text.strip_suffix("# EOF\n").expect("the end is marked");
    let mut samples = BTreeMap::new();
    let mut families: Vec<(String, String)> = Vec::new();
    for line in body.lines() {
        if let Some(declared) = line.strip_prefix("# TYPE ") {
            let (family, kind) = declared.split_once(' ').unwrap();
            assert!(families.iter().all(|(f, _)| f != family), "twice: {family}");
            families.push((family.to_owned(), kind.to_owned()));
            continue;
        }
        if line.starts_with("# HELP ") {
            continue;
        }
        let (series, value) = line.rsplit_once(' ').expect("a sample");
        let (family, kind) = families.last().expect("a declared family");
        let metric = series.split('{').next().unwrap_or_default();
        let suffix = metric.strip_prefix(family.as_str());
        let suffix = suffix.unwrap_or_else(|| panic!("{metric} is not of {family}"));
        let allowed: &[&str] = match kind.as_str() {
            "counter" => &["_total"],
            "info" => &["_info"],
            "histogram" => &["_bucket", "_sum", "_count"],
            _ => &[""],
        };
        assert!(allowed.contains(&suffix), "{kind} {metric}");
        let value: f64 = value.parse().unwrap();
        assert!(value >= 0.0);
        let before = samples.insert(series.to_owned(), value);
        assert_eq!(before, None, "{series}");
    }
    samples
}

fn of(service: &str, revision: &str) -> String {
    format!(r#"{{namespace="default",service="{service}",revision="{revision}"}}"#)
}

fn is(samples: &BTreeMap<String, f64>, series: &str, want: f64) {
    let told = *samples.get(series).unwrap_or_else(|| panic!("no {series}"));
    assert!((told - want).abs() < 1e-9, "{series}: {told}, not {want}");
}

#[test]
fn what_is_counted_is_what_is_told() {
    let mut snapshot = Snapshot {
        node: "par-1".into(),
        members_alive: 2,
        decisions_lost: 4,
        members_lost: 1,
        ..Snapshot::default()
    };
    snapshot.usage.revisions = vec![revision("web", 1, 1_500_000), revision("web", 0, 250_000)];
    snapshot.usage.instances = vec![instance("web", 1), instance("web", 1)];
    snapshot.raft.leads = true;
    snapshot.images.stored = 77;
    snapshot.images.moved.peer = 5;
    snapshot.images.pulled.classes[2] = 4;
    snapshot.images.failed.classes[14] = 1;
    snapshot.images.failed.sum_micros = 2_000_000_000;
    snapshot.doors.requests = 12;
    snapshot.doors.classes = [0, 9, 0, 1, 0];
    snapshot.doors.held = 3;
    (snapshot.doors.handshakes, snapshot.doors.handshakes_resumed) = (5, 2);
    snapshot.certificates = vec![("web".into(), 3600)];
    snapshot.doors.problems = vec![("no-capacity".into(), 1)];
    snapshot.doors.phases[1].classes[0] = 2;
    snapshot.doors.phases[1].classes[14] = 1;
    snapshot.doors.phases[1].sum_micros = 31_000_000;
    let told = read(&text(snapshot));
    is(&told, "selvedge_decisions_lost_total", 4.0);
    let web = of("web", "web-00001");
    is(
        &told,
        &format!("selvedge_instance_cpu_seconds_total{web}"),
        1.5,
    );
    is(
        &told,
        &format!("selvedge_instance_oom_kills_total{web}"),
        2.0,
    );
    is(
        &told,
        &format!("selvedge_instance_requests_total{web}"),
        7.0,
    );
    is(
        &told,
        &format!("selvedge_instance_memory_bytes{web}"),
        8192.0,
    );
    is(&told, &format!("selvedge_instances{web}"), 2.0);
    let older = of("web", "_older");
    is(
        &told,
        &format!("selvedge_instance_cpu_seconds_total{older}"),
        0.25,
    );
    assert!(!told.contains_key(&format!("selvedge_instances{older}")));
    is(&told, r#"selvedge_ingress_requests_total{code="2xx"}"#, 9.0);
    is(
        &told,
        r#"selvedge_ingress_tls_handshakes_total{result="full"}"#,
        3.0,
    );
    is(
        &told,
        r#"selvedge_certificate_expiry_seconds{certificate="web"}"#,
        3600.0,
    );
    is(
        &told,
        r#"selvedge_ingress_rejected_total{reason="no-capacity"}"#,
        1.0,
    );
    is(&told, "selvedge_ingress_inflight_requests", 2.0);
    is(&told, "selvedge_ingress_queue_depth", 3.0);
    is(&told, r#"selvedge_gossip_members{state="lost"}"#, 1.0);
    is(&told, "selvedge_raft_is_leader", 1.0);
    is(&told, "selvedge_image_store_bytes", 77.0);
    for (source, bytes) in [("registry", 0.0), ("peer", 5.0), ("local", 0.0)] {
        let series = format!(r#"selvedge_image_pull_bytes_total{{source="{source}"}}"#);
        is(&told, &series, bytes);
    }
    let pulls =
        |part: &str, labels: &str| format!("selvedge_image_pull_seconds_{part}{{{labels}}}");
    is(&told, &pulls("bucket", r#"le="0.1",result="ok""#), 0.0);
    is(&told, &pulls("bucket", r#"le="0.25",result="ok""#), 4.0);
    is(&told, &pulls("count", r#"result="failed""#), 1.0);
    is(&told, &pulls("sum", r#"result="failed""#), 2000.0);
    let phase = |part: &str, more: &str| {
        format!(r#"selvedge_cold_start_phase_seconds_{part}{{{more}phase="pull"}}"#)
    };
    is(&told, &phase("bucket", r#"le="0.001","#), 2.0);
    is(&told, &phase("bucket", r#"le="30.0","#), 2.0);
    is(&told, &phase("bucket", r#"le="+Inf","#), 3.0);
    is(&told, &phase("count", ""), 3.0);
    is(&told, &phase("sum", ""), 31.0);
    let info = format!(
        r#"selvedge_build_info{{version="{}",node="par-1"}}"#,
        env!("CARGO_PKG_VERSION")
    );
    is(&told, &info, 1.0);
}

#[test]
fn a_label_that_would_break_out_is_escaped() {
    let snapshot = Snapshot {
        node: "a\"} 1\nevil 2".into(),
        ..Snapshot::default()
    };
    let text = text(snapshot);
    assert!(text.contains(r#"node="a\"} 1\nevil 2""#), "{text}");
    assert!(!text.lines().any(|line| line.starts_with("evil")));
}

#[test]
fn series_are_bounded_and_those_with_instances_stay() {
    let mut snapshot = Snapshot::default();
    let many = 1..=MAX_REVISIONS as u64 + 40;
    snapshot.usage.revisions = many.map(|n| revision("web", n, n)).collect();
    let last = MAX_REVISIONS as u64 + 40;
    snapshot.usage.instances = vec![instance("web", last)];
    let told = read(&text(snapshot));
    let cpu = |s: &&String| s.starts_with("selvedge_instance_cpu_seconds_total");
    assert_eq!(told.keys().filter(cpu).count(), MAX_REVISIONS);
    is(&told, "selvedge_metrics_revisions_left_out", 40.0);
    let kept = of("web", &format!("web-{last:05}"));
    is(&told, &format!("selvedge_instances{kept}"), 1.0);
}
