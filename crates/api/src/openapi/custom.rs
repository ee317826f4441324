//! The definitions of custom resources, from the schemas of their CustomResourceDefinitions.

use pilothouse_apimachinery::json::{Map, Value, json};

use super::definitions::{Flavor, meta_name};
use crate::crd::CustomVersion;

const CONVENTIONS: &str =
    "https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md";

/// What clients are told of the fields that every object has.
fn description(field: &str) -> String {
    let (text, anchor) = match field {
        "apiVersion" => (
            "APIVersion defines the versioned schema of this representation of an object. Servers should convert recognized schemas to the latest internal value, and may reject unrecognized values.",
            "resources",
        ),
        "kind" => (
            "Kind is a string value representing the REST resource this object represents. Servers may infer this from the endpoint the client submits requests to. Cannot be updated. In CamelCase.",
            "types-kinds",
        ),
        "ListMeta" => ("Standard list metadata.", "types-kinds"),
        _ => ("Standard object's metadata.", "metadata"),
    };
    format!("{text} More info: {CONVENTIONS}#{anchor}")
}

/// The definition name of a custom resource: its group reversed, such as `com.example.stable.v1.CronTab`.
pub(super) fn name(group: &str, version: &str, kind: &str) -> String {
    let reversed: Vec<&str> = group.rsplit('.').collect();
    format!("{}.{version}.{kind}", reversed.join("."))
}

/// The definitions of a custom resource and of its list.
pub(super) fn definitions(custom: &CustomVersion, flavor: Flavor) -> [(String, Value); 2] {
    let gvk = |kind: &str| json!([{"group": custom.group, "kind": kind, "version": custom.version}]);
    let own = name(&custom.group, &custom.version, &custom.kind);
    let known = custom.open_api_schema.is_object() && !custom.preserve_unknown_fields;
    let mut schema = match (known, flavor) {
        (false, _) => json!({"type": "object"}),
        (true, Flavor::V2) => to_v2(&custom.open_api_schema),
        (true, Flavor::V3) => (*custom.open_api_schema).clone(),
    };
    if let Value::Object(map) = &mut schema {
        if known && (map.contains_key("properties") || flavor == Flavor::V3) {
            let properties = map.entry("properties").or_insert_with(|| json!({}));
            add_resource_fields(properties, flavor, "ObjectMeta");
        }
        map.insert("x-kubernetes-group-version-kind", gvk(&custom.kind));
    }
    let items = format!("List of {}. More info: {CONVENTIONS}", custom.plural);
    let mut list_properties =
        json!({"items": {"type": "array", "items": flavor.reference(&own), "description": items}});
    add_resource_fields(&mut list_properties, flavor, "ListMeta");
    let list = json!({
        "description": format!("{} is a list of {}", custom.list_kind, custom.kind),
        "type": "object",
        "required": ["items"],
        "properties": list_properties,
        "x-kubernetes-group-version-kind": gvk(&custom.list_kind),
    });
    let list_name = format!("{own}List");
    [(own, schema), (list_name, list)]
}

fn add_resource_fields(properties: &mut Value, flavor: Flavor, metadata: &str) {
    if let Value::Object(map) = properties {
        for name in ["apiVersion", "kind"] {
            map.insert(name, json!({"type": "string", "description": description(name)}));
        }
        let mut reference = flavor.reference(&meta_name(metadata));
        reference["description"] = description(metadata).into();
        map.insert("metadata", reference);
    }
}

/// What Swagger 2.0 can say of a schema. Where clients would take the rest amiss (fields they do not know, nulls,
/// integers or strings), nothing is said at all.
fn to_v2(schema: &Value) -> Value {
    let Value::Object(map) = schema else { return json!({}) };
    let flag = |name: &str| map.get(name) == Some(&Value::Bool(true));
    let vague = flag("nullable")
        || flag("x-kubernetes-preserve-unknown-fields")
        || flag("x-kubernetes-int-or-string");
    let mut out = Map::new();
    for (name, value) in map {
        match name.as_str() {
            "allOf" | "anyOf" | "oneOf" | "not" | "nullable" | "default" | "example" | "$ref" | "$schema"
            | "id" => {}
            "type" | "properties" | "items" | "additionalProperties" | "required" if vague => {}
            "properties" => {
                let properties = value.as_object().into_iter().flatten();
                let converted: Map = properties.map(|(k, v)| (k.clone(), to_v2(v))).collect();
                out.insert(name.clone(), Value::Object(converted));
            }
            "items" | "additionalProperties" if value.is_object() => {
                out.insert(name.clone(), to_v2(value));
            }
            _ => {
                out.insert(name.clone(), value.clone());
            }
        }
    }
    Value::Object(out)
}
