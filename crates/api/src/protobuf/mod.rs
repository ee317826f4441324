//! Kubernetes' protobuf, without generated code: the catalogue's field numbers drive it.
//!
//! An object on the wire or in the store is `k8s\0` and a `runtime.Unknown` message, which holds `apiVersion`,
//! `kind` and the object's own message. Lists hold bare messages; watch frames are bare `WatchEvent`s, each with a
//! length before it, whose object has the prefix again.

mod decode;
mod encode;
mod wire;

#[cfg(test)]
mod tests;

use pilothouse_apimachinery::json::Value;
use pilothouse_apimachinery::version::Release;

use crate::schema::Schema;
use wire::{Reader, Writer};

/// What an encoded object begins with.
pub const MAGIC: &[u8; 4] = b"k8s\0";

/// Why bytes are no object.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The prefix is missing.
    #[error("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]")]
    NoPrefix,
    /// It ends within a value.
    #[error("unexpected EOF")]
    Truncated,
    /// A number is too long, or a length too large.
    #[error("proto: integer overflow")]
    Overflow,
    /// A field has another wire type than its type asks for.
    #[error("proto: wrong wireType = {0} for field {1}")]
    WireType(u8, &'static str),
    /// A tag that cannot be.
    #[error("proto: illegal tag {0} (wire type {1})")]
    Tag(u64, u8),
    /// Messages lie too deep in each other.
    #[error("proto: exceeded max depth")]
    TooDeep,
    /// A value is not what its type allows.
    #[error("{0}")]
    Value(String),
}

/// The envelope's content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope<'a> {
    /// `apps/v1`.
    pub api_version: String,
    /// `Deployment`.
    pub kind: String,
    /// The object's message.
    pub raw: &'a [u8],
    /// `application/json` where [`Envelope::raw`] is JSON, `""` or protobuf's type otherwise.
    pub content_type: String,
}

/// Whether the bytes begin as an encoded object does.
pub fn has_prefix(bytes: &[u8]) -> bool {
    bytes.starts_with(MAGIC)
}

/// Opens the envelope.
pub fn open(bytes: &[u8]) -> Result<Envelope<'_>, Error> {
    let message = bytes.strip_prefix(MAGIC).ok_or(Error::NoPrefix)?;
    let mut envelope =
        Envelope { api_version: String::new(), kind: String::new(), raw: &[], content_type: String::new() };
    let mut reader = Reader::new(message);
    while let Some((number, wire)) = reader.tag()? {
        match (number, wire) {
            (1, 2) => {
                let mut meta = Reader::new(reader.bytes()?);
                while let Some((number, wire)) = meta.tag()? {
                    match (number, wire) {
                        (1, 2) => envelope.api_version = meta.string()?,
                        (2, 2) => envelope.kind = meta.string()?,
                        _ => meta.skip(wire)?,
                    }
                }
            }
            (2, 2) => envelope.raw = reader.bytes()?,
            (4, 2) => envelope.content_type = reader.string()?,
            _ => reader.skip(wire)?,
        }
    }
    Ok(envelope)
}

/// Puts a message into the envelope.
pub fn seal(api_version: &str, kind: &str, message: &[u8]) -> Vec<u8> {
    let mut out = Writer::with_capacity(message.len() + 64);
    out.raw(MAGIC);
    out.message(1, |out| {
        out.string(1, api_version);
        out.string(2, kind);
    });
    out.bytes(2, message);
    out.string(3, "");
    out.string(4, "");
    out.into_bytes()
}

/// The bare message of a value of a type. The value must be in canonical form; what does not fit its type is left
/// out.
pub fn encode_message(schema: Schema, object: &Value) -> Vec<u8> {
    let mut out = Writer::with_capacity(512);
    encode::object(schema.catalogue, schema.type_, object, &mut out);
    out.into_bytes()
}

/// An object with its envelope.
pub fn encode(schema: Schema, object: &Value) -> Vec<u8> {
    let text = |name: &str| object.get(name).and_then(Value::as_str).unwrap_or("");
    seal(text("apiVersion"), text("kind"), &encode_message(schema, object))
}

/// A value from its bare message, in canonical form, without `kind` and `apiVersion`.
pub fn decode_message(schema: Schema, message: &[u8]) -> Result<Value, Error> {
    decode::message(schema, message)
}

/// An object from its bytes with the envelope, with `kind` and `apiVersion`. The caller has found the schema by
/// [`open`].
pub fn decode(schema: Schema, envelope: &Envelope<'_>) -> Result<Value, Error> {
    let mut object = if envelope.content_type == "application/json" {
        crate::decode::from_slice(schema, envelope.raw).map_err(Error::Value)?.object
    } else {
        decode_message(schema, envelope.raw)?
    };
    for (name, text) in [("apiVersion", &envelope.api_version), ("kind", &envelope.kind)] {
        if let Some(map) = object.as_object_mut().filter(|_| !text.is_empty()) {
            map.insert(name, Value::String(text.clone().into()));
        }
    }
    Ok(object)
}

/// A list from its items' bare messages, with the envelope. `metadata` is a `ListMeta`.
pub fn encode_list<'a>(
    release: Release,
    api_version: &str,
    list_kind: &str,
    metadata: &Value,
    items: impl IntoIterator<Item = &'a [u8]>,
) -> Vec<u8> {
    let mut out = Writer::with_capacity(4096);
    if let Some(schema) = Schema::meta(release, "ListMeta") {
        out.bytes(1, &encode_message(schema, metadata));
    }
    for item in items {
        out.bytes(2, item);
    }
    seal(api_version, list_kind, &out.into_bytes())
}

/// A `WatchEvent` for a stream: four bytes of length, then the event, whose object is encoded with its envelope.
pub fn watch_frame(event: &str, object: &[u8]) -> Vec<u8> {
    let mut out = Writer::with_capacity(object.len() + 32);
    out.raw(&[0; 4]);
    out.string(1, event);
    out.message(2, |out| out.bytes(1, object));
    let mut frame = out.into_bytes();
    let length = u32::try_from(frame.len() - 4).unwrap_or(u32::MAX);
    frame[..4].copy_from_slice(&length.to_be_bytes());
    frame
}
