//! The rules that the schemas of CustomResourceDefinitions must keep: OpenAPI v3 as Kubernetes allows it, and
//! structurality. Works on schemas as written (`JSONSchemaProps`).

use std::collections::BTreeSet;

use pilothouse_apimachinery::field::{self, ErrorList, Path};
use pilothouse_apimachinery::go;
use pilothouse_apimachinery::json::{Text, Value, bool_at, get, list_at, str_at};

use super::schema::Schema;
pub use super::shape::violations;
use super::{objects, prune, rules, validate};

/// What is asked of a schema: less where an old definition is updated that broke a rule already.
#[derive(Debug, Clone)]
pub struct Rules {
    /// Why defaults are not allowed; `None` where they are.
    pub no_defaults: Option<String>,
    /// Only OpenAPI's types.
    pub valid_types: bool,
    /// The schema must be structural.
    pub structural: bool,
    /// Defaults must not have unknown fields.
    pub pruned_defaults: bool,
    /// Items of sets must be atomic.
    pub atomic_sets: bool,
    /// Keys of lists of type map must be required or have a default.
    pub required_map_keys: bool,
    /// Rules in CEL are known.
    pub validations: bool,
}

const TYPES: &[&str] = &["array", "boolean", "integer", "number", "object", "string"];
const META: &[&str] = &["apiVersion", "kind", "metadata"];

/// The fields of a schema that may stand beside the root where there is a status subresource, with their names in Go.
const ROOT_FIELDS: &[&str] = &[
    "description",
    "type",
    "format",
    "title",
    "maximum",
    "exclusiveMaximum",
    "minimum",
    "exclusiveMinimum",
    "maxLength",
    "minLength",
    "pattern",
    "maxItems",
    "minItems",
    "uniqueItems",
    "multipleOf",
    "required",
    "items",
    "properties",
    "externalDocs",
    "example",
    "x-kubernetes-preserve-unknown-fields",
    "x-kubernetes-validations",
];
const ROOT_FIELDS_IN_GO: &str = "[Description Type Format Title Maximum ExclusiveMaximum Minimum ExclusiveMinimum MaxLength MinLength Pattern MaxItems MinItems UniqueItems MultipleOf Required Items Properties ExternalDocs Example XPreserveUnknownFields]";

pub(super) fn map_at<'v>(value: &'v Value, name: &str) -> impl Iterator<Item = (&'v Text, &'v Value)> {
    value.get(name).and_then(Value::as_object).into_iter().flatten()
}

/// Whether a field is set: Go's zero values are not.
pub(super) fn is_set(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(b) => *b,
        Value::String(s) => !s.is_empty(),
        Value::Array(a) => !a.is_empty(),
        Value::Object(m) => !m.is_empty(),
        Value::Number(_) => true,
    }
}

/// Whether any node of a schema is as asked.
pub fn any(schema: &Value, test: &dyn Fn(&Value) -> bool) -> bool {
    if !schema.is_object() {
        return false;
    }
    let many = ["properties", "patternProperties", "definitions", "dependencies"];
    let lists = ["allOf", "anyOf", "oneOf"];
    let single = ["not", "additionalProperties", "additionalItems"];
    test(schema)
        || many.iter().any(|name| map_at(schema, name).any(|(_, s)| any(s, test)))
        || lists.iter().any(|name| list_at(schema, &[name]).iter().any(|s| any(s, test)))
        || single.iter().any(|name| any(get(schema, &[name]), test))
        || any(get(schema, &["items"]), test)
        || list_at(schema, &["items"]).iter().any(|s| any(s, test))
}

/// Whether a schema has defaults.
pub fn has_defaults(schema: &Value) -> bool {
    any(schema, &|s| !get(s, &["default"]).is_null())
}

/// Whether a schema has Kubernetes' extensions, which only structural schemas may have.
pub fn has_extensions(schema: &Value) -> bool {
    any(schema, &|s| {
        [
            "x-kubernetes-embedded-resource",
            "x-kubernetes-int-or-string",
            "x-kubernetes-list-map-keys",
            "x-kubernetes-list-type",
        ]
        .iter()
        .any(|name| is_set(get(s, &[name])))
            || s.get("x-kubernetes-preserve-unknown-fields").is_some_and(|v| !v.is_null())
    })
}

/// Whether a schema names types that OpenAPI does not have.
pub fn has_invalid_types(schema: &Value) -> bool {
    any(schema, &|s| !is_type(str_at(s, &["type"])))
}

/// Whether a schema may name a type, or none. `null` is one to OpenAPI; that it is not allowed is said elsewhere.
fn is_type(name: &str) -> bool {
    ["", "null"].contains(&name) || TYPES.contains(&name)
}

