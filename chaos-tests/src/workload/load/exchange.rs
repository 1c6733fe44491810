//! One request through a door, and what its answer amounts to.

use anyhow::Result;
use bytes::Bytes;
use http::header::HOST;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;

use super::connections::{Connection, Connections};
use crate::server::identity::{Identity, binds};
use crate::server::served::{LOAD_ID, LoadId, Method};
use crate::workload::ledger::Outcome;

/// How a node says which error of its own an answer is.
const ERROR: &str = "x-selvedge-error";
/// A longer answer is a broken one.
const MAX_ANSWER: usize = 64 << 20;
/// Bytes of an answer that are shown when it is wrong.
const SHOWN: usize = 200;

/// What is the same in every request of a load.
pub(super) struct Form {
    pub host: HeaderValue,
    pub path: http::Uri,
}

impl Form {
    fn request(&self, id: LoadId, method: Method) -> Result<Request<Full<Bytes>>> {
        let text = id.to_string();
        let header = HeaderValue::from_str(&text)?;
        let (method, body) = match method {
            Method::Get => (http::Method::GET, Bytes::new()),
            Method::Post => (http::Method::POST, Bytes::from(text)),
        };
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        *request.uri_mut() = self.path.clone();
        let headers = request.headers_mut();
        headers.insert(HOST, self.host.clone());
        headers.insert(LOAD_ID, header);
        Ok(request)
    }
}

/// Sends it and reads the answer to its end. `last` is who answered before: mostly the same.
pub(super) async fn exchange(
    form: &Form,
    connections: &Connections,
    id: LoadId,
    method: Method,
    last: Option<Identity>,
) -> Outcome {
    let request = match form.request(id, method) {
        Ok(request) => request,
        Err(error) => return broken(format!("{error:#}")),
    };
    match send(connections, request).await {
        Ok((response, connection)) => {
            let (parts, body) = response.into_parts();
            match Limited::new(body, MAX_ANSWER).collect().await {
                Ok(body) => {
                    connections.give(connection);
                    judge(id, parts.status, &parts.headers, &body.to_bytes(), last)
                }
                Err(error) => broken(format!("within the answer: {}", chain(&*error))),
            }
        }
        Err(how) => broken(how),
    }
}

/// An idle connection may have been closed by the other side just now: what was not sent on it at
/// all is sent on a fresh one, as every HTTP client does.
async fn send(
    connections: &Connections,
    request: Request<Full<Bytes>>,
) -> Result<(Response<Incoming>, Connection), String> {
    let failed = |error: anyhow::Error| format!("{error:#}");
    let mut connection = connections.take().await.map_err(failed)?;
    match connection.try_send_request(request).await {
        Ok(response) => Ok((response, connection)),
        Err(mut refused) => match refused.take_message() {
            Some(request) => {
                let mut fresh = connections.open().await.map_err(failed)?;
                let response = fresh.send_request(request).await;
                let response = response.map_err(|error| chain(&error))?;
                Ok((response, fresh))
            }
            None => Err(chain(refused.error())),
        },
    }
}

/// What a whole answer amounts to.
fn judge(
    id: LoadId,
    status: StatusCode,
    headers: &HeaderMap,
    body: &[u8],
    last: Option<Identity>,
) -> Outcome {
    if status != StatusCode::OK {
        let said = headers.get(ERROR).and_then(|code| code.to_str().ok());
        let code = said.unwrap_or("-").to_owned();
        let status = status.as_u16();
        return Outcome::Declared { status, code };
    }
    let last = last.filter(|last| last.is_of(headers));
    let Some(by) = last.or_else(|| Identity::of(headers)) else {
        return crossed("nobody's", body);
    };
    if binds(body, &by.binding(id)) {
        Outcome::Ok { by }
    } else {
        crossed(&by.to_string(), body)
    }
}

fn crossed(who: &str, body: &[u8]) -> Outcome {
    let shown = String::from_utf8_lossy(&body[..body.len().min(SHOWN)]);
    Outcome::Crossed {
        said: format!("{who}: `{shown}`"),
    }
}

fn broken(how: String) -> Outcome {
    Outcome::Broken { how }
}

/// An error with its sources.
fn chain(error: &dyn std::error::Error) -> String {
    let mut said = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        said = format!("{said}: {inner}");
        source = inner.source();
    }
    said
}
