//! A front door in this process, before instances that are any addresses: for measuring and trying
//! the door itself. Registry and fleet are made up; nothing is started, no node is near.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use arc_swap::ArcSwap;
use async_trait::async_trait;
use netfabric::ingress::{
    Callers, Conduit, Ingress, IngressConfig, IngressDeps, Local, PeerLink, PeerStream, Starter,
};
use netfabric::wire::peer::{StartRefusal, StartRequest, Started};
use scheduler::fleet::Fleet;
use scheduler::model::{
    Container, ContainerPort, ImagePin, InstanceId, Meta, Name, NodeId, Protocol, Revision,
    RevisionKey, RevisionSpec, RevisionState, Scale, Service, ServiceKey, ServiceStatus, UnixMs,
};
use scheduler::registry::{Change, State};
use scheduler::route::Routes;
use tokio::runtime::Runtime;
use tokio::sync::watch;

/// The domain its services live under.
pub const ORIGIN: &str = "edge.test";
const ME: NodeId = NodeId(1);
const GRACE: Duration = Duration::from_secs(5);

/// Nobody else is there.
struct Alone;

#[async_trait]
impl PeerLink for Alone {
    fn open_now(&self, _: NodeId) -> Option<Box<dyn PeerStream>> {
        None
    }

    async fn open(&self, _: NodeId, _: Duration) -> io::Result<Box<dyn PeerStream>> {
        Err(io::ErrorKind::HostUnreachable.into())
    }

    async fn open_passage(&self, _: NodeId, _: Duration) -> io::Result<Box<dyn Conduit>> {
        Err(io::ErrorKind::HostUnreachable.into())
    }
}

impl Callers for Alone {
    fn who(&self, _: IpAddr) -> Option<ServiceKey> {
        None
    }
}

#[async_trait]
impl Starter for Alone {
    async fn start(&self, _: NodeId, _: StartRequest) -> Result<Started, StartRefusal> {
        Err(StartRefusal::Unreachable("nothing starts here".to_owned()))
    }
}

pub struct Doorway {
    runtime: Runtime,
    ingress: Ingress,
    routes: Arc<ArcSwap<Routes>>,
    local: Arc<Local>,
    state: State,
    fleet: Fleet,
}

impl Doorway {
    /// A door on a free port of loopback, without services.
    pub fn open(adjust: impl FnOnce(&mut IngressConfig)) -> Result<Self> {
        let runtime = Runtime::new()?;
        let fleet = Fleet {
            me: ME,
            members: BTreeMap::new(),
            ..Fleet::default()
        };
        let state = State {
            index: 1,
            ..State::default()
        };
        let routes = Routes::build(&state, &fleet, ORIGIN);
        let routes = Arc::new(ArcSwap::from_pointee(routes));
        let local = Local::new();
        let mut config = IngressConfig {
            listen: vec![SocketAddr::from(([127, 0, 0, 1], 0))],
            ..IngressConfig::default()
        };
        adjust(&mut config);
        let deps = IngressDeps {
            routes: Arc::clone(&routes),
            local: Arc::clone(&local),
            fleet: watch::Sender::new(Arc::new(fleet.clone())).subscribe(),
            registry: watch::Sender::new(Arc::new(state.clone())).subscribe(),
            link: Arc::new(Alone),
            starter: Arc::new(Alone),
            callers: Arc::new(Alone),
            shelf: Arc::default(),
            tickets: None,
            sockets: Arc::default(),
        };
        let inside = runtime.enter();
        let ingress = Ingress::start(config, deps)?;
        drop(inside);
        Ok(Self {
            runtime,
            ingress,
            routes,
            local,
            state,
            fleet,
        })
    }

    pub fn address(&self) -> SocketAddr {
        self.ingress.addrs()[0]
    }

    /// A service in the registry, which the door does not know of before [`Doorway::publish`].
    pub fn add(&mut self, name: &str, protocol: Protocol) -> Result<Change> {
        let name = Name::new(name).map_err(anyhow::Error::msg)?;
        let key = ServiceKey {
            namespace: Name::default_namespace(),
            name,
        };
        let revision = revision(&key, protocol)?;
        let service = Service {
            key: key.clone(),
            meta: Meta::default(),
            spec: revision.spec.clone(),
            scale: Scale::default(),
            traffic: Vec::new(),
            status: ServiceStatus {
                latest_created: Some(revision.key.clone()),
                latest_ready: Some(revision.key.clone()),
            },
        };
        self.state.index += 1;
        self.state.revisions.insert(revision.key.clone(), revision);
        self.state.services.insert(key, service.clone());
        Ok(Change::Service(Box::new(service)))
    }

    /// The door learns of the changes, as a daemon's does.
    pub fn publish(&self, changes: &[Change]) {
        let present = self.routes.load();
        let next = present.follow(&self.state, changes, &self.fleet, &self.fleet);
        self.routes.store(Arc::new(next));
    }

    /// An instance of the service listens there.
    pub fn run(&self, name: &str, address: SocketAddr) -> Result<()> {
        let revision = self.state.revisions.values();
        let mut revision = revision.filter(|r| r.service.name.as_str() == name);
        let revision = revision
            .next()
            .with_context(|| format!("no service {name}"))?;
        let id = InstanceId(format!("{}-{}", revision.key.name, address.port()));
        let protocol = revision.spec.port().protocol;
        self.local
            .open(id, revision.key.clone(), address, protocol, 0, false);
        Ok(())
    }

    /// One service with one instance, known to the door.
    pub fn serve(&mut self, name: &str, protocol: Protocol, address: SocketAddr) -> Result<()> {
        let change = self.add(name, protocol)?;
        self.run(name, address)?;
        self.publish(&[change]);
        Ok(())
    }

    /// Lets who is in finish, as a daemon that ends does.
    pub fn close(self) {
        self.runtime.block_on(self.ingress.stop(GRACE));
    }
}

fn revision(service: &ServiceKey, protocol: Protocol) -> Result<Revision> {
    let key = RevisionKey::of(service, 1).map_err(anyhow::Error::msg)?;
    let port = ContainerPort {
        container_port: 8080,
        protocol,
    };
    let container = Container {
        ports: vec![port],
        ..Container::default()
    };
    Ok(Revision {
        key,
        service: service.clone(),
        generation: 1,
        created: UnixMs(0),
        spec: RevisionSpec {
            timeout_seconds: 60,
            containers: vec![container],
            ..RevisionSpec::default()
        },
        image: ImagePin {
            reference: "registry.test/app:1".to_owned(),
            digest: "sha256:0".to_owned(),
        },
        state: RevisionState::Ready,
    })
}
