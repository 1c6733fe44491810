//! The registry as an ideal log: what it acknowledged is never lost and has one order. Its delays,
//! and that it takes nothing while it is out, are as drawn; consensus itself is simulated in `node`.

use std::sync::Arc;

use scheduler::model::UnixMs;
use scheduler::registry::{Action, Command, Reply, State};

use super::queue::Millis;

#[derive(Debug)]
pub(super) struct Log {
    /// The registry after each change; the last one is the newest.
    states: Vec<Arc<State>>,
    /// It takes no changes before.
    pub out_until: Millis,
}

impl Log {
    pub fn new() -> Self {
        Self {
            states: vec![Arc::new(State::default())],
            out_until: 0,
        }
    }

    pub fn newest(&self) -> &Arc<State> {
        // It begins with one and only grows.
        &self.states[self.states.len() - 1]
    }

    /// Appends a change; `None` while it is out.
    pub fn propose(&mut self, now: Millis, action: Action) -> Option<Reply> {
        if now < self.out_until {
            return None;
        }
        let mut state = State::clone(self.newest());
        let (reply, _) = state.apply(&Command {
            at: UnixMs(now),
            action,
        });
        if matches!(reply, Reply::Done { .. }) && state.index > self.newest().index {
            self.states.push(Arc::new(state));
        }
        Some(reply)
    }
}
