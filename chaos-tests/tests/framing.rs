//! Where one request ends and the next begins: the same bytes go to the front door and to nginx, before
//! the same backend. Both must hand on the same requests, or none. A request that one reads and the
//! other does not is how requests are smuggled.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use chaos_tests::doorway::Doorway;
use chaos_tests::world::until;
use scheduler::model::Protocol;

const PATIENCE: Duration = Duration::from_secs(20);
/// Whoever waits for more bytes than there are is left after this.
const QUIET: Duration = Duration::from_secs(2);
const LAST: &str = "GET /last HTTP/1.1\r\nhost: a.edge.test\r\nconnection: close\r\n\r\n";

/// A request as the backend got it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Got {
    line: String,
    host: String,
    body: Vec<u8>,
}

type Seen = Arc<Mutex<Vec<Result<Got, String>>>>;

/// Answers every request it can read strictly, and writes down what it got.
fn backend() -> Result<(SocketAddr, Seen)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let at = listener.local_addr()?;
    let seen = Seen::default();
    let noting = Arc::clone(&seen);
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let noting = Arc::clone(&noting);
            std::thread::spawn(move || converse(stream, &noting));
        }
    });
    Ok((at, seen))
}

fn converse(mut stream: TcpStream, seen: &Seen) {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        while let Some(read) = request(&bytes) {
            let bad = read.is_err();
            let note = read.map(|(got, length)| {
                bytes.drain(..length);
                got
            });
            seen.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(note);
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
            if bad || stream.write_all(answer).is_err() {
                return;
            }
        }
        match stream.read(&mut buffer) {
            Ok(count) if count > 0 => bytes.extend_from_slice(&buffer[..count]),
            _ => return,
        }
    }
}

/// The first request and its length, read as strictly as can be; `None` when there is no whole one.
fn request(bytes: &[u8]) -> Option<Result<(Got, usize), String>> {
    let head = bytes.windows(4).position(|w| w == b"\r\n\r\n")?;
    let garbled = || Err(String::from_utf8_lossy(bytes).into_owned());
    let Ok(text) = std::str::from_utf8(&bytes[..head]) else {
        return Some(garbled());
    };
    let mut lines = text.split("\r\n");
    let line = lines.next().unwrap_or_default().to_owned();
    let headers: Vec<(String, String)> = lines
        .filter_map(|l| l.split_once(':'))
        .map(|(n, v)| (n.to_lowercase(), v.trim().to_owned()))
        .collect();
    let all = |name: &str| -> Vec<&str> {
        let named = headers.iter().filter(|(n, _)| n == name);
        named.map(|(_, v)| v.as_str()).collect()
    };
    let (lengths, codings, hosts) = (all("content-length"), all("transfer-encoding"), all("host"));
    let (body, length) = match (&lengths[..], &codings[..]) {
        ([], []) => (Vec::new(), 0),
        ([length], []) => {
            let Ok(length) = length.parse::<usize>() else {
                return Some(garbled());
            };
            (bytes.get(head + 4..head + 4 + length)?.to_vec(), length)
        }
        ([], ["chunked"]) => chunked(&bytes[head + 4..])?,
        _ => return Some(garbled()),
    };
    let [host] = hosts[..] else {
        return Some(garbled());
    };
    if text.contains('\n') && text.replace("\r\n", "").contains(['\r', '\n']) {
        return Some(garbled());
    }
    let host = host.to_owned();
    Some(Ok((Got { line, host, body }, head + 4 + length)))
}

fn chunked(bytes: &[u8]) -> Option<(Vec<u8>, usize)> {
    let (mut body, mut at) = (Vec::new(), 0);
    loop {
        let line = bytes[at..].windows(2).position(|w| w == b"\r\n")?;
        let size = std::str::from_utf8(&bytes[at..at + line]).ok()?;
        let size = usize::from_str_radix(size, 16).ok()?;
        at += line + 2;
        body.extend_from_slice(bytes.get(at..at + size)?);
        at += size + 2;
        if size == 0 {
            return (bytes.len() >= at).then_some((body, at));
        }
    }
}

