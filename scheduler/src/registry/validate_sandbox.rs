//! What the registry takes in of a container's sandbox: its user, the bounds of its processes and
//! of the disk, folders in memory, names and kernel settings.

use std::collections::{BTreeMap, BTreeSet};

use super::Refusal;
use super::validate::{at_most, ensure, invalid, limits, short};
use super::validate_container::{is_own_tree, validate_path};
use crate::model::{
    Container, Dns, HostAlias, IoLimits, RevisionSpec, SecurityContext, Tmpfs, Ulimit, parse_signal,
};

/// Kernel settings that touch nothing outside the container's own namespaces: Kubernetes' safe
/// ones. With how many numbers each takes, the least and the most.
const SYSCTLS: [(&str, usize, u64, u64); 9] = [
    ("kernel.shm_rmid_forced", 1, 0, 1),
    ("net.ipv4.ip_local_port_range", 2, 1, 65_535),
    ("net.ipv4.ip_unprivileged_port_start", 1, 0, 65_535),
    ("net.ipv4.ping_group_range", 2, 0, 2_147_483_647),
    ("net.ipv4.tcp_fin_timeout", 1, 1, 3_600),
    ("net.ipv4.tcp_keepalive_intvl", 1, 1, 32_767),
    ("net.ipv4.tcp_keepalive_probes", 1, 1, 127),
    ("net.ipv4.tcp_keepalive_time", 1, 1, 32_767),
    ("net.ipv4.tcp_syncookies", 1, 0, 2),
];

/// The least a disk may be bounded to: the kernel takes 1, but a page that cannot be read for a
/// minute is a container that hangs.
const MIN_BPS: u64 = 64 << 10;
const MIN_IOPS: u64 = 10;
/// Kernels keep bytes a second in 64 bits and operations a second in 32.
const MAX_IOPS: u64 = u32::MAX as u64 - 1;

pub(super) fn validate_sandbox(spec: &RevisionSpec, container: &Container) -> Result<(), Refusal> {
    validate_user(&container.security)?;
    validate_requests(container)?;
    validate_io(&container.io)?;
    validate_ulimits(&container.ulimits)?;
    validate_tmpfs(container)?;
    at_most("resources.shm", container.shm_bytes, limits::MAX_MEMORY)?;
    if let Some(signal) = &container.stop_signal {
        ensure(parse_signal(signal).is_some(), "stop_signal", || {
            format!(
                "`{}` is no signal: write SIGTERM, QUIT or 15",
                short(signal)
            )
        })?;
    }
    if let Some(name) = &spec.hostname {
        ensure(is_label(name), "hostname", || {
            let name = short(name);
            format!("`{name}` is no host's name: use 1 to 63 of a-z, 0-9 and '-'")
        })?;
    }
    validate_hosts(&spec.host_aliases)?;
    validate_dns(&spec.dns)?;
    validate_sysctls(&spec.sysctls)
}

fn validate_user(security: &SecurityContext) -> Result<(), Refusal> {
    for (field, number, name) in [
        ("user", security.run_as_user, &security.run_as_user_name),
        ("group", security.run_as_group, &security.run_as_group_name),
    ] {
        ensure(number != Some(u32::MAX), field, || {
            format!("{} stands for nobody in Linux", u32::MAX)
        })?;
        let Some(name) = name else { continue };
        ensure(number.is_none(), field, || {
            "is given by number and by name".to_owned()
        })?;
        validate_account(field, name)?;
    }
    let groups = &security.supplemental_groups;
    at_most("groups", groups.len() as u64, limits::GROUPS as u64)?;
    groups
        .iter()
        .try_for_each(|g| validate_account("groups", g))
}

/// A user's or group's name, as `useradd` takes them; or a number.
fn validate_account(field: &str, name: &str) -> Result<(), Refusal> {
    let part = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
    let good = (1..=32).contains(&name.len())
        && name.bytes().all(part)
        && !name.starts_with('-')
        && name.parse() != Ok(u32::MAX);
    ensure(good, field, || {
        format!("`{}` is no name of a user or group", short(name))
    })
}

fn validate_requests(container: &Container) -> Result<(), Refusal> {
    let within = |field: &str, asked: u64, least: u64, limit: u64| {
        ensure(asked == 0 || asked >= least, field, || {
            format!("{asked} is below {least}")
        })?;
        ensure(limit == 0 || asked <= limit, field, || {
            format!("{asked} is above the limit of {limit}")
        })
    };
    within(
        "resources.cpu_request",
        container.cpu_request_millis.into(),
        limits::MIN_CPU_MILLIS.into(),
        container.cpu_millis.into(),
    )?;
    at_most(
        "resources.cpu_request",
        container.cpu_request_millis.into(),
        limits::MAX_CPU_MILLIS.into(),
    )?;
    within(
        "resources.memory_request",
        container.memory_request_bytes,
        limits::MIN_MEMORY,
        container.memory_bytes,
    )?;
    at_most(
        "resources.memory_request",
        container.memory_request_bytes,
        limits::MAX_MEMORY,
    )
}

