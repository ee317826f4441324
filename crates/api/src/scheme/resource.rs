//! One resource in one version: a built-in kind or a custom one.

use std::sync::{Arc, OnceLock};

use pilothouse_apimachinery::json::{Value, json};
use pilothouse_apimachinery::version::Release;

use crate::catalogue::Catalogue;
use crate::convert::api_version;
use crate::crd::{CustomVersion, Family};
use crate::kinds::{Context, Kind, Version};
use crate::schema::Schema;

/// A subresource of a resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subresource {
    /// `status`, `scale`, `log`, …
    pub name: &'static str,
    /// Group, version and kind of its body where they are not the parent's.
    pub gvk: Option<(&'static str, &'static str, &'static str)>,
    /// Verbs as discovery lists them.
    pub verbs: &'static [&'static str],
}

/// A version of a kind, and its schema where the release knows it.
pub(super) type Known = (&'static Version, Option<Schema>);

/// The version in which objects are stored: the one that the kind names if it is served, else the first that is.
fn stored_in(kind: &'static Kind, versions: &[Known], release: Release) -> Known {
    let known = || versions.iter().filter(|(_, schema)| schema.is_some());
    let named =
        known().find(|(v, _)| serves(v, release) && api_version(v.group, v.version) == kind.storage_version);
    *named
        .or_else(|| known().find(|(v, _)| serves(v, release)))
        .or_else(|| known().next())
        .unwrap_or(&versions[0])
}

/// What makes a resource behave as it does.
pub(super) enum Body {
    /// A kind of this program.
    BuiltIn {
        kind: &'static Kind,
        version: &'static Version,
        /// `None` where the release does not know the type: a hub version that is newer.
        schema: Option<Schema>,
        /// All versions, and their schemas where the release knows them.
        versions: Arc<[Known]>,
        /// The one of them in which objects are stored.
        storage: Known,
        /// `apps/v1` for [`Context::api_version`].
        static_api_version: &'static str,
    },
    /// A CustomResourceDefinition's.
    Custom {
        version: Arc<CustomVersion>,
        /// All versions of the definition.
        family: Arc<Family>,
    },
}

/// A resource in one version.
pub struct Resource {
    /// API group, `""` for core.
    pub group: Arc<str>,
    /// Version.
    pub version: Arc<str>,
    /// `group/version`.
    pub api_version: Arc<str>,
    /// Name in paths.
    pub plural: Arc<str>,
    /// Singular name.
    pub singular: Arc<str>,
    /// Kind.
    pub kind: Arc<str>,
    /// Kind of lists.
    pub list_kind: Arc<str>,
    /// Whether objects live in namespaces.
    pub namespaced: bool,
    /// Short names.
    pub short_names: Vec<Arc<str>>,
    /// Categories.
    pub categories: Vec<Arc<str>>,
    /// Verbs as discovery lists them.
    pub verbs: &'static [&'static str],
    /// Subresources.
    pub subresources: Vec<Subresource>,
    /// Release served.
    pub release: Release,
    /// Whether requests may name this version.
    pub served: bool,
    /// Names that field selectors may use beside `metadata.name` and `metadata.namespace`.
    pub selectable_names: Vec<Arc<str>>,
    pub(super) storage_prefix: Arc<str>,
    pub(super) body: Body,
    /// See [`Resource::empty`].
    empty: OnceLock<Value>,
}

/// Verbs of custom resources, in discovery's order.
const CUSTOM_VERBS: &[&str] =
    &["delete", "deletecollection", "get", "list", "patch", "create", "update", "watch"];

/// Subresources that came after 1.20.
const LATER: [&str; 1] = ["ephemeralcontainers"];

/// Fields that selectors of v1.20 may not name.
const SELECTABLE_LATER: [(&str, &str); 2] = [("Pod", "spec.hostNetwork"), ("ReplicaSet", "status.replicas")];

/// Names of fields of events that only the core group has, or only `events.k8s.io`.
const OF_CORE_EVENTS: &[&str] = &["involvedObject.", "reportingComponent", "source"];
const OF_NEW_EVENTS: &[&str] = &["regarding.", "reportingController"];

