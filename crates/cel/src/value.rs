//! Values of expressions. What comes from JSON stays there until it is looked at.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::net::IpAddr;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use pilothouse_apimachinery::json::{Map, Value as Json};
use pilothouse_apimachinery::quantity::Quantity;

use crate::time;
use crate::types::Type;

/// A value.
#[derive(Debug, Clone)]
pub enum Value<'a> {
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A whole number from 0 on.
    Uint(u64),
    /// A number.
    Double(f64),
    /// A text.
    String(Cow<'a, str>),
    /// Bytes.
    Bytes(Arc<[u8]>),
    /// A length of time.
    Duration(SignedDuration),
    /// A point in time.
    Timestamp(Timestamp),
    /// A list that was computed.
    List(Arc<Vec<Value<'a>>>),
    /// A map that was computed, keys in their order.
    Map(Arc<Vec<(Value<'a>, Value<'a>)>>),
    /// A list of JSON, with the type of its items.
    JsonList(&'a [Json], Type),
    /// An object or map of JSON, with its type.
    JsonMap(&'a Map, Type),
    /// A value that may be missing.
    Optional(Option<Arc<Value<'a>>>),
    /// A type.
    Type(Cow<'static, str>),
    /// One of Kubernetes' own.
    Native(Arc<Native>),
}

/// Values of Kubernetes' libraries.
#[derive(Debug, Clone, PartialEq)]
pub enum Native {
    /// `url()`: what it was made of, scheme, host, path, query.
    Url(crate::libraries::url::Url),
    /// `quantity()`.
    Quantity(Quantity),
    /// `ip()`.
    Ip(IpAddr),
    /// `cidr()`.
    Cidr(IpAddr, u8),
    /// `semver()`.
    Semver(crate::libraries::semver::Version),
    /// `format.x()`.
    Format(&'static str),
    /// What asks the authorizer, in one of its steps.
    Authorizer(Authorizer),
    /// What the authorizer said: whether it is allowed, and why.
    Decision(bool, String),
}

/// A question to the authorizer as far as it has been put.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Authorizer {
    /// `namespace:name` of a service account, where it is not about the user of the request.
    pub service_account: Option<(String, String)>,
    /// A path that is no resource.
    pub path: Option<String>,
    /// Group.
    pub group: String,
    /// Resource; once it is known, the question can be put.
    pub resource: Option<String>,
    /// Subresource.
    pub subresource: String,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl<'a> Value<'a> {
    /// A text that was computed.
    pub fn text(text: impl Into<String>) -> Value<'a> {
        Value::String(Cow::Owned(text.into()))
    }

    /// A list that was computed.
    pub fn list(items: Vec<Value<'a>>) -> Value<'a> {
        Value::List(Arc::new(items))
    }

    /// One of Kubernetes' own.
    pub fn native(native: Native) -> Value<'a> {
        Value::Native(Arc::new(native))
    }

    /// A value that is there.
    pub fn some(value: Value<'a>) -> Value<'a> {
        Value::Optional(Some(Arc::new(value)))
    }

    /// JSON as a value of a type. What does not fit the type is taken as it is.
    pub fn of_json(json: &'a Json, type_: &Type) -> Value<'a> {
        if let Type::Optional(inner) = type_ {
            return if json.is_null() {
                Value::Optional(None)
            } else {
                Value::some(Value::of_json(json, inner))
            };
        }
        match json {
            Json::Null => Value::Null,
            Json::Bool(b) => Value::Bool(*b),
            Json::Number(n) => match (n.as_i64(), type_) {
                (_, Type::Double) | (None, _) => Value::Double(n.as_f64().unwrap_or_default()),
                (Some(i), _) => Value::Int(i),
            },
            Json::String(s) => match type_ {
                Type::Timestamp => {
                    time::timestamp(s).map_or(Value::String(Cow::Borrowed(s)), Value::Timestamp)
                }
                Type::Duration => time::duration(s).map_or(Value::String(Cow::Borrowed(s)), Value::Duration),
                Type::Bytes => {
                    time::base64(s).map_or(Value::String(Cow::Borrowed(s)), |b| Value::Bytes(b.into()))
                }
                _ => Value::String(Cow::Borrowed(s)),
            },
            Json::Array(items) => {
                let item = if let Type::List(item) = type_ { (**item).clone() } else { Type::Dyn };
                Value::JsonList(items, item)
            }
            Json::Object(map) => Value::JsonMap(map, type_.clone()),
        }
    }

    /// The name of the value's type in texts.
    pub fn type_name(&self) -> Cow<'static, str> {
        Cow::Borrowed(match self {
            Value::Null => "null_type",
            Value::Bool(_) => "bool",
            Value::Int(_) => "int",
            Value::Uint(_) => "uint",
            Value::Double(_) => "double",
            Value::String(_) => "string",
            Value::Bytes(_) => "bytes",
            Value::Duration(_) => "google.protobuf.Duration",
            Value::Timestamp(_) => "google.protobuf.Timestamp",
            Value::List(_) | Value::JsonList(..) => "list",
            Value::JsonMap(_, Type::Object(o)) => return Cow::Owned(o.name.clone()),
            Value::Map(_) | Value::JsonMap(..) => "map",
            Value::Optional(_) => "optional_type",
            Value::Type(_) => "type",
            Value::Native(n) => match &**n {
                Native::Url(_) => "kubernetes.URL",
                Native::Quantity(_) => "kubernetes.Quantity",
                Native::Ip(_) => "net.IP",
                Native::Cidr(..) => "net.CIDR",
                Native::Semver(_) => "kubernetes.Semver",
                Native::Format(_) => "kubernetes.NamedFormat",
                Native::Authorizer(_) => "kubernetes.authorization.Authorizer",
                Native::Decision(..) => "kubernetes.authorization.Decision",
            },
        })
    }

    /// How many items a list or map has; none for anything else.
    #[expect(clippy::len_without_is_empty, reason = "most values have no length at all")]
    pub fn len(&self) -> Option<usize> {
        Some(match self {
            Value::List(items) => items.len(),
            Value::JsonList(items, _) => items.len(),
            Value::Map(entries) => entries.len(),
            Value::JsonMap(map, _) => map.len(),
            _ => return None,
        })
    }

    /// An item of a list.
    pub fn item(&self, at: usize) -> Option<Value<'a>> {
        match self {
            Value::List(items) => items.get(at).cloned(),
            Value::JsonList(items, type_) => items.get(at).map(|i| Value::of_json(i, type_)),
            _ => None,
        }
    }

    /// Whether it is a list.
    pub fn is_list(&self) -> bool {
        matches!(self, Value::List(_) | Value::JsonList(..))
    }

    /// The items of a list.
    pub fn items(&self) -> Option<Vec<Value<'a>>> {
        if !self.is_list() {
            return None;
        }
        Some((0..self.len()?).filter_map(|i| self.item(i)).collect())
    }

    /// The value of a key of a map, or of a field of an object.
    pub fn member(&self, key: &Value<'a>) -> Option<Value<'a>> {
        match self {
            Value::Map(entries) => entries.iter().find(|(k, _)| k.equal(key)).map(|(_, v)| v.clone()),
            Value::JsonMap(map, type_) => match key {
                Value::String(name) => json_member(map, type_, name),
                _ => None,
            },
            _ => None,
        }
    }

    /// The keys of a map, with its values.
    pub fn entries(&self) -> Option<Vec<(Value<'a>, Value<'a>)>> {
        Some(match self {
            Value::Map(entries) => (**entries).clone(),
            Value::JsonMap(map, type_) => map
                .iter()
                .filter_map(|(k, _)| {
                    Some((Value::String(Cow::Borrowed(k.as_str())), json_member_raw(map, type_, k)?))
                })
                .collect(),
            _ => return None,
        })
    }

    /// CEL's equality: numbers by value, lists and maps by what is in them.
    pub fn equal(&self, other: &Value<'_>) -> bool {
        match (self, other) {
            (Value::Null, Value::Null) => true,
            (Value::Bool(a), Value::Bool(b)) => a == b,
            (Value::String(a), Value::String(b)) => a == b,
            (Value::Bytes(a), Value::Bytes(b)) => a == b,
            (Value::Duration(a), Value::Duration(b)) => a == b,
            (Value::Timestamp(a), Value::Timestamp(b)) => a == b,
            (Value::Type(a), Value::Type(b)) => a == b,
            (Value::Optional(a), Value::Optional(b)) => match (a, b) {
                (None, None) => true,
                (Some(a), Some(b)) => a.equal(b),
                _ => false,
            },
            (Value::Native(a), Value::Native(b)) => match (&**a, &**b) {
                (Native::Quantity(a), Native::Quantity(b)) => a.nanos() == b.nanos(),
                (a, b) => a == b,
            },
            (a, b) if a.is_list() && b.is_list() => {
                let (Some(n), Some(m)) = (a.len(), b.len()) else { return false };
                n == m
                    && (0..n).all(|i| match (a.item(i), b.item(i)) {
                        (Some(x), Some(y)) => x.equal(&y),
                        _ => false,
                    })
            }
            (a @ (Value::Map(_) | Value::JsonMap(..)), b @ (Value::Map(_) | Value::JsonMap(..))) => {
                let (Some(x), Some(y)) = (a.entries(), b.entries()) else { return false };
                x.len() == y.len() && x.iter().all(|(k, v)| y.iter().any(|(l, w)| k.equal(l) && v.equal(w)))
            }
            (a, b) => a.is_number() && b.is_number() && a.compare(b) == Some(Ordering::Equal),
        }
    }

    /// Whether it is an int, a uint or a double.
    pub fn is_number(&self) -> bool {
        matches!(self, Value::Int(_) | Value::Uint(_) | Value::Double(_))
    }

    /// CEL's order; none where two values have none.
    pub fn compare(&self, other: &Value<'_>) -> Option<Ordering> {
        match (self, other) {
            (Value::Bool(a), Value::Bool(b)) => Some(a.cmp(b)),
            (Value::Int(a), Value::Int(b)) => Some(a.cmp(b)),
            (Value::Uint(a), Value::Uint(b)) => Some(a.cmp(b)),
            (Value::Double(a), Value::Double(b)) => a.partial_cmp(b),
            (Value::Int(a), Value::Uint(b)) => Some(i128::from(*a).cmp(&i128::from(*b))),
            (Value::Uint(a), Value::Int(b)) => Some(i128::from(*a).cmp(&i128::from(*b))),
            (Value::Int(a), Value::Double(b)) => (*a as f64).partial_cmp(b),
            (Value::Double(a), Value::Int(b)) => a.partial_cmp(&(*b as f64)),
            (Value::Uint(a), Value::Double(b)) => (*a as f64).partial_cmp(b),
            (Value::Double(a), Value::Uint(b)) => a.partial_cmp(&(*b as f64)),
            (Value::String(a), Value::String(b)) => Some(a.cmp(b)),
            (Value::Bytes(a), Value::Bytes(b)) => Some(a.cmp(b)),
            (Value::Duration(a), Value::Duration(b)) => Some(a.cmp(b)),
            (Value::Timestamp(a), Value::Timestamp(b)) => Some(a.cmp(b)),
            _ => None,
        }
    }

    /// The value as JSON; an error for what JSON does not have.
    pub fn to_json(&self) -> Result<Json, String> {
        Ok(match self {
            Value::Null | Value::Optional(None) => Json::Null,
            Value::Bool(b) => (*b).into(),
            Value::Int(i) => (*i).into(),
            Value::Uint(u) => (*u).into(),
            Value::Double(d) => (*d).into(),
            Value::String(s) => s.as_ref().into(),
            Value::Timestamp(t) => t.to_string().into(),
            Value::Duration(d) => time::show_duration(d).into(),
            Value::Bytes(b) => time::to_base64(b).into(),
            Value::Optional(Some(v)) => v.to_json()?,
            Value::Type(t) => t.as_ref().into(),
            Value::Native(n) => match &**n {
                Native::Quantity(q) => q.canonical().into(),
                Native::Ip(ip) => ip.to_string().into(),
                Native::Cidr(ip, bits) => format!("{ip}/{bits}").into(),
                _ => return Err(format!("a {} cannot be written", self.type_name())),
            },
            list if list.is_list() => {
                let items: Result<Vec<Json>, String> =
                    list.items().unwrap_or_default().iter().map(Value::to_json).collect();
                Json::Array(items?.into())
            }
            map => {
                let mut out = Map::new();
                for (key, value) in map.entries().unwrap_or_default() {
                    let Value::String(key) = key else { return Err("unexpected key type".into()) };
                    out.insert(key.into_owned(), value.to_json()?);
                }
                Json::Object(out)
            }
        })
    }
}

/// A member by its name in expressions.
fn json_member<'a>(map: &'a Map, type_: &Type, name: &str) -> Option<Value<'a>> {
    match type_ {
        Type::Object(o) => {
            let field = o.fields.get(name)?;
            map.get(&field.json).map(|v| Value::of_json(v, &field.type_))
        }
        _ => json_member_raw(map, type_, name),
    }
}

/// A member by its name in JSON.
fn json_member_raw<'a>(map: &'a Map, type_: &Type, name: &str) -> Option<Value<'a>> {
    let found = map.get(name)?;
    Some(match type_ {
        Type::Map(_, value) => Value::of_json(found, value),
        Type::Object(o) => {
            let known = o.fields.values().find(|f| f.json == name);
            Value::of_json(found, known.map_or(&Type::Dyn, |f| &f.type_))
        }
        _ => Value::of_json(found, &Type::Dyn),
    })
}
