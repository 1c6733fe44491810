//! A hostile tenant, root in its container and with every tool it can bring: what it tries is denied, and
//! the host, looked at from the host, is as it was.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;

use anyhow::{Context as _, Result, ensure};
use chaos_tests::world::{Node, World};

/// Errors that mean "denied": EPERM by the filter, ENOSYS where a library has another way (clone3).
const DENIED: [i32; 2] = [1, 38];
/// The host's settings that a container would like to write.
const SETTINGS: [&str; 5] = [
    "/proc/sys/kernel/core_pattern",
    "/proc/sys/kernel/modprobe",
    "/proc/sys/kernel/hostname",
    "/proc/sys/net/ipv4/ip_forward",
    "/proc/sys/vm/overcommit_memory",
];

#[test]
fn a_hostile_tenant_gets_nowhere_and_the_host_is_as_before() -> Result<()> {
    let world = World::of(&["par-1", "fra-1"])?;
    let before = settings();
    let small = [
        "--scale", "1..1", "--cpu", "0.1", "--memory", "64Mi", "--region", "par",
    ];
    for service in ["tenant", "other"] {
        world.deploy(service, &small)?.ok()?;
    }
    let node = &world["par-1"];
    no_forbidden_call_is_made(node)?;
    no_way_out_is_found(node)?;
    nobody_gains_power(node)?;
    on_the_host_it_is_nobody(node)?;
    only_the_policy_opens(&world)?;
    it_is_told_by_the_doctor(node, &world["fra-1"])?;
    ensure!(
        settings() == before,
        "the host's settings: {before:?}, then {:?}",
        settings()
    );
    Ok(())
}

fn settings() -> BTreeMap<&'static str, String> {
    let read = |path| (path, fs::read_to_string(path).unwrap_or_default());
    SETTINGS.into_iter().map(read).collect()
}

fn no_forbidden_call_is_made(node: &Node) -> Result<()> {
    let said = node.inside_container("tenant", "/bin/box probe calls")?;
    let calls: Vec<(&str, i32)> = said
        .lines()
        .map(|line| {
            let (name, error) = line.rsplit_once(' ').context("a call and its error")?;
            Ok((name, error.parse()?))
        })
        .collect::<Result<_>>()?;
    ensure!(calls.len() > 40, "all calls were tried: {said}");
    let through: Vec<_> = calls
        .iter()
        .filter(|(_, error)| !DENIED.contains(error))
        .collect();
    ensure!(through.is_empty(), "not denied: {through:?}");
    ensure!(calls.contains(&("clone3", 38)), "{said}");
    Ok(())
}

/// Each script is an attempt; it says DONE where it got through.
const ATTEMPTS: [(&str, &str); 26] = [
    ("a file system", "mount -t tmpfs x /tmp"),
    ("proc again, writable", "mount -t proc x /tmp"),
    ("an old cgroup", "mount -t cgroup -o memory x /tmp"),
    ("a namespace", "unshare -m true"),
    ("a user namespace", "unshare -U true"),
    ("core_pattern", "echo '|/x' > /proc/sys/kernel/core_pattern"),
    ("modprobe", "echo /x > /proc/sys/kernel/modprobe"),
    (
        "a network setting",
        "echo 1 > /proc/sys/net/ipv4/ip_forward",
    ),
    ("sysrq", "echo b > /proc/sysrq-trigger"),
    ("sysfs", "touch /sys/x"),
    ("an interrupt", "echo 1 > /proc/irq/default_smp_affinity"),
    ("kernel memory", "head -c 1 /proc/kcore | grep -q ."),
    ("keys", "grep -q . /proc/keys"),
    ("a disk's node", "mknod /tmp/sda b 8 0"),
    ("a memory node", "mknod /tmp/mem c 1 1"),
    ("a disk", "head -c 1 /dev/vda"),
    ("a tunnel", "ls /dev/net/tun"),
    ("fuse", "ls /dev/fuse"),
    ("a console", "ls /dev/console"),
    (
        "its limit, version 1",
        "echo 9999999999 > /sys/fs/cgroup/memory/memory.limit_in_bytes",
    ),
    (
        "its limit, version 2",
        "echo max > /sys/fs/cgroup/memory.max",
    ),
    (
        "a group below it",
        "mkdir /sys/fs/cgroup/memory/x || mkdir /sys/fs/cgroup/x",
    ),
    (
        "a release agent",
        "ls /sys/fs/cgroup/*/release_agent && echo /x > /sys/fs/cgroup/memory/release_agent",
    ),
    ("being spared", "echo -1000 > /proc/self/oom_score_adj"),
    ("the resolver's file", "echo x > /etc/resolv.conf"),
    ("an address", "ip addr add 10.201.9.9/16 dev eth0"),
];

