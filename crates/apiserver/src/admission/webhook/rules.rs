//! Which webhooks a request goes to.

use pilothouse_apimachinery::json::{Map, Value};
use pilothouse_apimachinery::selector::Selector;

use crate::json::{get, list_at, str_at, texts};
use crate::request::{AdmissionRequest, Objects, Operation};

fn resource_fits(patterns: &[String], resource: &str, subresource: &str) -> bool {
    patterns.iter().any(|p| {
        let (r, s) = p.split_once('/').unwrap_or((p, ""));
        (r == "*" || r == resource) && (s == subresource || (s == "*" && p.contains('/')))
    })
}

/// A group's version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupVersion {
    /// API group.
    pub group: String,
    /// Version.
    pub version: String,
}

/// Whether a rule fits a request that is seen in a group's version.
fn fits(rule: &Value, r: &AdmissionRequest, seen: &GroupVersion) -> bool {
    let any = |field: &str, value: &str| texts(rule, &[field]).iter().any(|x| x == "*" || x == value);
    let scope = match str_at(rule, &["scope"]) {
        "Namespaced" => !r.namespace.is_empty() && r.resource != "namespaces",
        "Cluster" => r.namespace.is_empty() || (r.group.is_empty() && r.resource == "namespaces"),
        _ => true,
    };
    let names = texts(rule, &["resourceNames"]);
    scope
        && (names.is_empty() || names.contains(&r.name))
        && any("operations", r.operation.name())
        && any("apiGroups", &seen.group)
        && any("apiVersions", &seen.version)
        && resource_fits(&texts(rule, &["resources"]), &r.resource, &r.subresource)
}

/// The group and version in which a webhook wants to see a request; `None` where no rule fits. `others` are those in
/// which the resource is served, too, for webhooks that take equivalent requests.
pub fn version(webhook: &Value, r: &AdmissionRequest, others: &[GroupVersion]) -> Option<GroupVersion> {
    version_of(list_at(webhook, &["rules"]), str_at(webhook, &["matchPolicy"]), r, others)
}

/// The same by rules and a match policy.
pub fn version_of(
    rules: &[Value],
    match_policy: &str,
    r: &AdmissionRequest,
    others: &[GroupVersion],
) -> Option<GroupVersion> {
    let wanted = |seen: &&GroupVersion| rules.iter().any(|rule| fits(rule, r, seen));
    let own = GroupVersion { group: r.group.clone(), version: r.version.clone() };
    if wanted(&&own) {
        return Some(own);
    }
    if match_policy != "Equivalent" {
        return None;
    }
    others.iter().find(wanted).cloned()
}

/// Whether a webhook's selectors want the objects of a request.
pub fn selected(webhook: &Value, r: &AdmissionRequest, objects: &dyn Objects) -> bool {
    let matches = |selector: &Value, labels: &Value| {
        // An absent selector selects everything here.
        let empty = selector.as_object().is_none_or(Map::is_empty);
        empty || Selector::from_label_selector(selector).is_ok_and(|s| s.matches(labels))
    };
    let labels = |v: &Value| get(v, &["metadata", "labels"]).clone();
    let selector = get(webhook, &["namespaceSelector"]);
    let in_namespace = if r.group.is_empty() && r.resource == "namespaces" && r.subresource.is_empty() {
        // A namespace is judged by its own labels: the new ones, or those it had.
        let own = if r.operation == Operation::Delete { &r.old_object } else { &r.object };
        matches(selector, &labels(own))
    } else if r.namespace.is_empty() {
        true
    } else {
        let namespace = objects.get("", "namespaces", "", &r.namespace);
        matches(selector, &namespace.map_or(Value::Null, |n| labels(&n)))
    };
    let selector = get(webhook, &["objectSelector"]);
    in_namespace
        && [&r.object, &r.old_object]
            .into_iter()
            .filter(|o| !o.is_null())
            .any(|o| matches(selector, &labels(o)))
        || (in_namespace && r.object.is_null() && r.old_object.is_null() && matches(selector, &Value::Null))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::test_create;
    use crate::testing::FakeObjects;
    use pilothouse_apimachinery::json::json;

    fn hook(rule: Value) -> Value {
        json!({"rules": [rule], "matchPolicy": "Equivalent"})
    }

    #[test]
    fn finds_the_version_to_send() {
        let mut r = test_create(
            "apps",
            "deployments",
            "Deployment",
            json!({"metadata": {"name": "d", "namespace": "n"}}),
        );
        let rule = |versions: Value, resources: Value| json!({"operations": ["CREATE"], "apiGroups": ["apps"], "apiVersions": versions, "resources": resources, "scope": "*"});
        let seen = |group: &str, version: &str| GroupVersion { group: group.into(), version: version.into() };
        let others = [seen("apps", "v1beta1"), seen("extensions", "v1beta1")];
        assert_eq!(
            version(&hook(rule(json!(["v1"]), json!(["deployments"]))), &r, &others),
            Some(seen("apps", "v1"))
        );
        assert_eq!(
            version(&hook(rule(json!(["v1beta1"]), json!(["*"]))), &r, &others),
            Some(seen("apps", "v1beta1"))
        );
        assert_eq!(version(&hook(rule(json!(["v2"]), json!(["*"]))), &r, &others), None);
        let mut old = rule(json!(["v1beta1"]), json!(["deployments"]));
        old["apiGroups"] = json!(["extensions"]);
        assert_eq!(version(&hook(old), &r, &others), Some(seen("extensions", "v1beta1")));
        r.subresource = "scale".into();
        assert_eq!(version(&hook(rule(json!(["*"]), json!(["deployments"]))), &r, &others), None);
        assert!(version(&hook(rule(json!(["*"]), json!(["*/*"]))), &r, &others).is_some());
        assert!(version(&hook(rule(json!(["*"]), json!(["*/scale"]))), &r, &others).is_some());
        r.operation = Operation::Delete;
        assert_eq!(version(&hook(rule(json!(["*"]), json!(["*/*"]))), &r, &others), None);
    }

    #[test]
    fn selects_by_labels() {
        let o = FakeObjects::default();
        o.put("", "namespaces", json!({"metadata": {"name": "n", "labels": {"inject": "yes"}}}));
        let r = test_create(
            "",
            "pods",
            "Pod",
            json!({"metadata": {"name": "p", "namespace": "n", "labels": {"a": "b"}}}),
        );
        let by = |field: &str, k: &str, v: &str| json!({field: {"matchLabels": {k: v}}});
        assert!(selected(&by("namespaceSelector", "inject", "yes"), &r, &o));
        assert!(!selected(&by("namespaceSelector", "inject", "no"), &r, &o));
        assert!(selected(&by("objectSelector", "a", "b"), &r, &o));
        assert!(!selected(&by("objectSelector", "a", "c"), &r, &o));
        assert!(selected(&json!({"namespaceSelector": {}, "objectSelector": {}}), &r, &o));
    }
}
