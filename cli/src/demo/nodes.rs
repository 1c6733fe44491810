//! The demo's nodes as an operator handles them: by the real `selvedge` command inside their host,
//! and by `kill -9`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use netfabric::wire::api::{InstanceView, Status, TokenResponse};
use tokio::time::sleep;

use super::hosts::{CGROUP, Host};
use super::shell::Run;
use super::{ORIGIN, http, images};

const MESH_PORT: u16 = 8422;
/// Making keys, writing a configuration, starting a daemon, on a busy machine.
const STARTING: Duration = Duration::from_mins(1);
const PACE: Duration = Duration::from_millis(50);

#[derive(Debug, Clone)]
pub(super) struct Node {
    pub host: Host,
    dir: PathBuf,
    program: PathBuf,
}

impl Node {
    pub fn new(host: Host, demo: &Path) -> Result<Self> {
        let program = std::env::current_exe().context("finding this program")?;
        Ok(Self {
            dir: demo.join(&host.name),
            host,
            program,
        })
    }

    /// The daemon is in the same package as the command line.
    pub fn daemon(&self) -> PathBuf {
        self.program.with_file_name("selvedged")
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.join("run/api.sock")
    }

    fn config(&self) -> PathBuf {
        self.dir.join("selvedge.toml")
    }

    /// Its front door.
    pub fn door(&self) -> SocketAddr {
        (self.host.address, 80).into()
    }

    /// `selvedge VERB…` talking to this node.
    pub fn cli(&self, verb: &[&str]) -> Run {
        let mut addr = std::ffi::OsString::from("unix:");
        addr.push(self.socket());
        Run::new(&self.program)
            .arg("--addr")
            .arg(addr)
            .args(verb)
            .within(STARTING * 3)
    }

    /// Starts a cluster with this node; returns the address and token others join with.
    pub async fn up(&self) -> Result<(String, String)> {
        let said = self.enrol(&["up"], None).await?;
        join_line(&said).with_context(|| format!("`selvedge up` printed no join line:\n{said}"))
    }

    pub async fn join(&self, address: &str, token: &str) -> Result<()> {
        self.enrol(&["join", address], Some(token)).await?;
        Ok(())
    }

    /// The token goes by the environment: command lines are shown in errors and process lists.
    async fn enrol(&self, verb: &[&str], token: Option<&str>) -> Result<String> {
        let host = &self.host;
        let cgroup = format!("/{CGROUP}/{}", host.name);
        let advertise = format!("{}:{MESH_PORT}", host.address);
        let run = host.run(&self.program).args(verb);
        let run = run.args(["--name", &host.name, "--region", host.region()]);
        let run = run.args(["--zone", &host.zone(), "--advertise", &advertise]);
        let run = run
            .arg("--data")
            .arg(&self.dir)
            .arg("--config")
            .arg(self.config());
        let run = run.args(["--origin", ORIGIN, "--http", ":80", "--dns", ":53"]);
        let run = run.args([
            "--cgroup",
            &cgroup,
            "--registry-insecure",
            &images::address(),
        ]);
        // What a node's own operator would keep is not this machine's operator's.
        let run = token
            .into_iter()
            .fold(run, |run, t| run.env("SELVEDGE_TOKEN", t));
        run.env("XDG_CONFIG_HOME", &self.dir)
            .within(STARTING)
            .ok()
            .await
            .with_context(|| format!("starting node {}", host.name))
    }

    pub async fn token(&self) -> Result<TokenResponse> {
        let text = self.cli(&["-o", "json", "token", "create"]).ok().await?;
        serde_json::from_str(&text).context("reading the join token")
    }

    pub async fn status(&self) -> Result<Status> {
        http::api(&self.socket(), "/v1/status").await
    }

    /// Instances as this node knows them, those of lost nodes included.
    pub async fn instances(&self) -> Result<Vec<InstanceView>> {
        http::api(&self.socket(), "/v1/instances").await
    }

    /// The daemon's process, not its shims.
    pub fn pid(&self) -> Option<i32> {
        let config = self.config();
        super::traces::processes().find_map(|process| {
            let words = process.words();
            let ours = words.iter().any(|word| Path::new(word) == config);
            let shim = words.iter().any(|word| word == "shim");
            (ours && !shim && process.runs("selvedged")).then_some(process.pid)
        })
    }

    /// `kill -9` of the daemon; its containers and shims live on.
    pub fn kill(&self) -> Result<()> {
        let Some(pid) = self.pid() else {
            bail!("no daemon of {} is running", self.host.name)
        };
        super::traces::kill_9(pid).with_context(|| format!("killing {}", self.host.name))
    }

    /// Starts the daemon again, as its supervisor would, and waits until it answers.
    pub async fn restart(&self) -> Result<()> {
        let log_dir = self.dir.join("log");
        std::fs::create_dir_all(&log_dir)?;
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(log_dir.join("selvedged.log"))?;
        let netns = format!("--net=/run/netns/{}", self.host.netns());
        let mut child = tokio::process::Command::new("setsid")
            .args(["nsenter", &netns, "--"])
            .arg(self.daemon())
            .arg("--config")
            .arg(self.config())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("starting selvedged")?;
        let began = Instant::now();
        while self.status().await.is_err() {
            if let Some(status) = child.try_wait()? {
                bail!("selvedged of {} ended: {status}", self.host.name);
            }
            if began.elapsed() > STARTING {
                bail!("{} does not answer again", self.host.name);
            }
            sleep(PACE).await;
        }
        Ok(())
    }
}

/// Address and token out of `… selvedge join ADDRESS --token TOKEN …`.
fn join_line(text: &str) -> Option<(String, String)> {
    let words: Vec<_> = text.split_whitespace().collect();
    words.windows(4).find_map(|w| match w {
        ["join", address, "--token", token] => Some(((*address).to_owned(), (*token).to_owned())),
        _ => None,
    })
}

/// Waits until `check` gives a value; errors of `check` are asked again until the deadline.
pub(super) async fn until<T, F>(what: &str, deadline: Duration, mut check: F) -> Result<T>
where
    F: AsyncFnMut() -> Result<Option<T>>,
{
    let began = Instant::now();
    loop {
        let last = match check().await {
            Ok(Some(value)) => return Ok(value),
            Ok(None) => None,
            Err(error) => Some(error),
        };
        if began.elapsed() > deadline {
            let late = format!("{what}: not within {} s", deadline.as_secs());
            return Err(match last {
                Some(error) => error.context(late),
                None => anyhow::Error::msg(late),
            });
        }
        sleep(PACE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_join_line_is_found() {
        let said = "cluster abc is up\n\n  selvedge join 10.77.0.11:8422 --token sv1.abc\n";
        let found = Some(("10.77.0.11:8422".to_owned(), "sv1.abc".to_owned()));
        assert_eq!(join_line(said), found);
        assert_eq!(join_line("nothing"), None);
    }

    #[tokio::test]
    async fn until_gives_up_with_the_last_error() {
        let mut turns = 0;
        let three = until("three", Duration::from_secs(5), async || {
            turns += 1;
            Ok((turns == 3).then_some(turns))
        });
        assert_eq!(three.await.unwrap(), 3);
        let never = until("never", Duration::ZERO, async || bail!("why"));
        let error: Result<()> = never.await;
        assert_eq!(
            format!("{:#}", error.unwrap_err()),
            "never: not within 0 s: why"
        );
    }
}
