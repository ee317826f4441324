//! What extension servers say of themselves: their OpenAPI documents and lists of resources, kept for this server's own
//! answers.

use std::collections::BTreeMap;

use bytes::Bytes;
use parking_lot::Mutex;
use pilothouse_api::openapi;
use pilothouse_apimachinery::json::{Map, Value, json};

/// What one server said.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Said {
    /// Its APIResourceList.
    pub resources: Value,
    /// Its OpenAPI v2 document, cut down to the group and version.
    pub openapi: Value,
    /// Its OpenAPI v3 document of the group and version.
    pub openapi_v3: Option<Bytes>,
}

/// Documents by group and version, and what has been made of them.
#[derive(Default)]
pub struct Documents {
    said: Mutex<BTreeMap<(String, String), Said>>,
    merged: Mutex<Option<Merged>>,
}

/// The merged document in both forms, with the tag of the document that it was made from.
struct Merged {
    own: String,
    json: Bytes,
    protobuf: Bytes,
}

/// The part of an OpenAPI document that is about one group and version.
pub fn cut(mut document: Value, group: &str, version: &str) -> Value {
    let prefix = format!("/apis/{group}/{version}/");
    let paths: Map = document["paths"]
        .as_object_mut()
        .map(std::mem::take)
        .unwrap_or_default()
        .into_iter()
        .filter(|(path, _)| path.starts_with(&prefix) || *path == prefix[..prefix.len() - 1])
        .collect();
    json!({"paths": paths, "definitions": document["definitions"].take()})
}

/// Adds a part to a document. What is there already stays.
fn merge(document: &mut Value, part: &Value) {
    for field in ["paths", "definitions"] {
        let Some(into) = document[field].as_object_mut() else { continue };
        for (name, value) in part[field].as_object().into_iter().flatten() {
            into.entry(name.clone()).or_insert_with(|| value.clone());
        }
    }
}

impl Documents {
    /// Keeps what a server said.
    pub fn keep(&self, group: &str, version: &str, said: Said) {
        let before = self.said.lock().insert((group.into(), version.into()), said.clone());
        if before != Some(said) {
            *self.merged.lock() = None;
        }
    }

    /// Forgets all but these groups and versions.
    pub fn retain(&self, wanted: impl Fn(&str, &str) -> bool) {
        let mut said = self.said.lock();
        let before = said.len();
        said.retain(|(group, version), _| wanted(group, version));
        if said.len() != before {
            *self.merged.lock() = None;
        }
    }

    /// A group's version in aggregated discovery; none where the server has not been heard.
    pub fn discovery(&self, group: &str, version: &str) -> Option<Value> {
        let said = self.said.lock();
        let list = &said.get(&(group.to_string(), version.to_string()))?.resources;
        Some(pilothouse_api::discovery::aggregated_version(list, group, version))
    }

    /// A server's OpenAPI v3 document, by its path: `apis/x.y/v1`.
    pub fn v3_document(&self, path: &str) -> Option<Bytes> {
        let (group, version) = path.strip_prefix("apis/")?.split_once('/')?;
        self.said.lock().get(&(group.to_string(), version.to_string()))?.openapi_v3.clone()
    }

    /// An index of OpenAPI v3 documents (JSON) with those of the other servers in it.
    pub fn v3_index(&self, own: Bytes) -> Bytes {
        let said = self.said.lock();
        let mut others =
            said.iter().filter_map(|(gv, said)| Some((gv, said.openapi_v3.as_ref()?))).peekable();
        if others.peek().is_none() {
            return own;
        }
        let Ok(mut index) = serde_json::from_slice::<Value>(&own) else { return own };
        for ((group, version), document) in others {
            let path = format!("apis/{group}/{version}");
            let url = format!("/openapi/v3/{path}?hash={}", openapi::etag(document));
            if index["paths"].get(&path).is_none() {
                index["paths"][path] = json!({"serverRelativeURL": url});
            }
        }
        Bytes::from(index.to_string())
    }

    /// This server's OpenAPI v2 document (JSON) with those of the others: JSON and protobuf. None where there are none.
    pub fn merged(&self, own: impl FnOnce() -> Bytes) -> Option<(Bytes, Bytes)> {
        let said = self.said.lock();
        if said.is_empty() {
            return None;
        }
        let own = own();
        let tag = openapi::etag(&own);
        let mut merged = self.merged.lock();
        if let Some(known) = merged.as_ref().filter(|m| m.own == tag) {
            return Some((known.json.clone(), known.protobuf.clone()));
        }
        let mut document: Value = serde_json::from_slice(&own).ok()?;
        for part in said.values() {
            merge(&mut document, &part.openapi);
        }
        let made = Merged {
            own: tag,
            json: Bytes::from(document.to_string()),
            protobuf: Bytes::from(openapi::to_protobuf(&document)),
        };
        let answer = (made.json.clone(), made.protobuf.clone());
        *merged = Some(made);
        Some(answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_of_version_three_stand_beside_ours() {
        let documents = Documents::default();
        let own = Bytes::from(
            json!({"paths": {"apis/apps/v1": {"serverRelativeURL": "/openapi/v3/apis/apps/v1?hash=A"}}})
                .to_string(),
        );
        documents.keep("a.b", "v1", Said::default());
        assert_eq!(documents.v3_index(own.clone()), own);
        let theirs = Bytes::from_static(b"{\"openapi\":\"3.0.0\"}");
        documents.keep("x.y", "v1", Said { openapi_v3: Some(theirs.clone()), ..Said::default() });
        let index: Value = serde_json::from_slice(&documents.v3_index(own)).unwrap();
        let url = index["paths"]["apis/x.y/v1"]["serverRelativeURL"].as_str().unwrap();
        assert_eq!(url, format!("/openapi/v3/apis/x.y/v1?hash={}", openapi::etag(&theirs)));
        assert!(index["paths"]["apis/apps/v1"].is_object());
        assert_eq!(documents.v3_document("apis/x.y/v1"), Some(theirs));
        assert_eq!((documents.v3_document("apis/a.b/v1"), documents.v3_document("api/v1")), (None, None));
    }

    #[test]
    fn documents_are_merged() {
        let theirs = json!({"paths": {"/apis/x.y/v1/foos": {"get": {}}, "/apis/x.y/v1": {}, "/healthz": {}},
            "definitions": {"y.x.Foo": {"type": "object"}, "own.Kind": {"type": "string"}}});
        let part = cut(theirs, "x.y", "v1");
        let documents = Documents::default();
        let own = Bytes::from(
            json!({"paths": {"/version": {}}, "definitions": {"own.Kind": {"type": "object"}}}).to_string(),
        );
        assert!(documents.merged(|| own.clone()).is_none());
        documents.keep("x.y", "v1", Said { openapi: part, ..Said::default() });
        let (json, _) = documents.merged(|| own.clone()).unwrap();
        let document: Value = serde_json::from_slice(&json).unwrap();
        let paths: Vec<_> = document["paths"].as_object().unwrap().keys().collect();
        assert_eq!(paths, ["/apis/x.y/v1", "/apis/x.y/v1/foos", "/version"]);
        assert_eq!(document["definitions"]["own.Kind"]["type"], "object");
        documents.retain(|_, _| false);
        assert!(documents.merged(|| own.clone()).is_none());
    }
}
