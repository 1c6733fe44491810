//! An instance for requests that are meant for a region, or for another one than their sender, where
//! nothing is ready. A lane would hand out any endpoint, so these start by themselves: one at a time for
//! all that are meant for the same.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use scheduler::model::{NodeId, RequestId, RevisionKey};
use scheduler::route::replay::Aim;
use ulid::Ulid;

use super::Shared;
use super::ledger::Stories;
use super::local::lock;
use super::start::start;

/// Starts that are under way.
#[derive(Debug, Default)]
pub(super) struct Afar {
    going: Mutex<BTreeMap<Wish, Arc<Stories>>>,
}

type Wish = (RevisionKey, Aim);

impl Afar {
    /// The start that is under way for these.
    pub(super) fn going(&self, revision: &RevisionKey, aim: &Aim) -> Option<Arc<Stories>> {
        let going = lock(&self.going);
        going.get(&(revision.clone(), aim.clone())).cloned()
    }
}

/// Has an instance started where the request is meant to go, unless one is on its way there; `None` where
/// there can be no more. It goes on when the request is given up.
pub(super) fn wake(
    shared: &Arc<Shared>,
    revision: &RevisionKey,
    aim: &Aim,
    request: Ulid,
) -> Option<Arc<Stories>> {
    if aim.only.is_some() {
        return None;
    }
    let bench = shared.local.bench(revision);
    let route = shared.routes.load().revision(revision).cloned()?;
    let all = bench.ready(&route).saturating_add(route.starting);
    let wish = (revision.clone(), aim.clone());
    let mut going = lock(&shared.afar.going);
    if let Some(stories) = going.get(&wish) {
        return Some(Arc::clone(stories));
    }
    let started = u32::try_from(going.keys().filter(|(r, _)| r == revision).count());
    if all.saturating_add(started.unwrap_or(u32::MAX)) >= route.max_scale {
        return None;
    }
    let stories = Arc::<Stories>::default();
    going.insert(wish.clone(), Arc::clone(&stories));
    drop(going);
    let errand = Start {
        shared: Arc::clone(shared),
        wish,
        stories: Arc::clone(&stories),
    };
    shared.runtime.spawn(errand.run(request));
    Some(stories)
}

struct Start {
    shared: Arc<Shared>,
    wish: Wish,
    stories: Arc<Stories>,
}

impl Start {
    async fn run(self, request: Ulid) {
        let (shared, (revision, aim)) = (&self.shared, &self.wish);
        let outside: Vec<NodeId> = {
            let fleet = shared.fleet.borrow();
            let nodes = fleet.members.keys().filter(|node| !aim.takes_node(**node));
            nodes.copied().collect()
        };
        let cause = RequestId(request.to_string());
        shared.counters.starts.fetch_add(1, Ordering::Relaxed);
        let outcome = start(shared, revision, (cause, 1), &outside).await;
        self.stories.add(outcome.story);
        match outcome.result {
            // The next look finds one that is here.
            Ok((node, started)) if node != shared.me() => {
                let bench = shared.local.bench(revision);
                bench.add_fresh(node, started.instance);
            }
            Ok(_) => {}
            Err(reason) => {
                let failed = &shared.counters.starts_failed;
                failed.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(%revision, %reason, "an instance did not start where requests are sent on to");
            }
        }
    }
}

impl Drop for Start {
    fn drop(&mut self) {
        lock(&self.shared.afar.going).remove(&self.wish);
    }
}
