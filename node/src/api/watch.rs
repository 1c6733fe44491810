//! `GET /v1/watch`: what changes in the registry, step by step, as this node learns it. The steps
//! come from the view's ring; who asks for older ones is told to list again.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Query, State};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use futures::{Stream, StreamExt};
use netfabric::wire::api::{
    ApiError, ClusterView, EnrolledNode, ErrorCode, WatchChange, WatchLine,
};
use scheduler::registry::{self, Change};
use serde::Deserialize;
use tokio::sync::{Semaphore, SemaphorePermit, watch};
use tokio::time::{Interval, MissedTickBehavior};

use super::objects::{config_view, secret_view};
use super::{Api, Failure, volumes};
use crate::consensus::{Missing, Step, View};

/// Watches this node serves at once; more are turned away.
const WATCHERS: usize = 64;
/// A silent watch says that it is alive this often.
const BEAT: Duration = Duration::from_secs(5);
/// Steps taken from the ring at once: what a watch that reads slowly makes the node hold for it.
const STEPS_PER_READ: usize = 64;

static ROOM: Semaphore = Semaphore::const_new(WATCHERS);

#[derive(Debug, Deserialize)]
pub(super) struct WatchParams {
    /// The index the caller has; without it, the watch begins with what comes next.
    after: Option<u64>,
}

pub(super) async fn stream(
    State(api): State<Arc<Api>>,
    Query(params): Query<WatchParams>,
) -> Result<Response, Failure> {
    let permit = ROOM.try_acquire().map_err(|_| too_many())?;
    let view = api.registry.view();
    let after = params.after.unwrap_or_else(|| view.index());
    if view.since(after, 1) == Missing::TooMuch {
        return Err(Failure(gone(after)));
    }
    let lines = lines(Watch::new(view.clone(), after, Some(permit)));
    let body = Body::from_stream(lines.map(|line| {
        let mut bytes = serde_json::to_vec(&line).unwrap_or_default();
        bytes.push(b'\n');
        Ok::<_, std::convert::Infallible>(Bytes::from(bytes))
    }));
    Ok(([(CONTENT_TYPE, "application/x-ndjson")], body).into_response())
}

fn too_many() -> Failure {
    let message = format!("this node serves {WATCHERS} watches already");
    Failure(ApiError::new(ErrorCode::Unreachable, message).hint("ask another node, or later"))
}

fn gone(after: u64) -> ApiError {
    let message = format!("what came right after index {after} is no longer held here");
    ApiError::new(ErrorCode::Gone, message).hint(
        "list again (`GET /v1/services?consistent=true`) and watch after its `selvedge-index`",
    )
}

/// One caller's watch.
struct Watch {
    view: Arc<View>,
    states: watch::Receiver<Arc<registry::State>>,
    /// The last step that was taken from the ring.
    taken: u64,
    waiting: VecDeque<Step>,
    beat: Interval,
    over: bool,
    _permit: Option<SemaphorePermit<'static>>,
}

impl Watch {
    fn new(view: Arc<View>, after: u64, permit: Option<SemaphorePermit<'static>>) -> Self {
        let mut beat = tokio::time::interval(BEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            states: view.watch(),
            view,
            taken: after,
            waiting: VecDeque::new(),
            beat,
            over: false,
            _permit: permit,
        }
    }

    /// The next line; nothing when the watch is over.
    async fn next(&mut self) -> Option<WatchLine> {
        loop {
            if let Some((index, changes)) = self.waiting.pop_front() {
                let state = self.view.state();
                let shown = changes.into_iter().filter_map(|c| shown(&state, c));
                let changes = shown.collect();
                return Some(WatchLine::Step { index, changes });
            }
            if self.over {
                return None;
            }
            self.states.borrow_and_update();
            match self.view.since(self.taken, STEPS_PER_READ) {
                Missing::TooMuch => {
                    self.over = true;
                    let error = gone(self.taken);
                    return Some(WatchLine::End { error });
                }
                Missing::Steps(steps) => self.waiting.extend(steps),
            }
            if let Some((newest, _)) = self.waiting.back() {
                self.taken = *newest;
                continue;
            }
            tokio::select! {
                changed = self.states.changed() => if changed.is_err() { return None },
                _ = self.beat.tick() => {
                    // A caller that is ahead of this node was not told what lies between.
                    let beat = self.taken.min(self.view.index());
                    return Some(WatchLine::Beat { beat });
                }
            }
        }
    }
}

fn lines(watch: Watch) -> impl Stream<Item = WatchLine> {
    futures::stream::unfold(watch, async |mut watch| {
        let line = watch.next().await?;
        Some((line, watch))
    })
}

