//! Which endpoint takes a request: an instance here with room, else the nearest node with room.

use super::{Away, RevisionRoute, stands};
use crate::model::NodeId;

/// Where a request goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pick {
    /// The instance with this number in the view's list of instances here.
    Local(usize),
    Remote(NodeId),
    /// Nothing ready has room: hold the request and see to an instance.
    None,
}

/// What the door knows of a revision's endpoints at this moment.
pub trait LoadView {
    /// How many instances of the revision there are here, numbered from 0.
    fn here(&self) -> usize;
    /// Requests in an instance here; `None` when it admits none (closing, or tried in vain).
    fn load(&self, instance: usize) -> Option<u32>;
    /// For how long the instance has been ready; one that is no newcomer need not say.
    fn age_millis(&self, _instance: usize) -> u64 {
        u64::MAX
    }
    /// The instance failed lately and is better left alone.
    fn ejected_here(&self, instance: usize) -> bool;
    /// Nodes known to have instances that the routes do not show yet, and how many.
    fn fresh(&self) -> &[(NodeId, u32)];
    /// Requests this door has under way at a node for the revision; `None` when it was tried for
    /// this request already.
    fn sent(&self, node: NodeId) -> Option<u32>;
    /// The node failed lately and is better left alone.
    fn ejected(&self, node: NodeId) -> bool;
}

/// Picks an endpoint. Ejected ones are passed over, unless they are more than half: what is left
/// would get too much, and the fault may be in the judgement, so all count. When nothing is left,
/// nothing is picked: a node that reaches nobody starts an instance of its own, and only when it
/// cannot is there the [`last_resort`].
pub fn pick(route: &RevisionRoute, view: &impl LoadView, draw: u64) -> Pick {
    let trust_ejection = {
        let (all, ejected) = count(route, view);
        ejected * 2 <= all || ejected == all
    };
    if let Some(instance) = pick_here(route, view, draw, trust_ejection) {
        return Pick::Local(instance);
    }
    let passes = |node: NodeId| !(trust_ejection && view.ejected(node));
    let away = route.away.iter().filter(|a| a.alive && passes(a.node));
    let shown = away.map(|a| (a.node, away_room(route, a, view)));
    let fresh = view.fresh().iter().filter(|(node, _)| passes(*node));
    let fresh = fresh
        .filter(|(node, _)| !route.away.iter().any(|a| a.node == *node))
        .map(|(node, count)| (*node, room_at(route, view, *node, *count, 0)));
    let with_room = shown.chain(fresh).find(|(_, room)| *room);
    with_room.map_or(Pick::None, |(node, _)| Pick::Remote(node))
}

/// When nothing could be started: any endpoint not yet tried, be it ejected, thought dead or
/// reported full.
pub fn last_resort(route: &RevisionRoute, view: &impl LoadView) -> Pick {
    let fits = |i: &usize| view.load(*i).is_some_and(|n| has_room(route, n));
    if let Some(instance) = (0..view.here()).find(fits) {
        return Pick::Local(instance);
    }
    let nodes = route.away.iter().map(|a| a.node);
    nodes
        .chain(view.fresh().iter().map(|(node, _)| *node))
        .find(|node| view.sent(*node).is_some())
        .map_or(Pick::None, Pick::Remote)
}

fn count(route: &RevisionRoute, view: &impl LoadView) -> (usize, usize) {
    let here = (0..view.here()).filter(|i| view.load(*i).is_some());
    let (here, out_here) = here.fold((0, 0), |(all, out), i| {
        (all + 1, out + usize::from(view.ejected_here(i)))
    });
    let away = route.away.iter().filter(|a| a.alive);
    away.fold((here, out_here), |(all, out), a| {
        (all + 1, out + usize::from(view.ejected(a.node)))
    })
}

fn has_room(route: &RevisionRoute, in_flight: u32) -> bool {
    route.hard == 0 || in_flight < route.hard
}

/// The less loaded of two drawn at random; when neither has room, the least loaded of all. Newcomers that
/// do not stand for this request are passed over as long as another one here has room.
fn pick_here(
    route: &RevisionRoute,
    view: &impl LoadView,
    draw: u64,
    trust_ejection: bool,
) -> Option<usize> {
    let load = |i: usize| {
        let out = trust_ejection && view.ejected_here(i);
        let load = if out { None } else { view.load(i) };
        load.filter(|n| has_room(route, *n)).map(|n| (n, i))
    };
    let window = route.slow_start_seconds;
    if window > 0 {
        let standing = |i: usize| load(i).filter(|_| stands(view.age_millis(i), window, draw, i));
        let picked = least_of_two(view.here(), draw, standing);
        if picked.is_some() {
            return picked;
        }
    }
    least_of_two(view.here(), draw, load)
}

/// `load` is an instance's with its number; `None` when it cannot be picked.
fn least_of_two(
    count: usize,
    draw: u64,
    load: impl Fn(usize) -> Option<(u32, usize)>,
) -> Option<usize> {
    if count == 0 {
        return None;
    }
    let drawn = |bits: u64| {
        // Multiply-shift maps 32 random bits onto 0..count without a division's bias mattering.
        let scaled = (bits & 0xffff_ffff).saturating_mul(count as u64) >> 32;
        usize::try_from(scaled).unwrap_or(0).min(count - 1)
    };
    if count > 2 {
        let two = [drawn(draw), drawn(draw >> 32)];
        if let Some((_, instance)) = two.into_iter().filter_map(&load).min_by_key(|(n, _)| *n) {
            return Some(instance);
        }
    }
    (0..count).filter_map(load).min().map(|(_, i)| i)
}

fn away_room(route: &RevisionRoute, away: &Away, view: &impl LoadView) -> bool {
    let fresh = view.fresh().iter().find(|(node, _)| *node == away.node);
    let shown = u32::try_from(away.instances.len()).unwrap_or(u32::MAX);
    let count = shown.saturating_add(fresh.map_or(0, |(_, count)| *count));
    room_at(route, view, away.node, count, away.in_flight)
}

/// Whether a node with `count` instances has room as far as one can tell from here: by its own
/// last report or by what this door sent it since, whichever is more.
fn room_at(
    route: &RevisionRoute,
    view: &impl LoadView,
    node: NodeId,
    count: u32,
    reported: u32,
) -> bool {
    let capacity = route.hard.saturating_mul(count);
    let fits = |sent: u32| route.hard == 0 || sent.max(reported) < capacity;
    view.sent(node).is_some_and(fits)
}
