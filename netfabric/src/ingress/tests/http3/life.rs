//! The end of a door, and the next one at its socket.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use h3::error::Code;
use quinn::ConnectionError;

use super::super::super::{Ingress, IngressConfig, IngressDeps};
use super::super::world::{Deployed, World, eventually};
use super::{Client, WEB, ask, door, on, quic, read, world};
use crate::sockets::Sockets;
use crate::sockets::testing::Kept;

const GRACE: Duration = Duration::from_secs(10);

fn is_in_order(error: &ConnectionError) -> bool {
    let ConnectionError::ApplicationClosed(close) = error else {
        return false;
    };
    close.error_code.into_inner() == Code::H3_NO_ERROR.value()
}

#[tokio::test]
async fn stopping_finishes_what_it_has() {
    let (world, cert) = world(Deployed::default()).await;
    let app = world.run(1, "a").await;
    let (mut busy, idle) = (
        Client::new(&world, &cert).await,
        Client::new(&world, &cert).await,
    );
    let mut slow = busy
        .begin(ask("/slow/500").body(()).unwrap())
        .await
        .unwrap();
    slow.finish().await.unwrap();
    let inside = || app.seen.at_once.load(Ordering::SeqCst) == 1;
    eventually("it is inside", inside).await;
    let answered = tokio::spawn(async move { read(&mut slow).await });
    assert!(world.ingress().stop(GRACE).await, "nothing is cut off");
    assert_eq!(answered.await.unwrap().unwrap().body, "a");
    for client in [busy, idle] {
        assert!(is_in_order(&client.quic.closed().await));
        let ended = client.ended.await.unwrap();
        assert!(ended.is_h3_no_error(), "{ended}");
    }
    assert_eq!(world.ingress().counts().open_connections, 0);
    let nobody = tokio::time::timeout(Duration::from_millis(300), quic(door(&world), WEB, &cert));
    assert!(!matches!(nobody.await, Ok(Ok(_))), "nobody is let in");
}

/// Clients that keep asking hear that it ends, and lose no request: one that is not let in is told so.
#[tokio::test]
async fn clients_that_keep_asking_lose_nothing() {
    let (world, cert) = world(Deployed::default()).await;
    let app = world.run(1, "a").await;
    let mut clients = Vec::new();
    for _ in 0..4 {
        clients.push(Client::new(&world, &cert).await);
    }
    let asking: Vec<_> = clients
        .into_iter()
        .map(|mut client| {
            tokio::spawn(async move {
                let mut answers = 0;
                loop {
                    let begun = client.begin(ask("/").body(()).unwrap()).await;
                    let Ok(mut talk) = begun else {
                        return (answers, client);
                    };
                    let reply = async {
                        talk.finish().await?;
                        read(&mut talk).await
                    };
                    match reply.await {
                        Ok(reply) => assert_eq!(reply.status, 200),
                        // It may ask elsewhere.
                        Err(error) => {
                            let text = error.to_string();
                            assert!(
                                text.contains("H3_REQUEST_REJECTED")
                                    || text.contains("H3_NO_ERROR"),
                                "{text}"
                            );
                            return (answers, client);
                        }
                    }
                    answers += 1;
                }
            })
        })
        .collect();
    let seen = || app.seen.requests.load(Ordering::SeqCst);
    eventually("all of them are served", || seen() > 100).await;
    assert!(world.ingress().stop(GRACE).await);
    let mut answers = 0;
    for task in asking {
        let (count, client) = task.await.unwrap();
        answers += count;
        assert!(is_in_order(&client.quic.closed().await));
    }
    assert_eq!(answers, seen(), "what an instance has seen is answered");
}

#[tokio::test]
async fn stopping_cuts_off_what_outlasts_the_grace() {
    let (world, cert) = world(Deployed::default()).await;
    let app = world.run(1, "a").await;
    let mut client = Client::new(&world, &cert).await;
    let mut talk = client
        .begin(ask("/slow/60000").body(()).unwrap())
        .await
        .unwrap();
    talk.finish().await.unwrap();
    let inside = |count| app.seen.open.load(Ordering::SeqCst) == count;
    eventually("it is inside", || inside(1)).await;
    assert!(!world.ingress().stop(Duration::from_millis(50)).await);
    assert!(read(&mut talk).await.is_err());
    assert!(is_in_order(&client.quic.closed().await));
    eventually("the instance is free", || inside(0)).await;
}

fn start(world: &World, at: SocketAddr, sockets: Sockets) -> Option<Ingress> {
    let node = &world.nodes[0];
    let mut config = IngressConfig {
        listen: vec![],
        listen_tls: vec![at],
        ..IngressConfig::default()
    };
    on(&mut config);
    let deps = IngressDeps {
        routes: node.routes.clone(),
        local: node.local.clone(),
        fleet: node.fleet.subscribe(),
        registry: node.registry.subscribe(),
        link: world.pipes.clone(),
        starter: world.starter.clone(),
        callers: world.neighbours.clone(),
        shelf: node.shelf.clone(),
        tickets: None,
        sockets: Arc::new(sockets),
    };
    Ingress::start(config, deps).ok()
}

#[tokio::test]
async fn who_comes_between_two_daemons_is_served_by_the_next() {
    let (world, cert) = world(Deployed::default()).await;
    let _app = world.run(1, "a").await;
    // A port that is free for TCP may be somebody's for UDP.
    let (first, kept) = (0..10)
        .find_map(|_| {
            let kept = Kept::default();
            let started = start(&world, "127.0.0.1:0".parse().unwrap(), kept.sockets());
            started.map(|ingress| (ingress, kept))
        })
        .unwrap();
    let at = first.tls_addrs()[0];
    assert_eq!(Client::at(at, &cert).await.get("/").await.body, "a");
    let handed = kept.sockets();
    let is_udp = |(name, _): &(String, OwnedFd)| name.starts_with("udp-");
    assert!(kept.0.lock().unwrap().iter().any(is_udp));
    assert!(first.stop(GRACE).await);
    drop(first);
    // Nobody reads what it says, until somebody does.
    let waiting = tokio::spawn(async move { Client::at(at, &cert).await.get("/").await });
    let next = start(&world, at, handed).unwrap();
    assert_eq!(waiting.await.unwrap().body, "a");
    assert_eq!(next.tls_addrs(), [at]);
    next.stop(GRACE).await;
}
