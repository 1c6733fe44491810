//! Names of images as people write them, and the one form we keep. Docker's rules for what may be
//! left out (`docker.io`, `library/`, `latest`). No network here.

use std::fmt;
use std::str::FromStr;

use super::digest::Digest;
use super::error::ImageError;

const DEFAULT_REGISTRY: &str = "docker.io";
const DEFAULT_TAG: &str = "latest";
/// The distribution specification's limit of `registry/repository`.
const MAX_NAME: usize = 255;
const MAX_TAG: usize = 128;

/// An image's name, normalised. When a digest is given it decides, and the tag is only a memory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// Parses and normalises `text`.
    pub fn parse(text: &str) -> Result<Self, ImageError> {
        let bad = |reason| ImageError::BadReference {
            text: text.chars().take(MAX_NAME).collect(),
            reason,
        };
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse::<Digest>()?)),
            None => (text, None),
        };
        let (name, tag) = split_tag(rest);
        if tag.is_some_and(|t| !is_tag(t)) {
            return Err(bad("a tag is up to 128 letters, digits, `_`, `.` and `-`"));
        }
        let (registry, repository) = split_registry(name);
        if !is_registry(&registry) {
            return Err(bad("its registry is not a host name with an optional port"));
        }
        if repository.is_empty() {
            return Err(bad("it names no repository"));
        }
        if !repository.split('/').all(is_component) {
            return Err(bad(
                "a repository is made of lower-case letters and digits, with `.`, `_`, `__` or \
                 `-` between them, in parts separated by `/`",
            ));
        }
        if registry.len() + 1 + repository.len() > MAX_NAME {
            return Err(bad("it is longer than 255 characters"));
        }
        let tag = match (tag, &digest) {
            (None, None) => Some(DEFAULT_TAG.to_owned()),
            (tag, _) => tag.map(str::to_owned),
        };
        Ok(Self {
            registry,
            repository,
            tag,
            digest,
        })
    }

    /// The registry as people name it: a host with an optional port.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The host to talk to: Docker Hub's is not its name.
    pub fn host(&self) -> &str {
        if self.registry == DEFAULT_REGISTRY {
            "registry-1.docker.io"
        } else {
            &self.registry
        }
    }

    pub fn repository(&self) -> &str {
        &self.repository
    }

    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// `registry/repository:tag`, without digest: what a pin remembers.
    pub fn name(&self) -> String {
        match &self.tag {
            Some(tag) => format!("{}/{}:{tag}", self.registry, self.repository),
            None => format!("{}/{}", self.registry, self.repository),
        }
    }

    /// The same name, pinned.
    #[must_use]
    pub fn with_digest(&self, digest: Digest) -> Self {
        Self {
            digest: Some(digest),
            ..self.clone()
        }
    }
}

impl FromStr for Reference {
    type Err = ImageError;

    fn from_str(text: &str) -> Result<Self, ImageError> {
        Self::parse(text)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())?;
        match &self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => Ok(()),
        }
    }
}

/// A colon after the last slash starts a tag; one before it belongs to a port.
fn split_tag(text: &str) -> (&str, Option<&str>) {
    let last = text.rfind('/').map_or(0, |at| at + 1);
    match text[last..].find(':') {
        Some(at) => (&text[..last + at], Some(&text[last + at + 1..])),
        None => (text, None),
    }
}

fn split_registry(name: &str) -> (String, String) {
    if let Some((first, rest)) = name.split_once('/')
        && (first.contains(['.', ':']) || first == "localhost")
    {
        if first == DEFAULT_REGISTRY || first == "index.docker.io" {
            return (DEFAULT_REGISTRY.to_owned(), with_library(rest));
        }
        return (first.to_ascii_lowercase(), rest.to_owned());
    }
    (DEFAULT_REGISTRY.to_owned(), with_library(name))
}

fn with_library(name: &str) -> String {
    if name.contains('/') || name.is_empty() {
        name.to_owned()
    } else {
        format!("library/{name}")
    }
}

