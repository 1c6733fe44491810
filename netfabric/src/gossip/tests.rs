//! Gossip between real nodes on loopback, with a round every 100 ms.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use chitchat::{ChitchatConfig, ChitchatHandle, ChitchatId, FailureDetectorConfig};
use scheduler::model::{Coordinate, Name, NodeId, NodeRecord, Resources};
use tokio::time::{Instant, timeout};

use super::carrier::{Carrier, Wire};
use super::*;
use crate::identity::Identity;
use crate::transport::testing::{Cluster, Doomed, PATIENCE, bind};
use crate::transport::{Kind, Mesh};

const ROUND: Duration = Duration::from_millis(100);

/// Trusts the keys of these nodes.
pub(super) struct Enrolled(Mutex<BTreeMap<NodeId, [u8; 32]>>);

impl Enrolled {
    pub(super) fn of(identities: &[&Arc<Identity>]) -> Self {
        Self(Mutex::new(
            identities
                .iter()
                .map(|i| (i.node(), i.public_key()))
                .collect(),
        ))
    }

    pub(super) fn revoke(&self, node: NodeId) {
        self.0.lock().unwrap().remove(&node);
    }
}

impl Trust for Enrolled {
    fn public_key(&self, node: NodeId) -> Option<[u8; 32]> {
        self.0.lock().unwrap().get(&node).copied()
    }
}

pub(super) fn record(node: u64, port: u16) -> NodeRecord {
    let name = |text: &str| Name::new(text).unwrap();
    NodeRecord {
        node: NodeId(node),
        name: name(&format!("node-{node}")),
        region: name("par"),
        zone: name("a"),
        labels: BTreeMap::new(),
        incarnation: 1,
        seq: 1,
        version: "0.1.0".to_owned(),
        mesh: ([127, 0, 0, 1], port).into(),
        ingress: vec![],
        serving: true,
        cordoned: false,
        capacity: Resources::default(),
        free: Resources::default(),
        registry_index: 0,
        instances: vec![],
        demand: vec![],
        starts: vec![],
        images: vec![],
    }
}

fn config(cluster: &Cluster, mesh: &Mesh, incarnation: u64, seeds: &[SocketAddr]) -> GossipConfig {
    GossipConfig {
        cluster_id: cluster.authority.cluster_id().to_owned(),
        me: mesh.identity().node(),
        incarnation,
        advertise: mesh.local_addr(),
        seeds: seeds.to_vec(),
        interval: ROUND,
    }
}

/// Begins to gossip and says that it is there.
fn speak(
    cluster: &Cluster,
    mesh: &Mesh,
    incarnation: u64,
    seeds: &[SocketAddr],
    trust: &Arc<Enrolled>,
) -> Gossip {
    begin(mesh, config(cluster, mesh, incarnation, seeds), trust)
}

fn begin(mesh: &Mesh, config: GossipConfig, trust: &Arc<Enrolled>) -> Gossip {
    let gossip = Gossip::start(mesh.clone(), config, trust.clone()).unwrap();
    let said = record(mesh.identity().node().0, mesh.local_addr().port());
    gossip.publish(said).unwrap();
    gossip
}

/// Waits until this node's view is as wanted.
async fn sees(gossip: &Gossip, what: &str, wanted: impl FnMut(&Members) -> bool) {
    let mut members = gossip.members();
    let seen = timeout(PATIENCE, members.wait_for(wanted)).await.is_ok();
    assert!(
        seen,
        "never seen: {what}; instead {:?}",
        summary(&gossip.members().borrow())
    );
}

fn summary(members: &Members) -> Vec<(NodeId, u64, u64, Life)> {
    members
        .values()
        .map(|m| (m.record.node, m.record.incarnation, m.record.seq, m.life))
        .collect()
}

fn all_alive(members: &Members, count: usize) -> bool {
    members.len() == count && members.values().all(|m| m.life.alive)
}

struct House {
    cluster: Cluster,
    trust: Arc<Enrolled>,
    meshes: Vec<Mesh>,
    gossips: Vec<Gossip>,
}

