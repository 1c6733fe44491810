//! The instances' book: which of them began to serve which request.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::server::served::{self, LoadId, Method};

/// A client's numbers beyond this are not believed: the book would take too much memory.
const MAX_SEQUENCE: u32 = 50_000_000;
/// Remarks kept; enough to know that the book is not whole.
const MAX_GAPS: usize = 100;

/// An instance, as the node it ran on knows it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Server {
    pub namespace: String,
    pub service: String,
    pub instance: String,
}

/// One serving of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Served {
    pub method: Method,
    /// The place in [`BackendLedger::servers`].
    pub server: u32,
}

impl Served {
    const POST: u32 = 1 << 31;

    /// Never zero, which is a request that nobody served.
    fn packed(self) -> u32 {
        let post = if self.method == Method::Post {
            Self::POST
        } else {
            0
        };
        post | (self.server + 1)
    }

    fn unpacked(packed: u32) -> Option<Self> {
        let method = if packed & Self::POST == 0 {
            Method::Get
        } else {
            Method::Post
        };
        let server = (packed & !Self::POST).checked_sub(1)?;
        Some(Self { method, server })
    }
}

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BackendLedger {
    pub servers: Vec<Server>,
    /// By client and number: who served it first, packed.
    first: BTreeMap<u32, Vec<u32>>,
    /// Who served it after that.
    again: BTreeMap<LoadId, Vec<Served>>,
    /// Why the book may not be whole: what a log left out, or what was not understood.
    pub gaps: Vec<String>,
}

impl BackendLedger {
    /// The place of a server.
    pub fn server(&mut self, server: &Server) -> u32 {
        let known = self.servers.iter().position(|known| known == server);
        let place = known.unwrap_or_else(|| {
            self.servers.push(server.clone());
            self.servers.len() - 1
        });
        u32::try_from(place).unwrap_or(u32::MAX)
    }

    /// A line of a server's log.
    pub fn read(&mut self, server: u32, line: &str) {
        match served::read(line) {
            Ok(requests) => {
                for (method, id) in requests {
                    self.serve(id, Served { method, server });
                }
            }
            Err(error) => self.gap(server, &format!("{error:#}")),
        }
    }

    /// A server's log may lack something.
    pub fn gap(&mut self, server: u32, why: &str) {
        if self.gaps.len() < MAX_GAPS {
            let name = self.servers.get(server as usize);
            let name = name.map_or("?", |server| server.instance.as_str());
            self.gaps.push(format!("{name}: {why}"));
        }
    }

    /// One serving more.
    pub fn serve(&mut self, id: LoadId, served: Served) {
        if id.sequence > MAX_SEQUENCE {
            self.gap(served.server, &format!("no client has a request {id}"));
            return;
        }
        let of_client = self.first.entry(id.client).or_default();
        let place = id.sequence as usize;
        if of_client.len() <= place {
            of_client.resize(place + 1, 0);
        }
        if of_client[place] == 0 {
            of_client[place] = served.packed();
        } else {
            self.again.entry(id).or_default().push(served);
        }
    }

    /// Every serving of a request, the first first.
    pub fn servings(&self, id: LoadId) -> impl Iterator<Item = Served> + '_ {
        let of_client = self.first.get(&id.client);
        let first = of_client.and_then(|all| Served::unpacked(*all.get(id.sequence as usize)?));
        let again = self.again.get(&id).into_iter().flatten().copied();
        first.into_iter().chain(again)
    }

    /// Every request of a client that was served, once each, in order.
    pub fn served(&self, client: u32) -> impl Iterator<Item = LoadId> + '_ {
        let all = (0..).zip(self.first.get(&client).into_iter().flatten());
        all.filter(|(_, packed)| **packed != 0)
            .map(move |(sequence, _)| LoadId { client, sequence })
    }

    /// Every serving of a request after its first.
    pub fn repeats(&self) -> impl Iterator<Item = (LoadId, Served)> + '_ {
        let all = self.again.iter();
        all.flat_map(|(id, served)| served.iter().map(|served| (*id, *served)))
    }

    /// All clients that were served.
    pub fn clients(&self) -> impl Iterator<Item = u32> + '_ {
        self.first.keys().copied()
    }
}
