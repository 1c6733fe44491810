//! The server's book of the load's requests it began to serve: lines on its stdout, which the node
//! keeps as the instance's log. Both the writing and the reading of a line are here.
//!
//! A line is `ids G3.17 P3.18`: a GET of client 3 with number 17, a POST of it with number 18. It is
//! written before the request is handled, so that a process that is killed leaves no request out;
//! what arrives in the same turn of the event loop shares a line, so that a busy server does not pay
//! for a line a request.

use std::fmt::{self, Write as _};
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Error, Result};
use serde::{Deserialize, Serialize};

/// The header with the id.
pub const LOAD_ID: &str = "x-load-id";
const WORD: &str = "ids";
/// The node cuts lines at 16 KiB; an id has at most 23 characters.
const LINE_LIMIT: usize = 8 << 10;

/// A request of a load: which client sent it, and its number there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LoadId {
    pub client: u32,
    pub sequence: u32,
}

impl fmt::Display for LoadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.client, self.sequence)
    }
}

impl FromStr for LoadId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (client, sequence) = text.split_once('.').context("not like 3.17")?;
        Ok(Self {
            client: client.parse()?,
            sequence: sequence.parse()?,
        })
    }
}

/// Whether a request may be served twice (GET) or must not (POST).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Method {
    #[serde(rename = "GET")]
    Get,
    #[serde(rename = "POST")]
    Post,
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Get => "GET",
            Self::Post => "POST",
        })
    }
}

/// The line that is being written.
#[derive(Debug, Default)]
pub(super) struct Served(Mutex<String>);

impl Served {
    /// Writes this request down; it is on stdout when this returns.
    pub async fn note(&self, method: Method, id: LoadId) {
        let full = {
            let mut line = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            append(&mut line, method, id);
            line.len() > LINE_LIMIT
        };
        if !full {
            // Whoever else is ready now joins the line; the first to come back writes it.
            tokio::task::yield_now().await;
        }
        let line = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        if !line.is_empty() {
            println!("{line}");
        }
    }
}

fn append(line: &mut String, method: Method, id: LoadId) {
    if line.is_empty() {
        line.push_str(WORD);
    }
    let letter = match method {
        Method::Get => 'G',
        Method::Post => 'P',
    };
    // Writing to memory cannot fail.
    let _ = write!(line, " {letter}{id}");
}

/// The requests of a line of a log; none when it is about something else.
pub fn read(line: &str) -> Result<Vec<(Method, LoadId)>> {
    let mut words = line.split(' ');
    if words.next() != Some(WORD) {
        return Ok(Vec::new());
    }
    let one = |word: &str| {
        let (method, id) = match word.split_at_checked(1) {
            Some(("G", id)) => (Method::Get, id),
            Some(("P", id)) => (Method::Post, id),
            _ => anyhow::bail!("no method in `{word}`"),
        };
        Ok((method, id.parse().with_context(|| word.to_owned())?))
    };
    words.map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let id = |sequence| LoadId {
            client: 3,
            sequence,
        };
        let all = [(Method::Get, id(17)), (Method::Post, id(u32::MAX))];
        let mut line = String::new();
        for (method, id) in all {
            append(&mut line, method, id);
        }
        assert_eq!(line, "ids G3.17 P3.4294967295");
        assert_eq!(read(&line).unwrap(), all);
        assert_eq!(read("GET / 200 OK").unwrap(), []);
        for broken in ["ids 3.17", "ids G3", "ids G3.x", "ids "] {
            assert!(read(broken).is_err(), "{broken}");
        }
    }
}
