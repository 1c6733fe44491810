//! What containers use, against the kernel's own figures.

use std::fs;

use node::runtime::cgroup::{Cgroup, is_unified};
use node::runtime::{ContainerSpec, Runtime, RuntimeError, Shims, Usage};
use scheduler::model::InstanceId;

use crate::world::{PATIENCE, World, until};

/// Burns CPU for a while, says so, and rests.
const BURN: &str = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; echo burnt; exec sleep 1000";

async fn started(shims: &Shims, spec: &ContainerSpec) -> i32 {
    let handle = shims.create(spec).await.unwrap();
    shims.start(&spec.id).await.unwrap();
    handle.pid
}

async fn usage(shims: &Shims, id: &InstanceId) -> Usage {
    shims.usage(id, None).await.unwrap()
}

/// CPU time of a process and of its children it waited for, in microseconds.
fn cpu_of(pid: i32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(')').unwrap();
    let fields = fields.split_ascii_whitespace().skip(11).take(4);
    fields.map(|f| f.parse::<u64>().unwrap() * 10_000).sum()
}

#[tokio::test]
async fn cpu_time_is_the_kernel_s_and_is_known_until_the_container_is_deleted() {
    let world = World::new();
    let shims = world.shims();
    let spec = world.spec("burning", BURN);
    let pid = started(&shims, &spec).await;
    until("it has burnt", || world.output("burning").contains("burnt")).await;
    let burnt = usage(&shims, &spec.id).await;
    let kernel = cpu_of(pid);
    // The kernel rounds a process's time to ticks; making the container is in the group's as well.
    let apart = burnt.cpu_micros.abs_diff(kernel);
    assert!(
        apart <= 60_000 + kernel / 10,
        "{burnt:?}, the process {kernel}"
    );
    assert!(burnt.memory_bytes > 0 && burnt.memory_peak_bytes >= burnt.memory_bytes);
    assert!(burnt.pids >= 1 && burnt.origin > 0 && burnt.oom_kills == 0);

    // A daemon that comes later reads on; so does one that comes when the program is over.
    drop(shims);
    let shims = world.shims();
    shims.adopt().await.unwrap();
    assert!(usage(&shims, &spec.id).await.cpu_micros >= burnt.cpu_micros);
    shims.kill(&spec.id).await.unwrap();
    tokio::time::timeout(PATIENCE, shims.exit(&spec.id))
        .await
        .unwrap()
        .unwrap();
    let late = world.shims();
    let over = usage(&late, &spec.id).await;
    assert!(over.cpu_micros >= burnt.cpu_micros && over.origin == burnt.origin);
    shims.delete(&spec.id).await.unwrap();
    let gone = shims.usage(&spec.id, None).await;
    assert!(matches!(gone, Err(RuntimeError::Unknown(_))), "{gone:?}");
    assert_eq!(world.leftovers(), Vec::<String>::new());
}

