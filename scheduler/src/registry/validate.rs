//! What the registry takes in. Fields are named as the short manifest names them (`port`,
//! `resources.memory`, `health.ready`), whose last word is also the flag's.
//!
//! It checks what can be seen from the words alone; whether an image exists, a secret is there or
//! a node has room is for others to say.

use std::collections::BTreeSet;

use super::size::written_size;
use super::validate_container::{validate_container, validate_volumes};
use super::validate_listen::validate_listens;
use super::validate_sandbox::validate_sandbox;
use super::{PutService, Refusal};
use crate::autoscale::schedule::{self, Cron};
use crate::autoscale::{Bounds, asked_for};
use crate::model::{
    DOMAINS, ImagePin, MOST_PRIORITY, Metric, PROXY_PROTOCOL, PROXY_V2, PlacementRules, RATE, Rate,
    RevisionKey, RevisionSpec, SLOW_START, STICKY, Scale, ServiceKey, TLS_ANNOTATIONS,
    TrafficTarget, read_domains, slow_start, sticky,
};

/// The bounds, for those who explain them elsewhere.
pub mod limits {
    /// A revision's name is its service's, a dash and up to ten digits, and is a DNS label of 63.
    pub const SERVICE_NAME: usize = 52;
    /// All of a service as written down. It travels in one registry entry and in every node's
    /// memory.
    pub const SPEC_BYTES: usize = 512 * 1024;
    pub const ENV_VARS: usize = 1000;
    /// One `NAME=VALUE` with its closing zero: Linux's `MAX_ARG_STRLEN`; `execve` fails beyond.
    pub const ENV_BYTES: usize = 128 * 1024;
    /// All of them with command and arguments: Linux gives `execve` a quarter of the 8 MiB stack,
    /// of which pointers take their part.
    pub const EXEC_BYTES: usize = 1024 * 1024;
    /// The least CPU: the kernel refuses a CPU quota below 1 ms of each 100 ms.
    pub const MIN_CPU_MILLIS: u32 = 10;
    pub const MAX_CPU_MILLIS: u32 = 1_000_000;
    /// The least memory. What sets a container up is charged to it before its program runs; with
    /// less it is killed there, which looks like a fault of the node and not of the limit.
    pub const MIN_MEMORY: u64 = 4 << 20;
    pub const MAX_MEMORY: u64 = 16 << 40;
    pub const MAX_PIDS: u32 = 65_536;
    /// Knative's bound of `containerConcurrency`.
    pub const CONCURRENCY: u32 = 1000;
    /// Cloud Run's bound; Knative's default of 600 is its operators' to raise.
    pub const TIMEOUT_SECONDS: u32 = 3600;
    pub const GRACE_SECONDS: u32 = 600;
    /// Instances of a service over all nodes.
    pub const INSTANCES: u32 = 1000;
    pub const WINDOW_SECONDS: std::ops::RangeInclusive<u32> = 6..=3600;
    pub const PROBE_SECONDS: u32 = 3600;
    pub const PROBE_THRESHOLD: u32 = 1000;
    pub const PROBE_HEADERS: usize = 32;
    /// All words of a probe's command: it travels to the shim in one line.
    pub const PROBE_COMMAND: usize = 16 * 1024;
    pub const GROUPS: usize = 64;
    pub const TMPFS: usize = 16;
    pub const HOST_NAMES: usize = 512;
    pub const VOLUMES: usize = 64;
    pub const SCHEDULES: usize = 16;
    pub const TRAFFIC_TARGETS: usize = 64;
    /// Each is a rule of the firewall that every packet may have to pass.
    pub const EGRESS: usize = 64;
    pub const LABELS: usize = 256;
}

pub(super) fn invalid(field: impl Into<String>, message: impl Into<String>) -> Refusal {
    Refusal::Invalid {
        field: field.into(),
        message: message.into(),
    }
}

pub(super) fn ensure(
    holds: bool,
    field: &str,
    message: impl FnOnce() -> String,
) -> Result<(), Refusal> {
    if holds {
        Ok(())
    } else {
        Err(invalid(field, message()))
    }
}

