//! Images of real programs, made once from Debian's packages and kept for later worlds: what `box` does
//! not do as a program of somebody else's does it. Owns their recipes and the cache.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use sha2::{Digest as _, Sha256};

use super::World;
use super::image;
use super::shell::run;

/// Outlives every world. The demo keeps its own images there, in the same format.
const CACHE: &str = "/var/cache/selvedge-demo/images";
/// The Debian release that the packages come from.
const SUITE: &str = "bookworm";

/// A real program that listens on port 8080.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standard {
    /// nginx with the page that Debian ships.
    Nginx,
    /// Python's own web server with one file.
    Python,
    /// Servers of protocols other than HTTP: redis, dnsmasq, openssl's TLS, nginx behind a load balancer;
    /// and curl. Which of them runs is the service's to say.
    Kit,
    /// 150 MB of a distribution's files, in one layer. Nothing runs it.
    Debian,
    /// The same files in four layers.
    DebianInParts,
    /// The same packages as of the release's last point, without the security updates since.
    DebianBefore,
}

struct Recipe {
    name: &'static str,
    packages: &'static str,
    files: &'static [(&'static str, &'static str)],
    entrypoint: &'static [&'static str],
    /// Folders that are layers of their own, above the layer of all the rest.
    parts: &'static [&'static str],
    /// Where packages come from; empty for all of the release's archives.
    mirror: &'static str,
}

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n";
const GROUP: &str = "root:x:0:\n";

/// Alone in its container nginx needs no workers of another user.
const NGINX: Recipe = Recipe {
    name: "nginx",
    packages: "nginx-light,busybox-static",
    files: &[
        ("etc/passwd", PASSWD),
        ("etc/group", GROUP),
        (
            "etc/nginx/container.conf",
            "daemon off; master_process off; user root; pid /tmp/pid; error_log stderr warn;\n\
             events {}\n\
             http {\n\
             access_log /dev/stdout; client_body_temp_path /tmp/body; proxy_temp_path /tmp/proxy;\n\
             fastcgi_temp_path /tmp/fastcgi; uwsgi_temp_path /tmp/uwsgi; scgi_temp_path /tmp/scgi;\n\
             server { listen 8080; root /usr/share/nginx/html; }\n\
             }\n",
        ),
    ],
    entrypoint: &["/usr/sbin/nginx", "-c", "/etc/nginx/container.conf"],
    parts: &[],
    mirror: "",
};

const PYTHON: Recipe = Recipe {
    name: "python",
    packages: "python3-minimal,libpython3-stdlib,busybox-static",
    files: &[
        ("etc/passwd", PASSWD),
        ("etc/group", GROUP),
        ("srv/index.html", "hello from python\n"),
        (
            // The first process of a container has no default for SIGTERM.
            "srv/serve.py",
            "import signal, sys\n\
             from functools import partial\n\
             from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer\n\
             signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\n\
             handler = partial(SimpleHTTPRequestHandler, directory='/srv')\n\
             ThreadingHTTPServer(('', 8080), handler).serve_forever()\n",
        ),
    ],
    entrypoint: &["/usr/bin/python3", "-u", "/srv/serve.py"],
    parts: &[],
    mirror: "",
};

const KIT: Recipe = Recipe {
    name: "kit",
    packages: "redis-server,dnsmasq-base,openssl,nginx-light,curl,busybox-static",
    files: &[
        ("etc/passwd", PASSWD),
        ("etc/group", GROUP),
        (
            "etc/nginx/introduced.conf",
            "daemon off; master_process off; user root; pid /tmp/pid; error_log stderr warn;\n\
             events {}\n\
             http {\n\
             access_log off; client_body_temp_path /tmp/body; proxy_temp_path /tmp/proxy;\n\
             fastcgi_temp_path /tmp/fastcgi; uwsgi_temp_path /tmp/uwsgi; scgi_temp_path /tmp/scgi;\n\
             server { listen 8080 proxy_protocol;\n\
             location / { return 200 \"for $proxy_protocol_addr\"; } }\n\
             }\n",
        ),
        (
            // The first process of a container has no default for SIGTERM, so it ends on purpose.
            "srv/tls.sh",
            "trap 'exit 0' TERM\n\
             openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=kit -days 2 -keyout /tmp/k -out /tmp/c\n\
             openssl s_server -accept 8443 -key /tmp/k -cert /tmp/c -www -quiet &\n\
             wait\n",
        ),
    ],
    entrypoint: &["/bin/busybox"],
    parts: &[],
    mirror: "",
};

const DEBIAN: Recipe = Recipe {
    name: "debian",
    packages: "python3,perl,git,ca-certificates,busybox-static",
    files: &[("etc/passwd", PASSWD), ("etc/group", GROUP)],
    entrypoint: &["/bin/busybox"],
    parts: &[],
    mirror: "",
};

