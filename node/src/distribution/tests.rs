//! The door over real HTTP: each verb, each bad input, and a real client.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use axum::http::Method;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{Distribution, serve};
use crate::image::{Digest, Limits, Pushes, Reference, Store};

const TOKEN: &str = "a-token";

struct Door {
    dir: TempDir,
    store: Store,
    address: SocketAddr,
    client: reqwest::Client,
    task: tokio::task::JoinHandle<std::io::Result<()>>,
}

impl Drop for Door {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Door {
    async fn open() -> Self {
        // Another test may have installed it.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("images"), Limits::default()).unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let pushes = Pushes::new(store.clone());
        let door = Distribution::new(pushes, TOKEN.to_owned(), Box::new(|| {}));
        Self {
            dir,
            store,
            address,
            client: reqwest::Client::builder()
                .tls_certs_only([])
                .build()
                .unwrap(),
            task: tokio::spawn(serve(Arc::new(door), listener)),
        }
    }

    fn request(&self, method: &Method, path: &str) -> reqwest::RequestBuilder {
        let url = format!("http://{}{path}", self.address);
        self.client
            .request(method.clone(), url)
            .basic_auth("anyone", Some(TOKEN))
    }

    /// The status, the error's code when there is one, and the location.
    async fn ask(&self, method: &Method, path: &str, body: &[u8]) -> (u16, String, String) {
        let sent = self.request(method, path).body(body.to_vec()).send().await;
        told(sent.unwrap()).await
    }

    async fn begin(&self) -> String {
        let (status, _, location) = self.ask(&Method::POST, "/v2/a/blobs/uploads/", b"").await;
        assert_eq!(status, 202);
        location
    }

    async fn push_blob(&self, bytes: &[u8]) {
        let path = format!("/v2/a/blobs/uploads/?digest={}", Digest::of(bytes));
        assert_eq!(self.ask(&Method::POST, &path, bytes).await.0, 201);
    }

    fn tmp(&self) -> usize {
        std::fs::read_dir(self.dir.path().join("images/tmp"))
            .unwrap()
            .count()
    }
}

async fn told(answer: reqwest::Response) -> (u16, String, String) {
    let status = answer.status().as_u16();
    let location = answer.headers().get("location").cloned();
    let location = location.map(|v| v.to_str().unwrap().to_owned());
    let body: Value = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap_or_default();
    let code = body["errors"][0]["code"].as_str().unwrap_or_default();
    (status, code.to_owned(), location.unwrap_or_default())
}

/// A layer, a configuration and a manifest.
fn image() -> (Vec<u8>, Vec<u8>, Vec<u8>) {
    image_for(match std::env::consts::ARCH {
        "aarch64" => "arm64",
        _ => "amd64",
    })
}

fn image_for(architecture: &str) -> (Vec<u8>, Vec<u8>, Vec<u8>) {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(2);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    tar.append_data(&mut header, "hello", &b"hi"[..]).unwrap();
    let layer = tar.into_inner().unwrap();
    let config = json!({
        "architecture": architecture,
        "os": "linux",
        "config": { "Cmd": ["/hello"] },
        "rootfs": { "type": "layers", "diff_ids": [Digest::of(&layer).as_str()] },
    });
    let config = serde_json::to_vec(&config).unwrap();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": { "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": Digest::of(&config).as_str(), "size": config.len() },
        "layers": [{ "mediaType": "application/vnd.oci.image.layer.v1.tar",
            "digest": Digest::of(&layer).as_str(), "size": layer.len() }],
    });
    (layer, config, serde_json::to_vec(&manifest).unwrap())
}

#[tokio::test]
async fn an_image_is_pushed_piece_by_piece_and_named() {
    let door = Door::open().await;
    let (layer, config, manifest) = image();
    door.push_blob(&config).await;
    let upload = door.begin().await;
    let (first, rest) = layer.split_at(700);
    for (at, piece, status) in [(0, first, 202), (0, first, 416), (700, rest, 202)] {
        let range = format!("{at}-{}", at + piece.len() - 1);
        let patch = door.request(&Method::PATCH, &upload);
        let patch = patch.header("content-range", range).body(piece.to_vec());
        assert_eq!(told(patch.send().await.unwrap()).await.0, status, "{at}");
    }
    let status = door.request(&Method::GET, &upload).send().await.unwrap();
    let range = status.headers()["range"].to_str().unwrap().to_owned();
    assert_eq!(range, format!("0-{}", layer.len() - 1));
    let close = format!("{upload}?digest={}", Digest::of(&layer));
    assert_eq!(door.ask(&Method::PUT, &close, b"").await.0, 201);
    let put = door.ask(&Method::PUT, "/v2/a/manifests/1", &manifest).await;
    assert_eq!(put.0, 201, "{put:?}");

    let name = Reference::parse(&format!("{}/a:1", door.address)).unwrap();
    let held = door.store.find(&name).unwrap();
    assert_eq!(held.pin.digest, Digest::of(&manifest).as_str());
    assert_eq!(door.tmp(), 0, "nothing packed is kept");
    let got = door.request(&Method::GET, "/v2/a/manifests/1").send().await;
    assert_eq!(got.unwrap().bytes().await.unwrap(), manifest);
    let blob = format!("/v2/a/blobs/{}", Digest::of(&layer));
    let head = door.request(&Method::HEAD, &blob).send().await.unwrap();
    assert_eq!(head.headers()["content-length"], layer.len().to_string());
    assert_eq!(door.ask(&Method::GET, &blob, b"").await.0, 404);
    let mount = format!("/v2/b/blobs/uploads/?mount={}&from=a", Digest::of(&layer));
    assert_eq!(door.ask(&Method::POST, &mount, b"").await.0, 201);
    let tags = door.request(&Method::GET, "/v2/a/tags/list").send().await;
    let tags: Value = serde_json::from_slice(&tags.unwrap().bytes().await.unwrap()).unwrap();
    assert_eq!(tags, json!({ "name": "a", "tags": ["1"] }));
}

