//! Roles and bindings of `rbac.authorization.k8s.io`.

use pilothouse_apimachinery::field::{self, ErrorList, Path};
use pilothouse_apimachinery::json::{Value, ensure_object, get, has, list_at, list_mut, set_default, str_at};
use pilothouse_apimachinery::names;
use pilothouse_apimachinery::selector::validate_label_selector;

use super::checks::invalid_each;
use super::columns::{AGE, NAME, text, wide};
use super::{Context, Kind, RowContext, Version};
use crate::go_print::{self, quoted};
use crate::table::{age_cell, name_cell};

/// The group.
pub const GROUP: &str = "rbac.authorization.k8s.io";

const VERSIONS: &[Version] = &[Version::always(GROUP, "v1"), Version::always(GROUP, "v1beta1")];

/// The kinds of this family.
pub static KINDS: &[&Kind] = &[&CLUSTER_ROLE_BINDING, &CLUSTER_ROLE, &ROLE_BINDING, &ROLE];

const BASE: Kind = Kind {
    create_on_update: true,
    storage_version: "rbac.authorization.k8s.io/v1",
    name_fn: names::path_segment_name,
    update_checks: (2, 1),
    ..Kind::new("", "", "", VERSIONS)
};

/// `Role`.
pub static ROLE: Kind = Kind {
    kind: "Role",
    plural: "roles",
    singular: "role",
    storage_prefix: "roles",
    validate: |role, _| rules(role, true),
    // Kubernetes checks an update twice over.
    validate_update: |new, _, _| [rules(new, true), rules(new, true)].concat(),
    ..BASE
};

/// `ClusterRole`.
pub static CLUSTER_ROLE: Kind = Kind {
    kind: "ClusterRole",
    plural: "clusterroles",
    singular: "clusterrole",
    storage_prefix: "clusterroles",
    namespaced: false,
    validate: |role, _| cluster_role(role),
    validate_update: |new, _, _| [cluster_role(new), cluster_role(new)].concat(),
    ..BASE
};

/// `RoleBinding`.
pub static ROLE_BINDING: Kind = Kind {
    kind: "RoleBinding",
    plural: "rolebindings",
    singular: "rolebinding",
    storage_prefix: "rolebindings",
    default: default_binding,
    validate: |binding, _| binding_faults(binding, true),
    validate_update: |new, old, _| binding_update(new, old, true),
    columns: &[
        NAME,
        text(
            "Role",
            "RoleRef can reference a Role in the current namespace or a ClusterRole in the global namespace. If the RoleRef cannot be resolved, the Authorizer must return an error.",
        ),
        AGE,
        wide("Users", "Users in the roleBinding"),
        wide("Groups", "Groups in the roleBinding"),
        wide("ServiceAccounts", "ServiceAccounts in the roleBinding"),
    ],
    row: binding_row,
    ..BASE
};

/// `ClusterRoleBinding`.
pub static CLUSTER_ROLE_BINDING: Kind = Kind {
    kind: "ClusterRoleBinding",
    plural: "clusterrolebindings",
    singular: "clusterrolebinding",
    storage_prefix: "clusterrolebindings",
    namespaced: false,
    default: default_binding,
    validate: |binding, _| binding_faults(binding, false),
    validate_update: |new, old, _| binding_update(new, old, false),
    columns: &[
        NAME,
        text(
            "Role",
            "RoleRef can only reference a ClusterRole in the global namespace. If the RoleRef cannot be resolved, the Authorizer must return an error.",
        ),
        AGE,
        wide("Users", "Users in the clusterRoleBinding"),
        wide("Groups", "Groups in the clusterRoleBinding"),
        wide("ServiceAccounts", "ServiceAccounts in the clusterRoleBinding"),
    ],
    row: binding_row,
    ..BASE
};

fn rules(role: &Value, namespaced: bool) -> ErrorList {
    let mut errs = ErrorList::new();
    for (i, rule) in list_at(role, &["rules"]).iter().enumerate() {
        errs.extend(rule_faults(rule, namespaced, &Path::new("rules").index(i)));
    }
    errs
}

