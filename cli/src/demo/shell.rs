//! Running other programs: with a deadline, output captured, and an error that shows what was run
//! and the end of what it said.

use std::ffi::{OsStr, OsString};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::timeout;

/// Enough of a program's complaint to see what is wrong.
const SHOWN_LINES: usize = 12;
/// Output beyond it is of no use to anybody and would only fill memory.
const MAX_OUTPUT: usize = 4 << 20;

/// A command about to be run.
pub(super) struct Run {
    words: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    input: Option<String>,
    deadline: Duration,
}

/// What a command left behind.
pub(super) struct Outcome {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Run {
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        Self {
            words: vec![program.as_ref().to_owned()],
            env: Vec::new(),
            input: None,
            deadline: Duration::from_secs(30),
        }
    }

    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.words.push(arg.as_ref().to_owned());
        self
    }

    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.words
            .extend(args.into_iter().map(|a| a.as_ref().to_owned()));
        self
    }

    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env
            .push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    pub fn input(mut self, text: impl Into<String>) -> Self {
        self.input = Some(text.into());
        self
    }

    pub fn within(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// As one would type it.
    fn shown(&self) -> String {
        let words: Vec<_> = self.words.iter().map(|w| w.to_string_lossy()).collect();
        words.join(" ")
    }

    /// Runs it and returns its standard output; anything but exit code 0 is an error.
    pub async fn ok(self) -> Result<String> {
        let shown = self.shown();
        let outcome = self.outcome().await?;
        if outcome.code != 0 {
            let said = if outcome.stderr.trim().is_empty() {
                &outcome.stdout
            } else {
                &outcome.stderr
            };
            bail!(
                "`{shown}` ended with code {}:\n{}",
                outcome.code,
                last_lines(said)
            );
        }
        Ok(outcome.stdout)
    }

    /// Runs it, whatever its exit code.
    pub async fn outcome(self) -> Result<Outcome> {
        let shown = self.shown();
        let Some((program, args)) = self.words.split_first() else {
            bail!("nothing to run")
        };
        let mut child = Command::new(program)
            .args(args)
            .envs(self.env)
            .stdin(if self.input.is_some() {
                Stdio::piped()
            } else {
                Stdio::null()
            })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot run `{shown}`"))?;
        let stdin = child.stdin.take();
        let input = self.input.unwrap_or_default();
        let finish = async {
            if let Some(mut stdin) = stdin {
                // A program that ended without reading tells why by its exit code.
                stdin.write_all(input.as_bytes()).await.ok();
            }
            child.wait_with_output().await
        };
        let output = timeout(self.deadline, finish)
            .await
            .with_context(|| format!("`{shown}` did not end within {:?}", self.deadline))?
            .with_context(|| format!("cannot run `{shown}`"))?;
        Ok(Outcome {
            code: output.status.code().unwrap_or(-1),
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        })
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(MAX_OUTPUT)]).into_owned()
}

pub(super) fn last_lines(text: &str) -> String {
    let lines: Vec<_> = text.trim_end().lines().collect();
    lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn output_input_codes_and_deadlines() {
        assert_eq!(Run::new("cat").input("hello").ok().await.unwrap(), "hello");
        let error = Run::new("sh")
            .args(["-c", "echo why >&2; exit 3"])
            .ok()
            .await
            .unwrap_err();
        assert!(error.to_string().contains("code 3") && error.to_string().contains("why"));
        let slow = Run::new("sleep")
            .arg("30")
            .within(Duration::from_millis(50))
            .ok()
            .await;
        assert!(slow.unwrap_err().to_string().contains("did not end"));
        assert!(Run::new("/no/such/program").ok().await.is_err());
    }
}
