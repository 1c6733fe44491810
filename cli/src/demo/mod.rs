//! `selvedge demo`: a cluster of namespace hosts on this machine that does what Selvedge promises,
//! measured, and `selvedge demo down`, which leaves no trace of it. Knows nothing that an operator
//! could not do: it runs the real commands, the real daemon and real programs.

mod acts;
mod hosts;
mod http;
mod images;
mod nodes;
mod scorecard;
mod shell;
mod traces;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use hosts::Host;
pub use images::CACHE as IMAGES;
use nodes::Node;
pub use scorecard::Scorecard;
pub use traces::Removed;

/// The name of the demo in the contexts file.
pub const CONTEXT: &str = "demo";
/// The DNS zone of the demo's services.
pub const ORIGIN: &str = "demo.selvedge.internal";

/// Two demos at once would remove each other's hosts.
const LOCK: &str = "/run/selvedge-demo.lock";

/// Programs a demo runs, and the Debian package of each.
const TOOLS: [(&str, &str); 9] = [
    ("ip", "iproute2"),
    ("nsenter", "util-linux"),
    ("nft", "nftables"),
    ("docker-registry", "docker-registry"),
    ("skopeo", "skopeo"),
    ("umoci", "umoci"),
    ("mmdebstrap", "mmdebstrap"),
    ("dig", "bind9-dnsutils"),
    ("tar", "tar"),
];

#[derive(Debug, Clone)]
pub struct DemoOptions {
    pub dir: PathBuf,
    pub nodes: usize,
}

/// What is said while it goes on: one line at a time.
pub type Say<'a> = &'a mut (dyn FnMut(&str) + Send);

impl DemoOptions {
    /// Whether there is anything of a demo to talk to.
    pub fn is_there(&self) -> bool {
        self.dir.join(traces::MARKER).exists()
    }

    /// Where `selvedge` finds the demo: the API of its first node.
    #[must_use]
    pub fn address(&self) -> String {
        let first = Host::nodes(1)
            .into_iter()
            .map(|h| h.name)
            .collect::<String>();
        format!(
            "unix:{}",
            self.dir.join(first).join("run/api.sock").display()
        )
    }
}

/// Makes a demo, an earlier one removed first, and runs it through its acts. The cluster is left
/// running, also when a promise was broken: the card says which.
///
/// # Errors
/// When it could not be made or an act could not be played.
pub async fn up(options: &DemoOptions, say: Say<'_>) -> Result<Scorecard> {
    preflight(options)?;
    let _lock = lock()?;
    let earlier = traces::remove(&options.dir)
        .await
        .context("removing an earlier demo")?;
    if earlier != Removed::default() {
        say("removed the earlier demo");
    }
    make_images(say).await?;
    traces::claim(&options.dir)?;
    let played = tokio::select! {
        played = play(options, say) => played,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
    };
    played.with_context(|| {
        let logs = options.dir.join("*/log").display().to_string();
        format!("the demo is left as it is (logs: {logs}); `selvedge demo down` removes it")
    })
}

/// Removes every trace of a demo, whole, half-made or none.
///
/// # Errors
/// When something of the demo could not be removed, with its name.
pub async fn down(options: &DemoOptions) -> Result<Removed> {
    if !is_root() {
        bail!("only root can remove a demo: try sudo selvedge demo down");
    }
    let removed = traces::remove(&options.dir).await?;
    std::fs::remove_file(LOCK).ok();
    Ok(removed)
}

async fn make_images(say: Say<'_>) -> Result<()> {
    for recipe in [&images::WEB, &images::API] {
        if !recipe.is_cached() {
            say(&format!(
                "making the image {} from Debian packages",
                recipe.name
            ));
        }
        recipe.make().await?;
    }
    Ok(())
}

async fn play(options: &DemoOptions, say: Say<'_>) -> Result<Scorecard> {
    let began = Instant::now();
    let nodes: Vec<_> = Host::nodes(options.nodes)
        .into_iter()
        .map(|host| Node::new(host, &options.dir))
        .collect::<Result<_>>()?;
    let mut hosts: Vec<_> = nodes.iter().map(|n| n.host.clone()).collect();
    hosts.push(Host::registry());
    hosts::make(&hosts).await?;
    images::start_registry(&options.dir).await?;
    for recipe in [&images::WEB, &images::API] {
        recipe.push().await?;
    }
    let mut stage = acts::Stage::new(nodes, say);
    stage.play().await?;
    let mut card = stage.card;
    acts::time_limit(&mut card, began.elapsed());
    Ok(card)
}

/// What to type next, for the end of the output.
#[must_use]
pub fn next_steps(options: &DemoOptions) -> Vec<String> {
    let doors = Host::nodes(options.nodes);
    let first = doors
        .first()
        .map_or_else(String::new, |h| h.address.to_string());
    let last = doors
        .last()
        .map_or_else(String::new, |h| h.address.to_string());
    vec![
        format!("curl -H 'Host: web.{ORIGIN}' http://{last}/"),
        format!("dig @{first} web.{ORIGIN} +short"),
        "selvedge status".to_owned(),
        "selvedge get instances".to_owned(),
        "selvedge explain service/web".to_owned(),
        "selvedge logs web".to_owned(),
        "selvedge demo down".to_owned(),
    ]
}

fn preflight(options: &DemoOptions) -> Result<()> {
    if !is_root() {
        bail!("the demo makes network namespaces and containers: run it as root");
    }
    if !(1..=hosts::MAX_NODES).contains(&options.nodes) {
        bail!(
            "a demo has 1 to {} nodes, not {}",
            hosts::MAX_NODES,
            options.nodes
        );
    }
    if !options.dir.is_absolute() {
        bail!("--dir must be absolute, `{}` is not", options.dir.display());
    }
    let daemon = std::env::current_exe()?.with_file_name("selvedged");
    if !daemon.exists() {
        bail!(
            "{} is not there: selvedge and selvedged are one package",
            daemon.display()
        );
    }
    let missing: Vec<_> = TOOLS
        .iter()
        .filter(|(t, _)| !in_path(t))
        .map(|(_, p)| *p)
        .collect();
    if !missing.is_empty() {
        bail!("missing programs: apt-get install {}", missing.join(" "));
    }
    Ok(())
}

fn in_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let administrators = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(administrators)
        .any(|dir| dir.join(program).exists())
}

/// Root, as /proc tells it: there is no safe call for it in the libraries at hand.
fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0)
}

fn lock() -> Result<File> {
    let file = File::create(Path::new(LOCK)).with_context(|| format!("opening {LOCK}"))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(_) => bail!("another demo is being made on this machine"),
    }
}

/// Long enough for a busy machine, short enough to fail before a person gives up.
const PATIENCE: Duration = Duration::from_mins(1);
