//! `logs`: lines of a service's or an instance's stdout and stderr, as they come.

use std::time::Duration;

use anyhow::Context;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use netfabric::wire::api::LogLine;

use crate::args::LogsArgs;
use crate::client::{ANSWER, encoded};
use crate::failure::{Exit, Failure};
use crate::printer::now;
use crate::session::{Session, find, name};
use crate::subject::Subject;

/// A line of NDJSON is a log line and its labels; the node cuts log lines far below this.
const MAX_LINE: usize = 1 << 20;

pub async fn run(args: LogsArgs, session: &Session) -> anyhow::Result<()> {
    let (who, many) = match Subject::parse(&args.name)? {
        Subject::Service(text) => {
            let name = name(&text)?;
            session.service(&name).await?;
            (format!("service={name}"), true)
        }
        Subject::Instance(text) => {
            let instance = find(session.instances(false).await?, &text)?;
            (format!("instance={}", encoded(&instance.id.0)), false)
        }
        _ => {
            return Err(Failure::usage(format!("`{}` writes no logs", args.name))
                .hint("name a service or instance/NAME")
                .into());
        }
    };
    let since = args.since.map_or_else(String::new, |span| {
        let span = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        format!("&since={}", now().0.saturating_sub(span))
    });
    let grep = args
        .grep
        .map_or_else(String::new, |text| format!("&grep={}", encoded(&text)));
    let path = format!(
        "/v1/logs?namespace={}&{who}&tail={}&follow={}{since}{grep}",
        session.namespace, args.tail, args.follow
    );
    let response = session.client.open(&path).await.map_err(Failure::from)?;
    let mut lines = Lines::new(response.into_body(), args.follow);
    while let Some(line) = lines.next().await? {
        session.out.log(&line, args.timestamps, many)?;
    }
    Ok(())
}

/// The NDJSON lines of a body.
pub struct Lines {
    body: Incoming,
    rest: Vec<u8>,
    /// The longest silence; none when lines may come any time.
    patience: Option<Duration>,
    ended: bool,
}

impl Lines {
    pub fn new(body: Incoming, follow: bool) -> Self {
        let patience = (!follow).then_some(ANSWER);
        Self {
            body,
            rest: Vec::new(),
            patience,
            ended: false,
        }
    }

    pub async fn next(&mut self) -> anyhow::Result<Option<LogLine>> {
        loop {
            if let Some(at) = self.rest.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=at).collect();
                if line.trim_ascii().is_empty() {
                    continue;
                }
                return parse(&line).map(Some);
            }
            if self.ended {
                let last = std::mem::take(&mut self.rest);
                return if last.trim_ascii().is_empty() {
                    Ok(None)
                } else {
                    parse(&last).map(Some)
                };
            }
            if self.rest.len() > MAX_LINE {
                anyhow::bail!("the node sent a log line of more than {MAX_LINE} bytes");
            }
            self.more().await?;
        }
    }

    async fn more(&mut self) -> anyhow::Result<()> {
        let frame = match self.patience {
            None => self.body.frame().await,
            Some(patience) => tokio::time::timeout(patience, self.body.frame())
                .await
                .map_err(|_| Failure::new(Exit::Unavailable, "the node stopped sending logs"))?,
        };
        match frame {
            None => self.ended = true,
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    self.rest.extend_from_slice(&data);
                }
            }
            Some(Err(error)) => {
                let message = format!("the log broke off: {error}");
                return Err(Failure::new(Exit::Unavailable, message).into());
            }
        }
        Ok(())
    }
}

fn parse(line: &[u8]) -> anyhow::Result<LogLine> {
    serde_json::from_slice(line).context("the node sent what is no log line")
}
