//! Hosts outside the origin: whose each is, and giving a service one or taking it away.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use netfabric::wire::api::{CertificateState, DomainView, DomainsChange, ServiceView};
use scheduler::model::{Certificate, Domain, Order, Service, ServiceKey, UnixMs, wildcard_over};
use scheduler::registry::{self, Action, Outcome};
use scheduler::route::is_under;

use super::{Api, Failure, certificates, services};
use crate::clock;

pub(super) async fn list(State(api): State<Arc<Api>>) -> Json<Vec<DomainView>> {
    Json(views(&api.registry.view().state(), clock::unix()))
}

fn views(state: &registry::State, now: UnixMs) -> Vec<DomainView> {
    let of = |service: &Service| {
        let key = service.key.clone();
        let domains = service.domains().into_iter();
        domains.map(move |domain| (key.clone(), domain))
    };
    let all = state.services.values().flat_map(of);
    let view = |(key, domain): (ServiceKey, Domain)| {
        let (certificate, order) = secured(state, domain.host(), now);
        DomainView {
            certificate: certificate
                .map(|c| certificates::life(c, now))
                .or(order.map(|_| CertificateState::OnOrder)),
            error: order.and_then(|o| o.error.clone()),
            domain,
            namespace: key.namespace,
            service: key.name,
        }
    };
    let mut views: Vec<_> = all.map(view).collect();
    views.sort_by(|a, b| a.domain.cmp(&b.domain));
    views
}

/// The certificate for a host that lasts longest, and what is known of its order.
fn secured<'s>(
    state: &'s registry::State,
    host: &str,
    now: UnixMs,
) -> (Option<&'s Certificate>, Option<&'s Order>) {
    let over = wildcard_over(host);
    let covers = |c: &&Certificate| {
        let mut hosts = c.hosts.iter();
        c.not_before <= now && hosts.any(|h| h == host || Some(h) == over.as_ref())
    };
    let certificates = state.certificates.values().filter(covers);
    let lasting = certificates.max_by_key(|c| c.not_after);
    (lasting, state.orders.get(host))
}

pub(super) async fn change(
    State(api): State<Arc<Api>>,
    Path((namespace, name)): Path<(String, String)>,
    body: Result<Json<DomainsChange>, JsonRejection>,
) -> Result<Json<ServiceView>, Failure> {
    let Json(DomainsChange { add, remove }) = body?;
    let key = services::service_key(namespace, name)?;
    outside(&api.origin, &add)?;
    let action = Action::ChangeDomains { key, add, remove };
    let (_, outcome) = api.change(action).await?;
    let Outcome::Service { service, .. } = outcome else {
        return Err(Failure::internal("the registry answered no service"));
    };
    let state = api.registry.view().state();
    Ok(Json(api.service_view(&state, &service)))
}

/// Names under the origin are their services' already.
pub(super) fn outside(origin: &str, domains: &[Domain]) -> Result<(), Failure> {
    match domains.iter().find(|d| is_under(d.host(), origin)) {
        Some(domain) => Err(Failure::invalid(format!(
            "domains: `{domain}` is under {origin}, where a service's name is its host"
        ))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_origin_are_not_given_away() {
        let table = [
            ("web.edge.test", false),
            ("a.b.EDGE.test", false),
            ("*.edge.test", false),
            ("edge.test", true),
            ("edge.test/api", true),
            ("web.edge.test.example", true),
            ("webedge.test", true),
        ];
        for (text, good) in table {
            let domain: Domain = text.parse().unwrap();
            assert_eq!(outside("edge.test", &[domain]).is_ok(), good, "{text}");
        }
    }
}
