//! What people see, as snapshots.

use netfabric::wire::api::{Explanation, LogLine};
use scheduler::model::{InstanceId, UnixMs};

use super::fixtures::{self, NOW};
use super::*;

fn both<T: Row>(items: &[T]) -> String {
    let view = |wide| View {
        wide,
        namespaced: wide,
        now: NOW,
    };
    format!(
        "{}\n\n{}",
        table(items, &view(false)),
        table(items, &view(true))
    )
}

#[test]
fn tables() {
    insta::assert_snapshot!("services", both(&[fixtures::service()]));
    insta::assert_snapshot!("revisions", both(&fixtures::revisions()));
    insta::assert_snapshot!("instances", both(&fixtures::instances()));
    insta::assert_snapshot!("nodes", both(&fixtures::nodes()));
    insta::assert_snapshot!("images", both(&fixtures::images()));
}

#[test]
fn the_status() {
    let mut shown = fixtures::status();
    insta::assert_snapshot!("status", status(&shown, false, NOW));
    shown.registry.leader = None;
    shown.registry.quorum = false;
    let text = status(&shown, false, NOW);
    assert!(
        text.contains("no leader") && text.contains("NO QUORUM"),
        "{text}"
    );
    shown.registry.failed = Some("No space left on device".to_owned());
    let text = status(&shown, false, NOW);
    assert!(text.contains("its store failed: No space left"), "{text}");
}

#[test]
fn descriptions() {
    let (service, revisions) = (fixtures::service(), fixtures::revisions());
    let (instances, nodes) = (fixtures::instances(), fixtures::nodes());
    let used = fixtures::amounts(9);
    insta::assert_snapshot!(
        "describe_service",
        describe_service(&service, &revisions, &instances, Some(&used), NOW)
    );
    insta::assert_snapshot!(
        "describe_revision",
        describe_revision(&revisions[0], &[], NOW)
    );
    insta::assert_snapshot!("describe_instance", describe_instance(&instances[2], NOW));
    insta::assert_snapshot!(
        "describe_node",
        describe_node(&nodes[1], None, &instances[..1], NOW)
    );
}

#[test]
fn what_is_used() {
    let view = fixtures::usage();
    for (kind, what) in [
        (TopKind::Instances, "top_instances"),
        (TopKind::Services, "top_services"),
        (TopKind::Nodes, "top_nodes"),
    ] {
        let rows = top_rows(&view, kind, false);
        let wide = top_rows(&view, kind, true);
        let shown = format!(
            "{}\n\n{}",
            top_table(&rows, kind, false),
            top_table(&wide, kind, true)
        );
        insta::assert_snapshot!(what, shown);
    }
    let rows = top_rows(&view, TopKind::Services, false);
    assert_eq!(
        rows[0].total,
        fixtures::amounts(12),
        "what is over counts too"
    );
}

#[test]
fn explanations() {
    let mut shown = Explanation {
        subject: "instance web-00002-a".into(),
        receipt: Some(fixtures::receipt()),
        bill: Some(fixtures::bill()),
        why: vec!["It was started for a request that came in at par-1.".into()],
        decisions: Vec::new(),
    };
    insta::assert_snapshot!("explain", explanation(&shown));
    if let Some(receipt) = &mut shown.receipt {
        receipt.verdicts.retain(|v| v.outcome.is_err());
    }
    shown.bill = None;
    insta::assert_snapshot!("explain_nowhere", explanation(&shown));
    shown.receipt = None;
    shown.why.clear();
    assert!(explanation(&shown).contains("Nothing is known"));
    shown.decisions = fixtures::decisions();
    insta::assert_snapshot!("explain_decisions", explanation(&shown));
}

#[test]
fn log_lines() {
    let mut line = LogLine {
        time: UnixMs(1_700_000_000_123),
        node: "par-1".into(),
        instance: InstanceId("web-00002-a".into()),
        stream: "stderr".into(),
        line: "GET / 200\n".into(),
        partial: false,
    };
    assert_eq!(log_line(&line, false, false), "GET / 200");
    assert_eq!(log_line(&line, false, true), "web-00002-a | GET / 200");
    assert_eq!(
        log_line(&line, true, false),
        "2023-11-14T22:13:20.123Z stderr GET / 200"
    );
    line.partial = true;
    assert_eq!(log_line(&line, false, false), "GET / 200 \u{2026}");
}
