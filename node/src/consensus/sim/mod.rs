//! Whole registries on simulated disks and a simulated network in virtual time, by seed: openraft,
//! our store and our registry as they are, and faults that real machines have. Owns the seeds that
//! CI runs and the table of those that caught something.
//!
//! Every seed has a process of its own: tokio's and futures' fairness counts what a process did
//! before. `SELVEDGE_SIM_SEEDS=from..to cargo test -p node --lib sim_seeds` runs others;
//! `SELVEDGE_SIM_TRACE=file` keeps everything that happened.

mod disk;
mod entropy;
mod fence;
mod net;
mod oracle;
mod plan;
mod run;
mod trace;
mod world;

use std::ops::Range;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

pub(super) use self::disk::{Disk, SimFile};
use self::plan::Plan;

/// Seeds that caught something when the code was of their time; CI runs the low ones with the rest.
///
/// | seed | what it caught |
/// |---|---|
/// | 1, 33 | a leader that restarted led on, and read from a commit mark older than what it had acknowledged |
/// | 4, 27 | after a failed sync the next process took the page cache for the disk, and built on it |
/// | 137, 141 | flipped bits after an orderly stop went unseen: only a crash made redb check its pages |
/// | 186 | a commit mark reached the disk before the snapshot it stood for: no start any more |
/// | 186, 358 | the log was purged for a leader's snapshot that was not on disk yet, and then it failed |
///
/// What CI runs.
const SEEDS: Range<u64> = 0..120;
/// Seeds beyond those that caught something once.
const KEPT: [u64; 7] = [137, 141, 186, 332, 350, 358, 1066];
/// Of these every one runs twice, and twice the same must happen.
const TWICE: Range<u64> = 0..6;
/// Seeds run at once.
const WORKERS: usize = 2;

/// Tells the process of one seed which one.
const SEED: &str = "SELVEDGE_SIM_SEED";
const ANSWER: &str = "sim-digest ";

/// What one seed's process does; without a seed this is nothing.
#[test]
fn one_seed() {
    let Some(seed) = std::env::var(SEED).ok().and_then(|text| text.parse().ok()) else {
        return;
    };
    let thread = std::thread::spawn(move || {
        entropy::seed_thread(seed);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(run::run(Plan::of(seed)))
    });
    let verdict = thread.join().unwrap();
    println!(
        "\n{ANSWER}{} acked {} in {:?}",
        verdict.digest, verdict.acked, verdict.virtual_time
    );
    if let Some(broken) = verdict.broken {
        println!("{:#?}", Plan::of(seed));
        println!("{}", verdict.lines.join("\n"));
        panic!("seed {seed}: {broken}");
    }
}

/// Runs one seed in a process of its own: its digest, or all it said.
fn in_a_process(seed: u64) -> Result<String, String> {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "consensus::sim::one_seed", "--nocapture"])
        .env(SEED, seed.to_string())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let digest = said.lines().find_map(|line| line.strip_prefix(ANSWER));
    match digest {
        Some(digest) if output.status.success() => Ok(digest.to_owned()),
        _ => Err(format!(
            "seed {seed} failed\n{said}\n{}",
            String::from_utf8_lossy(&output.stderr)
        )),
    }
}

fn run_all(seeds: &[u64]) -> Vec<String> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut failed = Vec::new();
        while let Some(seed) = seeds.get(next.fetch_add(1, Ordering::Relaxed)) {
            failed.extend(in_a_process(*seed).err());
        }
        failed
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS).map(|_| scope.spawn(work)).collect();
        workers
            .into_iter()
            .flat_map(|worker| worker.join().unwrap())
            .collect()
    })
}

#[test]
fn sim_seeds_hold() {
    let seeds: Vec<u64> = match std::env::var("SELVEDGE_SIM_SEEDS") {
        Ok(text) => {
            let (from, to) = text
                .split_once("..")
                .expect("SELVEDGE_SIM_SEEDS is from..to");
            (from.parse().unwrap()..to.parse().unwrap()).collect()
        }
        Err(_) => SEEDS.chain(KEPT).collect(),
    };
    let failed = run_all(&seeds);
    assert!(
        failed.is_empty(),
        "{} seeds failed\n{}",
        failed.len(),
        failed.join("\n")
    );
}

#[test]
fn a_seed_always_means_the_same() {
    for seed in TWICE {
        assert_eq!(
            in_a_process(seed).unwrap(),
            in_a_process(seed).unwrap(),
            "seed {seed}"
        );
    }
}
