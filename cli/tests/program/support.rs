//! A tiny node to ask: answers as told, on a unix socket of its own, and keeps what it was asked.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixListener;
use tokio::runtime::Runtime;

static NUMBER: AtomicUsize = AtomicUsize::new(0);

/// Answers by `METHOD /path`, the query left out; several for one are given one after another,
/// the last for ever.
type Answers = BTreeMap<String, Vec<(u16, String)>>;

#[derive(Debug, Clone)]
pub struct Asked {
    pub line: String,
    pub query: String,
    pub body: Vec<u8>,
    pub authorization: Option<String>,
}

#[derive(Default)]
struct State {
    answers: Answers,
    asked: Vec<Asked>,
}

pub struct FakeNode {
    folder: PathBuf,
    state: Arc<Mutex<State>>,
    _runtime: Runtime,
}

impl FakeNode {
    /// With its socket in a folder of its own.
    pub fn start() -> Self {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let folder =
            std::env::temp_dir().join(format!("selvedge-cli-{}-{number}", std::process::id()));
        Self::start_at(folder)
    }

    /// With its socket in `folder`, which goes with it.
    pub fn start_at(folder: PathBuf) -> Self {
        std::fs::create_dir_all(&folder).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let state = Arc::new(Mutex::new(State::default()));
        let socket = folder.join("api.sock");
        let listener = {
            let _inside = runtime.enter();
            UnixListener::bind(socket).unwrap()
        };
        runtime.spawn(serve(listener, state.clone()));
        Self {
            folder,
            state,
            _runtime: runtime,
        }
    }

    /// From now on `line` is answered so; a second answer to a line comes after the first.
    pub fn answer(&self, line: &str, status: u16, body: impl Into<String>) -> &Self {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state
            .answers
            .entry(line.to_owned())
            .or_default()
            .push((status, body.into()));
        self
    }

    pub fn json(&self, line: &str, body: &impl serde::Serialize) -> &Self {
        self.answer(line, 200, serde_json::to_string(body).unwrap())
    }

    pub fn refuse(&self, line: &str, status: u16, code: &str, message: &str, hint: &str) -> &Self {
        let body = serde_json::json!({
            "code": code, "message": message, "hint": hint, "details": ["par-1: because"],
        });
        self.answer(line, status, body.to_string())
    }

    pub fn asked(&self, line: &str) -> Vec<Asked> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state
            .asked
            .iter()
            .filter(|asked| asked.line == line)
            .cloned()
            .collect()
    }

    pub fn body(&self, line: &str) -> Value {
        serde_json::from_slice(&self.asked(line).last().expect(line).body).unwrap()
    }

    pub fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    pub fn addr(&self) -> String {
        format!("unix:{}", self.folder.join("api.sock").display())
    }
}

impl Drop for FakeNode {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

async fn serve(listener: UnixListener, state: Arc<Mutex<State>>) {
    while let Ok((stream, _)) = listener.accept().await {
        let state = state.clone();
        let service = service_fn(move |request| handle(request, state.clone()));
        tokio::spawn(async move {
            let _ = http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

async fn handle(
    request: Request<Incoming>,
    state: Arc<Mutex<State>>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let line = format!("{} {}", request.method(), request.uri().path());
    let header = request.headers().get("authorization");
    let authorization = header.map(|value| value.to_str().unwrap().to_owned());
    let query = request.uri().query().unwrap_or_default().to_owned();
    let body = request
        .into_body()
        .collect()
        .await
        .map(|b| b.to_bytes().to_vec());
    let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
    let body = body.unwrap_or_default();
    state.asked.push(Asked {
        line: line.clone(),
        query,
        body,
        authorization,
    });
    let (status, body) = match state.answers.get_mut(&line) {
        None => {
            let code = if line.starts_with("GET /v1/services/") {
                "no such service"
            } else {
                "?"
            };
            (
                404,
                format!(r#"{{"code":"notFound","message":"{line}: {code}"}}"#),
            )
        }
        Some(answers) if answers.len() > 1 => answers.remove(0),
        Some(answers) => answers[0].clone(),
    };
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = http::StatusCode::from_u16(status).unwrap();
    Ok(response)
}
