//! What happened in a simulation, in order and with its virtual time: a digest of everything for
//! comparing two runs, and the last lines for people.

use std::collections::VecDeque;
use std::fmt::{Display, Write as _};
use std::io::Write as _;

use sha2::{Digest as _, Sha256};

use super::queue::Millis;

/// Lines kept for the report of a failing seed.
const LINES: usize = 60;

pub(super) struct Trace {
    digest: Sha256,
    lines: VecDeque<String>,
    spare: String,
    file: Option<std::fs::File>,
}

impl Trace {
    /// Every line also goes to the file that `SELVEDGE_SIM_TRACE` names.
    pub fn begin() -> Self {
        let path = std::env::var_os("SELVEDGE_SIM_TRACE");
        let open = |path| {
            std::fs::File::options()
                .create(true)
                .append(true)
                .open(path)
        };
        Self {
            digest: Sha256::new(),
            lines: VecDeque::new(),
            spare: String::new(),
            file: path.and_then(|path| open(path).ok()),
        }
    }

    pub fn note(&mut self, now: Millis, what: impl Display) {
        let mut line = std::mem::take(&mut self.spare);
        line.clear();
        // Writing into a String cannot fail.
        let _ = writeln!(line, "{now:>8} {what}");
        self.digest.update(line.as_bytes());
        if let Some(file) = &mut self.file {
            let _ = file.write_all(line.as_bytes());
        }
        if self.lines.len() == LINES {
            self.spare = self.lines.pop_front().unwrap_or_default();
        }
        self.lines.push_back(line);
    }

    /// The digest of all lines, and the last ones.
    pub fn end(self) -> (String, Vec<String>) {
        let digest = hex(&self.digest.finalize());
        (digest, self.lines.into_iter().collect())
    }
}

pub fn hex(digest: &[u8]) -> String {
    digest.iter().fold(String::new(), |mut hex, byte| {
        // Writing to memory does not fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}
