//! What a container can reach and do: nothing that is not its own.

use anyhow::{Context as _, Result, ensure};
use chaos_tests::world::{Node, World};

/// The powers to own, override, signal and bind (chown to `NET_BIND_SERVICE`), all over what is
/// the container's own.
const HARMLESS: u64 = 0x4fb;

#[test]
fn a_container_is_confined() -> Result<()> {
    let world = World::of(&["par-1", "fra-1"])?;
    for service in ["tenant", "other"] {
        world
            .deploy(
                service,
                &["--scale", "1..1", "--cpu", "0.1", "--region", "par"],
            )?
            .ok()?;
    }
    let node = &world["par-1"];
    it_reaches_nobody(node, &world["fra-1"])?;
    it_may_do_nothing(node)?;
    it_sees_only_itself(node)
}

/// No connection to the node's API, front door or mesh, to peers, or to another tenant.
fn it_reaches_nobody(node: &Node, peer: &Node) -> Result<()> {
    let own = |script: &str| node.inside_container("tenant", script);
    let theirs = node.inside_container("other", "ip -4 addr show eth0")?;
    let other = theirs
        .split_whitespace()
        .find(|w| w.contains('/'))
        .context("an address")?;
    let other = other.split('/').next().context("an address")?;
    let route = own("ip route")?;
    let gateway = route.split_whitespace().skip_while(|w| *w != "via").nth(1);
    let gateway = gateway.with_context(|| format!("no gateway: {route}"))?;
    let reaches = |host: &str, port: u16| -> Result<bool> {
        let said = own(&format!(
            "nc -w 2 {host} {port} </dev/null && echo OPEN || echo shut"
        ))?;
        ensure!(
            said.contains("OPEN") != said.contains("shut"),
            "{host}:{port}: {said}"
        );
        Ok(said.contains("OPEN"))
    };
    ensure!(reaches("127.0.0.1", 8080)?, "the means of this test work");
    let (near, far) = (node.address.to_string(), peer.address.to_string());
    for (host, port) in [
        (gateway, 8420),
        (&near, 8420),
        (&far, 8420),
        (other, 8080),
        ("169.254.169.254", 80),
    ] {
        ensure!(!reaches(host, port)?, "{host}:{port} can be reached");
    }
    Ok(())
}

fn it_may_do_nothing(node: &Node) -> Result<()> {
    for forbidden in [
        "mount -t tmpfs x /tmp",
        "unshare -m true",
        "unshare -U true",
        "echo 1 > /proc/sys/net/ipv4/ip_forward",
        "echo b > /proc/sysrq-trigger",
        "touch /sys/x",
        "head -c 1 /proc/kcore | grep -q .",
        "head -c 1 /dev/vda",
        "mknod /tmp/sda b 8 0",
    ] {
        let script = format!("({forbidden}) && echo DONE || echo denied");
        let said = node.inside_container("tenant", &script)?;
        ensure!(
            said.contains("denied") && !said.contains("DONE"),
            "{forbidden}: {said}"
        );
    }
    Ok(())
}

fn it_sees_only_itself(node: &Node) -> Result<()> {
    let own = |script: &str| node.inside_container("tenant", script);
    let processes = own("ps -o comm")?;
    ensure!(!processes.contains("selvedged"), "{processes}");
    ensure!(
        processes.lines().count() < 12,
        "only its own processes: {processes}"
    );
    let capabilities = own("grep CapEff /proc/self/status")?;
    let held = capabilities
        .split_whitespace()
        .nth(1)
        .context("capabilities")?;
    let beyond = u64::from_str_radix(held, 16)? & !HARMLESS;
    ensure!(beyond == 0, "more than a server of files needs: {beyond:x}");
    ensure!(own("grep NoNewPrivs /proc/self/status")?.contains('1'));
    let descriptors = own("ls /proc/self/fd")?;
    ensure!(
        descriptors.lines().count() < 8,
        "descriptors of the host: {descriptors}"
    );
    Ok(())
}
