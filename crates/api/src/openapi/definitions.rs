//! The definitions of types: what they look like in OpenAPI.

use std::collections::{BTreeMap, BTreeSet};

use pilothouse_apimachinery::json::{Map, Value, json};
use pilothouse_apimachinery::version::Release;

use super::{Resource, custom};
use crate::apply::types::{ListType, is_atomic_struct, list_ownership};
use crate::catalogue::{self, Catalogue, Element, Field, Form, META_V1, Scalar, Shape, Type};

/// Which OpenAPI: they differ in where definitions are and in what they may say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flavor {
    /// Swagger 2.0.
    V2,
    /// OpenAPI 3.0.
    V3,
}

impl Flavor {
    /// A reference to a definition.
    pub(super) fn reference(self, name: &str) -> Value {
        let prefix = match self {
            Flavor::V2 => "#/definitions/",
            Flavor::V3 => "#/components/schemas/",
        };
        json!({"$ref": format!("{prefix}{name}")})
    }
}

/// The types of `meta/v1` that every document has.
const META_TYPES: &[&str] =
    &["DeleteOptions", "Status", "WatchEvent", "APIResourceList", "APIGroup", "APIGroupList", "APIVersions"];

/// A resource's definition name.
pub(super) fn name_of(resource: &Resource) -> String {
    match &resource.custom {
        Some(_) => custom::name(&resource.group, &resource.version, &resource.kind),
        None => kind_name(&resource.group, &resource.version, &resource.kind),
    }
}

/// A built-in kind's definition name.
pub(super) fn kind_name(group: &str, version: &str, kind: &str) -> String {
    format!("{}.{kind}", catalogue::package(group, version))
}

/// The name of a list's definition.
pub(super) fn list_name_of(resource: &Resource) -> String {
    format!("{}List", name_of(resource))
}

/// A type of `meta/v1`.
pub(super) fn meta_name(name: &str) -> String {
    format!("{META_V1}.{name}")
}

/// Collects definitions, following references.
pub(super) struct Definitions {
    catalogue: &'static Catalogue,
    flavor: Flavor,
    kinds: BTreeMap<String, Vec<Value>>,
    done: BTreeMap<String, Value>,
    wanted: BTreeSet<String>,
}

/// All definitions that the resources need.
pub(super) fn collect(release: Release, flavor: Flavor, resources: &[&Resource]) -> Map {
    let mut definitions = Definitions {
        catalogue: Catalogue::of(release),
        flavor,
        kinds: BTreeMap::new(),
        done: BTreeMap::new(),
        wanted: BTreeSet::new(),
    };
    for resource in resources {
        definitions.add_resource(resource);
    }
    let mut versions: BTreeSet<(&str, &str)> =
        resources.iter().map(|r| (r.group.as_str(), r.version.as_str())).collect();
    versions.insert(("", "v1"));
    for kind in ["DeleteOptions", "WatchEvent"] {
        for (group, version) in &versions {
            definitions.add_kind(&meta_name(kind), group, version, kind);
        }
    }
    for kind in ["Status", "APIResourceList", "APIGroup", "APIGroupList", "APIVersions"] {
        definitions.add_kind(&meta_name(kind), "", "v1", kind);
    }
    definitions.wanted.extend(META_TYPES.iter().map(|name| meta_name(name)));
    definitions.wanted.insert(PATCH.into());
    definitions.run()
}

/// The body of patches.
pub(super) const PATCH: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Patch";

/// The definition name of a scalar that has one, and its form.
fn scalar_definition(scalar: Scalar) -> Option<(&'static str, Value)> {
    Some(match scalar {
        Scalar::Time => {
            ("io.k8s.apimachinery.pkg.apis.meta.v1.Time", json!({"type": "string", "format": "date-time"}))
        }
        Scalar::MicroTime => (
            "io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime",
            json!({"type": "string", "format": "date-time"}),
        ),
        Scalar::Duration => ("io.k8s.apimachinery.pkg.apis.meta.v1.Duration", json!({"type": "string"})),
        Scalar::Quantity => ("io.k8s.apimachinery.pkg.api.resource.Quantity", json!({"type": "string"})),
        Scalar::IntOrString => (
            "io.k8s.apimachinery.pkg.util.intstr.IntOrString",
            json!({"type": "string", "format": "int-or-string"}),
        ),
        Scalar::RawExtension => ("io.k8s.apimachinery.pkg.runtime.RawExtension", json!({"type": "object"})),
        Scalar::FieldsV1 => ("io.k8s.apimachinery.pkg.apis.meta.v1.FieldsV1", json!({"type": "object"})),
        Scalar::Json => ("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSON", json!({})),
        _ => return None,
    })
}

impl Definitions {
    fn add_kind(&mut self, name: &str, group: &str, version: &str, kind: &str) {
        let gvk = json!({"group": group, "kind": kind, "version": version});
        let kinds = self.kinds.entry(name.to_string()).or_default();
        if !kinds.contains(&gvk) {
            kinds.push(gvk);
        }
        self.wanted.insert(name.to_string());
    }

