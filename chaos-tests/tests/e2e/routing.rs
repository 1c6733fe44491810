//! Which of its places a request goes to, when it is more than the nearest: a split that keeps its
//! clients, an instance that sends a request on.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use chaos_tests::world::{Node, ORIGIN, Outcome, PATIENCE, Request, Response, World, run, until};

use crate::{SMALL, THREE};

/// Deploys `web` by a manifest with these lines.
fn deploy(world: &World, lines: &str) -> Result<Outcome> {
    let image = world.image("box");
    let text = format!(
        "name = \"web\"\nimage = \"{image}\"\nport = 8080\nwindow = \"6s\"\n\
         resources = {{ cpu = 0.1 }}\n{lines}"
    );
    let file = world.dir().join("routing.toml");
    fs::write(&file, text)?;
    let file = file.to_string_lossy().into_owned();
    let node = world.first();
    node.cli(&["deploy", "-f", &file, "--wait-timeout", "60s"])
}

/// A browser's visit: with the cookies of this jar, and back into it. Says which revision answered.
fn visit(world: &World, node: &Node, jar: &str) -> Result<String> {
    let (host, jar) = (format!("web.{ORIGIN}"), world.dir().join(jar));
    let (url, jar) = (
        format!("http://{host}/"),
        jar.to_string_lossy().into_owned(),
    );
    let resolve = format!("{host}:80:{}", node.address);
    let words = [
        "-sS",
        "--fail",
        "--max-time",
        "30",
        "--resolve",
        &resolve,
        "-b",
        &jar,
        "-c",
        &jar,
        "-D",
        "-",
        "-o",
        "/dev/null",
        &url,
    ];
    let said = run("curl", words)?.ok()?;
    let mut lines = said.out.lines();
    let line = lines.find_map(|line| line.strip_prefix("x-box-revision: "));
    let revision = line.with_context(|| format!("who answered? {said}"))?;
    Ok(revision.trim().to_owned())
}

#[test]
fn a_client_of_a_split_stays_with_its_revision_at_every_node() -> Result<()> {
    const CLIENTS: usize = 12;
    let world = World::of(&THREE)?;
    let scale = "scale = \"1..3\"\n";
    deploy(&world, &format!("{scale}env = {{ N = \"1\" }}\n"))?.ok()?;
    let split = |sticky: &str| {
        format!(
            "{scale}env = {{ N = \"2\" }}\n[traffic]\nlatest = 50\n\"web-00001\" = 50\n{sticky}"
        )
    };
    deploy(&world, &split("sticky = true\n"))?.ok()?;
    for node in world.nodes() {
        until("the split and its stickiness have come", PATIENCE, || {
            let met = fresh(&world, node)?;
            let told = fs::read_to_string(world.dir().join("fresh"))?;
            Ok((told.contains("selvedge-sticky") && met == "web-00002").then_some(()))
        })?;
    }
    let jars: Vec<String> = (0..CLIENTS).map(|client| format!("jar-{client}")).collect();
    let mut met = Vec::new();
    for jar in &jars {
        met.push(visit(&world, world.first(), jar)?);
    }
    for node in world.nodes() {
        for (jar, met) in jars.iter().zip(&met) {
            let again = visit(&world, node, jar)?;
            ensure!(
                again == *met,
                "{jar} met {met}, and {again} at {}",
                node.name
            );
        }
    }
    // All to the new one: nobody is held to what has no share.
    let all = format!("{scale}env = {{ N = \"2\" }}\n[traffic]\nlatest = 100\nsticky = true\n");
    deploy(&world, &all)?.ok()?;
    for node in world.nodes() {
        until("everybody is at the new revision", PATIENCE, || {
            for jar in &jars {
                let again = visit(&world, node, jar)?;
                ensure!(again == "web-00002", "{jar} is at {again}");
            }
            Ok(Some(()))
        })?;
    }
    Ok(())
}

/// A visit without a cookie.
fn fresh(world: &World, node: &Node) -> Result<String> {
    let jar = world.dir().join("fresh");
    if jar.exists() {
        fs::remove_file(&jar)?;
    }
    visit(world, node, "fresh")
}

/// A request with a body that its first instance has sent on by this order.
fn sent_on(node: &Node, service: &str, order: &str) -> Result<Response> {
    let (host, path) = (format!("{service}.{ORIGIN}"), format!("/do?replay={order}"));
    let said = Request::post(&host, &path, b"the body").send(node.door())?;
    ensure!(!said.headers.contains_key("selvedge-replay"), "{said:?}");
    Ok(said)
}

/// A write that must be answered in `lis`, an instance that is meant alone, another service from zero.
#[test]
fn a_request_is_answered_where_its_instance_sends_it() -> Result<()> {
    let world = World::of(&THREE)?;
    let everywhere = ["--scale", "3..3", "--spread", "region", "--cpu", "0.1"];
    world.deploy("web", &everywhere)?.ok()?;
    world.deploy("api", &SMALL)?.ok()?;
    world.rest("api")?;
    let mut instances = Vec::new();
    for node in world.nodes() {
        instances = until("every node knows one in each region", PATIENCE, || {
            let all = node.instances("web")?;
            let ready = all
                .iter()
                .filter(|i| i["state"] == "Ready" || i["state"] == "Frozen");
            let ids: Vec<String> = ready
                .filter_map(|i| Some(i["id"].as_str()?.to_owned()))
                .collect();
            Ok((ids.len() == 3).then_some(ids))
        })?;
    }
    // Who is where, as replays to each region tell it.
    let mut there = Vec::new();
    for region in ["par", "fra", "lis"] {
        for node in world.nodes() {
            let said = sent_on(node, "web", &format!("region={region};state=s"))?.ok()?;
            let said = said.says(";state=s\nthe body")?;
            let instance = said.header("x-box-instance")?.to_owned();
            there.push((region, instance));
        }
    }
    there.sort();
    there.dedup();
    ensure!(
        there.len() == 3,
        "one for each region from everywhere: {there:?}"
    );
    for node in world.nodes() {
        for instance in &instances {
            let said = sent_on(node, "web", &format!("instance={instance}"))?.ok()?;
            ensure!(said.header("x-box-instance")? == instance, "{said:?}");
        }
    }
    // Nothing is ready in the region: it is started there.
    let far = sent_on(world.first(), "api", "region=lis")?.ok()?;
    let far = far.header("x-box-instance")?.to_owned();
    until("it is seen in lis", PATIENCE, || {
        let all = world["lis-1"].instances("api")?;
        let found = all.iter().find(|i| i["id"] == *far);
        let found = found.with_context(|| format!("no {far} in {all:?}"))?;
        ensure!(found["nodeName"] == "lis-1", "{found}");
        Ok(Some(()))
    })?;
    let woken = sent_on(world.first(), "web", "app=api")?.ok()?;
    ensure!(woken.header("x-box-service")? == "api", "{woken:?}");

    let told = sent_on(world.first(), "web", "region=nowhere")?;
    let code = told.header("x-selvedge-error")?;
    ensure!(told.status == 503 && code == "replay-nowhere", "{told:?}");
    let back = sent_on(world.first(), "web", "region=nowhere;fallback=force_self")?.ok()?;
    back.says("reason=replay-nowhere\nthe body")?;
    Ok(())
}