#[tokio::test]
async fn what_is_wrong_is_told_by_status_and_code() {
    let door = Door::open().await;
    let (_, _, manifest) = image();
    let upload = door.begin().await;
    let zero = format!("sha256:{}", "0".repeat(64));
    let wrong = format!("{upload}?digest={zero}");
    let by_digest = format!("/v2/a/manifests/{zero}");
    let blob = format!("/v2/a/blobs/{zero}");
    let index = br#"{"schemaVersion":2,"manifests":[]}"#;
    let (get, put, post) = (Method::GET, Method::PUT, Method::POST);
    let table: Vec<(&Method, &str, &[u8], u16, &str)> = vec![
        (&get, "/v2/_catalog", b"", 404, "NAME_UNKNOWN"),
        (&get, "/v2/A/tags/list", b"", 400, "NAME_INVALID"),
        (&get, "/v2/a/tags/list", b"", 404, "NAME_UNKNOWN"),
        (&post, "/v2/a/tags/list", b"", 405, "UNSUPPORTED"),
        (&get, "/v2/a/blobs/x", b"", 400, "DIGEST_INVALID"),
        (&get, &blob, b"", 404, "BLOB_UNKNOWN"),
        (&post, "/v2/../blobs/uploads/", b"", 404, "NAME_UNKNOWN"),
        (
            &get,
            "/v2/a/blobs/uploads/99",
            b"",
            404,
            "BLOB_UPLOAD_UNKNOWN",
        ),
        (&put, &upload, b"x", 400, "DIGEST_INVALID"),
        (&put, &wrong, b"x", 400, "DIGEST_INVALID"),
        (&put, &wrong, b"x", 404, "BLOB_UPLOAD_UNKNOWN"),
        (&get, "/v2/a/manifests/1", b"", 404, "MANIFEST_UNKNOWN"),
        (&put, "/v2/a/manifests/1", b"{}", 400, "MANIFEST_INVALID"),
        (&put, "/v2/a/manifests/1", index, 400, "MANIFEST_INVALID"),
        (&put, &by_digest, &manifest, 400, "DIGEST_INVALID"),
        (
            &put,
            "/v2/a/manifests/1",
            &manifest,
            400,
            "MANIFEST_BLOB_UNKNOWN",
        ),
    ];
    for (method, path, body, status, code) in table {
        let (got, found, _) = door.ask(method, path, body).await;
        assert_eq!((got, found.as_str()), (status, code), "{method} {path}");
    }
    assert!(door.store.list().is_empty());
    assert_eq!(door.tmp(), 0);
}

#[tokio::test]
async fn nobody_enters_without_the_token() {
    let door = Door::open().await;
    let url = format!("http://{}/v2/", door.address);
    let ask = || door.client.get(&url);
    let table = [
        (ask(), 401),
        (ask().basic_auth("anyone", Some("a-tokem")), 401),
        (ask().basic_auth(TOKEN, Some("")), 401),
        (ask().bearer_auth(TOKEN).header("origin", "http://x"), 401),
        (ask().bearer_auth(TOKEN), 200),
        (ask().basic_auth("anyone", Some(TOKEN)), 200),
    ];
    for (at, (request, status)) in table.into_iter().enumerate() {
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status().as_u16(), status, "row {at}");
        let asked = answer.headers().contains_key("www-authenticate");
        assert_eq!(asked, status == 401, "row {at}");
    }
}

/// The image as an OCI layout, for clients that push.
fn layout(dir: &Path) -> Digest {
    let (layer, config, manifest) = image();
    let described = descriptor("manifest", &manifest);
    lay(dir, &[&layer, &config, &manifest], &described);
    Digest::of(&manifest)
}

fn descriptor(kind: &str, bytes: &[u8]) -> Value {
    json!({ "mediaType": format!("application/vnd.oci.image.{kind}.v1+json"),
        "digest": Digest::of(bytes).as_str(), "size": bytes.len() })
}

