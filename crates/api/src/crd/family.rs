//! All versions of one CustomResourceDefinition, and what of a change of version needs no webhook.

use std::sync::Arc;

use pilothouse_apimachinery::json::{Value, bool_at, get, json, list_at, str_at};
use pilothouse_apimachinery::version::Release;

use super::custom::{self, CustomVersion};
use super::prune;

/// The versions of a definition, served or not: objects may be stored in any of them.
#[derive(Debug)]
pub struct Family {
    /// Name of the definition: plural and group.
    pub name: String,
    /// API group.
    pub group: String,
    /// Kind.
    pub kind: String,
    /// The versions, in the definition's order.
    pub versions: Vec<Arc<CustomVersion>>,
    /// The version in which objects are written.
    pub storage: Arc<str>,
    /// `spec.conversion` of the definition.
    pub conversion: Value,
    /// Whether all versions have the same schema, so that only `apiVersion` tells them apart where no webhook converts.
    uniform: bool,
}

impl Family {
    /// Of a CustomResourceDefinition in version v1.
    pub fn new(crd: &Value, release: Release) -> Family {
        let versions: Vec<Arc<CustomVersion>> =
            custom::versions(crd, release).into_iter().map(Arc::new).collect();
        let storage = list_at(crd, &["spec", "versions"]).iter().find(|v| bool_at(v, &["storage"]));
        Family {
            name: str_at(crd, &["metadata", "name"]).to_string(),
            group: str_at(crd, &["spec", "group"]).to_string(),
            kind: str_at(crd, &["status", "acceptedNames", "kind"]).to_string(),
            uniform: versions.windows(2).all(|w| w[0].open_api_schema == w[1].open_api_schema),
            versions,
            storage: storage.map_or("", |v| str_at(v, &["name"])).into(),
            conversion: get(crd, &["spec", "conversion"]).clone(),
        }
    }

    /// A version by its name.
    pub fn version(&self, name: &str) -> Option<&Arc<CustomVersion>> {
        self.versions.iter().find(|v| v.version == name)
    }

    /// The version that an `apiVersion` names.
    pub fn of_api_version(&self, api_version: &str) -> Option<&Arc<CustomVersion>> {
        let (group, version) = api_version.split_once('/')?;
        self.version(version).filter(|_| group == self.group)
    }

    /// `group/version` of a version.
    pub fn api_version(&self, version: &str) -> String {
        format!("{}/{version}", self.group)
    }

    /// Whether a webhook converts between versions.
    pub fn has_webhook(&self) -> bool {
        str_at(&self.conversion, &["strategy"]) == "Webhook"
    }

    /// Whether objects of two versions differ in `apiVersion` alone.
    pub fn same(&self, from: &str, to: &str) -> bool {
        from == to || (self.uniform && !self.has_webhook())
    }

    /// Reads a stored object, in the version in which it was stored: unknown fields gone, with defaults. What is stored
    /// in a version that the definition no longer has is taken for the storage version.
    pub fn decode_stored(&self, bytes: &[u8]) -> Result<Value, String> {
        let mut object: Value = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        let known = self.of_api_version(str_at(&object, &["apiVersion"]));
        let Some(version) = known.or_else(|| self.version(&self.storage)) else {
            return Err(format!("{} has no storage version", self.name));
        };
        version.normalize(&mut object);
        object["apiVersion"] = version.api_version().into();
        Ok(object)
    }

    /// Makes an object one of another version where no webhook does: the fields stay, but those that the version does
    /// not have.
    pub fn rename(&self, object: &mut Value, version: &str) {
        self.finish(object, version);
        object["apiVersion"] = json!(self.api_version(version));
    }

    /// Drops what a converted object has and its version has not.
    pub fn finish(&self, object: &mut Value, version: &str) {
        let schema =
            self.version(version).filter(|v| !v.preserve_unknown_fields).and_then(|v| v.schema.as_deref());
        if let Some(schema) = schema {
            prune::prune(object, schema, true);
        }
    }
}

#[cfg(test)]
mod tests {
    use pilothouse_apimachinery::version::NEWEST;

    use super::*;

    fn family(strategy: &str, other: Value) -> Family {
        let schema = |fields: Value| json!({"openAPIV3Schema": {"type": "object", "properties": fields}});
        let crd = json!({
            "metadata": {"name": "crons.e.com"},
            "spec": {"group": "e.com", "scope": "Namespaced", "conversion": {"strategy": strategy}, "versions": [
                {"name": "v1", "served": false, "storage": false, "schema": schema(json!({"a": {"type": "string", "default": "x"}}))},
                {"name": "v2", "served": true, "storage": true, "schema": schema(other)}]},
            "status": {"acceptedNames": {"plural": "crons", "kind": "Cron"}, "conditions": [{"type": "Established", "status": "True"}]},
        });
        Family::new(&crd, NEWEST)
    }

    #[test]
    fn reads_what_was_stored_in_its_own_version() {
        let f = family("None", json!({"b": {"type": "string", "default": "y"}}));
        assert!(!f.same("v1", "v2") && f.same("v1", "v1") && f.version("v1").is_some());
        let mut old =
            f.decode_stored(br#"{"apiVersion": "e.com/v1", "kind": "Cron", "a": "1", "b": "2"}"#).unwrap();
        assert_eq!(old, json!({"apiVersion": "e.com/v1", "kind": "Cron", "a": "1"}));
        f.rename(&mut old, "v2");
        assert_eq!(old, json!({"apiVersion": "e.com/v2", "kind": "Cron"}));
        let gone = f.decode_stored(br#"{"apiVersion": "e.com/v0", "kind": "Cron", "a": "1"}"#).unwrap();
        assert_eq!(gone, json!({"apiVersion": "e.com/v2", "kind": "Cron", "b": "y"}));
    }

    #[test]
    fn versions_with_one_schema_differ_in_name_alone() {
        let same = json!({"a": {"type": "string", "default": "x"}});
        assert!(family("None", same.clone()).same("v1", "v2"));
        assert!(!family("Webhook", same).same("v1", "v2"));
    }
}
