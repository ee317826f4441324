//! Validation of values against a schema, with the texts of go-openapi as Kubernetes shows them.

use std::collections::BTreeSet;

use pilothouse_apimachinery::field::{self, Error, ErrorList, ErrorType, Path};
use pilothouse_apimachinery::json::{Map, Value};

use super::formats;
use super::schema::{Additional, Schema};
use crate::apply::path::equal;
use crate::apply::show;

/// What validating one value found: the faults, and how many checks it took part in (which decides, among alternatives
/// that all fail, whose faults are shown).
#[derive(Default)]
struct Findings {
    errors: ErrorList,
    checks: usize,
}

impl Findings {
    fn merge(&mut self, other: Findings) {
        self.errors.extend(other.errors);
        self.checks += other.checks;
    }
}

/// How a validation is done.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Whether faults inside list items name the item: not in v1.20.
    pub index_items: bool,
}

/// The faults of a value. `path` is where it stands, for the fields of the errors; texts name the place below it.
pub fn validate(path: &Path, schema: &Schema, value: &Value, options: Options) -> ErrorList {
    let validator = Validator { base: path, options };
    validator.value("", schema, value).errors
}

struct Validator<'a> {
    base: &'a Path,
    options: Options,
}

/// A value as errors show it: bare numbers and booleans, quoted strings, Go's form for the rest.
pub fn show_value(value: &Value) -> String {
    match value {
        Value::Null => "\"null\"".into(),
        Value::Array(_) | Value::Object(_) => show::sharp(value),
        _ => field::show(value),
    }
}

fn schema_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn show_number(n: f64) -> String {
    if n.fract() == 0.0 && n.abs() < 1e21 { format!("{n:.0}") } else { n.to_string() }
}

