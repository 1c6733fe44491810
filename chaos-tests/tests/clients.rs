//! Real clients before the front door, and real servers behind it: curl, gRPC, WebSocket, haproxy. The
//! door is in this process, its instances are programs on loopback.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use chaos_tests::doorway::Doorway;
use chaos_tests::world::{run, until};
use scheduler::model::Protocol;

const PATIENCE: Duration = Duration::from_secs(30);

/// A program of `tests/clients`, which begins by saying where its server listens.
struct Script {
    child: Child,
    word: ChildStdin,
    said: BufReader<ChildStdout>,
    port: u16,
}

impl Script {
    fn start(name: &str) -> Result<Self> {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients");
        let mut child = Command::new("/usr/bin/python3")
            .args(["-u", &format!("{folder}/{name}")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("python3")?;
        let (word, said) = (child.stdin.take(), child.stdout.take());
        let (word, said) = word.zip(said).context("no pipes")?;
        let mut script = Self {
            child,
            word,
            said: BufReader::new(said),
            port: 0,
        };
        script.port = script.hear()?.parse().context("no port")?;
        Ok(script)
    }

    fn hear(&mut self) -> Result<String> {
        let mut line = String::new();
        self.said.read_line(&mut line)?;
        Ok(line.trim().to_owned())
    }

    fn address(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.port).into()
    }

    fn tell(&mut self, door: SocketAddr) -> Result<()> {
        Ok(writeln!(self.word, "{door}")?)
    }

    /// Its verdict; what was wrong it says itself, on stderr.
    fn end(mut self) -> Result<()> {
        let ended = until("the script ends", PATIENCE, || Ok(self.child.try_wait()?))?;
        ensure!(ended.success(), "it failed: {ended}");
        Ok(())
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        // Fails when it has ended already.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn door(service: &str, protocol: Protocol, script: &Script) -> Result<Doorway> {
    let mut door = Doorway::open(|_| {})?;
    door.serve(service, protocol, script.address())?;
    Ok(door)
}

#[test]
fn grpc_keeps_all_its_promises() -> Result<()> {
    let mut script = Script::start("rpc.py")?;
    let door = door("rpc", Protocol::H2c, &script)?;
    script.tell(door.address())?;
    script.end()?;
    door.close();
    Ok(())
}

#[test]
fn websockets_talk_over_both_versions_and_are_told_when_the_door_closes() -> Result<()> {
    let mut script = Script::start("sockets.py")?;
    let door = door("ws", Protocol::Http1, &script)?;
    script.tell(door.address())?;
    let line = script.hear()?;
    ensure!(line == "open", "it said `{line}`");
    door.close();
    script.end()
}

/// curl at the door; its output. `words` end with the path.
fn curl(door: &Doorway, words: &[&str]) -> Result<String> {
    let (path, options) = words.split_last().context("no path")?;
    let at = door.address();
    let url = format!("http://pages.edge.test:{}{path}", at.port());
    let resolve = format!("pages.edge.test:{}:{}", at.port(), at.ip());
    let fixed = [
        "--silent",
        "--show-error",
        "--max-time",
        "30",
        "--resolve",
        &resolve,
    ];
    let ended = run("curl", [&fixed[..], options, &[&url]].concat())?;
    ensure!(
        ended.code == 0,
        "curl {words:?}: {}{}",
        ended.out,
        ended.err
    );
    Ok(ended.out)
}

#[test]
fn curl_gets_what_it_asks_for() -> Result<()> {
    let script = Script::start("pages.py")?;
    let door = door("pages", Protocol::Http1, &script)?;
    let upload = tempfile::NamedTempFile::new()?;
    std::fs::write(upload.path(), vec![b'u'; 3 << 20])?;
    let data = format!("@{}", upload.path().display());
    let size = [
        "--output",
        "/dev/null",
        "--write-out",
        "%{http_code} %{size_download}",
    ];
    let chunked = ["--header", "transfer-encoding: chunked"];
    let expecting = ["--header", "expect: 100-continue"];
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        let ask = |words: &[&str]| curl(&door, &[&[version], words].concat());
        assert_eq!(ask(&["--data", "word", "/echo"])?, "word", "{version}");
        let head = ask(&["--head", "/echo"])?.to_lowercase();
        assert!(head.contains("x-method: head"), "{version}: {head}");
        let options = ask(&["--include", "--request", "OPTIONS", "/options"])?.to_lowercase();
        assert!(
            options.contains(" 204") && options.contains("allow: get"),
            "{options}"
        );
        let sent = ask(&[&size[..], &["--data-binary", &data, "/echo"]].concat())?;
        assert_eq!(sent, "200 3145728", "{version}");
        let trailers = ask(&["--include", "--header", "te: trailers", "/trailers"])?;
        assert!(trailers.contains("body"), "{version}: {trailers}");
        assert_eq!(
            ask(&["--no-buffer", "/events"])?,
            "data: 0\n\ndata: 1\n\ndata: 2\n\n"
        );
        let long = ask(&[&size[..], &["/long"]].concat())?;
        assert_eq!(long, "200 67108864", "{version}");
        let missing = ask(&["--include", "--header", "host: none.edge.test", "/"])?.to_lowercase();
        assert!(
            missing.contains("x-selvedge-error: no-such-host"),
            "{missing}"
        );
        assert!(missing.contains("x-request-id: "), "{missing}");
    }
    let sent = curl(
        &door,
        &[&size[..], &chunked, &["--data-binary", &data, "/echo"]].concat(),
    )?;
    assert_eq!(sent, "200 3145728");
    let sent = curl(
        &door,
        &[&size[..], &expecting, &["--data-binary", &data, "/echo"]].concat(),
    )?;
    assert_eq!(sent, "200 3145728");
    assert_eq!(
        curl(&door, &["--http1.0", "--data", "old", "/echo"])?,
        "old"
    );
    let trailers = curl(
        &door,
        &["--include", "--header", "te: trailers", "/trailers"],
    )?;
    assert!(trailers.to_lowercase().contains("x-sum: 42"), "{trailers}");
    door.close();
    Ok(())
}

/// haproxy between a client and the door, saying whose the connections are.
struct Balancer(Child);

impl Drop for Balancer {
    fn drop(&mut self) {
        // Fails when it has ended already.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[test]
fn a_load_balancer_introduces_its_clients() -> Result<()> {
    let echo = TcpListener::bind("127.0.0.1:0")?;
    let at = echo.local_addr()?;
    // Says back the head of every request, on a connection for each.
    std::thread::spawn(move || {
        for stream in echo.incoming().map_while(Result::ok) {
            let mut lines = BufReader::new(&stream).lines().map_while(Result::ok);
            let head: Vec<String> = lines.by_ref().take_while(|l| !l.is_empty()).collect();
            let body = head.join("\n");
            let answer = format!(
                "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            );
            let _gone = (&stream).write_all(answer.as_bytes());
        }
    });
    for send in ["send-proxy", "send-proxy-v2"] {
        let mut door = Doorway::open(|config| config.proxy_protocol = true)?;
        door.serve("pages", Protocol::Http1, at)?;
        let free = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let config = tempfile::NamedTempFile::new()?;
        let text = format!(
            "defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 20s\n  timeout server 20s\n\
             listen door\n  bind {free}\n  server one {} {send}\n",
            door.address()
        );
        std::fs::write(config.path(), text)?;
        let child = Command::new("haproxy").arg("-f").arg(config.path()).spawn();
        let balancer = Balancer(child.context("haproxy")?);
        until("haproxy listens", PATIENCE, || {
            Ok(TcpStream::connect(free).ok())
        })?;
        let url = format!("http://{free}/");
        // A client with an address of its own.
        let words = [
            "-sS",
            "--interface",
            "127.0.0.77",
            "-H",
            "host: pages.edge.test",
            &url,
        ];
        let said = run("curl", words)?.ok()?.out;
        ensure!(
            said.contains("x-forwarded-for: 127.0.0.77"),
            "{send}: {said}"
        );
        drop(balancer);
        door.close();
    }
    Ok(())
}
