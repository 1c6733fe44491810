//! Containers that call services at their own addresses.

use std::net::SocketAddrV4;
use std::sync::Arc;
use std::time::{Duration, Instant};

use scheduler::model::{InstanceId, Listen, ServiceKey};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::world::{ADDRESS, Deployed, World, eventually, name};

const PATIENCE: Duration = Duration::from_secs(10);

/// A container's connection to the service's `port`; the firewall's part is played here.
async fn connect(world: &World, port: u16) -> TcpStream {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let stream = TcpStream::connect(listener.local_addr().unwrap())
        .await
        .unwrap();
    let (inside, client) = listener.accept().await.unwrap();
    let shared = Arc::clone(&world.ingress().shared);
    let meant = SocketAddrV4::new(ADDRESS, port);
    tokio::spawn(super::super::inward::serve(shared, inside, client, meant));
    stream
}

/// What a container says to the service on `port`, and hears until the end.
async fn call(world: &World, port: u16, says: &str) -> std::io::Result<String> {
    let mut stream = connect(world, port).await;
    stream.write_all(says.as_bytes()).await?;
    let mut heard = String::new();
    let read = timeout(PATIENCE, stream.read_to_string(&mut heard)).await;
    read.expect("an end")?;
    Ok(heard)
}

const GET: &str = "GET /headers HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n";

async fn world() -> World {
    let listen = |port| Listen {
        port,
        private: true,
        ..Listen::default()
    };
    let deployed = Deployed {
        listen: vec![listen(5432)],
        callers: vec!["shop/*".parse().unwrap()],
        ..Deployed::default()
    };
    World::one(deployed).await
}

fn is(world: &World, namespace: &str) {
    let key = ServiceKey {
        namespace: name(namespace),
        name: name("api"),
    };
    let address = "127.0.0.1".parse().unwrap();
    world.neighbours.0.lock().unwrap().insert(address, key);
}

#[tokio::test]
async fn who_is_let_in_reaches_it_by_http_and_on_its_ports_from_zero() {
    let world = world().await;
    is(&world, "shop");
    for port in [80, 5432] {
        let heard = call(&world, port, GET).await.unwrap();
        assert!(heard.starts_with("HTTP/1.1 200"), "{port}: {heard}");
        // By HTTP it is told who asks; what passes unread is told nothing.
        assert_eq!(
            heard.contains("x-forwarded-for: 127.0.0.1"),
            port == 80,
            "{heard}"
        );
        assert!(heard.contains("host: web"), "{heard}");
    }
    assert_eq!(world.starter.starts(), 1);
}

#[tokio::test]
async fn the_services_rate_holds_for_containers_and_the_clients_does_not() {
    let deployed = Deployed {
        callers: vec!["shop/*".parse().unwrap()],
        rate: Some("1/h burst 2"),
        ..Deployed::default()
    };
    let limit = |config: &mut super::super::IngressConfig| {
        config.client_rate = Some("1/h".parse().unwrap());
    };
    let world = World::new(1, deployed, limit).await;
    is(&world, "shop");
    for want in ["200 OK", "200 OK", "429 Too Many"] {
        let heard = call(&world, 80, GET).await.unwrap();
        assert!(
            heard.starts_with(&format!("HTTP/1.1 {want}")),
            "{want}: {heard}"
        );
        let refused = heard.contains("x-selvedge-error: service-rate");
        assert_eq!(refused, want.starts_with("429"), "{heard}");
    }
}

#[tokio::test]
async fn everybody_else_is_reset() {
    let world = world().await;
    let strangers: [fn(&World); 2] = [|_| {}, |world| is(world, "bank")];
    for stranger in strangers {
        stranger(&world);
        for port in [80, 5432] {
            let refused = call(&world, port, GET).await.unwrap_err();
            assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionReset);
        }
    }
    is(&world, "shop");
    let nothing = call(&world, 5433, GET).await.unwrap_err();
    assert_eq!(nothing.kind(), std::io::ErrorKind::ConnectionReset);
    let problems = world.ingress().counts().problems;
    let count = |code: &str| problems.iter().find(|(c, _)| c == code).unwrap().1;
    assert_eq!((count("caller-refused"), count("no-such-port")), (4, 1));
}

