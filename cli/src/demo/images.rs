//! Images of real programs, made from Debian packages without Docker, and the registry they are
//! pulled from. Made once and kept in a cache that outlives the demo, keyed by what went in.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use tokio::fs;
use tokio::time::sleep;

use super::hosts::Host;
use super::http;
use super::shell::Run;

/// Outlives the demo, so that the next one starts at once.
pub const CACHE: &str = "/var/cache/selvedge-demo/images";
/// The Debian release the packages come from; its keys are in every later release's keyring.
const SUITE: &str = "bookworm";
const MAKING: Duration = Duration::from_mins(10);
const PUSHING: Duration = Duration::from_mins(1);
const REGISTRY_PORT: u16 = 5000;
const REGISTRY_START: Duration = Duration::from_secs(15);

/// How an image is made: packages as they are, then a few files of ours.
#[derive(Debug, Hash)]
pub(super) struct Recipe {
    pub name: &'static str,
    packages: &'static str,
    files: &'static [(&'static str, &'static str)],
    entrypoint: &'static [&'static str],
    user: &'static str,
}

/// nginx as Debian ships it. Alone in its container it needs no workers of another user, so it
/// runs without any capability.
pub(super) const WEB: Recipe = Recipe {
    name: "nginx",
    packages: "nginx-light,busybox-static",
    files: &[
        ("etc/passwd", PASSWD),
        ("etc/group", GROUP),
        ("etc/nginx/container.conf", include_str!("files/nginx.conf")),
    ],
    entrypoint: &["/usr/sbin/nginx", "-c", "/etc/nginx/container.conf"],
    user: "0:0",
};

/// A small web app on Debian's Python.
pub(super) const API: Recipe = Recipe {
    name: "hello-python",
    packages: "python3-minimal,libpython3-stdlib,busybox-static",
    files: &[
        ("etc/passwd", PASSWD),
        ("etc/group", GROUP),
        ("srv/app.py", include_str!("files/app.py")),
    ],
    entrypoint: &["/usr/bin/python3", "/srv/app.py"],
    user: "65534:65534",
};

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n";
const GROUP: &str = "root:x:0:\nnogroup:x:65534:\n";

impl Recipe {
    /// What services write as their image.
    pub fn reference(&self) -> String {
        format!("{}/{}:demo", address(), self.name)
    }

    fn layout(&self) -> PathBuf {
        let mut hasher = DefaultHasher::new();
        (self, SUITE).hash(&mut hasher);
        Path::new(CACHE).join(format!("{}-{:016x}", self.name, hasher.finish()))
    }

    pub fn is_cached(&self) -> bool {
        self.layout().join("index.json").exists()
    }

    /// The image as an OCI layout in the cache, made if it is not there.
    pub async fn make(&self) -> Result<()> {
        if self.is_cached() {
            return Ok(());
        }
        let work = Path::new(CACHE).join(format!("tmp-{}-{}", self.name, std::process::id()));
        remove_tree(&work).await?;
        fs::create_dir_all(&work)
            .await
            .with_context(|| format!("making {}", work.display()))?;
        let made = self.make_in(&work).await;
        let made = match made {
            Ok(layout) => fs::rename(layout, self.layout())
                .await
                .context("keeping the image"),
            Err(error) => Err(error),
        };
        remove_tree(&work).await?;
        made.with_context(|| format!("making the image {}", self.name))
    }

    async fn make_in(&self, work: &Path) -> Result<PathBuf> {
        let root = work.join("root");
        let include = format!("--include={}", self.packages);
        let debootstrap = Run::new("mmdebstrap").args(["--quiet", "--variant=extract", &include]);
        debootstrap
            .arg(SUITE)
            .arg(&root)
            .within(MAKING)
            .ok()
            .await?;
        // Containers get their own devices and names; an image must not carry the host's.
        remove_tree(&root.join("dev")).await?;
        fs::create_dir_all(root.join("dev")).await?;
        for own in ["etc/resolv.conf", "etc/hostname"] {
            fs::remove_file(root.join(own)).await.ok();
        }
        let app = work.join("app");
        for (path, content) in self.files {
            let path = app.join(path);
            fs::create_dir_all(path.parent().unwrap_or(&app)).await?;
            fs::write(path, content).await?;
        }
        let layers = [
            tar(&root, work, "base.tar").await?,
            tar(&app, work, "app.tar").await?,
        ];
        self.assemble(&work.join("layout"), &layers).await
    }

