//! Validation of security contexts of pods and containers.

use std::collections::HashSet;

use pilothouse_apimachinery::field::{self, ErrorList, Path};
use pilothouse_apimachinery::json::{Value, json};
use pilothouse_apimachinery::names;

use super::Rules;
use super::volumes::descending_path;
use crate::kinds::access::{flag, is_empty, items, number, optional, part, present, text};
use crate::kinds::checks::invalid_each;

/// Faults of a container's security context.
pub(super) fn container_security_context(context: &Value, path: &Path, rules: &Rules) -> ErrorList {
    let mut errs = ErrorList::new();
    if context.is_null() {
        return errs;
    }
    if flag(context, "privileged") && !rules.allow_privileged {
        errs.push(field::forbidden(&path.child("privileged"), "disallowed by cluster policy"));
    }
    errs.extend(ids(context, &["runAsUser", "runAsGroup"], path));
    if let Some(t) = part(context, "procMount").as_str().filter(|t| !["Default", "Unmasked"].contains(t)) {
        errs.push(field::not_supported(&path.child("procMount"), t, &["Default", "Unmasked"]));
    }
    errs.extend(seccomp_profile(part(context, "seccompProfile"), &path.child("seccompProfile")));
    if part(context, "allowPrivilegeEscalation") == &Value::Bool(false) {
        if flag(context, "privileged") {
            let detail = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
            errs.push(field::invalid(path, context.clone(), detail));
        }
        for capability in items(part(context, "capabilities"), "add") {
            if capability == "CAP_SYS_ADMIN" {
                let detail =
                    "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
                errs.push(field::invalid(path, context.clone(), detail));
            }
        }
    }
    errs.extend(windows_options(part(context, "windowsOptions"), &path.child("windowsOptions")));
    errs
}

/// Faults of a pod's security context, and of its containers' ports on the host's network.
pub(super) fn pod_security_context(spec: &Value, spec_path: &Path) -> ErrorList {
    let context = part(spec, "securityContext");
    let mut errs = ErrorList::new();
    if context.is_null() {
        return errs;
    }
    let path = spec_path.child("securityContext");
    if flag(spec, "hostNetwork") {
        errs.extend(host_network_ports(items(spec, "containers"), &spec_path.child("containers")));
    }
    errs.extend(ids(context, &["fsGroup", "runAsUser", "runAsGroup"], &path));
    for (i, group) in items(context, "supplementalGroups").iter().enumerate() {
        let id = group.as_i64().unwrap_or(0);
        let at = path.child("supplementalGroups").index(i);
        errs.extend(names::group_id(id).iter().map(|m| field::invalid(&at, id, m)));
    }
    if flag(spec, "shareProcessNamespace") && flag(spec, "hostPID") {
        let detail = "ShareProcessNamespace and HostPID cannot both be enabled";
        errs.push(field::invalid(&path.child("shareProcessNamespace"), true, detail));
    }
    errs.extend(sysctls(items(context, "sysctls"), &path.child("sysctls")));
    if let Some(policy) =
        part(context, "fsGroupChangePolicy").as_str().filter(|p| !["Always", "OnRootMismatch"].contains(p))
    {
        let at = path.child("fsGroupChangePolicy");
        errs.push(field::not_supported(&at, policy, &["Always", "OnRootMismatch"]));
    }
    errs.extend(seccomp_profile(part(context, "seccompProfile"), &path.child("seccompProfile")));
    errs.extend(windows_options(part(context, "windowsOptions"), &path.child("windowsOptions")));
    errs
}

fn ids(context: &Value, keys: &[&str], path: &Path) -> ErrorList {
    let mut errs = ErrorList::new();
    for key in keys {
        if let Some(id) = optional(context, key) {
            errs.extend(names::user_id(id).iter().map(|m| field::invalid(&path.child(key), id, m)));
        }
    }
    errs
}

