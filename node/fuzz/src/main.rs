//! Searches for inputs that a target of `node::image::fuzz` does not stand, by libFuzzer. Owns no target.
//!
//! `TARGET` in the environment names one of them; `SEEDS`, when it is set, a folder into which its first
//! inputs are written before the search reads it.

#![no_main]

use std::path::PathBuf;
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use node::image::fuzz::{TARGETS, Target};

static CHOSEN: OnceLock<&Target> = OnceLock::new();

fn choose() -> &'static Target {
    let wanted = std::env::var("TARGET").unwrap_or_default();
    let target = TARGETS.iter().find(|target| target.name == wanted);
    let names: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
    target.unwrap_or_else(|| panic!("TARGET is none of {names:?}"))
}

fn begin() {
    let target = CHOSEN.get_or_init(choose);
    if let Some(folder) = std::env::var_os("SEEDS").map(PathBuf::from) {
        for (number, seed) in (target.seeds)().into_iter().enumerate() {
            let file = folder.join(format!("seed-{number}"));
            std::fs::write(&file, seed).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        }
    }
}

fuzz_target!(init: begin(), |data: &[u8]| {
    (CHOSEN.get_or_init(choose).run)(data);
});
