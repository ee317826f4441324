//! `Namespace`.

use pilothouse_apimachinery::field::{self, ErrorList, Path};
use pilothouse_apimachinery::json::{Value, copy, ensure_list, has, json, list_at, set, set_default, str_at};
use pilothouse_apimachinery::names;
use pilothouse_apimachinery::version::Release;

use crate::kinds::checks::{invalid_each, strings};
use crate::kinds::columns::{AGE, NAME, text};
use crate::kinds::{Context, Kind, RowContext, STATUS, Subresource, Version};
use crate::table::{age_cell, name_cell};

/// The finalizer that keeps a namespace until its content is gone.
pub const FINALIZER: &str = "kubernetes";

/// The kind.
pub static NAMESPACE: Kind = Kind {
    namespaced: false,
    short_names: &["ns"],
    verbs: &["create", "delete", "get", "list", "patch", "update", "watch"],
    subresources: &[Subresource { name: "finalize", gvk: None, verbs: &["update"] }, STATUS],
    name_fn: names::dns1123_label_name,
    default: |object, context| {
        set_default(object, &["status", "phase"], "Active");
        let name = str_at(object, &["metadata", "name"]).to_string();
        if context.release > Release::V1_20 && !name.is_empty() {
            set(object, &["metadata", "labels", "kubernetes.io/metadata.name"], name);
        }
    },
    prepare_create,
    prepare_update: |new, old, context| match context.subresource {
        "status" => copy(new, old, &["spec"]),
        "finalize" => copy(new, old, &["status"]),
        _ => {
            copy(new, old, &["spec", "finalizers"]);
            copy(new, old, &["status"]);
        }
    },
    validate: |object, _| finalizers(object, &Path::new("spec.finalizers"), false),
    validate_update: |new, _old, context| match context.subresource {
        "status" => status_faults(new),
        "finalize" => finalizers(new, &Path::new("spec.finalizers"), true),
        _ => ErrorList::new(),
    },
    selectable_field_names: &["status.phase"],
    selectable_fields: |o| vec![("status.phase", str_at(o, &["status", "phase"]).to_string())],
    columns: &[NAME, text("Status", "The status of the namespace"), AGE],
    row: |object: &Value, context: &RowContext| {
        vec![name_cell(object), str_at(object, &["status", "phase"]).into(), age_cell(object, context)]
    },
    update_checks: (1, 1),
    ..Kind::new("Namespace", "namespaces", "namespace", &[Version::always("", "v1")])
};

fn prepare_create(object: &mut Value, _context: &Context) {
    set(object, &["status"], json!({"phase": "Active"}));
    let list = ensure_list(object, &["spec", "finalizers"]);
    if !list.iter().any(|f| f == FINALIZER) {
        list.push(FINALIZER.into());
    }
}

/// Faults of the finalizers in a namespace's spec.
fn finalizers(object: &Value, path: &Path, indexed: bool) -> ErrorList {
    let mut errs = ErrorList::new();
    for (i, name) in strings(object, &["spec", "finalizers"]).into_iter().enumerate() {
        let path = if indexed { path.index(i) } else { path.clone() };
        errs.extend(invalid_each(&path, name, names::qualified_name(name)));
        if !name.contains('/') && !["kubernetes", "orphan", "foregroundDeletion"].contains(&name) {
            errs.push(field::invalid(
                &path,
                name,
                "name is neither a standard finalizer name nor is it fully qualified",
            ));
        }
    }
    errs
}

fn status_faults(object: &Value) -> ErrorList {
    let phase = str_at(object, &["status", "phase"]);
    let path = Path::new("status.Phase");
    let deleted = has(object, &["metadata", "deletionTimestamp"]);
    match (deleted, phase) {
        (false, "Active") | (true, "Terminating") => ErrorList::new(),
        (false, _) => {
            vec![field::invalid(&path, phase, "may only be 'Active' if `deletionTimestamp` is empty")]
        }
        (true, _) => {
            vec![field::invalid(
                &path,
                phase,
                "may only be 'Terminating' if `deletionTimestamp` is not empty",
            )]
        }
    }
}

/// Whether nothing in the namespace's spec holds it any more.
pub fn is_finalized(object: &Value) -> bool {
    list_at(object, &["spec", "finalizers"]).is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(subresource: &'static str) -> Context {
        Context {
            release: Release::V1_20,
            subresource,
            api_version: "v1",
            allow_privileged: true,
            gates: &[],
        }
    }

    #[test]
    fn create_sets_phase_and_finalizer() {
        let mut ns = json!({"metadata": {"name": "a"}, "spec": {"finalizers": ["ex.com/f"]}, "status": {"phase": "Odd"}});
        prepare_create(&mut ns, &context(""));
        assert_eq!(ns["spec"]["finalizers"], json!(["ex.com/f", "kubernetes"]));
        assert_eq!(ns["status"], json!({"phase": "Active"}));
    }

    #[test]
    fn updates_keep_what_is_not_theirs() {
        let old = json!({"spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}});
        let mut new = json!({"spec": {}, "status": {"phase": "Terminating"}});
        (NAMESPACE.prepare_update)(&mut new, &old, &context(""));
        assert_eq!(new, old);
        let mut new = json!({"spec": {}, "status": {"phase": "Terminating"}});
        (NAMESPACE.prepare_update)(&mut new, &old, &context("finalize"));
        assert_eq!(new, json!({"spec": {}, "status": {"phase": "Active"}}));
        assert!(is_finalized(&new));
    }

    #[test]
    fn phases() {
        let errs = status_faults(&json!({"metadata": {}, "status": {"phase": "Terminating"}}));
        assert_eq!(
            errs[0].to_string(),
            "status.Phase: Invalid value: \"Terminating\": may only be 'Active' if `deletionTimestamp` is empty"
        );
        let errs = finalizers(&json!({"spec": {"finalizers": ["odd"]}}), &Path::new("spec.finalizers"), true);
        assert_eq!(errs[0].field, "spec.finalizers[0]");
    }

    #[test]
    fn newest_labels_with_the_name() {
        let mut ns = json!({"metadata": {"name": "a"}});
        (NAMESPACE.default)(&mut ns, &context(""));
        assert!(!has(&ns, &["metadata", "labels"]));
        let newest = Context { release: pilothouse_apimachinery::version::NEWEST, ..context("") };
        (NAMESPACE.default)(&mut ns, &newest);
        assert_eq!(ns["metadata"]["labels"]["kubernetes.io/metadata.name"], "a");
    }
}
