//! Values of JSON, which all objects are, and short accessors for code that looks into objects of many kinds.
//!
//! serde_json reads and writes them; its own `Value` is not used for objects, because copies of it are copies of
//! everything below, and because a tree of maps is walked, compared and freed slowly.

mod convert;
mod map;
mod read;
mod serde;
#[cfg(test)]
mod tests;
mod value;
mod write;

pub use map::{Array, Entry, Iter, IterMut, Map};
pub use read::from_slice;
pub use serde::{Name, from_value, to_value};
#[doc(hidden)]
pub use serde_json;
pub use value::{Key, Number, Text, Value, index};
pub use write::{to_vec, write, write_text};

/// A value written as JSON, with expressions in it, as `serde_json::json!` has it.
#[doc(hidden)]
#[macro_export]
macro_rules! __json {
    ($($json:tt)+) => {
        $crate::json::Value::from($crate::json::serde_json::json!($($json)+))
    };
}

pub use __json as json;

static NULL: Value = Value::Null;

/// The value at a path, `Null` where there is none.
pub fn get<'a>(v: &'a Value, path: &[&str]) -> &'a Value {
    path.iter().try_fold(v, |v, key| v.get(key)).unwrap_or(&NULL)
}

/// The value at a path for change, if it is there.
pub fn get_mut<'a>(v: &'a mut Value, path: &[&str]) -> Option<&'a mut Value> {
    path.iter().try_fold(v, |v, key| v.get_mut(key))
}

/// The string at a path, `""` where there is none.
pub fn str_at<'a>(v: &'a Value, path: &[&str]) -> &'a str {
    get(v, path).as_str().unwrap_or("")
}

/// The integer at a path.
pub fn i64_at(v: &Value, path: &[&str]) -> Option<i64> {
    get(v, path).as_i64()
}

/// The integer at a path, 0 where there is none.
pub fn get_i64(v: &Value, path: &[&str]) -> i64 {
    i64_at(v, path).unwrap_or(0)
}

/// The boolean at a path, false where there is none.
pub fn bool_at(v: &Value, path: &[&str]) -> bool {
    get(v, path).as_bool().unwrap_or(false)
}

/// The list at a path, empty where there is none.
pub fn list_at<'a>(v: &'a Value, path: &[&str]) -> &'a [Value] {
    get(v, path).as_array().map_or(&[], Vec::as_slice)
}

/// The list at a path for change, empty where there is none.
pub fn list_mut<'a>(v: &'a mut Value, path: &[&str]) -> &'a mut [Value] {
    get_mut(v, path).and_then(Value::as_array_mut).map_or(&mut [], Vec::as_mut_slice)
}

/// The object at a path, if there is one.
pub fn map_at<'a>(v: &'a Value, path: &[&str]) -> Option<&'a Map> {
    get(v, path).as_object()
}

/// The pairs of strings of the object at a path: labels, annotations, selectors.
pub fn strings_at<'a>(v: &'a Value, path: &[&str]) -> impl Iterator<Item = (&'a str, &'a str)> + use<'a> {
    map_at(v, path).into_iter().flatten().map(|(k, v)| (k.as_str(), v.as_str().unwrap_or("")))
}

/// Whether there is a value at a path, other than `null`.
pub fn has(v: &Value, path: &[&str]) -> bool {
    !get(v, path).is_null()
}

/// The object at a path for change; made, with all on the way to it, where something else or nothing is.
pub fn ensure_object<'a>(v: &'a mut Value, path: &[&str]) -> &'a mut Map {
    let mut v = v;
    for key in path {
        v = as_map(v).entry(*key).or_insert(Value::Null);
    }
    as_map(v)
}

fn as_map(v: &mut Value) -> &mut Map {
    if !v.is_object() {
        *v = Value::Object(Map::new());
    }
    match v {
        Value::Object(m) => m,
        _ => unreachable!("made an object above"),
    }
}

/// The list at a path for change; made where something else or nothing is.
pub fn ensure_list<'a>(v: &'a mut Value, path: &[&str]) -> &'a mut Vec<Value> {
    let mut v = v;
    for key in path {
        v = as_map(v).entry(*key).or_insert(Value::Null);
    }
    if !v.is_array() {
        *v = Value::Array(Array::new());
    }
    match v {
        Value::Array(a) => a,
        _ => unreachable!("made a list above"),
    }
}

/// Sets the value at a path; objects on the way are made.
pub fn set(v: &mut Value, path: &[&str], value: impl Into<Value>) {
    if let Some((last, parents)) = path.split_last() {
        ensure_object(v, parents).insert(*last, value);
    } else {
        *v = value.into();
    }
}

/// Sets the value at a path if none is there. Objects on the way are made only then.
pub fn set_default(v: &mut Value, path: &[&str], value: impl Into<Value>) {
    if !has(v, path) {
        set(v, path, value);
    }
}

/// Removes the value at a path and gives it back.
pub fn remove(v: &mut Value, path: &[&str]) -> Option<Value> {
    let (last, parents) = path.split_last()?;
    get_mut(v, parents)?.as_object_mut()?.remove(last)
}

/// Copies the value at a path from one object to another; removes it there where the source has none.
pub fn copy(to: &mut Value, from: &Value, path: &[&str]) {
    match get(from, path) {
        Value::Null => {
            remove(to, path);
        }
        value => set(to, path, value.clone()),
    }
}

/// Whether lists and objects lie deeper in each other than `max`. Uses no stack, so that it can guard code that does.
pub fn deeper_than(v: &Value, max: usize) -> bool {
    let mut open = vec![(v, 0)];
    while let Some((v, depth)) = open.pop() {
        if depth > max {
            return true;
        }
        match v {
            Value::Array(items) => open.extend(items.iter().map(|v| (v, depth + 1))),
            Value::Object(map) => open.extend(map.values().map(|v| (v, depth + 1))),
            _ => {}
        }
    }
    false
}
