//! `selvedge why-not SERVICE NODE`: what speaks against one node for the next instance of a service, as
//! the node that is asked sees it now.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use netfabric::wire::api::Explanation;
use scheduler::fleet::Fleet;
use scheduler::model::{NodeId, Revision};
use scheduler::place::{Ask, Candidate, Parts, Receipt, Verdict, judge_one, place};

use super::{Api, Failure, services};

const CAUSE: &str = "why-not";

pub(super) async fn node(
    State(api): State<Arc<Api>>,
    Path((namespace, name, node)): Path<(String, String, String)>,
) -> Result<Json<Explanation>, Failure> {
    let key = services::service_key(namespace, name)?;
    let state = api.registry.view().state();
    let stored = state.services.get(&key);
    let status = &stored.ok_or_else(|| services::no_service(&key))?.status;
    let latest = status
        .latest_ready
        .as_ref()
        .or(status.latest_created.as_ref());
    let revision = latest
        .and_then(|latest| state.revisions.get(latest))
        .ok_or_else(|| Failure::not_found(format!("service {key} has no revision")))?;
    let fleet = api.fleet();
    let named = fleet
        .members
        .values()
        .find(|m| m.record.name.as_str() == node);
    let asked = named
        .map(|member| member.record.node)
        .ok_or_else(|| Failure::not_found(format!("no node in reach is named {node}")))?;
    let (receipt, why) = explain(&fleet, revision, asked);
    Ok(Json(Explanation {
        subject: format!("why not {node} for {}", revision.key),
        receipt: Some(receipt),
        bill: None,
        why,
        decisions: Vec::new(),
    }))
}

/// The placement as it would be now, with a verdict on `asked` in it, and that verdict in words.
fn explain(fleet: &Fleet, revision: &Revision, asked: NodeId) -> (Receipt, Vec<String>) {
    let ask = Ask {
        from: fleet.me,
        cause: CAUSE.to_owned(),
        ..Ask::default()
    };
    let mut receipt = place(fleet, revision, &ask);
    let Some(own) = judge_one(fleet, revision, &ask, asked) else {
        return (receipt, Vec::new());
    };
    if receipt.verdicts.iter().all(|v| v.node != asked) {
        // Good ones are in order; this one was not looked at because it is worse than those.
        let good = receipt.verdicts.iter().take_while(|v| v.outcome.is_ok());
        let place = good.count();
        receipt.verdicts.insert(place, own.clone());
    }
    let first = receipt.verdicts.first().filter(|v| v.outcome.is_ok());
    let why = words(&own, first);
    (receipt, vec![why])
}

fn words(own: &Verdict, first: Option<&Verdict>) -> String {
    let name = &own.name;
    let candidate = match &own.outcome {
        Err(why) => return format!("{name} cannot take an instance: {why}"),
        Ok(candidate) => candidate,
    };
    match first.and_then(|v| Some((v, v.outcome.as_ref().ok()?))) {
        Some((best, _)) if best.node == own.node => {
            format!("{name} is the first choice: the next instance asked for here goes there")
        }
        Some((best, cheaper)) => format!(
            "{name} could take it, but {} is expected to answer {} ms sooner: {}",
            best.name,
            candidate.cost_micros.saturating_sub(cheaper.cost_micros) / 1000,
            dearer(candidate, cheaper)
        ),
        None => format!("{name} could take it"),
    }
}

/// In what the one costs more than the other.
fn dearer(own: &Candidate, other: &Candidate) -> String {
    // Named one by one, so that none is left out.
    let parts = |p: &Parts| {
        let Parts {
            round_trip,
            start,
            pull,
            crowding,
            beside,
            spread,
            slack,
            prefer,
            energy,
            pressure,
            silence,
        } = *p;
        [
            ("it is farther away", round_trip),
            ("it starts more slowly", start),
            ("the image is not there", pull),
            ("it is fuller", crowding),
            ("more of it run there already", beside),
            ("more of it run in its zone or region", spread),
            ("more would stay free on it", slack),
            ("it does not meet the service's preferences", prefer),
            ("it uses more energy", energy),
            ("things wait there for processors, memory or disk", pressure),
            ("nothing was heard of it for a while", silence),
        ]
    };
    let pairs = parts(&own.parts).into_iter().zip(parts(&other.parts));
    let more: Vec<&str> = pairs.filter(|(a, b)| a.1 > b.1).map(|(a, _)| a.0).collect();
    if more.is_empty() {
        return "nothing else tells them apart".to_owned();
    }
    more.join(", ")
}

#[cfg(test)]
mod tests {
    use scheduler::model::Name;
    use scheduler::place::Rejection;

    use super::*;

    fn verdict(node: u64, outcome: Result<Parts, Rejection>) -> Verdict {
        Verdict {
            node: NodeId(node),
            name: Name::new(format!("n{node}")).unwrap(),
            region: Name::new("eu").unwrap(),
            record: (1, 1),
            outcome: outcome.map(|parts| Candidate {
                cost_micros: parts.sum(),
                rtt_micros: None,
                image_present: parts.pull == 0,
                same_revision: 0,
                free_cpu_millis: 1,
                free_memory_bytes: 1,
                parts,
            }),
        }
    }

    #[test]
    fn what_speaks_against_a_node_is_said() {
        let near = Parts {
            start: 150_000,
            ..Parts::default()
        };
        let far = Parts {
            round_trip: 40_000,
            pull: 5_000_000,
            ..near
        };
        let first = verdict(1, Ok(near));
        let table = [
            (
                verdict(1, Ok(near)),
                "n1 is the first choice: the next instance asked for here goes there",
            ),
            (
                verdict(2, Ok(far)),
                "n2 could take it, but n1 is expected to answer 5040 ms sooner: it is farther away, \
                 the image is not there",
            ),
            (
                verdict(
                    2,
                    Ok(Parts {
                        silence: 300_000,
                        prefer: 50_000,
                        ..near
                    }),
                ),
                "n2 could take it, but n1 is expected to answer 350 ms sooner: it does not meet the \
                 service's preferences, nothing was heard of it for a while",
            ),
            (
                verdict(3, Err(Rejection::Cordoned)),
                "n3 cannot take an instance: cordoned",
            ),
        ];
        for (own, want) in table {
            assert_eq!(words(&own, Some(&first)), want);
        }
    }
}
