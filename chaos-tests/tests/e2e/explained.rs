//! What was decided is still known when the instance is gone and the daemon is another one.

use anyhow::{Context as _, Result, ensure};
use chaos_tests::world::{Node, PATIENCE, World, until};
use serde_json::Value;

use crate::SMALL;

/// `(what, why)` of each decision that a node tells of the subject.
fn decided(node: &Node, subject: &str) -> Result<(Value, Vec<(String, String)>)> {
    let told = node.read(&["explain", subject])?;
    let all = told["decisions"].as_array().context("no decisions")?;
    let text = |d: &Value, key: &str| d[key].as_str().unwrap_or_default().to_owned();
    let deeds = all.iter().map(|d| (text(d, "deed"), text(d, "why")));
    Ok((told.clone(), deeds.collect()))
}

#[test]
fn a_decision_of_before_a_restart_is_explained() -> Result<()> {
    let world = World::of(&["par-1", "fra-1"])?;
    let (par, fra) = (&world["par-1"], &world["fra-1"]);
    let here = ["--region", "par"];
    world.deploy("web", &[&SMALL[..], &here].concat())?.ok()?;
    par.get("web", "/")?.ok()?;
    let instances = par.instances("web")?;
    let id = instances[0]["id"].as_str().context("no id")?;
    let subject = format!("instance/{id}");
    let placed = |deeds: &[(String, String)]| deeds.iter().any(|(deed, _)| deed == "placed");
    let (told, deeds) = until("it is written down", PATIENCE, || {
        let (told, deeds) = decided(fra, "service/web")?;
        Ok(placed(&deeds).then_some((told, deeds)))
    })?;
    ensure!(
        told["why"].to_string().contains("one was started"),
        "why this many, by another node: {told} {deeds:?}"
    );

    par.cli(&["-y", "delete", "web"])?.ok()?;
    until("it is gone", PATIENCE, || {
        let gone = par.instances("web")?.is_empty() && par.containers().is_empty();
        Ok(gone.then_some(()))
    })?;
    par.kill()?;
    par.start()?;
    let (told, deeds) = until("the other node asks the new daemon", PATIENCE, || {
        let (told, deeds) = decided(fra, &subject).unwrap_or_default();
        Ok(placed(&deeds).then_some((told, deeds)))
    })?;
    ensure!(
        deeds
            .iter()
            .any(|(deed, why)| deed == "retired" && !why.is_empty()),
        "why it went: {deeds:?}"
    );
    let verdicts = told["receipt"]["verdicts"].as_array();
    let names: Vec<_> = verdicts.into_iter().flatten().map(|v| &v["name"]).collect();
    ensure!(
        names.iter().any(|n| **n == "par-1") && names.iter().any(|n| **n == "fra-1"),
        "why here, and why not there: {told}"
    );
    let said = fra.cli(&["explain", &subject])?.ok()?;
    said.says("is not among par")?.says("was to end")?;
    Ok(())
}