fn selectable_names(kind: &Kind, group: &str, release: Release) -> Vec<Arc<str>> {
    let strange: &[&str] = match (kind.kind, group) {
        ("Event", "") => OF_NEW_EVENTS,
        ("Event", _) => OF_CORE_EVENTS,
        _ => &[],
    };
    let there = |name: &&&str| {
        (release > Release::V1_20 || !SELECTABLE_LATER.contains(&(kind.kind, **name)))
            && !strange.iter().any(|s| name.starts_with(s))
    };
    kind.selectable_field_names.iter().filter(there).map(|s| Arc::from(*s)).collect()
}

fn serves(version: &Version, release: Release) -> bool {
    if release == Release::V1_20 { version.in_1_20 } else { version.in_newest }
}

impl Resource {
    /// The versions of a built-in kind.
    pub(super) fn built_in(kind: &'static Kind, release: Release) -> Vec<Resource> {
        let versions: Arc<[Known]> =
            kind.versions.iter().map(|v| (v, Schema::of(release, v.group, v.version, kind.kind))).collect();
        versions
            .iter()
            .enumerate()
            // The hub is there in any case: code works on it.
            .filter(|(i, (_, schema))| *i == 0 || schema.is_some())
            .map(|(_, known)| Resource::of_kind(kind, *known, &versions, release))
            .collect()
    }

    fn of_kind(
        kind: &'static Kind,
        (version, schema): Known,
        versions: &Arc<[Known]>,
        release: Release,
    ) -> Resource {
        let served = serves(version, release) && schema.is_some();
        let api_version = api_version(version.group, version.version);
        let there = |s: &&crate::kinds::Subresource| release > Release::V1_20 || !LATER.contains(&s.name);
        let subresources = kind.subresources.iter().filter(there).map(|s| Subresource {
            name: s.name,
            // Evictions have moved since.
            gvk: match s.gvk {
                Some(("policy", "v1beta1", "Eviction")) if release > Release::V1_20 => {
                    Some(("policy", "v1", "Eviction"))
                }
                gvk => gvk,
            },
            verbs: s.verbs,
        });
        let arcs = |names: &[&str]| names.iter().map(|s| Arc::from(*s)).collect::<Vec<Arc<str>>>();
        // Kinds that have moved to other groups go by their short names there only.
        let moved = release > Release::V1_20 && version.group == "extensions";
        Resource {
            group: version.group.into(),
            version: version.version.into(),
            plural: kind.plural.into(),
            singular: kind.singular.into(),
            kind: kind.kind.into(),
            list_kind: format!("{}List", kind.kind).into(),
            namespaced: kind.namespaced,
            short_names: if moved { Vec::new() } else { arcs(kind.short_names) },
            categories: if moved { Vec::new() } else { arcs(kind.categories) },
            verbs: kind.verbs,
            subresources: subresources.collect(),
            release,
            served,
            selectable_names: selectable_names(kind, version.group, release),
            storage_prefix: kind.storage_prefix.into(),
            body: Body::BuiltIn {
                kind,
                version,
                schema,
                versions: versions.clone(),
                storage: stored_in(kind, versions, release),
                static_api_version: String::leak(api_version.clone()),
            },
            api_version: api_version.into(),
            empty: OnceLock::new(),
        }
    }

    /// The served versions of a CustomResourceDefinition (in version v1).
    pub(super) fn custom(crd: &Value, release: Release) -> Vec<Resource> {
        let family = Arc::new(Family::new(crd, release));
        let served = family.versions.iter().filter(|v| v.served);
        served.map(|version| Resource::of_version(version.clone(), family.clone())).collect()
    }

    fn of_version(custom: Arc<CustomVersion>, family: Arc<Family>) -> Resource {
        let mut subresources = Vec::new();
        if custom.has_status {
            subresources.push(Subresource { name: "status", gvk: None, verbs: &["get", "patch", "update"] });
        }
        if custom.scale.is_some() {
            subresources.push(Subresource {
                name: "scale",
                gvk: Some(("autoscaling", "v1", "Scale")),
                verbs: &["get", "patch", "update"],
            });
        }
        Resource {
            group: custom.group.as_str().into(),
            version: custom.version.as_str().into(),
            api_version: custom.api_version().into(),
            plural: custom.plural.as_str().into(),
            singular: custom.singular.as_str().into(),
            kind: custom.kind.as_str().into(),
            list_kind: custom.list_kind.as_str().into(),
            namespaced: custom.namespaced,
            short_names: custom.short_names.iter().map(|s| s.as_str().into()).collect(),
            categories: custom.categories.iter().map(|s| s.as_str().into()).collect(),
            verbs: CUSTOM_VERBS,
            subresources,
            release: custom.release,
            served: true,
            selectable_names: custom.selectable.iter().map(|s| s.as_str().into()).collect(),
            storage_prefix: format!("{}/{}", custom.group, custom.plural).into(),
            body: Body::Custom { version: custom, family },
            empty: OnceLock::new(),
        }
    }

