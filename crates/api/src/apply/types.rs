//! What the schema says of a place in an object: one view of built-in types (the catalogue) and of custom ones (a
//! CustomResourceDefinition's schema), for apply and for strategic merge patch.

use std::borrow::Cow;
use std::sync::OnceLock;

use pilothouse_apimachinery::json::{Text, Value};
use pilothouse_apimachinery::version::Release;

use super::path::{FIELD, PathElement};
use crate::catalogue::{self, Catalogue, Element, Field, Form, Shape, TypeId};
use crate::crd::schema::Schema;

/// How a list is owned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListType {
    /// As a whole.
    Atomic,
    /// Item by item; each stands once.
    Set,
    /// Item by item; keys tell them apart.
    Map,
}

/// Which scalars fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scalar {
    /// Text.
    String,
    /// Numbers.
    Numeric,
    /// Truth values.
    Boolean,
    /// Any.
    Untyped,
}

/// The kind of thing that a value is, seen through its type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Atom {
    /// A scalar.
    Scalar(Scalar),
    /// A list.
    List(ListType),
    /// A struct or map.
    Map {
        /// Owned as a whole.
        atomic: bool,
        /// Whether it may have fields that are not named.
        open: bool,
    },
}

/// The type of a place.
#[derive(Debug, Clone, Copy)]
pub enum Type<'a> {
    /// From the catalogue.
    BuiltIn {
        /// All types of the release.
        catalogue: &'static Catalogue,
        /// Form.
        shape: Shape,
        /// The field of which it is the type, where it is one: says how lists and maps are owned.
        field: Option<&'static Owned>,
    },
    /// From a CustomResourceDefinition.
    Custom {
        /// Node of the schema.
        schema: &'a Schema,
        /// Whether it is a resource, with `metadata` known to all.
        resource: Option<&'static Catalogue>,
    },
    /// Unknown, and owned as a whole.
    Any,
    /// Unknown: lists are owned as a whole, maps by their entries.
    Deduced,
}

/// Structs that are owned as a whole since v1.21 and later; in v1.20 there is only `LabelSelector`.
const ATOMIC_STRUCTS: &[&str] = &[
    "io.k8s.api.admissionregistration.v1.MatchResources",
    "io.k8s.api.admissionregistration.v1.NamedRuleWithOperations",
    "io.k8s.api.admissionregistration.v1.ParamKind",
    "io.k8s.api.admissionregistration.v1.ParamRef",
    "io.k8s.api.admissionregistration.v1.Variable",
    "io.k8s.api.admissionregistration.v1alpha1.MatchResources",
    "io.k8s.api.admissionregistration.v1alpha1.NamedRuleWithOperations",
    "io.k8s.api.admissionregistration.v1alpha1.ParamKind",
    "io.k8s.api.admissionregistration.v1alpha1.ParamRef",
    "io.k8s.api.admissionregistration.v1beta1.MatchResources",
    "io.k8s.api.admissionregistration.v1beta1.NamedRuleWithOperations",
    "io.k8s.api.admissionregistration.v1beta1.ParamKind",
    "io.k8s.api.admissionregistration.v1beta1.ParamRef",
    "io.k8s.api.admissionregistration.v1beta1.Variable",
    "io.k8s.api.autoscaling.v1.CrossVersionObjectReference",
    "io.k8s.api.core.v1.ConfigMapKeySelector",
    "io.k8s.api.core.v1.EndpointAddress",
    "io.k8s.api.core.v1.EndpointPort",
    "io.k8s.api.core.v1.FileKeySelector",
    "io.k8s.api.core.v1.LocalObjectReference",
    "io.k8s.api.core.v1.NodeSelector",
    "io.k8s.api.core.v1.NodeSelectorTerm",
    "io.k8s.api.core.v1.ObjectFieldSelector",
    "io.k8s.api.core.v1.ObjectReference",
    "io.k8s.api.core.v1.ResourceFieldSelector",
    "io.k8s.api.core.v1.ScopeSelector",
    "io.k8s.api.core.v1.SecretKeySelector",
    "io.k8s.api.core.v1.SecretReference",
    "io.k8s.api.core.v1.TopologySelectorTerm",
    "io.k8s.api.core.v1.TypedLocalObjectReference",
    "io.k8s.api.discovery.v1.EndpointPort",
    "io.k8s.api.networking.v1.ServiceBackendPort",
    "io.k8s.api.rbac.v1.RoleRef",
    "io.k8s.api.rbac.v1.Subject",
    "io.k8s.apimachinery.pkg.apis.meta.v1.LabelSelector",
    "io.k8s.apimachinery.pkg.apis.meta.v1.OwnerReference",
];

