//! Types of expressions.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// A type.
#[derive(Debug, Clone, PartialEq)]
pub enum Type {
    /// Anything: checked when the expression runs.
    Dyn,
    /// `null`.
    Null,
    /// `true` and `false`.
    Bool,
    /// Whole numbers.
    Int,
    /// Whole numbers from 0 on.
    Uint,
    /// Numbers.
    Double,
    /// Texts.
    String,
    /// Bytes.
    Bytes,
    /// Lengths of time.
    Duration,
    /// Points in time.
    Timestamp,
    /// Lists.
    List(Arc<Type>),
    /// Maps.
    Map(Arc<Type>, Arc<Type>),
    /// Objects with named fields.
    Object(Arc<ObjectType>),
    /// A value that may be missing.
    Optional(Arc<Type>),
    /// Types as values.
    Type,
    /// Kubernetes' own: `kubernetes.Quantity`, `net.IP`, …
    Native(&'static str),
    /// Any type, the same wherever the letter stands in a signature.
    Param(u8),
}

/// A type of objects.
#[derive(Debug, Clone, Default)]
pub struct ObjectType {
    /// Its name in texts.
    pub name: String,
    /// Its fields, by their names in expressions.
    pub fields: BTreeMap<String, Field>,
}

impl PartialEq for ObjectType {
    fn eq(&self, other: &ObjectType) -> bool {
        self.name == other.name && self.fields.keys().eq(other.fields.keys())
    }
}

/// A field of an object.
#[derive(Debug, Clone)]
pub struct Field {
    /// Its name in JSON.
    pub json: String,
    /// Its type.
    pub type_: Type,
}

impl Type {
    /// A list of a type.
    pub fn list(of: Type) -> Type {
        Type::List(Arc::new(of))
    }

    /// A map from texts to a type.
    pub fn map(of: Type) -> Type {
        Type::Map(Arc::new(Type::String), Arc::new(of))
    }

    /// An optional of a type.
    pub fn optional(of: Type) -> Type {
        Type::Optional(Arc::new(of))
    }

    /// An object of a name with fields, by their names in JSON. Those whose names cannot be written are left out.
    pub fn object(name: &str, fields: impl IntoIterator<Item = (String, Type)>) -> Type {
        let fields =
            fields.into_iter().filter_map(|(json, type_)| Some((escape(&json)?, Field { json, type_ })));
        Type::Object(Arc::new(ObjectType { name: name.into(), fields: fields.collect() }))
    }

    /// The type of a field; `None` where there is no such field. Of anything else than an object, a map or `Dyn`, too.
    pub fn field(&self, name: &str) -> Option<Type> {
        match self {
            Type::Dyn => Some(Type::Dyn),
            Type::Map(_, value) => Some((**value).clone()),
            Type::Object(o) => o.fields.get(name).map(|f| f.type_.clone()),
            Type::Optional(inner) => inner.field(name).map(|t| match t {
                Type::Optional(_) => t,
                other => Type::optional(other),
            }),
            _ => None,
        }
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Type::Dyn => "dyn",
            Type::Null => "null",
            Type::Bool => "bool",
            Type::Int => "int",
            Type::Uint => "uint",
            Type::Double => "double",
            Type::String => "string",
            Type::Bytes => "bytes",
            Type::Duration => "google.protobuf.Duration",
            Type::Timestamp => "google.protobuf.Timestamp",
            Type::List(of) => return write!(f, "list({of})"),
            Type::Map(key, value) => return write!(f, "map({key}, {value})"),
            Type::Object(o) => &o.name,
            Type::Optional(of) => return write!(f, "optional_type({of})"),
            Type::Type => "type",
            Type::Native(name) => name,
            Type::Param(letter) => return write!(f, "{}", char::from(*letter)),
        };
        f.write_str(name)
    }
}

/// Words that CEL keeps for itself.
const RESERVED: &[&str] = &[
    "true",
    "false",
    "null",
    "in",
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];

/// A field's name in expressions; `None` where it cannot be written in one.
pub fn escape(name: &str) -> Option<String> {
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    if RESERVED.contains(&name) {
        return Some(format!("__{name}__"));
    }
    let mut out = String::with_capacity(name.len());
    let mut rest = name;
    while let Some(c) = rest.chars().next() {
        if let Some(tail) = rest.strip_prefix("__") {
            out.push_str("__underscores__");
            rest = tail;
            continue;
        }
        match c {
            '.' => out.push_str("__dot__"),
            '-' => out.push_str("__dash__"),
            '/' => out.push_str("__slash__"),
            c if c == '_' || c.is_ascii_alphanumeric() => out.push(c),
            _ => return None,
        }
        rest = &rest[c.len_utf8()..];
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_names() {
        let e = |n: &str| escape(n);
        assert_eq!(e("namespace").as_deref(), Some("__namespace__"));
        assert_eq!(e("x-prop.a/b").as_deref(), Some("x__dash__prop__dot__a__slash__b"));
        assert_eq!(e("redact__d").as_deref(), Some("redact__underscores__d"));
        assert_eq!(e("string").as_deref(), Some("string"));
        assert_eq!((e("1a"), e("a$"), e("")), (None, None, None));
    }
}
