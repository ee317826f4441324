//! Field management of the resources that are served: [`FieldManager`] with everything filled in.

use std::sync::Arc;

use pilothouse_apimachinery::json;
use pilothouse_apimachinery::status::Result;
use pilothouse_apimachinery::version::Release;
use serde_json::{Value, json};

use super::manager::FieldManager;
use super::set::Set;
use super::types::Type;
use crate::convert::parse_api_version;
use crate::scheme::{Resource, Scheme};

/// What the schema says of a resource's objects.
pub fn type_of(resource: &Resource) -> Type<'_> {
    match (resource.schema(), resource.as_custom()) {
        (Some(schema), _) => Type::built_in(schema.catalogue, schema.type_),
        (None, Some(custom)) => Type::custom(resource.catalogue(), custom.schema.as_deref()),
        (None, None) => Type::Deduced,
    }
}

/// The empty object of a kind.
fn empty(resource: &Resource) -> Value {
    let object = json!({"apiVersion": &*resource.api_version, "kind": &*resource.kind});
    match resource.schema() {
        Some(_) => resource.decode_value(object.clone()).map(|d| d.object).unwrap_or(object),
        None => object,
    }
}

/// Fields that requests for the object, or for one of its subresources, cannot change. v1.20 does not tell them apart.
fn reset(resource: &Resource, subresource: &str) -> Set {
    if resource.release == Release::V1_20 {
        return Set::default();
    }
    match subresource {
        "" if resource.subresource("status").is_some() => Set::of(&[&["status"]]),
        "status" => Set::of(&[
            &["spec"],
            &["metadata", "deletionTimestamp"],
            &["metadata", "ownerReferences"],
            &["metadata", "labels"],
            &["metadata", "annotations"],
            &["metadata", "finalizers"],
        ]),
        _ => Set::default(),
    }
}

/// Runs a function with the field manager of a resource.
fn with_manager<T>(
    resource: &Resource,
    scheme: &Scheme,
    subresource: &str,
    now: &str,
    run: impl FnOnce(&FieldManager<'_>) -> T,
) -> T {
    let siblings: Vec<Arc<Resource>> = scheme
        .resources()
        .filter(|r| r.plural == resource.plural && r.hub_version() == resource.hub_version())
        .cloned()
        .collect();
    let at = |api_version: &str| {
        let (group, version) = parse_api_version(api_version)?;
        siblings.iter().find(|r| &*r.group == group && &*r.version == version)
    };
    let convert = |object: &Value, api_version: &str| {
        let to = at(api_version)?;
        let from = at(json::str_at(object, &["apiVersion"])).map_or(resource, |r| &**r);
        let mut object = object.clone();
        from.to_hub(&mut object, &from.context("", true));
        to.from_hub(&mut object);
        Some((type_of(to), object))
    };
    let empty = empty(resource);
    let old = resource.release == Release::V1_20;
    run(&FieldManager {
        release: resource.release,
        api_version: &resource.api_version,
        subresource: if old { "" } else { subresource },
        ignore_request_fields: !subresource.is_empty(),
        type_: type_of(resource),
        empty: &empty,
        reset: reset(resource, subresource),
        now: now.to_string(),
        convert: &convert,
    })
}

/// Renews `metadata.managedFields` of an object that is created (`live` is `None`), updated or patched.
///
/// Objects are in the version of the request. `manager` is from [`super::managed::manager_name`], `now` RFC 3339.
pub fn manage_update(
    resource: &Resource,
    scheme: &Scheme,
    live: Option<&Value>,
    mut new: Value,
    manager: &str,
    subresource: &str,
    now: &str,
) -> Value {
    with_manager(resource, scheme, subresource, now, |fields| {
        // What clients sent empty is not there once it is stored, and nobody owns it.
        let mut stored = new.clone();
        resource.canonicalize(&mut stored);
        let managed = fields.update(live.unwrap_or(fields.empty), stored, manager);
        json::copy(&mut new, &managed, &["metadata", "managedFields"]);
        new
    })
}

/// Applies a configuration (see [`super::manager::parse`]) to the live object, `None` where there is none yet. The result
/// is still to be decoded ([`Resource::decode_value`]) and defaulted.
pub fn manage_apply(
    resource: &Resource,
    scheme: &Scheme,
    live: Option<&Value>,
    config: &Value,
    manager: &str,
    force: bool,
    subresource: &str,
    now: &str,
) -> Result<Value> {
    with_manager(resource, scheme, subresource, now, |fields| {
        fields.apply(live.unwrap_or(fields.empty), config, manager, force)
    })
}
