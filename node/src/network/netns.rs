//! Making and removing one container's network: a namespace kept by a bound file, a veth pair from
//! the bridge into it, its address and route.
//!
//! A namespace is entered only by a thread made for it, which ends there: no thread of the
//! async runtime is ever anywhere but in the node's own network.
#![allow(unsafe_code)] // unshare(2), with its reason.

use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use futures::TryStreamExt;
use rtnetlink::packet_route::link::{InfoData, InfoKind, InfoVeth};
use rtnetlink::packet_route::neighbour::{NeighbourFlags, NeighbourState};
use rtnetlink::{
    Handle, LinkBridge, LinkBridgePort, LinkMessageBuilder, LinkUnspec, LinkVeth,
    RouteMessageBuilder,
};
use rustix::mount::UnmountFlags;
use rustix::thread::{LinkNameSpaceType, UnshareFlags};

use super::{NetworkConfig, NetworkError, Slot, Traffic};
use crate::userns::{self, Block};

/// The interface a container sees.
const INSIDE: &str = "eth0";

/// Opens a netlink socket in the calling thread's network; it stays there.
pub fn connect() -> Result<Handle, NetworkError> {
    let (connection, handle, _) = rtnetlink::new_connection().map_err(|e| NetworkError::Io {
        what: "netlink",
        source: e,
    })?;
    tokio::spawn(connection);
    Ok(handle)
}

/// The index of a link by its name, if there is one.
pub async fn index(handle: &Handle, name: &str) -> Option<u32> {
    let mut found = handle.link().get().match_name(name.to_owned()).execute();
    Some(found.try_next().await.ok()??.header.index)
}

/// Makes the bridge with the gateway's address, or takes the one that is there. Its hardware address is
/// fixed: a bridge would otherwise take over that of some port and change with it.
pub async fn bridge(handle: &Handle, config: &NetworkConfig) -> Result<u32, NetworkError> {
    let failed = |what| move |source| NetworkError::Netlink { what, source };
    let gateway = config.subnet.gateway();
    if index(handle, &config.bridge).await.is_none() {
        let message = LinkBridge::new(&config.bridge)
            .address(mac(gateway).to_vec())
            .build();
        handle
            .link()
            .add(message)
            .execute()
            .await
            .map_err(failed("making the bridge"))?;
    }
    let index = index(handle, &config.bridge)
        .await
        .ok_or(NetworkError::NoBridge)?;
    handle
        .address()
        .add(index, IpAddr::V4(gateway), config.subnet.prefix())
        .replace()
        .execute()
        .await
        .map_err(failed("giving the bridge its address"))?;
    let up = LinkUnspec::new_with_index(index).up().build();
    handle
        .link()
        .set(up)
        .execute()
        .await
        .map_err(failed("raising the bridge"))?;
    Ok(index)
}

/// Removes a link; one that is not there is removed.
pub async fn remove_link(handle: &Handle, name: &str) -> Result<(), NetworkError> {
    let Some(index) = index(handle, name).await else {
        return Ok(());
    };
    let removed = handle.link().del(index).execute().await;
    match removed {
        Err(_) if self::index(handle, name).await.is_none() => Ok(()),
        other => other.map_err(|source| NetworkError::Netlink {
            what: "removing a link",
            source,
        }),
    }
}

/// Links about to go are put into this group, as the kernel waits once for all that it takes away
/// together and once for each otherwise. Nobody else would choose this number.
const LEAVING: u32 = 0x5e1e_dead;

/// Removes links; what is not there is removed. Blocks, and the kernel takes 20 ms: for a thread
/// that serves nobody else.
pub fn remove_links(names: &[&str]) -> Result<(), NetworkError> {
    on_own_thread(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()
            .map_err(io_failed("a runtime"))?;
        runtime.block_on(remove_links_here(names))
    })
}

async fn remove_links_here(names: &[&str]) -> Result<(), NetworkError> {
    use rtnetlink::packet_route::link::LinkAttribute;
    let host = connect()?;
    for name in names {
        if let Some(index) = index(&host, name).await {
            let leaving = LinkUnspec::new_with_index(index)
                .append_extra_attribute(LinkAttribute::Group(LEAVING))
                .build();
            // One that stays out of the group goes alone below.
            let _ = host.link().set(leaving).execute().await;
        }
    }
    let mut all = host.link().del(0);
    let group = LinkAttribute::Group(LEAVING);
    all.message_mut().attributes.push(group);
    // There may be none, or another node's call took them along.
    let _ = all.execute().await;
    for name in names {
        remove_link(&host, name).await?;
    }
    Ok(())
}

