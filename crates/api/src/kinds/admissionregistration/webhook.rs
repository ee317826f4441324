//! Defaults and checks of admission webhooks.

use std::collections::BTreeSet;

use pilothouse_apimachinery::field::{self, ErrorList, Path};
use pilothouse_apimachinery::json::{
    Value, get, get_mut, has, i64_at, json, list_at, list_mut, set_default, str_at,
};
use pilothouse_apimachinery::names;
use pilothouse_apimachinery::selector::validate_label_selector;
use pilothouse_apimachinery::version::Release;

use super::client_config::{service_faults, url_faults};
use super::expressions::{Environment, condition_faults};
use crate::go_print::{self, quoted};
use crate::kinds::Context;
use crate::kinds::checks::{invalid_each, strings};

const REVIEW_VERSIONS: &[&str] = &["v1", "v1beta1"];

fn is_beta(context: &Context) -> bool {
    context.api_version.ends_with("/v1beta1")
}

pub(super) fn default(object: &mut Value, mutating: bool, context: &Context) {
    let beta = is_beta(context);
    for hook in list_mut(object, &["webhooks"]).iter_mut().filter(|h| h.is_object()) {
        set_default(hook, &["failurePolicy"], if beta { "Ignore" } else { "Fail" });
        set_default(hook, &["matchPolicy"], if beta { "Exact" } else { "Equivalent" });
        set_default(hook, &["namespaceSelector"], json!({}));
        set_default(hook, &["objectSelector"], json!({}));
        set_default(hook, &["timeoutSeconds"], if beta { 30 } else { 10 });
        if beta {
            set_default(hook, &["sideEffects"], "Unknown");
            if list_at(hook, &["admissionReviewVersions"]).is_empty() {
                pilothouse_apimachinery::json::set(hook, &["admissionReviewVersions"], json!(["v1beta1"]));
            }
        }
        if mutating {
            set_default(hook, &["reinvocationPolicy"], "Never");
        }
        for rule in list_mut(hook, &["rules"]).iter_mut().filter(|r| r.is_object()) {
            set_default(rule, &["scope"], "*");
        }
        if let Some(service) = get_mut(hook, &["clientConfig", "service"]).filter(|s| s.is_object()) {
            set_default(service, &["port"], 443);
        }
    }
}

/// What v1 demands and v1beta1 does not; an update need not be better than what it replaces.
#[derive(Debug, Clone, Copy)]
struct Demands {
    no_side_effects: bool,
    known_review_version: bool,
    unique_names: bool,
}

fn has_known_review_version(hook: &Value) -> bool {
    strings(hook, &["admissionReviewVersions"]).iter().any(|v| REVIEW_VERSIONS.contains(v))
}

fn names_unique(hooks: &[Value]) -> bool {
    let names: Vec<&str> = hooks.iter().map(|h| str_at(h, &["name"])).filter(|n| !n.is_empty()).collect();
    names.iter().collect::<BTreeSet<_>>().len() == names.len()
}

impl Demands {
    fn of(old: Option<&Value>, context: &Context) -> Demands {
        let hooks = old.map_or(&[][..], |o| list_at(o, &["webhooks"]));
        let strict = !is_beta(context);
        Demands {
            no_side_effects: strict
                && hooks.iter().all(|h| matches!(str_at(h, &["sideEffects"]), "None" | "NoneOnDryRun")),
            known_review_version: hooks.iter().all(has_known_review_version),
            unique_names: strict && names_unique(hooks),
        }
    }
}

pub(super) fn faults(object: &Value, old: Option<&Value>, mutating: bool, context: &Context) -> ErrorList {
    let demands = Demands::of(old, context);
    let mut errs = ErrorList::new();
    let mut seen = BTreeSet::new();
    for (i, hook) in list_at(object, &["webhooks"]).iter().enumerate() {
        let path = Path::new("webhooks").index(i);
        errs.extend(hook_faults(hook, mutating, demands, &path));
        let conditions = list_at(hook, &["matchConditions"]);
        if context.release != Release::V1_20 && !conditions.is_empty() {
            let environment = Environment { authorizer: true, ..Environment::default() };
            errs.extend(condition_faults(conditions, &environment, &path.child("matchConditions")));
        }
        errs.extend(review_versions(hook, demands, &path.child("admissionReviewVersions")));
        let name = str_at(hook, &["name"]);
        if demands.unique_names && !name.is_empty() && !seen.insert(name) {
            errs.push(field::duplicate(&path.child("name"), name));
        }
    }
    errs
}

/// Faults of a name of at least three segments.
fn qualified_faults(name: &str, path: &Path) -> ErrorList {
    if name.is_empty() {
        return vec![field::required(path, "")];
    }
    let faults = names::dns1123_subdomain(name);
    if !faults.is_empty() {
        return vec![field::invalid(path, name, &faults.join(","))];
    }
    if name.split('.').count() < 3 {
        let why = "should be a domain with at least three segments separated by dots";
        return vec![field::invalid(path, name, why)];
    }
    ErrorList::new()
}

