//! Datagrams on services' own ports.

use std::net::SocketAddr;
use std::time::Duration;

use scheduler::model::{InstanceId, ListenProtocol, NodeId};
use tokio::net::UdpSocket;
use tokio::time::timeout;

use super::passage::{PATIENCE, ask, connect, listening};
use super::world::{Starts, World, eventually};

/// Answers every datagram with itself, as `server`.
async fn echo() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let addr = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 2048];
        while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
            let _ = socket.send_to(&buffer[..length], from).await;
        }
    });
    addr
}

#[tokio::test]
async fn datagrams_go_to_an_instance_and_answers_come_from_the_port() {
    for node in [1, 2] {
        let (deployed, door) = listening(ListenProtocol::Udp).await;
        let world = World::new(2, deployed, |_| {}).await;
        let never = Starts::After(PATIENCE * 2);
        let starts = [1, 2].map(|id| (NodeId(id), never.clone()));
        world.starter.how.lock().unwrap().extend(starts);
        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        client.connect(door).await.unwrap();
        // Nobody has it ready: it waits for the instance that opens next.
        let mut buffer = [0; 64];
        let sent = async {
            loop {
                // Refused until the node listens, which is not a loss of the door's.
                let _ = client.send(b"first").await;
                let tick = Duration::from_millis(100);
                if let Ok(Ok(length)) = timeout(tick, client.recv(&mut buffer)).await {
                    return length;
                }
                if world.ingress().counts().held > 0 {
                    world.open(node, "i", echo().await);
                    world.publish(&[(node as u64, vec![InstanceId("i".into())])].into());
                }
            }
        };
        let length = timeout(PATIENCE, sent).await.expect("an answer");
        assert_eq!(&buffer[..length], b"first", "at node {node}");
        let id = InstanceId("i".into());
        assert_eq!(
            world.nodes[node - 1].local.in_flight(&id),
            1,
            "a flow counts"
        );
    }
}

/// A flow to the door, once that has its port.
async fn flow(door: SocketAddr, says: &[u8]) -> UdpSocket {
    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    client.connect(door).await.unwrap();
    let open = async {
        loop {
            // Refused until the node listens, and what was sent before tells it.
            let sent = client.send(says).await.is_ok();
            let tick = Duration::from_millis(50);
            if sent && timeout(tick, client.readable()).await.is_err() {
                return;
            }
            let _ = client.try_recv(&mut [0; 64]);
        }
    };
    timeout(PATIENCE, open).await.expect("the port opens");
    client
}

#[tokio::test]
async fn what_was_merely_sent_proves_nothing() {
    let (deployed, door) = listening(ListenProtocol::Udp).await;
    let world = World::new(2, deployed, |_| {}).await;
    let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let id = InstanceId("i".into());
    world.open(2, "i", silent.local_addr().unwrap());
    let slot = world.nodes[1].local.slot(&id).unwrap();
    slot.health.broke_after(PATIENCE);
    world.publish(&[(2, vec![id])].into());
    let _client = flow(door, b"one").await;
    let mut buffer = [0; 64];
    let received = timeout(PATIENCE, silent.recv_from(&mut buffer)).await;
    assert_eq!(received.unwrap().unwrap().0, 3);
    assert!(slot.health.is_ejected());
}

#[tokio::test]
async fn flows_have_places_of_their_own() {
    let (mut deployed, udp) = listening(ListenProtocol::Udp).await;
    let (also, tcp) = listening(ListenProtocol::Tcp).await;
    deployed.listen.extend(also.listen);
    let world = World::one(deployed).await;
    let _app = world.run(1, "a").await;
    let passages = &world.ingress().shared.passages;
    let forged: Vec<_> = (0..100_000_u32)
        .map_while(|ip| passages.flows.enter(ip.to_be_bytes().into()))
        .collect();
    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let dropped = || world.ingress().counts().datagrams_dropped > 0;
    let sending = async {
        while !dropped() {
            let _ = client.send_to(b"one", udp).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, sending).await.expect("no room for it");
    let answer = ask(connect(tcp).await).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    drop(forged);
}

#[tokio::test]
async fn a_closing_door_lets_flows_end_and_begins_none() {
    for node in [1, 2] {
        let (deployed, door) = listening(ListenProtocol::Udp).await;
        let world = World::new(2, deployed, |_| {}).await;
        let app = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        world.open(node, "i", app.local_addr().unwrap());
        world.publish(&[(node as u64, vec![InstanceId("i".into())])].into());
        let client = flow(door, b"ask").await;
        let mut buffer = [0; 64];
        let heard = timeout(PATIENCE, app.recv_from(&mut buffer)).await;
        let (_, from) = heard.unwrap().unwrap();

        let late = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let closing = tokio::time::Instant::now();
        let (stopped, ()) = tokio::join!(
            async {
                world.ingress().stop(PATIENCE).await;
                closing.elapsed()
            },
            async {
                late.send_to(b"late", door).await.unwrap();
                eventually("no new one", || {
                    world.ingress().counts().datagrams_dropped > 0
                })
                .await;
                app.send_to(b"answer", from).await.unwrap();
                let answered = timeout(PATIENCE, client.recv(&mut buffer)).await;
                assert_eq!(answered.unwrap().unwrap(), 6, "at node {node}");
            }
        );
        assert!(stopped < PATIENCE / 2, "flows do not hold it up");
        let none = || world.ingress().counts().open_passages == 0;
        eventually("it is cut off in the end", none).await;
    }
}
