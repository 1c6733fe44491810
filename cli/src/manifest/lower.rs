//! From the manifest's keys to the registry's words.

use scheduler::autoscale::schedule::Cron;
use scheduler::model::{
    Container, ContainerPort, EnvVar, Fit, Metric, Name, PROXY_PROTOCOL, PROXY_V2, Preference,
    RATE, Rate, SLOW_START, STICKY, Scale, Schedule, TLS_ANNOTATIONS, TrafficTarget,
    is_of_the_door, read_domains, set_domains, slow_start, sticky, units,
};
use toml_edit::{Document, Item};

use super::section::{Section, Source};
use super::{MAX_BYTES, Manifest, ManifestError, listen, mount, probe, sandbox};
use crate::args::{EnvChange, PortFlag, ScaleFlag, spread};

/// Beside those of the sandbox.
const TOP: &[&str] = &[
    "name",
    "namespace",
    "image",
    "port",
    "scale",
    "concurrency",
    "target",
    "window",
    "timeout",
    "grace",
    "command",
    "args",
    "workdir",
    "pull",
    "env",
    "secrets",
    "config",
    "mount",
    "resources",
    "health",
    "listen",
    "place",
    "network",
    "traffic",
    "labels",
    "annotations",
    "dns",
    "tls",
    "domains",
    "rate",
    "proxy_protocol",
];

/// Annotations that say how instances run: a revision's, not only its service's.
const OWN_ANNOTATIONS: &str = "selvedge.dev/";

type Read<T> = Result<T, ManifestError>;

/// Reads a manifest; `file` is what errors call it.
pub fn parse(file: &str, text: &str) -> Read<Manifest> {
    let source = Source { file, text };
    if text.len() > MAX_BYTES {
        let message = format!(
            "the manifest has {} bytes, more than {MAX_BYTES}",
            text.len()
        );
        return Err(source.fault(None, message, ""));
    }
    let document = Document::parse(text)
        .map_err(|error| source.fault(error.span(), error.message().replace('\n', ", "), ""))?;
    let known: Vec<&str> = TOP.iter().chain(&sandbox::TOP).copied().collect();
    let top = Section::new(source, document.as_table(), &known)?;
    let mut manifest = Manifest {
        name: top.parsed("name", str::parse::<Name>)?,
        namespace: top.parsed("namespace", str::parse::<Name>)?,
        scale: scale(&top)?,
        traffic: traffic(&top)?,
        labels: top.pairs("labels")?,
        annotations: top.pairs("annotations")?,
        ..Manifest::default()
    };
    if top.flag("proxy_protocol")? == Some(true) {
        let said = (PROXY_PROTOCOL.to_owned(), PROXY_V2.to_owned());
        manifest.annotations.extend([said]);
    }
    revision(&top, &mut manifest)?;
    container(&top, &mut manifest)?;
    sandbox::read(&top, &mut manifest)?;
    place(&top, &mut manifest)?;
    listen::listens(&top, &mut manifest)?;
    listen::network(&top, &mut manifest)?;
    tls(&top, &mut manifest)?;
    if let Some(rate) = top.parsed("rate", str::parse::<Rate>)? {
        manifest
            .annotations
            .insert(RATE.to_owned(), rate.to_string());
    }
    if let Some(words) = top.list("domains")? {
        let read = read_domains(&words.join(","));
        let domains = read.map_err(|why| top.fault("domains", why, ""))?;
        set_domains(&mut manifest.annotations, &domains);
    }
    split(&top, &mut manifest)?;
    mount::mounts(&top, &mut manifest.spec)?;
    Ok(manifest)
}

fn revision(top: &Section<'_>, manifest: &mut Manifest) -> Read<()> {
    let own =
        |(name, _): &(&String, &String)| name.starts_with(OWN_ANNOTATIONS) && !is_of_the_door(name);
    let own = manifest.annotations.iter().filter(own);
    manifest.spec.annotations = own.map(|(n, v)| (n.clone(), v.clone())).collect();
    let spec = &mut manifest.spec;
    if let Some(limit) = top.number("concurrency")? {
        spec.container_concurrency = limit;
    }
    if let Some(seconds) = top.parsed("timeout", seconds)? {
        spec.timeout_seconds = seconds;
    }
    if let Some(seconds) = top.parsed("grace", seconds)? {
        spec.termination_grace_seconds = seconds;
    }
    Ok(())
}

