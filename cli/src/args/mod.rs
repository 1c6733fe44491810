//! The command line's grammar. Only words and their types; what they do is in `commands`.

mod deploy;
mod given;
mod node;
mod objects;
mod sandbox;
mod touch;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use scheduler::model::{Name, units};

use crate::output::TopKind;

pub use deploy::{DeployArgs, EnvChange, PortFlag, ScaleFlag, pair, spread};
pub use given::{DomainFlag, MountFlag, SecretFlag};
pub use node::{JoinArgs, NodeFlags, UpArgs};
pub use objects::{
    CertCommand, ConfigCommand, DomainCommand, SecretCommand, SetArgs, ValueFlag, ValueFrom,
    VolumeCommand,
};
pub use sandbox::{SandboxArgs, UserFlag, bound_io, host, ulimit};
pub use touch::{CpArgs, ExecArgs, Place, PortForwardArgs, Ports};

/// Serverless containers on your own edge.
#[derive(Debug, Parser)]
#[command(
    name = "selvedge",
    version,
    disable_help_subcommand = true,
    max_term_width = 100
)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// The namespace of services
    #[arg(
        short,
        long,
        global = true,
        env = "SELVEDGE_NAMESPACE",
        default_value = "default"
    )]
    pub namespace: Name,
    /// A cluster from the contexts file
    #[arg(long, global = true, env = "SELVEDGE_CONTEXT")]
    pub context: Option<String>,
    /// The node's API: unix:PATH or HOST:PORT
    #[arg(long, global = true, env = "SELVEDGE_ADDR")]
    pub addr: Option<String>,
    /// The bearer token of the API at HOST:PORT
    #[arg(long, global = true, env = "SELVEDGE_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// How reads are printed
    #[arg(
        short,
        long,
        global = true,
        env = "SELVEDGE_OUTPUT",
        default_value = "table"
    )]
    pub output: Format,
    /// No progress and no hints
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// Ask nothing
    #[arg(short, long, global = true)]
    pub yes: bool,
    /// Colour on stderr
    #[arg(long, global = true, default_value = "auto", value_name = "WHEN")]
    pub color: Color,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Table,
    Wide,
    Json,
    Yaml,
    Name,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Color {
    Auto,
    Always,
    Never,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start a cluster with this machine as its first node
    Up(UpArgs),
    /// Make this machine a node of a cluster
    Join(JoinArgs),
    /// Three nodes on this machine, to see Selvedge work
    Demo(DemoArgs),
    /// Create or change a service
    Deploy(Box<DeployArgs>),
    /// List services, revisions, instances, nodes, images or domains
    #[command(visible_alias = "ls")]
    Get(GetArgs),
    /// The cluster at a glance
    Status,
    /// Everything about one thing
    Describe {
        /// KIND/NAME; a bare name is a service
        #[arg(value_name = "KIND/NAME")]
        subject: String,
    },
    /// Why an instance is where it is, or what a cold request paid
    Explain {
        /// service/NAME, instance/NAME or a request id
        #[arg(value_name = "KIND/NAME|REQUEST-ID")]
        subject: String,
    },
    /// Why the next instance of a service would not go to a node
    WhyNot { service: String, node: String },
    /// What instances, services or nodes use now
    Top(TopArgs),
    /// What a node's kernel protects containers with, and what is missing
    Doctor {
        /// Another node than the one that is asked
        #[arg(long)]
        node: Option<Name>,
    },
    /// What a service or an instance wrote to stdout and stderr
    Logs(LogsArgs),
    /// Run a program in an instance
    Exec(ExecArgs),
    /// Copy files out of an instance or into it
    Cp(CpArgs),
    /// Lead ports of this machine to an instance
    PortForward(PortForwardArgs),
    /// Set the bounds of a service's instances
    Scale(ScaleArgs),
    /// Delete services
    Delete(DeleteArgs),
    /// Values for services that nobody reads back
    #[command(subcommand)]
    Secret(SecretCommand),
    /// Values for services, as variables or files
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Host names of your own by which services are reached
    #[command(subcommand)]
    Domain(DomainCommand),
    /// Certificates that every node serves
    #[command(subcommand)]
    Cert(CertCommand),
    /// Folders of one node that outlive instances
    #[command(subcommand)]
    Volume(VolumeCommand),
    /// Images that nodes hold
    #[command(subcommand)]
    Image(ImageCommand),
    /// Nodes of the cluster
    #[command(subcommand)]
    Node(NodeCommand),
    /// Tokens with which nodes join
    #[command(subcommand)]
    Token(TokenCommand),
    /// The versions of this command and of the node
    Version,
    /// A completion script for a shell
    Completion { shell: clap_complete::Shell },
}

#[derive(Debug, Clone, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct DemoArgs {
    #[command(subcommand)]
    pub action: Option<DemoAction>,
    /// How many nodes
    #[arg(long, default_value_t = 3, value_name = "N")]
    pub nodes: usize,
    /// Where the demo keeps its files
    #[arg(long, global = true, default_value = "/var/lib/selvedge-demo")]
    pub dir: PathBuf,
}

#[derive(Debug, Clone, Copy, Subcommand)]
pub enum DemoAction {
    /// Remove every trace of the demo
    Down,
}

