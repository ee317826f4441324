//! From messages to canonical JSON values.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use pilothouse_apimachinery::json::{Map, Text, Value};
use pilothouse_apimachinery::quantity::Quantity;
use pilothouse_apimachinery::time::{Timestamp, format_duration};

use super::wire::Reader;
use super::{Error, has_prefix};
use crate::catalogue::{Catalogue, Element, Field, Form, Part, Scalar, Shape, Type};
use crate::decode::{double, empty_field, empty_struct, is_empty_scalar};
use crate::schema::Schema;

/// Messages may not lie deeper in each other than this.
const MAX_DEPTH: usize = 200;

pub(super) fn message(schema: Schema, bytes: &[u8]) -> Result<Value, Error> {
    let decoder = Decoder { catalogue: schema.catalogue };
    decoder.object(schema.type_, bytes, 0)
}

struct Decoder {
    catalogue: &'static Catalogue,
}

/// The fields of a message as far as it has been read.
#[derive(Default)]
struct Found {
    map: Map,
    /// Members of maps, in the order of the message: sorted at the end, all at once.
    maps: Vec<(&'static str, Vec<(Text, Value)>)>,
}

impl Found {
    fn map(mut self) -> Map {
        for (name, members) in self.maps {
            self.map.insert(Text::const_new(name), Map::from_iter(members));
        }
        self.map
    }
}

impl Decoder {
    fn object(&self, type_: &'static Type, bytes: &[u8], depth: usize) -> Result<Value, Error> {
        if type_.form != Form::Object {
            return self.formed(type_, bytes, depth);
        }
        let mut found = Found::default();
        self.fields(type_, bytes, depth, &mut found)?;
        let mut map = found.map();
        for field in &type_.fields {
            let keep = match map.get(field.json) {
                None | Some(Value::Null) => !field.always_present(),
                Some(v) => !field.omitempty || field.pointer || field.always_present() || !is_empty_scalar(v),
            };
            if !keep {
                if field.always_present() {
                    map.insert(Text::const_new(field.json), empty_field(self.catalogue, field));
                } else {
                    map.remove(field.json);
                }
            } else if matches!(map.get(field.json), Some(Value::Null)) {
                map.remove(field.json);
            }
        }
        Ok(Value::Object(map))
    }

    /// A schema, or something simpler in its place.
    fn formed(&self, type_: &'static Type, bytes: &[u8], depth: usize) -> Result<Value, Error> {
        let mut found = Found::default();
        self.fields(type_, bytes, depth, &mut found)?;
        let mut map = found.map();
        let mut take = |name: &str| map.remove(name).filter(|v| !v.is_null());
        Ok(match type_.form {
            Form::OrBool => {
                let allows = take("Allows").unwrap_or(Value::Bool(false));
                take("Schema").unwrap_or(allows)
            }
            _ => {
                let list = take("JSONSchemas").or_else(|| take("Property"));
                list.or_else(|| take("Schema")).unwrap_or(Value::Null)
            }
        })
    }

