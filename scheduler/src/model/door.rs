//! What a service asks of the front door, in the words of its annotations. They are the service's own
//! and not its revisions': changing one starts nothing anew.

use std::ops::RangeInclusive;

use super::{Service, units};

/// Whether a client of a split stays with the revision it met: `off`, `on`, or for how long.
pub const STICKY: &str = "selvedge.dev/sticky";
/// For how long `on` is.
const STICKY_SECONDS: u32 = 24 * 3600;
/// The longest is what a rollout would have to wait for.
const STICKY_RANGE: RangeInclusive<u32> = 1..=30 * 24 * 3600;

/// For how long the share of an instance grows after it became ready: `off` or a duration.
pub const SLOW_START: &str = "selvedge.dev/slow-start";
const SLOW_START_RANGE: RangeInclusive<u32> = 1..=900;

/// Seconds that a client stays with its revision; `None` where it does not.
///
/// # Errors
/// What to write instead.
pub fn sticky(text: &str) -> Result<Option<u32>, String> {
    match text {
        "off" => Ok(None),
        "on" => Ok(Some(STICKY_SECONDS)),
        span => {
            let help = "write `on`, `off` or 1s to 720h";
            seconds(span, &STICKY_RANGE, help).map(Some)
        }
    }
}

/// Seconds in which an instance's share grows; 0 where it is whole at once.
///
/// # Errors
/// What to write instead.
pub fn slow_start(text: &str) -> Result<u32, String> {
    match text {
        "off" => Ok(0),
        span => seconds(span, &SLOW_START_RANGE, "write `off` or 1s to 15m"),
    }
}

fn seconds(text: &str, range: &RangeInclusive<u32>, help: &str) -> Result<u32, String> {
    let span = units::duration(text).ok();
    let whole = span.filter(|s| s.subsec_nanos() == 0);
    let seconds = whole.and_then(|s| u32::try_from(s.as_secs()).ok());
    let seconds = seconds.filter(|s| range.contains(s));
    seconds.ok_or_else(|| help.to_owned())
}

impl Service {
    /// For how long a client of a split stays with its revision, if at all.
    #[must_use]
    pub fn sticky_seconds(&self) -> Option<u32> {
        let text = self.meta.annotations.get(STICKY)?;
        sticky(text).ok().flatten()
    }

    /// In how many seconds an instance's share grows; 0 where it is whole at once.
    #[must_use]
    pub fn slow_start_seconds(&self) -> u32 {
        let text = self.meta.annotations.get(SLOW_START);
        text.and_then(|t| slow_start(t).ok()).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stickiness_is_on_off_or_so_long() {
        let table = [
            ("off", Some(None)),
            ("on", Some(Some(86_400))),
            ("1s", Some(Some(1))),
            ("1h30m", Some(Some(5_400))),
            ("720h", Some(Some(2_592_000))),
            ("720h1s", None),
            ("0s", None),
            ("1500ms", None),
            ("true", None),
            ("", None),
        ];
        for (text, want) in table {
            assert_eq!(sticky(text).ok(), want, "{text}");
        }
    }

    #[test]
    fn a_slow_start_is_off_or_takes_so_long() {
        let table = [
            ("off", Some(0)),
            ("30s", Some(30)),
            ("15m", Some(900)),
            ("15m1s", None),
            ("0s", None),
            ("on", None),
        ];
        for (text, want) in table {
            assert_eq!(slow_start(text).ok(), want, "{text}");
        }
    }
}
