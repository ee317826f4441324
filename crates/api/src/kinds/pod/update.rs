//! What may change in a pod, and in its status.

use pilothouse_apimachinery::field::{self, ErrorList, Path};
use pilothouse_apimachinery::json::Value;
use pilothouse_apimachinery::names;

use super::Rules;
use super::diff;
use super::scheduling::tolerations;
use super::security::APPARMOR_CONTAINER;
use super::spec::{MIRROR, image_without_spaces};
use crate::kinds::access::{entries, items, items_mut, optional, part, present, put, same, text};
use crate::kinds::checks::node_name;

/// Faults of an update of a pod.
pub(super) fn pod(new: &Value, old: &Value, rules: &Rules) -> ErrorList {
    let path = Path::new("spec");
    let (new_spec, old_spec) = (part(new, "spec"), part(old, "spec"));
    let mut errs = annotations(new, old);
    for list in ["containers", "initContainers"] {
        let at = path.child(list);
        if items(new_spec, list).len() != items(old_spec, list).len() {
            errs.push(field::forbidden(&at, "pod updates may not add or remove containers"));
            return errs;
        }
        for (i, container) in items(new_spec, list).iter().enumerate() {
            if text(container, "image").is_empty() {
                errs.push(field::required(&at.index(i).child("image"), ""));
            }
            errs.extend(image_without_spaces(container, &at.index(i)));
        }
    }
    match deadline(new_spec, old_spec, &path.child("activeDeadlineSeconds")) {
        Ok(more) => errs.extend(more),
        Err(error) => {
            errs.push(error);
            return errs;
        }
    }
    errs.extend(only_added_tolerations(new_spec, old_spec, &path.child("tolerations")));
    let munged =
        if new_spec.is_shared_with(old_spec) { None } else { Some(munge(new_spec, old_spec, rules)) };
    if let Some(munged) = munged.filter(|munged| !same(munged, old_spec)) {
        let fields = if rules.today {
            "`spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)"
        } else {
            "`spec.containers[*].image`, `spec.initContainers[*].image`, `spec.activeDeadlineSeconds` or `spec.tolerations` (only additions to existing tolerations)"
        };
        let detail = format!(
            "pod updates may not change fields other than {fields}\n{}",
            diff::pod_spec(&munged, old_spec)
        );
        errs.push(field::forbidden(&path, &detail));
    }
    errs
}

/// The new spec with all that may change as it was.
fn munge(new: &Value, old: &Value, rules: &Rules) -> Value {
    let mut munged = new.clone();
    for list in ["containers", "initContainers"] {
        for (new, old) in items_mut(&mut munged, list).iter_mut().zip(items(old, list)) {
            restore(new, old, "image");
        }
    }
    for key in ["activeDeadlineSeconds", "tolerations"] {
        restore(&mut munged, old, key);
    }
    if rules.today {
        let grace = |spec: &Value| optional(spec, "terminationGracePeriodSeconds");
        if grace(&munged) == Some(1) && grace(old).is_some_and(|n| n < 0) {
            restore(&mut munged, old, "terminationGracePeriodSeconds");
        }
        // A gated pod may be told more precisely where to run; gates may only go.
        if !items(old, "schedulingGates").is_empty() {
            for key in ["schedulingGates", "nodeSelector", "affinity"] {
                restore(&mut munged, old, key);
            }
        }
    }
    munged
}

fn restore(new: &mut Value, old: &Value, key: &str) {
    match part(old, key) {
        Value::Null => {
            crate::kinds::access::take(new, key);
        }
        value => put(new, key, value.clone()),
    }
}

/// The deadline may come, or come nearer. The error ends all further checks.
fn deadline(new: &Value, old: &Value, path: &Path) -> Result<Option<field::Error>, field::Error> {
    let key = "activeDeadlineSeconds";
    match (optional(new, key), optional(old, key)) {
        (Some(n), _) if !(0..=i64::from(i32::MAX)).contains(&n) => {
            Err(field::invalid(path, n, &names::inclusive_range(0, i64::from(i32::MAX))))
        }
        (Some(n), Some(o)) if o < n => {
            Err(field::invalid(path, n, "must be less than or equal to previous value"))
        }
        (None, Some(_)) => Ok(Some(field::invalid_shown(
            path,
            "\"null\"",
            "must not update from a positive integer to nil value",
        ))),
        _ => Ok(None),
    }
}

fn only_added_tolerations(new: &Value, old: &Value, path: &Path) -> ErrorList {
    let new = items(new, "tolerations");
    let without_seconds = |v: &Value| {
        let mut v = v.clone();
        crate::kinds::access::take(&mut v, "tolerationSeconds");
        v
    };
    for old in items(old, "tolerations") {
        let old = without_seconds(old);
        if !new.iter().any(|n| same(&without_seconds(n), &old)) {
            let detail = "existing toleration can not be modified except its tolerationSeconds";
            return vec![field::forbidden(path, detail)];
        }
    }
    tolerations(new, path)
}

