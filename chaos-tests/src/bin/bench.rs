//! The command line of the benchmarks: `bench list`, `bench all`, `bench NAME…`. Needs root, and
//! programs that are built with `--release` for figures that mean anything.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use chaos_tests::bench::{ALL, Bench, Plan};
use chaos_tests::world;
use clap::Parser;

/// Selvedge beside its peer and the floor, in one run
#[derive(Debug, Parser)]
struct Args {
    /// `list`, `all`, or names of benchmarks
    #[arg(required = true, value_name = "BENCH")]
    benches: Vec<String>,
    /// Rounds of each case
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Where selvedge, selvedged, box and floor are [default: beside this program]
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,
    /// The most instances at once in `burst` and `density`
    #[arg(long, default_value_t = 1000, value_name = "COUNT")]
    most: usize,
    /// Lengths of answers in `proxy`, up to 65536; 0 is the shortest there is
    #[arg(long, value_name = "BYTES", value_delimiter = ',', default_value = "0")]
    bodies: Vec<usize>,
    /// Only cases whose names begin so, in `burst`, `lazy` and `pull`
    #[arg(long, value_name = "NAME")]
    case: Option<String>,
    /// One JSON object a line instead of tables
    #[arg(long)]
    json: bool,
}

fn main() -> Result<()> {
    let args = Args::parse();
    if args.benches == ["list"] {
        for bench in &ALL {
            println!("{:12} {}", bench.name, bench.about);
        }
        return Ok(());
    }
    let own = std::env::current_exe()?;
    let beside = own.parent().context("a program has a folder")?;
    let programs = args.programs.unwrap_or_else(|| beside.to_owned());
    let programs = programs
        .canonicalize()
        .with_context(|| format!("{}", programs.display()))?;
    world::use_programs(programs.clone());
    let plan = Plan {
        rounds: args.rounds,
        programs,
        most: args.most,
        bodies: args.bodies,
        case: args.case,
    };
    plan.announce();
    let mut wanting = Vec::new();
    for bench in chosen(&args.benches)? {
        match measure(bench, &plan, args.json) {
            Ok(true) => {}
            Ok(false) => wanting.push(bench.name),
            Err(error) => {
                eprintln!("bench {}: {error:#}", bench.name);
                wanting.push(bench.name);
            }
        }
    }
    let wanting = wanting.join(", ");
    ensure!(wanting.is_empty(), "failed, or without a peer: {wanting}");
    Ok(())
}

/// Whether every peer was there.
fn measure(bench: &Bench, plan: &Plan, json: bool) -> Result<bool> {
    let board = (bench.run)(plan)?;
    if json {
        print!("{}", board.json()?);
    } else {
        println!("{}", board.table());
    }
    Ok(board.complete())
}

fn chosen(names: &[String]) -> Result<Vec<&'static Bench>> {
    if names == ["all"] {
        return Ok(ALL.iter().collect());
    }
    let find = |name: &String| {
        let bench = ALL.iter().find(|bench| bench.name == name);
        bench.with_context(|| format!("there is no benchmark `{name}`; see `bench list`"))
    };
    names.iter().map(find).collect()
}
