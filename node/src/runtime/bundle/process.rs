//! The container's program: its user, environment, capabilities and rlimits.

use std::collections::{BTreeMap, HashSet};
use std::path::{Component, Path, PathBuf};

use libcontainer::oci_spec::OciSpecError;
use libcontainer::oci_spec::runtime::{
    Capability, LinuxCapabilities, LinuxCapabilitiesBuilder, PosixRlimit, PosixRlimitBuilder,
    PosixRlimitType, Process, ProcessBuilder, UserBuilder,
};
use rustix::process::{Resource, getrlimit};

use super::super::spec::ContainerSpec;
use super::super::user::Resolved;

/// What root in a container keeps: enough to own files, drop to another user and bind low ports, as images
/// that start as root do (nginx, redis, postgres make their folders, give them away and become
/// someone else). Docker's set without `NET_RAW`, MKNOD, `AUDIT_WRITE`, `SYS_CHROOT`, SETFCAP and
/// SETPCAP. Any other user keeps none.
///
/// In a user namespace these are powers over the container's own ids, files and processes and over
/// nothing of the host, so asking for them one by one would protect nobody. Without one they are
/// bounded by what the container can see: its own mounts and processes.
const ROOT_KEEPS: [Capability; 8] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::NetBindService,
    Capability::Setgid,
    Capability::Setuid,
];

/// Searched for a command when the image sets no `PATH`.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Open files a container may have where the node itself may have as many.
const OPEN_FILES: u64 = 65_536;

/// Whether a service whose container runs as `uid` may ask for this capability: only for what it
/// has anyway. Low ports are open to every user in a container's network, so another user than
/// root may ask for that too.
#[must_use]
pub fn may_add(name: &str, uid: u32) -> bool {
    let name = name.strip_prefix("CAP_").unwrap_or(name);
    let kept = ROOT_KEEPS.iter().any(|c| c.to_string() == name);
    kept && (uid == 0 || name == "NET_BIND_SERVICE")
}

pub(super) fn process(spec: &ContainerSpec, user: &Resolved) -> Result<Process, OciSpecError> {
    // Never an empty list: libcontainer would leave the daemon's own groups in place.
    let groups: Vec<u32> = [user.gid].iter().chain(&user.groups).copied().collect();
    let who = UserBuilder::default()
        .uid(user.uid)
        .gid(user.gid)
        .additional_gids(groups);
    ProcessBuilder::default()
        .terminal(false)
        .user(who.build()?)
        .args(spec.args.clone())
        .env(environment(spec, &user.home))
        .cwd(working_dir(spec))
        .no_new_privileges(true)
        .capabilities(capabilities(user)?)
        .rlimits(rlimits(spec)?)
        .build()
}

