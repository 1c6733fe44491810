//! One request and its answer: which of the server's things is asked for, who answers, what is
//! logged.

use std::convert::Infallible;
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONNECTION, HeaderMap, HeaderName, HeaderValue, UPGRADE};
use hyper::{Method, Request, Response, StatusCode, Version};
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use super::answer::{self, Answer, Body, Cut};
use super::behaviour::Behaviour;
use super::identity::Identity;
use super::lease;
use super::served::{self, LOAD_ID, LoadId, Served};
use super::settings::Settings;

/// Long enough for requests to overlap.
const SLOW: Duration = Duration::from_millis(200);
const MAX_BODY: usize = 1 << 20;
const CRASH: u8 = 1;

/// What every connection of the process shares.
pub(super) struct Server {
    identity: Identity,
    headers: HeaderMap,
    served: Served,
    count: AtomicU64,
    crash_after: Option<u64>,
    crash_code: u8,
}

impl Server {
    pub fn new(identity: Identity, served: Served, settings: &Settings) -> Self {
        Self {
            headers: identity.headers(),
            identity,
            served,
            count: AtomicU64::new(0),
            crash_after: settings.crash_after,
            crash_code: settings.exit_code.unwrap_or(CRASH),
        }
    }

    /// The answer, or an error that ends the connection without one.
    pub async fn handle(&self, request: Request<Incoming>) -> Result<Response<Body>, Cut> {
        let before = self.count.fetch_add(1, Ordering::Relaxed);
        if self.crash_after.is_some_and(|most| before >= most) {
            eprintln!("box crashes after {before} requests");
            std::process::exit(self.crash_code.into());
        }
        let mut response = match self.respond(request).await {
            Ok(Answer::Whole(response)) => response,
            Ok(Answer::Cut) => return Err(Cut),
            Err(error) => answer::text(StatusCode::BAD_REQUEST, format!("{error:#}\n")),
        };
        let headers = self.headers.iter();
        response
            .headers_mut()
            .extend(headers.map(|(name, value)| (name.clone(), value.clone())));
        Ok(response)
    }

    async fn respond(&self, request: Request<Incoming>) -> Result<Answer> {
        if let Some(id) = request.headers().get(LOAD_ID) {
            let id: LoadId = id.to_str()?.parse().context(LOAD_ID)?;
            return self.serve_load(id, request).await;
        }
        if request.headers().contains_key(UPGRADE) {
            return Ok(Answer::Whole(switch(request)));
        }
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        if path == "/do" {
            println!("{method} {path}");
            let behaviour = Behaviour::parse(request.uri().query().unwrap_or_default())?;
            if let Some(order) = &behaviour.replay {
                return send_on(order, request).await.map(Answer::Whole);
            }
            return answer::perform(&behaviour, None).await;
        }
        if request.version() == Version::HTTP_2 {
            return mirror(request).await.map(Answer::Whole);
        }
        let response = match (&method, path.as_str()) {
            (&Method::GET, "/") => answer::text(StatusCode::OK, "box\n".to_owned()),
            (&Method::GET, "/slow") => {
                tokio::time::sleep(SLOW).await;
                answer::text(StatusCode::OK, "slow\n".to_owned())
            }
            (&Method::POST, "/sh") => {
                answer::text(StatusCode::OK, shell(&whole(request).await?).await?)
            }
            (&Method::POST, "/busy") => {
                let line = String::from_utf8(whole(request).await?.to_vec())?;
                answer::text(StatusCode::OK, lease::say(&line).await?)
            }
            _ => answer::text(StatusCode::NOT_FOUND, format!("no {path}\n")),
        };
        println!("{method} {path} {}", response.status());
        Ok(Answer::Whole(response))
    }

    /// A load's request: written down, then done.
    async fn serve_load(&self, id: LoadId, request: Request<Incoming>) -> Result<Answer> {
        let method = match *request.method() {
            Method::GET | Method::HEAD => served::Method::Get,
            _ => served::Method::Post,
        };
        self.served.note(method, id).await;
        let behaviour = Behaviour::parse(request.uri().query().unwrap_or_default())?;
        whole(request).await?;
        answer::perform(&behaviour, Some(self.identity.binding(id))).await
    }
}

async fn whole(request: Request<Incoming>) -> Result<Bytes> {
    let body = Limited::new(request.into_body(), MAX_BODY).collect().await;
    let body = body.map_err(anyhow::Error::from_boxed);
    Ok(body.context("reading the body")?.to_bytes())
}

/// The order, or, where the request was sent on already, what was told of that and its body.
async fn send_on(order: &str, request: Request<Incoming>) -> Result<Response<Body>> {
    const TOLD: [&str; 2] = ["selvedge-replay-src", "selvedge-replay-failed"];
    let told = |name: &&str| request.headers().get(*name).cloned();
    let Some(told) = TOLD.iter().find_map(told) else {
        let mut response = answer::empty(StatusCode::CONFLICT);
        let name = HeaderName::from_static("selvedge-replay");
        response
            .headers_mut()
            .insert(name, HeaderValue::from_str(order)?);
        return Ok(response);
    };
    let body = whole(request).await?;
    let said = format!("{}\n{}", told.to_str()?, String::from_utf8_lossy(&body));
    Ok(answer::text(StatusCode::OK, said))
}

/// Switches protocol: what comes goes back, until the client says no more.
fn switch(mut request: Request<Incoming>) -> Response<Body> {
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        println!("echo begins");
        let echo = async {
            let (mut from, mut to) = tokio::io::split(TokioIo::new(upgrade.await?));
            tokio::io::copy(&mut from, &mut to).await?;
            to.shutdown().await?;
            anyhow::Ok(())
        };
        match echo.await {
            Ok(()) => println!("echo ends"),
            Err(error) => eprintln!("echo: {error:#}"),
        }
    });
    let mut response = answer::empty(StatusCode::SWITCHING_PROTOCOLS);
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("echo"));
    response
}

/// HTTP/2: the request's body comes back, with a trailer.
async fn mirror(request: Request<Incoming>) -> Result<Response<Body>> {
    let version = request.version();
    let body = whole(request).await?;
    let mut trailers = HeaderMap::new();
    trailers.insert(
        HeaderName::from_static("box-ends"),
        HeaderValue::from_static("well"),
    );
    let said = Bytes::from([format!("{version:?} ").as_bytes(), &body].concat());
    let said = Full::new(said).with_trailers(async { Some(Ok::<_, Infallible>(trailers)) });
    // Hides the length: who knows it may leave before the trailers.
    let said = said.map_frame(|frame| frame);
    Ok(Response::new(
        said.map_err(|never| match never {}).boxed_unsync(),
    ))
}

/// What `/bin/sh` says to a script, errors included.
async fn shell(script: &[u8]) -> Result<String> {
    let script = format!("exec 2>&1\n{}", String::from_utf8_lossy(script));
    let shell = Command::new("/bin/sh")
        .arg("-c")
        .arg(script)
        .stdin(Stdio::null())
        .output();
    Ok(String::from_utf8_lossy(&shell.await?.stdout).into_owned())
}
