//! The keys that a component's configuration file may have, from one table a kind of file. A key that is not known is said
//! and left, as v1.20 does with these files (its "lenient decoding"); so is one whose value would change nothing.
//!
//! The table is a TSV file beside the component's code: the key with dots between its parts, and the reason where it has no
//! effect.

use serde_json::{Map, Value};

/// The keys of a table with their reasons; an empty reason where the key has an effect.
pub fn table(tsv: &'static str) -> Vec<(&'static str, &'static str)> {
    let lines = tsv.lines().filter(|l| !l.is_empty() && !l.starts_with('#'));
    lines.map(|l| l.split_once('\t').unwrap_or((l, ""))).collect()
}

/// A line for each key of `file` without meaning. Empty values, and those that `defaults` has too, are as good as none.
pub fn remarks(
    table: &[(&'static str, &'static str)],
    file: &Map<String, Value>,
    defaults: &Value,
) -> Vec<String> {
    let mut remarks = Vec::new();
    for (key, value) in file {
        walk(table, key, value, &defaults[key], &mut remarks);
    }
    remarks.sort();
    remarks
}

fn walk(table: &[(&str, &str)], path: &str, value: &Value, default: &Value, remarks: &mut Vec<String>) {
    if let Some((_, why)) = table.iter().find(|(key, _)| *key == path) {
        if !why.is_empty() && !is_empty(value) && value != default {
            remarks.push(format!("{path:?} is accepted and has no effect: {why}"));
        }
        return;
    }
    let parent =
        table.iter().any(|(key, _)| key.strip_prefix(path).is_some_and(|rest| rest.starts_with('.')));
    match value {
        Value::Object(inner) if parent => {
            for (key, value) in inner {
                walk(table, &format!("{path}.{key}"), value, &default[key], remarks);
            }
        }
        value if parent && is_empty(value) => {}
        _ => remarks.push(format!("unknown field {path:?}")),
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(s) => s.is_empty(),
        Value::Object(m) => m.is_empty(),
        Value::Array(s) => s.is_empty(),
        Value::Number(_) | Value::Bool(true) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const TABLE: &str = "# key\treason\nmode\ncolour\tall is grey\ninner.deep.size\ninner.shape\tround\n";

    fn of(file: Value) -> Vec<String> {
        let defaults = json!({"inner": {"shape": "square"}});
        remarks(&table(TABLE), file.as_object().unwrap(), &defaults)
    }

    #[test]
    fn keys_without_meaning_are_named() {
        assert!(of(json!({"mode": "a", "colour": "", "inner": {"deep": {"size": 1}}})).is_empty());
        assert!(of(json!({"inner": null, "colour": null})).is_empty());
        assert!(of(json!({"inner": {"shape": "square"}})).is_empty());
        assert_eq!(
            of(json!({"colour": "red", "inner": {"shape": "oval"}})),
            [
                "\"colour\" is accepted and has no effect: all is grey",
                "\"inner.shape\" is accepted and has no effect: round"
            ]
        );
        assert_eq!(
            of(json!({"moed": 1, "inner": {"deep": {"sise": 1}}})),
            ["unknown field \"inner.deep.sise\"", "unknown field \"moed\""]
        );
        assert_eq!(of(json!({"inner": 7})), ["unknown field \"inner\""]);
    }
}