/// The folder the program starts in, without `..`: what is checked is what is entered.
#[must_use]
pub fn working_dir(spec: &ContainerSpec) -> PathBuf {
    let mut plain = PathBuf::from("/");
    for part in Path::new(&spec.cwd).components() {
        match part {
            Component::Normal(name) => plain.push(name),
            Component::ParentDir => drop(plain.pop()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    plain
}

/// `NAME=value` once per name. libcontainer would otherwise ask the image's own libc for HOME.
#[must_use]
pub fn environment(spec: &ContainerSpec, home: &str) -> Vec<String> {
    let mut env: BTreeMap<&str, &str> = [("PATH", DEFAULT_PATH), ("HOME", home)].into();
    for (name, value) in &spec.env {
        if !(value.is_empty() && matches!(name.as_str(), "PATH" | "HOME")) {
            env.insert(name, value);
        }
    }
    env.into_iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect()
}

fn capabilities(user: &Resolved) -> Result<LinuxCapabilities, OciSpecError> {
    let mut kept: HashSet<Capability> = HashSet::new();
    if user.uid == 0 {
        kept.extend(ROOT_KEEPS);
    }
    LinuxCapabilitiesBuilder::default()
        .bounding(kept.clone())
        .effective(kept.clone())
        .permitted(kept)
        .inheritable(HashSet::new())
        .ambient(HashSet::new())
        .build()
}

/// What a ulimit is to the configuration and to the kernel.
fn kind(name: &str) -> Option<(PosixRlimitType, Resource)> {
    Some(match name {
        "core" => (PosixRlimitType::RlimitCore, Resource::Core),
        "memlock" => (PosixRlimitType::RlimitMemlock, Resource::Memlock),
        "msgqueue" => (PosixRlimitType::RlimitMsgqueue, Resource::Msgqueue),
        "nofile" => (PosixRlimitType::RlimitNofile, Resource::Nofile),
        "nproc" => (PosixRlimitType::RlimitNproc, Resource::Nproc),
        "sigpending" => (PosixRlimitType::RlimitSigpending, Resource::Sigpending),
        "stack" => (PosixRlimitType::RlimitStack, Resource::Stack),
        _ => return None,
    })
}

/// Whether this node may give the container its ulimits: none above the node's own, for raising
/// them takes a capability a node may lack.
///
/// # Errors
/// A sentence naming the first it may not.
pub fn check_ulimits(spec: &ContainerSpec) -> Result<(), String> {
    for ulimit in &spec.ulimits {
        let Some((_, resource)) = kind(&ulimit.name) else {
            return Err(format!("`{}` is no limit that can be set", ulimit.name));
        };
        let own = getrlimit(resource).maximum.unwrap_or(u64::MAX);
        if ulimit.hard > own {
            return Err(format!(
                "{} {} is above this node's own {own}: lower it, or raise it for the daemon",
                ulimit.name, ulimit.hard
            ));
        }
    }
    Ok(())
}

/// Open files no more than the shim itself may have, no core dumps, and what the service asks for.
fn rlimits(spec: &ContainerSpec) -> Result<Vec<PosixRlimit>, OciSpecError> {
    let own = getrlimit(Resource::Nofile).maximum.unwrap_or(OPEN_FILES);
    let files = own.min(OPEN_FILES);
    let mut wanted = BTreeMap::from([("nofile", (files, files)), ("core", (0, 0))]);
    for ulimit in &spec.ulimits {
        wanted.insert(&ulimit.name, (ulimit.soft, ulimit.hard));
    }
    wanted
        .into_iter()
        .filter_map(|(name, bounds)| Some((kind(name)?.0, bounds)))
        .map(|(typ, (soft, hard))| {
            PosixRlimitBuilder::default()
                .typ(typ)
                .soft(soft)
                .hard(hard)
                .build()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use scheduler::model::{InstanceId, Ulimit};

    use super::*;

    fn spec() -> ContainerSpec {
        let mut spec = ContainerSpec::new(InstanceId("a".into()), "/r", "/selvedge/n/a");
        spec.args = vec!["/bin/sh".into()];
        spec
    }

    fn user(uid: u32) -> Resolved {
        Resolved {
            uid,
            gid: 0,
            groups: Vec::new(),
            home: "/h".into(),
        }
    }

    #[test]
    fn only_root_keeps_capabilities_and_few() {
        let root = capabilities(&user(0)).unwrap();
        let kept = root.effective().clone().unwrap();
        assert_eq!(kept.len(), ROOT_KEEPS.len());
        assert!(!kept.contains(&Capability::NetRaw) && !kept.contains(&Capability::SysChroot));
        assert_eq!(root.inheritable(), &Some(HashSet::new()));
        let other = capabilities(&user(33)).unwrap();
        assert_eq!(other.bounding(), &Some(HashSet::new()));
        for (name, uid, want) in [
            ("CAP_CHOWN", 0, true),
            ("CHOWN", 33, false),
            ("NET_BIND_SERVICE", 33, true),
            ("SYS_ADMIN", 0, false),
            ("NET_RAW", 0, false),
        ] {
            assert_eq!(may_add(name, uid), want, "{name}");
        }
    }

    #[test]
    fn the_environment_has_a_path_a_home_and_the_last_word() {
        let mut spec = spec();
        for (name, value) in [("A", "1"), ("A", "2"), ("HOME", ""), ("PATH", "/bin")] {
            spec.env.push((name.into(), value.into()));
        }
        assert_eq!(environment(&spec, "/h"), ["A=2", "HOME=/h", "PATH=/bin"]);
    }

    #[test]
    fn ulimits_come_over_the_defaults_and_never_above_the_nodes_own() {
        let limit = |name: &str, soft, hard| Ulimit {
            name: name.into(),
            soft,
            hard,
        };
        let mut spec = spec();
        spec.ulimits = vec![limit("nofile", 64, 128), limit("nproc", 7, 7)];
        assert_eq!(check_ulimits(&spec), Ok(()));
        let set: Vec<_> = rlimits(&spec)
            .unwrap()
            .iter()
            .map(|l| (l.typ(), l.soft(), l.hard()))
            .collect();
        assert_eq!(
            set,
            [
                (PosixRlimitType::RlimitCore, 0, 0),
                (PosixRlimitType::RlimitNofile, 64, 128),
                (PosixRlimitType::RlimitNproc, 7, 7),
            ]
        );
        let own = getrlimit(Resource::Nofile).maximum.unwrap();
        spec.ulimits = vec![limit("nofile", 64, own + 1)];
        let said = check_ulimits(&spec).unwrap_err();
        let want = format!("nofile {} is above this node's own {own}", own + 1);
        assert!(said.starts_with(&want), "{said}");
    }
}