impl Validator<'_> {
    fn field(&self, path: &str) -> Path {
        let path = path.strip_prefix('.').unwrap_or(path);
        if path.is_empty() { self.base.clone() } else { self.base.child(path) }
    }

    fn error(&self, path: &str, error_type: ErrorType, body: String) -> Error {
        Error { error_type, field: self.field(path).to_string(), body }
    }

    fn invalid(&self, path: &str, shown: &str, text: &str) -> Error {
        self.error(path, ErrorType::Invalid, format!("Invalid value: {shown}: {path} in body {text}"))
    }

    /// A fault that go-openapi reports without a field: Kubernetes shows it at `<nil>`, or where the base is.
    fn bare(&self, text: String) -> Error {
        let base = self.base.to_string();
        let field = if base.is_empty() { "<nil>".to_string() } else { base };
        Error { error_type: ErrorType::Invalid, field, body: format!("Invalid value: \"\": {text}") }
    }

    fn value(&self, path: &str, schema: &Schema, value: &Value) -> Findings {
        let mut out = Findings::default();
        out.merge(self.type_(path, schema, value));
        if value.is_null() {
            out.merge(self.enumeration(path, schema, value));
            return out;
        }
        out.merge(self.alternatives(path, schema, value));
        match value {
            Value::String(s) => out.merge(self.string(path, schema, value, s)),
            Value::Number(n) => out.merge(self.number(path, schema, value, n.as_f64().unwrap_or_default())),
            Value::Array(items) => out.merge(self.array(path, schema, items)),
            _ => {}
        }
        out.merge(self.enumeration(path, schema, value));
        if let Value::Object(map) = value {
            out.merge(self.object(path, schema, map));
        }
        out.checks += 1;
        out
    }

    fn type_(&self, path: &str, schema: &Schema, value: &Value) -> Findings {
        let mut out = Findings { checks: 1, ..Findings::default() };
        let types = schema.types();
        if types.is_empty() {
            return out;
        }
        let own = schema_type(value);
        let whole_float = own == "number" && value.as_f64().is_some_and(|f| f.fract() == 0.0);
        let fits = match value {
            Value::Null => schema.nullable,
            _ => {
                types.contains(&own)
                    || own == "integer" && types.contains(&"number")
                    || whole_float && types.contains(&"integer")
            }
        };
        let by_format = !schema.format.is_empty()
            && (value.is_string() || value.is_array())
            && !types.contains(&"number")
            && !types.contains(&"integer");
        if !fits && (!by_format || value.is_null()) {
            out.errors.push(self.invalid(
                path,
                &format!("{own:?}"),
                &format!("must be of type {}: {own:?}", types.join(",")),
            ));
        }
        out
    }

    fn alternatives(&self, path: &str, schema: &Schema, value: &Value) -> Findings {
        let mut out = Findings::default();
        let best = |failures: Vec<Findings>| {
            failures.into_iter().reduce(|best, next| if next.checks > best.checks { next } else { best })
        };
        if !schema.any_of.is_empty() {
            let results: Vec<Findings> = schema.any_of.iter().map(|s| self.value(path, s, value)).collect();
            if !results.iter().any(|r| r.errors.is_empty()) {
                out.errors.push(self.bare(format!("{path:?} must validate at least one schema (anyOf)")));
                out.errors.extend(best(results).map(|b| b.errors).unwrap_or_default());
            }
        }
        if !schema.one_of.is_empty() {
            let results: Vec<Findings> = schema.one_of.iter().map(|s| self.value(path, s, value)).collect();
            let valid = results.iter().filter(|r| r.errors.is_empty()).count();
            if valid != 1 {
                let found = if valid == 0 {
                    "Found none valid".into()
                } else {
                    format!("Found {valid} valid alternatives")
                };
                let text = format!("{path:?} must validate one and only one schema (oneOf). {found}");
                out.errors.push(self.bare(text));
                if valid == 0 {
                    out.errors.extend(best(results).map(|b| b.errors).unwrap_or_default());
                }
            }
        }
        if !schema.all_of.is_empty() {
            let mut valid = 0;
            for part in &schema.all_of {
                let result = self.value(path, part, value);
                valid += usize::from(result.errors.is_empty());
                out.merge(result);
            }
            if valid < schema.all_of.len() {
                let none = if valid == 0 { ". None validated" } else { "" };
                out.errors.push(self.bare(format!("{path:?} must validate all the schemas (allOf){none}")));
            }
        }
        if let Some(not) = &schema.not
            && self.value(path, not, value).errors.is_empty()
        {
            out.errors.push(self.bare(format!("{path:?} must not validate the schema (not)")));
        }
        out.checks += 1;
        out
    }

    fn string(&self, path: &str, schema: &Schema, value: &Value, text: &str) -> Findings {
        let mut out = Findings { checks: 1, ..Findings::default() };
        let length = || i64::try_from(text.chars().count()).unwrap_or(i64::MAX);
        let shown = show_value(value);
        let fault = if let Some(max) = schema.max_length.filter(|max| length() > *max) {
            Some(format!("should be at most {max} chars long"))
        } else if let Some(min) = schema.min_length.filter(|min| length() < *min) {
            Some(format!("should be at least {min} chars long"))
        } else {
            schema.pattern.as_ref().and_then(|pattern| {
                let matches = pattern.regex.as_ref().is_some_and(|r| r.is_match(text));
                (!matches).then(|| format!("should match '{}'", pattern.text))
            })
        };
        out.errors.extend(fault.map(|text| self.invalid(path, &shown, &text)));
        if !schema.format.is_empty() && !formats::is_valid(&schema.format, text) {
            out.errors.push(self.invalid(
                path,
                &shown,
                &format!("must be of type {}: {shown}", schema.format),
            ));
        }
        out
    }

    fn number(&self, path: &str, schema: &Schema, value: &Value, n: f64) -> Findings {
        let mut out = Findings { checks: 1, ..Findings::default() };
        let mut fault = |text: String| out.errors.push(self.invalid(path, &show_value(value), &text));
        if let Some(step) = schema.multiple_of.filter(|s| *s > 0.0) {
            let times = n / step;
            if (times - times.round()).abs() > 1e-9 {
                fault(format!("should be a multiple of {}", show_number(step)));
            }
        }
        if let Some(min) = schema.minimum {
            if schema.exclusive_minimum && n <= min {
                fault(format!("should be greater than {}", show_number(min)));
            } else if n < min {
                fault(format!("should be greater than or equal to {}", show_number(min)));
            }
        }
        if let Some(max) = schema.maximum {
            if schema.exclusive_maximum && n >= max {
                fault(format!("should be less than {}", show_number(max)));
            } else if n > max {
                fault(format!("should be less than or equal to {}", show_number(max)));
            }
        }
        out
    }

    fn array(&self, path: &str, schema: &Schema, items: &[Value]) -> Findings {
        let mut out = Findings { checks: 1, ..Findings::default() };
        if let Some(item_schema) = &schema.items {
            for (i, item) in items.iter().enumerate() {
                let at = if self.options.index_items { format!("{path}[{i}]") } else { path.to_string() };
                out.merge(self.value(&at, item_schema, item));
            }
        }
        let count = i64::try_from(items.len()).unwrap_or(i64::MAX);
        if let Some(min) = schema.min_items.filter(|min| count < *min) {
            let text = format!("should have at least {min} items");
            out.errors.push(self.invalid(path, &count.to_string(), &text));
        }
        if let Some(max) = schema.max_items.filter(|max| count > *max) {
            let text = format!("should have at most {max} items");
            out.errors.push(self.invalid(path, &count.to_string(), &text));
        }
        let repeats = || items.iter().enumerate().any(|(i, a)| items[..i].iter().any(|b| equal(a, b)));
        if schema.unique_items && repeats() {
            out.errors.push(self.invalid(path, "\"\"", "shouldn't contain duplicates"));
        }
        out
    }

    fn enumeration(&self, path: &str, schema: &Schema, value: &Value) -> Findings {
        let mut out = Findings::default();
        if schema.enumeration.is_empty() {
            return out;
        }
        out.checks += 1;
        // Where null is allowed at all, the enumeration need not name it.
        let null = value.is_null() && schema.nullable;
        if !null && !schema.enumeration.iter().any(|e| equal(e, value)) {
            let supported: Vec<String> = schema
                .enumeration
                .iter()
                .map(|e| e.as_str().map_or_else(|| format!("{:?}", e.to_string()), |s| format!("{s:?}")))
                .collect();
            out.errors.push(self.error(
                path,
                ErrorType::NotSupported,
                format!(
                    "Unsupported value: {}: supported values: {}",
                    show_value(value),
                    supported.join(", ")
                ),
            ));
        }
        out
    }

    fn object(&self, path: &str, schema: &Schema, map: &Map) -> Findings {
        let mut out = Findings { checks: 1, ..Findings::default() };
        let count = i64::try_from(map.len()).unwrap_or(i64::MAX);
        if let Some(min) = schema.min_properties.filter(|min| count < *min) {
            out.errors.push(self.invalid(
                path,
                &min.to_string(),
                &format!("should have at least {min} properties"),
            ));
            return out;
        }
        if let Some(max) = schema.max_properties.filter(|max| count > *max) {
            out.errors.push(self.invalid(
                path,
                &max.to_string(),
                &format!("should have at most {max} properties"),
            ));
            return out;
        }
        let at = |key: &str| if path.is_empty() { key.to_string() } else { format!("{path}.{key}") };
        for (key, value) in map {
            match (schema.properties.get(key.as_str()), &schema.additional) {
                (Some(property), _) => out.merge(self.value(&at(key), property, value)),
                (None, Additional::Schema(additional)) => out.merge(self.value(&at(key), additional, value)),
                (None, Additional::Allowed(false)) => {
                    let text = format!("{path}.{key} in body is a forbidden property");
                    let error = self.error(path, ErrorType::Invalid, format!("Invalid value: \"\": {text}"));
                    out.errors.push(error);
                }
                _ => {}
            }
        }
        let required: BTreeSet<&String> = schema.required.iter().collect();
        for key in required {
            if !map.contains_key(key) {
                out.errors.push(self.error(&at(key), ErrorType::Required, "Required value".into()));
            }
        }
        out
    }
}
