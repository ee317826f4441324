//! One resource in one version: a built-in kind or a custom one.

use std::sync::Arc;

use pilothouse_apimachinery::field::ErrorList;
use pilothouse_apimachinery::json::{self, get_i64, str_at};
use pilothouse_apimachinery::names;
use pilothouse_apimachinery::status::{Result, Status};
use pilothouse_apimachinery::version::Release;
use serde_json::{Map, Number, Value, json};

use crate::catalogue::Catalogue;
use crate::convert::{self, api_version, parse_api_version, set_api_version};
use crate::crd::{self, CustomVersion};
use crate::decode::request::{self, Expected, Media};
use crate::decode::{self, Decoded};
use crate::kinds::{Context, Kind, RowContext, Version};
use crate::normalize::canonicalize;
use crate::schema::Schema;
use crate::{defaults, meta, protobuf};

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

/// What makes a resource behave as it does.
enum Body {
    /// A kind of this program.
    BuiltIn {
        kind: &'static Kind,
        version: &'static Version,
        /// `None` where the release does not know the type: a hub version that is newer.
        schema: Option<Schema>,
        /// `apps/v1` for [`Context::api_version`].
        static_api_version: &'static str,
    },
    /// A CustomResourceDefinition's.
    Custom {
        version: Arc<CustomVersion>,
        /// The version that objects are stored in.
        storage: Arc<str>,
        /// `spec.conversion` of the definition.
        conversion: Arc<Value>,
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
    storage_prefix: Arc<str>,
    body: Body,
}

/// Verbs of custom resources, in discovery's order.
const CUSTOM_VERBS: &[&str] =
    &["delete", "deletecollection", "get", "list", "patch", "create", "update", "watch"];

fn serves(version: &Version, release: Release) -> bool {
    if release == Release::V1_20 { version.in_1_20 } else { version.in_newest }
}

impl Resource {
    /// The versions of a built-in kind.
    pub(super) fn built_in(kind: &'static Kind, release: Release) -> Vec<Resource> {
        kind.versions
            .iter()
            .enumerate()
            .filter_map(|(i, version)| {
                let schema = Schema::of(release, version.group, version.version, kind.kind);
                let served = serves(version, release) && schema.is_some();
                // The hub is there in any case: code works on it.
                (served || i == 0 || schema.is_some())
                    .then(|| Resource::of_kind(kind, version, schema, served, release))
            })
            .collect()
    }

