//! A thread of its own for the mesh.

use std::io;

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

/// One thread with a runtime, until this is dropped.
pub(super) struct Apart {
    handle: Handle,
    _ends: oneshot::Sender<()>,
}

impl Apart {
    /// # Errors
    /// The system gives no thread, or no poller for it.
    pub(super) fn start() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (ends, ended) = oneshot::channel();
        let thread = std::thread::Builder::new().name("mesh".to_owned());
        thread.spawn(move || {
            // Nobody sends: it is dropped.
            let _dropped = runtime.block_on(ended);
            runtime.shutdown_background();
        })?;
        Ok(Self {
            handle,
            _ends: ends,
        })
    }

    pub(super) fn handle(&self) -> Handle {
        self.handle.clone()
    }
}
