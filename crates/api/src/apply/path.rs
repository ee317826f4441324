//! Elements of field paths: a field's name, a map-list item's keys, a set's value or a list's index. Ordered and
//! written as in structured-merge-diff.

use std::cmp::Ordering;
use std::fmt;

use compact_str::{CompactString, format_compact};
use pilothouse_apimachinery::json::{self, Map, Text, Value};

use crate::decode::double;

/// One step of a path.
#[derive(Debug, Clone)]
pub enum PathElement {
    /// A field of a struct or a key of a map, as it is written: `f:name`. Most are short, or those of built-in types,
    /// and copied without allocating.
    Field(Text),
    /// An item of a list of type map, by its keys, sorted by name: `k:{"name":"a"}`.
    Key(Vec<(CompactString, Value)>),
    /// An item of a list of type set: `v:"a"`.
    Value(Value),
    /// An item of a list by its place: `i:0`.
    Index(usize),
}

/// Writes a value of an element: whole numbers without a fraction.
fn write(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Number(n) if n.is_f64() => {
            json::write(&n.as_f64().and_then(double).unwrap_or_else(|| value.clone()), out);
        }
        value => json::write(value, out),
    }
}

/// What the written form of a field begins with.
pub(super) const FIELD: &str = "f:";

/// The name in the written form of an element, if that is a field.
pub(super) fn field_name(element: &str) -> Option<&str> {
    element.strip_prefix(FIELD)
}

/// A path from the object's root.
pub type Path = Vec<PathElement>;

impl PathElement {
    /// A field or a key of a map, by its name.
    pub fn field(name: &str) -> PathElement {
        let mut text = Text::with_capacity(FIELD.len() + name.len());
        text.push_str(FIELD);
        text.push_str(name);
        PathElement::Field(text)
    }

    /// Reads `f:…`, `k:…`, `v:…` or `i:…`.
    pub fn parse(text: &Text) -> Result<PathElement, String> {
        if text.starts_with(FIELD) {
            return Ok(PathElement::Field(text.clone()));
        }
        if text.len() < 2 {
            return Err("key must be 2 characters long:".into());
        }
        let Some((kind, rest)) = text.split_once(':').filter(|(kind, _)| kind.len() == 1) else {
            return Err(format!("missing colon: {text}"));
        };
        match kind {
            "v" => serde_json::from_str(rest).map(PathElement::Value).map_err(|e| e.to_string()),
            "k" => {
                let keys: Map = serde_json::from_str(rest).map_err(|e| e.to_string())?;
                Ok(PathElement::key(keys.into_iter().collect()))
            }
            "i" => rest.parse().map(PathElement::Index).map_err(|_| format!("invalid index {rest:?}")),
            _ => Err("unknown path element type".into()),
        }
    }

    /// The keys of an item, put in order.
    pub fn key(mut keys: Vec<(CompactString, Value)>) -> PathElement {
        keys.sort_by(|a, b| a.0.cmp(&b.0));
        PathElement::Key(keys)
    }

    /// The form in which `FieldsV1` carries it: one for elements that are equal.
    pub fn serialize(&self) -> Text {
        let mut out = Vec::new();
        match self {
            PathElement::Field(text) => return text.clone(),
            PathElement::Index(i) => return format_compact!("i:{i}"),
            PathElement::Value(value) => {
                out.extend_from_slice(b"v:");
                write(value, &mut out);
            }
            PathElement::Key(keys) => {
                out.extend_from_slice(b"k:{");
                for (i, (name, value)) in keys.iter().enumerate() {
                    if i > 0 {
                        out.push(b',');
                    }
                    json::write_text(name, &mut out);
                    out.push(b':');
                    write(value, &mut out);
                }
                out.push(b'}');
            }
        }
        Text::from_utf8(out).unwrap_or_default()
    }

    fn rank(&self) -> u8 {
        match self {
            PathElement::Field(_) => 0,
            PathElement::Key(_) => 1,
            PathElement::Value(_) => 2,
            PathElement::Index(_) => 3,
        }
    }
}

