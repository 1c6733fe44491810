//! Talks to a node's API: HTTP/1.1 with JSON over its unix socket or TCP. Every await has a
//! deadline, every answer a bound. It knows paths and shapes, not what commands mean by them.

mod target;

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use netfabric::wire::api::{ApiError, ErrorCode, REGISTRY};
use netfabric::wire::touch;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use crate::failure::{Exit, Failure};

pub use target::{DEFAULT_SOCKET, Target};

/// To connect and shake hands: a node is near or is not there.
const CONNECT: Duration = Duration::from_secs(3);
/// For reads and small changes.
pub const ANSWER: Duration = Duration::from_secs(15);
/// For a session in an instance to begin, wherever the instance is.
const SWITCH_ANSWER: Duration = Duration::from_secs(30);
/// For calls in which the node talks to an image registry.
pub const REGISTRY_ANSWER: Duration = Duration::from_mins(2);
/// For moving a whole image.
pub const IMAGE_ANSWER: Duration = Duration::from_mins(15);
/// Larger answers are refused.
const MAX_ANSWER: usize = 64 << 20;

/// A request's body: JSON, nothing, or a stream of a file.
pub type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// Why a call gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("cannot reach the node at {target}: {source}")]
    Connect {
        target: Target,
        source: std::io::Error,
    },
    #[error("the node at {target} did not answer within {seconds} s")]
    Deadline { target: Target, seconds: u64 },
    #[error("the connection to {target} broke: {source}")]
    Broken {
        target: Target,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("{target} answered what this command does not understand: {source}")]
    Strange {
        target: Target,
        source: serde_json::Error,
    },
    #[error("the request cannot be sent: {0}")]
    Request(#[from] http::Error),
    #[error(transparent)]
    Api(#[from] ApiError),
}

impl ClientError {
    /// Whether asking again may help: the node was not reached or could not say.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::Deadline { .. } | Self::Broken { .. } => true,
            Self::Api(error) => {
                matches!(
                    error.code,
                    ErrorCode::NoQuorum | ErrorCode::Unreachable | ErrorCode::Timeout
                )
            }
            Self::Strange { .. } | Self::Request(_) => false,
        }
    }

    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Api(error) if error.code == ErrorCode::NotFound)
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let message = error.to_string();
        match error {
            ClientError::Api(error) if error.code == ErrorCode::Unauthorized && error.hint.is_empty() => {
                Self::from(error).hint(
                    "pass --token or SELVEDGE_TOKEN; on the node it is in DATA/identity/operator.token",
                )
            }
            ClientError::Api(error) => error.into(),
            ClientError::Connect { source, .. }
                if source.kind() == std::io::ErrorKind::PermissionDenied =>
            {
                Self::new(Exit::NotAuthorised, message)
                    .hint("run it as root, or name the TCP API: --addr 127.0.0.1:8420 --token TOKEN")
            }
            ClientError::Connect { .. } => Self::new(Exit::Unavailable, message)
                .hint("is selvedged running there? name another node with --addr, or start one: selvedge up"),
            ClientError::Deadline { .. } | ClientError::Broken { .. } => {
                Self::new(Exit::Unavailable, message)
            }
            ClientError::Strange { .. } => Self::new(Exit::Failed, message)
                .hint("compare the versions: selvedge version"),
            ClientError::Request(_) => Self::new(Exit::Usage, message),
        }
    }
}

/// A node to ask. Each call is a connection of its own.
#[derive(Debug, Clone)]
pub struct Client {
    target: Target,
    token: Option<String>,
}

type Answer<T> = Result<T, ClientError>;

impl Client {
    pub fn new(target: Target, token: Option<String>) -> Self {
        Self { target, token }
    }

    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Answer<T> {
        self.get_within(path, ANSWER).await
    }

    /// A read that may take until `deadline`.
    pub async fn get_within<T: DeserializeOwned>(
        &self,
        path: &str,
        deadline: Duration,
    ) -> Answer<T> {
        self.read(self.request(Method::GET, path, None)?, deadline)
            .await
    }

