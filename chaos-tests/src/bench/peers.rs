//! The programs of others, from Debian's packages.

use std::path::Path;

use anyhow::{Result, ensure};

use crate::world::run;

/// While this says no, packages start no services at their installation.
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// A program and the package that has it.
#[derive(Debug, Clone, Copy)]
pub struct Peer {
    pub program: &'static str,
    pub package: &'static str,
}

pub const CRUN: Peer = Peer::new("crun", "crun");
pub const RUNC: Peer = Peer::new("runc", "runc");
pub const NGINX: Peer = Peer::new("nginx", "nginx-light");
pub const HAPROXY: Peer = Peer::new("haproxy", "haproxy");
pub const SKOPEO: Peer = Peer::new("skopeo", "skopeo");
pub const UMOCI: Peer = Peer::new("umoci", "umoci");
pub const PODMAN: Peer = Peer::new("podman", "podman");
pub const ETCD: Peer = Peer::new("etcd", "etcd-server");

impl Peer {
    pub const fn new(program: &'static str, package: &'static str) -> Self {
        Self { program, package }
    }

    /// Installs it when it is not here.
    pub fn fetch(self) -> Result<()> {
        if self.here()? {
            return Ok(());
        }
        eprintln!("installing {}", self.package);
        install(self.package)?;
        ensure!(self.here()?, "{} brings no {}", self.package, self.program);
        Ok(())
    }

    fn here(self) -> Result<bool> {
        Ok(run("sh", ["-c", &format!("command -v {}", self.program)])?.code == 0)
    }
}

fn install(package: &str) -> Result<()> {
    let ours = !Path::new(POLICY).exists();
    if ours {
        std::fs::write(POLICY, "#!/bin/sh\nexit 101\n")?;
        run("chmod", ["755", POLICY])?.ok()?;
    }
    let apt = |words: &[&str]| {
        let quiet = [
            "DEBIAN_FRONTEND=noninteractive",
            "timeout",
            "300",
            "apt-get",
            "-qq",
        ];
        run("env", [&quiet, words].concat())
    };
    apt(&["update"])?;
    let installed = apt(&["install", "-y", "--no-install-recommends", package]);
    if ours {
        std::fs::remove_file(POLICY)?;
    }
    installed?.ok()?;
    Ok(())
}