/// Whether a struct is owned as a whole wherever it stands: `x-kubernetes-map-type: atomic`.
pub fn is_atomic_struct(release: Release, full_name: &str) -> bool {
    if release == Release::V1_20 {
        full_name.ends_with(".meta.v1.LabelSelector")
    } else {
        ATOMIC_STRUCTS.binary_search(&full_name).is_ok()
    }
}

/// How the value of a field is owned.
#[derive(Debug)]
pub struct Owned {
    field: &'static Field,
    /// The field as an element of a path.
    element: Text,
    /// How its list is owned.
    list: ListType,
    /// The keys of its items.
    keys: Vec<&'static str>,
    /// Whether its map or struct is owned as a whole.
    atomic: bool,
    /// Whether it takes back that its struct is owned as a whole.
    granular: bool,
    /// Whether it is, or has somewhere below it, a list that is owned item by item.
    has_items: bool,
}

/// How the types of a release are owned; worked out once.
struct Ownership {
    /// By type.
    structs: Vec<StructOwnership>,
}

struct StructOwnership {
    atomic: bool,
    fields: Vec<Owned>,
}

impl Ownership {
    fn of(catalogue: &'static Catalogue) -> &'static Ownership {
        static V1_20: OnceLock<Ownership> = OnceLock::new();
        static NEWEST: OnceLock<Ownership> = OnceLock::new();
        let cell = if catalogue.release() == Release::V1_20 { &V1_20 } else { &NEWEST };
        cell.get_or_init(|| {
            let structs = catalogue.types().iter().map(|type_| StructOwnership {
                atomic: is_atomic_struct(catalogue.release(), type_.full_name),
                fields: type_
                    .fields
                    .iter()
                    .map(|field| owned(catalogue.release(), type_.full_name, field))
                    .collect(),
            });
            let mut ownership = Ownership { structs: structs.collect() };
            while ownership.find_items() {}
            ownership
        })
    }

    /// Marks the fields of types that are known to have lists owned item by item; whether there were any.
    fn find_items(&mut self) -> bool {
        let known: Vec<bool> = self.structs.iter().map(|s| s.fields.iter().any(|f| f.has_items)).collect();
        let mut found = false;
        for field in self.structs.iter_mut().flat_map(|s| &mut s.fields).filter(|f| !f.has_items) {
            field.has_items = match field.field.shape {
                Shape::Struct(id) | Shape::List(Element::Struct(id)) | Shape::Map(Element::Struct(id)) => {
                    known[id.index()]
                }
                _ => false,
            };
            found |= field.has_items;
        }
        found
    }

    fn get(&self, id: TypeId) -> &StructOwnership {
        &self.structs[id.index()]
    }
}

fn owned(release: Release, owner: &str, field: &'static Field) -> Owned {
    let (list, keys) = list_ownership(release, owner, field);
    let atomic = release != Release::V1_20 && field.atomic;
    // The catalogue is never dropped, and a static text is copied for nothing.
    let element: &'static str = Box::leak(format!("{FIELD}{}", field.json).into_boxed_str());
    Owned {
        field,
        element: Text::const_new(element),
        list,
        keys,
        atomic,
        granular: owner.ends_with(".PersistentVolumeSpec"),
        has_items: matches!(field.shape, Shape::List(_)) && list != ListType::Atomic,
    }
}

/// How the list of a field is owned, and its keys. Where nothing is said, the merge strategy of patches decides.
pub fn list_ownership(release: Release, owner: &str, field: &Field) -> (ListType, Vec<&'static str>) {
    let old = release == Release::V1_20;
    let declared = match field.list_type {
        // The conditions of CustomResourceDefinitions were a plain list then.
        _ if old && owner.contains(".apiextensions.") => None,
        Some(catalogue::ListType::Atomic) if old && field.patch_merge => None,
        declared => declared,
    };
    match declared {
        Some(catalogue::ListType::Atomic) => (ListType::Atomic, Vec::new()),
        Some(catalogue::ListType::Set) => (ListType::Set, Vec::new()),
        Some(catalogue::ListType::Map) => (ListType::Map, field.list_map_keys.to_vec()),
        None if !field.patch_merge => (ListType::Atomic, Vec::new()),
        None if field.patch_merge_key.is_empty() => (ListType::Set, Vec::new()),
        None => (ListType::Map, vec![field.patch_merge_key]),
    }
}

impl<'a> Type<'a> {
    /// The type of a built-in kind or struct.
    pub fn built_in(catalogue: &'static Catalogue, type_: &'static catalogue::Type) -> Type<'a> {
        Type::BuiltIn { catalogue, shape: Shape::Struct(type_.id), field: None }
    }

