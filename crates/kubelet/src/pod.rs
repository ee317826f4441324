//! Small questions about a pod.

use std::borrow::Cow;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, EphemeralContainer, ObjectReference, Pod, PodSpec, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// Where a static pod came from: `file`, or `api` for all others.
pub const CONFIG_SOURCE: &str = "kubernetes.io/config.source";
/// When the kubelet first saw it.
pub const CONFIG_SEEN: &str = "kubernetes.io/config.seen";
/// Hash of a static pod's manifest, which is its uid too.
pub const CONFIG_HASH: &str = "kubernetes.io/config.hash";
/// On a mirror pod: the hash of the static pod it mirrors.
pub const CONFIG_MIRROR: &str = "kubernetes.io/config.mirror";

/// Pods from this priority on are critical to the system.
pub const SYSTEM_CRITICAL_PRIORITY: i32 = 2_000_000_000;

/// Now, in whole seconds as Kubernetes' times are.
pub fn now() -> Time {
    time(Timestamp::now().as_second())
}

/// A time from seconds since 1970.
pub fn time(seconds: i64) -> Time {
    Time(Timestamp::from_second(seconds).unwrap_or(Timestamp::UNIX_EPOCH))
}

/// A time from nanoseconds since 1970, cut to seconds.
pub fn time_from_nanos(nanos: i64) -> Time {
    time(nanos.div_euclid(1_000_000_000))
}

/// The questions.
pub trait PodExt {
    /// `metadata.uid`; empty where there is none.
    fn uid(&self) -> &str;
    /// `metadata.name`.
    fn name(&self) -> &str;
    /// `metadata.namespace`.
    fn namespace(&self) -> &str;
    /// `name_namespace`, by which a mirror pod finds its static pod.
    fn full_name(&self) -> String;
    /// `name_namespace(uid)`, as messages name pods.
    fn described(&self) -> String;
    /// The spec; that of an empty pod where there is none.
    fn pod_spec(&self) -> &PodSpec;
    /// The status as the API server has it.
    fn pod_status(&self) -> &PodStatus;
    /// An annotation.
    fn annotation(&self, key: &str) -> Option<&str>;
    /// Whether it is the API server's image of a static pod.
    fn is_mirror(&self) -> bool;
    /// Whether it comes from a file.
    fn is_static(&self) -> bool;
    /// Whether it uses the node's network.
    fn host_network(&self) -> bool;
    /// `Always`, `OnFailure` or `Never`.
    fn restart_policy(&self) -> &str;
    /// Whether it is to be deleted.
    fn deleting(&self) -> bool;
    /// Whether the API server has it as `Succeeded` or `Failed`.
    fn phase_is_terminal(&self) -> bool;
    /// The init containers.
    fn init_containers(&self) -> &[Container];
    /// A container or init container by name.
    fn container(&self, name: &str) -> Option<&Container>;
    /// The ephemeral containers.
    fn ephemeral_containers(&self) -> &[EphemeralContainer];
    /// A container of any kind by name, an ephemeral one as if it were a plain one.
    fn any_container(&self, name: &str) -> Option<Cow<'_, Container>>;
    /// Whether it is critical to the system: static, a mirror, or of a system priority.
    fn is_critical(&self) -> bool;
    /// Whether a container is privileged.
    fn has_privileged_container(&self) -> bool;
    /// A reference for events.
    fn reference(&self) -> ObjectReference;
    /// A reference to one of its containers, for events.
    fn container_reference(&self, container: &str) -> ObjectReference;
}

static EMPTY_SPEC: std::sync::LazyLock<PodSpec> = std::sync::LazyLock::new(PodSpec::default);
static EMPTY_STATUS: std::sync::LazyLock<PodStatus> = std::sync::LazyLock::new(PodStatus::default);