    async fn assemble(&self, layout: &Path, layers: &[PathBuf]) -> Result<PathBuf> {
        let tagged = format!("{}:{}", layout.display(), self.name);
        let umoci = |args: &[&str]| Run::new("umoci").args(args).within(MAKING);
        umoci(&["init", "--layout"]).arg(layout).ok().await?;
        umoci(&["new", "--image", &tagged]).ok().await?;
        for layer in layers {
            umoci(&["raw", "add-layer", "--image", &tagged])
                .arg(layer)
                .ok()
                .await?;
        }
        let mut config = umoci(&["config", "--image", &tagged, "--config.user", self.user]);
        config = config.args(["--config.exposedports", "8080/tcp"]);
        for word in self.entrypoint {
            config = config.args(["--config.entrypoint", word]);
        }
        config.ok().await?;
        umoci(&["gc", "--layout"]).arg(layout).ok().await?;
        Ok(layout.to_owned())
    }

    /// Puts it into the demo's registry.
    pub async fn push(&self) -> Result<()> {
        let from = format!("oci:{}:{}", self.layout().display(), self.name);
        let to = format!("docker://{}", self.reference());
        let skopeo = Run::new("skopeo").args(["--insecure-policy", "copy", "--quiet"]);
        let copy = skopeo
            .args(["--dest-tls-verify=false", &from, &to])
            .within(PUSHING);
        copy.ok()
            .await
            .with_context(|| format!("pushing {}", self.name))?;
        Ok(())
    }
}

async fn tar(tree: &Path, work: &Path, name: &str) -> Result<PathBuf> {
    let file = work.join(name);
    let tar = Run::new("tar").args(["--sort=name", "--numeric-owner", "--owner=0", "--group=0"]);
    tar.arg("-cf")
        .arg(&file)
        .arg("-C")
        .arg(tree)
        .arg(".")
        .within(MAKING)
        .ok()
        .await?;
    Ok(file)
}

async fn remove_tree(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path).await {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Where the registry is, as image references and the nodes' configuration name it.
pub(super) fn address() -> String {
    format!("{}:{REGISTRY_PORT}", Host::registry().address)
}

/// Starts Debian's registry on its own host and waits until it answers.
pub(super) async fn start_registry(dir: &Path) -> Result<()> {
    let home = dir.join("registry");
    fs::create_dir_all(&home).await?;
    let config = home.join("config.yml");
    fs::write(&config, registry_config(&home, Host::registry().address)).await?;
    let log = std::fs::File::create(home.join("registry.log"))?;
    let netns = format!("--net=/run/netns/{}", Host::registry().netns());
    // Its own session: it outlives this command, and ctrl-C in this terminal is not for it.
    let mut child = tokio::process::Command::new("setsid")
        .args(["nsenter", &netns, "--", "docker-registry", "serve"])
        .arg(&config)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("starting docker-registry")?;
    let door = (Host::registry().address, REGISTRY_PORT).into();
    let began = Instant::now();
    while http::get(door, "registry", "/v2/", Duration::from_secs(2))
        .await
        .is_err()
    {
        if let Some(status) = child.try_wait()? {
            bail!(
                "docker-registry ended: {status}; see {}/registry.log",
                home.display()
            );
        }
        if began.elapsed() > REGISTRY_START {
            bail!(
                "docker-registry does not answer; see {}/registry.log",
                home.display()
            );
        }
        sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

fn registry_config(home: &Path, address: Ipv4Addr) -> String {
    format!(
        "version: 0.1\nlog: {{ level: warn }}\nstorage:\n  filesystem: {{ rootdirectory: {} }}\n\
         http: {{ addr: \"{address}:{REGISTRY_PORT}\" }}\n",
        home.join("data").display()
    )
}
