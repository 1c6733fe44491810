//! Host names of people's own, outside the origin, by which a service is reached: `www.example.com`,
//! `*.example.com`, `example.com/api`.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{Service, is_host, wildcard_over};

/// The domains of a service, parted by commas. They are the service's own and not its revisions'.
pub const DOMAINS: &str = "selvedge.dev/domains";
/// Of one service.
pub const MOST_DOMAINS: usize = 100;
const PATH_BYTES: usize = 256;

/// A host, and the paths of it that are meant.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Domain {
    /// In lower case; `*.` stands for one label.
    host: String,
    /// Empty for all of them, else from its slash on and without one at its end.
    path: String,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no domain: {why}")]
pub struct DomainError {
    text: String,
    why: &'static str,
}

impl Domain {
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    #[must_use]
    pub fn is_wildcard(&self) -> bool {
        self.host.starts_with("*.")
    }

    /// Whether a request's path is meant: the same one, or one below it.
    #[must_use]
    pub fn covers_path(&self, path: &str) -> bool {
        let rest = path.strip_prefix(&self.path);
        rest.is_some_and(|rest| self.path.is_empty() || rest.is_empty() || rest.starts_with('/'))
    }

    /// Whether some name is one of both hosts'.
    #[must_use]
    pub fn shares_names(&self, host: &str) -> bool {
        let below = |name: &str, wildcard: &str| wildcard_over(name).as_deref() == Some(wildcard);
        self.host == host || below(&self.host, host) || below(host, &self.host)
    }
}

impl FromStr for Domain {
    type Err = DomainError;

    /// In any case, and with a dot or a slash at its end, as people write them.
    fn from_str(text: &str) -> Result<Self, DomainError> {
        let wrong = |why| DomainError {
            text: text.chars().take(60).collect(),
            why,
        };
        if text.contains("://") {
            return Err(wrong("write it without `http://`"));
        }
        let (host, path) = text.find('/').map_or((text, ""), |at| text.split_at(at));
        if host.contains(':') {
            return Err(wrong("a port is not part of it"));
        }
        if !host.is_ascii() {
            return Err(wrong("write it in ASCII, as `xn--…`"));
        }
        let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        let numbers = host
            .rsplit('.')
            .next()
            .is_some_and(|last| !last.is_empty() && last.bytes().all(|b| b.is_ascii_digit()));
        if !is_host(&host) || !host.contains('.') || numbers {
            return Err(wrong(
                "write www.example.com, *.example.com or example.com/api",
            ));
        }
        let path = path.strip_suffix('/').unwrap_or(path);
        let fine = |b: u8| b.is_ascii_alphanumeric() || b"-._~!$&'()*+=:@%/".contains(&b);
        if path.len() > PATH_BYTES || !path.bytes().all(fine) || path.contains("//") {
            return Err(wrong("its path is too long, or not written as in a URL"));
        }
        if path.split('/').any(|part| part == "." || part == "..") {
            return Err(wrong("its path has a part that is no name"));
        }
        Ok(Self {
            host,
            path: path.to_owned(),
        })
    }
}

impl TryFrom<String> for Domain {
    type Error = DomainError;

    fn try_from(text: String) -> Result<Self, DomainError> {
        text.parse()
    }
}

impl From<Domain> for String {
    fn from(domain: Domain) -> Self {
        domain.to_string()
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.host, self.path)
    }
}

/// Reads what [`DOMAINS`] says.
///
/// # Errors
/// The first that is none; one that is there twice; too many.
pub fn read_domains(text: &str) -> Result<Vec<Domain>, String> {
    let mut read: Vec<Domain> = Vec::new();
    for word in text.split(',').map(str::trim).filter(|w| !w.is_empty()) {
        let domain: Domain = word.parse().map_err(|e: DomainError| e.to_string())?;
        if read.contains(&domain) {
            return Err(format!("`{domain}` is there twice"));
        }
        if read.len() == MOST_DOMAINS {
            return Err(format!("a service has {MOST_DOMAINS} at most"));
        }
        read.push(domain);
    }
    Ok(read)
}

/// How they are written.
#[must_use]
pub fn write_domains(domains: &[Domain]) -> String {
    let words: Vec<String> = domains.iter().map(ToString::to_string).collect();
    words.join(",")
}

