//! What an instance writes in the place of an answer, `region=lis;state=x`: the fields of Fly's
//! `fly-replay`, read strictly. A field that is not known is an error, for it might have said where
//! the request must not go.

use std::fmt;

use crate::model::{InstanceId, Name, units};

/// The longest order that is read.
pub const ORDER_BYTES: usize = 1024;
const MAX_REGIONS: usize = 16;
const MAX_TIMEOUT_MILLIS: u64 = 3_600_000;

/// Where a request is to go in the place of being answered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Order {
    /// The preferred first.
    pub regions: Vec<Wanted>,
    pub instance: Option<InstanceId>,
    /// As `instance`, if that one is there.
    pub preferred: Option<InstanceId>,
    /// Another service of the namespace.
    pub app: Option<Name>,
    /// Not to who gives the order.
    pub elsewhere: bool,
    /// For whom the request comes to.
    pub state: Option<String>,
    /// How long a place for it is looked for.
    pub timeout_millis: Option<u64>,
    /// Where it goes when there is none.
    pub fallback: Option<Fallback>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    Any,
    /// A region's name, or `prefix*`.
    Region(String),
}

/// Back to who gave the order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fallback {
    /// Or to nobody.
    ForceSelf,
    /// Or to any other of its revision.
    PreferSelf,
}

/// Why an order cannot be followed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("has more than {ORDER_BYTES} bytes")]
    Long,
    #[error("has a quote without an end")]
    Quote,
    #[error("has no field `{0}`")]
    Unknown(String),
    #[error("says `{0}` twice")]
    Twice(String),
    #[error("cannot have `{value}` for `{field}`")]
    Value { field: String, value: String },
    #[error("names no target: write region, instance, prefer_instance, app or elsewhere=true")]
    Nothing,
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Any => "any",
            Self::Region(pattern) => pattern,
        })
    }
}

impl Wanted {
    #[must_use]
    pub fn is(&self, region: &Name) -> bool {
        match self {
            Self::Any => true,
            Self::Region(pattern) => match pattern.strip_suffix('*') {
                Some(prefix) => region.as_str().starts_with(prefix),
                None => region.as_str() == pattern,
            },
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let name = text.strip_suffix('*').unwrap_or(text);
        let fine = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
        match text {
            "any" => Some(Self::Any),
            _ if !name.is_empty() && name.bytes().all(fine) => Some(Self::Region(text.to_owned())),
            _ => None,
        }
    }
}

impl Order {
    /// Reads an order.
    ///
    /// # Errors
    /// [`Malformed`] says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, Malformed> {
        if text.len() > ORDER_BYTES {
            return Err(Malformed::Long);
        }
        let mut order = Self::default();
        let mut seen: Vec<&str> = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            let (part, after) = part(rest)?;
            rest = after;
            if part.is_empty() {
                continue;
            }
            let (field, value) = part.split_once('=').unwrap_or((part, ""));
            let (field, value) = (field.trim(), unquoted(value.trim()));
            if seen.contains(&field) {
                return Err(Malformed::Twice(field.to_owned()));
            }
            seen.push(field);
            order.set(field, value)?;
        }
        let named = order.instance.is_some() || order.preferred.is_some() || order.app.is_some();
        if named || order.elsewhere || !order.regions.is_empty() {
            Ok(order)
        } else {
            Err(Malformed::Nothing)
        }
    }

    fn set(&mut self, field: &str, value: &str) -> Result<(), Malformed> {
        let wrong = || Malformed::Value {
            field: field.to_owned(),
            value: value.to_owned(),
        };
        match field {
            "region" => self.regions = regions(value).ok_or_else(wrong)?,
            "instance" => self.instance = Some(instance(value).ok_or_else(wrong)?),
            "prefer_instance" => self.preferred = Some(instance(value).ok_or_else(wrong)?),
            "app" => self.app = Some(Name::new(value).map_err(|_| wrong())?),
            "elsewhere" => self.elsewhere = value.parse().map_err(|_| wrong())?,
            "state" => self.state = Some(value.to_owned()),
            "timeout" => {
                let span = units::duration(value).ok();
                let millis = span.and_then(|s| u64::try_from(s.as_millis()).ok());
                let fine = millis.filter(|m| (1..=MAX_TIMEOUT_MILLIS).contains(m));
                self.timeout_millis = Some(fine.ok_or_else(wrong)?);
            }
            "fallback" => {
                self.fallback = Some(match value {
                    "force_self" => Fallback::ForceSelf,
                    "prefer_self" => Fallback::PreferSelf,
                    _ => return Err(wrong()),
                });
            }
            _ => return Err(Malformed::Unknown(field.to_owned())),
        }
        Ok(())
    }
}