fn rule_faults(rule: &Value, namespaced: bool, path: &Path) -> ErrorList {
    let mut errs = ErrorList::new();
    let is_empty = |name: &str| list_at(rule, &[name]).is_empty();
    if is_empty("verbs") {
        errs.push(field::required(&path.child("verbs"), "verbs must contain at least one value"));
    }
    if !is_empty("nonResourceURLs") {
        let at = path.child("nonResourceURLs");
        let shown = go_print::strings(get(rule, &["nonResourceURLs"]));
        if namespaced {
            let why = "namespaced rules cannot apply to non-resource URLs";
            errs.push(field::invalid_shown(&at, &shown, why));
        }
        if !(is_empty("apiGroups") && is_empty("resources") && is_empty("resourceNames")) {
            let why = "rules cannot apply to both regular resources and non-resource URLs";
            errs.push(field::invalid_shown(&at, &shown, why));
        }
        return errs;
    }
    if is_empty("apiGroups") {
        errs.push(field::required(
            &path.child("apiGroups"),
            "resource rules must supply at least one api group",
        ));
    }
    if is_empty("resources") {
        errs.push(field::required(
            &path.child("resources"),
            "resource rules must supply at least one resource",
        ));
    }
    errs
}

fn cluster_role(role: &Value) -> ErrorList {
    let mut errs = rules(role, false);
    if !has(role, &["aggregationRule"]) {
        return errs;
    }
    let path = Path::new("aggregationRule.clusterRoleSelectors");
    let selectors = list_at(role, &["aggregationRule", "clusterRoleSelectors"]);
    if selectors.is_empty() {
        errs.push(field::required(
            &path,
            "at least one clusterRoleSelector required if aggregationRule is non-nil",
        ));
    }
    for (i, selector) in selectors.iter().enumerate() {
        errs.extend(validate_label_selector(selector, &path.index(i)));
    }
    errs
}

fn default_binding(binding: &mut Value, _context: &Context) {
    ensure_object(binding, &["roleRef"]);
    if str_at(binding, &["roleRef", "apiGroup"]).is_empty() {
        pilothouse_apimachinery::json::set(binding, &["roleRef", "apiGroup"], GROUP);
    }
    for subject in list_mut(binding, &["subjects"]) {
        if matches!(str_at(subject, &["kind"]), "User" | "Group") {
            set_default(subject, &["apiGroup"], GROUP);
        }
    }
}

fn binding_faults(binding: &Value, namespaced: bool) -> ErrorList {
    let mut errs = ErrorList::new();
    let path = Path::new("roleRef");
    let reference = get(binding, &["roleRef"]);
    let kinds: &[&str] = if namespaced { &["Role", "ClusterRole"] } else { &["ClusterRole"] };
    let (group, kind, name) =
        (str_at(reference, &["apiGroup"]), str_at(reference, &["kind"]), str_at(reference, &["name"]));
    if group != GROUP {
        errs.push(field::not_supported(&path.child("apiGroup"), group, &[GROUP]));
    }
    if !kinds.contains(&kind) {
        errs.push(field::not_supported(&path.child("kind"), kind, kinds));
    }
    if name.is_empty() {
        errs.push(field::required(&path.child("name"), ""));
    } else {
        errs.extend(invalid_each(&path.child("name"), name, names::path_segment_name(name, false)));
    }
    for (i, subject) in list_at(binding, &["subjects"]).iter().enumerate() {
        errs.extend(subject_faults(subject, namespaced, &Path::new("subjects").index(i)));
    }
    errs
}

fn subject_faults(subject: &Value, namespaced: bool, path: &Path) -> ErrorList {
    let mut errs = ErrorList::new();
    let (name, group) = (str_at(subject, &["name"]), str_at(subject, &["apiGroup"]));
    if name.is_empty() {
        errs.push(field::required(&path.child("name"), ""));
    }
    match str_at(subject, &["kind"]) {
        "ServiceAccount" => {
            if !name.is_empty() {
                errs.extend(invalid_each(
                    &path.child("name"),
                    name,
                    names::dns1123_subdomain_name(name, false),
                ));
            }
            if !group.is_empty() {
                errs.push(field::not_supported(&path.child("apiGroup"), group, &[""]));
            }
            if !namespaced && str_at(subject, &["namespace"]).is_empty() {
                errs.push(field::required(&path.child("namespace"), ""));
            }
        }
        "User" | "Group" => {
            if group != GROUP {
                errs.push(field::not_supported(&path.child("apiGroup"), group, &[GROUP]));
            }
        }
        kind => {
            errs.push(field::not_supported(&path.child("kind"), kind, &["ServiceAccount", "User", "Group"]))
        }
    }
    errs
}