    fn fields(
        &self,
        type_: &'static Type,
        bytes: &[u8],
        depth: usize,
        found: &mut Found,
    ) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            return Err(Error::TooDeep);
        }
        let mut reader = Reader::new(bytes);
        while let Some((number, wire)) = reader.tag()? {
            let part = type_.parts.binary_search_by_key(&number, |(n, _)| *n).ok().map(|i| type_.parts[i].1);
            match part {
                None => reader.skip(wire)?,
                Some(Part::Embedded(id)) => {
                    if wire != 2 {
                        return Err(Error::WireType(wire, type_.name()));
                    }
                    self.fields(self.catalogue.get(id), reader.bytes()?, depth + 1, found)?;
                }
                Some(Part::Field(index)) => {
                    self.field(&type_.fields[usize::from(index)], wire, &mut reader, depth, found)?;
                }
            }
        }
        Ok(())
    }

    fn field(
        &self,
        field: &'static Field,
        wire: u8,
        reader: &mut Reader<'_>,
        depth: usize,
        found: &mut Found,
    ) -> Result<(), Error> {
        let name = field.json;
        let map = &mut found.map;
        match field.shape {
            Shape::Scalar(s) => {
                let value = scalar(s, wire, reader, name)?;
                map.insert(Text::const_new(name), value);
            }
            Shape::Struct(id) => {
                let type_ = self.catalogue.get(id);
                let value = self.object(type_, delimited(wire, reader, name)?, depth + 1)?;
                map.insert(Text::const_new(name), value);
            }
            Shape::List(_) if field.wrapped => {
                let items = string_list(delimited(wire, reader, name)?)?;
                map.insert(Text::const_new(name), items);
            }
            Shape::List(element) => {
                let list = map.entry(name).or_insert_with(|| Value::Array(Vec::new().into()));
                let Value::Array(list) = list else { return Ok(()) };
                // Lists of numbers may come packed.
                if let (2, Element::Scalar(s @ (Scalar::Int32 | Scalar::Int64 | Scalar::Bool))) =
                    (wire, element)
                {
                    let mut packed = Reader::new(reader.bytes()?);
                    while !packed.is_empty() {
                        list.push(scalar(s, 0, &mut packed, name)?);
                    }
                } else {
                    list.push(self.element(element, wire, reader, name, depth)?);
                }
            }
            Shape::Map(element) => {
                let mut key = String::new();
                let mut value = None;
                let mut entry = Reader::new(delimited(wire, reader, name)?);
                while let Some((number, wire)) = entry.tag()? {
                    match number {
                        1 if wire == 2 => key = entry.string()?,
                        2 => value = Some(self.element(element, wire, &mut entry, name, depth)?),
                        _ => entry.skip(wire)?,
                    }
                }
                let value = value.unwrap_or_else(|| self.absent(element));
                match found.maps.iter_mut().find(|(n, _)| *n == name) {
                    Some((_, members)) => members.push((key.into(), value)),
                    None => found.maps.push((name, vec![(key.into(), value)])),
                }
            }
        }
        Ok(())
    }

    /// The value of a map's entry that has none.
    fn absent(&self, element: Element) -> Value {
        match element {
            Element::Struct(id) => empty_struct(self.catalogue, self.catalogue.get(id)),
            Element::StringList => Value::Null,
            Element::Scalar(s) => match s {
                Scalar::Bool => Value::Bool(false),
                Scalar::Int32 | Scalar::Int64 | Scalar::Double | Scalar::IntOrString => Value::from(0),
                Scalar::Quantity => Value::from("0"),
                Scalar::Duration => Value::from("0s"),
                Scalar::String | Scalar::Bytes => Value::from(""),
                Scalar::Time | Scalar::MicroTime | Scalar::RawExtension | Scalar::FieldsV1 | Scalar::Json => {
                    Value::Null
                }
            },
        }
    }

    fn element(
        &self,
        element: Element,
        wire: u8,
        reader: &mut Reader<'_>,
        name: &'static str,
        depth: usize,
    ) -> Result<Value, Error> {
        match element {
            Element::Scalar(s) => scalar(s, wire, reader, name),
            Element::Struct(id) => {
                self.object(self.catalogue.get(id), delimited(wire, reader, name)?, depth + 1)
            }
            Element::StringList => string_list(delimited(wire, reader, name)?),
        }
    }
}

fn delimited<'a>(wire: u8, reader: &mut Reader<'a>, name: &'static str) -> Result<&'a [u8], Error> {
    if wire != 2 {
        return Err(Error::WireType(wire, name));
    }
    reader.bytes()
}

fn string_list(bytes: &[u8]) -> Result<Value, Error> {
    let mut reader = Reader::new(bytes);
    let mut items = Vec::new();
    while let Some((number, wire)) = reader.tag()? {
        match (number, wire) {
            (1, 2) => items.push(Value::String(reader.string()?.into())),
            _ => reader.skip(wire)?,
        }
    }
    Ok(Value::Array(items.into()))
}

/// Two numbers and a text: all that the messages behind scalars hold.
#[derive(Default)]
struct Small<'a> {
    numbers: [i64; 2],
    bytes: Option<&'a [u8]>,
}