    fn of_kind(
        kind: &'static Kind,
        version: &'static Version,
        schema: Option<Schema>,
        served: bool,
        release: Release,
    ) -> Resource {
        let api_version = api_version(version.group, version.version);
        let subresources = kind.subresources.iter().map(|s| Subresource {
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
        Resource {
            group: version.group.into(),
            version: version.version.into(),
            plural: kind.plural.into(),
            singular: kind.singular.into(),
            kind: kind.kind.into(),
            list_kind: format!("{}List", kind.kind).into(),
            namespaced: kind.namespaced,
            short_names: kind.short_names.iter().map(|s| Arc::from(*s)).collect(),
            categories: kind.categories.iter().map(|s| Arc::from(*s)).collect(),
            verbs: kind.verbs,
            subresources: subresources.collect(),
            release,
            served,
            selectable_names: kind.selectable_field_names.iter().map(|s| Arc::from(*s)).collect(),
            storage_prefix: kind.storage_prefix.into(),
            body: Body::BuiltIn {
                kind,
                version,
                schema,
                static_api_version: String::leak(api_version.clone()),
            },
            api_version: api_version.into(),
        }
    }

    /// The served versions of a CustomResourceDefinition (in version v1).
    pub(super) fn custom(crd: &Value, release: Release) -> Vec<Resource> {
        let storage =
            json::list_at(crd, &["spec", "versions"]).iter().find(|v| json::bool_at(v, &["storage"]));
        let storage: Arc<str> = storage.map_or("", |v| str_at(v, &["name"])).into();
        let conversion = Arc::new(json::get(crd, &["spec", "conversion"]).clone());
        crd::resources(crd, release)
            .into_iter()
            .map(|version| Resource::of_version(Arc::new(version), storage.clone(), conversion.clone()))
            .collect()
    }

    fn of_version(custom: Arc<CustomVersion>, storage: Arc<str>, conversion: Arc<Value>) -> Resource {
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
            selectable_names: Vec::new(),
            storage_prefix: format!("{}/{}", custom.group, custom.plural).into(),
            body: Body::Custom { version: custom, storage, conversion },
        }
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
            Body::Custom { storage, .. } => (&self.group, storage),
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

    /// `spec.conversion` of a custom resource's definition.
    pub fn conversion(&self) -> Option<&Value> {
        match &self.body {
            Body::Custom { conversion, .. } => Some(conversion),
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
    fn metadata_schema(&self) -> Option<Schema> {
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
        Context { release: self.release, subresource, api_version, allow_privileged }
    }

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

    /// The same for a value: a patch's result.
    pub fn decode_value(&self, value: Value) -> Result<Decoded> {
        match self.schema() {
            Some(schema) => {
                let also_in = |group: &str, version: &str| self.has_version(group, version);
                request::decode_value(&self.expected(&also_in), schema, value)
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
            Media::Yaml => decode::yaml(body),
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

    /// Brings an object of a request (in this version) into the hub version, with all defaults set.
    pub fn to_hub(&self, object: &mut Value, context: &Context) {
        match &self.body {
            Body::BuiltIn { kind, version, schema, .. } => {
                if let Some(schema) = schema {
                    defaults::apply(*schema, object);
                }
                convert::to_hub(kind, version, object);
                (kind.default)(object, context);
            }
            Body::Custom { version, storage, .. } => {
                version.normalize(object);
                set_api_version(object, &api_version(&self.group, storage));
            }
        }
    }

    /// Brings an object from the hub version into this one, in canonical form.
    pub fn from_hub(&self, object: &mut Value) {
        match &self.body {
            Body::BuiltIn { version, .. } => {
                convert::from_hub(version, object);
                self.canonicalize(object);
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

    /// Canonical form of an object in this version: what is empty goes, what is always there comes.
    pub fn canonicalize(&self, object: &mut Value) {
        if let Some(schema) = self.schema() {
            canonicalize(schema, object);
        } else if let (Some(schema), Some(metadata)) =
            (self.metadata_schema(), object.get_mut("metadata").filter(|m| m.is_object()))
        {
            canonicalize(schema, metadata);
        }
    }

    /// The version in which objects are stored.
    fn storage(&self) -> Option<(&'static Version, Option<Schema>)> {
        let kind = self.as_kind()?;
        let known = |v: &&'static Version| Schema::of(self.release, v.group, v.version, kind.kind).is_some();
        let named = kind
            .versions
            .iter()
            .find(|v| api_version(v.group, v.version) == kind.storage_version && serves(v, self.release));
        let version = named
            .filter(known)
            .or_else(|| kind.versions.iter().filter(|v| serves(v, self.release)).find(known))
            .or_else(|| kind.versions.iter().find(known))
            .unwrap_or(&kind.versions[0]);
        Some((version, Schema::of(self.release, version.group, version.version, kind.kind)))
    }

    /// Group and version in which objects are stored.
    pub fn storage_version(&self) -> (String, String) {
        match (&self.body, self.storage()) {
            (_, Some((version, _))) => (version.group.into(), version.version.into()),
            (Body::Custom { storage, .. }, _) => (self.group.to_string(), storage.to_string()),
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
                    canonicalize(schema, &mut object);
                }
            }
            _ => {
                let (group, version) = self.storage_version();
                set_api_version(&mut object, &api_version(&group, &version));
                self.canonicalize(&mut object);
            }
        }
        object
    }

    /// Reads a stored object, JSON in any version or protobuf, into the hub version with defaults.
    pub fn decode_stored(&self, bytes: &[u8]) -> std::result::Result<Value, String> {
        match &self.body {
            Body::BuiltIn { kind, .. } => self.decode_stored_kind(kind, bytes),
            Body::Custom { version, storage, .. } => {
                let mut object: Value = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
                version.normalize(&mut object);
                set_api_version(&mut object, &api_version(&self.group, storage));
                Ok(object)
            }
        }
    }

    fn decode_stored_kind(&self, kind: &'static Kind, bytes: &[u8]) -> std::result::Result<Value, String> {
        let envelope = protobuf::has_prefix(bytes)
            .then(|| protobuf::open(bytes))
            .transpose()
            .map_err(|e| e.to_string())?;
        let (found, _) = match &envelope {
            Some(e) => (e.api_version.clone(), e.kind.clone()),
            None => request::type_meta(bytes)?,
        };
        let (group, version) =
            parse_api_version(&found).ok_or_else(|| format!("malformed apiVersion {found:?}"))?;
        let known = kind.versions.iter().find(|v| v.group == group && v.version == version);
        let version =
            known.ok_or_else(|| format!("no kind {:?} is registered for version {found:?}", kind.kind))?;
        let schema = Schema::of(self.release, version.group, version.version, kind.kind)
            .ok_or_else(|| format!("no kind {:?} is registered for version {found:?}", kind.kind))?;
        let mut object = match &envelope {
            Some(e) => protobuf::decode(schema, e).map_err(|e| e.to_string())?,
            None => decode::from_slice(schema, bytes)?.object,
        };
        if let Some(map) = object.as_object_mut() {
            map.insert("kind".into(), Value::from(kind.kind));
        }
        defaults::apply(schema, &mut object);
        convert::to_hub(kind, version, &mut object);
        (kind.default)(&mut object, &self.context("", true));
        Ok(object)
    }

    /// The generation that a new object begins with is 1, where the kind has one.
    fn has_generation(&self) -> bool {
        self.as_kind().is_some_and(|k| k.has_generation && self.release.minor >= k.generation_since)
    }

    /// What the kind clears and sets on a new object in the hub version. [`meta::prepare_create`] comes before.
    pub fn prepare_create(&self, object: &mut Value, context: &Context) {
        match &self.body {
            Body::BuiltIn { kind, .. } => {
                (kind.prepare_create)(object, context);
                if self.has_generation() {
                    json::set(object, &["metadata", "generation"], 1);
                }
            }
            Body::Custom { version, .. } => version.prepare_create(object),
        }
    }

    /// What the kind carries over on an update, in the hub version. [`meta::prepare_update`] comes before.
    pub fn prepare_update(&self, new: &mut Value, old: &Value, context: &Context) {
        match &self.body {
            Body::BuiltIn { kind, .. } => {
                (kind.prepare_update)(new, old, context);
                if self.has_generation() {
                    let annotations = ["metadata", "annotations"];
                    let changed = meta::spec_changed(new, old)
                        || (kind.generation_on_annotations
                            && !meta::semantically_equal(
                                json::get(new, &annotations),
                                json::get(old, &annotations),
                            ));
                    let generation = get_i64(old, &["metadata", "generation"]) + i64::from(changed);
                    if generation != 0 {
                        json::set(new, &["metadata", "generation"], generation);
                    }
                }
            }
            Body::Custom { version, .. } => match context.subresource {
                "status" => version.prepare_status_update(new, old),
                _ => version.prepare_update(new, old),
            },
        }
    }

    /// Whether finalizers without a domain must be Kubernetes' own: not where the API extension servers validate.
    fn standard_finalizers(&self) -> bool {
        !self.is_custom() && !matches!(&*self.group, "apiextensions.k8s.io" | "apiregistration.k8s.io")
    }

    /// Faults of a new object in the hub version, metadata included.
    pub fn validate(&self, object: &Value, context: &Context) -> ErrorList {
        let name_fn = self
            .as_kind()
            .map_or(names::dns1123_subdomain_name as fn(&str, bool) -> Vec<String>, |k| k.name_fn);
        let mut errs = if self.is_stored() {
            meta::validate(object, self.namespaced, self.standard_finalizers(), name_fn)
        } else {
            ErrorList::new()
        };
        errs.extend(match &self.body {
            Body::BuiltIn { kind, .. } => (kind.validate)(object, context),
            Body::Custom { version, .. } => version.validate(object),
        });
        errs
    }

    /// Faults of an update in the hub version, metadata included.
    pub fn validate_update(&self, new: &Value, old: &Value, context: &Context) -> ErrorList {
        let mut errs = meta::validate_update(new, old, self.standard_finalizers());
        errs.extend(match &self.body {
            Body::BuiltIn { kind, .. } => (kind.validate_update)(new, old, context),
            Body::Custom { version, .. } if context.subresource == "status" => {
                version.validate_status_update(new)
            }
            Body::Custom { version, .. } => version.validate_update(new, old),
        });
        errs
    }

    /// The group that errors of validation name: that of the first package that knows the internal type.
    pub fn error_group(&self) -> &str {
        match self.as_kind() {
            Some(kind) => {
                let group = kind.group();
                let in_extensions = kind.versions.iter().any(|v| v.group == "extensions");
                if in_extensions && group > "extensions" { "extensions" } else { group }
            }
            None => &self.group,
        }
    }

    /// 422 with the faults of an object.
    pub fn invalid(&self, name: &str, errors: &ErrorList) -> Status {
        Status::invalid(self.error_group(), &self.kind, name, errors)
    }

    /// Whether an update without a resource version is allowed.
    pub fn allow_unconditional_update(&self) -> bool {
        self.as_kind().is_some_and(|k| k.allow_unconditional_update)
    }

    /// Whether an update may create the object.
    pub fn create_on_update(&self) -> bool {
        self.as_kind().is_some_and(|k| k.create_on_update)
    }

    /// How long an object lives, in seconds; 0 for ever.
    pub fn ttl_seconds(&self) -> u64 {
        self.as_kind().map_or(0, |k| k.ttl_seconds)
    }

    /// Fields that selectors may name, with an object's values (in the hub version).
    pub fn selectable(&self, object: &Value) -> Vec<(Arc<str>, String)> {
        let mut out = vec![(Arc::from("metadata.name"), str_at(object, &["metadata", "name"]).to_string())];
        if self.namespaced || !self.is_custom() {
            out.push((
                Arc::from("metadata.namespace"),
                str_at(object, &["metadata", "namespace"]).to_string(),
            ));
        }
        if let Body::BuiltIn { kind, .. } = &self.body {
            out.extend((kind.selectable_fields)(object).into_iter().map(|(name, value)| {
                let shared = self.selectable_names.iter().find(|n| &***n == name).cloned();
                (shared.unwrap_or_else(|| name.into()), value)
            }));
        }
        out
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

    /// The catalogue of the release.
    pub fn catalogue(&self) -> &'static Catalogue {
        Catalogue::of(self.release)
    }
}

/// Floating-point numbers that are whole, as Go writes them.
fn whole_numbers(v: &mut Value) {
    match v {
        Value::Number(n) => {
            #[expect(clippy::cast_possible_truncation, reason = "checked to be whole and in range")]
            if let Some(f) = n.as_f64().filter(|f| n.is_f64() && f.fract() == 0.0 && f.abs() < 9e18) {
                *n = Number::from(f as i64);
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

/// `PartialObjectMetadata` of an object.
pub fn partial_metadata(object: &Value, meta_version: &str) -> Value {
    let mut map = Map::new();
    map.insert("kind".into(), "PartialObjectMetadata".into());
    map.insert("apiVersion".into(), format!("meta.k8s.io/{meta_version}").into());
    map.insert("metadata".into(), json::get(object, &["metadata"]).clone());
    Value::Object(map)
}
