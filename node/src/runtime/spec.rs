//! What a container is asked to be, as the agent writes it and the shim reads it.
//!
//! Plain data: how it becomes an OCI bundle is `bundle`'s business, whose user a name is is
//! `user`'s.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use scheduler::model::{HostAlias, InstanceId, IoLimits, Tmpfs, Ulimit};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::userns::Block;

/// Process limit of a container that asked for none.
pub const DEFAULT_PIDS: u32 = 256;

/// Size of `/dev/shm` and of a folder in memory that asked for none.
pub const DEFAULT_TMPFS: u64 = 64 << 20;

/// One container, complete: nothing is looked up elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ContainerSpec {
    pub id: InstanceId,
    /// The mounted root filesystem, writable or not; made and removed by the image room.
    pub rootfs: PathBuf,
    /// A named network namespace; `None` gives the container an empty one of its own.
    pub netns: Option<PathBuf>,
    /// The container's ids on the host, in a user namespace: that which `netns` belongs to, when there
    /// is one. `None`: ids are the host's own.
    #[serde(default)]
    pub ids: Option<Block>,
    pub args: Vec<String>,
    /// Later entries win. `PATH` and `HOME` are filled in when missing.
    pub env: Vec<(String, String)>,
    /// Made when the image lacks it; empty is `/`.
    pub cwd: String,
    /// As in an image: empty, `name`, `uid`, `name:group`, `uid:gid`.
    pub user: String,
    pub hostname: String,
    /// The container's own address, for its `/etc/hosts`.
    pub address: Option<IpAddr>,
    pub nameservers: Vec<IpAddr>,
    /// 1000 is one core; 0 is no limit.
    pub cpu_millis: u32,
    /// Memory and swap together; 0 is no limit.
    pub memory_bytes: u64,
    /// 0 is [`DEFAULT_PIDS`].
    pub pids: u32,
    pub read_only_root: bool,
    /// Below the cgroup root: `/selvedge/NODE/INSTANCE`.
    pub cgroup: PathBuf,
    /// What the service asks for; anything it would not have anyway is refused.
    pub add_capabilities: Vec<String>,
    pub mounts: Vec<BindMount>,
    /// Further variables, which win over `env` and are never written anywhere: the shim is told
    /// them through a pipe.
    #[serde(skip)]
    pub secret_env: SecretEnv,
    /// What asks the program to end; SIGTERM when the image names none.
    pub stop_signal: i32,
    /// Further groups of its user, by number or by the image's names.
    #[serde(default)]
    pub groups: Vec<String>,
    /// Decides its share of CPU when there is not enough for all; 0 is its limit.
    #[serde(default)]
    pub cpu_request_millis: u32,
    /// Memory left to it when the node runs short; 0 is none.
    #[serde(default)]
    pub memory_request_bytes: u64,
    #[serde(default)]
    pub io: IoLimits,
    #[serde(default)]
    pub ulimits: Vec<Ulimit>,
    #[serde(default)]
    pub tmpfs: Vec<Tmpfs>,
    /// Size of `/dev/shm`; 0 is [`DEFAULT_TMPFS`].
    #[serde(default)]
    pub shm_bytes: u64,
    /// Kernel settings of the container's own namespaces, name and value.
    #[serde(default)]
    pub sysctls: Vec<(String, String)>,
    #[serde(default)]
    pub host_aliases: Vec<HostAlias>,
    /// The search list and the options of its resolver.
    #[serde(default)]
    pub dns_search: Vec<String>,
    #[serde(default)]
    pub dns_options: Vec<String>,
    /// A first process that reaps orphans and passes signals on to the program.
    #[serde(default)]
    pub init: bool,
}

/// A host file or folder shown to the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BindMount {
    pub source: PathBuf,
    pub destination: PathBuf,
    pub read_only: bool,
    /// Nothing in it can be run.
    #[serde(default)]
    pub no_exec: bool,
}

/// Variables nobody may see. They are wiped when dropped, and `Debug` shows their names only.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct SecretEnv(Vec<(String, Zeroizing<String>)>);

impl SecretEnv {
    pub fn push(&mut self, name: String, value: String) {
        self.0.push((name, Zeroizing::new(value)));
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (&**name, value.as_str()))
    }
}

impl fmt::Debug for SecretEnv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set()
            .entries(self.0.iter().map(|(n, _)| n))
            .finish()
    }
}

impl ContainerSpec {
    /// A container with defaults everywhere: no limits but the number of processes, root's user,
    /// a network namespace of its own.
    #[must_use]
    pub fn new(id: InstanceId, rootfs: impl Into<PathBuf>, cgroup: impl Into<PathBuf>) -> Self {
        Self {
            hostname: id.0.chars().take(MAX_HOSTNAME).collect(),
            id,
            rootfs: rootfs.into(),
            netns: None,
            ids: None,
            args: Vec::new(),
            env: Vec::new(),
            cwd: "/".to_owned(),
            user: String::new(),
            address: None,
            nameservers: Vec::new(),
            cpu_millis: 0,
            memory_bytes: 0,
            pids: 0,
            read_only_root: false,
            cgroup: cgroup.into(),
            add_capabilities: Vec::new(),
            mounts: Vec::new(),
            secret_env: SecretEnv::default(),
            stop_signal: libc::SIGTERM,
            groups: Vec::new(),
            cpu_request_millis: 0,
            memory_request_bytes: 0,
            io: IoLimits::default(),
            ulimits: Vec::new(),
            tmpfs: Vec::new(),
            shm_bytes: 0,
            sysctls: Vec::new(),
            host_aliases: Vec::new(),
            dns_search: Vec::new(),
            dns_options: Vec::new(),
            init: false,
        }
    }

