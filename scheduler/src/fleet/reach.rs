//! How much of the cluster a view is made from. What is decided on an island is decided all the same,
//! within what the service allows, and its receipt says so.

use std::fmt;

use super::Fleet;

/// What a node has of everybody else.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reach {
    /// Nodes that the registry names; 0 where nobody counted.
    pub enrolled: u32,
    pub registry: Contact,
}

/// When the registry's quorum was last known to live.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Contact {
    #[default]
    Now,
    /// So long ago, in steps: a view is no other one because a second passed.
    Seconds(u32),
    /// Not since the daemon began.
    Never,
}

impl Contact {
    /// A heartbeat or an election that takes its time is no silence.
    pub const SILENCE_SECONDS: u32 = 10;

    #[must_use]
    pub fn of(silent_millis: Option<u64>) -> Self {
        let Some(millis) = silent_millis else {
            return Self::Never;
        };
        let seconds = u32::try_from(millis / 1000).unwrap_or(u32::MAX);
        match seconds - seconds % Self::SILENCE_SECONDS {
            0 => Self::Now,
            seconds => Self::Seconds(seconds),
        }
    }
}

/// A part of the cluster that decides for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Island {
    registry: Contact,
    heard: u32,
    enrolled: u32,
}

impl Fleet {
    /// The island that this view is of: the registry is silent, or half of the nodes and more are.
    #[must_use]
    pub fn island(&self) -> Option<Island> {
        let Reach { enrolled, registry } = self.reach;
        let silent = registry != Contact::Now;
        if !silent && enrolled == 0 {
            return None;
        }
        let heard = self.members.values().filter(|m| m.alive).count();
        let heard = u32::try_from(heard).unwrap_or(u32::MAX);
        let few = heard.saturating_mul(2) <= enrolled && enrolled > 1;
        (silent || few).then_some(Island {
            registry,
            heard,
            enrolled: enrolled.max(heard),
        })
    }

    /// A reason, with the island that it was found on.
    #[must_use]
    pub fn on_island(&self, why: &str) -> String {
        match self.island() {
            None => why.to_owned(),
            Some(island) if why.is_empty() => island.to_string(),
            Some(island) => format!("{why}; {island}"),
        }
    }
}

impl fmt::Display for Island {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.registry {
            Contact::Now => f.write_str("decided with few others in sight")?,
            Contact::Seconds(seconds) => write!(
                f,
                "decided on an island: the registry is as it was {seconds} s ago"
            )?,
            Contact::Never => {
                f.write_str("decided on an island: the registry is as the disk had it")?;
            }
        }
        write!(f, ", {} of {} nodes are heard", self.heard, self.enrolled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_island_is_told_with_its_age_and_who_is_heard() {
        let fleet = |enrolled, silent| Fleet {
            reach: Reach {
                enrolled,
                registry: Contact::of(silent),
            },
            ..Fleet::default()
        };
        let told = |enrolled, silent| fleet(enrolled, silent).on_island("2 wanted");
        assert_eq!(Fleet::default().on_island("2 wanted"), "2 wanted");
        assert_eq!(told(1, Some(9_999)), "2 wanted", "nobody else there");
        assert_eq!(
            told(12, Some(47_000)),
            "2 wanted; decided on an island: the registry is as it was 40 s ago, 0 of 12 nodes are heard"
        );
        assert_eq!(
            told(12, Some(0)),
            "2 wanted; decided with few others in sight, 0 of 12 nodes are heard"
        );
        assert_eq!(
            fleet(3, None).on_island(""),
            "decided on an island: the registry is as the disk had it, 0 of 3 nodes are heard"
        );
        assert_eq!(Contact::of(Some(10_000)), Contact::of(Some(19_999)));
    }
}
