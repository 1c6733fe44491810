//! Holding idle instances still: what the front door needs for it from the runtime, and the look at
//! who is idle. When one is idle long enough is the machine's word.

use std::fmt;
use std::io;
use std::sync::Arc;

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
    /// Tells the machine who is idle, and who was thawed by a request meanwhile.
    pub(super) fn look_for_idle(&mut self) {
        let idlers = self.node.idlers();
        let idlers: Vec<_> = idlers.map(|(id, state)| (id.clone(), state)).collect();
        for (id, state) in idlers {
            let effects = match state {
                InstanceState::Frozen if self.local.is_frozen(&id) => Vec::new(),
                InstanceState::Frozen => self.node.on_thawed(clock::now(), &id),
                _ => match self.local.idle_millis(&id) {
                    Some(idle) => self.node.on_idle(&id, idle),
                    None => Vec::new(),
                },
            };
            self.perform(effects);
        }
        let effects = self.node.rest(clock::now());
        self.perform(effects);
    }

    /// Takes memory from one that is held still. It needs no answer: a request that thaws it meanwhile
    /// reads again what it needs.
    pub(super) fn reclaim(&self, id: InstanceId) {
        let runtime = self.tools.runtime.clone();
        tokio::spawn(async move {
            match runtime.reclaim(&id).await {
                Ok(bytes) => tracing::debug!(instance = %id, bytes, "reclaimed"),
                Err(error) => tracing::debug!(instance = %id, %error, "nothing was reclaimed"),
            }
        });
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
