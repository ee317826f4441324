//! Decoding into Go's canonical form: what `encoding/json` makes of a document that is read into a typed struct and
//! written again.
//!
//! Unknown fields are dropped (and reported, for strict validation), `null` is absence, empty `omitempty` fields
//! are gone and all others present, quantities, times and bytes are canonical. One exception: maps and lists that
//! the client sent empty stay until [`crate::normalize::canonicalize`], for validation tells them from absent ones.

pub mod request;
mod syntax;
mod yaml;

pub use syntax::fault as json_fault;
pub use yaml::{yaml, yaml_of};

use std::cell::RefCell;
use std::collections::HashSet;
use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use pilothouse_apimachinery::json::{Map, Name, Number, Text, Value};
use pilothouse_apimachinery::quantity::Quantity;
use pilothouse_apimachinery::time::{Timestamp, format_duration, parse_duration};
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::catalogue::{Catalogue, Element, Field, Form, Scalar, Shape, Type};
use crate::schema::Schema;

/// Objects may not be nested deeper than this. (JSON text is limited to 128 before.)
const MAX_DEPTH: usize = 200;

/// A decoded object and what strict validation has against it.
#[derive(Debug, Clone, PartialEq)]
pub struct Decoded {
    /// The object.
    pub object: Value,
    /// `unknown field "spec.x"`, `duplicate field "spec.y"`, in the order of the document.
    pub faults: Vec<String>,
}

/// Decodes JSON text.
pub fn from_slice(schema: Schema, json: &[u8]) -> Result<Decoded, String> {
    // All text is looked at once here, and not each string by itself. Where it is no text the error tells the place.
    match std::str::from_utf8(json) {
        Ok(text) => read(schema, serde_json::Deserializer::from_str(text)),
        Err(_) => read(schema, serde_json::Deserializer::from_slice(json)),
    }
}

fn read<'de, R: serde_json::de::Read<'de>>(
    schema: Schema,
    mut deserializer: serde_json::Deserializer<R>,
) -> Result<Decoded, String> {
    let decoded = decode(schema, &mut deserializer)?;
    deserializer.end().map_err(|e| e.to_string())?;
    Ok(decoded)
}

/// Whether decoding would leave a value as it is, without a fault, as far as that can be told at little cost: all but
/// plain scalars has to be as in an object that is `known` to be decoded, best shared with it.
pub fn is_decoded(schema: Schema, value: &Value, known: &Value) -> bool {
    is_decoded_as(schema.catalogue, Shape::Struct(schema.type_.id), value, Some(known), 0)
}

fn is_decoded_as(
    catalogue: &Catalogue,
    shape: Shape,
    value: &Value,
    known: Option<&Value>,
    depth: usize,
) -> bool {
    if known.is_some_and(|known| known.is_shared_with(value)) {
        return true;
    }
    // A patch may have copied a value into itself, again and again.
    if depth > MAX_DEPTH {
        return false;
    }
    let below = |shape: Shape, value: &Value, known: Option<&Value>| {
        is_decoded_as(catalogue, shape, value, known, depth + 1)
    };
    match (shape, value) {
        (Shape::Struct(id), Value::Object(map)) => {
            let type_ = catalogue.get(id);
            let known = |name: &str| known.and_then(|known| known.get(name));
            let is_field = |name: &str, value: &Value| {
                type_.field(name).is_some_and(|field| {
                    let left_out = field.omitempty && !field.pointer && is_empty_scalar(value);
                    (!left_out && below(field.shape, value, known(name)))
                        || (field.always_present() && known(name) == Some(value))
                })
            };
            type_.form == Form::Object
                && map.iter().all(|(name, value)| is_field(name, value))
                && type_.always_present().all(|(_, field)| map.contains_key(field.json))
        }
        (Shape::List(element), Value::Array(items)) => items
            .iter()
            .enumerate()
            .all(|(i, item)| below(element.into(), item, known.and_then(|known| known.get(i)))),
        (Shape::Map(element), Value::Object(map)) => map.iter().all(|(name, item)| {
            below(element.into(), item, known.and_then(|known| known.get(name.as_str())))
        }),
        (Shape::Scalar(Scalar::String), Value::String(_)) | (Shape::Scalar(Scalar::Bool), Value::Bool(_)) => {
            true
        }
        (Shape::Scalar(Scalar::Int32), Value::Number(n)) => {
            n.as_i64().is_some_and(|n| i32::try_from(n).is_ok())
        }
        (Shape::Scalar(Scalar::Int64), Value::Number(n)) => n.is_i64(),
        (Shape::Scalar(Scalar::Time), Value::String(text)) => {
            Timestamp::parse(text).is_ok_and(|time| !time.is_zero() && time.rfc3339() == text.as_str())
        }
        (Shape::Scalar(_), value) => !value.is_null() && known == Some(value),
        _ => false,
    }
}

