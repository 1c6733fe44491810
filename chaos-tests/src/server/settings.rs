//! What the environment sets: how the server begins, and how it ends.
//!
//! | variable | meaning |
//! | --- | --- |
//! | `PORT` | where it listens, 8080 unless set |
//! | `BOX_IGNORE_TERM` | `1`: SIGTERM does nothing |
//! | `BOX_START_DELAY` | `2s`: so long nothing listens |
//! | `BOX_CRASH_AFTER` | `100`: the request after so many ends the process instead of being answered |
//! | `BOX_EXIT_CODE` | the code with which it ends, by SIGTERM (else 0) or a crash (else 1) |

use std::time::Duration;

use anyhow::{Context as _, Result};

use super::behaviour::duration;

const PORT: u16 = 8080;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    pub port: u16,
    pub ignore_term: bool,
    pub start_delay: Duration,
    pub crash_after: Option<u64>,
    pub exit_code: Option<u8>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            port: PORT,
            ignore_term: false,
            start_delay: Duration::ZERO,
            crash_after: None,
            exit_code: None,
        }
    }
}

impl Settings {
    /// From variables as `lookup` gives them.
    pub fn read(lookup: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let number = |name: &str| {
            let text = lookup(name);
            let parsed = text.map(|t| t.parse::<u64>().with_context(|| format!("{name}={t}")));
            parsed.transpose()
        };
        let delay = lookup("BOX_START_DELAY");
        let delay = delay.map(|text| duration(&text).with_context(|| "BOX_START_DELAY"));
        let port = number("PORT")?.map(u16::try_from).transpose();
        let code = number("BOX_EXIT_CODE")?.map(u8::try_from).transpose();
        Ok(Self {
            port: port.context("PORT")?.unwrap_or(PORT),
            ignore_term: lookup("BOX_IGNORE_TERM").is_some_and(|text| text == "1"),
            start_delay: delay.transpose()?.unwrap_or_default(),
            crash_after: number("BOX_CRASH_AFTER")?,
            exit_code: code.context("BOX_EXIT_CODE")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Settings> {
        Settings::read(|name| {
            let found = variables.iter().find(|(n, _)| *n == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn the_environment_sets_begin_and_end() {
        assert_eq!(read(&[]).unwrap(), Settings::default());
        let all = [
            ("PORT", "9000"),
            ("BOX_IGNORE_TERM", "1"),
            ("BOX_START_DELAY", "1500ms"),
            ("BOX_CRASH_AFTER", "7"),
            ("BOX_EXIT_CODE", "42"),
        ];
        let expected = Settings {
            port: 9000,
            ignore_term: true,
            start_delay: Duration::from_millis(1500),
            crash_after: Some(7),
            exit_code: Some(42),
        };
        assert_eq!(read(&all).unwrap(), expected);
    }

    #[test]
    fn nonsense_is_refused_by_its_name() {
        for (name, value) in [
            ("PORT", "70000"),
            ("BOX_START_DELAY", "soon"),
            ("BOX_EXIT_CODE", "256"),
        ] {
            let error = format!("{:#}", read(&[(name, value)]).unwrap_err());
            assert!(error.contains(name), "{error}");
        }
    }
}
