//! YAML as JSON.

use std::fmt;

use pilothouse_apimachinery::json::{Number, Value};
use pilothouse_apimachinery::version::Release;
use saphyr_parser::Event;
use serde::Deserialize;
use serde::de::{Deserializer, EnumAccess, IgnoredAny, MapAccess, SeqAccess, VariantAccess, Visitor};

/// Reads YAML (and so JSON) as a JSON value. A key that stands twice is a fault.
pub fn yaml(text: &[u8]) -> Result<Value, String> {
    if !too_deep(text) {
        let _: serde_yaml_ng::Value = serde_yaml_ng::from_slice(text).map_err(yaml_fault)?;
    }
    lenient(text)
}

/// The same as v1.20 reads it: of a key that stands twice the last one counts.
fn lenient(text: &[u8]) -> Result<Value, String> {
    if too_deep(text) {
        return Err("error converting YAML to JSON: exceeded max depth".into());
    }
    serde_yaml_ng::from_slice(text).map(|Yaml(value)| value).map_err(yaml_fault)
}

/// YAML as a release reads it.
pub fn yaml_of(release: Release, text: &[u8]) -> Result<Value, String> {
    if release == Release::V1_20 { lenient(text) } else { yaml(text) }
}

/// How deep lists and maps in brackets may lie in each other. The parser itself goes no deeper, but says so only after a
/// time that grows with the square of the depth.
const MAX_DEPTH: usize = 128;

/// Whether lists and maps lie deeper in each other than is allowed. Stops where that is so.
fn too_deep(text: &[u8]) -> bool {
    if text.iter().filter(|b| matches!(b, b'[' | b'{')).count() <= MAX_DEPTH {
        return false;
    }
    let Ok(text) = std::str::from_utf8(text) else { return false };
    let mut depth = 0usize;
    for event in saphyr_parser::Parser::new_from_str(text) {
        match event {
            Ok((Event::SequenceStart(..) | Event::MappingStart(..), _)) => depth += 1,
            Ok((Event::SequenceEnd | Event::MappingEnd, _)) => depth = depth.saturating_sub(1),
            Ok(_) => {}
            // It looks ahead, and has a limit of its own. Other faults are the other's to tell.
            Err(e) => return e.info() == "recursion limit exceeded",
        }
        if depth > MAX_DEPTH {
            return true;
        }
    }
    false
}

fn yaml_fault(e: serde_yaml_ng::Error) -> String {
    format!("error converting YAML to JSON: {e}")
}

/// A JSON value, read from YAML: keys that are no texts become texts, tags are dropped.
struct Yaml(Value);

impl<'de> Deserialize<'de> for Yaml {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Yaml, D::Error> {
        deserializer.deserialize_any(YamlVisitor).map(Yaml)
    }
}

struct YamlVisitor;

impl<'de> Visitor<'de> for YamlVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_f64<E>(self, v: f64) -> Result<Value, E> {
        Ok(Number::from_f64(v).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut out = Vec::new();
        while let Some(Yaml(item)) = items.next_element()? {
            out.push(item);
        }
        Ok(out.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut out = Vec::new();
        while let Some((Yaml(key), Yaml(value))) = members.next_entry()? {
            let key = match key {
                Value::String(text) => text,
                Value::Bool(_) | Value::Number(_) => key.to_string().into(),
                _ => "null".into(),
            };
            out.push((key, value));
        }
        Ok(out.into_iter().collect())
    }

    fn visit_enum<A: EnumAccess<'de>>(self, tagged: A) -> Result<Value, A::Error> {
        let (_, value): (IgnoredAny, _) = tagged.variant()?;
        value.newtype_variant().map(|Yaml(value)| value)
    }
}

#[cfg(test)]
mod tests {
    use pilothouse_apimachinery::json::json;

    use super::*;

    #[test]
    fn depth_is_refused_before_it_costs() {
        for open in ["[", "{a: ", "{? ", "['x]]]', ", "[b', "] {
            let deep = format!("a: {}", open.repeat(200_000));
            assert!(yaml(deep.as_bytes()).unwrap_err().contains("exceeded max depth"), "{open}");
        }
        // What stands in texts lies nowhere.
        let flat = format!("a: |\n  {}\nb: \"{}\"\n", "[{".repeat(1000), "[".repeat(1000));
        assert_eq!(yaml(flat.as_bytes()).unwrap()["b"].as_str().unwrap().len(), 1000);
        let shallow = format!("a: [{}]", "[{b: c}], ".repeat(1000));
        assert_eq!(yaml(shallow.as_bytes()).unwrap()["a"].as_array().unwrap().len(), 1000);
    }

    #[test]
    fn what_yaml_has_more_than_json() {
        let text =
            b"a: &x [1, 2.5, null, ~, yes, 'no', -3]\nb: *x\n1: one\ntrue: t\nc: !tag v\n? d\n: |\n  text\n";
        let want = json!({"a": [1, 2.5, null, null, "yes", "no", -3], "b": [1, 2.5, null, null, "yes", "no", -3],
            "1": "one", "true": "t", "c": "v", "d": "text\n"});
        assert_eq!(yaml(text).unwrap(), want);
    }

    #[test]
    fn keys_that_stand_twice() {
        let text = b"a: 1\nb:\n  c: 1\n  c: 2\n";
        assert!(
            yaml_of(pilothouse_apimachinery::version::NEWEST, text).unwrap_err().contains("duplicate entry")
        );
        assert_eq!(yaml_of(Release::V1_20, text).unwrap(), json!({"a": 1, "b": {"c": 2}}));
    }
}
