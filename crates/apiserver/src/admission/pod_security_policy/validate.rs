//! What a policy refuses.

use pilothouse_apimachinery::field::{self, ErrorList, Path};
use pilothouse_apimachinery::json::Value;

use super::{annotations, ids, volumes};
use crate::json::{bool_at, containers, get, i64_at, list_at, str_at, texts};

/// Sysctls that need no allowance.
const SAFE_SYSCTLS: &[&str] = &[
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
];

/// All faults of a pod, in Kubernetes' order.
pub(super) fn pod(policy: &Value, pod: &Value) -> ErrorList {
    let spec = get(policy, &["spec"]);
    let context = get(pod, &["spec", "securityContext"]);
    let path = Path::new("spec").child("securityContext");
    let fs_group: Vec<i64> = i64_at(context, &["fsGroup"]).into_iter().collect();
    let groups: Vec<i64> =
        list_at(context, &["supplementalGroups"]).iter().filter_map(Value::as_i64).collect();
    let mut errors = ids::groups(get(spec, &["fsGroup"]), &path.child("fsGroup"), &fs_group);
    errors.extend(ids::groups(
        get(spec, &["supplementalGroups"]),
        &path.child("supplementalGroups"),
        &groups,
    ));
    errors.extend(annotations::validate_seccomp_of_pod(policy, pod));
    let options = get(context, &["seLinuxOptions"]);
    errors.extend(ids::selinux(get(spec, &["seLinux"]), &path.child("seLinuxOptions"), options));
    for (key, name) in [("hostNetwork", "network"), ("hostPID", "PID"), ("hostIPC", "IPC")] {
        if bool_at(pod, &["spec", key]) && !bool_at(spec, &[key]) {
            errors.push(field::invalid(
                &path.child(key),
                true,
                &format!("Host {name} is not allowed to be used"),
            ));
        }
    }
    errors.extend(sysctls(spec, context));
    errors.extend(volumes::validate(spec, pod));
    errors.extend(runtime_class(spec, pod));
    let (mut list, mut n) = ("", 0);
    for (of, container) in containers(get(pod, &["spec"])) {
        n = if of == list { n + 1 } else { 0 };
        list = of;
        errors.extend(self::container(policy, pod, container, &Path::new("spec").child(of).index(n)));
    }
    errors
}

fn sysctls(spec: &Value, context: &Value) -> ErrorList {
    let has = |list: &str, name: &str| {
        texts(spec, &[list]).iter().any(|p| match p.strip_suffix('*') {
            Some(prefix) => name.starts_with(prefix),
            None => p == name,
        })
    };
    let path = Path::new("pod").child("spec").child("securityContext").child("sysctls");
    let mut errors = ErrorList::new();
    for (i, sysctl) in list_at(context, &["sysctls"]).iter().enumerate() {
        let name = str_at(sysctl, &["name"]);
        if has("forbiddenSysctls", name) {
            errors.push(field::forbidden(&path.index(i), &format!("sysctl {name:?} is not allowed")));
        } else if !SAFE_SYSCTLS.contains(&name) && !has("allowedUnsafeSysctls", name) {
            errors.push(field::forbidden(&path.index(i), &format!("unsafe sysctl {name:?} is not allowed")));
        }
    }
    errors
}

fn runtime_class(spec: &Value, pod: &Value) -> Option<field::Error> {
    let strategy = spec.get("runtimeClass")?;
    let name = pod.pointer("/spec/runtimeClassName")?.as_str()?;
    let allowed = texts(strategy, &["allowedRuntimeClassNames"]);
    let path = Path::new("spec").child("runtimeClassName");
    (!allowed.iter().any(|a| a == "*" || a == name)).then(|| field::invalid(&path, name, ""))
}