fn one_of(hook: &Value, name: &str, allowed: &[&str], path: &Path) -> Option<field::Error> {
    let value = get(hook, &[name]).as_str()?;
    (!allowed.contains(&value)).then(|| field::not_supported(&path.child(name), value, allowed))
}

fn hook_faults(hook: &Value, mutating: bool, demands: Demands, path: &Path) -> ErrorList {
    let mut errs = qualified_faults(str_at(hook, &["name"]), &path.child("name"));
    for (i, rule) in list_at(hook, &["rules"]).iter().enumerate() {
        errs.extend(rule_faults(rule, &path.child("rules").index(i)));
    }
    errs.extend(one_of(hook, "failurePolicy", &["Fail", "Ignore"], path));
    errs.extend(one_of(hook, "matchPolicy", &["Equivalent", "Exact"], path));
    let effects: &[&str] = if demands.no_side_effects {
        &["None", "NoneOnDryRun"]
    } else {
        &["None", "NoneOnDryRun", "Some", "Unknown"]
    };
    if has(hook, &["sideEffects"]) {
        errs.extend(one_of(hook, "sideEffects", effects, path));
    } else {
        let why = format!("must specify one of {}", effects.join(", "));
        errs.push(field::required(&path.child("sideEffects"), &why));
    }
    if let Some(seconds) = i64_at(hook, &["timeoutSeconds"]).filter(|s| !(1..=30).contains(s)) {
        errs.push(field::invalid(
            &path.child("timeoutSeconds"),
            seconds,
            "the timeout value must be between 1 and 30 seconds",
        ));
    }
    for name in ["namespaceSelector", "objectSelector"] {
        errs.extend(validate_label_selector(get(hook, &[name]), &path.child(name)));
    }
    if mutating {
        errs.extend(one_of(hook, "reinvocationPolicy", &["IfNeeded", "Never"], path));
    }
    errs.extend(client_faults(get(hook, &["clientConfig"]), &path.child("clientConfig")));
    errs
}

fn client_faults(config: &Value, path: &Path) -> ErrorList {
    match (get(config, &["url"]), get(config, &["service"])) {
        (Value::Null, Value::Null) => {
            vec![field::required(path, "exactly one of url or service is required")]
        }
        (url, Value::Null) => url_faults(&path.child("url"), url.as_str().unwrap_or("")),
        (Value::Null, service) => service_faults(
            &path.child("service"),
            // Kubernetes passes the two the other way around.
            str_at(service, &["namespace"]),
            str_at(service, &["name"]),
            get(service, &["path"]).as_str(),
            i64_at(service, &["port"]).unwrap_or(443),
        ),
        _ => vec![field::required(path, "exactly one of url or service is required")],
    }
}

fn review_versions(hook: &Value, demands: Demands, path: &Path) -> ErrorList {
    let versions = strings(hook, &["admissionReviewVersions"]);
    if versions.is_empty() {
        let why = format!("must specify one of {}", REVIEW_VERSIONS.join(", "));
        return vec![field::required(path, &why)];
    }
    let mut errs = ErrorList::new();
    let mut seen = BTreeSet::new();
    for (i, version) in versions.iter().enumerate() {
        if !seen.insert(version) {
            errs.push(field::invalid(&path.index(i), *version, "duplicate version"));
            continue;
        }
        errs.extend(invalid_each(&path.index(i), version, names::dns1035_label(version)));
    }
    if demands.known_review_version && !has_known_review_version(hook) {
        let shown = go_print::strings(get(hook, &["admissionReviewVersions"]));
        let why = format!("must include at least one of {}", REVIEW_VERSIONS.join(", "));
        errs.push(field::invalid_shown(path, &shown, &why));
    }
    errs
}

