//! `ResourceQuota`.

use std::collections::BTreeSet;

use pilothouse_apimachinery::field::{self, ErrorList, Path};
use pilothouse_apimachinery::json::{Map, Text, Value, copy, get, has, json, list_at, map_at, set, str_at};
use pilothouse_apimachinery::version::Release;

use super::resources::{self, text as quantity_text};
use crate::go_print::{self, quoted};
use crate::kinds::checks::strings;
use crate::kinds::columns::{AGE, NAME, text};
use crate::kinds::{Context, Kind, RowContext, STATUS, Version};
use crate::table::{age_cell, name_cell};

/// The kind.
pub static RESOURCE_QUOTA: Kind = Kind {
    short_names: &["quota"],
    subresources: &[STATUS],
    prepare_create: |object, _| set(object, &["status"], json!({})),
    prepare_update: |new, old, context| {
        copy(new, old, if context.subresource == "status" { &["spec"] } else { &["status"] });
    },
    validate: |object, context| {
        let mut errs = spec_faults(object, context);
        errs.extend(amounts(object, &["status", "hard"]));
        errs.extend(amounts(object, &["status", "used"]));
        errs
    },
    validate_update,
    columns: &[
        NAME,
        AGE,
        text("Request", "Request represents a minimum amount of cpu/memory that a container may consume."),
        text(
            "Limit",
            "Limits control the maximum amount of cpu/memory that a container may use independent of contention on the node.",
        ),
    ],
    row,
    update_checks: (1, 1),
    ..Kind::new("ResourceQuota", "resourcequotas", "resourcequota", &[Version::always("", "v1")])
};

const EXISTS_ONLY: &[&str] = &["BestEffort", "NotBestEffort", "Terminating", "NotTerminating"];

fn validate_update(new: &Value, old: &Value, context: &Context) -> ErrorList {
    if context.subresource == "status" {
        let mut errs = ErrorList::new();
        if str_at(new, &["metadata", "resourceVersion"]).is_empty() {
            errs.push(field::required(&Path::new("resourceVersion"), ""));
        }
        errs.extend(amounts(new, &["status", "hard"]));
        errs.extend(amounts(new, &["status", "used"]));
        return errs;
    }
    // Kubernetes checks the new object by itself and again as the outcome of the update.
    let faults = spec_faults(new, context);
    let mut errs = [faults.clone(), faults].concat();
    let scopes = |o| strings(o, &["spec", "scopes"]).into_iter().collect::<BTreeSet<_>>();
    if scopes(new) != scopes(old) {
        errs.push(field::invalid_shown(&Path::new("spec.scopes"), &shown_scopes(new), "field is immutable"));
    }
    errs
}

fn amounts(object: &Value, path: &[&str]) -> ErrorList {
    let mut errs = ErrorList::new();
    for (name, value) in map_at(object, path).into_iter().flatten() {
        let at = Path::new(&path.join(".")).key(name);
        errs.extend(resources::quota_name_faults(name, &at));
        errs.extend(resources::value_faults(name, value, &at));
    }
    errs
}

fn spec_faults(object: &Value, context: &Context) -> ErrorList {
    let mut errs = amounts(object, &["spec", "hard"]);
    errs.extend(scopes_faults(object, context));
    if has(object, &["spec", "scopeSelector"]) {
        errs.extend(selector_faults(object, context));
    }
    errs
}

fn is_standard_scope(scope: &str, context: &Context) -> bool {
    EXISTS_ONLY.contains(&scope)
        || scope == "PriorityClass"
        || (context.release > Release::V1_20
            && ["CrossNamespacePodAffinity", "VolumeAttributesClass"].contains(&scope))
}

fn applies(scope: &str, resource: &str) -> bool {
    const COMPUTE: &[&str] =
        &["cpu", "memory", "limits.cpu", "limits.memory", "requests.cpu", "requests.memory"];
    match scope {
        "Terminating"
        | "NotTerminating"
        | "NotBestEffort"
        | "PriorityClass"
        | "CrossNamespacePodAffinity" => resource == "pods" || COMPUTE.contains(&resource),
        "BestEffort" => resource == "pods",
        _ => true,
    }
}

fn misapplied(object: &Value, scope: &str) -> usize {
    map_at(object, &["spec", "hard"])
        .into_iter()
        .flat_map(Map::keys)
        .filter(|k| resources::is_standard_quota(k) && !applies(scope, k))
        .count()
}

fn shown_scopes(object: &Value) -> String {
    go_print::list("core.ResourceQuotaScope", get(object, &["spec", "scopes"]), |s| {
        quoted(s.as_str().unwrap_or(""))
    })
}

fn conflicting(scopes: &BTreeSet<&str>) -> usize {
    [("BestEffort", "NotBestEffort"), ("Terminating", "NotTerminating")]
        .iter()
        .filter(|(a, b)| scopes.contains(a) && scopes.contains(b))
        .count()
}

fn scopes_faults(object: &Value, context: &Context) -> ErrorList {
    let mut errs = ErrorList::new();
    let path = Path::new("spec.scopes");
    let scopes = strings(object, &["spec", "scopes"]);
    for scope in &scopes {
        if !is_standard_scope(scope, context) {
            errs.push(field::invalid_shown(&path, &shown_scopes(object), "unsupported scope"));
        }
        for _ in 0..misapplied(object, scope) {
            let why = "unsupported scope applied to resource";
            errs.push(field::invalid_shown(&path, &shown_scopes(object), why));
        }
    }
    for _ in 0..conflicting(&scopes.into_iter().collect()) {
        errs.push(field::invalid_shown(&path, &shown_scopes(object), "conflicting scopes"));
    }
    errs
}

