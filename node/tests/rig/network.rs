//! Container networks: made, leased, kept across daemons, removed; and who reaches whom.

use std::fs;
use std::future::Future;
use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use node::network::{Lease, Network, NetworkConfig};
use node::runtime::{ContainerSpec, Runtime, Shims};
use scheduler::model::InstanceId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::world::{PATIENCE, World, until};

/// Runs a test as a host of its own: a thread in a fresh network namespace, with everything it
/// starts. The host's address is 192.0.2.1, and a machine outside, 203.0.113.9, is behind it.
#[allow(
    deprecated,
    reason = "the safe name of unshare; only this thread's network changes"
)]
pub fn on_a_host<F: Future<Output = ()>>(test: impl FnOnce(World) -> F + Send + 'static) {
    let thread = std::thread::spawn(move || {
        rustix::thread::unshare(rustix::thread::UnshareFlags::NEWNET).unwrap();
        let world = World::new();
        let outside = Outside::new();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(test(world));
        drop(outside);
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

pub fn sh(script: &str) -> String {
    let output = Command::new("sh").args(["-ec", script]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{script}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

/// A namespace that plays the internet, with a web server's port answering by its caller's address.
struct Outside {
    name: String,
    server: std::process::Child,
}

impl Outside {
    fn new() -> Self {
        use std::sync::atomic::{AtomicU32, Ordering};
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("selvedge-rig-{}-{count}", std::process::id());
        sh(&format!(
            "ip link set lo up
             ip netns add {name}
             ip link add up0 type veth peer name up0 netns {name}
             ip addr add 192.0.2.1/24 dev up0; ip link set up0 up
             ip netns exec {name} ip addr add 192.0.2.2/24 dev up0
             ip netns exec {name} ip addr add 203.0.113.9/32 dev up0
             ip netns exec {name} ip addr add 10.77.0.1/32 dev up0
             ip netns exec {name} ip link set up0 up
             ip netns exec {name} ip link set lo up
             ip route add default via 192.0.2.2"
        ));
        let server = Command::new("ip")
            .args([
                "netns", "exec", &name, "busybox", "nc", "-ll", "-p", "80", "-e",
            ])
            .args(["sh", "-c", "echo hello from outside"])
            .spawn()
            .unwrap();
        Self { name, server }
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
        let _ = Command::new("ip")
            .args(["netns", "del", &self.name])
            .status();
    }
}

pub fn id(name: &str) -> InstanceId {
    InstanceId(name.to_owned())
}

pub fn config(world: &World) -> NetworkConfig {
    let mut config = NetworkConfig::of("rig", world.folder.join("run"));
    config.pool = 2;
    config.user_namespaces = true;
    config
}

async fn start(world: &World, shims: &Shims, net: &Network, name: &str, script: &str) -> Lease {
    let lease = net.acquire(&id(name)).await.unwrap();
    let mut spec = ContainerSpec {
        netns: Some(lease.netns.clone()),
        address: Some(lease.address.into()),
        ..world.spec(name, script)
    };
    World::map(&mut spec, lease.ids);
    shims.create(&spec).await.unwrap();
    shims.start(&spec.id).await.unwrap();
    lease
}

async fn get(address: SocketAddr) -> String {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Ok(mut stream) = TcpStream::connect(address).await {
            stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
            let mut text = Vec::new();
            // A server that does not read its request resets when it is done.
            let _ = stream.read_to_end(&mut text).await;
            return String::from_utf8(text).unwrap();
        }
        assert!(Instant::now() < end, "nothing answers at {address}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[test]
fn networks_are_ready_before_they_are_needed_and_leave_nothing() {
    on_a_host(|world| async move {
        let net = Network::open(config(&world)).await.unwrap();
        until("a full pool", || net.ready() == 2).await;
        let at = Instant::now();
        let one = net.acquire(&id("one")).await.unwrap();
        println!("acquired in {:?}", at.elapsed());
        assert_eq!(
            one,
            net.acquire(&id("one")).await.unwrap(),
            "asked twice, given once"
        );
        // More at once than there are: each waits for its own.
        // A kernel's table of what it finds out for itself is full with some hundred containers.
        let known = |address: &str, inside: &str| {
            let known = sh(&format!("{inside} ip neigh show {address} nud permanent"));
            known.contains("lladdr 0a:5e:")
        };
        let inside = format!("nsenter --net={}", one.netns.display());
        assert!(known(&one.address.to_string(), ""));
        assert!(known(&one.gateway.to_string(), &inside));
        let many = (0..6).map(|n| {
            let net = net.clone();
            async move { net.acquire(&id(&format!("many-{n}"))).await.unwrap() }
        });
        let many = futures::future::join_all(many).await;
        let mut all: Vec<_> = many.iter().map(|l| l.address).collect();
        all.push(one.address);
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 7);
        for lease in net.leases() {
            net.release(&lease.instance);
        }
        until("what was released to be gone", || !one.netns.exists()).await;
        assert!(!known(&one.address.to_string(), ""));
        net.close(true).await.unwrap();
        assert_eq!(sh("nft list tables"), "");
        assert_eq!(sh("ip -o link | grep -cv 'lo:\\|up0' || true").trim(), "0");
        assert_eq!(world.leftovers(), Vec::<String>::new());
        assert_eq!(
            fs::read_to_string("/proc/sys/net/ipv4/ip_forward")
                .unwrap()
                .trim(),
            "0"
        );
    });
}

#[test]
fn a_long_line_for_networks_is_served_to_its_end() {
    on_a_host(|world| async move {
        let patience = Duration::from_secs(1);
        let net = Network::open(NetworkConfig {
            patience,
            ..config(&world)
        });
        let net = net.await.unwrap();
        // Two at a time, each some milliseconds: the last of the line waits for longer than anybody's patience.
        let line = (0..300).map(|n| {
            let (net, one) = (net.clone(), id(&format!("line-{n}")));
            async move { net.acquire(&one).await.map(drop) }
        });
        let line = futures::future::join_all(line).await;
        let failed: Vec<_> = line.into_iter().filter_map(Result::err).collect();
        assert!(
            failed.is_empty(),
            "{} of 300: {:?}",
            failed.len(),
            failed[0]
        );
        net.close(true).await.unwrap();
        assert_eq!(world.leftovers(), Vec::<String>::new());
    });
}

#[test]
fn the_node_reaches_its_containers_and_they_the_world() {
    on_a_host(|world| async move {
        let net = Network::open(config(&world)).await.unwrap();
        let shims = world.shims();
        let serve = "mkdir /www; seq 1000 > /www/index.html; echo hello >> /www/index.html; \
                     exec httpd -f -p 80 -h /www";
        let lease = start(&world, &shims, &net, "web", serve).await;
        let page = get((lease.address, 80).into()).await;
        assert!(page.ends_with("hello\n"), "{page}");
        let script = "wget -qO- http://203.0.113.9 2>&1; nc -w 5 203.0.113.9 80 < /dev/null; \
                      ip -o addr; ip route; cat /etc/hosts";
        start(&world, &shims, &net, "client", script).await;
        shims.exit(&id("client")).await.unwrap();
        let said = world.output("client");
        assert!(said.contains("hello from outside"), "{said}");
        assert!(said.contains("default via 10.201.0.1"), "{said}");
        let traffic = net.traffic().unwrap();
        assert_eq!(traffic.len(), 2, "only what is leased counts: {traffic:?}");
        for name in ["web", "client"] {
            let counted = traffic[&id(name)];
            assert!(
                counted.in_packets > 2 && counted.out_packets > 2,
                "{counted:?}"
            );
        }
        let client = net.traffic_of(&id("client")).await;
        assert_eq!(client, traffic.get(&id("client")).copied(), "asked alone");
        // The page with its head is more than the question for it.
        let web = traffic[&id("web")];
        assert!(web.out_bytes > web.in_bytes, "{web:?}");
        for name in ["web", "client"] {
            shims.delete(&id(name)).await.unwrap();
            net.release(&id(name));
        }
        net.close(true).await.unwrap();
        assert_eq!(world.leftovers(), Vec::<String>::new());
    });
}

#[test]
fn what_is_meant_for_one_container_reaches_no_other() {
    on_a_host(|world| async move {
        let net = Network::open(config(&world)).await.unwrap();
        let one = net.acquire(&id("one")).await.unwrap();
        net.acquire(&id("other")).await.unwrap();
        let came = async |name| net.traffic_of(&id(name)).await.unwrap().in_packets;
        let before = (came("one").await, came("other").await);
        // Neither ever spoke, and nobody listens.
        let refused = TcpStream::connect((one.address, 9)).await.unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
        let after = (came("one").await, came("other").await);
        assert!(after.0 > before.0, "{after:?} after {before:?}");
        assert_eq!(after.1, before.1, "it came to its neighbour too");
        for name in ["one", "other"] {
            net.release(&id(name));
        }
        net.close(true).await.unwrap();
        assert_eq!(world.leftovers(), Vec::<String>::new());
    });
}

#[test]
fn a_container_reaches_neither_the_node_nor_its_neighbours_nor_private_networks() {
    on_a_host(|world| async move {
        let net = Network::open(config(&world)).await.unwrap();
        let shims = world.shims();
        // The node's API on every address it has.
        let api = TcpListener::bind("0.0.0.0:8420").await.unwrap();
        let port = api.local_addr().unwrap().port();
        let serve = "exec nc -ll -p 80 -e echo neighbour";
        let neighbour = start(&world, &shims, &net, "neighbour", serve).await;
        assert!(
            get((neighbour.address, 80).into())
                .await
                .contains("neighbour")
        );
        let mut script = String::new();
        for target in [
            format!("10.201.0.1 {port}"),
            format!("192.0.2.1 {port}"),
            format!("192.0.2.2 {port}"),
            format!("{} 80", neighbour.address),
            "10.77.0.1 80".to_owned(),
            "169.254.169.254 80".to_owned(),
        ] {
            let try_it = format!("nc -w 1 {target} </dev/null && echo REACHED {target}; ");
            script.push_str(&try_it);
        }
        script += "ping -c 1 -W 1 10.201.0.1 2>&1; echo finished";
        start(&world, &shims, &net, "probe", &script).await;
        shims.exit(&id("probe")).await.unwrap();
        let said = world.output("probe");
        assert!(
            !said.contains("REACHED") && said.contains("finished"),
            "{said}"
        );
        assert!(!said.contains("1 packets received"), "{said}");
        for name in ["neighbour", "probe"] {
            shims.delete(&id(name)).await.unwrap();
        }
        net.close(true).await.unwrap();
    });
}

/// With more power than a container has: from its namespace, as the host's root.
#[test]
fn a_forged_sender_gets_nowhere() {
    on_a_host(|world| async move {
        let net = Network::open(config(&world)).await.unwrap();
        let liar = net.acquire(&id("liar")).await.unwrap();
        let inside = |script: &str| {
            let netns = liar.netns.display().to_string();
            let status = Command::new("nsenter")
                .args([&format!("--net={netns}"), "sh", "-c", script])
                .output()
                .unwrap();
            String::from_utf8(status.stdout).unwrap()
        };
        let fetch = "busybox nc -w 1 203.0.113.9 80 < /dev/null";
        assert!(inside(fetch).contains("hello"), "honest, it gets through");
        let honest = liar.address;
        inside(&format!(
            "ip addr add 10.201.9.9/16 dev eth0; ip addr del {honest}/16 dev eth0; \
             ip route add default via 10.201.0.1"
        ));
        assert_eq!(inside(fetch), "", "another's address");
        inside(&format!(
            "ip addr add {honest}/16 dev eth0; ip addr del 10.201.9.9/16 dev eth0; \
             ip link set eth0 down; ip link set eth0 address 0a:5e:0a:c9:09:09; \
             ip link set eth0 up; ip route add default via 10.201.0.1"
        ));
        assert_eq!(inside(fetch), "", "another's hardware address");
        net.close(true).await.unwrap();
    });
}

#[test]
fn a_later_daemon_keeps_what_runs_and_removes_the_rest() {
    on_a_host(|world| async move {
        let before = Network::open(config(&world)).await.unwrap();
        let shims = world.shims();
        let serve = "exec nc -ll -p 80 -e echo still here";
        let kept = start(&world, &shims, &before, "kept", serve).await;
        let gone = before.acquire(&id("gone")).await.unwrap();
        until("a full pool", || before.ready() == 2).await;
        // A daemon that was killed says nothing; this one only stops moving.
        before.close(false).await.unwrap();
        let after = Network::open(config(&world)).await.unwrap();
        assert!(get((kept.address, 80).into()).await.contains("still here"));
        assert_eq!(
            after.adopt(&[id("kept"), id("never")]),
            std::slice::from_ref(&kept)
        );
        until("the other's network to be gone", || !gone.netns.exists()).await;
        until("a full pool", || after.ready() == 2).await;
        let fresh = after.acquire(&id("fresh")).await.unwrap();
        assert_ne!(fresh.address, kept.address);
        assert!(get((kept.address, 80).into()).await.contains("still here"));
        let ports = sh("ip -o link | grep -c master");
        assert!(matches!(ports.trim(), "3" | "4"), "{ports}");
        shims.delete(&id("kept")).await.unwrap();
        after.close(true).await.unwrap();
        assert_eq!(world.leftovers(), Vec::<String>::new());
    });
}
