//! The flags of `deploy` that say what a container's sandbox is, and the forms of their values.

use std::net::IpAddr;
use std::str::FromStr;

use clap::Args;
use scheduler::model::{HostAlias, IoLimits, SecurityContext, Tmpfs, Ulimit, units};

use super::pair;

#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Sandbox")]
pub struct SandboxArgs {
    /// The user to run as, by number or as the image names it
    #[arg(long, value_name = "USER[:GROUP]")]
    pub user: Option<UserFlag>,
    /// A further group of its user; repeat for more
    #[arg(long = "group-add", value_name = "GROUP")]
    pub groups: Vec<String>,
    /// Nothing but /tmp can be written
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub read_only: Option<bool>,
    /// Cores it is counted with, and its share when there are too few
    #[arg(long, value_name = "CORES", value_parser = units::cpu_millis)]
    pub cpu_request: Option<u32>,
    /// Memory it is counted with, and is left when there is too little
    #[arg(long, value_name = "BYTES", value_parser = units::bytes)]
    pub memory_request: Option<u64>,
    /// Size of /dev/shm
    #[arg(long, value_name = "BYTES", value_parser = units::bytes)]
    pub shm_size: Option<u64>,
    #[arg(
        long,
        value_name = "WHAT=N",
        value_parser = pair,
        help = "Use of the node's disk: weight, read, write (bytes a second), read_ops or write_ops"
    )]
    pub io: Vec<(String, String)>,
    /// A bound on each process: nofile, nproc, core, memlock, msgqueue, sigpending or stack
    #[arg(long = "ulimit", value_name = "NAME=SOFT[:HARD]", value_parser = ulimit_flag)]
    pub ulimits: Vec<Ulimit>,
    /// A folder in memory
    #[arg(long, value_name = "PATH[:SIZE]", value_parser = tmpfs_flag)]
    pub tmpfs: Vec<Tmpfs>,
    /// A kernel setting of the container alone
    #[arg(long = "sysctl", value_name = "K=V", value_parser = pair)]
    pub sysctls: Vec<(String, String)>,
    /// What the container calls itself
    #[arg(long, value_name = "NAME")]
    pub hostname: Option<String>,
    /// A name for an address
    #[arg(long = "add-host", value_name = "NAME:IP", value_parser = host_flag)]
    pub hosts: Vec<HostAlias>,
    /// Whom it asks for names
    #[arg(long = "dns", value_name = "IP")]
    pub dns_servers: Vec<IpAddr>,
    /// Where it looks for short names
    #[arg(long, value_name = "DOMAIN")]
    pub dns_search: Vec<String>,
    /// An option of its resolver, like ndots:2
    #[arg(long = "dns-option", value_name = "OPTION")]
    pub dns_options: Vec<String>,
    /// A first process that reaps orphans and passes signals on
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub init: Option<bool>,
    /// What asks it to end
    #[arg(long, value_name = "SIGNAL")]
    pub stop_signal: Option<String>,
}

/// `USER`, `USER:GROUP` or `:GROUP`, each a number or a name the image knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserFlag {
    user: Option<String>,
    group: Option<String>,
}

impl FromStr for UserFlag {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (user, group) = match text.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (text, None),
        };
        let part = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
        let is_name = |name: &str| {
            (1..=32).contains(&name.len()) && name.bytes().all(part) && !name.starts_with('-')
        };
        let user_good = is_name(user) || (user.is_empty() && group.is_some());
        if !user_good || group.is_some_and(|group| !is_name(group)) {
            return Err(format!(
                "`{text}` is no user: write USER or USER:GROUP, numbers or names"
            ));
        }
        Ok(Self {
            user: (!user.is_empty()).then(|| user.to_owned()),
            group: group.map(str::to_owned),
        })
    }
}

impl UserFlag {
    /// Replaces whoever it was before.
    pub fn apply(&self, to: &mut SecurityContext) {
        let split = |who: &Option<String>| match who.as_deref().map(str::parse) {
            Some(Ok(number)) => (Some(number), None),
            Some(Err(_)) => (None, who.clone()),
            None => (None, None),
        };
        (to.run_as_user, to.run_as_user_name) = split(&self.user);
        (to.run_as_group, to.run_as_group_name) = split(&self.group);
    }
}

