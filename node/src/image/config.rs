//! An image's configuration document: how it wants to be run, and the diff ids of its layers. Says
//! what the image says; what a service makes of it is decided elsewhere.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::error::ImageError;
use super::manifest::host_architecture;

/// The image's configuration document, the parts that matter here.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct ConfigFile {
    #[serde(default)]
    pub architecture: String,
    #[serde(default)]
    pub os: String,
    #[serde(default)]
    pub config: Option<ConfigBody>,
    pub rootfs: RootFs,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct RootFs {
    #[serde(default)]
    pub diff_ids: Vec<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct ConfigBody {
    pub user: Option<String>,
    pub exposed_ports: Option<BTreeMap<String, serde_json::Value>>,
    pub env: Option<Vec<String>>,
    pub entrypoint: Option<Vec<String>>,
    pub cmd: Option<Vec<String>>,
    pub working_dir: Option<String>,
    pub stop_signal: Option<String>,
}

impl ConfigFile {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, ImageError> {
        let file: Self = serde_json::from_slice(bytes)
            .map_err(|e| ImageError::malformed("image configuration", e))?;
        Ok(file)
    }

    /// Refuses an image built for another machine: it would die with "exec format error".
    pub(super) fn check_platform(&self, reference: &str) -> Result<(), ImageError> {
        let arch = host_architecture();
        let fits = |have: &str, want: &str| have.is_empty() || have == want;
        if fits(&self.os, "linux") && fits(&self.architecture, arch) {
            return Ok(());
        }
        Err(ImageError::NoPlatform {
            reference: reference.to_owned(),
            wanted: format!("linux/{arch}"),
            offered: format!("{}/{}", self.os, self.architecture),
        })
    }
}

/// What an image says about how to run it. Empty means it does not say.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    /// `NAME=VALUE`, as written in the image.
    pub env: Vec<String>,
    pub working_dir: String,
    /// `user`, `user:group`, or numbers, as written in the image.
    pub user: String,
    /// TCP ports, ascending.
    pub exposed_ports: Vec<u16>,
    pub stop_signal: String,
}

impl From<&ConfigFile> for ImageConfig {
    fn from(file: &ConfigFile) -> Self {
        let body = file.config.clone().unwrap_or_default();
        let tcp = |text: &String| match text.split_once('/') {
            Some((port, "tcp")) => port.parse().ok(),
            Some(_) => None,
            None => text.parse().ok(),
        };
        let mut exposed_ports: Vec<u16> = body
            .exposed_ports
            .unwrap_or_default()
            .keys()
            .filter_map(tcp)
            .collect();
        exposed_ports.sort_unstable();
        Self {
            entrypoint: body.entrypoint.unwrap_or_default(),
            cmd: body.cmd.unwrap_or_default(),
            env: body.env.unwrap_or_default(),
            working_dir: body.working_dir.unwrap_or_default(),
            user: body.user.unwrap_or_default(),
            exposed_ports,
            stop_signal: body.stop_signal.unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dockers_nulls_are_read_as_nothing() {
        let text = r#"{"architecture":"amd64","os":"linux","config":{"Entrypoint":null,
            "Cmd":["sh"],"Env":null,"ExposedPorts":{"8080/tcp":{},"53/udp":{},"80/tcp":{}}},
            "rootfs":{"type":"layers","diff_ids":[]}}"#;
        let config = ImageConfig::from(&ConfigFile::parse(text.as_bytes()).expect("valid"));
        assert_eq!(config.cmd, ["sh"]);
        assert_eq!(config.exposed_ports, [80, 8080]);
        assert!(config.entrypoint.is_empty() && config.env.is_empty());
    }
}
