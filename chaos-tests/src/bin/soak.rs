//! `soak --seed N --minutes M`: a cluster under faults drawn by a seed. Prints what the seed means as
//! it plays, and every finding; ends with 1 when there is one.

use std::process::ExitCode;
use std::time::Duration;

use chaos_tests::scenario::soak;
use clap::Parser;

#[derive(Parser)]
#[command(version, about = "A cluster under faults drawn by a seed")]
struct Args {
    /// What is drawn follows from it.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    #[arg(long, default_value_t = 20)]
    minutes: u64,
}

fn main() -> ExitCode {
    let Args { seed, minutes } = Args::parse();
    println!("soak --seed {seed} --minutes {minutes}");
    let report = soak::run(seed, Duration::from_mins(minutes), |line| {
        println!("{line}");
    });
    match report {
        Ok(report) => {
            print!("{report}");
            ExitCode::from(u8::from(!report.findings.is_empty()))
        }
        Err(error) => {
            eprintln!("soak --seed {seed} --minutes {minutes}: {error:#}");
            ExitCode::FAILURE
        }
    }
}
