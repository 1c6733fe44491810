//! How this node may talk to registries: which ones without TLS, with whose credentials, and how
//! long it waits. Reads Docker's `config.json`; talks to nobody.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::error::ImageError;

/// Everything a pull needs to know besides the image's name.
#[derive(Debug, Clone, Default)]
pub struct RegistryConfig {
    /// Registries (`host` or `host:port`) spoken to in plain HTTP. Loopback ones always are.
    pub insecure: BTreeSet<String>,
    /// By registry, as references name it.
    pub credentials: BTreeMap<String, Credentials>,
    pub patience: Patience,
}

/// How long one wait on the network may last.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    pub connect: Duration,
    /// From the request to the head of its answer.
    pub answer: Duration,
    /// Between two pieces of a body.
    pub idle: Duration,
    /// A whole pull.
    pub pull: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            answer: Duration::from_secs(20),
            idle: Duration::from_secs(30),
            pull: Duration::from_mins(30),
        }
    }
}

/// A user's name and password for one registry. Never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    pub username: String,
    pub password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").finish_non_exhaustive()
    }
}

/// The user name by which Docker marks a password as an identity token.
const IDENTITY: &str = "<token>";

impl Credentials {
    /// The long-lived token that stands in for a password, to be exchanged by `OAuth2`.
    pub(super) fn identity_token(&self) -> Option<&str> {
        (self.username == IDENTITY).then_some(&self.password)
    }
}

/// A `config.json` larger than this is not one.
const MAX_DOCKER_CONFIG: u64 = 1024 * 1024;

#[derive(Deserialize)]
struct DockerConfig {
    #[serde(default)]
    auths: BTreeMap<String, DockerAuth>,
}

#[derive(Deserialize)]
struct DockerAuth {
    #[serde(default)]
    auth: Option<String>,
    #[serde(default)]
    username: Option<String>,
    #[serde(default)]
    password: Option<String>,
    #[serde(default, rename = "identitytoken")]
    identity_token: Option<String>,
}

impl RegistryConfig {
    /// Adds the credentials of a Docker `config.json`; a file that does not exist adds none.
    pub fn load_docker_config(&mut self, path: &Path) -> Result<(), ImageError> {
        let bytes = match std::fs::metadata(path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Ok(meta) if meta.len() > MAX_DOCKER_CONFIG => {
                let what = path.display().to_string();
                return Err(ImageError::TooLarge {
                    what,
                    limit: MAX_DOCKER_CONFIG,
                });
            }
            _ => std::fs::read(path).map_err(|e| ImageError::disk("read", path, e))?,
        };
        // The parser's message may quote the file, and the file holds passwords: only where it is.
        let file: DockerConfig = serde_json::from_slice(&bytes).map_err(|e| {
            let detail = format!("no valid JSON at line {}", e.line());
            ImageError::malformed(path.display().to_string(), detail)
        })?;
        for (server, auth) in file.auths {
            if let Some(credentials) = auth.credentials() {
                self.credentials.insert(registry_of(&server), credentials);
            }
        }
        Ok(())
    }

    pub(super) fn is_plain_http(&self, registry: &str) -> bool {
        self.insecure.contains(registry) || is_loopback(registry)
    }
}

impl DockerAuth {
    fn credentials(self) -> Option<Credentials> {
        if let Some(password) = self.identity_token.filter(|token| !token.is_empty()) {
            let username = IDENTITY.to_owned();
            return Some(Credentials { username, password });
        }
        if let (Some(username), Some(password)) = (self.username, self.password) {
            return Some(Credentials { username, password });
        }
        let decoded = STANDARD.decode(self.auth?.trim()).ok()?;
        let text = String::from_utf8(decoded).ok()?;
        let (username, password) = text.trim_end_matches('\0').split_once(':')?;
        Some(Credentials {
            username: username.to_owned(),
            password: password.to_owned(),
        })
    }
}

/// `https://index.docker.io/v1/` and `ghcr.io` both occur as keys.
fn registry_of(server: &str) -> String {
    let host = server
        .strip_prefix("https://")
        .or_else(|| server.strip_prefix("http://"));
    let host = host.unwrap_or(server).split('/').next().unwrap_or_default();
    if host == "index.docker.io" {
        "docker.io".to_owned()
    } else {
        host.to_ascii_lowercase()
    }
}

/// The host part of `host`, `host:port` or `[v6]:port`.
fn host_of(registry: &str) -> &str {
    match registry
        .strip_prefix('[')
        .and_then(|rest| rest.split_once(']'))
    {
        Some((address, _)) => address,
        None => registry.split(':').next().unwrap_or_default(),
    }
}

fn is_loopback(registry: &str) -> bool {
    let host = host_of(registry);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_and_named_registries_are_spoken_to_in_plain_http() {
        let mut config = RegistryConfig::default();
        config.insecure.insert("10.0.0.9:5000".to_owned());
        for plain in [
            "localhost",
            "localhost:5000",
            "127.0.0.1:1",
            "[::1]:5000",
            "10.0.0.9:5000",
        ] {
            assert!(config.is_plain_http(plain), "{plain}");
        }
        for tls in [
            "10.0.0.9",
            "docker.io",
            "localhost.example",
            "127.0.0.1.example:80",
        ] {
            assert!(!config.is_plain_http(tls), "{tls}");
        }
    }

    #[test]
    fn dockers_credentials_are_read_and_never_printed() {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("config.json");
        let auth = STANDARD.encode("me:p:w");
        let text = format!(
            r#"{{"auths":{{"https://index.docker.io/v1/":{{"auth":"{auth}"}},
               "r.example:5000":{{"username":"u","password":"secret"}},
               "i.example":{{"auth":"{auth}","identitytoken":"idsecret"}},"empty.example":{{}}}},
               "credsStore":"x"}}"#
        );
        std::fs::write(&path, text).expect("written");
        let mut config = RegistryConfig::default();
        config.load_docker_config(&path).expect("valid");
        assert_eq!(config.credentials.len(), 3);
        assert_eq!(config.credentials["docker.io"].password, "p:w");
        assert_eq!(config.credentials["r.example:5000"].username, "u");
        let identity = config.credentials["i.example"].identity_token();
        assert_eq!(identity, Some("idsecret"));
        assert_eq!(config.credentials["docker.io"].identity_token(), None);
        assert!(!format!("{config:?}").contains("secret"));

        config
            .load_docker_config(&dir.path().join("absent"))
            .expect("no file is fine");
        std::fs::write(&path, r#"{"auths":"secret"}"#).expect("written");
        let error = config.load_docker_config(&path).expect_err("malformed");
        assert!(!error.to_string().contains("secret"), "{error}");
    }
}
