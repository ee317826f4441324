//! `FlowSchema`: which requests belong to which flow.

use pilothouse_apimachinery::field::{self, ErrorList, Path};
use pilothouse_apimachinery::json::{Value, bool_at, copy, get, get_i64, has, json, list_at, set, str_at};
use pilothouse_apimachinery::names;

use super::GROUP;
use crate::go_print;
use crate::kinds::checks::{invalid_each, metadata_for_status, strings};
use crate::kinds::columns::{AGE, NAME, text};
use crate::kinds::{Kind, RowContext, STATUS, Version};
use crate::table::{age_cell, name_cell, or_none};

/// The kind.
pub static FLOW_SCHEMA: Kind = Kind {
    namespaced: false,
    has_generation: true,
    storage_version: "flowcontrol.apiserver.k8s.io/v1beta1",
    subresources: &[STATUS],
    default: |schema, _| {
        if get_i64(schema, &["spec", "matchingPrecedence"]) == 0 {
            set(schema, &["spec", "matchingPrecedence"], 1000);
        }
    },
    prepare_create: |schema, _| set(schema, &["status"], json!({})),
    prepare_update: |new, old, context| {
        if context.subresource == "status" {
            copy(new, old, &["spec"]);
            metadata_for_status(new, old);
        } else {
            copy(new, old, &["status"]);
        }
    },
    validate: |schema, _| [spec_faults(schema), condition_faults(schema)].concat(),
    validate_update: |new, _, context| match context.subresource {
        "status" => condition_faults(new),
        _ => [spec_faults(new), condition_faults(new)].concat(),
    },
    columns: &[
        NAME,
        text(
            "PriorityLevel",
            "`name` is the name of the priority level configuration being referenced Required.",
        ),
        text(
            "MatchingPrecedence",
            "`matchingPrecedence` is used to choose among the FlowSchemas that match a given request. The chosen FlowSchema is among those with the numerically lowest (which we take to be logically highest) MatchingPrecedence.  Each MatchingPrecedence value must be ranged in [1,10000]. Note that if the precedence is not specified, it will be set to 1000 as default.",
        ),
        text(
            "DistinguisherMethod",
            "`distinguisherMethod` defines how to compute the flow distinguisher for requests that match this schema. `nil` specifies that the distinguisher is disabled and thus will always be the empty string.",
        ),
        AGE,
        text("MissingPL", "references a broken or non-existent PriorityLevelConfiguration"),
    ],
    row,
    update_checks: (1, 0),
    ..Kind::new(
        "FlowSchema",
        "flowschemas",
        "flowschema",
        &[
            Version::always(GROUP, "v1beta1"),
            Version::newer(GROUP, "v1"),
            Version::newer(GROUP, "v1beta3"),
            Version::newer(GROUP, "v1beta2"),
        ],
    )
};

const VERBS: &[&str] =
    &["create", "delete", "deletecollection", "get", "list", "patch", "proxy", "update", "watch"];

/// Faults of conditions: each has a type, no two the same.
pub(super) fn condition_faults(object: &Value) -> ErrorList {
    let mut errs = ErrorList::new();
    let mut seen = std::collections::BTreeSet::new();
    for (i, condition) in list_at(object, &["status", "conditions"]).iter().enumerate() {
        let path = Path::new("status.conditions").index(i).child("type");
        let type_ = str_at(condition, &["type"]);
        if !seen.insert(type_) {
            errs.push(field::duplicate(&path, type_));
        }
        if type_.is_empty() {
            errs.push(field::required(&path, ""));
        }
    }
    errs
}

fn spec_faults(schema: &Value) -> ErrorList {
    let mut errs = ErrorList::new();
    let path = Path::new("spec");
    let precedence = get_i64(schema, &["spec", "matchingPrecedence"]);
    let at = path.child("matchingPrecedence");
    if precedence <= 0 {
        errs.push(field::invalid(&at, precedence, "must be a positive value"));
    }
    if precedence > 10_000 {
        errs.push(field::invalid(&at, precedence, "must not be greater than 10000"));
    }
    if precedence == 1 && str_at(schema, &["metadata", "name"]) != "exempt" {
        let why = "only the schema named 'exempt' may have matchingPrecedence 1";
        errs.push(field::invalid(&at, precedence, why));
    }
    const METHODS: &[&str] = &["ByNamespace", "ByUser"];
    if has(schema, &["spec", "distinguisherMethod"]) {
        let method = str_at(schema, &["spec", "distinguisherMethod", "type"]);
        if !METHODS.contains(&method) {
            let at = path.child("distinguisherMethod").child("type");
            errs.push(field::not_supported(&at, method, METHODS));
        }
    }
    let level = str_at(schema, &["spec", "priorityLevelConfiguration", "name"]);
    let at = path.child("priorityLevelConfiguration").child("name");
    if level.is_empty() {
        errs.push(field::required(&at, "must reference a priority level"));
    } else {
        errs.extend(invalid_each(&at, level, names::dns1123_subdomain_name(level, false)));
    }
    for (i, rule) in list_at(schema, &["spec", "rules"]).iter().enumerate() {
        errs.extend(rule_faults(rule, &path.child("rules").index(i)));
    }
    errs
}

