//! How often something may be asked for, as people write it: `100/s`, `30/m burst 5`.

use std::fmt;
use std::str::FromStr;

/// The most that can be asked for: a cell of a thousandth of a millisecond.
const MOST: u32 = 1_000_000;

/// So many in a span of time, and so many of them at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    count: u32,
    per: Per,
    burst: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Per {
    Second,
    Minute,
    Hour,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no rate: write 100/s, 600/m or 50/h, and how many at once as `100/s burst 200`, each 1 to {MOST}"
)]
pub struct RateError(String);

impl Rate {
    /// The time that one of them has.
    #[must_use]
    pub fn interval_nanos(self) -> u64 {
        self.per.seconds() * 1_000_000_000 / u64::from(self.count)
    }

    /// How many may come at once after a pause.
    #[must_use]
    pub fn burst(self) -> u32 {
        self.burst
    }
}

impl Per {
    fn seconds(self) -> u64 {
        match self {
            Self::Second => 1,
            Self::Minute => 60,
            Self::Hour => 3600,
        }
    }
}

impl FromStr for Rate {
    type Err = RateError;

    /// Without a burst as many may come at once as the rate's number says.
    fn from_str(text: &str) -> Result<Self, RateError> {
        let wrong = || RateError(text.chars().take(60).collect());
        let number = |text: &str| {
            let digits = text.bytes().all(|b| b.is_ascii_digit());
            let number = text
                .parse()
                .ok()
                .filter(|n| digits && (1..=MOST).contains(n));
            number.ok_or_else(wrong)
        };
        let mut words = text.split_ascii_whitespace();
        let (count, per) = words
            .next()
            .and_then(|rate| rate.split_once('/'))
            .ok_or_else(wrong)?;
        let per = match per {
            "s" => Per::Second,
            "m" => Per::Minute,
            "h" => Per::Hour,
            _ => return Err(wrong()),
        };
        let count = number(count)?;
        let burst = match (words.next(), words.next(), words.next()) {
            (None, ..) => count,
            (Some("burst"), Some(burst), None) => number(burst)?,
            _ => return Err(wrong()),
        };
        Ok(Self { count, per, burst })
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let per = match self.per {
            Per::Second => 's',
            Per::Minute => 'm',
            Per::Hour => 'h',
        };
        write!(f, "{}/{per}", self.count)?;
        if self.burst != self.count {
            write!(f, " burst {}", self.burst)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read_as_written() {
        let table = [
            ("100/s", 10_000_000, 100),
            ("30/m", 2_000_000_000, 30),
            ("1/h", 3_600_000_000_000, 1),
            ("100/s burst 200", 10_000_000, 200),
            ("1000000/s burst 1", 1_000, 1),
        ];
        for (text, interval, burst) in table {
            let rate: Rate = text.parse().unwrap();
            assert_eq!(
                (rate.interval_nanos(), rate.burst()),
                (interval, burst),
                "{text}"
            );
            assert_eq!(rate.to_string(), text);
        }
        for text in [
            "",
            "100",
            "/s",
            "0/s",
            "+1/s",
            "1.5/s",
            "-1/s",
            "100/d",
            "1000001/s",
            "5/s burst",
            "5/s burst 0",
            "5/s burst 2 3",
            "5/s at 2",
            "5 /s",
            "99999999999/s",
        ] {
            let error = text.parse::<Rate>().unwrap_err();
            assert!(error.to_string().contains("is no rate"), "{text}");
        }
    }
}
