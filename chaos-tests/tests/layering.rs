//! Proves the layering of the house from what cargo knows, and the purity of `scheduler` from its
//! source: no runtime, no clock, no input or output, no order that differs between two runs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand};

/// Each crate and the crates of the house it may stand on.
const LAYERS: [(&str, &[&str]); 5] = [
    ("scheduler", &[]),
    ("netfabric", &["scheduler"]),
    ("node", &["scheduler", "netfabric"]),
    ("cli", &["scheduler", "netfabric"]),
    ("chaos-tests", &["scheduler", "netfabric", "node"]),
];

/// Libraries that only one crate may know.
const KEPT_TO: [(&str, &str); 7] = [
    ("openraft", "node"),
    ("redb", "node"),
    ("libcontainer", "node"),
    ("oci-client", "node"),
    ("quinn", "netfabric"),
    ("chitchat", "netfabric"),
    ("hickory-server", "netfabric"),
];

/// All that `scheduler` may be built on. Of hashbrown's only the table that is told each hash: its maps are among the
/// words below.
const PURE: [&str; 4] = ["hashbrown", "imbl", "serde", "thiserror"];

/// Words that are no part of a pure crate. Addresses
/// (`std::net::IpAddr`) are plain data, and so is what is shared unchanged (`std::sync::Arc`).
const IMPURE_WORDS: [&str; 23] = [
    "tokio",
    "tracing",
    "HashMap",
    "HashSet",
    "RandomState",
    "DefaultHasher",
    "Instant",
    "SystemTime",
    "UNIX_EPOCH",
    "TcpStream",
    "TcpListener",
    "UdpSocket",
    "ToSocketAddrs",
    "println",
    "eprintln",
    "dbg",
    "unsafe",
    "Mutex",
    "RwLock",
    "Condvar",
    "mpsc",
    "OnceLock",
    "LazyLock",
];

/// Modules of `std` that touch the world.
const IMPURE_STD: [&str; 6] = ["fs", "io", "process", "thread", "env", "os"];

fn metadata() -> Metadata {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml");
    MetadataCommand::new()
        .manifest_path(manifest)
        .no_deps()
        .exec()
        .expect("cargo metadata of the workspace")
}

/// Each crate's dependencies: all of them, and those that are not for tests only.
fn dependencies() -> BTreeMap<String, (BTreeSet<String>, BTreeSet<String>)> {
    let packages = metadata().packages;
    let of = |package: &cargo_metadata::Package| {
        let all = package
            .dependencies
            .iter()
            .map(|d| d.name.clone())
            .collect();
        let built = package
            .dependencies
            .iter()
            .filter(|d| d.kind != DependencyKind::Development);
        (all, built.map(|d| d.name.clone()).collect())
    };
    packages
        .iter()
        .map(|p| (p.name.to_string(), of(p)))
        .collect()
}

#[test]
fn the_house_has_these_rooms_and_no_others() {
    let members: BTreeSet<_> = dependencies().into_keys().collect();
    let drawn: BTreeSet<_> = LAYERS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(members, drawn);
}

#[test]
fn every_crate_stands_only_on_those_below() {
    let dependencies = dependencies();
    for (name, below) in LAYERS {
        let (all, _) = &dependencies[name];
        let house = |d: &&String| dependencies.contains_key(*d);
        for dependency in all.iter().filter(house) {
            let allowed = below.contains(&dependency.as_str());
            assert!(allowed, "{name} must not know {dependency}");
        }
    }
}

/// What a benchmark measures others against, with nothing of ours around it.
const FLOOR: (&str, &str) = ("chaos-tests", "quinn");

#[test]
fn some_libraries_are_known_to_one_crate_alone() {
    for (name, (_, built)) in dependencies() {
        for (library, keeper) in KEPT_TO {
            let floor = (name.as_str(), library) == FLOOR;
            let foreign = built.contains(library) && name != keeper && !floor;
            assert!(
                !foreign,
                "{name} must not know {library}: that is {keeper}'s"
            );
        }
    }
}

#[test]
fn the_scheduler_is_built_on_nothing_that_acts() {
    let (_, built) = &dependencies()["scheduler"];
    for dependency in built {
        assert!(
            PURE.contains(&dependency.as_str()),
            "scheduler must not know {dependency}"
        );
    }
}

#[test]
fn the_schedulers_source_is_pure() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scheduler/src");
    let files = sources(&root);
    assert!(files.len() > 10, "found only {files:?}");
    let mut found = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).expect("a readable source file");
        found.extend(
            impurities(&text)
                .into_iter()
                .map(|word| format!("{}: {word}", file.display())),
        );
    }
    assert!(found.is_empty(), "not pure:\n{}", found.join("\n"));
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).expect("a readable folder") {
        let path = entry.expect("a folder's entry").path();
        if path.is_dir() {
            files.extend(sources(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
    files
}

/// The words in code, not in comments, that have no place in a pure crate.
fn impurities(text: &str) -> BTreeSet<String> {
    let code: String = text
        .lines()
        .map(|line| line.split("//").next().unwrap_or_default())
        .flat_map(|line| [line, "\n"])
        .collect();
    let words = words(&code);
    let mut found: BTreeSet<String> = words
        .iter()
        .filter(|w| IMPURE_WORDS.contains(w))
        .map(|w| (*w).to_owned())
        .collect();
    for (at, _) in code.match_indices("std::") {
        for module in modules(&code[at + "std::".len()..]) {
            if IMPURE_STD.contains(&module) {
                found.insert(format!("std::{module}"));
            }
        }
    }
    found
}

fn words(code: &str) -> Vec<&str> {
    code.split(|c: char| !c.is_alphanumeric() && c != '_')
        .filter(|w| !w.is_empty())
        .collect()
}

/// What follows `std::`: one module, or every word of a group in braces.
fn modules(rest: &str) -> Vec<&str> {
    match rest.strip_prefix('{') {
        Some(group) => words(group.split(';').next().unwrap_or_default()),
        None => words(rest).into_iter().take(1).collect(),
    }
}

#[test]
fn the_scan_finds_what_it_looks_for() {
    let found = |text: &str| impurities(text).into_iter().collect::<Vec<_>>().join(" ");
    assert_eq!(found("use std::collections::HashMap; // tokio"), "HashMap");
    assert_eq!(found("let t = std::time::Instant::now();"), "Instant");
    assert_eq!(found("use std::{fmt, fs::File};"), "std::fs");
    assert_eq!(found("std::fs::read(x)"), "std::fs");
    assert_eq!(found("use std::net::{IpAddr, SocketAddr};"), "");
    assert_eq!(found("/// no HashMap, no clock\nlet instant = Now(1);"), "");
}
