//! Images: of real programs, and from a file, where no registry is asked.

use anyhow::{Result, ensure};
use chaos_tests::world::{PATIENCE, Standard, World, until};

use crate::SMALL;

/// Both kinds of archives, with the registry gone: imported on one node, deployed, and served from
/// zero there and through another node, which has no way to the image.
#[test]
fn an_imported_image_is_served_without_a_registry() -> Result<()> {
    let world = World::of(&["par-1", "fra-1"])?;
    let nameless = world.archive("oci-archive", "")?;
    let named = world.archive("docker-archive", "imports.test/docker:1")?;
    world.stop_registry()?;
    let (par, fra) = (&world["par-1"], &world["fra-1"]);
    ensure!(par.cli(&["image", "pull", &world.image("box")])?.code != 0);
    par.deploy(
        "early",
        "imports.test/oci:1",
        &[&SMALL[..], &["--pull", "never"]].concat(),
    )?
    .code(1)?
    .says("imports.test/oci:1")?;

    let (nameless, named) = (nameless.to_string_lossy(), named.to_string_lossy());
    let import = |more: &[&str]| par.cli(&[&["image", "import"], more].concat())?.ok();
    import(&[&nameless, "--as", "imports.test/oci:1"])?.says("imports.test/oci:1")?;
    import(&[&named])?.says("imports.test/docker:1")?;

    for service in ["oci", "docker"] {
        let image = format!("imports.test/{service}:1");
        par.deploy(
            service,
            &image,
            &[&SMALL[..], &["--pull", "never"]].concat(),
        )?
        .ok()?;
        world.rest(service)?;
        par.get(service, "/")?.ok()?.says("box")?;
        world.rest(service)?;
        until("the other node hears of the service", PATIENCE, || {
            let services = fra.read(&["get", "services"])?;
            Ok(services.to_string().contains(service).then_some(()))
        })?;
        fra.get(service, "/")?.ok()?.says("box")?;
        let on = par.instances(service)?;
        let here = on.iter().all(|i| i["nodeName"] == "par-1");
        ensure!(here && !on.is_empty(), "only one node has it: {on:?}");
    }
    Ok(())
}

/// Programs of somebody else's, as Debian ships them: served from zero by both nodes, logged, and
/// ended when they are asked to.
#[test]
fn real_programs_serve_from_zero() -> Result<()> {
    let world = World::of(&["par-1", "fra-1"])?;
    for (service, program, says) in [
        ("nginx", Standard::Nginx, "Welcome to nginx!"),
        ("python", Standard::Python, "hello from python"),
    ] {
        let image = world.standard(program)?;
        world.first().deploy(service, &image, &SMALL)?.ok()?;
        world.rest(service)?;
        for node in world.nodes() {
            node.get(service, "/")?.ok()?.says(says)?;
        }
        until("its log shows a request", PATIENCE, || {
            let logs = world.first().cli(&["logs", service])?.ok()?;
            logs.says("GET / HTTP/1.1").map(Some)
        })?;
        world.rest(service)?;
        let ended = world.first().read(&["get", "instances"])?.to_string();
        ensure!(!ended.contains("\"Failed\""), "{service}: {ended}");
    }
    Ok(())
}
