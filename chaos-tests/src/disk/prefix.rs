//! What stands before a program's words when it is started under a fault: variables, and programs
//! that start it in their turn. Owns how such prefixes join.

use std::ffi::{OsStr, OsString};
use std::process::Command;

use anyhow::Result;

use crate::world::{Outcome, run};

/// The empty one changes nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Prefix {
    pub env: Vec<(OsString, OsString)>,
    pub words: Vec<OsString>,
}

impl Prefix {
    pub(super) fn words<S: AsRef<OsStr>>(words: impl IntoIterator<Item = S>) -> Self {
        let words = words.into_iter().map(|w| w.as_ref().to_owned()).collect();
        Self {
            env: Vec::new(),
            words,
        }
    }

    /// With a variable more.
    #[must_use]
    pub(super) fn set(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.env.push((name.into(), value.as_ref().to_owned()));
        self
    }

    /// Both, the other one nearer to the program.
    #[must_use]
    pub fn then(mut self, other: Self) -> Self {
        self.env.extend(other.env);
        self.words.extend(other.words);
        self
    }

    /// The program behind all this, its own arguments still to come.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut words = self.words.iter().map(OsString::as_os_str);
        let mut command = match words.next() {
            None => Command::new(program),
            Some(first) => {
                let mut command = Command::new(first);
                command.args(words).arg(program);
                command
            }
        };
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Runs a program behind all this to its end.
    pub fn run(&self, words: &[&str]) -> Result<Outcome> {
        let set = self.env.iter().map(|(name, value)| {
            let mut both = name.clone();
            both.push("=");
            both.push(value);
            both
        });
        let program = words.iter().map(OsString::from);
        run("env", set.chain(self.words.iter().cloned()).chain(program))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_runs_with_its_variables() -> Result<()> {
        let prefix = Prefix::words(["env", "B=a b"]).set("A", "an a");
        let said = prefix.run(&["sh", "-c", "echo $A, $B"])?.ok()?;
        anyhow::ensure!(said.out == "an a, a b\n", "{said}");
        Ok(())
    }

    #[test]
    fn prefixes_stand_in_order_before_the_program() {
        let outer = Prefix::words(["nsenter", "--net"]);
        let inner = Prefix::words(["nice"]).set("A", "1");
        let command = outer.then(inner).command("date");
        let args: Vec<_> = command.get_args().collect();
        assert_eq!(command.get_program(), "nsenter");
        assert_eq!(args, ["--net", "nice", "date"]);
        let env: Vec<_> = command.get_envs().collect();
        assert_eq!(env, [(OsStr::new("A"), Some(OsStr::new("1")))]);
        assert_eq!(Prefix::default().command("date").get_program(), "date");
    }
}
