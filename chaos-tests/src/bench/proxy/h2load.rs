//! `h2load`, for the protocols that the closed loop of `load` does not speak: HTTP/2, and TLS.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use hdrhistogram::Histogram;

use crate::bench::load::{Measured, rate};
use crate::bench::peers::Peer;
use crate::world::run_with;

pub const H2LOAD: Peer = Peer::new("h2load", "nghttp2-client");
/// Requests at once on a connection of HTTP/2.
const STREAMS: &str = "10";
const SUCCESS: &str = "200";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/2 without TLS, known before.
    H2c,
    /// HTTP/1.1 over TLS.
    Tls,
    /// HTTP/2 over TLS.
    H2,
}

/// What to ask, how, and how often.
pub struct Load<'a> {
    pub netns: &'a str,
    pub protocol: Protocol,
    pub door: SocketAddr,
    pub host: &'a str,
    pub path: &'a str,
    pub connections: usize,
    pub requests: usize,
    /// A folder for its log.
    pub dir: &'a Path,
}

/// Asks until all is answered. An answer other than 200 ends it: a fast refusal is no result.
pub fn drive(load: &Load) -> Result<Measured> {
    let log = load.dir.join("h2load.log");
    if log.exists() {
        fs::remove_file(&log)?;
    }
    let scheme = match load.protocol {
        Protocol::H2c => "http",
        Protocol::Tls | Protocol::H2 => "https",
    };
    let port = load.door.port();
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/run/netns/{}", load.netns));
    let (requests, connections) = (load.requests.to_string(), load.connections.to_string());
    command.args(["--", "h2load", "-n", &requests, "-c", &connections]);
    match load.protocol {
        Protocol::Tls => command.arg("--h1"),
        Protocol::H2c | Protocol::H2 => command.args(["-m", STREAMS]),
    };
    command.arg("--connect-to").arg(load.door.to_string());
    command.arg("--log-file").arg(&log);
    command.arg(format!("{scheme}://{}:{port}/{}", load.host, load.path));
    let before = children()?;
    let said = run_with(&mut command, "")?.ok()?;
    let cpu = children()?.saturating_sub(before);
    let text = fs::read_to_string(&log).with_context(|| format!("{}: {said}", log.display()))?;
    let measured = measured(&text, cpu).with_context(|| said.to_string())?;
    let missing = load.requests as u64 - measured.answered;
    ensure!(missing == 0, "{missing} were not answered: {said}");
    Ok(measured)
}

/// CPU time of the programs that this one has waited for.
fn children() -> Result<Duration> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let after = stat.rsplit_once(')').context("no name in stat")?.1;
    let fields: Vec<&str> = after.split_whitespace().collect();
    let ticks =
        |at: usize| -> Result<u64> { Ok(fields.get(at).context("stat is short")?.parse()?) };
    let ticks = ticks(13)? + ticks(14)?;
    let each = rustix::param::clock_ticks_per_second();
    Ok(Duration::from_millis(ticks * 1000 / each))
}

/// A line is of one answer: when it was asked, its status, how long it took; in microseconds.
fn measured(log: &str, cpu: Duration) -> Result<Measured> {
    let mut latency = Histogram::new(3)?;
    let (mut first, mut last) = (u64::MAX, 0);
    for line in log.lines() {
        let fields: Vec<&str> = line.split('\t').collect();
        let [asked, status, took] = fields[..] else {
            bail!("{line:?} is of no answer");
        };
        ensure!(status == SUCCESS, "an answer of {status}");
        let (asked, took): (u64, u64) = (asked.parse()?, took.parse()?);
        latency.record(took.max(1))?;
        first = first.min(asked);
        last = last.max(asked + took);
    }
    ensure!(last > first, "nothing was answered");
    Ok(Measured {
        rate: rate(latency.len(), Duration::from_micros(last - first)),
        answered: latency.len(),
        latency,
        cpu,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_read_and_a_refusal_is_no_result() {
        let cpu = Duration::from_secs(1);
        let said = measured("500000\t200\t100\n1000000\t200\t500000\n", cpu).unwrap();
        assert_eq!((said.answered, said.latency.min()), (2, 100));
        assert!((said.rate - 2.0).abs() < 0.01, "{}", said.rate);
        for (log, want) in [
            ("1\t503\t100\n", "503"),
            ("", "nothing"),
            ("1\t200\n", "no answer"),
        ] {
            let error = measured(log, cpu).unwrap_err();
            assert!(error.to_string().contains(want), "{error:#}");
        }
    }
}
