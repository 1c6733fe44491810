//! Services on ports of their own: real servers of other protocols than HTTP, from zero, at every node.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use chaos_tests::world::{Node, Outcome, PATIENCE, Standard, Systemd, World, run, until};

/// Deploys a service of the kit's programs by its manifest.
fn deploy(world: &World, manifest: &str) -> Result<Outcome> {
    let image = world.standard(Standard::Kit)?;
    let text = format!("image = \"{image}\"\nwindow = \"6s\"\n{manifest}");
    let file = world.dir().join("kit.toml");
    std::fs::write(&file, text)?;
    let file = file.to_string_lossy().into_owned();
    let node = world.first();
    node.cli(&["deploy", "-f", &file, "--wait-timeout", "60s"])
}

const REDIS: &str = r#"
name = "redis"
port = 6379
scale = "0..1"
grace = "30s"
command = ["/usr/bin/redis-server"]
args = ["--bind", "0.0.0.0", "--protected-mode", "no", "--save", "", "--dir", "/tmp"]
resources = { cpu = 0.1 }
[[listen]]
port = 6379
"#;

/// A client of redis.
struct Redis(BufReader<TcpStream>);

impl Redis {
    fn connect(node: &Node) -> Result<Self> {
        let addr = SocketAddr::from((node.address, 6379));
        let stream = until("the port is open", PATIENCE, || {
            Ok(Some(TcpStream::connect_timeout(
                &addr,
                Duration::from_secs(2),
            )?))
        })?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self(BufReader::new(stream)))
    }

    /// One command, and the first line that comes back.
    fn ask(&mut self, command: &str) -> Result<String> {
        write!(self.0.get_mut(), "{command}\r\n")?;
        let mut line = String::new();
        let count = self.0.read_line(&mut line)?;
        ensure!(count > 0, "`{command}`: the connection ended");
        Ok(line.trim_end().to_owned())
    }
}

/// A database answers at every node's port, from zero; a client's connection keeps its instance, and
/// outlives the instance's being replaced until it has said all it has to say.
#[test]
fn a_database_is_reached_from_zero_and_drained_in_order() -> Result<()> {
    let world = World::of(&["par-1", "fra-1"])?;
    deploy(&world, REDIS)?.ok()?;
    world.rest("redis")?;
    let mut near = Redis::connect(&world["par-1"])?;
    ensure!(near.ask("SET colour blue")? == "+OK");
    let mut far = Redis::connect(&world["fra-1"])?;
    ensure!(
        far.ask("GETRANGE colour 0 -1")? == "$4",
        "both reach the one instance"
    );
    drop(far);

    let idle_for = Duration::from_secs(12);
    let since = std::time::Instant::now();
    until("the service's window has passed twice", PATIENCE, || {
        Ok((since.elapsed() > idle_for).then_some(()))
    })?;
    ensure!(
        near.ask("STRLEN colour")? == ":4",
        "an open connection keeps its instance"
    );

    deploy(&world, &format!("{REDIS}[env]\nNEXT = \"1\"\n"))?.ok()?;
    until("new connections go to the next revision", PATIENCE, || {
        let mut fresh = Redis::connect(&world["par-1"])?;
        Ok((fresh.ask("EXISTS colour")? == ":0").then_some(()))
    })?;
    ensure!(
        near.ask("STRLEN colour")? == ":4",
        "what is drained still answers"
    );
    drop(near);
    world.rest("redis")
}

/// A client counts in the database without a pause while the daemon its connection came by is replaced again
/// and again: it is the same connection to the same instance, and no word of either side is lost or said twice.
#[test]
fn a_database_s_client_does_not_notice_that_the_daemon_is_replaced() -> Result<()> {
    const UPGRADES: usize = 3;
    let world = World::of(&["par-1"])?;
    deploy(&world, &REDIS.replace("0..1", "1..1"))?.ok()?;
    let node = world.first();
    node.stop()?;
    let systemd = Systemd::supervise(node)?;
    let mut client = Redis::connect(node)?;
    let id = client.ask("CLIENT ID")?;
    let asked = AtomicU32::new(0);
    let upgraded = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let counting = scope.spawn(|| {
            while !upgraded.load(Ordering::Relaxed) {
                let next = asked.fetch_add(1, Ordering::Relaxed) + 1;
                let said = client.ask("INCR asked")?;
                ensure!(said == format!(":{next}"), "{said} to number {next}");
            }
            client.ask("CLIENT ID")
        });
        for _ in 0..UPGRADES {
            let before = (node.daemon(), asked.load(Ordering::Relaxed));
            until("it counts", PATIENCE, || {
                let goes_on = asked.load(Ordering::Relaxed) > before.1 + 100;
                Ok((goes_on || counting.is_finished()).then_some(()))
            })?;
            systemd.restart()?;
            ensure!(node.daemon() != before.0, "the daemon was not replaced");
        }
        upgraded.store(true, Ordering::Relaxed);
        let ended = counting.join();
        let now = ended.map_err(|_| anyhow::anyhow!("the client panicked"))??;
        ensure!(
            now == id,
            "another connection to the database: {now}, not {id}"
        );
        Ok(())
    })?;
    systemd.stop()
}

