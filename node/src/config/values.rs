//! Values as people write them: with a unit, as a word, or as a number.

use std::net::SocketAddr;
use std::time::Duration;

use scheduler::model::{Rate, RateError, units};
use serde::{Deserialize, Deserializer};

/// A value or the word `auto`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Auto<T> {
    Auto,
    Set(T),
}

impl<T> Auto<T> {
    pub fn or(self, fallback: impl FnOnce() -> T) -> T {
        match self {
            Self::Auto => fallback(),
            Self::Set(value) => value,
        }
    }
}

impl<'de, T: Deserialize<'de> + FromText> Deserialize<'de> for Auto<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Text::deserialize(deserializer)?.0.as_str() {
            "auto" => Ok(Self::Auto),
            text => T::from_text(text)
                .map(Self::Set)
                .map_err(serde::de::Error::custom),
        }
    }
}

/// A TOML string or number, as text: `cpu = 0.5` and `cpu = "0.5"` mean the same.
struct Text(String);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(match toml::Value::deserialize(deserializer)? {
            toml::Value::String(text) => Self(text),
            other => Self(other.to_string()),
        })
    }
}

/// A configuration value written as text with a unit.
pub trait FromText: Sized {
    fn from_text(text: &str) -> Result<Self, String>;
}

macro_rules! from_text {
    ($(#[$doc:meta])* $name:ident($inner:ty) = $parse:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub struct $name(pub $inner);

        impl FromText for $name {
            fn from_text(text: &str) -> Result<Self, String> {
                let parse = $parse;
                parse(text).map(Self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = Text::deserialize(deserializer)?;
                Self::from_text(&text.0).map_err(serde::de::Error::custom)
            }
        }
    };
}

from_text!(
    /// A span of time: `"30s"`.
    Span(Duration) = |t: &str| units::duration(t).map_err(|e| e.to_string())
);
from_text!(
    /// Bytes: `"256Mi"`.
    Bytes(u64) = |t: &str| units::bytes(t).map_err(|e| e.to_string())
);
from_text!(
    /// Millicores, written as cores: `"0.5"`.
    Cpu(u32) = |t: &str| units::cpu_millis(t).map_err(|e| e.to_string())
);
from_text!(
    /// `IP:PORT`.
    Address(SocketAddr) = |t: &str| t.parse().map_err(|_| format!("`{t}` is not IP:PORT"))
);
from_text!(
    /// `IP:PORT`, or `:PORT` for every address; `off` listens nowhere.
    Listen(Option<SocketAddr>) = |t: &str| listen(t)
);

from_text!(
    /// `20/s burst 100`; `off` is no bound.
    ClientRate(Option<Rate>) = |t: &str| match t {
        "off" => Ok(None),
        text => text.parse().map(Some).map_err(|e: RateError| e.to_string()),
    }
);

impl Listen {
    pub(super) const fn port(port: u16) -> Self {
        let any = std::net::IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED);
        Self(Some(SocketAddr::new(any, port)))
    }
}

fn listen(text: &str) -> Result<Option<SocketAddr>, String> {
    if text == "off" {
        return Ok(None);
    }
    let full = text
        .strip_prefix(':')
        .map_or_else(|| text.to_owned(), |port| format!("[::]:{port}"));
    full.parse()
        .map(Some)
        .map_err(|_| format!("`{text}` is not :PORT, IP:PORT or off"))
}
