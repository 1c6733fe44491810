//! How this node may talk to registries: which ones without TLS or with a CA of their own, through
//! which mirrors, with whose credentials, and how long it waits. Reads Docker's `config.json`;
//! talks to no registry.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::Certificate;
use serde::Deserialize;

use super::super::digest::Digest;
use super::super::error::ImageError;
use super::super::reference::Reference;
use super::helper;

/// Mirrors of one registry: each may be waited for.
const MAX_MIRRORS: usize = 8;

/// Everything a pull needs to know besides the image's name.
#[derive(Debug, Clone, Default)]
pub struct RegistryConfig {
    /// Registries (`host` or `host:port`) spoken to in plain HTTP. Loopback ones always are.
    pub insecure: BTreeSet<String>,
    /// Names of this node's own door, where there is no registry behind them.
    pub own: BTreeSet<String>,
    /// By registry, as references name it.
    pub credentials: BTreeMap<String, Credentials>,
    /// Programs that know credentials, by registry; the one without a registry knows the rest.
    helpers: BTreeMap<Option<String>, String>,
    /// Who is asked before a registry itself, in this order: registries (`host` or `host:port`).
    mirrors: BTreeMap<String, Vec<String>>,
    /// CA certificates of single registries.
    authorities: BTreeMap<String, Authority>,
    pub patience: Patience,
}

/// CA certificates from a file.
#[derive(Debug, Clone)]
struct Authority {
    /// Of the file's bytes.
    digest: Digest,
    certificates: Vec<Certificate>,
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
    pub(in super::super) fn identity_token(&self) -> Option<&str> {
        (self.username == IDENTITY).then_some(&self.password)
    }
}

/// A `config.json`, or a file of CA certificates, larger than this is not one.
const MAX_FILE: u64 = 1024 * 1024;

#[derive(Deserialize)]
struct DockerConfig {
    #[serde(default)]
    auths: BTreeMap<String, DockerAuth>,
    #[serde(default, rename = "credHelpers")]
    helpers: BTreeMap<String, String>,
    #[serde(default, rename = "credsStore")]
    store: String,
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
        let Some(bytes) = read(path)? else {
            return Ok(());
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
        let by_registry = file.helpers.into_iter();
        let mut helpers: BTreeMap<_, _> = by_registry
            .map(|(server, name)| (Some(registry_of(&server)), name))
            .collect();
        if !file.store.is_empty() {
            helpers.insert(None, file.store);
        }
        if let Some(name) = helpers.values().find(|name| !helper::is_name(name)) {
            let name: String = name.escape_debug().take(100).collect();
            let detail = format!("`{name}` is no credential helper's name");
            return Err(ImageError::malformed(path.display().to_string(), detail));
        }
        self.helpers.extend(helpers);
        Ok(())
    }

    /// Has a registry's certificate checked against these CA certificates too.
    pub fn load_authority(&mut self, registry: &str, path: &Path) -> Result<(), ImageError> {
        let wrong = |detail: &str| {
            let what = format!("the CA certificates {} of {registry}", path.display());
            ImageError::malformed(what, detail)
        };
        let bytes = read(path)?.ok_or_else(|| wrong("there is no such file"))?;
        let certificates = Certificate::from_pem_bundle(&bytes).unwrap_or_default();
        if certificates.is_empty() {
            return Err(wrong("it holds no certificate in PEM form"));
        }
        let authority = Authority {
            digest: Digest::of(&bytes),
            certificates,
        };
        self.authorities.insert(registry.to_owned(), authority);
        Ok(())
    }

    /// Has these registries asked before `registry`.
    pub fn set_mirrors(&mut self, registry: &str, mirrors: &[String]) -> Result<(), ImageError> {
        let wrong = |detail: &str| {
            let what = format!("the mirrors of registry {registry}");
            ImageError::malformed(what, detail)
        };
        if mirrors.len() > MAX_MIRRORS {
            return Err(wrong("there are more than 8"));
        }
        for mirror in mirrors {
            // A reference's own rules for what a registry may be.
            let named = Reference::parse(&format!("{mirror}/x"));
            if !named.is_ok_and(|named| named.registry() == mirror) {
                let mirror: String = mirror.escape_debug().take(100).collect();
                return Err(wrong(&format!("`{mirror}` is no `host` or `host:port`")));
            }
        }
        self.mirrors.insert(registry.to_owned(), mirrors.to_vec());
        Ok(())
    }

