//! `up`: a cluster with this machine as its first node.

use std::process::ExitCode;

use http::Method;
use netfabric::identity::{Authority, Identity, NodeKeys};
use netfabric::wire::api::{TokenRequest, TokenResponse};
use scheduler::model::{Name, NodeId};

use crate::args::{NodeFlags, UpArgs};
use crate::client::ANSWER;
use crate::daemon::{self, Daemon};
use crate::failure::Failure;
use crate::home::Home;
use crate::machine;
use crate::nodefile::{self, Reach};
use crate::printer::Printer;

/// The registry gives its first node this number.
const FOUNDER: NodeId = NodeId(1);
/// How long the join line that is printed can be used.
const TOKEN_SECONDS: u64 = 3600;

pub async fn run(args: UpArgs, out: Printer) -> anyhow::Result<ExitCode> {
    let flags = args.node;
    machine::require_root()?;
    let home = Home::vacant(&flags)?;
    let name = machine::name(flags.name.as_ref())?;
    let advertise = machine::advertised(&flags, None)?;
    machine::ports_are_free(&flags)?;
    let config = nodefile::render(
        &flags,
        name.as_str(),
        &Reach {
            advertise,
            seeds: Vec::new(),
        },
    )?;
    if let Err(error) = found(&home, &config, &name, out) {
        home.undo(false);
        return Err(error);
    }
    if flags.no_start {
        out.hint(&format!(
            "start it: selvedged --config {}",
            flags.config.display()
        ));
        return Ok(ExitCode::SUCCESS);
    }
    let (daemon, token) = match start(&flags, &home, out).await {
        Ok(started) => started,
        Err(error) => {
            home.undo(false);
            return Err(error);
        }
    };
    out.text_or(&token, || token.token.clone(), |_| token.line.clone())?;
    out.hint("type that line on the next machine; it works once, within an hour");
    daemon::hint_address(&home.data, out);
    if flags.foreground {
        daemon.attend().await
    } else {
        Ok(ExitCode::SUCCESS)
    }
}

/// Makes the cluster's authority and this node's identity, and writes them.
fn found(home: &Home, config: &str, name: &Name, out: Printer) -> anyhow::Result<()> {
    home.prepare()?;
    let authority = Authority::create()?;
    let keys = NodeKeys::load_or_generate(&home.identity())?;
    let certificate = authority.sign(&keys.csr()?, FOUNDER)?;
    let me = Identity::new(keys, &certificate, authority.ca_pem())?;
    home.found(&authority, &me, config)?;
    out.progress(&format!(
        "cluster {} founded, this is node {name}",
        authority.cluster_id()
    ));
    Ok(())
}

/// Starts the daemon; one that cannot lead is ended again.
async fn start(
    flags: &NodeFlags,
    home: &Home,
    out: Printer,
) -> anyhow::Result<(Daemon, TokenResponse)> {
    out.progress("starting selvedged");
    let mut daemon = Daemon::start(flags).await?;
    match first_token(&mut daemon, home).await {
        Ok(token) => Ok((daemon, token)),
        Err(failure) => {
            daemon.stop().await;
            Err(failure.into())
        }
    }
}

/// Waits until the node leads its cluster of one: then it can make a token.
async fn first_token(daemon: &mut Daemon, home: &Home) -> Result<TokenResponse, Failure> {
    let client = daemon::client(&home.data);
    daemon.healthy(&client).await?;
    let request = TokenRequest {
        ttl_seconds: TOKEN_SECONDS,
    };
    daemon
        .until("the cluster's first change", async || {
            client
                .send(Method::POST, "/v1/tokens", &request, ANSWER)
                .await
                .map(Some)
        })
        .await
}
