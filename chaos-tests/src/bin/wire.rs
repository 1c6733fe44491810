//! A switch between hosts as a process of its own; see `chaos_tests::wire`.

use anyhow::Result;
use clap::Parser as _;

fn main() -> Result<()> {
    chaos_tests::wire::run(&chaos_tests::wire::Settings::parse())
}
