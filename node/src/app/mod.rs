//! The only place where rooms meet: opens them in the order they need each other, hands out their
//! handles, and ends them in reverse.

mod settings;

use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use arc_swap::ArcSwap;
use netfabric::dns::{CidrError, Dns, DnsConfig, InnerDns};
use netfabric::gossip::{Gossip, GossipConfig, INTERVAL};
use netfabric::identity::{Authority, Identity, Vault};
use netfabric::ingress::{Ingress, IngressDeps, Local};
use netfabric::sockets::Sockets;
use netfabric::tls::{Shelf, Tickets};
use netfabric::transport::{Kind, Mesh};
use scheduler::fleet::Fleet;
use scheduler::model::{Demand, NodeId};
use scheduler::registry::{ClusterMeta, State};
use scheduler::route::Routes;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use crate::agent::{self, Agent, AgentParts};
use crate::api::{self, Api};
use crate::config::Config;
use crate::consensus::{self, Registry};
use crate::distribution::{self, Distribution};
use crate::enrol::{self, Enrol};
use crate::fleet::FleetDriver;
use crate::image::{Pushes, WantedFn};
use crate::imagemesh::{self, ImageMesh};
use crate::images::{Images, wanted};
use crate::links::{
    DoorLink, Enrolled, FeedLink, FeedServer, Neighbours, PassageServer, ProxyServer, RaftLink,
};
use crate::meter::Meter;
use crate::names::{InnerNames, Names};
use crate::network::{Inward, Network};
use crate::peers::{self, Peers};
use crate::prefetch::Prefetch;
use crate::protections::Protections;
use crate::runtime::{Shims, ShimsConfig};
use crate::stewardship::Stewardship;
use crate::telemetry::decisions::Decisions;
use crate::telemetry::metrics;
use crate::touch::{self, Toucher};
use crate::volumes::Volumes;
use crate::{certs, clock, logs, supervisor};
use settings::{
    advertised, cgroup, founder, ingress_config, inner_dns_config, network_config, operator_token,
    record_base, seeds, volumes_config,
};

/// Requests in flight at a shutdown have this long; containers are left running.
const STOP_GRACE: Duration = Duration::from_secs(10);
/// `DATA/registry/found`: written by `selvedge up`, taken away when the cluster is founded, so that
/// a founder that lost its registry never founds a second one.
const FOUND_MARKER: &str = "found";

/// The one room of the data folder that containers may pass through (`runtime` says how far).
const INSTANCES: &str = "instances";
/// The others, made before anything is in them.
const ROOMS: [&str; 5] = ["decisions", "images", "log", "registry", "run"];

/// Runs the daemon until it is told to stop.
pub async fn run(config: Config, sockets: Sockets) -> Result<()> {
    // From the first moment: a daemon that has let somebody in ends in order.
    let (mut stop, mut interrupt) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    let data = config.node.data.clone();
    let _lock = lock(&data)?;
    let identity = Arc::new(
        Identity::load(&data.join("identity"))
            .context("this machine is no node yet: run `selvedge up` or `selvedge join`")?,
    );
    let app = tokio::select! {
        app = App::open(config, data, identity, Arc::new(sockets)) => app?,
        _ = stop.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    app.serve((stop, interrupt)).await
}

/// One daemon per data folder.
fn lock(data: &Path) -> Result<File> {
    let run = data.join("run");
    fs::create_dir_all(&run).with_context(|| format!("cannot make {}", run.display()))?;
    seal(data).with_context(|| format!("cannot close {}", data.display()))?;
    let file = File::create(run.join("lock"))?;
    if file.try_lock().is_err() {
        bail!("another selvedged runs on {}", data.display());
    }
    Ok(file)
}

/// The data folder is root's alone, room by room: a container's root passes through it to its own
/// files, and there nobody else's are to be found.
fn seal(data: &Path) -> std::io::Result<()> {
    for room in ROOMS {
        fs::create_dir_all(data.join(room))?;
    }
    for entry in fs::read_dir(data)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() && entry.file_name() != INSTANCES {
            fs::set_permissions(entry.path(), fs::Permissions::from_mode(0o700))?;
        }
    }
    fs::set_permissions(data, fs::Permissions::from_mode(0o711))
}

