//! How a probe is written: in one word on the command line, in a word or a table in a manifest.

use std::collections::BTreeMap;

use scheduler::model::{Probe, ProbeAction};
use toml_edit::Item;

use super::ManifestError;
use super::lower::seconds;
use super::section::Section;

const TABLE: &[&str] = &[
    "probe",
    "exec",
    "headers",
    "delay",
    "period",
    "timeout",
    "failures",
    "successes",
];

/// `http:/PATH[:PORT]`, `tcp[:PORT]`, `grpc[:PORT][/SERVICE]`, `exec:COMMAND`, or `none`. A port not
/// named is the service's.
pub(super) fn probe(text: &str) -> Result<Option<Probe>, String> {
    let (kind, rest) = match text.split_once(':') {
        Some((kind, rest)) => (kind, Some(rest)),
        None => match text.split_once('/') {
            // grpc/SERVICE
            Some((kind, _)) => (kind, Some(&text[kind.len()..])),
            None => (text, None),
        },
    };
    let action = match (kind, rest) {
        ("none", None) => return Ok(None),
        ("tcp", None) => ProbeAction::Tcp { port: 0 },
        ("tcp", Some(digits)) => ProbeAction::Tcp {
            port: port(digits)?,
        },
        ("http", Some(path)) if path.starts_with('/') => http(path)?,
        ("grpc", rest) => grpc(rest.unwrap_or(""))?,
        ("exec", Some(words)) if !words.trim().is_empty() => ProbeAction::Exec {
            command: words.split_whitespace().map(str::to_owned).collect(),
        },
        _ => {
            return Err(format!(
                "`{text}` is no probe: write http:/PATH[:PORT], tcp[:PORT], grpc[:PORT][/SERVICE], \
                 exec:COMMAND or none"
            ));
        }
    };
    Ok(Some(with_defaults(action)))
}

/// A port at the end, after a colon, is one if it is all digits: paths may have colons too.
fn http(path: &str) -> Result<ProbeAction, String> {
    let all_digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let (path, port) = match path.rsplit_once(':') {
        Some((path, digits)) if all_digits(digits) => (path, port(digits)?),
        _ => (path, 0),
    };
    let headers = BTreeMap::new();
    let path = path.to_owned();
    Ok(ProbeAction::Http {
        path,
        port,
        headers,
    })
}

fn grpc(rest: &str) -> Result<ProbeAction, String> {
    let (digits, service) = rest.split_once('/').unwrap_or((rest, ""));
    let port = if digits.is_empty() { 0 } else { port(digits)? };
    let service = service.to_owned();
    Ok(ProbeAction::Grpc { port, service })
}

fn port(digits: &str) -> Result<u16, String> {
    match digits.parse() {
        Ok(port) if port != 0 => Ok(port),
        _ => Err(format!("`{digits}` is no port: write 1 to 65535")),
    }
}

fn with_defaults(action: ProbeAction) -> Probe {
    Probe {
        action,
        initial_delay_seconds: 0,
        period_seconds: 0,
        timeout_seconds: 0,
        success_threshold: 0,
        failure_threshold: 0,
    }
}

/// The probe under `key` of `[health]`.
pub(super) fn read(health: &Section<'_>, key: &str) -> Result<Option<Probe>, ManifestError> {
    if !health.item(key).is_some_and(Item::is_table_like) {
        return Ok(health.parsed(key, probe)?.flatten());
    }
    let Some(table) = health.section(key, TABLE)? else {
        return Ok(None);
    };
    let asked = match (table.parsed("probe", probe)?.flatten(), table.list("exec")?) {
        (Some(probe), None) => probe,
        (None, Some(command)) => with_defaults(ProbeAction::Exec { command }),
        _ => {
            let help = "probe = \"http:/healthz\", or exec = [\"command\", \"argument\"]";
            return Err(health.fault(key, "this needs either `probe` or `exec`", help));
        }
    };
    let mut asked = asked;
    let given = table.pairs("headers")?;
    match &mut asked.action {
        ProbeAction::Http { headers, .. } => *headers = given,
        _ if given.is_empty() => {}
        _ => return Err(table.fault("headers", "only an http probe has headers", "")),
    }
    asked.initial_delay_seconds = table.parsed("delay", seconds)?.unwrap_or(0);
    asked.period_seconds = table.parsed("period", seconds)?.unwrap_or(0);
    asked.timeout_seconds = table.parsed("timeout", seconds)?.unwrap_or(0);
    asked.failure_threshold = table.number("failures")?.unwrap_or(0);
    asked.success_threshold = table.number("successes")?.unwrap_or(0);
    Ok(Some(asked))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words() {
        let http = |path: &str, port| ProbeAction::Http {
            path: path.into(),
            port,
            headers: BTreeMap::new(),
        };
        let grpc = |port, service: &str| ProbeAction::Grpc {
            port,
            service: service.into(),
        };
        let exec = |command: &[&str]| ProbeAction::Exec {
            command: command.iter().map(|word| (*word).to_owned()).collect(),
        };
        for (text, want) in [
            ("http:/healthz", http("/healthz", 0)),
            ("http:/healthz:9090", http("/healthz", 9090)),
            ("http:/a:b?c=d", http("/a:b?c=d", 0)),
            ("tcp", ProbeAction::Tcp { port: 0 }),
            ("tcp:81", ProbeAction::Tcp { port: 81 }),
            ("grpc", grpc(0, "")),
            ("grpc:9000", grpc(9000, "")),
            ("grpc:9000/a.B", grpc(9000, "a.B")),
            ("grpc/a.B", grpc(0, "a.B")),
            ("exec:cat  /ready", exec(&["cat", "/ready"])),
        ] {
            assert_eq!(probe(text).unwrap().unwrap().action, want, "{text}");
        }
        assert_eq!(probe("none"), Ok(None));
        for bad in [
            "",
            "http",
            "http:x",
            "http:/x:70000",
            "tcp:0",
            "tcp:",
            "exec:",
            "grpc:x",
            "udp:1",
        ] {
            assert!(probe(bad).is_err(), "{bad}");
        }
    }
}
