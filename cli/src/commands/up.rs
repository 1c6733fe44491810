//! `up`: a cluster with this machine as its first node.

use std::process::ExitCode;

use http::Method;
use netfabric::identity::{Authority, Identity, NodeKeys};
use netfabric::wire::api::{TokenRequest, TokenResponse};
use scheduler::model::{Name, NodeId};

use crate::args::UpArgs;
use crate::client::{ANSWER, DEFAULT_SOCKET};
use crate::daemon::{self, Daemon};
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
    let mut daemon = match Daemon::start(&flags).await {
        Ok(daemon) => daemon,
        Err(error) => {
            home.undo(false);
            return Err(error);
        }
    };
    let token = match first_token(&mut daemon, &home, out).await {
        Ok(token) => token,
        Err(error) => {
            daemon.stop().await;
            home.undo(false);
            return Err(error);
        }
    };
    out.text_or(&token, || token.token.clone(), |_| token.line.clone())?;
    out.hint("type that line on the next machine; it works once, within an hour");
    let socket = home.data.join("run/api.sock");
    if socket.to_string_lossy() != DEFAULT_SOCKET {
        out.hint(&format!(
            "talk to this node: export SELVEDGE_ADDR=unix:{}",
            socket.display()
        ));
    }
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

/// Waits until the node leads its cluster of one: then it can make a token.
async fn first_token(
    daemon: &mut Daemon,
    home: &Home,
    out: Printer,
) -> anyhow::Result<TokenResponse> {
    out.progress("starting selvedged");
    let client = daemon::client(&home.data);
    daemon.healthy(&client).await?;
    let request = TokenRequest {
        ttl_seconds: TOKEN_SECONDS,
    };
    let token = daemon
        .until("the cluster's first change", async || {
            client
                .send(Method::POST, "/v1/tokens", &request, ANSWER)
                .await
                .map(Some)
        })
        .await?;
    Ok(token)
}
