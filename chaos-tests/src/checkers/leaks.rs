//! What the nodes of a world hold in the system, counted by kind. Two counts of a quiet world must be
//! equal, whatever happened between them. Counts and not names: nodes keep pools whose members change.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::world::{Node, World, pids, until};

/// What stays the same for so long is at rest.
const RESTING: Duration = Duration::from_millis(500);

/// How many things of each kind each node holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Footprint(BTreeMap<String, usize>);

impl Footprint {
    /// Counts what the world's running nodes hold now.
    pub fn of(world: &World) -> Result<Self> {
        let mut counts = BTreeMap::new();
        for node in world.nodes().iter().filter(|n| n.daemon().is_some()) {
            for (kind, count) in held_by(node)? {
                counts.insert(format!("{}: {kind}", node.name), count);
            }
        }
        Ok(Self(counts))
    }

    /// What there is more of than in `before`, in words.
    #[must_use]
    pub fn beyond(&self, before: &Self) -> Vec<String> {
        let more = |(kind, now): (&String, &usize)| {
            let was = before.0.get(kind).copied().unwrap_or(0);
            (*now > was).then(|| format!("{kind}: {was} became {now}"))
        };
        self.0.iter().filter_map(more).collect()
    }
}

/// What the world holds once that stays the same for a while: nodes fill their pools and take things
/// down in the background.
pub fn at_rest(world: &World, within: Duration) -> Result<Footprint> {
    let (mut last, mut since) = (Footprint::of(world)?, Instant::now());
    until("the world rests", within, || {
        let now = Footprint::of(world)?;
        if now != last {
            (last, since) = (now, Instant::now());
        }
        Ok((since.elapsed() > RESTING).then(|| last.clone()))
    })
}

/// Waits until the world holds no more than `before`, and goes on so.
pub fn nothing_more(world: &World, before: &Footprint, within: Duration) -> Result<()> {
    until("what was made is gone", within, || {
        let more = at_rest(world, within)?.beyond(before);
        ensure!(more.is_empty(), "left: {}", more.join("; "));
        Ok(Some(()))
    })
}

fn held_by(node: &Node) -> Result<BTreeMap<&'static str, usize>> {
    let inside = |program: &str, args: &[&str]| -> Result<usize> {
        Ok(node.run(program, args)?.ok()?.out.lines().count())
    };
    Ok(BTreeMap::from([
        ("mounts and pinned namespaces", mounts_below(node.dir())),
        ("cgroups", cgroups_named(node.cgroup())),
        ("containers' processes", node.containers().len()),
        ("shims", node.shims().len()),
        ("processes that show layers", node.lazies().len()),
        (
            "layers that arrive",
            entries(&node.dir().join("images/coming")),
        ),
        ("zombies of the daemon", zombies_of(node)),
        ("links", inside("ip", &["-o", "link"])?),
        ("addresses", inside("ip", &["-o", "address"])?),
        ("lines of firewall", inside("nft", &["list", "ruleset"])?),
        ("instance folders", entries(&node.dir().join("instances"))),
        ("files in run", entries(&node.dir().join("run"))),
        ("network leases", entries(&node.dir().join("run/leases"))),
        ("namespaces' files", entries(&node.dir().join("run/netns"))),
        (
            "notes of image uses",
            entries(&node.dir().join("images/uses")),
        ),
        ("scratch of images", entries(&node.dir().join("images/tmp"))),
        ("open files", open_files(node)),
    ]))
}

fn entries(dir: &Path) -> usize {
    fs::read_dir(dir).map_or(0, Iterator::count)
}

fn mounts_below(dir: &Path) -> usize {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let places = text.lines().filter_map(|line| line.split(' ').nth(4));
    places.filter(|at| Path::new(at).starts_with(dir)).count()
}

/// In all hierarchies: one of them on cgroup v2, many on v1.
fn cgroups_named(cgroup: &str) -> usize {
    fn below(dir: &Path) -> usize {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        let dirs = entries.filter(|e| e.file_type().is_ok_and(|kind| kind.is_dir()));
        dirs.map(|e| 1 + below(&e.path())).sum()
    }
    let root = Path::new("/sys/fs/cgroup");
    let hierarchies = fs::read_dir(root).into_iter().flatten().flatten();
    let roots = hierarchies.map(|h| h.path()).chain([root.to_owned()]);
    roots
        .map(|h| below(&h.join(cgroup.trim_start_matches('/'))))
        .sum()
}

fn zombies_of(node: &Node) -> usize {
    let Some(daemon) = node.daemon() else {
        return 0;
    };
    let is_zombie = |pid: &u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let rest = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
        let mut fields = rest.split(' ');
        fields.next() == Some("Z") && fields.next() == Some(&daemon.to_string())
    };
    pids().filter(is_zombie).count()
}

/// Files and folders that the daemon has open; its sockets come and go with its peers and clients.
fn open_files(node: &Node) -> usize {
    let Some(daemon) = node.daemon() else {
        return 0;
    };
    let fds = fs::read_dir(format!("/proc/{daemon}/fd"));
    let targets = fds.into_iter().flatten().flatten();
    let targets = targets.filter_map(|fd| fs::read_link(fd.path()).ok());
    targets.filter(|to| to.starts_with(node.dir())).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn footprint(counts: &[(&str, usize)]) -> Footprint {
        Footprint(counts.iter().map(|(k, n)| ((*k).to_owned(), *n)).collect())
    }

    #[test]
    fn what_there_is_more_of_is_told() {
        let before = footprint(&[("a: links", 3), ("a: cgroups", 9)]);
        let now = footprint(&[("a: links", 4), ("a: cgroups", 8), ("a: shims", 1)]);
        assert_eq!(
            now.beyond(&before),
            ["a: links: 3 became 4", "a: shims: 0 became 1"]
        );
        assert_eq!(before.beyond(&before), [""; 0]);
    }
}
