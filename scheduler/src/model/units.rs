//! Amounts as people write them: `30s`, `64MiB`, `256Mi`, `0.5` cores.

use std::time::Duration;

/// Why a text is no amount; says what would be one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    #[error("`{0}` is not a duration: write a number and ms, s, m or h, like 30s")]
    Duration(String),
    #[error(
        "`{0}` is not an amount of bytes: write a number and Ki, Mi, Gi, KB, MB or GB, like 256Mi"
    )]
    Bytes(String),
    #[error("`{0}` is not an amount of cpu: write cores like 0.5 or millicores like 500m")]
    Cpu(String),
}

/// `250ms`, `30s`, `5m`, `1h`, and sums of them (`1m30s`).
pub fn duration(text: &str) -> Result<Duration, UnitError> {
    let wrong = || UnitError::Duration(text.chars().take(40).collect());
    let mut rest = text.trim();
    let mut total = Duration::ZERO;
    if rest.is_empty() {
        return Err(wrong());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let number: u64 = rest[..digits].parse().map_err(|_| wrong())?;
        rest = &rest[digits..];
        let letters = rest
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(rest.len());
        let millis = match &rest[..letters] {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return Err(wrong()),
        };
        let part = number
            .checked_mul(millis)
            .map(Duration::from_millis)
            .ok_or_else(wrong)?;
        total = total.checked_add(part).ok_or_else(wrong)?;
        rest = &rest[letters..];
    }
    Ok(total)
}

/// Bytes: a plain number, or one with a binary (`Ki`, `KiB`, …) or decimal (`K`, `KB`, …) suffix.
pub fn bytes(text: &str) -> Result<u64, UnitError> {
    let wrong = || UnitError::Bytes(text.chars().take(40).collect());
    let text = text.trim();
    let split = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let number: u64 = text[..split].parse().map_err(|_| wrong())?;
    let factor: u64 = match text[split..].trim().trim_end_matches('B') {
        "" => 1,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        "K" | "k" => 1_000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "T" => 1_000_000_000_000,
        _ => return Err(wrong()),
    };
    number.checked_mul(factor).ok_or_else(wrong)
}

/// Cores (`0.5`, `2`) or millicores (`500m`), as millicores.
pub fn cpu_millis(text: &str) -> Result<u32, UnitError> {
    let wrong = || UnitError::Cpu(text.chars().take(40).collect());
    let text = text.trim();
    if let Some(millis) = text.strip_suffix('m') {
        return millis.parse().map_err(|_| wrong());
    }
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if fraction.len() > 3 || !fraction.chars().all(|c| c.is_ascii_digit()) {
        return Err(wrong());
    }
    let whole: u32 = whole.parse().map_err(|_| wrong())?;
    let fraction: u32 = format!("{fraction:0<3}").parse().map_err(|_| wrong())?;
    whole
        .checked_mul(1000)
        .and_then(|w| w.checked_add(fraction))
        .ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, millis) in [
            ("250ms", 250),
            ("30s", 30_000),
            ("1m30s", 90_000),
            ("1h", 3_600_000),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for bad in ["", "30", "s", "-1s", "1.5s", "1d", "99999999999999999999s"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn byte_amounts() {
        for (text, n) in [
            ("0", 0),
            ("64MiB", 64 << 20),
            ("256Mi", 256 << 20),
            ("1GB", 1_000_000_000),
        ] {
            assert_eq!(bytes(text), Ok(n), "{text}");
        }
        for bad in ["", "Mi", "1.5Gi", "1X", "99999999999Ti"] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn cpu_amounts() {
        for (text, n) in [
            ("0.5", 500),
            ("2", 2000),
            ("250m", 250),
            ("0.25", 250),
            ("1.", 1000),
        ] {
            assert_eq!(cpu_millis(text), Ok(n), "{text}");
        }
        for bad in ["", "m", ".5x", "-1", "0.0001", "5000000"] {
            assert!(cpu_millis(bad).is_err(), "{bad}");
        }
    }
}