pub(super) fn at_most(field: &str, value: u64, most: u64) -> Result<(), Refusal> {
    ensure(value <= most, field, || format!("{value} is above {most}"))
}

/// Checks all of a service but whether the revisions its traffic names exist, which only the
/// registry knows.
///
/// # Errors
/// [`Refusal::Invalid`] with the first field that is wrong.
pub fn validate(put: &PutService) -> Result<(), Refusal> {
    let name = put.key.name.as_str();
    ensure(name.len() <= limits::SERVICE_NAME, "name", || {
        let most = limits::SERVICE_NAME;
        format!("`{name}` has {} characters of at most {most}", name.len())
    })?;
    ensure(put.uid.len() <= 64, "uid", || {
        "is longer than 64 bytes".to_owned()
    })?;
    let size = written_size(put);
    ensure(
        size.is_some_and(|size| size <= limits::SPEC_BYTES),
        "service",
        || {
            let most = limits::SPEC_BYTES / 1024;
            let size = size.unwrap_or(usize::MAX).div_ceil(1024);
            format!(
                "is {size} KiB when written down, above {most} KiB: put large values into an image"
            )
        },
    )?;
    validate_image(&put.image)?;
    validate_spec(&put.spec)?;
    validate_scale(&put.scale)?;
    validate_metric(&put.scale, &put.spec)?;
    validate_traffic(&put.key, &put.traffic, |_| true)?;
    for (field, map) in [
        ("labels", &put.labels),
        ("annotations", &put.annotations),
        ("labels", &put.spec.labels),
        ("annotations", &put.spec.annotations),
        ("place.require", &put.spec.place.require),
    ] {
        at_most(field, map.len() as u64, limits::LABELS as u64)?;
        ensure(!map.contains_key(""), field, || "a key is empty".to_owned())?;
    }
    for (name, words) in TLS_ANNOTATIONS {
        let value = put.annotations.get(name).map(String::as_str);
        ensure(
            value.is_none_or(|v| words.contains(&v)),
            "annotations",
            || format!("{name} is `{}` or `{}`", words[0], words[1]),
        )?;
    }
    for annotations in [&put.annotations, &put.spec.annotations] {
        let value = annotations.get(PROXY_PROTOCOL);
        ensure(value.is_none_or(|v| v == PROXY_V2), "annotations", || {
            format!("{PROXY_PROTOCOL} is `{PROXY_V2}`")
        })?;
    }
    if let Some(rate) = put.annotations.get(RATE) {
        let read = rate.parse::<Rate>();
        read.map_err(|error| invalid("annotations", format!("{RATE}: {error}")))?;
    }
    if let Some(text) = put.annotations.get(DOMAINS) {
        read_domains(text).map_err(|why| invalid("domains", why))?;
    }
    if let Some(text) = put.annotations.get(STICKY) {
        sticky(text).map_err(|help| invalid("annotations", format!("{STICKY}: {help}")))?;
    }
    if let Some(text) = put.annotations.get(SLOW_START) {
        slow_start(text).map_err(|help| invalid("annotations", format!("{SLOW_START}: {help}")))?;
    }
    Ok(())
}

fn validate_image(image: &ImagePin) -> Result<(), Refusal> {
    validate_reference(&image.reference)?;
    let hex = |text: &str, len| text.len() == len && text.bytes().all(is_lower_hex);
    let good = match image.digest.split_once(':') {
        Some(("sha256", text)) => hex(text, 64),
        Some(("sha512", text)) => hex(text, 128),
        _ => false,
    };
    ensure(good, "image", || {
        "is not pinned to a digest `sha256:…`".to_owned()
    })
}

pub(super) fn validate_reference(reference: &str) -> Result<(), Refusal> {
    ensure(!reference.is_empty(), "image", || "is missing".to_owned())?;
    let good = reference.len() <= 512 && reference.bytes().all(|b| b.is_ascii_graphic());
    ensure(good, "image", || "is no image reference".to_owned())
}

