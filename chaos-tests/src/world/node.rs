//! One node of a world: its host, its folder, its daemon, its front doors.

use std::ffi::OsStr;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::http::{Request, Response};
use super::shell::{Outcome, run, run_with};

pub const ORIGIN: &str = "e2e.selvedge.internal";
/// No command of a test runs longer; coreutils' timeout ends it with code 124.
const LIMIT_SECONDS: &str = "150";

#[derive(Debug, Clone)]
pub struct Node {
    pub name: String,
    pub address: Ipv4Addr,
    pub netns: String,
    pub(super) dir: PathBuf,
    pub(super) cgroup: String,
    pub(super) registry: String,
    pub(super) programs: PathBuf,
    /// When its daemon was started again.
    pub(super) starts: Arc<Mutex<Vec<Instant>>>,
}

impl Node {
    fn inside(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("timeout");
        let netns = format!("--net=/run/netns/{}", self.netns);
        command
            .args([LIMIT_SECONDS, "nsenter", &netns, "--"])
            .arg(program);
        command
            .env("XDG_CONFIG_HOME", &self.dir)
            .env("NO_COLOR", "1");
        command
    }

    /// Any program on this host.
    pub fn run(&self, program: &str, args: &[&str]) -> Result<Outcome> {
        run_with(self.inside(program).args(args), "")
    }

    /// `selvedge ARGS…` as this host's operator types it.
    pub fn cli(&self, args: &[&str]) -> Result<Outcome> {
        run_with(&mut self.cli_command(args), "")
    }

    /// The same, for one that goes on while the test does.
    pub fn cli_command(&self, args: &[&str]) -> Command {
        let socket = format!("unix:{}", self.socket().display());
        let mut command = self.inside(self.programs.join("selvedge"));
        command.args(["--addr", &socket]).args(args);
        command
    }

    /// `selvedge deploy` of an image with what a test usually wants.
    pub fn deploy(&self, service: &str, image: &str, more: &[&str]) -> Result<Outcome> {
        let deploy = ["deploy", service, "--image", image];
        let port: &[&str] = if more.contains(&"--port") {
            &[]
        } else {
            &["--port", "8080"]
        };
        let defaults = ["--window", "6s", "--wait-timeout", "45s"];
        self.cli(&[&deploy[..], port, &defaults, more].concat())
    }

    /// Copies an image of a registry to another name on this host, as who pushes to it does.
    pub fn push(&self, from: &str, to: &str) -> Result<Outcome> {
        let creds = format!("me:{}", self.token()?);
        let (from, to) = (format!("docker://{from}"), format!("docker://{to}"));
        let words = [
            "--insecure-policy",
            "copy",
            "--quiet",
            "--src-tls-verify=false",
        ];
        let door = [
            "--dest-tls-verify=false",
            "--dest-creds",
            &creds,
            &from,
            &to,
        ];
        self.run("skopeo", &[&words[..], &door].concat())
    }

    /// The JSON of a read.
    pub fn read(&self, args: &[&str]) -> Result<Value> {
        self.cli(&[&["-o", "json"], args].concat())?.ok()?.json()
    }

    /// `selvedge up` or `selvedge join …` with this node's flags.
    pub fn enrol(&self, verb: &[&str], more: &[&str]) -> Result<Outcome> {
        let region = self.name.split('-').next().unwrap_or(&self.name);
        let (zone, advertise) = (format!("{region}-a"), format!("{}:8422", self.address));
        let mut command = self.inside(self.programs.join("selvedge"));
        command
            .args(verb)
            .args(["--name", &self.name, "--region", region, "--zone", &zone]);
        command
            .arg("--data")
            .arg(&self.dir)
            .arg("--config")
            .arg(self.config());
        command.args([
            "--advertise",
            &advertise,
            "--origin",
            ORIGIN,
            "--http",
            ":80",
        ]);
        command.args(["--dns", ":53", "--cgroup", &self.cgroup]);
        if let Ok(filter) = std::env::var("SELVEDGE_TEST_LOG") {
            command.args(["--log", &filter]);
        }
        run_with(
            command
                .args(["--registry-insecure", &self.registry])
                .args(more),
            "",
        )
    }

    /// The node's data folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Below it are the cgroups of the node's containers, in every hierarchy.
    pub fn cgroup(&self) -> &str {
        &self.cgroup
    }