/// Sets one bound on the use of a disk.
pub fn bound_io(io: &mut IoLimits, what: &str, value: &str) -> Result<(), String> {
    let number = units::bytes(value).map_err(|error| error.to_string())?;
    let place = match what {
        "read" => &mut io.read_bps,
        "write" => &mut io.write_bps,
        "read_ops" => &mut io.read_iops,
        "write_ops" => &mut io.write_iops,
        "weight" => {
            io.weight = u16::try_from(number).map_err(|_| format!("`{value}` is no weight"))?;
            return Ok(());
        }
        _ => {
            return Err(format!(
                "`{what}` is nothing of a disk: write weight, read, write, read_ops or write_ops"
            ));
        }
    };
    *place = number;
    Ok(())
}

/// `SOFT` or `SOFT:HARD`.
pub fn ulimit(name: &str, value: &str) -> Result<Ulimit, String> {
    let number = |text: &str| units::bytes(text).map_err(|error| error.to_string());
    let (soft, hard) = match value.split_once(':') {
        Some((soft, hard)) => (number(soft)?, number(hard)?),
        None => (number(value)?, number(value)?),
    };
    let name = name.to_owned();
    Ok(Ulimit { name, soft, hard })
}

fn ulimit_flag(text: &str) -> Result<Ulimit, String> {
    let (name, value) = pair(text)?;
    ulimit(&name, &value)
}

fn tmpfs_flag(text: &str) -> Result<Tmpfs, String> {
    let (path, size) = text.split_once(':').unwrap_or((text, "0"));
    let size_bytes = units::bytes(size).map_err(|error| error.to_string())?;
    let path = path.to_owned();
    Ok(Tmpfs { path, size_bytes })
}

fn host_flag(text: &str) -> Result<HostAlias, String> {
    let wrong = || format!("`{text}` is not NAME:IP");
    let (name, ip) = text.split_once(':').ok_or_else(wrong)?;
    host(name, ip)
}

/// One name for an address; IPv6 may stand in brackets.
pub fn host(name: &str, ip: &str) -> Result<HostAlias, String> {
    let bare = ip.strip_prefix('[').and_then(|ip| ip.strip_suffix(']'));
    let address = bare.unwrap_or(ip).parse();
    let ip = address.map_err(|_| format!("`{ip}` is no IP address"))?;
    let names = vec![name.to_owned()];
    Ok(HostAlias { ip, names })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users() {
        let of = |text: &str| {
            let mut security = SecurityContext::default();
            text.parse::<UserFlag>().unwrap().apply(&mut security);
            (
                security.run_as_user,
                security.run_as_user_name.unwrap_or_default(),
                security.run_as_group,
                security.run_as_group_name.unwrap_or_default(),
            )
        };
        let none = String::new;
        assert_eq!(of("7"), (Some(7), none(), None, none()));
        assert_eq!(of("7:8"), (Some(7), none(), Some(8), none()));
        assert_eq!(of("www-data:8"), (None, "www-data".into(), Some(8), none()));
        assert_eq!(of(":adm"), (None, none(), None, "adm".into()));
        for bad in ["", ":", "a b", "a:", "-1", "a:b:c"] {
            assert!(bad.parse::<UserFlag>().is_err(), "{bad}");
        }
    }

    #[test]
    fn values() {
        let limit = ulimit_flag("nofile=1Ki:2048").unwrap();
        assert_eq!((limit.soft, limit.hard), (1024, 2048));
        assert_eq!(tmpfs_flag("/a:1Mi").unwrap().size_bytes, 1 << 20);
        assert_eq!(tmpfs_flag("/a").unwrap().size_bytes, 0);
        let v6 = host_flag("db:[fd00::1]").unwrap();
        assert_eq!(v6.ip.to_string(), "fd00::1");
        for bad in ["nofile", "nofile=many", "nofile=1:x"] {
            assert!(ulimit_flag(bad).is_err(), "{bad}");
        }
        assert!(host_flag("db").is_err() && host_flag("db:x").is_err());
        let mut io = IoLimits::default();
        bound_io(&mut io, "read", "10Mi").unwrap();
        assert_eq!(io.read_bps, 10 << 20);
        assert!(bound_io(&mut io, "weight", "70000").is_err());
        assert!(bound_io(&mut io, "speed", "1").is_err());
    }
}
