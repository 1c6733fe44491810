//! Which images need whose signature: rules by namespace and by the beginning of a name, from the
//! node's configuration. Owns reading their keys and what a name is held against; verifies nothing.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::digest::Digest;
use super::error::ImageError;
use super::reference::Reference;
use super::signature::Key;

const MAX_RULES: usize = 64;
const MAX_KEYS: usize = 16;
const MAX_PREFIXES: usize = 64;
/// A public key is far smaller.
const MAX_KEY_FILE: u64 = 64 * 1024;

/// A rule as it is configured.
#[derive(Debug, Clone, Default)]
pub struct SignatureRule {
    /// Where it holds; everywhere when there are none.
    pub namespaces: Vec<String>,
    /// Beginnings of names, `registry.example/team`; every name when there are none.
    pub images: Vec<String>,
    /// Files of public keys: one of them must have signed.
    pub keys: Vec<PathBuf>,
}

/// What the node demands of images.
#[derive(Default)]
pub struct Policy {
    rules: Vec<Rule>,
}

struct Rule {
    namespaces: BTreeSet<String>,
    prefixes: Vec<String>,
    keys: Vec<Key>,
    /// The keys' files, for people.
    wants: String,
}

impl Policy {
    /// Reads the keys and checks the rules.
    pub fn load(rules: &[SignatureRule]) -> Result<Self, ImageError> {
        if rules.len() > MAX_RULES {
            let detail = format!("there are more than {MAX_RULES}");
            return Err(ImageError::malformed("[[images.signatures]]", detail));
        }
        let numbered = rules.iter().enumerate();
        let rules = numbered.map(|(n, rule)| {
            let what = format!("[[images.signatures]] number {}", n + 1);
            Rule::load(rule).map_err(|detail| ImageError::malformed(what, detail))
        });
        Ok(Self {
            rules: rules.collect::<Result<_, _>>()?,
        })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    pub(super) fn keys(&self) -> Vec<&Key> {
        self.rules.iter().flat_map(|rule| &rule.keys).collect()
    }

    /// The rules an image of this name has to meet in a namespace: all of them. What comes without a
    /// namespace is for any, so there one rule of those for its name is enough.
    pub(super) fn demand(&self, namespace: Option<&str>, name: &str) -> Demand<'_> {
        let name = plain(name);
        let holds = |rule: &&Rule| rule.holds_in(namespace) && rule.covers(&name);
        Demand {
            rules: self.rules.iter().filter(holds).collect(),
            all: namespace.is_some(),
        }
    }
}

/// What one image needs.
pub(super) struct Demand<'a> {
    rules: Vec<&'a Rule>,
    all: bool,
}

impl Demand<'_> {
    pub(super) fn is_met(&self, signers: &BTreeSet<Digest>) -> bool {
        let met = |rule: &&Rule| rule.keys.iter().any(|key| signers.contains(&key.id));
        self.rules.is_empty()
            || if self.all {
                self.rules.iter().all(met)
            } else {
                self.rules.iter().any(met)
            }
    }

    /// The keys that are wanted, in words.
    pub(super) fn wants(&self) -> String {
        let wants: Vec<_> = self.rules.iter().map(|rule| rule.wants.as_str()).collect();
        wants.join(if self.all { ", and " } else { ", or " })
    }
}

impl Rule {
    fn load(rule: &SignatureRule) -> Result<Self, String> {
        if rule.keys.is_empty() || rule.keys.len() > MAX_KEYS {
            return Err(format!("`keys` names 1 to {MAX_KEYS} files"));
        }
        if rule.images.len() > MAX_PREFIXES || rule.namespaces.len() > MAX_PREFIXES {
            let most = format!("`images` and `namespaces` name at most {MAX_PREFIXES} each");
            return Err(most);
        }
        let keys = rule.keys.iter().map(|path| key(path));
        let files = rule.keys.iter().map(|path| path.display().to_string());
        let files: Vec<_> = files.collect();
        Ok(Self {
            namespaces: rule.namespaces.iter().cloned().collect(),
            prefixes: rule
                .images
                .iter()
                .map(|text| prefix(text))
                .collect::<Result<_, _>>()?,
            keys: keys.collect::<Result<_, _>>()?,
            wants: files.join(" or "),
        })
    }

    fn holds_in(&self, namespace: Option<&str>) -> bool {
        let Some(namespace) = namespace else {
            return true;
        };
        self.namespaces.is_empty() || self.namespaces.contains(namespace)
    }

    /// A name begins where its parts do: `r.example/team` is not the beginning of `r.example/teams`.
    fn covers(&self, name: &str) -> bool {
        let begins = |prefix: &String| {
            let rest = name.strip_prefix(prefix.as_str());
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', ':']))
        };
        self.prefixes.is_empty() || self.prefixes.iter().any(begins)
    }
}

/// A registry with its usual port is the registry without, and Docker Hub has hosts of other names.
fn plain(name: &str) -> String {
    let (registry, rest) = name.split_once('/').unwrap_or((name, ""));
    let bare = registry.strip_suffix(":443").unwrap_or(registry);
    let bare = match bare.strip_suffix(":80").unwrap_or(bare) {
        "registry-1.docker.io" | "index.docker.io" => "docker.io",
        other => other,
    };
    if rest.is_empty() {
        bare.to_owned()
    } else {
        format!("{bare}/{rest}")
    }
}

fn prefix(text: &str) -> Result<String, String> {
    let text = text.strip_suffix('/').unwrap_or(text);
    // A reference's own rules; and a beginning that a whole name would not have covers nothing.
    let whole = Reference::parse(&format!("{text}/x")).map(|whole| whole.name());
    if whole.is_ok_and(|whole| whole == format!("{text}/x:latest")) {
        return Ok(plain(text));
    }
    let text: String = text.escape_debug().take(100).collect();
    Err(format!(
        "`{text}` is no beginning of a whole name, as `registry.example` or `docker.io/library/nginx` are"
    ))
}

fn key(path: &Path) -> Result<Key, String> {
    let wrong = |detail: String| format!("the key {}: {detail}", path.display());
    let size = std::fs::metadata(path).map_err(|e| wrong(e.to_string()))?;
    if size.len() > MAX_KEY_FILE {
        return Err(wrong(format!("it has more than {MAX_KEY_FILE} bytes")));
    }
    let pem = std::fs::read(path).map_err(|e| wrong(e.to_string()))?;
    Key::parse(&pem).map_err(wrong)
}