/// What would let it speak as somebody else.
const FORGERIES: [&str; 4] = [
    "ip link set eth0 address 0a:5e:0a:c9:09:09",
    "ip link set eth0 down",
    "ip route add 10.0.0.0/8 dev eth0",
    "ping -c 1 -W 1 127.0.0.1",
];

fn no_way_out_is_found(node: &Node) -> Result<()> {
    let attempts = ATTEMPTS
        .into_iter()
        .chain(FORGERIES.map(|forged| (forged, forged)));
    let mut script = String::new();
    for (name, attempt) in attempts {
        let _ = writeln!(script, "({attempt}) >/dev/null 2>&1 && echo 'DONE {name}'");
    }
    // Descriptors that lead out: whatever is open, nothing but its own root is behind it.
    script.push_str("for fd in /proc/self/fd/* /proc/1/fd/*; do ");
    script.push_str("for up in etc/shadow ../../../etc/shadow ../../../../../../root; do ");
    script.push_str("ls $fd/$up >/dev/null 2>&1 && echo DONE $fd/$up; done; done; ");
    script.push_str("(chmod 700 /tmp && chown 5:5 /tmp && chmod 1777 /tmp) && echo own; echo end");
    let said = node.inside_container("tenant", &script)?;
    ensure!(
        said.contains("own") && said.ends_with("end\n"),
        "its own files are its own: {said}"
    );
    let done: Vec<_> = said
        .lines()
        .filter(|line| line.starts_with("DONE"))
        .collect();
    ensure!(done.is_empty(), "{}", done.join("\n"));
    Ok(())
}

/// A program with the setuid bit runs as who called it, and a plain user has no capability at all.
fn nobody_gains_power(node: &Node) -> Result<()> {
    let script = "cp /bin/busybox /tmp/ && chmod 4755 /tmp/busybox && \
                  /bin/box probe as 33 /tmp/busybox id -u; \
                  /bin/box probe as 33 /bin/busybox grep Cap /proc/self/status; \
                  grep -E 'CapInh|CapAmb' /proc/self/status; cat /proc/self/uid_map";
    let said = node.inside_container("tenant", script)?;
    let mut lines = said.lines();
    ensure!(lines.next() == Some("33"), "{said}");
    let held: Vec<&str> = lines
        .clone()
        .filter(|line| line.starts_with("Cap"))
        .collect();
    ensure!(held.len() == 7, "{said}");
    for line in held.iter().filter(|line| !line.starts_with("CapBnd")) {
        let bits = line.split_whitespace().nth(1).context("bits")?;
        ensure!(u64::from_str_radix(bits, 16)? == 0, "{said}");
    }
    let map: Vec<u64> = lines
        .last()
        .context("a map")?
        .split_whitespace()
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    ensure!(
        map[0] == 0 && map[1] >= 100_000 && map[2] == 65_536,
        "{map:?}"
    );
    Ok(())
}

/// Seen from the host: ids nobody has, another block for each instance, nothing of the host open.
fn on_the_host_it_is_nobody(node: &Node) -> Result<()> {
    let mut blocks = BTreeSet::new();
    for pid in node.containers() {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name));
            line.and_then(|line| line.split_whitespace().nth(1))
                .unwrap_or_default()
                .to_owned()
        };
        let (uid, gid): (u32, u32) = (field("Uid:").parse()?, field("Gid:").parse()?);
        ensure!(uid >= 100_000 && gid >= 100_000, "{pid} is {uid}:{gid}");
        blocks.insert(uid / 65_536);
        ensure!(
            field("NoNewPrivs:") == "1" && field("Seccomp:") == "2",
            "{status}"
        );
        let spared: i32 = fs::read_to_string(format!("/proc/{pid}/oom_score_adj"))?
            .trim()
            .parse()?;
        ensure!(
            spared >= 0,
            "{pid} is spared when memory is short: {spared}"
        );
        let limits = fs::read_to_string(format!("/proc/{pid}/limits"))?;
        let core = limits
            .lines()
            .find(|line| line.starts_with("Max core"))
            .context("a limit")?;
        ensure!(core.split_whitespace().nth(4) == Some("0"), "{core}");
        for fd in fs::read_dir(format!("/proc/{pid}/fd"))?.flatten() {
            let Ok(target) = fs::read_link(fd.path()) else {
                continue;
            };
            let text = target.to_string_lossy().into_owned();
            let own = [
                "pipe:",
                "socket:",
                "anon_inode:",
                "/dev/null",
                "/tmp",
                "/proc/",
            ];
            ensure!(
                own.iter().any(|kind| text.starts_with(kind)),
                "{pid} has {text} open"
            );
        }
    }
    ensure!(
        blocks.len() == 2,
        "a block for each of two instances: {blocks:?}"
    );
    Ok(())
}