/// So many nodes that only know the first one's address.
async fn house(count: u64) -> House {
    let cluster = Cluster::found();
    let identities: Vec<_> = (1..=count).map(|node| cluster.identity(node)).collect();
    let trust = Arc::new(Enrolled::of(&identities.iter().collect::<Vec<_>>()));
    let meshes: Vec<_> = identities
        .into_iter()
        .map(|identity| bind("127.0.0.1:0", identity))
        .collect();
    let seeds = [meshes[0].local_addr()];
    let gossips: Vec<_> = meshes
        .iter()
        .map(|mesh| speak(&cluster, mesh, 1, &seeds, &trust))
        .collect();
    for gossip in &gossips {
        sees(gossip, "everyone", |m| all_alive(m, meshes.len())).await;
    }
    House {
        cluster,
        trust,
        meshes,
        gossips,
    }
}

impl House {
    async fn close(self) {
        drop(self.gossips);
        for mesh in &self.meshes {
            mesh.close().await;
        }
    }
}

#[tokio::test]
async fn five_nodes_hear_of_each_other_and_of_every_change() {
    let house = house(5).await;
    for (node, gossip) in house.gossips.iter().enumerate() {
        let own = NodeId(node as u64 + 1);
        let mut said = NodeRecord::clone(&gossip.members().borrow()[&own].record);
        said.registry_index = 77;
        gossip.publish(said.clone()).unwrap();
        // Nothing new: not sent.
        gossip.publish(said).unwrap();
    }
    for gossip in &house.gossips {
        let changed = |m: &Members| {
            m.values()
                .all(|m| (m.record.registry_index, m.record.seq) == (77, 2))
        };
        sees(gossip, "the change", changed).await;
    }
    // They learnt each other's addresses on the way.
    for mesh in &house.meshes[1..] {
        for (node, other) in (1..).zip(&house.meshes) {
            if other.local_addr() != mesh.local_addr() {
                assert_eq!(mesh.addr(NodeId(node)), Some(other.local_addr()));
            }
        }
    }
    house.close().await;
}

/// A cluster of two nodes that stay and a third that is to die.
fn trio() -> (Cluster, Arc<Enrolled>, [Mesh; 2], Arc<Identity>) {
    let cluster = Cluster::found();
    let identities = [1, 2, 3].map(|node| cluster.identity(node));
    let trust = Arc::new(Enrolled::of(&identities.each_ref()));
    let [one, two, three] = identities;
    let stay = [one, two].map(|identity| bind("127.0.0.1:0", identity));
    (cluster, trust, stay, three)
}

#[tokio::test]
async fn a_killed_node_is_missed_and_welcomed_back() {
    let (cluster, trust, [one, two], three) = trio();
    let seeds = [one.local_addr(), two.local_addr()];
    let stays = [&one, &two].map(|mesh| speak(&cluster, mesh, 1, &seeds, &trust));

    let doomed = Doomed::start("127.0.0.1:0", three.clone());
    let voice = doomed.inside(|| speak(&cluster, doomed.mesh(), 1, &seeds, &trust));
    for gossip in &stays {
        sees(gossip, "all three", |m| all_alive(m, 3)).await;
    }
    drop(voice);
    let addr = doomed.kill().await;
    let killed = Instant::now();
    for gossip in &stays {
        sees(gossip, "the third is gone", |m| {
            !m[&NodeId(3)].life.alive && m[&NodeId(2)].life.alive
        })
        .await;
    }
    assert!(
        killed.elapsed() < Duration::from_secs(10),
        "{:?}",
        killed.elapsed()
    );

    let back = Doomed::start(&addr.to_string(), three);
    let voice = back.inside(|| speak(&cluster, back.mesh(), 2, &seeds, &trust));
    for gossip in &stays {
        let returned =
            |m: &Members| m[&NodeId(3)].life.alive && m[&NodeId(3)].record.incarnation == 2;
        sees(gossip, "the third is back", returned).await;
    }
    sees(&voice, "the third sees all", |m| all_alive(m, 3)).await;
    drop(voice);
    back.kill().await;
    drop(stays);
    one.close().await;
    two.close().await;
}

