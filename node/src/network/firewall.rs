//! The one writer of the firewall: while `nft` runs, the scripts that come wait, and then go
//! together in one transaction. A network made or removed among many thus costs no process of
//! its own.
//!
//! Owns the order of changes; what they say is the rules' business.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot::{self, error::TryRecvError};

use super::{NetworkError, rules};

/// Scripts of one transaction. What is refused is told apart by trying each alone.
const MOST: usize = 64;

type Said = Result<(), NetworkError>;
/// A script, and who waits for it.
type Change = (String, oneshot::Sender<Said>);

#[derive(Default)]
pub(super) struct Firewall {
    waiting: Mutex<VecDeque<Change>>,
    turn: tokio::sync::Mutex<()>,
}

impl Firewall {
    /// Applies a script, all of it or nothing. It must bear being applied again.
    ///
    /// # Errors
    /// `nft` refused it, or cannot be run.
    pub async fn apply(&self, script: String) -> Said {
        loop {
            let (tell, told) = oneshot::channel();
            self.waiting().push_back((script.clone(), tell));
            // None: whoever had taken it along was given up meanwhile.
            if let Some(said) = self.take_turn(told).await {
                return said;
            }
        }
    }

    /// Writes until ours is written, unless whoever had the turn before took it along.
    async fn take_turn(&self, mut told: oneshot::Receiver<Said>) -> Option<Said> {
        let _turn = self.turn.lock().await;
        loop {
            match told.try_recv() {
                Ok(said) => return Some(said),
                Err(TryRecvError::Closed) => return None,
                Err(TryRecvError::Empty) => {
                    let batch: Vec<Change> = {
                        let mut waiting = self.waiting();
                        let count = waiting.len().min(MOST);
                        waiting.drain(..count).collect()
                    };
                    together(batch).await;
                }
            }
        }
    }

    fn waiting(&self) -> MutexGuard<'_, VecDeque<Change>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn together(batch: Vec<Change>) {
    let all: String = batch.iter().map(|(script, _)| script.as_str()).collect();
    let whole = rules::apply(&all).await;
    let alone = batch.len() == 1;
    for (script, tell) in batch {
        let said = match &whole {
            Ok(()) => Ok(()),
            // Whose fault it was shows when each goes alone.
            Err(_) if !alone => rules::apply(&script).await,
            Err(_) => {
                // Nobody who listens is no loss.
                let _ = tell.send(whole);
                return;
            }
        };
        let _ = tell.send(said);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_refused_change_fails_alone() {
        if !std::path::Path::new("/usr/sbin/nft").exists() {
            return;
        }
        let firewall = Firewall::default();
        let table = format!("selvedge_firewall_{}", std::process::id());
        // Each makes a table and takes it away: whether together or alone, nothing stays.
        let good = format!("table ip {table} {{ }}\ndelete table ip {table}\n");
        let bad = "add rule no such thing\n".to_owned();
        let scripts = [&good, &bad, &good, &good].map(Clone::clone);
        let said = futures::future::join_all(scripts.map(|script| firewall.apply(script))).await;
        let went: Vec<bool> = said.iter().map(Result::is_ok).collect();
        assert_eq!(went, [true, false, true, true]);
        assert!(firewall.waiting().is_empty());
    }
}
