//! The judgement: facts in, one verdict per protection out, with what follows and what to do. Pure.

use netfabric::wire::api::Check;

use super::Ground;
use crate::network::resolvers::FILE as RESOLV_CONF;
use crate::userns::Block;

/// Open files a node with hundreds of instances may need.
const OPEN_FILES: u64 = 65_536;
/// Processes and threads of a full node.
const PIDS: u64 = 65_536;
/// Clocks may differ by so much before certificates are refused.
const CLOCK_SKEW: u64 = 5 * 60 * 1000;

/// One protection: what is said when it is there, and what when it is not.
struct Rule {
    name: &'static str,
    /// Nothing runs safely without.
    required: bool,
    /// What it gives, or `Err` with what was found instead.
    found: Result<String, String>,
    effect: &'static str,
    advice: &'static str,
}

impl From<Rule> for Check {
    fn from(rule: Rule) -> Self {
        let ok = rule.found.is_ok();
        let missing = |text: &str| if ok { String::new() } else { text.to_owned() };
        Self {
            name: rule.name.to_owned(),
            ok,
            required: rule.required,
            effect: missing(rule.effect),
            advice: missing(rule.advice),
            found: rule.found.unwrap_or_else(|found| found),
        }
    }
}

/// The verdict on every protection, the required ones first.
#[must_use]
pub fn checks(ground: &Ground, no_user_namespaces: Option<&str>) -> Vec<Check> {
    let mut all: Vec<Rule> = walls(ground, no_user_namespaces);
    all.extend(limits(ground));
    all.extend(host(ground));
    all.sort_by_key(|rule| !rule.required);
    all.into_iter().map(Check::from).collect()
}

fn when(
    holds: bool,
    there: impl Into<String>,
    instead: impl Into<String>,
) -> Result<String, String> {
    if holds {
        Ok(there.into())
    } else {
        Err(instead.into())
    }
}

/// What keeps a container in.
fn walls(ground: &Ground, no_user_namespaces: Option<&str>) -> Vec<Rule> {
    let block = Block::SIZE;
    vec![
        Rule {
            name: "seccomp",
            required: true,
            found: when(
                ground.seccomp.contains("errno"),
                "system calls are filtered",
                "the kernel has no system call filters",
            ),
            effect: "containers could make every system call; none is started",
            advice: "use a kernel with CONFIG_SECCOMP_FILTER",
        },
        Rule {
            name: "firewall",
            required: true,
            found: match &ground.firewall {
                None => Ok("the node's nft rules stand".to_owned()),
                Some(why) => Err(why.clone()),
            },
            effect: "containers may reach the node, private networks and each other",
            advice: "restart selvedged, which sets its rules anew, and keep other tools from flushing them",
        },
        Rule {
            name: "overlayfs",
            required: true,
            found: match ground.no_upper {
                Some(kind) => Err(format!("the data folder is on {kind}")),
                None => when(
                    ground.filesystems.contains("\toverlay\n"),
                    "images' layers are shared, read-only",
                    "the kernel has no overlayfs",
                ),
            },
            effect: "no instance can be started",
            advice: "put the data folder on ext4, xfs or btrfs, and load the module overlay",
        },
        Rule {
            name: "user-namespaces",
            required: false,
            found: match no_user_namespaces {
                None => Ok(format!(
                    "each instance has {block} user ids nobody else has; layers are idmapped"
                )),
                Some(why) => Err(why.to_owned()),
            },
            effect: "root in a container is the host's root, held by capabilities, seccomp and mounts alone",
            advice: "use Linux 5.19 or later with user.max_user_namespaces above 0, then restart selvedged",
        },
        Rule {
            name: "landlock",
            required: false,
            found: match &ground.lsm {
                Some(list) => when(
                    list.split(',').any(|name| name.trim() == "landlock"),
                    "the kernel has it; Selvedge does not use it yet",
                    format!("security modules: {}", list.trim()),
                ),
                None => Err("not known: securityfs is not mounted".to_owned()),
            },
            effect: "nothing today",
            advice: "boot with lsm=landlock,…",
        },
        Rule {
            name: "processor",
            required: false,
            found: when(
                ground.vulnerable.is_empty(),
                "no known flaw is left open",
                format!("open to {}", ground.vulnerable.join(", ")),
            ),
            effect: "a container may read memory of others through the processor",
            advice: "update kernel and microcode; do not boot with mitigations=off",
        },
    ]
}

