//! `sim --seed N --hosts N --services N --hours H --scenario NAME`: whole fleets in virtual time. Prints
//! what a run came to and everything that did not hold; ends with 1 when there was something.

use std::process::ExitCode;
use std::time::Instant;

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
}

fn names() -> Vec<&'static str> {
    Scenario::ALL.iter().map(|(name, _)| *name).collect()
}

fn main() -> ExitCode {
    let args = Args::parse();
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
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // It saturates.
            let lasts = (args.hours * HOUR_MILLIS) as u64;
            let extent = Extent {
                hosts: hosts.unwrap_or(12),
                services: args.services,
                lasts,
            };
            named
                .map_or(Scenario::Mixed, |(_, scenario)| *scenario)
                .plan(seed, &extent)
        }
    }
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
