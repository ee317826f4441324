//! A value of JSON.

use std::fmt;
use std::ops;
use std::str::FromStr;

pub use serde_json::Number;

use super::{Array, Map, NULL};

/// A name or a text of JSON; short ones (up to 24 bytes) lie in the value itself.
pub type Text = compact_str::CompactString;

/// A value of JSON, with the interface of `serde_json::Value`. Lists and objects are shared between copies until one of
/// them is changed: a copy costs nothing, and what copies still share is known to be equal without a look at it.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub enum Value {
    /// `null`.
    #[default]
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A number.
    Number(Number),
    /// A text.
    String(Text),
    /// A list.
    Array(Array),
    /// An object.
    Object(Map),
}

/// What a value can be asked for: a member's name, or an item's number.
pub trait Key {
    /// What is there.
    fn of<'v>(&self, value: &'v Value) -> Option<&'v Value>;
    /// What is there, for change.
    fn of_mut<'v>(&self, value: &'v mut Value) -> Option<&'v mut Value>;
    /// What is there, for change; made where it can be. Panics where it cannot.
    fn made<'v>(&self, value: &'v mut Value) -> &'v mut Value;
}

impl Key for str {
    fn of<'v>(&self, value: &'v Value) -> Option<&'v Value> {
        value.as_object()?.get(self)
    }

    fn of_mut<'v>(&self, value: &'v mut Value) -> Option<&'v mut Value> {
        value.as_object_mut()?.get_mut(self)
    }

    fn made<'v>(&self, value: &'v mut Value) -> &'v mut Value {
        if value.is_null() {
            *value = Value::Object(Map::new());
        }
        match value {
            Value::Object(map) => map.entry(self).or_insert(Value::Null),
            other => panic!("cannot access key {self:?} in JSON {}", other.type_name()),
        }
    }
}

impl Key for usize {
    fn of<'v>(&self, value: &'v Value) -> Option<&'v Value> {
        value.as_array()?.get(*self)
    }

    fn of_mut<'v>(&self, value: &'v mut Value) -> Option<&'v mut Value> {
        value.as_array_mut()?.get_mut(*self)
    }

    fn made<'v>(&self, value: &'v mut Value) -> &'v mut Value {
        match value {
            Value::Array(items) => &mut items[*self],
            other => panic!("cannot access index {self} of JSON {}", other.type_name()),
        }
    }
}

macro_rules! texts_are_keys {
    ($($text:ty),*) => {$(
        impl Key for $text {
            fn of<'v>(&self, value: &'v Value) -> Option<&'v Value> {
                self.as_str().of(value)
            }

            fn of_mut<'v>(&self, value: &'v mut Value) -> Option<&'v mut Value> {
                self.as_str().of_mut(value)
            }

            fn made<'v>(&self, value: &'v mut Value) -> &'v mut Value {
                self.as_str().made(value)
            }
        }
    )*};
}

texts_are_keys!(String, Text);

impl<K: Key + ?Sized> Key for &K {
    fn of<'v>(&self, value: &'v Value) -> Option<&'v Value> {
        (**self).of(value)
    }

    fn of_mut<'v>(&self, value: &'v mut Value) -> Option<&'v mut Value> {
        (**self).of_mut(value)
    }

    fn made<'v>(&self, value: &'v mut Value) -> &'v mut Value {
        (**self).made(value)
    }
}

