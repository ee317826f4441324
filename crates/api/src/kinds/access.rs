//! Short reads of one field of an object, with Go's zero value where it is absent.

use pilothouse_apimachinery::json::Value;

/// Whether two values mean the same to Kubernetes: absent, `null`, and empty lists and maps are alike.
pub(crate) use crate::meta::semantically_equal as same;

static NULL: Value = Value::Null;

/// A field, `Null` where it is absent.
pub(crate) fn part<'a>(v: &'a Value, key: &str) -> &'a Value {
    v.get(key).unwrap_or(&NULL)
}

/// A string field, `""` where it is absent.
pub(crate) fn text<'a>(v: &'a Value, key: &str) -> &'a str {
    part(v, key).as_str().unwrap_or("")
}

/// A number field, 0 where it is absent.
pub(crate) fn number(v: &Value, key: &str) -> i64 {
    part(v, key).as_i64().unwrap_or(0)
}

/// A number field that may be absent.
pub(crate) fn optional(v: &Value, key: &str) -> Option<i64> {
    part(v, key).as_i64()
}

/// A truth value, false where it is absent.
pub(crate) fn flag(v: &Value, key: &str) -> bool {
    part(v, key).as_bool().unwrap_or(false)
}

/// A list field, empty where it is absent.
pub(crate) fn items<'a>(v: &'a Value, key: &str) -> &'a [Value] {
    part(v, key).as_array().map_or(&[], Vec::as_slice)
}

/// A list field for change, empty where it is absent.
pub(crate) fn items_mut<'a>(v: &'a mut Value, key: &str) -> &'a mut [Value] {
    v.get_mut(key).and_then(Value::as_array_mut).map_or(&mut [], Vec::as_mut_slice)
}

/// Whether a field is there and not `null`.
pub(crate) fn present(v: &Value, key: &str) -> bool {
    !part(v, key).is_null()
}

/// Whether a map or list field has no entries or is absent.
pub(crate) fn is_empty(v: &Value, key: &str) -> bool {
    match part(v, key) {
        Value::Object(m) => m.is_empty(),
        Value::Array(a) => a.is_empty(),
        Value::String(s) => s.is_empty(),
        Value::Null => true,
        _ => false,
    }
}

/// The entries of a map field, sorted by key.
pub(crate) fn entries<'a>(v: &'a Value, key: &str) -> Vec<(&'a str, &'a Value)> {
    let mut all: Vec<_> =
        part(v, key).as_object().into_iter().flatten().map(|(k, v)| (k.as_str(), v)).collect();
    all.sort_by_key(|(k, _)| *k);
    all
}

/// Sets a string field where it is absent or empty.
pub(crate) fn default_text(v: &mut Value, key: &str, value: &str) {
    if text(v, key).is_empty() {
        put(v, key, value);
    }
}

/// Sets a number field where it is absent or 0.
pub(crate) fn default_nonzero(v: &mut Value, key: &str, value: i64) {
    if number(v, key) == 0 {
        put(v, key, value);
    }
}

/// Sets a field where it is absent.
pub(crate) fn default_to(v: &mut Value, key: &str, value: impl Into<Value>) {
    if !present(v, key) {
        put(v, key, value);
    }
}

/// Sets a field of an object; nothing where it is no object.
pub(crate) fn put(v: &mut Value, key: &str, value: impl Into<Value>) {
    if let Some(map) = v.as_object_mut() {
        map.insert(key.to_string(), value.into());
    }
}

/// Removes a field.
pub(crate) fn take(v: &mut Value, key: &str) -> Option<Value> {
    v.as_object_mut()?.remove(key)
}