    /// Ids of the instances that have a folder here, in order.
    pub fn instance_folders(&self) -> Result<Vec<String>> {
        let folder = self.dir.join("instances");
        let entries = std::fs::read_dir(&folder).with_context(|| folder.display().to_string())?;
        let names = entries.flatten().map(|e| e.file_name());
        let mut names: Vec<_> = names.map(|n| n.to_string_lossy().into_owned()).collect();
        names.sort();
        Ok(names)
    }

    /// The operator's API.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("run/api.sock")
    }

    pub(super) fn config(&self) -> PathBuf {
        self.dir.join("selvedge.toml")
    }

    /// `(ADDRESS, TOKEN)` for the next node.
    pub fn invite(&self, ttl: &str) -> Result<(String, String)> {
        let said = self.read(&["token", "create", "--ttl", ttl])?;
        let field = |name: &str| said[name].as_str().map(ToOwned::to_owned);
        let both = field("address").zip(field("token"));
        both.with_context(|| format!("no address and token in {said}"))
    }

    pub fn door(&self) -> SocketAddr {
        (self.address, 80).into()
    }

    /// GET `path` of a service through this node's front door.
    pub fn get(&self, service: &str, path: &str) -> Result<Response> {
        Request::get(&format!("{service}.{ORIGIN}"), path).send(self.door())
    }

    /// Runs a shell script inside an instance of the test image and returns what it wrote.
    pub fn inside_container(&self, service: &str, script: &str) -> Result<String> {
        let host = format!("{service}.{ORIGIN}");
        let post = Request::post(&host, "/sh", script.as_bytes());
        Ok(post.send(self.door())?.ok()?.body)
    }

    /// Addresses this node's DNS gives for a service.
    pub fn dig(&self, service: &str, kind: &str) -> Result<Vec<String>> {
        let (at, name) = (format!("@{}", self.address), format!("{service}.{ORIGIN}"));
        let said = run("dig", ["+short", "+time=2", "+tries=2", &at, &name, kind])?.ok()?;
        Ok(said.out.lines().map(ToOwned::to_owned).collect())
    }

    pub fn status(&self) -> Result<Value> {
        self.read(&["status"])
    }

    /// Instances of a service that are not at their end; the parked are nobody's yet.
    pub fn instances(&self, service: &str) -> Result<Vec<Value>> {
        let all = self.read(&["get", "instances"])?;
        let all = all.as_array().context("instances are no list")?;
        let live = |i: &&Value| {
            let state = i["state"].as_str().unwrap_or_default();
            i["service"] == service && !matches!(state, "Stopped" | "Failed" | "Parked")
        };
        Ok(all.iter().filter(live).cloned().collect())
    }

    /// Pids of the processes that hold this node's containers.
    pub fn shims(&self) -> Vec<u32> {
        let within = format!("{}/", self.dir.display());
        let is_shim = |pid: &u32| {
            let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let words = String::from_utf8_lossy(&words).into_owned();
            words.contains("shim\0") && words.contains(&within)
        };
        pids().filter(is_shim).collect()
    }

    /// Pids of the processes that show layers which still arrive to this node's instances.
    pub fn lazies(&self) -> Vec<u32> {
        let within = format!("{}/", self.dir.display());
        let is_lazy = |pid: &u32| {
            let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let words = String::from_utf8_lossy(&words).into_owned();
            words.contains("lazy\0") && words.contains(&within)
        };
        pids().filter(is_lazy).collect()
    }

    /// Pids of this node's containers: processes in its cgroups that are not ours.
    pub fn containers(&self) -> Vec<u32> {
        let mut found: Vec<_> = pids()
            .filter(|pid| {
                let cgroup = std::fs::read_to_string(format!("/proc/{pid}/cgroup"));
                let exe = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
                let exe = exe.to_string_lossy().into_owned();
                cgroup.is_ok_and(|text| text.contains(&self.cgroup))
                    && !["selvedged", node::runtime::PARKED]
                        .iter()
                        .any(|ours| exe.contains(ours))
            })
            .collect();
        found.sort_unstable();
        found
    }
}

/// Every process of this machine.
pub(crate) fn pids() -> impl Iterator<Item = u32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|e| e.file_name().to_str()?.parse().ok())
}

/// A zombie is not: it only waits for who started it to take note.
pub(crate) fn is_running(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat
        .rsplit_once(") ")
        .and_then(|(_, rest)| rest.chars().next());
    state.is_some_and(|state| state != 'Z' && state != 'X')
}
