//! The process that unpacks layers: that it does what is done without it, that it can do nothing else,
//! and that it never outlives whoever started it.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use flate2::Compression;
use flate2::write::GzEncoder;
use node::image::{Image, ImageError, Limits, Store};
use sha2::{Digest as _, Sha256};
use tar::{EntryType, Header};

use crate::world::{World, until};

const PROGRAM: &str = env!("CARGO_BIN_EXE_selvedged");

fn store(world: &World, limits: Limits) -> Store {
    let store = Store::open(&world.folder.join("images"), limits).unwrap();
    store.unpack_apart(PROGRAM.into());
    store
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

fn put(tar: &mut tar::Builder<Vec<u8>>, kind: EntryType, name: &str, to: &str, data: &[u8]) {
    let mut header = Header::new_gnu();
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.as_old_mut().linkname[..to.len()].copy_from_slice(to.as_bytes());
    header.set_entry_type(kind);
    header.set_mode(if name == "su" { 0o6755 } else { 0o755 });
    header.set_uid(1234);
    header.set_gid(4321);
    header.set_mtime(1_000_000_000);
    header.set_size(data.len() as u64);
    header.set_cksum();
    tar.append(&header, data).unwrap();
}

/// What `docker save` would write of one layer.
fn archive(packed: &[u8], diff_id: &str) -> Vec<u8> {
    let config = serde_json::json!({
        "architecture": match std::env::consts::ARCH { "aarch64" => "arm64", _ => "amd64" },
        "os": "linux", "config": {}, "rootfs": { "type": "layers", "diff_ids": [diff_id] },
    });
    let manifest = serde_json::json!([
        { "Config": "config.json", "RepoTags": ["apart:1"], "Layers": ["layer.tar"] }
    ]);
    let mut tar = tar::Builder::new(Vec::new());
    let (config, manifest) = (config.to_string(), manifest.to_string());
    put(
        &mut tar,
        EntryType::Regular,
        "config.json",
        "",
        config.as_bytes(),
    );
    put(
        &mut tar,
        EntryType::Regular,
        "manifest.json",
        "",
        manifest.as_bytes(),
    );
    put(&mut tar, EntryType::Regular, "layer.tar", "", packed);
    tar.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

async fn import(store: &Store, raw: &[u8]) -> Result<Arc<Image>, ImageError> {
    let archive = archive(&gzip(raw), &digest(raw));
    Ok(store.import(&archive[..], None).await?[0].clone())
}

fn nothing_is_left(world: &World) {
    for folder in ["tmp", "layers"] {
        let left = fs::read_dir(world.folder.join("images").join(folder)).unwrap();
        assert_eq!(left.count(), 0, "{folder}");
    }
}

fn layer(world: &World, raw: &[u8]) -> PathBuf {
    let hex = digest(raw).split_off("sha256:".len());
    world.folder.join("images/layers").join(hex)
}

#[tokio::test]
async fn a_layer_unpacked_apart_is_the_layer() {
    let world = World::new();
    let store = store(&world, Limits::default());
    let mut tar = tar::Builder::new(Vec::new());
    let big = vec![7; 3_000_000];
    for (kind, name, to, data) in [
        (EntryType::Directory, "d/", "", &b""[..]),
        (EntryType::Regular, "d/big", "", &big),
        (EntryType::Regular, "su", "", b"s"),
        (EntryType::Link, "d/again", "su", b""),
        (EntryType::Symlink, "out", "/etc/passwd", b""),
        (EntryType::Regular, "d/.wh..wh..opq", "", b""),
        (EntryType::Regular, "d/.wh.gone", "", b""),
    ] {
        put(&mut tar, kind, name, to, data);
    }
    let raw = tar.into_inner().unwrap();
    import(&store, &raw).await.unwrap();

    let folder = layer(&world, &raw);
    let mut parts: Vec<_> = fs::read_dir(&folder)
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    parts.sort();
    assert_eq!(parts, ["chunks", "complete", "fs", "recipe"]);
    let at = |name: &str| folder.join("fs").join(name);
    let su = fs::metadata(at("su")).unwrap();
    assert_eq!(
        (su.mode() & 0o7777, su.uid(), su.gid()),
        (0o6755, 1234, 4321)
    );
    assert_eq!((su.nlink(), su.mtime()), (2, 1_000_000_000));
    assert_eq!(fs::read(at("d/big")).unwrap(), big);
    assert_eq!(fs::read_link(at("out")).unwrap(), Path::new("/etc/passwd"));
    let gone = fs::symlink_metadata(at("d/gone")).unwrap();
    assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
    let mut mark = [0; 8];
    let n = rustix::fs::getxattr(at("d"), "trusted.overlay.opaque", &mut mark[..]).unwrap();
    assert_eq!(&mark[..n], b"y");
}

#[tokio::test]
async fn what_is_refused_here_is_refused_there() {
    let world = World::new();
    let store = store(
        &world,
        Limits {
            files: 100,
            ..Limits::default()
        },
    );
    let one = |kind, name: &str, to: &str| {
        let mut tar = tar::Builder::new(Vec::new());
        put(&mut tar, EntryType::Symlink, "l", "/tmp", b"");
        put(&mut tar, kind, name, to, b"");
        tar.into_inner().unwrap()
    };
    let mut many = tar::Builder::new(Vec::new());
    for n in 0..101 {
        put(&mut many, EntryType::Regular, &format!("f{n}"), "", b"");
    }
    let many = many.into_inner().unwrap();
    let zeros = vec![0; 64 << 20];
    let mut bomb = tar::Builder::new(Vec::new());
    put(&mut bomb, EntryType::Regular, "zeros", "", &zeros);
    let bomb = bomb.into_inner().unwrap();
    for (raw, code, entry, reason) in [
        (
            one(EntryType::Regular, "../x", ""),
            "ImageUnsafe",
            "../x",
            "`..`",
        ),
        (
            one(EntryType::Regular, "l/x", ""),
            "ImageUnsafe",
            "l/x",
            "symbolic link",
        ),
        (
            one(EntryType::Block, "sda", ""),
            "ImageUnsafe",
            "sda",
            "device",
        ),
        (
            one(EntryType::Link, "h", "etc/shadow"),
            "ImageUnsafe",
            "h",
            "outside",
        ),
        (many, "ImageTooLarge", "f100", "number of files"),
        (bomb, "ImageTooLarge", "zeros", "ratio"),
    ] {
        let error = import(&store, &raw).await.unwrap_err();
        let text = error.to_string();
        assert_eq!(error.code(), code, "{text}");
        let short = &digest(&raw)["sha256:".len()..][..12];
        for part in [short, &format!("`{entry}`"), reason] {
            assert!(text.contains(part), "{part} in: {text}");
        }
        nothing_is_left(&world);
    }
    let raw = one(EntryType::Directory, "d", "");
    let error = store
        .import(&archive(&gzip(&raw), &digest(b"else"))[..], None)
        .await;
    assert_eq!(error.unwrap_err().code(), "ImageCorrupt");
    nothing_is_left(&world);
}

#[tokio::test]
async fn a_stream_that_only_takes_time_runs_out_of_it() {
    let world = World::new();
    let store = store(
        &world,
        Limits {
            seconds: 1,
            ..Limits::default()
        },
    );
    // Each is a whole member of no bytes.
    let endless = gzip(b"").repeat(10_000_000);
    let archive = archive(&endless, &digest(b""));
    let error = store.import(&archive[..], None).await.unwrap_err();
    assert_eq!(error.code(), "ImageTooLarge", "{error}");
    assert!(error.to_string().contains("seconds"), "{error}");
    nothing_is_left(&world);
}

fn order() -> String {
    let digest = digest(b"");
    let limits = serde_json::to_value(Limits::default()).unwrap();
    let spent = serde_json::json!({ "raw": 0, "entries": 0, "names": 0 });
    serde_json::json!({
        "digest": digest, "diffId": digest, "size": 9, "packing": "plain",
        "limits": limits, "spent": spent,
    })
    .to_string()
}

fn place(world: &World) -> PathBuf {
    let folder = world.folder.join("place");
    fs::create_dir_all(folder.join("fs")).unwrap();
    folder
}

fn status(pid: u32, field: &str) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with(field))?;
    Some(line.split_whitespace().nth(1)?.to_owned())
}

