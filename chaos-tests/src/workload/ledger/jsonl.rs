//! The books as lines of JSON, for a run that is looked at later: what is alike is told in ranges.

use std::io::{BufRead, Write};

use anyhow::{Context as _, Result, bail, ensure};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::backend::{BackendLedger, Served, Server};
use super::client::{ClientLedger, Entry, Failure, Kind, Second};
use super::ranges;
use crate::server::identity::Identity;
use crate::server::served::{LoadId, Method};

/// Ranges in one line.
const RANGES: usize = 1000;

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum ClientLine {
    #[serde(rename_all = "camelCase")]
    Load {
        client: u32,
        host: String,
        seed: u64,
        sent: u32,
        failures_left_out: u64,
    },
    Answerer(Identity),
    Requests {
        method: Method,
        kind: Kind,
        ranges: Vec<(u32, u32)>,
    },
    Failure(Failure),
    Second(Second),
    /// Microseconds, and how many requests took these.
    Latency(u64, u64),
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum BackendLine {
    Server(Server),
    Served {
        client: u32,
        method: Method,
        server: u32,
        ranges: Vec<(u32, u32)>,
    },
    /// Once more than the ranges say.
    Again {
        id: LoadId,
        method: Method,
        server: u32,
    },
    Gap(String),
}

impl ClientLedger {
    pub fn write(&self, mut to: impl Write) -> Result<()> {
        let mut say = |line: &ClientLine| say(&mut to, line);
        say(&ClientLine::Load {
            client: self.client,
            host: self.host.clone(),
            seed: self.seed,
            sent: u32::try_from(self.entries.len())?,
            failures_left_out: self.failures_left_out,
        })?;
        for answerer in &self.answerers {
            say(&ClientLine::Answerer(answerer.clone()))?;
        }
        let numbered = self.entries().map(|(id, entry)| (id.sequence, entry));
        for (entry, ranges) in ranges(numbered) {
            for ranges in ranges.chunks(RANGES) {
                say(&ClientLine::Requests {
                    method: entry.method(),
                    kind: entry.kind(),
                    ranges: ranges.to_vec(),
                })?;
            }
        }
        for failure in &self.failures {
            say(&ClientLine::Failure(failure.clone()))?;
        }
        for second in &self.seconds {
            say(&ClientLine::Second(*second))?;
        }
        for bucket in self.latency.iter_recorded() {
            let (micros, count) = (bucket.value_iterated_to(), bucket.count_at_value());
            say(&ClientLine::Latency(micros, count))?;
        }
        Ok(())
    }

    pub fn read(from: impl BufRead) -> Result<Self> {
        let mut lines = lines::<ClientLine>(from);
        let Some(ClientLine::Load {
            client,
            host,
            seed,
            sent,
            failures_left_out,
        }) = lines.next().transpose()?
        else {
            bail!("the book does not begin with its load");
        };
        let mut book = Self::new(client, &host, seed)?;
        book.failures_left_out = failures_left_out;
        let nothing = Entry::new(Method::Get, Kind::Pending);
        book.entries = vec![nothing; sent as usize];
        for line in lines {
            match line? {
                ClientLine::Load { .. } => bail!("two loads in one book"),
                ClientLine::Answerer(identity) => drop(book.answerer(&identity)),
                ClientLine::Requests {
                    method,
                    kind,
                    ranges,
                } => {
                    for (first, last) in ranges {
                        let range = book.entries.get_mut(first as usize..=last as usize);
                        let range = range.context("more requests than were sent")?;
                        range.fill(Entry::new(method, kind));
                    }
                }
                ClientLine::Failure(failure) => book.failures.push(failure),
                ClientLine::Second(second) => book.seconds.push(second),
                ClientLine::Latency(micros, count) => book.latency.record_n(micros, count)?,
            }
        }
        Ok(book)
    }
}

impl BackendLedger {
    pub fn write(&self, mut to: impl Write) -> Result<()> {
        let mut say = |line: &BackendLine| say(&mut to, line);
        for server in &self.servers {
            say(&BackendLine::Server(server.clone()))?;
        }
        for client in self.clients() {
            let first = self.served(client).filter_map(|id| {
                let served = self.servings(id).next()?;
                Some((id.sequence, served))
            });
            for (Served { method, server }, ranges) in ranges(first) {
                for ranges in ranges.chunks(RANGES) {
                    say(&BackendLine::Served {
                        client,
                        method,
                        server,
                        ranges: ranges.to_vec(),
                    })?;
                }
            }
        }
        for (id, Served { method, server }) in self.repeats() {
            say(&BackendLine::Again { id, method, server })?;
        }
        for gap in &self.gaps {
            say(&BackendLine::Gap(gap.clone()))?;
        }
        Ok(())
    }

    pub fn read_lines(from: impl BufRead) -> Result<Self> {
        let mut book = Self::default();
        for line in lines(from) {
            match line? {
                BackendLine::Server(server) => drop(book.server(&server)),
                BackendLine::Served {
                    client,
                    method,
                    server,
                    ranges,
                } => {
                    for (first, last) in ranges {
                        for sequence in first..=last {
                            let id = LoadId { client, sequence };
                            book.serve(id, Served { method, server });
                        }
                    }
                }
                BackendLine::Again { id, method, server } => {
                    book.serve(id, Served { method, server });
                }
                BackendLine::Gap(gap) => book.gaps.push(gap),
            }
        }
        Ok(book)
    }
}

fn say(to: &mut impl Write, line: &impl Serialize) -> Result<()> {
    serde_json::to_writer(&mut *to, line)?;
    to.write_all(b"\n")?;
    Ok(())
}

fn lines<T: DeserializeOwned>(from: impl BufRead) -> impl Iterator<Item = Result<T>> {
    from.lines().map(|line| {
        let line = line?;
        ensure!(!line.is_empty(), "an empty line");
        serde_json::from_str(&line).with_context(|| line.clone())
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::client::Outcome;
    use super::*;

    fn id(sequence: u32) -> LoadId {
        LoadId {
            client: 7,
            sequence,
        }
    }

    fn client() -> ClientLedger {
        let mut book = ClientLedger::new(7, "web.example", 42).unwrap();
        let by = |instance: &str| Outcome::Ok {
            by: Identity {
                service: "web".to_owned(),
                revision: "web-1".to_owned(),
                instance: instance.to_owned(),
                process: instance.to_owned(),
            },
        };
        let declared = Outcome::Declared {
            status: 503,
            code: "wait-timeout".to_owned(),
        };
        let broken = Outcome::Broken {
            how: "reset".to_owned(),
        };
        let crossed = Outcome::Crossed {
            said: "x".to_owned(),
        };
        let outcomes = [
            by("a"),
            by("b"),
            declared,
            broken,
            Outcome::Timeout,
            crossed,
            by("a"),
        ];
        for (number, outcome) in (0..).zip(outcomes) {
            let at = Duration::from_millis(300 * number);
            let method = if number % 2 == 0 {
                Method::Get
            } else {
                Method::Post
            };
            let id = book.send(method, at);
            let took = Duration::from_micros(50 + number);
            book.settle(Failure {
                id,
                method,
                door: 0,
                at,
                took,
                outcome,
            });
        }
        book.shed(Duration::from_secs(2));
        book.send(Method::Post, Duration::from_secs(2));
        book
    }

    #[test]
    fn the_clients_book_reads_as_it_was_written() {
        let (book, mut text) = (client(), Vec::new());
        book.write(&mut text).unwrap();
        let read = ClientLedger::read(text.as_slice()).unwrap();
        assert_eq!(read, book);
        let count = book.count();
        assert_eq!(
            (count.sent, count.ok, count.not_ok(), count.shed),
            (8, 3, 4, 1)
        );
        assert!(ClientLedger::read(&text[10..]).is_err());
        let second = Duration::from_secs(1);
        let count = book.between(second, 2 * second);
        assert_eq!((count.sent, count.timeout, count.crossed), (3, 1, 1));
    }

    #[test]
    fn the_instances_book_reads_as_it_was_written() {
        let mut book = BackendLedger::default();
        for instance in ["a", "b"] {
            let server = book.server(&Server {
                namespace: "default".to_owned(),
                service: "web".to_owned(),
                instance: instance.to_owned(),
            });
            book.read(server, "ids G7.0 G7.1 P7.3 G9.5");
            book.gap(server, "7 lines dropped");
        }
        let mut text = Vec::new();
        book.write(&mut text).unwrap();
        assert_eq!(BackendLedger::read_lines(text.as_slice()).unwrap(), book);
        assert_eq!(book.servings(id(3)).count(), 2);
        assert_eq!(book.servings(id(2)).count(), 0);
    }
}
