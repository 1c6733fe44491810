//! The program of the test image; [`chaos_tests::server`] says what it does. It runs inside
//! containers and stops at SIGTERM, also as the first process of its pid namespace.

use std::process::ExitCode;

use anyhow::Result;
use chaos_tests::server::identity::Identity;
use chaos_tests::server::probe;
use chaos_tests::server::serve;
use chaos_tests::server::settings::Settings;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<ExitCode> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.first().is_some_and(|word| word == "probe") {
        return probe::run(&args[1..]).await;
    }
    let settings = Settings::read(|name| std::env::var(name).ok())?;
    let code = serve(settings, Identity::own()).await?;
    Ok(ExitCode::from(code))
}
