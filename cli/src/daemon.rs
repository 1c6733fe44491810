//! Starting `selvedged` and seeing it come up. It outlives this command.

use std::ffi::OsString;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use anyhow::Context;
use http::Method;
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep, timeout};

use crate::args::NodeFlags;
use crate::client::{Client, ClientError, DEFAULT_SOCKET, Target};
use crate::failure::{Exit, Failure};
use crate::files;
use crate::printer::Printer;

/// For the daemon to answer its API.
const HEALTHY_WITHIN: Duration = Duration::from_secs(20);
const PACE: Duration = Duration::from_millis(100);
/// For `systemctl` to do what it is told.
const SYSTEMCTL: Duration = Duration::from_secs(30);
/// Lines of the daemon's log that are shown when it fails.
const LOG_LINES: usize = 12;
const LOG_TAIL_BYTES: u64 = 16 * 1024;

const UNIT: &str = "selvedged.service";
const UNIT_FOLDERS: [&str; 3] = [
    "/etc/systemd/system",
    "/lib/systemd/system",
    "/usr/lib/systemd/system",
];
/// The configuration the unit starts with.
const UNIT_CONFIG: &str = "/etc/selvedge/selvedge.toml";

/// A daemon that was started.
pub struct Daemon {
    /// None when systemd keeps it.
    child: Option<Child>,
    log: PathBuf,
}

impl Daemon {
    /// Starts it in the background, or as this command's child with `--foreground`.
    pub async fn start(flags: &NodeFlags) -> anyhow::Result<Self> {
        let log = flags.data.join("log/selvedged.log");
        if !flags.foreground && has_unit(&flags.config) {
            systemctl("start").await?;
            return Ok(Self { child: None, log });
        }
        let binary = binary();
        let child = if flags.foreground {
            let mut command = Command::new(&binary);
            command
                .arg("--config")
                .arg(&flags.config)
                .stdin(Stdio::null())
                .spawn()
        } else {
            detached(&binary, &flags.config, &log)?
        };
        let child = child.map_err(|error| not_started(&binary, &error))?;
        Ok(Self {
            child: Some(child),
            log,
        })
    }

    /// Waits until its API answers; when it does not, its last words are in the failure.
    pub async fn healthy(&mut self, client: &Client) -> Result<(), Failure> {
        let until = Instant::now() + HEALTHY_WITHIN;
        loop {
            if let Some(status) = self.ended() {
                return Err(self.last_words(format!("selvedged ended at once ({status})")));
            }
            match client.change(Method::GET, "/v1/healthz").await {
                Ok(()) => return Ok(()),
                Err(error) if Instant::now() >= until => {
                    let seconds = HEALTHY_WITHIN.as_secs();
                    let message = format!("selvedged is not up after {seconds} s: {error}");
                    return Err(self.last_words(message));
                }
                Err(_) => sleep(PACE).await,
            }
        }
    }

    /// Asks until the answer satisfies, for as long as a daemon may take to come up.
    pub async fn until<T>(
        &mut self,
        what: &str,
        mut ask: impl AsyncFnMut() -> Result<Option<T>, ClientError>,
    ) -> Result<T, Failure> {
        let until = Instant::now() + HEALTHY_WITHIN;
        loop {
            let missing = match ask().await {
                Ok(Some(answer)) => return Ok(answer),
                Ok(None) => String::new(),
                Err(error) if error.is_passing() => format!(": {error}"),
                Err(error) => return Err(error.into()),
            };
            if let Some(status) = self.ended() {
                return Err(self.last_words(format!("selvedged ended ({status}) before {what}")));
            }
            if Instant::now() >= until {
                let mut failure =
                    self.last_words(format!("{what} did not happen in time{missing}"));
                failure.exit = Exit::WaitTimedOut;
                return Err(failure);
            }
            sleep(PACE).await;
        }
    }

    fn ended(&mut self) -> Option<std::process::ExitStatus> {
        self.child
            .as_mut()
            .and_then(|child| child.try_wait().ok().flatten())
    }

    fn last_words(&self, message: String) -> Failure {
        let (lines, hint) = match &self.child {
            None => (Vec::new(), format!("journalctl -u {UNIT} -n 50")),
            Some(_) => (
                tail(&self.log),
                format!("the whole log: {}", self.log.display()),
            ),
        };
        Failure::new(Exit::Failed, message)
            .details(lines)
            .hint(hint)
    }

