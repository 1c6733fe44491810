//! What this machine must be before it becomes a node: root, with free ports, a name and an
//! address others can reach.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::unix::fs::MetadataExt;

use netfabric::transport::join::advertise_addr;
use scheduler::model::Name;

use crate::args::NodeFlags;
use crate::failure::{Exit, Failure};

/// An address nobody has (TEST-NET-1): asking the kernel for the way there sends nothing.
const FAR_AWAY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 9);

/// Containers need namespaces, mounts and cgroups.
pub fn require_root() -> Result<(), Failure> {
    let root = std::fs::metadata("/proc/self").is_ok_and(|me| me.uid() == 0);
    if root {
        return Ok(());
    }
    Err(Failure::new(
        Exit::NotAuthorised,
        "a node needs root: it makes namespaces, mounts and cgroups",
    )
    .hint("sudo selvedge …"))
}

/// The name given, or the host's first label made a name.
pub fn name(given: Option<&Name>) -> Result<Name, Failure> {
    if let Some(name) = given {
        return Ok(name.clone());
    }
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let label = host
        .trim()
        .split('.')
        .next()
        .unwrap_or_default()
        .to_ascii_lowercase();
    Name::new(label.replace('_', "-")).map_err(|_| {
        Failure::usage(format!(
            "the host's name `{}` cannot be a node's",
            host.trim()
        ))
        .hint("--name NAME gives it one")
    })
}

/// The mesh address others use: the one given, or the one this machine reaches `target` from.
pub fn advertised(flags: &NodeFlags, target: Option<SocketAddr>) -> Result<SocketAddr, Failure> {
    let port = flags.mesh_listen.port();
    if flags.advertise != "auto" {
        let given = &flags.advertise;
        let with_port = given.parse::<SocketAddr>();
        let alone = || given.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, port));
        return with_port
            .or_else(|_| alone())
            .map_err(|_| Failure::usage(format!("--advertise: `{given}` is not IP:PORT or auto")));
    }
    if !flags.mesh_listen.ip().is_unspecified() {
        return Ok(flags.mesh_listen);
    }
    let found = advertise_addr(target.unwrap_or(FAR_AWAY));
    found.map(|ip| SocketAddr::new(ip, port)).map_err(|error| {
        let message = format!("cannot tell at which address others reach this machine: {error}");
        Failure::new(Exit::Failed, message).hint(format!("name it: --advertise IP:{port}"))
    })
}

#[derive(Clone, Copy)]
enum Transport {
    Tcp,
    Udp,
}

/// Fails when something else listens where the node will.
pub fn ports_are_free(flags: &NodeFlags) -> Result<(), Failure> {
    if let Some(addr) = listen("--http", &flags.http)? {
        free(Transport::Tcp, addr, "the front door", "--http :8080")?;
    }
    if let Some(addr) = listen("--https", &flags.https)? {
        let help = "--https :8443 or --https off";
        free(Transport::Tcp, addr, "the front door's TLS", help)?;
    }
    if let Some(addr) = listen("--dns", &flags.dns)? {
        for transport in [Transport::Udp, Transport::Tcp] {
            free(
                transport,
                addr,
                "DNS",
                "--dns :5353, --dns IP:53 or --dns off",
            )?;
        }
    }
    free(
        Transport::Tcp,
        flags.api,
        "the operator's API",
        "--api 127.0.0.1:8430",
    )?;
    free(
        Transport::Udp,
        flags.mesh_listen,
        "the mesh",
        "--mesh-listen '[::]:8432'",
    )
}

/// `:PORT`, `IP:PORT`, or `off`.
fn listen(flag: &str, text: &str) -> Result<Option<SocketAddr>, Failure> {
    if text == "off" {
        return Ok(None);
    }
    let any = |port: &str| {
        port.parse()
            .map(|port| SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port))
    };
    let wrong = || Failure::usage(format!("{flag}: `{text}` is not :PORT, IP:PORT or off"));
    match text.strip_prefix(':') {
        Some(port) => any(port).map(Some).map_err(|_| wrong()),
        None => text.parse().map(Some).map_err(|_| wrong()),
    }
}

fn free(transport: Transport, addr: SocketAddr, what: &str, other: &str) -> Result<(), Failure> {
    let bind = |addr: SocketAddr| match transport {
        Transport::Tcp => TcpListener::bind(addr).map(drop),
        Transport::Udp => UdpSocket::bind(addr).map(drop),
    };
    let kind = match transport {
        Transport::Tcp => "TCP",
        Transport::Udp => "UDP",
    };
    let without_v6 = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), addr.port());
    let bound = match bind(addr) {
        // A machine without IPv6 listens on IPv4, as the node will.
        Err(error)
            if addr.ip() == Ipv6Addr::UNSPECIFIED && error.kind() != ErrorKind::AddrInUse =>
        {
            bind(without_v6)
        }
        bound => bound,
    };
    bound.map_err(|error| match error.kind() {
        ErrorKind::AddrInUse => {
            let message = format!("port {} ({kind}), meant for {what}, is taken", addr.port());
            let find = if matches!(transport, Transport::Tcp) {
                "ss -ltnp"
            } else {
                "ss -lunp"
            };
            Failure::new(Exit::Conflict, message).hint(format!(
                "another one: {other}; who has it: {find} 'sport = :{}'",
                addr.port()
            ))
        }
        ErrorKind::AddrNotAvailable => {
            let message = format!(
                "{what} cannot listen on {}: it is no address of this machine",
                addr.ip()
            );
            Failure::usage(message).hint(format!("for example {other}"))
        }
        _ => Failure::new(
            Exit::Failed,
            format!("{what} cannot listen on {addr} ({kind}): {error}"),
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_says_which_flag_helps() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = taken.local_addr().unwrap();
        let failure = free(Transport::Tcp, addr, "the front door", "--http :8080").unwrap_err();
        assert_eq!(failure.exit, Exit::Conflict);
        assert!(
            failure.message.contains(&addr.port().to_string()),
            "{failure}"
        );
        assert!(failure.hint.contains("--http :8080"));
        drop(taken);
        free(Transport::Tcp, addr, "the front door", "--http :8080").unwrap();
        let nobody = "203.0.113.9:1".parse().unwrap();
        assert_eq!(
            free(Transport::Udp, nobody, "DNS", "x").unwrap_err().exit,
            Exit::Usage
        );
    }

    #[test]
    fn listens() {
        assert_eq!(
            listen("--http", ":80").unwrap(),
            Some("[::]:80".parse().unwrap())
        );
        assert_eq!(listen("--http", "off").unwrap(), None);
        assert!(listen("--http", "80").is_err());
        assert!(listen("--http", ":99999").is_err());
    }
}
