//! What a front door bounds, and whom a program is told of: on real nodes, by their manifests.

use anyhow::{Context as _, Result, ensure};
use chaos_tests::world::{Outcome, PATIENCE, Standard, World, until};

/// Deploys a service of the kit's programs by its manifest.
fn deploy(world: &World, manifest: &str) -> Result<Outcome> {
    let image = world.standard(Standard::Kit)?;
    let text = format!("image = \"{image}\"\n{manifest}");
    let file = world.dir().join("limited.toml");
    std::fs::write(&file, text)?;
    let file = file.to_string_lossy().into_owned();
    let node = world.first();
    node.cli(&["deploy", "-f", &file, "--wait-timeout", "60s"])
}

/// The program wants the PROXY protocol of whoever connects to it.
fn told(rate: &str) -> String {
    format!(
        r#"
name = "told"
scale = "1..1"
proxy_protocol = true
{rate}
command = ["/usr/sbin/nginx", "-c", "/etc/nginx/introduced.conf"]
resources = {{ cpu = 0.1 }}
[health]
ready = "http:/"
live = "http:/"
"#
    )
}

/// Each node lets a service's rate through and no more, says when to come again, and any node knows
/// why; a change holds at once and starts nothing anew. The program hears of the client at every door.
#[test]
fn a_service_has_its_rate_at_each_node_and_its_program_hears_of_each_client() -> Result<()> {
    let world = World::of(&["par-1", "fra-1"])?;
    deploy(&world, &told("rate = \"1/h burst 2\""))?.ok()?;
    for node in world.nodes() {
        let octets = node.address.octets();
        let outside = format!("for {}.{}.{}.1", octets[0], octets[1], octets[2]);
        let mut let_in = 0;
        let refused = until("the rate is used up", PATIENCE, || {
            let answer = node.get("told", "/")?;
            if answer.status == 429 {
                return Ok(Some(answer));
            }
            answer.ok()?.says(&outside)?;
            let_in += 1;
            Ok(None)
        })?;
        ensure!(let_in == 2, "{let_in} were let in at {}", node.name);
        ensure!(
            refused.header("x-selvedge-error")? == "service-rate",
            "{refused:?}"
        );
        let wait: u64 = refused.header("retry-after")?.parse()?;
        ensure!((3000..=3600).contains(&wait), "come again in {wait} s");
        let id = refused.header("x-request-id")?;
        for asked in world.nodes() {
            let said = asked.cli(&["explain", id])?.ok()?;
            ensure!(said.out.contains("refused it: service-rate"), "{said}");
        }
        let counted = node
            .run("curl", &["-s", "http://127.0.0.1:8421/metrics"])?
            .ok()?;
        let mut lines = counted.out.lines();
        let line = lines.find(|l| l.contains("reason=\"service-rate\""));
        ensure!(line.context("a count")?.ends_with(" 1"), "{line:?}");
    }
    let before = world.first().instances("told")?;
    deploy(&world, &told("rate = \"1000/s\""))?.ok()?;
    for node in world.nodes() {
        until("the new rate holds", PATIENCE, || {
            Ok((node.get("told", "/")?.status == 200).then_some(()))
        })?;
    }
    let ids = |all: &[serde_json::Value]| all.iter().map(|i| i["id"].clone()).collect::<Vec<_>>();
    let after = world.first().instances("told")?;
    ensure!(ids(&before) == ids(&after), "{before:?}, then {after:?}");
    Ok(())
}
