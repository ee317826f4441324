//! The schema of a custom resource (`openAPIV3Schema`), read once from the CustomResourceDefinition.

use std::collections::BTreeMap;

use pilothouse_apimachinery::json::{Value, bool_at, get, str_at};
use regex::Regex;

use super::rules::Rule;

/// How deep a schema may be nested: beyond, it says nothing.
const MAX_DEPTH: usize = 128;

/// Which values an object may have beside its named properties.
#[derive(Debug, Clone, Default)]
pub enum Additional {
    /// Nothing is said.
    #[default]
    Unset,
    /// `true` or `false`.
    Allowed(bool),
    /// Values of this schema.
    Schema(Box<Schema>),
}

/// A pattern, compiled where it is a regular expression that can be.
#[derive(Debug, Clone)]
pub struct Pattern {
    /// As written.
    pub text: String,
    /// Compiled; `None` where it is no expression.
    pub regex: Option<Regex>,
}

/// One node of a schema.
#[derive(Debug, Clone, Default)]
pub struct Schema {
    /// `object`, `array`, `string`, `integer`, `number`, `boolean` or nothing.
    pub type_: String,
    /// `int32`, `date-time`, …; empty where v1.20 does not check it.
    pub format: String,
    /// Whether null is a value.
    pub nullable: bool,
    /// Default.
    pub default: Option<Value>,
    /// Fields of an object.
    pub properties: BTreeMap<String, Schema>,
    /// Other fields of an object.
    pub additional: Additional,
    /// Items of a list.
    pub items: Option<Box<Schema>>,
    /// Fields that must be there.
    pub required: Vec<String>,
    /// Allowed values.
    pub enumeration: Vec<Value>,
    /// Upper bound.
    pub maximum: Option<f64>,
    /// Whether the upper bound itself is out.
    pub exclusive_maximum: bool,
    /// Lower bound.
    pub minimum: Option<f64>,
    /// Whether the lower bound itself is out.
    pub exclusive_minimum: bool,
    /// Step.
    pub multiple_of: Option<f64>,
    /// Most characters.
    pub max_length: Option<i64>,
    /// Fewest characters.
    pub min_length: Option<i64>,
    /// Most items.
    pub max_items: Option<i64>,
    /// Fewest items.
    pub min_items: Option<i64>,
    /// Most fields.
    pub max_properties: Option<i64>,
    /// Fewest fields.
    pub min_properties: Option<i64>,
    /// Whether items must differ.
    pub unique_items: bool,
    /// Regular expression.
    pub pattern: Option<Pattern>,
    /// All of them must hold.
    pub all_of: Vec<Schema>,
    /// One of them must hold.
    pub any_of: Vec<Schema>,
    /// Exactly one of them must hold.
    pub one_of: Vec<Schema>,
    /// This must not hold.
    pub not: Option<Box<Schema>>,
    /// `x-kubernetes-preserve-unknown-fields`.
    pub preserve_unknown_fields: bool,
    /// `x-kubernetes-embedded-resource`.
    pub embedded_resource: bool,
    /// `x-kubernetes-int-or-string`.
    pub int_or_string: bool,
    /// `x-kubernetes-list-type`.
    pub list_type: String,
    /// `x-kubernetes-list-map-keys`.
    pub list_map_keys: Vec<String>,
    /// `x-kubernetes-map-type`.
    pub map_type: String,
    /// Rules in CEL.
    pub validations: Vec<Rule>,
}

/// Formats that are checked.
const FORMATS: &[&str] = &[
    "bsonobjectid",
    "uri",
    "email",
    "hostname",
    "ipv4",
    "ipv6",
    "cidr",
    "mac",
    "uuid",
    "uuid3",
    "uuid4",
    "uuid5",
    "isbn",
    "isbn10",
    "isbn13",
    "creditcard",
    "ssn",
    "hexcolor",
    "rgbcolor",
    "byte",
    "password",
    "date",
    "duration",
    "datetime",
    "date-time",
];

