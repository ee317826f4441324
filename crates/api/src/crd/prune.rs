//! Pruning of fields that a schema does not have, defaulting, and removal of nulls that may not be.

use pilothouse_apimachinery::json::{Map, Value};

use super::schema::{Additional, Schema};

/// Fields of an embedded resource that are known without being in the schema.
const RESOURCE_FIELDS: &[&str] = &["apiVersion", "kind", "metadata"];

/// Removes the fields that the schema does not have. `root` is true for the resource itself, whose `apiVersion`, `kind`
/// and `metadata` are known without being in the schema.
pub fn prune(value: &mut Value, schema: &Schema, root: bool) {
    if root && !schema.embedded_resource {
        let root = Schema { embedded_resource: true, ..schema.clone() };
        prune_known(value, &root);
    } else {
        prune_known(value, schema);
    }
}

fn prune_known(value: &mut Value, schema: &Schema) {
    if schema.preserve_unknown_fields {
        return keep_known(value, schema);
    }
    match value {
        Value::Object(map) => {
            let meta = |key: &str| schema.embedded_resource && RESOURCE_FIELDS.contains(&key);
            map.retain(|key, _| {
                meta(key)
                    || schema.properties.contains_key(key.as_str())
                    || !matches!(schema.additional, Additional::Unset)
            });
            for (key, item) in map.iter_mut().filter(|(key, _)| !meta(key)) {
                match (schema.properties.get(key.as_str()), &schema.additional) {
                    (Some(property), _) => prune_known(item, property),
                    (None, Additional::Schema(additional)) => prune_known(item, additional),
                    // `additionalProperties: true` says nothing of what is in the values: all of it goes.
                    (None, _) => prune_known(item, &Schema::default()),
                }
            }
        }
        Value::Array(items) => {
            let item_schema = schema.items.as_deref();
            for item in items {
                match item_schema {
                    Some(schema) => prune_known(item, schema),
                    None => prune_known(item, &Schema::default()),
                }
            }
        }
        _ => {}
    }
}

/// Below a place that keeps unknown fields, known ones are still pruned by their own schema.
fn keep_known(value: &mut Value, schema: &Schema) {
    match value {
        Value::Object(map) => {
            for (key, item) in map {
                if schema.embedded_resource && RESOURCE_FIELDS.contains(&key.as_str()) {
                    continue;
                }
                if let Some(property) = schema.properties.get(key.as_str()) {
                    prune_known(item, property);
                } else if let Additional::Schema(additional) = &schema.additional {
                    prune_known(item, additional);
                }
            }
        }
        Value::Array(items) => {
            if let Some(schema) = &schema.items {
                items.iter_mut().for_each(|item| keep_known(item, schema));
            }
        }
        _ => {}
    }
}

fn is_bad_null(value: &Value, schema: Option<&Schema>) -> bool {
    value.is_null() && schema.is_some_and(|s| !s.nullable)
}

/// Removes nulls of fields that are not nullable and have no default (those that have one get it).
pub fn drop_nulls(value: &mut Value, schema: &Schema) {
    match value {
        Value::Object(map) => {
            map.retain(|key, item| {
                let property = schema.properties.get(key.as_str()).or(schema.additional_schema());
                !(is_bad_null(item, property) && property.is_some_and(|p| p.default.is_none()))
            });
            for (key, item) in map.iter_mut() {
                if let Some(property) = schema.properties.get(key.as_str()).or(schema.additional_schema()) {
                    drop_nulls(item, property);
                }
            }
        }
        Value::Array(items) => {
            if let Some(schema) = &schema.items {
                items.iter_mut().for_each(|item| drop_nulls(item, schema));
            }
        }
        _ => {}
    }
}

/// Fills in defaults.
pub fn set_defaults(value: &mut Value, schema: &Schema) {
    match value {
        Value::Object(map) => {
            for (key, property) in &schema.properties {
                if let Some(default) = &property.default
                    && map.get(key).is_none_or(|v| is_bad_null(v, Some(property)))
                {
                    map.insert(key.clone(), default.clone());
                }
            }
            default_items(map, schema);
        }
        Value::Array(items) => {
            for item in items {
                if is_bad_null(item, schema.items.as_deref())
                    && let Some(default) = schema.items.as_ref().and_then(|s| s.default.as_ref())
                {
                    *item = default.clone();
                }
                if let Some(schema) = &schema.items {
                    set_defaults(item, schema);
                }
            }
        }
        _ => {}
    }
}

fn default_items(map: &mut Map, schema: &Schema) {
    for (key, item) in map {
        if let Some(property) = schema.properties.get(key.as_str()) {
            set_defaults(item, property);
        } else if let Some(additional) = schema.additional_schema() {
            if is_bad_null(item, Some(additional))
                && let Some(default) = &additional.default
            {
                *item = default.clone();
            }
            set_defaults(item, additional);
        }
    }
}
