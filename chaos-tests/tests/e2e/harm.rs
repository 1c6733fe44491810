//! Clients that mean harm: requests hidden in others, floods of HTTP/2's small frames, questions
//! whose answers are to drown somebody else.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use chaos_tests::world::{ORIGIN, PATIENCE, World, until};

use crate::SMALL;

/// How long a client waits for a second answer.
const A_WHILE: Duration = Duration::from_secs(2);
/// How long a flood lasts, and from how many connections it comes.
const FLOOD: Duration = Duration::from_secs(4);
const FLOODERS: usize = 4;
/// What a daemon may take more of for a flood.
const MEMORY: u64 = 96 << 20;
/// An answer by UDP is no larger, whatever the client says that it takes.
const LARGEST: usize = 1232;
/// An answer is at most so many times as large as its question.
const FACTOR: usize = 8;
/// Questions of one flooder in each pause of a millisecond: some 20,000 a second of all.
const QUESTIONS: usize = 5;
/// A client's address (RFC 5737).
const OTHER: &str = "198.51.100.7";

/// A request's lines with a second request in its body, which only a server that reads its length
/// differently would find. `{host}` is the service's name.
const SMUGGLED: [(&str, &str); 12] = [
    (
        "both lengths",
        "POST /first HTTP/1.1\r\nhost: {host}\r\ncontent-length: 6\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nG",
    ),
    (
        "both lengths, the other way",
        "POST /first HTTP/1.1\r\nhost: {host}\r\ncontent-length: {all}\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{second}",
    ),
    (
        "two lengths",
        "POST /first HTTP/1.1\r\nhost: {host}\r\ncontent-length: 0\r\ncontent-length: {all}\r\n\r\n{second}",
    ),
    (
        "a list of lengths",
        "POST /first HTTP/1.1\r\nhost: {host}\r\ncontent-length: 0, {all}\r\n\r\n{second}",
    ),
    (
        "a signed length",
        "POST /first HTTP/1.1\r\nhost: {host}\r\ncontent-length: +0\r\n\r\n{second}",
    ),
    (
        "a coding that is not chunked",
        "POST /first HTTP/1.1\r\nhost: {host}\r\ntransfer-encoding: xchunked\r\n\r\n0\r\n\r\n{second}",
    ),
    (
        "chunked and then something",
        "POST /first HTTP/1.1\r\nhost: {host}\r\ntransfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n{second}",
    ),
    (
        "a folded line",
        "POST /first HTTP/1.1\r\nhost: {host}\r\nx-a: b\r\n transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n",
    ),
    (
        "a space before the colon",
        "POST /first HTTP/1.1\r\nhost: {host}\r\ntransfer-encoding : chunked\r\ncontent-length: {all}\r\n\r\n{second}",
    ),
    (
        "a bare carriage return",
        "POST /first HTTP/1.1\r\nhost: {host}\r\nx-a: b\rtransfer-encoding: chunked\r\ncontent-length: {all}\r\n\r\n{second}",
    ),
    (
        "a length that is no number",
        "POST /first HTTP/1.1\r\nhost: {host}\r\ntransfer-encoding: chunked\r\n\r\n-1\r\n\r\n{second}",
    ),
    (
        "HTTP/1.0 in chunks",
        "POST /first HTTP/1.0\r\nhost: {host}\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{second}",
    ),
];

/// What the bytes to a door become.
fn written(text: &str, host: &str) -> String {
    let second = format!("GET /smuggled HTTP/1.1\r\nhost: {host}\r\n\r\n");
    let all = (second.len() + "0\r\n\r\n".len()).to_string();
    text.replace("{host}", host)
        .replace("{all}", &all)
        .replace("{second}", &second)
}

/// What the door says to these bytes until it closes, or for a while: a client that went on after
/// them would say no more.
fn said(door: SocketAddr, bytes: &[u8]) -> Result<String> {
    let mut stream = TcpStream::connect(door)?;
    stream.set_read_timeout(Some(A_WHILE))?;
    stream.write_all(bytes)?;
    let mut heard = Vec::new();
    // A door that has refused may close hard; one that waits for more is left.
    stream.read_to_end(&mut heard).ok();
    Ok(String::from_utf8_lossy(&heard).into_owned())
}

