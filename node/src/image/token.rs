//! Answers a registry's `WWW-Authenticate`: a token from the realm it names, or Basic. Also says
//! where a registry may send us at all. Knows nothing of images.

use std::net::IpAddr;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use reqwest::redirect::Policy;
use reqwest::{Client, RequestBuilder, Url};
use serde::Deserialize;

use super::access::Credentials;

/// A token's answer is a few kilobytes even from the wordiest registry.
const MAX_TOKEN_BODY: usize = 256 * 1024;
const MAX_REDIRECTS: usize = 5;
const IDLE_CONNECTION: Duration = Duration::from_secs(30);

/// What the registry wants to see.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Bearer {
        realm: String,
        service: Option<String>,
        scope: Option<String>,
    },
}

/// Why there is no token.
pub(super) enum Refusal {
    Network(reqwest::Error),
    Said(String),
}

/// The client for registries. `tls: false` is for plain HTTP and trusts no certificate at all, so
/// that it can be made on a machine without CA certificates.
pub(super) fn client(tls: bool, connect: Duration) -> Result<Client, reqwest::Error> {
    let redirects = Policy::custom(|attempt| {
        let from = attempt.previous().first().cloned();
        let fits = from.is_some_and(|from| may_go(&from, attempt.url()));
        if attempt.previous().len() > MAX_REDIRECTS {
            attempt.error("too many redirects")
        } else if fits {
            attempt.follow()
        } else {
            attempt.error("the registry redirects to a place it must not send us")
        }
    });
    let builder = Client::builder()
        .user_agent(concat!("selvedged/", env!("CARGO_PKG_VERSION")))
        .redirect(redirects)
        .no_proxy()
        .pool_idle_timeout(IDLE_CONNECTION)
        .connect_timeout(connect);
    let builder = if tls {
        builder
    } else {
        builder.tls_certs_only(std::iter::empty())
    };
    builder.build()
}

/// Whether a registry may send us on. A public one must neither drop TLS nor make this node knock
/// at addresses inside the operator's network; and none at all may make it ask a link-local
/// address, where clouds tell a machine its own secrets.
pub(super) fn may_go(from: &Url, to: &Url) -> bool {
    if is_link_local(to) && to.host() != from.host() {
        return false;
    }
    let inside = is_inside(from);
    match to.scheme() {
        "https" => inside || !is_inside(to),
        "http" => from.scheme() == "http" && (inside || !is_inside(to)),
        _ => false,
    }
}

fn is_link_local(url: &Url) -> bool {
    match address_of(url) {
        Some(IpAddr::V4(ip)) => ip.is_link_local(),
        Some(IpAddr::V6(ip)) => ip
            .to_ipv4_mapped()
            .map_or(ip.is_unicast_link_local(), |ip| ip.is_link_local()),
        None => false,
    }
}

fn address_of(url: &Url) -> Option<IpAddr> {
    let host = url.host_str()?;
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare.parse().ok()
}

/// Whether a URL names, by address, a host that is not on the public internet.
fn is_inside(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    match bare.parse::<IpAddr>() {
        Ok(IpAddr::V4(ip)) => !is_public_v4(ip),
        Ok(IpAddr::V6(ip)) => ip
            .to_ipv4_mapped()
            .map_or(!is_public_v6(ip), |ip| !is_public_v4(ip)),
        Err(_) => bare == "localhost" || bare.ends_with(".localhost"),
    }
}

fn is_public_v6(ip: std::net::Ipv6Addr) -> bool {
    let local = ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local();
    !(local || ip.is_unspecified() || ip.is_multicast())
}

fn is_public_v4(ip: std::net::Ipv4Addr) -> bool {
    let shared = ip.octets()[0] == 100 && (ip.octets()[1] & 0xc0) == 64;
    let local = ip.is_loopback() || ip.is_private() || ip.is_link_local() || shared;
    !(local || ip.is_unspecified() || ip.is_broadcast() || ip.is_multicast())
}