/// Blobs, and the one that is meant.
fn lay(dir: &Path, blobs: &[&Vec<u8>], described: &Value) {
    let folder = dir.join("blobs/sha256");
    std::fs::create_dir_all(&folder).unwrap();
    for bytes in blobs {
        std::fs::write(folder.join(Digest::of(bytes).hex()), bytes).unwrap();
    }
    let index = json!({ "schemaVersion": 2, "manifests": [described] });
    std::fs::write(dir.join("index.json"), index.to_string()).unwrap();
    let version = r#"{"imageLayoutVersion":"1.0.0"}"#;
    std::fs::write(dir.join("oci-layout"), version).unwrap();
}

/// The same for two platforms, as an index of both; the index's bytes.
fn layout_of_two(dir: &Path) -> Vec<u8> {
    let both = [image(), image_for("mips")];
    let entries = both.iter().zip([None, Some("mips")]);
    let entries = entries.map(|((.., manifest), other)| {
        let mut entry = descriptor("manifest", manifest);
        let own = match std::env::consts::ARCH {
            "aarch64" => "arm64",
            _ => "amd64",
        };
        entry["platform"] = json!({ "os": "linux", "architecture": other.unwrap_or(own) });
        entry
    });
    let entries: Vec<_> = entries.collect();
    let index = json!({ "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": entries });
    let index = serde_json::to_vec(&index).unwrap();
    let parts = both
        .iter()
        .flat_map(|(layer, config, manifest)| [layer, config, manifest]);
    let blobs: Vec<_> = parts.chain([&index]).collect();
    lay(dir, &blobs, &descriptor("index", &index));
    index
}

async fn skopeo(from: &Path, door: &Door, more: &[&'static str]) {
    let (from, to) = (from.to_owned(), door.address);
    let more = more.to_vec();
    let pushed = tokio::task::spawn_blocking(move || {
        Command::new("skopeo")
            .args(["copy", "--insecure-policy", "--dest-tls-verify=false"])
            .args(more)
            .arg(format!("--dest-creds=anyone:{TOKEN}"))
            .arg(format!("oci:{}", from.display()))
            .arg(format!("docker://{to}/team/app:1"))
            .output()
    });
    let pushed = pushed.await.unwrap().unwrap();
    let said = String::from_utf8_lossy(&pushed.stderr);
    assert!(pushed.status.success(), "{said}");
}

/// For all platforms at once, again too: the index is what the name gives afterwards.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn skopeo_pushes_an_index() {
    let door = Door::open().await;
    let files = tempfile::tempdir().unwrap();
    let index = layout_of_two(files.path());
    for _ in 0..2 {
        skopeo(files.path(), &door, &["--all", "--preserve-digests"]).await;
    }
    let name = Reference::parse(&format!("{}/team/app:1", door.address)).unwrap();
    assert_eq!(door.store.find(&name).unwrap().layers.len(), 1);
    assert_eq!(door.store.list().len(), 1);
    assert_eq!(door.tmp(), 0);
    for reference in ["1", Digest::of(&index).as_str()] {
        let path = format!("/v2/team/app/manifests/{reference}");
        let got = door.request(&Method::GET, &path).send().await.unwrap();
        let kind = got.headers()["content-type"].to_str().unwrap().to_owned();
        assert!(kind.contains("index"), "{kind}");
        assert_eq!(got.bytes().await.unwrap(), index);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn skopeo_pushes() {
    let door = Arc::new(Door::open().await);
    let files = tempfile::tempdir().unwrap();
    layout(files.path());
    for _ in 0..2 {
        skopeo(files.path(), &door, &[]).await;
    }
    let name = Reference::parse(&format!("{}/team/app:1", door.address)).unwrap();
    assert_eq!(door.store.find(&name).unwrap().layers.len(), 1);
    assert_eq!(door.tmp(), 0);
}

#[tokio::test]
async fn a_daemon_that_starts_again_has_no_half_an_image() {
    let door = Door::open().await;
    let (layer, config, _) = image();
    door.push_blob(&config).await;
    let upload = door.begin().await;
    assert_eq!(
        door.ask(&Method::PATCH, &upload, &layer[..700]).await.0,
        202
    );
    assert_eq!(door.tmp(), 2);
    // What a killed daemon leaves behind, byte for byte, in a store of its own.
    let copy = tempfile::tempdir().unwrap();
    let from = door.dir.path().join("images");
    let mut cp = Command::new("cp");
    let copied = cp.arg("-a").arg(from).arg(copy.path()).status();
    assert!(copied.unwrap().success());
    let store = Store::open(&copy.path().join("images"), Limits::default()).unwrap();
    assert!(store.list().is_empty());
    let left = std::fs::read_dir(copy.path().join("images/tmp")).unwrap();
    assert_eq!(left.count(), 0);
}