/// What other services or the nodes have is refused with the field; what somebody else has is told.
#[test]
fn a_port_has_one_owner() -> Result<()> {
    let world = World::of(&["par-1"])?;
    let node = world.first();
    let address = node.address.to_string();
    deploy(&world, REDIS)?.ok()?;
    let second = REDIS.replace("name = \"redis\"", "name = \"other\"");
    deploy(&world, &second)?
        .code(2)?
        .says("listen.port: 6379/tcp is the service default/redis's")?;
    let on = |port: u16| {
        let own = format!("[[listen]]\nport = {port}");
        second.replace("[[listen]]\nport = 6379", &own)
    };
    deploy(&world, &on(80))?
        .code(2)?
        .says("listen.port: 80/tcp is the front door's")?;

    let program =
        format!("import socket; s = socket.create_server((\"{address}\", 7000)); s.accept()");
    let host = std::thread::spawn({
        let node = node.clone();
        move || node.run("python3", &["-c", &program])
    });
    let taken = || TcpStream::connect((address.as_str(), 7000));
    until("somebody listens", PATIENCE, || {
        let said = node.run("ss", &["-Hltn", "sport = :7000"])?.ok()?;
        Ok(said.out.contains("7000").then_some(()))
    })?;
    deploy(&world, &on(7000))?.ok()?;
    until("the node tells of it", PATIENCE, || {
        let said = node.cli(&["describe", "node/par-1"])?.ok()?;
        Ok(said
            .out
            .contains("7000/tcp: cannot listen on")
            .then_some(()))
    })?;
    taken()?;
    ensure!(host.join().is_ok(), "it ends with its only connection");
    until("the port is had", PATIENCE, || {
        let said = node.cli(&["describe", "node/par-1"])?.ok()?;
        Ok((!said.out.contains("7000/tcp")).then_some(()))
    })
}

/// The first datagram to a DNS server at zero is answered, and so is one at another node.
#[test]
fn a_datagram_wakes_its_server() -> Result<()> {
    let world = World::of(&["par-1", "fra-1"])?;
    let manifest = r#"
name = "names"
port = 5353
scale = "0..1"
command = ["/usr/sbin/dnsmasq"]
args = ["-k", "-p", "5353", "-C", "/dev/null", "-u", "root", "-R", "-h", "-x", "/tmp/pid", "-A", "/answer.test/192.0.2.7"]
resources = { cpu = 0.1 }
[[listen]]
port = 5454
protocol = "udp"
"#;
    deploy(&world, manifest)?.ok()?;
    let listens = |node: &Node| {
        until("the node listens", PATIENCE, || {
            let said = node.run("ss", &["-Hlun", "sport = :5454"])?.ok()?;
            Ok(said.out.contains("5454").then_some(()))
        })
    };
    world.nodes().iter().try_for_each(listens)?;
    world.rest("names")?;
    for node in world.nodes() {
        let at = format!("@{}", node.address);
        // One try: a datagram that is lost is not sent again.
        let ask = [
            "+short",
            "+time=20",
            "+tries=1",
            "-p",
            "5454",
            &at,
            "answer.test",
            "A",
        ];
        let said = run("dig", ask)?.ok()?;
        ensure!(said.out.trim() == "192.0.2.7", "at {}: {said}", node.name);
    }
    Ok(())
}

/// TLS that only the container can read is told apart by the name, and a container that asks for it is
/// told whose connection it is.
#[test]
fn tls_passes_by_its_name_and_introductions_are_made() -> Result<()> {
    let world = World::of(&["par-1", "fra-1"])?;
    let tls = r#"
name = "tls"
port = 8443
scale = "0..1"
command = ["/bin/busybox", "sh", "/srv/tls.sh"]
resources = { cpu = 0.2 }
[[listen]]
port = 443
protocol = "tls"
sni = ["kit.example.com"]
"#;
    deploy(&world, tls)?.ok()?;
    let behind = r#"
name = "behind"
scale = "0..1"
command = ["/usr/sbin/nginx", "-c", "/etc/nginx/introduced.conf"]
resources = { cpu = 0.1 }
[[listen]]
port = 7080
proxy_protocol = true
"#;
    deploy(&world, behind)?.ok()?;
    for node in world.nodes() {
        let address = node.address.to_string();
        let curl = |name: &str, port: &str, scheme: &str| {
            let resolve = format!("{name}:{port}:{address}");
            let url = format!("{scheme}://{name}:{port}/");
            run("curl", ["-sk", "-m", "40", "--resolve", &resolve, &url])
        };
        until("TLS is the container's own", PATIENCE, || {
            let said = curl("kit.example.com", "443", "https")?.ok()?;
            Ok(said.out.contains("s_server").then_some(()))
        })?;
        let stranger = curl("other.example.com", "443", "https")?;
        ensure!(stranger.code != 0, "a name of nobody's: {stranger}");
        let said = until("the port is open", PATIENCE, || {
            Ok(Some(curl("behind.test", "7080", "http")?.ok()?))
        })?;
        let own = said.out.strip_prefix("for ").context("an introduction")?;
        let gateway = node.address.octets();
        let outside = format!("{}.{}.{}.1", gateway[0], gateway[1], gateway[2]);
        ensure!(own.trim() == outside, "{own} is not {outside}");
    }
    Ok(())
}