impl Schema {
    /// Reads a `JSONSchemaProps`.
    pub fn parse(value: &Value) -> Schema {
        Schema::parse_at(value, 0)
    }

    fn parse_at(value: &Value, depth: usize) -> Schema {
        if depth > MAX_DEPTH {
            return Schema { preserve_unknown_fields: true, ..Schema::default() };
        }
        let below = |v: &Value| Schema::parse_at(v, depth + 1);
        let list = |name: &str| -> Vec<Schema> {
            value
                .get(name)
                .and_then(Value::as_array)
                .map(|l| l.iter().map(below).collect())
                .unwrap_or_default()
        };
        let strings = |name: &str| -> Vec<String> {
            let items = value.get(name).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
            items.iter().filter_map(Value::as_str).map(str::to_string).collect()
        };
        let number = |name: &str| value.get(name).and_then(Value::as_f64);
        let integer = |name: &str| value.get(name).and_then(Value::as_i64);
        let format = str_at(value, &["format"]);
        let known = FORMATS.contains(&format.replace('-', "").as_str()) || FORMATS.contains(&format);
        Schema {
            type_: str_at(value, &["type"]).to_string(),
            format: if known { format.to_string() } else { String::new() },
            nullable: bool_at(value, &["nullable"]),
            default: value.get("default").filter(|d| !d.is_null()).cloned(),
            properties: value
                .get("properties")
                .and_then(Value::as_object)
                .map(|m| m.iter().map(|(k, v)| (k.to_string(), below(v))).collect())
                .unwrap_or_default(),
            additional: match get(value, &["additionalProperties"]) {
                Value::Null => Additional::Unset,
                Value::Bool(b) => Additional::Allowed(*b),
                schema => Additional::Schema(Box::new(below(schema))),
            },
            items: value.get("items").filter(|i| i.is_object()).map(|i| Box::new(below(i))),
            required: strings("required"),
            enumeration: value.get("enum").and_then(Value::as_array).cloned().unwrap_or_default(),
            maximum: number("maximum"),
            exclusive_maximum: bool_at(value, &["exclusiveMaximum"]),
            minimum: number("minimum"),
            exclusive_minimum: bool_at(value, &["exclusiveMinimum"]),
            multiple_of: number("multipleOf"),
            max_length: integer("maxLength"),
            min_length: integer("minLength"),
            max_items: integer("maxItems"),
            min_items: integer("minItems"),
            max_properties: integer("maxProperties"),
            min_properties: integer("minProperties"),
            unique_items: bool_at(value, &["uniqueItems"]),
            pattern: Some(str_at(value, &["pattern"]))
                .filter(|p| !p.is_empty())
                .map(|p| Pattern { text: p.to_string(), regex: Regex::new(p).ok() }),
            all_of: list("allOf"),
            any_of: list("anyOf"),
            one_of: list("oneOf"),
            not: value.get("not").filter(|n| n.is_object()).map(|n| Box::new(below(n))),
            preserve_unknown_fields: bool_at(value, &["x-kubernetes-preserve-unknown-fields"]),
            embedded_resource: bool_at(value, &["x-kubernetes-embedded-resource"]),
            int_or_string: bool_at(value, &["x-kubernetes-int-or-string"]),
            list_type: str_at(value, &["x-kubernetes-list-type"]).to_string(),
            list_map_keys: strings("x-kubernetes-list-map-keys"),
            map_type: str_at(value, &["x-kubernetes-map-type"]).to_string(),
            validations: Rule::all(value),
        }
    }

    /// The schema of additional properties.
    pub fn additional_schema(&self) -> Option<&Schema> {
        match &self.additional {
            Additional::Schema(schema) => Some(schema),
            _ => None,
        }
    }

    /// The types a value may have: none where nothing is said.
    pub fn types(&self) -> Vec<&str> {
        if self.int_or_string {
            vec!["integer", "string"]
        } else if self.type_.is_empty() {
            Vec::new()
        } else {
            vec![&self.type_]
        }
    }
}
