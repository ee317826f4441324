//! The labels and annotations that the kubelet puts on sandboxes and containers, and by which it (or the original
//! kubelet, put in its place) finds them again. Names are Kubernetes'.

use std::collections::HashMap;

use k8s_openapi::api::core::v1::{Container, Pod};

use super::cri;
use crate::pod::PodExt;

/// Pod's name.
pub const POD_NAME: &str = "io.kubernetes.pod.name";
/// Pod's namespace.
pub const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
/// Pod's uid.
pub const POD_UID: &str = "io.kubernetes.pod.uid";
/// Container's name.
pub const CONTAINER_NAME: &str = "io.kubernetes.container.name";

const HASH: &str = "io.kubernetes.container.hash";
const RESTART_COUNT: &str = "io.kubernetes.container.restartCount";
const MESSAGE_PATH: &str = "io.kubernetes.container.terminationMessagePath";
const MESSAGE_POLICY: &str = "io.kubernetes.container.terminationMessagePolicy";
const PRE_STOP: &str = "io.kubernetes.container.preStopHandler";
const PORTS: &str = "io.kubernetes.container.ports";
const DELETION_GRACE: &str = "io.kubernetes.pod.deletionGracePeriod";
const TERMINATION_GRACE: &str = "io.kubernetes.pod.terminationGracePeriod";
/// Our own mark: the hash is one that we made, so that a difference means a change of the spec. The original kubelet
/// hashes another text; a container it made is taken over as it is.
const OUR_HASH: &str = "pilothouse.io/container.hash";

/// Labels of a sandbox: the pod's own, and who it is.
pub fn sandbox_labels(pod: &Pod) -> HashMap<String, String> {
    let mut labels: HashMap<String, String> =
        pod.metadata.labels.clone().unwrap_or_default().into_iter().collect();
    labels.insert(POD_NAME.into(), pod.name().into());
    labels.insert(POD_NAMESPACE.into(), pod.namespace().into());
    labels.insert(POD_UID.into(), pod.uid().into());
    labels
}

/// Annotations of a sandbox: the pod's.
pub fn sandbox_annotations(pod: &Pod) -> HashMap<String, String> {
    pod.metadata.annotations.clone().unwrap_or_default().into_iter().collect()
}

/// Labels of a container.
pub fn container_labels(pod: &Pod, container: &Container) -> HashMap<String, String> {
    HashMap::from([
        (POD_NAME.into(), pod.name().into()),
        (POD_NAMESPACE.into(), pod.namespace().into()),
        (POD_UID.into(), pod.uid().into()),
        (CONTAINER_NAME.into(), container.name.clone()),
    ])
}

/// Annotations of a container: what must be known of it when its pod is gone from the API server.
pub fn container_annotations(
    pod: &Pod,
    container: &Container,
    restart_count: u32,
) -> HashMap<String, String> {
    let hash = format!("{:x}", hash(container));
    let mut a = HashMap::from([
        (HASH.into(), hash.clone()),
        (OUR_HASH.into(), hash),
        (RESTART_COUNT.into(), restart_count.to_string()),
        (MESSAGE_PATH.into(), container.termination_message_path.clone().unwrap_or_default()),
        (MESSAGE_POLICY.into(), container.termination_message_policy.clone().unwrap_or_default()),
    ]);
    if let Some(g) = pod.metadata.deletion_grace_period_seconds {
        a.insert(DELETION_GRACE.into(), g.to_string());
    }
    if let Some(g) = pod.pod_spec().termination_grace_period_seconds {
        a.insert(TERMINATION_GRACE.into(), g.to_string());
    }
    let pre_stop = container.lifecycle.as_ref().and_then(|l| l.pre_stop.as_ref());
    if let Some(text) = pre_stop.and_then(|h| serde_json::to_string(h).ok()) {
        a.insert(PRE_STOP.into(), text);
    }
    if let Some(text) =
        container.ports.as_ref().filter(|p| !p.is_empty()).and_then(|p| serde_json::to_string(p).ok())
    {
        a.insert(PORTS.into(), text);
    }
    a
}

/// A hash of a container's spec (FNV-1a, 32 bits, as Kubernetes'). Probes, lifecycle and all: any change restarts it.
pub fn hash(container: &Container) -> u32 {
    let text = serde_json::to_vec(container).unwrap_or_default();
    text.iter().fold(0x811c_9dc5, |h, b| (h ^ u32::from(*b)).wrapping_mul(0x0100_0193))
}

/// What a container's annotations say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Info {
    /// The spec's hash, where it is one of ours.
    pub hash: Option<u32>,
    /// How often it was started before.
    pub restart_count: i32,
    /// Where its termination message is, in the container.
    pub message_path: String,
    /// `File` or `FallbackToLogsOnError`.
    pub message_policy: String,
    /// Grace period, in seconds.
    pub grace: Option<i64>,
}

/// Reads a container's annotations.
pub fn info(annotations: &HashMap<String, String>) -> Info {
    let get = |k: &str| annotations.get(k).map(String::as_str).unwrap_or("");
    Info {
        hash: u32::from_str_radix(get(OUR_HASH), 16).ok(),
        restart_count: get(RESTART_COUNT).parse().unwrap_or(0),
        message_path: get(MESSAGE_PATH).into(),
        message_policy: get(MESSAGE_POLICY).into(),
        grace: get(DELETION_GRACE).parse().ok().or_else(|| get(TERMINATION_GRACE).parse().ok()),
    }
}

/// The `preStop` hook and the ports as they were when the container was made; for containers whose pod is gone.
pub fn restored_container(status: &cri::ContainerStatus) -> Container {
    let a = &status.annotations;
    let mut c = Container {
        name: status.labels.get(CONTAINER_NAME).cloned().unwrap_or_default(),
        ports: a.get(PORTS).and_then(|t| serde_json::from_str(t).ok()),
        ..Default::default()
    };
    if let Some(hook) = a.get(PRE_STOP).and_then(|t| serde_json::from_str(t).ok()) {
        c.lifecycle =
            Some(k8s_openapi::api::core::v1::Lifecycle { pre_stop: Some(hook), ..Default::default() });
    }
    c
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn annotations_are_read_back() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u", "labels": {"a": "b"}},
            "spec": {"terminationGracePeriodSeconds": 7, "containers": [{"name": "c", "image": "i",
                "terminationMessagePath": "/m", "terminationMessagePolicy": "File",
                "ports": [{"containerPort": 80}],
                "lifecycle": {"preStop": {"exec": {"command": ["x"]}}}}]}}))
        .unwrap();
        let c = &pod.pod_spec().containers[0];
        let a = container_annotations(&pod, c, 3);
        let i = info(&a);
        assert_eq!((i.restart_count, i.grace, i.message_path.as_str()), (3, Some(7), "/m"));
        assert_eq!(i.hash, Some(hash(c)));
        let status =
            cri::ContainerStatus { annotations: a, labels: container_labels(&pod, c), ..Default::default() };
        let back = restored_container(&status);
        assert_eq!(back.name, "c");
        assert_eq!(back.lifecycle, c.lifecycle);
        assert_eq!(back.ports, c.ports);
        assert_eq!(sandbox_labels(&pod)["a"], "b");
    }

    #[test]
    fn a_changed_spec_has_another_hash() {
        let mut c: Container = serde_json::from_value(json!({"name": "c", "image": "i"})).unwrap();
        let before = hash(&c);
        c.image = Some("j".into());
        assert_ne!(hash(&c), before);
    }
}
