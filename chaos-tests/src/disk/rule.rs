//! Which call on a faulty disk meets which fault. Owns the decision and the counting, and is pure:
//! the file system asks at every call, a test reads the counts.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What is done to a file or a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Op {
    Read,
    Write,
    /// Of data, of everything, of a folder.
    Fsync,
    Open,
    /// A new file, folder, link or socket.
    Create,
    Rename,
    /// Of files and folders.
    Unlink,
    /// A length set, or space set aside.
    Resize,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Effect {
    /// The call is not done; the disk says that it failed.
    Eio,
    /// The call is not done; the disk says that it is full.
    Enospc,
    /// The call is done, later.
    Delay(Duration),
    /// The first half of a write is done, then it fails. Other calls just fail.
    Torn,
}

/// A fault, and which calls meet it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// The end of the path; every path ends with nothing.
    pub path: String,
    pub op: Op,
    /// Calls that pass before the first that meets the fault.
    pub after: u64,
    /// Calls that meet it; `None` for all from then on.
    pub times: Option<u64>,
    pub effect: Effect,
}

impl Rule {
    /// Every call of this kind, from now on.
    pub fn new(op: Op, effect: Effect) -> Self {
        Self {
            path: String::new(),
            op,
            after: 0,
            times: None,
            effect,
        }
    }

    /// Only on paths that end with this.
    #[must_use]
    pub fn on(self, path: &str) -> Self {
        let path = path.to_owned();
        Self { path, ..self }
    }

    #[must_use]
    pub fn after(self, after: u64) -> Self {
        Self { after, ..self }
    }

    #[must_use]
    pub fn times(self, times: u64) -> Self {
        let times = Some(times);
        Self { times, ..self }
    }
}

/// What came of a rule.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// Calls that it names.
    pub seen: u64,
    /// Those of them that met its fault.
    pub fired: u64,
}

/// The rules in force.
#[derive(Debug, Default)]
pub(super) struct Rules(Vec<(Rule, Count)>);

impl Rules {
    pub fn of(rules: Vec<Rule>) -> Self {
        let fresh = rules.into_iter().map(|rule| (rule, Count::default()));
        Self(fresh.collect())
    }

    /// Whether any rule names this kind of call: paths are worth finding out only then.
    pub fn watch(&self, op: Op) -> bool {
        self.0.iter().any(|(rule, _)| rule.op == op)
    }

    /// The fault this call meets: the first rule's that has one for it. All rules that name the call
    /// count it.
    pub fn on_call(&mut self, op: Op, path: &str) -> Option<Effect> {
        let mut effect = None;
        for (rule, count) in &mut self.0 {
            if rule.op != op || !path.ends_with(&rule.path) {
                continue;
            }
            count.seen += 1;
            let spent = rule.times.is_some_and(|times| count.fired >= times);
            if effect.is_none() && count.seen > rule.after && !spent {
                count.fired += 1;
                effect = Some(rule.effect.clone());
            }
        }
        effect
    }

    pub fn counts(&self) -> Vec<Count> {
        self.0.iter().map(|(_, count)| *count).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a row of calls meets.
    fn meet(rules: &mut Rules, op: Op, path: &str, calls: usize) -> Vec<Option<Effect>> {
        (0..calls).map(|_| rules.on_call(op, path)).collect()
    }

    #[test]
    fn a_rule_fires_after_and_as_often_as_it_says() {
        let mut rules = Rules::of(vec![Rule::new(Op::Fsync, Effect::Eio).after(2).times(1)]);
        let eio = Some(Effect::Eio);
        let met = meet(&mut rules, Op::Fsync, "/a", 5);
        assert_eq!(met, [None, None, eio, None, None]);
        assert_eq!(rules.counts(), [Count { seen: 5, fired: 1 }]);
    }

    #[test]
    fn a_rule_names_an_operation_and_the_end_of_a_path() {
        let mut rules = Rules::of(vec![Rule::new(Op::Write, Effect::Torn).on(".redb")]);
        assert_eq!(rules.on_call(Op::Write, "/x/registry.redb.tmp"), None);
        assert_eq!(rules.on_call(Op::Read, "/x/registry.redb"), None);
        assert_eq!(rules.counts(), [Count::default()]);
        let met = meet(&mut rules, Op::Write, "/x/registry.redb", 2);
        assert_eq!(met, [Some(Effect::Torn), Some(Effect::Torn)]);
        assert!(rules.watch(Op::Write) && !rules.watch(Op::Read));
    }

    #[test]
    fn the_first_of_two_rules_wins_and_the_second_follows() {
        let rules = vec![
            Rule::new(Op::Read, Effect::Eio).times(1),
            Rule::new(Op::Read, Effect::Enospc),
        ];
        let mut rules = Rules::of(rules);
        let met = meet(&mut rules, Op::Read, "/a", 2);
        assert_eq!(met, [Some(Effect::Eio), Some(Effect::Enospc)]);
        let counts = [Count { seen: 2, fired: 1 }, Count { seen: 2, fired: 1 }];
        assert_eq!(rules.counts(), counts);
    }
}
