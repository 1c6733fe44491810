//! The operator's API: HTTP in, registry commands and views out. One file per family. On a unix
//! socket whoever may open it is root; on TCP every call but `healthz` carries the operator token.

mod answer;
mod certificates;
mod configs;
mod deploy;
mod doctor;
mod domains;
mod explain;
mod gather;
mod history;
mod images;
mod logs;
mod nodes;
mod objects;
mod secrets;
mod services;
mod touch;
mod usage;
mod views;
mod volumes;
mod watch;
mod why_not;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::header::{AUTHORIZATION, HOST, ORIGIN};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, patch, post, put};
use netfabric::identity::Vault;
use netfabric::ingress::Ingress;
use netfabric::transport::Mesh;
use netfabric::wire::api::{ApiError, ErrorCode};
use scheduler::fleet::Fleet;
use scheduler::model::{Name, NodeId};
use tokio::sync::watch::Receiver;

use crate::agent::Agent;
use crate::consensus::Registry;
use crate::distribution::{self, Distribution};
use crate::images::Images;
use crate::meter::Meter;
use crate::protections::Protections;
use crate::telemetry::decisions::Decisions;
use crate::touch::Toucher;

pub(crate) use answer::Failure;
pub(crate) use explain::local as explain_local;
pub(crate) use images::shares_local as image_shares_local;
pub(crate) use usage::local as usage_local;

/// A JSON body; a manifest of the largest allowed size fits with room.
const MAX_BODY: usize = 1024 * 1024;
/// 1 MiB of values in hex, with room for their keys.
const MAX_OBJECT_BODY: usize = 3 * 1024 * 1024;

/// Everything an answer is made from.
pub struct Api {
    pub me: NodeId,
    pub name: Name,
    pub origin: String,
    pub ca_hash: String,
    pub mesh_address: SocketAddr,
    pub registry: Registry,
    pub fleet: Receiver<Arc<Fleet>>,
    pub agent: Agent,
    pub meter: Meter,
    pub decisions: Decisions,
    pub images: Images,
    pub ingress: Arc<Ingress>,
    pub mesh: Mesh,
    pub protections: Protections,
    pub toucher: Toucher,
    pub pushes: Arc<Distribution>,
    /// What TCP callers must show.
    pub operator_token: String,
    /// Seals what becomes part of a secret.
    pub vault: Option<Vault>,
}

impl Api {
    fn fleet(&self) -> Arc<Fleet> {
        self.fleet.borrow().clone()
    }
}

/// Serves on the unix socket at `socket` until the task is dropped.
pub async fn serve_unix(api: Arc<Api>, socket: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = tokio::net::UnixListener::bind(socket)?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600))?;
    axum::serve(listener, routes(api)).await
}

/// Serves on an already bound TCP listener, asking for the operator token.
pub async fn serve_tcp(api: Arc<Api>, listener: tokio::net::TcpListener) -> std::io::Result<()> {
    let guarded = routes(api.clone()).layer(middleware::from_fn_with_state(api, authorise));
    axum::serve(listener, guarded).await
}

