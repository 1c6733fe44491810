//! What a manifest says of connections besides HTTP, and of callers inside.

use scheduler::model::{Caller, Egress, Listen, ListenProtocol};

use super::lower::seconds;
use super::section::Section;
use super::{Manifest, ManifestError};

type Read<T> = Result<T, ManifestError>;

/// `[[listen]]`: one table a port.
pub(super) fn listens(top: &Section<'_>, manifest: &mut Manifest) -> Read<()> {
    let known = [
        "port",
        "protocol",
        "to",
        "sni",
        "proxy_protocol",
        "idle",
        "private",
    ];
    for table in top.tables("listen", &known)? {
        let port = table.parsed("port", port)?;
        let port = port.ok_or_else(|| table.fault("port", "`port` is missing", ""))?;
        manifest.spec.listen.push(Listen {
            port,
            protocol: table.parsed("protocol", protocol)?.unwrap_or_default(),
            to: table.parsed("to", self::port)?.unwrap_or(0),
            sni: table.list("sni")?.unwrap_or_default(),
            proxy_protocol: table.flag("proxy_protocol")?.unwrap_or(false),
            idle_seconds: table.parsed("idle", seconds)?.unwrap_or(0),
            private: table.flag("private")?.unwrap_or(false),
        });
    }
    Ok(())
}

/// `allow = ["10.0.0.0/8:443"]`, where it may go; `callers = ["shop/web"]`, who may come.
pub(super) fn network(top: &Section<'_>, manifest: &mut Manifest) -> Read<()> {
    let Some(network) = top.section("network", &["allow", "callers"])? else {
        return Ok(());
    };
    for text in network.list("allow")?.unwrap_or_default() {
        let egress = text.parse::<Egress>();
        let help = "write networks as 10.0.0.0/8, with ports as 10.0.0.0/8:443";
        let egress = egress.map_err(|error| network.fault("allow", error, help))?;
        manifest.spec.egress.push(egress);
    }
    for text in network.list("callers")?.unwrap_or_default() {
        let caller = text.parse::<Caller>();
        let help = "write NAMESPACE/SERVICE, NAMESPACE/* or *";
        let caller = caller.map_err(|error| network.fault("callers", error, help))?;
        manifest.spec.callers.push(caller);
    }
    Ok(())
}

fn port(text: &str) -> Result<u16, String> {
    let port = text.parse().ok().filter(|port| *port > 0);
    port.ok_or_else(|| format!("`{text}` is no port from 1 to 65535"))
}

fn protocol(text: &str) -> Result<ListenProtocol, String> {
    match text {
        "tcp" => Ok(ListenProtocol::Tcp),
        "tls" => Ok(ListenProtocol::Tls),
        "udp" => Ok(ListenProtocol::Udp),
        _ => Err(format!("`{text}` is no protocol: write tcp, tls or udp")),
    }
}
