//! Faults of the catalogue on a cluster under load: each holds for a while, is healed, and every
//! checker is asked. `Stage` says what is excused; nothing is in here.

use std::time::Duration;

use anyhow::{Result, ensure};
use chaos_tests::faults::Fault;
use chaos_tests::scenario::Stage;
use chaos_tests::world::{Media, World};

use crate::THREE;

const WHILE: Duration = Duration::from_secs(12);
const SEED: u64 = 3;

fn lis() -> String {
    "lis-1".to_owned()
}

/// One fault while the loads run, then every check.
fn one(fault: &Fault) -> Result<()> {
    several(std::slice::from_ref(fault))
}

fn several(faults: &[Fault]) -> Result<()> {
    let mut stage = Stage::of(&THREE)?;
    stage.begin(SEED)?;
    stage.together(faults, WHILE)?;
    passed(stage)
}

fn passed(stage: Stage) -> Result<()> {
    let report = stage.end()?.passed()?;
    println!("{report}");
    Ok(())
}

#[test]
fn n1_a_minority_is_cut_off() -> Result<()> {
    one(&Fault::Partition { side: vec![lis()] })
}

/// What the soak's seeds 1 and 3 found: a door whose peers are all out of reach has to start an
/// instance of its own.
#[test]
fn n1_p4_a_node_has_no_peer_left() -> Result<()> {
    let side = vec!["fra-1".to_owned()];
    several(&[Fault::Pause { node: lis() }, Fault::Partition { side }])
}

#[test]
fn n2_the_leader_hears_nobody() -> Result<()> {
    let mut stage = Stage::of(&THREE)?;
    stage.begin(SEED)?;
    let node = stage.world.leader()?.name.clone();
    stage.during(&Fault::Deaf { node }, WHILE)?;
    passed(stage)
}

#[test]
fn n3_two_nodes_reach_each_other_only_by_the_third() -> Result<()> {
    let one_of = "par-1".to_owned();
    one(&Fault::Apart {
        one: one_of,
        other: lis(),
    })
}

#[test]
fn n4_n5_a_tenth_is_lost_and_the_rest_late() -> Result<()> {
    let (delay, jitter) = (Duration::from_millis(50), Duration::from_millis(200));
    several(&[Fault::Loss { ratio: 0.1 }, Fault::Delay { delay, jitter }])
}

#[test]
fn n6_n7_n8_packets_overtake_come_twice_and_come_wrong() -> Result<()> {
    let delay = Duration::from_millis(5);
    several(&[
        Fault::Reorder { ratio: 0.2, delay },
        Fault::Duplicate { ratio: 0.2 },
        Fault::Corrupt { ratio: 0.05 },
    ])
}

#[test]
fn n10_large_packets_vanish() -> Result<()> {
    one(&Fault::BlackHole { mtu: 1300 })
}

#[test]
fn n12_a_nat_forgets_its_mapping() -> Result<()> {
    one(&Fault::Rebind { node: lis() })
}

#[test]
fn n16_a_region_comes_back_with_what_it_knew() -> Result<()> {
    let mut stage = Stage::of(&THREE)?;
    stage.begin(SEED)?;
    let from = stage.since_begin();
    let away = Fault::Partition { side: vec![lis()] }.inject(&stage.world)?;
    stage
        .world
        .deploy("later", &["--scale", "0..1", "--cpu", "0.1"])?
        .ok()?;
    stage.world.first().cli(&["-y", "delete", "later"])?.ok()?;
    stage.heal(away, from)?;
    stage.caught_up()?;
    let told = stage.world["lis-1"].cli(&["get", "services"])?.ok()?;
    ensure!(
        !told.out.contains("later"),
        "a deleted service is back: {told}"
    );
    passed(stage)
}

#[test]
fn p1_the_leader_is_killed() -> Result<()> {
    let mut stage = Stage::of(&THREE)?;
    stage.begin(SEED)?;
    let node = stage.world.leader()?.name.clone();
    stage.during(&Fault::Kill { node }, WHILE)?;
    passed(stage)
}

