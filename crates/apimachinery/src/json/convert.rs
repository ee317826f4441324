//! From and to Rust's own types.

use std::borrow::Cow;

use super::{Array, Map, Number, Text, Value};

impl From<serde_json::Value> for Value {
    fn from(value: serde_json::Value) -> Value {
        match value {
            serde_json::Value::Null => Value::Null,
            serde_json::Value::Bool(b) => Value::Bool(b),
            serde_json::Value::Number(n) => Value::Number(n),
            serde_json::Value::String(s) => Value::String(s.into()),
            serde_json::Value::Array(items) => Value::Array(items.into_iter().collect()),
            serde_json::Value::Object(map) => Value::Object(map.into_iter().collect()),
        }
    }
}

impl From<Value> for serde_json::Value {
    fn from(value: Value) -> serde_json::Value {
        match value {
            Value::Null => serde_json::Value::Null,
            Value::Bool(b) => serde_json::Value::Bool(b),
            Value::Number(n) => serde_json::Value::Number(n),
            Value::String(s) => serde_json::Value::String(s.into()),
            Value::Array(items) => serde_json::Value::Array(items.into_iter().map(Into::into).collect()),
            Value::Object(map) => {
                serde_json::Value::Object(map.into_iter().map(|(k, v)| (k.into(), v.into())).collect())
            }
        }
    }
}

macro_rules! from {
    ($($from:ty => |$v:ident| $to:expr),* $(,)?) => {$(
        impl From<$from> for Value {
            fn from($v: $from) -> Value {
                $to
            }
        }
    )*};
}

from! {
    bool => |b| Value::Bool(b),
    i8 => |n| Value::Number(n.into()),
    i16 => |n| Value::Number(n.into()),
    i32 => |n| Value::Number(n.into()),
    i64 => |n| Value::Number(n.into()),
    u8 => |n| Value::Number(n.into()),
    u16 => |n| Value::Number(n.into()),
    u32 => |n| Value::Number(n.into()),
    u64 => |n| Value::Number(n.into()),
    usize => |n| Value::Number(n.into()),
    f64 => |n| Number::from_f64(n).map_or(Value::Null, Value::Number),
    Number => |n| Value::Number(n),
    &str => |s| Value::String(s.into()),
    String => |s| Value::String(s.into()),
    &String => |s| Value::String(s.into()),
    Text => |s| Value::String(s),
    &Text => |s| Value::String(s.clone()),
    Cow<'_, str> => |s| Value::String(s.into()),
    Array => |items| Value::Array(items),
    Map => |map| Value::Object(map),
    () => |_unit| Value::Null,
}

impl<V: Into<Value>> From<Vec<V>> for Value {
    fn from(items: Vec<V>) -> Value {
        items.into_iter().collect()
    }
}

impl<V: Into<Value> + Clone> From<&[V]> for Value {
    fn from(items: &[V]) -> Value {
        items.iter().cloned().collect()
    }
}

impl<V: Into<Value>, const N: usize> From<[V; N]> for Value {
    fn from(items: [V; N]) -> Value {
        items.into_iter().collect()
    }
}

impl<V: Into<Value>> From<Option<V>> for Value {
    fn from(value: Option<V>) -> Value {
        value.map_or(Value::Null, Into::into)
    }
}

impl<V: Into<Value>> FromIterator<V> for Value {
    fn from_iter<I: IntoIterator<Item = V>>(iter: I) -> Value {
        Value::Array(iter.into_iter().collect())
    }
}

impl<K: Into<Text>, V: Into<Value>> FromIterator<(K, V)> for Value {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(iter: I) -> Value {
        Value::Object(iter.into_iter().collect())
    }
}

macro_rules! compare_texts {
    ($($text:ty),*) => {$(
        impl PartialEq<$text> for Value {
            fn eq(&self, other: &$text) -> bool {
                self.as_str().is_some_and(|s| s == &other[..])
            }
        }

        impl PartialEq<Value> for $text {
            fn eq(&self, other: &Value) -> bool {
                other == self
            }
        }
    )*};
}

compare_texts!(str, &str, String);

macro_rules! compare_numbers {
    ($($number:ty => $as:ident $wide:ty),*) => {$(
        impl PartialEq<$number> for Value {
            fn eq(&self, other: &$number) -> bool {
                self.$as() == Some(<$wide>::from(*other))
            }
        }

        impl PartialEq<Value> for $number {
            fn eq(&self, other: &Value) -> bool {
                other == self
            }
        }
    )*};
}

compare_numbers!(i32 => as_i64 i64, i64 => as_i64 i64, u32 => as_u64 u64, u64 => as_u64 u64, f64 => as_f64 f64);

impl PartialEq<usize> for Value {
    fn eq(&self, other: &usize) -> bool {
        self.as_u64().and_then(|n| usize::try_from(n).ok()) == Some(*other)
    }
}

impl PartialEq<bool> for Value {
    fn eq(&self, other: &bool) -> bool {
        self.as_bool() == Some(*other)
    }
}
