//! Small images for tests: our `box`, busybox, and what a test wants to be wrong with them. Made with umoci,
//! pushed with skopeo, nothing fetched.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::shell::run;

/// What a container of the test image runs.
pub(super) const BOX: [&str; 1] = ["/bin/box"];
/// Where Debian's busybox-static puts it.
const BUSYBOX: &str = "/bin/busybox";

/// Makes `LAYOUT:box`, the image most tests run.
pub(super) fn make_box(work: &Path, program: &Path) -> Result<PathBuf> {
    let root = work.join("root");
    for dir in ["bin", "tmp", "proc", "sys", "dev", "etc"] {
        fs::create_dir_all(root.join(dir))?;
    }
    fs::copy(BUSYBOX, root.join("bin/busybox")).context("busybox-static is not installed")?;
    for applet in APPLETS {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(applet))?;
    }
    fs::copy(program, root.join("bin/box"))?;
    for library in libraries(program)? {
        let inside = root.join(library.strip_prefix("/")?);
        fs::create_dir_all(inside.parent().context("a library has a folder")?)?;
        fs::copy(&library, inside)?;
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/:/bin/sh\n")?;
    let layer = work.join("box.tar");
    pack(&root, &layer)?;
    let layout = self::layout(work)?;
    assemble(&layout, "box", &[layer], &BOX)?;
    Ok(layout)
}

/// Makes a layer of what is below a folder, in the order in which builders of images go through one.
pub(super) fn pack(root: &Path, layer: &Path) -> Result<()> {
    let args = [
        "--sort=name",
        "--numeric-owner",
        "--owner=0",
        "--group=0",
        "-cf",
    ]
    .map(Path::new);
    let what = [layer, Path::new("-C"), root, Path::new(".")];
    run("tar", args.iter().chain(&what))?.ok().map(drop)
}

/// An empty layout in a folder.
pub(super) fn layout(work: &Path) -> Result<PathBuf> {
    let layout = work.join("layout");
    run("umoci", [Path::new("init"), Path::new("--layout"), &layout])?.ok()?;
    Ok(layout)
}

/// What a program of this machine needs to run in an image: its libraries and their loader.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let said = run("ldd", [program])?.ok()?.out;
    let words = said.split_whitespace().filter(|word| word.starts_with('/'));
    Ok(words.map(PathBuf::from).collect())
}

/// Puts an image of these layers, in this order, into the layout.
pub(super) fn assemble(
    layout: &Path,
    name: &str,
    layers: &[PathBuf],
    entrypoint: &[&str],
) -> Result<()> {
    let tagged = format!("{}:{name}", layout.display());
    run("umoci", ["new", "--image", &tagged])?.ok()?;
    for layer in layers {
        let layer = layer.to_string_lossy();
        run("umoci", ["raw", "add-layer", "--image", &tagged, &*layer])?.ok()?;
    }
    let mut config = vec!["config", "--image", &tagged];
    for word in entrypoint {
        config.extend(["--config.entrypoint", word]);
    }
    run("umoci", config)?.ok()?;
    Ok(())
}

/// Copies an image of the layout to a registry.
pub(super) fn push(layout: &Path, name: &str, registry: &str) -> Result<()> {
    let from = format!("oci:{}:{name}", layout.display());
    let to = format!("docker://{registry}/{name}:1");
    copy(&["--dest-tls-verify=false", &from, &to])
}

/// Writes an image of the layout into a file; `tagged` may be empty where the kind allows it.
pub(super) fn archive(
    layout: &Path,
    name: &str,
    kind: &str,
    file: &Path,
    tagged: &str,
) -> Result<()> {
    let from = format!("oci:{}:{name}", layout.display());
    let to = format!("{kind}:{}:{tagged}", file.display());
    copy(&[&from, to.trim_end_matches(':')])
}

fn copy(what: &[&str]) -> Result<()> {
    let copy = ["--insecure-policy", "copy", "--quiet"];
    run("skopeo", [&copy, what].concat())?.ok()?;
    Ok(())
}

const APPLETS: [&str; 29] = [
    "sh", "cat", "chmod", "chown", "cp", "dd", "df", "echo", "env", "grep", "head", "hostname",
    "id", "ip", "ls", "mkdir", "mknod", "mount", "nc", "ping", "printf", "ps", "rm", "sleep",
    "tail", "touch", "unshare", "wget", "kill",
];