struct App {
    config: Config,
    data: PathBuf,
    me: NodeId,
    mesh: Mesh,
    registry: Registry,
    gossip: Gossip,
    fleet: watch::Receiver<Arc<Fleet>>,
    routes: Arc<ArcSwap<Routes>>,
    agent: Agent,
    meter: Meter,
    decisions: Decisions,
    images: Images,
    ingress: Arc<Ingress>,
    /// Answers containers as long as it is kept.
    _inner_dns: InnerDns,
    /// Of the daemon before this one, and for the next.
    sockets: Arc<Sockets>,
    protections: Protections,
    toucher: Toucher,
    ca_hash: String,
    mesh_address: SocketAddr,
}

/// What images are held, and how large they are.
fn sizes(images: &Images) -> Box<dyn Fn() -> Vec<(String, u64)> + Send + Sync> {
    let images = images.clone();
    Box::new(move || {
        let held = images.list().into_iter();
        held.map(|image| (image.pin.digest.clone(), image.bytes))
            .collect()
    })
}

impl App {
    async fn open(
        config: Config,
        data: PathBuf,
        identity: Arc<Identity>,
        sockets: Arc<Sockets>,
    ) -> Result<Self> {
        let me = identity.node();
        let mesh_address = advertised(&config)?;
        let (known, admitted) = watch::channel(Arc::new(State::default()));
        let enrolled = Arc::new(Enrolled(admitted.clone()));
        let mesh = Mesh::bind_apart(config.mesh.listen, identity.clone(), enrolled.clone())?;
        mesh.begins(true);
        let (fleet_in, fleet) = watch::channel(Arc::new(nobody(me)));
        let known_at = (fleet.clone(), admitted.clone());
        let registry =
            open_registry(&config, &data, &identity, &mesh, known_at, mesh_address).await?;
        serve_registry(&mesh, &registry, known);

        let images = open_images(&config, &data, me, &mesh, &fleet)?;
        let (network, protections) = open_network(&config, &data, &sockets).await?;
        let local = Local::new();
        let door = Door::default();
        let base = record_base(&config, me, mesh_address);
        let seeds = seeds(&config, &registry, me);
        let heard = gossip_config(&identity, base.incarnation, mesh_address, seeds);
        let runtime = Arc::new(Shims::open(ShimsConfig::new(data.join(INSTANCES)))?);
        let meter = open_meter(&data, &runtime, &network, &local)?;
        let decisions = Decisions::open(&data, me, config.node.name.clone());
        let toucher = Toucher::new(me, mesh.clone(), runtime.clone(), local.clone());
        let agent = Agent::start_up(AgentParts {
            base,
            capacity: agent::offered(&config.capacity),
            parked: config.runtime.parked,
            cgroup: cgroup(&config),
            registry: registry.clone(),
            images: images.clone(),
            runtime,
            network: network.clone(),
            meter: meter.clone(),
            volumes: Volumes::new(volumes_config(&config, &data, me)?, registry.clone()),
            local: local.clone(),
            decisions: decisions.clone(),
            demand: demand_at(&door),
            data: data.clone(),
        })
        .await?;

        let gossip = Gossip::start(mesh.clone(), heard, enrolled)?;
        let routes = Arc::new(ArcSwap::from_pointee(Routes::default()));
        let driver = FleetDriver {
            me,
            origin: config.dns.origin.clone(),
            mesh: mesh.clone(),
            gossip: gossip.clone(),
            registry: registry.clone(),
            own: agent.record(),
            experience: agent.experience(),
            images: sizes(&images),
            fleet: fleet_in,
            routes: routes.clone(),
        };
        driver.start();

        let (shelf, tickets) = keep_certificates(&config, &data, me, &registry, &fleet)?;
        let peers = Peers {
            me,
            agent: agent.clone(),
            mesh: mesh.clone(),
            decisions: decisions.clone(),
        };
        let parts = DoorParts {
            routes: routes.clone(),
            local,
            fleet: fleet.clone(),
            registry: registry.view().watch(),
            peers: peers.clone(),
            network,
            shelf,
            tickets,
            sockets: sockets.clone(),
            identity: identity.clone(),
        };
        let (ingress, inner_dns) = open_doors(&config, parts, &protections.resolvers).await?;
        // Set once, here.
        let _ = door.set(ingress.clone());
        tokio::spawn(Stewardship::new(registry.clone(), fleet.clone(), peers).run());
        Ok(Self {
            config,
            data,
            me,
            mesh,
            registry,
            gossip,
            fleet,
            routes,
            agent,
            meter,
            decisions,
            images,
            ingress,
            _inner_dns: inner_dns,
            sockets,
            protections,
            toucher,
            ca_hash: identity.ca_hash(),
            mesh_address,
        })
    }