/// Decodes a JSON value.
pub fn from_value(schema: Schema, value: Value) -> Result<Decoded, String> {
    if pilothouse_apimachinery::json::deeper_than(&value, MAX_DEPTH) {
        return Err("exceeded max depth".into());
    }
    decode(schema, value)
}

fn decode<'de, D>(schema: Schema, deserializer: D) -> Result<Decoded, String>
where
    D: Deserializer<'de>,
{
    let context =
        Context { catalogue: schema.catalogue, faults: RefCell::new(Vec::new()), error: RefCell::new(None) };
    let seed =
        Seed { context: &context, shape: Shape::Struct(schema.type_.id), owner: None, path: &Path::ROOT };
    match seed.deserialize(deserializer) {
        Ok(value) => {
            let object = value.unwrap_or_else(|| empty_struct(schema.catalogue, schema.type_));
            Ok(Decoded { object, faults: context.faults.into_inner() })
        }
        Err(e) => Err(context.error.into_inner().unwrap_or_else(|| e.to_string())),
    }
}

struct Context {
    catalogue: &'static Catalogue,
    faults: RefCell<Vec<String>>,
    /// The text of the error, which the deserializer would lengthen by line and column.
    error: RefCell<Option<String>>,
}

#[derive(Clone, Copy)]
enum Step<'a> {
    Root,
    Name(&'a str),
    Index(usize),
}

/// Where we are, as a list of steps on the stack.
#[derive(Clone, Copy)]
struct Path<'a> {
    parent: Option<&'a Path<'a>>,
    step: Step<'a>,
}

impl Path<'static> {
    const ROOT: Path<'static> = Path { parent: None, step: Step::Root };
}

impl<'a> Path<'a> {
    fn child(&'a self, step: Step<'a>) -> Path<'a> {
        Path { parent: Some(self), step }
    }

    /// With indices, for strict validation; without, for errors of Go's decoder.
    fn text(&self, indices: bool) -> String {
        let mut out = self.parent.map_or_else(String::new, |p| p.text(indices));
        match self.step {
            Step::Root => {}
            Step::Name(name) => {
                if !out.is_empty() {
                    out.push('.');
                }
                out.push_str(name);
            }
            Step::Index(i) if indices => out.push_str(&format!("[{i}]")),
            Step::Index(_) => {}
        }
        out
    }
}

fn scalar_name(scalar: Scalar) -> &'static str {
    match scalar {
        Scalar::String | Scalar::Time | Scalar::MicroTime | Scalar::Duration => "string",
        Scalar::Bool => "bool",
        Scalar::Int32 | Scalar::IntOrString => "int32",
        Scalar::Int64 => "int64",
        Scalar::Double => "float64",
        Scalar::Bytes => "[]uint8",
        Scalar::Quantity => "resource.Quantity",
        Scalar::RawExtension => "runtime.RawExtension",
        Scalar::FieldsV1 => "v1.FieldsV1",
        Scalar::Json => "v1.JSON",
    }
}

/// The type as Go names it.
fn go_type(catalogue: &Catalogue, shape: Shape) -> String {
    match shape {
        Shape::Scalar(s) => scalar_name(s).into(),
        Shape::Struct(id) => catalogue.get(id).go_name().into(),
        Shape::List(e) => format!("[]{}", go_type(catalogue, e.into())),
        Shape::Map(e) => format!("map[string]{}", go_type(catalogue, e.into())),
    }
}

/// The empty value of a field that is always present.
pub(crate) fn empty_field(catalogue: &Catalogue, field: &Field) -> Value {
    if field.pointer { Value::Null } else { empty(catalogue, field.shape) }
}

