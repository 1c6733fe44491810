//! Holding idle instances still: what the front door needs for it from the runtime, and the look at
//! who is idle. When one is idle long enough is the machine's word.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::{Arc, PoisonError};

use async_trait::async_trait;
use netfabric::ingress::Freezer;
use scheduler::model::{InstanceId, InstanceState};

use super::driver::{Driver, Input};
use crate::clock;
use crate::runtime::{Runtime, RuntimeError};

/// The runtime as the front door knows it.
pub(super) struct Hold(pub(super) Arc<dyn Runtime>);

impl fmt::Debug for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hold")
    }
}

#[async_trait]
impl Freezer for Hold {
    async fn freeze(&self, id: &InstanceId) -> io::Result<()> {
        self.0.freeze(id).await.map_err(plain)?;
        fail::fail_point!("agent::frozen");
        Ok(())
    }

    async fn throttle(&self, id: &InstanceId) -> io::Result<()> {
        self.0.throttle(id).await.map_err(plain)
    }

    async fn thaw(&self, id: &InstanceId) -> io::Result<()> {
        self.0.thaw(id).await.map_err(plain)?;
        fail::fail_point!("agent::thawed");
        Ok(())
    }
}

fn plain(error: RuntimeError) -> io::Error {
    match error {
        RuntimeError::Io { source, .. } => source,
        other => io::Error::other(other.to_string()),
    }
}

impl Driver {
    /// Tells the machine who is idle, what they compute meanwhile, and whom a request let go on.
    pub(super) async fn look_for_idle(&mut self) {
        let idlers = self.node.idlers();
        let idlers: Vec<_> = idlers.map(|(id, state)| (id.clone(), state)).collect();
        for (id, state) in idlers {
            let now = clock::now();
            if !self.local.is_held(&id) {
                let effects = self.node.on_thawed(now, &id);
                self.perform(effects);
            }
            if state == InstanceState::Frozen {
                continue;
            }
            let idle = self.local.idle_millis(&id);
            let used = match idle {
                Some(_) => self.tools.runtime.cpu_micros(&id).await.ok(),
                None => None,
            };
            self.node.on_cpu(now, &id, used);
            if let Some(idle) = idle {
                let effects = self.node.on_idle(&id, idle);
                self.perform(effects);
            }
        }
        let effects = self.node.rest(clock::now());
        self.perform(effects);
        self.tell_who_sleeps();
    }

    /// What `selvedge explain` says of each instance that is not simply at work.
    fn tell_who_sleeps(&self) {
        let mut told = BTreeMap::new();
        for seen in self.node.seen() {
            let sleeps = self.node.sleeps(seen.id).map(str::to_owned);
            let leases = self.tools.leases.held(seen.id).into_iter().map(|held| {
                let what = match held.what.as_str() {
                    "" => String::new(),
                    what => format!(" for `{what}`"),
                };
                let left = held.seconds_left;
                format!("its programs hold a lease{what}, for {left} s more: it is neither frozen nor scaled down")
            });
            let all: Vec<String> = sleeps.into_iter().chain(leases).collect();
            if !all.is_empty() {
                told.insert(seen.id.clone(), all);
            }
        }
        *self.doings.lock().unwrap_or_else(PoisonError::into_inner) = told;
    }

    /// Takes memory from one that is held still, as long as it is. It needs no answer: a request that
    /// thaws it meanwhile reads again what it needs.
    pub(super) fn reclaim(&self, id: InstanceId) {
        let (runtime, local) = (self.tools.runtime.clone(), self.local.clone());
        tokio::spawn(async move {
            let of = id.clone();
            let held = Box::new(move || local.is_held(&of));
            match runtime.reclaim(&id, held).await {
                Ok(bytes) => tracing::debug!(instance = %id, bytes, "reclaimed"),
                Err(error) => tracing::debug!(instance = %id, %error, "nothing was reclaimed"),
            }
        });
    }

    pub(super) fn throttle(&self, id: InstanceId) {
        let local = self.local.clone();
        self.spawn(async move {
            let came = local.throttle(&id).await;
            Input::Throttled(id, came)
        });
    }

    /// Lets one go on that nobody asks anything.
    pub(super) fn wake(&self, id: &InstanceId) {
        tokio::spawn(self.thawed(id));
    }

    pub(super) fn freeze(&self, id: InstanceId) {
        let local = self.local.clone();
        self.spawn(async move {
            let came = local.freeze(&id).await;
            Input::Frozen(id, came)
        });
    }

    /// One that was frozen is let go on, and stays so: it must be closed before.
    pub(super) fn thawed(&self, id: &InstanceId) -> impl Future<Output = ()> + Send + 'static {
        let (local, id) = (self.local.clone(), id.clone());
        async move {
            if let Err(error) = local.thaw(&id).await {
                tracing::warn!(instance = %id, %error, "cannot be thawed");
            }
        }
    }
}
