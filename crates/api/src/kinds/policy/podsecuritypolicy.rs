//! `PodSecurityPolicy`, which only v1.20 serves.

use pilothouse_apimachinery::field::{self, Error, ErrorList, Path};
use pilothouse_apimachinery::json::Value;
use pilothouse_apimachinery::{json, names};

use crate::kinds::access::{default_to, flag, is_empty, items, number, part, present, text};
use crate::kinds::checks::invalid_each;
use crate::kinds::columns::{NAME, text as column};
use crate::kinds::core::persistent_volume_source::csi_driver_name;
use crate::kinds::pod::security::is_sysctl_name;
use crate::kinds::{Column, Kind, RowContext, Version};
use crate::table::name_cell;

const COLUMNS: &[Column] = &[
    NAME,
    column("Priv", "privileged determines if a pod can request to be run as privileged."),
    column(
        "Caps",
        "allowedCapabilities is a list of capabilities that can be requested to add to the container. Capabilities in this field may be added at the pod author's discretion. You must not list a capability in both allowedCapabilities and requiredDropCapabilities.",
    ),
    column("SELinux", "seLinux is the strategy that will dictate the allowable labels that may be set."),
    column(
        "RunAsUser",
        "runAsUser is the strategy that will dictate the allowable RunAsUser values that may be set.",
    ),
    column(
        "FsGroup",
        "fsGroup is the strategy that will dictate what fs group is used by the SecurityContext.",
    ),
    column(
        "SupGroup",
        "supplementalGroups is the strategy that will dictate what supplemental groups are used by the SecurityContext.",
    ),
    column(
        "ReadOnlyRootFs",
        "readOnlyRootFilesystem when set to true will force containers to run with a read only root file system.  If the container specifically requests to run with a non-read only root file system the PSP should deny the pod. If set to false the container may run with a read only root file system if it wishes but it will not be forced to.",
    ),
    column(
        "Volumes",
        "volumes is an allowlist of volume plugins. Empty indicates that no volumes may be used. To allow all volumes you may use '*'.",
    ),
];

pub(super) static POD_SECURITY_POLICY: Kind = Kind {
    namespaced: false,
    short_names: &["psp"],
    storage_prefix: "podsecuritypolicy",
    storage_version: "policy/v1beta1",
    invalid_group: Some("extensions"),
    default: |policy, _| {
        if let Some(spec) = policy.get_mut("spec") {
            default_to(spec, "allowPrivilegeEscalation", true);
        }
    },
    prepare_create: |policy, _| drop_disabled(policy, &Value::Null),
    prepare_update: |policy, old, _| drop_disabled(policy, old),
    validate: |policy, _| validate(policy),
    validate_update: |policy, _, _| validate(policy),
    columns: COLUMNS,
    row,
    ..Kind::new(
        "PodSecurityPolicy",
        "podsecuritypolicies",
        "podsecuritypolicy",
        &[Version::older("policy", "v1beta1")],
    )
};

fn drop_disabled(policy: &mut Value, old: &Value) {
    if is_empty(part(old, "spec"), "allowedProcMountTypes") {
        json::remove(policy, &["spec", "allowedProcMountTypes"]);
    }
}

fn validate(policy: &Value) -> ErrorList {
    let (spec, path) = (part(policy, "spec"), Path::new("spec"));
    let mut errs = annotations(part(part(policy, "metadata"), "annotations"));
    const RANGES: &[&str] = &["MustRunAs", "RunAsAny"];
    const GROUPS: &[&str] = &["MayRunAs", "MustRunAs", "RunAsAny"];
    errs.extend(strategy(spec, "runAsUser", &["MustRunAs", "MustRunAsNonRoot", "RunAsAny"], &path));
    if present(spec, "runAsGroup") {
        errs.extend(strategy(spec, "runAsGroup", &["MustRunAs", "RunAsAny", "MayRunAs"], &path));
    }
    errs.extend(rule(part(spec, "seLinux"), RANGES, &path.child("seLinux")));
    errs.extend(strategy(spec, "supplementalGroups", GROUPS, &path));
    errs.extend(strategy(spec, "fsGroup", GROUPS, &path));
    errs.extend(volumes(items(spec, "volumes"), &path));
    errs.extend(required_drops(spec, &path));
    errs.extend(repeated_capabilities(spec, &path));
    errs.extend(privilege_escalation(spec, &path));
    for key in ["allowedUnsafeSysctls", "forbiddenSysctls"] {
        errs.extend(sysctl_patterns(items(spec, key), &path.child(key)));
    }
    errs.extend(overlapping_sysctls(spec, &path));
    for (i, driver) in items(spec, "allowedFlexVolumes").iter().enumerate() {
        if text(driver, "driver").is_empty() {
            let list = path.child("allowedFlexVolumes").child("allowedFlexVolumes");
            let at = list.index(i).child("driver");
            errs.push(field::required(&at, "must specify a driver"));
        }
    }
    for (i, driver) in items(spec, "allowedCSIDrivers").iter().enumerate() {
        let at = path.child("allowedCSIDrivers").child("allowedCSIDriver").index(i).child("name");
        errs.extend(csi_driver_name(text(driver, "name"), &at));
    }
    errs.extend(runtime_classes(part(spec, "runtimeClass"), &path.child("runtimeClass")));
    for (i, host_path) in items(spec, "allowedHostPaths").iter().enumerate() {
        let prefix = text(host_path, "pathPrefix");
        let at = path.child("allowedHostPaths").index(i).child("pathPrefix");
        if prefix.is_empty() {
            errs.push(field::required(&path.child("allowedHostPaths").index(i), "is required"));
        }
        if prefix.split('/').any(|part| part == "..") {
            errs.push(field::invalid(&at, prefix, "must not contain '..'"));
        }
    }
    errs
}