/// Names of links that begin with `prefix`.
pub async fn links(handle: &Handle, prefix: &str) -> Vec<String> {
    use rtnetlink::packet_route::link::LinkAttribute;
    let mut names = Vec::new();
    let mut all = Box::pin(handle.link().get().execute());
    while let Ok(Some(link)) = all.try_next().await {
        names.extend(link.attributes.into_iter().filter_map(|a| match a {
            LinkAttribute::IfName(name) if name.starts_with(prefix) => Some(name),
            _ => None,
        }));
    }
    names
}

/// What went through a port on the bridge. What it sends is what its container receives.
pub async fn traffic(handle: &Handle, port: &str) -> Option<Traffic> {
    use rtnetlink::packet_route::link::LinkAttribute;
    let mut found = handle.link().get().match_name(port.to_owned()).execute();
    let link = found.try_next().await.ok()??;
    link.attributes.into_iter().find_map(|a| match a {
        LinkAttribute::Stats64(port) => Some(Traffic {
            in_bytes: port.tx_bytes,
            in_packets: port.tx_packets,
            out_bytes: port.rx_bytes,
            out_packets: port.rx_packets,
        }),
        _ => None,
    })
}

/// A hardware address of our own making, one per address.
pub fn mac(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    // Locally administered, and clear of Docker's 02:42.
    [0x0a, 0x5e, a, b, c, d]
}

/// Makes `slot`. Blocks; takes back what it made when it fails.
pub fn make(config: &NetworkConfig, bridge: u32, slot: &Slot) -> Result<(), NetworkError> {
    let made = on_own_thread(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()
            .map_err(io_failed("a runtime"))?;
        runtime.block_on(make_here(config, bridge, slot))
    });
    if made.is_err() {
        let _ = unbind(&slot.netns);
    }
    made
}

/// Runs `work` on a thread that may change its namespaces, as it ends with it.
fn on_own_thread<T: Send>(
    work: impl FnOnce() -> Result<T, NetworkError> + Send,
) -> Result<T, NetworkError> {
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .name("netns".to_owned())
            .spawn_scoped(scope, work)
            .map_err(io_failed("a thread"))?
            .join()
            .unwrap_or(Err(NetworkError::NoBridge))
    })
}

async fn make_here(config: &NetworkConfig, bridge: u32, slot: &Slot) -> Result<(), NetworkError> {
    let host = connect()?;
    File::create(&slot.netns).map_err(io_failed("the namespace's file"))?;
    fail::fail_point!("network::named");
    leave(slot.ids).map_err(io_failed("a network namespace"))?;
    rustix::mount::mount_bind("/proc/thread-self/ns/net", &slot.netns)
        .map_err(|e| io_failed("keeping the namespace")(e.into()))?;
    fail::fail_point!("network::kept");
    let namespace =
        File::open("/proc/thread-self/ns/net").map_err(io_failed("opening the namespace"))?;
    sysctls();
    let inside = connect()?;
    cable(&host, bridge, slot, &namespace).await?;
    fail::fail_point!("network::plugged");
    furnish(&inside, config, slot).await
}

/// Takes this thread into a new network namespace: one of the thread's own user namespace, or of a new
/// one with these ids.
fn leave(ids: Option<Block>) -> io::Result<()> {
    if let Some(block) = ids {
        let network = userns::network(block)?;
        let kind = Some(LinkNameSpaceType::Network);
        return Ok(rustix::thread::move_into_link_name_space(
            network.as_fd(),
            kind,
        )?);
    }
    // SAFETY: only this thread changes, it was made for this, and a network namespace holds no
    // memory or descriptors of others.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }?;
    Ok(())
}

/// Low ports for every user (there is no other tenant to protect in here), and no IPv6.
fn sysctls() {
    for (name, value) in [
        ("ipv4/ip_unprivileged_port_start", "0"),
        // It is the default's too from then on.
        ("ipv6/conf/all/disable_ipv6", "1"),
    ] {
        // A kernel may lack either; the firewall drops IPv6 anyway.
        let _ = fs::write(Path::new("/proc/sys/net").join(name), value);
    }
}

