//! What a request to `/do` asks for in its query. Parsing only; `answer` does it.
//!
//! | key | meaning |
//! | --- | --- |
//! | `delay=50ms` | answer so much later |
//! | `cpu=20ms` | burn so much processor time first |
//! | `memory=8Mi` | hold so much memory until the answer |
//! | `status=503` | the answer's status |
//! | `bytes=100000` | the body's length |
//! | `stream=10x100ms` | the body in so many pieces, so far apart |
//! | `replay=region=lis` | no answer but this order to send it on, unless it was sent on already |
//! | `close=before` | no answer: the connection ends |
//! | `close=midway` | the connection ends within the body |
//! | `exit=3` | the process ends with this code instead of answering |

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

/// Beyond these a request is refused: a slip of the pen must not take the machine down.
const MAX_TIME: Duration = Duration::from_mins(10);
const MAX_SIZE: usize = 1 << 30;
const MAX_PIECES: u32 = 100_000;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Behaviour {
    pub delay: Duration,
    pub cpu: Duration,
    pub memory: usize,
    pub status: u16,
    pub bytes: usize,
    pub stream: Option<(u32, Duration)>,
    pub close: Option<Close>,
    pub exit: Option<u8>,
    pub replay: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Close {
    Before,
    Midway,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            delay: Duration::ZERO,
            cpu: Duration::ZERO,
            memory: 0,
            status: 200,
            bytes: 0,
            stream: None,
            close: None,
            exit: None,
            replay: None,
        }
    }
}

impl Behaviour {
    pub fn parse(query: &str) -> Result<Self> {
        let mut asked = Self::default();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            asked.set(key, value).with_context(|| pair.to_owned())?;
        }
        Ok(asked)
    }

    fn set(&mut self, key: &str, value: &str) -> Result<()> {
        match key {
            "delay" => self.delay = duration(value)?,
            "cpu" => self.cpu = duration(value)?,
            "memory" => self.memory = size(value)?,
            "status" => {
                self.status = value.parse()?;
                ensure!((200..600).contains(&self.status), "no final status");
            }
            "bytes" => self.bytes = size(value)?,
            "stream" => {
                let (pieces, apart) = value.split_once('x').context("not like 10x100ms")?;
                let pieces = pieces.parse()?;
                ensure!((1..=MAX_PIECES).contains(&pieces), "1 to {MAX_PIECES}");
                self.stream = Some((pieces, duration(apart)?));
            }
            "close" => {
                self.close = Some(match value {
                    "before" => Close::Before,
                    "midway" => Close::Midway,
                    _ => bail!("before or midway"),
                });
            }
            "exit" => self.exit = Some(value.parse()?),
            "replay" => self.replay = Some(value.to_owned()),
            _ => bail!("unknown"),
        }
        Ok(())
    }
}

/// `50ms` or `2s`.
pub(super) fn duration(text: &str) -> Result<Duration> {
    let (number, unit) = match text.strip_suffix("ms") {
        Some(number) => (number, 1),
        None => (text.strip_suffix('s').context("no unit: ms or s")?, 1000),
    };
    let millis = number.parse::<u64>()?.saturating_mul(unit);
    let time = Duration::from_millis(millis);
    ensure!(time <= MAX_TIME, "more than {MAX_TIME:?}");
    Ok(time)
}

/// Bytes: `100000`, `64Ki` or `8Mi`.
fn size(text: &str) -> Result<usize> {
    let units = [("Ki", 1 << 10), ("Mi", 1 << 20)];
    let unit = units.iter().find_map(|(suffix, unit)| {
        let number = text.strip_suffix(suffix)?;
        Some((number, *unit))
    });
    let (number, unit) = unit.unwrap_or((text, 1));
    let bytes = number.parse::<usize>()?.saturating_mul(unit);
    ensure!(bytes <= MAX_SIZE, "more than {MAX_SIZE} bytes");
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_says_what_to_do() {
        let ms = Duration::from_millis;
        assert_eq!(Behaviour::parse("").unwrap(), Behaviour::default());
        let query = "delay=50ms&cpu=2s&memory=8Mi&status=503&bytes=100000&stream=10x100ms\
                     &close=midway&exit=3&replay=region=lis;state=x";
        let expected = Behaviour {
            delay: ms(50),
            cpu: ms(2000),
            memory: 8 << 20,
            status: 503,
            bytes: 100_000,
            stream: Some((10, ms(100))),
            close: Some(Close::Midway),
            exit: Some(3),
            replay: Some("region=lis;state=x".to_owned()),
        };
        assert_eq!(Behaviour::parse(query).unwrap(), expected);
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for query in [
            "delay=50",
            "delay=11m",
            "delay=601s",
            "status=101",
            "bytes=2Gi",
            "memory=2000Mi",
            "stream=0x1s",
            "stream=10",
            "close=after",
            "exit=256",
            "sing",
        ] {
            let error = Behaviour::parse(query).unwrap_err();
            assert!(format!("{error:#}").contains(query), "{query}: {error:#}");
        }
    }
}
