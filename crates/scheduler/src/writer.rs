//! What the scheduler writes, behind a trait so that tests can look on.

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};

use crate::types::PodInfo;

/// Writes to the API server. Errors are texts for events and logs.
#[async_trait]
pub trait Writer: Send + Sync {
    /// Puts a pod on a node.
    async fn bind(&self, _pod: &PodInfo, _node: &str) -> Result<(), String> {
        Ok(())
    }

    /// Changes a pod's status by a strategic merge patch.
    async fn patch_status(&self, _pod: &PodInfo, _status: Value) -> Result<(), String> {
        Ok(())
    }

    /// Deletes a pod, with its own grace period.
    async fn delete(&self, _pod: &PodInfo) -> Result<(), String> {
        Ok(())
    }

    /// Replaces a volume.
    async fn update_volume(&self, _pv: PersistentVolume) -> Result<(), String> {
        Ok(())
    }

    /// Replaces a claim.
    async fn update_claim(&self, _claim: PersistentVolumeClaim) -> Result<(), String> {
        Ok(())
    }
}

/// The status patch that says why a pod has no node; `None` where the pod says it already. `nominated` is the node that
/// is being made free for it.
pub fn unschedulable_patch(pod: &Pod, reason: &str, message: &str, nominated: Option<&str>) -> Option<Value> {
    let status = pod.status.as_ref();
    let old = status.and_then(|s| s.conditions.iter().flatten().find(|c| c.type_ == "PodScheduled"));
    let told = old.is_some_and(|c| {
        c.status == "False" && c.reason.as_deref() == Some(reason) && c.message.as_deref() == Some(message)
    });
    let was_nominated = status.and_then(|s| s.nominated_node_name.as_deref()).filter(|n| !n.is_empty());
    if told && (nominated.is_none() || nominated == was_nominated) {
        return None;
    }
    let since = old.filter(|c| c.status == "False").and_then(|c| c.last_transition_time.clone());
    let since = since.map_or_else(Timestamp::now, |t| t.0);
    // Kubernetes' times have whole seconds.
    let since = Timestamp::from_second(since.as_second()).unwrap_or(since);
    let condition = json!({"type": "PodScheduled", "status": "False", "reason": reason, "message": message,
        "lastProbeTime": null, "lastTransitionTime": since.to_string()});
    let mut patch = json!({"conditions": [condition]});
    if let Some(node) = nominated {
        patch["nominatedNodeName"] = node.into();
    }
    Some(patch)
}

/// The real one.
pub struct KubeWriter(pub Client);

impl KubeWriter {
    fn pods(&self, pod: &PodInfo) -> Api<Pod> {
        Api::namespaced(self.0.clone(), &pod.namespace)
    }
}

fn text(e: kube::Error) -> String {
    match e {
        kube::Error::Api(status) => status.message.clone(),
        e => e.to_string(),
    }
}

#[async_trait]
impl Writer for KubeWriter {
    async fn bind(&self, pod: &PodInfo, node: &str) -> Result<(), String> {
        let binding = json!({"apiVersion": "v1", "kind": "Binding",
            "metadata": {"namespace": pod.namespace, "name": pod.name, "uid": pod.uid},
            "target": {"kind": "Node", "name": node}});
        let result: Result<Value, kube::Error> =
            self.pods(pod).create_subresource("binding", &pod.name, &PostParams::default(), &binding).await;
        result.map(|_| ()).map_err(text)
    }

    async fn patch_status(&self, pod: &PodInfo, status: Value) -> Result<(), String> {
        let patch = Patch::Strategic(json!({ "status": status }));
        self.pods(pod)
            .patch_status(&pod.name, &PatchParams::default(), &patch)
            .await
            .map(|_| ())
            .map_err(text)
    }

    async fn delete(&self, pod: &PodInfo) -> Result<(), String> {
        match self.pods(pod).delete(&pod.name, &DeleteParams::default()).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(e)) if e.code == 404 => Ok(()),
            Err(e) => Err(text(e)),
        }
    }

    async fn update_volume(&self, pv: PersistentVolume) -> Result<(), String> {
        let name = pv.metadata.name.clone().unwrap_or_default();
        let api: Api<PersistentVolume> = Api::all(self.0.clone());
        api.replace(&name, &PostParams::default(), &pv).await.map(|_| ()).map_err(text)
    }

    async fn update_claim(&self, claim: PersistentVolumeClaim) -> Result<(), String> {
        let (namespace, name) = (claim.metadata.namespace.clone(), claim.metadata.name.clone());
        let api: Api<PersistentVolumeClaim> = Api::namespaced(self.0.clone(), &namespace.unwrap_or_default());
        api.replace(&name.unwrap_or_default(), &PostParams::default(), &claim).await.map(|_| ()).map_err(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::pod_object;

    #[test]
    fn the_condition_is_written_when_it_changes() {
        let fresh = pod_object(json!({}));
        let patch = unschedulable_patch(&fresh, "Unschedulable", "m", Some("n")).unwrap();
        assert_eq!(patch["nominatedNodeName"], "n");
        let mut condition = patch["conditions"][0].clone();
        condition["lastTransitionTime"] = "2020-01-01T00:00:00Z".into();
        let told = pod_object(json!({"status": {"conditions": [condition], "nominatedNodeName": "n"}}));
        assert_eq!(unschedulable_patch(&told, "Unschedulable", "m", Some("n")), None);
        assert_eq!(unschedulable_patch(&told, "Unschedulable", "m", None), None);
        let patch = unschedulable_patch(&told, "Unschedulable", "other", None).unwrap();
        assert_eq!(patch["conditions"][0]["lastTransitionTime"], "2020-01-01T00:00:00Z");
        assert!(patch.get("nominatedNodeName").is_none());
    }
}