fn is_lower_hex(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

fn validate_spec(spec: &RevisionSpec) -> Result<(), Refusal> {
    let concurrency = u64::from(spec.container_concurrency);
    at_most("concurrency", concurrency, limits::CONCURRENCY.into())?;
    let timeout = spec.timeout_seconds;
    ensure(
        (1..=limits::TIMEOUT_SECONDS).contains(&timeout),
        "timeout",
        || {
            format!(
                "{timeout}s is not within 1s to {}s",
                limits::TIMEOUT_SECONDS
            )
        },
    )?;
    at_most(
        "grace",
        spec.termination_grace_seconds.into(),
        limits::GRACE_SECONDS.into(),
    )?;
    validate_place(&spec.place)?;
    at_most(
        "network.allow",
        spec.egress.len() as u64,
        limits::EGRESS as u64,
    )?;
    validate_listens(spec)?;
    let [container] = spec.containers.as_slice() else {
        return Err(invalid(
            "containers",
            format!("exactly one is supported, not {}", spec.containers.len()),
        ));
    };
    validate_container(container)?;
    validate_sandbox(spec, container)?;
    validate_volumes(&spec.volumes, &container.volume_mounts)
}

fn validate_place(place: &PlacementRules) -> Result<(), Refusal> {
    at_most("place.regions", place.regions.len() as u64, 64)?;
    for region in &place.regions {
        let stem = region.strip_suffix('*').unwrap_or(region);
        let label = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let good = !region.is_empty() && region.len() <= 63 && stem.bytes().all(label);
        ensure(good, "place.regions", || {
            format!(
                "`{}` is neither a region's name nor `prefix*`",
                short(region)
            )
        })?;
    }
    at_most("place.energy", place.energy.into(), 100)?;
    at_most(
        "place.priority",
        place.priority.unsigned_abs().into(),
        MOST_PRIORITY.unsigned_abs().into(),
    )?;
    at_most("place.prefer", place.prefer.len() as u64, 64)?;
    for preference in &place.prefer {
        let named = !preference.label.is_empty();
        ensure(named, "place.prefer", || "a label is empty".to_owned())?;
        let weight = preference.weight;
        let good = weight != 0 && (-100..=100).contains(&weight);
        ensure(good, "place.prefer.weight", || {
            format!("{weight} is not within -100 to 100, or it is 0")
        })?;
        let required = place.require.get(&preference.label);
        let vain = required.is_some_and(|value| (*value == preference.value) != (weight > 0));
        ensure(!vain, "place.prefer", || {
            let label = short(&preference.label);
            format!("`{label}` contradicts place.require: no node can meet both")
        })?;
    }
    Ok(())
}

pub(super) fn validate_scale(scale: &Scale) -> Result<(), Refusal> {
    let most = u64::from(limits::INSTANCES);
    at_most("scale.max", scale.max.into(), most)?;
    at_most("scale.min", scale.min.into(), most)?;
    ensure(scale.max == 0 || scale.min <= scale.max, "scale", || {
        format!("min {} is above max {}", scale.min, scale.max)
    })?;
    ensure(
        (1..=limits::INSTANCES).contains(&scale.initial),
        "scale.initial",
        || format!("{} is not within 1 to {most}", scale.initial),
    )?;
    let most_target = if scale.metric.is_of_resources() {
        100
    } else {
        100_000
    };
    at_most("scale.target", scale.target.into(), most_target)?;
    ensure(
        scale.metric != Metric::Memory || scale.max > 0,
        "scale.max",
        || "memory is not freed by more instances: say how many there may be".to_owned(),
    )?;
    at_most("scale.activation", scale.activation.into(), most)?;
    ensure(
        scale.max == 0 || scale.activation <= scale.max,
        "scale.activation",
        || format!("{} is above max {}", scale.activation, scale.max),
    )?;
    at_most("scale.down_delay", scale.down_delay_seconds.into(), 3_600)?;
    validate_schedules(scale)?;
    let percent = scale.utilization_percent;
    ensure((1..=100).contains(&percent), "scale.utilization", || {
        format!("{percent} is not within 1 to 100 percent")
    })?;
    let window = scale.window_seconds;
    ensure(
        limits::WINDOW_SECONDS.contains(&window),
        "scale.window",
        || format!("{window}s is not within 6s to 1h"),
    )
}

/// What is measured must be known of instances, and what is not freed by having more of them must end.
fn validate_metric(scale: &Scale, spec: &RevisionSpec) -> Result<(), Refusal> {
    if !scale.metric.is_of_resources() {
        return Ok(());
    }
    let word = match scale.metric {
        Metric::Memory => "memory",
        _ => "cpu",
    };
    let known = asked_for(scale.metric, spec).is_some();
    ensure(known, "scale.metric", || {
        format!(
            "{word} is a part of what an instance asks for: set resources.{word} or resources.{word}_request"
        )
    })
}

fn validate_schedules(scale: &Scale) -> Result<(), Refusal> {
    const FIELD: &str = "scale.schedule";
    let count = scale.schedules.len();
    at_most(FIELD, count as u64, limits::SCHEDULES as u64)?;
    for schedule in &scale.schedules {
        Cron::parse(&schedule.cron).map_err(|why| {
            invalid(
                "scale.schedule.cron",
                format!("`{}`: {why}", short(&schedule.cron)),
            )
        })?;
        let (held, longest) = (schedule.for_seconds, schedule::LONGEST_SECONDS);
        ensure((60..=longest).contains(&held), "scale.schedule.for", || {
            format!("{held}s is not within 1m to 24h")
        })?;
        let most = Bounds::of(scale).max;
        ensure(
            (1..=most).contains(&schedule.min),
            "scale.schedule.min",
            || format!("{} is not within 1 to {most}", schedule.min),
        )?;
        let ahead = schedule.utc_offset_minutes;
        let most = schedule::OFFSET_MINUTES;
        ensure(
            (-most..=most).contains(&ahead),
            "scale.schedule.utc_offset",
            || format!("{ahead} minutes are not within 14 hours"),
        )?;
    }
    Ok(())
}

/// `known` says whether a revision exists and is the service's.
pub(super) fn validate_traffic(
    service: &ServiceKey,
    traffic: &[TrafficTarget],
    known: impl Fn(&RevisionKey) -> bool,
) -> Result<(), Refusal> {
    if traffic.is_empty() {
        return Ok(());
    }
    at_most(
        "traffic",
        traffic.len() as u64,
        limits::TRAFFIC_TARGETS as u64,
    )?;
    let sum: u64 = traffic.iter().map(|t| u64::from(t.percent)).sum();
    ensure(sum == 100, "traffic", || {
        format!("adds up to {sum} percent, not to 100")
    })?;
    let mut tags = BTreeSet::new();
    for target in traffic {
        if let Some(name) = &target.revision {
            let key = RevisionKey {
                namespace: service.namespace.clone(),
                name: name.clone(),
            };
            ensure(known(&key), "traffic", || {
                format!("{} has no revision `{name}`", service.name)
            })?;
        }
        let Some(tag) = &target.tag else { continue };
        ensure(tags.insert(tag), "traffic", || {
            format!("tag `{tag}` is given twice")
        })?;
        let host = tag.as_str().len() + 1 + service.name.as_str().len();
        ensure(host <= 63, "traffic", || {
            format!(
                "`{tag}-{}` has {host} characters of at most 63",
                service.name
            )
        })?;
    }
    Ok(())
}

pub(super) fn validate_hash(hash: &str) -> Result<(), Refusal> {
    let good = hash.len() == 64 && hash.bytes().all(is_lower_hex);
    ensure(good, "token", || "its hash is not a hex SHA-256".to_owned())
}

pub(super) fn validate_public_key(key: &[u8]) -> Result<(), Refusal> {
    ensure(key.len() == 32, "publicKey", || {
        format!("has {} bytes, an Ed25519 key has 32", key.len())
    })
}

/// Text from outside, cut for a message.
pub(super) fn short(text: &str) -> String {
    text.chars().take(80).collect()
}
