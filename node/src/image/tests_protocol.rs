//! A registry that misbehaves on purpose: breaks off, stalls, wants tokens, redirects, lies.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{Response, StatusCode, header};
use bytes::Bytes;
use futures::{StreamExt, stream};
use tokio::net::TcpListener;

use super::manifest::host_architecture;
use super::testing::{Tar, free_address, gzip, impatient, install_tls, open_store, temp};
use super::tests_peers::{Fault, room};
use super::{Credentials, Digest, ImageError, Reference, RegistryConfig};

/// How the registry answers for a blob or manifest, once for each request; then properly.
#[derive(Debug, Clone)]
enum Trouble {
    /// Sends this many bytes and breaks the connection.
    BreakAfter(usize),
    /// Sends this many bytes and nothing more.
    StallAfter(usize),
    Status(u16),
    /// Does not know `Range`.
    WholeAgain,
    RedirectTo(String),
}

#[derive(Default)]
struct Script {
    content: BTreeMap<String, Bytes>,
    troubles: BTreeMap<String, Vec<Trouble>>,
    /// When set, requests need this bearer token, which the realm gives for `keeper:hunter2`.
    token: Option<String>,
    realm: String,
    asked: Vec<String>,
}

type Shared = Arc<Mutex<Script>>;

/// Where it listens; it ends with the test's runtime.
async fn serve(script: Script) -> (SocketAddr, Shared) {
    install_tls();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let shared = Arc::new(Mutex::new(script));
    {
        let mut script = shared.lock().unwrap();
        if script.realm.is_empty() {
            script.realm = format!("http://{address}/token");
        }
    }
    let app = Router::new()
        .fallback(answer)
        .with_state(Arc::clone(&shared));
    tokio::spawn(async move { axum::serve(listener, app).await });
    (address, shared)
}