/// Faults of the runtime classes that pods may have.
fn runtime_classes(classes: &Value, path: &Path) -> ErrorList {
    let mut errs = ErrorList::new();
    let at = path.child("allowedRuntimeClassNames");
    let mut allowed: Vec<&str> = Vec::new();
    for (i, name) in items(classes, "allowedRuntimeClassNames").iter().enumerate() {
        let name = name.as_str().unwrap_or("");
        if name != "*" {
            errs.extend(invalid_each(&at.index(i), name, names::dns1123_subdomain_name(name, false)));
        }
        if allowed.contains(&name) {
            errs.push(field::duplicate(&at.index(i), name));
        }
        allowed.push(name);
    }
    if let Some(default) = part(classes, "defaultRuntimeClassName").as_str() {
        let faults = names::dns1123_subdomain_name(default, false);
        errs.extend(invalid_each(&path.child("defaultRuntimeClassName"), default, faults));
        if !allowed.contains(&default) && !allowed.contains(&"*") {
            errs.push(field::required(&at, &format!("default {default:?} must be allowed")));
        }
    }
    if allowed.contains(&"*") && allowed.len() > 1 {
        let why = "if '*' is present, must not specify other RuntimeClass names";
        errs.push(field::invalid(&at, Value::from(allowed), why));
    }
    errs
}

/// Faults of the annotations that say which profiles are allowed.
fn annotations(annotations: &Value) -> ErrorList {
    let mut errs = ErrorList::new();
    let path = Path::new("metadata").child("annotations");
    for (key, value) in json::strings_at(annotations, &[]) {
        let apparmor = |profile: &str| {
            matches!(profile, "" | "runtime/default" | "unconfined") || profile.starts_with("localhost/")
        };
        let seccomp = |profile: &str| {
            matches!(profile, "*" | "runtime/default" | "docker/default" | "unconfined")
                || profile.starts_with("localhost/")
        };
        let fault = match key {
            "apparmor.security.beta.kubernetes.io/defaultProfileName" if !apparmor(value) => {
                format!("invalid AppArmor profile name: {value:?}")
            }
            "apparmor.security.beta.kubernetes.io/allowedProfileNames" => {
                match value.split(',').find(|p| !apparmor(p)) {
                    Some(bad) => format!("invalid AppArmor profile name: {bad:?}"),
                    None => continue,
                }
            }
            "seccomp.security.alpha.kubernetes.io/defaultProfileName" if !seccomp(value) => {
                "must be a valid seccomp profile".to_string()
            }
            "seccomp.security.alpha.kubernetes.io/allowedProfileNames" => {
                match value.split(',').find(|p| !seccomp(p)) {
                    Some(_) => "must be a valid seccomp profile".to_string(),
                    None => continue,
                }
            }
            _ => continue,
        };
        errs.push(field::invalid(&path.key(key), value, &fault));
    }
    errs
}

fn rule(strategy: &Value, supported: &[&str], path: &Path) -> Option<Error> {
    let rule = text(strategy, "rule");
    (!supported.contains(&rule)).then(|| field::not_supported(&path.child("rule"), rule, supported))
}