/// A request on a connection that stays: the status it gets.
async fn status(stream: &mut TcpStream) -> String {
    let get = b"GET / HTTP/1.1\r\nhost: web\r\n\r\n";
    stream.write_all(get).await.unwrap();
    let mut heard = String::new();
    let answer = async {
        while !is_whole(&heard) {
            let mut some = [0; 1024];
            let length = stream.read(&mut some).await.unwrap();
            assert!(length > 0, "it stays");
            heard.push_str(std::str::from_utf8(&some[..length]).unwrap());
        }
    };
    timeout(PATIENCE, answer).await.expect("an answer");
    heard.split(' ').nth(1).unwrap().to_owned()
}

fn is_whole(answer: &str) -> bool {
    answer.split_once("\r\n\r\n").is_some_and(|(head, body)| {
        let said = head.split_once("content-length: ").unwrap().1;
        said.lines().next() == Some(&body.len().to_string())
    })
}

#[tokio::test]
async fn who_calls_is_looked_up_once_and_whether_it_may_at_every_request() {
    let world = world().await;
    is(&world, "shop");
    let mut stream = connect(&world, 80).await;
    assert_eq!(status(&mut stream).await, "200");
    world.neighbours.0.lock().unwrap().clear();
    assert_eq!(status(&mut stream).await, "200");
    let state = Arc::new(Deployed::default().state());
    world.nodes[0].registry.send_replace(state);
    world.publish(&[].into());
    assert_eq!(status(&mut stream).await, "403");
    let counts = world.ingress().counts();
    assert_eq!(
        (counts.requests, counts.classes[1], counts.classes[3]),
        (3, 2, 1)
    );
}

/// Whom a service lets in does not come by it to its neighbours.
#[tokio::test]
async fn a_replay_of_a_call_goes_only_where_its_caller_is_let_in() {
    let deployed = Deployed {
        callers: vec!["shop/*".parse().unwrap()],
        beside: vec![
            ("default", "open", vec!["shop/api".parse().unwrap()]),
            ("default", "closed", vec!["default/web".parse().unwrap()]),
        ],
        ..Deployed::default()
    };
    let world = World::one(deployed).await;
    is(&world, "shop");
    for (app, want) in [("open", "HTTP/1.1 200"), ("closed", "HTTP/1.1 403")] {
        let ask = format!(
            "GET / HTTP/1.1\r\nhost: web\r\nx-order: app={app}\r\nconnection: close\r\n\r\n"
        );
        let heard = call(&world, 80, &ask).await.unwrap();
        assert!(heard.starts_with(want), "{app}: {heard}");
        let code = heard.contains("x-selvedge-error: caller-refused");
        assert_eq!(code, app == "closed", "{heard}");
    }
}

/// A kept connection of a container's does not hold up a door that leaves, and what is called on another as it
/// closes is answered.
#[tokio::test]
async fn calls_that_are_under_way_as_the_door_closes_are_answered() {
    let world = world().await;
    is(&world, "shop");
    let _app = world.run(1, "a").await;
    let mut kept = connect(&world, 80).await;
    let get = "GET / HTTP/1.1\r\nhost: web\r\n\r\n";
    kept.write_all(get.as_bytes()).await.unwrap();
    assert!(kept.read(&mut [0; 1_000]).await.unwrap() > 0);
    let local = world.local();
    let slow = "GET /slow/1500 HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n";
    let one = InstanceId("a".into());
    let leave = async {
        eventually("it is under way", || local.in_flight(&one) == 1).await;
        let begun = Instant::now();
        let in_order = world.ingress().stop(Duration::from_secs(30)).await;
        (in_order, begun.elapsed())
    };
    let (answered, (in_order, took)) = tokio::join!(call(&world, 80, slow), leave);
    let answered = answered.unwrap();
    assert!(answered.starts_with("HTTP/1.1 200"), "{answered}");
    assert!(in_order);
    assert!(took < Duration::from_secs(20), "held up: {took:?}");
    let mut rest = String::new();
    assert_eq!(kept.read_to_string(&mut rest).await.unwrap(), 0, "{rest}");
}
