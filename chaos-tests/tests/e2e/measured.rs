//! What a service used is known, told to Prometheus and to the operator, and neither lost nor
//! doubled when daemons come and go.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chaos_tests::checkers::accounting::{self, Rules};
use chaos_tests::workload::ledger::LogReader;
use chaos_tests::workload::load::{Config, Load};
use chaos_tests::world::{Node, ORIGIN, World, until};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_mins(1);

/// A sample of the node's metrics, summed over the series whose labels contain `label`.
fn metric(node: &Node, name: &str, label: &str) -> Result<f64> {
    let url = "http://127.0.0.1:8421/metrics";
    let text = node.run("busybox", &["wget", "-qO-", url])?.ok()?.out;
    ensure!(text.ends_with("# EOF\n"), "a torn answer:\n{text}");
    let samples = text.lines().filter_map(|line| line.rsplit_once(' '));
    let wanted = samples.filter(|(series, _)| {
        let (metric, labels) = series.split_once('{').unwrap_or((series, ""));
        metric == name && labels.contains(label)
    });
    wanted
        .map(|(_, value)| value.parse::<f64>().context("a number"))
        .sum()
}

/// The row of a service in `selvedge top services`.
fn top(node: &Node, service: &str) -> Result<Value> {
    let rows = node.read(&["top", "services"])?;
    let rows = rows.as_array().context("a list")?.clone();
    let row = rows.into_iter().find(|row| row["name"] == service);
    row.with_context(|| format!("no row for {service}"))
}

fn ask(node: &Node, service: &str, times: u32) -> Result<()> {
    (0..times).try_for_each(|_| node.get(service, "/")?.ok().map(drop))
}

fn total(node: &Node, service: &str, what: &str) -> Result<u64> {
    let row = top(node, service)?;
    row["total"][what]
        .as_u64()
        .with_context(|| format!("{what} in {row}"))
}

/// Whole numbers, told as floats.
fn is(told: f64, want: f64) -> bool {
    (told - want).abs() < 0.5
}

/// One node pulls from the registry, the other from the first; each says so.
#[test]
fn pulls_are_timed_and_their_bytes_told_by_where_they_came_from() -> Result<()> {
    let world = World::of(&["par-1", "fra-1"])?;
    let (par, fra, image) = (&world["par-1"], &world["fra-1"], world.image("box"));
    let pull = |node: &Node| node.cli(&["image", "pull", &image])?.ok().map(drop);
    let bytes = |node: &Node, source: &str| -> Result<f64> {
        let label = format!("source=\"{source}\"");
        metric(node, "selvedge_image_pull_bytes_total", &label)
    };
    let pulls = |node: &Node, result: &str| -> Result<f64> {
        let label = format!("result=\"{result}\"");
        metric(node, "selvedge_image_pull_seconds_count", &label)
    };
    ensure!(is(metric(par, "selvedge_image_store_bytes", "")?, 0.0));
    pull(par)?;
    until("the other node hears of it", PATIENCE, || {
        let all = fra.read(&["image", "ls"])?;
        Ok((all[0]["nodes"] == serde_json::json!(["par-1"])).then_some(()))
    })?;
    pull(fra)?;
    // It is here: no pull, and nothing moves.
    pull(fra)?;
    let (from, peer) = (bytes(par, "registry")?, bytes(fra, "peer")?);
    ensure!(from > 1e5 && peer > 1e5, "{from} and {peer} bytes");
    for (node, elsewhere) in [(par, "peer"), (fra, "registry")] {
        ensure!(
            is(bytes(node, elsewhere)?, 0.0),
            "{} {elsewhere}",
            node.name
        );
        ensure!(is(pulls(node, "ok")?, 1.0) && is(pulls(node, "failed")?, 0.0));
    }
    let held = metric(par, "selvedge_image_store_bytes", "")?;
    ensure!(held > from && is(metric(fra, "selvedge_image_store_bytes", "")?, held));

    par.cli(&["-y", "image", "rm", &image])?.ok()?;
    ensure!(is(metric(par, "selvedge_image_store_bytes", "")?, 0.0));
    Ok(())
}

