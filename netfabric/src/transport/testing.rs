//! Real meshes on loopback for tests.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use scheduler::model::NodeId;
use tokio::time::Instant;

use super::{Admit, Mesh, lock};
use crate::identity::{Authority, Identity, NodeKeys};

/// Long enough for a busy machine; no test waits for it unless it fails.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub struct Cluster {
    pub authority: Authority,
}

impl Cluster {
    pub fn found() -> Self {
        Self {
            authority: Authority::create().unwrap(),
        }
    }

    pub fn identity(&self, node: u64) -> Arc<Identity> {
        let keys = NodeKeys::generate().unwrap();
        let certificate = self
            .authority
            .sign(&keys.csr().unwrap(), NodeId(node))
            .unwrap();
        Arc::new(Identity::new(keys, &certificate, self.authority.ca_pem()).unwrap())
    }

    pub fn mesh(&self, node: u64) -> Mesh {
        bind("127.0.0.1:0", self.identity(node))
    }
}

pub fn bind(listen: &str, identity: Arc<Identity>) -> Mesh {
    Mesh::bind(listen.parse().unwrap(), identity, Arc::new(Everyone)).unwrap()
}

pub struct Everyone;

impl Admit for Everyone {
    fn admits(&self, _: NodeId) -> bool {
        true
    }
}

/// Admits all but these.
#[derive(Default)]
pub struct Banned(pub Mutex<BTreeSet<NodeId>>);

impl Admit for Banned {
    fn admits(&self, node: NodeId) -> bool {
        !lock(&self.0).contains(&node)
    }
}

/// Admits whom it is asked for so many times, and nobody then: as if they were revoked meanwhile.
pub struct Fickle(AtomicUsize);

impl Fickle {
    pub fn after(asked: usize) -> Arc<Self> {
        Arc::new(Self(AtomicUsize::new(asked)))
    }
}

impl Admit for Fickle {
    fn admits(&self, _: NodeId) -> bool {
        let left = |left: usize| left.checked_sub(1);
        self.0.fetch_update(Relaxed, Relaxed, left).is_ok()
    }
}

/// Looks again and again until `holds`; the test fails when it never does.
pub async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < until, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A node in a runtime of its own, so that it can die like a killed process: no goodbye.
pub struct Doomed {
    runtime: Option<tokio::runtime::Runtime>,
    mesh: Option<Mesh>,
    pub addr: SocketAddr,
}

impl Doomed {
    pub fn start(listen: &str, identity: Arc<Identity>) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let mesh = {
            let _inside = runtime.enter();
            bind(listen, identity)
        };
        let addr = mesh.local_addr();
        Self {
            runtime: Some(runtime),
            mesh: Some(mesh),
            addr,
        }
    }

    pub fn mesh(&self) -> &Mesh {
        self.mesh.as_ref().unwrap()
    }

    /// Does something whose tasks belong to this node.
    pub fn inside<T>(&self, act: impl FnOnce() -> T) -> T {
        let _inside = self.runtime.as_ref().map(tokio::runtime::Runtime::enter);
        act()
    }

    /// Ends all its tasks where they stand and frees its port.
    pub async fn kill(mut self) -> SocketAddr {
        self.mesh.take();
        let runtime = self.runtime.take().unwrap();
        let gone = move || runtime.shutdown_timeout(Duration::from_secs(5));
        tokio::task::spawn_blocking(gone).await.unwrap();
        self.addr
    }
}

impl Drop for Doomed {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