/// Faults of a strategy with ranges of ids.
fn strategy(spec: &Value, key: &str, supported: &[&str], path: &Path) -> ErrorList {
    let (strategy, path) = (part(spec, key), path.child(key));
    let mut errs: ErrorList = rule(strategy, supported, &path).into_iter().collect();
    let ranges = items(strategy, "ranges");
    let kind = text(strategy, "rule");
    if kind == "RunAsAny" && !ranges.is_empty() && key == "runAsGroup" {
        let detail = "Ranges must be empty";
        errs.push(field::invalid(&path.child("ranges"), Value::from(ranges.to_vec()), detail));
    }
    if key == "runAsGroup" && matches!(kind, "MustRunAs" | "MayRunAs") && ranges.is_empty() {
        let at = path.child("ranges");
        errs.push(field::invalid_shown(&at, "[]policy.IDRange(nil)", "must provide at least one range"));
    }
    for (i, range) in ranges.iter().enumerate() {
        let at = path.child("ranges").index(i);
        let (min, max) = (number(range, "min"), number(range, "max"));
        for (name, n) in [("min", min), ("max", max)] {
            if n < 0 {
                errs.push(field::invalid(&at.child(name), n, &format!("{name} cannot be negative")));
            }
        }
        if min > max {
            errs.push(field::invalid(&at.child("min"), min, "min cannot be greater than max"));
        }
    }
    errs
}

const VOLUME_TYPES: &[&str] = &[
    "*",
    "awsElasticBlockStore",
    "azureDisk",
    "azureFile",
    "cephFS",
    "cinder",
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "fc",
    "flexVolume",
    "flocker",
    "gcePersistentDisk",
    "gitRepo",
    "glusterfs",
    "hostPath",
    "iscsi",
    "nfs",
    "persistentVolumeClaim",
    "photonPersistentDisk",
    "portworxVolume",
    "projected",
    "quobyte",
    "rbd",
    "scaleIO",
    "secret",
    "storageos",
    "vsphereVolume",
];

fn volumes(list: &[Value], path: &Path) -> ErrorList {
    let mut errs = ErrorList::new();
    for volume in list {
        let volume = volume.as_str().unwrap_or("");
        if !VOLUME_TYPES.contains(&volume) {
            errs.push(field::not_supported(&path.child("volumes"), volume, VOLUME_TYPES));
        }
    }
    errs
}

fn required_drops(spec: &Value, path: &Path) -> ErrorList {
    let mut errs = ErrorList::new();
    for capability in items(spec, "requiredDropCapabilities") {
        for list in ["defaultAddCapabilities", "allowedCapabilities"] {
            if items(spec, list).contains(capability) {
                let at = path.child(list);
                errs.push(field::invalid(
                    &at,
                    capability.clone(),
                    "capability is also listed in requiredDropCapabilities",
                ));
            }
        }
    }
    errs
}

fn repeated_capabilities(spec: &Value, path: &Path) -> ErrorList {
    let allowed = items(spec, "allowedCapabilities");
    items(spec, "defaultAddCapabilities")
        .iter()
        .filter(|c| allowed.contains(c))
        .map(|c| {
            let at = path.child("defaultAddCapabilities");
            field::invalid(&at, c.clone(), "capability is already listed in allowedCapabilities")
        })
        .collect()
}

fn privilege_escalation(spec: &Value, path: &Path) -> Option<Error> {
    let allowed = part(spec, "allowPrivilegeEscalation") != &Value::Bool(false);
    (flag(spec, "defaultAllowPrivilegeEscalation") && !allowed).then(|| {
        field::invalid(
            &path.child("defaultAllowPrivilegeEscalation"),
            true,
            "Cannot set DefaultAllowPrivilegeEscalation to true without also setting AllowPrivilegeEscalation to true",
        )
    })
}

/// Whether a pattern is the name of a sysctl, its last part possibly ending in `*`.
fn is_sysctl_pattern(pattern: &str) -> bool {
    let (head, last) = match pattern.rsplit_once('.') {
        Some((head, last)) => (Some(head), last),
        None => (None, pattern),
    };
    let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let fits = |part: &[u8]| {
        part.iter().all(|b| word(*b) || b"-_".contains(b)) && part.first().is_none_or(|b| word(*b))
    };
    pattern.len() <= 253
        && head.is_none_or(is_sysctl_name)
        && last.as_bytes().split_last().is_some_and(|(end, part)| (word(*end) || *end == b'*') && fits(part))
}