/// What keeps a container from taking more than its share.
fn limits(ground: &Ground) -> Vec<Rule> {
    let version = if ground.unified {
        "version 2"
    } else {
        "version 1"
    };
    let has = |name: &str| ground.controllers.iter().any(|c| c == name);
    let missing: Vec<&str> = ["cpu", "memory", "pids"]
        .into_iter()
        .filter(|name| !has(name))
        .collect();
    vec![
        Rule {
            name: "cgroups",
            required: true,
            found: when(
                missing.is_empty(),
                format!("cpu, memory and pids are limited ({version})"),
                format!("{version} without {}", missing.join(", ")),
            ),
            effect: "a container may use up what it has no limit for",
            advice: "boot with cgroup_enable=memory, or with systemd.unified_cgroup_hierarchy=1",
        },
        Rule {
            name: "freezer",
            required: false,
            found: when(
                ground.freezer,
                "instances can be frozen",
                "no cgroup freezer is mounted",
            ),
            effect: "idle instances cannot be kept frozen: they are stopped instead",
            advice: "mount the freezer controller, or use cgroup version 2",
        },
        Rule {
            name: "swap",
            required: false,
            found: match (ground.counts_swap, ground.has_swap) {
                (true, _) => Ok("memory limits count swap".to_owned()),
                (false, false) => Ok("the machine has no swap".to_owned()),
                (false, true) => Err("swap is used and not counted".to_owned()),
            },
            effect: "a container over its memory limit fills the machine's swap",
            advice: "boot with swapaccount=1, or turn swap off",
        },
        Rule {
            name: "pressure",
            required: false,
            found: when(
                ground.pressure,
                "stalls can be measured",
                "the kernel has no /proc/pressure",
            ),
            effect: "an overloaded node is seen later",
            advice: "boot with psi=1",
        },
        Rule {
            name: "open-files",
            required: false,
            found: when(
                ground.open_files >= OPEN_FILES,
                ground.open_files.to_string(),
                format!("{} at most", ground.open_files),
            ),
            effect: "a busy node refuses connections earlier",
            advice: "give selvedged LimitNOFILE=1048576",
        },
        Rule {
            name: "processes",
            required: false,
            found: when(
                ground.pids >= PIDS,
                ground.pids.to_string(),
                format!("{} at most", ground.pids),
            ),
            effect: "many instances with many processes leave none for the host",
            advice: "sysctl -w kernel.pid_max=4194304",
        },
    ]
}

/// What the host itself owes.
fn host(ground: &Ground) -> Vec<Rule> {
    vec![
        Rule {
            name: "clock",
            required: true,
            found: when(
                ground.clock_behind <= CLOCK_SKEW,
                "not before the cluster was founded",
                format!(
                    "{} s before the cluster was founded",
                    ground.clock_behind / 1000
                ),
            ),
            effect: "certificates of other nodes are not yet valid here",
            advice: "set the clock and keep it right with chrony or systemd-timesyncd",
        },
        Rule {
            name: "resolvers",
            required: false,
            found: when(
                !ground.resolvers.is_empty(),
                format!("{} to ask for names", ground.resolvers.len()),
                format!("{RESOLV_CONF} named none at selvedged's start"),
            ),
            effect: "containers find no names but services'",
            advice: "write `nameserver ADDRESS` into /etc/resolv.conf, then restart selvedged",
        },
        Rule {
            name: "core-dumps",
            required: false,
            found: when(
                !ground.core_piped,
                "no program of the host is fed with crashes",
                "kernel.core_pattern pipes crashes to a program of the host",
            ),
            effect: "little: containers' core limit is 0, but a pipe is run whatever the limit is",
            advice: "sysctl -w kernel.core_pattern=core",
        },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes one thing from a good ground.
    type Spoil = fn(&mut Ground);

    fn good() -> Ground {
        Ground {
            seccomp: "kill_process kill_thread trap errno user_notif trace log allow".into(),
            controllers: ["cpu", "memory", "pids"].map(str::to_owned).to_vec(),
            freezer: true,
            counts_swap: true,
            filesystems: "nodev\toverlay\n".into(),
            lsm: Some("capability,landlock".into()),
            pressure: true,
            open_files: 1 << 20,
            pids: 1 << 22,
            resolvers: vec![([9, 9, 9, 9], 53).into()],
            ..Ground::default()
        }
    }

    fn missing(ground: &Ground, userns: Option<&str>) -> Vec<(String, bool)> {
        let all = checks(ground, userns).into_iter().filter(|check| !check.ok);
        all.inspect(|check| assert!(!check.effect.is_empty() && !check.advice.is_empty()))
            .map(|check| (check.name, check.required))
            .collect()
    }

    #[test]
    fn a_good_kernel_misses_nothing_and_each_lack_has_its_name() {
        assert_eq!(missing(&good(), None), []);
        let table: [(Spoil, &str, bool); 14] = [
            (|g| g.seccomp.clear(), "seccomp", true),
            (|g| g.firewall = Some("gone".into()), "firewall", true),
            (
                |g| g.filesystems = "nodev\ttmpfs\n".into(),
                "overlayfs",
                true,
            ),
            (|g| g.no_upper = Some("nfs"), "overlayfs", true),
            (|g| drop(g.controllers.pop()), "cgroups", true),
            (|g| g.clock_behind = CLOCK_SKEW + 1, "clock", true),
            (|g| g.lsm = Some("capability".into()), "landlock", false),
            (|g| g.vulnerable = vec!["mds".into()], "processor", false),
            (|g| g.freezer = false, "freezer", false),
            (
                |g| (g.counts_swap, g.has_swap) = (false, true),
                "swap",
                false,
            ),
            (|g| g.pressure = false, "pressure", false),
            (|g| g.open_files = 1024, "open-files", false),
            (|g| g.core_piped = true, "core-dumps", false),
            (|g| g.resolvers.clear(), "resolvers", false),
        ];
        for (spoil, name, required) in table {
            let mut ground = good();
            spoil(&mut ground);
            assert_eq!(missing(&ground, None), [(name.to_owned(), required)]);
        }
        let lack = missing(&good(), Some("the kernel is old"));
        assert_eq!(lack, [("user-namespaces".to_owned(), false)]);
    }
}
