//! Joining over the real protocol on loopback.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use scheduler::model::{Name, NodeId};

use super::super::testing::{Cluster, PATIENCE};
use super::super::{Kind, lock};
use super::*;
use crate::identity::{Identity, NodeKeys};

/// Takes in whoever shows the right token, or refuses as told. Keeps what it was asked.
struct Door {
    cluster: Arc<Cluster>,
    token_hash: String,
    refuse: Mutex<Option<JoinRefusal>>,
    /// What it hands out as the cluster's CA.
    ca: Mutex<String>,
    asked: Mutex<Vec<JoinRequest>>,
}

#[async_trait]
impl JoinHandler for Door {
    async fn join(
        &self,
        _: SocketAddr,
        token_hash: String,
        request: JoinRequest,
    ) -> Result<JoinResponse, JoinRefusal> {
        lock(&self.asked).push(request.clone());
        if let Some(refusal) = lock(&self.refuse).clone() {
            return Err(refusal);
        }
        if token_hash != self.token_hash {
            return Err(JoinRefusal::TokenUnknown);
        }
        let authority = &self.cluster.authority;
        let node = NodeId(4);
        let certificate = authority
            .sign(&request.csr, node)
            .map_err(|error| JoinRefusal::Invalid(error.to_string()))?;
        Ok(JoinResponse {
            node,
            cluster_id: authority.cluster_id().to_owned(),
            certificate,
            ca: lock(&self.ca).clone(),
            ca_key: Some(authority.key_pem()),
            secrets_key: None,
            peers: vec![],
            // Larger than a request may be: answers have a limit of their own.
            registry: vec![7; 1024 * 1024],
        })
    }
}

struct House {
    cluster: Arc<Cluster>,
    mesh: super::super::Mesh,
    token: JoinToken,
    door: Arc<Door>,
}

fn house() -> House {
    let cluster = Arc::new(Cluster::found());
    let mesh = cluster.mesh(1);
    let token = cluster.authority.token().unwrap();
    let door = Arc::new(Door {
        cluster: cluster.clone(),
        token_hash: token.secret_hash(),
        refuse: Mutex::default(),
        ca: Mutex::new(cluster.authority.ca_pem().to_owned()),
        asked: Mutex::default(),
    });
    mesh.serve_join(door.clone());
    House {
        cluster,
        mesh,
        token,
        door,
    }
}

fn request(csr: String) -> JoinRequest {
    let name = |text: &str| Name::new(text).unwrap();
    JoinRequest {
        name: name("lis-1"),
        region: name("lis"),
        zone: name("a"),
        mesh: "127.0.0.1:8422".parse().unwrap(),
        csr,
        version: "0.1.0".to_owned(),
    }
}

#[tokio::test]
async fn a_newcomer_becomes_a_node() {
    let house = house();
    let keys = NodeKeys::generate().unwrap();
    let asked = request(keys.csr().unwrap());
    let addr = house.mesh.local_addr();
    let answer = enroll(addr, &house.token, asked.clone(), PATIENCE)
        .await
        .unwrap();
    assert_eq!(*lock(&house.door.asked), [asked]);
    assert_eq!(
        (answer.node, answer.registry.len()),
        (NodeId(4), 1024 * 1024)
    );
    assert!(!format!("{answer:?}").contains("PRIVATE"));
    // What it was given makes it a peer.
    let identity = Identity::new(keys, &answer.certificate, &answer.ca).unwrap();
    assert_eq!(identity.node(), NodeId(4));
    let new = super::super::testing::bind("127.0.0.1:0", Arc::new(identity));
    house
        .mesh
        .serve_calls(Kind::Peer, |from: NodeId, (): ()| async move { from });
    new.set_addr(NodeId(1), addr);
    let who: NodeId = new
        .call(NodeId(1), Kind::Peer, &(), PATIENCE)
        .await
        .unwrap();
    assert_eq!(who, NodeId(4));
    new.close().await;
    house.mesh.close().await;
}

