//! Small images for tests: busybox, and what a test wants to be wrong with them. Made with umoci,
//! pushed with skopeo, nothing fetched.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::shell::run;

/// Where Debian's busybox-static puts it.
const BUSYBOX: &str = "/bin/busybox";

/// Serves files, and runs the body of a POST to `/cgi-bin/sh` as a shell script inside the
/// container: a test's hands in there.
const SH: &str = "#!/bin/sh\nprintf 'content-type: text/plain\\r\\n\\r\\n'\nexec /bin/sh 2>&1\n";
/// Answers after a fifth of a second, so that requests overlap.
const SLOW: &str =
    "#!/bin/sh\nsleep 0.2\nprintf 'content-type: text/plain\\r\\n\\r\\nslow\\n'\nhostname\n";

/// Makes `LAYOUT:box`, the image most tests run.
pub(super) fn make_box(work: &Path) -> Result<PathBuf> {
    let root = work.join("root");
    for dir in ["bin", "tmp", "proc", "sys", "dev", "etc", "www/cgi-bin"] {
        fs::create_dir_all(root.join(dir))?;
    }
    fs::copy(BUSYBOX, root.join("bin/busybox")).context("busybox-static is not installed")?;
    for applet in APPLETS {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(applet))?;
    }
    fs::write(root.join("www/index.html"), "box\n")?;
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/:/bin/sh\n")?;
    for (name, script) in [("sh", SH), ("slow", SLOW)] {
        let path = root.join("www/cgi-bin").join(name);
        fs::write(&path, script)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    }
    let layer = work.join("box.tar");
    run(
        "tar",
        [
            Path::new("-cf"),
            &layer,
            Path::new("-C"),
            &root,
            Path::new("."),
        ],
    )?
    .ok()?;
    let layout = work.join("layout");
    run("umoci", [Path::new("init"), Path::new("--layout"), &layout])?.ok()?;
    assemble(&layout, "box", &[layer])?;
    Ok(layout)
}

/// Puts an image of these layers, in this order, into the layout.
pub(super) fn assemble(layout: &Path, name: &str, layers: &[PathBuf]) -> Result<()> {
    let tagged = format!("{}:{name}", layout.display());
    run("umoci", ["new", "--image", &tagged])?.ok()?;
    for layer in layers {
        let layer = layer.to_string_lossy();
        run("umoci", ["raw", "add-layer", "--image", &tagged, &*layer])?.ok()?;
    }
    let mut config = vec!["config", "--image", &tagged];
    for word in [
        "/bin/busybox",
        "httpd",
        "-f",
        "-v",
        "-p",
        "8080",
        "-h",
        "/www",
    ] {
        config.extend(["--config.entrypoint", word]);
    }
    run("umoci", config)?.ok()?;
    Ok(())
}

/// Copies an image of the layout to a registry.
pub(super) fn push(layout: &Path, name: &str, registry: &str) -> Result<()> {
    let from = format!("oci:{}:{name}", layout.display());
    let to = format!("docker://{registry}/{name}:1");
    let copy = [
        "--insecure-policy",
        "copy",
        "--quiet",
        "--dest-tls-verify=false",
        &from,
        &to,
    ];
    run("skopeo", copy)?.ok()?;
    Ok(())
}

const APPLETS: [&str; 27] = [
    "sh", "cat", "chmod", "dd", "df", "echo", "env", "grep", "head", "hostname", "id", "ip", "ls",
    "mkdir", "mknod", "mount", "nc", "ping", "printf", "ps", "rm", "sleep", "tail", "touch",
    "unshare", "wget", "kill",
];
