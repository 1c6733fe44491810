//! `domain add`, `domain ls`, `domain rm`, `domain check`: host names of people's own.

use std::net::IpAddr;

use http::Method;
use netfabric::wire::api::{DomainView, DomainsChange, NodeStatus, ServiceView};
use scheduler::model::{Domain, Name};

use super::confirm;
use crate::args::DomainCommand;
use crate::client::REGISTRY_ANSWER;
use crate::failure::{Exit, Failure};
use crate::output::{DomainCheck, Reached, domain_check};
use crate::session::Session;

pub async fn run(command: DomainCommand, session: &Session) -> anyhow::Result<()> {
    match command {
        DomainCommand::Add { domain, service } => {
            let add = DomainsChange {
                add: vec![domain.clone()],
                ..DomainsChange::default()
            };
            let view = change(session, &service, &add).await?;
            let said = format!("domain/{domain} is service/{service}'s");
            session.out.progress(&said);
            let host = view.url.split("://").nth(1).unwrap_or_default();
            session.out.hint(&format!(
                "have its DNS lead there, as by a CNAME to {host}; then: selvedge domain check {domain}"
            ));
            Ok(())
        }
        DomainCommand::Ls { all_namespaces } => {
            let all = session.domains(all_namespaces).await?;
            session.out.list(&all, all_namespaces)
        }
        DomainCommand::Rm { domain } => {
            let known = known(session, &domain).await?;
            confirm::destructive(session, "remove domain", &domain.to_string())?;
            let mut session = session.clone();
            session.namespace = known.namespace;
            let remove = DomainsChange {
                remove: vec![domain.clone()],
                ..DomainsChange::default()
            };
            change(&session, &known.service, &remove).await?;
            session.out.progress(&format!("domain/{domain} removed"));
            Ok(())
        }
        DomainCommand::Check { domain } => check(session, &domain).await,
    }
}

async fn change(
    session: &Session,
    service: &Name,
    change: &DomainsChange,
) -> Result<ServiceView, Failure> {
    let path = format!("{}/domains", session.service_path(service));
    let sent = session
        .client
        .send(Method::PATCH, &path, change, REGISTRY_ANSWER);
    match sent.await {
        Err(error) if error.is_not_found() => Err(session.no_service(service, error).await),
        answer => Ok(answer?),
    }
}

/// A domain is one service's, whatever the namespace. The start of one is another domain, and not meant.
async fn known(session: &Session, domain: &Domain) -> Result<DomainView, Failure> {
    let mut all = session.domains(true).await?.into_iter();
    let missing = || {
        Failure::not_found(format!("no service has the domain `{domain}`"))
            .hint("selvedge domain ls -A")
    };
    all.find(|d| d.domain == *domain).ok_or_else(missing)
}

async fn check(session: &Session, domain: &Domain) -> anyhow::Result<()> {
    let known = known(session, domain).await?;
    let nodes = session.nodes().await.map_err(Failure::from)?;
    // Any name will do where all of them are meant.
    let name = domain.host().replacen("*.", "selvedge-check.", 1);
    let resolved = tokio::net::lookup_host((name.as_str(), 80)).await;
    let mut addresses: Vec<IpAddr> = resolved.into_iter().flatten().map(|a| a.ip()).collect();
    addresses.sort_unstable();
    addresses.dedup();
    let reached: Vec<Reached> = addresses.into_iter().map(|a| reached(a, &nodes)).collect();
    let leads = !reached.is_empty() && reached.iter().all(|r| r.node.is_some());
    let found = DomainCheck {
        domain: known.domain,
        namespace: known.namespace,
        service: known.service,
        addresses: reached,
        certificate: known.certificate,
        error: known.error,
    };
    let named = || format!("domain/{domain}");
    session
        .out
        .text_or(&found, named, |_| domain_check(&found))?;
    if leads {
        return Ok(());
    }
    let (message, hint) = if found.addresses.is_empty() {
        let hint = "have its DNS lead to the nodes, as by a CNAME to the service's own host";
        (format!("{name} has no address"), hint)
    } else {
        let hint = "that is as it should be where a load balancer or NAT stands before the nodes";
        let message = format!("{name} leads elsewhere than to the nodes' front doors");
        (message, hint)
    };
    Err(Failure::new(Exit::Failed, message).hint(hint).into())
}

fn reached(address: IpAddr, nodes: &[NodeStatus]) -> Reached {
    let node = nodes.iter().find(|n| n.ingress.contains(&address));
    Reached {
        address,
        node: node.map(|n| n.name.clone()),
    }
}
