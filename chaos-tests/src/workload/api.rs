//! The operator's API as clients of a history use it: one call, one connection to a node's socket,
//! a deadline. What answers mean is `answer`'s, who asks what is the others'.

mod answer;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;

use super::history::{Phase, Scan, Told};
use crate::world::Node;
use answer::{Answer, CallError, SERIAL, Verdict, code, judge, undone, wrote};
pub use answer::{Ended, Mark, seen};

/// An answer comes within 5 s, or the node is gone.
const PATIENCE: Duration = Duration::from_secs(10);
const MAX_ANSWER: usize = 16 << 20;

/// What every put of a run asks for, but for the serial.
#[derive(Debug, Clone)]
pub struct Template {
    pub spec: Value,
    pub scale: Value,
    pub mark: Mark,
}

/// One node's API.
#[derive(Debug, Clone)]
pub struct Door {
    pub node: String,
    socket: PathBuf,
}

impl Door {
    pub fn of(node: &Node) -> Self {
        Self {
            node: node.name.clone(),
            socket: node.socket(),
        }
    }

    /// What is asked of the registry in the run: the template and scale of a service that exists.
    pub async fn template(&self, service: &str, mark: Mark) -> Result<Template> {
        let answer = self.call(Method::GET, &path(service), None).await;
        let Verdict::Done(answer) = judge(answer) else {
            bail!("{} knows no service {service}", self.node);
        };
        let part = |name: &str| answer.body.pointer(&format!("/service/{name}")).cloned();
        let both = part("spec").zip(part("scale"));
        let (spec, scale) = both.with_context(|| format!("no service: {}", answer.body))?;
        Ok(Template { spec, scale, mark })
    }

    /// Writes `serial`; with `expect` only onto that version.
    pub async fn put(
        &self,
        template: &Template,
        key: &str,
        serial: u64,
        expect: Option<u64>,
    ) -> Ended {
        let mut scale = template.scale.clone();
        if template.mark == Mark::ScaleMax {
            scale["max"] = json!(serial);
        }
        let body = json!({
            "spec": template.spec,
            "scale": scale,
            "annotations": { SERIAL: serial.to_string() },
            "ifVersion": expect,
        });
        let answer = self.call(Method::PUT, &path(key), Some(&body)).await;
        wrote(judge(answer), template.mark, expect.is_some())
    }

    /// Makes `serial` the upper bound of a service's scale.
    pub async fn scale(&self, key: &str, serial: u64) -> Ended {
        let body = json!({ "min": 0, "max": serial });
        let path = format!("{}/scale", path(key));
        let answer = self.call(Method::POST, &path, Some(&body)).await;
        wrote(judge(answer), Mark::ScaleMax, false)
    }

    pub async fn delete(&self, key: &str) -> Ended {
        match judge(self.call(Method::DELETE, &path(key), None).await) {
            Verdict::Done(answer) => match answer.body["index"].as_u64() {
                Some(index) => Ended::ok(Told {
                    rev: Some(index),
                    ..Told::default()
                }),
                None => Ended::bad(Phase::Info, format!("no index: {}", answer.body)),
            },
            // Deletions ask no copy: the registry itself found nothing.
            Verdict::NotFound(_) => Ended::ok(Told::default()),
            other => undone(other),
        }
    }

    pub async fn get(&self, key: &str, mark: Mark, consistent: bool) -> Ended {
        let path = format!("{}{}", path(key), query(consistent));
        let (answer, there) = match judge(self.call(Method::GET, &path, None).await) {
            Verdict::Done(answer) => (answer, true),
            Verdict::NotFound(answer) => (answer, false),
            // A read changes nothing, whatever became of it.
            other => return Ended::bad(Phase::Fail, undone(other).why),
        };
        let value = seen(&answer.body["service"], mark);
        match (answer.index, value) {
            (None, _) => Ended::bad(Phase::Fail, "the answer has no index"),
            (_, None) if there => Ended::bad(Phase::Fail, format!("no serial: {}", answer.body)),
            (at, value) => Ended::ok(Told {
                value: value.map(|seen| seen.v),
                rev: value.map(|seen| seen.rev),
                at,
            }),
        }
    }