/// What callers may see of a change: nothing of join tokens, of nodes no keys, and of configs and
/// secrets no values.
fn shown(state: &registry::State, change: Change) -> Option<WatchChange> {
    Some(match change {
        Change::Cluster(cluster) => WatchChange::Cluster(ClusterView { id: cluster.id }),
        Change::Service(service) => WatchChange::Service(service),
        Change::ServiceGone(key) => WatchChange::ServiceGone(key),
        Change::Revision(revision) => WatchChange::Revision(revision),
        Change::RevisionGone(key) => WatchChange::RevisionGone(key),
        Change::Node(node) => WatchChange::Node(EnrolledNode {
            id: node.id,
            name: node.name,
            region: node.region,
            zone: node.zone,
            role: node.role,
            revoked: node.revoked,
        }),
        // What is not for reading back, or the nodes' own affair.
        Change::Token { .. }
        | Change::TokenGone { .. }
        | Change::Certificate(_)
        | Change::CertificateGone(_)
        | Change::Order(_)
        | Change::OrderGone(_)
        | Change::Account(_)
        | Change::Lease(_) => return None,
        Change::Config(config) => WatchChange::Config(config_view(&config)),
        Change::ConfigGone(key) => WatchChange::ConfigGone(key),
        Change::Secret(secret) => WatchChange::Secret(secret_view(&secret)),
        Change::SecretGone(key) => WatchChange::SecretGone(key),
        Change::Volume(volume) => WatchChange::Volume(volumes::view(state, &volume)),
        Change::VolumeGone(key) => WatchChange::VolumeGone(key),
    })
}

#[cfg(test)]
mod tests {
    use scheduler::model::{Name, NodeId, NodeIdentity, Role, ServiceKey, UnixMs};
    use scheduler::registry::Token;

    use super::*;

    const SECRET: &str = "5ec7e7";

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    fn key(text: &str) -> ServiceKey {
        ServiceKey {
            namespace: Name::default_namespace(),
            name: name(text),
        }
    }

    fn token() -> Change {
        Change::Token {
            hash: SECRET.to_owned(),
            token: Token {
                expires: UnixMs(1),
                used: false,
            },
        }
    }

    fn step(index: u64, gone: &str) -> WatchLine {
        let changes = vec![WatchChange::ServiceGone(key(gone))];
        WatchLine::Step { index, changes }
    }

    fn view(capacity: usize) -> Arc<View> {
        Arc::new(View::starting_at(10, capacity))
    }

    fn watch(view: &Arc<View>, after: u64) -> Watch {
        Watch::new(view.clone(), after, None)
    }

    #[tokio::test]
    async fn steps_come_in_order_and_without_gaps() {
        let view = view(8);
        for service in ["a", "b"] {
            view.step(vec![Change::ServiceGone(key(service))]);
        }
        let mut watch = watch(&view, 10);
        assert_eq!(watch.next().await, Some(step(11, "a")));
        assert_eq!(watch.next().await, Some(step(12, "b")));
        assert_eq!(watch.next().await, Some(WatchLine::Beat { beat: 12 }));
        let (next, ()) = tokio::join!(watch.next(), async {
            view.step(vec![Change::ServiceGone(key("c"))]);
        });
        assert_eq!(next, Some(step(13, "c")));
    }

    #[tokio::test]
    async fn a_caller_that_is_ahead_waits_for_what_it_misses() {
        let view = view(8);
        let mut watch = watch(&view, 11);
        assert_eq!(watch.next().await, Some(WatchLine::Beat { beat: 10 }));
        view.step(vec![Change::ServiceGone(key("a"))]);
        view.step(vec![Change::ServiceGone(key("b"))]);
        assert_eq!(watch.next().await, Some(step(12, "b")));
    }

    #[tokio::test]
    async fn who_misses_too_much_hears_it_and_the_watch_ends() {
        let view = view(2);
        let mut slow = watch(&view, 10);
        for service in ["a", "b", "c"] {
            view.step(vec![Change::ServiceGone(key(service))]);
        }
        let error = gone(10);
        assert_eq!(slow.next().await, Some(WatchLine::End { error }));
        assert_eq!(slow.next().await, None);

        let mut other = watch(&view, 12);
        assert_eq!(other.next().await, Some(step(13, "c")));
        view.jump(20);
        let error = gone(13);
        assert_eq!(other.next().await, Some(WatchLine::End { error }));
    }

    #[tokio::test]
    async fn secrets_are_not_shown() {
        let view = view(8);
        let node = NodeIdentity {
            id: NodeId(1),
            name: name("par-1"),
            region: name("par"),
            zone: name("par-a"),
            mesh: "10.0.0.1:8422".parse().unwrap(),
            public_key: vec![211; 32],
            role: Role::Voter,
            enrolled: UnixMs(1),
            revoked: false,
            cordoned: false,
            draining: false,
        };
        view.step(vec![token()]);
        let gone = Change::TokenGone {
            hash: SECRET.to_owned(),
        };
        view.step(vec![Change::Node(node), gone]);
        let mut watch = watch(&view, 10);
        let (first, second) = (watch.next().await, watch.next().await);
        let silent = WatchLine::Step {
            index: 11,
            changes: vec![],
        };
        assert_eq!(first, Some(silent), "its index is told all the same");
        let text = serde_json::to_string(&second).unwrap();
        assert!(text.contains("par-1"), "{text}");
        assert!(!text.contains(SECRET) && !text.contains("211"), "{text}");
    }

    #[test]
    fn lines_can_be_told_apart() {
        let error = gone(3);
        for line in [
            step(11, "a"),
            WatchLine::Beat { beat: 3 },
            WatchLine::End { error },
        ] {
            let text = serde_json::to_string(&line).unwrap();
            assert_eq!(
                serde_json::from_str::<WatchLine>(&text).unwrap(),
                line,
                "{text}"
            );
        }
    }
}