fn host_network_ports(containers: &[Value], path: &Path) -> ErrorList {
    let mut errs = ErrorList::new();
    for (i, container) in containers.iter().enumerate() {
        for (j, port) in items(container, "ports").iter().enumerate() {
            let n = number(port, "containerPort");
            if number(port, "hostPort") != n {
                let at = path.index(i).child("ports").index(j).child("containerPort");
                errs.push(field::invalid(&at, n, "must match `hostPort` when `hostNetwork` is true"));
            }
        }
    }
    errs
}

const SYSCTL_FORMAT: &str = "([a-z0-9]([-_a-z0-9]*[a-z0-9])?\\.)*[a-z0-9]([-_a-z0-9]*[a-z0-9])?";
const SYSCTL_MAX: usize = 253;

/// Whether a name can be that of a sysctl.
pub(crate) fn is_sysctl_name(name: &str) -> bool {
    let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let segment = |s: &str| {
        let b = s.as_bytes();
        b.first().is_some_and(|b| word(*b))
            && b.last().is_some_and(|b| word(*b))
            && b.iter().all(|b| word(*b) || matches!(b, b'-' | b'_'))
    };
    name.len() <= SYSCTL_MAX && name.split(['.', '/']).all(segment)
}

fn sysctls(list: &[Value], path: &Path) -> ErrorList {
    let mut errs = ErrorList::new();
    let mut known = HashSet::new();
    for (i, sysctl) in list.iter().enumerate() {
        let at = path.index(i).child("name");
        let name = text(sysctl, "name");
        if name.is_empty() {
            errs.push(field::required(&at, ""));
        } else if !is_sysctl_name(name) {
            let detail = format!("must have at most {SYSCTL_MAX} characters and match regex {SYSCTL_FORMAT}");
            errs.push(field::invalid(&at, name, &detail));
        } else if known.contains(name) {
            errs.push(field::duplicate(&at, name));
        }
        known.insert(name);
    }
    errs
}

fn seccomp_profile(profile: &Value, path: &Path) -> ErrorList {
    let mut errs = ErrorList::new();
    if profile.is_null() {
        return errs;
    }
    let kind = text(profile, "type");
    const TYPES: &[&str] = &["Localhost", "RuntimeDefault", "Unconfined"];
    if kind.is_empty() {
        errs.push(field::required(&path.child("type"), "type is required when seccompProfile is set"));
    } else if !TYPES.contains(&kind) {
        errs.push(field::not_supported(&path.child("type"), kind, TYPES));
    }
    let at = path.child("localhostProfile");
    match (kind, part(profile, "localhostProfile")) {
        ("Localhost", Value::String(file)) => errs.extend(descending_path(file, &at)),
        ("Localhost", _) => errs.push(field::required(&at, "must be set when seccomp type is Localhost")),
        (_, Value::Null) => {}
        _ => {
            errs.push(field::invalid(&at, profile.clone(), "can only be set when seccomp type is Localhost"))
        }
    }
    errs
}

fn windows_options(options: &Value, path: &Path) -> ErrorList {
    let mut errs = ErrorList::new();
    if let Some(name) = part(options, "gmsaCredentialSpecName").as_str() {
        errs.extend(invalid_each(
            &path.child("gmsaCredentialSpecName"),
            name,
            names::dns1123_subdomain_name(name, false),
        ));
    }
    if let Some(spec) = part(options, "gmsaCredentialSpec").as_str() {
        let at = path.child("gmsaCredentialSpec");
        if spec.is_empty() {
            errs.push(field::invalid(&at, spec, "gmsaCredentialSpec cannot be an empty string"));
        } else if spec.len() > 64 * 1024 {
            errs.push(field::invalid(&at, spec, "gmsaCredentialSpec size must be under 64 KiB"));
        }
    }
    if present(options, "runAsUserName") {
        let name = text(options, "runAsUserName");
        errs.extend(windows_user(name).iter().map(|m| field::invalid(&path.child("runAsUserName"), name, m)));
    }
    errs
}