/// Whether a schema has sets of items that are not atomic.
pub fn has_open_sets(schema: &Value) -> bool {
    any(schema, &|s| {
        let items = get(s, &["items"]);
        str_at(s, &["x-kubernetes-list-type"]) == "set"
            && match str_at(items, &["type"]) {
                "array" => !["", "atomic"].contains(&str_at(items, &["x-kubernetes-list-type"])),
                "object" => str_at(items, &["x-kubernetes-map-type"]) != "atomic",
                _ => false,
            }
    })
}

/// Whether a schema has lists of type map with keys that may be absent.
pub fn has_loose_map_keys(schema: &Value) -> bool {
    any(schema, &|s| !map_keys(s, &Path::default()).is_empty())
}

/// Whether a schema has defaults with fields that the schema does not have.
pub fn has_unpruned_defaults(schema: &Value) -> bool {
    !defaults(schema, &Path::default(), true, true)
        .iter()
        .all(|e| !e.body.ends_with("must not have unknown fields"))
}

/// The faults of a schema (`openAPIV3Schema`) at `path` (that of `schema` or `validation`).
pub fn validate_schema(schema: &Value, status: bool, demands: &Rules, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    if !schema.is_object() {
        return errors;
    }
    let at = path.child("openAPIV3Schema");
    if status {
        for (name, value) in schema.as_object().into_iter().flatten().filter(|(_, v)| is_set(v)) {
            if name == "type" {
                if value != "object" {
                    let text = "only \"object\" is allowed as the type at the root of the schema if the status subresource is enabled";
                    errors.push(field::invalid(&path.child("openAPIV3Schema.type"), value.clone(), text));
                    break;
                }
            } else if !ROOT_FIELDS.contains(&name.as_str()) {
                let text = format!(
                    "only {ROOT_FIELDS_IN_GO} fields are allowed at the root of the schema if the status subresource is enabled"
                );
                errors.push(field::invalid_shown(&at, &validate::show_value(schema), &text));
                break;
            }
        }
    }
    if bool_at(schema, &["nullable"]) {
        errors.push(field::forbidden(
            &path.child("openAPIV3Schema.nullable"),
            "nullable cannot be true at the root",
        ));
    }
    let place = Place { root: true, inside_meta: false, no_defaults: demands.no_defaults.clone() };
    openapi(schema, &at, &place, demands, &mut errors);
    if demands.structural {
        let violations = violations(schema, &at);
        if violations.is_empty() {
            errors.extend(defaults(schema, &at, true, demands.pruned_defaults));
        } else {
            errors.extend(violations);
        }
    }
    if demands.validations {
        let sound = errors.is_empty();
        errors.extend(rules::check(schema, &at, sound));
    }
    errors
}

/// Where in the schema we are.
#[derive(Clone)]
struct Place {
    root: bool,
    inside_meta: bool,
    no_defaults: Option<String>,
}

fn openapi(s: &Value, path: &Path, place: &Place, rules: &Rules, errors: &mut ErrorList) {
    if !s.is_object() {
        return;
    }
    allowed(s, path, place, rules, errors);
    if bool_at(s, &["uniqueItems"]) {
        let text = "uniqueItems cannot be set to true since the runtime complexity becomes quadratic";
        errors.push(field::forbidden(&path.child("uniqueItems"), text));
    }
    let inside = Place { root: false, ..place.clone() };
    let additional = get(s, &["additionalProperties"]);
    if !additional.is_null() {
        if is_set(get(s, &["properties"])) && additional != &Value::Bool(true) {
            let text = "additionalProperties and properties are mutual exclusive";
            errors.push(field::forbidden(&path.child("additionalProperties"), text));
        }
        let mut below = inside.clone();
        if place.inside_meta {
            below.no_defaults = Some("inside additionalProperties applying to object metadata".into());
        }
        openapi(additional, &path.child("additionalProperties"), &below, rules, errors);
    }
    for (name, property) in map_at(s, "properties") {
        let mut below = inside.clone();
        if (place.root || bool_at(s, &["x-kubernetes-embedded-resource"])) && META.contains(&name.as_str()) {
            below.inside_meta = true;
            if place.root {
                below.no_defaults = Some(format!("in top-level {name}"));
            }
        }
        openapi(property, &path.child("properties").key(name), &below, rules, errors);
    }
    openapi(get(s, &["not"]), &path.child("not"), &inside, rules, errors);
    for name in ["allOf", "oneOf", "anyOf"] {
        for (i, part) in list_at(s, &[name]).iter().enumerate() {
            openapi(part, &path.child(name).index(i), &inside, rules, errors);
        }
    }
    for (name, part) in map_at(s, "definitions") {
        openapi(part, &path.child("definitions").key(name), &inside, rules, errors);
    }
    openapi(get(s, &["items"]), &path.child("items"), &inside, rules, errors);
    for (i, part) in list_at(s, &["items"]).iter().enumerate() {
        openapi(part, &path.child("items").index(i), &inside, rules, errors);
    }
    for (name, part) in map_at(s, "dependencies") {
        openapi(part, &path.child("dependencies").key(name), &inside, rules, errors);
    }
    extensions(s, path, rules, errors);
}

