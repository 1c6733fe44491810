//! Where a service may be is the node's own word too: one that is told to start what may not run there
//! refuses, whoever tells it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use chaos_tests::world::{Node, PATIENCE as WAIT, World, until};
use netfabric::identity::Identity;
use netfabric::transport::{Admit, Kind, Mesh};
use netfabric::wire::peer::{PeerRequest, PeerResponse, StartRefusal, StartRequest};
use scheduler::model::{Name, NodeId, RevisionKey, ServiceKey};
use scheduler::place::{Inputs, Passed, Receipt};

const PATIENCE: Duration = Duration::from_secs(30);
/// The first revision of `kept`.
const REVISION: &str = "kept-00001";

#[test]
fn a_node_refuses_what_may_not_run_there_whoever_asks() -> Result<()> {
    let world = World::of(&["par-1", "fra-1"])?;
    let (par, fra) = (&world["par-1"], &world["fra-1"]);
    let kept = ["--region", "par", "--scale", "0..4", "--cpu", "0.1"];
    world.deploy("kept", &kept)?.ok()?;
    // Each is asked by the other, with its true certificate: a steward that errs would ask like this.
    let outside = told_to_start(&world, "par-1", fra)?;
    ensure!(
        matches!(&outside, PeerResponse::StartRefused(StartRefusal::Misplaced(why))
            if why.contains("is not among par")),
        "{outside:?}"
    );
    ensure!(fra.containers().is_empty() && fra.instance_folders()?.is_empty());
    let inside = told_to_start(&world, "fra-1", par)?;
    ensure!(
        matches!(inside, PeerResponse::Started(_)),
        "the same request, where it may be: {inside:?}"
    );
    Ok(())
}

#[test]
fn a_cordoned_node_keeps_what_it_has_and_takes_no_more() -> Result<()> {
    let world = World::of(&["par-1", "fra-1"])?;
    let (par, fra) = (&world["par-1"], &world["fra-1"]);
    world
        .deploy("kept", &["--scale", "1..9", "--cpu", "0.1"])?
        .ok()?;
    par.cli(&["node", "cordon", "fra-1"])?.ok()?;
    until("its record says so", WAIT, || {
        let nodes = par.read(&["node", "ls"])?;
        let all = nodes.as_array().context("a list of nodes")?;
        let cordoned = |n: &&serde_json::Value| n["cordoned"] == true;
        let names: Vec<_> = all.iter().filter(cordoned).map(|n| &n["name"]).collect();
        Ok((names == ["fra-1"]).then_some(()))
    })?;
    let before = fra.containers().len();
    let refused = told_to_start(&world, "par-1", fra)?;
    ensure!(
        refused == PeerResponse::StartRefused(StartRefusal::NotTaking),
        "{refused:?}"
    );
    ensure!(fra.containers().len() == before, "what ran there goes on");
    par.cli(&["node", "uncordon", "fra-1"])?.ok()?;
    until("it takes instances again", WAIT, || {
        let answer = told_to_start(&world, "par-1", fra)?;
        Ok(matches!(answer, PeerResponse::Started(_)).then_some(()))
    })
}

struct Anyone;

impl Admit for Anyone {
    fn admits(&self, _: NodeId) -> bool {
        true
    }
}

/// What a node answers to an order of another one to start an instance.
fn told_to_start(world: &World, by: &str, node: &Node) -> Result<PeerResponse> {
    let home = world.dir().join(by).join("identity");
    let identity = Arc::new(Identity::load(&home)?);
    let asked = Identity::load(&world.dir().join(&node.name).join("identity"))?;
    let (to, door) = (asked.node(), SocketAddr::from((node.address, 8422)));
    let revision = RevisionKey {
        namespace: Name::default_namespace(),
        name: Name::new(REVISION).context("a name")?,
    };
    let order = PeerRequest::Start(Box::new(StartRequest {
        service: ServiceKey {
            namespace: Name::default_namespace(),
            name: Name::new("kept").context("a name")?,
        },
        revision: revision.clone(),
        index: 0,
        request: None,
        receipt: Receipt {
            revision,
            decided_by: identity.node(),
            cause: "scale-up".to_owned(),
            why: String::new(),
            verdicts: Vec::new(),
            inputs: Inputs::default(),
            passed: Passed::default(),
            displaces: None,
        },
        held: 0,
        patience_millis: u64::try_from(PATIENCE.as_millis())?,
    }));
    tokio::runtime::Runtime::new()?.block_on(async {
        let mesh = Mesh::bind("0.0.0.0:0".parse()?, identity, Arc::new(Anyone))?;
        mesh.set_addr(to, door);
        let answer = mesh.call(to, Kind::Peer, &order, PATIENCE * 2).await?;
        mesh.close().await;
        Ok(answer)
    })
}
