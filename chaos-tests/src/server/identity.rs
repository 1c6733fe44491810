//! Who answers: the service, the revision and the instance as the platform tells the process, and a
//! number of the process's own. An answer to a load's request is made of its id and this identity,
//! so that an answer given to the wrong request, or another's body under these headers, is seen.

use std::fmt;

use hyper::header::{HeaderMap, HeaderValue};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::served::LoadId;

/// The headers of every answer.
const HEADERS: [&str; 4] = [
    "x-box-service",
    "x-box-revision",
    "x-box-instance",
    "x-box-process",
];
/// The length of a binding, in hexadecimal digits.
pub const BINDING: usize = 64;

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Identity {
    pub service: String,
    pub revision: String,
    pub instance: String,
    /// Random: two processes never have the same.
    pub process: String,
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            service,
            revision,
            instance,
            process,
        } = self;
        write!(
            f,
            "service={service} revision={revision} instance={instance} process={process}"
        )
    }
}

impl Identity {
    /// This process's, from its environment and its host's name, which is the instance's id.
    pub fn own() -> Self {
        let variable = |name: &str| std::env::var(name).ok();
        let host = || std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
        let known = |text: Option<String>| {
            // What cannot be said in a header is not said.
            let text = text.unwrap_or_default().trim().to_owned();
            let sayable = !text.is_empty() && HeaderValue::from_str(&text).is_ok();
            if sayable { text } else { "-".to_owned() }
        };
        Self {
            service: known(variable("K_SERVICE")),
            revision: known(variable("K_REVISION")),
            instance: known(variable("HOSTNAME").or_else(host)),
            process: format!("{:016x}", rand::random::<u64>()),
        }
    }

    /// As an answer's headers say; `None` when it is no answer of this server.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let [service, revision, instance, process] =
            HEADERS.map(|name| Some(headers.get(name)?.to_str().ok()?.to_owned()));
        Some(Self {
            service: service?,
            revision: revision?,
            instance: instance?,
            process: process?,
        })
    }

    /// Whether an answer's headers say this identity. Cheaper than [`Self::of`].
    pub fn is_of(&self, headers: &HeaderMap) -> bool {
        let mut pairs = HEADERS.iter().zip(self.parts());
        pairs.all(|(name, part)| headers.get(*name).is_some_and(|v| v == part))
    }

    pub(super) fn headers(&self) -> HeaderMap {
        let pairs = HEADERS.iter().zip(self.parts());
        let valid =
            pairs.filter_map(|(name, part)| Some((*name, HeaderValue::from_str(part).ok()?)));
        valid
            .map(|(name, value)| (hyper::header::HeaderName::from_static(name), value))
            .collect()
    }

    fn parts(&self) -> [&str; 4] {
        [&self.service, &self.revision, &self.instance, &self.process]
    }

    /// What an answer of this process to this request says, in hexadecimal digits.
    pub fn binding(&self, id: LoadId) -> [u8; BINDING] {
        let mut hash = Sha256::new();
        hash.update(id.client.to_be_bytes());
        hash.update(id.sequence.to_be_bytes());
        for part in self.parts() {
            hash.update(part);
            hash.update([0]);
        }
        let mut digits = [0; BINDING];
        for (pair, byte) in digits.chunks_exact_mut(2).zip(hash.finalize()) {
            pair.copy_from_slice(&[digit(byte >> 4), digit(byte & 0xf)]);
        }
        digits
    }
}

fn digit(nibble: u8) -> u8 {
    b"0123456789abcdef"[usize::from(nibble)]
}

/// Whether a body is the binding over and over, cut anywhere after its first end.
pub fn binds(body: &[u8], binding: &[u8; BINDING]) -> bool {
    body.len() >= BINDING && body.chunks(BINDING).all(|piece| binding.starts_with(piece))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(process: &str) -> Identity {
        Identity {
            service: "web".to_owned(),
            revision: "web-00001".to_owned(),
            instance: "web-00001-abcde".to_owned(),
            process: process.to_owned(),
        }
    }

    #[test]
    fn headers_carry_an_identity() {
        let one = identity("1");
        let headers = one.headers();
        assert_eq!(Identity::of(&headers), Some(one.clone()));
        assert!(one.is_of(&headers));
        assert!(!identity("2").is_of(&headers));
        assert_eq!(Identity::of(&HeaderMap::new()), None);
    }

    #[test]
    fn a_binding_is_of_one_request_and_one_process() {
        let id = |sequence| LoadId {
            client: 1,
            sequence,
        };
        let binding = identity("1").binding(id(1));
        assert!(binding.iter().all(u8::is_ascii_hexdigit));
        assert_eq!(binding, identity("1").binding(id(1)));
        assert_ne!(binding, identity("1").binding(id(2)));
        assert_ne!(binding, identity("2").binding(id(1)));
    }

    #[test]
    fn a_body_binds_throughout() {
        let binding = identity("1").binding(LoadId {
            client: 1,
            sequence: 1,
        });
        let long = binding.repeat(3);
        assert!(binds(&binding, &binding) && binds(&long[..150], &binding));
        assert!(!binds(&binding[..63], &binding));
        let mut mixed = long.clone();
        mixed[140] = b'x';
        assert!(!binds(&mixed, &binding));
    }
}