    /// Sends `body` as JSON and reads the answer.
    pub async fn send<Q: Serialize + Sync, T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &Q,
        deadline: Duration,
    ) -> Answer<T> {
        self.read(
            self.request(method, path, Some(self.json(body)?))?,
            deadline,
        )
        .await
    }

    /// Asks for a change without a body; the answer's body is not looked at.
    pub async fn change(&self, method: Method, path: &str) -> Answer<()> {
        let request = self.request(method, path, None)?;
        self.bounded(ANSWER, async {
            self.bytes(self.exchange(request).await?).await
        })
        .await
        .map(drop)
    }

    /// Streams `body` and reads the answer.
    pub async fn upload<T: DeserializeOwned>(&self, path: &str, body: Body) -> Answer<T> {
        let mut request = self.request(Method::POST, path, None)?;
        *request.body_mut() = body;
        let octets = header::HeaderValue::from_static("application/octet-stream");
        request.headers_mut().insert(header::CONTENT_TYPE, octets);
        self.read(request, IMAGE_ANSWER).await
    }

    /// A call of the distribution API, whose shapes are not ours, for an image of `registry`: the
    /// digest that the answer names, or nothing when there is no such thing.
    pub async fn distribution(
        &self,
        method: Method,
        path: &str,
        registry: &str,
        (kind, body): (&str, Body),
    ) -> Answer<Option<String>> {
        let mut request = self.request(method, path, None)?;
        *request.body_mut() = body;
        for (name, value) in [("content-type", kind), (REGISTRY, registry)] {
            let value = header::HeaderValue::from_str(value).map_err(http::Error::from)?;
            request.headers_mut().insert(name, value);
        }
        self.bounded(IMAGE_ANSWER, async {
            let response = self.exchange(request).await?;
            if response.status() == http::StatusCode::NOT_FOUND {
                return Ok(None);
            }
            let digest = response.headers().get("docker-content-digest");
            let digest = digest.and_then(|d| d.to_str().ok()).map(str::to_owned);
            self.bytes(response).await?;
            Ok(Some(digest.unwrap_or_default()))
        })
        .await
    }

    /// An answer whose body is read as it comes (a log that is followed).
    pub async fn open(&self, path: &str) -> Answer<Response<Incoming>> {
        let request = self.request(Method::GET, path, None)?;
        self.bounded(ANSWER, async {
            let response = self.exchange(request).await?;
            if response.status().is_success() {
                return Ok(response);
            }
            let status = response.status();
            let bytes = self.bytes_of(response).await?;
            Err(refusal(status, &bytes).into())
        })
        .await
    }

    /// Asks with `body` as JSON for a connection that is no HTTP any more.
    pub async fn switch<Q: Serialize + Sync>(&self, path: &str, body: &Q) -> Answer<Upgraded> {
        let mut request = self.request(Method::POST, path, Some(self.json(body)?))?;
        let headers = request.headers_mut();
        let word = header::HeaderValue::from_static;
        headers.insert(header::CONNECTION, word("upgrade"));
        headers.insert(header::UPGRADE, word(touch::PROTOCOL));
        self.bounded(SWITCH_ANSWER, async {
            let response = self.exchange(request).await?;
            let status = response.status();
            if status == http::StatusCode::SWITCHING_PROTOCOLS {
                return hyper::upgrade::on(response)
                    .await
                    .map_err(|e| self.broken(e));
            }
            let bytes = self.bytes_of(response).await?;
            Err(refusal(status, &bytes).into())
        })
        .await
    }

    fn json<Q: Serialize>(&self, body: &Q) -> Answer<Bytes> {
        let strange = |source| ClientError::Strange {
            target: self.target.clone(),
            source,
        };
        serde_json::to_vec(body).map(Bytes::from).map_err(strange)
    }

    fn request(&self, method: Method, path: &str, json: Option<Bytes>) -> Answer<Request<Body>> {
        let host = match &self.target {
            Target::Unix(_) => "selvedge",
            Target::Tcp(host) => host.as_str(),
        };
        let mut builder = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, host);
        if json.is_some() {
            builder = builder.header(header::CONTENT_TYPE, "application/json");
        }
        if let Some(token) = &self.token {
            builder = builder.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let body = Full::new(json.unwrap_or_default()).map_err(|never| match never {});
        Ok(builder.body(body.boxed_unsync())?)
    }

    async fn read<T: DeserializeOwned>(
        &self,
        request: Request<Body>,
        deadline: Duration,
    ) -> Answer<T> {
        let bytes = self
            .bounded(deadline, async {
                self.bytes(self.exchange(request).await?).await
            })
            .await?;
        let strange = |source| ClientError::Strange {
            target: self.target.clone(),
            source,
        };
        serde_json::from_slice(&bytes).map_err(strange)
    }

    async fn bounded<T>(
        &self,
        deadline: Duration,
        answer: impl Future<Output = Answer<T>>,
    ) -> Answer<T> {
        let late = || ClientError::Deadline {
            target: self.target.clone(),
            seconds: deadline.as_secs(),
        };
        timeout(deadline, answer)
            .await
            .unwrap_or_else(|_| Err(late()))
    }

    async fn exchange(&self, request: Request<Body>) -> Answer<Response<Incoming>> {
        match &self.target {
            Target::Unix(path) => {
                self.over(self.connected(UnixStream::connect(path)).await?, request)
                    .await
            }
            Target::Tcp(host) => {
                self.over(self.connected(TcpStream::connect(host)).await?, request)
                    .await
            }
        }
    }

    async fn connected<S>(&self, connect: impl Future<Output = std::io::Result<S>>) -> Answer<S> {
        let refused = |source| ClientError::Connect {
            target: self.target.clone(),
            source,
        };
        let late = || refused(std::io::ErrorKind::TimedOut.into());
        timeout(CONNECT, connect)
            .await
            .map_err(|_| late())?
            .map_err(refused)
    }

    async fn over<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
        &self,
        stream: S,
        request: Request<Body>,
    ) -> Answer<Response<Incoming>> {
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| self.broken(e))?;
        // Ends when the sender and the answer's body are dropped.
        tokio::spawn(connection.with_upgrades());
        sender
            .send_request(request)
            .await
            .map_err(|e| self.broken(e))
    }

    fn broken(&self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> ClientError {
        ClientError::Broken {
            target: self.target.clone(),
            source: source.into(),
        }
    }

    /// The body of a success; anything else becomes the error it carries.
    async fn bytes(&self, response: Response<Incoming>) -> Answer<Bytes> {
        let status = response.status();
        let bytes = self.bytes_of(response).await?;
        if status.is_success() {
            Ok(bytes)
        } else {
            Err(refusal(status, &bytes).into())
        }
    }

    async fn bytes_of(&self, response: Response<Incoming>) -> Answer<Bytes> {
        let body = Limited::new(response.into_body(), MAX_ANSWER);
        Ok(body.collect().await.map_err(|e| self.broken(e))?.to_bytes())
    }
}

