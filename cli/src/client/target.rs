//! Where a node's API is, as people write it.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Where a node's API is when nothing else is said.
pub const DEFAULT_SOCKET: &str = "/var/lib/selvedge/run/api.sock";
const DEFAULT_PORT: u16 = 8420;

/// The address of a node's API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    Unix(PathBuf),
    Tcp(String),
}

impl FromStr for Target {
    type Err = String;

    /// `unix:/path`, a path, `HOST:PORT`, `HOST`, each TCP one also with `http://`.
    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            return Ok(Self::Unix(path.into()));
        }
        if text.starts_with('/') || text.starts_with("./") {
            return Ok(Self::Unix(text.into()));
        }
        if text.starts_with("https://") {
            return Err("the API speaks no TLS: use its unix socket or a tunnel".to_owned());
        }
        let host = text
            .strip_prefix("http://")
            .unwrap_or(text)
            .trim_end_matches('/');
        if host.is_empty() || host.contains('/') || host.contains(char::is_whitespace) {
            return Err(format!(
                "`{text}` is no address: write unix:PATH or HOST:PORT"
            ));
        }
        let has_port = host.rsplit_once(':').is_some_and(|(before, port)| {
            port.parse::<u16>().is_ok() && (!before.contains(':') || before.ends_with(']'))
        });
        if has_port {
            return Ok(Self::Tcp(host.to_owned()));
        }
        match host.parse::<std::net::Ipv6Addr>() {
            Ok(ip) => Ok(Self::Tcp(format!("[{ip}]:{DEFAULT_PORT}"))),
            Err(_) => Ok(Self::Tcp(format!("{host}:{DEFAULT_PORT}"))),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(host) => f.write_str(host),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let tcp = |host: &str| Ok(Target::Tcp(host.to_owned()));
        let unix = |path: &str| Ok(Target::Unix(path.into()));
        assert_eq!("unix:/run/api.sock".parse(), unix("/run/api.sock"));
        assert_eq!("unix:///run/api.sock".parse(), unix("/run/api.sock"));
        assert_eq!("/run/api.sock".parse(), unix("/run/api.sock"));
        assert_eq!("10.0.0.1".parse(), tcp("10.0.0.1:8420"));
        assert_eq!("http://edge:9000/".parse(), tcp("edge:9000"));
        assert_eq!("::1".parse(), tcp("[::1]:8420"));
        assert_eq!("[::1]:99".parse(), tcp("[::1]:99"));
        assert!("https://edge".parse::<Target>().is_err());
        assert!("a/b".parse::<Target>().is_err());
    }
}
