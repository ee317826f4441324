//! `PodSecurity`: the Pod Security Standards, by labels of the namespace; without labels everything is allowed
//! (<https://kubernetes.io/docs/concepts/security/pod-security-standards/>).

use async_trait::async_trait;
use pilothouse_apimachinery::json::Value;
use pilothouse_apimachinery::status::Status;

use crate::json::{containers, entry, get, has, i64_at, list_at, str_at, texts};
use crate::request::{AdmissionRequest, Objects, Operation, Validation};

use super::is_about;

/// The plug-in.
pub struct PodSecurity;

/// Capabilities that any pod may add.
const BASELINE_CAPABILITIES: &[&str] = &[
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];
const SAFE_SYSCTLS: &[&str] = &[
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
];
const RESTRICTED_VOLUMES: &[&str] = &[
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
];

/// The names of the containers that a check is not content with, quoted.
fn culprits(spec: &Value, bad: impl Fn(&Value) -> bool) -> Option<String> {
    let names: Vec<String> = containers(spec)
        .filter(|(_, c)| bad(c))
        .map(|(_, c)| format!("{:?}", str_at(c, &["name"])))
        .collect();
    match names.as_slice() {
        [] => None,
        [one] => Some(format!("container {one}")),
        many => Some(format!("containers {}", many.join(", "))),
    }
}

fn security<'a>(c: &'a Value, field: &str) -> &'a Value {
    get(c, &["securityContext", field])
}

/// What of `baseline` a pod does not keep.
fn baseline(pod: &Value) -> Vec<String> {
    let spec = get(pod, &["spec"]);
    let mut out = Vec::new();
    let host: Vec<String> = ["hostNetwork", "hostPID", "hostIPC"]
        .iter()
        .filter(|f| get(spec, &[f]).as_bool() == Some(true))
        .map(|f| format!("{f}=true"))
        .collect();
    if !host.is_empty() {
        out.push(format!("host namespaces ({})", host.join(", ")));
    }
    if let Some(who) = culprits(spec, |c| security(c, "privileged").as_bool() == Some(true)) {
        out.push(format!("privileged ({who} must not set securityContext.privileged=true)"));
    }
    let adds = |c: &Value| texts(security(c, "capabilities"), &["add"]);
    if let Some(who) =
        culprits(spec, |c| adds(c).iter().any(|a| !BASELINE_CAPABILITIES.contains(&a.as_str())))
    {
        out.push(format!("non-default capabilities ({who} must not include disallowed capabilities in securityContext.capabilities.add)"));
    }
    let paths: Vec<String> = list_at(spec, &["volumes"])
        .iter()
        .filter(|v| has(v, &["hostPath"]))
        .map(|v| format!("{:?}", str_at(v, &["name"])))
        .collect();
    if !paths.is_empty() {
        let word = if paths.len() == 1 { "volume" } else { "volumes" };
        out.push(format!("hostPath volumes ({word} {})", paths.join(", ")));
    }
    let host_port =
        |c: &Value| list_at(c, &["ports"]).iter().any(|p| i64_at(p, &["hostPort"]).unwrap_or(0) != 0);
    if let Some(who) = culprits(spec, host_port) {
        out.push(format!("hostPort ({who} uses hostPorts)"));
    }
    if let Some(who) =
        culprits(spec, |c| !matches!(security(c, "procMount").as_str(), None | Some("Default")))
    {
        out.push(format!("procMount ({who} must not set securityContext.procMount)"));
    }
    let unconfined = |v: &Value| str_at(v, &["seccompProfile", "type"]) == "Unconfined";
    if unconfined(get(spec, &["securityContext"]))
        || culprits(spec, |c| unconfined(get(c, &["securityContext"]))).is_some()
    {
        out.push(
            "seccompProfile (must not set securityContext.seccompProfile.type to \"Unconfined\")".into(),
        );
    }
    let sysctls = list_at(spec, &["securityContext", "sysctls"]);
    let unsafe_ones: Vec<&str> =
        sysctls.iter().map(|s| str_at(s, &["name"])).filter(|n| !SAFE_SYSCTLS.contains(n)).collect();
    if !unsafe_ones.is_empty() {
        out.push(format!("forbidden sysctls ({})", unsafe_ones.join(", ")));
    }
    out
}