/// Annotations that say how the pod was started stay as they are.
fn annotations(new: &Value, old: &Value) -> ErrorList {
    let mut errs = ErrorList::new();
    let path = Path::new("metadata").child("annotations");
    let of = |v| part(part(v, "metadata"), "annotations");
    let (new_map, old_map) = (of(new), of(old));
    for (key, value) in entries(part(old, "metadata"), "annotations") {
        if part(new_map, key) == value {
            continue;
        }
        if key.starts_with(APPARMOR_CONTAINER) {
            errs.push(field::forbidden(&path.key(key), "may not remove or update AppArmor annotations"));
        }
        if key == MIRROR {
            errs.push(field::forbidden(&path.key(key), "may not remove or update mirror pod annotation"));
        }
    }
    for (key, _) in entries(part(new, "metadata"), "annotations") {
        if present(old_map, key) {
            continue;
        }
        if key.starts_with(APPARMOR_CONTAINER) {
            errs.push(field::forbidden(&path.key(key), "may not add AppArmor annotations"));
        }
        if key == MIRROR {
            errs.push(field::forbidden(&path.key(key), "may not add mirror pod annotation"));
        }
    }
    errs
}

/// Faults of an update of a pod's status.
pub(super) fn status(new: &Value, old: &Value) -> ErrorList {
    let mut errs = annotations(new, old);
    let conditions = Path::new("metadata.conditions");
    for (i, condition) in items(part(new, "status"), "conditions").iter().enumerate() {
        let type_ = text(condition, "type");
        if !["PodScheduled", "Ready", "Initialized"].contains(&type_) {
            let faults = names::qualified_name(type_);
            errs.extend(faults.iter().map(|m| field::invalid(&conditions.index(i).child("Type"), type_, m)));
        }
    }
    let path = Path::new("status");
    if text(part(new, "spec"), "nodeName") != text(part(old, "spec"), "nodeName") {
        errs.push(field::forbidden(&path.child("nodeName"), "may not be changed directly"));
    }
    let (new_status, old_status) = (part(new, "status"), part(old, "status"));
    let nominated = text(new_status, "nominatedNodeName");
    if !nominated.is_empty() && nominated != text(old_status, "nominatedNodeName") {
        errs.extend(node_name(nominated, &path.child("nominatedNodeName")));
    }
    let policy = text(part(old, "spec"), "restartPolicy");
    for (list, policy) in [
        ("containerStatuses", policy),
        ("initContainerStatuses", policy),
        ("ephemeralContainerStatuses", "Never"),
    ] {
        errs.extend(transitions(items(new_status, list), items(old_status, list), policy, &path.child(list)));
    }
    errs.extend(pod_ips(new_status));
    errs
}

/// A container that ended and is not to be restarted must not come to life in the status.
fn transitions(new: &[Value], old: &[Value], policy: &str, path: &Path) -> ErrorList {
    let mut errs = ErrorList::new();
    if policy == "Always" {
        return errs;
    }
    for (i, old) in old.iter().enumerate() {
        let terminated = part(part(old, "state"), "terminated");
        let failed = crate::kinds::access::number(terminated, "exitCode") != 0;
        if terminated.is_null() || (failed && policy == "OnFailure") {
            continue;
        }
        for new in new {
            if text(new, "name") == text(old, "name") && !present(part(new, "state"), "terminated") {
                let detail = "may not be transitioned to non-terminated state";
                errs.push(field::forbidden(&path.index(i).child("state"), detail));
            }
        }
    }
    errs
}

/// Faults of a change of `spec.ephemeralContainers`: what is there stays, and stays as it is.
pub(super) fn ephemeral_containers(new: &Value, old: &Value) -> ErrorList {
    let path = Path::new("spec").child("ephemeralContainers");
    let of = |pod| items(part(pod, "spec"), "ephemeralContainers");
    let mut errs = ErrorList::new();
    for old in of(old) {
        let name = text(old, "name");
        let what = match of(new).iter().find(|c| text(c, "name") == name) {
            None => "removed",
            Some(c) if c != old => "changed",
            Some(_) => continue,
        };
        let name = pilothouse_apimachinery::go::quote(name);
        errs.push(field::forbidden(
            &path,
            &format!("existing ephemeral containers {name} may not be {what}\n"),
        ));
    }
    errs
}

/// Faults of `status.podIPs`: at most one of each family.
pub(super) fn pod_ips(status: &Value) -> ErrorList {
    let path = Path::new("status").child("podIPs");
    let ips: Vec<&str> = items(status, "podIPs").iter().map(|ip| text(ip, "ip")).collect();
    let mut errs = ErrorList::new();
    for (i, ip) in ips.iter().enumerate() {
        errs.extend(names::ip(ip).iter().map(|m| field::invalid(&path.index(i), *ip, m)));
    }
    if ips.len() > 1 {
        let both = ips.iter().any(|ip| names::is_ipv4(ip)) && ips.iter().any(|ip| names::is_ipv6(ip));
        if !both || ips.len() > 2 {
            let shown: Vec<String> = ips
                .iter()
                .map(|ip| format!("core.PodIP{{IP:{}}}", pilothouse_apimachinery::go::quote(ip)))
                .collect();
            let detail = "may specify no more than one IP for each IP family";
            errs.push(field::invalid_shown(&path, &format!("[]core.PodIP{{{}}}", shown.join(", ")), detail));
        }
        for (i, ip) in ips.iter().enumerate() {
            if ips[..i].contains(ip) {
                errs.push(field::duplicate_shown(
                    &path.index(i),
                    &format!("core.PodIP{{IP:{}}}", pilothouse_apimachinery::go::quote(ip)),
                ));
            }
        }
    }
    errs
}