impl fmt::Display for PathElement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PathElement::Field(text) => write!(f, ".{}", field_name(text).unwrap_or(text)),
            PathElement::Key(keys) => {
                let parts: Vec<String> = keys.iter().map(|(name, value)| format!("{name}={value}")).collect();
                write!(f, "[{}]", parts.join(","))
            }
            PathElement::Value(value) => write!(f, "[={value}]"),
            PathElement::Index(i) => write!(f, "[{i}]"),
        }
    }
}

/// A path as messages show it: `.spec.containers[name="a"].image`.
pub fn show(path: &[PathElement]) -> String {
    path.iter().map(ToString::to_string).collect()
}

impl PartialEq for PathElement {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for PathElement {}

impl PartialOrd for PathElement {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for PathElement {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self, other) {
            (PathElement::Field(a), PathElement::Field(b)) => a.cmp(b),
            (PathElement::Key(a), PathElement::Key(b)) => compare_keys(a, b),
            (PathElement::Value(a), PathElement::Value(b)) => compare(a, b),
            (PathElement::Index(a), PathElement::Index(b)) => a.cmp(b),
            _ => self.rank().cmp(&other.rank()),
        }
    }
}

fn compare_keys(a: &[(CompactString, Value)], b: &[(CompactString, Value)]) -> Ordering {
    for ((name_a, value_a), (name_b, value_b)) in a.iter().zip(b) {
        let order = name_a.cmp(name_b).then_with(|| compare(value_a, value_b));
        if order != Ordering::Equal {
            return order;
        }
    }
    a.len().cmp(&b.len())
}

fn kind_rank(value: &Value) -> u8 {
    match value {
        Value::Number(_) => 0,
        Value::String(_) => 1,
        Value::Bool(_) => 2,
        Value::Array(_) => 3,
        Value::Object(_) => 4,
        Value::Null => 5,
    }
}

/// A total order of values: numbers (by worth, so that 1 is 1.0), strings, booleans, lists, maps, null.
pub fn compare(a: &Value, b: &Value) -> Ordering {
    match (a, b) {
        (Value::Number(x), Value::Number(y)) => match (x.as_i64(), y.as_i64()) {
            (Some(x), Some(y)) => x.cmp(&y),
            _ => x.as_f64().unwrap_or_default().total_cmp(&y.as_f64().unwrap_or_default()),
        },
        (Value::String(x), Value::String(y)) => x.cmp(y),
        (Value::Bool(x), Value::Bool(y)) => x.cmp(y),
        (Value::Array(x), Value::Array(y)) => x
            .iter()
            .zip(y)
            .map(|(x, y)| compare(x, y))
            .find(|o| *o != Ordering::Equal)
            .unwrap_or_else(|| x.len().cmp(&y.len())),
        (Value::Object(x), Value::Object(y)) => {
            // Both are in the order of their keys.
            let entries = |(ka, va): (&Text, &Value), (kb, vb): (&Text, &Value)| {
                ka.cmp(kb).then_with(|| compare(va, vb))
            };
            x.iter()
                .zip(y)
                .map(|(a, b)| entries(a, b))
                .find(|o| *o != Ordering::Equal)
                .unwrap_or_else(|| x.len().cmp(&y.len()))
        }
        _ => kind_rank(a).cmp(&kind_rank(b)),
    }
}

/// Equality as apply sees it: `1` and `1.0` are the same, maps have no order.
pub fn equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        _ if a.is_shared_with(b) => true,
        (Value::Object(x), Value::Object(y)) => {
            x.len() == y.len() && x.iter().all(|(k, v)| y.get(k).is_some_and(|w| equal(v, w)))
        }
        (Value::Array(x), Value::Array(y)) => x.len() == y.len() && x.iter().zip(y).all(|(v, w)| equal(v, w)),
        _ => compare(a, b) == Ordering::Equal,
    }
}
