//! The words of `exec`, `cp` and `port-forward`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;

use super::deploy::pair;

#[derive(Debug, Clone, Args)]
pub struct ExecArgs {
    /// An instance, or a service of which one is taken
    #[arg(value_name = "INSTANCE|SERVICE")]
    pub name: String,
    /// Give it this command's stdin
    #[arg(short = 'i', long)]
    pub stdin: bool,
    /// Give it a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Run it as USER or USER:GROUP, by name or number
    #[arg(short, long, value_name = "USER")]
    pub user: Option<String>,
    /// Set a variable for it; repeat for more
    #[arg(short, long, value_name = "K=V", value_parser = pair)]
    pub env: Vec<(String, String)>,
    /// The folder it starts in
    #[arg(long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// The program and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

#[derive(Debug, Clone, Args)]
pub struct CpArgs {
    #[arg(help = "FILE, NAME:/PATH in an instance, or - for a tar on stdin")]
    #[arg(value_name = "FROM")]
    pub from: Place,
    #[arg(help = "FILE, NAME:/PATH in an instance, or - for a tar on stdout")]
    #[arg(value_name = "TO")]
    pub to: Place,
    /// Read and write in the instance as USER
    #[arg(short, long, value_name = "USER")]
    pub user: Option<String>,
}

#[derive(Debug, Clone, Args)]
pub struct PortForwardArgs {
    /// An instance, or a service of which one is taken for each connection
    #[arg(value_name = "INSTANCE|SERVICE")]
    pub name: String,
    /// LOCAL:REMOTE, or one number for both; local port 0 is any free one
    #[arg(required = true, value_name = "LOCAL:REMOTE")]
    pub ports: Vec<Ports>,
}

/// Where files are copied from or to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    Here(PathBuf),
    There {
        name: String,
        path: String,
    },
    /// A tar.
    Stream,
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "-" {
            return Ok(Self::Stream);
        }
        let here = text.starts_with(['/', '.']);
        match text.split_once(':').filter(|_| !here) {
            Some((name, path)) if !name.is_empty() && path.starts_with('/') => Ok(Self::There {
                name: name.to_owned(),
                path: path.to_owned(),
            }),
            Some((name, path)) => Err(format!(
                "`{text}`: write NAME:/PATH with an absolute path in the instance, or ./{name}:{path} for a file here"
            )),
            None if text.is_empty() => Err("an empty name names no file".to_owned()),
            None => Ok(Self::Here(text.into())),
        }
    }
}

/// A port here and one of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ports {
    pub local: u16,
    pub remote: u16,
}

impl FromStr for Ports {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no pair of ports: write 8080:80, or 80");
        let (local, remote) = text.split_once(':').unwrap_or((text, text));
        let local = local.parse().map_err(|_| wrong())?;
        let remote = remote.parse().ok().filter(|port| *port != 0);
        Ok(Self {
            local,
            remote: remote.ok_or_else(wrong)?,
        })
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.local, self.remote)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_here_there_or_a_stream() {
        let there = |name: &str, path: &str| {
            Ok(Place::There {
                name: name.into(),
                path: path.into(),
            })
        };
        for (text, want) in [
            ("-", Ok(Place::Stream)),
            ("a.txt", Ok(Place::Here("a.txt".into()))),
            ("./web:/x", Ok(Place::Here("./web:/x".into()))),
            ("/a:b", Ok(Place::Here("/a:b".into()))),
            ("web:/etc/hosts", there("web", "/etc/hosts")),
            ("web/web-00001-x:/a:b", there("web/web-00001-x", "/a:b")),
            ("web:etc", Err(())),
            (":/etc", Err(())),
            ("", Err(())),
        ] {
            assert_eq!(text.parse::<Place>().map_err(drop), want, "{text}");
        }
    }

    #[test]
    fn ports_are_pairs() {
        for (text, want) in [
            ("8080:80", Some((8080, 80))),
            ("0:80", Some((0, 80))),
            ("80", Some((80, 80))),
            ("0", None),
            ("80:0", None),
            ("80:http", None),
            ("70000:80", None),
        ] {
            let ports = text.parse::<Ports>().ok();
            assert_eq!(ports.map(|p| (p.local, p.remote)), want, "{text}");
        }
    }
}