/// Each is refused, or answered as the one request that it is; its instance sees no second one.
#[test]
fn a_smuggled_request_reaches_nobody() -> Result<()> {
    let world = World::of(&["par-1"])?;
    let node = world.first();
    world
        .deploy("web", &["--scale", "1..1", "--cpu", "0.1"])?
        .ok()?;
    let host = format!("web.{ORIGIN}");
    for (what, text) in SMUGGLED {
        let heard = said(node.door(), written(text, &host).as_bytes())?;
        let answers = heard.matches("HTTP/1.").count();
        eprintln!("{what}: {}", heard.lines().next().unwrap_or("closed"));
        ensure!(answers <= 1, "{what}: answered twice: {heard}");
        // What follows on the same way to the instance is not what was left of it.
        node.get("web", "/")?.ok()?.says("box")?;
    }
    node.get("web", "/the-last")?;
    let logs = until("the last request in the log", PATIENCE, || {
        let logs = node.cli(&["logs", "web"])?.ok()?.out;
        Ok(logs.contains("/the-last").then_some(logs))
    })?;
    ensure!(!logs.contains("/smuggled"), "{logs}");
    Ok(())
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const CONTINUATION: u8 = 9;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap_or(0).to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// `GET /` as HPACK writes it without a table or Huffman's code.
fn head(host: &str) -> Vec<u8> {
    let mut head = vec![0x82, 0x86, 0x84, 0x41];
    head.push(u8::try_from(host.len()).unwrap_or(0));
    head.extend(host.as_bytes());
    head
}

/// One flood: what is sent as its n-th piece.
type Flood = fn(n: u32, host: &str) -> Vec<u8>;

const FLOODS: [(&str, Flood); 4] = [
    ("pings", |_, _| frame(PING, 0, 0, &[0; 8])),
    ("settings", |n, _| {
        let window = (65_535 + n % 2).to_be_bytes();
        frame(SETTINGS, 0, 0, &[&[0, 4][..], &window].concat())
    }),
    ("requests begun and reset", |n, host| {
        let stream = n * 2 + 1;
        let begun = frame(HEADERS, 5, stream, &head(host));
        [begun, frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())].concat()
    }),
    ("a head without end", |n, host| match n {
        0 => frame(HEADERS, 1, 1, &head(host)),
        // A header line of one letter, again and again.
        _ => frame(CONTINUATION, 0, 1, &[0, 1, b'a', 1, b'b'].repeat(100)),
    }),
];

/// Floods until told to end or cut off; how many pieces went out, and whether the door closed.
fn flood(door: SocketAddr, host: &str, piece: Flood, over: &AtomicBool) -> Result<(u32, bool)> {
    let mut stream = TcpStream::connect(door)?;
    stream.set_write_timeout(Some(Duration::from_millis(200)))?;
    stream.write_all(PREFACE)?;
    stream.write_all(&frame(SETTINGS, 0, 0, &[]))?;
    let mut sent = 0;
    // Answers are not read: the door may not keep more of them than it means to.
    while !over.load(Ordering::Relaxed) {
        match stream.write_all(&piece(sent, host)) {
            Ok(()) => sent += 1,
            // The door reads no further.
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => break,
            Err(_) => return Ok((sent, true)),
        }
    }
    Ok((sent, false))
}

fn resident(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    let kib = line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok());
    Ok(kib.context("a process has memory")? << 10)
}

/// Others are served meanwhile, and the daemon keeps little of what it is sent.
#[test]
fn floods_of_frames_keep_nobody_else_out() -> Result<()> {
    let world = World::of(&["par-1"])?;
    let node = world.first();
    world
        .deploy("web", &["--scale", "1..1", "--cpu", "0.1"])?
        .ok()?;
    node.get("web", "/")?.ok()?;
    let (door, host) = (node.door(), format!("web.{ORIGIN}"));
    let pid = node.daemon().context("a daemon")?;
    let before = resident(pid)?;
    for (what, piece) in FLOODS {
        let over = AtomicBool::new(false);
        let (served, most, sent) = std::thread::scope(|scope| {
            let flooders: Vec<_> = (0..FLOODERS)
                .map(|_| scope.spawn(|| flood(door, &host, piece, &over)))
                .collect();
            let seen = meanwhile(|| {
                node.get("web", "/")?.ok()?.says("box")?;
                resident(pid)
            });
            over.store(true, Ordering::Relaxed);
            let sent: Vec<_> = flooders.into_iter().filter_map(|f| f.join().ok()).collect();
            seen.map(|(served, most)| (served, most, sent))
        })
        .with_context(|| what.to_owned())?;
        eprintln!(
            "{what}: {served} others served, {} MiB, {sent:?}",
            most >> 20
        );
        ensure!(
            most < before + MEMORY,
            "{what}: {before} became {most} bytes"
        );
        ensure!(sent.iter().all(Result::is_ok), "{what}: {sent:?}");
    }
    ensure!(node.daemon() == Some(pid), "the daemon ended");
    Ok(())
}

