//! What the API server would fill into a pod, for pods that it never sees before they run: those from files.

use k8s_openapi::api::core::v1::Volume;
use k8s_openapi::api::core::v1::{Container, Pod, Probe};

fn probe(p: &mut Probe) {
    p.timeout_seconds.get_or_insert(1);
    p.period_seconds.get_or_insert(10);
    p.success_threshold.get_or_insert(1);
    p.failure_threshold.get_or_insert(3);
    if let Some(h) = &mut p.http_get {
        h.path.get_or_insert_with(|| "/".into());
        h.scheme.get_or_insert_with(|| "HTTP".into());
    }
}

fn container(c: &mut Container) {
    c.termination_message_path.get_or_insert_with(|| "/dev/termination-log".into());
    c.termination_message_policy.get_or_insert_with(|| "File".into());
    if c.image_pull_policy.as_deref().unwrap_or("").is_empty() {
        let image = c.image.as_deref().unwrap_or("");
        let name = image.rsplit('/').next().unwrap_or("");
        let latest = !name.contains('@') && (!name.contains(':') || name.ends_with(":latest"));
        c.image_pull_policy = Some(if latest { "Always" } else { "IfNotPresent" }.into());
    }
    for p in c.ports.iter_mut().flatten() {
        p.protocol.get_or_insert_with(|| "TCP".into());
    }
    for p in [&mut c.liveness_probe, &mut c.readiness_probe, &mut c.startup_probe].into_iter().flatten() {
        probe(p);
    }
    let r = c.resources.get_or_insert_default();
    // What is limited and not asked for is asked for as much.
    if let Some(limits) = r.limits.clone() {
        let requests = r.requests.get_or_insert_default();
        for (k, v) in limits {
            requests.entry(k).or_insert(v);
        }
    }
}

fn volume(v: &mut Volume) {
    const MODE: i32 = 0o644;
    if let Some(s) = &mut v.secret {
        s.default_mode.get_or_insert(MODE);
    }
    if let Some(c) = &mut v.config_map {
        c.default_mode.get_or_insert(MODE);
    }
    if let Some(d) = &mut v.downward_api {
        d.default_mode.get_or_insert(MODE);
    }
    if let Some(p) = &mut v.projected {
        p.default_mode.get_or_insert(MODE);
    }
    if let Some(h) = &mut v.host_path {
        h.type_.get_or_insert_default();
    }
}

/// Fills in what is missing.
pub fn apply(pod: &mut Pod) {
    let spec = pod.spec.get_or_insert_default();
    spec.restart_policy.get_or_insert_with(|| "Always".into());
    spec.dns_policy.get_or_insert_with(|| "ClusterFirst".into());
    spec.scheduler_name.get_or_insert_with(|| "default-scheduler".into());
    spec.termination_grace_period_seconds.get_or_insert(30);
    spec.enable_service_links.get_or_insert(true);
    spec.security_context.get_or_insert_default();
    let host_network = spec.host_network == Some(true);
    for c in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
        container(c);
        for p in c.ports.iter_mut().flatten().filter(|_| host_network) {
            if p.host_port.unwrap_or(0) == 0 {
                p.host_port = Some(p.container_port);
            }
        }
    }
    spec.volumes.iter_mut().flatten().for_each(volume);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_short_pod_becomes_a_whole_one() {
        let mut pod: Pod = serde_json::from_value(json!({"spec": {"hostNetwork": true, "containers": [
            {"name": "c", "image": "r:5000/a", "ports": [{"containerPort": 80}],
             "resources": {"limits": {"cpu": "1"}}, "livenessProbe": {"httpGet": {"port": 80}}}]}}))
        .unwrap();
        apply(&mut pod);
        let spec = pod.spec.unwrap();
        let c = &spec.containers[0];
        assert_eq!(c.image_pull_policy.as_deref(), Some("Always"));
        assert_eq!(c.ports.as_ref().unwrap()[0].host_port, Some(80));
        assert_eq!(c.liveness_probe.as_ref().unwrap().http_get.as_ref().unwrap().path.as_deref(), Some("/"));
        assert_eq!(c.resources.as_ref().unwrap().requests.as_ref().unwrap()["cpu"].0, "1");
        assert_eq!(spec.termination_grace_period_seconds, Some(30));
    }
}
