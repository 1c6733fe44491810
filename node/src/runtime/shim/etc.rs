//! The files every container gets its own of: who it is, who others are, whom to ask for names.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::Path;

use super::super::spec::ContainerSpec;
use super::super::wire::ETC;

/// Below `/etc`.
pub const FILES: [&str; 3] = ["hosts", "hostname", "resolv.conf"];

/// Writes them into the instance's scratch.
pub fn write(spec: &ContainerSpec, scratch: &Path) -> io::Result<()> {
    let folder = scratch.join(ETC);
    fs::create_dir_all(&folder)?;
    let hostname = format!("{}\n", spec.hostname);
    for (name, text) in FILES.into_iter().zip([hosts(spec), hostname, resolv(spec)]) {
        fs::write(folder.join(name), text)?;
    }
    Ok(())
}

// Writing to a string cannot fail, here and below.
fn hosts(spec: &ContainerSpec) -> String {
    let mut text = String::from("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost\n");
    if let Some(address) = spec.address {
        let _ = writeln!(text, "{address}\t{}", spec.hostname);
    }
    for alias in &spec.host_aliases {
        let _ = writeln!(text, "{}\t{}", alias.ip, alias.names.join(" "));
    }
    text
}

fn resolv(spec: &ContainerSpec) -> String {
    let mut text = String::new();
    for server in &spec.nameservers {
        let _ = writeln!(text, "nameserver {server}");
    }
    if !spec.dns_search.is_empty() {
        let _ = writeln!(text, "search {}", spec.dns_search.join(" "));
    }
    if !spec.dns_options.is_empty() {
        let _ = writeln!(text, "options {}", spec.dns_options.join(" "));
    } else if !spec.nameservers.is_empty() {
        text.push_str("options edns0\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use scheduler::model::{HostAlias, InstanceId};

    use super::*;

    #[test]
    fn each_file_says_what_was_asked() {
        let mut spec = ContainerSpec::new(InstanceId("web-1".into()), "/r", "/selvedge/n/a");
        assert_eq!(resolv(&spec), "");
        spec.address = Some("10.1.0.2".parse().unwrap());
        spec.nameservers = vec!["10.1.0.1".parse().unwrap()];
        assert_eq!(resolv(&spec), "nameserver 10.1.0.1\noptions edns0\n");
        spec.host_aliases = vec![HostAlias {
            ip: "fd00::1".parse().unwrap(),
            names: vec!["db".into(), "db.internal".into()],
        }];
        spec.dns_search = vec!["a.b".into(), "c".into()];
        spec.dns_options = vec!["ndots:2".into()];
        assert_eq!(
            hosts(&spec),
            "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost\n10.1.0.2\tweb-1\n\
             fd00::1\tdb db.internal\n"
        );
        assert_eq!(
            resolv(&spec),
            "nameserver 10.1.0.1\nsearch a.b c\noptions ndots:2\n"
        );
    }
}
