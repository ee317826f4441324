//! Errors of validation, each with the path of the field it is about. Types, reasons and texts are those of
//! `k8s.io/apimachinery/pkg/util/validation/field`.

use std::fmt;

use crate::json::Value;

/// The path of a field, such as `spec.containers[0].name` or `metadata.labels[app]`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Path(String);

impl Path {
    /// A path of one field.
    pub fn new(name: &str) -> Path {
        Path(name.to_string())
    }

    /// A field below this one.
    #[must_use]
    pub fn child(&self, name: &str) -> Path {
        let dot = if self.0.is_empty() { "" } else { "." };
        self.with(&[dot, name])
    }

    /// An element of a list.
    #[must_use]
    pub fn index(&self, i: usize) -> Path {
        self.with(&["[", &i.to_string(), "]"])
    }

    /// An entry of a map.
    #[must_use]
    pub fn key(&self, key: &str) -> Path {
        self.with(&["[", key, "]"])
    }

    /// Paths are made for every field that is looked at, so without the formatter.
    fn with(&self, parts: &[&str]) -> Path {
        let mut text = String::with_capacity(self.0.len() + parts.iter().map(|p| p.len()).sum::<usize>());
        text.push_str(&self.0);
        parts.iter().for_each(|part| text.push_str(part));
        Path(text)
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What kind of fault it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorType {
    /// The field must have a value.
    Required,
    /// The value is malformed.
    Invalid,
    /// The value is not one of those allowed.
    NotSupported,
    /// The value stands twice.
    Duplicate,
    /// The value must not be set, or not be changed, here.
    Forbidden,
    /// What the value refers to does not exist.
    NotFound,
    /// The value is too long, in bytes.
    TooLong,
    /// The list has too many items.
    TooMany,
    /// The server failed.
    Internal,
}

impl ErrorType {
    /// The `reason` of a cause in `Status.details`.
    pub fn reason(self) -> &'static str {
        match self {
            ErrorType::Required => "FieldValueRequired",
            ErrorType::Invalid | ErrorType::TooMany => "FieldValueInvalid",
            ErrorType::TooLong => "FieldValueTooLong",
            ErrorType::NotSupported => "FieldValueNotSupported",
            ErrorType::Duplicate => "FieldValueDuplicate",
            ErrorType::Forbidden => "FieldValueForbidden",
            ErrorType::NotFound => "FieldValueNotFound",
            ErrorType::Internal => "InternalError",
        }
    }
}

/// One fault of one field.
#[derive(Debug, Clone, PartialEq)]
pub struct Error {
    /// What kind of fault.
    pub error_type: ErrorType,
    /// Where.
    pub field: String,
    /// The text without the field: `Invalid value: "x": must be …`.
    pub body: String,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.body)
    }
}

/// The faults of an object.
pub type ErrorList = Vec<Error>;

fn error(error_type: ErrorType, path: &Path, body: String) -> Error {
    Error { error_type, field: path.to_string(), body }
}

/// How Go prints a value in an error: strings quoted (`%q`-like), numbers and booleans bare, `null` for nothing;
/// lists and objects as JSON.
pub fn show(value: &Value) -> String {
    match value {
        Value::String(s) => crate::go::quote(s),
        other => other.to_string(),
    }
}

fn with_detail(prefix: String, detail: &str) -> String {
    if detail.is_empty() { prefix } else { format!("{prefix}: {detail}") }
}

/// `Required value`, with a detail where it is not empty.
pub fn required(path: &Path, detail: &str) -> Error {
    error(ErrorType::Required, path, with_detail("Required value".into(), detail))
}

/// `Invalid value: <value>: <detail>`.
pub fn invalid(path: &Path, value: impl Into<Value>, detail: &str) -> Error {
    invalid_shown(path, &show(&value.into()), detail)
}

/// The same with the value as text, for what Go prints in a form of its own (structs with `%#v`).
pub fn invalid_shown(path: &Path, shown: &str, detail: &str) -> Error {
    error(ErrorType::Invalid, path, with_detail(format!("Invalid value: {shown}"), detail))
}

/// `Unsupported value: <value>: supported values: "A", "B"`. v1.20 sorts none of them: they stand in the order given.
pub fn not_supported(path: &Path, value: impl Into<Value>, supported: &[&str]) -> Error {
    not_supported_shown(path, &show(&value.into()), supported)
}

/// The same with the value as text.
pub fn not_supported_shown(path: &Path, shown: &str, supported: &[&str]) -> Error {
    let list = supported.iter().map(|s| format!("{s:?}")).collect::<Vec<_>>().join(", ");
    let detail = if supported.is_empty() { String::new() } else { format!("supported values: {list}") };
    error(ErrorType::NotSupported, path, with_detail(format!("Unsupported value: {shown}"), &detail))
}

/// `Duplicate value: <value>`.
pub fn duplicate(path: &Path, value: impl Into<Value>) -> Error {
    duplicate_shown(path, &show(&value.into()))
}

/// The same with the value as text.
pub fn duplicate_shown(path: &Path, shown: &str) -> Error {
    error(ErrorType::Duplicate, path, format!("Duplicate value: {shown}"))
}

/// `Forbidden: <detail>`.
pub fn forbidden(path: &Path, detail: &str) -> Error {
    error(ErrorType::Forbidden, path, with_detail("Forbidden".into(), detail))
}

/// `Not found: <value>`.
pub fn not_found(path: &Path, value: impl Into<Value>) -> Error {
    error(ErrorType::NotFound, path, format!("Not found: {}", show(&value.into())))
}

/// `Too long: must have at most <max> bytes`. As in v1.20, the value itself is not shown.
pub fn too_long(path: &Path, max: usize) -> Error {
    error(ErrorType::TooLong, path, format!("Too long: must have at most {max} bytes"))
}

/// `Too many: <actual>: must have at most <max> items`.
pub fn too_many(path: &Path, actual: usize, max: usize) -> Error {
    error(ErrorType::TooMany, path, format!("Too many: {actual}: must have at most {max} items"))
}

/// `Internal error: <detail>`.
pub fn internal(path: &Path, detail: &str) -> Error {
    error(ErrorType::Internal, path, format!("Internal error: {detail}"))
}