#[tokio::test]
async fn a_container_at_its_cpu_limit_shows_that_it_is_throttled() {
    let world = World::new();
    let shims = world.shims();
    let mut spec = world.spec("throttled", "while true; do :; done");
    spec.cpu_millis = 50;
    started(&shims, &spec).await;
    let end = tokio::time::Instant::now() + PATIENCE;
    loop {
        let now = usage(&shims, &spec.id).await;
        if now.throttled_periods >= 3 && now.throttled_micros > 0 {
            break;
        }
        assert!(
            tokio::time::Instant::now() < end,
            "never throttled: {now:?}"
        );
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    shims.delete(&spec.id).await.unwrap();
    assert_eq!(world.leftovers(), Vec::<String>::new());
}

/// The share of the processors, as this machine's version of the kernel's groups counts it.
fn share(group: &Cgroup) -> u64 {
    let (controller, file) = if is_unified() {
        ("cpu", "cpu.weight")
    } else {
        ("cpu", "cpu.shares")
    };
    let folder = group.folder(controller).unwrap();
    let text = fs::read_to_string(folder.join(file)).unwrap();
    text.trim().parse().unwrap()
}

#[tokio::test]
async fn a_throttled_container_gives_way_goes_on_and_has_its_share_again() {
    let world = World::new();
    let shims = world.shims();
    let mut specs = ["plain", "asking"].map(|name| world.spec(name, "while true; do :; done"));
    specs[1].cpu_request_millis = 500;
    for spec in &specs {
        started(&shims, spec).await;
        let group = Cgroup::at(&spec.cgroup);
        let whole = share(&group);
        shims.throttle(&spec.id).await.unwrap();
        assert_eq!(share(&group), whole / 10, "{whole}");
        let before = shims.cpu_micros(&spec.id).await.unwrap();
        let end = tokio::time::Instant::now() + PATIENCE;
        while shims.cpu_micros(&spec.id).await.unwrap() == before {
            assert!(tokio::time::Instant::now() < end, "it stands still");
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        // Down another rung, and up both at once.
        shims.freeze(&spec.id).await.unwrap();
        shims.thaw(&spec.id).await.unwrap();
        assert_eq!(share(&group), whole);
        shims.throttle(&spec.id).await.unwrap();
        // The daemon was gone meanwhile: the next one knows of nothing and gives back all.
        let late = world.shims();
        late.adopt().await.unwrap();
        late.thaw(&spec.id).await.unwrap();
        assert_eq!(share(&group), whole);
        shims.delete(&spec.id).await.unwrap();
    }
    assert_eq!(world.leftovers(), Vec::<String>::new());
}

#[tokio::test]
async fn memory_is_taken_only_while_the_container_is_held() {
    let world = World::new();
    let shims = world.shims();
    let mut spec = world.spec(
        "cached",
        "dd if=/dev/zero of=/root/big bs=1M count=32; echo written; exec sleep 1000",
    );
    spec.memory_bytes = 128 << 20;
    started(&shims, &spec).await;
    until("it has written", || {
        world.output("cached").contains("written")
    })
    .await;
    let full = usage(&shims, &spec.id).await.memory_bytes;
    assert!(full > 16 << 20, "{full}");
    // Thawed before anything was taken.
    let taken = shims.reclaim(&spec.id, Box::new(|| false)).await.unwrap();
    assert!(taken < 1 << 20, "{taken}");
    rustix::fs::sync();
    let taken = shims.reclaim(&spec.id, Box::new(|| true)).await.unwrap();
    assert!(taken > 8 << 20, "{taken} of {full}");
    shims.delete(&spec.id).await.unwrap();
    assert_eq!(world.leftovers(), Vec::<String>::new());
}

/// Also says, for the record, what a reading costs; nothing is asserted of that.
#[tokio::test]
async fn the_short_reading_of_an_idle_container_is_the_long_one() {
    const READINGS: u64 = 2000;
    let world = World::new();
    let shims = world.shims();
    let spec = world.spec("idle", "echo up; exec sleep 1000");
    started(&shims, &spec).await;
    until("it is up", || world.output("idle").contains("up")).await;
    let mut before = usage(&shims, &spec.id).await;
    let end = tokio::time::Instant::now() + PATIENCE;
    // Until the exec into sleep is over too.
    loop {
        let next = usage(&shims, &spec.id).await;
        if next == before {
            break;
        }
        assert!(tokio::time::Instant::now() < end);
        before = next;
    }
    assert_eq!(shims.usage(&spec.id, Some(&before)).await.unwrap(), before);
    // An earlier reading of another group is no help, and does no harm.
    let other = Usage {
        origin: 1,
        oom_kills: 99,
        ..before
    };
    assert_eq!(shims.usage(&spec.id, Some(&other)).await.unwrap(), before);
    for (what, earlier) in [("long", None), ("short", Some(&before))] {
        let begun = my_cpu_nanos();
        for _ in 0..READINGS {
            shims.usage(&spec.id, earlier).await.unwrap();
        }
        let each = (my_cpu_nanos() - begun) / READINGS / 1000;
        println!("a {what} reading: {each} µs of CPU");
    }
    shims.delete(&spec.id).await.unwrap();
    assert_eq!(world.leftovers(), Vec::<String>::new());
}

fn my_cpu_nanos() -> u64 {
    let text = fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    text.split(' ').next().unwrap().parse().unwrap()
}