fn container(policy: &Value, pod: &Value, container: &Value, at: &Path) -> ErrorList {
    let spec = get(policy, &["spec"]);
    let path = at.child("securityContext");
    let pod_context = get(pod, &["spec", "securityContext"]);
    let own = get(container, &["securityContext"]);
    // What a container does not say, its pod says for it.
    let effective = |key: &str| own.get(key).or_else(|| pod_context.get(key)).unwrap_or(&Value::Null);
    let name = str_at(container, &["name"]);

    let mut errors = ErrorList::new();
    let (non_root, user) = (effective("runAsNonRoot").as_bool(), effective("runAsUser").as_i64());
    errors.extend(ids::user(get(spec, &["runAsUser"]), &path, non_root, user));
    if let Some(strategy) = spec.get("runAsGroup") {
        let groups: Vec<i64> = effective("runAsGroup").as_i64().into_iter().collect();
        errors.extend(ids::groups(strategy, &path, &groups));
    }
    errors.extend(ids::selinux(
        get(spec, &["seLinux"]),
        &path.child("seLinuxOptions"),
        effective("seLinuxOptions"),
    ));
    errors.extend(annotations::validate_apparmor(policy, pod, name));
    errors.extend(annotations::validate_seccomp_of_container(policy, pod, container));
    if bool_at(own, &["privileged"]) && !bool_at(spec, &["privileged"]) {
        errors.push(field::invalid(&path.child("privileged"), true, "Privileged containers are not allowed"));
    }
    errors.extend(proc_mount(spec, own, &path));
    errors.extend(capabilities(spec, own, &path.child("capabilities")));
    errors.extend(host_ports(spec, container, at));
    if bool_at(spec, &["readOnlyRootFilesystem"]) {
        let at = path.child("readOnlyRootFilesystem");
        match own.get("readOnlyRootFilesystem") {
            None => errors.push(field::invalid_shown(
                &at,
                "null",
                "ReadOnlyRootFilesystem may not be nil and must be set to true",
            )),
            Some(Value::Bool(false)) => {
                errors.push(field::invalid(&at, false, "ReadOnlyRootFilesystem must be set to true"));
            }
            _ => {}
        }
    }
    let escalation = get(own, &["allowPrivilegeEscalation"]);
    if get(spec, &["allowPrivilegeEscalation"]) == &Value::Bool(false) && escalation != &Value::Bool(false) {
        let detail = "Allowing privilege escalation for containers is not allowed";
        errors.push(field::invalid(&path.child("allowPrivilegeEscalation"), escalation.clone(), detail));
    }
    errors
}

fn proc_mount(spec: &Value, own: &Value, path: &Path) -> Option<field::Error> {
    let wanted = own.get("procMount").and_then(Value::as_str).unwrap_or("Default");
    let mut allowed = texts(spec, &["allowedProcMountTypes"]);
    if allowed.is_empty() {
        allowed.push("Default".into());
    }
    let there = allowed.iter().any(|a| a == wanted);
    (!there).then(|| field::invalid(&path.child("procMount"), wanted, "ProcMountType is not allowed"))
}

fn capabilities(spec: &Value, own: &Value, path: &Path) -> ErrorList {
    let (defaults, allowed) =
        (texts(spec, &["defaultAddCapabilities"]), texts(spec, &["allowedCapabilities"]));
    let required = texts(spec, &["requiredDropCapabilities"]);
    let Some(asked) = own.get("capabilities") else {
        if defaults.is_empty() && required.is_empty() {
            return ErrorList::new();
        }
        let detail = "required capabilities are not set on the securityContext";
        return vec![field::invalid_shown(path, "null", detail)];
    };
    if allowed.iter().any(|c| c == "*") {
        return ErrorList::new();
    }
    let mut errors = ErrorList::new();
    for capability in texts(asked, &["add"]) {
        if !defaults.contains(&capability) && !allowed.contains(&capability) {
            errors.push(field::invalid(&path.child("add"), capability, "capability may not be added"));
        }
    }
    let dropped = texts(asked, &["drop"]);
    let list: Vec<String> = dropped.iter().map(|c| format!("{c:?}")).collect();
    let shown = if dropped.is_empty() {
        "[]core.Capability(nil)".to_string()
    } else {
        format!("[]core.Capability{{{}}}", list.join(", "))
    };
    for capability in required.iter().filter(|c| !dropped.contains(c)) {
        let detail = format!("{capability} is required to be dropped but was not found");
        errors.push(field::invalid_shown(&path.child("drop"), &shown, &detail));
    }
    errors
}

fn host_ports(spec: &Value, container: &Value, path: &Path) -> ErrorList {
    let range = |r: &Value| (i64_at(r, &["min"]).unwrap_or(0), i64_at(r, &["max"]).unwrap_or(0));
    let ranges: Vec<(i64, i64)> = list_at(spec, &["hostPorts"]).iter().map(range).collect();
    let shown: Vec<String> =
        ranges.iter().map(|(a, b)| if a == b { a.to_string() } else { format!("{a}-{b}") }).collect();
    list_at(container, &["ports"])
        .iter()
        .filter_map(|p| i64_at(p, &["hostPort"]).filter(|n| *n > 0))
        .filter(|n| !ranges.iter().any(|(a, b)| (a..=b).contains(&n)))
        .map(|n| {
            let detail =
                format!("Host port {n} is not allowed to be used. Allowed ports: [{}]", shown.join(","));
            field::invalid(&path.child("hostPort"), n, &detail)
        })
        .collect()
}