/// The pair: one end on the bridge, closed to other ports, the other in the namespace. Each side is told where
/// the other is: what the kernel finds out for itself stands in one table for the whole machine, which by
/// default is full (`gc_thresh3`) with five hundred containers. The bridge is told behind which port the container
/// is: a frame to one that it never heard goes to all ports, where others could see it, and with a thousand of
/// them the last ones never get it (`netdev_max_backlog`).
async fn cable(
    host: &Handle,
    bridge: u32,
    slot: &Slot,
    namespace: &File,
) -> Result<(), NetworkError> {
    let failed = |what| move |source| NetworkError::Netlink { what, source };
    let peer = LinkMessageBuilder::<LinkUnspec>::new()
        .name(INSIDE)
        .address(slot.mac.to_vec())
        .setns_by_fd(namespace.as_raw_fd())
        .build();
    let pair = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
        .name(slot.port.as_str())
        .controller(bridge)
        .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
        .build();
    host.link()
        .add(pair)
        .execute()
        .await
        .map_err(failed("making a veth pair"))?;
    fail::fail_point!("network::paired");
    let finish = async {
        let port = index(host, &slot.port)
            .await
            .ok_or(NetworkError::NoBridge)?;
        let alone = LinkBridgePort::new(port)
            .isolated(true)
            .learning(false)
            .flood(false)
            .mcast_flood(false)
            .bcast_flood(false)
            .build();
        host.link()
            .set_port(alone)
            .execute()
            .await
            .map_err(failed("isolating a port"))?;
        host.neighbours()
            .add_bridge(port, &slot.mac)
            .state(NeighbourState::Noarp)
            .flags(NeighbourFlags::Controller)
            .replace()
            .execute()
            .await
            .map_err(failed("telling the bridge a container's port"))?;
        let up = LinkUnspec::new_with_index(port).up().build();
        host.link()
            .set(up)
            .execute()
            .await
            .map_err(failed("raising a port"))?;
        host.neighbours()
            .add(bridge, IpAddr::V4(slot.address))
            .link_layer_address(&slot.mac)
            .replace()
            .execute()
            .await
            .map_err(failed("telling the bridge a container's hardware address"))
    };
    let finished = finish.await;
    if finished.is_err() {
        let _ = remove_link(host, &slot.port).await;
    }
    finished
}

/// The bridge's word for where a container was; one that it has not is forgotten.
pub async fn forget(host: &Handle, bridge: u32, slot: &Slot) {
    let mut known = host.neighbours().add(bridge, IpAddr::V4(slot.address));
    let known = known.message_mut().clone();
    let _ = host.neighbours().del(known).execute().await;
}

/// Loopback, address, default route and where that leads, seen from inside.
async fn furnish(inside: &Handle, config: &NetworkConfig, slot: &Slot) -> Result<(), NetworkError> {
    let failed = |what| move |source| NetworkError::Netlink { what, source };
    for name in ["lo", INSIDE] {
        let index = index(inside, name).await.ok_or(NetworkError::NoBridge)?;
        if name == INSIDE {
            inside
                .address()
                .add(index, IpAddr::V4(slot.address), config.subnet.prefix())
                .execute()
                .await
                .map_err(failed("giving a container its address"))?;
        }
        let up = LinkUnspec::new_with_index(index).up().build();
        inside
            .link()
            .set(up)
            .execute()
            .await
            .map_err(failed("raising a link inside"))?;
        if name == INSIDE {
            let gateway = config.subnet.gateway();
            inside
                .neighbours()
                .add(index, IpAddr::V4(gateway))
                .link_layer_address(&mac(gateway))
                .replace()
                .execute()
                .await
                .map_err(failed("telling a container the gateway's hardware address"))?;
        }
    }
    let default = RouteMessageBuilder::<Ipv4Addr>::new()
        .gateway(config.subnet.gateway())
        .build();
    inside
        .route()
        .add(default)
        .execute()
        .await
        .map_err(failed("the default route"))
}

/// Removes a namespace's file; the namespace ends with the last process in it.
pub fn unbind(path: &Path) -> io::Result<()> {
    match rustix::mount::unmount(path, UnmountFlags::DETACH) {
        Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    match fs::remove_file(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Whether a file is a bound namespace and not what a reboot left of one.
pub fn is_bound(path: &Path) -> bool {
    /// `NSFS_MAGIC` of linux/magic.h.
    const NSFS: u64 = 0x6e73_6673;
    rustix::fs::statfs(path).is_ok_and(|stat| stat.f_type.unsigned_abs() == NSFS)
}

fn io_failed(what: &'static str) -> impl FnOnce(io::Error) -> NetworkError {
    move |source| NetworkError::Io { what, source }
}
