//! What a policy sets where a pod leaves it open.

use std::collections::BTreeSet;

use pilothouse_apimachinery::json::{Value, json};

use super::{annotations, ids};
use crate::json::{bool_at, containers_mut, get, has, list_at, set, str_at};

/// Whether a container or, failing that, its pod says something.
fn says(pod_context: &Value, container: &Value, key: &str) -> bool {
    has(container, &["securityContext", key]) || pod_context.get(key).is_some()
}

/// Sets what the policy gives.
pub(super) fn pod(policy: &Value, pod: &mut Value) {
    let spec = get(policy, &["spec"]);
    let context = ["spec", "securityContext"];
    let in_context = |key: &'static str| [context[0], context[1], key];
    if !has(pod, &in_context("supplementalGroups"))
        && let Some(id) = ids::generated(get(spec, &["supplementalGroups"]))
    {
        set(pod, &in_context("supplementalGroups"), json!([id]));
    }
    if !has(pod, &in_context("fsGroup"))
        && let Some(id) = ids::generated(get(spec, &["fsGroup"]))
    {
        set(pod, &in_context("fsGroup"), id);
    }
    if !has(pod, &in_context("seLinuxOptions"))
        && let Some(options) = selinux(spec)
    {
        set(pod, &in_context("seLinuxOptions"), options);
    }
    if let Some(profile) = annotations::default_seccomp(policy, pod) {
        set(pod, &["metadata", "annotations", annotations::SECCOMP], profile);
    }
    let class = str_at(spec, &["runtimeClass", "defaultRuntimeClassName"]);
    if !class.is_empty() && !has(pod, &["spec", "runtimeClassName"]) {
        set(pod, &["spec", "runtimeClassName"], class);
    }
    let pod_context = get(pod, &context).clone();
    let mut names = Vec::new();
    if let Some(pod_spec) = pod.get_mut("spec") {
        for c in containers_mut(pod_spec) {
            names.push(str_at(c, &["name"]).to_string());
            container(spec, &pod_context, c);
        }
    }
    for name in names {
        if let Some((key, profile)) = annotations::default_apparmor(policy, pod, &name) {
            set(pod, &["metadata", "annotations", &key], profile);
        }
    }
}

fn selinux(spec: &Value) -> Option<Value> {
    let strategy = get(spec, &["seLinux"]);
    let options = get(strategy, &["seLinuxOptions"]);
    (str_at(strategy, &["rule"]) == "MustRunAs" && options.is_object()).then(|| options.clone())
}

fn container(spec: &Value, pod: &Value, c: &mut Value) {
    let at = |key: &'static str| ["securityContext", key];
    for (key, strategy) in [("runAsUser", "runAsUser"), ("runAsGroup", "runAsGroup")] {
        if !says(pod, c, key)
            && let Some(id) = ids::generated(get(spec, &[strategy]))
        {
            set(c, &at(key), id);
        }
    }
    if !says(pod, c, "seLinuxOptions")
        && let Some(options) = selinux(spec)
    {
        set(c, &at("seLinuxOptions"), options);
    }
    let non_root = str_at(spec, &["runAsUser", "rule"]) == "MustRunAsNonRoot";
    if non_root && !says(pod, c, "runAsNonRoot") && !says(pod, c, "runAsUser") {
        set(c, &at("runAsNonRoot"), true);
    }
    capabilities(spec, c);
    if bool_at(spec, &["readOnlyRootFilesystem"]) && !has(c, &at("readOnlyRootFilesystem")) {
        set(c, &at("readOnlyRootFilesystem"), true);
    }
    if let Some(default) =
        spec.get("defaultAllowPrivilegeEscalation").filter(|_| !has(c, &at("allowPrivilegeEscalation")))
    {
        set(c, &at("allowPrivilegeEscalation"), default.clone());
    }
    let denied = get(spec, &["allowPrivilegeEscalation"]) == &Value::Bool(false);
    if denied && !has(c, &at("allowPrivilegeEscalation")) {
        set(c, &at("allowPrivilegeEscalation"), false);
    }
}

fn names(value: &Value, path: &[&str]) -> BTreeSet<String> {
    list_at(value, path).iter().filter_map(|v| v.as_str().map(String::from)).collect()
}

fn capabilities(spec: &Value, c: &mut Value) {
    let path = ["securityContext", "capabilities"];
    let add = names(c, &["securityContext", "capabilities", "add"]);
    let drop = names(c, &["securityContext", "capabilities", "drop"]);
    let defaults = names(spec, &["defaultAddCapabilities"]);
    let all_add: BTreeSet<String> = defaults.difference(&drop).chain(&add).cloned().collect();
    let all_drop: BTreeSet<String> =
        names(spec, &["requiredDropCapabilities"]).union(&drop).cloned().collect();
    if all_add.len() == add.len() && all_drop.len() == drop.len() {
        return;
    }
    let mut both = json!({});
    for (key, list) in [("add", all_add), ("drop", all_drop)] {
        if !list.is_empty() {
            both[key] = json!(list);
        }
    }
    set(c, &path, both);
}
