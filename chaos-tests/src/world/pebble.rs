//! Debian's `pebble`, a real ACME authority, on the registry's host of a world. It asks the last
//! node's DNS for names, so that it looks where clients would, or a resolver that finds every name at that
//! node. It checks a host on ports 80 and 443.

use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

use super::shell::{run, until};
use super::{PATIENCE, World};

const DIRECTORY: u16 = 14_000;
const MANAGEMENT: u16 = 15_000;
const NAMES: u16 = 8053;

/// How the authority behaves.
#[derive(Debug, Clone, Copy)]
pub struct Habits {
    /// How long what it issues is good for.
    pub seconds: u64,
    /// It takes up to this many seconds before it looks at a host.
    pub pondering: u32,
    /// Every name leads to the last node, as if its owner had said so in its DNS.
    pub all_names: bool,
}

impl Default for Habits {
    fn default() -> Self {
        Self {
            seconds: 24 * 60 * 60,
            pondering: 0,
            all_names: false,
        }
    }
}

/// The authority; it ends when it is dropped.
pub struct Pebble {
    child: Child,
    /// Who knows all names.
    names: Option<Child>,
    address: Ipv4Addr,
    dir: PathBuf,
}

impl World {
    /// Starts the authority. One that was here before and has ended comes back as another: it keeps
    /// neither accounts nor keys.
    pub fn pebble(&self, habits: Habits) -> Result<Pebble> {
        let dir = self.dir().join("pebble");
        fs::create_dir_all(&dir)?;
        let image = self.image("x");
        let host = image.split(':').next().context("a registry's address")?;
        let address: Ipv4Addr = host.parse()?;
        if !dir.join("ca.pem").exists() {
            let (ca, issuer) = authority()?;
            let key = KeyPair::generate()?;
            let own = CertificateParams::new(vec![host.to_owned()])?.signed_by(&key, &issuer)?;
            fs::write(dir.join("ca.pem"), ca)?;
            fs::write(dir.join("cert.pem"), own.pem())?;
            fs::write(dir.join("key.pem"), key.serialize_pem())?;
        }
        let config = serde_json::json!({ "pebble": {
            "listenAddress": format!("{address}:{DIRECTORY}"),
            "managementListenAddress": format!("{address}:{MANAGEMENT}"),
            "certificate": dir.join("cert.pem"),
            "privateKey": dir.join("key.pem"),
            "httpPort": 80,
            "tlsPort": 443,
            "certificateValidityPeriod": habits.seconds,
        }});
        let file = dir.join("config.json");
        fs::write(&file, config.to_string())?;
        let mut log = fs::File::options();
        let log = log.create(true).append(true).open(dir.join("log"))?;
        let netns = format!("--net=/run/netns/{}", self.registry_host());
        let last = self.nodes().last().context("a node that knows names")?;
        let (names, asked) = if habits.all_names {
            let known = all_names(&netns, address, last.address)?;
            (Some(known), format!("{address}:{NAMES}"))
        } else {
            (None, format!("{}:53", last.address))
        };
        let mut command = Command::new("nsenter");
        command
            .args([&netns, "--", "pebble", "-dnsserver", &asked, "-config"])
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        match habits.pondering {
            0 => command.env("PEBBLE_VA_NOSLEEP", "1"),
            seconds => command.env("PEBBLE_VA_SLEEPTIME", seconds.to_string()),
        };
        let child = command.spawn().context("starting pebble")?;
        let pebble = Pebble {
            child,
            names,
            address,
            dir,
        };
        until("the authority answers", PATIENCE, || {
            pebble.root().map(Some)
        })?;
        Ok(pebble)
    }
}

/// A resolver by which every name is at `node`: `pebble-challtestsrv`, which comes with pebble.
fn all_names(netns: &str, at: Ipv4Addr, node: Ipv4Addr) -> Result<Child> {
    let (listen, node) = (format!("{at}:{NAMES}"), node.to_string());
    let mut command = Command::new("nsenter");
    command
        .args([netns, "--", "pebble-challtestsrv", "-dns01", &listen])
        .args(["-defaultIPv4", &node, "-defaultIPv6", "", "-http01", ""])
        .args(["-https01", "", "-tlsalpn01", "", "-management", ""])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.spawn().context("starting pebble-challtestsrv")
}

/// A CA in PEM form, and what it signs with.
fn authority() -> Result<(String, Issuer<'static, KeyPair>)> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(Vec::<String>::new())?;
    // Unlike that of what it signs, which would be taken for self-signed.
    params
        .distinguished_name
        .push(DnType::CommonName, "the authority's server");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = params.self_signed(&key)?.pem();
    Ok((ca, Issuer::new(params, key)))
}

impl Pebble {
    /// The section of a node's configuration that has it order here, showing hosts in one way.
    pub fn section(&self, challenge: &str) -> String {
        let Self { address, dir, .. } = self;
        let ca = dir.join("ca.pem");
        format!(
            "[acme]\ndirectory = \"https://{address}:{DIRECTORY}/dir\"\nterms_agreed = true\n\
             ca_file = \"{}\"\ncontact = [\"ops@e2e.test\"]\nchallenges = [\"{challenge}\"]\n",
            ca.display()
        )
    }

    /// Writes down the root of what it issues now, for clients to trust; the file.
    pub fn root(&self) -> Result<PathBuf> {
        let url = format!("https://{}:{MANAGEMENT}/roots/0", self.address);
        let ca = self.dir.join("ca.pem").to_string_lossy().into_owned();
        let words = ["-sS", "--fail", "--max-time", "5", "--cacert", &ca, &url];
        let root = run("curl", words)?.ok()?.out;
        let file = self.dir.join("root.pem");
        fs::write(&file, root)?;
        Ok(file)
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }
}

impl Drop for Pebble {
    fn drop(&mut self) {
        // It may have ended by itself.
        for child in self.names.iter_mut().chain([&mut self.child]) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