#[tokio::test]
async fn a_node_that_answers_nobody_is_lost_before_it_is_missed() {
    let (cluster, trust, [one, two], three) = trio();
    let seeds = [one.local_addr(), two.local_addr()];
    let speak = |mesh: &Mesh, incarnation| {
        let config = GossipConfig {
            interval: INTERVAL,
            ..config(&cluster, mesh, incarnation, &seeds)
        };
        begin(mesh, config, &trust)
    };
    let stays = [&one, &two].map(|mesh| speak(mesh, 1));
    let doomed = Doomed::start("127.0.0.1:0", three.clone());
    let voice = doomed.inside(|| speak(doomed.mesh(), 1));
    for gossip in &stays {
        sees(gossip, "all three", |m| all_alive(m, 3)).await;
    }
    drop(voice);
    let addr = doomed.kill().await;
    for gossip in &stays {
        let lost = |m: &Members| m[&NodeId(3)].life.lost && m[&NodeId(3)].life.alive;
        sees(gossip, "the third is lost", lost).await;
        assert!(!gossip.members().borrow()[&NodeId(2)].life.lost);
    }
    let back = Doomed::start(&addr.to_string(), three);
    let voice = back.inside(|| speak(back.mesh(), 2));
    for gossip in &stays {
        let found = |m: &Members| m[&NodeId(3)].life.alive && !m[&NodeId(3)].life.lost;
        sees(gossip, "the third answers again", found).await;
    }
    drop(voice);
    back.kill().await;
    drop(stays);
    one.close().await;
    two.close().await;
}

/// A chitchat of a member's own, without our rules: it says of `node` what it likes.
async fn impostor(house: &House, mesh: &Mesh, node: u64, text: String) -> ChitchatHandle {
    let cluster_id = house.cluster.authority.cluster_id().to_owned();
    let carrier = Carrier::new(mesh.clone(), cluster_id.clone());
    let config = ChitchatConfig {
        chitchat_id: ChitchatId::new(
            NodeId(node).to_string(),
            999 << RESTART_BITS,
            mesh.local_addr(),
        ),
        cluster_id,
        gossip_interval: ROUND,
        listen_addr: mesh.local_addr(),
        seed_nodes: vec![house.meshes[0].local_addr().to_string()],
        failure_detector_config: FailureDetectorConfig::default(),
        marked_for_deletion_grace_period: Duration::from_mins(1),
        catchup_callback: None,
        extra_liveness_predicate: None,
    };
    let own = vec![("r".to_owned(), text)];
    chitchat::spawn_chitchat(config, own, &Wire(carrier))
        .await
        .unwrap()
}