    /// An object of the resource in its version with nothing in it, in canonical form.
    pub fn empty(&self) -> &Value {
        self.empty.get_or_init(|| {
            let mut object = json!({"apiVersion": &*self.api_version, "kind": &*self.kind});
            if !self.is_custom() {
                object["metadata"] = json!({});
                self.canonicalize(&mut object, None);
            }
            object
        })
    }

    /// Group, version and plural, as requests name the resource.
    pub fn path(&self) -> (&str, &str, &str) {
        (&self.group, &self.version, &self.plural)
    }

    pub(super) fn path_version(&self) -> (&str, &str) {
        (&self.group, &self.version)
    }

    /// Group and version of the hub. That of a custom resource is the one it is stored in, if it is served.
    pub fn hub_version(&self) -> (&str, &str) {
        match &self.body {
            Body::BuiltIn { kind, .. } => (kind.versions[0].group, kind.versions[0].version),
            Body::Custom { family, .. } => (&self.group, &family.storage),
        }
    }

    /// `apiVersion` of objects in the hub version.
    pub fn hub_api_version(&self) -> String {
        let (group, version) = self.hub_version();
        api_version(group, version)
    }

    /// Whether it is a CustomResourceDefinition's.
    pub fn is_custom(&self) -> bool {
        matches!(self.body, Body::Custom { .. })
    }

    /// The custom resource, if it is one.
    pub fn as_custom(&self) -> Option<&Arc<CustomVersion>> {
        match &self.body {
            Body::Custom { version, .. } => Some(version),
            Body::BuiltIn { .. } => None,
        }
    }

    /// All versions of a custom resource's definition.
    pub fn family(&self) -> Option<&Arc<Family>> {
        match &self.body {
            Body::Custom { family, .. } => Some(family),
            Body::BuiltIn { .. } => None,
        }
    }

    /// The built-in kind, if it is one.
    pub fn as_kind(&self) -> Option<&'static Kind> {
        match &self.body {
            Body::BuiltIn { kind, .. } => Some(kind),
            Body::Custom { .. } => None,
        }
    }

    /// The schema of a built-in kind in this version.
    pub fn schema(&self) -> Option<Schema> {
        match &self.body {
            Body::BuiltIn { schema, .. } => *schema,
            Body::Custom { .. } => None,
        }
    }

    /// The schema of `metadata`.
    pub(super) fn metadata_schema(&self) -> Option<Schema> {
        Schema::meta(self.release, "ObjectMeta")
    }

    /// A subresource by its name.
    pub fn subresource(&self, name: &str) -> Option<&Subresource> {
        self.subresources.iter().find(|s| s.name == name)
    }

    /// Whether objects are stored: reviews and bindings are not.
    pub fn is_stored(&self) -> bool {
        self.verbs.contains(&"get") && self.verbs.contains(&"update")
    }

    /// Where objects are in the store: `pods`, `services/specs`, `example.com/crontabs`.
    pub fn storage_prefix(&self) -> &str {
        &self.storage_prefix
    }

    /// The key of an object in the store, below the store's own prefix (`/registry/`).
    pub fn key(&self, namespace: &str, name: &str) -> String {
        if self.namespaced {
            format!("{}/{namespace}/{name}", self.storage_prefix)
        } else {
            format!("{}/{name}", self.storage_prefix)
        }
    }

    /// What the keys of a namespace's objects (`""` for all namespaces) begin with.
    pub fn key_prefix(&self, namespace: &str) -> String {
        if self.namespaced && !namespace.is_empty() {
            format!("{}/{namespace}/", self.storage_prefix)
        } else {
            format!("{}/", self.storage_prefix)
        }
    }

    /// What the kind's functions need to know of a request.
    pub fn context(&self, subresource: &'static str, allow_privileged: bool) -> Context {
        let api_version = match &self.body {
            Body::BuiltIn { static_api_version, .. } => static_api_version,
            Body::Custom { .. } => "",
        };
        Context { release: self.release, subresource, api_version, allow_privileged, gates: &[] }
    }

    /// The catalogue of the release.
    pub fn catalogue(&self) -> &'static Catalogue {
        Catalogue::of(self.release)
    }
}