/// Faults of `[domain\]user`.
fn windows_user(name: &str) -> Vec<String> {
    if name.is_empty() {
        return vec!["runAsUserName cannot be an empty string".into()];
    }
    let mut faults = Vec::new();
    if name.chars().any(|c| c.is_ascii_control()) {
        faults.push("runAsUserName cannot contain control characters".to_string());
    }
    let parts: Vec<&str> = name.split('\\').collect();
    if parts.len() > 2 {
        faults.push("runAsUserName cannot contain more than one backslash".into());
        return faults;
    }
    if let [domain, _] = parts[..] {
        if domain.len() > 255 {
            faults.push("runAsUserName's Domain length must be under 256 characters".into());
        }
        if domain.is_empty()
            || domain.starts_with('.')
            || domain.contains(['*', '?', '"', '<', '>', '|', '/', ':'])
        {
            faults.push("runAsUserName's Domain doesn't match the NetBios nor the DNS format".into());
        }
    }
    let user = parts[parts.len() - 1];
    if user.is_empty() {
        faults.push("runAsUserName's User cannot be empty".into());
    } else if user.len() > 104 {
        faults.push("runAsUserName's User length must not be longer than 104 characters".into());
    }
    if !user.is_empty() && user.chars().all(|c| c == '.' || c == ' ') {
        faults.push("runAsUserName's User cannot contain only periods or spaces".into());
    }
    const FORBIDDEN: &str = "\"/\\:;|=,+*?<>@[]";
    if user.contains(|c| FORBIDDEN.contains(c)) {
        faults.push(format!("runAsUserName's User cannot contain the following characters: {FORBIDDEN}"));
    }
    faults
}

/// Faults of seccomp annotations, which v1.20 still reads beside the fields.
pub(super) fn seccomp_annotations(annotations: &Value, path: &Path) -> ErrorList {
    let mut errs = ErrorList::new();
    for (key, value) in crate::kinds::access::entries(&json!({ "a": annotations }), "a") {
        if key != SECCOMP_POD && !key.starts_with(SECCOMP_CONTAINER) {
            continue;
        }
        let value = value.as_str().unwrap_or("");
        let at = path.child(key);
        match value {
            "runtime/default" | "docker/default" | "unconfined" => {}
            other => match other.strip_prefix("localhost/") {
                Some(file) => errs.extend(descending_path(file, &at)),
                None => errs.push(field::invalid(&at, other, "must be a valid seccomp profile")),
            },
        }
    }
    errs
}

/// Annotation with the seccomp profile of a pod.
pub(super) const SECCOMP_POD: &str = "seccomp.security.alpha.kubernetes.io/pod";
/// Prefix of annotations with the seccomp profile of a container.
pub(super) const SECCOMP_CONTAINER: &str = "container.seccomp.security.alpha.kubernetes.io/";
/// Prefix of annotations with the AppArmor profile of a container.
pub(super) const APPARMOR_CONTAINER: &str = "container.apparmor.security.beta.kubernetes.io/";

/// Faults of AppArmor annotations: they must name a container and a profile.
pub(super) fn apparmor_annotations(annotations: &Value, spec: &Value, path: &Path) -> ErrorList {
    let mut errs = ErrorList::new();
    for (key, value) in pilothouse_apimachinery::json::strings_at(annotations, &[]) {
        let Some(container) = key.strip_prefix(APPARMOR_CONTAINER) else { continue };
        let known = ["containers", "initContainers", "ephemeralContainers"]
            .iter()
            .any(|list| items(spec, list).iter().any(|c| text(c, "name") == container));
        if !known {
            errs.push(field::invalid(&path.key(key), container, "container not found"));
        }
        let valid = matches!(value, "" | "runtime/default" | "unconfined") || value.starts_with("localhost/");
        if !valid {
            let detail = format!("invalid AppArmor profile name: {value:?}");
            errs.push(field::invalid(&path.key(key), value, &detail));
        }
    }
    errs
}

