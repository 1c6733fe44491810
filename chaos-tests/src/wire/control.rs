//! The control socket's language, a line of JSON each way, and one connection's side of it.

use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use super::{Counts, Link};

/// A request names ports; all of them fit well.
const MAX_LINE: usize = 64 << 10;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Makes a TAP device of this name in the wire's namespace, and a port behind it.
    Plug {
        port: String,
        device: String,
    },
    /// Takes a port and its device away.
    Unplug {
        port: String,
    },
    /// Sets every link from one of these ports to one of those.
    Set {
        from: Vec<String>,
        to: Vec<String>,
        link: Link,
    },
    /// Cuts or heals links and leaves the rest of their settings as they are.
    Up {
        from: Vec<String>,
        to: Vec<String>,
        up: bool,
    },
    /// Every link as the preset has it.
    Reset,
    Get {
        from: String,
        to: String,
    },
    Stats,
}

impl Request {
    /// Whether the log tells of it.
    pub(super) fn changes(&self) -> bool {
        !matches!(self, Self::Get { .. } | Self::Stats)
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Answer {
    Done,
    Link(Link),
    Stats(Vec<LinkStats>),
    Refused(String),
}

/// One link: how it is and what it has seen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LinkStats {
    pub from: String,
    pub to: String,
    pub link: Link,
    pub counts: Counts,
}

/// A line of the log: what was changed, and when in seconds since the wire began.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    pub at: f64,
    pub did: Request,
}

/// A client's connection, as the wire sees it: it never waits for the client.
pub(super) struct Connection {
    pub stream: UnixStream,
    heard: Vec<u8>,
    owed: Vec<u8>,
}

impl Connection {
    pub fn new(stream: UnixStream) -> Result<Self> {
        stream.set_nonblocking(true)?;
        let (heard, owed) = (Vec::new(), Vec::new());
        Ok(Self {
            stream,
            heard,
            owed,
        })
    }

    /// Whether it waits for the client to read, not to write.
    pub fn owes(&self) -> bool {
        !self.owed.is_empty()
    }

    /// Reads, serves whole lines and answers; whether the connection lives on.
    pub fn turn(&mut self, mut serve: impl FnMut(Request) -> Answer) -> Result<bool> {
        if !self.owes() {
            let open = self.hear()?;
            while let Some(end) = self.heard.iter().position(|b| *b == b'\n') {
                let line: Vec<_> = self.heard.drain(..=end).collect();
                let answer = match serde_json::from_slice(&line) {
                    Ok(request) => serve(request),
                    Err(error) => Answer::Refused(format!("not understood: {error}")),
                };
                serde_json::to_writer(&mut self.owed, &answer)?;
                self.owed.push(b'\n');
            }
            if !open {
                return Ok(false);
            }
        }
        self.pay()
    }

    /// Whether the client may say more.
    fn hear(&mut self) -> Result<bool> {
        let mut part = [0; 4096];
        loop {
            match self.stream.read(&mut part) {
                Ok(0) => return Ok(false),
                Ok(read) => self.heard.extend_from_slice(&part[..read]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
                Err(error) => return Err(error.into()),
            }
            ensure!(self.heard.len() <= MAX_LINE, "a line without an end");
        }
    }

    fn pay(&mut self) -> Result<bool> {
        while self.owes() {
            match self.stream.write(&self.owed) {
                Ok(0) => return Ok(false),
                Ok(written) => drop(self.owed.drain(..written)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_serves_whole_lines_and_refuses_nonsense() {
        let (mut client, server) = UnixStream::pair().unwrap();
        let mut connection = Connection::new(server).unwrap();
        let mut served = Vec::new();
        let mut turn = |connection: &mut Connection| {
            connection.turn(|request| {
                served.push(request);
                Answer::Done
            })
        };
        client.write_all(b"\"reset\"\n\"sta").unwrap();
        assert!(turn(&mut connection).unwrap());
        client.write_all(b"ts\"\n{\"surprise\":1}\n").unwrap();
        assert!(turn(&mut connection).unwrap());
        client.shutdown(std::net::Shutdown::Write).unwrap();
        assert!(!turn(&mut connection).unwrap(), "the client has left");
        drop(connection);
        let mut said = String::new();
        client.read_to_string(&mut said).unwrap();
        let said: Vec<_> = said.lines().collect();
        assert_eq!(said[..2], ["\"done\"", "\"done\""]);
        assert!(
            said.len() == 3 && said[2].contains("not understood"),
            "{said:?}"
        );
        assert_eq!(served, [Request::Reset, Request::Stats]);

        let (mut client, server) = UnixStream::pair().unwrap();
        let mut connection = Connection::new(server).unwrap();
        client.write_all(&vec![b' '; 100_000]).unwrap();
        assert!(
            connection.turn(|_| Answer::Done).is_err(),
            "a line without an end"
        );
    }
}