    fn add_resource(&mut self, resource: &Resource) {
        let (group, version, kind) = (&resource.group, &resource.version, &resource.kind);
        match &resource.custom {
            Some(custom) => {
                for (name, definition) in custom::definitions(custom, self.flavor) {
                    self.done.insert(name, definition);
                }
                self.wanted.extend([meta_name("ObjectMeta"), meta_name("ListMeta")]);
            }
            None => {
                self.add_kind(&name_of(resource), group, version, kind);
                let list = list_name_of(resource);
                if self.catalogue.find(&list).is_some() {
                    self.add_kind(&list, group, version, &format!("{kind}List"));
                }
            }
        }
        for subresource in &resource.subresources {
            if let Some((group, version, kind)) = &subresource.gvk {
                self.add_kind(&kind_name(group, version, kind), group, version, kind);
            }
        }
    }

    fn run(mut self) -> Map {
        while let Some(name) = self.wanted.pop_first() {
            if self.done.contains_key(&name) {
                continue;
            }
            let mut definition = if name == PATCH {
                json!({"type": "object"})
            } else if let Some(type_) = self.catalogue.find(&name) {
                self.type_(type_)
            } else {
                json!({"type": "object"})
            };
            if let (Some(kinds), Value::Object(map)) = (self.kinds.get(&name), &mut definition) {
                map.insert("x-kubernetes-group-version-kind", Value::Array(kinds.clone().into()));
            }
            self.done.insert(name, definition);
        }
        self.done.into_iter().collect()
    }

    fn type_(&mut self, type_: &'static Type) -> Value {
        if type_.form != Form::Object {
            // A schema, or something else: OpenAPI cannot say that.
            return json!({});
        }
        let mut properties = Map::new();
        let mut required = Vec::new();
        for field in &type_.fields {
            if !field.optional && !field.type_meta {
                required.push(Value::from(field.json));
            }
            properties.insert(field.json, self.field(type_, field));
        }
        let mut out = json!({"type": "object"});
        if let Value::Object(map) = &mut out {
            if !properties.is_empty() {
                map.insert("properties", Value::Object(properties));
            }
            if !required.is_empty() {
                required.sort_by(|a, b| a.as_str().cmp(&b.as_str()));
                map.insert("required", Value::Array(required.into()));
            }
            if is_atomic_struct(self.catalogue.release(), type_.full_name) {
                map.insert("x-kubernetes-map-type", json!("atomic"));
            }
        }
        out
    }

    fn field(&mut self, owner: &'static Type, field: &'static Field) -> Value {
        let mut out = self.shape(field.shape);
        let Value::Object(map) = &mut out else { return out };
        if let Shape::List(_) = field.shape {
            if !field.patch_strategy.is_empty() {
                map.insert("x-kubernetes-patch-strategy", json!(field.patch_strategy));
            }
            if !field.patch_merge_key.is_empty() {
                map.insert("x-kubernetes-patch-merge-key", json!(field.patch_merge_key));
            }
            let (ownership, keys) = list_ownership(self.catalogue.release(), owner.full_name, field);
            // Where the type does not say it, patch strategy does.
            if field.list_type.is_some() {
                let name = match ownership {
                    ListType::Atomic => "atomic",
                    ListType::Set => "set",
                    ListType::Map => "map",
                };
                map.insert("x-kubernetes-list-type", json!(name));
                if ownership == ListType::Map {
                    map.insert("x-kubernetes-list-map-keys", json!(keys));
                }
            }
        } else if !field.patch_strategy.is_empty() && self.flavor == Flavor::V2 {
            map.insert("x-kubernetes-patch-strategy", json!(field.patch_strategy));
        }
        let atomic_map = field.atomic && matches!(field.shape, Shape::Map(_));
        if atomic_map && self.catalogue.release() != Release::V1_20 {
            map.insert("x-kubernetes-map-type", json!("atomic"));
        }
        out
    }

    fn shape(&mut self, shape: Shape) -> Value {
        match shape {
            Shape::Scalar(scalar) => self.scalar(scalar),
            Shape::Struct(id) => {
                let name = self.catalogue.get(id).full_name;
                self.wanted.insert(name.to_string());
                self.flavor.reference(name)
            }
            Shape::List(element) => json!({"type": "array", "items": self.element(element)}),
            Shape::Map(element) => json!({"type": "object", "additionalProperties": self.element(element)}),
        }
    }

    fn element(&mut self, element: Element) -> Value {
        self.shape(element.into())
    }

    fn scalar(&mut self, scalar: Scalar) -> Value {
        match scalar {
            Scalar::String => json!({"type": "string"}),
            Scalar::Bool => json!({"type": "boolean"}),
            Scalar::Int32 => json!({"type": "integer", "format": "int32"}),
            Scalar::Int64 => json!({"type": "integer", "format": "int64"}),
            Scalar::Double => json!({"type": "number", "format": "double"}),
            Scalar::Bytes => json!({"type": "string", "format": "byte"}),
            other => match scalar_definition(other) {
                Some((name, form)) => {
                    self.done.entry(name.to_string()).or_insert(form);
                    self.flavor.reference(name)
                }
                None => json!({}),
            },
        }
    }
}
