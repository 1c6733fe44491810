//! What the next daemon goes on with: connections carried unread.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use scheduler::model::{InstanceId, ListenProtocol};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::passage::{PATIENCE, connect, listening};
use super::world::{Deployed, World, eventually};
use crate::sockets::testing::Kept;

const GRACE: Duration = Duration::from_secs(10);

/// Says again what it hears, until nothing more comes.
async fn echo() -> SocketAddr {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = server.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = server.accept().await {
            let (mut from, mut to) = stream.into_split();
            tokio::spawn(async move { tokio::io::copy(&mut from, &mut to).await });
        }
    });
    addr
}

const WORD: usize = 16_000;
const WORDS: u32 = 5000;

fn word(number: u32) -> Vec<u8> {
    number.to_le_bytes().repeat(WORD / 4)
}

/// Says them all, the last one when it is told to.
async fn speak(mut to: OwnedWriteHalf, last: oneshot::Receiver<()>) {
    for number in 0..WORDS - 1 {
        to.write_all(&word(number)).await.unwrap();
    }
    last.await.unwrap();
    to.write_all(&word(WORDS - 1)).await.unwrap();
    to.shutdown().await.unwrap();
}

/// Hears them all, and then the end.
async fn hear(mut from: OwnedReadHalf, count: Arc<AtomicU32>) {
    let mut heard = [0; WORD];
    for number in 0..WORDS {
        let read = timeout(PATIENCE, from.read_exact(&mut heard)).await;
        read.expect("it goes on").unwrap();
        assert_eq!(heard.to_vec(), word(number));
        count.fetch_add(1, Ordering::Relaxed);
    }
    let end = timeout(PATIENCE, from.read(&mut [0])).await.unwrap();
    assert_eq!(end.unwrap(), 0, "it ends in order");
}

async fn one(kept: &Kept, deployed: &Deployed, instance: SocketAddr) -> World {
    let world = World::after(kept.sockets(), deployed.clone()).await;
    world.open(1, "i", instance);
    world.publish(&[(1, vec![InstanceId("i".into())])].into());
    world
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_goes_on_with_every_byte_while_daemons_come_and_go() {
    let (deployed, door) = listening(ListenProtocol::Tcp).await;
    let (kept, instance) = (Kept::default(), echo().await);
    let mut world = one(&kept, &deployed, instance).await;
    let (from, to) = connect(door).await.into_split();
    let (last, told) = oneshot::channel();
    let speaker = tokio::spawn(speak(to, told));
    let heard = Arc::new(AtomicU32::new(0));
    let hearer = tokio::spawn(hear(from, Arc::clone(&heard)));
    for daemon in 1..=3 {
        // In the midst of it: bytes are under way in both directions.
        let goes_on = || heard.load(Ordering::Relaxed) >= daemon * WORDS / 5;
        eventually("it goes on", || goes_on() || hearer.is_finished()).await;
        assert!(world.ingress().stop(GRACE).await);
        drop(world);
        world = one(&kept, &deployed, instance).await;
        let id = InstanceId("i".into());
        eventually("it counts", || world.local().in_flight(&id) == 1).await;
        assert_eq!(world.ingress().counts().open_passages, 1);
    }
    last.send(()).unwrap();
    hearer.await.unwrap();
    speaker.await.unwrap();
    eventually("it is out", || world.ingress().counts().open_passages == 0).await;
    assert_eq!(world.starter.starts(), 0);
}

/// A daemon that carries a connection, and what the next one begins with.
struct Leaves(World, Next);

struct Next {
    kept: Kept,
    deployed: Deployed,
    instance: SocketAddr,
}

impl Leaves {
    async fn stop(self) -> Next {
        assert!(self.0.ingress().stop(GRACE).await);
        self.1
    }
}

impl Next {
    async fn start(&self) -> World {
        one(&self.kept, &self.deployed, self.instance).await
    }
}

/// It, the client's end of the connection, and the instance's.
async fn carried() -> (Leaves, TcpStream, TcpStream) {
    let (deployed, door) = listening(ListenProtocol::Tcp).await;
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let next = Next {
        kept: Kept::default(),
        deployed,
        instance: server.local_addr().unwrap(),
    };
    let world = next.start().await;
    let client = connect(door).await;
    let (inside, _) = timeout(PATIENCE, server.accept()).await.unwrap().unwrap();
    (Leaves(world, next), client, inside)
}

/// One half ended under the daemon before, the other while there was none.
#[tokio::test]
async fn what_ended_meanwhile_ends_in_order() {
    let (leaves, mut client, mut inside) = carried().await;
    client.write_all(b"question").await.unwrap();
    client.shutdown().await.unwrap();
    let mut asked = Vec::new();
    let read = timeout(PATIENCE, inside.read_to_end(&mut asked)).await;
    read.expect("the end of it").unwrap();
    let next = leaves.stop().await;
    inside.write_all(b"answer").await.unwrap();
    drop(inside);
    let _world = next.start().await;
    let mut heard = String::new();
    let read = timeout(PATIENCE, client.read_to_string(&mut heard)).await;
    read.expect("an end").unwrap();
    assert_eq!(heard, "answer");
}

#[tokio::test]
async fn what_nobody_took_yet_is_handed_on() {
    let (leaves, mut client, mut inside) = carried().await;
    // Until no buffer on the way has room, in either direction.
    let (asked, answered) = (fill(&mut client).await, fill(&mut inside).await);
    let _world = leaves.stop().await.start().await;
    client.shutdown().await.unwrap();
    inside.shutdown().await.unwrap();
    let both = tokio::join!(read_all(&mut inside), read_all(&mut client));
    assert!(both == (asked, answered), "not every byte, or not in order");
}

async fn fill(stream: &mut TcpStream) -> Vec<u8> {
    let mut all = Vec::new();
    loop {
        let more: Vec<u8> = (all.len()..all.len() + 5000)
            .map(|at| u8::try_from(at % 251).unwrap())
            .collect();
        match timeout(Duration::from_millis(500), stream.write(&more)).await {
            Ok(written) => all.extend(&more[..written.unwrap()]),
            Err(_) => return all,
        }
    }
}

async fn read_all(stream: &mut TcpStream) -> Vec<u8> {
    let mut all = Vec::new();
    let read = timeout(PATIENCE, stream.read_to_end(&mut all)).await;
    read.expect("an end").unwrap();
    all
}

/// A supervisor that keeps nothing on, as one that was told to stop.
#[tokio::test]
async fn what_nobody_goes_on_with_breaks_off() {
    let (deployed, door) = listening(ListenProtocol::Tcp).await;
    let (kept, instance) = (Kept::default(), echo().await);
    let world = one(&kept, &deployed, instance).await;
    let mut client = connect(door).await;
    client.write_all(b"x").await.unwrap();
    timeout(PATIENCE, client.read_u8()).await.unwrap().unwrap();
    assert!(world.ingress().stop(GRACE).await);
    drop(world);
    kept.0.lock().unwrap().clear();
    assert_eq!(broken(&mut client).await, ErrorKind::ConnectionReset);
}

async fn broken(client: &mut TcpStream) -> ErrorKind {
    let read = timeout(PATIENCE, client.read(&mut [0])).await;
    read.expect("told").unwrap_err().kind()
}
