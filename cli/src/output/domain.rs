//! What `domain check` found.

use std::net::IpAddr;

use netfabric::wire::api::CertificateState;
use scheduler::model::{Domain, Name};
use serde::Serialize;

use super::rows::held;

/// What a domain's name leads to, as the resolver of the machine that asks has it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DomainCheck {
    pub domain: Domain,
    pub namespace: Name,
    pub service: Name,
    pub addresses: Vec<Reached>,
    pub certificate: Option<CertificateState>,
    /// Why the last order for one failed.
    pub error: Option<String>,
}

#[derive(Debug, Serialize)]
pub struct Reached {
    pub address: IpAddr,
    /// The node whose front door has it.
    pub node: Option<Name>,
}

pub fn domain_check(found: &DomainCheck) -> String {
    let reached = found.addresses.iter().map(|r| match &r.node {
        Some(node) => format!("{} is node {node}'s", r.address),
        None => format!("{} is no node's", r.address),
    });
    let certificate = match (found.certificate, &found.error) {
        (None, _) => "none".to_owned(),
        (Some(state), None) => held(state, false).to_owned(),
        (Some(state), Some(error)) => format!("{}: {error}", held(state, true)),
    };
    let addresses: Vec<String> = reached.collect();
    let addresses = match addresses.as_slice() {
        [] => "none".to_owned(),
        some => some.join("\n             "),
    };
    format!(
        "Domain:      {}\nService:     {}/{}\nAddresses:   {addresses}\nCertificate: {certificate}",
        found.domain, found.namespace, found.service
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_a_domain_leads() {
        let name = |text: &str| Name::new(text).unwrap();
        let reached = |address: &str, node: Option<&str>| Reached {
            address: address.parse().unwrap(),
            node: node.map(name),
        };
        let mut found = DomainCheck {
            domain: "www.example.com/shop".parse().unwrap(),
            namespace: name("default"),
            service: name("web"),
            addresses: vec![
                reached("192.0.2.1", Some("par-1")),
                reached("192.0.2.9", None),
            ],
            certificate: Some(CertificateState::Valid),
            error: None,
        };
        let whole = domain_check(&found);
        found.addresses.clear();
        found.certificate = Some(CertificateState::OnOrder);
        found.error = Some("no such host".to_owned());
        insta::assert_snapshot!(format!("{whole}\n\n{}", domain_check(&found)));
    }
}