/// nginx before the backend; it ends with its handle.
struct Nginx {
    child: Child,
    at: SocketAddr,
    _home: tempfile::TempDir,
}

impl Nginx {
    fn start(backend: SocketAddr) -> Result<Self> {
        let home = tempfile::tempdir()?;
        let at = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let dir = home.path().display();
        let config = format!(
            "daemon off; worker_processes 1; pid {dir}/pid; error_log {dir}/error.log;
events {{ worker_connections 256; }}
http {{
    access_log off; client_body_temp_path {dir}/body; proxy_temp_path {dir}/proxy;
    fastcgi_temp_path {dir}/fastcgi; uwsgi_temp_path {dir}/uwsgi; scgi_temp_path {dir}/scgi;
    upstream backend {{ server {backend}; keepalive 16; }}
    server {{ listen {at}; location / {{
        proxy_pass http://backend; proxy_http_version 1.1;
        proxy_set_header Connection \"\"; proxy_set_header Host $http_host; }} }}
}}
"
        );
        let file = home.path().join("nginx.conf");
        std::fs::write(&file, config)?;
        let child = Command::new("nginx")
            .arg("-c")
            .arg(&file)
            .arg("-p")
            .arg(home.path())
            .spawn();
        let nginx = Self {
            child: child.context("nginx")?,
            at,
            _home: home,
        };
        until("nginx listens", PATIENCE, || {
            Ok(TcpStream::connect(at).ok().map(drop))
        })?;
        Ok(nginx)
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // Ends its worker with it; a kill would not.
        let pid = self.child.id().to_string();
        Command::new("kill").args(["-TERM", &pid]).status().ok();
        self.child.wait().ok();
    }
}

/// Statuses, and what the backend got; what it could not read as it came.
type Outcome = (Vec<u16>, Vec<Result<Got, String>>);

/// What one way makes of the bytes: its statuses, and what the backend got.
fn outcome(way: SocketAddr, seen: &Seen, bytes: &[u8]) -> Result<Outcome> {
    seen.lock().unwrap_or_else(PoisonError::into_inner).clear();
    let mut stream = TcpStream::connect(way)?;
    stream.set_read_timeout(Some(QUIET))?;
    // It may be closed on us before all is written.
    stream.write_all(bytes).ok();
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        answer.extend_from_slice(&buffer[..count]);
    }
    let text = String::from_utf8_lossy(&answer);
    let statuses = text.match_indices("HTTP/1.1 ").filter_map(|(at, start)| {
        let code = text.get(at + start.len()..at + start.len() + 3)?;
        code.parse().ok()
    });
    let statuses = statuses.collect();
    let got = seen.lock().unwrap_or_else(PoisonError::into_inner).clone();
    Ok((statuses, got))
}

/// Whether the door must refuse the first request of a case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Door {
    Takes,
    Refuses,
    /// A broken body is noticed when its request is under way: the instance never gets the whole of it,
    /// and the connection ends.
    Breaks,
}

#[allow(clippy::too_many_lines)] // One table.
fn cases() -> Vec<(Door, String)> {
    use Door::{Breaks, Refuses, Takes};
    let host = "host: a.edge.test\r\n";
    let post = |headers: &str, body: &str| format!("POST /p HTTP/1.1\r\n{host}{headers}\r\n{body}");
    let get = |headers: &str| format!("GET /g HTTP/1.1\r\n{host}{headers}\r\n");
    let smuggled = "GET /smuggled HTTP/1.1\r\nhost: a.edge.test\r\n\r\n";
    vec![
        (Takes, get("")),
        (Takes, get("x: y\r\n").repeat(3)),
        (Takes, post("content-length: 4\r\n", "body")),
        (Takes, post("content-length: 0\r\n", "")),
        (Takes, post("", "")),
        (Takes, post("Content-Length:4\r\n", "body") + &get("")),
        (
            Takes,
            post("transfer-encoding: chunked\r\n", "4\r\nbody\r\n0\r\n\r\n"),
        ),
        (
            Takes,
            post(
                "transfer-encoding: chunked\r\n",
                "2\r\nbo\r\n2\r\ndy\r\n0\r\n\r\n",
            ) + &get(""),
        ),
        (Takes, post("transfer-encoding: Chunked\r\n", "0\r\n\r\n")),
        (Takes, get("connection: content-length\r\n")),
        (
            Takes,
            post(
                "connection: content-length\r\ncontent-length: 4\r\n",
                "body",
            ),
        ),
        (
            Takes,
            post(
                "connection: transfer-encoding\r\ntransfer-encoding: chunked\r\n",
                "0\r\n\r\n",
            ),
        ),
        (Takes, get("cookie: a=1\r\ncookie: b=2\r\n")),
        (
            Takes,
            format!("GET http://a.edge.test/g HTTP/1.1\r\n{host}\r\n"),
        ),
        // Both kinds of length.
        (
            Refuses,
            post(
                "content-length: 4\r\ntransfer-encoding: chunked\r\n",
                &format!("0\r\n\r\n{smuggled}"),
            ),
        ),
        (
            Refuses,
            post(
                "transfer-encoding: chunked\r\ncontent-length: 4\r\n",
                &format!("0\r\n\r\n{smuggled}"),
            ),
        ),
        (
            Refuses,
            post("content-length: 4\r\ncontent-length: 0\r\n", smuggled),
        ),
        (
            Refuses,
            post("content-length: 0\r\ncontent-length: 4\r\n", smuggled),
        ),
        (Refuses, post("content-length: 0, 4\r\n", smuggled)),
        (Refuses, post("content-length: +4\r\n", "body")),
        (Refuses, post("content-length: -1\r\n", "")),
        (Refuses, post("content-length: 0x4\r\n", "body")),
        (Refuses, post("content-length: 4 4\r\n", "body")),
        (
            Refuses,
            post("content-length: 99999999999999999999\r\n", ""),
        ),
        // Codings that somebody might not know.
        (
            Refuses,
            post(
                "transfer-encoding: xchunked\r\n",
                &format!("0\r\n\r\n{smuggled}"),
            ),
        ),
        (
            Refuses,
            post("transfer-encoding: gzip, chunked\r\n", "0\r\n\r\n"),
        ),
        (
            Refuses,
            post("transfer-encoding: chunked, identity\r\n", "0\r\n\r\n"),
        ),
        (Refuses, post("transfer-encoding: identity\r\n", "")),
        (
            Refuses,
            post("transfer-encoding: \"chunked\"\r\n", "0\r\n\r\n"),
        ),
        (
            Refuses,
            post(
                "transfer-encoding: chunked\r\ntransfer-encoding: x\r\n",
                "0\r\n\r\n",
            ),
        ),
        (
            Refuses,
            post("transfer-encoding : chunked\r\n", "0\r\n\r\n"),
        ),
        (
            Refuses,
            post("transfer-encoding\t: chunked\r\n", "0\r\n\r\n"),
        ),
        (
            Refuses,
            post("transfer-encoding: \u{b}chunked\r\n", "0\r\n\r\n"),
        ),
        (
            Refuses,
            post("x: y\r\n transfer-encoding: chunked\r\n", "0\r\n\r\n"),
        ),
        (Refuses, post("\u{1}x: y\r\n", "")),
        // Line ends of which some read none.
        (
            Refuses,
            post("x: y\rtransfer-encoding: chunked\r\n", "0\r\n\r\n"),
        ),
        (Refuses, post("x: y\n\r\ncontent-length: 4\r\n", "body")),
        (Refuses, format!("GET /g HTTP/1.1\n{host}\r\n")),
        (Refuses, "GET /g HTTP/1.1\nhost: a.edge.test\n\n".to_owned()),
        (Refuses, get("x: y\nz: w\r\n")),
        // Targets and hosts.
        (Refuses, get(host)),
        (Refuses, "GET /g HTTP/1.1\r\n\r\n".to_owned()),
        (
            Refuses,
            "GET /g HTTP/1.1\r\nhost: a.edge.test/x\r\n\r\n".to_owned(),
        ),
        (
            Refuses,
            "GET /g HTTP/1.1\r\nhost : a.edge.test\r\n\r\n".to_owned(),
        ),
        (
            Refuses,
            format!("GET http://b.edge.test/g HTTP/1.1\r\n{host}\r\n"),
        ),
        (Refuses, format!("GET /g HTTP/1.1 x\r\n{host}\r\n")),
        (Refuses, format!("GET  /g HTTP/1.1\r\n{host}\r\n")),
        (Refuses, format!("GET /g HTTP/3.7\r\n{host}\r\n")),
        (Refuses, format!("GET /g\r\n{host}\r\n")),
        // Chunks that are none.
        (
            Breaks,
            post("transfer-encoding: chunked\r\n", "4\nbody\n0\n\n"),
        ),
        (
            Breaks,
            post("transfer-encoding: chunked\r\n", "0x4\r\nbody\r\n0\r\n\r\n"),
        ),
        (
            Breaks,
            post("transfer-encoding: chunked\r\n", "-4\r\nbody\r\n0\r\n\r\n"),
        ),
        (
            Breaks,
            post("transfer-encoding: chunked\r\n", "4\r\nbodyx\r\n0\r\n\r\n"),
        ),
        (
            Breaks,
            post(
                "transfer-encoding: chunked\r\n",
                "10000000000000000\r\nbody\r\n0\r\n\r\n",
            ),
        ),
    ]
}

#[test]
fn the_door_and_nginx_read_the_same_requests() -> Result<()> {
    let (at, seen) = backend()?;
    let nginx = Nginx::start(at)?;
    let mut door = Doorway::open(|_| {})?;
    door.serve("a", Protocol::Http1, at)?;
    let mut wrong = Vec::new();
    // Also after a request that goes the general way, on the same connection.
    let before = "GET /before HTTP/1.1\r\nhost: a.edge.test\r\nte: trailers\r\n\r\n";
    for (expected, case) in cases() {
        for before in ["", before] {
            // hyper lets go of an answer that waits to be sent with whatever broke after it.
            if expected == Door::Breaks && !before.is_empty() {
                continue;
            }
            let bytes = format!("{before}{case}{LAST}");
            let ours = outcome(door.address(), &seen, bytes.as_bytes())?;
            let theirs = outcome(nginx.at, &seen, bytes.as_bytes())?;
            let skip = usize::from(!before.is_empty());
            if let Err(error) = judge(expected, skip, &ours, &theirs) {
                wrong.push(format!(
                    "{bytes:?}\n  {error:#}\n  door {ours:?}\n  nginx {theirs:?}"
                ));
            }
        }
    }
    door.close();
    ensure!(
        wrong.is_empty(),
        "{} wrong:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    Ok(())
}

fn judge(
    expected: Door,
    skip: usize,
    (statuses, got): &Outcome,
    (_, theirs): &Outcome,
) -> Result<()> {
    let got: Result<Vec<&Got>, &String> = got.iter().map(Result::as_ref).collect();
    let got = got.map_err(|g| anyhow!("the backend got garbage: {g}"))?;
    // nginx hands on some that are not strict.
    let theirs = theirs.iter().map_while(|g| g.as_ref().ok());
    let served = statuses.iter().filter(|s| **s == 200).count();
    ensure!(
        served == got.len(),
        "the backend got {} requests for {served} answers",
        got.len()
    );
    let agree = got
        .iter()
        .zip(theirs)
        .all(|(one, other)| (&one.line, &one.body) == (&other.line, &other.body));
    ensure!(agree, "the two read different requests");
    ensure!(
        got.iter().all(|g| !g.line.contains("smuggled")),
        "one came in that nobody sent"
    );
    match expected {
        Door::Takes => ensure!(statuses.iter().all(|s| *s == 200), "it was refused"),
        Door::Refuses | Door::Breaks => ensure!(got.len() == skip, "it was taken"),
    }
    Ok(())
}