#[cfg(test)]
mod tests {
    use pilothouse_apimachinery::json::json;

    use super::*;

    const RULES: Rules = Rules { allow_privileged: true, today: false };

    fn base() -> Value {
        json!({"metadata": {}, "spec": {
            "containers": [{"name": "c", "image": "a"}],
            "tolerations": [{"key": "k", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 3}],
            "terminationGracePeriodSeconds": 30,
        }})
    }

    fn changed(change: impl Fn(&mut Value)) -> Vec<String> {
        let mut new = base();
        change(&mut new);
        pod(&new, &base(), &RULES).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn ephemeral_containers_only_grow_in_number() {
        let pod = |names: &[&str], image: &str| {
            let all: Vec<Value> = names.iter().map(|n| json!({"name": n, "image": image})).collect();
            json!({"spec": {"ephemeralContainers": all}})
        };
        let faults = |new: Value| -> Vec<String> {
            ephemeral_containers(&new, &pod(&["a"], "i")).iter().map(ToString::to_string).collect()
        };
        assert!(faults(pod(&["a", "b"], "i")).is_empty());
        assert!(
            faults(pod(&["b"], "i"))[0].contains("existing ephemeral containers \"a\" may not be removed")
        );
        assert!(faults(pod(&["a"], "j"))[0].contains("may not be changed"));
    }

    #[test]
    fn what_may_change() {
        assert!(changed(|v| v["spec"]["containers"][0]["image"] = json!("b")).is_empty());
        assert!(changed(|v| v["spec"]["activeDeadlineSeconds"] = json!(5)).is_empty());
        assert!(changed(|v| v["spec"]["tolerations"][0]["tolerationSeconds"] = json!(9)).is_empty());
        assert!(changed(|v| v["metadata"]["labels"] = json!({"a": "b"})).is_empty());
    }

    #[test]
    fn what_may_not() {
        let errs = changed(|v| v["spec"]["terminationGracePeriodSeconds"] = json!(5));
        assert_eq!(errs.len(), 1);
        assert!(errs[0].starts_with(
            "spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`, `spec.initContainers[*].image`, `spec.activeDeadlineSeconds` or `spec.tolerations` (only additions to existing tolerations)\n"
        ));
        assert_eq!(
            changed(|v| v["spec"]["containers"] = json!([])),
            ["spec.containers: Forbidden: pod updates may not add or remove containers"]
        );
        assert_eq!(
            changed(|v| v["spec"]["tolerations"][0]["key"] = json!("other")),
            [
                "spec.tolerations: Forbidden: existing toleration can not be modified except its tolerationSeconds"
            ]
        );
        assert_eq!(
            changed(|v| v["metadata"]["annotations"] = json!({MIRROR: "x"})),
            [
                "metadata.annotations[kubernetes.io/config.mirror]: Forbidden: may not add mirror pod annotation"
            ]
        );
        assert_eq!(
            changed(|v| v["spec"]["containers"][0]["image"] = json!(" b")),
            ["spec.containers[0].image: Invalid value: \" b\": must not have leading or trailing whitespace"]
        );
    }

    #[test]
    fn deadlines_only_shrink() {
        let check = |new: Option<i64>, old: Option<i64>| {
            let spec = |n: Option<i64>| json!({"activeDeadlineSeconds": n});
            deadline(&spec(new), &spec(old), &Path::new("d"))
        };
        assert!(check(Some(5), None).is_ok_and(|e| e.is_none()));
        assert!(check(Some(5), Some(9)).is_ok_and(|e| e.is_none()));
        assert!(check(Some(9), Some(5)).is_err());
        assert!(check(Some(-1), None).is_err());
        assert!(check(None, Some(5)).is_ok_and(|e| e.is_some()));
    }

    #[test]
    fn ended_containers_stay_ended() {
        let old = json!({"spec": {"restartPolicy": "Never"}, "status": {"containerStatuses": [{"name": "c", "state": {"terminated": {"exitCode": 0}}}]}});
        let mut new = old.clone();
        new["status"]["containerStatuses"][0]["state"] = json!({"running": {}});
        assert_eq!(
            status(&new, &old)[0].to_string(),
            "status.containerStatuses[0].state: Forbidden: may not be transitioned to non-terminated state"
        );
        assert!(status(&old, &old).is_empty());
    }
}
