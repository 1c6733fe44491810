//! `selvedge doctor`: what a node's kernel protects with and what it cannot do, asked of the node itself.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Query, State};
use netfabric::wire::api::{ApiError, Diagnosis, ErrorCode};
use scheduler::model::UnixMs;
use serde::Deserialize;

use super::{Api, Failure, nodes};

/// What peers are asked for.
pub(super) const SUBJECT: &str = "doctor";

#[derive(Debug, Deserialize)]
pub(super) struct Which {
    /// This node when there is none.
    node: Option<String>,
}

impl Api {
    /// This node's own.
    pub(super) async fn diagnose(&self) -> Option<Diagnosis> {
        let founded = self
            .registry
            .view()
            .state()
            .cluster
            .as_ref()
            .map_or(UnixMs(0), |c| c.created);
        let protections = self.protections.clone();
        let looked = tokio::task::spawn_blocking(move || protections.diagnosis(founded)).await;
        let (kernel, checks) = looked.ok()?;
        let closed = self.ingress.closed_ports().into_iter();
        Some(Diagnosis {
            node: self.name.clone(),
            kernel,
            checks,
            closed_ports: closed.map(|(port, why)| format!("{port}: {why}")).collect(),
        })
    }
}

pub(super) async fn get(
    State(api): State<Arc<Api>>,
    Query(which): Query<Which>,
) -> Result<Json<Diagnosis>, Failure> {
    let node = match &which.node {
        Some(name) => nodes::find(&api, name)?.id,
        None => api.me,
    };
    let answer = api.ask(node, &format!("node/{SUBJECT}")).await;
    answer.map(Json).ok_or_else(|| {
        let name = which.node.unwrap_or_else(|| api.name.to_string());
        Failure(ApiError::new(
            ErrorCode::Unreachable,
            format!("node {name} does not say how it is"),
        ))
    })
}
