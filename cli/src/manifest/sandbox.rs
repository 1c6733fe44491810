//! What a manifest and the flags say of a container's sandbox.

use std::net::IpAddr;

use scheduler::model::{Container, HostAlias, RevisionSpec, Tmpfs, units};

use super::section::Section;
use super::{Manifest, ManifestError};
use crate::args::{SandboxArgs, UserFlag, bound_io, host, ulimit};

type Read<T> = Result<T, ManifestError>;

/// The keys of the top that this room reads.
pub(super) const TOP: [&str; 12] = [
    "user",
    "groups",
    "read_only",
    "capabilities",
    "hostname",
    "init",
    "stop_signal",
    "io",
    "ulimits",
    "tmpfs",
    "sysctls",
    "hosts",
];

pub(super) fn read(top: &Section<'_>, manifest: &mut Manifest) -> Read<()> {
    let container = manifest.container();
    let security = &mut container.security;
    if let Some(user) = top.parsed("user", str::parse::<UserFlag>)? {
        user.apply(security);
    }
    security.supplemental_groups = top.list("groups")?.unwrap_or_default();
    security.read_only_root_filesystem = top.flag("read_only")?.unwrap_or(false);
    security.add_capabilities = top.list("capabilities")?.unwrap_or_default();
    container.init = top.flag("init")?.unwrap_or(false);
    container.stop_signal = top.string("stop_signal")?.map(str::to_owned);
    bounds(top, container)?;
    names(top, &mut manifest.spec)
}

fn bounds(top: &Section<'_>, container: &mut Container) -> Read<()> {
    let known = ["weight", "read", "write", "read_ops", "write_ops"];
    if let Some(io) = top.section("io", &known)? {
        for key in io.keys() {
            io.parsed(key, |value| bound_io(&mut container.io, key, value))?;
        }
    }
    if let Some(table) = top.free("ulimits")? {
        for name in table.keys() {
            let limit = table.parsed(name, |value| ulimit(name, value))?;
            container.ulimits.extend(limit);
        }
    }
    if let Some(table) = top.free("tmpfs")? {
        for path in table.keys() {
            let size_bytes = table.parsed(path, units::bytes)?.unwrap_or(0);
            let path = path.to_owned();
            container.tmpfs.push(Tmpfs { path, size_bytes });
        }
    }
    Ok(())
}

fn names(top: &Section<'_>, spec: &mut RevisionSpec) -> Read<()> {
    spec.hostname = top.string("hostname")?.map(str::to_owned);
    spec.sysctls = top.pairs("sysctls")?;
    if let Some(table) = top.free("hosts")? {
        for name in table.keys() {
            let alias = table.parsed(name, |ip| host(name, ip))?;
            spec.host_aliases.extend(alias);
        }
    }
    let Some(dns) = top.section("dns", &["servers", "search", "options"])? else {
        return Ok(());
    };
    for server in dns.list("servers")?.unwrap_or_default() {
        let address: Result<IpAddr, _> = server.parse();
        let wrong = |_| dns.fault("servers", format!("`{server}` is no IP address"), "");
        spec.dns.servers.push(address.map_err(wrong)?);
    }
    spec.dns.search = dns.list("search")?.unwrap_or_default();
    spec.dns.options = dns.list("options")?.unwrap_or_default();
    Ok(())
}

/// Flags over a manifest: what has a name of its own is replaced by name, plain lists as a whole.
pub(super) fn override_with(manifest: &mut Manifest, flags: &SandboxArgs) -> Result<(), String> {
    let container = manifest.container();
    let security = &mut container.security;
    if let Some(user) = &flags.user {
        user.apply(security);
    }
    replace(&mut security.supplemental_groups, &flags.groups);
    let read_only = flags.read_only;
    security.read_only_root_filesystem = read_only.unwrap_or(security.read_only_root_filesystem);
    container.cpu_request_millis = flags.cpu_request.unwrap_or(container.cpu_request_millis);
    let memory = flags.memory_request;
    container.memory_request_bytes = memory.unwrap_or(container.memory_request_bytes);
    container.shm_bytes = flags.shm_size.unwrap_or(container.shm_bytes);
    container.init = flags.init.unwrap_or(container.init);
    if flags.stop_signal.is_some() {
        container.stop_signal.clone_from(&flags.stop_signal);
    }
    for (what, value) in &flags.io {
        bound_io(&mut container.io, what, value).map_err(|e| format!("--io: {e}"))?;
    }
    for limit in &flags.ulimits {
        container.ulimits.retain(|known| known.name != limit.name);
        container.ulimits.push(limit.clone());
    }
    for folder in &flags.tmpfs {
        container.tmpfs.retain(|known| known.path != folder.path);
        container.tmpfs.push(folder.clone());
    }
    override_names(&mut manifest.spec, flags);
    Ok(())
}

fn override_names(spec: &mut RevisionSpec, flags: &SandboxArgs) {
    if flags.hostname.is_some() {
        spec.hostname.clone_from(&flags.hostname);
    }
    for HostAlias { ip, names } in &flags.hosts {
        for known in &mut spec.host_aliases {
            known.names.retain(|name| !names.contains(name));
        }
        spec.host_aliases.retain(|known| !known.names.is_empty());
        let (ip, names) = (*ip, names.clone());
        spec.host_aliases.push(HostAlias { ip, names });
    }
    replace(&mut spec.dns.servers, &flags.dns_servers);
    replace(&mut spec.dns.search, &flags.dns_search);
    replace(&mut spec.dns.options, &flags.dns_options);
    spec.sysctls.extend(flags.sysctls.iter().cloned());
}

fn replace<T: Clone>(list: &mut Vec<T>, with: &[T]) {
    if !with.is_empty() {
        *list = with.to_vec();
    }
}