    /// Every service that carries a serial, from a consistent read.
    pub async fn scan(&self, mark: Mark) -> Result<Scan> {
        let path = format!("/v1/services{}", query(true));
        let answer = match judge(self.call(Method::GET, &path, None).await) {
            Verdict::Done(answer) => answer,
            other => bail!("{}: {}", self.node, undone(other).why),
        };
        let at = answer.index.context("the answer has no index")?;
        let services = answer.body.as_array().context("services are no list")?;
        let keys = services.iter().filter_map(|view| {
            let service = &view["service"];
            Some((key(service.pointer("/key/name")?), seen(service, mark)?))
        });
        let keys: BTreeMap<_, _> = keys.collect();
        Ok(Scan { at, keys })
    }

    /// `GET /v1/watch`: its lines, or what was said instead (`gone`, or anything else).
    pub async fn watch(&self, after: u64) -> Result<Lines, String> {
        let path = format!("/v1/watch?after={after}");
        let opening = async {
            let (response, driver) = self
                .send(Method::GET, &path, None)
                .await
                .map_err(|error| text(&error))?;
            if response.status() == 200 {
                return Ok(Lines {
                    body: response.into_body(),
                    buffer: Vec::new(),
                    _driver: driver,
                });
            }
            let answer = read(response).await.map_err(|error| text(&error))?;
            Err(code(&answer.body).to_owned())
        };
        let late = || "no answer in time".to_owned();
        tokio::time::timeout(PATIENCE, opening)
            .await
            .unwrap_or_else(|_| Err(late()))
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Answer, CallError> {
        let exchange = async {
            let (response, _driver) = self.send(method, path, body).await?;
            read(response).await
        };
        let late = || CallError::Lost(format!("no answer within {PATIENCE:?}"));
        tokio::time::timeout(PATIENCE, exchange)
            .await
            .unwrap_or_else(|_| Err(late()))
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<(Response<Incoming>, Driver), CallError> {
        let not_sent = |error: &dyn std::fmt::Display| CallError::NotSent(error.to_string());
        let bytes = body.map(Value::to_string).unwrap_or_default();
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "localhost")
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(bytes)))
            .map_err(|error| not_sent(&error))?;
        let stream = UnixStream::connect(&self.socket).await;
        let stream = stream.map_err(|error| not_sent(&error))?;
        let shaken = http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = shaken.map_err(|error| not_sent(&error))?;
        let driver = Driver(tokio::spawn(async move {
            // Its error is the request's.
            connection.await.ok();
        }));
        let response = sender.send_request(request).await;
        let response = response.map_err(|error| CallError::Lost(error.to_string()))?;
        Ok((response, driver))
    }
}

/// Moves a connection's bytes while its answer is read.
struct Driver(JoinHandle<()>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// An answer that comes line by line.
pub struct Lines {
    body: Incoming,
    buffer: Vec<u8>,
    _driver: Driver,
}

impl Lines {
    /// The next line; nothing when the answer has ended.
    pub async fn next(&mut self) -> Result<Option<Value>> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Ok(Some(serde_json::from_slice(&line)?));
            }
            let Some(frame) = self.body.frame().await else {
                return Ok(None);
            };
            if let Ok(data) = frame?.into_data() {
                self.buffer.extend_from_slice(&data);
            }
        }
    }
}

async fn read(response: Response<Incoming>) -> Result<Answer, CallError> {
    let index = response.headers().get("selvedge-index");
    let index = index.and_then(|value| value.to_str().ok()?.parse().ok());
    let status = response.status().as_u16();
    let body = Limited::new(response.into_body(), MAX_ANSWER)
        .collect()
        .await;
    let body = body.map_err(|error| CallError::Lost(error.to_string()))?;
    let body = serde_json::from_slice(&body.to_bytes());
    let body = body.map_err(|error| CallError::Lost(error.to_string()))?;
    Ok(Answer {
        status,
        index,
        body,
    })
}

/// The key of a service's name.
pub fn key(name: &Value) -> String {
    format!("svc/{}", name.as_str().unwrap_or_default())
}

fn path(key: &str) -> String {
    let name = key.strip_prefix("svc/").unwrap_or(key);
    format!("/v1/services/default/{name}")
}

const fn query(consistent: bool) -> &'static str {
    if consistent { "?consistent=true" } else { "" }
}

fn text(error: &CallError) -> String {
    match error {
        CallError::NotSent(why) | CallError::Lost(why) => why.clone(),
    }
}
