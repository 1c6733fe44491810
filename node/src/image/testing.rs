//! What the image tests stand on: tars no tool would write, images real tools write, and a real
//! registry on loopback. Everything made here is gone when its value is dropped.

use std::fs;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tar::{EntryType, Header};
use tempfile::TempDir;

use super::{Digest, Limits, Reference, RegistryConfig, Store};

/// Test images are built for the machine the tests run on.
pub(super) const READY_WITHIN: Duration = Duration::from_secs(20);

pub(super) fn temp() -> TempDir {
    tempfile::Builder::new()
        .prefix(&format!("sel-image-{}-", std::process::id()))
        .tempdir()
        .expect("temp dir")
}

pub(super) fn install_tls() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}

pub(super) fn open_store(dir: &TempDir) -> Store {
    open_at(&dir.path().join("images"))
}

/// Opens a store that may have been open a moment ago: a child that another test starts has its lock
/// too, until it runs its own program.
pub(super) fn open_at(images: &Path) -> Store {
    let by = Instant::now() + READY_WITHIN;
    loop {
        match Store::open(images, Limits::default()) {
            Err(error) if error.to_string().contains("lock") && Instant::now() < by => {
                std::thread::sleep(Duration::from_millis(5));
            }
            opened => return opened.expect("store opens"),
        }
    }
}

/// A tar written byte by byte: any name, any kind.
#[derive(Clone, Default)]
pub(super) struct Tar(Vec<u8>);

impl Tar {
    pub(super) fn entry(mut self, kind: EntryType, name: &[u8], link: &[u8], data: &[u8]) -> Self {
        if name.len() > 100 {
            self = self.raw(
                EntryType::GNULongName,
                b"././@LongLink",
                b"",
                &[name, b"\0"].concat(),
            );
        }
        let short = &name[..name.len().min(100)];
        self.raw(kind, short, link, data)
    }

    pub(super) fn raw(self, kind: EntryType, name: &[u8], link: &[u8], data: &[u8]) -> Self {
        let mut header = Header::new_gnu();
        let (old_name, old_link) = (name.len().min(100), link.len().min(100));
        header.as_old_mut().name[..old_name].copy_from_slice(&name[..old_name]);
        header.as_old_mut().linkname[..old_link].copy_from_slice(&link[..old_link]);
        header.set_entry_type(kind);
        header.set_mode(if kind == EntryType::Directory {
            0o755
        } else {
            0o644
        });
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000_000);
        header.set_size(data.len() as u64);
        self.header(&header, data)
    }

    pub(super) fn header(mut self, header: &Header, data: &[u8]) -> Self {
        let mut header = header.clone();
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub(super) fn dir(self, name: &str) -> Self {
        self.entry(EntryType::Directory, name.as_bytes(), b"", b"")
    }

    pub(super) fn file(self, name: &str, data: &str) -> Self {
        self.entry(EntryType::Regular, name.as_bytes(), b"", data.as_bytes())
    }

    pub(super) fn symlink(self, name: &str, to: &str) -> Self {
        self.entry(EntryType::Symlink, name.as_bytes(), to.as_bytes(), b"")
    }

    pub(super) fn hardlink(self, name: &str, to: &str) -> Self {
        self.entry(EntryType::Link, name.as_bytes(), to.as_bytes(), b"")
    }

    pub(super) fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut data = Vec::new();
        for (key, value) in records {
            let body = key.len() + value.len() + 3;
            let mut length = body + 1;
            while length != body + length.to_string().len() {
                length = body + length.to_string().len();
            }
            write!(data, "{length} {key}=").expect("memory");
            data.extend_from_slice(value);
            data.push(b'\n');
        }
        self.raw(EntryType::XHeader, b"pax", b"", &data)
    }

    pub(super) fn end(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 1024]);
        self.0
    }
}

/// An OCI archive of these layers, gzip, as bytes: `break_it` may change a blob before it is put in.
pub(super) fn oci_archive(layers: &[Vec<u8>]) -> Vec<u8> {
    let mut blobs: Vec<(Digest, Vec<u8>)> = Vec::new();
    let mut put = |bytes: Vec<u8>| {
        let (digest, size) = (Digest::of(&bytes), bytes.len());
        blobs.push((digest.clone(), bytes));
        (digest, size)
    };
    let (mut described, mut diff_ids) = (Vec::new(), Vec::new());
    for layer in layers {
        diff_ids.push(format!("\"{}\"", Digest::of(layer)));
        let (digest, size) = put(gzip(layer));
        described.push(format!(
            r#"{{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"{digest}","size":{size}}}"#
        ));
    }
    let config = format!(
        r#"{{"architecture":"{}","os":"linux","config":{{"Cmd":["/app"]}},"rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
        super::manifest::host_architecture(),
        diff_ids.join(",")
    );
    let (config, config_size) = put(config.into_bytes());
    let manifest = format!(
        r#"{{"schemaVersion":2,"config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{config}","size":{config_size}}},"layers":[{}]}}"#,
        described.join(",")
    );
    let (manifest, size) = put(manifest.into_bytes());
    let index = format!(
        r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"{}","digest":"{manifest}","size":{size}}}]}}"#,
        super::manifest::OCI_MANIFEST
    );
    let mut tar = Tar::default()
        .file("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#)
        .file("index.json", &index);
    for (digest, bytes) in blobs {
        let name = format!("blobs/sha256/{}", digest.hex());
        tar = tar.entry(EntryType::Regular, name.as_bytes(), b"", &bytes);
    }
    tar.end()
}

