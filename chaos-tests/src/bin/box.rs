//! The program of the test image; [`chaos_tests::server`] says what it does. It runs inside
//! containers and stops at SIGTERM, also as the first process of its pid namespace.

use std::process::ExitCode;

use anyhow::Result;
use chaos_tests::server::identity::Identity;
use chaos_tests::server::serve;
use chaos_tests::server::settings::Settings;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<ExitCode> {
    let settings = Settings::read(|name| std::env::var(name).ok())?;
    let code = serve(settings, Identity::own()).await?;
    Ok(ExitCode::from(code))
}
