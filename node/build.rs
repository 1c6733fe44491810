//! Compiles `parked/main.rs`, which the shim carries (`runtime::shim::parked`): by the same compiler, but
//! without the standard library and linked to nothing, which no profile of cargo's can say for one
//! program among others.

use std::error::Error;
use std::path::PathBuf;
use std::process::Command;

const SOURCE: &str = "parked/main.rs";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={SOURCE}");
    let said = |name: &str| std::env::var(name).map_err(|e| format!("{name}: {e}"));
    let out = PathBuf::from(said("OUT_DIR")?).join("parked");
    let mut rustc = Command::new(said("RUSTC")?);
    rustc.args(["--edition", "2024", "--crate-type", "bin", "--target"]);
    rustc.arg(said("TARGET")?);
    for option in [
        "opt-level=s",
        "panic=abort",
        "strip=symbols",
        "relocation-model=static",
        "link-arg=-static",
        "link-arg=-nostdlib",
        "link-arg=-nostartfiles",
        "link-arg=-Wl,--build-id=none,-n",
    ] {
        rustc.args(["-C", option]);
    }
    if let Ok(linker) = said("RUSTC_LINKER") {
        rustc.arg("-C").arg(format!("linker={linker}"));
    }
    let status = rustc.arg("-o").arg(out).arg(SOURCE).status()?;
    if !status.success() {
        return Err(format!("{SOURCE} does not compile").into());
    }
    Ok(())
}