pub(super) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    out.write_all(bytes).expect("memory");
    out.finish().expect("memory")
}

/// Runs a tool and shows what it said when it fails.
pub(super) fn run(program: &str, args: &[&str]) {
    let output = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .expect(program);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {said}");
}

/// An OCI layout made with umoci, one layer for each closure, which changes the root file system.
pub(super) struct Layout {
    dir: TempDir,
}

impl Layout {
    pub(super) fn new(changes: &[&dyn Fn(&Path)]) -> Self {
        let dir = temp();
        let layout = Self { dir };
        let (image, bundle) = (layout.image(), layout.dir.path().join("bundle"));
        let bundle_text = bundle.to_str().expect("text");
        run(
            "umoci",
            &["init", "--layout", layout.path().to_str().expect("text")],
        );
        run("umoci", &["new", "--image", &image]);
        run("umoci", &["unpack", "--image", &image, bundle_text]);
        for change in changes {
            change(&bundle.join("rootfs"));
            let repack = ["repack", "--refresh-bundle", "--image", &image, bundle_text];
            run("umoci", &repack);
        }
        let config = ["config", "--image", &image, "--config.cmd", "/bin/sh"];
        let more = [
            "--config.exposedports",
            "8080/tcp",
            "--config.env",
            "GREETING=hello",
        ];
        run("umoci", &[&config[..], &more[..]].concat());
        layout
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("layout")
    }

    fn image(&self) -> String {
        format!("{}:t", self.path().display())
    }

    /// skopeo's name for it.
    pub(super) fn source(&self) -> String {
        format!("oci:{}", self.image())
    }
}

/// busybox as the only program, with a file to hide and a directory to replace.
pub(super) fn base(root: &Path) {
    for dir in ["bin", "etc", "data/old", "proc", "sys", "dev"] {
        fs::create_dir_all(root.join(dir)).expect("made");
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).expect("busybox-static is installed");
    std::os::unix::fs::symlink("/bin/busybox", root.join("bin/sh")).expect("made");
    fs::write(root.join("etc/hidden"), "below").expect("written");
    fs::write(root.join("etc/kept"), "below").expect("written");
    fs::write(root.join("data/old/file"), "below").expect("written");
}

/// Debian's docker-registry on a loopback port of its own.
pub(super) struct Hub {
    child: Child,
    pub address: SocketAddr,
    dir: TempDir,
}

impl Hub {
    pub(super) fn start() -> Self {
        Self::with("")
    }

    /// `auth` is a piece of its configuration file.
    pub(super) fn with(auth: &str) -> Self {
        let dir = temp();
        let address = free_address();
        let config = format!(
            "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n\
             storage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: \"{address}\"}}\n{auth}",
            dir.path().join("data").display(),
        );
        let path = dir.path().join("config.yml");
        fs::write(&path, config).expect("written");
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("docker-registry is installed");
        let hub = Self {
            child,
            address,
            dir,
        };
        let deadline = Instant::now() + READY_WITHIN;
        while TcpStream::connect(address).is_err() {
            assert!(Instant::now() < deadline, "the registry does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        hub
    }

    pub(super) fn name(&self, rest: &str) -> Reference {
        Reference::parse(&format!("{}/{rest}", self.address)).expect("valid")
    }

    pub(super) fn push(&self, layout: &Layout, rest: &str, more: &[&str]) {
        let to = format!("docker://{}/{rest}", self.address);
        let source = layout.source();
        let args = ["copy", "--insecure-policy", "--dest-tls-verify=false"];
        run("skopeo", &[&args[..], more, &[&source, &to]].concat());
    }

    /// The manifest behind a tag, as the registry keeps it.
    pub(super) fn manifest(&self, repository: &str, tag: &str) -> Vec<u8> {
        let root = self.dir.path().join("data/docker/registry/v2/repositories");
        let link = root.join(repository).join("_manifests/tags").join(tag);
        let digest = fs::read_to_string(link.join("current/link")).expect("a tag");
        let digest: Digest = digest.trim().parse().expect("a digest");
        fs::read(self.blob(&digest)).expect("a manifest")
    }

    /// The file in which the registry keeps a blob.
    pub(super) fn blob(&self, digest: &Digest) -> PathBuf {
        let blobs = self.dir.path().join("data/docker/registry/v2/blobs/sha256");
        blobs
            .join(&digest.hex()[..2])
            .join(digest.hex())
            .join("data")
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(super) fn free_address() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("bound")
}

/// Short deadlines: a test waits for them.
pub(super) fn impatient() -> RegistryConfig {
    let mut config = RegistryConfig::default();
    config.patience.connect = Duration::from_millis(500);
    config.patience.answer = Duration::from_millis(500);
    config.patience.idle = Duration::from_millis(500);
    config
}

/// Unmounts and removes a snapshot whatever happens to the test.
pub(super) struct Mounted(pub PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let flags = rustix::mount::UnmountFlags::DETACH;
        let _ = rustix::mount::unmount(self.0.join("rootfs"), flags);
    }
}
