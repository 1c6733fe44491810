//! What the node says of itself: its log here, its numbers in `metrics`, what it
//! decided in `decisions`.
//!
//! Logging is one line per event on stderr, with the field names `house` words give them.

pub mod decisions;
pub mod metrics;

use tracing_subscriber::EnvFilter;

/// Installs the subscriber. `SELVEDGE_LOG` wins over the configured filter; a filter that does not
/// parse falls back to `info` and says so.
pub fn init(configured: &str) {
    let wanted = std::env::var("SELVEDGE_LOG").unwrap_or_else(|_| configured.to_owned());
    let (filter, complaint) = match EnvFilter::try_new(&wanted) {
        Ok(filter) => (filter, None),
        Err(error) => (EnvFilter::new("info"), Some(error)),
    };
    // openraft tells of an unreachable voter at every heartbeat and at every read; who leads, and what
    // became of a store, the registry says itself.
    let quiet = [
        "chitchat=warn",
        "openraft=off",
        "quinn=warn",
        "hickory_server=warn",
    ];
    let filter = quiet
        .iter()
        .filter_map(|directive| directive.parse().ok())
        .fold(filter, EnvFilter::add_directive);
    // The log is a file as often as a terminal.
    let terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(terminal)
        // By default a line that cannot be written is complained of on stderr, and that panics when
        // stderr is what cannot be written: a full disk would end whatever task has something to say.
        .log_internal_errors(false)
        .with_writer(std::io::stderr)
        .init();
    if let Some(error) = complaint {
        tracing::warn!(%error, filter = wanted, "the log filter does not parse; using info");
    }
}
