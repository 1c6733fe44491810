//! The grammar of `secret`, `config` and `volume`.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Subcommand};
use scheduler::model::{Domain, Name};

#[derive(Debug, Clone, Subcommand)]
pub enum SecretCommand {
    /// Set keys of a secret; others stay
    Set(SetArgs),
    /// Secrets and the names of their keys
    #[command(alias = "list")]
    Ls,
    /// Remove a secret; instances that run keep what they have
    #[command(alias = "delete")]
    Rm { name: Name },
}

#[derive(Debug, Clone, Subcommand)]
pub enum ConfigCommand {
    /// Set keys of a config; others stay
    Set(SetArgs),
    /// What a config holds, or the value of one key
    Get { name: Name, key: Option<String> },
    /// Configs and the names of their keys
    #[command(alias = "list")]
    Ls,
    /// Remove keys, or without any the whole config
    Unset { name: Name, keys: Vec<String> },
}

#[derive(Debug, Clone, Subcommand)]
pub enum CertCommand {
    /// Have every node serve a certificate of yours; one of that name is replaced
    #[command(alias = "set")]
    Add {
        /// What it is called
        name: String,
        /// Its chain in PEM form: the host's own first, each issuer after it
        #[arg(long, value_name = "FILE")]
        cert: PathBuf,
        /// Its private key in PEM form
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
    },
    /// Certificates, for which hosts and how long
    #[command(alias = "list")]
    Ls,
    /// Remove a certificate
    #[command(alias = "delete")]
    Rm { name: String },
}

#[derive(Debug, Clone, Subcommand)]
pub enum DomainCommand {
    /// Have a service answer for a host: www.example.com, *.example.com or example.com/api
    #[command(alias = "create")]
    Add { domain: Domain, service: Name },
    /// Domains, whose they are and whether there is a certificate
    #[command(alias = "list")]
    Ls {
        /// Of every namespace
        #[arg(short = 'A', long)]
        all_namespaces: bool,
    },
    /// Take a domain from its service
    #[command(alias = "delete")]
    Rm { domain: Domain },
    /// Whether a domain's name leads to the nodes, as seen from here
    Check { domain: Domain },
}

#[derive(Debug, Clone, Args)]
#[command(
    after_help = "A value given as KEY=VALUE stays in the shell's history and shows in the list \
                        of processes: for secrets use KEY=@FILE, KEY=- or --from-env-file."
)]
pub struct SetArgs {
    pub name: Name,
    /// KEY=@FILE, KEY=- (stdin) or KEY=VALUE
    #[arg(value_name = "KEY=VALUE")]
    pub values: Vec<ValueFlag>,
    /// A file of K=V lines, each a key; - is stdin
    #[arg(long, value_name = "FILE")]
    pub from_env_file: Vec<PathBuf>,
    /// Remove the keys that are not given
    #[arg(long)]
    pub replace: bool,
}

#[derive(Debug, Clone, Subcommand)]
pub enum VolumeCommand {
    /// Local volumes and where they are
    #[command(alias = "list")]
    Ls,
    /// Remove a local volume and its data
    #[command(alias = "delete")]
    Rm { name: Name },
}

/// One key and where its value is. `Debug` does not show a value.
#[derive(Clone, PartialEq, Eq)]
pub struct ValueFlag {
    pub key: String,
    pub from: ValueFrom,
}

#[derive(Clone, PartialEq, Eq)]
pub enum ValueFrom {
    Text(String),
    File(PathBuf),
    Stdin,
}

impl std::fmt::Debug for ValueFlag {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}=…", self.key)
    }
}

impl FromStr for ValueFlag {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (key, value) = match text.split_once('=') {
            Some((key, value)) if !key.is_empty() => (key, value),
            // Not quoted: it may be a value whose key was forgotten.
            _ => return Err("write KEY=@FILE, KEY=- or KEY=VALUE".to_owned()),
        };
        let from = match value.strip_prefix('@') {
            Some(path) if !path.is_empty() => ValueFrom::File(path.into()),
            Some(_) => return Err(format!("{key}=@ names no file")),
            None if value == "-" => ValueFrom::Stdin,
            None => ValueFrom::Text(value.to_owned()),
        };
        Ok(Self {
            key: key.to_owned(),
            from,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_from_words_files_and_stdin() {
        let of = |text: &str| text.parse::<ValueFlag>();
        assert!(of("a=b=c").unwrap().from == ValueFrom::Text("b=c".into()));
        assert!(of("a=@/x").unwrap().from == ValueFrom::File("/x".into()));
        assert!(of("a=-").unwrap().from == ValueFrom::Stdin);
        assert!(of("a=").unwrap().from == ValueFrom::Text(String::new()));
        for bad in ["hunter2", "=hunter2"] {
            assert!(!of(bad).unwrap_err().contains("hunter2"), "{bad}");
        }
        assert!(of("a=@").is_err());
        assert!(!format!("{:?}", of("a=hunter2")).contains("hunter2"));
    }
}