fn container(top: &Section<'_>, manifest: &mut Manifest) -> Read<()> {
    let container = manifest.container();
    if let Some(image) = top.string("image")? {
        image.clone_into(&mut container.image);
    }
    container.command = top.list("command")?.unwrap_or_default();
    container.args = top.list("args")?.unwrap_or_default();
    container.working_dir = top.string("workdir")?.map(str::to_owned);
    if let Some(port) = top.parsed("port", str::parse::<PortFlag>)? {
        container.ports = vec![port.into()];
    }
    for (name, value) in top.pairs("env")? {
        container.env.push(EnvVar {
            name,
            value,
            ..EnvVar::default()
        });
    }
    mount::variables(top, &mut container.env)?;
    if let Some(policy) = top.parsed("pull", pull_policy)? {
        policy.clone_into(&mut container.image_pull_policy);
    }
    resources(top, container)?;
    if let Some(health) = top.section("health", &["ready", "live", "startup"])? {
        container.readiness = probe::read(&health, "ready")?;
        container.liveness = probe::read(&health, "live")?;
        container.startup = probe::read(&health, "startup")?;
    }
    Ok(())
}

fn resources(top: &Section<'_>, container: &mut Container) -> Read<()> {
    let known = [
        "cpu",
        "memory",
        "pids",
        "cpu_request",
        "memory_request",
        "shm",
    ];
    let Some(resources) = top.section("resources", &known)? else {
        return Ok(());
    };
    let cpu = |key| -> Read<u32> { Ok(resources.parsed(key, units::cpu_millis)?.unwrap_or(0)) };
    let bytes = |key| -> Read<u64> { Ok(resources.parsed(key, units::bytes)?.unwrap_or(0)) };
    container.cpu_millis = cpu("cpu")?;
    container.cpu_request_millis = cpu("cpu_request")?;
    container.memory_bytes = bytes("memory")?;
    container.memory_request_bytes = bytes("memory_request")?;
    container.shm_bytes = bytes("shm")?;
    container.pids = resources.number("pids")?.unwrap_or(0);
    Ok(())
}

fn place(top: &Section<'_>, manifest: &mut Manifest) -> Read<()> {
    let known = [
        "regions", "spread", "require", "fit", "energy", "prefer", "priority",
    ];
    let Some(place) = top.section("place", &known)? else {
        return Ok(());
    };
    let rules = &mut manifest.spec.place;
    rules.regions = place.list("regions")?.unwrap_or_default();
    rules.spread = place.parsed("spread", spread)?.unwrap_or_default();
    rules.require = place.pairs("require")?;
    rules.fit = place.parsed("fit", fit)?.unwrap_or_default();
    rules.energy = place.number("energy")?.unwrap_or_default();
    rules.priority = place
        .parsed("priority", str::parse::<i32>)?
        .unwrap_or_default();
    for table in place.tables("prefer", &["label", "value", "weight"])? {
        let missing = |key: &str| table.fault(key, format!("`{key}` is missing"), "");
        let text = |key: &str| table.string(key)?.ok_or_else(|| missing(key));
        rules.prefer.push(Preference {
            label: text("label")?.to_owned(),
            value: text("value")?.to_owned(),
            weight: table
                .parsed("weight", str::parse::<i32>)?
                .ok_or_else(|| missing("weight"))?,
        });
    }
    Ok(())
}

fn fit(text: &str) -> Result<Fit, String> {
    match text {
        "spread" => Ok(Fit::Spread),
        "pack" => Ok(Fit::Pack),
        _ => Err(format!("`{text}` is neither `spread` nor `pack`")),
    }
}

/// What the front door does, in the words of the annotations that say so.
fn tls(top: &Section<'_>, manifest: &mut Manifest) -> Read<()> {
    const KEYS: [&str; TLS_ANNOTATIONS.len()] = ["certificate", "plain_http"];
    let Some(tls) = top.section("tls", &KEYS)? else {
        return Ok(());
    };
    for (key, (annotation, words)) in KEYS.iter().zip(TLS_ANNOTATIONS) {
        let known = |text: &str| match words.iter().find(|word| **word == text) {
            Some(word) => Ok((*word).to_owned()),
            None => Err(format!("write `{}` or `{}`", words[0], words[1])),
        };
        if let Some(value) = tls.parsed(key, known)? {
            manifest.annotations.insert(annotation.to_owned(), value);
        }
    }
    Ok(())
}

