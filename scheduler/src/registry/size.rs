//! How large a value is when written down: the bytes of its texts and numbers. It depends on
//! nothing but the value, so every replica counts the same; a real encoding is a little larger.

use std::fmt;

use serde::ser::{self, Serialize};

/// The size of `value` in bytes, or `None` when it cannot be written at all.
pub(super) fn written_size<T: Serialize + ?Sized>(value: &T) -> Option<usize> {
    let mut count = Count(0);
    value.serialize(&mut count).ok()?;
    Some(count.0)
}

struct Count(usize);

#[derive(Debug, thiserror::Error)]
#[error("cannot be written")]
struct Unwritable;

impl ser::Error for Unwritable {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self
    }
}

impl Count {
    /// Saturating: a value too large to count is too large.
    #[expect(
        clippy::unnecessary_wraps,
        reason = "every method of a serializer returns a result"
    )]
    fn add(&mut self, bytes: usize) -> Result<(), Unwritable> {
        self.0 = self.0.saturating_add(bytes);
        Ok(())
    }

    /// Containers are counted as one separator, their items as themselves.
    fn open(&mut self) -> Result<&mut Self, Unwritable> {
        self.add(1)?;
        Ok(self)
    }
}

macro_rules! numbers {
    ($($method:ident: $type:ty),*) => {
        $(fn $method(self, _: $type) -> Result<(), Unwritable> {
            self.add(size_of::<$type>())
        })*
    };
}

impl<'a> ser::Serializer for &'a mut Count {
    type Ok = ();
    type Error = Unwritable;
    type SerializeSeq = &'a mut Count;
    type SerializeTuple = &'a mut Count;
    type SerializeTupleStruct = &'a mut Count;
    type SerializeTupleVariant = &'a mut Count;
    type SerializeMap = &'a mut Count;
    type SerializeStruct = &'a mut Count;
    type SerializeStructVariant = &'a mut Count;

    numbers!(
        serialize_bool: bool, serialize_char: char,
        serialize_i8: i8, serialize_i16: i16, serialize_i32: i32, serialize_i64: i64,
        serialize_u8: u8, serialize_u16: u16, serialize_u32: u32, serialize_u64: u64,
        serialize_f32: f32, serialize_f64: f64
    );

    fn serialize_str(self, text: &str) -> Result<(), Unwritable> {
        self.add(text.len() + 1)
    }

    fn serialize_bytes(self, bytes: &[u8]) -> Result<(), Unwritable> {
        self.add(bytes.len() + 1)
    }

    fn serialize_none(self) -> Result<(), Unwritable> {
        self.add(1)
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), Unwritable> {
        self.add(1)?;
        value.serialize(self)
    }

    fn serialize_unit(self) -> Result<(), Unwritable> {
        self.add(1)
    }

    fn serialize_unit_struct(self, _: &'static str) -> Result<(), Unwritable> {
        self.add(1)
    }

    fn serialize_unit_variant(
        self,
        _: &'static str,
        _: u32,
        name: &'static str,
    ) -> Result<(), Unwritable> {
        self.add(name.len())
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        value: &T,
    ) -> Result<(), Unwritable> {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        name: &'static str,
        value: &T,
    ) -> Result<(), Unwritable> {
        self.add(name.len())?;
        value.serialize(self)
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<Self, Unwritable> {
        self.open()
    }

    fn serialize_tuple(self, _: usize) -> Result<Self, Unwritable> {
        self.open()
    }

    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Self, Unwritable> {
        self.open()
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self, Unwritable> {
        self.open()
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Self, Unwritable> {
        self.open()
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Self, Unwritable> {
        self.open()
    }

    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self, Unwritable> {
        self.open()
    }
}

macro_rules! items {
    ($($trait:ident: $method:ident),*) => {
        $(impl ser::$trait for &mut Count {
            type Ok = ();
            type Error = Unwritable;
            fn $method<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Unwritable> {
                value.serialize(&mut **self)
            }
            fn end(self) -> Result<(), Unwritable> {
                Ok(())
            }
        })*
    };
}

items!(
    SerializeSeq: serialize_element,
    SerializeTuple: serialize_element,
    SerializeTupleStruct: serialize_field,
    SerializeTupleVariant: serialize_field
);

macro_rules! fields {
    ($($trait:ident),*) => {
        $(impl ser::$trait for &mut Count {
            type Ok = ();
            type Error = Unwritable;
            fn serialize_field<T: Serialize + ?Sized>(
                &mut self,
                name: &'static str,
                value: &T,
            ) -> Result<(), Unwritable> {
                self.add(name.len() + 1)?;
                value.serialize(&mut **self)
            }
            fn end(self) -> Result<(), Unwritable> {
                Ok(())
            }
        })*
    };
}

fields!(SerializeStruct, SerializeStructVariant);

impl ser::SerializeMap for &mut Count {
    type Ok = ();
    type Error = Unwritable;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), Unwritable> {
        key.serialize(&mut **self)
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Unwritable> {
        value.serialize(&mut **self)
    }

    fn end(self) -> Result<(), Unwritable> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Container, EnvVar, RevisionSpec};

    #[test]
    fn every_text_counts() {
        let empty = written_size(&RevisionSpec::default()).unwrap();
        let value = "x".repeat(10_000);
        let spec = RevisionSpec {
            containers: vec![Container {
                env: vec![EnvVar {
                    name: "A".to_owned(),
                    value,
                    ..EnvVar::default()
                }],
                ..Container::default()
            }],
            ..RevisionSpec::default()
        };
        let size = written_size(&spec).unwrap();
        let json = serde_json::to_string(&spec).unwrap().len();
        assert!(size > empty + 10_000, "{size}");
        assert!(size <= json, "{size} is more than JSON's {json}");
    }
}