/// How long a changing command stays to see its change happen.
#[derive(Debug, Clone, Args)]
pub struct WaitArgs {
    /// Return as soon as the change is accepted
    #[arg(long)]
    pub no_wait: bool,
    /// How long to wait
    #[arg(long, visible_alias = "wait-timeout", value_name = "SPAN", default_value = "60s",
          value_parser = units::duration)]
    pub timeout: Duration,
}

#[derive(Debug, Clone, Args)]
pub struct GetArgs {
    /// services, revisions, instances, nodes, images, domains, or KIND/NAME
    #[arg(default_value = "services")]
    pub kind: String,
    /// Only these
    pub names: Vec<String>,
    /// Of every namespace
    #[arg(short = 'A', long)]
    pub all_namespaces: bool,
}

#[derive(Debug, Clone, Args)]
pub struct TopArgs {
    /// What to list
    #[arg(default_value = "instances")]
    pub kind: TopKind,
    /// Of every namespace
    #[arg(short = 'A', long)]
    pub all_namespaces: bool,
}

#[derive(Debug, Clone, Args)]
pub struct LogsArgs {
    /// A service, or instance/NAME
    pub name: String,
    /// Go on with new lines
    #[arg(short, long)]
    pub follow: bool,
    /// Only lines of the last SPAN
    #[arg(long, value_name = "SPAN", value_parser = units::duration)]
    pub since: Option<Duration>,
    /// Only the last N lines
    #[arg(long, value_name = "N", default_value_t = 200)]
    pub tail: u32,
    /// Only lines that contain TEXT
    #[arg(long, value_name = "TEXT")]
    pub grep: Option<String>,
    /// Put time and stream before each line
    #[arg(short, long)]
    pub timestamps: bool,
}

#[derive(Debug, Clone, Args)]
pub struct ScaleArgs {
    pub name: String,
    /// MIN..MAX, MIN.. or a fixed number
    pub scale: ScaleFlag,
    #[command(flatten)]
    pub wait: WaitArgs,
}

#[derive(Debug, Clone, Args)]
pub struct DeleteArgs {
    /// service/NAME, or just NAME
    #[arg(required = true, value_name = "KIND/NAME")]
    pub subjects: Vec<String>,
    #[command(flatten)]
    pub wait: WaitArgs,
}

/// Of this machine, as images name it.
fn own_platform() -> String {
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    format!("linux/{arch}")
}

#[derive(Debug, Clone, Subcommand)]
pub enum ImageCommand {
    /// Fetch an image from its registry to the node
    Pull { reference: String },
    /// Give the node an OCI archive or a `docker save` tar
    Import {
        /// The archive; - is stdin
        file: PathBuf,
        /// The name it gets when the archive carries none
        #[arg(long = "as", value_name = "REFERENCE")]
        reference: Option<String>,
    },
    /// Send an image to the node as to a registry: only what it lacks moves
    Push {
        /// An OCI layout: a folder, or an archive of one
        source: PathBuf,
        /// The name it gets; without a registry, localhost/NAME
        reference: String,
        /// Which of a layout's images, where its index has several
        #[arg(long, value_name = "OS/ARCH", default_value_t = own_platform())]
        platform: String,
    },
    /// Images and the nodes that hold them
    #[command(alias = "list")]
    Ls,
    /// What images take on the nodes' disks, by service
    Usage,
    /// Remove an image from the node, unless an instance is made of it
    #[command(alias = "delete")]
    Rm {
        /// Its reference or its digest
        image: String,
    },
    /// Remove the images no deployed revision runs from the node
    Prune {
        /// Also those of revisions that run on other nodes only
        #[arg(long)]
        all: bool,
        /// Only tell what would go
        #[arg(long)]
        dry_run: bool,
    },
}

#[derive(Debug, Clone, Subcommand)]
pub enum NodeCommand {
    /// All nodes
    #[command(alias = "list")]
    Ls,
    /// One node
    Get { name: String },
    /// Have a node take no new instances; those it has go on
    Cordon { name: String },
    /// Have a node's instances leave it as others take their place, and wait until they have
    Drain {
        name: String,
        /// How long to wait; what is still there then goes on leaving
        #[arg(long, value_name = "SPAN", default_value = "10m", value_parser = units::duration)]
        deadline: Duration,
    },
    /// Have a cordoned or drained node take instances again
    Uncordon { name: String },
    /// Void a node's identity; it is a member no more
    #[command(alias = "remove")]
    Rm { name: String },
}

#[derive(Debug, Clone, Subcommand)]
pub enum TokenCommand {
    /// Make a join token that works once
    Create {
        /// How long it can be used
        #[arg(long, value_name = "SPAN", default_value = "1h", value_parser = units::duration)]
        ttl: Duration,
    },
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_grammar_holds() {
        Cli::command().debug_assert();
    }

    #[test]
    fn help_is_as_agreed() {
        insta::assert_snapshot!(Cli::command().term_width(100).render_help());
        for verb in ["deploy", "exec", "cp", "port-forward", "logs"] {
            let command = Cli::command().term_width(100);
            let command = command.find_subcommand(verb).cloned();
            let name = format!("{verb}_help");
            insta::assert_snapshot!(name, command.expect("a verb").render_help());
        }
    }
}