/// `scale = "0..20"`, `scale = 3`, or a table of all of it.
fn scale(top: &Section<'_>) -> Read<Scale> {
    let mut scale = Scale::default();
    if top.item("scale").is_some_and(Item::is_table_like) {
        let known = [
            "min",
            "max",
            "metric",
            "target",
            "window",
            "utilization",
            "initial",
            "activation",
            "down_delay",
            "schedule",
        ];
        if let Some(table) = top.section("scale", &known)? {
            scale.min = table.number("min")?.unwrap_or(scale.min);
            scale.max = table.number("max")?.unwrap_or(scale.max);
            if scale.max != 0 && scale.min > scale.max {
                return Err(table.fault("min", "`min` is more than `max`", ""));
            }
            scale.metric = table
                .parsed("metric", str::parse::<Metric>)?
                .unwrap_or_default();
            scale.target = table.number("target")?.unwrap_or(scale.target);
            if scale.metric.is_of_resources() && scale.target > 100 {
                let help = "by cpu or memory it is a percentage of what an instance asks for";
                return Err(table.fault("target", "`target` is more than 100", help));
            }
            scale.window_seconds = table
                .parsed("window", seconds)?
                .unwrap_or(scale.window_seconds);
            scale.utilization_percent = table
                .number("utilization")?
                .unwrap_or(scale.utilization_percent);
            scale.initial = table.number("initial")?.unwrap_or(scale.initial);
            scale.activation = table.number("activation")?.unwrap_or(scale.activation);
            scale.down_delay_seconds = table
                .parsed("down_delay", seconds)?
                .unwrap_or(scale.down_delay_seconds);
            scale.schedules = schedules(&table)?;
        }
    } else if let Some(bounds) = top.parsed("scale", str::parse::<ScaleFlag>)? {
        scale.min = bounds.min;
        scale.max = bounds.max;
    }
    scale.target = top.number("target")?.unwrap_or(scale.target);
    scale.window_seconds = top
        .parsed("window", seconds)?
        .unwrap_or(scale.window_seconds);
    Ok(scale)
}

/// `[[scale.schedule]]`: when more are kept than `min` says.
fn schedules(scale: &Section<'_>) -> Read<Vec<Schedule>> {
    let known = ["cron", "for", "min", "utc_offset"];
    let tables = scale.tables("schedule", &known)?;
    let schedule = |table: Section<'_>| {
        let missing = |key: &str| table.fault(key, format!("`{key}` is missing"), "");
        let cron = table.string("cron")?.ok_or_else(|| missing("cron"))?;
        Cron::parse(cron).map_err(|why| table.fault("cron", why, ""))?;
        Ok(Schedule {
            cron: cron.to_owned(),
            for_seconds: table
                .parsed("for", seconds)?
                .ok_or_else(|| missing("for"))?,
            min: table.number("min")?.ok_or_else(|| missing("min"))?,
            utc_offset_minutes: table.parsed("utc_offset", utc_offset)?.unwrap_or(0),
        })
    };
    tables.into_iter().map(schedule).collect()
}

/// `+02:00`, `-05:30` or `UTC`, in minutes.
fn utc_offset(text: &str) -> Result<i32, String> {
    const WRONG: &str = "is no distance from UTC: write `+02:00`, `-05:30` or `UTC`";
    if text == "UTC" {
        return Ok(0);
    }
    let (sign, rest) = match text.split_at_checked(1) {
        Some(("+", rest)) => (1, rest),
        Some(("-", rest)) => (-1, rest),
        _ => return Err(WRONG.to_owned()),
    };
    let digits = |text: &str, most: i32| {
        let two = text.len() == 2 && text.bytes().all(|b| b.is_ascii_digit());
        text.parse::<i32>().ok().filter(|n| two && *n <= most)
    };
    let parts = rest.split_once(':');
    let parts = parts.and_then(|(hours, minutes)| Some((digits(hours, 14)?, digits(minutes, 59)?)));
    let (hours, minutes) = parts.ok_or(WRONG)?;
    Ok(sign * (hours * 60 + minutes))
}