fn shown_selector(object: &Value) -> String {
    let expressions = get(object, &["spec", "scopeSelector", "matchExpressions"]);
    let item_type = "core.ScopedResourceSelectorRequirement";
    let shown = go_print::list(item_type, expressions, |e| {
        go_print::structure(
            item_type,
            &[
                ("ScopeName", quoted(str_at(e, &["scopeName"]))),
                ("Operator", quoted(str_at(e, &["operator"]))),
                ("Values", go_print::strings(get(e, &["values"]))),
            ],
        )
    });
    go_print::structure("core.ScopeSelector", &[("MatchExpressions", shown)])
}

fn selector_faults(object: &Value, context: &Context) -> ErrorList {
    let mut errs = ErrorList::new();
    let path = Path::new("spec.scopeSelector.matchExpressions");
    let mut seen = BTreeSet::new();
    for requirement in list_at(object, &["spec", "scopeSelector", "matchExpressions"]) {
        let scope = str_at(requirement, &["scopeName"]);
        let operator = str_at(requirement, &["operator"]);
        if !is_standard_scope(scope, context) {
            errs.push(field::invalid(&path.child("scopeName"), scope, "unsupported scope"));
        }
        for _ in 0..misapplied(object, scope) {
            let why = "unsupported scope applied to resource";
            errs.push(field::invalid_shown(&path, &shown_selector(object), why));
        }
        if EXISTS_ONLY.contains(&scope) && operator != "Exists" {
            errs.push(field::invalid(
                &path.child("operator"),
                operator,
                "must be 'Exist' only operator when scope is any of ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort and ResourceQuotaScopeNotBestEffort",
            ));
        }
        let values = list_at(requirement, &["values"]);
        match operator {
            "In" | "NotIn" => {
                if values.is_empty() {
                    errs.push(field::required(
                        &path.child("values"),
                        "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector",
                    ));
                }
            }
            "Exists" | "DoesNotExist" => {
                if !values.is_empty() {
                    errs.push(field::invalid_shown(
                        &path.child("values"),
                        &go_print::strings(get(requirement, &["values"])),
                        "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector",
                    ));
                }
            }
            _ => {
                errs.push(field::invalid(&path.child("operator"), operator, "not a valid selector operator"))
            }
        }
        seen.insert(scope);
    }
    for _ in 0..conflicting(&seen) {
        errs.push(field::invalid_shown(&path, &shown_scopes(object), "conflicting scopes"));
    }
    errs
}

/// `used/hard` of everything limited: limits in one column, all else in the other.
fn row(object: &Value, context: &RowContext) -> Vec<Value> {
    let hard = map_at(object, &["status", "hard"]);
    let mut names: Vec<&Text> = hard.into_iter().flat_map(Map::keys).collect();
    names.sort();
    let (mut request, mut limit) = (String::new(), String::new());
    for name in names {
        let column = if name.starts_with("limits.") { &mut limit } else { &mut request };
        let used = quantity_text(get(object, &["status", "used", name]));
        let most = quantity_text(get(object, &["status", "hard", name]));
        if !column.is_empty() {
            column.push_str(", ");
        }
        column.push_str(&format!("{name}: {used}/{most}"));
    }
    vec![name_cell(object), age_cell(object, context), request.into(), limit.into()]
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTEXT: Context = Context {
        release: Release::V1_20,
        subresource: "",
        api_version: "v1",
        allow_privileged: true,
        gates: &[],
    };

    #[test]
    fn scopes() {
        let o = json!({"spec": {"hard": {"services": "1", "pods": "2"}, "scopes": ["BestEffort", "NotBestEffort", "Odd"]}});
        let texts: Vec<String> =
            (RESOURCE_QUOTA.validate)(&o, &CONTEXT).iter().map(ToString::to_string).collect();
        let shown = "spec.scopes: Invalid value: []core.ResourceQuotaScope{\"BestEffort\", \"NotBestEffort\", \"Odd\"}: ";
        assert_eq!(
            texts,
            [
                format!("{shown}unsupported scope applied to resource"),
                format!("{shown}unsupported scope applied to resource"),
                format!("{shown}unsupported scope"),
                format!("{shown}conflicting scopes"),
            ]
        );
    }

    #[test]
    fn scope_selector() {
        let o = json!({"spec": {"hard": {"requests.storage": "1Gi"}, "scopeSelector": {"matchExpressions": [
            {"scopeName": "PriorityClass", "operator": "In", "values": ["low"]},
            {"scopeName": "Terminating", "operator": "In"}]}}});
        let errs = spec_faults(&o, &CONTEXT);
        assert!(errs[0].body.starts_with("Invalid value: core.ScopeSelector{MatchExpressions:[]core.ScopedResourceSelectorRequirement{core.ScopedResourceSelectorRequirement{ScopeName:\"PriorityClass\", Operator:\"In\", Values:[]string{\"low\"}}, "));
        assert_eq!(errs.len(), 4);
        assert!(errs[3].body.contains("at least one value"));
    }

    #[test]
    fn rows() {
        let o = json!({"metadata": {"name": "q"}, "status": {
            "hard": {"pods": "4", "limits.cpu": "2", "cpu": "1"}, "used": {"pods": "1", "limits.cpu": "500m"}}});
        let cells = row(&o, &RowContext { now: 0 });
        assert_eq!(cells[2], json!("cpu: 0/1, pods: 1/4"));
        assert_eq!(cells[3], json!("limits.cpu: 500m/2"));
    }

    #[test]
    fn scopes_cannot_change() {
        let errs =
            validate_update(&json!({"spec": {}}), &json!({"spec": {"scopes": ["BestEffort"]}}), &CONTEXT);
        assert_eq!(
            errs[0].to_string(),
            "spec.scopes: Invalid value: []core.ResourceQuotaScope(nil): field is immutable"
        );
    }
}
