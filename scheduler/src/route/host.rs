//! Host names: what stands before `.ORIGIN`, and what a service has beside it.

use crate::model::{Name, Service, ServiceKey};

/// The part of `host` before `.origin`, ignoring case, a port and one trailing dot. `None` when
/// it is not under the origin or is the origin itself. The port is anything after the first
/// colon: an IPv6 literal is never under an origin.
pub fn within<'a>(host: &'a str, origin: &str) -> Option<&'a str> {
    let host = bare(host);
    let cut = host.len().checked_sub(origin.len() + 1)?;
    let (label, rest) = (host.get(..cut)?, host.get(cut..)?);
    let under = rest.strip_prefix('.')?.eq_ignore_ascii_case(origin);
    (under && !label.is_empty()).then_some(label)
}

/// Whether a host is a name below the origin.
#[must_use]
pub fn is_under(host: &str, origin: &str) -> bool {
    within(host, &normal_origin(origin)).is_some()
}

/// A host without a port and one trailing dot.
pub fn bare(host: &str) -> &str {
    let host = host.split_once(':').map_or(host, |(name, _port)| name);
    host.strip_suffix('.').unwrap_or(host)
}

/// What stands before the origin for a service, or for one of its tags: `web`, `web.shop`,
/// `canary-web`. The default namespace is not said.
pub fn label(key: &ServiceKey, tag: Option<&Name>) -> String {
    let (start, dash) = tag.map_or(("", ""), |tag| (tag.as_str(), "-"));
    let plain = *key.namespace.as_str() == *Name::default_namespace().as_str();
    if plain {
        format!("{start}{dash}{}", key.name)
    } else {
        format!("{start}{dash}{}.{}", key.name, key.namespace)
    }
}

/// The hosts a service has: its own under `origin`, one for each tag, and those outside of it, a `*.` among them.
pub fn host_names(service: &Service, origin: &str) -> impl Iterator<Item = String> {
    let origin = normal_origin(origin);
    let tags = service
        .traffic
        .iter()
        .filter_map(|t| t.tag.as_ref())
        .map(Some);
    let labels = std::iter::once(None)
        .chain(tags)
        .map(|tag| label(&service.key, tag));
    let outside = service.domains().into_iter().map(|d| d.host().to_owned());
    labels
        .map(move |label| format!("{label}.{origin}"))
        .chain(outside)
}

/// A label as [`label`] spells it, in lower case already: without the default namespace.
pub fn shortest(label: &str) -> &str {
    match label.split_once('.') {
        Some((name, namespace)) if namespace == Name::default_namespace().as_str() => name,
        _ => label,
    }
}

/// The origin as kept in routes: lower case, no dot at either end.
pub fn normal_origin(origin: &str) -> String {
    origin.trim_matches('.').to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_cut_at_the_origin() {
        let table = [
            ("web.edge.test", Some("web")),
            ("web.edge.test:8080", Some("web")),
            ("web.edge.test.", Some("web")),
            ("WEB.Edge.Test.:80", Some("WEB")),
            ("web.shop.edge.test", Some("web.shop")),
            ("edge.test", None),
            (".edge.test", None),
            ("webedge.test", None),
            ("web.edge.test.evil", None),
            ("web.other.test", None),
            ("", None),
            ("[::1]:80", None),
            ("ä.edge.test", Some("ä")),
            ("webäedge.test", None),
        ];
        for (host, want) in table {
            assert_eq!(within(host, "edge.test"), want, "{host}");
        }
    }
}