/// What of `restricted` a pod does not keep, beside `baseline`.
fn restricted(pod: &Value) -> Vec<String> {
    let spec = get(pod, &["spec"]);
    let pod_security = get(spec, &["securityContext"]);
    let mut out = Vec::new();
    if let Some(who) = culprits(spec, |c| security(c, "allowPrivilegeEscalation").as_bool() != Some(false)) {
        out.push(format!("allowPrivilegeEscalation != false ({who} must set securityContext.allowPrivilegeEscalation=false)"));
    }
    let keeps = |c: &Value| {
        let capabilities = security(c, "capabilities");
        !texts(capabilities, &["drop"]).iter().any(|d| d == "ALL")
            || texts(capabilities, &["add"]).iter().any(|a| a != "NET_BIND_SERVICE")
    };
    if let Some(who) = culprits(spec, keeps) {
        out.push(format!(
            "unrestricted capabilities ({who} must set securityContext.capabilities.drop=[\"ALL\"])"
        ));
    }
    let volumes: Vec<String> = list_at(spec, &["volumes"])
        .iter()
        .filter(|v| {
            v.as_object()
                .is_some_and(|m| m.keys().any(|k| k != "name" && !RESTRICTED_VOLUMES.contains(&k.as_str())))
        })
        .map(|v| format!("{:?}", str_at(v, &["name"])))
        .collect();
    if !volumes.is_empty() {
        out.push(format!("restricted volume types ({})", volumes.join(", ")));
    }
    let all_non_root = get(pod_security, &["runAsNonRoot"]).as_bool();
    if let Some(who) =
        culprits(spec, |c| security(c, "runAsNonRoot").as_bool().or(all_non_root) != Some(true))
    {
        out.push(format!("runAsNonRoot != true (pod or {who} must set securityContext.runAsNonRoot=true)"));
    }
    let root = |v: &Value| i64_at(v, &["runAsUser"]) == Some(0);
    if root(pod_security) || culprits(spec, |c| root(get(c, &["securityContext"]))).is_some() {
        out.push("runAsUser=0 (must not set runAsUser=0)".into());
    }
    let confined =
        |v: &Value| matches!(str_at(v, &["seccompProfile", "type"]), "RuntimeDefault" | "Localhost");
    if let Some(who) = culprits(spec, |c| !confined(get(c, &["securityContext"])) && !confined(pod_security))
    {
        out.push(format!(
            "seccompProfile (pod or {who} must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")"
        ));
    }
    out
}

#[async_trait]
impl Validation for PodSecurity {
    async fn validate(&self, r: &AdmissionRequest, objects: &dyn Objects) -> Result<(), Status> {
        let checked = (is_about(r, "", "pods")
            || (r.resource == "pods" && r.subresource == "ephemeralcontainers"))
            && matches!(r.operation, Operation::Create | Operation::Update);
        if !checked {
            return Ok(());
        }
        let Some(namespace) = objects.get("", "namespaces", "", &r.namespace) else { return Ok(()) };
        let label =
            |l: &str| entry(&namespace, &["metadata", "labels"], &format!("pod-security.kubernetes.io/{l}"));
        let level = label("enforce").unwrap_or("privileged");
        let faults = match level {
            "baseline" => baseline(&r.object),
            "restricted" => [baseline(&r.object), restricted(&r.object)].concat(),
            _ => Vec::new(),
        };
        // A pod that runs is judged again only where its security has changed.
        let unchanged = r.operation == Operation::Update
            && r.subresource.is_empty()
            && get(&r.object, &["spec"]) == get(&r.old_object, &["spec"]);
        if faults.is_empty() || unchanged {
            return Ok(());
        }
        let version = label("enforce-version").unwrap_or("latest");
        Err(super::forbidden(r, format!("violates PodSecurity \"{level}:{version}\": {}", faults.join(", "))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::test_create;
    use crate::testing::FakeObjects;
    use pilothouse_apimachinery::json::json;

    #[tokio::test]
    async fn enforces_what_the_namespace_says() {
        let o = FakeObjects::default();
        let put = |level: &str| {
            o.put(
                "",
                "namespaces",
                json!({"metadata": {"name": "n", "labels": {"pod-security.kubernetes.io/enforce": level}}}),
            );
        };
        let pod = |spec: Value| {
            test_create("", "pods", "Pod", json!({"metadata": {"name": "p", "namespace": "n"}, "spec": spec}))
        };
        let bad = pod(
            json!({"hostNetwork": true, "containers": [{"name": "c", "securityContext": {"privileged": true}}]}),
        );
        o.put("", "namespaces", json!({"metadata": {"name": "n"}}));
        PodSecurity.validate(&bad, &o).await.unwrap();
        put("baseline");
        assert_eq!(
            PodSecurity.validate(&bad, &o).await.unwrap_err().message,
            "pods \"p\" is forbidden: violates PodSecurity \"baseline:latest\": host namespaces (hostNetwork=true), \
             privileged (container \"c\" must not set securityContext.privileged=true)"
        );
        let plain = pod(json!({"containers": [{"name": "c"}]}));
        PodSecurity.validate(&plain, &o).await.unwrap();
        put("restricted");
        assert!(PodSecurity.validate(&plain, &o).await.is_err());
        let tight = pod(
            json!({"securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{"name": "c", "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}}}]}),
        );
        PodSecurity.validate(&tight, &o).await.unwrap();
    }
}
