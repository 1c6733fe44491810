//! The flags of `deploy`. kn's and gcloud's names for them are taken too, hidden.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use scheduler::model::{Protocol, Spread, units};

use super::{DomainFlag, MountFlag, SandboxArgs, SecretFlag};

#[derive(Debug, Clone, Default, Args)]
#[command(
    after_help = "Without -f the flags change the service as it is; with -f the file is the \
                        whole service and flags override it."
)]
pub struct DeployArgs {
    /// The service; may be left to the manifest
    pub name: Option<String>,
    /// A manifest (TOML); - is stdin
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// The image's reference
    #[arg(long, value_name = "REF")]
    pub image: Option<String>,
    /// Bounds of the number of instances: MIN..MAX, MIN.. or a fixed number
    #[arg(long, value_name = "MIN..MAX")]
    pub scale: Option<ScaleFlag>,
    #[arg(long, hide = true, visible_aliases = ["scale-min", "min-scale"], value_name = "N")]
    pub min_instances: Option<u32>,
    #[arg(long, hide = true, visible_aliases = ["scale-max", "max-scale"], value_name = "N")]
    pub max_instances: Option<u32>,
    /// Requests at once an instance accepts; 0 is no limit
    #[arg(long, alias = "concurrency-limit", value_name = "N")]
    pub concurrency: Option<u32>,
    /// Requests at once an instance is meant to carry
    #[arg(long, alias = "concurrency-target", value_name = "N")]
    pub target: Option<u32>,
    /// How long demand is averaged, and how long without it before zero
    #[arg(long, alias = "autoscale-window", value_name = "SPAN", value_parser = units::duration)]
    pub window: Option<Duration>,
    /// The port the program listens on; h2c: for HTTP/2
    #[arg(long, value_name = "[h2c:]PORT")]
    pub port: Option<PortFlag>,
    /// An environment variable; K- removes it
    #[arg(short, long, value_name = "K=V")]
    pub env: Vec<EnvChange>,
    #[arg(long, hide = true, value_delimiter = ',', alias = "update-env-vars")]
    pub set_env_vars: Vec<EnvChange>,
    /// A file of K=V lines
    #[arg(long, value_name = "FILE")]
    pub env_file: Vec<PathBuf>,
    /// A variable from a secret: K=NAME:KEY
    #[arg(long = "secret", value_name = "K=NAME:KEY")]
    pub secrets: Vec<SecretFlag>,
    #[arg(
        long = "mount",
        value_name = "SRC:PATH[:ro]",
        help = "Show SRC at PATH: emptydir[=SIZE], memory[=SIZE], config/NAME, secret/NAME,\n\
                volume/NAME or a /path of the node; PATH- takes it away"
    )]
    pub mounts: Vec<MountFlag>,
    /// Cores an instance may use; 0 is no limit
    #[arg(long, value_name = "CORES", value_parser = units::cpu_millis)]
    pub cpu: Option<u32>,
    /// Memory an instance may use; 0 is no limit
    #[arg(long, value_name = "BYTES", value_parser = units::bytes)]
    pub memory: Option<u64>,
    /// Processes an instance may have
    #[arg(long, value_name = "N")]
    pub pids: Option<u32>,
    /// How long a request may take
    #[arg(long, value_name = "SPAN", value_parser = units::duration)]
    pub timeout: Option<Duration>,
    /// A region (or prefix*) it may run in; repeat for more
    #[arg(long = "region", value_name = "REGION", value_delimiter = ',')]
    pub regions: Vec<String>,
    /// Keep instances apart by zone or region
    #[arg(long, value_name = "region|zone|none", value_parser = spread)]
    pub spread: Option<Spread>,
    /// A label nodes must have
    #[arg(long = "node-label", value_name = "K=V", value_parser = pair)]
    pub node_labels: Vec<(String, String)>,
    #[arg(
        long,
        value_name = "PROBE",
        help = "When it is ready: http:/PATH[:PORT], tcp[:PORT], grpc[:PORT][/SERVICE], exec:COMMAND or none \
                (tcp on its port)"
    )]
    pub readiness: Option<String>,
    /// Whether it must be restarted; written as --readiness
    #[arg(long, value_name = "PROBE")]
    pub liveness: Option<String>,
    /// When it has started, for the other probes to begin; written as --readiness
    #[arg(long, value_name = "PROBE")]
    pub startup: Option<String>,
    /// From its stop signal to its kill
    #[arg(long, value_name = "SPAN", value_parser = units::duration)]
    pub grace: Option<Duration>,
    /// Replaces the image's entrypoint; repeat for more words
    #[arg(long, value_name = "WORD", allow_hyphen_values = true)]
    pub cmd: Vec<String>,
    /// Replaces the image's arguments; repeat for more words
    #[arg(long, value_name = "WORD", allow_hyphen_values = true)]
    pub arg: Vec<String>,
    /// When nodes ask the registry: always, missing or never
    #[arg(long, value_name = "WHEN", value_parser = ["always", "missing", "never"])]
    pub pull: Option<String>,
    /// A host it answers for: www.example.com, *.example.com, example.com/api; with a - behind it no more
    #[arg(long = "domain", value_name = "DOMAIN", value_delimiter = ',')]
    pub domains: Vec<DomainFlag>,
    /// Where its certificate comes from: acme has an authority asked for one
    #[arg(long, value_name = "SOURCE", value_parser = ["own", "acme"])]
    pub certificate: Option<String>,
    /// What plain HTTP gets where there is a certificate
    #[arg(long, value_name = "WHAT", value_parser = ["redirect", "allow"])]
    pub plain_http: Option<String>,
    /// A label of the service
    #[arg(short, long = "label", value_name = "K=V", value_parser = pair)]
    pub labels: Vec<(String, String)>,
    /// Check everything, change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Return as soon as the change is accepted
    #[arg(long)]
    pub no_wait: bool,
    /// How long to wait for the new revision
    #[arg(long, value_name = "SPAN", default_value = "120s", value_parser = units::duration)]
    pub wait_timeout: Duration,
    #[command(flatten)]
    pub sandbox: SandboxArgs,
}