/// What stands before the next `;` that is not within quotes, and what after it.
fn part(text: &str) -> Result<(&str, &str), Malformed> {
    let mut quoted = false;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'"' => quoted = !quoted,
            b';' if !quoted => return Ok((text[..at].trim(), &text[at + 1..])),
            _ => {}
        }
    }
    if quoted {
        return Err(Malformed::Quote);
    }
    Ok((text.trim(), ""))
}

fn unquoted(value: &str) -> &str {
    let inner = value.strip_prefix('"').and_then(|v| v.strip_suffix('"'));
    inner.unwrap_or(value)
}

fn regions(value: &str) -> Option<Vec<Wanted>> {
    let regions: Option<Vec<_>> = value.split(',').map(|r| Wanted::parse(r.trim())).collect();
    regions.filter(|r| r.len() <= MAX_REGIONS)
}

fn instance(value: &str) -> Option<InstanceId> {
    let fine = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
    let id = !value.is_empty() && value.len() <= 128 && value.bytes().all(fine);
    id.then(|| InstanceId(value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(name: &str) -> Wanted {
        Wanted::Region(name.to_owned())
    }

    fn id(text: &str) -> InstanceId {
        InstanceId(text.to_owned())
    }

    #[test]
    fn orders_are_read_as_fly_writes_them() {
        let nothing = Order::default;
        let table = [
            (
                "region=lis",
                Order {
                    regions: vec![region("lis")],
                    ..nothing()
                },
            ),
            (
                " region = \"lis, eu-*,any\" ; app = api ",
                Order {
                    regions: vec![region("lis"), region("eu-*"), Wanted::Any],
                    app: Name::new("api").ok(),
                    ..nothing()
                },
            ),
            (
                "instance=web-00001-k3m9;state=\"a;b=c\"",
                Order {
                    instance: Some(id("web-00001-k3m9")),
                    state: Some("a;b=c".to_owned()),
                    ..nothing()
                },
            ),
            (
                "prefer_instance=web-00001-k3m9;region=any;",
                Order {
                    preferred: Some(id("web-00001-k3m9")),
                    regions: vec![Wanted::Any],
                    ..nothing()
                },
            ),
            (
                "elsewhere=true;state=x=y",
                Order {
                    elsewhere: true,
                    state: Some("x=y".to_owned()),
                    ..nothing()
                },
            ),
            (
                "app=worker;timeout=800ms;fallback=force_self",
                Order {
                    app: Name::new("worker").ok(),
                    timeout_millis: Some(800),
                    fallback: Some(Fallback::ForceSelf),
                    ..nothing()
                },
            ),
        ];
        for (text, want) in table {
            assert_eq!(Order::parse(text), Ok(want), "{text}");
        }
    }

    #[test]
    fn what_is_not_understood_is_not_followed() {
        let long = format!("region=lis;state={}", "x".repeat(ORDER_BYTES));
        let table = [
            ("", "names no target"),
            ("state=x", "names no target"),
            ("elsewhere=false", "names no target"),
            ("region=lis;region=par", "says `region` twice"),
            ("region=", "cannot have `` for `region`"),
            ("region=lis,", "cannot have `lis,` for `region`"),
            ("region=l s", "cannot have `l s` for `region`"),
            ("instance=../x", "cannot have `../x` for `instance`"),
            ("app=shop/web", "cannot have `shop/web` for `app`"),
            ("app=Web", "cannot have `Web` for `app`"),
            ("elsewhere=yes", "cannot have `yes` for `elsewhere`"),
            ("app=x;timeout=0s", "cannot have `0s` for `timeout`"),
            ("app=x;fallback=me", "cannot have `me` for `fallback`"),
            ("app=x;colour=red", "has no field `colour`"),
            ("app=\"x", "has a quote without an end"),
            (long.as_str(), "has more than 1024 bytes"),
        ];
        for (text, want) in table {
            let told = Order::parse(text).unwrap_err().to_string();
            assert!(told.contains(want), "{text}: {told}");
        }
    }

    proptest::proptest! {
        #[test]
        fn nothing_breaks_it(text in "[a-z=;\", .*\\-é]{0,60}") {
            let _ = Order::parse(&text);
        }
    }
}