/// The error in an answer; when it carries none, what its status says and a registry's words.
fn refusal(status: http::StatusCode, body: &[u8]) -> ApiError {
    serde_json::from_slice(body).unwrap_or_else(|_| {
        let said: Option<serde_json::Value> = serde_json::from_slice(body).ok();
        let said = said
            .as_ref()
            .and_then(|v| v["errors"][0]["message"].as_str());
        let body = said.map_or(body, str::as_bytes);
        let code = match status.as_u16() {
            404 => ErrorCode::NotFound,
            409 => ErrorCode::Conflict,
            410 => ErrorCode::Gone,
            422 => ErrorCode::CannotPlace,
            503 | 502 => ErrorCode::Unreachable,
            401 | 403 => ErrorCode::Unauthorized,
            413 => ErrorCode::TooLarge,
            504 => ErrorCode::Timeout,
            400..=499 => ErrorCode::Invalid,
            _ => ErrorCode::Internal,
        };
        let text: String = String::from_utf8_lossy(body)
            .trim()
            .chars()
            .take(200)
            .collect();
        ApiError::new(code, format!("the node answered {status}: {text}"))
    })
}

/// `text` as one part of a query.
pub fn encoded(text: &str) -> String {
    use std::fmt::Write;
    text.bytes().fold(String::new(), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(out, "%{byte:02X}");
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_encoded() {
        assert_eq!(
            encoded("docker.io/library/a:1"),
            "docker.io%2Flibrary%2Fa%3A1"
        );
    }

    #[test]
    fn a_refusal_without_json_is_read_from_its_status() {
        let error = refusal(http::StatusCode::SERVICE_UNAVAILABLE, b"nope");
        assert_eq!(error.code, ErrorCode::Unreachable);
        assert!(error.message.contains("nope"));
    }
}
