//! What a service is given besides its image, as flags of `deploy` say it: `--secret`, `--mount`, `--domain`.

use std::str::FromStr;

use scheduler::model::{Domain, DomainError, VolumeSource, units};

/// `K=NAME:KEY`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretFlag {
    pub name: String,
    pub place: String,
}

impl FromStr for SecretFlag {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not K=NAME:KEY");
        let (name, place) = text.split_once('=').ok_or_else(wrong)?;
        let (secret, key) = place.split_once([':', '/']).ok_or_else(wrong)?;
        if name.is_empty() || secret.is_empty() || key.is_empty() {
            return Err(wrong());
        }
        Ok(Self {
            name: name.to_owned(),
            place: format!("{secret}:{key}"),
        })
    }
}

/// `SRC:PATH[:ro]`, or `PATH-` to take away what is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountFlag {
    pub source: Option<VolumeSource>,
    pub at: String,
    pub read_only: bool,
}

impl FromStr for MountFlag {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(at) = text.strip_suffix('-').filter(|at| !at.contains(':')) {
            return Ok(Self {
                source: None,
                at: at.to_owned(),
                read_only: false,
            });
        }
        let mut parts = text.split(':');
        let (source, at, mode) = (parts.next(), parts.next(), parts.next());
        let read_only = match (mode, parts.next()) {
            (None | Some("rw"), None) => false,
            (Some("ro"), None) => true,
            _ => return Err(format!("`{text}` is not SRC:PATH[:ro]")),
        };
        let (Some(source), Some(at)) = (source, at) else {
            return Err(format!("`{text}` is not SRC:PATH[:ro]"));
        };
        Ok(Self {
            source: Some(volume_source(source)?),
            at: at.to_owned(),
            read_only,
        })
    }
}

/// A domain, or `DOMAIN-` to take it away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DomainFlag {
    pub domain: Domain,
    pub away: bool,
}

impl FromStr for DomainFlag {
    type Err = DomainError;

    fn from_str(text: &str) -> Result<Self, DomainError> {
        let (name, away) = text.strip_suffix('-').map_or((text, false), |n| (n, true));
        let domain = name.parse()?;
        Ok(Self { domain, away })
    }
}

fn volume_source(text: &str) -> Result<VolumeSource, String> {
    if text.starts_with('/') {
        let path = text.to_owned();
        return Ok(VolumeSource::HostPath { path });
    }
    let (kind, size) = text.split_once('=').unwrap_or((text, "0"));
    if matches!(kind, "emptydir" | "memory") {
        return Ok(VolumeSource::EmptyDir {
            memory: kind == "memory",
            size_bytes: units::bytes(size).map_err(|e| e.to_string())?,
        });
    }
    let named = |name: &str| name.to_owned();
    match text.split_once('/') {
        Some(("config", name)) => Ok(VolumeSource::ConfigMap {
            name: named(name),
            optional: false,
        }),
        Some(("secret", name)) => Ok(VolumeSource::Secret {
            name: named(name),
            optional: false,
        }),
        Some(("volume", name)) => Ok(VolumeSource::Local { name: named(name) }),
        _ => Err(format!(
            "`{text}` cannot be mounted: write emptydir, memory, config/NAME, secret/NAME, \
             volume/NAME or a /path of the node"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts() {
        let of = |text: &str| text.parse::<MountFlag>();
        let memory = of("memory=16Mi:/scratch").unwrap();
        let source = VolumeSource::EmptyDir {
            memory: true,
            size_bytes: 16 << 20,
        };
        assert_eq!((memory.source, memory.read_only), (Some(source), false));
        let host = of("/srv/share:/data:ro").unwrap();
        assert_eq!((host.at.as_str(), host.read_only), ("/data", true));
        assert_eq!(of("/data-").unwrap().source, None);
        for bad in [
            "",
            "x",
            "cache:/x",
            "config:/x",
            "emptydir=big:/x",
            "volume/a:/x:wo",
        ] {
            assert!(of(bad).is_err(), "{bad}");
        }
        let secret: SecretFlag = "URL=db:url".parse().unwrap();
        assert_eq!(secret.place, "db:url");
        let away: DomainFlag = "www.example.com/api-".parse().unwrap();
        assert_eq!((away.domain.path(), away.away), ("/api", true));
        assert!("example.com:80".parse::<DomainFlag>().is_err());
        for bad in ["URL", "URL=db", "=db:url", "URL=:url", "URL=db:"] {
            assert!(bad.parse::<SecretFlag>().is_err(), "{bad}");
        }
    }
}