/// What `[traffic]` says besides shares: no revision is called like these.
const SPLIT: [&str; 2] = ["sticky", "slow_start"];

/// `sticky = true`, or for how long: a client of a split stays with the revision it met.
/// `slow_start = "30s"`: how long it takes a new instance to get its whole share.
fn split(top: &Section<'_>, manifest: &mut Manifest) -> Read<()> {
    let Some(traffic) = top.free("traffic")? else {
        return Ok(());
    };
    let word = match traffic.item("sticky") {
        Some(item) if item.is_bool() => traffic
            .flag("sticky")?
            .map(|on| if on { "on" } else { "off" }.to_owned()),
        _ => traffic.parsed("sticky", |text| sticky(text).map(|_| text.to_owned()))?,
    };
    let slow = traffic.parsed("slow_start", |text| {
        slow_start(text).map(|_| text.to_owned())
    })?;
    let word = word.map(|word| (STICKY.to_owned(), word));
    let slow = slow.map(|word| (SLOW_START.to_owned(), word));
    manifest.annotations.extend(word.into_iter().chain(slow));
    Ok(())
}

/// `latest = 90`, `"web-00007" = 10`, or `{ percent = 10, tag = "old" }`.
fn traffic(top: &Section<'_>) -> Read<Vec<TrafficTarget>> {
    let Some(table) = top.free("traffic")? else {
        return Ok(Vec::new());
    };
    let mut targets = Vec::new();
    let shares = table.keys().into_iter();
    for key in shares.filter(|key| !SPLIT.contains(key)) {
        let revision = match key {
            "latest" => None,
            name => Some(Name::new(name).map_err(|e| table.fault(key, e, ""))?),
        };
        let detailed = table.item(key).is_some_and(Item::is_table_like);
        let (percent, tag) = if detailed {
            let known = ["percent", "tag"];
            match table.section(key, &known)? {
                Some(inner) => (
                    inner.number("percent")?,
                    inner.parsed("tag", str::parse::<Name>)?,
                ),
                None => (None, None),
            }
        } else {
            (table.number(key)?, None)
        };
        targets.push(TrafficTarget {
            revision,
            percent: percent.unwrap_or(0),
            tag,
        });
    }
    let sum: u64 = targets.iter().map(|t| u64::from(t.percent)).sum();
    if !targets.is_empty() && sum != 100 {
        let message = format!("the shares of traffic sum to {sum}, not 100");
        return Err(top.fault("traffic", message, ""));
    }
    Ok(targets)
}

/// Whole seconds, at least one.
pub(super) fn seconds(text: &str) -> Result<u32, String> {
    let span = units::duration(text).map_err(|e| e.to_string())?;
    whole_seconds(span)
}

pub(super) fn whole_seconds(span: std::time::Duration) -> Result<u32, String> {
    match u32::try_from(span.as_secs()) {
        Ok(seconds) if seconds > 0 && span.subsec_nanos() == 0 => Ok(seconds),
        _ => Err("this is counted in whole seconds, at least one".to_owned()),
    }
}

/// Kubernetes' words for when a node asks the registry.
pub(super) fn pull_policy(text: &str) -> Result<&'static str, String> {
    match text {
        "always" | "Always" => Ok("Always"),
        "missing" | "IfNotPresent" => Ok("IfNotPresent"),
        "never" | "Never" => Ok("Never"),
        _ => Err(format!(
            "`{text}` is no pull policy: write always, missing or never"
        )),
    }
}

impl From<PortFlag> for ContainerPort {
    fn from(flag: PortFlag) -> Self {
        Self {
            container_port: flag.port,
            protocol: flag.protocol,
        }
    }
}

/// One line of an env file, or nothing for blanks and comments.
pub fn env_line(line: &str) -> Result<Option<EnvChange>, String> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    let change: EnvChange = line.strip_prefix("export ").unwrap_or(line).parse()?;
    let value = change.value.ok_or_else(|| format!("`{line}` is not K=V"))?;
    let quoted = |q: char| value.len() >= 2 && value.starts_with(q) && value.ends_with(q);
    let plain = if quoted('"') || quoted('\'') {
        value[1..value.len() - 1].to_owned()
    } else {
        value
    };
    Ok(Some(EnvChange {
        name: change.name,
        value: Some(plain),
    }))
}