fn small<'a>(wire: u8, reader: &mut Reader<'a>, name: &'static str) -> Result<Small<'a>, Error> {
    let mut found = Small::default();
    let mut inner = Reader::new(delimited(wire, reader, name)?);
    while let Some((number, wire)) = inner.tag()? {
        match (number, wire) {
            (1 | 2, 0) => found.numbers[number as usize - 1] = inner.varint()?.cast_signed(),
            (1 | 3, 2) => found.bytes = Some(inner.bytes()?),
            _ => inner.skip(wire)?,
        }
    }
    Ok(found)
}

fn timestamp(small: &Small<'_>) -> Result<Timestamp, Error> {
    let [seconds, nanos] = small.numbers;
    // Years 1 to 9999, as JSON can write them.
    if !(-62_135_596_800..=253_402_300_799).contains(&seconds) {
        return Err(Error::Value("Time.MarshalJSON: year outside of range [0,9999]".into()));
    }
    Ok(Timestamp { seconds, nanos: u32::try_from(nanos).unwrap_or(0).min(999_999_999) })
}

fn scalar(s: Scalar, wire: u8, reader: &mut Reader<'_>, name: &'static str) -> Result<Value, Error> {
    let varint = |reader: &mut Reader<'_>| {
        if wire == 0 { reader.varint() } else { Err(Error::WireType(wire, name)) }
    };
    Ok(match s {
        Scalar::String => {
            let bytes = delimited(wire, reader, name)?;
            Value::String(String::from_utf8_lossy(bytes).into_owned().into())
        }
        Scalar::Bool => Value::Bool(varint(reader)? != 0),
        #[expect(clippy::cast_possible_truncation, reason = "32-bit numbers are sign-extended on the wire")]
        Scalar::Int32 => Value::from(varint(reader)? as i32),
        Scalar::Int64 => Value::from(varint(reader)?.cast_signed()),
        Scalar::Double => {
            if wire != 1 {
                return Err(Error::WireType(wire, name));
            }
            let number = f64::from_bits(reader.fixed64()?);
            double(number).ok_or_else(|| Error::Value(format!("json: unsupported value: {number}")))?
        }
        Scalar::Bytes => Value::String(STANDARD.encode(delimited(wire, reader, name)?).into()),
        Scalar::Time => match timestamp(&zero_if_empty(small(wire, reader, name)?))? {
            t if t.is_zero() => Value::Null,
            t => Value::String(t.rfc3339().into()),
        },
        Scalar::MicroTime => match timestamp(&zero_if_empty(small(wire, reader, name)?))? {
            t if t.is_zero() => Value::Null,
            t => Value::String(t.rfc3339_micro().into()),
        },
        Scalar::Duration => Value::String(format_duration(small(wire, reader, name)?.numbers[0]).into()),
        Scalar::Quantity => {
            let text = small(wire, reader, name)?;
            let text = String::from_utf8_lossy(text.bytes.unwrap_or(b"0"));
            let quantity = Quantity::parse(&text).map_err(|e| Error::Value(e.to_string()))?;
            Value::String(quantity.to_string().into())
        }
        Scalar::IntOrString => {
            let found = small(wire, reader, name)?;
            #[expect(
                clippy::cast_possible_truncation,
                reason = "32-bit numbers are sign-extended on the wire"
            )]
            if found.numbers[0] == 1 {
                Value::String(String::from_utf8_lossy(found.bytes.unwrap_or_default()).into_owned().into())
            } else {
                Value::from(found.numbers[1] as i32)
            }
        }
        Scalar::RawExtension | Scalar::FieldsV1 | Scalar::Json => match small(wire, reader, name)?.bytes {
            None | Some([]) => Value::Null,
            Some(raw) if has_prefix(raw) => {
                let envelope = super::open(raw)?;
                return Err(Error::Value(format!("cannot show an embedded {} as JSON", envelope.kind)));
            }
            Some(raw) => serde_json::from_slice(raw).map_err(|e| Error::Value(e.to_string()))?,
        },
    })
}

/// A time without content is no time, which is not 1970.
fn zero_if_empty(mut found: Small<'_>) -> Small<'_> {
    if found.numbers == [0, 0] {
        found.numbers[0] = -62_135_596_800;
    }
    found
}
