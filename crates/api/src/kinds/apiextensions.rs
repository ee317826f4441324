//! CustomResourceDefinition.

mod convert;
mod validate;

use pilothouse_apimachinery::json::{self, Value, get, json, list_at, str_at};

use super::{Context, Kind, STATUS, Version};

/// The kinds of this family.
pub static KINDS: &[&Kind] = &[&CUSTOM_RESOURCE_DEFINITION];

static CUSTOM_RESOURCE_DEFINITION: Kind = Kind {
    namespaced: false,
    short_names: &["crd", "crds"],
    categories: &["api-extensions"],
    subresources: &[STATUS],
    storage_prefix: "apiextensions.k8s.io/customresourcedefinitions",
    storage_version: "apiextensions.k8s.io/v1beta1",
    has_generation: true,
    allow_unconditional_update: false,
    default,
    prepare_create,
    prepare_update,
    validate: validate::create,
    validate_update: validate::update,
    ..Kind::new(
        "CustomResourceDefinition",
        "customresourcedefinitions",
        "customresourcedefinition",
        &[
            Version::always("apiextensions.k8s.io", "v1"),
            Version {
                to_hub: Some(convert::from_v1beta1),
                from_hub: Some(convert::to_v1beta1),
                ..Version::always("apiextensions.k8s.io", "v1beta1")
            },
        ],
    )
};

/// Defaults of version v1; those of v1beta1 are set on the way to it.
fn default(crd: &mut Value, _context: &Context) {
    let kind = str_at(crd, &["spec", "names", "kind"]).to_string();
    if str_at(crd, &["spec", "names", "singular"]).is_empty() && !kind.is_empty() {
        json::set(crd, &["spec", "names", "singular"], kind.to_lowercase());
    }
    if str_at(crd, &["spec", "names", "listKind"]).is_empty() && !kind.is_empty() {
        json::set(crd, &["spec", "names", "listKind"], format!("{kind}List"));
    }
    json::set_default(crd, &["spec", "conversion"], json!({"strategy": "None"}));
    if json::has(crd, &["spec", "conversion", "webhook", "clientConfig", "service"]) {
        json::set_default(crd, &["spec", "conversion", "webhook", "clientConfig", "service", "port"], 443);
    }
    if list_at(crd, &["status", "storedVersions"]).is_empty() {
        let mut versions = list_at(crd, &["spec", "versions"]).iter();
        if let Some(storage) = versions.find(|v| json::bool_at(v, &["storage"])) {
            let name = get(storage, &["name"]).clone();
            json::set(crd, &["status", "storedVersions"], vec![name]);
        }
    }
}

/// The storage version's name joins those in which objects may be stored.
fn add_stored_versions(crd: &mut Value) {
    let storage: Vec<Value> = list_at(crd, &["spec", "versions"])
        .iter()
        .filter(|v| json::bool_at(v, &["storage"]))
        .map(|v| get(v, &["name"]).clone())
        .collect();
    let stored = json::ensure_list(crd, &["status", "storedVersions"]);
    for name in storage {
        if !stored.contains(&name) {
            stored.push(name);
        }
    }
}

fn prepare_create(crd: &mut Value, _context: &Context) {
    json::set(
        crd,
        &["status"],
        json!({"conditions": null, "acceptedNames": {"plural": "", "kind": ""}, "storedVersions": null}),
    );
    json::set(crd, &["metadata", "generation"], 1);
    if list_at(crd, &["spec", "versions"]).iter().any(|v| json::bool_at(v, &["storage"])) {
        add_stored_versions(crd);
    }
}

fn prepare_update(new: &mut Value, old: &Value, context: &Context) {
    if context.subresource == "status" {
        json::copy(new, old, &["spec"]);
    } else {
        json::copy(new, old, &["status"]);
        add_stored_versions(new);
    }
}

#[cfg(test)]
mod tests;
