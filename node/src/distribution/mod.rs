//! The push side of the OCI distribution API, so that images enter a fleet without a registry. Owns
//! the protocol and who may speak it; what arrives is kept and judged by the image room.
//!
//! No call is anonymous. Packed layers are not served: a `GET` gives exact bytes of manifests and
//! configurations, and 404 for a layer that a `HEAD` rightly says need not be sent.

mod answer;
mod call;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Path, Query, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::TryStreamExt;
use netfabric::wire::api::REGISTRY;
use tokio::net::TcpListener;

use crate::api::same_secret;
use crate::image::{Digest, PushError, Pushed, Pushes, Reference};
use answer::Refusal;
use call::{Call, range_start};

const MAX_MANIFEST: usize = 4 * 1024 * 1024;
/// How often given-up uploads are looked for.
const EXPIRE_EVERY: Duration = Duration::from_mins(5);
const CONTENT_DIGEST: &str = "docker-content-digest";
/// Tags of one answer.
const MAX_TAGS: usize = 1000;

type Answer = Result<Response, Refusal>;
type Queries = BTreeMap<String, String>;

/// The door images are pushed through.
pub struct Distribution {
    pushes: Pushes,
    token: String,
    /// Tells the fleet that this node holds another image.
    changed: Box<dyn Fn() + Send + Sync>,
}

impl Distribution {
    pub fn new(pushes: Pushes, token: String, changed: Box<dyn Fn() + Send + Sync>) -> Self {
        Self {
            pushes,
            token,
            changed,
        }
    }
}

/// Gives up uploads that their senders gave up, until the task is dropped.
pub async fn expire(door: Arc<Distribution>) {
    let mut ticks = tokio::time::interval(EXPIRE_EVERY);
    loop {
        ticks.tick().await;
        door.pushes.expire(Instant::now());
    }
}

/// Serves on an already bound listener until the task is dropped.
pub async fn serve(door: Arc<Distribution>, listener: TcpListener) -> std::io::Result<()> {
    let guarded = routes(Arc::clone(&door))
        .fallback(|| async { Refusal::NoSuchPath })
        .layer(middleware::from_fn_with_state(door, authorise));
    axum::serve(listener, guarded).await
}

/// The same for callers that somebody else has let in, under any registry's name: what
/// [`REGISTRY`] says, else `localhost`.
pub fn named_routes(door: Arc<Distribution>) -> Router {
    routes(door).layer(middleware::map_request(|mut request: Request| async {
        let headers = request.headers_mut();
        let named = headers.remove(REGISTRY);
        let name = named.unwrap_or_else(|| HeaderValue::from_static("localhost"));
        headers.insert(header::HOST, name);
        request
    }))
}

fn routes(door: Arc<Distribution>) -> Router {
    let version = || async { ([("docker-distribution-api-version", "registry/2.0")], "{}") };
    Router::new()
        .route("/v2/", get(version))
        .route("/v2/{*rest}", any(dispatch))
        .layer(DefaultBodyLimit::disable())
        .with_state(door)
}

async fn authorise(
    State(door): State<Arc<Distribution>>,
    request: Request,
    next: Next,
) -> Response {
    let shown = shown_token(request.headers()).unwrap_or_default();
    // A page that talks a browser into calling loopback sends an `Origin`.
    let browser = request.headers().contains_key(header::ORIGIN);
    if browser || door.token.is_empty() || !same_secret(&shown, &door.token) {
        return Refusal::Unauthorised.into_response();
    }
    next.run(request).await
}

/// The token as `docker login` sends it, as a password, or as programs do.
fn shown_token(headers: &HeaderMap) -> Option<String> {
    let text = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    if let Some(token) = text.strip_prefix("Bearer ") {
        return Some(token.to_owned());
    }
    let decoded = STANDARD.decode(text.strip_prefix("Basic ")?.trim()).ok()?;
    let text = String::from_utf8(decoded).ok()?;
    text.split_once(':').map(|(_, token)| token.to_owned())
}