fn empty(catalogue: &Catalogue, shape: Shape) -> Value {
    match shape {
        Shape::Struct(id) => empty_struct(catalogue, catalogue.get(id)),
        Shape::List(_) | Shape::Map(_) => Value::Null,
        Shape::Scalar(s) => match s {
            Scalar::String => Value::String(Text::default()),
            Scalar::Bool => Value::Bool(false),
            Scalar::Int32 | Scalar::Int64 | Scalar::IntOrString | Scalar::Double => Value::from(0),
            Scalar::Quantity => Value::from("0"),
            Scalar::Duration => Value::from("0s"),
            Scalar::Bytes
            | Scalar::Time
            | Scalar::MicroTime
            | Scalar::RawExtension
            | Scalar::FieldsV1
            | Scalar::Json => Value::Null,
        },
    }
}

/// An empty struct with the fields that are always present.
pub(crate) fn empty_struct(catalogue: &Catalogue, type_: &Type) -> Value {
    match type_.form {
        Form::Object => Value::Object(
            type_
                .always_present()
                .map(|(_, f)| (Text::const_new(f.json), empty_field(catalogue, f)))
                .collect(),
        ),
        Form::OrBool => Value::Bool(false),
        Form::OrArray | Form::OrStringArray => Value::Null,
    }
}

/// Whether Go's `omitempty` leaves the value out. Empty lists and maps are kept here.
pub(crate) fn is_empty_scalar(v: &Value) -> bool {
    match v {
        Value::Null | Value::Bool(false) => true,
        Value::String(s) => s.is_empty(),
        Value::Number(n) => n.as_f64() == Some(0.0),
        _ => false,
    }
}

/// A floating-point number as Go writes it: whole ones without a fraction. Nothing where it is no number.
#[expect(clippy::cast_possible_truncation, reason = "checked to be whole and in range")]
pub(crate) fn double(n: f64) -> Option<Value> {
    if n.fract() == 0.0 && n.abs() < 9e18 {
        Some(Value::from(n as i64))
    } else {
        Number::from_f64(n).map(Value::Number)
    }
}

/// Canonical text of a quantity in a list of resources: rounded up to thousandths, as its defaults do.
fn resource_quantity(text: &str) -> Result<String, String> {
    let mut quantity = Quantity::parse(text).map_err(|e| e.to_string())?;
    quantity.round_up_to_milli();
    Ok(quantity.to_string())
}

/// Decodes one value of a known type; `None` is absence.
#[derive(Clone, Copy)]
struct Seed<'a> {
    context: &'a Context,
    shape: Shape,
    /// The struct whose field it is.
    owner: Option<&'static Type>,
    path: &'a Path<'a>,
}

