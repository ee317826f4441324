//! The rules of `x-kubernetes-list-type`: items of sets and keys of maps stand once.

use pilothouse_apimachinery::field::{self, ErrorList, Path};
use pilothouse_apimachinery::json::{Map, Value};

use super::schema::Schema;
use super::validate::show_value;
use crate::apply::path::equal;

/// The faults of all lists in a value.
pub fn validate(path: &Path, schema: &Schema, value: &Value) -> ErrorList {
    match value {
        Value::Object(map) => {
            let mut errors = ErrorList::new();
            for (key, item) in map {
                if let Some(additional) = schema.additional_schema() {
                    errors.extend(validate(&path.key(key), additional, item));
                }
                if let Some(property) = schema.properties.get(key.as_str()) {
                    errors.extend(validate(&path.child(key), property, item));
                }
            }
            errors
        }
        Value::Array(items) => {
            let mut errors = match schema.list_type.as_str() {
                "set" => duplicates(path, items),
                "map" => map_items(path, schema, items),
                _ => ErrorList::new(),
            };
            if let Some(item_schema) = &schema.items {
                for (i, item) in items.iter().enumerate() {
                    errors.extend(validate(&path.index(i), item_schema, item));
                }
            }
            errors
        }
        _ => ErrorList::new(),
    }
}

/// A fault for the second of equal items (only for that one).
fn duplicates(path: &Path, items: &[Value]) -> ErrorList {
    let mut errors = ErrorList::new();
    for (i, item) in items.iter().enumerate() {
        if items[..i].iter().filter(|other| equal(other, item)).count() == 1 {
            errors.push(field::duplicate_shown(&path.index(i), &show_value(item)));
        }
    }
    errors
}

fn map_items(path: &Path, schema: &Schema, items: &[Value]) -> ErrorList {
    if let Some(i) = items.iter().position(|item| !item.is_object() && !item.is_null()) {
        let text = "must be an object for an array of list-type map";
        return vec![field::invalid_shown(&path.index(i), &show_value(&items[i]), text)];
    }
    let keys: Vec<Value> = items
        .iter()
        .map(|item| {
            let keys = schema.list_map_keys.iter().filter_map(|k| Some((k.clone(), item.get(k)?.clone())));
            Value::Object(keys.collect::<Map>())
        })
        .collect();
    duplicates(path, &keys)
}
