//! Defaults of pods and pod templates beyond the catalogue's.

use pilothouse_apimachinery::json::{Value, json};
use pilothouse_apimachinery::quantity::Quantity;

use super::image::is_latest;
use crate::kinds::access::{
    default_nonzero, default_text, default_to, entries, flag, is_empty, items_mut, number, part, present,
    put, take, text,
};

/// Defaults of a pod.
pub(super) fn pod(pod: &mut Value, today: bool) {
    drop_init_container_annotations(pod);
    if let Some(status) = pod.get_mut("status") {
        pod_ips(status);
    }
    let Some(spec) = pod.get_mut("spec") else { return };
    for list in ["containers", "initContainers"] {
        for container in items_mut(spec, list) {
            requests_from_limits(container);
        }
    }
    default_to(spec, "enableServiceLinks", true);
    pod_spec(spec);
    if today {
        host_network_ports(spec);
    }
}

/// Defaults of a pod template.
pub(crate) fn pod_template(template: &mut Value, today: bool) {
    drop_init_container_annotations(template);
    // A template without a spec still gets one with all defaults, as Go's structs always are there.
    if !present(template, "spec") {
        put(template, "spec", json!({"containers": null}));
    }
    if let Some(spec) = template.get_mut("spec") {
        pod_spec(spec);
        // Today's templates leave the ports of the host alone; pods made from them get theirs.
        if today {
            return;
        }
        host_network_ports(spec);
    }
}

/// Templates of the days when init containers were annotations carry them along.
fn drop_init_container_annotations(object: &mut Value) {
    let Some(annotations) = object.get_mut("metadata").and_then(|m| m.get_mut("annotations")) else { return };
    for version in ["alpha", "beta"] {
        take(annotations, &format!("pod.{version}.kubernetes.io/init-containers"));
        take(annotations, &format!("pod.{version}.kubernetes.io/init-container-statuses"));
    }
}

/// `podIP` is the first of `podIPs`: old clients write only the one.
fn pod_ips(status: &mut Value) {
    let ip = text(status, "podIP").to_string();
    let first = status["podIPs"][0]["ip"].as_str().unwrap_or("").to_string();
    if !ip.is_empty() && ip != first {
        put(status, "podIPs", json!([{ "ip": ip }]));
    } else if !first.is_empty() {
        put(status, "podIP", first);
    }
}

fn requests_from_limits(container: &mut Value) {
    let Some(resources) = container.get_mut("resources") else { return };
    let missing: Vec<(String, Value)> = entries(resources, "limits")
        .into_iter()
        .filter(|(name, _)| !present(part(resources, "requests"), name))
        .map(|(name, value)| (name.to_string(), value.clone()))
        .collect();
    if missing.is_empty() {
        return;
    }
    default_to(resources, "requests", json!({}));
    for (name, value) in missing {
        put(&mut resources["requests"], &name, value);
    }
}

/// Defaults of a pod's spec.
fn pod_spec(spec: &mut Value) {
    // The old name of the service account and the new one always agree.
    let account = text(spec, "serviceAccountName").to_string();
    if account.is_empty() {
        let old = text(spec, "serviceAccount").to_string();
        if !old.is_empty() {
            put(spec, "serviceAccountName", old);
        }
    } else {
        put(spec, "serviceAccount", account);
    }
    default_text(spec, "dnsPolicy", "ClusterFirst");
    default_text(spec, "restartPolicy", "Always");
    default_to(spec, "securityContext", json!({}));
    default_to(spec, "terminationGracePeriodSeconds", 30);
    default_text(spec, "schedulerName", "default-scheduler");
    for volume in items_mut(spec, "volumes") {
        self::volume(volume);
    }
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        for container in items_mut(spec, list) {
            self::container(container);
        }
    }
    if let Some(overhead) = spec.get_mut("overhead") {
        round_quantities(overhead);
    }
}

fn host_network_ports(spec: &mut Value) {
    if !flag(spec, "hostNetwork") {
        return;
    }
    for list in ["containers", "initContainers"] {
        for container in items_mut(spec, list) {
            for port in items_mut(container, "ports") {
                let n = number(port, "containerPort");
                if n != 0 {
                    default_nonzero(port, "hostPort", n);
                }
            }
        }
    }
}

fn volume(volume: &mut Value) {
    let Some(map) = volume.as_object_mut() else { return };
    if !map.iter().any(|(k, v)| k != "name" && !v.is_null()) {
        map.insert("emptyDir", json!({}));
    }
    for (key, source) in map.iter_mut() {
        match key.as_str() {
            "hostPath" => default_to(source, "type", ""),
            "secret" | "configMap" => default_to(source, "defaultMode", 0o644),
            "downwardAPI" => {
                default_to(source, "defaultMode", 0o644);
                field_refs(source);
            }
            "projected" => {
                default_to(source, "defaultMode", 0o644);
                for projection in items_mut(source, "sources") {
                    if let Some(token) = projection.get_mut("serviceAccountToken") {
                        default_to(token, "expirationSeconds", 3600);
                    }
                    if let Some(downward) = projection.get_mut("downwardAPI") {
                        field_refs(downward);
                    }
                }
            }
            "ephemeral" => {
                if let Some(spec) = source.get_mut("volumeClaimTemplate").and_then(|t| t.get_mut("spec")) {
                    default_text(spec, "volumeMode", "Filesystem");
                }
            }
            _ => {}
        }
    }
}

fn field_refs(downward: &mut Value) {
    for file in items_mut(downward, "items") {
        if let Some(selector) = file.get_mut("fieldRef") {
            default_text(selector, "apiVersion", "v1");
        }
    }
}