/// The first challenge we can answer; a token before a password.
pub(super) fn challenge(headers: &HeaderMap) -> Option<Challenge> {
    let all: Vec<Challenge> = headers
        .get_all(WWW_AUTHENTICATE)
        .iter()
        .filter_map(|value| parse(value.to_str().ok()?))
        .collect();
    let bearer = all
        .iter()
        .position(|c| matches!(c, Challenge::Bearer { .. }));
    all.into_iter().nth(bearer.unwrap_or(0))
}

fn parse(text: &str) -> Option<Challenge> {
    let (scheme, rest) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
    if scheme.eq_ignore_ascii_case("basic") {
        return Some(Challenge::Basic);
    }
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let (mut realm, mut service, mut scope) = (None, None, None);
    for (key, value) in parameters(rest) {
        match key.to_ascii_lowercase().as_str() {
            "realm" => realm = Some(value),
            "service" => service = Some(value),
            "scope" => scope = Some(value),
            _ => {}
        }
    }
    Some(Challenge::Bearer {
        realm: realm?,
        service,
        scope,
    })
}

/// `key="value",key=value`; a scope's value holds commas of its own.
fn parameters(mut text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    while let Some((key, rest)) = text.split_once('=') {
        let (value, rest) = match rest.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => rest.split_once(',').unwrap_or((rest, "")),
        };
        found.push((key.trim().to_owned(), value.to_owned()));
        text = rest.trim_start_matches([',', ' ']);
    }
    found
}