    /// The type of a custom resource. v1.20 does not look at the schema here.
    pub fn custom(catalogue: &'static Catalogue, schema: Option<&'a Schema>) -> Type<'a> {
        match schema {
            Some(schema) if catalogue.release() != Release::V1_20 => {
                Type::Custom { schema, resource: Some(catalogue) }
            }
            _ => Type::Deduced,
        }
    }

    /// Whether nothing is known.
    pub fn is_deduced(self) -> bool {
        matches!(self, Type::Deduced)
    }

    /// What a value is, seen through the type. Where the type says nothing, the value does; `None` and null are maps.
    pub fn atom(self, value: Option<&Value>) -> Atom {
        self.atom_of(|| value)
    }

    /// The same of a value that is looked for only where the type does not say all.
    pub fn atom_of<'v>(self, value: impl FnOnce() -> Option<&'v Value>) -> Atom {
        match self {
            Type::BuiltIn { catalogue, shape, field } => match shape {
                Shape::Scalar(scalar) => match scalar {
                    catalogue::Scalar::String | catalogue::Scalar::Bytes | catalogue::Scalar::Duration => {
                        Atom::Scalar(Scalar::String)
                    }
                    catalogue::Scalar::Bool => Atom::Scalar(Scalar::Boolean),
                    catalogue::Scalar::Int32 | catalogue::Scalar::Int64 | catalogue::Scalar::Double => {
                        Atom::Scalar(Scalar::Numeric)
                    }
                    // A number is a quantity too, but v1.20 did not see that here.
                    catalogue::Scalar::Quantity if catalogue.release() == Release::V1_20 => {
                        Atom::Scalar(Scalar::String)
                    }
                    catalogue::Scalar::Time
                    | catalogue::Scalar::MicroTime
                    | catalogue::Scalar::Quantity
                    | catalogue::Scalar::IntOrString => Atom::Scalar(Scalar::Untyped),
                    catalogue::Scalar::RawExtension
                    | catalogue::Scalar::FieldsV1
                    | catalogue::Scalar::Json => Type::Any.atom(value()),
                },
                Shape::Struct(id) => {
                    let type_ = catalogue.get(id);
                    if type_.form != Form::Object {
                        return Type::Any.atom(value());
                    }
                    let atomic =
                        Ownership::of(catalogue).get(id).atomic && !field.is_some_and(|f| f.granular);
                    Atom::Map { atomic: atomic || field.is_some_and(|f| f.atomic), open: false }
                }
                Shape::List(_) => Atom::List(field.map_or(ListType::Atomic, |f| f.list)),
                Shape::Map(_) => Atom::Map { atomic: field.is_some_and(|f| f.atomic), open: true },
            },
            Type::Custom { schema, resource } => custom_atom(schema, resource.is_some(), value()),
            Type::Any => match value() {
                Some(Value::Array(_)) => Atom::List(ListType::Atomic),
                Some(Value::Object(_) | Value::Null) | None => Atom::Map { atomic: true, open: true },
                Some(_) => Atom::Scalar(Scalar::Untyped),
            },
            Type::Deduced => match value() {
                Some(Value::Array(_)) => Atom::List(ListType::Atomic),
                Some(Value::Object(_) | Value::Null) | None => Atom::Map { atomic: false, open: true },
                Some(_) => Atom::Scalar(Scalar::Untyped),
            },
        }
    }

    /// The type of a named field; `None` for fields that are not named and for entries of maps.
    pub fn field(self, name: &str) -> Option<Type<'a>> {
        match self {
            Type::BuiltIn { catalogue, shape: Shape::Struct(id), .. } => {
                let type_ = catalogue.get(id);
                if type_.form != Form::Object {
                    return None;
                }
                let field = &Ownership::of(catalogue).get(id).fields[type_.field_index(name)?];
                Some(Type::BuiltIn { catalogue, shape: field.field.shape, field: Some(field) })
            }
            Type::Custom { schema, resource } => {
                if let (Some(catalogue), "metadata") = (resource, name) {
                    return Some(Type::built_in(catalogue, catalogue.meta("ObjectMeta")?));
                }
                if let Some(property) = schema.properties.get(name) {
                    return Some(below(property, resource));
                }
                // What every resource has, said or not.
                (resource.is_some() && (name == "apiVersion" || name == "kind")).then_some(Type::Deduced)
            }
            _ => None,
        }
    }

    /// The place of a key of a map or struct: the element of its path, and its type.
    pub fn place(self, key: &str) -> (Text, Type<'a>) {
        match self.field(key) {
            Some(field @ Type::BuiltIn { field: Some(owned), .. }) => (owned.element.clone(), field),
            field => (PathElement::field(key).serialize(), field.unwrap_or_else(|| self.element())),
        }
    }

    /// Whether a value of the type that has been decoded may still not fit it: where items of lists have to differ.
    pub fn has_items(self) -> bool {
        !matches!(self, Type::BuiltIn { field: Some(Owned { has_items: false, .. }), .. })
    }

    /// The type of a list's items, or of a map's entries.
    pub fn element(self) -> Type<'a> {
        match self {
            Type::BuiltIn { catalogue, shape: Shape::List(e) | Shape::Map(e), .. } => {
                Type::BuiltIn { catalogue, shape: e.into(), field: None }
            }
            Type::Custom { schema, .. } => match (&schema.items, schema.additional_schema()) {
                (Some(items), _) => below(items, None),
                (None, Some(additional)) => below(additional, None),
                _ if schema.preserve_unknown_fields => Type::Deduced,
                _ => Type::Any,
            },
            Type::Deduced => Type::Deduced,
            _ => Type::Any,
        }
    }

    /// The keys of a list of type map.
    pub fn keys(self) -> Cow<'a, [&'a str]> {
        match self {
            Type::BuiltIn { field: Some(field), .. } => Cow::Borrowed(&field.keys),
            Type::Custom { schema, .. } => schema.list_map_keys.iter().map(String::as_str).collect(),
            _ => Cow::Borrowed(&[]),
        }
    }

    /// The default of a key of a list of type map. v1.20's schema knows only the protocol of a container's port.
    pub fn key_default(self, name: &str) -> Option<Value> {
        match self.element() {
            Type::BuiltIn { catalogue, shape: Shape::Struct(id), .. } => {
                let type_ = catalogue.get(id);
                let known = catalogue.release() != Release::V1_20 || type_.name() == "ContainerPort";
                type_.field(name).filter(|_| known)?.default.clone()
            }
            Type::Custom { schema, .. } => schema.properties.get(name)?.default.clone(),
            _ => None,
        }
    }

    /// `patchStrategy` and `patchMergeKey` of a field.
    pub fn patch_strategy(self, name: &str) -> (&'static str, &'static str) {
        match self {
            Type::BuiltIn { catalogue, shape: Shape::Struct(id), .. } => {
                catalogue.get(id).field(name).map_or(("", ""), |f| (f.patch_strategy, f.patch_merge_key))
            }
            _ => ("", ""),
        }
    }

    /// Whether it is a map, whose entries have no names of their own.
    pub fn is_open_map(self) -> bool {
        matches!(self.atom(None), Atom::Map { open: true, .. })
    }

    /// Name for messages.
    pub fn name(self) -> &'static str {
        match self {
            Type::BuiltIn { catalogue, shape: Shape::Struct(id), .. } => catalogue.get(id).name(),
            Type::BuiltIn { shape: Shape::Map(_), .. } => "map",
            Type::BuiltIn { shape: Shape::List(_), .. } => "slice",
            _ => "Unstructured",
        }
    }
}