    /// Ends a daemon that did not come up.
    pub async fn stop(mut self) {
        // It is given up: that it was gone already is as good.
        match &mut self.child {
            Some(child) => drop(child.kill().await),
            None => drop(systemctl("stop").await),
        }
    }

    /// Stays until the daemon ends, passing on the wish to end.
    pub async fn attend(mut self) -> anyhow::Result<ExitCode> {
        let Some(child) = &mut self.child else {
            return Ok(ExitCode::SUCCESS);
        };
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        loop {
            tokio::select! {
                status = child.wait() => {
                    return Ok(if status?.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
                }
                _ = terminate.recv() => end(child).await,
                _ = interrupt.recv() => end(child).await,
            }
        }
    }
}

/// Sends SIGTERM, for which the standard library has no word.
async fn end(child: &Child) {
    if let Some(pid) = child.id() {
        // Without `kill` the signal does not arrive; the next one may.
        let _ = Command::new("kill")
            .arg("-TERM")
            .arg(pid.to_string())
            .status()
            .await;
    }
}

/// The daemon beside this program, else the one in PATH.
fn binary() -> OsString {
    let beside = std::env::current_exe()
        .ok()
        .map(|me| me.with_file_name("selvedged"));
    beside
        .filter(|path| path.is_file())
        .map_or_else(|| "selvedged".into(), PathBuf::into_os_string)
}

/// In a session of its own, so that a closed terminal does not end it.
fn detached(
    binary: &OsString,
    config: &Path,
    log: &Path,
) -> anyhow::Result<std::io::Result<Child>> {
    if let Some(folder) = log.parent() {
        files::private_folder(folder)
            .with_context(|| format!("cannot make {}", folder.display()))?;
    }
    let out = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(log);
    let out = out.with_context(|| format!("cannot write {}", log.display()))?;
    let mut command = Command::new("setsid");
    command.arg(binary).arg("--config").arg(config);
    command
        .stdin(Stdio::null())
        .stdout(out.try_clone()?)
        .stderr(out);
    Ok(command.spawn())
}

fn not_started(binary: &OsString, error: &std::io::Error) -> Failure {
    let message = format!("cannot start {}: {error}", binary.to_string_lossy());
    Failure::new(Exit::Failed, message).hint("selvedged belongs beside selvedge, or in PATH")
}

fn has_unit(config: &Path) -> bool {
    let booted = Path::new("/run/systemd/system").is_dir();
    booted
        && config == Path::new(UNIT_CONFIG)
        && UNIT_FOLDERS
            .iter()
            .any(|folder| Path::new(folder).join(UNIT).exists())
}

async fn systemctl(verb: &str) -> anyhow::Result<()> {
    let run = Command::new("systemctl")
        .arg(verb)
        .arg(UNIT)
        .stdin(Stdio::null())
        .output();
    let output = timeout(SYSTEMCTL, run)
        .await
        .context("systemctl does not answer")??;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    let message = format!("systemctl {verb} {UNIT} failed");
    Err(Failure::new(Exit::Failed, message)
        .details(vec![said])
        .hint(format!("journalctl -u {UNIT} -n 50"))
        .into())
}

/// The last lines of a file; none when it cannot be read.
fn tail(path: &Path) -> Vec<String> {
    let read = || {
        let mut file = std::fs::File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok::<_, std::io::Error>(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines
        .iter()
        .skip(lines.len().saturating_sub(LOG_LINES))
        .map(|line| format!("| {line}"))
        .collect()
}

/// Says how to reach a node whose socket is not where commands look by themselves.
pub fn hint_address(data: &Path, out: Printer) {
    let socket = data.join("run/api.sock");
    if socket != Path::new(DEFAULT_SOCKET) {
        out.hint(&format!(
            "talk to this node: export SELVEDGE_ADDR=unix:{}",
            socket.display()
        ));
    }
}

/// The API of the node whose data is in `data`.
pub fn client(data: &Path) -> Client {
    Client::new(Target::Unix(data.join("run/api.sock")), None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_of_a_log() {
        let path = std::env::temp_dir().join(format!("selvedge-tail-{}", std::process::id()));
        let lines: Vec<String> = (0..50).map(|n| format!("line {n}")).collect();
        std::fs::write(&path, lines.join("\n")).unwrap();
        let lines = tail(&path);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(lines.len(), LOG_LINES);
        assert_eq!(lines.last().map(String::as_str), Some("| line 49"));
        assert!(tail(Path::new("/nowhere/at/all")).is_empty());
    }
}
