//! A field whose JSON text matters, not only its value: v1.20 keeps the data of a ControllerRevision as the bytes that a
//! client has sent, and compares these when it asks whether they have changed.

use std::borrow::Cow;
use std::collections::HashMap;

use pilothouse_apimachinery::json::Value;
use pilothouse_apimachinery::status::Status;
use serde_json::value::RawValue;

use crate::cache::entry::Entry;
use crate::json::str_at;
use crate::registry::Endpoint;

/// The text of a member of a JSON object.
pub fn member(json: &[u8], name: &str) -> Option<Box<RawValue>> {
    let members: HashMap<Cow<'_, str>, &RawValue> = serde_json::from_slice(json).ok()?;
    members.get(name).map(|text| (*text).to_owned())
}

/// The name of the field whose text a resource keeps.
pub fn field(endpoint: &Endpoint) -> Option<&'static str> {
    endpoint.hub.as_kind().and_then(|kind| kind.raw_field).map(|field| field.name)
}

/// Refuses an update that writes the field in other bytes, be its value the same. `sent` is its text in the request;
/// none where the server wrote it anew, as it does for patches.
pub fn check(
    endpoint: &Endpoint,
    current: &Entry,
    object: &Value,
    sent: Option<&RawValue>,
) -> Result<(), Status> {
    let Some(field) = endpoint.hub.as_kind().and_then(|kind| kind.raw_field) else { return Ok(()) };
    let Some(old) = member(current.body(), field.name) else { return Ok(()) };
    let anew = object[field.name].to_string();
    let new = sent.map_or(anew.as_str(), RawValue::get);
    if new == old.get() {
        return Ok(());
    }
    let errors = vec![(field.changed)(new)];
    Err(endpoint.hub.invalid(str_at(object, &["metadata", "name"]), &errors))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_members() {
        let json = br#"{"a": {"x" : 1}, "b\u0061": [ ]}"#;
        assert_eq!(member(json, "a").unwrap().get(), r#"{"x" : 1}"#);
        assert_eq!(member(json, "ba").unwrap().get(), "[ ]");
        assert!(member(json, "c").is_none() && member(b"[]", "a").is_none());
    }
}