impl Seed<'_> {
    fn fail<E: serde::de::Error>(&self, text: impl Into<String>) -> E {
        let text = text.into();
        let error = E::custom(&text);
        self.context.error.borrow_mut().get_or_insert(text);
        error
    }

    /// The value is of the wrong JSON type.
    fn wrong<E: serde::de::Error>(&self, found: &str) -> E {
        let type_ = go_type(self.context.catalogue, self.shape);
        let place = match self.owner {
            Some(owner) => {
                format!("Go struct field {}.{} of type {type_}", owner.name(), self.path.text(false))
            }
            None => format!("Go value of type {type_}"),
        };
        self.fail(format!("json: cannot unmarshal {found} into {place}"))
    }

    fn integer<E: serde::de::Error>(&self, n: i64) -> Result<Option<Value>, E> {
        match self.shape {
            Shape::Scalar(Scalar::Int64) => Ok(Some(n.into())),
            Shape::Scalar(Scalar::Int32 | Scalar::IntOrString) if i32::try_from(n).is_ok() => {
                Ok(Some(n.into()))
            }
            Shape::Scalar(Scalar::Double) => Ok(Some(n.into())),
            Shape::Scalar(Scalar::Quantity) => self.quantity(&n.to_string()),
            Shape::Scalar(Scalar::String) => Err(self.wrong("number")),
            _ => Err(self.wrong(&format!("number {n}"))),
        }
    }

    fn quantity<E: serde::de::Error>(&self, text: &str) -> Result<Option<Value>, E> {
        match Quantity::parse(text.trim()) {
            Ok(q) => Ok(Some(q.to_string().into())),
            Err(e) => Err(self.fail(e.to_string())),
        }
    }

    fn text<E: serde::de::Error>(&self, s: &str) -> Result<Option<Value>, E> {
        let Shape::Scalar(scalar) = self.shape else { return Err(self.wrong("string")) };
        let value = match scalar {
            Scalar::String | Scalar::IntOrString => return Ok(Some(s.into())),
            Scalar::Quantity => return self.quantity(s),
            Scalar::Time => match Timestamp::parse(s) {
                Ok(t) if t.is_zero() => return Ok(Some(Value::Null)),
                Ok(t) => t.rfc3339(),
                Err(e) => return Err(self.fail(e)),
            },
            Scalar::MicroTime => match Timestamp::parse_micro(s) {
                Ok(t) if t.is_zero() => return Ok(Some(Value::Null)),
                Ok(t) => t.rfc3339_micro(),
                Err(e) => return Err(self.fail(e)),
            },
            Scalar::Duration => match parse_duration(s) {
                Ok(d) => format_duration(d),
                Err(e) => return Err(self.fail(e)),
            },
            Scalar::Bytes => {
                let bytes = if s.contains(['\n', '\r']) {
                    STANDARD.decode(s.replace(['\n', '\r'], ""))
                } else {
                    STANDARD.decode(s)
                };
                match bytes {
                    Ok(bytes) => STANDARD.encode(bytes),
                    Err(e) => {
                        let at = match e {
                            base64::DecodeError::InvalidByte(at, _)
                            | base64::DecodeError::InvalidLastSymbol(at, _)
                            | base64::DecodeError::InvalidLength(at) => at,
                            base64::DecodeError::InvalidPadding => s.len(),
                        };
                        return Err(self.fail(format!("illegal base64 data at input byte {at}")));
                    }
                }
            }
            _ => return Err(self.wrong("string")),
        };
        Ok(Some(Value::String(value.into())))
    }

    /// Decodes an item of a list or a value of a map.
    fn element<'de, E: Decoder<'de>>(
        &self,
        element: Element,
        step: Step<'_>,
        next: E,
    ) -> Result<E::Found, E::Error> {
        let path = self.path.child(step);
        next.next(Seed { context: self.context, shape: element.into(), owner: self.owner, path: &path })
    }

    /// Notes names that a map has more than once.
    fn note_duplicates(&self, members: &[(Text, Value)]) {
        let mut seen = HashSet::with_capacity(members.len());
        for (name, _) in members {
            if !seen.insert(name) {
                let path = self.path.child(Step::Name(name)).text(true);
                self.context.faults.borrow_mut().push(format!("duplicate field {path:?}"));
            }
        }
    }

    fn object<'de, A: MapAccess<'de>>(&self, type_: &'static Type, mut map: A) -> Result<Value, A::Error> {
        let context = self.context;
        let mut object = Map::new();
        let mut seen = 0u128;
        while let Some(key) = map.next_key_seed(FieldName(type_))? {
            let index = match key {
                Ok(index) => index,
                Err(unknown) => {
                    let path = self.path.child(Step::Name(&unknown)).text(true);
                    context.faults.borrow_mut().push(format!("unknown field {path:?}"));
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
            };
            let field = &type_.fields[index];
            let path = self.path.child(Step::Name(field.json));
            let bit = 1u128 << (index & 127);
            if seen & bit != 0 {
                context.faults.borrow_mut().push(format!("duplicate field {:?}", path.text(true)));
            }
            seen |= bit;
            let seed = Seed { context, shape: field.shape, owner: Some(type_), path: &path };
            match map.next_value_seed(seed)? {
                Some(value) if !field.omitempty || field.pointer || !is_empty_scalar(&value) => {
                    object.insert(Text::const_new(field.json), value);
                }
                // A zero time, kept as `null` where the field is always there.
                Some(_) if field.always_present() => {
                    object.insert(Text::const_new(field.json), empty_field(context.catalogue, field));
                }
                _ => {
                    object.remove(field.json);
                }
            }
        }
        for (index, field) in type_.always_present() {
            if seen & (1u128 << (index & 127)) == 0 || !object.contains_key(field.json) {
                object.insert(Text::const_new(field.json), empty_field(context.catalogue, field));
            }
        }
        Ok(Value::Object(object))
    }
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Option<Value>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Option<Value>, D::Error> {
        match self.shape {
            Shape::Scalar(Scalar::Json | Scalar::RawExtension | Scalar::FieldsV1) => {
                let value = Value::deserialize(deserializer)?;
                Ok(Some(value).filter(|v| !v.is_null()))
            }
            _ => deserializer.deserialize_any(self),
        }
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Option<Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&go_type(self.context.catalogue, self.shape))
    }

    fn visit_bool<E: serde::de::Error>(self, b: bool) -> Result<Option<Value>, E> {
        match self.shape {
            Shape::Scalar(Scalar::Bool) => Ok(Some(b.into())),
            Shape::Struct(id) if self.context.catalogue.get(id).form == Form::OrBool => Ok(Some(b.into())),
            _ => Err(self.wrong("bool")),
        }
    }

    fn visit_i64<E: serde::de::Error>(self, n: i64) -> Result<Option<Value>, E> {
        self.integer(n)
    }

    fn visit_u64<E: serde::de::Error>(self, n: u64) -> Result<Option<Value>, E> {
        match i64::try_from(n) {
            Ok(n) => self.integer(n),
            Err(_) => match self.shape {
                Shape::Scalar(Scalar::Double) => Ok(Some(n.into())),
                Shape::Scalar(Scalar::Quantity) => self.quantity(&n.to_string()),
                _ => Err(self.wrong(&format!("number {n}"))),
            },
        }
    }

    fn visit_f64<E: serde::de::Error>(self, n: f64) -> Result<Option<Value>, E> {
        match self.shape {
            Shape::Scalar(Scalar::Double) => Ok(double(n)),
            Shape::Scalar(Scalar::Quantity) => self.quantity(&n.to_string()),
            // `-0` arrives as a floating-point number.
            _ if n == 0.0 && n.is_sign_negative() => self.integer(0),
            Shape::Scalar(Scalar::String) => Err(self.wrong("number")),
            _ => Err(self.wrong(&format!("number {n:?}"))),
        }
    }

    fn visit_str<E: serde::de::Error>(self, s: &str) -> Result<Option<Value>, E> {
        self.text(s)
    }

    fn visit_string<E: serde::de::Error>(self, s: String) -> Result<Option<Value>, E> {
        match self.shape {
            Shape::Scalar(Scalar::String) => Ok(Some(Value::String(s.into()))),
            _ => self.text(&s),
        }
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<Option<Value>, E> {
        Ok(None)
    }

    fn visit_none<E: serde::de::Error>(self) -> Result<Option<Value>, E> {
        Ok(None)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Option<Value>, A::Error> {
        let element = match self.shape {
            Shape::List(element) => element,
            Shape::Struct(id) => {
                let type_ = self.context.catalogue.get(id);
                let list = match type_.form {
                    Form::OrArray => "JSONSchemas",
                    Form::OrStringArray => "Property",
                    _ => return Err(self.wrong("array")),
                };
                match type_.field(list).map(|f| f.shape) {
                    Some(Shape::List(element)) => element,
                    _ => return Err(self.wrong("array")),
                }
            }
            _ => return Err(self.wrong("array")),
        };
        let mut items = Vec::with_capacity(seq.size_hint().unwrap_or(0).min(64));
        while let Some(item) = self.element(element, Step::Index(items.len()), InSequence(&mut seq))? {
            items.push(item.unwrap_or_else(|| empty(self.context.catalogue, element.into())));
        }
        Ok(Some(Value::Array(items.into())))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Option<Value>, A::Error> {
        match self.shape {
            Shape::Struct(id) => {
                let type_ = self.context.catalogue.get(id);
                if type_.form != Form::Object {
                    let Some(Shape::Struct(id)) = type_.field("Schema").map(|f| f.shape) else {
                        return Err(self.wrong("object"));
                    };
                    return self.object(self.context.catalogue.get(id), map).map(Some);
                }
                self.object(type_, map).map(Some)
            }
            Shape::Map(element) => {
                let resources = element == Element::Scalar(Scalar::Quantity);
                let mut members: Vec<(Text, Value)> = Vec::new();
                let mut sorted = true;
                while let Some(Name(key)) = map.next_key()? {
                    let value = self.element(element, Step::Name(&key), InMap(&mut map))?;
                    let mut value = value.unwrap_or_else(|| match element {
                        // Bytes come back from the store empty, not absent.
                        Element::Scalar(Scalar::Bytes) => Value::from(""),
                        _ => empty(self.context.catalogue, element.into()),
                    });
                    if resources {
                        let text =
                            resource_quantity(value.as_str().unwrap_or("0")).map_err(A::Error::custom)?;
                        value = Value::String(text.into());
                    }
                    sorted &= members.last().is_none_or(|(last, _)| *last < key);
                    members.push((key, value));
                }
                if !sorted {
                    self.note_duplicates(&members);
                }
                Ok(Some(Value::Object(Map::from(members))))
            }
            _ => Err(self.wrong("object")),
        }
    }
}

/// The next value of a list or map.
trait Decoder<'de> {
    type Found;
    type Error;
    fn next(self, seed: Seed<'_>) -> Result<Self::Found, Self::Error>;
}

struct InSequence<'a, A>(&'a mut A);
struct InMap<'a, A>(&'a mut A);

