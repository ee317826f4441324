//! `ObjectMeta`: what the server sets in it, and what it refuses, with v1.20's texts.

use std::collections::BTreeSet;

use pilothouse_apimachinery::field::{self, ErrorList, Path};
use pilothouse_apimachinery::json::{
    self, Value, bool_at, copy, get, get_i64, has, i64_at, list_at, remove, set, str_at,
};
use pilothouse_apimachinery::rand::generate_name;
use pilothouse_apimachinery::status::{Result, Status};
use pilothouse_apimachinery::time::Timestamp;
use pilothouse_apimachinery::{go, names};

use crate::scheme::Resource;

/// Finalizer of a deletion that waits for what the object owns.
pub const FINALIZER_FOREGROUND: &str = "foregroundDeletion";
/// Finalizer of a deletion that orphans what the object owns.
pub const FINALIZER_ORPHAN: &str = "orphan";

fn namespace_matches(resource: &Resource, object: &mut Value, namespace: &str) -> Result<()> {
    if !resource.namespaced {
        remove(object, &["metadata", "namespace"]);
        return Ok(());
    }
    let own = str_at(object, &["metadata", "namespace"]);
    if own.is_empty() {
        set(object, &["metadata", "namespace"], namespace);
    } else if own != namespace {
        return Err(Status::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    Ok(())
}

/// Sets what the server sets on a new object, before the kind's own preparation: namespace, name, uid, time.
/// `random` gives the suffix of a generated name.
pub fn prepare_create(
    resource: &Resource,
    object: &mut Value,
    namespace: &str,
    now: Timestamp,
    uid: &str,
    random: impl FnMut() -> u32,
) -> Result<()> {
    namespace_matches(resource, object, namespace)?;
    for field in ["deletionTimestamp", "deletionGracePeriodSeconds", "clusterName", "selfLink"] {
        remove(object, &["metadata", field]);
    }
    set(object, &["metadata", "creationTimestamp"], now.rfc3339());
    set(object, &["metadata", "uid"], uid);
    let prefix = str_at(object, &["metadata", "generateName"]);
    if !prefix.is_empty() && str_at(object, &["metadata", "name"]).is_empty() {
        let name = generate_name(prefix, random);
        set(object, &["metadata", "name"], name);
    }
    Ok(())
}

/// Carries over from the old object what an update cannot change, before the kind's own preparation.
pub fn prepare_update(resource: &Resource, new: &mut Value, old: &Value, namespace: &str) -> Result<()> {
    namespace_matches(resource, new, namespace)?;
    let generation = get_i64(old, &["metadata", "generation"]);
    if generation == 0 {
        remove(new, &["metadata", "generation"]);
    } else {
        set(new, &["metadata", "generation"], generation);
    }
    for field in ["clusterName", "selfLink"] {
        remove(new, &["metadata", field]);
    }
    if str_at(new, &["metadata", "uid"]).is_empty() {
        copy(new, old, &["metadata", "uid"]);
    }
    copy(new, old, &["metadata", "creationTimestamp"]);
    if has(old, &["metadata", "deletionTimestamp"]) {
        copy(new, old, &["metadata", "deletionTimestamp"]);
    }
    if has(old, &["metadata", "deletionGracePeriodSeconds"])
        && !has(new, &["metadata", "deletionGracePeriodSeconds"])
    {
        copy(new, old, &["metadata", "deletionGracePeriodSeconds"]);
    }
    Ok(())
}

/// Whether two values are the same to Kubernetes: absent, `null`, empty lists and empty maps are all nothing.
pub fn semantically_equal(a: &Value, b: &Value) -> bool {
    let nothing = |v: &Value| match v {
        Value::Null => true,
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.is_empty(),
        _ => false,
    };
    match (a, b) {
        _ if a.is_shared_with(b) => true,
        (Value::Object(x), Value::Object(y)) => {
            x.iter().all(|(k, v)| match y.get(k) {
                Some(w) => semantically_equal(v, w),
                None => nothing(v),
            }) && y.iter().all(|(k, w)| x.contains_key(k) || nothing(w))
        }
        (Value::Array(x), Value::Array(y)) => {
            x.len() == y.len() && x.iter().zip(y).all(|(v, w)| semantically_equal(v, w))
        }
        (x, y) => x == y || (nothing(x) && nothing(y)),
    }
}

/// Whether anything but metadata and status differs: what raises the generation.
pub fn spec_changed(new: &Value, old: &Value) -> bool {
    let fields =
        |v: &Value| v.as_object().map(|o| o.keys().cloned().collect::<BTreeSet<_>>()).unwrap_or_default();
    fields(new)
        .union(&fields(old))
        .filter(|f| !matches!(f.as_str(), "metadata" | "status" | "kind" | "apiVersion"))
        .any(|f| !semantically_equal(get(new, &[f]), get(old, &[f])))
}

fn invalid_each(path: &Path, value: &str, messages: Vec<String>) -> impl Iterator<Item = field::Error> {
    messages.into_iter().map(move |m| field::invalid(path, value, &m)).collect::<Vec<_>>().into_iter()
}

fn field_manager(manager: &str, path: &Path) -> ErrorList {
    let mut errs = ErrorList::new();
    if manager.len() > 128 {
        errs.push(field::too_long(path, 128));
    }
    for (i, c) in manager.char_indices().filter(|(_, c)| c.is_control()) {
        let text = format!("invalid character U+{:04X} (at position {i})", u32::from(c));
        errs.push(field::invalid(path, manager, &text));
    }
    errs
}

fn managed_fields(object: &Value, path: &Path) -> ErrorList {
    let mut errs = ErrorList::new();
    for (i, entry) in list_at(object, &["metadata", "managedFields"]).iter().enumerate() {
        let path = path.child("managedFields").index(i);
        let operation = str_at(entry, &["operation"]);
        if operation != "Apply" && operation != "Update" {
            errs.push(field::invalid(&path.child("operation"), operation, "must be `Apply` or `Update`"));
        }
        let fields_type = str_at(entry, &["fieldsType"]);
        if !fields_type.is_empty() && fields_type != "FieldsV1" {
            errs.push(field::invalid(&path.child("fieldsType"), fields_type, "must be `FieldsV1`"));
        }
    }
    errs
}

/// An owner reference as Go prints it, with an address of ours for what is a pointer there.
fn shown_owner(owner: &Value) -> String {
    let text = |f: &str| go::quote(str_at(owner, &[f]));
    let pointer = |f: &str| {
        let at = if get(owner, &[f]).is_null() { "nil" } else { "0xc000000000" };
        format!("(*bool)({at})")
    };
    format!(
        "v1.OwnerReference{{APIVersion:{}, Kind:{}, Name:{}, UID:{}, Controller:{}, BlockOwnerDeletion:{}}}",
        text("apiVersion"),
        text("kind"),
        text("name"),
        text("uid"),
        pointer("controller"),
        pointer("blockOwnerDeletion")
    )
}

/// A time as Go prints it.
fn shown_time(time: &str) -> String {
    match Timestamp::parse(time) {
        Ok(t) => {
            let text = t.rfc3339();
            format!("{} +0000 UTC", text.trim_end_matches('Z').replacen('T', " ", 1))
        }
        Err(_) => "null".into(),
    }
}

fn owner_references(object: &Value, path: &Path) -> ErrorList {
    let path = path.child("ownerReferences");
    let mut errs = ErrorList::new();
    let mut controller: Option<&str> = None;
    let owners = list_at(object, &["metadata", "ownerReferences"]);
    for owner in owners {
        let (api_version, kind) = (str_at(owner, &["apiVersion"]), str_at(owner, &["kind"]));
        let version = crate::convert::parse_api_version(api_version).map_or("", |(_, v)| v);
        for (field, value, fault) in [
            ("apiVersion", version, "version must not be empty"),
            ("kind", kind, "kind must not be empty"),
            ("name", str_at(owner, &["name"]), "name must not be empty"),
            ("uid", str_at(owner, &["uid"]), "uid must not be empty"),
        ] {
            if value.is_empty() {
                errs.push(field::invalid(&path.child(field), str_at(owner, &[field]), fault));
            }
        }
        if api_version == "v1" && kind == "Event" {
            let why = "/v1, Kind=Event is disallowed from being an owner";
            errs.push(field::invalid_shown(&path, &shown_owner(owner), why));
        }
        if bool_at(owner, &["controller"]) {
            let name = str_at(owner, &["name"]);
            match controller {
                Some(first) => {
                    let text = format!(
                        "Only one reference can have Controller set to true. Found \"true\" in references for {first} and {name}"
                    );
                    let all: Vec<String> = owners.iter().map(shown_owner).collect();
                    let shown = format!("[]v1.OwnerReference{{{}}}", all.join(", "));
                    errs.push(field::invalid_shown(&path, &shown, &text));
                }
                None => controller = Some(name),
            }
        }
    }
    errs
}

fn finalizer_names(object: &Value) -> impl Iterator<Item = &str> {
    list_at(object, &["metadata", "finalizers"]).iter().filter_map(Value::as_str)
}

fn finalizers(object: &Value, path: &Path) -> ErrorList {
    let path = path.child("finalizers");
    let mut errs = ErrorList::new();
    for name in finalizer_names(object) {
        errs.extend(invalid_each(&path, name, names::qualified_name(name)));
    }
    let holds = |f: &str| finalizer_names(object).any(|n| n == f);
    if holds(FINALIZER_ORPHAN) && holds(FINALIZER_FOREGROUND) {
        let shown = go::string_slice(get(object, &["metadata", "finalizers"]));
        let text = format!("finalizer {FINALIZER_ORPHAN} and {FINALIZER_FOREGROUND} cannot be both set");
        errs.push(field::invalid_shown(&path, &shown, &text));
    }
    errs
}

/// Finalizers without a domain must be Kubernetes' own.
fn standard_finalizers(object: &Value, path: &Path) -> ErrorList {
    let own = ["kubernetes", FINALIZER_ORPHAN, FINALIZER_FOREGROUND];
    finalizer_names(object)
        .enumerate()
        .filter(|(_, name)| !name.contains('/') && !own.contains(name))
        .map(|(i, name)| {
            let path = path.child("finalizers").index(i);
            field::invalid(&path, name, "name is neither a standard finalizer name nor is it fully qualified")
        })
        .collect()
}

/// Faults of a new object's metadata. `standard` says whether finalizers without a domain must be Kubernetes' own.
pub fn validate(
    object: &Value,
    namespaced: bool,
    standard: bool,
    name_fn: impl Fn(&str, bool) -> Vec<String>,
) -> ErrorList {
    let path = Path::new("metadata");
    let mut errs = ErrorList::new();
    let at = |f: &str| str_at(object, &["metadata", f]);
    let (name, generate, namespace) = (at("name"), at("generateName"), at("namespace"));
    if !generate.is_empty() {
        errs.extend(invalid_each(&path.child("generateName"), generate, name_fn(generate, true)));
    }
    if name.is_empty() {
        errs.push(field::required(&path.child("name"), "name or generateName is required"));
    } else {
        errs.extend(invalid_each(&path.child("name"), name, name_fn(name, false)));
    }
    if namespaced {
        if namespace.is_empty() {
            errs.push(field::required(&path.child("namespace"), ""));
        } else {
            errs.extend(invalid_each(&path.child("namespace"), namespace, names::dns1123_label(namespace)));
        }
    } else if !namespace.is_empty() {
        errs.push(field::forbidden(&path.child("namespace"), "not allowed on this type"));
    }
    errs.extend(managers(object, &path));
    let generation = get_i64(object, &["metadata", "generation"]);
    if generation < 0 {
        errs.push(field::invalid(
            &path.child("generation"),
            generation,
            "must be greater than or equal to 0",
        ));
    }
    errs.extend(common(object, &path));
    errs.extend(finalizers(object, &path));
    errs.extend(managed_fields(object, &path));
    if standard {
        errs.extend(standard_finalizers(object, &path));
    }
    errs
}

fn managers(object: &Value, path: &Path) -> ErrorList {
    let entries = list_at(object, &["metadata", "managedFields"]).iter();
    entries.flat_map(|e| field_manager(str_at(e, &["manager"]), &path.child("fieldManager"))).collect()
}

fn common(object: &Value, path: &Path) -> ErrorList {
    let mut errs = names::labels(get(object, &["metadata", "labels"]), &path.child("labels"));
    errs.extend(names::annotations(get(object, &["metadata", "annotations"]), &path.child("annotations")));
    errs.extend(owner_references(object, path));
    errs
}

/// Faults of an update's metadata.
pub fn validate_update(new: &Value, old: &Value, standard: bool) -> ErrorList {
    let path = Path::new("metadata");
    let mut errs = ErrorList::new();
    if has(old, &["metadata", "deletionTimestamp"]) {
        let before: BTreeSet<&str> = finalizer_names(old).collect();
        let added: BTreeSet<&str> = finalizer_names(new).filter(|f| !before.contains(f)).collect();
        if !added.is_empty() {
            let shown = go::string_slice(&added.into_iter().map(Value::from).collect());
            errs.push(field::forbidden(
                &path.child("finalizers"),
                &format!("no new finalizers can be added if the object is being deleted, found new finalizers {shown}"),
            ));
        }
    }
    let version = str_at(new, &["metadata", "resourceVersion"]);
    if version.is_empty() {
        errs.push(field::invalid(&path.child("resourceVersion"), version, "must be specified for an update"));
    }
    let generation = get_i64(new, &["metadata", "generation"]);
    if generation < get_i64(old, &["metadata", "generation"]) {
        errs.push(field::invalid(&path.child("generation"), generation, "must not be decremented"));
    }
    errs.extend(managers(new, &path));
    for name in ["name", "namespace", "uid", "creationTimestamp", "deletionTimestamp"] {
        let value = str_at(new, &["metadata", name]);
        if value != str_at(old, &["metadata", name]) {
            errs.push(match name.ends_with("Timestamp") {
                true => field::invalid_shown(&path.child(name), &shown_time(value), "field is immutable"),
                false => field::invalid(&path.child(name), value, "field is immutable"),
            });
        }
    }
    let grace = &["metadata", "deletionGracePeriodSeconds"][..];
    if i64_at(new, grace) != i64_at(old, grace) {
        let value = json::get(new, grace).clone();
        errs.push(field::invalid(&path.child("deletionGracePeriodSeconds"), value, "field is immutable"));
    }
    errs.extend(common(new, &path));
    errs.extend(managed_fields(new, &path));
    if standard {
        errs.extend(standard_finalizers(new, &path));
    }
    errs
}

#[cfg(test)]
mod tests {
    use pilothouse_apimachinery::json::json;

    use super::*;

    fn texts(errs: &ErrorList) -> Vec<String> {
        errs.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn faults_of_new_metadata() {
        let name_fn = names::dns1123_subdomain_name;
        let ok = json!({"metadata": {"name": "a", "namespace": "b", "labels": {"x": "y"}}});
        assert!(validate(&ok, true, true, name_fn).is_empty());
        let bad = json!({"metadata": {"namespace": "b", "finalizers": ["not qualified", "x"], "ownerReferences": [{"apiVersion": "", "kind": "K", "name": "n", "uid": "u"}]}});
        let got = texts(&validate(&bad, false, true, name_fn));
        assert_eq!(got[0], "metadata.name: Required value: name or generateName is required");
        assert_eq!(got[1], "metadata.namespace: Forbidden: not allowed on this type");
        assert_eq!(
            got[2],
            "metadata.ownerReferences.apiVersion: Invalid value: \"\": version must not be empty"
        );
        assert!(
            got[3].starts_with(
                "metadata.finalizers: Invalid value: \"not qualified\": name part must consist of"
            )
        );
        assert_eq!(
            got[5],
            "metadata.finalizers[1]: Invalid value: \"x\": name is neither a standard finalizer name nor is it fully qualified"
        );
        let big = json!({"metadata": {"name": "a", "annotations": {"k": "x".repeat(300_000)}}});
        assert_eq!(
            texts(&validate(&big, false, true, name_fn)),
            ["metadata.annotations: Too long: must have at most 262144 bytes"]
        );
    }

    #[test]
    fn faults_of_updates() {
        let old = json!({"metadata": {"name": "a", "uid": "1", "resourceVersion": "5", "deletionTimestamp": "t", "finalizers": ["e.com/x"]}});
        let mut new = old.clone();
        assert!(validate_update(&new, &old, true).is_empty());
        set(&mut new, &["metadata", "finalizers"], json!(["e.com/x", "e.com/y"]));
        set(&mut new, &["metadata", "uid"], "2");
        remove(&mut new, &["metadata", "resourceVersion"]);
        assert_eq!(
            texts(&validate_update(&new, &old, true)),
            [
                "metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers []string{\"e.com/y\"}",
                "metadata.resourceVersion: Invalid value: \"\": must be specified for an update",
                "metadata.uid: Invalid value: \"2\": field is immutable",
            ]
        );
    }

    #[test]
    fn values_are_shown_as_go_does() {
        let old = json!({"metadata": {"resourceVersion": "5"}});
        let new = json!({"metadata": {"resourceVersion": "5", "deletionTimestamp": "2001-01-01T00:00:00Z",
            "ownerReferences": [{"apiVersion": "v1", "kind": "Event", "name": "e", "uid": "u"}]}});
        assert_eq!(
            texts(&validate_update(&new, &old, true)),
            [
                "metadata.deletionTimestamp: Invalid value: 2001-01-01 00:00:00 +0000 UTC: field is immutable",
                "metadata.ownerReferences: Invalid value: v1.OwnerReference{APIVersion:\"v1\", Kind:\"Event\", Name:\"e\", UID:\"u\", Controller:(*bool)(nil), BlockOwnerDeletion:(*bool)(nil)}: /v1, Kind=Event is disallowed from being an owner",
            ]
        );
    }

    #[test]
    fn equality() {
        assert!(semantically_equal(&json!({"a": [], "b": {"c": null}}), &json!({"b": {}})));
        assert!(!semantically_equal(&json!({"a": [1]}), &json!({"a": []})));
        assert!(!spec_changed(&json!({"spec": {}, "status": 1, "metadata": 1}), &json!({"status": 2})));
        assert!(spec_changed(&json!({"webhooks": [1]}), &json!({})));
    }
}