/// Its containers live on, are adopted, and serve.
#[test]
fn p1_the_daemon_of_every_container_is_killed() -> Result<()> {
    let mut stage = Stage::of(&THREE)?;
    stage.begin(SEED)?;
    let busy = stage
        .world
        .nodes()
        .iter()
        .find(|n| !n.containers().is_empty());
    let node = busy.map_or_else(lis, |n| n.name.clone());
    stage.during(&Fault::Kill { node }, WHILE)?;
    passed(stage)
}

#[test]
fn p3_every_container_and_shim_is_killed() -> Result<()> {
    let mut stage = Stage::of(&THREE)?;
    stage.begin(SEED)?;
    for node in THREE.map(str::to_owned) {
        let (containers, shims) = (
            Fault::KillContainers { node: node.clone() },
            Fault::KillShims { node },
        );
        stage.during(&containers, WHILE / 6)?;
        stage.during(&shims, WHILE / 6)?;
    }
    passed(stage)
}

#[test]
fn p4_a_daemon_stands_still() -> Result<()> {
    one(&Fault::Pause { node: lis() })
}

#[test]
fn p7_every_daemon_is_restarted_in_turn() -> Result<()> {
    let mut stage = Stage::of(&THREE)?;
    stage.begin(SEED)?;
    for node in THREE.map(str::to_owned) {
        stage.during(&Fault::Restart { node }, WHILE / 3)?;
    }
    passed(stage)
}

fn on(media: Media, fault: &Fault) -> Result<()> {
    let mut stage = Stage::on(World::on(&THREE, media)?)?;
    stage.begin(SEED)?;
    stage.during(fault, WHILE)?;
    passed(stage)
}

#[test]
fn d1_a_disk_is_full() -> Result<()> {
    let small = Media::Small {
        bytes: 192 << 20,
        inodes: 16 << 10,
    };
    on(small, &Fault::DiskFull { node: lis() })
}

#[test]
fn d2_a_disk_has_no_inodes_left() -> Result<()> {
    let small = Media::Small {
        bytes: 192 << 20,
        inodes: 16 << 10,
    };
    on(small, &Fault::NoInodes { node: lis() })
}

#[test]
fn d3_a_sync_fails() -> Result<()> {
    on(Media::Faulty, &Fault::FailedSync { node: lis() })
}

#[test]
fn d5_the_leaders_disk_is_slow() -> Result<()> {
    let mut stage = Stage::of(&THREE)?;
    stage.begin(SEED)?;
    let node = stage.world.leader()?.name.clone();
    let delay = Duration::from_millis(500);
    stage.during(&Fault::SlowDisk { node, delay }, WHILE)?;
    passed(stage)
}

#[test]
fn d6_a_write_is_torn() -> Result<()> {
    on(Media::Faulty, &Fault::TornWrite { node: lis() })
}

#[test]
fn d8_all_nodes_lose_their_power() -> Result<()> {
    let nodes = THREE.map(str::to_owned).to_vec();
    on(Media::Powered, &Fault::PowerCut { nodes })
}

#[test]
fn t1_a_wall_clock_jumps() -> Result<()> {
    one(&Fault::ClockJump {
        node: lis(),
        seconds: 3600,
    })
}

#[test]
fn t2_a_clock_runs_twice_as_fast() -> Result<()> {
    one(&Fault::ClockRate {
        node: lis(),
        times: 2.0,
    })
}

#[test]
fn t3_a_monotonic_clock_is_ahead() -> Result<()> {
    one(&Fault::ClockAhead {
        node: lis(),
        seconds: 500_000,
    })
}

/// It comes back with its name and an empty log, and must not help to forget what others know.
#[test]
fn d9_a_voters_disk_is_lost() -> Result<()> {
    one(&Fault::DiskLost { node: lis() })
}

#[test]
fn m2_a_daemon_is_out_of_memory() -> Result<()> {
    one(&Fault::OutOfMemory { node: lis() })
}

#[test]
fn m5_no_port_is_left() -> Result<()> {
    one(&Fault::NoPorts { node: lis() })
}

#[test]
fn m4_no_file_descriptor_is_left() -> Result<()> {
    one(&Fault::NoFiles { node: lis() })
}

/// What was pulled before is started from zero meanwhile.
#[test]
fn c4_the_registry_of_images_is_gone() -> Result<()> {
    one(&Fault::NoImages)
}