fn rule_faults(rule: &Value, path: &Path) -> ErrorList {
    let mut errs = ErrorList::new();
    let subjects = list_at(rule, &["subjects"]);
    if subjects.is_empty() {
        errs.push(field::required(&path.child("subjects"), "subjects must contain at least one value"));
    }
    for (i, subject) in subjects.iter().enumerate() {
        errs.extend(subject_faults(subject, &path.child("subjects").index(i)));
    }
    let (resources, others) = (list_at(rule, &["resourceRules"]), list_at(rule, &["nonResourceRules"]));
    if resources.is_empty() && others.is_empty() {
        errs.push(field::required(
            path,
            "at least one of resourceRules and nonResourceRules has to be non-empty",
        ));
    }
    for (i, rule) in resources.iter().enumerate() {
        errs.extend(resource_rule(rule, &path.child("resourceRules").index(i)));
    }
    for (i, rule) in others.iter().enumerate() {
        errs.extend(path_rule(rule, &path.child("nonResourceRules").index(i)));
    }
    errs
}

fn subject_faults(subject: &Value, path: &Path) -> ErrorList {
    /// Kind, field.
    const KINDS: &[(&str, &str)] =
        &[("ServiceAccount", "serviceAccount"), ("User", "user"), ("Group", "group")];
    let kind = str_at(subject, &["kind"]);
    let Some((_, own)) = KINDS.iter().find(|(k, _)| *k == kind) else {
        return vec![field::not_supported(&path.child("kind"), kind, &["Group", "ServiceAccount", "User"])];
    };
    let mut errs = ErrorList::new();
    let at = path.child(own);
    let value = get(subject, &[own]);
    let name = str_at(value, &["name"]);
    if value.is_null() {
        errs.push(field::required(&at, &format!("{own} is required when subject kind is '{kind}'")));
    } else if name.is_empty() {
        errs.push(field::required(&at.child("name"), ""));
    } else if *own == "serviceAccount" && name != "*" {
        errs.extend(invalid_each(&at.child("name"), name, names::dns1123_subdomain_name(name, false)));
    }
    if *own == "serviceAccount" && !value.is_null() {
        match str_at(value, &["namespace"]) {
            "" => errs
                .push(field::required(&at.child("namespace"), "must specify namespace for service account")),
            ns => errs.extend(invalid_each(&at.child("namespace"), ns, names::dns1123_label_name(ns, false))),
        }
    }
    for (other_kind, other) in KINDS.iter().filter(|(k, _)| *k != kind) {
        if has(subject, &[other]) {
            let why = format!("{other} is forbidden when subject kind is not '{other_kind}'");
            errs.push(field::forbidden(&path.child(other), &why));
        }
    }
    errs
}

fn shown(rule: &Value, name: &str) -> String {
    go_print::strings(get(rule, &[name]))
}

fn verb_faults(rule: &Value, path: &Path) -> ErrorList {
    let verbs = strings(rule, &["verbs"]);
    let at = path.child("verbs");
    if verbs.is_empty() {
        return vec![field::required(&at, "verbs must contain at least one value")];
    }
    if verbs.contains(&"*") {
        return alone(rule, "verbs", "verbs", path);
    }
    if verbs.iter().all(|v| VERBS.contains(v)) {
        return ErrorList::new();
    }
    let mut e = field::not_supported(&at, "", VERBS);
    e.body = e.body.replacen("\"\"", &shown(rule, "verbs"), 1);
    vec![e]
}

/// An error where a list has `*` and something else.
fn alone(rule: &Value, name: &str, what: &str, path: &Path) -> ErrorList {
    let values = strings(rule, &[name]);
    if values.len() > 1 && values.contains(&"*") {
        let why = format!("if '*' is present, must not specify other {what}");
        vec![field::invalid_shown(&path.child(name), &shown(rule, name), &why)]
    } else {
        ErrorList::new()
    }
}

fn resource_rule(rule: &Value, path: &Path) -> ErrorList {
    let mut errs = verb_faults(rule, path);
    for (name, one, many) in
        [("apiGroups", "api group", "api groups"), ("resources", "resource", "resources")]
    {
        if list_at(rule, &[name]).is_empty() {
            let why = format!("resource rules must supply at least one {one}");
            errs.push(field::required(&path.child(name), &why));
        } else {
            errs.extend(alone(rule, name, many, path));
        }
    }
    let namespaces = strings(rule, &["namespaces"]);
    let at = path.child("namespaces");
    if namespaces.is_empty() && !bool_at(rule, &["clusterScope"]) {
        errs.push(field::required(
            &at,
            "resource rules that are not cluster scoped must supply at least one namespace",
        ));
    } else if namespaces.contains(&"*") {
        errs.extend(alone(rule, "namespaces", "namespaces", path));
    } else {
        for (i, namespace) in namespaces.into_iter().enumerate() {
            for message in names::dns1123_label_name(namespace, false) {
                let why = format!("each member of this list must be '*' or a DNS-1123 label; {message}");
                errs.push(field::invalid(&at.index(i), namespace, &why));
            }
        }
    }
    errs
}

