//! `join`: this machine becomes a node of a cluster.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use netfabric::identity::{Authority, Identity, JoinToken, NodeKeys, TokenError, Vault};
use netfabric::transport::join::{JoinError, JoinRefusal, JoinRequest, JoinResponse, enroll};
use netfabric::wire::api::{NodeStatus, Status};
use scheduler::model::{Name, NodeId};
use tokio::net::lookup_host;
use tokio::time::timeout;

use crate::args::{JoinArgs, NodeFlags};
use crate::daemon::{self, Daemon};
use crate::failure::{Exit, Failure};
use crate::home::Home;
use crate::machine;
use crate::nodefile::{self, Reach};
use crate::printer::Printer;

const MESH_PORT: u16 = 8422;
const RESOLVE: Duration = Duration::from_secs(5);
/// For the cluster to decide; its own deadline is a little shorter.
const ENROLL: Duration = Duration::from_secs(25);
/// Members named in the configuration for the first contact.
const SEEDS: usize = 8;

pub async fn run(args: JoinArgs, token: Option<&str>, out: Printer) -> anyhow::Result<ExitCode> {
    let flags = args.node;
    let token = parse(token)?;
    machine::require_root()?;
    let home = Home::vacant(&flags)?;
    let name = machine::name(flags.name.as_ref())?;
    let target = resolve(&args.address).await?;
    let advertise = machine::advertised(&flags, Some(target))?;
    machine::ports_are_free(&flags)?;
    let me = match become_a_node(&home, &flags, &name, target, &token, advertise).await {
        Ok(me) => me,
        Err(error) => {
            let failure = Failure::from_error(error);
            home.undo(failure.exit == Exit::Unavailable);
            return Err(failure.into());
        }
    };
    out.progress(&format!(
        "node {name} ({}) enrolled in cluster {}",
        me.node(),
        me.cluster_id()
    ));
    if flags.no_start {
        out.hint(&format!(
            "start it: selvedged --config {}",
            flags.config.display()
        ));
        return Ok(ExitCode::SUCCESS);
    }
    out.progress("starting selvedged");
    let started = start(&flags, &home, me.node()).await;
    let (daemon, node) = started.map_err(|error| enrolled_but_down(error, &flags))?;
    out.text_or(
        &node,
        || format!("node/{name}"),
        |_| format!("node/{name} joined"),
    )?;
    daemon::hint_address(&home.data, out);
    if flags.foreground {
        daemon.attend().await
    } else {
        Ok(ExitCode::SUCCESS)
    }
}

fn parse(token: Option<&str>) -> Result<JoinToken, Failure> {
    let hinted =
        |message: String| Failure::usage(message).hint("on a member: selvedge token create");
    let text = token.ok_or_else(|| hinted("joining needs a token: --token T".to_owned()))?;
    text.parse()
        .map_err(|error: TokenError| hinted(error.to_string()))
}

/// `HOST[:PORT]` as an address.
async fn resolve(text: &str) -> Result<SocketAddr, Failure> {
    if let Ok(ip) = text.parse() {
        return Ok(SocketAddr::new(ip, MESH_PORT));
    }
    let with_port = match text.rsplit_once(':') {
        Some((_, port)) if port.parse::<u16>().is_ok() => text.to_owned(),
        _ => format!("{text}:{MESH_PORT}"),
    };
    let unknown = |why: String| {
        Failure::new(
            Exit::Unavailable,
            format!("`{text}` is not to be found: {why}"),
        )
        .hint("the address is a member's mesh address, HOST:PORT")
    };
    let found = timeout(RESOLVE, lookup_host(with_port)).await;
    let mut addresses = found
        .map_err(|_| unknown("DNS does not answer".to_owned()))?
        .map_err(|e| unknown(e.to_string()))?;
    addresses
        .next()
        .ok_or_else(|| unknown("it has no address".to_owned()))
}

