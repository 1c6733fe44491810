//! The states an instance rests in, parked before it is anybody's and frozen while nobody asks; and
//! the end of those that are sick.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use chaos_tests::world::{Node, ORIGIN, PATIENCE, Request, Response, World, run, until};
use serde_json::{Value, json};

use crate::SMALL;

/// Waits until an instance of the service is in this state; returns its id.
fn is(node: &Node, service: &str, state: &str) -> Result<String> {
    until(&format!("{service} is {state}"), PATIENCE, || {
        let all = node.read(&["get", "instances"])?;
        let all = all.as_array().context("instances are no list")?;
        let there = |i: &&Value| i["service"] == service && i["state"] == state;
        let found = all.iter().find(there).and_then(|i| i["id"].as_str());
        Ok(found.map(ToOwned::to_owned))
    })
}

/// What a request waited for, phase by phase.
fn phases(node: &Node, answer: &Response) -> Result<Vec<String>> {
    let bill = node.read(&["explain", answer.header("x-request-id")?])?;
    let phases = bill["bill"]["phases"].as_array().context("no phases")?;
    let names = phases.iter().filter_map(|p| p["name"].as_str());
    Ok(names.map(ToOwned::to_owned).collect())
}

#[test]
fn a_second_start_takes_a_parked_container() -> Result<()> {
    let mut world = World::of(&["par-1"])?;
    let node = world.first();
    world.deploy("web", &SMALL)?.ok()?;
    world.rest("web")?;
    let parked = is(node, "web", "Parked")?;
    let services = node.read(&["get", "services"])?;
    let counts = &services[0]["instances"];
    ensure!(counts["parked"] == 1 && counts["ready"] == 0, "{services}");

    let answer = node.get("web", "/")?.ok()?;
    let phases = phases(node, &answer)?;
    ensure!(
        phases.contains(&"start".to_owned()) && !phases.contains(&"create".to_owned()),
        "the request waited for {phases:?}"
    );
    let instances = node.instances("web")?;
    let ids: Vec<_> = instances.iter().map(|i| &i["id"]).collect();
    ensure!(ids == [&parked], "{ids:?}, parked was {parked}");
    let why = node.read(&["explain", &format!("instance/{parked}")])?;
    ensure!(why["receipt"]["cause"] == "request", "{why}");

    // Another is parked for the next one; with the service both go.
    is(node, "web", "Parked")?;
    node.cli(&["-y", "delete", "web"])?.ok()?;
    until("nothing of it is left", PATIENCE, || {
        Ok(node.instance_folders()?.is_empty().then_some(()))
    })?;
    world.hush();
    Ok(())
}

/// Clock ticks that the processes of all containers here have used.
fn ticks(node: &Node) -> u64 {
    let used = |pid: u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let rest = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
        let fields = rest.split(' ').skip(11).take(2);
        fields.filter_map(|f| f.parse::<u64>().ok()).sum::<u64>()
    };
    node.containers().into_iter().map(used).sum()
}

#[test]
fn a_frozen_instance_costs_nothing_and_answers_everyone() -> Result<()> {
    const HERD: usize = 200;
    let mut world = World::of(&["par-1"])?;
    let node = world.first();
    // Beside the server something that never rests.
    let script = "while :; do :; done & exec /bin/box";
    let restless = ["--cmd", "/bin/sh", "--arg", "-c", "--arg", script];
    let one = ["--scale", "1..1", "--cpu", "0.2"];
    world.deploy("web", &[&one[..], &restless].concat())?.ok()?;
    // Else what it does unasked would be taken for work.
    change(&world, "web", |spec| {
        spec["annotations"] = json!({"selvedge.dev/freeze": "asked"});
    })?;
    until("the new revision is alone", PATIENCE, || {
        let all = node.instances("web")?;
        let new = all.len() == 1 && all[0]["revision"] == "web-00002";
        Ok(new.then_some(()))
    })?;
    let awake = ticks(node);
    until("it works", PATIENCE, || {
        Ok((ticks(node) > awake).then_some(()))
    })?;
    for _ in 0..2 {
        is(node, "web", "Frozen")?;
        let before = ticks(node);
        // Long enough for dozens of ticks, were it not held still.
        std::thread::sleep(Duration::from_secs(2));
        let after = ticks(node);
        ensure!(after == before, "{before} ticks became {after}");

        let failures: Vec<String> = std::thread::scope(|scope| {
            let ask = |_| scope.spawn(|| node.get("web", "/")?.ok()?.says("box"));
            let asked: Vec<_> = (0..HERD).map(ask).collect();
            let answers = asked.into_iter().filter_map(|a| a.join().ok());
            let failed = answers.filter_map(Result::err);
            failed.map(|e| format!("{e:#}")).collect()
        });
        ensure!(failures.is_empty(), "{}: {failures:?}", failures.len());
        // The node's record follows a little later; else what comes next would see the old one.
        is(node, "web", "Ready")?;
    }
    // A frozen one ends like any other, and so does one whose daemon never froze it.
    is(node, "web", "Frozen")?;
    node.kill()?;
    node.start()?;
    world.settle()?;
    node.get("web", "/")?.ok()?.says("box")?;
    is(node, "web", "Frozen")?;
    node.cli(&["-y", "delete", "web"])?.ok()?;
    until("nothing of it is left", PATIENCE, || {
        let gone = node.instance_folders()?.is_empty() && node.containers().is_empty();
        Ok(gone.then_some(()))
    })?;
    world.hush();
    Ok(())
}

/// What the node says that an instance does.
fn does(node: &Node, instance: &str) -> Result<String> {
    let why = node.read(&["explain", &format!("instance/{instance}")])?;
    Ok(why["why"].to_string())
}

