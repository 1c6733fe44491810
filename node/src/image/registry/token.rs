//! Answers a registry's `WWW-Authenticate`: a token from the realm it names, or Basic; and keeps
//! answers for as long as they are good, in memory only. Knows nothing of images.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use reqwest::{Client, RequestBuilder, Url};
use serde::Deserialize;

use super::access::Credentials;
use super::reach::Reach;

/// A token's answer is a few kilobytes even from the wordiest registry.
const MAX_TOKEN_BODY: usize = 256 * 1024;
/// What a token is good for when its service does not say.
const LIFETIME: u64 = 60;
/// A token this close to its end is not begun with.
const MARGIN: u64 = 5;
/// Tokens kept for later pulls.
const MAX_KEPT: usize = 256;

/// What the registry wants to see.
#[derive(Debug, PartialEq, Eq)]
pub(in super::super) enum Challenge {
    Basic,
    Bearer {
        realm: String,
        service: Option<String>,
        scope: Option<String>,
    },
}

/// Why there is no token.
pub(in super::super) enum Refusal {
    Network(reqwest::Error),
    Said(String),
}

/// The first challenge we can answer; a token before a password.
pub(in super::super) fn challenge(headers: &HeaderMap) -> Option<Challenge> {
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

/// An `Authorization` header, and how long it is good for.
pub(in super::super) struct Grant {
    pub header: HeaderValue,
    pub lifetime: Duration,
}

/// What answers `challenge`; `None` when it wants credentials and there are none.
pub(in super::super) async fn answer(
    http: &Client,
    (registry, reach): (&Url, &Reach),
    challenge: &Challenge,
    credentials: Option<&Credentials>,
) -> Result<Option<Grant>, Refusal> {
    let identity = credentials.and_then(Credentials::identity_token);
    // An identity token is no password: where Basic is wanted there is nothing to answer with.
    let basic = credentials.filter(|_| identity.is_none()).map(|c| {
        let pair = STANDARD.encode(format!("{}:{}", c.username, c.password));
        secret(&format!("Basic {pair}"))
    });
    let (realm, service, scope) = match challenge {
        Challenge::Basic => {
            let lifetime = Duration::from_secs(LIFETIME);
            let header = basic.transpose()?;
            return Ok(header.map(|header| Grant { header, lifetime }));
        }
        Challenge::Bearer {
            realm,
            service,
            scope,
        } => (realm, service, scope),
    };
    let mut url = Url::parse(realm).map_err(|_| said("its token realm is no URL"))?;
    if !reach.may_go(registry, &url) {
        return Err(said("its token realm is at a place it must not send us to"));
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
    take(request).await.map(Some)
}

/// Asks a token service and reads what it gives.
async fn take(request: RequestBuilder) -> Result<Grant, Refusal> {
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
    let token: Given = serde_json::from_slice(&body)
        .map_err(|_| said("the token service's answer is no token"))?;
    let text = token.token.or(token.access_token);
    let text = text.ok_or_else(|| said("the token service's answer is no token"))?;
    let lifetime = token.expires_in.unwrap_or(LIFETIME).saturating_sub(MARGIN);
    Ok(Grant {
        header: secret(&format!("Bearer {text}"))?,
        lifetime: Duration::from_secs(lifetime),
    })
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

/// What a token service says, in the protocol's words.
#[derive(Deserialize)]
struct Given {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
    #[serde(default)]
    expires_in: Option<u64>,
}

/// What a token was given for: the repository's URL, and who asked.
type Scope = (String, Option<String>);

/// Tokens that are still good.
#[derive(Default)]
pub(in super::super) struct Tokens(Mutex<BTreeMap<Scope, (HeaderValue, Instant)>>);

impl Tokens {
    pub(in super::super) fn get(&self, scope: &Scope, now: Instant) -> Option<HeaderValue> {
        let kept = self.kept();
        let (header, until) = kept.get(scope)?;
        (now < *until).then(|| header.clone())
    }

    pub(in super::super) fn keep(&self, scope: Scope, grant: &Grant, now: Instant) {
        let Some(until) = now.checked_add(grant.lifetime) else {
            return;
        };
        let mut kept = self.kept();
        if kept.len() >= MAX_KEPT {
            kept.retain(|_, (_, until)| now < *until);
        }
        if kept.len() < MAX_KEPT {
            kept.insert(scope, (grant.header.clone(), until));
        }
    }

    /// The registry did not take it.
    pub(in super::super) fn forget(&self, scope: &Scope) {
        self.kept().remove(scope);
    }

    fn kept(&self) -> MutexGuard<'_, BTreeMap<Scope, (HeaderValue, Instant)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
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
    fn a_token_is_kept_until_it_ends() {
        let (tokens, now) = (Tokens::default(), Instant::now());
        let scope = |text: &str| (text.to_owned(), None);
        let grant = |seconds| Grant {
            header: HeaderValue::from_static("Bearer x"),
            lifetime: Duration::from_secs(seconds),
        };
        tokens.keep(scope("a"), &grant(55), now);
        let later = |seconds| now + Duration::from_secs(seconds);
        assert!(tokens.get(&scope("a"), later(54)).is_some());
        assert!(tokens.get(&scope("a"), later(55)).is_none());
        assert!(tokens.get(&scope("b"), now).is_none());
        let other = ("a".to_owned(), Some("me".to_owned()));
        assert!(tokens.get(&other, now).is_none(), "another's");
        tokens.forget(&scope("a"));
        assert!(tokens.get(&scope("a"), now).is_none());

        for number in 0..2 * MAX_KEPT {
            tokens.keep(scope(&number.to_string()), &grant(u64::MAX), now);
            tokens.keep(scope(&number.to_string()), &grant(10), now);
        }
        assert_eq!(tokens.kept().len(), MAX_KEPT);
        tokens.keep(scope("new"), &grant(10), later(11));
        assert_eq!(tokens.kept().len(), 1);
    }

    #[test]
    fn an_identity_token_goes_in_the_body_and_nowhere_else() {
        crate::image::testing::install_tls();
        let http = Client::builder().tls_certs_only(std::iter::empty()).build();
        let http = http.expect("client");
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
}
