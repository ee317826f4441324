//! Mirror pods: how the API server shows pods that come from files.

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

use super::registry::mirrors;
use crate::api::ApiError;
use crate::kubelet::Kubelet;
use crate::pod::{CONFIG_HASH, CONFIG_MIRROR, PodExt};

/// The mirror pod of a static pod, owned by its node.
pub(crate) fn mirror_pod(pod: &Pod, node: &str, node_uid: &str) -> Pod {
    let mut mirror = pod.clone();
    mirror.metadata.uid = None;
    mirror.metadata.resource_version = None;
    let hash = pod.annotation(CONFIG_HASH).unwrap_or_default().to_string();
    mirror.metadata.annotations.get_or_insert_default().insert(CONFIG_MIRROR.into(), hash);
    mirror.metadata.owner_references = Some(vec![OwnerReference {
        api_version: "v1".into(),
        kind: "Node".into(),
        name: node.into(),
        uid: node_uid.into(),
        controller: Some(true),
        block_owner_deletion: None,
    }]);
    mirror.status = None;
    mirror
}

impl Kubelet {
    /// Makes a static pod's mirror pod where there is none, or a new one where the old one shows something else.
    pub(crate) async fn ensure_mirror(&self, pod: &Pod) {
        if let Some(mirror) = self.registry.mirror_of(pod) {
            if !mirror.deleting() && mirrors(&mirror, pod) {
                return;
            }
            self.delete_mirror(&mirror).await;
        }
        let node = self.node.get();
        let Some(node_uid) = node.metadata.uid.as_deref().filter(|u| !u.is_empty()) else {
            // The node is not registered yet; the pod runs all the same.
            return;
        };
        match self.api.create(&mirror_pod(pod, &self.config.node_name, node_uid)).await {
            Ok(made) => self.registry.set(std::sync::Arc::new(made)),
            Err(ApiError::Conflict(_)) => {}
            Err(e) => tracing::warn!(pod = pod.described(), "mirror pod not created: {e}"),
        }
        self.status.retry(pod.uid());
    }

    async fn delete_mirror(&self, mirror: &Pod) {
        match self.api.delete(mirror.namespace(), mirror.name(), mirror.uid()).await {
            Ok(()) | Err(ApiError::NotFound | ApiError::Conflict(_)) => self.registry.remove(mirror),
            Err(e) => tracing::warn!(pod = mirror.described(), "mirror pod not deleted: {e}"),
        }
    }

    /// Removes the mirror pod of a static pod that is gone, unless another of that name took its place.
    pub(crate) async fn remove_mirror(&self, pod: &Pod) {
        let Some(mirror) = self.registry.mirror_of(pod) else { return };
        if mirrors(&mirror, pod) || self.registry.static_of(&mirror).is_none() {
            self.delete_mirror(&mirror).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_mirror_pod_names_its_hash_and_its_node() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p", "uid": "h",
            "annotations": {"kubernetes.io/config.hash": "h", "kubernetes.io/config.source": "file"}}}))
        .unwrap();
        let m = mirror_pod(&pod, "node01", "n-uid");
        assert!(m.is_mirror() && mirrors(&m, &pod));
        assert_eq!(m.metadata.uid, None);
        assert_eq!(m.metadata.owner_references.unwrap()[0].uid, "n-uid");
    }
}
