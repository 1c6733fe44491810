//! What leaves the command: data to stdout, in the asked form; progress, hints and errors to
//! stderr. Nothing else in this crate prints.

use std::io::{self, Write};

use netfabric::wire::api::LogLine;
use scheduler::model::{Name, UnixMs};
use serde::Serialize;

use crate::args::{Color, Format};
use crate::failure::Failure;
use crate::output::{self, Row, View};

const RED: &str = "\x1b[1;31m";
const CYAN: &str = "\x1b[36m";
const DIM: &str = "\x1b[2m";
const PLAIN: &str = "\x1b[0m";

#[derive(Debug, Clone, Copy)]
pub struct Printer {
    pub format: Format,
    quiet: bool,
}

impl Printer {
    pub fn new(format: Format, quiet: bool, color: Color) -> Self {
        match color {
            Color::Auto => anstream::ColorChoice::Auto,
            Color::Always => anstream::ColorChoice::Always,
            Color::Never => anstream::ColorChoice::Never,
        }
        .write_global();
        Self { format, quiet }
    }

    /// Many things of a kind, in the asked form.
    pub fn list<T: Row + Serialize>(self, items: &[T], namespaced: bool) -> anyhow::Result<()> {
        let view = View {
            wide: self.format == Format::Wide,
            namespaced,
            now: now(),
        };
        match self.format {
            Format::Table | Format::Wide if items.is_empty() => {
                self.hint(&format!("no {} here", T::PLURAL));
            }
            Format::Table | Format::Wide => line(output::table(items, &view))?,
            Format::Name => {
                for item in items {
                    line(format!("{}/{}", T::KIND, item.name()))?;
                }
            }
            Format::Json | Format::Yaml => self.value(&items)?,
        }
        Ok(())
    }

    /// One thing, in the asked form.
    pub fn one<T: Row + Serialize>(self, item: &T) -> anyhow::Result<()> {
        match self.format {
            Format::Json | Format::Yaml => self.value(item),
            _ => self.list(std::slice::from_ref(item), false),
        }
    }

    /// One thing as JSON or YAML, or else as the text made for people.
    pub fn text_or<T: Serialize>(
        self,
        value: &T,
        name: impl FnOnce() -> String,
        text: impl FnOnce(UnixMs) -> String,
    ) -> anyhow::Result<()> {
        match self.format {
            Format::Json | Format::Yaml => self.value(value)?,
            Format::Name => line(name())?,
            Format::Table | Format::Wide => line(text(now()).trim_end())?,
        }
        Ok(())
    }

    /// A value as YAML when asked for, else as JSON.
    pub fn value<T: Serialize>(self, value: &T) -> anyhow::Result<()> {
        let json = serde_json::to_value(value)?;
        if self.format == Format::Yaml {
            line(output::yaml(&json).trim_end())?;
        } else {
            line(serde_json::to_string_pretty(&json)?)?;
        }
        Ok(())
    }

    /// Whether data is meant for programs.
    pub fn is_data(self) -> bool {
        matches!(self.format, Format::Json | Format::Yaml | Format::Name)
    }

    pub fn log(self, entry: &LogLine, stamped: bool, many: bool) -> anyhow::Result<()> {
        if self.format == Format::Json {
            line(serde_json::to_string(entry)?)?;
        } else {
            line(output::log_line(entry, stamped, many))?;
        }
        Ok(())
    }

    /// What goes on. Silent with `--quiet`.
    pub fn progress(self, text: &str) {
        if !self.quiet {
            stderr(text);
        }
    }

    /// What to know or do next. Silent with `--quiet`.
    pub fn hint(self, text: &str) {
        if !self.quiet {
            stderr(&format!("{DIM}{text}{PLAIN}"));
        }
    }

    /// Says which nodes have no part in what is shown, because they did not answer.
    pub fn missing(self, nodes: &[Name]) {
        let names: Vec<&str> = nodes.iter().map(Name::as_str).collect();
        if !names.is_empty() {
            let names = names.join(", ");
            self.hint(&format!("no answer from {names}: their part is missing"));
        }
    }
}

/// One line of data.
pub fn line(text: impl AsRef<str>) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_ref().as_bytes())?;
    out.write_all(b"\n")?;
    out.flush()
}

/// Another program's output, as it is.
pub fn raw_out(bytes: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)?;
    out.flush()
}

pub fn raw_err(bytes: &[u8]) -> io::Result<()> {
    io::stderr().lock().write_all(bytes)
}

/// A question, without a line's end.
pub fn ask(text: &str) {
    let mut err = anstream::stderr().lock();
    // Nobody is left to tell when stderr is closed.
    let _ = write!(err, "{text} ");
    let _ = err.flush();
}

/// Prints a failure: what, the details indented, then what to type next.
pub fn failure(failure: &Failure) {
    let mut lines = failure.message.lines();
    stderr(&format!(
        "{RED}error:{PLAIN} {}",
        lines.next().unwrap_or_default()
    ));
    for line in lines {
        stderr(line);
    }
    for line in failure.details.iter().flat_map(|detail| detail.lines()) {
        stderr(&format!("  {line}"));
    }
    if !failure.hint.is_empty() {
        stderr(&format!("{CYAN}hint:{PLAIN} {}", failure.hint));
    }
}

fn stderr(text: &str) {
    // Nobody is left to tell when stderr is closed.
    let _ = writeln!(anstream::stderr().lock(), "{text}");
}

/// The wall clock, for ages.
pub fn now() -> UnixMs {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    UnixMs(since.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX)))
}