impl PodExt for Pod {
    fn uid(&self) -> &str {
        self.metadata.uid.as_deref().unwrap_or("")
    }
    fn name(&self) -> &str {
        self.metadata.name.as_deref().unwrap_or("")
    }
    fn namespace(&self) -> &str {
        self.metadata.namespace.as_deref().unwrap_or("")
    }
    fn full_name(&self) -> String {
        format!("{}_{}", self.name(), self.namespace())
    }
    fn described(&self) -> String {
        format!("{}_{}({})", self.name(), self.namespace(), self.uid())
    }
    fn pod_spec(&self) -> &PodSpec {
        self.spec.as_ref().unwrap_or(&EMPTY_SPEC)
    }
    fn pod_status(&self) -> &PodStatus {
        self.status.as_ref().unwrap_or(&EMPTY_STATUS)
    }
    fn annotation(&self, key: &str) -> Option<&str> {
        self.metadata.annotations.as_ref()?.get(key).map(String::as_str)
    }
    fn is_mirror(&self) -> bool {
        self.annotation(CONFIG_MIRROR).is_some()
    }
    fn is_static(&self) -> bool {
        !self.is_mirror() && self.annotation(CONFIG_SOURCE).is_some_and(|s| s != "api")
    }
    fn host_network(&self) -> bool {
        self.pod_spec().host_network.unwrap_or(false)
    }
    fn restart_policy(&self) -> &str {
        self.pod_spec().restart_policy.as_deref().unwrap_or("Always")
    }
    fn deleting(&self) -> bool {
        self.metadata.deletion_timestamp.is_some()
    }
    fn phase_is_terminal(&self) -> bool {
        matches!(self.pod_status().phase.as_deref(), Some("Succeeded" | "Failed"))
    }
    fn init_containers(&self) -> &[Container] {
        self.pod_spec().init_containers.as_deref().unwrap_or(&[])
    }
    fn container(&self, name: &str) -> Option<&Container> {
        self.pod_spec().containers.iter().chain(self.init_containers()).find(|c| c.name == name)
    }
    fn ephemeral_containers(&self) -> &[EphemeralContainer] {
        self.pod_spec().ephemeral_containers.as_deref().unwrap_or(&[])
    }
    fn any_container(&self, name: &str) -> Option<Cow<'_, Container>> {
        let ephemeral = || self.ephemeral_containers().iter().find(|c| c.name == name);
        self.container(name).map(Cow::Borrowed).or_else(|| ephemeral().map(|c| Cow::Owned(as_container(c))))
    }
    fn is_critical(&self) -> bool {
        self.is_static()
            || self.is_mirror()
            || self.pod_spec().priority.is_some_and(|p| p >= SYSTEM_CRITICAL_PRIORITY)
    }
    fn has_privileged_container(&self) -> bool {
        self.pod_spec()
            .containers
            .iter()
            .chain(self.init_containers())
            .any(|c| c.security_context.as_ref().and_then(|s| s.privileged).unwrap_or(false))
    }
    fn reference(&self) -> ObjectReference {
        ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            namespace: self.metadata.namespace.clone(),
            name: self.metadata.name.clone(),
            uid: self.metadata.uid.clone(),
            resource_version: self.metadata.resource_version.clone(),
            field_path: None,
        }
    }
    fn container_reference(&self, container: &str) -> ObjectReference {
        let list = if self.init_containers().iter().any(|c| c.name == container) {
            "initContainers"
        } else if self.pod_spec().containers.iter().any(|c| c.name == container) {
            "containers"
        } else {
            "ephemeralContainers"
        };
        ObjectReference { field_path: Some(format!("spec.{list}{{{container}}}")), ..self.reference() }
    }
}

/// An ephemeral container as the plain container that it is to the runtime.
pub fn as_container(c: &EphemeralContainer) -> Container {
    let c = c.clone();
    Container {
        args: c.args,
        command: c.command,
        env: c.env,
        env_from: c.env_from,
        image: c.image,
        image_pull_policy: c.image_pull_policy,
        lifecycle: c.lifecycle,
        liveness_probe: c.liveness_probe,
        name: c.name,
        ports: c.ports,
        readiness_probe: c.readiness_probe,
        resize_policy: c.resize_policy,
        resources: c.resources,
        restart_policy: c.restart_policy,
        restart_policy_rules: c.restart_policy_rules,
        security_context: c.security_context,
        startup_probe: c.startup_probe,
        stdin: c.stdin,
        stdin_once: c.stdin_once,
        termination_message_path: c.termination_message_path,
        termination_message_policy: c.termination_message_policy,
        tty: c.tty,
        volume_devices: c.volume_devices,
        volume_mounts: c.volume_mounts,
        working_dir: c.working_dir,
    }
}

/// The last few bytes of `text` at a character's border, at most `max` of them.
pub fn tail(text: &str, max: usize) -> &str {
    let mut start = text.len().saturating_sub(max);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    &text[start..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_are_referred_to_by_the_list_they_are_in() {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {"initContainers": [{"name": "i"}], "containers": [{"name": "c"}]}}))
        .unwrap();
        let path = |c| pod.container_reference(c).field_path.unwrap();
        assert_eq!(path("i"), "spec.initContainers{i}");
        assert_eq!(path("c"), "spec.containers{c}");
        assert_eq!(pod.described(), "p_n(u)");
        assert_eq!(tail("aä", 2), "ä");
        assert_eq!(tail("aä", 1), "");
    }
}