impl<'de, A: SeqAccess<'de>> Decoder<'de> for InSequence<'_, A> {
    type Found = Option<Option<Value>>;
    type Error = A::Error;
    fn next(self, seed: Seed<'_>) -> Result<Self::Found, A::Error> {
        self.0.next_element_seed(seed)
    }
}

impl<'de, A: MapAccess<'de>> Decoder<'de> for InMap<'_, A> {
    type Found = Option<Value>;
    type Error = A::Error;
    fn next(self, seed: Seed<'_>) -> Result<Self::Found, A::Error> {
        self.0.next_value_seed(seed)
    }
}

/// Finds a field by its name, without a copy of the name; the name itself where there is no such field.
struct FieldName(&'static Type);

impl<'de> DeserializeSeed<'de> for FieldName {
    type Value = Result<usize, String>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for FieldName {
    type Value = Result<usize, String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field's name")
    }

    fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<Self::Value, E> {
        Ok(self.0.field_index(name).ok_or_else(|| name.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use pilothouse_apimachinery::json::json;
    use pilothouse_apimachinery::version::{NEWEST, Release};

    use super::*;

    fn schema(group: &str, version: &str, kind: &str) -> Schema {
        Schema::of(Release::V1_20, group, version, kind).unwrap()
    }

    fn both(schema: Schema, v: Value) -> Result<Value, String> {
        let text = from_slice(schema, v.to_string().as_bytes()).map(|d| d.object);
        let value = from_value(schema, v).map(|d| d.object);
        assert_eq!(text, value);
        value
    }

    #[test]
    fn gos_canonical_form() {
        let deployment = schema("apps", "v1", "Deployment");
        let v = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a", "labels": null, "generation": 0},
            "spec": {"replicas": 0, "paused": false, "template": {"spec": {"containers": [{"name": "c", "env": [{"name": "E", "value": ""}],
                "resources": {"limits": {"cpu": 0.1, "memory": "1024Mi"}}}, null]}}, "bogus": 1}});
        assert_eq!(
            both(deployment, v).unwrap(),
            json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"creationTimestamp": null, "name": "a"},
                "spec": {"replicas": 0, "selector": null, "strategy": {}, "template": {"metadata": {"creationTimestamp": null},
                    "spec": {"containers": [{"name": "c", "env": [{"name": "E"}], "resources": {"limits": {"cpu": "100m", "memory": "1Gi"}}},
                        {"name": "", "resources": {}}]}}},
                "status": {}})
        );
    }

    #[test]
    fn scalars() {
        let secret = schema("", "v1", "Secret");
        let v = json!({"data": {"a": "aGk=", "b": null}, "stringData": {"x": null}, "metadata": {"creationTimestamp": "2021-02-14T17:04:05.5+02:00"}});
        assert_eq!(
            both(secret, v).unwrap(),
            json!({"data": {"a": "aGk=", "b": ""}, "stringData": {"x": ""}, "metadata": {"creationTimestamp": "2021-02-14T15:04:05Z"}})
        );
        let service = schema("", "v1", "Service");
        let v =
            json!({"metadata": {}, "spec": {"ports": [{"port": 80, "targetPort": "http"}, {"port": 81}]}});
        assert_eq!(
            both(service, v).unwrap()["spec"]["ports"],
            json!([{"port": 80, "targetPort": "http"}, {"port": 81, "targetPort": 0}])
        );
        let v = json!({"apiVersion": "v1", "spec": {"renewTime": "2021-02-14T15:04:05.000001Z", "leaseDurationSeconds": 0}});
        assert_eq!(
            both(schema("coordination.k8s.io", "v1", "Lease"), v).unwrap()["spec"],
            json!({"renewTime": "2021-02-14T15:04:05.000001Z", "leaseDurationSeconds": 0})
        );
        let v = json!({"rules": [{"verbs": []}]});
        assert_eq!(
            both(schema("rbac.authorization.k8s.io", "v1", "Role"), v).unwrap()["rules"],
            json!([{"verbs": []}])
        );
    }

    #[test]
    fn wrong_types() {
        let pod = schema("", "v1", "Pod");
        for (v, fault) in [
            (
                json!({"spec": {"containers": [{"name": 1}]}}),
                "json: cannot unmarshal number into Go struct field Container.spec.containers.name of type string",
            ),
            (
                json!({"spec": {"containers": "x"}}),
                "json: cannot unmarshal string into Go struct field PodSpec.spec.containers of type []v1.Container",
            ),
            (
                json!({"spec": {"activeDeadlineSeconds": 1.5}}),
                "json: cannot unmarshal number 1.5 into Go struct field PodSpec.spec.activeDeadlineSeconds of type int64",
            ),
            (
                json!({"spec": {"priority": 3_000_000_000_i64}}),
                "json: cannot unmarshal number 3000000000 into Go struct field PodSpec.spec.priority of type int32",
            ),
            (
                json!({"metadata": {"labels": {"a": true}}}),
                "json: cannot unmarshal bool into Go struct field ObjectMeta.metadata.labels.a of type string",
            ),
            (
                json!({"metadata": []}),
                "json: cannot unmarshal array into Go struct field Pod.metadata of type v1.ObjectMeta",
            ),
            (json!([]), "json: cannot unmarshal array into Go value of type v1.Pod"),
            (
                json!({"spec": {"overhead": {"cpu": "x"}}}),
                "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
            ),
        ] {
            assert_eq!(both(pod, v).unwrap_err(), fault);
        }
        assert!(from_slice(pod, b"{\"spec\":{}} x").is_err());
        assert!(from_slice(pod, b"{").is_err());
        let deep = [b"{\"spec\":".repeat(10_000), b"1".to_vec()].concat();
        assert!(from_slice(pod, &deep).is_err());
        // Unknown fields are skipped whatever they hold.
        let deep = [b"{\"x\":".to_vec(), b"[".repeat(100), b"]".repeat(100), b"}".to_vec()].concat();
        assert!(from_slice(pod, &deep).is_ok());
    }

    #[test]
    fn strict_faults() {
        let pod = schema("", "v1", "Pod");
        let text = br#"{"spec":{"foo":1,"nodeName":"a","nodeName":"b","containers":[{"imag":"x"}]},"metadata":{"labels":{"a":"1","a":"2"}}}"#;
        let decoded = from_slice(pod, text).unwrap();
        assert_eq!(
            decoded.faults,
            [
                "unknown field \"spec.foo\"",
                "duplicate field \"spec.nodeName\"",
                "unknown field \"spec.containers[0].imag\"",
                "duplicate field \"metadata.labels.a\"",
            ]
        );
        assert_eq!(decoded.object["spec"]["nodeName"], "b");
    }

    #[test]
    fn schemas_of_custom_resources() {
        let crd = schema("apiextensions.k8s.io", "v1", "CustomResourceDefinition");
        let schema = json!({"type": "object", "additionalProperties": true, "items": [{"type": "string"}], "default": {"a": 1},
            "properties": {"x": {"items": {"type": "integer"}, "additionalProperties": {"type": "string"}, "enum": [null, 1]}}});
        let v = json!({"spec": {"versions": [{"name": "v1", "schema": {"openAPIV3Schema": schema}}]}});
        let got = both(crd, v).unwrap();
        assert_eq!(got["spec"]["versions"][0]["schema"]["openAPIV3Schema"], schema);
    }

    /// What is taken for decoded is left as it is by decoding; what is shared with something decoded is taken for it.
    #[test]
    fn decoded_values_are_known() {
        let pod = schema("", "v1", "Pod");
        let known = json!({"metadata": {"name": "a", "labels": {"a": "b"}, "creationTimestamp": "2021-02-14T15:04:05Z"},
            "spec": {"containers": [{"name": "c", "image": "i", "resources": {"limits": {"cpu": "100m"}},
                "ports": [{"containerPort": 80}], "securityContext": {}, "livenessProbe": {"httpGet": {"port": "x"}}}],
                "terminationGracePeriodSeconds": 0}, "status": {"conditions": [{"type": "Ready", "status": "True",
                "lastProbeTime": null, "lastTransitionTime": "2021-02-14T15:04:05Z"}]}});
        let known = from_value(pod, known).unwrap().object;
        assert!(is_decoded(pod, &known, &known.clone()));
        let shown = serde_json::to_string(&known).unwrap();
        let read: Value = serde_json::from_str(&shown).unwrap();
        assert!(is_decoded(pod, &read, &known) && !known.is_shared_with(&read));
        let changes: &[(&str, Value, bool)] = &[
            ("/metadata/labels/a", json!("other"), true),
            ("/metadata/labels/a", json!(null), false),
            ("/metadata/labels", json!({}), true),
            ("/metadata/name", json!(""), false),
            ("/metadata/name", json!(1), false),
            ("/metadata/creationTimestamp", json!("2021-02-14T15:04:05Z"), true),
            ("/metadata/creationTimestamp", json!("2021-02-14T17:04:05+02:00"), false),
            ("/metadata/creationTimestamp", json!(null), false),
            ("/spec/containers/0/image", json!("j"), true),
            ("/spec/containers/0/ports/0/containerPort", json!(81), true),
            ("/spec/containers/0/ports/0/containerPort", json!(0), true),
            ("/spec/containers/0/ports/0/containerPort", json!(1_u64 << 40), false),
            ("/spec/containers/0/ports/0", json!({"port": 1}), false),
            ("/spec/containers/0/resources", json!(null), false),
            ("/spec/containers/0/resources/limits/cpu", json!("0.1"), false),
            ("/spec/containers/0", json!({"name": "d"}), false),
            ("/spec/containers", json!([]), true),
            ("/spec/terminationGracePeriodSeconds", json!(1), true),
            ("/status/conditions/0/status", json!("False"), true),
            ("/status/conditions/0/lastTransitionTime", json!("2022-02-14T15:04:05Z"), true),
            ("/status/conditions", json!([null]), false),
        ];
        for (place, changed, expected) in changes {
            let mut value = known.clone();
            *value.pointer_mut(place).unwrap() = changed.clone();
            assert_eq!(is_decoded(pod, &value, &known), *expected, "{place} {changed}");
            if *expected {
                let decoded = from_value(pod, value.clone()).unwrap();
                assert_eq!((decoded.object, decoded.faults), (value, vec![]), "{place} {changed}");
            }
        }
    }

    #[test]
    fn releases_differ() {
        let v = json!({"metadata": {"name": "x"}, "spec": {"os": {"name": "linux"}, "containers": []}});
        let old = from_value(schema("", "v1", "Pod"), v.clone()).unwrap();
        assert_eq!(old.faults, ["unknown field \"spec.os\""]);
        let new = from_value(Schema::of(NEWEST, "", "v1", "Pod").unwrap(), v).unwrap();
        assert_eq!(
            new.object,
            json!({"metadata": {"name": "x"}, "spec": {"os": {"name": "linux"}, "containers": []}, "status": {}})
        );
    }

    #[test]
    fn reads_yaml() {
        assert_eq!(
            yaml(b"a: 1\n8080: [x, ~, 1.5]\ntrue: \"y\"\n").unwrap(),
            json!({"a": 1, "8080": ["x", null, 1.5], "true": "y"})
        );
        assert!(yaml(b"a: [").is_err());
    }
}
