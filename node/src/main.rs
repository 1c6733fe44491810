//! `selvedged`: a shim, an unpacker of layers or the daemon. A plain `fn main()`: the first two must
//! exist before any thread does.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use node::config::Config;

const USAGE: &str = "usage: selvedged [--config FILE]   (default /etc/selvedge/selvedge.toml)";

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    if args.first().is_some_and(|word| word == "shim") {
        return node::runtime::shim::main(&args[1..]);
    }
    if args.first().is_some_and(|word| word == "exec") {
        return node::runtime::shim::exec::main(&args[1..]);
    }
    if args.first().is_some_and(|word| word == "lazy") {
        node::runtime::shim::close_inherited();
        return node::image::lazy::main(&args[1..]);
    }
    if args.first().is_some_and(|word| word == "unpack") {
        node::runtime::shim::close_inherited();
        return node::image::unpack_main(&args[1..]);
    }
    let path = match args.as_slice() {
        [] => PathBuf::from("/etc/selvedge/selvedge.toml"),
        [flag, path] if flag == "--config" => PathBuf::from(path),
        [flag] if flag == "--version" => {
            println!("selvedged {}", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        [flag] if flag == "--failpoints" => return failpoints(),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match daemon(&path) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("selvedged: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Where this build can be made to die; fails when it cannot, as every build but a test's.
fn failpoints() -> ExitCode {
    if let Some(table) = node::failpoints::table() {
        print!("{table}");
        ExitCode::SUCCESS
    } else {
        eprintln!("selvedged: this build has no failpoints");
        ExitCode::FAILURE
    }
}

fn daemon(path: &std::path::Path) -> anyhow::Result<()> {
    node::failpoints::arm().map_err(anyhow::Error::msg)?;
    let config = Config::load(path)?;
    node::telemetry::init(&config.observe.log);
    // Fails only when one is installed already: then TLS has its provider.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let sockets = node::supervisor::sockets();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(node::app::run(config, sockets))
}
