//! The daemon's clocks: monotonic for everything that waits, wall time only for people.

use std::sync::OnceLock;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use scheduler::model::{Now, UnixMs};

/// Monotonic milliseconds since this process first asked.
pub fn now() -> Now {
    static START: OnceLock<Instant> = OnceLock::new();
    let elapsed = START.get_or_init(Instant::now).elapsed();
    Now(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX))
}

/// Wall-clock time. May jump.
pub fn unix() -> UnixMs {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    UnixMs(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
