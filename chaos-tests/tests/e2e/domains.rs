//! Host names of people's own: which service they lead to at every node, whose they are, and that an authority
//! issues certificates for them.

use anyhow::{Context as _, Result, ensure};
use chaos_tests::world::{Habits, ORIGIN, PATIENCE, Request, World, until};

use crate::SMALL;
use crate::tls::{certificate, curl_host, ordering};

const TWO: [&str; 2] = ["par-1", "fra-1"];

/// Which service answers for the host's path, at every node; nobody is `None`.
fn leads(world: &World, url: &str, want: Option<&str>) -> Result<()> {
    let (host, path) = url.split_at(url.find('/').context("no path")?);
    for node in world.nodes() {
        until(&format!("{url} at {}", node.name), PATIENCE, || {
            let answer = Request::get(host, path).send(node.door())?;
            let said = |name| answer.header(name).ok();
            let nobody = said("x-selvedge-error") == Some("no-such-host");
            let found = said("x-box-service");
            ensure!(found == want && nobody == want.is_none(), "{answer:?}");
            Ok(Some(()))
        })?;
    }
    Ok(())
}

#[test]
fn hosts_and_paths_of_ones_own_lead_to_services() -> Result<()> {
    let world = World::of(&TWO)?;
    let node = world.first();
    let with = |domain| [&SMALL[..], &["--domain", domain]].concat();
    world
        .deploy("web", &with("www.shop.test,shop.test"))?
        .ok()?;
    world.deploy("api", &with("WWW.shop.test/api/"))?.ok()?;
    leads(&world, "www.shop.test/", Some("web"))?;
    leads(&world, "www.shop.test/api?x=1", Some("api"))?;
    leads(&world, "www.shop.test/apis", Some("web"))?;
    leads(&world, "any.shop.test/", None)?;
    // A change of them makes no revision.
    node.cli(&["domain", "add", "*.shop.test", "web"])?.ok()?;
    leads(&world, "any.shop.test/", Some("web"))?;
    let web = node.read(&["get", "service/web"])?;
    ensure!(web["service"]["meta"]["generation"] == 1, "{web}");
    let told = node.cli(&["get", "domains", "-A"])?.ok()?;
    for (domain, service) in [
        ("*.shop.test", "web"),
        ("shop.test", "web"),
        ("www.shop.test", "web"),
        ("www.shop.test/api", "api"),
    ] {
        let line = |line: &str| line.starts_with(domain) && line.contains(service);
        ensure!(told.out.lines().any(line), "{domain}: {told}");
    }
    // Whose they are is said, and what is the origin's stays so.
    let taken = ["domain", "add", "shop.test", "api"];
    let said = node.cli(&taken)?.code(2)?;
    said.says("`shop.test` is the service default/web's")?;
    let own = format!("other.{ORIGIN}");
    let said = node.cli(&["domain", "add", &own, "api"])?.code(2)?;
    said.says("where a service's name is its host")?;
    let foreign = [&with("new.shop.test")[..], &["-n", "bank"]].concat();
    let said = world.deploy("web", &foreign)?.code(2)?;
    said.says("in another namespace")?;
    let said = node.cli(&["domain", "check", "shop.test"])?.code(1)?;
    said.says("shop.test has no address")?;
    let part = ["domain", "rm", "WWW.shop.test/ap", "-y"];
    node.cli(&part)?
        .code(3)?
        .says("no service has the domain")?;
    // What is taken back leads nowhere, and may go to another.
    node.cli(&["domain", "rm", "shop.test"])?
        .code(2)?
        .says("-y")?;
    node.cli(&["domain", "rm", "shop.test", "-y"])?.ok()?;
    leads(&world, "shop.test/", None)?;
    node.cli(&taken)?.ok()?;
    leads(&world, "shop.test/", Some("api"))
}

#[test]
fn an_authority_issues_for_a_host_of_ones_own() -> Result<()> {
    let world = World::of(&TWO)?;
    let habits = Habits {
        all_names: true,
        ..Habits::default()
    };
    let pebble = world.pebble(habits)?;
    ordering(&world, world.nodes(), &pebble.section("http-01"))?;
    let more = ["--certificate", "acme", "--domain", "www.shop.test"];
    world.deploy("web", &[&SMALL[..], &more].concat())?.ok()?;
    for node in world.nodes() {
        let what = format!("{} has the certificate", node.name);
        until(&what, PATIENCE, || {
            let found = certificate(node, "www.shop.test")?.context("no order yet")?;
            ensure!(found["state"] == "valid", "{found}");
            Ok(Some(()))
        })
        .with_context(|| pebble.log())?;
        curl_host(node, "www.shop.test", &pebble.root()?, &["--fail"])?
            .ok()?
            .says("box")?;
        // Without TLS it is only told where it is.
        let plain = Request::get("www.shop.test", "/a?b").send(node.door())?;
        ensure!(plain.status == 308, "{plain:?}");
        ensure!(
            plain.header("location")? == "https://www.shop.test/a?b",
            "{plain:?}"
        );
    }
    let domains = world.first().cli(&["domain", "ls"])?.ok()?;
    domains.says("valid").map(drop)
}
