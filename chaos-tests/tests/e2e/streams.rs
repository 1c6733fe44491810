//! More than a request and an answer, through a node that has no instance: across the mesh.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use chaos_tests::world::{Node, ORIGIN, PATIENCE, World, until};

/// The window after which a service without requests goes to zero, and some more.
const BEYOND_WINDOW: Duration = Duration::from_secs(10);
const PATIENT: Duration = Duration::from_secs(20);
/// More than all buffers on the way hold.
const MUCH: usize = 8 << 20;

/// A service in one region and a node of another that has heard of its instance.
fn away(more: &[&str]) -> Result<World> {
    let world = World::of(&["par-1", "fra-1"])?;
    let near = ["--region", "par", "--cpu", "0.1", "--scale", "0..1"];
    world.deploy("away", &[&near, more].concat())?.ok()?;
    Ok(world)
}

/// A switched connection carries bytes both ways for as long as it is held, keeps its instance
/// alive, ends one way at a time, and lets the instance go.
#[test]
fn an_upgrade_crosses_the_mesh() -> Result<()> {
    let world = away(&[])?;
    let fra = &world["fra-1"];
    world.rest("away")?;
    let (mut to, mut from) = switch(fra)?;
    let served = only_instance(fra)?;

    let (end, mut rounds) = (Instant::now() + BEYOND_WINDOW, 0_u32);
    while Instant::now() < end {
        let said = format!("round {rounds}\n");
        to.write_all(said.as_bytes())?;
        let mut heard = String::new();
        from.read_line(&mut heard)?;
        ensure!(heard == said, "sent {said:?}, heard {heard:?}");
        rounds += 1;
        std::thread::sleep(Duration::from_millis(200)); // The pace of a chat.
    }
    ensure!(only_instance(fra)? == served, "another instance");

    let much: Vec<_> = (0..=250_u8).cycle().take(MUCH).collect();
    let heard = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            to.write_all(&much)?;
            to.shutdown(Shutdown::Write)
        });
        let mut heard = Vec::new();
        let read = from.read_to_end(&mut heard);
        ensure!(writer.join().is_ok_and(|w| w.is_ok()), "the writer failed");
        read?;
        Ok(heard)
    })?;
    let (sent, back) = (much.len(), heard.len());
    ensure!(heard == much, "{back} of {sent} bytes came back");
    world.rest("away")
}

/// Asks for another protocol; both ends of the connection when it is given.
fn switch(node: &Node) -> Result<(TcpStream, BufReader<TcpStream>)> {
    let mut to = TcpStream::connect_timeout(&node.door(), PATIENT)?;
    to.set_read_timeout(Some(PATIENT))?;
    to.set_write_timeout(Some(PATIENT))?;
    let mut from = BufReader::new(to.try_clone()?);
    let head = format!(
        "GET /echo HTTP/1.1\r\nhost: away.{ORIGIN}\r\nconnection: Upgrade\r\nupgrade: echo\r\n\r\n"
    );
    to.write_all(head.as_bytes())?;
    let mut answer = String::new();
    while !answer.ends_with("\r\n\r\n") {
        ensure!(from.read_line(&mut answer)? > 0, "cut off: {answer}");
    }
    let lower = answer.to_ascii_lowercase();
    ensure!(lower.starts_with("http/1.1 101 "), "{answer}");
    ensure!(lower.contains("upgrade: echo"), "{answer}");
    Ok((to, from))
}

/// The one instance there is, which is not on the node that is asked.
fn only_instance(asked: &Node) -> Result<String> {
    until("the instance is known", PATIENCE, || {
        let all = asked.instances("away")?;
        ensure!(all.len() == 1 && all[0]["nodeName"] == "par-1", "{all:?}");
        Ok(all[0]["id"].as_str().map(ToOwned::to_owned))
    })
}

/// HTTP/2 from the client's first byte to the program, and back with its trailers.
#[test]
fn http2_crosses_the_mesh_with_its_trailers() -> Result<()> {
    let world = away(&["--port", "h2c:8080"])?;
    world.rest("away")?;
    let fra = &world["fra-1"];
    // The first finds no instance, the second a ready one.
    for body in ["cold", "warm"] {
        let host = format!("host: away.{ORIGIN}");
        let url = format!("http://{}/any", fra.address);
        let curl = ["--http2-prior-knowledge", "-sS", "-i", "-m", "40"];
        let post = ["-H", &host, "--data-binary", body, &url];
        let said = fra.run("curl", &[&curl[..], &post].concat())?.ok()?;
        said.says("HTTP/2 200")?
            .says(&format!("HTTP/2.0 {body}"))?
            .says("box-ends: well")?;
        only_instance(fra)?;
    }
    Ok(())
}