fn path_rule(rule: &Value, path: &Path) -> ErrorList {
    let mut errs = verb_faults(rule, path);
    let urls = strings(rule, &["nonResourceURLs"]);
    let at = path.child("nonResourceURLs");
    if urls.is_empty() {
        errs.push(field::required(&at, "nonResourceURLs must contain at least one value"));
    } else if urls.contains(&"*") {
        errs.extend(alone(rule, "nonResourceURLs", "non-resource URLs", path));
    } else {
        for (i, url) in urls.into_iter().enumerate() {
            errs.extend(url_fault(url).map(|why| field::invalid(&at.index(i), url, why)));
        }
    }
    errs
}

fn url_fault(url: &str) -> Option<&'static str> {
    if url.is_empty() {
        return Some("must not be empty");
    }
    if url == "/" {
        return None;
    }
    if !url.starts_with('/') {
        return Some("must start with slash");
    }
    if url.contains(' ') {
        return Some("must not contain white-space");
    }
    if url.contains("//") {
        return Some("must not contain double slash");
    }
    let wildcards = url.matches('*').count();
    (wildcards > 1 || (wildcards == 1 && !url.ends_with("/*")))
        .then_some("wildcard can only do suffix matching")
}

fn row(schema: &Value, context: &RowContext) -> Vec<Value> {
    let dangling = list_at(schema, &["status", "conditions"])
        .iter()
        .find(|c| str_at(c, &["type"]) == "Dangling")
        .map_or("?", |c| str_at(c, &["status"]));
    vec![
        name_cell(schema),
        str_at(schema, &["spec", "priorityLevelConfiguration", "name"]).into(),
        get_i64(schema, &["spec", "matchingPrecedence"]).into(),
        or_none(str_at(schema, &["spec", "distinguisherMethod", "type"])),
        age_cell(schema, context),
        dangling.into(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schema_faults() {
        let schema = json!({"metadata": {"name": "s"}, "spec": {"matchingPrecedence": 1, "priorityLevelConfiguration": {"name": ""}, "rules": [
            {"subjects": [{"kind": "User", "group": {"name": "g"}}, {"kind": "Odd"}], "resourceRules": [
                {"verbs": ["get", "*"], "apiGroups": ["*"], "resources": [], "namespaces": ["A"]}],
             "nonResourceRules": [{"verbs": ["fly"], "nonResourceURLs": ["/a*"]}]}, {}]}});
        let texts: Vec<String> = spec_faults(&schema).iter().map(ToString::to_string).collect();
        assert_eq!(
            texts[..8],
            [
                "spec.matchingPrecedence: Invalid value: 1: only the schema named 'exempt' may have matchingPrecedence 1",
                "spec.priorityLevelConfiguration.name: Required value: must reference a priority level",
                "spec.rules[0].subjects[0].user: Required value: user is required when subject kind is 'User'",
                "spec.rules[0].subjects[0].group: Forbidden: group is forbidden when subject kind is not 'Group'",
                "spec.rules[0].subjects[1].kind: Unsupported value: \"Odd\": supported values: \"Group\", \"ServiceAccount\", \"User\"",
                "spec.rules[0].resourceRules[0].verbs: Invalid value: []string{\"get\", \"*\"}: if '*' is present, must not specify other verbs",
                "spec.rules[0].resourceRules[0].resources: Required value: resource rules must supply at least one resource",
                "spec.rules[0].resourceRules[0].namespaces[0]: Invalid value: \"A\": each member of this list must be '*' or a DNS-1123 label; a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')",
            ]
        );
        assert!(texts[8].starts_with("spec.rules[0].nonResourceRules[0].verbs: Unsupported value: []string{\"fly\"}: supported values: \"create\""));
        assert_eq!(
            texts[9],
            "spec.rules[0].nonResourceRules[0].nonResourceURLs[0]: Invalid value: \"/a*\": wildcard can only do suffix matching"
        );
        assert_eq!(texts.len(), 12);
    }

    #[test]
    fn rows() {
        let schema = json!({"metadata": {"name": "s"}, "spec": {"matchingPrecedence": 5, "priorityLevelConfiguration": {"name": "p"},
            "distinguisherMethod": {"type": "ByUser"}}});
        let cells = row(&schema, &RowContext { now: 0 });
        assert_eq!(cells[1..4], [json!("p"), json!(5), json!("ByUser")]);
        assert_eq!(cells[5], json!("?"));
    }
}
