//! This node's record: what it says of itself in gossip. Built from the machine of instances, the
//! front door's counts and the image store; a record is new only when something in it changed.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use scheduler::converge::{Node, Seen};
use scheduler::model::{
    Activity, Demand, InstanceId, InstanceReport, InstanceState, Name, NodeId, NodeRecord, Now,
    StartTime, UnixMs,
};

/// Images named in a record; the newest deploys are what placement asks about.
const MAX_IMAGES: usize = 256;

/// What of the record does not change while the daemon runs.
#[derive(Debug, Clone)]
pub struct RecordBase {
    pub node: NodeId,
    pub name: Name,
    pub region: Name,
    pub zone: Name,
    pub labels: BTreeMap<String, String>,
    pub incarnation: u64,
    pub mesh: SocketAddr,
    pub ingress: Vec<IpAddr>,
}

/// What of it does.
pub(super) struct Moment {
    pub now: Now,
    pub unix: UnixMs,
    pub registry_index: u64,
    pub demand: Vec<Demand>,
    pub starts: Vec<StartTime>,
    pub images: Vec<String>,
    pub serving: bool,
    pub cordoned: bool,
}

pub(super) fn record(
    base: &RecordBase,
    node: &Node,
    moment: Moment,
    load: impl Fn(&InstanceId) -> (u32, u32),
    steward: impl Fn(&InstanceId) -> Option<NodeId>,
    activity: impl Fn(&InstanceId) -> Activity,
) -> NodeRecord {
    let mut images = moment.images;
    images.truncate(MAX_IMAGES);
    NodeRecord {
        node: base.node,
        name: base.name.clone(),
        region: base.region.clone(),
        zone: base.zone.clone(),
        labels: base.labels.clone(),
        incarnation: base.incarnation,
        seq: 0,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        mesh: base.mesh,
        ingress: base.ingress.clone(),
        serving: moment.serving,
        cordoned: moment.cordoned,
        capacity: node.capacity(),
        free: node.free(),
        registry_index: moment.registry_index,
        instances: node
            .seen()
            .map(|seen| InstanceReport {
                steward: steward(seen.id),
                activity: activity(seen.id),
                ..report(&seen, moment.now, moment.unix, &load)
            })
            .collect(),
        demand: moment.demand,
        images,
        starts: moment.starts,
    }
}

fn report(
    seen: &Seen<'_>,
    now: Now,
    unix: UnixMs,
    load: &impl Fn(&InstanceId) -> (u32, u32),
) -> InstanceReport {
    let busy = seen.state.serves() || seen.state == InstanceState::Draining;
    let (in_flight, concurrency_milli) = if busy { load(seen.id) } else { (0, 0) };
    InstanceReport {
        id: seen.id.clone(),
        service: seen.service.clone(),
        revision: seen.revision.clone(),
        state: seen.state,
        since: UnixMs(unix.0.saturating_sub(now.since(seen.since))),
        in_flight,
        concurrency_milli,
        failure: seen.failure.cloned(),
        steward: None,
        activity: Activity::default(),
    }
}
