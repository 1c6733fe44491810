//! Searches for inputs that a target of `netfabric::fuzz` or `node::image::fuzz` does not stand, by
//! libFuzzer. Owns no target.
//!
//! `TARGET` in the environment names one of them; `SEEDS`, when it is set, a folder into which its first
//! inputs are written before the search reads it.

#![no_main]

use std::path::PathBuf;
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;

/// One way in: its name, what is tried, and inputs to begin with.
type Target = (&'static str, fn(&[u8]), fn() -> Vec<Vec<u8>>);

static CHOSEN: OnceLock<Target> = OnceLock::new();

fn all() -> Vec<Target> {
    let carried = netfabric::fuzz::TARGETS.iter();
    let carried = carried.map(|t| (t.name, t.run, t.seeds));
    let images = node::image::fuzz::TARGETS.iter();
    carried
        .chain(images.map(|t| (t.name, t.run, t.seeds)))
        .collect()
}

fn choose() -> Target {
    let wanted = std::env::var("TARGET").unwrap_or_default();
    let names: Vec<_> = all().iter().map(|(name, ..)| *name).collect();
    let target = all().into_iter().find(|(name, ..)| *name == wanted);
    target.unwrap_or_else(|| panic!("TARGET is none of {names:?}"))
}

fn begin() {
    let (_, _, seeds) = CHOSEN.get_or_init(choose);
    if let Some(folder) = std::env::var_os("SEEDS").map(PathBuf::from) {
        for (number, seed) in seeds().into_iter().enumerate() {
            let file = folder.join(format!("seed-{number}"));
            std::fs::write(&file, seed).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        }
    }
}

fuzz_target!(init: begin(), |data: &[u8]| {
    let (_, run, _) = CHOSEN.get_or_init(choose);
    run(data);
});
