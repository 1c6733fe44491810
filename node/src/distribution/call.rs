//! What a request of the distribution API asks for, read from its method and path. Pure.

use axum::http::Method;

/// One request, understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Call<'a> {
    Tags { name: &'a str },
    Blob { name: &'a str, digest: &'a str },
    Begin { name: &'a str },
    Upload { name: &'a str, id: &'a str },
    Manifest { name: &'a str, reference: &'a str },
}

impl<'a> Call<'a> {
    /// Reads what follows `/v2/`. Repositories have slashes, so the end decides.
    pub(super) fn parse(path: &'a str) -> Option<Self> {
        if let Some(name) = path.strip_suffix("/tags/list") {
            return Some(Self::Tags { name });
        }
        let start = path.strip_suffix('/').unwrap_or(path);
        if let Some(name) = start.strip_suffix("/blobs/uploads") {
            return Some(Self::Begin { name });
        }
        let (before, last) = path.rsplit_once('/')?;
        if let Some(name) = before.strip_suffix("/blobs/uploads") {
            return Some(Self::Upload { name, id: last });
        }
        if let Some(name) = before.strip_suffix("/blobs") {
            return Some(Self::Blob { name, digest: last });
        }
        let name = before.strip_suffix("/manifests")?;
        Some(Self::Manifest {
            name,
            reference: last,
        })
    }

    /// Whether the API has this method for it.
    pub(super) fn allows(&self, method: &Method) -> bool {
        let methods: &[Method] = match self {
            Self::Tags { .. } => &[Method::GET],
            Self::Blob { .. } => &[Method::GET, Method::HEAD],
            Self::Begin { .. } => &[Method::POST],
            Self::Upload { .. } => &[Method::GET, Method::PATCH, Method::PUT, Method::DELETE],
            Self::Manifest { .. } => &[Method::GET, Method::HEAD, Method::PUT],
        };
        methods.contains(method)
    }
}

/// Where a piece says it begins: `0-1023`, and as some write it `bytes 0-1023/*`.
pub(super) fn range_start(text: &str) -> Option<u64> {
    let text = text.strip_prefix("bytes ").unwrap_or(text);
    let (start, rest) = text.split_once('-')?;
    let end: u64 = rest.split('/').next()?.parse().ok()?;
    let start: u64 = start.parse().ok()?;
    (start <= end).then_some(start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_path_says_what_it_is() {
        let table = [
            ("a/tags/list", Some(Call::Tags { name: "a" })),
            ("a/b/blobs/uploads/", Some(Call::Begin { name: "a/b" })),
            (
                "a/blobs/uploads/7",
                Some(Call::Upload { name: "a", id: "7" }),
            ),
            (
                "a/blobs/sha256:0",
                Some(Call::Blob {
                    name: "a",
                    digest: "sha256:0",
                }),
            ),
            (
                "blobs/x/manifests/1",
                Some(Call::Manifest {
                    name: "blobs/x",
                    reference: "1",
                }),
            ),
            ("", None),
            ("a/b", None),
            ("_catalog", None),
        ];
        for (path, expected) in table {
            assert_eq!(Call::parse(path), expected, "{path}");
        }
    }

    #[test]
    fn ranges_as_clients_write_them() {
        let table = [
            ("0-9", Some(0)),
            ("bytes 5-9/10", Some(5)),
            ("9-5", None),
            ("x", None),
            ("-5", None),
        ];
        for (text, expected) in table {
            assert_eq!(range_start(text), expected, "{text}");
        }
    }
}