/// What a service's annotations say of them; nothing where they say it wrongly.
#[must_use]
pub fn domains_of(annotations: &BTreeMap<String, String>) -> Vec<Domain> {
    let text = annotations.get(DOMAINS);
    text.and_then(|text| read_domains(text).ok())
        .unwrap_or_default()
}

/// Has them say these.
pub fn set_domains(annotations: &mut BTreeMap<String, String>, domains: &[Domain]) {
    if domains.is_empty() {
        annotations.remove(DOMAINS);
    } else {
        annotations.insert(DOMAINS.to_owned(), write_domains(domains));
    }
}

impl Service {
    /// The hosts it has outside the origin.
    #[must_use]
    pub fn domains(&self) -> Vec<Domain> {
        domains_of(&self.meta.annotations)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn domain(text: &str) -> Domain {
        text.parse().unwrap()
    }

    #[test]
    fn domains_are_hosts_and_paths() {
        let table = [
            ("www.example.com", Ok("www.example.com")),
            ("WWW.Example.com.", Ok("www.example.com")),
            ("*.example.com", Ok("*.example.com")),
            ("example.com/", Ok("example.com")),
            ("example.com/Api/v1/", Ok("example.com/Api/v1")),
            ("xn--bcher-kva.example", Ok("xn--bcher-kva.example")),
            ("https://example.com", Err("without `http://`")),
            ("example.com:8080", Err("a port")),
            ("bücher.example", Err("ASCII")),
            ("example", Err("write www")),
            ("192.0.2.1", Err("write www")),
            ("a..b", Err("write www")),
            ("a.*.b", Err("write www")),
            ("*.*.b", Err("write www")),
            ("", Err("write www")),
            ("/api", Err("write www")),
            ("example.com/a//b", Err("its path")),
            ("example.com/a?b", Err("its path")),
            ("example.com/a b", Err("its path")),
            ("example.com/../a", Err("a part")),
            ("example.com/.", Err("a part")),
        ];
        for (text, want) in table {
            let read = text.parse::<Domain>().map(|d| d.to_string());
            match want {
                Ok(want) => assert_eq!(read.as_deref(), Ok(want), "{text}"),
                Err(why) => {
                    let error = read.unwrap_err().to_string();
                    assert!(error.contains(why), "{text}: {error}");
                }
            }
        }
        let long = format!("example.com/{}", "a".repeat(PATH_BYTES));
        assert!(long.parse::<Domain>().is_err());
    }

    #[test]
    fn lists_are_bounded_and_hold_each_once() {
        let list = "b.test, A.test/x/,\n*.a.test,";
        let read = read_domains(list).unwrap();
        assert_eq!(write_domains(&read), "b.test,a.test/x,*.a.test");
        assert_eq!(read_domains(&write_domains(&read)), Ok(read));
        assert_eq!(read_domains(" "), Ok(vec![]));
        assert!(
            read_domains("a.test,A.test.")
                .unwrap_err()
                .contains("twice")
        );
        let hosts = |n: usize| {
            let hosts: Vec<String> = (0..n).map(|i| format!("h{i}.test")).collect();
            hosts.join(",")
        };
        assert_eq!(
            read_domains(&hosts(MOST_DOMAINS)).map(|d| d.len()),
            Ok(MOST_DOMAINS)
        );
        assert!(read_domains(&hosts(MOST_DOMAINS + 1)).is_err());
    }

    #[test]
    fn paths_are_meant_whole_part_by_part() {
        let table = [
            ("a.test", "/", true),
            ("a.test", "*", true),
            ("a.test/api", "/api", true),
            ("a.test/api", "/api/", true),
            ("a.test/api", "/api/v1", true),
            ("a.test/api", "/apis", false),
            ("a.test/api", "/", false),
            ("a.test/api", "/API", false),
            ("a.test/api", "*", false),
        ];
        for (text, path, want) in table {
            assert_eq!(domain(text).covers_path(path), want, "{text} {path}");
        }
    }

    #[test]
    fn names_of_a_wildcard_are_shared_with_their_own() {
        let table = [
            ("a.test", "a.test", true),
            ("www.a.test", "*.a.test", true),
            ("*.a.test", "www.a.test", true),
            ("*.a.test", "*.a.test", true),
            ("a.test", "*.a.test", false),
            ("x.www.a.test", "*.a.test", false),
            ("*.www.a.test", "*.a.test", false),
            ("b.test", "a.test", false),
        ];
        for (text, host, want) in table {
            assert_eq!(domain(text).shares_names(host), want, "{text} {host}");
        }
    }
}