async fn confined(pid: u32) {
    let filtered = || status(pid, "Seccomp:").as_deref() == Some("2");
    until("it to confine itself", filtered).await;
}

struct Gone(Child);

impl Drop for Gone {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn the_process_that_unpacks_has_no_power_but_over_its_folder() {
    let world = World::new();
    let folder = place(&world);
    let mut child = Command::new(PROGRAM)
        .args(["unpack", &order()])
        .current_dir(&folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map(Gone)
        .unwrap();
    let pid = child.0.id();
    confined(pid).await;
    // CHOWN, DAC_OVERRIDE, FOWNER, FSETID.
    for set in ["CapEff:", "CapPrm:"] {
        assert_eq!(status(pid, set).unwrap(), "000000000000001b");
    }
    assert_eq!(status(pid, "CapInh:").unwrap(), "0000000000000000");
    assert_eq!(status(pid, "NoNewPrivs:").unwrap(), "1");
    for link in ["root", "cwd"] {
        assert_eq!(
            fs::read_link(format!("/proc/{pid}/{link}")).unwrap(),
            folder
        );
    }
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
        let path = entry.unwrap().path();
        let to = fs::read_link(&path).unwrap();
        let number: u32 = path.file_name().unwrap().to_str().unwrap().parse().unwrap();
        let own = to.starts_with(&folder);
        assert!(number < 3 || own, "{number} is {}", to.display());
    }
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    for bound in [
        "Max cpu time",
        "Max address space",
        "Max open files",
        "Max file size",
    ] {
        let line = limits.lines().find(|l| l.starts_with(bound)).unwrap();
        assert!(!line.contains("unlimited"), "{line}");
    }
    // It still does its work, and tells how that ended.
    child
        .0
        .stdin
        .take()
        .unwrap()
        .write_all(b"not a tar")
        .unwrap();
    let mut told = String::new();
    child
        .0
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut told)
        .unwrap();
    assert!(told.starts_with(r#"{"failed":"#), "{told}");
}

#[tokio::test]
async fn the_process_that_unpacks_dies_with_whoever_started_it() {
    let world = World::new();
    let folder = place(&world);
    // Its stdin stays open: only its parent's death ends it.
    let script = format!(
        "exec 3<&0; '{PROGRAM}' unpack '{}' <&3 & echo $!; wait",
        order()
    );
    let mut parent = Command::new("/bin/busybox")
        .args(["sh", "-c", &script])
        .current_dir(&folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map(Gone)
        .unwrap();
    let mut line = Vec::new();
    let mut stdout = parent.0.stdout.take().unwrap();
    while line.last() != Some(&b'\n') {
        let mut byte = [0];
        stdout.read_exact(&mut byte).unwrap();
        line.push(byte[0]);
    }
    let pid: u32 = String::from_utf8(line).unwrap().trim().parse().unwrap();
    confined(pid).await;
    let _open = parent.0.stdin.take();
    parent.0.kill().unwrap();
    // Somebody else reaps it.
    let gone = || status(pid, "State:").is_none_or(|state| state == "Z");
    until("it to be gone", gone).await;
}