    /// Its part of the processors where others want them too, as the kernel's version 1 counts it.
    #[must_use]
    pub fn cpu_shares(&self) -> Option<u64> {
        let millis = match self.cpu_request_millis {
            0 => self.cpu_millis,
            request => request,
        };
        (millis > 0).then(|| (u64::from(millis) * 1024 / 1000).max(2))
    }

    /// What is wrong with this specification before anything was tried.
    ///
    /// # Errors
    /// A sentence for the operator.
    pub fn check(&self) -> Result<(), String> {
        if !is_safe_id(&self.id.0) {
            return Err(format!("`{}` cannot be a container's name", self.id));
        }
        if self.args.first().is_none_or(String::is_empty) {
            return Err("no command: neither the image nor the service names one".to_owned());
        }
        let texts = self
            .args
            .iter()
            .chain(self.env.iter().flat_map(|(k, v)| [k, v]))
            .map(String::as_str)
            .chain(self.secret_env.iter().flat_map(|(k, v)| [k, v]));
        if texts.into_iter().any(|t| t.contains('\0')) {
            return Err("a command or an environment variable holds a NUL byte".to_owned());
        }
        if let Some((name, _)) = self
            .env
            .iter()
            .find(|(k, _)| k.is_empty() || k.contains('='))
        {
            return Err(format!("`{name}` cannot name an environment variable"));
        }
        if !is_plain_absolute(&self.cgroup) {
            return Err(format!("`{}` is no cgroup path", self.cgroup.display()));
        }
        let mut targets = self
            .mounts
            .iter()
            .map(|m| m.destination.as_path())
            .chain(self.tmpfs.iter().map(|t| Path::new(&t.path)));
        if let Some(target) = targets.find(|target| !is_plain_absolute(target)) {
            return Err(format!("`{}` is no mount path", target.display()));
        }
        if self.hostname.is_empty() || self.hostname.len() > MAX_HOSTNAME {
            return Err(format!("`{}` is no host's name", self.hostname));
        }
        // One line of a file each: what the registry took in has none of these.
        let words = self
            .host_aliases
            .iter()
            .flat_map(|alias| &alias.names)
            .chain(&self.dns_search)
            .chain(&self.dns_options);
        for word in words.chain([&self.hostname]) {
            if word.contains(char::is_whitespace) || word.contains(char::is_control) {
                return Err(format!(
                    "`{}` cannot be written to /etc",
                    word.escape_debug()
                ));
            }
        }
        if let Some((name, _)) = self.sysctls.iter().find(|(name, _)| !is_sysctl(name)) {
            return Err(format!("`{name}` is no kernel setting of a container"));
        }
        Ok(())
    }
}

/// Linux' limit on a host name.
const MAX_HOSTNAME: usize = 63;

/// Whether `name` is one of the settings the kernel keeps per container: never a path that leads
/// elsewhere in `/proc/sys`.
fn is_sysctl(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_');
    let own = name.starts_with("net.") || name == "kernel.shm_rmid_forced";
    own && name.bytes().all(plain) && !name.contains("..")
}

/// Whether `id` may name a folder, a cgroup and a libcontainer container.
#[must_use]
pub fn is_safe_id(id: &str) -> bool {
    !id.is_empty()
        && id.len() <= 128
        && !id.starts_with(['.', '-'])
        && id
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

/// Absolute, not the root itself, and free of `.` and `..`.
fn is_plain_absolute(path: &Path) -> bool {
    use std::path::Component;
    let mut parts = path.components();
    parts.next() == Some(Component::RootDir)
        && path.as_os_str().len() > 1
        && parts.all(|p| matches!(p, Component::Normal(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_specification_of_an_earlier_daemon_is_read() {
        let spec = ContainerSpec::new(InstanceId("web-00001-x".into()), "/r", "/selvedge/n/web");
        let mut stored = serde_json::to_value(&spec).unwrap();
        let fields = stored.as_object_mut().unwrap();
        for key in [
            "groups",
            "cpuRequestMillis",
            "memoryRequestBytes",
            "io",
            "ulimits",
            "tmpfs",
            "shmBytes",
            "sysctls",
            "hostAliases",
            "dnsSearch",
            "dnsOptions",
            "init",
        ] {
            fields.remove(key).expect(key);
        }
        assert_eq!(
            serde_json::from_value::<ContainerSpec>(stored).unwrap(),
            spec
        );
    }

    #[test]
    fn nonsense_is_refused_before_anything_is_made() {
        let good = || {
            let mut spec =
                ContainerSpec::new(InstanceId("web-00001-x".into()), "/r", "/selvedge/n/web");
            spec.args = vec!["/bin/true".into()];
            spec
        };
        assert_eq!(good().check(), Ok(()));
        let bad: [fn(&mut ContainerSpec); 10] = [
            |s| s.id = InstanceId("../x".into()),
            |s| s.args.clear(),
            |s| s.args[0].push('\0'),
            |s| s.env.push(("A=B".into(), String::new())),
            |s| s.cgroup = "/selvedge/../x".into(),
            |s| s.hostname = "a\nb".into(),
            |s| s.dns_options.push("a b".into()),
            |s| s.sysctls.push(("kernel.panic".into(), "1".into())),
            |s| s.sysctls.push(("net./../kernel/panic".into(), "1".into())),
            |s| {
                s.mounts.push(BindMount {
                    source: "/x".into(),
                    destination: "relative".into(),
                    read_only: true,
                    no_exec: false,
                });
            },
        ];
        for (at, spoil) in bad.iter().enumerate() {
            let mut spec = good();
            spoil(&mut spec);
            assert!(spec.check().is_err(), "case {at}");
        }
    }
}
