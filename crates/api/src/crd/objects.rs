//! Objects inside of custom resources (`x-kubernetes-embedded-resource`): their `apiVersion`, `kind` and `metadata`.

use pilothouse_apimachinery::field::{self, ErrorList, Path};
use pilothouse_apimachinery::json::{Map, Value};
use pilothouse_apimachinery::names;

use super::schema::Schema;
use super::validate::show_value;

/// The faults of all embedded objects in a value.
pub fn validate(path: &Path, schema: &Schema, value: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    match value {
        Value::Object(map) => {
            if schema.embedded_resource {
                errors.extend(resource(path, map));
            }
            for (key, item) in map {
                if let Some(property) = schema.properties.get(key.as_str()) {
                    errors.extend(validate(&path.child(key), property, item));
                } else if let Some(additional) = schema.additional_schema() {
                    errors.extend(validate(&path.key(key), additional, item));
                }
            }
        }
        Value::Array(items) => {
            if let Some(item_schema) = &schema.items {
                for (i, item) in items.iter().enumerate() {
                    errors.extend(validate(&path.index(i), item_schema, item));
                }
            }
        }
        _ => {}
    }
    errors
}

fn resource(path: &Path, map: &Map) -> ErrorList {
    let mut errors = ErrorList::new();
    for name in ["apiVersion", "kind"] {
        let at = path.child(name);
        match map.get(name) {
            None => errors.push(field::required(&at, "must not be empty")),
            Some(Value::String(text)) if text.is_empty() => {
                errors.push(field::invalid(&at, "", "must not be empty"))
            }
            Some(Value::String(text)) if name == "apiVersion" => {
                if text.matches('/').count() > 1 {
                    let detail = format!("unexpected GroupVersion string: {text}");
                    errors.push(field::invalid(&at, text.as_str(), &detail));
                }
            }
            Some(Value::String(text)) => {
                let faults = names::dns1035_label(&text.to_lowercase());
                if !faults.is_empty() {
                    let detail =
                        format!("may have mixed case, but should otherwise match: {}", faults.join(","));
                    errors.push(field::invalid(&at, text.as_str(), &detail));
                }
            }
            Some(other) => errors.push(field::invalid_shown(&at, &show_value(other), "must be a string")),
        }
    }
    if let Some(metadata) = map.get("metadata") {
        let at = path.child("metadata");
        match metadata {
            Value::Object(_) => {
                let null = Value::Null;
                errors.extend(names::labels(metadata.get("labels").unwrap_or(&null), &at.child("labels")));
                let annotations = metadata.get("annotations").unwrap_or(&null);
                errors.extend(names::annotations(annotations, &at.child("annotations")));
            }
            other => {
                let kind = match other {
                    Value::String(_) => "string",
                    Value::Number(_) => "number",
                    Value::Bool(_) => "bool",
                    Value::Array(_) => "array",
                    _ => return errors,
                };
                let detail = format!("json: cannot unmarshal {kind} into Go value of type v1.ObjectMeta");
                errors.push(field::invalid_shown(&at, &show_value(other), &detail));
            }
        }
    }
    errors
}