/// What OpenAPI v3 has and Kubernetes does not allow.
fn allowed(s: &Value, path: &Path, place: &Place, rules: &Rules, errors: &mut ErrorList) {
    let type_ = str_at(s, &["type"]);
    if rules.valid_types && !is_type(type_) {
        errors.push(field::not_supported(&path.child("type"), type_, TYPES));
    }
    if let (Some(reason), false) = (&place.no_defaults, get(s, &["default"]).is_null()) {
        let detail =
            if reason.is_empty() { "must not be set".into() } else { format!("must not be set {reason}") };
        errors.push(field::forbidden(&path.child("default"), &detail));
    }
    for name in ["id", "additionalItems", "patternProperties", "definitions", "dependencies", "$ref"] {
        let value = get(s, &[name]);
        if is_set(value) || (name == "additionalItems" && !value.is_null()) {
            errors.push(field::forbidden(&path.child(name), &format!("{name} is not supported")));
        }
    }
    if type_ == "null" {
        let text = "type cannot be set to null, use nullable as an alternative";
        errors.push(field::forbidden(&path.child("type"), text));
    }
    if !list_at(s, &["items"]).is_empty() {
        errors.push(field::forbidden(&path.child("items"), "items must be a schema object and not an array"));
    }
    if place.inside_meta && bool_at(s, &["x-kubernetes-embedded-resource"]) {
        let text = "must not be used inside of resource meta";
        errors.push(field::forbidden(&path.child("x-kubernetes-embedded-resource"), text));
    }
}

/// A fault of `type` where an extension asks for another one.
pub(super) fn wrong_type(path: &Path, type_: &str, text: &str) -> field::Error {
    if type_.is_empty() {
        field::required(&path.child("type"), text)
    } else {
        field::invalid(&path.child("type"), type_, text)
    }
}

fn extensions(s: &Value, path: &Path, rules: &Rules, errors: &mut ErrorList) {
    let type_ = str_at(s, &["type"]);
    let list_type = s.get("x-kubernetes-list-type").and_then(Value::as_str);
    let map_type = s.get("x-kubernetes-map-type").and_then(Value::as_str);
    let keys = get(s, &["x-kubernetes-list-map-keys"]);
    let items = get(s, &["items"]);
    if s.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(false)) {
        let at = path.child("x-kubernetes-preserve-unknown-fields");
        errors.push(field::invalid(&at, false, "must be true or undefined"));
    }
    if let Some(map_type) = map_type {
        if type_ != "object" {
            errors.push(wrong_type(path, type_, "must be object if x-kubernetes-map-type is specified"));
        }
        if map_type != "atomic" && map_type != "granular" {
            let at = path.child("x-kubernetes-map-type");
            errors.push(field::not_supported(&at, map_type, &["atomic", "granular"]));
        }
    }
    if let Some(list_type) = list_type {
        if type_ != "array" {
            errors.push(wrong_type(path, type_, "must be array if x-kubernetes-list-type is specified"));
        } else if rules.atomic_sets && list_type == "set" && items.is_object() {
            let text = "must be atomic as item of a list with x-kubernetes-list-type=set";
            let item_list = items.get("x-kubernetes-list-type").and_then(Value::as_str);
            let shown = item_list.map_or("\"null\"".to_string(), |t| format!("{t:?}"));
            if str_at(items, &["type"]) == "array" && item_list.is_some_and(|t| t != "atomic") {
                let at = path.child("items").child("x-kubernetes-list-type");
                errors.push(field::invalid_shown(&at, &shown, text));
            }
            if str_at(items, &["type"]) == "object" && str_at(items, &["x-kubernetes-map-type"]) != "atomic" {
                let at = path.child("items").child("x-kubernetes-map-type");
                errors.push(field::invalid_shown(&at, &shown, text));
            }
        }
        if !["atomic", "set", "map"].contains(&list_type) {
            let at = path.child("x-kubernetes-list-type");
            errors.push(field::not_supported(&at, list_type, &["atomic", "set", "map"]));
        }
    }
    if is_set(keys) && list_type != Some("map") {
        let at = path.child("x-kubernetes-list-type");
        let text = "must be map if x-kubernetes-list-map-keys is non-empty";
        errors.push(match list_type {
            None => field::required(&at, text),
            Some(other) => field::invalid(&at, other, text),
        });
    }
    if list_type == Some("map") {
        list_map(s, path, keys, items, errors);
    }
    if rules.required_map_keys {
        errors.extend(map_keys(s, path));
    }
}

