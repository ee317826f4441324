//! From canonical JSON values to messages.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use pilothouse_apimachinery::json::Value;
use pilothouse_apimachinery::time::{Timestamp, parse_duration};

use super::wire::Writer;
use crate::catalogue::{Catalogue, Element, Form, Part, Scalar, Shape, Type};

/// Writes the fields of an object.
pub(super) fn object(catalogue: &'static Catalogue, type_: &'static Type, value: &Value, out: &mut Writer) {
    match (type_.form, value) {
        (Form::OrBool, Value::Bool(allows)) => out.varint(1, u64::from(*allows)),
        (Form::OrBool, Value::Object(_)) => {
            out.varint(1, 1);
            field(catalogue, 2, shape_of(type_, "Schema"), value, out);
        }
        (Form::OrArray, Value::Array(_)) => field(catalogue, 2, shape_of(type_, "JSONSchemas"), value, out),
        (Form::OrStringArray, Value::Array(_)) => {
            field(catalogue, 2, shape_of(type_, "Property"), value, out)
        }
        (Form::OrArray | Form::OrStringArray, Value::Object(_)) => {
            field(catalogue, 1, shape_of(type_, "Schema"), value, out);
        }
        (Form::Object, Value::Object(map)) => {
            for (number, part) in &type_.parts {
                match part {
                    Part::Embedded(id) => {
                        out.message(*number, |out| object(catalogue, catalogue.get(*id), value, out));
                    }
                    Part::Field(index) => {
                        let f = &type_.fields[usize::from(*index)];
                        match map.get(f.json) {
                            None | Some(Value::Null) => {}
                            Some(value) if f.wrapped => {
                                out.message(*number, |out| field(catalogue, 1, f.shape, value, out));
                            }
                            Some(value) => field(catalogue, *number, f.shape, value, out),
                        }
                    }
                }
            }
        }
        _ => {}
    }
}

fn shape_of(type_: &Type, name: &str) -> Shape {
    type_.field(name).map_or(Shape::Scalar(Scalar::Json), |f| f.shape)
}

fn field(catalogue: &'static Catalogue, number: u32, shape: Shape, value: &Value, out: &mut Writer) {
    match shape {
        Shape::Scalar(s) => scalar(number, s, value, out),
        Shape::Struct(id) => out.message(number, |out| object(catalogue, catalogue.get(id), value, out)),
        Shape::List(element) => {
            for item in value.as_array().into_iter().flatten() {
                item_(catalogue, number, element, item, out);
            }
        }
        Shape::Map(element) => {
            for (key, item) in value.as_object().into_iter().flatten() {
                out.message(number, |out| {
                    out.string(1, key);
                    item_(catalogue, 2, element, item, out);
                });
            }
        }
    }
}

fn item_(catalogue: &'static Catalogue, number: u32, element: Element, value: &Value, out: &mut Writer) {
    match element {
        Element::Scalar(s) => scalar(number, s, value, out),
        Element::Struct(id) => out.message(number, |out| object(catalogue, catalogue.get(id), value, out)),
        Element::StringList => out.message(number, |out| {
            for text in value.as_array().into_iter().flatten() {
                out.string(1, text.as_str().unwrap_or(""));
            }
        }),
    }
}

fn time(number: u32, time: Result<Timestamp, String>, with_nanos: bool, out: &mut Writer) {
    out.message(number, |out| {
        if let Ok(time) = time {
            out.int(1, time.seconds);
            if with_nanos && time.nanos != 0 {
                out.int(2, i64::from(time.nanos));
            }
        }
    });
}

fn scalar(number: u32, s: Scalar, value: &Value, out: &mut Writer) {
    let text = value.as_str().unwrap_or("");
    match s {
        Scalar::String => out.string(number, text),
        Scalar::Bool => out.varint(number, u64::from(value.as_bool().unwrap_or(false))),
        Scalar::Int32 | Scalar::Int64 => out.int(number, value.as_i64().unwrap_or(0)),
        Scalar::Double => out.double(number, value.as_f64().unwrap_or(0.0)),
        Scalar::Bytes => out.bytes(number, &STANDARD.decode(text).unwrap_or_default()),
        Scalar::Time => time(number, Timestamp::parse(text), false, out),
        Scalar::MicroTime => time(number, Timestamp::parse(text), true, out),
        Scalar::Duration => out.message(number, |out| out.int(1, parse_duration(text).unwrap_or(0))),
        Scalar::Quantity => out.message(number, |out| out.string(1, text)),
        Scalar::IntOrString => out.message(number, |out| match value {
            Value::String(text) => {
                out.int(1, 1);
                out.string(3, text);
            }
            other => out.int(2, other.as_i64().unwrap_or(0)),
        }),
        Scalar::RawExtension | Scalar::FieldsV1 | Scalar::Json => out.message(number, |out| {
            if !value.is_null() {
                out.bytes(1, value.to_string().as_bytes());
            }
        }),
    }
}
