//! `sim --seed N --hosts N --services N --hours H --scenario NAME`: whole fleets in virtual time. Prints
//! what a run came to and everything that did not hold; ends with 1 when there was something.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context as _;
use chaos_tests::sim::cells::Cells;
use chaos_tests::sim::recorded::{Change, Recorded};
use chaos_tests::sim::{self, Extent, Plan, Report, Scenario};
use clap::Parser;
use clap::builder::PossibleValuesParser;

const HOUR_MILLIS: f64 = 3_600_000.0;

#[derive(Parser)]
#[command(version, about = "Fleets in virtual time, by seed")]
struct Args {
    /// What is drawn follows from it
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Further seeds after it
    #[arg(long, default_value_t = 1)]
    seeds: u64,
    /// Hosts, in three sites of two zones [default: drawn]
    #[arg(long, alias = "nodes")]
    hosts: Option<usize>,
    #[arg(long, default_value_t = 5)]
    services: usize,
    /// How long the trouble, or the traffic, lasts
    #[arg(long, default_value_t = 0.02)]
    hours: f64,
    #[arg(long, default_value = "mixed", value_parser = PossibleValuesParser::new(names()))]
    scenario: String,
    /// Prints what the seed means
    #[arg(long)]
    plan: bool,
    /// So many cells of `--hosts` nodes and `--services` services each, side by side, through a day of
    /// `--hours`, beside an all-knowing planner
    #[arg(long, conflicts_with = "what_if")]
    cells: Option<usize>,
    /// Plays a recorded fleet twice, as it was and with what is changed: a folder with nodes.json,
    /// services.json and usage.json, as a node's API answers them
    #[arg(long, value_name = "FOLDER")]
    what_if: Option<PathBuf>,
    /// A node's power goes
    #[arg(long, value_name = "NODE", requires = "what_if")]
    kill: Vec<String>,
    /// A region reaches nobody outside
    #[arg(long, value_name = "REGION", requires = "what_if")]
    cut: Vec<String>,
    /// The traffic rises: `2` for all, `default/web=3.5` for one
    #[arg(long, value_name = "TIMES", requires = "what_if")]
    times: Vec<String>,
}

fn names() -> Vec<&'static str> {
    Scenario::ALL.iter().map(|(name, _)| *name).collect()
}

fn main() -> ExitCode {
    let args = Args::parse();
    if let Some(folder) = &args.what_if {
        return match what_if(&args, folder) {
            Ok(findings) => ExitCode::from(u8::from(findings > 0)),
            Err(error) => {
                eprintln!("sim: {error:#}");
                ExitCode::from(2)
            }
        };
    }
    if let Some(cells) = args.cells {
        return play_cells(&args, cells);
    }
    let mut failed = 0;
    for seed in args.seed..args.seed.saturating_add(args.seeds) {
        let plan = planned(&args, seed);
        if args.plan {
            println!("{plan:#?}");
        }
        let (began, lasts) = (Instant::now(), plan.end);
        let report = sim::run(plan);
        println!("{}", summary(seed, &report));
        println!("  {lasts} virtual ms in {} ms", began.elapsed().as_millis());
        for finding in &report.findings {
            println!("  FOUND {finding}");
        }
        if !report.findings.is_empty() {
            failed += 1;
            print!("{}", report.lines.concat());
        }
    }
    ExitCode::from(u8::from(failed > 0))
}

fn planned(args: &Args, seed: u64) -> Plan {
    let named = Scenario::ALL
        .iter()
        .find(|(name, _)| *name == args.scenario);
    match (named, args.hosts) {
        (Some((_, Scenario::Mixed)) | None, None) => Plan::of(seed),
        (named, hosts) => {
            let extent = Extent {
                hosts: hosts.unwrap_or(12),
                services: args.services,
                lasts: lasts(args),
            };
            named
                .map_or(Scenario::Mixed, |(_, scenario)| *scenario)
                .plan(seed, &extent)
        }
    }
}

fn play_cells(args: &Args, cells: usize) -> ExitCode {
    let began = Instant::now();
    let outcome = Cells {
        cells,
        hosts: args.hosts.unwrap_or(200),
        services: args.services,
        lasts: lasts(args),
        seed: args.seed,
    }
    .run();
    println!(
        "{} nodes, {} services: {} answered, {} refused, {} lost, {} starts; first byte {:.3} and instance-seconds {:.3} times the planner's; digest {}",
        outcome.hosts,
        outcome.services,
        outcome.answered,
        outcome.refused,
        outcome.lost,
        outcome.starts,
        outcome.slower(),
        outcome.dearer(),
        &outcome.digest[..16],
    );
    println!("  in {} ms", began.elapsed().as_millis());
    for finding in &outcome.findings {
        println!("  FOUND {finding}");
    }
    ExitCode::from(u8::from(!outcome.findings.is_empty()))
}

/// The recorded fleet as it was and as it would be; how much was found in both runs.
fn what_if(args: &Args, folder: &Path) -> anyhow::Result<usize> {
    let recorded = Recorded::read(folder)?;
    let mut changes: Vec<Change> = args.kill.iter().cloned().map(Change::Kill).collect();
    changes.extend(args.cut.iter().cloned().map(Change::Cut));
    for times in &args.times {
        changes.push(rise(times)?);
    }
    let mut found = 0;
    for (what, changes) in [("as it was", &[][..]), ("what if", &changes[..])] {
        let played = recorded.plan(args.seed, lasts(args), changes)?;
        let report = sim::run(played.plan.clone());
        println!("{what}: {}", summary(args.seed, &report));
        print!("{}", played.table(&report));
        for finding in &report.findings {
            println!("  FOUND {finding}");
        }
        found += report.findings.len();
    }
    Ok(found)
}

fn rise(text: &str) -> anyhow::Result<Change> {
    let (service, times) = match text.rsplit_once('=') {
        Some((service, times)) => (Some(service.to_owned()), times),
        None => (None, text),
    };
    let times: f64 = times
        .parse()
        .ok()
        .filter(|t| (0.0..=1_000.0).contains(t))
        .with_context(|| {
            format!("`{text}` is no rise of traffic: say `2`, or `default/web=3.5`; 1000 at most")
        })?;
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // It is within bounds.
    let percent = (times * 100.0) as u64;
    Ok(Change::Traffic { service, percent })
}

fn lasts(args: &Args) -> u64 {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // It saturates.
    let lasts = (args.hours * HOUR_MILLIS) as u64;
    lasts
}

fn summary(seed: u64, report: &Report) -> String {
    let figures = &report.figures;
    let mut took: Vec<u64> = figures
        .answers
        .iter()
        .filter(|a| a.ok)
        .map(|a| a.took)
        .collect();
    took.sort_unstable();
    let at = |percent: usize| took.get(took.len() * percent / 100).copied().unwrap_or(0);
    format!(
        "seed {seed}: {} answered (median {} ms, p99 {} ms), refused {:?}, lost {}, {} starts, {} stops, digest {}",
        figures.answered,
        at(50),
        at(99),
        figures.refused,
        figures.lost,
        figures.starts,
        figures.stops,
        &report.digest[..16],
    )
}