fn below<'a>(schema: &'a Schema, resource: Option<&'static Catalogue>) -> Type<'a> {
    let nothing = schema.type_.is_empty() && !schema.int_or_string && schema.properties.is_empty();
    if nothing && schema.preserve_unknown_fields {
        return Type::Deduced;
    }
    Type::Custom { schema, resource: resource.filter(|_| schema.embedded_resource) }
}

fn custom_atom(schema: &Schema, resource: bool, value: Option<&Value>) -> Atom {
    if schema.int_or_string {
        return Atom::Scalar(Scalar::Untyped);
    }
    match schema.type_.as_str() {
        "array" => Atom::List(match schema.list_type.as_str() {
            "set" => ListType::Set,
            "map" => ListType::Map,
            _ => ListType::Atomic,
        }),
        "string" if schema.format.is_empty() || schema.format == "byte" => Atom::Scalar(Scalar::String),
        "string" => Atom::Scalar(Scalar::Untyped),
        "integer" | "number" => Atom::Scalar(Scalar::Numeric),
        "boolean" => Atom::Scalar(Scalar::Boolean),
        "object" => {
            let said = !schema.properties.is_empty() && schema.additional_schema().is_none();
            Atom::Map { atomic: schema.map_type == "atomic", open: !said || schema.preserve_unknown_fields }
        }
        _ if resource || !schema.properties.is_empty() => {
            Atom::Map { atomic: false, open: schema.preserve_unknown_fields }
        }
        _ => Type::Any.atom(value),
    }
}

#[cfg(test)]
mod tests {
    use super::ATOMIC_STRUCTS;

    #[test]
    fn atomic_structs_are_sorted() {
        assert!(ATOMIC_STRUCTS.is_sorted());
    }
}
