//! A load by hand, and what it costs its thread:
//!
//! ```text
//! cargo run --release -p chaos-tests --bin box &
//! cargo run --release -p chaos-tests --example load -- web.example 127.0.0.1:8080 --rate 5000
//! ```

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use chaos_tests::workload::load::{Config, Load};
use clap::Parser;
use rustix::time::{ClockId, clock_gettime};

#[derive(Parser)]
struct Args {
    /// The host that is asked.
    host: String,
    /// Where: ADDRESS:PORT, one or more.
    #[arg(required = true)]
    doors: Vec<SocketAddr>,
    #[arg(long, default_value = "/do")]
    path: String,
    #[arg(long, default_value_t = 100.0)]
    rate: f64,
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Poisson arrivals by this seed instead of even ones.
    #[arg(long)]
    poisson: Option<u64>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let mut config = Config::new(&args.host, &args.doors)
        .rate(args.rate)
        .path(&args.path);
    if let Some(seed) = args.poisson {
        config = config.poisson(seed);
    }
    let load = Load::start(config)?;
    std::thread::sleep(Duration::from_secs(args.seconds));
    let book = load.stop()?;
    println!("{}", book.summary());
    let spent = Duration::try_from(clock_gettime(ClockId::ProcessCPUTime))?;
    let count = book.count();
    ensure!(count.sent > 0, "nothing was sent");
    let each = spent / u32::try_from(count.sent)?;
    let rate = count.ok / args.seconds.max(1);
    println!("{rate} requests/s, {each:?} of processor time each");
    for failure in book.failures.iter().take(10) {
        println!("{failure:?}");
    }
    Ok(())
}