async fn dispatch(
    State(door): State<Arc<Distribution>>,
    Path(path): Path<String>,
    Query(query): Query<Queries>,
    request: Request,
) -> Answer {
    let call = Call::parse(&path).ok_or(Refusal::NoSuchPath)?;
    let (parts, body) = request.into_parts();
    let (method, headers) = (parts.method, parts.headers);
    if !call.allows(&method) {
        return Err(Refusal::NoSuchMethod);
    }
    match call {
        Call::Tags { name } => tags(&door, &host(&headers), name),
        Call::Blob { name, digest } => {
            repository(&headers, name)?;
            blob(&door, &method, digest).await
        }
        Call::Begin { name } => {
            repository(&headers, name)?;
            begin(&door, name, &query, body).await
        }
        Call::Upload { name, id } => {
            let piece = (range(&headers)?, body);
            upload(&door, &method, (name, id), &query, piece).await
        }
        Call::Manifest { name, reference } => {
            let named = named(&headers, name, reference)?;
            if method == Method::PUT {
                put_manifest(&door, name, &named, body).await
            } else {
                get_manifest(&door, &method, &named).await
            }
        }
    }
}

fn host(headers: &HeaderMap) -> String {
    let host = headers.get(header::HOST).and_then(|v| v.to_str().ok());
    host.unwrap_or("localhost").to_owned()
}

/// A repository as the client names it: with the host it talks to, which is the image's name.
fn repository(headers: &HeaderMap, name: &str) -> Result<Reference, Refusal> {
    Reference::parse(&format!("{}/{name}", host(headers))).map_err(Refusal::BadName)
}

fn named(headers: &HeaderMap, name: &str, reference: &str) -> Result<Reference, Refusal> {
    repository(headers, name)?;
    let mark = if reference.contains(':') { '@' } else { ':' };
    let full = format!("{}/{name}{mark}{reference}", host(headers));
    Reference::parse(&full).map_err(Refusal::BadName)
}

fn digest(text: &str) -> Result<Digest, Refusal> {
    text.parse().map_err(|_| Refusal::BadDigest)
}

fn range(headers: &HeaderMap) -> Result<Option<u64>, Refusal> {
    let Some(value) = headers.get(header::CONTENT_RANGE) else {
        return Ok(None);
    };
    let start = value.to_str().ok().and_then(range_start);
    start.map(Some).ok_or(Refusal::BadRange)
}

fn tags(door: &Distribution, host: &str, name: &str) -> Answer {
    let prefix = Reference::parse(&format!("{host}/{name}")).map_err(Refusal::BadName)?;
    let prefix = format!("{}/{}:", prefix.registry(), prefix.repository());
    let images = door.pushes.list();
    let names = images.iter().flat_map(|image| &image.names);
    let mut tags: Vec<&str> = names.filter_map(|n| n.strip_prefix(&prefix)).collect();
    if tags.is_empty() {
        return Err(Refusal::NameUnknown);
    }
    tags.sort_unstable();
    tags.truncate(MAX_TAGS);
    Ok(axum::Json(serde_json::json!({ "name": name, "tags": tags })).into_response())
}

async fn blob(door: &Distribution, method: &Method, text: &str) -> Answer {
    let digest = digest(text)?;
    if method == Method::HEAD {
        let size = door.pushes.held(&digest).await.map_err(Refusal::Blob)?;
        let size = size.ok_or_else(|| Refusal::Blob(PushError::BlobUnknown(digest.clone())))?;
        return Ok(sized(
            &digest,
            size,
            "application/octet-stream",
            Body::empty(),
        ));
    }
    let bytes = door.pushes.document(&digest).await.map_err(Refusal::Blob)?;
    let bytes = bytes.ok_or_else(|| Refusal::Blob(PushError::BlobUnknown(digest.clone())))?;
    let size = bytes.len() as u64;
    Ok(sized(
        &digest,
        size,
        "application/octet-stream",
        bytes.into(),
    ))
}

fn sized(digest: &Digest, size: u64, media_type: &str, body: Body) -> Response {
    let headers = [
        (CONTENT_DIGEST, digest.to_string()),
        ("content-length", size.to_string()),
        ("content-type", media_type.to_owned()),
    ];
    (headers, body).into_response()
}

async fn begin(door: &Distribution, name: &str, query: &Queries, body: Body) -> Answer {
    if let Some(mounted) = query.get("mount") {
        let digest = digest(mounted)?;
        if door
            .pushes
            .held(&digest)
            .await
            .map_err(Refusal::Blob)?
            .is_some()
        {
            return Ok(created(name, "blobs", &digest));
        }
    }
    let whole = query.get("digest").map(|text| digest(text)).transpose()?;
    let id = door.pushes.begin(name).await.map_err(Refusal::Blob)?;
    match whole {
        Some(digest) => complete(door, (name, &id), &digest, (None, body)).await,
        None => Ok(progress(StatusCode::ACCEPTED, (name, &id), 0)),
    }
}

