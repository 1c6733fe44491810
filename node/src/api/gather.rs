//! What only each node knows of itself, asked of all of them at once.

use std::time::Duration;

use futures::future::join_all;
use netfabric::transport::Kind;
use netfabric::wire::peer::{PeerRequest, PeerResponse};
use scheduler::model::Name;

use super::Api;

/// A node that has not answered by then is missing in the answer.
const PEER_DEADLINE: Duration = Duration::from_secs(2);

/// Every other live node with its answer, the nearest first; nothing where there was none in time.
pub(super) async fn others(api: &Api, request: PeerRequest) -> Vec<(Name, Option<PeerResponse>)> {
    let fleet = api.fleet();
    let members = fleet.nearest().into_iter().map(|member| &member.record);
    let others = members.filter(|record| record.node != api.me);
    let asked = others.map(|record| {
        let call = api
            .mesh
            .call(record.node, Kind::Peer, &request, PEER_DEADLINE);
        async { (record.name.clone(), call.await.ok()) }
    });
    join_all(asked).await
}