/// The `Authorization` header that answers `challenge`; `None` when it wants credentials and
/// there are none.
pub(super) async fn answer(
    http: &Client,
    registry: &Url,
    challenge: &Challenge,
    credentials: Option<&Credentials>,
) -> Result<Option<HeaderValue>, Refusal> {
    let identity = credentials.and_then(Credentials::identity_token);
    // An identity token is no password: where Basic is wanted there is nothing to answer with.
    let basic = credentials.filter(|_| identity.is_none()).map(|c| {
        let pair = STANDARD.encode(format!("{}:{}", c.username, c.password));
        secret(&format!("Basic {pair}"))
    });
    let (realm, service, scope) = match challenge {
        Challenge::Basic => return basic.transpose(),
        Challenge::Bearer {
            realm,
            service,
            scope,
        } => (realm, service, scope),
    };
    let mut url = Url::parse(realm).map_err(|_| said("its token realm is no URL"))?;
    if !may_go(registry, &url) {
        return Err(said("its token realm is at a place it must not send us"));
    }
    let bare = url.clone();
    for (key, value) in [("service", service), ("scope", scope)] {
        if let Some(value) = value {
            url.query_pairs_mut().append_pair(key, value);
        }
    }
    let request = match (identity, basic.transpose()?) {
        (Some(identity), _) => refresh(http, bare, &url, identity),
        (None, Some(basic)) => http.get(url).header(AUTHORIZATION, basic),
        (None, None) => http.get(url),
    };
    let mut response = request.send().await.map_err(Refusal::Network)?;
    if !response.status().is_success() {
        return Err(said(&format!(
            "the token service answers {}",
            response.status()
        )));
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(Refusal::Network)? {
        body.extend_from_slice(&chunk);
        if body.len() > MAX_TOKEN_BODY {
            return Err(said("the token service's answer is too large"));
        }
    }
    let token: Token = serde_json::from_slice(&body)
        .map_err(|_| said("the token service's answer is no token"))?;
    let text = token.token.or(token.access_token);
    let text = text.ok_or_else(|| said("the token service's answer is no token"))?;
    secret(&format!("Bearer {text}")).map(Some)
}

/// The `OAuth2` way to a token, for those who hold an identity token: it goes in the body, where no
/// log of addresses keeps it. `asked` is the realm with what is wanted of it.
fn refresh(http: &Client, realm: Url, asked: &Url, identity: &str) -> RequestBuilder {
    let mut form = asked.clone();
    form.query_pairs_mut()
        .append_pair("grant_type", "refresh_token")
        .append_pair("client_id", "selvedged")
        .append_pair("refresh_token", identity);
    let body = form.query().unwrap_or_default().to_owned();
    http.post(realm)
        .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
        .body(body)
}

#[derive(Deserialize)]
struct Token {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
}

fn said(detail: &str) -> Refusal {
    Refusal::Said(detail.to_owned())
}

/// A header value that is never printed.
fn secret(text: &str) -> Result<HeaderValue, Refusal> {
    let mut value =
        HeaderValue::from_str(text).map_err(|_| said("the credentials hold strange characters"))?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read() {
        let bearer =
            r#"Bearer realm="https://a.example/t",service="r",scope="repository:a:pull,push""#;
        let parsed = parse(bearer).expect("bearer");
        assert_eq!(
            parsed,
            Challenge::Bearer {
                realm: "https://a.example/t".to_owned(),
                service: Some("r".to_owned()),
                scope: Some("repository:a:pull,push".to_owned()),
            }
        );
        assert_eq!(parse("Basic realm=x"), Some(Challenge::Basic));
        for none in [
            "",
            "Digest realm=x",
            "Bearer",
            "Bearer service=x",
            "Bearer realm",
        ] {
            assert_eq!(parse(none), None, "{none}");
        }
        let mut headers = HeaderMap::new();
        headers.append(WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=x"));
        headers.append(
            WWW_AUTHENTICATE,
            HeaderValue::from_static("Bearer realm=\"http://x\""),
        );
        assert!(matches!(
            challenge(&headers),
            Some(Challenge::Bearer { .. })
        ));
    }

    #[test]
    fn a_public_registry_cannot_send_us_inside() {
        let url = |text: &str| Url::parse(text).expect("URL");
        let public = url("https://r.example/v2/");
        for fine in ["https://cdn.example/x", "https://93.184.216.34/x"] {
            assert!(may_go(&public, &url(fine)), "{fine}");
        }
        let inside = [
            "http://cdn.example/",
            "https://127.0.0.1/",
            "https://10.1.2.3/",
            "https://[::1]/",
            "https://169.254.169.254/latest/meta-data",
            "https://localhost/",
            "https://100.64.0.1/",
            "https://[::ffff:10.0.0.1]/",
            "https://[fd00::1]/",
            "ftp://cdn.example/",
        ];
        for bad in inside {
            assert!(!may_go(&public, &url(bad)), "{bad}");
        }
        for metadata in ["http://169.254.169.254/", "http://[fe80::1]/"] {
            let private = url("http://10.0.0.1:5000/");
            assert!(!may_go(&private, &url(metadata)), "{metadata}");
        }
        assert!(may_go(
            &url("http://127.0.0.1:5000/"),
            &url("http://127.0.0.1:5001/")
        ));
        assert!(may_go(
            &url("http://10.0.0.1:5000/"),
            &url("http://10.0.0.2/")
        ));
    }

    #[test]
    fn an_identity_token_goes_in_the_body_and_nowhere_else() {
        crate::image::testing::install_tls();
        let http = client(false, Duration::from_secs(1)).expect("client");
        let realm = Url::parse("http://127.0.0.1:5000/token").expect("URL");
        let mut asked = realm.clone();
        asked.query_pairs_mut().append_pair("service", "reg");
        let request = refresh(&http, realm.clone(), &asked, "s&cret").build();
        let request = request.expect("request");
        assert_eq!((request.method().as_str(), request.url()), ("POST", &realm));
        let body = request.body().and_then(reqwest::Body::as_bytes);
        let wanted =
            "service=reg&grant_type=refresh_token&client_id=selvedged&refresh_token=s%26cret";
        assert_eq!(body, Some(wanted.as_bytes()));
    }

    #[test]
    fn the_plain_client_needs_no_certificates() {
        crate::image::testing::install_tls();
        client(false, Duration::from_secs(1)).expect("nothing it needs can be missing");
        // Where there are none, this is an error to tell, and nothing worse.
        let _ = client(true, Duration::from_secs(1));
    }
}