fn sysctl_patterns(list: &[Value], path: &Path) -> ErrorList {
    let mut errs = ErrorList::new();
    for (i, pattern) in list.iter().enumerate() {
        let pattern = pattern.as_str().unwrap_or("");
        if pattern.is_empty() {
            errs.push(field::invalid(&path.index(i), pattern, "empty sysctl not allowed"));
        } else if !is_sysctl_pattern(pattern) {
            errs.push(field::invalid(&path.index(i), pattern, "must have at most 253 characters and match regex ([a-z0-9]([-_a-z0-9]*[a-z0-9])?\\.)*([a-z0-9][-_a-z0-9]*)?[a-z0-9*]"));
        }
    }
    if list.len() > 1 && list.iter().any(|p| p.as_str().is_some_and(|p| p == "*")) {
        errs.push(field::forbidden(
            &path.child("items"),
            "if '*' is present, must not specify other sysctls",
        ));
    }
    errs
}

fn overlapping_sysctls(spec: &Value, path: &Path) -> ErrorList {
    let mut errs = ErrorList::new();
    let list = |key: &str| items(spec, key).iter().map(|s| s.as_str().unwrap_or("")).enumerate();
    for (i, allowed) in list("allowedUnsafeSysctls") {
        for (j, forbidden) in list("forbiddenSysctls") {
            let (a, f) = (allowed.strip_suffix('*'), forbidden.strip_suffix('*'));
            let (in_allowed, in_forbidden) = match (a, f) {
                (Some(a), Some(f)) => (a.starts_with(f), f.starts_with(a)),
                (Some(a), None) => (false, forbidden.starts_with(a)),
                (None, Some(f)) => (allowed.starts_with(f), false),
                (None, None) => (allowed == forbidden, false),
            };
            if in_allowed {
                let why = format!("sysctl overlaps with {forbidden}");
                errs.push(field::invalid(&path.child("allowedUnsafeSysctls").index(i), allowed, &why));
            } else if in_forbidden {
                let why = format!("sysctl overlaps with {allowed}");
                errs.push(field::invalid(&path.child("forbiddenSysctls").index(j), forbidden, &why));
            }
        }
    }
    errs
}

fn row(policy: &Value, _context: &RowContext) -> Vec<Value> {
    let spec = part(policy, "spec");
    let boolean = |key: &str| Value::from(if flag(spec, key) { "true" } else { "false" });
    let rule = |key: &str| Value::from(text(part(spec, key), "rule"));
    let joined = |key: &str| {
        let list: Vec<&str> = items(spec, key).iter().filter_map(Value::as_str).collect();
        list.join(",")
    };
    vec![
        name_cell(policy),
        boolean("privileged"),
        Value::from(joined("allowedCapabilities")),
        rule("seLinux"),
        rule("runAsUser"),
        rule("fsGroup"),
        rule("supplementalGroups"),
        Value::from(flag(spec, "readOnlyRootFilesystem")),
        Value::from(joined("volumes")),
    ]
}

#[cfg(test)]
mod tests {
    use pilothouse_apimachinery::json::json;

    use super::*;

    fn policy(change: impl Fn(&mut Value)) -> Vec<String> {
        let any = json!({"rule": "RunAsAny"});
        let mut policy = json!({"metadata": {"name": "p"}, "spec": {
            "seLinux": any, "runAsUser": any, "fsGroup": any, "supplementalGroups": any, "volumes": ["*"]}});
        change(&mut policy["spec"]);
        validate(&policy).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn faults() {
        assert!(policy(|_| {}).is_empty());
        assert_eq!(
            policy(|s| s["runAsUser"] = json!({"rule": "Never"})),
            [
                "spec.runAsUser.rule: Unsupported value: \"Never\": supported values: \"MustRunAs\", \"MustRunAsNonRoot\", \"RunAsAny\""
            ]
        );
        assert_eq!(
            policy(|s| s["fsGroup"]["ranges"] = json!([{"min": 5, "max": 1}])),
            ["spec.fsGroup.ranges[0].min: Invalid value: 5: min cannot be greater than max"]
        );
        assert_eq!(
            policy(|s| {
                s["requiredDropCapabilities"] = json!(["A"]);
                s["allowedCapabilities"] = json!(["A"]);
                s["defaultAllowPrivilegeEscalation"] = json!(true);
                s["allowPrivilegeEscalation"] = json!(false);
            })
            .len(),
            2
        );
    }

    #[test]
    fn sysctls() {
        let p = Path::new("s");
        assert!(sysctl_patterns(&[json!("net.*"), json!("kernel.shmmax")], &p).is_empty());
        assert_eq!(sysctl_patterns(&[json!("*"), json!("a")], &p).len(), 1);
        let both = json!({"allowedUnsafeSysctls": ["net.core.x"], "forbiddenSysctls": ["net.*"]});
        assert_eq!(overlapping_sysctls(&both, &p).len(), 1);
    }
}