/// Asks the cluster in and writes what it answers.
async fn become_a_node(
    home: &Home,
    flags: &NodeFlags,
    name: &Name,
    target: SocketAddr,
    token: &JoinToken,
    advertise: SocketAddr,
) -> anyhow::Result<Identity> {
    home.prepare()?;
    let keys = NodeKeys::load_or_generate(&home.identity())?;
    let request = JoinRequest {
        name: name.clone(),
        region: flags.region.clone(),
        zone: flags.zone.clone().unwrap_or_else(|| flags.region.clone()),
        mesh: advertise,
        csr: keys.csr()?,
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let answer = enroll(target, token, request, ENROLL)
        .await
        .map_err(|e| refused(e, name))?;
    let me = Identity::new(keys, &answer.certificate, &answer.ca)?;
    let ca_key = answer.ca_key.as_deref();
    let authority = ca_key
        .map(|key| Authority::from_pem(&answer.ca, key))
        .transpose()?;
    let reach = Reach {
        advertise,
        seeds: seeds(target, &answer),
    };
    let config = nodefile::render(flags, name.as_str(), &reach)?;
    let vault = answer.secrets_key.as_deref();
    let vault = vault.map(Vault::from_hex).transpose()?;
    let (authority, vault) = (authority.as_ref(), vault.as_ref());
    home.joined(authority, vault, &me, &answer.registry, &config)?;
    Ok(me)
}

/// Members to contact first: the one that took this node in, then others.
fn seeds(target: SocketAddr, answer: &JoinResponse) -> Vec<SocketAddr> {
    let mut seeds = vec![target];
    for peer in &answer.peers {
        if peer.node != answer.node && !seeds.contains(&peer.mesh) && seeds.len() < SEEDS {
            seeds.push(peer.mesh);
        }
    }
    seeds
}

fn refused(error: JoinError, name: &Name) -> Failure {
    let message = error.to_string();
    let new_token = "on a member: selvedge token create";
    match error {
        JoinError::Refused(refusal) => match refusal {
            JoinRefusal::TokenUnknown | JoinRefusal::TokenUsed | JoinRefusal::TokenExpired => {
                Failure::new(Exit::NotAuthorised, message).hint(new_token)
            }
            JoinRefusal::NameTaken(_) => {
                Failure::new(Exit::Conflict, message).hint(format!("another name: --name {name}-2"))
            }
            JoinRefusal::NoQuorum(_) | JoinRefusal::Busy => {
                Failure::new(Exit::Unavailable, message).hint("the token is still good: try again")
            }
            JoinRefusal::Invalid(_) => Failure::usage(message),
        },
        JoinError::WrongCluster(_) => Failure::new(Exit::NotAuthorised, message).hint(new_token),
        JoinError::Unreachable(_)
        | JoinError::Connect { .. }
        | JoinError::Dial { .. }
        | JoinError::Talk { .. } => Failure::new(Exit::Unavailable, message)
            .hint("is it the member's mesh address, and is UDP let through to it?"),
        JoinError::Socket(_) | JoinError::Identity(_) => Failure::new(Exit::Failed, message),
    }
}

/// Starts the daemon and waits until it counts itself a member among others.
async fn start(flags: &NodeFlags, home: &Home, me: NodeId) -> anyhow::Result<(Daemon, NodeStatus)> {
    let mut daemon = Daemon::start(flags).await?;
    let client = daemon::client(&home.data);
    daemon.healthy(&client).await?;
    let node = daemon
        .until("the node's place in the cluster", async || {
            let status: Status = client.get("/v1/status").await?;
            // Another member in sight: they see this one too, or are about to.
            if !status.nodes.iter().any(|node| node.id != me && node.alive) {
                return Ok(None);
            }
            let mine = |node: &NodeStatus| node.id == me && node.alive;
            Ok(status.nodes.into_iter().find(mine))
        })
        .await?;
    Ok((daemon, node))
}

/// The token is used and the identity is good: what is left is to start the daemon.
fn enrolled_but_down(error: anyhow::Error, flags: &NodeFlags) -> anyhow::Error {
    let mut failure = Failure::from_error(error);
    let again = format!(
        "this machine is enrolled; start it: selvedged --config {}",
        flags.config.display()
    );
    failure.hint = if failure.hint.is_empty() {
        again
    } else {
        format!("{again}; {}", failure.hint)
    };
    failure.into()
}