/// Faults where a seccomp annotation and the field for the same thing differ.
pub(super) fn seccomp_mismatches(annotations: &Value, spec: &Value, spec_path: &Path) -> ErrorList {
    let mut errs = ErrorList::new();
    if is_empty(&json!({ "a": annotations }), "a") {
        return errs;
    }
    errs.extend(seccomp_mismatch(
        annotations,
        SECCOMP_POD,
        part(spec, "securityContext"),
        &spec_path.child("securityContext"),
    ));
    for list in ["initContainers", "containers"] {
        for (i, container) in items(spec, list).iter().enumerate() {
            let key = format!("{SECCOMP_CONTAINER}{}", text(container, "name"));
            let at = spec_path.child(list).index(i).child("securityContext");
            errs.extend(seccomp_mismatch(annotations, &key, part(container, "securityContext"), &at));
        }
    }
    errs
}

fn seccomp_mismatch(annotations: &Value, key: &str, context: &Value, path: &Path) -> Option<field::Error> {
    let annotation = annotations.get(key)?.as_str()?;
    let profile = part(context, "seccompProfile");
    let kind = if profile.is_null() { return None } else { text(profile, "type") };
    let path = path.child("seccompProfile");
    let expected = match annotation {
        "unconfined" => "Unconfined",
        "runtime/default" | "docker/default" => "RuntimeDefault",
        _ => "Localhost",
    };
    if kind != expected {
        return Some(field::forbidden(
            &path.child("type"),
            "seccomp type in annotation and field must match",
        ));
    }
    let file = annotation.strip_prefix("localhost/").unwrap_or("");
    (kind == "Localhost" && file != text(profile, "localhostProfile")).then(|| {
        field::forbidden(
            &path.child("localhostProfile"),
            "seccomp profile in annotation and field must match",
        )
    })
}

#[cfg(test)]
mod tests {
    use pilothouse_apimachinery::json::json;

    use super::*;

    fn texts(errs: ErrorList) -> Vec<String> {
        errs.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn containers() {
        let rules = Rules { allow_privileged: false, today: false };
        let context = json!({"privileged": true, "runAsUser": -1, "seccompProfile": {"type": "Localhost"}});
        assert_eq!(
            texts(container_security_context(&context, &Path::new("s"), &rules)),
            [
                "s.privileged: Forbidden: disallowed by cluster policy",
                "s.runAsUser: Invalid value: -1: must be between 0 and 2147483647, inclusive",
                "s.seccompProfile.localhostProfile: Required value: must be set when seccomp type is Localhost",
            ]
        );
    }

    #[test]
    fn pods() {
        let spec = json!({
            "hostNetwork": true, "hostPID": true, "shareProcessNamespace": true,
            "containers": [{"ports": [{"containerPort": 80, "hostPort": 81}]}],
            "securityContext": {"sysctls": [{"name": "kernel.shm_rmid_forced"}, {"name": "Net"}], "fsGroupChangePolicy": "Never"},
        });
        let errs = texts(pod_security_context(&spec, &Path::new("spec")));
        assert_eq!(errs.len(), 4, "{errs:?}");
        assert_eq!(
            errs[0],
            "spec.containers[0].ports[0].containerPort: Invalid value: 80: must match `hostPort` when `hostNetwork` is true"
        );
        assert!(errs[2].starts_with(
            "spec.securityContext.sysctls[1].name: Invalid value: \"Net\": must have at most 253"
        ));
    }

    #[test]
    fn annotations() {
        let a = json!({SECCOMP_POD: "local", format!("{APPARMOR_CONTAINER}x"): "runtime/default"});
        assert_eq!(texts(seccomp_annotations(&a, &Path::new("a"))).len(), 1);
        assert_eq!(
            texts(apparmor_annotations(&a, &json!({}), &Path::new("a"))),
            [
                "a[container.apparmor.security.beta.kubernetes.io/x]: Invalid value: \"x\": container not found"
            ]
        );
        let spec = json!({"securityContext": {"seccompProfile": {"type": "Unconfined"}}});
        assert!(
            seccomp_mismatch(
                &json!({SECCOMP_POD: "runtime/default"}),
                SECCOMP_POD,
                &spec["securityContext"],
                &Path::new("s")
            )
            .is_some()
        );
    }
}