fn container(container: &mut Value) {
    if text(container, "imagePullPolicy").is_empty() {
        let policy = if is_latest(text(container, "image")) { "Always" } else { "IfNotPresent" };
        put(container, "imagePullPolicy", policy);
    }
    default_text(container, "terminationMessagePath", "/dev/termination-log");
    default_text(container, "terminationMessagePolicy", "File");
    for key in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = container.get_mut(key).filter(|p| p.is_object()) {
            default_nonzero(probe, "timeoutSeconds", 1);
            default_nonzero(probe, "periodSeconds", 10);
            default_nonzero(probe, "successThreshold", 1);
            default_nonzero(probe, "failureThreshold", 3);
            http_get(probe);
        }
    }
    if let Some(lifecycle) = container.get_mut("lifecycle") {
        for key in ["postStart", "preStop"] {
            if let Some(handler) = lifecycle.get_mut(key) {
                http_get(handler);
            }
        }
    }
    for variable in items_mut(container, "env") {
        if let Some(selector) = variable.get_mut("valueFrom").and_then(|v| v.get_mut("fieldRef")) {
            default_text(selector, "apiVersion", "v1");
        }
    }
    if let Some(resources) = container.get_mut("resources") {
        for key in ["limits", "requests"] {
            if let Some(list) = resources.get_mut(key) {
                round_quantities(list);
            }
        }
    }
}

fn http_get(handler: &mut Value) {
    if let Some(action) = handler.get_mut("httpGet").filter(|a| a.is_object()) {
        default_text(action, "path", "/");
        default_text(action, "scheme", "HTTP");
    }
}

/// Quantities finer than thousandths are rounded up.
pub(crate) fn round_quantities(list: &mut Value) {
    for value in list.as_object_mut().into_iter().flatten().map(|(_, v)| v) {
        let Some(mut q) = value.as_str().and_then(|s| Quantity::parse(s).ok()) else { continue };
        if q.nanos() % 1_000_000 != 0 {
            q.round_up_to_milli();
            *value = Value::from(q.canonical());
        }
    }
}

/// What v1.20 leaves out of pods and templates because its feature is off: ephemeral containers, generic ephemeral
/// volumes, the type of `/proc` mounts. What the old object has stays.
pub(crate) fn drop_disabled(spec: &mut Value, old: &Value, today: bool) {
    if today {
        return;
    }
    if is_empty(old, "ephemeralContainers") {
        take(spec, "ephemeralContainers");
    }
    let old_has = |list: &str, path: &[&str]| {
        crate::kinds::access::items(old, list)
            .iter()
            .any(|item| pilothouse_apimachinery::json::has(item, path))
    };
    if !old_has("volumes", &["ephemeral"]) {
        for volume in items_mut(spec, "volumes") {
            take(volume, "ephemeral");
        }
    }
    let lists = ["containers", "initContainers"];
    let unusual = |list: &&str| {
        crate::kinds::access::items(old, list).iter().any(|c| {
            !matches!(
                pilothouse_apimachinery::json::str_at(c, &["securityContext", "procMount"]),
                "" | "Default"
            )
        })
    };
    if !lists.iter().any(unusual) {
        for list in lists {
            for context in items_mut(spec, list).iter_mut().filter_map(|c| c.get_mut("securityContext")) {
                if present(context, "procMount") {
                    put(context, "procMount", "Default");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods() {
        let mut p = json!({"spec": {
            "serviceAccount": "sa",
            "hostNetwork": true,
            "containers": [{"name": "c", "image": "nginx:1", "ports": [{"containerPort": 80}],
                "resources": {"limits": {"cpu": "1"}}, "livenessProbe": {"httpGet": {"port": 80}}}],
            "volumes": [{"name": "v"}, {"name": "s", "secret": {"secretName": "x"}}],
        }, "status": {"podIP": "10.0.0.1"}});
        pod(&mut p, false);
        let spec = &p["spec"];
        assert_eq!(spec["serviceAccountName"], "sa");
        assert_eq!(spec["containers"][0]["imagePullPolicy"], "IfNotPresent");
        assert_eq!(spec["containers"][0]["resources"]["requests"]["cpu"], "1");
        assert_eq!(spec["containers"][0]["livenessProbe"]["periodSeconds"], 10);
        assert_eq!(spec["containers"][0]["livenessProbe"]["httpGet"]["path"], "/");
        assert_eq!(spec["volumes"][0]["emptyDir"], json!({}));
        assert_eq!(spec["volumes"][1]["secret"]["defaultMode"], 420);
        assert_eq!(spec["enableServiceLinks"], true);
        assert_eq!(p["status"]["podIPs"], json!([{"ip": "10.0.0.1"}]));
    }

    #[test]
    fn host_ports_of_templates() {
        let template =
            json!({"spec": {"hostNetwork": true, "containers": [{"ports": [{"containerPort": 80}]}]}});
        let mut old = template.clone();
        pod_template(&mut old, false);
        assert_eq!(old["spec"]["containers"][0]["ports"][0]["hostPort"], 80);
        let mut new = template;
        pod_template(&mut new, true);
        assert!(new["spec"]["containers"][0]["ports"][0].get("hostPort").is_none());
    }

    #[test]
    fn fine_quantities_are_rounded() {
        let mut list = json!({"cpu": "100u", "memory": "1Gi"});
        round_quantities(&mut list);
        assert_eq!(list, json!({"cpu": "1m", "memory": "1Gi"}));
    }
}