fn list_map(s: &Value, path: &Path, keys: &Value, items: &Value, errors: &mut ErrorList) {
    if !is_set(keys) {
        let text = "must not be empty if x-kubernetes-list-type is map";
        errors.push(field::required(&path.child("x-kubernetes-list-map-keys"), text));
    }
    let at = path.child("items");
    match items {
        Value::Null => {
            errors.push(field::required(&at, "must have a schema if x-kubernetes-list-type is map"))
        }
        Value::Object(_) => {
            let item_type = str_at(items, &["type"]);
            if item_type != "object" {
                let text = "must be object if parent array's x-kubernetes-list-type is map";
                errors.push(field::invalid(&at.child("type"), item_type, text));
                return;
            }
            let keys_at = path.child("x-kubernetes-list-map-keys");
            let mut seen = BTreeSet::new();
            for key in list_at(s, &["x-kubernetes-list-map-keys"]).iter().filter_map(Value::as_str) {
                match items.get("properties").and_then(|p| p.get(key)) {
                    Some(property) if ["array", "object"].contains(&str_at(property, &["type"])) => {
                        let at = at.child("properties").key(key).child("type");
                        let text = "must be a scalar type if parent array's x-kubernetes-list-type is map";
                        errors.push(field::invalid(&at, item_type, text));
                    }
                    Some(_) => {}
                    None => {
                        let text = "entries must all be names of item properties";
                        errors.push(field::invalid_shown(&keys_at, &go::string_slice(keys), text));
                    }
                }
                if !seen.insert(key) {
                    let text = "must not contain duplicate entries";
                    errors.push(field::invalid_shown(&keys_at, &go::string_slice(keys), text));
                }
            }
        }
        _ => {
            let text = "must only have a single schema if x-kubernetes-list-type is map";
            errors.push(field::invalid_shown(&at, &validate::show_value(items), text));
        }
    }
}

fn map_keys(s: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let list_type = str_at(s, &["x-kubernetes-list-type"]);
    let items = get(s, &["items"]);
    if !items.is_object() || !["set", "map"].contains(&list_type) {
        return errors;
    }
    if bool_at(items, &["nullable"]) {
        let text = format!("cannot be nullable when x-kubernetes-list-type is {list_type}");
        errors.push(field::forbidden(&path.child("items").child("nullable"), &text));
    }
    if list_type == "map" {
        for key in list_at(s, &["x-kubernetes-list-map-keys"]).iter().filter_map(Value::as_str) {
            let Some(property) = items.get("properties").and_then(|p| p.get(key)) else { continue };
            let at = path.child("items").child("properties").key(key);
            if !list_at(items, &["required"]).iter().any(|r| r == key)
                && get(property, &["default"]).is_null()
            {
                let text = "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property";
                errors.push(field::required(&at.child("default"), text));
            }
            if bool_at(property, &["nullable"]) {
                let text = "this property is in x-kubernetes-list-map-keys, so it cannot be nullable";
                errors.push(field::forbidden(&at.child("nullable"), text));
            }
        }
    }
    errors
}

/// The faults of defaults: they must keep the schema themselves and have no unknown fields.
fn defaults(s: &Value, path: &Path, root: bool, pruned: bool) -> ErrorList {
    let mut errors = ErrorList::new();
    if !s.is_object() {
        return errors;
    }
    if let Some(default) = s.get("default").filter(|d| !d.is_null()) {
        let schema = Schema::parse(s);
        let at = path.child("default");
        let mut kept = default.clone();
        prune::prune(&mut kept, &schema, schema.embedded_resource);
        if pruned && kept != *default {
            let text = "must not have unknown fields";
            errors.push(field::invalid_shown(&at, &validate::show_value(default), text));
        }
        let embedded = objects::validate(&at, &schema, default);
        if embedded.is_empty() {
            let options = validate::Options { index_items: false };
            errors.extend(validate::validate(&at, &schema, default, options));
        }
        errors.extend(embedded);
    }
    errors.extend(defaults(get(s, &["items"]), &path.child("items"), false, pruned));
    for (name, property) in map_at(s, "properties") {
        // What is in a resource's own metadata is checked as metadata, not by the schema.
        if root && META.contains(&name.as_str()) {
            continue;
        }
        errors.extend(defaults(property, &path.child("properties").key(name), false, pruned));
    }
    errors
}