const DEBIAN_BEFORE: Recipe = Recipe {
    name: "debian-before",
    mirror: "http://deb.debian.org/debian",
    ..DEBIAN
};

const DEBIAN_IN_PARTS: Recipe = Recipe {
    name: "debian-in-parts",
    parts: &["usr/share", "usr/lib/x86_64-linux-gnu", "usr/bin"],
    ..DEBIAN
};

impl World {
    /// Pushes a real program's image, made if it never was on this machine; its reference.
    pub fn standard(&self, program: Standard) -> Result<String> {
        let (layout, name) = program.layout()?;
        image::push(&layout, name, &super::registry_name(&self.tag))?;
        Ok(self.image(name))
    }
}

impl Standard {
    fn recipe(self) -> Recipe {
        match self {
            Self::Nginx => NGINX,
            Self::Python => PYTHON,
            Self::Kit => KIT,
            Self::Debian => DEBIAN,
            Self::DebianInParts => DEBIAN_IN_PARTS,
            Self::DebianBefore => DEBIAN_BEFORE,
        }
    }

    /// Where the image is, and its name there.
    pub(super) fn layout(self) -> Result<(PathBuf, &'static str)> {
        let recipe = self.recipe();
        let layout = recipe
            .cached()
            .with_context(|| format!("making the image of {self:?}"))?;
        Ok((layout, recipe.name))
    }
}

impl Recipe {
    /// Where its layout is kept: another recipe is another image.
    fn layout(&self) -> PathBuf {
        let Self {
            name,
            packages,
            files,
            entrypoint,
            parts,
            mirror,
        } = self;
        let whole = format!("{name} {SUITE} {packages} {files:?} {entrypoint:?} {parts:?}{mirror}");
        let digest: [u8; 32] = Sha256::digest(whole.as_bytes()).into();
        let key = digest.first_chunk().map_or(0, |b| u64::from_be_bytes(*b));
        Path::new(CACHE).join(format!("rig-{name}-{key:016x}"))
    }

    fn cached(&self) -> Result<PathBuf> {
        fs::create_dir_all(CACHE)?;
        // Worlds that need it at the same time wait for the one that makes it.
        let lock = File::create(Path::new(CACHE).join(format!("rig-{}.lock", self.name)))?;
        lock.lock()?;
        let layout = self.layout();
        if !layout.join("index.json").exists() {
            let work = Path::new(CACHE).join(format!("rig-{}.tmp", self.name));
            // Of one that was killed.
            if work.exists() {
                fs::remove_dir_all(&work)?;
            }
            fs::create_dir_all(&work)?;
            let made = self.make(&work).and_then(|made| {
                fs::rename(made, &layout)?;
                Ok(())
            });
            fs::remove_dir_all(&work)?;
            made?;
        }
        Ok(layout)
    }

    fn make(&self, work: &Path) -> Result<PathBuf> {
        let root = work.join("root");
        let include = format!("--include={}", self.packages);
        let root_name = root.to_string_lossy().into_owned();
        let extract = ["--quiet", "--variant=extract", &include, SUITE, &root_name];
        let mirror = Some(self.mirror).filter(|mirror| !mirror.is_empty());
        run("mmdebstrap", extract.into_iter().chain(mirror))?.ok()?;
        // Containers get their own devices and names; an image must not carry the machine's.
        fs::remove_dir_all(root.join("dev"))?;
        fs::create_dir(root.join("dev"))?;
        for own in ["etc/resolv.conf", "etc/hostname"] {
            fs::remove_file(root.join(own)).ok();
        }
        for (path, content) in self.files {
            let path = root.join(path);
            fs::create_dir_all(path.parent().context("a file has a folder")?)?;
            fs::write(path, content)?;
        }
        let layers = self.layers(&root, work)?;
        let layout = image::layout(work)?;
        image::assemble(&layout, self.name, &layers, self.entrypoint)?;
        Ok(layout)
    }

    /// Packs the files, each part out of the way of what is packed after it.
    fn layers(&self, root: &Path, work: &Path) -> Result<Vec<PathBuf>> {
        let mut layers = vec![work.join("layer.tar")];
        for (number, part) in self.parts.iter().enumerate() {
            let (alone, layer) = (work.join("part"), work.join(format!("part-{number}.tar")));
            let inside = alone.join(part);
            fs::create_dir_all(inside.parent().context("a part has a folder")?)?;
            fs::rename(root.join(part), &inside)?;
            image::pack(&alone, &layer)?;
            fs::remove_dir_all(&alone)?;
            layers.push(layer);
        }
        image::pack(root, &layers[0])?;
        Ok(layers)
    }
}