/// Asks again and again while a flood lasts; how often, and the most it said.
fn meanwhile(mut ask: impl FnMut() -> Result<u64>) -> Result<(u32, u64)> {
    let (began, mut times, mut most) = (Instant::now(), 0, 0);
    while began.elapsed() < FLOOD {
        most = most.max(ask()?);
        times += 1;
    }
    Ok((times, most))
}

/// A question of this kind for a name, from a client that takes 4096 bytes.
fn question(name: &str, kind: u16) -> Vec<u8> {
    let mut query = vec![0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1];
    for label in name.split('.') {
        query.push(u8::try_from(label.len()).unwrap_or(0));
        query.extend(label.as_bytes());
    }
    query.push(0);
    query.extend(kind.to_be_bytes());
    query.extend([0, 1]);
    // EDNS: the root, OPT, 4096 bytes, nothing more.
    query.extend([0, 0, 41, 16, 0, 0, 0, 0, 0, 0, 0]);
    query
}

/// No answer is much larger than its question, so that nobody is drowned in what he did not ask.
#[test]
fn dns_answers_are_small() -> Result<()> {
    let world = World::of(&["par-1"])?;
    let node = world.first();
    world.deploy("web", &SMALL)?.ok()?;
    let door = SocketAddr::from((node.address, 53));
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect(door)?;
    // A, NS, SOA, TXT, AAAA, HTTPS, DNSKEY, ANY.
    for kind in [1, 2, 6, 16, 28, 65, 48, 255] {
        for name in [
            format!("web.{ORIGIN}"),
            ORIGIN.to_owned(),
            format!("no.{ORIGIN}"),
        ] {
            let asked = question(&name, kind);
            socket.send(&asked)?;
            let mut answer = [0; 4096];
            let length = socket.recv(&mut answer)?;
            ensure!(
                length <= LARGEST && length <= asked.len() * FACTOR,
                "{name} {kind}: {length} bytes for {}",
                asked.len()
            );
        }
    }
    Ok(())
}

/// One client asks the same without end; its answers come to fewer bytes than its questions, and
/// a client of another network is answered all the while.
#[test]
fn a_flood_of_questions_keeps_nobody_else_out() -> Result<()> {
    let world = World::of(&["par-1", "fra-1"])?;
    let (node, other) = (world.first(), &world.nodes()[1]);
    world.deploy("web", &SMALL)?.ok()?;
    let (door, name) = (
        SocketAddr::from((node.address, 53)),
        format!("web.{ORIGIN}"),
    );
    let pid = node.daemon().context("a daemon")?;
    let before = resident(pid)?;
    let (asked, at) = (question(&name, 1), format!("@{}", node.address));
    // The other client is of another network than the flood.
    let (net, via) = (format!("{OTHER}/32"), other.address.to_string());
    other
        .run("ip", &["address", "add", &net, "dev", "eth0"])?
        .ok()?;
    node.run("ip", &["route", "add", &net, "via", &via])?.ok()?;
    let over = AtomicBool::new(false);
    let (seen, floods) = std::thread::scope(|scope| {
        let flooders: Vec<_> = (0..FLOODERS)
            .map(|_| scope.spawn(|| questions(door, &asked, &over)))
            .collect();
        let seen = meanwhile(|| {
            let said = other.run("dig", &["-b", OTHER, "+short", "+tries=5", &at, &name])?;
            said.ok()?.says(&node.address.to_string())?;
            resident(pid)
        });
        over.store(true, Ordering::Relaxed);
        let floods: Vec<_> = flooders.into_iter().filter_map(|f| f.join().ok()).collect();
        (seen, floods)
    });
    let ((served, most), floods) = (seen?, floods.into_iter().collect::<Result<Vec<_>>>()?);
    let (sent, heard) = floods
        .iter()
        .fold((0, 0), |sum, f| (sum.0 + f.0, sum.1 + f.1));
    eprintln!("{served} others answered; {sent} bytes asked, {heard} answered");
    ensure!(heard * 2 <= sent * 3, "{heard} bytes for {sent}");
    ensure!(most < before + MEMORY, "{before} became {most} bytes");
    Ok(())
}

/// Asks at its rate until it is over: the bytes sent and the bytes that came back.
fn questions(door: SocketAddr, asked: &[u8], over: &AtomicBool) -> Result<(usize, usize)> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(door)?;
    socket.set_nonblocking(true)?;
    let (mut sent, mut heard, mut answer) = (0, 0, [0; 4096]);
    while !over.load(Ordering::Relaxed) {
        for _ in 0..QUESTIONS {
            // A full queue takes no more for the moment.
            sent += socket.send(asked).unwrap_or(0);
        }
        std::thread::sleep(Duration::from_millis(1));
        while let Ok(length) = socket.recv(&mut answer) {
            heard += length;
        }
    }
    Ok((sent, heard))
}
