//! Bodies of requests, decoded as a resource's.

use pilothouse_apimachinery::json::{self, Value, str_at};
use pilothouse_apimachinery::status::{Result, Status};
use pilothouse_apimachinery::version::Release;

use super::Resource;
use crate::crd;
use crate::decode::request::{self, Expected, Media};
use crate::decode::{self, Decoded};

impl Resource {
    /// Decodes a request's body in this version: checks kind and version, drops what the type does not have (and
    /// reports it), completes what is always there. For a custom resource only `metadata` has a type. Errors are 400.
    pub fn decode(&self, body: &[u8], media: Media) -> Result<Decoded> {
        match self.schema() {
            Some(schema) => {
                let also_in = |group: &str, version: &str| self.has_version(group, version);
                request::decode(&self.expected(&also_in), schema, body, media)
            }
            None => self.decode_custom(body, media),
        }
    }

    /// The same for a value: the result of a patch of a `known` object, if there is one.
    pub fn decode_value(&self, value: Value, known: Option<&Value>) -> Result<Decoded> {
        match self.schema() {
            Some(schema) => {
                let also_in = |group: &str, version: &str| self.has_version(group, version);
                request::decode_value(&self.expected(&also_in), schema, value, known)
            }
            None => self.custom_value(value, b"{}"),
        }
    }

    fn expected<'a>(&'a self, also_in: &'a dyn Fn(&str, &str) -> bool) -> Expected<'a> {
        Expected { also_in, ..Expected::new(self.release, &self.group, &self.version, &self.kind) }
    }

    /// Whether the kind has another version.
    fn has_version(&self, group: &str, version: &str) -> bool {
        self.as_kind().is_some_and(|k| k.versions.iter().any(|v| v.group == group && v.version == version))
    }

    fn decode_custom(&self, body: &[u8], media: Media) -> Result<Decoded> {
        let value = match media {
            Media::Json => serde_json::from_slice(body).map_err(|e| e.to_string()),
            Media::Yaml => decode::yaml_of(self.release, body),
            Media::Protobuf => {
                return Err(Status::unsupported_media_type(
                    "the body of the request was in an unknown format - accepted media types include: application/json, application/yaml",
                ));
            }
        };
        match value {
            Ok(value) => self.custom_value(value, body),
            Err(why) => Err(request::unreadable(&self.expected(&|_, _| false), body, &why)),
        }
    }

    fn custom_value(&self, mut value: Value, body: &[u8]) -> Result<Decoded> {
        let bad = |why: &str| request::cannot_be_handled(&self.kind, &self.version, &self.kind, why);
        if json::deeper_than(&value, 200) {
            return Err(bad("exceeded max depth"));
        }
        if !value.is_object() {
            return Err(request::unreadable(&self.expected(&|_, _| false), body, "not an object"));
        }
        if str_at(&value, &["kind"]).is_empty() {
            return Err(bad(&format!("Object 'Kind' is missing in '{}'", String::from_utf8_lossy(body))));
        }
        let found = str_at(&value, &["apiVersion"]);
        if !found.is_empty() && found != &*self.api_version {
            return Err(request::version_mismatch(found, &self.api_version));
        }
        let mut faults = Vec::new();
        whole_numbers(&mut value);
        if let (Some(schema), Some(metadata)) =
            (self.metadata_schema(), json::remove(&mut value, &["metadata"]))
        {
            let decoded = decode::from_value(schema, metadata).map_err(|e| bad(&e))?;
            faults.extend(decoded.faults.into_iter().map(|f| f.replacen('"', "\"metadata.", 1)));
            json::set(&mut value, &["metadata"], decoded.object);
            let structure = self.as_custom().and_then(|c| c.schema.as_deref());
            if let Some(structure) = structure.filter(|_| self.release != Release::V1_20) {
                embedded(&mut value, structure, schema, "", &mut faults);
            }
        }
        Ok(Decoded { object: value, faults })
    }

    /// What strict validation has against a custom object that has been decoded: fields that the schema does not have.
    pub fn unknown_fields(&self, object: &Value) -> Vec<String> {
        let Some(custom) = self.as_custom() else { return Vec::new() };
        let mut pruned = object.clone();
        custom.normalize(&mut pruned);
        let mut faults = Vec::new();
        missing(object, &pruned, "", &mut faults);
        faults
    }

    /// 400 for strict validation.
    pub fn strict_error(&self, faults: &[String]) -> Status {
        request::strict_error(&self.version, &self.kind, faults)
    }
}

/// Brings the `metadata` of objects inside of a custom one into the form of every object's. What cannot be read as such
/// is left as it is: validation says why.
fn embedded(
    value: &mut Value,
    structure: &crd::schema::Schema,
    metadata: crate::schema::Schema,
    path: &str,
    faults: &mut Vec<String>,
) {
    match value {
        Value::Object(map) => {
            if structure.embedded_resource
                && let Some(own) = map.get_mut("metadata")
                && let Ok(decoded) = decode::from_value(metadata, own.clone())
            {
                let prefix = format!("\"{path}.metadata.");
                faults.extend(decoded.faults.into_iter().map(|f| f.replacen('"', &prefix, 1)));
                let timed = own.get("creationTimestamp").is_some();
                *own = decoded.object;
                if !timed {
                    json::remove(own, &["creationTimestamp"]);
                }
            }
            for (key, item) in map {
                let below = structure.properties.get(key.as_str()).or(structure.additional_schema());
                if let Some(below) = below {
                    let at = if path.is_empty() { key.to_string() } else { format!("{path}.{key}") };
                    embedded(item, below, metadata, &at, faults);
                }
            }
        }
        Value::Array(items) => {
            let Some(below) = &structure.items else { return };
            for (i, item) in items.iter_mut().enumerate() {
                embedded(item, below, metadata, &format!("{path}[{i}]"), faults);
            }
        }
        _ => {}
    }
}

/// Floating-point numbers that are whole, as Go writes them.
fn whole_numbers(v: &mut Value) {
    match v {
        Value::Number(n) => {
            if n.is_f64()
                && let Some(whole) = n.as_f64().and_then(decode::double)
            {
                *v = whole;
            }
        }
        Value::Array(items) => items.iter_mut().for_each(whole_numbers),
        Value::Object(map) => map.values_mut().for_each(whole_numbers),
        _ => {}
    }
}

/// Paths that one value has and another has not.
fn missing(before: &Value, after: &Value, path: &str, faults: &mut Vec<String>) {
    let child = |key: &str| if path.is_empty() { key.to_string() } else { format!("{path}.{key}") };
    match (before, after) {
        (Value::Object(a), Value::Object(b)) => {
            for (key, v) in a.iter().filter(|(_, v)| !v.is_null()) {
                match b.get(key) {
                    None => faults.push(format!("unknown field {:?}", child(key))),
                    Some(w) => missing(v, w, &child(key), faults),
                }
            }
        }
        (Value::Array(a), Value::Array(b)) => {
            for (i, (v, w)) in a.iter().zip(b).enumerate() {
                missing(v, w, &format!("{path}[{i}]"), faults);
            }
        }
        _ => {}
    }
}