/// All pairs of hosts and ports: nothing answers but who is asked for names and what a service's policy
/// names, and the nodes' own ports not even then.
fn only_the_policy_opens(world: &World) -> Result<()> {
    let (node, peer) = (&world["par-1"], &world["fra-1"]);
    let theirs = node.inside_container("other", "ip -4 addr show eth0")?;
    let other = theirs
        .split_whitespace()
        .find_map(|word| word.strip_suffix("/16"));
    let other = other.context("an address")?.to_owned();
    let gateway = "10.201.0.1".to_owned();
    let (near, far) = (node.address.to_string(), peer.address.to_string());
    let hosts = [
        gateway.clone(),
        near,
        far.clone(),
        other,
        "169.254.169.254".to_owned(),
    ];
    let ports = [22, 53, 80, 443, 8080, 8420, 8421, 8422];
    let pairs: Vec<String> = hosts
        .iter()
        .flat_map(|host| ports.iter().map(move |port| format!("{host}:{port}")))
        .collect();
    let script = format!("/bin/box probe reach 127.0.0.1:8080 {}", pairs.join(" "));
    let open = |service: &str| -> Result<BTreeSet<String>> {
        let said = node.inside_container(service, &script)?;
        ensure!(said.lines().count() == pairs.len() + 1, "{said}");
        let open = said.lines().filter_map(|line| line.strip_suffix(" open"));
        Ok(open.map(str::to_owned).collect())
    };
    let own = BTreeSet::from(["127.0.0.1:8080".to_owned(), format!("{gateway}:53")]);
    ensure!(
        open("tenant")? == own,
        "without a policy: {:?}",
        open("tenant")?
    );
    let manifest = world.dir().join("friend.toml");
    let allow =
        format!("[network]\nallow = [\"{far}:80\", \"{far}:8420-8422\", \"10.201.0.0/16\"]\n");
    fs::write(&manifest, allow)?;
    let file = manifest.to_string_lossy();
    let small = [
        "--scale", "1..1", "--cpu", "0.1", "--region", "par", "-f", &*file,
    ];
    world.deploy("friend", &small)?.ok()?;
    let mut want = own;
    want.insert(format!("{far}:80"));
    let found = open("friend")?;
    ensure!(found == want, "with a policy: {found:?}");
    Ok(())
}

fn it_is_told_by_the_doctor(node: &Node, peer: &Node) -> Result<()> {
    for args in [vec!["doctor"], vec!["doctor", "--node", &peer.name]] {
        let said = node.read(&args)?;
        let checks = said["checks"].as_array().context("checks")?;
        let of = |name: &str| checks.iter().find(|check| check["name"] == name);
        for required in [
            "seccomp",
            "firewall",
            "overlayfs",
            "cgroups",
            "clock",
            "user-namespaces",
        ] {
            let check = of(required).with_context(|| required.to_owned())?;
            ensure!(check["ok"] == true, "{check}");
        }
    }
    let table = ["bridge", "ip"];
    for family in table {
        node.run("nft", &["delete", "table", family, "selvedge"])?
            .ok()?;
    }
    let said = node.cli(&["doctor"])?;
    ensure!(said.code == 1 && said.out.contains("firewall"), "{said:?}");
    let described = node
        .cli(&["describe", &format!("node/{}", node.name)])?
        .ok()?;
    ensure!(
        described.out.contains("a user namespace per instance"),
        "{}",
        described.out
    );
    Ok(())
}