fn routes(api: Arc<Api>) -> Router {
    let import = Router::new()
        .route("/v1/images/import", post(images::import))
        .layer(DefaultBodyLimit::disable());
    let pushes = distribution::named_routes(api.pushes.clone());
    Router::new()
        .route("/v1/healthz", get(|| async { "ok" }))
        .route("/v1/version", get(nodes::version))
        .route("/v1/status", get(nodes::status))
        .route("/v1/doctor", get(doctor::get))
        .route("/v1/nodes", get(nodes::list))
        .route("/v1/nodes/{name}", get(nodes::get))
        .route("/v1/nodes/{name}/remove", post(nodes::remove))
        .route("/v1/nodes/{name}/cordon", post(nodes::cordon))
        .route("/v1/nodes/{name}/uncordon", post(nodes::uncordon))
        .route("/v1/nodes/{name}/drain", post(nodes::drain))
        .route("/v1/tokens", post(nodes::create_token))
        .route("/v1/services", get(services::list))
        .route(
            "/v1/services/{namespace}/{name}",
            get(services::get).put(deploy::put).delete(services::delete),
        )
        .route("/v1/services/{namespace}/{name}/wait", get(deploy::wait))
        .route(
            "/v1/services/{namespace}/{name}/scale",
            post(services::scale),
        )
        .route(
            "/v1/services/{namespace}/{name}/domains",
            patch(domains::change),
        )
        .route("/v1/domains", get(domains::list))
        .route("/v1/revisions", get(services::revisions))
        .route("/v1/revisions/{namespace}/{name}", get(services::revision))
        .route("/v1/instances", get(services::instances))
        .route("/v1/instances/{id}", get(services::instance))
        .route("/v1/instances/{id}/exec", post(touch::exec))
        .route("/v1/instances/{id}/copy", post(touch::copy))
        .route("/v1/instances/{id}/port-forward", post(touch::forward))
        .route("/v1/explain/instance/{id}", get(explain::instance))
        .route(
            "/v1/explain/service/{namespace}/{name}",
            get(explain::service),
        )
        .route("/v1/explain/request/{id}", get(explain::request))
        .route(
            "/v1/explain/why-not/{namespace}/{name}/{node}",
            get(why_not::node),
        )
        .route("/v1/logs", get(logs::stream))
        .route("/v1/usage", get(usage::get))
        .route("/v1/watch", get(watch::stream))
        .route("/v1/images", get(images::list))
        .route("/v1/images/pull", post(images::pull))
        .route("/v1/images/usage", get(images::usage))
        .route("/v1/images/prune", post(images::prune))
        .route("/v1/images/{digest}", delete(images::delete))
        .route("/v1/certificates", get(certificates::list))
        .route(
            "/v1/certificates/{name}",
            put(certificates::put).delete(certificates::delete),
        )
        .route("/v1/volumes", get(volumes::list))
        .route("/v1/volumes/{namespace}/{name}", delete(volumes::delete))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .merge(import)
        .merge(objects())
        .fallback(|| async { Failure::not_found("no such path in this API") })
        .with_state(api)
        .merge(pushes)
}

/// Configs and secrets, whose bodies may be larger.
fn objects() -> Router<Arc<Api>> {
    let config = get(configs::get).patch(configs::patch);
    let secret = get(secrets::get).patch(secrets::patch);
    Router::new()
        .route("/v1/configs", get(configs::list))
        .route(
            "/v1/configs/{namespace}/{name}",
            config.delete(configs::delete),
        )
        .route("/v1/secrets", get(secrets::list))
        .route(
            "/v1/secrets/{namespace}/{name}",
            secret.delete(secrets::delete),
        )
        .layer(DefaultBodyLimit::max(MAX_OBJECT_BODY))
}

/// The token, and no browser: a page that talks a browser into calling the loopback address sends
/// an `Origin`, or a `Host` that is no address of ours.
async fn authorise(State(api): State<Arc<Api>>, request: Request, next: Next) -> Response {
    if request.uri().path() == "/v1/healthz" || is_operator(&api, &request) {
        return next.run(request).await;
    }
    let error = ApiError::new(
        ErrorCode::Unauthorized,
        "the operator token is missing or wrong",
    )
    .hint("pass --token or SELVEDGE_TOKEN; the node keeps it in DATA/identity/operator.token");
    Failure(error).into_response()
}

fn is_operator(api: &Api, request: &Request) -> bool {
    let header = |name| request.headers().get(name).and_then(|v| v.to_str().ok());
    let shown = header(AUTHORIZATION)
        .and_then(|v| v.strip_prefix("Bearer "))
        .unwrap_or_default();
    let local = header(HOST).is_some_and(|host| {
        let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
        name == "localhost"
            || name
                .trim_matches(['[', ']'])
                .parse::<std::net::IpAddr>()
                .is_ok()
    });
    local && header(ORIGIN).is_none() && same_secret(shown, &api.operator_token)
}

/// Compares without telling by its time how much was right.
pub(crate) fn same_secret(a: &str, b: &str) -> bool {
    a.len() == b.len()
        && a.bytes()
            .zip(b.bytes())
            .fold(0, |diff, (a, b)| diff | (a ^ b))
            == 0
}
