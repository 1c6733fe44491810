//! A GET, as a kubelet would send it: 200 to 399 is a yes, redirections are not followed.

use std::collections::BTreeMap;
use std::pin::pin;

use http::header::{ACCEPT, CONNECTION, HOST, HeaderName, HeaderValue, USER_AGENT};
use http::{Request, StatusCode};
use http_body_util::Empty;
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;

use super::Patient;
use crate::causes::with_causes;

/// Programs know probes by its beginning, and leave them out of their logs.
const AGENT: &str = concat!("kube-probe/1.34 selvedge/", env!("CARGO_PKG_VERSION"));

pub(super) async fn ask(
    at: &Patient,
    path: &str,
    headers: &BTreeMap<String, String>,
) -> Result<(), String> {
    let request = request(at, path, headers)?;
    let stream = at.connect().await?;
    let status = at.within("answer", exchange(stream, request)).await??;
    if status.is_success() || status.is_redirection() {
        return Ok(());
    }
    Err(format!("status {}, not 200 to 399", status.as_u16()))
}

fn request(
    at: &Patient,
    path: &str,
    headers: &BTreeMap<String, String>,
) -> Result<Request<Empty<Bytes>>, String> {
    let mut request = Request::get(path)
        .body(Empty::new())
        .map_err(|error| error.to_string())?;
    let host = at.address.to_string();
    let ours = [
        (HOST, host.as_str()),
        (USER_AGENT, AGENT),
        (ACCEPT, "*/*"),
        (CONNECTION, "close"),
    ];
    let mut put = |name: HeaderName, value: &str| {
        let value = HeaderValue::from_str(value).map_err(|e| format!("header {name}: {e}"))?;
        request.headers_mut().insert(name, value);
        Ok::<_, String>(())
    };
    for (name, value) in ours {
        put(name, value)?;
    }
    for (name, value) in headers {
        let named = name.parse().map_err(|e| format!("header `{name}`: {e}"))?;
        put(named, value)?;
    }
    Ok(request)
}

/// In one task: nothing is left running when the asker loses patience.
async fn exchange(
    stream: tokio::net::TcpStream,
    request: Request<Empty<Bytes>>,
) -> Result<StatusCode, String> {
    let odd = |error: hyper::Error| format!("no HTTP answer: {}", with_causes(&error));
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(odd)?;
    let mut answer = pin!(sender.send_request(request));
    let answer = tokio::select! {
        biased;
        answer = &mut answer => answer,
        // An answer that came with the connection's end is there by now.
        _ = connection => answer.await,
    };
    answer.map(|answer| answer.status()).map_err(odd)
}