fn rule_faults(rule: &Value, path: &Path) -> ErrorList {
    const OPERATIONS: &[&str] = &["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];
    let mut errs = ErrorList::new();
    let operations = strings(rule, &["operations"]);
    let at = path.child("operations");
    if operations.is_empty() {
        errs.push(field::required(&at, ""));
    }
    if operations.len() > 1 && operations.contains(&"*") {
        let shown = go_print::list("admissionregistration.OperationType", get(rule, &["operations"]), |o| {
            quoted(o.as_str().unwrap_or(""))
        });
        errs.push(field::invalid_shown(&at, &shown, "if '*' is present, must not specify other operations"));
    }
    for (i, operation) in operations.into_iter().enumerate() {
        if !OPERATIONS.contains(&operation) {
            errs.push(field::not_supported(&at.index(i), operation, OPERATIONS));
        }
    }
    for (name, what) in [("apiGroups", "API groups"), ("apiVersions", "API versions")] {
        let values = strings(rule, &[name]);
        let at = path.child(name);
        if values.is_empty() {
            errs.push(field::required(&at, ""));
        }
        if values.len() > 1 && values.contains(&"*") {
            let shown = go_print::strings(get(rule, &[name]));
            let why = format!("if '*' is present, must not specify other {what}");
            errs.push(field::invalid_shown(&at, &shown, &why));
        }
        if name == "apiVersions" {
            for (i, _) in values.iter().enumerate().filter(|(_, v)| v.is_empty()) {
                errs.push(field::required(&at.index(i), ""));
            }
        }
    }
    errs.extend(resource_faults(rule, &path.child("resources")));
    errs.extend(one_of(rule, "scope", &["*", "Cluster", "Namespaced"], path));
    errs
}

fn resource_faults(rule: &Value, path: &Path) -> ErrorList {
    let resources = strings(rule, &["resources"]);
    let mut errs = ErrorList::new();
    if resources.is_empty() {
        errs.push(field::required(path, ""));
    }
    let (mut whole_resources, mut whole_subresources) = (BTreeSet::new(), BTreeSet::new());
    let mut plain = false;
    for (i, text) in resources.iter().enumerate() {
        if text.is_empty() {
            errs.push(field::required(&path.index(i), ""));
            continue;
        }
        let Some((resource, sub)) = text.split_once('/') else {
            plain |= *text != "*";
            continue;
        };
        if whole_resources.contains(resource) {
            let why = format!("if '{resource}/*' is present, must not specify {text}");
            errs.push(field::invalid(&path.index(i), *text, &why));
        }
        if whole_subresources.contains(sub) {
            let why = format!("if '*/{sub}' is present, must not specify {text}");
            errs.push(field::invalid(&path.index(i), *text, &why));
        }
        if sub == "*" {
            whole_resources.insert(resource);
        }
        if resource == "*" {
            whole_subresources.insert(sub);
        }
    }
    let shown = || go_print::strings(get(rule, &["resources"]));
    if resources.len() > 1 && resources.contains(&"*/*") {
        let why = "if '*/*' is present, must not specify other resources";
        errs.push(field::invalid_shown(path, &shown(), why));
    }
    if plain && resources.contains(&"*") {
        let why = "if '*' is present, must not specify other resources without subresources";
        errs.push(field::invalid_shown(path, &shown(), why));
    }
    errs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(api_version: &'static str) -> Context {
        Context { release: Release::V1_20, subresource: "", api_version, allow_privileged: true, gates: &[] }
    }

    fn hook(extra: Value) -> Value {
        let mut hook = json!({"name": "a.b.c", "clientConfig": {"url": "https://h/"}, "sideEffects": "None", "admissionReviewVersions": ["v1"],
            "rules": [{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}]});
        for (k, v) in extra.as_object().unwrap() {
            hook[k] = v.clone();
        }
        json!({"webhooks": [hook]})
    }

    fn texts(object: Value, api_version: &'static str) -> Vec<String> {
        faults(&object, None, true, &context(api_version)).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn defaults_of_both_versions() {
        let mut o = hook(json!({"sideEffects": null}));
        default(&mut o, true, &context("admissionregistration.k8s.io/v1beta1"));
        assert_eq!(o["webhooks"][0]["failurePolicy"], "Ignore");
        assert_eq!(o["webhooks"][0]["sideEffects"], "Unknown");
        let mut o = hook(json!({"clientConfig": {"service": {"name": "s", "namespace": "n"}}}));
        default(&mut o, false, &context("admissionregistration.k8s.io/v1"));
        assert_eq!(o["webhooks"][0]["timeoutSeconds"], 10);
        assert_eq!(o["webhooks"][0]["clientConfig"]["service"]["port"], 443);
        assert_eq!(o["webhooks"][0]["rules"][0]["scope"], "*");
    }

    #[test]
    fn v1_is_stricter() {
        let v1 = "admissionregistration.k8s.io/v1";
        assert!(texts(hook(json!({})), v1).is_empty());
        assert_eq!(
            texts(hook(json!({"sideEffects": "Some"})), v1),
            [
                "webhooks[0].sideEffects: Unsupported value: \"Some\": supported values: \"None\", \"NoneOnDryRun\""
            ]
        );
        assert!(
            texts(hook(json!({"sideEffects": "Some"})), "admissionregistration.k8s.io/v1beta1").is_empty()
        );
        assert_eq!(
            texts(hook(json!({"admissionReviewVersions": [], "name": "a.b", "timeoutSeconds": 40})), v1),
            [
                "webhooks[0].name: Invalid value: \"a.b\": should be a domain with at least three segments separated by dots",
                "webhooks[0].timeoutSeconds: Invalid value: 40: the timeout value must be between 1 and 30 seconds",
                "webhooks[0].admissionReviewVersions: Required value: must specify one of v1, v1beta1",
            ]
        );
    }

    #[test]
    fn rules() {
        let rule = json!([{"operations": ["*", "CREATE"], "apiGroups": [], "apiVersions": [""], "resources": ["*", "pods", "a/*", "a/b"]}]);
        let fields: Vec<String> =
            faults(&hook(json!({"rules": rule})), None, false, &context("admissionregistration.k8s.io/v1"))
                .into_iter()
                .map(|e| e.field)
                .collect();
        assert_eq!(
            fields,
            [
                "webhooks[0].rules[0].operations",
                "webhooks[0].rules[0].apiGroups",
                "webhooks[0].rules[0].apiVersions[0]",
                "webhooks[0].rules[0].resources[3]",
                "webhooks[0].rules[0].resources"
            ]
        );
    }
}
