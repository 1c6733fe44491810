//! What nodes wrote down about an instance or a service: asked of all of them, put in order, and told.

use futures::future::join_all;
use netfabric::wire::decision::{Decision, Deed};
use scheduler::model::{InstanceId, Name, ServiceKey, UnixMs};
use scheduler::place::Receipt;

use super::Api;
use crate::clock;
use crate::telemetry::decisions::Subject;

/// What a peer is asked for: `decisions/instance/ID`, `decisions/service/NAMESPACE/NAME`.
pub(super) const SUBJECT: &str = "decisions";
/// The newest that a node tells of, and that are shown of all nodes together.
const MOST: usize = 30;

/// This node's own.
pub(super) async fn local(api: &Api, what: &str) -> Option<Vec<Decision>> {
    let subject = parse(what)?;
    let decisions = api.decisions.clone();
    let read = tokio::task::spawn_blocking(move || decisions.about(&subject, MOST));
    match read.await.ok()? {
        Ok(all) => Some(all),
        Err(error) => {
            tracing::warn!(%error, "DATA/decisions cannot be read");
            None
        }
    }
}

fn parse(what: &str) -> Option<Subject> {
    let (kind, rest) = what.split_once('/')?;
    match kind {
        "instance" => Some(Subject::Instance(InstanceId(rest.to_owned()))),
        "service" => {
            let (namespace, name) = rest.split_once('/')?;
            Some(Subject::Service(ServiceKey {
                namespace: Name::new(namespace).ok()?,
                name: Name::new(name).ok()?,
            }))
        }
        _ => None,
    }
}

/// Those of all nodes in reach, the oldest first.
pub(super) async fn of(api: &Api, what: &str) -> Vec<Decision> {
    let (fleet, subject) = (api.fleet(), format!("{SUBJECT}/{what}"));
    let nodes = fleet.nearest();
    let asked = nodes.iter().map(|m| api.ask(m.record.node, &subject));
    let answers: Vec<Option<Vec<Decision>>> = join_all(asked).await;
    in_order(answers.into_iter().flatten().flatten().collect())
}

/// A stop is written down by who orders it and by who carries it out; it is told once.
fn in_order(mut all: Vec<Decision>) -> Vec<Decision> {
    all.sort_by_key(|told| (told.at, told.node));
    let mut ended: Vec<(InstanceId, String)> = Vec::new();
    all.retain(|decision| {
        let Some(instance) = decision
            .instance
            .clone()
            .filter(|_| decision.deed == Deed::Retired)
        else {
            return true;
        };
        let end = (instance, decision.why.clone());
        let first = !ended.contains(&end);
        if first {
            ended.push(end);
        }
        first
    });
    let older = all.len().saturating_sub(MOST);
    all.split_off(older)
}

/// The newest placement that is written down with what it was decided from.
pub(super) fn receipt(decisions: &[Decision]) -> Option<Receipt> {
    let placed = |d: &&Decision| matches!(d.deed, Deed::Placed | Deed::Scaled);
    let mut newest = decisions.iter().rev().filter(placed);
    newest.find_map(|d| d.receipt.clone())
}

/// Why an instance is not there any more.
pub(super) fn ended(decisions: &[Decision]) -> Option<String> {
    let end = decisions.iter().rev().find(|d| d.deed == Deed::Retired)?;
    let instance = end.instance.as_ref()?;
    let ago = ago(end.at, clock::unix());
    Some(format!(
        "{instance} was to end {ago}, because of: {}",
        end.why
    ))
}

/// Why there are as many instances as there are: the last change of their number.
pub(super) fn number(decisions: &[Decision]) -> Option<String> {
    let last = decisions.iter().rev().find(|d| {
        matches!(
            d.deed,
            Deed::Placed | Deed::Scaled | Deed::Retired | Deed::Unplaced
        )
    })?;
    let ago = ago(last.at, clock::unix());
    let what = match last.deed {
        Deed::Retired => "one was to end",
        Deed::Unplaced => "no node could be found for one more",
        _ => "one was started",
    };
    Some(format!("{ago} {what}, by {}: {}", last.node_name, last.why))
}

fn ago(then: UnixMs, now: UnixMs) -> String {
    let seconds = now.0.saturating_sub(then.0) / 1000;
    match seconds {
        0..120 => format!("{seconds} s ago"),
        120..7200 => format!("{} min ago", seconds / 60),
        _ => format!("{} h ago", seconds / 3600),
    }
}

#[cfg(test)]
mod tests {
    use scheduler::model::{NodeId, RevisionKey};

    use super::*;

    fn decision(at: u64, node: u64, deed: Deed, why: &str) -> Decision {
        let name = |text: &str| Name::new(text).unwrap();
        Decision {
            at: UnixMs(at),
            node: NodeId(node),
            node_name: name(&format!("n{node}")),
            deed,
            service: ServiceKey {
                namespace: name("default"),
                name: name("web"),
            },
            revision: RevisionKey {
                namespace: name("default"),
                name: name("web-00001"),
            },
            instance: Some(InstanceId("web-a".to_owned())),
            why: why.to_owned(),
            receipt: None,
            unwritten: 0,
        }
    }

    #[test]
    fn a_stop_that_two_nodes_wrote_down_is_told_once_and_the_newest_stay() {
        let all = in_order(vec![
            decision(30, 2, Deed::Retired, "idle"),
            decision(20, 1, Deed::Retired, "idle"),
            decision(10, 2, Deed::Placed, "request"),
        ]);
        let told: Vec<_> = all.iter().map(|d| (d.at.0, d.node.0)).collect();
        assert_eq!(told, [(10, 2), (20, 1)]);
        let many = (0..100).map(|at| decision(at, 1, Deed::Placed, "request"));
        let all = in_order(many.collect());
        assert_eq!((all.len(), all[0].at.0), (MOST, 70));
    }

    #[test]
    fn the_last_change_of_the_number_is_told() {
        let all = [
            decision(10, 2, Deed::Placed, "request"),
            decision(20, 1, Deed::Retired, "scale 1 to 0: idle"),
            decision(30, 1, Deed::Refused, "no room"),
        ];
        let told = number(&all).unwrap();
        assert!(
            told.ends_with("one was to end, by n1: scale 1 to 0: idle"),
            "{told}"
        );
        assert!(ended(&all).unwrap().starts_with("web-a was to end "));
        let table = [
            (0, "0 s ago"),
            (119_999, "119 s ago"),
            (180_000, "3 min ago"),
        ];
        for (since, want) in table {
            assert_eq!(ago(UnixMs(0), UnixMs(since)), want);
        }
    }

    #[test]
    fn what_is_asked_for_is_understood_or_not() {
        assert!(matches!(
            parse("instance/web-a"),
            Some(Subject::Instance(_))
        ));
        assert!(matches!(
            parse("service/default/web"),
            Some(Subject::Service(_))
        ));
        for odd in ["instance", "service/web", "service/De fault/x", "node/x"] {
            assert!(parse(odd).is_none(), "{odd}");
        }
    }
}
