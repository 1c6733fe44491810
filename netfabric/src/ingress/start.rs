//! Finding a node for one new instance: ask the best, then the next, until one has it ready.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use scheduler::activate::Refused;
use scheduler::model::{NodeId, RequestId, RevisionKey};
use scheduler::place::{AT_THE_DOOR, Ask, Receipt, place};
use tokio::time::timeout;

use super::Shared;
use super::ledger::{Story, micros};
use crate::wire::peer::{StartRefusal, StartRequest, Started};

/// How long an asked node may take: longer than any request waits, so that a slow pull ends in
/// an instance for the next request rather than in nothing.
const PATIENCE: Duration = Duration::from_mins(2);
/// What the answer itself may take on top.
const ANSWER: Duration = Duration::from_secs(5);
/// Nodes asked for one instance before giving up.
const NODES_ASKED: usize = 5;

pub(super) struct Outcome {
    pub(super) story: Story,
    pub(super) result: Result<(NodeId, Started), Refused>,
}

/// Refusals so far.
#[derive(Default)]
struct Refusals {
    avoid: BTreeSet<NodeId>,
    /// `node: reason`.
    reasons: Vec<String>,
    image: Option<String>,
}

/// `outside` are nodes that are not asked, wherever else the revision may run.
pub(super) async fn start(
    shared: &Shared,
    revision: &RevisionKey,
    (request, held): (RequestId, u32),
    outside: &[NodeId],
) -> Outcome {
    let begun = Instant::now();
    let mut story = Story {
        receipt: None,
        phases: Vec::new(),
        instance: None,
        ended: begun,
    };
    let result = ask_around(shared, revision, (request, held, outside), &mut story).await;
    story.instance = result
        .as_ref()
        .ok()
        .map(|(_, started)| started.instance.clone());
    for (name, micros) in &story.phases {
        shared.counters.phase(name, *micros);
    }
    story.ended = Instant::now();
    Outcome { story, result }
}

async fn ask_around(
    shared: &Shared,
    revision: &RevisionKey,
    (request, held, outside): (RequestId, u32, &[NodeId]),
    story: &mut Story,
) -> Result<(NodeId, Started), Refused> {
    let begun = Instant::now();
    let mut service = None;
    let mut refusals = Refusals {
        avoid: outside.iter().copied().collect(),
        ..Refusals::default()
    };
    for _ in 0..NODES_ASKED {
        let Some(mut ask) = prepare(shared, revision, &refusals.avoid) else {
            refusals.reasons.push(format!("{revision} is gone"));
            break;
        };
        let best = ask.receipt.ranked().next().map(|(node, _)| node);
        story.receipt = Some(ask.receipt.clone());
        service = Some(ask.service.clone());
        story.phases = vec![("place".to_owned(), micros(begun.elapsed()))];
        let Some(node) = best else {
            refusals.note_unfit(&ask.receipt);
            break;
        };
        ask.request = Some(request.clone());
        ask.held = held;
        let asked = Instant::now();
        match put(shared, node, ask).await {
            Ok(started) => {
                story.phases.extend(started.phases.iter().cloned());
                return Ok((node, started));
            }
            Err(StartRefusal::Failed { code, message, .. }) => {
                return Err(Refused::StartFailed { code, message });
            }
            Err(refusal) => {
                if let StartRefusal::Unreachable(why) = &refusal
                    && node != shared.me()
                {
                    // Whoever asks next need not wait for it as well.
                    shared.nodes.blame(node, asked.elapsed(), why);
                }
                refusals.note(node, refusal);
            }
        }
    }
    if let (Some(service), Some(receipt)) = (&service, &story.receipt) {
        let why = refusals.reasons.join("; ");
        shared.starter.unplaced(service, receipt, &why);
    }
    Err(refusals.sum())
}

/// The request to start, with the placement that says where. `None` when the revision is gone.
fn prepare(
    shared: &Shared,
    revision: &RevisionKey,
    avoid: &BTreeSet<NodeId>,
) -> Option<StartRequest> {
    let state = shared.registry.borrow().clone();
    let fleet = shared.fleet.borrow().clone();
    let revision = state.revisions.get(revision)?;
    // A node that just broke a request off would only be waited for; gossip may take seconds more
    // to miss it.
    let ejected = fleet
        .members
        .keys()
        .filter(|n| shared.nodes.is_ejected(**n));
    let ask = Ask {
        from: fleet.me,
        avoid: avoid.iter().chain(ejected).copied().collect(),
        cause: AT_THE_DOOR.to_owned(),
        ..Ask::default()
    };
    Some(StartRequest {
        service: revision.service.clone(),
        revision: revision.key.clone(),
        index: state.index,
        request: None,
        receipt: place(&fleet, revision, &ask),
        held: 0,
        patience_millis: micros(PATIENCE) / 1000,
    })
}

async fn put(
    shared: &Shared,
    node: NodeId,
    request: StartRequest,
) -> Result<Started, StartRefusal> {
    let answer = timeout(PATIENCE + ANSWER, shared.starter.start(node, request)).await;
    answer.unwrap_or_else(|_| Err(StartRefusal::Unreachable("no answer in time".to_owned())))
}

impl Refusals {
    fn note(&mut self, node: NodeId, refusal: StartRefusal) {
        self.reasons.push(format!("{node}: {refusal}"));
        self.avoid.insert(node);
        if let StartRefusal::Image(message) = refusal {
            self.image = Some(message);
        }
    }

    /// Nodes placement would not even ask; those asked before have given their own reason.
    fn note_unfit(&mut self, receipt: &Receipt) {
        let unasked = |v: &&scheduler::place::Verdict| !self.avoid.contains(&v.node);
        let verdicts = receipt.verdicts.iter().filter(unasked);
        let unfit = verdicts.filter_map(|v| {
            let why = v.outcome.as_ref().err()?;
            Some(format!("{}: {why}", v.name))
        });
        self.reasons.extend(unfit);
    }

    /// An image nobody could get is a failure of the revision, not a lack of room.
    fn sum(self) -> Refused {
        match self.image {
            Some(message) => Refused::StartFailed {
                code: "ImagePull".to_owned(),
                message,
            },
            None => Refused::NoCapacity {
                reasons: self.reasons,
            },
        }
    }
}
