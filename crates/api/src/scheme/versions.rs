//! Objects on their way between request, hub and store: conversion, defaults, canonical form.

use std::sync::Arc;

use pilothouse_apimachinery::json::Value;

use super::Resource;
use super::resource::{Body, Known};
use crate::convert::{self, api_version, parse_api_version, set_api_version};
use crate::decode::{self, request};
use crate::kinds::{Context, Kind};
use crate::normalize::canonicalize;
use crate::{defaults, protobuf};

impl Resource {
    /// Brings an object of a request (in this version) into the hub version, with all defaults set. A custom resource is
    /// worked on in the version of the request: each of its versions is its own hub.
    pub fn to_hub(&self, object: &mut Value, context: &Context) {
        match &self.body {
            Body::BuiltIn { kind, version, schema, .. } => {
                if let Some(schema) = schema {
                    defaults::apply(*schema, object);
                }
                convert::to_hub(kind, version, object);
                (kind.default)(object, context);
            }
            Body::Custom { version, .. } => {
                version.normalize(object);
                set_api_version(object, &self.api_version);
            }
        }
    }

    /// Brings an object from the hub version into this one, in canonical form.
    pub fn from_hub(&self, object: &mut Value) {
        match &self.body {
            Body::BuiltIn { version, .. } => {
                convert::from_hub(version, object);
                self.canonicalize(object, None);
            }
            Body::Custom { .. } => set_api_version(object, &self.api_version),
        }
    }

    /// Whether objects in this version differ from those in the hub version at most in `apiVersion`.
    pub fn same_as_hub(&self) -> bool {
        match &self.body {
            Body::BuiltIn { version, .. } => version.from_hub.is_none(),
            Body::Custom { .. } => true,
        }
    }

    /// Sets the defaults of an object in the hub version again: after admission has changed it.
    pub fn default_hub(&self, object: &mut Value, context: &Context) {
        match &self.body {
            Body::BuiltIn { kind, schema, .. } => {
                if let Some(schema) = schema {
                    defaults::apply(*schema, object);
                }
                (kind.default)(object, context);
            }
            Body::Custom { version, .. } => version.normalize(object),
        }
    }

    /// Canonical form of an object in this version: what is empty goes, what is always there comes. What is shared with
    /// a `known` object in that form need not be looked at.
    pub fn canonicalize(&self, object: &mut Value, known: Option<&Value>) {
        if let Some(schema) = self.schema() {
            canonicalize(schema, object, known);
        } else if let (Some(schema), Some(metadata)) =
            (self.metadata_schema(), object.get_mut("metadata").filter(|m| m.is_object()))
        {
            canonicalize(schema, metadata, known.and_then(|known| known.get("metadata")));
        }
    }

    /// The version in which objects of a built-in kind are stored.
    fn storage(&self) -> Option<Known> {
        match &self.body {
            Body::BuiltIn { storage, .. } => Some(*storage),
            Body::Custom { .. } => None,
        }
    }

    /// Group and version in which objects are stored.
    pub fn storage_version(&self) -> (String, String) {
        match (&self.body, self.storage()) {
            (_, Some((version, _))) => (version.group.into(), version.version.into()),
            (Body::Custom { family, .. }, _) => (self.group.to_string(), family.storage.to_string()),
            _ => (self.group.to_string(), self.version.to_string()),
        }
    }

    /// Kind and `apiVersion` of stored objects, where those differ from the hub version in nothing else.
    pub fn stored_as(&self) -> Option<(Arc<str>, Arc<str>)> {
        let (group, version) = self.storage_version();
        let plain = self.storage().is_none_or(|(v, _)| v.from_hub.is_none() && v.to_hub.is_none());
        plain.then(|| (self.kind.clone(), api_version(&group, &version).into()))
    }

    /// An object in the hub version as it is stored: in the storage version, in canonical form.
    pub fn to_stored(&self, mut object: Value) -> Value {
        match (&self.body, self.storage()) {
            (Body::BuiltIn { .. }, Some((version, schema))) => {
                convert::from_hub(version, &mut object);
                if let Some(schema) = schema {
                    canonicalize(schema, &mut object, None);
                }
            }
            _ => {
                let (group, version) = self.storage_version();
                set_api_version(&mut object, &api_version(&group, &version));
                self.canonicalize(&mut object, None);
            }
        }
        object
    }

    /// An object in the hub version as it is stored in protobuf; none for kinds that have none.
    pub fn to_stored_protobuf(&self, object: Value) -> Option<Vec<u8>> {
        let (_, Some(schema)) = self.storage()? else { return None };
        let mut object = self.to_stored(object);
        let (group, version) = self.storage_version();
        let map = object.as_object_mut()?;
        map.insert("kind", Value::from(&*self.kind));
        map.insert("apiVersion", Value::from(api_version(&group, &version)));
        if let Some(metadata) = map.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.remove("resourceVersion");
        }
        Some(protobuf::encode(schema, &object))
    }

    /// Reads a stored object, JSON in any version or protobuf, into the hub version with defaults; a custom one stays in
    /// the version in which it was stored.
    pub fn decode_stored(&self, bytes: &[u8]) -> std::result::Result<Value, String> {
        match &self.body {
            Body::BuiltIn { kind, versions, .. } => self.decode_stored_kind(kind, versions, bytes),
            Body::Custom { family, .. } => family.decode_stored(bytes),
        }
    }

    fn decode_stored_kind(
        &self,
        kind: &'static Kind,
        versions: &[Known],
        bytes: &[u8],
    ) -> std::result::Result<Value, String> {
        let envelope = protobuf::has_prefix(bytes)
            .then(|| protobuf::open(bytes))
            .transpose()
            .map_err(|e| e.to_string())?;
        let found = match &envelope {
            Some(e) => e.api_version.clone(),
            None => request::type_meta(bytes)?.0,
        };
        let (group, name) =
            parse_api_version(&found).ok_or_else(|| format!("malformed apiVersion {found:?}"))?;
        let known = versions.iter().find(|(v, _)| v.group == group && v.version == name);
        let Some((version, Some(schema))) = known.copied() else {
            return Err(format!("no kind {:?} is registered for version {found:?}", kind.kind));
        };
        let mut object = match &envelope {
            Some(e) => protobuf::decode(schema, e).map_err(|e| e.to_string())?,
            None => decode::from_slice(schema, bytes)?.object,
        };
        if let Some(map) = object.as_object_mut() {
            map.insert("kind", Value::from(kind.kind));
        }
        defaults::apply(schema, &mut object);
        convert::to_hub(kind, version, &mut object);
        (kind.default)(&mut object, &self.context("", true));
        Ok(object)
    }
}
