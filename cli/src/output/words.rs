//! Amounts as people read them.

use scheduler::model::UnixMs;

/// Time passed since `then`: `5s`, `3m`, `2h`, `4d`.
pub fn age(then: UnixMs, now: UnixMs) -> String {
    let seconds = now.0.saturating_sub(then.0) / 1000;
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86_400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// A moment in UTC, to the millisecond.
pub fn time(at: UnixMs) -> String {
    let millis = i64::try_from(at.0).unwrap_or(i64::MAX);
    match jiff::Timestamp::from_millisecond(millis) {
        Ok(stamp) => stamp.strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string(),
        Err(_) => at.0.to_string(),
    }
}

/// `340µs`, `12.5ms`, `2.30s`.
pub fn micros(micros: u64) -> String {
    match micros {
        0..1000 => format!("{micros}µs"),
        1000..1_000_000 => format!("{}.{}ms", micros / 1000, micros % 1000 / 100),
        _ => format!("{}.{:02}s", micros / 1_000_000, micros % 1_000_000 / 10_000),
    }
}

/// `512Mi`, `1.5Gi`, `17B`.
pub fn bytes(bytes: u64) -> String {
    const UNITS: [(&str, u32); 4] = [("Ti", 40), ("Gi", 30), ("Mi", 20), ("Ki", 10)];
    for (unit, shift) in UNITS {
        let whole = bytes >> shift;
        if whole > 0 {
            let tenths = ((bytes >> (shift - 10)) & 0x3ff) * 10 / 1024;
            let short = tenths == 0 || whole >= 100;
            return if short {
                format!("{whole}{unit}")
            } else {
                format!("{whole}.{tenths}{unit}")
            };
        }
    }
    format!("{bytes}B")
}

/// Cores: `2`, `0.5`, `0.25`.
pub fn cores(millis: u32) -> String {
    if millis.is_multiple_of(1000) {
        return (millis / 1000).to_string();
    }
    let text = format!("{}.{:03}", millis / 1000, millis % 1000);
    text.trim_end_matches('0').to_owned()
}

/// A digest, short: the algorithm's first 12 digits.
pub fn short_digest(digest: &str) -> String {
    let hex = digest.split_once(':').map_or(digest, |(_, hex)| hex);
    hex.chars().take(12).collect()
}

/// The text, or a dash when it is empty.
pub fn or_dash(text: impl Into<String>) -> String {
    let text = text.into();
    if text.is_empty() {
        "-".to_owned()
    } else {
        text
    }
}

/// The first line, cut to `limit` characters.
pub fn first_line(text: &str, limit: usize) -> String {
    let line = text.lines().next().unwrap_or_default();
    if line.chars().count() <= limit {
        return line.to_owned();
    }
    line.chars()
        .take(limit.saturating_sub(1))
        .chain(['…'])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts() {
        assert_eq!(age(UnixMs(0), UnixMs(59_999)), "59s");
        assert_eq!(age(UnixMs(0), UnixMs(7_300_000)), "2h");
        assert_eq!(age(UnixMs(10), UnixMs(0)), "0s");
        assert_eq!(micros(340), "340µs");
        assert_eq!(micros(12_540), "12.5ms");
        assert_eq!(micros(2_304_000), "2.30s");
        assert_eq!(bytes(0), "0B");
        assert_eq!(bytes(256 << 20), "256Mi");
        assert_eq!(bytes((3 << 30) / 2), "1.5Gi");
        assert_eq!(bytes(u64::MAX), "16777215Ti");
        assert_eq!(cores(2000), "2");
        assert_eq!(cores(250), "0.25");
        assert_eq!(time(UnixMs(1_700_000_000_123)), "2023-11-14T22:13:20.123Z");
        assert_eq!(first_line("abc\ndef", 10), "abc");
        assert_eq!(first_line("abcdef", 4), "abc…");
    }
}
