//! Reading one table of a manifest: known keys only, typed values, every fault with its place.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::ops::Range;

use toml_edit::{Item, TableLike, Value};

use super::error::{ManifestError, Place};
use crate::suggest;

/// The text being read.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    pub file: &'a str,
    pub text: &'a str,
}

impl Source<'_> {
    pub fn fault(
        &self,
        span: Option<Range<usize>>,
        message: impl Into<String>,
        help: impl Into<String>,
    ) -> ManifestError {
        ManifestError {
            file: self.file.to_owned(),
            message: message.into(),
            help: help.into(),
            at: span.map(|span| Place::of(self.text, span)),
        }
    }
}

/// One table.
#[derive(Clone, Copy)]
pub struct Section<'a> {
    source: Source<'a>,
    table: &'a dyn TableLike,
}

type Read<T> = Result<T, ManifestError>;

impl<'a> Section<'a> {
    /// A table whose keys are all in `known`.
    pub fn new(source: Source<'a>, table: &'a dyn TableLike, known: &[&str]) -> Read<Self> {
        let section = Self { source, table };
        for (key, _) in table.iter() {
            if !known.contains(&key) {
                let help = match suggest::nearest(key, known.iter().copied()) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => format!("known here: {}", known.join(", ")),
                };
                let span = section.key_span(key);
                return Err(source.fault(span, format!("unknown key `{key}`"), help));
            }
        }
        Ok(section)
    }

    pub fn fault(
        &self,
        key: &str,
        message: impl Display,
        help: impl Into<String>,
    ) -> ManifestError {
        let span = self.table.get(key).and_then(Item::span);
        self.source.fault(
            span.or_else(|| self.key_span(key)),
            message.to_string(),
            help,
        )
    }

    fn key_span(&self, key: &str) -> Option<Range<usize>> {
        self.table
            .get_key_value(key)
            .and_then(|(key, _)| key.span())
    }

    pub fn item(&self, key: &str) -> Option<&'a Item> {
        self.table.get(key).filter(|item| !item.is_none())
    }

    /// The table under `key`, whose keys are all in `known`.
    pub fn section(&self, key: &str, known: &[&str]) -> Read<Option<Self>> {
        self.table_at(key)?
            .map(|table| Self::new(self.source, table, known))
            .transpose()
    }

    /// The tables of a list (`[[key]]`), whose keys are all in `known`.
    pub fn tables(&self, key: &str, known: &[&str]) -> Read<Vec<Self>> {
        let Some(item) = self.item(key) else {
            return Ok(Vec::new());
        };
        let wrong = || self.wrong_type(key, "a list of tables, each written [[…]]", item);
        let tables: Vec<&'a dyn TableLike> = match item {
            Item::ArrayOfTables(tables) => tables.iter().map(|t| t as &dyn TableLike).collect(),
            Item::Value(Value::Array(values)) => {
                let table = |v: &'a Value| v.as_inline_table().map(|t| t as &dyn TableLike);
                let tables: Option<Vec<_>> = values.iter().map(table).collect();
                tables.ok_or_else(wrong)?
            }
            _ => return Err(wrong()),
        };
        let section = |table| Self::new(self.source, table, known);
        tables.into_iter().map(section).collect()
    }

    fn table_at(&self, key: &str) -> Read<Option<&'a dyn TableLike>> {
        let Some(item) = self.item(key) else {
            return Ok(None);
        };
        match item.as_table_like() {
            Some(table) => Ok(Some(table)),
            None => Err(self.wrong_type(key, "a table", item)),
        }
    }

    fn wrong_type(&self, key: &str, wanted: &str, item: &Item) -> ManifestError {
        self.fault(
            key,
            format!("`{key}` must be {wanted}, found {}", a_type(item)),
            "",
        )
    }

    pub fn string(&self, key: &str) -> Read<Option<&'a str>> {
        let Some(item) = self.item(key) else {
            return Ok(None);
        };
        item.as_str()
            .map(Some)
            .ok_or_else(|| self.wrong_type(key, "a string", item))
    }

    /// A whole number from 0 to `u32::MAX`.
    pub fn number(&self, key: &str) -> Read<Option<u32>> {
        let Some(item) = self.item(key) else {
            return Ok(None);
        };
        let number = item
            .as_integer()
            .ok_or_else(|| self.wrong_type(key, "a number", item))?;
        let wrong = |_| self.fault(key, format!("`{key}` cannot be {number}"), "");
        u32::try_from(number).map(Some).map_err(wrong)
    }

    pub fn flag(&self, key: &str) -> Read<Option<bool>> {
        let Some(item) = self.item(key) else {
            return Ok(None);
        };
        item.as_bool()
            .map(Some)
            .ok_or_else(|| self.wrong_type(key, "true or false", item))
    }

    /// A string or number, as text, through `parse`.
    pub fn parsed<T, E: Display>(
        &self,
        key: &str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Read<Option<T>> {
        let Some(item) = self.item(key) else {
            return Ok(None);
        };
        let text = scalar(item).ok_or_else(|| self.wrong_type(key, "a string", item))?;
        parse(&text)
            .map(Some)
            .map_err(|error| self.fault(key, error, ""))
    }

    /// A list of strings; one string stands for a list of one.
    pub fn list(&self, key: &str) -> Read<Option<Vec<String>>> {
        let Some(item) = self.item(key) else {
            return Ok(None);
        };
        if let Some(one) = item.as_str() {
            return Ok(Some(vec![one.to_owned()]));
        }
        let array = item
            .as_array()
            .ok_or_else(|| self.wrong_type(key, "a list of strings", item))?;
        let text = |value: &Value| {
            let wrong = || self.source.fault(value.span(), "this must be a string", "");
            value.as_str().map(str::to_owned).ok_or_else(wrong)
        };
        array.iter().map(text).collect::<Read<_>>().map(Some)
    }

    /// A table of free keys with plain values.
    pub fn pairs(&self, key: &str) -> Read<BTreeMap<String, String>> {
        let Some(table) = self.table_at(key)? else {
            return Ok(BTreeMap::new());
        };
        let inner = Self {
            source: self.source,
            table,
        };
        let pair = |(name, item): (&str, &Item)| match scalar(item) {
            Some(text) => Ok((name.to_owned(), text)),
            None => Err(inner.wrong_type(name, "a string", item)),
        };
        table.iter().map(pair).collect()
    }

    /// The table under `key` with keys of any name.
    pub fn free(&self, key: &str) -> Read<Option<Self>> {
        Ok(self.table_at(key)?.map(|table| Self {
            source: self.source,
            table,
        }))
    }

    pub fn keys(&self) -> Vec<&'a str> {
        self.table.iter().map(|(key, _)| key).collect()
    }
}

/// A plain value as the text a program would see.
fn scalar(item: &Item) -> Option<String> {
    match item.as_value()? {
        Value::String(text) => Some(text.value().clone()),
        Value::Integer(number) => Some(number.value().to_string()),
        Value::Float(number) => Some(number.value().to_string()),
        Value::Boolean(flag) => Some(flag.value().to_string()),
        _ => None,
    }
}

fn a_type(item: &Item) -> &'static str {
    match item {
        Item::Value(Value::String(_)) => "a string",
        Item::Value(Value::Integer(_)) => "an integer",
        Item::Value(Value::Float(_)) => "a float",
        Item::Value(Value::Boolean(_)) => "a boolean",
        Item::Value(Value::Datetime(_)) => "a date",
        Item::Value(Value::Array(_)) | Item::ArrayOfTables(_) => "a list",
        Item::Value(Value::InlineTable(_)) | Item::Table(_) => "a table",
        Item::None => "nothing",
    }
}
