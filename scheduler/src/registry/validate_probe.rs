//! What the registry takes in of a probe: how a container is asked after.

use super::Refusal;
use super::validate::{at_most, ensure, limits, short};
use crate::model::{Probe, ProbeAction};

/// `ready` probes may ask for several successes in a row; for the others one is what counts.
pub(super) fn validate_probe(field: &str, probe: &Probe, ready: bool) -> Result<(), Refusal> {
    validate_action(field, &probe.action)?;
    for (what, seconds) in [
        ("initial delay", probe.initial_delay_seconds),
        ("period", probe.period_seconds),
        ("timeout", probe.timeout_seconds),
    ] {
        ensure(seconds <= limits::PROBE_SECONDS, field, || {
            format!("{what} {seconds}s is above {}s", limits::PROBE_SECONDS)
        })?;
    }
    let failures = probe.failure_threshold;
    ensure(failures <= limits::PROBE_THRESHOLD, field, || {
        let most = limits::PROBE_THRESHOLD;
        format!("{failures} failures in a row is above {most}")
    })?;
    let most = if ready { limits::PROBE_THRESHOLD } else { 1 };
    let successes = probe.success_threshold;
    ensure(successes <= most, field, || {
        format!("{successes} successes in a row is above {most}")
    })
}

fn validate_action(field: &str, action: &ProbeAction) -> Result<(), Refusal> {
    match action {
        ProbeAction::Http { path, headers, .. } => {
            let good = path.starts_with('/') && path.len() <= 2048 && is_graphic(path);
            ensure(good, field, || format!("`{}` is no path", short(path)))?;
            at_most(field, headers.len() as u64, limits::PROBE_HEADERS as u64)?;
            for (name, value) in headers {
                validate_header(field, name, value)?;
            }
            Ok(())
        }
        ProbeAction::Tcp { .. } => Ok(()),
        ProbeAction::Grpc { service, .. } => {
            let good = service.len() <= 256 && is_graphic(service);
            ensure(good, field, || {
                format!("`{}` is no name of a gRPC service", short(service))
            })
        }
        ProbeAction::Exec { command } => validate_command(field, command),
    }
}

fn validate_header(field: &str, name: &str, value: &str) -> Result<(), Refusal> {
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    let good = !name.is_empty() && name.len() <= 128 && name.bytes().all(token);
    ensure(good, field, || {
        format!("`{}` is no name of a header", short(name))
    })?;
    let plain = value.len() <= 4096 && value.bytes().all(|b| b == b' ' || b.is_ascii_graphic());
    ensure(plain, field, || {
        format!("the value of header `{name}` is not plain text of at most 4096 bytes")
    })
}

fn validate_command(field: &str, command: &[String]) -> Result<(), Refusal> {
    let named = command.first().is_some_and(|word| !word.is_empty());
    ensure(named, field, || "names no command".to_owned())?;
    let bytes: usize = command.iter().map(|word| word.len() + 1).sum();
    ensure(bytes <= limits::PROBE_COMMAND, field, || {
        let most = limits::PROBE_COMMAND;
        format!("its command has {bytes} bytes of at most {most}: put a script into the image")
    })?;
    ensure(
        !command.iter().any(|word| word.contains('\0')),
        field,
        || "its command holds a zero byte".to_owned(),
    )
}

fn is_graphic(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_graphic())
}
