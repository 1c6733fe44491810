//! When the keeper of the pool may work: not beside a start. What it does (links, namespaces, the
//! firewall) takes the same locks of the kernel's and the same processors as the start that has just
//! taken a network. Pure: times in, times out.

use std::time::Duration;

use tokio::time::Instant;

/// How long a start is left alone.
const QUIET: Duration = Duration::from_millis(100);
/// Starts that follow each other hold the keeper back no longer than this.
const PATIENCE: Duration = Duration::from_secs(1);

/// The starts that hold the keeper back.
#[derive(Debug, Default)]
pub(super) struct Pace(Option<Row>);

/// Starts each of which came while the one before was left alone.
#[derive(Debug, Clone, Copy)]
struct Row {
    first: Instant,
    last: Instant,
}

impl Row {
    fn end(self) -> Instant {
        (self.last + QUIET).min(self.first + PATIENCE)
    }
}

impl Pace {
    /// A start has taken a network.
    pub fn taken(&mut self, now: Instant) {
        let first = match self.0 {
            Some(row) if now < row.end() => row.first,
            _ => now,
        };
        self.0 = Some(Row { first, last: now });
    }

    /// Until when the keeper waits, unless somebody waits for it.
    pub fn until(&self, now: Instant) -> Option<Instant> {
        self.0.map(Row::end).filter(|end| *end > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_is_left_alone_but_the_pool_is_filled_in_the_end() {
        let began = Instant::now();
        let at = |ms: u64| began + Duration::from_millis(ms);
        let mut pace = Pace::default();
        assert_eq!(pace.until(at(0)), None);
        pace.taken(at(0));
        assert_eq!(pace.until(at(1)), Some(at(100)));
        assert_eq!(pace.until(at(100)), None);
        // One after the other, each before the last is done.
        for ms in (200..1150).step_by(90) {
            pace.taken(at(ms));
            assert_eq!(pace.until(at(ms)), Some(at((ms + 100).min(1200))), "{ms}");
        }
        assert_eq!(pace.until(at(1200)), None);
        pace.taken(at(1210));
        assert_eq!(pace.until(at(1210)), Some(at(1310)), "a row of its own");
    }
}