    pub(in super::super) fn mirrors(&self, registry: &str) -> &[String] {
        self.mirrors.get(registry).map_or(&[], Vec::as_slice)
    }

    /// A registry's own CA certificates, and what tells them from others.
    pub(in super::super) fn authority(&self, registry: &str) -> (Vec<Certificate>, Option<Digest>) {
        match self.authorities.get(registry) {
            Some(own) => (own.certificates.clone(), Some(own.digest.clone())),
            None => (Vec::new(), None),
        }
    }

    /// What to tell a registry of who we are: what its helper says, else what a file does.
    pub(in super::super) async fn secret(
        &self,
        registry: &str,
    ) -> Result<Option<Credentials>, String> {
        if let Some(name) = self.helpers.get(&Some(registry.to_owned())) {
            return helper::ask(name, registry).await;
        }
        match (self.credentials.get(registry), self.helpers.get(&None)) {
            (Some(known), _) => Ok(Some(known.clone())),
            (None, Some(name)) => helper::ask(name, registry).await,
            (None, None) => Ok(None),
        }
    }

    /// Whether images of this name come from no registry but from who pushed them.
    pub(in super::super) fn is_own(&self, registry: &str) -> bool {
        registry == "localhost" || self.own.contains(registry)
    }

    pub(in super::super) fn is_plain_http(&self, registry: &str) -> bool {
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

/// A small file; `None` when there is none.
fn read(path: &Path) -> Result<Option<Vec<u8>>, ImageError> {
    match std::fs::metadata(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Ok(meta) if meta.len() > MAX_FILE => {
            let (what, limit) = (path.display().to_string(), MAX_FILE);
            return Err(ImageError::TooLarge { what, limit });
        }
        _ => {}
    }
    let bytes = std::fs::read(path).map_err(|e| ImageError::disk("read", path, e))?;
    Ok(Some(bytes))
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
    fn mirrors_are_registries() {
        let mut config = RegistryConfig::default();
        let mut set = |mirrors: &[&str]| {
            let mirrors: Vec<String> = mirrors.iter().map(|&m| m.to_owned()).collect();
            config.set_mirrors("docker.io", &mirrors)
        };
        set(&["mirror.lan:5000", "10.0.0.9", "localhost:1"]).expect("registries");
        for bad in [
            "mirror",
            "https://mirror.lan",
            "mirror.lan/x",
            "docker.io/",
            "",
        ] {
            let error = set(&[bad]).expect_err(bad).to_string();
            assert!(error.contains("mirrors of registry docker.io"), "{error}");
        }
        assert!(set(&["m.example"; 9]).is_err());
        assert_eq!(config.mirrors("docker.io").len(), 3);
        assert!(config.mirrors("r.example").is_empty());
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
               "credHelpers":{{"https://gcr.example":"gcloud"}},"credsStore":"x"}}"#
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
        let helper = |registry: Option<&str>| config.helpers[&registry.map(str::to_owned)].clone();
        assert_eq!(helper(Some("gcr.example")), "gcloud");
        assert_eq!(helper(None), "x");

        config
            .load_docker_config(&dir.path().join("absent"))
            .expect("no file is fine");
        std::fs::write(&path, r#"{"auths":"secret"}"#).expect("written");
        let error = config.load_docker_config(&path).expect_err("malformed");
        assert!(!error.to_string().contains("secret"), "{error}");
        std::fs::write(&path, r#"{"credsStore":"../evil"}"#).expect("written");
        let error = config.load_docker_config(&path).expect_err("a path");
        assert!(error.to_string().contains("no credential helper's name"));
        let error = config.load_authority("r.example", &path);
        let error = error.expect_err("no certificate").to_string();
        assert!(
            error.contains("of r.example cannot be read: it holds no"),
            "{error}"
        );
    }
}