    async fn serve(self, (mut stop, mut interrupt): (Signal, Signal)) -> Result<()> {
        keep_house(&self.config, &self.images, &self.agent, &self.registry)?;
        self.images.keep_sound();
        tokio::spawn(self.prefetch().run());
        let operator_token = operator_token(&self.data)?;
        let pushes = self.distribution(operator_token.clone());
        let meter = self.meter.clone();
        tokio::spawn(meter.run(self.agent.record(), self.registry.clone()));
        let api = Arc::new(Api {
            me: self.me,
            name: self.config.node.name.clone(),
            origin: self.config.dns.origin.clone(),
            ca_hash: self.ca_hash.clone(),
            mesh_address: self.mesh_address,
            registry: self.registry.clone(),
            fleet: self.fleet.clone(),
            agent: self.agent.clone(),
            meter: self.meter.clone(),
            decisions: self.decisions.clone(),
            images: self.images.clone(),
            ingress: self.ingress.clone(),
            mesh: self.mesh.clone(),
            protections: self.protections.clone(),
            toucher: self.toucher.clone(),
            pushes: pushes.clone(),
            operator_token,
            vault: Vault::load(&self.data.join("identity"))?,
        });
        let enrol = Arc::new(Enrol {
            me: self.me,
            registry: self.registry.clone(),
            authority: authority(&self.data)?,
            vault: Vault::load(&self.data.join("identity"))?,
            mesh: self.mesh.clone(),
        });
        peers::serve(&self.mesh, self.agent.clone(), api.clone(), enrol.clone());
        logs::serve(&self.mesh, self.agent.clone());
        touch::serve(&self.mesh, self.toucher.clone());
        enrol::serve(&self.mesh, enrol);
        let _dns = self.start_dns().await?;
        self.start_metrics().await?;
        self.start_distribution(pushes).await?;

        let listen = self.config.api.listen;
        let tcp = TcpListener::bind(listen).await;
        let tcp = tcp.with_context(|| format!("cannot listen for the API on {listen}"))?;
        let socket = self.data.join("run/api.sock");
        tracing::info!(node = %self.config.node.name, region = %self.config.node.region, "serving");
        supervisor::ready();
        self.mesh.begins(false);
        tokio::select! {
            ended = api::serve_unix(api.clone(), &socket) => ended.context("the API socket")?,
            ended = api::serve_tcp(api.clone(), tcp) => ended.context("the API port")?,
            _ = stop.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping; containers keep running");
        supervisor::stopping();
        let in_order = self.ingress.stop(STOP_GRACE).await;
        self.meter.close().await;
        self.registry.shutdown().await;
        if in_order {
            self.mesh.close().await;
        } else {
            self.mesh.break_off().await;
        }
        drop(self.gossip);
        Ok(())
    }

    fn prefetch(&self) -> Prefetch {
        Prefetch {
            me: self.me,
            images: self.images.clone(),
            registry: self.registry.clone(),
            fleet: self.fleet.clone(),
            agent: self.agent.clone(),
            per_hour: self.config.runtime.image_prefetch.0,
        }
    }

    async fn start_distribution(&self, pushes: Arc<Distribution>) -> Result<()> {
        let Some(listen) = self.config.images.listen.0 else {
            return Ok(());
        };
        anyhow::ensure!(
            listen.ip().is_loopback(),
            "`[images] listen = \"{listen}\"` is not loopback: pushes carry the operator token over plain HTTP"
        );
        let listener = TcpListener::bind(listen).await;
        let listener = listener.with_context(|| format!("cannot listen for pushes on {listen}"))?;
        tokio::spawn(distribution::serve(pushes, listener));
        Ok(())
    }

    fn distribution(&self, token: String) -> Arc<Distribution> {
        let pushes = Pushes::new(self.images.store().clone());
        let agent = self.agent.clone();
        let door = Distribution::new(pushes, token, Box::new(move || agent.publish()));
        let door = Arc::new(door);
        tokio::spawn(distribution::expire(door.clone()));
        door
    }

    async fn start_metrics(&self) -> Result<()> {
        let Some(listen) = self.config.observe.metrics.0 else {
            return Ok(());
        };
        let listener = TcpListener::bind(listen).await.with_context(|| {
            format!(
                "cannot listen for metrics on {listen}; `[observe] metrics = \"off\"` goes without"
            )
        })?;
        let sources = Arc::new(metrics::Sources {
            me: self.me,
            name: self.config.node.name.clone(),
            registry: self.registry.clone(),
            fleet: self.fleet.clone(),
            agent: self.agent.clone(),
            meter: self.meter.clone(),
            images: self.images.clone(),
            ingress: self.ingress.clone(),
            decisions: self.decisions.clone(),
        });
        tokio::spawn(metrics::serve(sources, listener));
        Ok(())
    }

    async fn start_dns(&self) -> Result<Option<Dns>> {
        let Some(listen) = self.config.dns.listen.0 else {
            return Ok(None);
        };
        let subnets = self.config.dns.subnets.iter();
        let subnets: Result<_, CidrError> = subnets
            .map(|(net, region)| Ok((net.parse()?, region.clone())))
            .collect();
        let names = Names {
            routes: self.routes.clone(),
            registry: self.registry.view().watch(),
            fleet: self.fleet.clone(),
        };
        let config = DnsConfig {
            listen,
            origin: self.config.dns.origin.clone(),
            ttl: u32::try_from(self.config.dns.ttl.0.as_secs()).unwrap_or(u32::MAX),
            subnets: subnets.context("[dns] subnets")?,
        };
        let started = Dns::start(config, Arc::new(names), &self.sockets).await;
        Ok(Some(started.with_context(|| {
            format!("DNS on {listen}; `--dns off` goes without")
        })?))
    }
}

/// The fleet before anything was heard of it.
fn nobody(me: NodeId) -> Fleet {
    Fleet {
        me,
        ..Fleet::default()
    }
}

/// Has this node order certificates, where its configuration names an authority.
fn order_certificates(
    config: &Config,
    me: NodeId,
    registry: &Registry,
    fleet: &watch::Receiver<Arc<Fleet>>,
    vault: Option<Vault>,
) -> Result<()> {
    let Some(section) = &config.acme else {
        return Ok(());
    };
    let settings = certs::Settings::new(section, &config.dns.origin);
    let settings = settings.map_err(|rule| anyhow::anyhow!("[acme] {rule}"))?;
    let Some(vault) = vault else {
        bail!(
            "[acme]: this node holds no key to seal certificates with: its cluster was founded before there was one"
        );
    };
    let issuer = certs::Issuer {
        me,
        registry: registry.clone(),
        fleet: fleet.clone(),
        vault,
        settings,
    };
    tokio::spawn(issuer.run());
    Ok(())
}

/// The front door, which opens after the agent that asks it for its demand.
type Door = Arc<OnceLock<Arc<Ingress>>>;

fn demand_at(door: &Door) -> Arc<dyn Fn() -> Vec<Demand> + Send + Sync> {
    let door = door.clone();
    Arc::new(move || door.get().map(|d| d.demand()).unwrap_or_default())
}

/// Keeps images from filling the disk.
fn keep_house(config: &Config, images: &Images, agent: &Agent, registry: &Registry) -> Result<()> {
    let marks = config.runtime.image_gc.marks();
    let marks = marks.map_err(|rule| anyhow::anyhow!("[runtime] image_gc: {rule}"))?;
    let publisher = agent.clone();
    images.keep_house(marks, images_wanted(agent, registry), move || {
        publisher.publish();
    });
    Ok(())
}

/// Which images this node's instances and the cluster's services need.
fn images_wanted(agent: &Agent, registry: &Registry) -> WantedFn {
    let (record, registry) = (agent.record(), registry.clone());
    Arc::new(move || {
        let (record, state) = (record.borrow().clone(), registry.view().state());
        let running = record.instances.iter().map(|i| i.revision.clone());
        wanted(&state, &running.collect())
    })
}

/// The node's images, which go to peers and come from them.
fn open_images(
    config: &Config,
    data: &Path,
    me: NodeId,
    mesh: &Mesh,
    fleet: &watch::Receiver<Arc<Fleet>>,
) -> Result<Images> {
    let images = Images::open(data, &config.runtime.registries, &config.images)?
        .lazy(config.runtime.image_lazy);
    let (mesh, fleet) = (mesh.clone(), fleet.clone());
    let rate = config.runtime.image_peer_rate.map(|bytes| bytes.0);
    imagemesh::serve(&mesh, images.clone(), rate);
    let near = ImageMesh { me, mesh, fleet };
    images.store().set_near(Arc::new(near));
    Ok(images)
}

/// Keeps whom the mesh admits up to date with the registry, which opens after the mesh.
async fn forward(mut from: watch::Receiver<Arc<State>>, to: watch::Sender<Arc<State>>) {
    loop {
        to.send_replace(from.borrow_and_update().clone());
        if from.changed().await.is_err() {
            return;
        }
    }
}

fn gossip_config(
    identity: &Identity,
    incarnation: u64,
    advertise: SocketAddr,
    seeds: Vec<SocketAddr>,
) -> GossipConfig {
    GossipConfig {
        cluster_id: identity.cluster_id().to_owned(),
        me: identity.node(),
        incarnation,
        advertise,
        seeds,
        interval: INTERVAL,
    }
}

/// The containers' network, with user namespaces where this kernel can.
async fn open_network(
    config: &Config,
    data: &Path,
    sockets: &Sockets,
) -> Result<(Network, Protections)> {
    let mut network = network_config(config, data)?;
    let gateway = network.subnet.gateway().into();
    let doors = sockets.tcp_port(gateway).zip(sockets.pair_port(gateway));
    network.inward = doors.map(|(door, dns)| Inward { door, dns });
    let protections = Protections::look(data, &data.join(INSTANCES), &network.table);
    network.user_namespaces = protections.no_user_namespaces.is_none();
    Ok((Network::open(network).await?, protections))
}

/// What the front door shows of certificates, and what resumes sessions; both follow the registry.
fn keep_certificates(
    config: &Config,
    data: &Path,
    me: NodeId,
    registry: &Registry,
    fleet: &watch::Receiver<Arc<Fleet>>,
) -> Result<(Arc<Shelf>, Option<Tickets>)> {
    let vault = Vault::load(&data.join("identity"))?;
    let shelf = Arc::new(Shelf::default());
    let watched = registry.view().watch();
    tokio::spawn(certs::follow(watched, vault.clone(), shelf.clone()));
    order_certificates(config, me, registry, fleet, vault.clone())?;
    Ok((shelf, vault.map(Tickets::new)))
}

/// What the doors need of the other rooms.
struct DoorParts {
    routes: Arc<ArcSwap<Routes>>,
    local: Arc<Local>,
    fleet: watch::Receiver<Arc<Fleet>>,
    registry: watch::Receiver<Arc<State>>,
    peers: Peers,
    network: Network,
    shelf: Arc<Shelf>,
    tickets: Option<Tickets>,
    sockets: Arc<Sockets>,
    identity: Arc<Identity>,
}

/// The front door, its side for peers, and that for containers with their names.
async fn open_doors(
    config: &Config,
    parts: DoorParts,
    resolvers: &[SocketAddr],
) -> Result<(Arc<Ingress>, InnerDns)> {
    let DoorParts {
        routes,
        network,
        sockets,
        ..
    } = parts;
    let Peers { agent, mesh, .. } = parts.peers.clone();
    let deps = IngressDeps {
        routes: routes.clone(),
        local: parts.local,
        fleet: parts.fleet,
        registry: parts.registry,
        link: Arc::new(DoorLink(mesh.clone())),
        starter: Arc::new(parts.peers),
        shelf: parts.shelf,
        tickets: parts.tickets,
        sockets: sockets.clone(),
        callers: Arc::new(Neighbours {
            network: network.clone(),
            record: agent.record(),
        }),
    };
    let reset_key = parts.identity.derive("quic stateless reset of http3");
    let settings = ingress_config(config, network.gateway(), reset_key);
    let ingress = Ingress::start(settings, deps)?;
    mesh.serve(Kind::Proxy, Arc::new(ProxyServer(ingress.peer_door())));
    mesh.serve(Kind::Passage, Arc::new(PassageServer(ingress.peer_door())));

    let names = Arc::new(InnerNames { routes });
    let dns = inner_dns_config(network.gateway(), resolvers);
    let dns = InnerDns::start(dns, names, &sockets).await;
    let dns = dns.context("DNS for containers")?;
    let doors = Inward {
        door: ingress.inner().map_or(0, |addr| addr.port()),
        dns: dns.local_addr().port(),
    };
    network.lead_inward(doors).await?;
    Ok((Arc::new(ingress), dns))
}

fn open_meter(
    data: &Path,
    runtime: &Arc<Shims>,
    network: &Network,
    local: &Arc<Local>,
) -> Result<Meter> {
    let cables = Arc::new(network.clone());
    let opened = Meter::open(data, runtime.clone(), cables, local.clone());
    opened.context("the meter's books in DATA/meter")
}

async fn open_registry(
    config: &Config,
    data: &Path,
    identity: &Arc<Identity>,
    mesh: &Mesh,
    (fleet, known): (watch::Receiver<Arc<Fleet>>, watch::Receiver<Arc<State>>),
    mesh_address: SocketAddr,
) -> Result<Registry> {
    let dir = data.join("registry");
    let settings = consensus::Config {
        node: identity.node(),
        cluster_id: identity.cluster_id().to_owned(),
        dir: dir.clone(),
        tuning: consensus::Tuning::default(),
    };
    let carrier = Arc::new(RaftLink(mesh.clone()));
    let source = Arc::new(FeedLink {
        mesh: mesh.clone(),
        fleet,
        registry: known,
    });
    if authority(data)?.is_none() {
        return Ok(Registry::open_follower(settings, carrier, source).await?);
    }
    let marker = dir.join(FOUND_MARKER);
    if !marker.exists() {
        return Ok(Registry::open_voter(settings, carrier, source).await?);
    }
    let cluster = ClusterMeta {
        id: identity.cluster_id().to_owned(),
        ca_hash: identity.ca_hash(),
        created: clock::unix(),
    };
    let founder = founder(config, identity, mesh_address);
    let at = clock::unix();
    let registry = Registry::found(settings, carrier, source, cluster, founder, at).await?;
    fs::remove_file(&marker)?;
    Ok(registry)
}

fn serve_registry(mesh: &Mesh, registry: &Registry, known: watch::Sender<Arc<State>>) {
    tokio::spawn(forward(registry.view().watch(), known));
    let inbox = registry.clone();
    mesh.serve_calls(Kind::Raft, move |from, message: Vec<u8>| {
        let inbox = inbox.clone();
        async move { inbox.on_message(from, &message).await }
    });
    mesh.serve(Kind::Feed, Arc::new(FeedServer(registry.clone())));
}

/// The CA, where this node holds its key.
fn authority(data: &Path) -> Result<Option<Authority>> {
    let dir = data.join("identity");
    Authority::is_in(&dir)
        .then(|| Authority::load(&dir))
        .transpose()
        .map_err(Into::into)
}
