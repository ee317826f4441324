//! OpenAPI: the Swagger 2.0 document of all that is served (JSON and protobuf), and OpenAPI v3, one document for each
//! group and version.
//!
//! Documents are made when they are first asked for and kept by whoever asks (see [`Documents`]).

mod custom;
mod definitions;
mod operations;
pub mod protobuf;
mod v2;
mod v3;

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use pilothouse_apimachinery::json::{Map, Value, json};
use pilothouse_apimachinery::version::Release;
use sha2::{Digest, Sha256};

use crate::crd::CustomVersion;
use crate::scheme::{self, Scheme};

#[cfg(test)]
mod tests;

/// The media type by which clients ask for the protobuf form.
pub const PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";

/// The media type of the answer to [`PROTOBUF`]: `@` may not stand in a `Content-Type`, and clients parse it.
pub const PROTOBUF_ANSWER: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// A subresource, as OpenAPI needs to know it.
#[derive(Debug, Clone)]
pub struct Subresource {
    /// Name.
    pub name: String,
    /// Group, version and kind of the body; the parent's where `None`.
    pub gvk: Option<(String, String, String)>,
    /// Verbs.
    pub verbs: Vec<String>,
}

/// A resource, as OpenAPI needs to know it.
#[derive(Debug, Clone)]
pub struct Resource {
    /// API group.
    pub group: String,
    /// Version.
    pub version: String,
    /// Name in paths.
    pub plural: String,
    /// Kind.
    pub kind: String,
    /// Whether objects live in namespaces.
    pub namespaced: bool,
    /// Verbs.
    pub verbs: Vec<String>,
    /// Subresources.
    pub subresources: Vec<Subresource>,
    /// Where it is custom.
    pub custom: Option<Arc<CustomVersion>>,
}

/// The documents of what a server serves; each is made when first asked for.
#[derive(Debug)]
pub struct Documents {
    release: Release,
    git_version: String,
    resources: Vec<Resource>,
    v2: OnceLock<Bytes>,
    v2_protobuf: OnceLock<Bytes>,
    v3: OnceLock<BTreeMap<String, Bytes>>,
}

impl From<&scheme::Resource> for Resource {
    fn from(r: &scheme::Resource) -> Resource {
        let texts = |items: &[&str]| items.iter().map(|s| (*s).to_string()).collect();
        Resource {
            group: r.group.to_string(),
            version: r.version.to_string(),
            plural: r.plural.to_string(),
            kind: r.kind.to_string(),
            namespaced: r.namespaced,
            verbs: texts(r.verbs),
            subresources: r
                .subresources
                .iter()
                .map(|s| Subresource {
                    name: s.name.to_string(),
                    gvk: s.gvk.map(|(group, version, kind)| (group.into(), version.into(), kind.into())),
                    verbs: texts(s.verbs),
                })
                .collect(),
            custom: r.as_custom().cloned(),
        }
    }
}

impl Documents {
    /// Documents of all that a scheme serves. `git_version` is `v1.20.2` or the like.
    pub fn of(scheme: &Scheme, git_version: &str) -> Documents {
        let resources = scheme.resources().map(|r| Resource::from(&**r)).collect();
        Documents::new(scheme.release(), git_version, resources)
    }

    /// Documents of the resources given. `git_version` is `v1.20.2` or the like.
    pub fn new(release: Release, git_version: &str, resources: Vec<Resource>) -> Documents {
        Documents {
            release,
            git_version: git_version.into(),
            resources,
            v2: OnceLock::new(),
            v2_protobuf: OnceLock::new(),
            v3: OnceLock::new(),
        }
    }

    fn swagger(&self) -> Value {
        v2::document(self.release, &self.git_version, &self.resources)
    }

    /// `/openapi/v2` as JSON.
    pub fn v2_json(&self) -> Bytes {
        self.v2.get_or_init(|| Bytes::from(self.swagger().to_string())).clone()
    }

    /// `/openapi/v2` as protobuf.
    pub fn v2_protobuf(&self) -> Bytes {
        self.v2_protobuf.get_or_init(|| Bytes::from(protobuf::encode(&self.swagger()))).clone()
    }

    fn v3_all(&self) -> &BTreeMap<String, Bytes> {
        self.v3.get_or_init(|| {
            v3::documents(self.release, &self.git_version, &self.resources)
                .into_iter()
                .map(|(path, document)| (path, Bytes::from(document.to_string())))
                .collect()
        })
    }

    /// `/openapi/v3`: where the documents of the groups and versions are.
    pub fn v3_index(&self) -> Bytes {
        let paths: Map = self
            .v3_all()
            .iter()
            .map(|(path, document)| {
                let url = format!("/openapi/v3/{path}?hash={}", etag(document));
                (path.clone(), json!({"serverRelativeURL": url}))
            })
            .collect();
        Bytes::from(json!({"paths": paths}).to_string())
    }

    /// `/openapi/v3/<path>`, such as `api/v1` or `apis/apps/v1`.
    pub fn v3_document(&self, path: &str) -> Option<Bytes> {
        self.v3_all().get(path).cloned()
    }
}

/// The protobuf form of an OpenAPI v2 document.
pub fn to_protobuf(document: &Value) -> Vec<u8> {
    protobuf::encode(document)
}

/// The hash of a document, for `ETag` and for the URLs of the index.
pub fn etag(document: &[u8]) -> String {
    Sha256::digest(document).iter().map(|b| format!("{b:02X}")).collect()
}

/// Where a group and version are: `api/v1`, `apis/apps/v1`.
pub(crate) fn group_version_path(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}
