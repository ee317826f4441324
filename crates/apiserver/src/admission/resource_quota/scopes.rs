//! Which pods a quota is about.

use pilothouse_apimachinery::json::Value;

use crate::json::{get, has, i64_at, list_at, str_at, texts};

fn is_best_effort(pod: &Value) -> bool {
    list_at(pod, &["spec", "containers"]).iter().chain(list_at(pod, &["spec", "initContainers"])).all(|c| {
        ["requests", "limits"].iter().all(|w| {
            let stated = |r: &str| has(c, &["resources", w, r]);
            !stated("cpu") && !stated("memory")
        })
    })
}

fn is_terminating(pod: &Value) -> bool {
    i64_at(pod, &["spec", "activeDeadlineSeconds"]).is_some_and(|s| s >= 0)
}

fn crosses_namespaces(pod: &Value) -> bool {
    ["podAffinity", "podAntiAffinity"].iter().any(|kind| {
        let affinity = get(pod, &["spec", "affinity", kind]);
        let crosses = |t: &Value| has(t, &["namespaceSelector"]) || !list_at(t, &["namespaces"]).is_empty();
        list_at(affinity, &["requiredDuringSchedulingIgnoredDuringExecution"]).iter().any(crosses)
            || list_at(affinity, &["preferredDuringSchedulingIgnoredDuringExecution"])
                .iter()
                .any(|t| crosses(get(t, &["podAffinityTerm"])))
    })
}

fn matches_one(pod: &Value, scope: &str, operator: &str, values: &[String]) -> bool {
    match scope {
        "Terminating" => is_terminating(pod),
        "NotTerminating" => !is_terminating(pod),
        "BestEffort" => is_best_effort(pod),
        "NotBestEffort" => !is_best_effort(pod),
        "CrossNamespacePodAffinity" => crosses_namespaces(pod),
        "PriorityClass" => {
            let class = str_at(pod, &["spec", "priorityClassName"]);
            match operator {
                "In" => values.iter().any(|v| v == class),
                "NotIn" => values.iter().all(|v| v != class),
                "DoesNotExist" => class.is_empty(),
                _ => !class.is_empty(),
            }
        }
        _ => false,
    }
}

/// Whether a quota counts an object of a resource. Quotas with scopes count pods only.
pub fn counts(quota: &Value, resource: &str, object: &Value) -> bool {
    let scopes = texts(quota, &["spec", "scopes"]);
    let selector = list_at(quota, &["spec", "scopeSelector", "matchExpressions"]);
    if scopes.is_empty() && selector.is_empty() {
        return true;
    }
    resource == "pods"
        && scopes.iter().all(|s| matches_one(object, s, "Exists", &[]))
        && selector.iter().all(|e| {
            matches_one(object, str_at(e, &["scopeName"]), str_at(e, &["operator"]), &texts(e, &["values"]))
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use pilothouse_apimachinery::json::json;

    #[test]
    fn matches_scopes() {
        let pod = json!({"spec": {"priorityClassName": "high", "containers": [{"resources": {"limits": {"cpu": "1"}}}]}});
        let scoped = |s: &str| json!({"spec": {"scopes": [s]}});
        assert!(
            counts(&scoped("NotBestEffort"), "pods", &pod) && !counts(&scoped("BestEffort"), "pods", &pod)
        );
        assert!(
            counts(&scoped("NotTerminating"), "pods", &pod)
                && !counts(&scoped("NotTerminating"), "services", &pod)
        );
        let by_class = |op: &str| json!({"spec": {"scopeSelector": {"matchExpressions": [{"scopeName": "PriorityClass", "operator": op, "values": ["high"]}]}}});
        assert!(counts(&by_class("In"), "pods", &pod) && !counts(&by_class("NotIn"), "pods", &pod));
        assert!(counts(&json!({}), "services", &pod));
    }
}
