//! JSON values as Go prints them in messages, where they are held as `interface{}`.

use pilothouse_apimachinery::json::{Map, Value};

/// Go's `%v`: `map[a:1 b:[x y]]`, `<nil>`.
pub fn plain(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".into(),
        Value::String(s) => s.to_string(),
        Value::Array(items) => format!("[{}]", items.iter().map(plain).collect::<Vec<_>>().join(" ")),
        Value::Object(map) => plain_map(map),
        other => other.to_string(),
    }
}

/// Go's `%v` of a map, keys in order.
pub fn plain_map(map: &Map) -> String {
    let mut entries: Vec<_> = map.iter().collect();
    entries.sort_by_key(|(k, _)| k.as_str());
    format!("map[{}]", entries.iter().map(|(k, v)| format!("{k}:{}", plain(v))).collect::<Vec<_>>().join(" "))
}

/// Go's `%#v`: `map[string]interface {}{"a":1}`, `[]interface {}{"x"}`, `interface {}(nil)`.
pub fn sharp(value: &Value) -> String {
    match value {
        Value::Null => "interface {}(nil)".into(),
        Value::String(s) => format!("{s:?}"),
        Value::Array(items) => {
            format!("[]interface {{}}{{{}}}", items.iter().map(sharp).collect::<Vec<_>>().join(", "))
        }
        Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_by_key(|(k, _)| k.as_str());
            let body: Vec<String> = entries.iter().map(|(k, v)| format!("{k:?}:{}", sharp(v))).collect();
            format!("map[string]interface {{}}{{{}}}", body.join(", "))
        }
        other => other.to_string(),
    }
}

/// Go's name of the type: `string`, `int64`, `map[string]interface {}`.
pub fn go_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "<nil>",
        Value::Bool(_) => "bool",
        Value::Number(n) if n.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}
