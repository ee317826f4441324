//! The protobuf form of a Swagger 2.0 document: `openapi.v2.Document` of gnostic, by its field numbers.

use pilothouse_apimachinery::json::{Map, Value};

/// A message being written.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut n: u64) {
        loop {
            let byte = (n & 0x7f) as u8;
            n >>= 7;
            if n == 0 {
                return self.0.push(byte);
            }
            self.0.push(byte | 0x80);
        }
    }

    fn bytes(&mut self, number: u32, bytes: &[u8]) {
        self.varint(u64::from(number) << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn text(&mut self, number: u32, value: &Value) {
        if let Some(text) = value.as_str().filter(|t| !t.is_empty()) {
            self.bytes(number, text.as_bytes());
        }
    }

    fn texts(&mut self, number: u32, value: &Value) {
        for item in value.as_array().into_iter().flatten().filter_map(Value::as_str) {
            self.bytes(number, item.as_bytes());
        }
    }

    fn flag(&mut self, number: u32, value: &Value) {
        if value == &Value::Bool(true) {
            self.varint(u64::from(number) << 3);
            self.varint(1);
        }
    }

    fn integer(&mut self, number: u32, value: &Value) {
        if let Some(n) = value.as_i64().filter(|n| *n != 0) {
            self.varint(u64::from(number) << 3);
            self.varint(n as u64);
        }
    }

    fn double(&mut self, number: u32, value: &Value) {
        if let Some(n) = value.as_f64().filter(|n| *n != 0.0) {
            self.varint(u64::from(number) << 3 | 1);
            self.0.extend_from_slice(&n.to_le_bytes());
        }
    }

    fn message(&mut self, number: u32, inner: Message) {
        self.bytes(number, &inner.0);
    }

    /// Entries of a map as messages of a name and a value.
    fn named(&mut self, number: u32, map: &Value, write: fn(&Value) -> Message) {
        for (name, value) in map.as_object().into_iter().flatten() {
            let mut entry = Message::default();
            entry.bytes(1, name.as_bytes());
            entry.message(2, write(value));
            self.message(number, entry);
        }
    }

    /// `x-…` fields.
    fn extensions(&mut self, number: u32, map: &Value) {
        let extensions: Map = map
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(name, _)| name.starts_with("x-"))
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect();
        self.named(number, &Value::Object(extensions), any);
    }
}

/// Encodes a document.
pub fn encode(document: &Value) -> Vec<u8> {
    let d = |name: &str| &document[name];
    let mut out = Message::default();
    out.text(1, d("swagger"));
    let mut info = Message::default();
    info.text(1, &d("info")["title"]);
    info.text(2, &d("info")["version"]);
    out.message(2, info);
    let mut paths = Message::default();
    paths.named(2, d("paths"), path_item);
    out.message(8, paths);
    let mut definitions = Message::default();
    definitions.named(1, d("definitions"), schema);
    out.message(9, definitions);
    for requirement in d("security").as_array().into_iter().flatten() {
        let mut entry = Message::default();
        entry.named(1, requirement, |scopes| {
            let mut list = Message::default();
            list.texts(1, scopes);
            list
        });
        out.message(12, entry);
    }
    let mut security = Message::default();
    security.named(1, d("securityDefinitions"), |definition| {
        let mut key = Message::default();
        key.text(1, &definition["type"]);
        key.text(2, &definition["name"]);
        key.text(3, &definition["in"]);
        key.text(4, &definition["description"]);
        let mut item = Message::default();
        item.message(2, key);
        item
    });
    out.message(13, security);
    out.extensions(16, document);
    out.0
}

/// Any value, as YAML (which JSON is).
fn any(value: &Value) -> Message {
    let mut out = Message::default();
    out.bytes(2, format!("{value}\n").as_bytes());
    out
}

fn path_item(item: &Value) -> Message {
    let mut out = Message::default();
    for (number, method) in
        [(2, "get"), (3, "put"), (4, "post"), (5, "delete"), (6, "options"), (7, "head"), (8, "patch")]
    {
        if item[method].is_object() {
            out.message(number, operation(&item[method]));
        }
    }
    for p in item["parameters"].as_array().into_iter().flatten() {
        out.message(9, parameter(p));
    }
    out.extensions(10, item);
    out
}