impl Value {
    fn type_name(&self) -> &'static str {
        match self {
            Value::Null => "null",
            Value::Bool(_) => "boolean",
            Value::Number(_) => "number",
            Value::String(_) => "string",
            Value::Array(_) => "array",
            Value::Object(_) => "object",
        }
    }

    /// Whether this and another are copies of one list or object that share all they hold: equal without a look at it.
    pub fn is_shared_with(&self, other: &Value) -> bool {
        match (self, other) {
            (Value::Array(a), Value::Array(b)) => a.is_shared_with(b),
            (Value::Object(a), Value::Object(b)) => a.is_shared_with(b),
            _ => false,
        }
    }

    /// Makes all that is equal in another value a shared copy of it, below a place that differs, too. Whether the two are
    /// equal.
    pub fn share(&mut self, other: &Value) -> bool {
        if self.is_shared_with(other) {
            return true;
        }
        let equal = match (&mut *self, other) {
            (Value::Object(new), Value::Object(old)) => {
                let mut equal = new.len() == old.len();
                for (name, value) in new.iter_mut() {
                    equal &= old.get(name).is_some_and(|old| value.share(old));
                }
                equal
            }
            (Value::Array(new), Value::Array(old)) => {
                let mut equal = new.len() == old.len();
                for (value, old) in new.iter_mut().zip(old) {
                    equal &= value.share(old);
                }
                equal
            }
            (new, old) => return new == old,
        };
        if equal {
            *self = other.clone();
        }
        equal
    }

    /// The list or object with those items or members in place of which `change` gives others; `None` where it gives none.
    pub fn with_changed(&self, change: impl Fn(&Value) -> Option<Value>) -> Option<Value> {
        match self {
            Value::Array(items) => {
                let mut changed: Option<Array> = None;
                for (i, item) in items.iter().enumerate() {
                    if let Some(item) = change(item) {
                        changed.get_or_insert_with(|| items.clone())[i] = item;
                    }
                }
                changed.map(Value::Array)
            }
            Value::Object(map) => {
                let mut changed: Option<Map> = None;
                for (name, item) in map {
                    if let Some(item) = change(item) {
                        changed.get_or_insert_with(|| map.clone()).insert(name.clone(), item);
                    }
                }
                changed.map(Value::Object)
            }
            _ => None,
        }
    }

    /// The member of a name or the item of a number, if this is an object or a list that has it.
    pub fn get(&self, key: impl Key) -> Option<&Value> {
        key.of(self)
    }

    /// The same for change.
    pub fn get_mut(&mut self, key: impl Key) -> Option<&mut Value> {
        key.of_mut(self)
    }

    /// What a JSON pointer (RFC 6901) points to.
    pub fn pointer(&self, pointer: &str) -> Option<&Value> {
        steps(pointer)?.try_fold(self, |v, step| match v {
            Value::Object(map) => map.get(&step),
            Value::Array(items) => items.get(index(&step)?),
            _ => None,
        })
    }

    /// The same for change.
    pub fn pointer_mut(&mut self, pointer: &str) -> Option<&mut Value> {
        steps(pointer)?.try_fold(self, |v, step| match v {
            Value::Object(map) => map.get_mut(&step),
            Value::Array(items) => items.get_mut(index(&step)?),
            _ => None,
        })
    }

    /// Takes the value out; `null` stays.
    pub fn take(&mut self) -> Value {
        std::mem::take(self)
    }

    /// Whether this is `null`.
    pub fn is_null(&self) -> bool {
        matches!(self, Value::Null)
    }

    /// Whether this is `true` or `false`.
    pub fn is_boolean(&self) -> bool {
        matches!(self, Value::Bool(_))
    }

    /// Whether this is a number.
    pub fn is_number(&self) -> bool {
        matches!(self, Value::Number(_))
    }

    /// Whether this is a whole number of 64 bits with a sign.
    pub fn is_i64(&self) -> bool {
        matches!(self, Value::Number(n) if n.is_i64())
    }

    /// Whether this is a whole number of 64 bits without a sign.
    pub fn is_u64(&self) -> bool {
        matches!(self, Value::Number(n) if n.is_u64())
    }

    /// Whether this is a number with a fraction or an exponent.
    pub fn is_f64(&self) -> bool {
        matches!(self, Value::Number(n) if n.is_f64())
    }

    /// Whether this is a text.
    pub fn is_string(&self) -> bool {
        matches!(self, Value::String(_))
    }

    /// Whether this is a list.
    pub fn is_array(&self) -> bool {
        matches!(self, Value::Array(_))
    }

    /// Whether this is an object.
    pub fn is_object(&self) -> bool {
        matches!(self, Value::Object(_))
    }

    /// The truth value, if it is one.
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Value::Bool(b) => Some(*b),
            _ => None,
        }
    }

    /// The number, if it is one.
    pub fn as_number(&self) -> Option<&Number> {
        match self {
            Value::Number(n) => Some(n),
            _ => None,
        }
    }

    /// The whole number, if it is one.
    pub fn as_i64(&self) -> Option<i64> {
        self.as_number()?.as_i64()
    }

    /// The whole number that is not negative, if it is one.
    pub fn as_u64(&self) -> Option<u64> {
        self.as_number()?.as_u64()
    }

    /// The number, if it is one.
    pub fn as_f64(&self) -> Option<f64> {
        self.as_number()?.as_f64()
    }

    /// The text, if it is one.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::String(s) => Some(s),
            _ => None,
        }
    }

    /// The items, if it is a list.
    pub fn as_array(&self) -> Option<&Vec<Value>> {
        match self {
            Value::Array(items) => Some(items),
            _ => None,
        }
    }

    /// The items for change, if it is a list.
    pub fn as_array_mut(&mut self) -> Option<&mut Vec<Value>> {
        match self {
            Value::Array(items) => Some(items),
            _ => None,
        }
    }

    /// The members, if it is an object.
    pub fn as_object(&self) -> Option<&Map> {
        match self {
            Value::Object(map) => Some(map),
            _ => None,
        }
    }

    /// The members for change, if it is an object.
    pub fn as_object_mut(&mut self) -> Option<&mut Map> {
        match self {
            Value::Object(map) => Some(map),
            _ => None,
        }
    }
}

/// The steps of a JSON pointer; none where it is no pointer.
fn steps(pointer: &str) -> Option<impl Iterator<Item = String>> {
    if !(pointer.is_empty() || pointer.starts_with('/')) {
        return None;
    }
    Some(pointer.split('/').skip(1).map(|step| step.replace("~1", "/").replace("~0", "~")))
}

/// The number of an item in a JSON pointer, which is written without a sign and without zeros before it.
pub fn index(step: &str) -> Option<usize> {
    let plain = step == "0" || !step.starts_with(['0', '+']);
    plain.then(|| step.parse().ok())?
}

impl<K: Key> ops::Index<K> for Value {
    type Output = Value;

    fn index(&self, key: K) -> &Value {
        key.of(self).unwrap_or(&NULL)
    }
}

impl<K: Key> ops::IndexMut<K> for Value {
    fn index_mut(&mut self, key: K) -> &mut Value {
        key.made(self)
    }
}

/// Compact JSON.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8(super::to_vec(self)).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Null => f.write_str("Null"),
            Value::Bool(b) => write!(f, "Bool({b})"),
            Value::Number(n) => write!(f, "Number({n})"),
            Value::String(s) => write!(f, "String({s:?})"),
            Value::Array(items) => write!(f, "Array {items:?}"),
            Value::Object(map) => write!(f, "Object {map:?}"),
        }
    }
}

impl FromStr for Value {
    type Err = serde_json::Error;

    fn from_str(text: &str) -> Result<Value, serde_json::Error> {
        serde_json::from_str(text)
    }
}