#[test]
fn requests_are_counted_once_over_restarts_and_the_end_of_their_instances() -> Result<()> {
    let world = World::of(&["par-1"])?;
    let node = world.first();
    world
        .deploy("web", &["--scale", "1..1", "--cpu", "0.2"])?
        .ok()?;
    ask(node, "web", 20)?;
    let label = r#"service="web""#;
    until("20 requests are counted", PATIENCE, || {
        let counted = metric(node, "selvedge_instance_requests_total", label)?;
        Ok(is(counted, 20.0).then_some(()))
    })?;
    let answered = metric(node, "selvedge_ingress_requests_total", r#"code="2xx""#)?;
    ensure!(is(answered, 20.0), "{answered} of 20 answers");
    let cpu = metric(node, "selvedge_instance_cpu_seconds_total", label)?;
    ensure!(cpu > 0.0, "no CPU time");

    // An upgrade: what went on meanwhile is found by the next daemon.
    node.stop()?;
    node.start()?;
    until("the instance is taken over", PATIENCE, || {
        Ok(is(metric(node, "selvedge_instances", label)?, 1.0).then_some(()))
    })?;
    ensure!(
        total(node, "web", "requests")? == 20,
        "lost or doubled by a restart"
    );
    until("it serves", PATIENCE, || Ok(ask(node, "web", 1).ok()))?;
    ask(node, "web", 9)?;
    let before = total(node, "web", "cpuMicros")?;
    // What was read a moment ago is not read again.
    until("the new door counts on", PATIENCE, || {
        Ok((total(node, "web", "requests")? == 30).then_some(()))
    })?;

    // A crash loses at most what was not written yet, and CPU time not even that: the kernel has it.
    node.kill()?;
    node.start()?;
    until("the instance is taken over", PATIENCE, || {
        Ok(is(metric(node, "selvedge_instances", label)?, 1.0).then_some(()))
    })?;
    let after = total(node, "web", "requests")?;
    ensure!((20..=30).contains(&after), "{after} requests after a crash");
    ensure!(
        total(node, "web", "cpuMicros")? >= before,
        "CPU time was lost"
    );
    let row = top(node, "web")?;
    ensure!(
        row["instances"] == 1 && row["memoryBytes"].as_u64() > Some(0),
        "{row}"
    );

    // It ends: its sums stay, once.
    let cpu = total(node, "web", "cpuMicros")?;
    node.cli(&["delete", "service/web", "--yes"])?.ok()?;
    until("its instance is gone", PATIENCE, || {
        Ok(node.containers().is_empty().then_some(()))
    })?;
    ensure!(
        total(node, "web", "requests")? == after,
        "an end counts once"
    );
    ensure!(total(node, "web", "instances")? == 1);
    let last = total(node, "web", "cpuMicros")?;
    ensure!(
        last >= cpu && last < cpu + 60_000_000,
        "{cpu} became {last}"
    );
    Ok(())
}

/// Answers that take no time are never many at once: what is asked in a second is what counts.
#[test]
fn a_target_in_requests_a_second_is_followed_up_and_down() -> Result<()> {
    let world = World::of(&["par-1"])?;
    let par = &world["par-1"];
    let image = world.image("box");
    let manifest = format!(
        "name = \"brisk\"\nimage = \"{image}\"\nport = 8080\nresources = {{ cpu = 0.05 }}\n\
         [scale]\nmax = 3\nmetric = \"rps\"\ntarget = 10\nwindow = \"6s\"\n"
    );
    let file = world.dir().join("brisk.toml");
    std::fs::write(&file, manifest)?;
    par.cli(&["deploy", "-f", &file.to_string_lossy()])?.ok()?;
    let host = format!("brisk.{ORIGIN}");
    let load = Load::start(Config::new(&host, &[par.door()]).rate(40.0))?;
    until("its maximum serves", PATIENCE, || {
        let ready = par.instances("brisk")?.len() == 3;
        Ok(ready.then_some(()))
    })?;
    let said = par.cli(&["explain", "service/brisk"])?.ok()?;
    said.says("requests a second of 7 aimed at in each")?;
    let client = load.stop()?;
    let found = accounting::check(
        &client,
        LogReader::of(&world).read_all(&client)?,
        &Rules::strict("brisk"),
    );
    ensure!(found.is_empty(), "{}", found.join("\n"));
    world.rest("brisk")
}