/// `2..20`, `2..` or `3`; a maximum of 0 is no bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScaleFlag {
    pub min: u32,
    pub max: u32,
}

impl FromStr for ScaleFlag {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |part: &str| {
            let wrong = || format!("`{text}` is no scale: write MIN..MAX, MIN.. or a number");
            part.trim().parse::<u32>().map_err(|_| wrong())
        };
        let Some((min, max)) = text.split_once("..") else {
            let fixed = number(text)?;
            return Self {
                min: fixed,
                max: fixed,
            }
            .checked(text);
        };
        let max = match max.trim() {
            "" => 0,
            digits => match number(digits)? {
                0 => return Err("a service cannot have 0 instances at most".to_owned()),
                bound => bound,
            },
        };
        let min = if min.trim().is_empty() {
            0
        } else {
            number(min)?
        };
        Self { min, max }.checked(text)
    }
}

impl ScaleFlag {
    fn checked(self, text: &str) -> Result<Self, String> {
        match (self.min, self.max) {
            (0, 0) if !text.contains("..") => {
                Err("0 is no scale: a service may rest at zero, but write 0..1 for that".to_owned())
            }
            (min, max) if max != 0 && min > max => {
                Err(format!("`{text}` is no scale: {min} is more than {max}"))
            }
            _ => Ok(self),
        }
    }
}

/// `8080`, `h2c:8080` or `http1:8080`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortFlag {
    pub port: u16,
    pub protocol: Protocol,
}

impl FromStr for PortFlag {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (protocol, digits) = match text.split_once(':') {
            Some(("h2c", rest)) => (Protocol::H2c, rest),
            Some(("http1" | "http", rest)) => (Protocol::Http1, rest),
            Some((other, _)) => {
                return Err(format!("`{other}` is no protocol: write PORT or h2c:PORT"));
            }
            None => (Protocol::Http1, text),
        };
        match digits.parse() {
            Ok(port) if port != 0 => Ok(Self { port, protocol }),
            _ => Err(format!("`{digits}` is no port: write 1 to 65535")),
        }
    }
}

/// `K=V` sets, `K-` removes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnvChange {
    pub name: String,
    pub value: Option<String>,
}

impl FromStr for EnvChange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => match text.strip_suffix('-') {
                Some(name) => (name, None),
                None => {
                    return Err(format!(
                        "`{text}` is no variable: write K=V, or K- to remove"
                    ));
                }
            },
        };
        if name.is_empty() || name.contains(char::is_whitespace) || name.contains('\0') {
            return Err(format!("`{name}` is no name of a variable"));
        }
        Ok(Self {
            name: name.to_owned(),
            value,
        })
    }
}

pub fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("`{text}` is not K=V")),
    }
}

pub fn spread(text: &str) -> Result<Spread, String> {
    match text {
        "none" => Ok(Spread::None),
        "zone" => Ok(Spread::Zone),
        "region" => Ok(Spread::Region),
        _ => Err(format!("`{text}` is no spread: write region, zone or none")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales() {
        for (text, min, max) in [("0..10", 0, 10), ("3", 3, 3), ("2..", 2, 0), ("..5", 0, 5)] {
            assert_eq!(text.parse(), Ok(ScaleFlag { min, max }), "{text}");
        }
        for bad in ["", "x", "5..2", "0", "0..0", "-1..2", "1..2..3"] {
            assert!(bad.parse::<ScaleFlag>().is_err(), "{bad}");
        }
    }

    #[test]
    fn ports() {
        let h2c = PortFlag {
            port: 9000,
            protocol: Protocol::H2c,
        };
        assert_eq!("h2c:9000".parse(), Ok(h2c));
        assert_eq!(
            "80".parse::<PortFlag>().map(|p| p.protocol),
            Ok(Protocol::Http1)
        );
        for bad in ["0", "65536", "quic:1", "h2c:", ""] {
            assert!(bad.parse::<PortFlag>().is_err(), "{bad}");
        }
    }

    #[test]
    fn variables() {
        let set = |v: Option<&str>| EnvChange {
            name: "A".into(),
            value: v.map(Into::into),
        };
        assert_eq!("A=b=c".parse(), Ok(set(Some("b=c"))));
        assert_eq!("A=".parse(), Ok(set(Some(""))));
        assert_eq!("A-".parse(), Ok(set(None)));
        for bad in ["A", "=x", "A B=1"] {
            assert!(bad.parse::<EnvChange>().is_err(), "{bad}");
        }
    }
}
