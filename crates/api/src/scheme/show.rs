//! How a resource's objects are shown: selectors' fields, tables, protobuf, metadata alone.

use std::sync::{Arc, LazyLock};

use pilothouse_apimachinery::json::{self, Map, Value, json, str_at};

use super::Resource;
use super::resource::Body;
use crate::kinds::RowContext;
use crate::protobuf;

impl Resource {
    /// Fields that selectors may name, with an object's values (in the hub version).
    pub fn selectable(&self, object: &Value) -> Vec<(Arc<str>, String)> {
        static LABELS: LazyLock<[Arc<str>; 2]> =
            LazyLock::new(|| ["metadata.name".into(), "metadata.namespace".into()]);
        let at = |field: &str| str_at(object, &["metadata", field]).to_string();
        let mut out = vec![(LABELS[0].clone(), at("name"))];
        if self.namespaced || !self.is_custom() {
            out.push((LABELS[1].clone(), at("namespace")));
        }
        if let Body::Custom { version, .. } = &self.body {
            let own = version.selectable_fields(object);
            out.extend(self.selectable_names.iter().cloned().zip(own.into_iter().map(|(_, value)| value)));
        }
        if let Body::BuiltIn { kind, .. } = &self.body {
            out.extend((kind.selectable_fields)(object).into_iter().map(|(name, value)| {
                let shared = self.selectable_names.iter().find(|n| &***n == name).cloned();
                (shared.unwrap_or_else(|| name.into()), value)
            }));
        }
        out
    }

    /// The warning that clients of this version get, where it is deprecated.
    pub fn deprecation_warning(&self) -> Option<String> {
        match &self.body {
            Body::BuiltIn { .. } => {
                crate::deprecation::warning(self.release, &self.group, &self.version, &self.kind)
            }
            Body::Custom { version, .. } => version.deprecation_warning.clone(),
        }
    }

    /// `columnDefinitions` of tables.
    pub fn column_definitions(&self) -> Vec<Value> {
        match &self.body {
            Body::BuiltIn { kind, .. } => {
                let definition = |c: &crate::kinds::Column| json!({"name": c.name, "type": c.type_, "format": c.format, "description": c.description, "priority": c.priority});
                kind.columns.iter().map(definition).collect()
            }
            Body::Custom { version, .. } => version.printer.definitions(),
        }
    }

    /// A table row's cells. The object is in the hub version for a built-in kind, in this version for a custom one.
    pub fn cells(&self, object: &Value, context: &RowContext) -> Vec<Value> {
        match &self.body {
            Body::BuiltIn { kind, .. } => (kind.row)(object, context),
            Body::Custom { version, .. } => version.printer.row(object, context.now),
        }
    }

    /// A table row's conditions, where it has any: a pod that has ended.
    pub fn row_conditions(&self, object: &Value) -> Option<Value> {
        self.as_kind().and_then(|k| (k.row_conditions)(object))
    }

    /// An object in this version as protobuf, with its envelope. An error for custom resources, which have none.
    pub fn to_protobuf(&self, object: &Value) -> std::result::Result<Vec<u8>, String> {
        let schema = self.schema().ok_or("custom resources have no protobuf form")?;
        Ok(protobuf::encode(schema, object))
    }

    /// The message of an object in this version without envelope, as lists hold it.
    pub fn to_protobuf_message(&self, object: &Value) -> std::result::Result<Vec<u8>, String> {
        let schema = self.schema().ok_or("custom resources have no protobuf form")?;
        Ok(protobuf::encode_message(schema, object))
    }

    /// A list of messages in this version as protobuf, with its envelope.
    pub fn list_to_protobuf<'a>(
        &self,
        metadata: &Value,
        items: impl IntoIterator<Item = &'a [u8]>,
    ) -> Vec<u8> {
        protobuf::encode_list(self.release, &self.api_version, &self.list_kind, metadata, items)
    }
}

/// `PartialObjectMetadata` of an object.
pub fn partial_metadata(object: &Value, meta_version: &str) -> Value {
    let mut map = Map::new();
    map.insert("kind", "PartialObjectMetadata");
    map.insert("apiVersion", format!("meta.k8s.io/{meta_version}"));
    map.insert("metadata", json::get(object, &["metadata"]).clone());
    Value::Object(map)
}
