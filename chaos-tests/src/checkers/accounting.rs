//! Request accounting: the clients' book beside the instances'. Every request has one outcome; who
//! was told ok was served by an instance of the service it asked; what must not happen twice did not.

use std::collections::BTreeMap;
use std::fmt::Display;

use crate::server::served::{LoadId, Method};
use crate::workload::ledger::{BackendLedger, ClientLedger, Count, Entry, Kind, Served, Server};

/// Requests told by name in one finding.
const TOLD: usize = 5;

/// What is expected of a load.
#[derive(Debug, Clone)]
pub struct Rules<'a> {
    pub namespace: &'a str,
    pub service: &'a str,
    /// Nothing but ok: while nothing is broken, in drains and in upgrades.
    pub all_ok: bool,
    /// A GET may be served twice, by a node that tries again: while something is broken.
    pub repeats: bool,
    /// No log was lost, with a node's power or disk, before it was read: who answered is in one.
    pub whole_logs: bool,
}

impl<'a> Rules<'a> {
    /// Nothing is broken: every request is ok and served once.
    pub fn strict(service: &'a str) -> Self {
        Self {
            namespace: "default",
            service,
            all_ok: true,
            repeats: false,
            whole_logs: true,
        }
    }

    /// Something is broken: errors are said, and what may be tried again may be.
    pub fn broken(service: &'a str) -> Self {
        Self {
            all_ok: false,
            repeats: true,
            ..Self::strict(service)
        }
    }
}

/// What contradicts the rules, in sentences; none is a pass.
#[must_use]
pub fn check(client: &ClientLedger, backend: &BackendLedger, rules: &Rules) -> Vec<String> {
    let check = Check {
        client,
        backend,
        rules,
    };
    let mut findings = Findings::default();
    check.outcomes(&mut findings);
    check.answerers(&mut findings);
    for (id, entry) in client.entries() {
        check.servings(id, entry, &mut findings);
    }
    for id in backend.served(client.client) {
        if client.sent(id).is_none() {
            findings.add("were served and never sent", id);
        }
    }
    if rules.whole_logs {
        let gaps = backend.gaps.iter();
        gaps.for_each(|gap| findings.say(format!("the instances' book is not whole: {gap}")));
    }
    findings.sentences()
}

struct Check<'a> {
    client: &'a ClientLedger,
    backend: &'a BackendLedger,
    rules: &'a Rules<'a>,
}

impl Check<'_> {
    /// One outcome a request, and nothing but ok when that is the rule.
    fn outcomes(&self, findings: &mut Findings) {
        let count = self.client.count();
        let Count { sent, ok, .. } = count;
        let settled = ok + count.not_ok();
        if settled != sent {
            findings.say(format!(
                "{sent} requests were sent and {settled} have an outcome"
            ));
        }
        let by_second = self.client.seconds.iter().map(|second| second.count);
        let (sent_by, ok_by) = by_second.fold((0, 0), |(s, o), c| (s + c.sent, o + c.ok));
        if (sent_by, ok_by) != (sent, ok) {
            findings.say(format!(
                "the clients' book contradicts itself: {sent} sent and {ok} ok by request, \
                 {sent_by} and {ok_by} by second"
            ));
        }
        if self.rules.all_ok && count.shed > 0 {
            findings.say(format!("{} requests were shed by the client", count.shed));
        }
        let unwanted = |kind: Kind| match kind {
            Kind::Crossed => Some("were answered with what is not their own"),
            Kind::Declared if self.rules.all_ok => Some("were answered with an error"),
            Kind::Broken if self.rules.all_ok => Some("had no whole answer"),
            Kind::Timeout if self.rules.all_ok => Some("had no answer in time"),
            _ => None,
        };
        let kept: BTreeMap<_, _> = self.client.failures.iter().map(|f| (f.id, f)).collect();
        for (id, entry) in self.client.entries() {
            if let Some(what) = unwanted(entry.kind()) {
                match kept.get(&id) {
                    Some(failure) => {
                        let (method, at) = (failure.method, failure.at);
                        let outcome = &failure.outcome;
                        findings.add(what, format!("{method} {id} at {at:.1?}: {outcome:?}"));
                    }
                    None => findings.add(what, id),
                }
            }
        }
    }

    /// Whoever answered ok is an instance of the service that was asked.
    fn answerers(&self, findings: &mut Findings) {
        for by in &self.client.answerers {
            let mut known = self.backend.servers.iter();
            let is = |server: &&Server| server.instance == by.instance;
            match known.find(is) {
                None if !self.rules.whole_logs => {}
                None => findings.add("answered and is no instance of any node", by),
                Some(server) if !self.is_asked(server) => findings.add(
                    "answered and is another service's instance",
                    format!("{} of {}/{}", by.instance, server.namespace, server.service),
                ),
                Some(_) if by.service != self.rules.service => {
                    findings.add("answered as another service", by);
                }
                Some(_) => {}
            }
        }
    }

    fn is_asked(&self, server: &Server) -> bool {
        (server.namespace.as_str(), server.service.as_str())
            == (self.rules.namespace, self.rules.service)
    }

    /// Who served a request, how often, and whether its answer came from one of them.
    fn servings(&self, id: LoadId, entry: Entry, findings: &mut Findings) {
        let (mut times, mut by_answerer) = (0, 0);
        let answerer = match entry.kind() {
            Kind::Ok(by) => self.client.answerers.get(by as usize),
            _ => None,
        };
        for Served { method, server } in self.backend.servings(id) {
            times += 1;
            let Some(server) = self.backend.servers.get(server as usize) else {
                continue;
            };
            if !self.is_asked(server) {
                let who = format!("{id} by {} of {}", server.instance, server.service);
                findings.add("were served by another service's instance", who);
            }
            if method != entry.method() {
                let what = format!("{id} as {method} and not {}", entry.method());
                findings.add("arrived as another method", what);
            }
            let same = answerer.is_some_and(|by| by.instance == server.instance);
            by_answerer += u32::from(same);
        }
        if let Some(by) = answerer
            && by_answerer == 0
            && (self.rules.whole_logs || times > 0)
        {
            let who = format!("{id} by {}", by.instance);
            findings.add("were answered ok by who never served them", who);
        }
        let once = entry.method() == Method::Post || !self.rules.repeats;
        if once && times > 1 {
            let what = format!("{} {id} {times} times", entry.method());
            findings.add("were served more than once", what);
        }
    }
}

/// Findings of one kind together: the first few by name, the rest counted.
#[derive(Default)]
struct Findings {
    sentences: Vec<String>,
    of_kind: BTreeMap<&'static str, (Vec<String>, u64)>,
}

impl Findings {
    fn say(&mut self, sentence: String) {
        self.sentences.push(sentence);
    }

    fn add(&mut self, what: &'static str, which: impl Display) {
        let (told, count) = self.of_kind.entry(what).or_default();
        *count += 1;
        if told.len() < TOLD {
            told.push(which.to_string());
        }
    }

    fn sentences(self) -> Vec<String> {
        let mut all = self.sentences;
        for (what, (told, count)) in self.of_kind {
            let more = count - told.len() as u64;
            let more = if more > 0 {
                format!(", and {more} more")
            } else {
                String::new()
            };
            all.push(format!("{count} {what}: {}{more}", told.join("; ")));
        }
        all
    }
}

#[cfg(test)]
mod tests;
