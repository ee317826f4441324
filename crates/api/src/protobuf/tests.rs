//! Every type there and back, and malformed input.

use pilothouse_apimachinery::json::{Map, Value, json};
use pilothouse_apimachinery::version::{NEWEST, Release};
use proptest::prelude::*;

use super::*;
use crate::catalogue::{Catalogue, Element, Form, Scalar, Shape, Type};
use crate::normalize::canonicalize;

/// A small generator of numbers.
struct Random(u64);

impl Random {
    fn next(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % below
    }

    fn scalar(&mut self, s: Scalar) -> Value {
        match s {
            Scalar::String => Value::from(["", "a", "ü", "text with words"][self.next(4) as usize]),
            Scalar::Bool => Value::from(self.next(2) == 1),
            Scalar::Int32 => Value::from([0, 1, -1, 80, i32::MAX, i32::MIN][self.next(6) as usize]),
            Scalar::Int64 => Value::from([0, 1, -1, 300, i64::MAX, i64::MIN][self.next(6) as usize]),
            Scalar::Double => [json!(0.5), json!(-1.25), json!(1_000_000_000)][self.next(3) as usize].clone(),
            Scalar::Bytes => Value::from(["", "aGk=", "AAEC"][self.next(3) as usize]),
            Scalar::Time => Value::from("2021-02-14T15:04:05Z"),
            Scalar::MicroTime => Value::from("2021-02-14T15:04:05.000120Z"),
            Scalar::Duration => Value::from(["0s", "1h0m0s", "-1.5s"][self.next(3) as usize]),
            Scalar::Quantity => Value::from(["0", "100m", "1Gi"][self.next(3) as usize]),
            Scalar::IntOrString => {
                [json!(0), json!(8080), json!(-1), json!("25%"), json!("")][self.next(5) as usize].clone()
            }
            Scalar::RawExtension | Scalar::Json => json!({"a": [1, null, "x"]}),
            Scalar::FieldsV1 => json!({"f:metadata": {}}),
        }
    }

    fn element(&mut self, c: &'static Catalogue, e: Element, depth: u32) -> Value {
        match e {
            Element::Scalar(s) => self.scalar(s),
            Element::Struct(id) => self.object(c, c.get(id), depth + 1),
            Element::StringList => json!(["a", ""]),
        }
    }

    fn object(&mut self, c: &'static Catalogue, t: &'static Type, depth: u32) -> Value {
        match t.form {
            Form::OrBool => return json!(self.next(2) == 1),
            Form::OrStringArray => return json!(["a"]),
            Form::OrArray => return json!([{"type": "string"}]),
            Form::Object => {}
        }
        let mut map = Map::new();
        for f in t.fields.iter().filter(|f| !f.type_meta && f.number != 0) {
            if self.next(3) == 0 {
                continue;
            }
            let value = match f.shape {
                Shape::Scalar(s) => self.scalar(s),
                Shape::Struct(id) if depth < 4 => self.object(c, c.get(id), depth + 1),
                Shape::List(e) if depth < 4 => (0..self.next(3)).map(|_| self.element(c, e, depth)).collect(),
                Shape::Map(e) if depth < 4 => {
                    let entries = (0..self.next(3)).map(|i| (format!("k{i}"), self.element(c, e, depth)));
                    Value::Object(entries.collect())
                }
                _ => continue,
            };
            map.insert(f.json.to_string(), value);
        }
        Value::Object(map)
    }
}

#[test]
fn every_type_there_and_back() {
    for release in [Release::V1_20, NEWEST] {
        let catalogue = Catalogue::of(release);
        for type_ in catalogue.types().iter().filter(|t| !t.parts.is_empty() && t.form == Form::Object) {
            let schema = Schema { catalogue, type_ };
            for seed in 0..4 {
                let mut object = Random(seed).object(catalogue, type_, 0);
                canonicalize(schema, &mut object, None);
                let mut back = decode_message(schema, &encode_message(schema, &object)).unwrap();
                canonicalize(schema, &mut back, None);
                assert_eq!(object, back, "{} {seed}", type_.full_name);
            }
        }
    }
}

#[test]
fn known_bytes() {
    let schema = Schema::of(Release::V1_20, "", "v1", "ConfigMap").unwrap();
    let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "creationTimestamp": null}, "data": {"k": "v"}});
    let bytes = encode(schema, &object);
    assert_eq!(
        bytes,
        b"k8s\0\x0a\x0f\x0a\x02v1\x12\x09ConfigMap\x12\x0d\x0a\x03\x0a\x01a\x12\x06\x0a\x01k\x12\x01v\x1a\x00\x22\x00"
    );
    let envelope = open(&bytes).unwrap();
    assert_eq!((envelope.api_version.as_str(), envelope.kind.as_str()), ("v1", "ConfigMap"));
    assert_eq!(decode(schema, &envelope).unwrap(), object);
}

#[test]
fn lists_and_frames() {
    let schema = Schema::of(Release::V1_20, "", "v1", "ConfigMap").unwrap();
    let item = encode_message(schema, &json!({"metadata": {"name": "a"}}));
    let list = encode_list(
        Release::V1_20,
        "v1",
        "ConfigMapList",
        &json!({"resourceVersion": "7"}),
        [&item[..], &item],
    );
    let schema = Schema::of(Release::V1_20, "", "v1", "ConfigMapList").unwrap();
    let back = decode(schema, &open(&list).unwrap()).unwrap();
    assert_eq!(back["metadata"], json!({"resourceVersion": "7"}));
    assert_eq!(back["items"][1]["metadata"]["name"], "a");
    let frame = watch_frame("ADDED", &list);
    assert_eq!(u32::from_be_bytes([frame[0], frame[1], frame[2], frame[3]]) as usize, frame.len() - 4);
}

#[test]
fn malformed() {
    assert_eq!(open(b"{}"), Err(Error::NoPrefix));
    let schema = Schema::of(Release::V1_20, "", "v1", "Pod").unwrap();
    assert_eq!(decode_message(schema, b"\x0a\x05ab"), Err(Error::Truncated));
    assert_eq!(decode_message(schema, &[0xff; 11]), Err(Error::Overflow));
    assert!(matches!(decode_message(schema, b"\x08\x01"), Err(Error::WireType(0, "metadata"))));
    assert!(decode_message(schema, b"\x0b").is_err());
    // Schemas in schemas, deeper than any stack.
    let mut deep = Vec::new();
    for _ in 0..1_000 {
        let mut out = Writer::with_capacity(deep.len() + 8);
        out.bytes(28, &deep);
        deep = out.into_bytes();
    }
    let schema = Schema {
        catalogue: Catalogue::of(Release::V1_20),
        type_: Catalogue::of(Release::V1_20)
            .find("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps")
            .unwrap(),
    };
    assert_eq!(decode_message(schema, &deep), Err(Error::TooDeep));
}

proptest! {
    #[test]
    fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let schema = Schema::of(Release::V1_20, "", "v1", "Pod").unwrap();
        let _ = decode_message(schema, &bytes);
        let _ = open(&[&MAGIC[..], &bytes].concat());
    }

    #[test]
    fn flipped_bytes_never_panic(seed in 0u64..200, at in 0usize..400, byte in any::<u8>()) {
        let schema = Schema::of(Release::V1_20, "", "v1", "Pod").unwrap();
        let mut bytes = encode_message(schema, &Random(seed).object(schema.catalogue, schema.type_, 0));
        if let Some(b) = bytes.get_mut(at) {
            *b = byte;
        }
        let _ = decode_message(schema, &bytes);
    }
}