#[tokio::test]
async fn every_refusal_arrives_as_it_was_said() {
    let house = house();
    let csr = NodeKeys::generate().unwrap().csr().unwrap();
    for refusal in [
        JoinRefusal::TokenUnknown,
        JoinRefusal::TokenUsed,
        JoinRefusal::TokenExpired,
        JoinRefusal::NameTaken(Name::new("lis-1").unwrap()),
        JoinRefusal::NoQuorum("1 of 3 voters answers".to_owned()),
        JoinRefusal::Busy,
        JoinRefusal::Invalid("no".to_owned()),
    ] {
        *lock(&house.door.refuse) = Some(refusal.clone());
        let addr = house.mesh.local_addr();
        let error = enroll(addr, &house.token, request(csr.clone()), PATIENCE)
            .await
            .unwrap_err();
        let JoinError::Refused(said) = error else {
            panic!("{error}")
        };
        assert_eq!(said, refusal);
    }
    // Another secret, the right CA.
    *lock(&house.door.refuse) = None;
    let token = house.cluster.authority.token().unwrap();
    let error = enroll(house.mesh.local_addr(), &token, request(csr), PATIENCE)
        .await
        .unwrap_err();
    assert!(
        matches!(error, JoinError::Refused(JoinRefusal::TokenUnknown)),
        "{error}"
    );
    house.mesh.close().await;
}

#[tokio::test]
async fn another_cluster_never_sees_the_token() {
    let house = house();
    let token = Cluster::found().authority.token().unwrap();
    let csr = NodeKeys::generate().unwrap().csr().unwrap();
    let error = enroll(house.mesh.local_addr(), &token, request(csr), PATIENCE)
        .await
        .unwrap_err();
    assert!(matches!(error, JoinError::WrongCluster(_)), "{error}");
    assert!(lock(&house.door.asked).is_empty());
    house.mesh.close().await;
}

#[tokio::test]
async fn a_ca_that_the_token_does_not_name_is_not_taken() {
    let house = house();
    *lock(&house.door.ca) = Cluster::found().authority.ca_pem().to_owned();
    let asked = request(NodeKeys::generate().unwrap().csr().unwrap());
    let error = enroll(house.mesh.local_addr(), &house.token, asked, PATIENCE)
        .await
        .unwrap_err();
    assert!(matches!(error, JoinError::WrongCluster(_)), "{error}");
    house.mesh.close().await;
}

#[tokio::test]
async fn a_request_that_is_too_large_is_not_read() {
    let house = house();
    let asked = request("x".repeat(REQUEST_LIMIT));
    let error = enroll(house.mesh.local_addr(), &house.token, asked, PATIENCE)
        .await
        .unwrap_err();
    assert!(matches!(error, JoinError::Talk { .. }), "{error}");
    assert!(lock(&house.door.asked).is_empty());
    house.mesh.close().await;
}

#[tokio::test]
async fn a_join_needs_a_door_and_an_answer() {
    let cluster = Cluster::found();
    let mesh = cluster.mesh(1);
    let token = cluster.authority.token().unwrap();
    let addr = mesh.local_addr();
    let error = enroll(addr, &token, request(String::new()), PATIENCE)
        .await
        .unwrap_err();
    assert!(
        matches!(error, JoinError::Refused(JoinRefusal::Busy)),
        "{error}"
    );
    mesh.close().await;
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let (addr, patience) = (silent.local_addr().unwrap(), Duration::from_millis(300));
    let error = enroll(addr, &token, request(String::new()), patience)
        .await
        .unwrap_err();
    assert!(matches!(error, JoinError::Unreachable(_)), "{error}");
}

#[test]
fn the_address_that_reaches_loopback_is_loopback() {
    let addr = advertise_addr("127.0.0.1:1".parse().unwrap()).unwrap();
    assert_eq!(addr, std::net::Ipv4Addr::LOCALHOST);
}
