//! What this node's kernel, as it is set up, protects containers and neighbours with: looked at, never
//! concluded from a version. `selvedge doctor` prints it.
//!
//! Changes nothing. User namespaces are tried once, at the daemon's start, because what containers get
//! is decided then.

mod checks;
mod ground;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use netfabric::wire::api::Check;
use scheduler::model::UnixMs;

use crate::network::resolvers;
use crate::userns;
use checks::checks;
use ground::Ground;

/// What was found at the daemon's start, and where to look again.
#[derive(Debug, Clone)]
pub struct Protections {
    /// Why containers have no user namespaces here, when they have none.
    pub no_user_namespaces: Option<String>,
    /// Whom this daemon asks for its containers' names.
    pub resolvers: Vec<SocketAddr>,
    data: PathBuf,
    /// The firewall's tables.
    table: String,
}

impl Protections {
    /// Tries what only a trial can tell; `instances` is where root file systems will be.
    #[must_use]
    pub fn look(data: &Path, instances: &Path, table: &str) -> Self {
        let no_user_namespaces = userns::trial(instances).err();
        if let Some(why) = &no_user_namespaces {
            tracing::warn!(
                why,
                "containers get no user namespaces: `selvedge doctor` says what follows"
            );
        }
        let resolvers = resolvers::resolvers();
        if resolvers.is_empty() {
            tracing::warn!(
                file = resolvers::FILE,
                "no `nameserver` is named there: containers find no names but services'; name one, then restart selvedged"
            );
        }
        Self {
            no_user_namespaces,
            resolvers,
            data: data.to_owned(),
            table: table.to_owned(),
        }
    }

    /// The kernel's name and all protections as they are now; `founded` is the earliest it can be by the
    /// cluster's clock. Blocks for milliseconds.
    #[must_use]
    pub fn diagnosis(&self, founded: UnixMs) -> (String, Vec<Check>) {
        let ground = Ground {
            resolvers: self.resolvers.clone(),
            ..Ground::look(&self.data, &self.table, founded)
        };
        let checks = checks(&ground, self.no_user_namespaces.as_deref());
        (ground.kernel, checks)
    }
}