fn validate_io(io: &IoLimits) -> Result<(), Refusal> {
    at_most("io.weight", io.weight.into(), 1000)?;
    for (field, value, least, most) in [
        ("io.read", io.read_bps, MIN_BPS, limits::MAX_MEMORY),
        ("io.write", io.write_bps, MIN_BPS, limits::MAX_MEMORY),
        ("io.read_ops", io.read_iops, MIN_IOPS, MAX_IOPS),
        ("io.write_ops", io.write_iops, MIN_IOPS, MAX_IOPS),
    ] {
        ensure(value == 0 || value >= least, field, || {
            format!("{value} a second is below {least}")
        })?;
        at_most(field, value, most)?;
    }
    Ok(())
}

fn validate_ulimits(ulimits: &[Ulimit]) -> Result<(), Refusal> {
    let mut seen = BTreeSet::new();
    for ulimit in ulimits {
        let field = format!("ulimits.{}", short(&ulimit.name));
        let kind = Ulimit::KINDS.iter().find(|(name, ..)| *name == ulimit.name);
        let Some((_, least, most)) = kind else {
            let known = Ulimit::KINDS.map(|(name, ..)| name).join(", ");
            return Err(invalid(field, format!("cannot be set; these can: {known}")));
        };
        ensure(seen.insert(&ulimit.name), &field, || {
            "is given twice".to_owned()
        })?;
        let (soft, hard) = (ulimit.soft, ulimit.hard);
        ensure(soft <= hard, &field, || {
            format!("soft {soft} is above hard {hard}")
        })?;
        ensure(soft >= *least && hard <= *most, &field, || {
            format!("{soft}:{hard} is not within {least} to {most}")
        })?;
    }
    Ok(())
}

fn validate_tmpfs(container: &Container) -> Result<(), Refusal> {
    let all = &container.tmpfs;
    at_most("tmpfs", all.len() as u64, limits::TMPFS as u64)?;
    let plain = |path: &str| path.trim_end_matches('/').to_owned();
    let mut taken: BTreeSet<String> = container
        .volume_mounts
        .iter()
        .map(|mount| plain(&mount.mount_path))
        .collect();
    for Tmpfs { path, size_bytes } in all {
        let field = format!("tmpfs.{}", short(path));
        validate_path(&field, path)?;
        ensure(!is_own_tree(path), &field, || {
            "is the container's own: mount elsewhere".to_owned()
        })?;
        ensure(taken.insert(plain(path)), &field, || {
            "is mounted twice".to_owned()
        })?;
        at_most(&field, *size_bytes, limits::MAX_MEMORY)?;
    }
    Ok(())
}

fn validate_hosts(aliases: &[HostAlias]) -> Result<(), Refusal> {
    let names = aliases.iter().map(|alias| alias.names.len() as u64).sum();
    at_most("hosts", names, limits::HOST_NAMES as u64)?;
    at_most("hosts", aliases.len() as u64, limits::HOST_NAMES as u64)?;
    for alias in aliases {
        ensure(!alias.names.is_empty(), "hosts", || {
            format!("{} has no name", alias.ip)
        })?;
        for name in &alias.names {
            let field = format!("hosts.{}", short(name));
            ensure(is_domain(name), &field, || "is no host's name".to_owned())?;
            ensure(name != "localhost", &field, || {
                "is the container itself".to_owned()
            })?;
        }
    }
    Ok(())
}

/// glibc reads three servers, 256 bytes of search list and no more.
fn validate_dns(dns: &Dns) -> Result<(), Refusal> {
    at_most("dns.servers", dns.servers.len() as u64, 3)?;
    at_most("dns.search", dns.search.len() as u64, 32)?;
    for domain in &dns.search {
        ensure(is_domain(domain), "dns.search", || {
            format!("`{}` is no domain", short(domain))
        })?;
    }
    at_most("dns.options", dns.options.len() as u64, 16)?;
    for option in &dns.options {
        let part = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b':' | b'_');
        let good = (1..=64).contains(&option.len()) && option.bytes().all(part);
        ensure(good, "dns.options", || {
            format!("`{}` is no option of a resolver", short(option))
        })?;
    }
    Ok(())
}

fn validate_sysctls(sysctls: &BTreeMap<String, String>) -> Result<(), Refusal> {
    for (name, value) in sysctls {
        let field = format!("sysctls.{}", short(name));
        let known = SYSCTLS.iter().find(|(known, ..)| known == name);
        let Some((_, count, least, most)) = known else {
            let known = SYSCTLS.map(|(name, ..)| name).join(", ");
            return Err(invalid(field, format!("cannot be set; these can: {known}")));
        };
        let numbers: Result<Vec<u64>, _> = value.split_whitespace().map(str::parse).collect();
        let good = numbers.is_ok_and(|numbers| {
            numbers.len() == *count
                && numbers.iter().all(|n| (least..=most).contains(&n))
                && numbers.is_sorted()
        });
        ensure(good, &field, || {
            let words = if *count == 1 {
                "a number"
            } else {
                "two numbers, the smaller first,"
            };
            format!("`{}` is not {words} within {least} to {most}", short(value))
        })?;
    }
    Ok(())
}

fn is_label(text: &str) -> bool {
    let part = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=63).contains(&text.len())
        && text.bytes().all(part)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// Labels with dots between them; underscores are names in use, if not by the book.
fn is_domain(text: &str) -> bool {
    let text = text.strip_suffix('.').unwrap_or(text);
    text.len() <= 253
        && text
            .split('.')
            .all(|label| is_label(&label.to_ascii_lowercase().replace('_', "0")))
}
