//! Running programs and keeping what they said, for assertions that show it.

use std::ffi::OsStr;
use std::fmt;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

/// What a program left behind.
#[derive(Debug, Clone)]
pub struct Outcome {
    pub shown: String,
    pub code: i32,
    pub out: String,
    pub err: String,
    pub took: Duration,
}

impl Outcome {
    /// Itself when it ended well.
    pub fn ok(self) -> Result<Self> {
        self.code(0)
    }

    /// Itself when it ended with `code`.
    pub fn code(self, code: i32) -> Result<Self> {
        ensure!(self.code == code, "expected exit code {code}: {self}");
        Ok(self)
    }

    /// Itself when stdout or stderr contains `text`, whatever the case of letters.
    pub fn says(self, text: &str) -> Result<Self> {
        let all = format!("{}\n{}", self.out, self.err).to_lowercase();
        ensure!(
            all.contains(&text.to_lowercase()),
            "expected to read `{text}`: {self}"
        );
        Ok(self)
    }

    /// Its stdout as JSON.
    pub fn json(self) -> Result<serde_json::Value> {
        serde_json::from_str(&self.out).with_context(|| format!("expected JSON: {self}"))
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            shown,
            code,
            out,
            err,
            took,
        } = self;
        write!(
            f,
            "`{shown}` ended with {code} after {took:?}\n--- stdout\n{out}\n--- stderr\n{err}"
        )
    }
}

/// Runs `program` and waits for its end; the caller's timeout program bounds it where it may hang.
pub fn run<S: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = S>) -> Result<Outcome> {
    run_with(Command::new(program).args(args), "")
}

/// Runs a prepared command with `input` on its stdin.
pub fn run_with(command: &mut Command, input: &str) -> Result<Outcome> {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<_> = words.map(|w| w.to_string_lossy().into_owned()).collect();
    let shown = words.join(" ");
    let began = Instant::now();
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("running `{shown}`"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that does not read its input says why by its exit code.
        stdin.write_all(input.as_bytes()).ok();
    }
    let output = child
        .wait_with_output()
        .with_context(|| format!("running `{shown}`"))?;
    Ok(Outcome {
        shown,
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
        took: began.elapsed(),
    })
}

/// Asks `check` again and again until it gives a value; its last error or refusal is told when
/// the deadline comes first.
pub fn until<T>(
    what: &str,
    deadline: Duration,
    mut check: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    const PACE: Duration = Duration::from_millis(50);
    let began = Instant::now();
    loop {
        let last = match check() {
            Ok(Some(value)) => return Ok(value),
            Ok(None) => "not yet".to_owned(),
            Err(error) => format!("{error:#}"),
        };
        ensure!(
            began.elapsed() < deadline,
            "{what}: not within {deadline:?}: {last}"
        );
        std::thread::sleep(PACE);
    }
}