fn binding_update(new: &Value, old: &Value, namespaced: bool) -> ErrorList {
    let faults = binding_faults(new, namespaced);
    let mut errs = [faults.clone(), faults].concat();
    let parts = |o| ["apiGroup", "kind", "name"].map(|f| str_at(o, &["roleRef", f]));
    let [group, kind, name] = parts(new);
    if parts(new) != parts(old) {
        let shown = go_print::structure(
            "rbac.RoleRef",
            &[("APIGroup", quoted(group)), ("Kind", quoted(kind)), ("Name", quoted(name))],
        );
        errs.push(field::invalid_shown(&Path::new("roleRef"), &shown, "cannot change roleRef"));
    }
    errs
}

fn binding_row(binding: &Value, context: &RowContext) -> Vec<Value> {
    let subjects = |kind: &str| -> Value {
        list_at(binding, &["subjects"])
            .iter()
            .filter(|s| str_at(s, &["kind"]) == kind)
            .map(|s| match kind {
                "ServiceAccount" => format!("{}/{}", str_at(s, &["namespace"]), str_at(s, &["name"])),
                _ => str_at(s, &["name"]).to_string(),
            })
            .collect::<Vec<_>>()
            .join(", ")
            .into()
    };
    let role = format!("{}/{}", str_at(binding, &["roleRef", "kind"]), str_at(binding, &["roleRef", "name"]));
    vec![
        name_cell(binding),
        role.into(),
        age_cell(binding, context),
        subjects("User"),
        subjects("Group"),
        subjects("ServiceAccount"),
    ]
}

#[cfg(test)]
mod tests {
    use pilothouse_apimachinery::json::json;
    use pilothouse_apimachinery::version::Release;

    use super::*;

    const CONTEXT: Context = Context {
        release: Release::V1_20,
        subresource: "",
        api_version: "rbac.authorization.k8s.io/v1",
        allow_privileged: true,
        gates: &[],
    };

    fn texts(errs: ErrorList) -> Vec<String> {
        errs.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn rule_texts() {
        assert_eq!(
            texts(rules(
                &json!({"rules": [{}, {"verbs": ["get"], "nonResourceURLs": ["/x"], "resources": ["pods"]}]}),
                true
            )),
            [
                "rules[0].verbs: Required value: verbs must contain at least one value",
                "rules[0].apiGroups: Required value: resource rules must supply at least one api group",
                "rules[0].resources: Required value: resource rules must supply at least one resource",
                "rules[1].nonResourceURLs: Invalid value: []string{\"/x\"}: namespaced rules cannot apply to non-resource URLs",
                "rules[1].nonResourceURLs: Invalid value: []string{\"/x\"}: rules cannot apply to both regular resources and non-resource URLs",
            ]
        );
        assert_eq!(
            cluster_role(&json!({"aggregationRule": {}}))[0].field,
            "aggregationRule.clusterRoleSelectors"
        );
    }

    #[test]
    fn bindings() {
        let mut b = json!({"roleRef": {"kind": "Role", "name": "r"}, "subjects": [
            {"kind": "User", "name": "u"}, {"kind": "ServiceAccount", "name": "a"}]});
        default_binding(&mut b, &CONTEXT);
        assert_eq!(b["subjects"][0]["apiGroup"], GROUP);
        assert!(!has(&b["subjects"][1], &["apiGroup"]));
        assert!(binding_faults(&b, true).is_empty());
        assert_eq!(
            texts(binding_faults(&b, false)),
            [
                "roleRef.kind: Unsupported value: \"Role\": supported values: \"ClusterRole\"",
                "subjects[1].namespace: Required value",
            ]
        );
    }

    #[test]
    fn role_refs_stay() {
        let old = json!({"roleRef": {"apiGroup": GROUP, "kind": "Role", "name": "r"}});
        let new = json!({"roleRef": {"apiGroup": GROUP, "kind": "Role", "name": "x"}});
        assert_eq!(
            texts(binding_update(&new, &old, true)),
            [
                "roleRef: Invalid value: rbac.RoleRef{APIGroup:\"rbac.authorization.k8s.io\", Kind:\"Role\", Name:\"x\"}: cannot change roleRef"
            ]
        );
    }

    #[test]
    fn rows() {
        let b = json!({"metadata": {"name": "b"}, "roleRef": {"kind": "ClusterRole", "name": "view"}, "subjects": [
            {"kind": "Group", "name": "g"}, {"kind": "Group", "name": "h"}, {"kind": "ServiceAccount", "name": "a", "namespace": "n"}]});
        let cells = binding_row(&b, &RowContext { now: 0 });
        assert_eq!(cells[1], json!("ClusterRole/view"));
        assert_eq!(cells[3..], [json!(""), json!("g, h"), json!("n/a")]);
    }
}
