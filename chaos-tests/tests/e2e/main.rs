//! What Selvedge promises, shown on whole clusters of real processes on namespace hosts.
//!
//! Each test has a world of its own and needs root; `deploy/check` runs them, one at a time. By
//! hand, after `cargo build --workspace --bins --features node/failpoints`, all of them or those with a
//! word in their name:
//!
//! ```text
//! cargo nextest run --config-file deploy/nextest.toml --profile e2e \
//!     -p chaos-tests --features e2e --test e2e [WORD]
//! ```

mod accounting;
mod anycast;
mod confinement;
mod crashes;
mod death;
mod disks;
mod domains;
mod explained;
mod harm;
mod hostile;
mod http3;
mod images;
mod inward;
mod lazy;
mod life;
mod limits;
mod measured;
mod members;
mod mistakes;
mod neighbours;
mod planted;
mod ports;
mod power;
mod priority;
mod reboot;
mod registry;
mod residency;
mod routing;
mod scenarios;
mod serving;
mod steady;
mod streams;
mod tls;
mod touch;
mod trust;
mod upgrade;
mod volumes;
mod wire;
mod zero;

/// Three nodes in three regions.
const THREE: [&str; 3] = ["par-1", "fra-1", "lis-1"];
/// A service that rests at zero and is small enough for every test.
const SMALL: [&str; 4] = ["--scale", "0..3", "--cpu", "0.1"];
