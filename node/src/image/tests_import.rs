//! Archives real tools write, archives nobody should, and layers as overlayfs shows them.

use std::fs;
use std::path::Path;

use super::testing::{Layout, Mounted, Tar, base, gzip, oci_archive, open_store, run, temp};
use super::{ImageError, Limits, Reference, Store};

async fn import(
    store: &Store,
    path: &Path,
) -> Result<Vec<std::sync::Arc<super::Image>>, ImageError> {
    store
        .import(tokio::fs::File::open(path).await.unwrap(), None)
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_kinds_of_archive_are_imported() {
    let (layout, files, dir) = (Layout::new(&[&base]), temp(), temp());
    let store = open_store(&dir);
    let copy = |to: &str| {
        let args = ["copy", "--insecure-policy", &layout.source(), to];
        run("skopeo", &args);
    };
    let (oci, docker) = (
        files.path().join("oci.tar"),
        files.path().join("docker.tar"),
    );
    copy(&format!("oci-archive:{}:team/app:1", oci.display()));
    copy(&format!(
        "docker-archive:{}:registry.example/team/app:2",
        docker.display()
    ));

    let [first] = &import(&store, &oci).await.unwrap()[..] else {
        panic!("one image")
    };
    assert_eq!(first.pin.reference, "docker.io/team/app:1");
    let [second] = &import(&store, &docker).await.unwrap()[..] else {
        panic!("one image")
    };
    assert_eq!(second.pin.reference, "registry.example/team/app:2");
    assert_eq!(first.layers, second.layers, "the same layer, held once");
    assert_eq!(second.config.cmd, ["/bin/sh"]);
    assert_eq!(
        import(&store, &docker).await.unwrap()[0].pin,
        second.pin,
        "the same digest again"
    );
    let hint = Reference::parse("localhost/mine:3").unwrap();
    let file = tokio::fs::File::open(&oci).await.unwrap();
    let named = store.import(file, Some(&hint)).await.unwrap();
    assert_eq!(named[0].pin.digest, first.pin.digest);
    assert!(store.find(&hint).is_some());

    let instance = dir.path().join("i");
    let _guard = Mounted(instance.clone());
    let snapshot = store.snapshot(second, &instance, None).await.unwrap();
    assert!(snapshot.rootfs.join("bin/busybox").exists());
    snapshot.remove(&store).await.unwrap();

    store.remove(&first.pin.digest).await.unwrap();
    let layers = dir.path().join("images/layers");
    assert_eq!(
        fs::read_dir(&layers).unwrap().count(),
        1,
        "the other image needs it"
    );
    store.remove(&second.pin.digest).await.unwrap();
    assert_eq!(fs::read_dir(&layers).unwrap().count(), 0);
}

#[tokio::test]
async fn what_is_no_archive_is_told_so() {
    let dir = temp();
    let store = open_store(&dir);
    let broken = {
        let mut archive = oci_archive(&[Tar::default().file("f", "x").end()]);
        let at = archive.windows(4).position(|w| w == b"/app").unwrap();
        archive[at + 1] = b'b';
        archive
    };
    let table: Vec<(&str, Vec<u8>)> = vec![
        ("neither `index.json` nor `manifest.json`", Vec::new()),
        (
            "neither `index.json` nor `manifest.json`",
            Tar::default().file("f", "x").end(),
        ),
        (
            "no sound tar",
            b"just some text, long enough to look like something else".repeat(40),
        ),
        ("gzip", gzip(&oci_archive(&[]))),
        ("leads out", Tar::default().file("../x", "x").end()),
        (
            "index.json",
            Tar::default()
                .file("oci-layout", "{}")
                .file("index.json", "[]")
                .end(),
        ),
        (
            "it holds no image",
            Tar::default().file("manifest.json", "[]").end(),
        ),
        (
            "it has no `c.json`",
            Tar::default()
                .file("manifest.json", r#"[{"Config":"c.json","Layers":[]}]"#)
                .end(),
        ),
        ("image configuration has digest", broken),
        ("the image has no layers", oci_archive(&[])),
        (
            "`../x`: its name holds `..`",
            oci_archive(&[Tar::default().file("../x", "x").end()]),
        ),
    ];
    for (expected, bytes) in table {
        let error = store
            .import(&bytes[..], None)
            .await
            .unwrap_err()
            .to_string();
        let found =
            error.contains(expected) || (expected == "no sound tar" && error.contains("sound tar"));
        assert!(found, "{expected}: {error}");
        assert!(store.list().is_empty());
    }
    for clean in ["layers", "tmp"] {
        assert_eq!(
            fs::read_dir(dir.path().join("images").join(clean))
                .unwrap()
                .count(),
            0
        );
    }
}

#[tokio::test]
async fn an_archive_over_the_limit_is_refused_while_it_arrives() {
    let dir = temp();
    let limits = Limits {
        raw: 0,
        ..Limits::default()
    };
    let store = Store::open(&dir.path().join("images"), limits).unwrap();
    let endless = tokio::io::repeat(0);
    let error = store.import(endless, None).await.unwrap_err();
    assert!(matches!(error, ImageError::TooLarge { .. }), "{error}");
    assert_eq!(
        fs::read_dir(dir.path().join("images/tmp")).unwrap().count(),
        0
    );
}

#[tokio::test]
async fn layers_stack_as_the_specification_says() {
    let dir = temp();
    let store = open_store(&dir);
    let below = Tar::default()
        .file("a/x", "1")
        .file("a/y", "1")
        .file("b/x", "1")
        .file("c", "1")
        .end();
    let above = Tar::default()
        .file("a/.wh.x", "")
        .file("b/.wh..wh..opq", "")
        .file("b/z", "2")
        .file("c", "2")
        .end();
    // The same layer twice is legal, and overlayfs takes none twice.
    let archive = oci_archive(&[below.clone(), above.clone(), below, above]);
    let image = store.import(&archive[..], None).await.unwrap().remove(0);
    let instance = dir.path().join("odd, name: with=everything");
    let _guard = Mounted(instance.clone());
    let snapshot = store.snapshot(&image, &instance, None).await.unwrap();
    let read = |name: &str| fs::read_to_string(snapshot.rootfs.join(name)).ok();
    assert_eq!((read("a/x"), read("a/y")), (None, Some("1".into())));
    assert_eq!(
        (read("b/x"), read("b/z"), read("c")),
        (None, Some("2".into()), Some("2".into()))
    );

    // Snapshotting again is a fresh start, also over a live mount.
    fs::write(snapshot.rootfs.join("mine"), "x").unwrap();
    let fresh = store.snapshot(&image, &instance, None).await.unwrap();
    assert!(!fresh.rootfs.join("mine").exists());
    fresh.unmount().await.unwrap();
    assert!(instance.join("upper").exists());
    store.remove_snapshot(&instance).await.unwrap();

    let wipe = Tar::default()
        .file(".wh..wh..opq", "")
        .file("only", "3")
        .end();
    let old = Tar::default().file("old", "1").end();
    let image = store
        .import(&oci_archive(&[old, wipe])[..], None)
        .await
        .unwrap()
        .remove(0);
    let snapshot = store.snapshot(&image, &instance, None).await.unwrap();
    assert!(!snapshot.rootfs.join("old").exists() && snapshot.rootfs.join("only").exists());
    snapshot.remove(&store).await.unwrap();
}

#[tokio::test]
async fn the_most_layers_can_be_mounted() {
    let dir = temp();
    let store = open_store(&dir);
    let most = Limits::default().layers;
    let mut layers: Vec<_> = (0..most)
        .map(|n| Tar::default().file(&format!("f{n}"), "x").end())
        .collect();
    let image = store
        .import(&oci_archive(&layers)[..], None)
        .await
        .unwrap()
        .remove(0);
    let instance = dir.path().join("i");
    let _guard = Mounted(instance.clone());
    let snapshot = store.snapshot(&image, &instance, None).await.unwrap();
    assert_eq!(fs::read_dir(&snapshot.rootfs).unwrap().count(), most);
    snapshot.remove(&store).await.unwrap();
    layers.push(Tar::default().file("one-more", "x").end());
    let error = store
        .import(&oci_archive(&layers)[..], None)
        .await
        .unwrap_err();
    assert!(matches!(error, ImageError::TooLarge { .. }), "{error}");
}