fn is_tag(text: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    text.len() <= MAX_TAG
        && text.bytes().next().is_some_and(word)
        && text.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

/// `[a-z0-9]+` runs joined by `.`, `_`, `__` or any number of `-`.
fn is_component(text: &str) -> bool {
    let run = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let edges = text.bytes().next().is_some_and(run) && text.bytes().next_back().is_some_and(run);
    edges
        && text
            .split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
            .all(|joint| matches!(joint, "" | "." | "_" | "__") || joint.bytes().all(|b| b == b'-'))
}

fn is_registry(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, "")) => (address, None),
            Some((address, port)) => (address, port.strip_prefix(':').or(Some(""))),
            None => return false,
        },
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let port_ok = port.is_none_or(|p| p.parse::<u16>().is_ok_and(|n| n > 0));
    let host_ok = if text.starts_with('[') {
        host.parse::<std::net::Ipv6Addr>().is_ok()
    } else {
        host.split('.').all(is_host_label)
    };
    host_ok && port_ok
}

fn is_host_label(label: &str) -> bool {
    !label.is_empty()
        && label
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-')
        && !label.starts_with('-')
        && !label.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn references_are_normalised() {
        let pinned = format!("app@sha256:{HEX}");
        let both = format!("r.example:5000/a/b:v1@sha256:{HEX}");
        let table = [
            ("busybox", "docker.io/library/busybox:latest".to_owned()),
            ("busybox:1.36", "docker.io/library/busybox:1.36".to_owned()),
            ("me/app", "docker.io/me/app:latest".to_owned()),
            (
                "docker.io/busybox",
                "docker.io/library/busybox:latest".to_owned(),
            ),
            ("index.docker.io/me/app:x", "docker.io/me/app:x".to_owned()),
            ("localhost/app", "localhost/app:latest".to_owned()),
            ("localhost:5000/app:2", "localhost:5000/app:2".to_owned()),
            ("GHCR.io/me/app", "ghcr.io/me/app:latest".to_owned()),
            (
                "[::1]:5000/a__b-c.d",
                "[::1]:5000/a__b-c.d:latest".to_owned(),
            ),
            (&pinned, format!("docker.io/library/app@sha256:{HEX}")),
            (&both, both.clone()),
        ];
        for (text, expected) in table {
            let reference = Reference::parse(text).expect(text);
            assert_eq!(reference.to_string(), expected);
            assert_eq!(Reference::parse(&expected).expect("normal form"), reference);
        }
    }

    #[test]
    fn a_digest_wins_and_the_pin_forgets_it() {
        let text = format!("r.example/app:v1@sha256:{HEX}");
        let reference = Reference::parse(&text).expect("valid");
        assert_eq!(reference.name(), "r.example/app:v1");
        assert_eq!(reference.digest().map(Digest::hex), Some(HEX));
        assert_eq!(
            Reference::parse("app").expect("valid").host(),
            "registry-1.docker.io"
        );
    }

    #[test]
    fn bad_references_say_why() {
        let long = format!("r.example/{}", "a/".repeat(200));
        let table = [
            "",
            ":",
            "/",
            "App",
            "me/App",
            "app:",
            "app:-x",
            "a b",
            "r.example/",
            "r.example:x/a",
            "r.example:0/a",
            "r.example:70000/a",
            "-r.example/a",
            "a//b",
            "a/../b",
            "../a",
            "a._b",
            "app@sha256:12",
            "app@md5:12",
            "[::1/a",
            "[zz]:1/a",
            "http://r.example/a",
            &long,
            "r.example/a:t:u",
            "é",
        ];
        for text in table {
            let error = Reference::parse(text).expect_err(text);
            assert!(
                matches!(error.code(), "InvalidImageName"),
                "{text}: {error}"
            );
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_parses_or_is_refused(text in ".{0,80}") {
            if let Ok(reference) = Reference::parse(&text) {
                assert_eq!(Reference::parse(&reference.to_string()).expect("stable"), reference);
            }
        }
    }
}
