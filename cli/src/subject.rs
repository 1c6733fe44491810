//! What a command is about, as people name it: `KIND/NAME`, `SVC@REV`, `SVC/INSTANCE`, a request.

use crate::failure::Failure;
use crate::suggest;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Service,
    Revision,
    Instance,
    Node,
    Image,
    Domain,
}

const WORDS: &[(Kind, &[&str])] = &[
    (Kind::Service, &["services", "service", "svc", "ksvc"]),
    (Kind::Revision, &["revisions", "revision", "rev"]),
    (Kind::Instance, &["instances", "instance", "inst"]),
    (Kind::Node, &["nodes", "node"]),
    (Kind::Image, &["images", "image", "img"]),
    (Kind::Domain, &["domains", "domain", "domainmapping"]),
];

/// One named thing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    Service(String),
    Revision(String),
    Instance(String),
    Node(String),
    Image(String),
    Domain(String),
    Request(String),
}

impl Kind {
    pub fn parse(word: &str) -> Option<Self> {
        let lower = word.to_ascii_lowercase();
        WORDS
            .iter()
            .find(|(_, words)| words.contains(&lower.as_str()))
            .map(|(kind, _)| *kind)
    }

    /// The kind, or the failure that names the kinds there are.
    pub fn from_word(word: &str) -> Result<Self, Failure> {
        Self::parse(word).ok_or_else(|| {
            let words = WORDS.iter().flat_map(|(_, words)| words.iter().copied());
            let hint = suggest::nearest(word, words).map_or_else(
                || "there are services, revisions, instances, nodes, images and domains".to_owned(),
                |near| format!("did you mean `{near}`?"),
            );
            Failure::usage(format!("`{word}` is no kind of thing")).hint(hint)
        })
    }

    pub fn named(self, name: &str) -> Subject {
        let name = name.to_owned();
        match self {
            Self::Service => Subject::Service(name),
            Self::Revision => Subject::Revision(name),
            Self::Instance => Subject::Instance(name),
            Self::Node => Subject::Node(name),
            Self::Image => Subject::Image(name),
            Self::Domain => Subject::Domain(name),
        }
    }
}

impl Subject {
    /// Reads `KIND/NAME`, `SVC@REV`, `SVC/INSTANCE`, a request id, or a service's bare name.
    pub fn parse(text: &str) -> Result<Self, Failure> {
        if let Some((service, revision)) = text.split_once('@') {
            return Ok(Self::Revision(revision_name(service, revision)));
        }
        let Some((kind, name)) = text.split_once('/') else {
            return if is_request(text) {
                Ok(Self::Request(text.to_owned()))
            } else if text.is_empty() {
                Err(Failure::usage("an empty name names nothing"))
            } else {
                Ok(Self::Service(text.to_owned()))
            };
        };
        if name.is_empty() {
            return Err(Failure::usage(format!(
                "`{text}` names nothing: write KIND/NAME"
            )));
        }
        if let Some(kind) = Kind::parse(kind) {
            return Ok(kind.named(name));
        }
        if matches!(kind, "request" | "req") {
            return Ok(Self::Request(name.to_owned()));
        }
        if name.starts_with(kind) {
            return Ok(Self::Instance(name.to_owned()));
        }
        Kind::from_word(kind).map(|kind| kind.named(name))
    }
}

/// `web@3` and `web@web-00003` are the same.
fn revision_name(service: &str, revision: &str) -> String {
    match revision.parse::<u64>() {
        Ok(number) => format!("{service}-{number:05}"),
        Err(_) => revision.to_owned(),
    }
}

/// Whether `text` has the form of a request id: a ULID, which no service's name can have.
fn is_request(text: &str) -> bool {
    let ulid = |b: u8| b.is_ascii_digit() || (b.is_ascii_uppercase() && !b"ILOU".contains(&b));
    text.len() == 26 && text.bytes().all(ulid) && text.bytes().any(|b| b.is_ascii_uppercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects() {
        let table = [
            ("web", Subject::Service("web".into())),
            ("svc/web", Subject::Service("web".into())),
            ("node/par-1", Subject::Node("par-1".into())),
            ("web@3", Subject::Revision("web-00003".into())),
            ("web@web-00003", Subject::Revision("web-00003".into())),
            (
                "web/web-00003-x7k2",
                Subject::Instance("web-00003-x7k2".into()),
            ),
            (
                "01ARZ3NDEKTSV4RRFFQ69G5FAV",
                Subject::Request("01ARZ3NDEKTSV4RRFFQ69G5FAV".into()),
            ),
        ];
        for (text, subject) in table {
            assert_eq!(Subject::parse(text).unwrap(), subject, "{text}");
        }
        assert!(Subject::parse("").is_err());
        assert!(Subject::parse("svc/").is_err());
        let error = Subject::parse("instnace/x").unwrap_err();
        assert_eq!(error.hint, "did you mean `instance`?");
    }
}
