//! `selvedged`: a shim or the daemon. A plain `fn main()`: shims must exist before any thread does.

use std::ffi::OsString;
use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    if args.first().is_some_and(|word| word == "shim") {
        return node::runtime::shim::main(&args[1..]);
    }
    ExitCode::SUCCESS
}
