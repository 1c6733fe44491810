//! The contexts file: clusters by name, and which one is meant when none is named. It may hold
//! tokens, so it is readable by its owner only.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use crate::args::Global;
use crate::client::{Client, DEFAULT_SOCKET, Target};
use crate::failure::Failure;
use crate::files;
use crate::suggest;

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contexts {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<String>,
    #[serde(default)]
    pub contexts: BTreeMap<String, Context>,
}

/// A cluster: the address of a node's API and, for TCP, the token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Context {
    pub addr: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
}

/// `$SELVEDGE_CONFIG`, or `selvedge/config.toml` in the user's configuration folder.
pub fn path() -> Option<PathBuf> {
    let var = |name| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    var("SELVEDGE_CONFIG").or_else(|| {
        let folder =
            var("XDG_CONFIG_HOME").or_else(|| var("HOME").map(|home| home.join(".config")));
        folder.map(|folder| folder.join("selvedge/config.toml"))
    })
}

/// The file's contents; no file is no contexts.
pub fn load(path: &Path) -> anyhow::Result<Contexts> {
    match std::fs::read_to_string(path) {
        Ok(text) => toml::from_str(&text).with_context(|| format!("{} is wrong", path.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Contexts::default()),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// Adds or replaces a context and makes it the current one.
pub fn add(path: &Path, name: &str, context: Context) -> anyhow::Result<()> {
    let mut all = load(path)?;
    all.contexts.insert(name.to_owned(), context);
    all.current = Some(name.to_owned());
    store(path, &all)
}

/// Forgets a context; one that is not there is no error.
pub fn remove(path: &Path, name: &str) -> anyhow::Result<()> {
    let mut all = load(path)?;
    if all.contexts.remove(name).is_none() {
        return Ok(());
    }
    if all.current.as_deref() == Some(name) {
        all.current = None;
    }
    if all == Contexts::default() {
        return std::fs::remove_file(path)
            .with_context(|| format!("cannot remove {}", path.display()));
    }
    store(path, &all)
}

fn store(path: &Path, all: &Contexts) -> anyhow::Result<()> {
    let text = toml::to_string(all).context("contexts do not serialize")?;
    files::write_private(path, text.as_bytes())
        .with_context(|| format!("cannot write {}", path.display()))
}

/// The node meant by the flags, the environment and the contexts file, in this order.
pub fn client(global: &Global) -> anyhow::Result<Client> {
    let (addr, token) = match &global.addr {
        Some(addr) => (addr.clone(), None),
        None => match from_file(global.context.as_deref())? {
            Some(context) => (context.addr, context.token),
            None => (format!("unix:{DEFAULT_SOCKET}"), None),
        },
    };
    let target: Target = addr.parse().map_err(Failure::usage)?;
    Ok(Client::new(target, global.token.clone().or(token)))
}

fn from_file(wanted: Option<&str>) -> anyhow::Result<Option<Context>> {
    let all = path()
        .map(|path| load(&path))
        .transpose()?
        .unwrap_or_default();
    let Some(name) = wanted.or(all.current.as_deref()) else {
        return Ok(None);
    };
    if let Some(context) = all.contexts.get(name) {
        return Ok(Some(context.clone()));
    }
    let near = suggest::nearest(name, all.contexts.keys().map(String::as_str));
    let hint = near.map_or_else(String::new, |near| {
        format!("did you mean --context {near}?")
    });
    Err(Failure::usage(format!("there is no context `{name}`"))
        .hint(hint)
        .into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contexts_come_and_go() {
        let folder = std::env::temp_dir().join(format!("selvedge-contexts-{}", std::process::id()));
        let path = folder.join("config.toml");
        let demo = Context {
            addr: "unix:/x".into(),
            token: None,
        };
        add(&path, "demo", demo.clone()).unwrap();
        let all = load(&path).unwrap();
        assert_eq!(all.current.as_deref(), Some("demo"));
        assert_eq!(all.contexts["demo"], demo);
        remove(&path, "demo").unwrap();
        assert!(!path.exists());
        remove(&path, "demo").unwrap();
        std::fs::remove_dir_all(folder).unwrap();
    }
}
