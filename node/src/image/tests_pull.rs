//! Pulls from a real registry, with images real tools made, seen through a real overlay.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use scheduler::model::ImagePin;

use super::testing::{
    Hub, Layout, Mounted, base, free_address, impatient, install_tls, open_store, run, temp,
};
use super::{Credentials, Digest, ImageError, Limits, Reference, RegistryConfig, Store};

/// Hides a file, replaces a directory, adds a file.
fn second(root: &std::path::Path) {
    // What was changed by its time is described by umoci, and nothing is left to be implied.
    let etc = fs::File::open(root.join("etc")).unwrap();
    let before = etc.metadata().unwrap().modified().unwrap();
    fs::remove_file(root.join("etc/hidden")).unwrap();
    etc.set_modified(before).unwrap();
    fs::remove_dir_all(root.join("data")).unwrap();
    fs::create_dir(root.join("data")).unwrap();
    fs::write(root.join("data/new"), "above").unwrap();
}

async fn pull(store: &Store, reference: &Reference) -> Arc<super::Image> {
    let config = RegistryConfig::default();
    let pin = store.resolve(reference, &config).await.unwrap();
    store.pull(&pin, &config, None).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pulled_image_is_seen_through_the_overlay_in_both_packings() {
    install_tls();
    let (hub, layout) = (Hub::start(), Layout::new(&[&base, &second]));
    hub.push(&layout, "team/app:gz", &[]);
    hub.push(
        &layout,
        "team/app:zst",
        &["--dest-compress-format", "zstd", "--dest-compress"],
    );
    for tag in ["gz", "zst"] {
        let dir = temp();
        let store = open_store(&dir);
        let image = pull(&store, &hub.name(&format!("team/app:{tag}"))).await;
        assert_eq!(
            image.pin.reference,
            format!("{}/team/app:{tag}", hub.address)
        );
        assert_eq!(image.config.cmd, ["/bin/sh"]);
        assert_eq!(image.config.exposed_ports, [8080]);
        assert!(image.config.env.contains(&"GREETING=hello".to_owned()));
        // Two of its own, and ours for the directories that the second one implies.
        assert_eq!(image.layers.len(), 3);

        let instance = dir.path().join("instances/i1");
        let guard = Mounted(instance.clone());
        let snapshot = store.snapshot(&image, &instance, None).await.unwrap();
        let root = &snapshot.rootfs;
        assert!(!root.join("etc/hidden").exists() && root.join("etc/kept").exists());
        assert!(
            !root.join("data/old").exists(),
            "the directory was replaced"
        );
        assert_eq!(fs::read_to_string(root.join("data/new")).unwrap(), "above");
        let said = std::process::Command::new("chroot")
            .arg(root)
            .args([
                "/bin/sh",
                "-c",
                "echo it runs > /written; busybox cat /written",
            ])
            .output()
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&said.stdout), "it runs\n");
        assert_eq!(
            store.adopt_snapshot(&instance).await.as_ref(),
            Some(&snapshot)
        );

        let refused = store.remove(&image.pin.digest).await.unwrap_err();
        assert!(matches!(refused, ImageError::InUse { .. }), "{refused}");
        snapshot.remove(&store).await.unwrap();
        assert!(!instance.join("rootfs").exists() && !instance.join("upper").exists());
        assert_eq!(store.adopt_snapshot(&instance).await, None);
        store
            .remove_snapshot(&instance)
            .await
            .expect("twice is fine");
        drop(guard);
        store.remove(&image.pin.digest).await.unwrap();
        for left in ["layers", "index", "blobs/sha256", "tmp", "uses"] {
            let left = dir.path().join("images").join(left);
            assert_eq!(
                fs::read_dir(&left).unwrap().count(),
                0,
                "{}",
                left.display()
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_pulled_is_there_after_a_restart_and_shared() {
    install_tls();
    let (hub, one) = (Hub::start(), Layout::new(&[&base]));
    hub.push(&one, "one:1", &[]);
    let source = format!("docker://{}/one:1", hub.address);
    let copy = format!("docker://{}/two:1", hub.address);
    let args = [
        "copy",
        "--insecure-policy",
        "--src-tls-verify=false",
        "--dest-tls-verify=false",
    ];
    run("skopeo", &[&args[..], &[&source, &copy]].concat());

    let dir = temp();
    let store = open_store(&dir);
    let image = pull(&store, &hub.name("one:1")).await;
    let again = pull(&store, &hub.name("two:1")).await;
    assert_eq!(
        image.pin.digest, again.pin.digest,
        "the same bytes are the same image"
    );
    assert_eq!(store.list().len(), 1);
    assert!(
        Store::open(&dir.path().join("images"), Limits::default()).is_err(),
        "one process"
    );
    drop(store);

    fs::write(dir.path().join("images/tmp/leftover"), "half").unwrap();
    let store = open_store(&dir);
    assert!(!dir.path().join("images/tmp/leftover").exists());
    let found = store
        .find(&hub.name("two:1"))
        .expect("under its second name too");
    assert_eq!(found.layers, image.layers);
    drop(store);

    // A half-written layer never runs: the image is forgotten, and can be pulled again.
    let layer: Digest = image.layers[0].parse().unwrap();
    let marker = dir
        .path()
        .join("images/layers")
        .join(layer.hex())
        .join("complete");
    fs::remove_file(&marker).unwrap();
    let store = open_store(&dir);
    assert!(store.get(&image.pin.digest).is_none());
    pull(&store, &hub.name("one:1")).await;
    assert!(marker.exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_herd_pulls_once() {
    install_tls();
    let (hub, layout) = (Hub::start(), Layout::new(&[&base]));
    hub.push(&layout, "app:1", &[]);
    let dir = temp();
    let store = open_store(&dir);
    let config = RegistryConfig::default();
    let pin = store.resolve(&hub.name("app:1"), &config).await.unwrap();
    let received = Arc::new(AtomicU64::new(0));
    let tell = {
        let received = Arc::clone(&received);
        move |p: super::Progress| {
            if p.received == p.total {
                received.fetch_add(p.total, Ordering::Relaxed);
            }
        }
    };
    let tell: super::ProgressFn = Arc::new(tell);
    let herd = (0..30).map(|_| store.pull(&pin, &config, Some(Arc::clone(&tell))));
    let images = futures::future::try_join_all(herd).await.unwrap();
    assert!(images.iter().all(|image| Arc::ptr_eq(image, &images[0])));
    let once = fs::read_dir(dir.path().join("images/layers"))
        .unwrap()
        .count();
    assert_eq!(once, 1);
    let packed = received.load(Ordering::Relaxed);
    assert!(packed > 100_000 && packed < 3_000_000, "{packed} bytes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_failure_has_its_own_error() {
    install_tls();
    let (hub, layout) = (Hub::start(), Layout::new(&[&base]));
    hub.push(&layout, "app:1", &[]);
    let dir = temp();
    let (store, config) = (open_store(&dir), impatient());
    let pin = store.resolve(&hub.name("app:1"), &config).await.unwrap();

    for missing in ["app:2", "nothing/here:1"] {
        let error = store
            .resolve(&hub.name(missing), &config)
            .await
            .unwrap_err();
        assert!(matches!(error, ImageError::NotFound { .. }), "{error}");
        assert!(error.to_string().contains(missing), "{error}");
    }
    let nothing = ImagePin {
        digest: Digest::of(b"nothing").to_string(),
        ..pin.clone()
    };
    let error = store.pull(&nothing, &config, None).await.unwrap_err();
    assert!(matches!(error, ImageError::NotFound { .. }), "{error}");

    let nobody = Reference::parse(&format!("{}/app:1", free_address())).unwrap();
    let error = store.resolve(&nobody, &config).await.unwrap_err();
    assert!(matches!(error, ImageError::Unreachable { .. }), "{error}");
    assert!(error.to_string().contains("refused"), "{error}");

    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let silent = Reference::parse(&format!("{}/app:1", silent.local_addr().unwrap())).unwrap();
    let error = store.resolve(&silent, &config).await.unwrap_err();
    assert!(matches!(error, ImageError::TimedOut { .. }), "{error}");
    assert!(store.list().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_a_registry_changed_are_never_kept() {
    install_tls();
    let (hub, layout) = (Hub::start(), Layout::new(&[&base]));
    hub.push(&layout, "app:1", &[]);
    let dir = temp();
    let (store, config) = (open_store(&dir), impatient());
    let pin = store.resolve(&hub.name("app:1"), &config).await.unwrap();
    let manifest_digest: Digest = pin.digest.parse().unwrap();
    let manifest = fs::read(hub.blob(&manifest_digest)).unwrap();
    let document: super::manifest::Manifest = serde_json::from_slice(&manifest).unwrap();
    let layer = document.layers[0].digest().unwrap();
    let (layer_path, whole) = (hub.blob(&layer), fs::read(hub.blob(&layer)).unwrap());

    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    let mut longer = whole.clone();
    longer.extend_from_slice(b"more");
    let damages: [&[u8]; 3] = [&flipped, &longer, &whole[..whole.len() / 2]];
    for damage in damages {
        fs::write(&layer_path, damage).unwrap();
        let error = store.pull(&pin, &config, None).await.unwrap_err();
        assert!(
            matches!(
                error,
                ImageError::DigestMismatch { .. } | ImageError::SizeMismatch { .. }
            ),
            "{error}"
        );
        assert!(store.list().is_empty());
        for clean in ["layers", "tmp", "index"] {
            let path = dir.path().join("images").join(clean);
            assert_eq!(
                fs::read_dir(&path).unwrap().count(),
                0,
                "{clean} after {error}"
            );
        }
    }
    fs::write(&layer_path, &whole).unwrap();
    store.pull(&pin, &config, None).await.unwrap();

    let other = temp();
    let store = open_store(&other);
    let mut changed = manifest;
    changed.push(b' ');
    fs::write(hub.blob(&manifest_digest), changed).unwrap();
    let error = store.pull(&pin, &config, None).await.unwrap_err();
    assert_eq!(error.code(), "ImageCorrupt", "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credentials_open_a_closed_registry() {
    install_tls();
    let files = temp();
    let passwords = files.path().join("htpasswd");
    // "keeper" with "hunter2", bcrypt.
    let hash = "$2y$05$abcdefghijklmnopqrstuuoXuKqgZXLiJqzfmMXDDhSFPIvxV7t8.";
    fs::write(&passwords, format!("keeper:{hash}\n")).unwrap();
    let hub = Hub::with(&format!(
        "auth: {{htpasswd: {{realm: test, path: {}}}}}\n",
        passwords.display()
    ));
    let layout = Layout::new(&[&base]);
    hub.push(&layout, "app:1", &["--dest-creds", "keeper:hunter2"]);
    let dir = temp();
    let (store, mut config) = (open_store(&dir), impatient());
    let reference = hub.name("app:1");

    let error = store.resolve(&reference, &config).await.unwrap_err();
    assert!(matches!(error, ImageError::AuthRefused { .. }), "{error}");
    let mut as_user = |password: &str| {
        let (username, password) = ("keeper".to_owned(), password.to_owned());
        let credentials = Credentials { username, password };
        config
            .credentials
            .insert(hub.address.to_string(), credentials);
        config.clone()
    };
    let error = store
        .resolve(&reference, &as_user("wrong-one"))
        .await
        .unwrap_err();
    assert!(matches!(error, ImageError::AuthRefused { .. }), "{error}");
    assert!(!error.to_string().contains("wrong-one"), "{error}");
    store
        .pull_reference(&reference, &as_user("hunter2"), None)
        .await
        .unwrap();
}

#[tokio::test]
async fn an_image_whose_mount_points_are_links_is_refused() {
    use super::testing::{Tar, oci_archive};
    let dir = temp();
    let store = open_store(&dir);
    let lower = Tar::default().dir("proc").dir("sys").end();
    let upper = Tar::default().symlink("sys", "/etc").end();
    let error = store
        .import(&oci_archive(&[lower, upper])[..], None)
        .await
        .unwrap_err();
    assert!(
        matches!(error, ImageError::UnsafeRoot { path: "sys" }),
        "{error}"
    );
    assert!(store.list().is_empty());
}