async fn upload(
    door: &Distribution,
    method: &Method,
    (name, id): (&str, &str),
    query: &Queries,
    (at, body): (Option<u64>, Body),
) -> Answer {
    match *method {
        Method::GET => {
            let size = door.pushes.size(name, id).map_err(Refusal::Blob)?;
            Ok(progress(StatusCode::NO_CONTENT, (name, id), size))
        }
        Method::DELETE => {
            door.pushes.cancel(name, id).map_err(Refusal::Blob)?;
            Ok(StatusCode::NO_CONTENT.into_response())
        }
        Method::PATCH => {
            let reader = reader(body);
            let appended = door.pushes.append(name, id, at, reader).await;
            let size = appended.map_err(Refusal::Blob)?;
            Ok(progress(StatusCode::ACCEPTED, (name, id), size))
        }
        _ => {
            let given = query.get("digest").ok_or(Refusal::BadDigest)?;
            complete(door, (name, id), &digest(given)?, (at, body)).await
        }
    }
}

async fn complete(
    door: &Distribution,
    (name, id): (&str, &str),
    digest: &Digest,
    (at, body): (Option<u64>, Body),
) -> Answer {
    let appended = door.pushes.append(name, id, at, reader(body)).await;
    appended.map_err(Refusal::Blob)?;
    let completed = door.pushes.complete(name, id, digest);
    completed.map_err(Refusal::Blob)?;
    Ok(created(name, "blobs", digest))
}

fn reader(body: Body) -> impl tokio::io::AsyncRead + Unpin {
    let stream = body.into_data_stream().map_err(std::io::Error::other);
    Box::pin(tokio_util::io::StreamReader::new(stream))
}

fn progress(status: StatusCode, (name, id): (&str, &str), size: u64) -> Response {
    let headers = [
        ("location", format!("/v2/{name}/blobs/uploads/{id}")),
        ("range", format!("0-{}", size.saturating_sub(1))),
        ("docker-upload-uuid", id.to_owned()),
    ];
    (status, headers).into_response()
}

fn created(name: &str, kind: &str, digest: &Digest) -> Response {
    let headers = [
        ("location", format!("/v2/{name}/{kind}/{digest}")),
        (CONTENT_DIGEST, digest.to_string()),
    ];
    (StatusCode::CREATED, headers).into_response()
}

async fn put_manifest(door: &Distribution, name: &str, named: &Reference, body: Body) -> Answer {
    let bytes = axum::body::to_bytes(body, MAX_MANIFEST).await;
    let bytes: Bytes =
        bytes.map_err(|e| Refusal::Manifest(PushError::Cut(std::io::Error::other(e))))?;
    let digest = Digest::of(&bytes);
    if named.digest().is_some_and(|given| *given != digest) {
        return Err(Refusal::WrongManifestDigest);
    }
    let pushed = door.pushes.accept(named, bytes).await;
    match pushed.map_err(Refusal::Manifest)? {
        Pushed::Image(image) => {
            tracing::info!(image = %named, digest = %image.pin.digest, "pushed");
        }
        Pushed::Beside(image) => {
            let of = &image.pin.digest;
            tracing::info!(document = %named, %of, "pushed");
        }
        Pushed::Other => tracing::info!(manifest = %named, "no image for this machine"),
    }
    (door.changed)();
    Ok(created(name, "manifests", &digest))
}

async fn get_manifest(door: &Distribution, method: &Method, named: &Reference) -> Answer {
    let pushes = &door.pushes;
    let found = match pushes.beside(named).await.map_err(Refusal::Manifest)? {
        Some(document) => Some(document),
        None => match pushes.find(named) {
            Some(image) => {
                let digest = image.digest().map_err(|e| Refusal::Manifest(e.into()))?;
                pushes.document(&digest).await.map_err(Refusal::Manifest)?
            }
            None => None,
        },
    };
    let bytes = found.ok_or(Refusal::ManifestUnknown)?;
    let digest = Digest::of(&bytes);
    let media_type = crate::image::media_type(&bytes);
    let size = bytes.len() as u64;
    let body = if method == Method::HEAD {
        Body::empty()
    } else {
        bytes.into()
    };
    Ok(sized(&digest, size, &media_type, body))
}
