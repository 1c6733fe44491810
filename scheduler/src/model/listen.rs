//! What a service takes besides HTTP: ports of its own, and who among the services may call it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{Name, NameError, ServiceKey};

/// How long nothing may move on a connection before it is given up, where a service says nothing.
const IDLE_SECONDS: u32 = 3600;
/// The same for a datagram's sender: what NAT gateways give a flow.
const UDP_IDLE_SECONDS: u32 = 60;

/// A port that a service's connections or datagrams come in on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Listen {
    pub port: u16,
    pub protocol: ListenProtocol,
    /// The container's port; 0 is the service's `port`.
    #[serde(default)]
    pub to: u16,
    /// With TLS: the names that connections ask for; `*.example.com` stands for one more label.
    #[serde(default)]
    pub sni: Vec<String>,
    /// The container is told whose connection it is, by the PROXY protocol's version 2.
    #[serde(default)]
    pub proxy_protocol: bool,
    /// A connection or flow on which nothing moves for so long ends; 0 is the protocol's default.
    #[serde(default)]
    pub idle_seconds: u32,
    /// Only containers of the cluster may come, at the service's own address: no node listens.
    #[serde(default)]
    pub private: bool,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ListenProtocol {
    /// Bytes, whatever they mean.
    #[default]
    Tcp,
    /// TLS that only the container can read: services on one port are told apart by the name
    /// that the client asks for.
    Tls,
    Udp,
}

/// A port of a node's: TCP's or UDP's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Socket {
    pub udp: bool,
    pub port: u16,
}

impl Listen {
    #[must_use]
    pub fn socket(&self) -> Socket {
        Socket {
            udp: self.protocol == ListenProtocol::Udp,
            port: self.port,
        }
    }

    #[must_use]
    pub fn idle_seconds(&self) -> u32 {
        match (self.idle_seconds, self.protocol) {
            (0, ListenProtocol::Udp) => UDP_IDLE_SECONDS,
            (0, _) => IDLE_SECONDS,
            (seconds, _) => seconds,
        }
    }

    /// Whether both cannot be had by different services: one socket, and not two names on it.
    #[must_use]
    pub fn clashes(&self, other: &Self) -> bool {
        let tls = |l: &Self| l.protocol == ListenProtocol::Tls;
        let apart = || !self.sni.iter().any(|name| other.sni.contains(name));
        self.socket() == other.socket() && !(tls(self) && tls(other) && apart())
    }
}

impl fmt::Display for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = if self.udp { "udp" } else { "tcp" };
        write!(f, "{}/{protocol}", self.port)
    }
}

/// Who may call a service from inside: `shop/web`, `shop/*` or `*`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Caller {
    /// `None` is every namespace.
    namespace: Option<Name>,
    /// `None` is every service in it.
    name: Option<Name>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallerError {
    #[error("`{0}` names no services: write shop/web, shop/* or *")]
    Unreadable(String),
    #[error(transparent)]
    Name(#[from] NameError),
}

impl Caller {
    #[must_use]
    pub fn covers(&self, service: &ServiceKey) -> bool {
        let namespace = self.namespace.as_ref();
        namespace.is_none_or(|n| *n == service.namespace)
            && self.name.as_ref().is_none_or(|n| *n == service.name)
    }
}

impl FromStr for Caller {
    type Err = CallerError;

    fn from_str(text: &str) -> Result<Self, CallerError> {
        let unreadable = || CallerError::Unreadable(text.chars().take(60).collect());
        if text == "*" {
            let (namespace, name) = (None, None);
            return Ok(Self { namespace, name });
        }
        let (namespace, name) = text.split_once('/').ok_or_else(unreadable)?;
        let namespace = Some(Name::new(namespace)?);
        let name = match name {
            "*" => None,
            name => Some(Name::new(name)?),
        };
        Ok(Self { namespace, name })
    }
}

impl TryFrom<String> for Caller {
    type Error = CallerError;
    fn try_from(text: String) -> Result<Self, CallerError> {
        text.parse()
    }
}

impl From<Caller> for String {
    fn from(caller: Caller) -> Self {
        caller.to_string()
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.namespace, &self.name) {
            (None, _) => f.write_str("*"),
            (Some(namespace), None) => write!(f, "{namespace}/*"),
            (Some(namespace), Some(name)) => write!(f, "{namespace}/{name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_are_read_as_written_and_cover_what_they_say() {
        let key = |namespace: &str, name: &str| ServiceKey {
            namespace: Name::new(namespace).unwrap(),
            name: Name::new(name).unwrap(),
        };
        let table = [
            ("*", [true, true, true]),
            ("shop/*", [true, true, false]),
            ("shop/web", [true, false, false]),
        ];
        let asked = [key("shop", "web"), key("shop", "api"), key("bank", "web")];
        for (text, want) in table {
            let caller: Caller = text.parse().unwrap();
            assert_eq!(caller.to_string(), text);
            assert_eq!(asked.clone().map(|k| caller.covers(&k)), want, "{text}");
        }
        for text in ["", "web", "*/web", "shop/", "/web", "shop/a/b", "Shop/web"] {
            assert!(text.parse::<Caller>().is_err(), "{text}");
        }
    }

    #[test]
    fn two_services_share_a_port_only_by_different_names() {
        use ListenProtocol::{Tcp, Tls, Udp};
        let listen = |port, protocol, sni: &[&str]| Listen {
            port,
            protocol,
            sni: sni.iter().map(|s| (*s).to_owned()).collect(),
            ..Listen::default()
        };
        let a = listen(443, Tls, &["a.test", "b.test"]);
        let table = [
            (listen(443, Tls, &["c.test"]), false),
            (listen(443, Tls, &["b.test"]), true),
            (listen(443, Tcp, &[]), true),
            (listen(443, Udp, &[]), false),
            (listen(444, Tls, &["a.test"]), false),
        ];
        for (b, want) in table {
            assert_eq!((a.clashes(&b), b.clashes(&a)), (want, want), "{b:?}");
        }
    }
}