/// Has the program say a line about a lease.
fn lease(node: &Node, line: &str) -> Result<Response> {
    let host = format!("web.{ORIGIN}");
    Request::post(&host, "/busy", line.as_bytes()).send(node.door())
}

#[test]
fn work_of_its_own_keeps_an_instance_as_long_as_its_lease() -> Result<()> {
    let mut world = World::of(&["par-1"])?;
    let node = world.first();
    world
        .deploy("web", &["--scale", "0..2", "--cpu", "0.1"])?
        .ok()?;
    change(&world, "web", |spec| {
        spec["annotations"] = json!({"selvedge.dev/busy": "on"});
    })?;
    until("it has its socket", PATIENCE, || {
        let answer = lease(node, "busy 600 nightly index")?;
        Ok((answer.status == 200 && answer.body.trim() == "ok 600").then_some(()))
    })?;
    until("others hear of it", PATIENCE, || {
        let all = node.read(&["get", "instances"])?;
        let all = all.as_array().context("instances are no list")?;
        Ok(all.iter().any(|i| i["leases"] == 1).then_some(()))
    })?;
    // Longer than it takes to be frozen, and than the window of a minute after which it would go.
    std::thread::sleep(Duration::from_secs(75));
    let instance = is(node, "web", "Ready")?;
    let told = does(node, &instance)?;
    ensure!(told.contains("lease for `nightly index`"), "{told}");
    let states = node.instances("web")?;
    ensure!(
        states.len() == 1 && states[0]["state"] == "Ready",
        "{states:?}"
    );
    // It is given up, and with it goes what kept the instance, whose window is over long since.
    let answer = lease(node, "free")?;
    ensure!(answer.body.trim() == "ok", "{}", answer.body);
    world.rest("web")?;
    node.cli(&["-y", "delete", "web"])?.ok()?;
    world.hush();
    Ok(())
}

#[test]
fn who_computes_unasked_is_throttled_and_not_frozen() -> Result<()> {
    let mut world = World::of(&["par-1"])?;
    let node = world.first();
    let script = "while :; do :; done & exec /bin/box";
    let restless = ["--cmd", "/bin/sh", "--arg", "-c", "--arg", script];
    let one = ["--scale", "1..1", "--cpu", "0.2"];
    world.deploy("web", &[&one[..], &restless].concat())?.ok()?;
    let instance = is(node, "web", "Ready")?;
    until("it gives way", PATIENCE, || {
        let told = does(node, &instance)?;
        Ok(told.contains("leaves its processor").then_some(()))
    })?;
    // A request is answered as ever, and finds it with its share.
    node.get("web", "/")?.ok()?.says("box")?;
    let before = ticks(node);
    std::thread::sleep(Duration::from_secs(15));
    is(node, "web", "Ready")?;
    let states = node.instances("web")?;
    ensure!(states[0]["state"] == "Ready", "{states:?}");
    ensure!(ticks(node) > before + 20, "its work goes on");
    node.cli(&["-y", "delete", "web"])?.ok()?;
    world.hush();
    Ok(())
}

/// Changes the template of a stored service as a client of the API does.
fn change(world: &World, service: &str, change: impl Fn(&mut Value)) -> Result<()> {
    let node = world.first();
    let all = node.read(&["get", "services"])?;
    let mut all = all.as_array().context("services are no list")?.iter();
    let stored = all.find(|view| view["service"]["key"]["name"] == service);
    let stored = &stored.context("it is not stored")?["service"];
    let mut body = json!({"spec": stored["spec"], "scale": stored["scale"]});
    change(&mut body["spec"]);
    let file = world.dir().join("body.json");
    fs::write(&file, body.to_string())?;
    let (socket, data) = (node.socket(), format!("@{}", file.display()));
    let socket = socket.to_string_lossy();
    let url = format!("http://node/v1/services/default/{service}");
    let put = [
        "-sS",
        "--fail-with-body",
        "-X",
        "PUT",
        "--unix-socket",
        &*socket,
    ];
    let with = [
        "-H",
        "content-type: application/json",
        "--data-binary",
        &data,
        &url,
    ];
    run("curl", [&put[..], &with].concat())?.ok()?;
    Ok(())
}

#[test]
fn a_sick_instance_is_ended_and_its_revision_held_back() -> Result<()> {
    let mut world = World::of(&["par-1"])?;
    let node = world.first();
    world
        .deploy("web", &["--scale", "1..1", "--cpu", "0.1"])?
        .ok()?;
    change(&world, "web", |spec| {
        spec["containers"][0]["liveness"] = json!({
            "action": {"http": {"path": "/do?status=500", "port": 0}},
            "initialDelaySeconds": 0, "periodSeconds": 1, "timeoutSeconds": 1,
            "successThreshold": 1, "failureThreshold": 2,
        });
    })?;
    for code in ["Unhealthy", "CrashLoopBackOff"] {
        until(&format!("one is told as {code}"), PATIENCE, || {
            let all = node.read(&["get", "instances"])?;
            let all = all.as_array().context("instances are no list")?;
            let failed = all.iter().find(|i| i["failure"]["code"] == code);
            let Some(failed) = failed else {
                return Ok(None);
            };
            let said = failed["failure"]["message"].as_str().unwrap_or_default();
            ensure!(failed["state"] == "Failed", "{failed}");
            ensure!(said.contains("/do?status=500: status 500"), "{said}");
            Ok(Some(()))
        })?;
    }
    // What asks for it now is told why there is none.
    until("requests are told why", PATIENCE, || {
        let told = node.get("web", "/")?;
        let says = told.status == 503 && told.body.contains("CrashLoopBackOff");
        Ok(says.then_some(()))
    })?;
    node.cli(&["-y", "delete", "web"])?.ok()?;
    world.hush();
    Ok(())
}
