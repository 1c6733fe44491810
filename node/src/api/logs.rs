//! `GET /v1/logs`: the lines of a service's instances, wherever they run, as one NDJSON stream.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{Query, State};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use scheduler::model::{InstanceId, Name, UnixMs};
use serde::Deserialize;

use super::{Api, Failure};
use crate::logs::{self, LogQuery};

/// Lines shown when the caller names no number.
const DEFAULT_TAIL: usize = 200;
/// No caller gets more of the past at once.
const MAX_TAIL: usize = 10_000;

#[derive(Debug, Deserialize)]
pub(super) struct LogsParams {
    namespace: Option<Name>,
    service: Option<Name>,
    instance: Option<String>,
    tail: Option<usize>,
    #[serde(default)]
    follow: bool,
    since: Option<u64>,
    grep: Option<String>,
}

pub(super) async fn stream(
    State(api): State<Arc<Api>>,
    Query(params): Query<LogsParams>,
) -> Result<Response, Failure> {
    if params.service.is_none() && params.instance.is_none() {
        return Err(Failure::invalid("name a service or an instance"));
    }
    let query = LogQuery {
        namespace: params.namespace.unwrap_or_else(Name::default_namespace),
        service: params.service,
        instance: params.instance.map(InstanceId),
        tail: params.tail.unwrap_or(DEFAULT_TAIL).min(MAX_TAIL),
        follow: params.follow,
        since: params.since.map(UnixMs),
        grep: params.grep.filter(|text| !text.is_empty()),
    };
    let lines = logs::gather(&api.agent, &api.mesh, &api.fleet(), query).await;
    let body = Body::from_stream(lines.map(|line| {
        let mut bytes = serde_json::to_vec(&line).unwrap_or_default();
        bytes.push(b'\n');
        Ok::<_, std::convert::Infallible>(Bytes::from(bytes))
    }));
    Ok(([(CONTENT_TYPE, "application/x-ndjson")], body).into_response())
}