#[tokio::test]
async fn a_member_cannot_speak_for_another() {
    let house = house(2).await;
    // Enrolled, but no friend: it signs a record of node 2 with its own key.
    let mesh = house.cluster.mesh(3);
    let identity = mesh.identity().clone();
    let key = identity.public_key();
    house.trust.0.lock().unwrap().insert(NodeId(3), key);
    let mut lie = record(2, 1);
    (lie.incarnation, lie.seq, lie.serving) = (999, 9, false);
    let cluster_id = house.cluster.authority.cluster_id();
    let text = super::record::seal(&lie, cluster_id, |bytes| identity.sign(bytes)).unwrap();
    let liar = impostor(&house, &mesh, 2, text).await;

    // Once the liar has heard the others they have heard it: their states come in answers.
    let until = Instant::now() + PATIENCE;
    let heard = |chitchat: &mut chitchat::Chitchat| {
        chitchat
            .node_states()
            .values()
            .filter(|state| state.get("r").is_some())
            .count()
    };
    while liar.with_chitchat(heard).await < 3 {
        assert!(Instant::now() < until, "the liar was never answered");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // And a change made after that comes through while the lie does not.
    let mut said = record(2, house.meshes[1].local_addr().port());
    said.registry_index = 5;
    house.gossips[1].publish(said).unwrap();
    sees(&house.gossips[0], "the truth", |m| {
        m[&NodeId(2)].record.registry_index == 5
    })
    .await;
    for gossip in &house.gossips {
        let members = gossip.members().borrow().clone();
        let Heard { record, life, .. } = &members[&NodeId(2)];
        assert_eq!(
            (record.incarnation, record.serving, life.alive),
            (1, true, true)
        );
    }
    liar.abort();
    mesh.close().await;
    house.close().await;
}

/// A delta whose closing version is below the one of its key: chitchat asserts that this cannot be.
fn poison(house: &House) -> Vec<u8> {
    fn text(bytes: &mut Vec<u8>, text: &str) {
        bytes.extend(u16::try_from(text.len()).unwrap().to_le_bytes());
        bytes.extend(text.as_bytes());
    }
    let mut ops = vec![0];
    text(&mut ops, "n2");
    ops.extend((1u64 << RESTART_BITS).to_le_bytes());
    ops.extend([4, 127, 0, 0, 1]);
    ops.extend(house.meshes[1].local_addr().port().to_le_bytes());
    ops.extend([0; 16]);
    ops.push(1);
    text(&mut ops, "r");
    text(&mut ops, "x");
    ops.extend(1000u64.to_le_bytes());
    ops.extend([0, 2]);
    ops.extend(500u64.to_le_bytes());
    let mut message = 45_139u16.to_le_bytes().to_vec();
    message.extend([0, 2, 2]);
    message.extend(u16::try_from(ops.len()).unwrap().to_le_bytes());
    message.extend(ops);
    message.push(0);
    message
}

#[tokio::test]
async fn gossip_outlives_a_poisoned_message() {
    let house = house(2).await;
    let mesh = house.cluster.mesh(3);
    let mut stream = mesh
        .open_addr(house.meshes[0].local_addr(), Kind::Gossip, PATIENCE)
        .await
        .unwrap();
    stream.write_frame(&poison(&house)).await.unwrap();
    stream.finish().await.unwrap();
    let until = Instant::now() + PATIENCE;
    while house.gossips[0].restarts() == 0 {
        assert!(Instant::now() < until, "the poison did nothing");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    for index in 2..5 {
        let mut said = record(1, house.meshes[0].local_addr().port());
        said.registry_index = index;
        house.gossips[0].publish(said).unwrap();
        let news = |m: &Members| m[&NodeId(1)].record.registry_index == index;
        sees(&house.gossips[1], "news of the victim", news).await;
    }
    for gossip in &house.gossips {
        sees(gossip, "both alive", |m| all_alive(m, 2)).await;
    }
    assert_eq!(
        (house.gossips[0].restarts(), house.gossips[1].restarts()),
        (1, 0)
    );
    mesh.close().await;
    house.close().await;
}

#[tokio::test]
async fn a_revoked_nodes_record_disappears() {
    let house = house(3).await;
    house.trust.revoke(NodeId(3));
    for gossip in &house.gossips[..2] {
        sees(gossip, "two are left", |m| all_alive(m, 2)).await;
    }
    house.close().await;
}

#[tokio::test]
async fn an_incarnation_beyond_measure_is_refused() {
    let cluster = Cluster::found();
    let mesh = cluster.mesh(1);
    let config = config(&cluster, &mesh, 1 << 52, &[]);
    let trust = Arc::new(Enrolled::of(&[mesh.identity()]));
    let error = Gossip::start(mesh.clone(), config, trust).unwrap_err();
    assert!(matches!(error, GossipError::Incarnation(_)), "{error}");
    mesh.close().await;
}

/// What of node 1's state travels when it changes, by key, as node 2 holds it.
fn held(gossip: &Gossip) -> BTreeMap<&'static str, String> {
    let last = gossip.inner.last.lock().unwrap();
    last.texts.clone()
}

#[tokio::test]
async fn a_new_load_and_a_new_measurement_do_not_send_the_record_again() {
    let house = house(2).await;
    let one = &house.gossips[0];
    let whole = held(one);
    let mut said = record(1, house.meshes[0].local_addr().port());
    said.registry_index = 9;
    one.publish(said.clone()).unwrap();
    let coordinate = Coordinate {
        at: [1_000, -2_000, 0, 7],
        height: 300,
        error_permille: 100,
    };
    let measured = Arc::new(Measured {
        coordinate: Some(coordinate),
        ..Measured::default()
    });
    one.measure(&measured).unwrap();
    for gossip in &house.gossips {
        sees(gossip, "load and measurement", |m| {
            m[&NodeId(1)].record.registry_index == 9 && m[&NodeId(1)].measured == measured
        })
        .await;
    }
    assert_eq!(
        held(one)[driver::RECORD],
        whole[driver::RECORD],
        "not sent again"
    );

    said.cordoned = true;
    one.publish(said).unwrap();
    assert_ne!(held(one)[driver::RECORD], whole[driver::RECORD]);
    for gossip in &house.gossips {
        sees(gossip, "the whole", |m| {
            let heard = &m[&NodeId(1)];
            heard.record.cordoned && heard.record.seq == 3 && heard.measured == measured
        })
        .await;
    }
    house.close().await;
}