async fn answer(State(script): State<Shared>, request: Request) -> Response<Body> {
    let mut script = script.lock().unwrap();
    let path = request.uri().path().to_owned();
    let field = |name| {
        request
            .headers()
            .get(name)
            .map(|v| v.to_str().unwrap_or("").to_owned())
    };
    script.asked.push(format!(
        "{path} {}",
        field(header::RANGE).unwrap_or_default()
    ));
    let status = |code: u16| Response::builder().status(code);
    if path == "/token" {
        let right = field(header::AUTHORIZATION).as_deref() == Some("Basic a2VlcGVyOmh1bnRlcjI=");
        let scoped = request.uri().query() == Some("service=reg&scope=repository%3Aapp%3Apull");
        return match (&script.token, right && scoped) {
            (Some(token), true) => status(200).body(format!(r#"{{"token":"{token}"}}"#).into()),
            _ => status(401).body(Body::empty()),
        }
        .unwrap();
    }
    if let Some(token) = &script.token
        && field(header::AUTHORIZATION) != Some(format!("Bearer {token}"))
    {
        let challenge = format!(
            r#"Bearer realm="{}",service="reg",scope="repository:app:pull""#,
            script.realm
        );
        let refused = status(401).header(header::WWW_AUTHENTICATE, challenge);
        return refused.body(Body::empty()).unwrap();
    }
    let name = path.trim_start_matches("/v2/app/").to_owned();
    let Some(bytes) = script.content.get(&name).cloned() else {
        return status(404).body(Body::empty()).unwrap();
    };
    let next = script.troubles.get_mut(&name).filter(|all| !all.is_empty());
    let trouble = next.map(|all| all.remove(0));
    let from = field(header::RANGE)
        .and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
    respond(&bytes, from, trouble)
}

fn respond(bytes: &Bytes, from: Option<usize>, trouble: Option<Trouble>) -> Response<Body> {
    let part = match trouble {
        Some(Trouble::WholeAgain) => None,
        _ => from,
    };
    let body = bytes.slice(part.unwrap_or(0)..);
    let builder = Response::builder().status(if part.is_some() { 206 } else { 200 });
    match trouble {
        Some(Trouble::Status(code)) => {
            let body = r#"{"errors":[{"code":"UNAVAILABLE","message":"later"}]}"#;
            Response::builder().status(code).body(body.into()).unwrap()
        }
        Some(Trouble::RedirectTo(url)) => {
            let moved = Response::builder().status(StatusCode::TEMPORARY_REDIRECT);
            moved
                .header(header::LOCATION, url)
                .body(Body::empty())
                .unwrap()
        }
        Some(Trouble::BreakAfter(n)) => {
            let sent = stream::iter([Ok(body.slice(..n)), Err(std::io::Error::other("cut"))]);
            builder
                .header(header::CONTENT_LENGTH, body.len())
                .body(Body::from_stream(sent))
                .unwrap()
        }
        Some(Trouble::StallAfter(n)) => {
            let sent = stream::iter([Ok::<_, std::io::Error>(body.slice(..n))]);
            let sent = sent.chain(stream::pending());
            builder
                .header(header::CONTENT_LENGTH, body.len())
                .body(Body::from_stream(sent))
                .unwrap()
        }
        Some(Trouble::WholeAgain) | None => builder.body(Body::from(body)).unwrap(),
    }
}

struct Served {
    script: Script,
    manifest: Digest,
    layer: String,
    layer_bytes: usize,
}

/// An image of one layer that does not pack well, tagged `app:1`.
fn image() -> Served {
    let noise: Vec<u8> = (0..300_000_u32)
        .flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes())
        .collect();
    let raw = Tar::default()
        .entry(tar::EntryType::Regular, b"noise", b"", &noise)
        .end();
    let packed = gzip(&raw);
    let mut script = Script::default();
    let mut put = |kind: &str, bytes: Vec<u8>| {
        let (digest, size) = (Digest::of(&bytes), bytes.len());
        script
            .content
            .insert(format!("{kind}/{digest}"), bytes.into());
        (digest, size)
    };
    let (layer, layer_bytes) = put("blobs", packed);
    let config = format!(
        r#"{{"architecture":"{}","os":"linux","rootfs":{{"diff_ids":["{}"]}}}}"#,
        host_architecture(),
        Digest::of(&raw)
    );
    let (config, config_size) = put("blobs", config.into_bytes());
    let manifest = format!(
        r#"{{"schemaVersion":2,"config":{{"digest":"{config}","size":{config_size}}},"layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"{layer}","size":{layer_bytes}}}]}}"#
    );
    let (digest, _) = put("manifests", manifest.clone().into_bytes());
    script.content.insert("manifests/1".into(), manifest.into());
    Served {
        script,
        manifest: digest,
        layer: format!("blobs/{layer}"),
        layer_bytes,
    }
}

fn app(address: SocketAddr) -> Reference {
    Reference::parse(&format!("{address}/app:1")).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_download_goes_on_where_it_broke() {
    let Served {
        mut script,
        layer,
        layer_bytes,
        ..
    } = image();
    assert!(layer_bytes > 400_000, "{layer_bytes}");
    let troubles = vec![
        Trouble::BreakAfter(100_000),
        Trouble::Status(503),
        Trouble::BreakAfter(0),
        Trouble::StallAfter(100_000),
        Trouble::WholeAgain,
    ];
    script.troubles.insert(layer.clone(), troubles);
    let (address, shared) = serve(script).await;
    let dir = temp();
    let store = open_store(&dir);
    store
        .pull_reference(&app(address), &impatient(), None)
        .await
        .unwrap();
    let asked = shared.lock().unwrap().asked.clone();
    let ranges: Vec<&str> = asked
        .iter()
        .filter_map(|a| a.strip_prefix(&format!("/v2/app/{layer} ")))
        .collect();
    assert_eq!(ranges.len(), 5, "{ranges:?}");
    // What had arrived before the stall is not fetched again. (How much arrives before a connection
    // breaks is the network's to say.)
    assert_eq!((ranges[0], ranges[4]), ("", "bytes=100000-"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_that_stays_broken_is_given_up_on() {
    let cases = [
        (Trouble::Status(500), "500"),
        (Trouble::StallAfter(0), "stood still"),
    ];
    for (trouble, said) in cases {
        let Served {
            mut script, layer, ..
        } = image();
        script.troubles.insert(layer, vec![trouble; 40]);
        let (address, _) = serve(script).await;
        let dir = temp();
        let mut config = impatient();
        config.patience.idle = Duration::from_millis(50);
        let error = open_store(&dir)
            .pull_reference(&app(address), &config, None)
            .await
            .unwrap_err();
        assert!(error.is_passing(), "{error}");
        assert!(error.to_string().contains(said), "{error}");
        let left = std::fs::read_dir(dir.path().join("images/layers"))
            .unwrap()
            .count();
        assert_eq!(left, 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_are_fetched_with_the_registrys_scope() {
    let Served { mut script, .. } = image();
    script.token = Some("t0k3n".into());
    let (address, shared) = serve(script).await;
    let dir = temp();
    let (store, mut config) = (open_store(&dir), impatient());
    let error = store.resolve(&app(address), &config).await.unwrap_err();
    assert!(matches!(error, ImageError::AuthRefused { .. }), "{error}");
    let credentials = Credentials {
        username: "keeper".to_owned(),
        password: "hunter2".to_owned(),
    };
    config.credentials.insert(address.to_string(), credentials);
    store
        .pull_reference(&app(address), &config, None)
        .await
        .unwrap();

    shared.lock().unwrap().realm = "ftp://127.0.0.1/token".into();
    let fresh = temp();
    let error = open_store(&fresh)
        .resolve(&app(address), &config)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("must not send us"), "{error}");
}

fn entry(arch: &str, digest: &Digest) -> String {
    format!(
        r#"{{"digest":"{digest}","size":1,"platform":{{"os":"linux","architecture":"{arch}"}}}}"#
    )
}

fn index(entries: &[String]) -> String {
    let entries = entries.join(",");
    format!(r#"{{"schemaVersion":2,"manifests":[{entries}]}}"#)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_platform_is_chosen_from_an_index() {
    let Served {
        mut script,
        manifest,
        ..
    } = image();
    let other = entry("s390x", &Digest::of(b"other"));
    let ours = index(&[other.clone(), entry(host_architecture(), &manifest)]);
    script.content.insert("manifests/1".into(), ours.into());
    script
        .content
        .insert("manifests/2".into(), index(&[other]).into());
    script
        .content
        .insert("manifests/3".into(), vec![b' '; 5 << 20].into());
    let looped = index(&[entry(host_architecture(), &Digest::of(b"x"))]);
    script.content.insert("manifests/4".into(), looped.into());
    let (address, _) = serve(script).await;
    let dir = temp();
    let (store, config) = (open_store(&dir), impatient());
    let pin = store.resolve(&app(address), &config).await.unwrap();
    assert_eq!(pin.digest, manifest.to_string());
    assert_eq!(pin.reference, format!("{address}/app:1"));
    for (tag, code) in [
        ("2", "ImagePlatform"),
        ("3", "ImageTooLarge"),
        ("4", "ImageNotFound"),
    ] {
        let reference = Reference::parse(&format!("{address}/app:{tag}")).unwrap();
        let error = store.resolve(&reference, &config).await.unwrap_err();
        assert_eq!(error.code(), code, "{error}");
    }
}

/// What an index leads to is known to whoever followed it, to those who asked that one, and after a restart:
/// its registry is needed once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_that_was_followed_is_known_without_its_registry() {
    let Served {
        mut script,
        manifest,
        ..
    } = image();
    let ours = index(&[entry(host_architecture(), &manifest)]);
    script
        .content
        .insert("manifests/1".into(), ours.clone().into());
    let (address, _) = serve(script).await;
    let dirs = [temp(), temp(), temp()];
    let [first, second, third] = [0, 1, 2].map(|at: usize| open_store(&dirs[at]));
    let mut config = impatient();
    let image = first.pull_reference(&app(address), &config, None).await;
    let image = image.unwrap();
    drop(first);

    let first = open_store(&dirs[0]);
    let gone = free_address();
    config.insecure.insert(gone.to_string());
    let digest = Digest::of(ours.as_bytes());
    let asked = Reference::parse(&format!("{gone}/app@{digest}")).unwrap();
    let here = first.resolve(&asked, &config).await.unwrap();
    assert_eq!(here.digest, image.pin.digest);
    let listed = first.find_listed(&asked).unwrap();
    assert_eq!(listed.pin.digest, image.pin.digest);

    second.set_near(Arc::new(room(&first, "", &[(Fault::None, false)])));
    let brought = second.pull_reference(&asked, &config, None).await.unwrap();
    assert_eq!(brought.pin.digest, image.pin.digest);
    third.set_near(Arc::new(room(&second, "", &[(Fault::None, true)])));
    third.pull_reference(&asked, &config, None).await.unwrap();

    // One that lies gives none, and one that nobody followed is nobody's.
    let dir = temp();
    let other = open_store(&dir);
    other.set_near(Arc::new(room(&first, "", &[(Fault::Lying, true)])));
    assert!(other.resolve(&asked, &config).await.is_err());
    let unknown = Digest::of(index(&[]).as_bytes());
    let unknown = Reference::parse(&format!("{gone}/app@{unknown}")).unwrap();
    let error = third.resolve(&unknown, &config).await.unwrap_err();
    assert!(error.is_passing(), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blob_may_live_elsewhere() {
    let Served {
        mut script, layer, ..
    } = image();
    let (elsewhere, _) = serve(Script {
        content: script.content.clone(),
        ..Script::default()
    })
    .await;
    let there = format!("http://{elsewhere}/v2/app/{layer}");
    script
        .troubles
        .insert(layer.clone(), vec![Trouble::RedirectTo(there)]);
    script.content.insert(layer, Bytes::new());
    let (address, _) = serve(script).await;
    let dir = temp();
    let config = RegistryConfig::default();
    open_store(&dir)
        .pull_reference(&app(address), &config, None)
        .await
        .unwrap();
}
