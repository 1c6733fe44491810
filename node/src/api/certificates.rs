//! Certificates: list, put, delete. A key comes in with its chain, is checked and sealed here, and
//! never goes out.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use netfabric::tls::Bundle;
use netfabric::wire::api::{CertificateChange, CertificateState, CertificateView};
use scheduler::model::{Certificate, CertificateSource, Order, UnixMs};
use scheduler::registry::{self, Action};
use zeroize::Zeroize;

use super::{Api, Failure};
use crate::{certs, clock};

/// A certificate is called out when less than this is left of its life, in percent: an ordered one
/// is renewed well before.
const EXPIRING_PERCENT: u64 = 15;

pub(super) async fn list(State(api): State<Arc<Api>>) -> Json<Vec<CertificateView>> {
    Json(views(&api.registry.view().state(), clock::unix()))
}

/// Certificates, and hosts that wait for their first.
fn views(state: &registry::State, now: UnixMs) -> Vec<CertificateView> {
    let certificates = state.certificates.values();
    let mut all: Vec<_> = certificates
        .map(|c| view(c, state.orders.get(&c.name), now))
        .collect();
    let waiting = state.orders.values();
    let waiting = waiting.filter(|o| !state.certificates.contains_key(&o.host));
    all.extend(waiting.map(on_order));
    all
}

fn view(certificate: &Certificate, order: Option<&Order>, now: UnixMs) -> CertificateView {
    CertificateView {
        name: certificate.name.clone(),
        source: certificate.source,
        hosts: certificate.hosts.clone(),
        not_before: certificate.not_before,
        not_after: certificate.not_after,
        seconds_left: certificate.seconds_left(now),
        state: life(certificate, now),
        error: order.and_then(|o| o.error.clone()),
        version: certificate.version,
    }
}

pub(super) fn life(certificate: &Certificate, now: UnixMs) -> CertificateState {
    let (from, until) = (certificate.not_before.0, certificate.not_after.0);
    if until <= now.0 {
        CertificateState::Expired
    } else if until - now.0 < until.saturating_sub(from) / 100 * EXPIRING_PERCENT {
        CertificateState::Expiring
    } else {
        CertificateState::Valid
    }
}

fn on_order(order: &Order) -> CertificateView {
    CertificateView {
        name: order.host.clone(),
        source: CertificateSource::Acme,
        hosts: vec![order.host.clone()],
        not_before: UnixMs(0),
        not_after: UnixMs(0),
        seconds_left: 0,
        state: CertificateState::OnOrder,
        error: order.error.clone(),
        version: 0,
    }
}

pub(super) async fn put(
    State(api): State<Arc<Api>>,
    Path(name): Path<String>,
    body: Result<Json<CertificateChange>, JsonRejection>,
) -> Result<Json<CertificateView>, Failure> {
    let Json(mut wanted) = body?;
    let made = certificate(&api, &name, &wanted);
    wanted.key.zeroize();
    let action = Action::PutCertificate {
        certificate: Box::new(made?),
        if_version: wanted.if_version,
        epoch: None,
    };
    let (index, _) = api.change(action).await?;
    let state = api.registry.view().state();
    let stored = state.certificates.get(&name);
    let stored = stored.filter(|c| c.version >= index);
    let gone = || Failure::not_found(format!("certificate {name} was removed meanwhile"));
    let stored = stored.ok_or_else(gone)?;
    Ok(Json(view(stored, None, clock::unix())))
}

fn certificate(api: &Api, name: &str, wanted: &CertificateChange) -> Result<Certificate, Failure> {
    let now = clock::unix();
    let bundle = Bundle::read(wanted.chain.as_bytes(), wanted.key.as_bytes());
    let bundle = bundle.and_then(|bundle| bundle.check(now).map(|()| bundle));
    let bundle = bundle.map_err(|error| Failure::invalid(error.to_string()))?;
    let vault = api.vault.as_ref().ok_or_else(|| {
        Failure::internal(
            "this node holds no key to seal it with: its cluster was founded before there was one",
        )
    })?;
    let key = vault.seal_for(&certs::purpose(name), wanted.key.as_bytes());
    Ok(Certificate {
        name: name.to_owned(),
        source: CertificateSource::Own,
        hosts: bundle.hosts,
        not_before: bundle.not_before,
        not_after: bundle.not_after,
        chain: wanted.chain.clone(),
        key: key
            .map_err(|error| Failure::internal(format!("the key cannot be sealed: {error}")))?,
        version: 0,
    })
}

pub(super) async fn delete(
    State(api): State<Arc<Api>>,
    Path(name): Path<String>,
) -> Result<Json<serde_json::Value>, Failure> {
    let (index, _) = api
        .change(Action::DeleteCertificate { name, epoch: None })
        .await?;
    Ok(Json(serde_json::json!({ "index": index })))
}