fn operation(o: &Value) -> Message {
    let mut out = Message::default();
    out.texts(1, &o["tags"]);
    out.text(2, &o["summary"]);
    out.text(3, &o["description"]);
    out.text(5, &o["operationId"]);
    out.texts(6, &o["produces"]);
    out.texts(7, &o["consumes"]);
    for p in o["parameters"].as_array().into_iter().flatten() {
        out.message(8, parameter(p));
    }
    let mut responses = Message::default();
    responses.named(1, &o["responses"], |response| {
        let mut inner = Message::default();
        inner.text(1, &response["description"]);
        if response["schema"].is_object() {
            let mut item = Message::default();
            item.message(1, schema(&response["schema"]));
            inner.message(2, item);
        }
        let mut value = Message::default();
        value.message(1, inner);
        value
    });
    out.message(9, responses);
    out.texts(10, &o["schemes"]);
    out.flag(11, &o["deprecated"]);
    out.extensions(13, o);
    out
}

/// An item of a list of parameters.
fn parameter(p: &Value) -> Message {
    let mut parameter = Message::default();
    if p["in"] == "body" {
        let mut body = Message::default();
        body.text(1, &p["description"]);
        body.text(2, &p["name"]);
        body.text(3, &p["in"]);
        body.flag(4, &p["required"]);
        body.message(5, schema(&p["schema"]));
        parameter.message(1, body);
    } else {
        // Query parameters may be allowed to be empty, path parameters never: their types have other numbers.
        let (kind, shift) = if p["in"] == "path" { (4, 0) } else { (3, 1) };
        let mut inner = Message::default();
        inner.flag(1, &p["required"]);
        inner.text(2, &p["in"]);
        inner.text(3, &p["description"]);
        inner.text(4, &p["name"]);
        inner.text(5 + shift, &p["type"]);
        inner.text(6 + shift, &p["format"]);
        inner.flag(18 + shift, &p["uniqueItems"]);
        let mut non_body = Message::default();
        non_body.message(kind, inner);
        parameter.message(2, non_body);
    }
    let mut item = Message::default();
    item.message(1, parameter);
    item
}

fn schema(s: &Value) -> Message {
    let mut out = Message::default();
    out.text(1, &s["$ref"]);
    out.text(2, &s["format"]);
    out.text(3, &s["title"]);
    out.text(4, &s["description"]);
    if !s["default"].is_null() {
        out.message(5, any(&s["default"]));
    }
    out.double(6, &s["multipleOf"]);
    out.double(7, &s["maximum"]);
    out.flag(8, &s["exclusiveMaximum"]);
    out.double(9, &s["minimum"]);
    out.flag(10, &s["exclusiveMinimum"]);
    out.integer(11, &s["maxLength"]);
    out.integer(12, &s["minLength"]);
    out.text(13, &s["pattern"]);
    out.integer(14, &s["maxItems"]);
    out.integer(15, &s["minItems"]);
    out.flag(16, &s["uniqueItems"]);
    out.integer(17, &s["maxProperties"]);
    out.integer(18, &s["minProperties"]);
    out.texts(19, &s["required"]);
    for value in s["enum"].as_array().into_iter().flatten() {
        out.message(20, any(value));
    }
    match &s["additionalProperties"] {
        Value::Object(_) => {
            let mut item = Message::default();
            item.message(1, schema(&s["additionalProperties"]));
            out.message(21, item);
        }
        flag @ Value::Bool(_) => {
            let mut item = Message::default();
            item.flag(2, flag);
            out.message(21, item);
        }
        _ => {}
    }
    if s["type"].is_string() {
        let mut item = Message::default();
        item.text(1, &s["type"]);
        out.message(22, item);
    }
    if s["items"].is_object() {
        let mut item = Message::default();
        item.message(1, schema(&s["items"]));
        out.message(23, item);
    }
    for part in s["allOf"].as_array().into_iter().flatten() {
        out.message(24, schema(part));
    }
    if s["properties"].is_object() {
        let mut properties = Message::default();
        properties.named(1, &s["properties"], schema);
        out.message(25, properties);
    }
    out.extensions(31, s);
    out
}
