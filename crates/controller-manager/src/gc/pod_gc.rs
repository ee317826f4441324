//! The pod garbage collector: removes pods of nodes that are gone, old pods that have ended, and pods that were
//! deleted before they got a node.
//!
//! <https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/#pod-garbage-collection>

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, Client};
use pilothouse_client::{Informer, key_of};
use tokio::time::Instant;

use crate::context::Context;
use crate::control::{has_code, is_terminal, now};

const PERIOD: Duration = Duration::from_secs(20);
/// How long a node must have been missing before its pods go.
const QUARANTINE: Duration = Duration::from_secs(40);

struct Collector {
    client: Client,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    threshold: i64,
    server_minor: u32,
    missing: HashMap<String, Instant>,
}

/// Starts the controller.
pub async fn start(context: Context) -> anyhow::Result<()> {
    let mut collector = Collector {
        client: context.client.clone(),
        pods: context.informer::<Pod>(),
        nodes: context.informer::<Node>(),
        threshold: context.config.terminated_pod_gc_threshold,
        server_minor: context.server_minor,
        missing: HashMap::new(),
    };
    let stop = context.stop.clone();
    tokio::spawn(async move {
        collector.pods.wait_synced().await;
        collector.nodes.wait_synced().await;
        let mut tick = tokio::time::interval(PERIOD);
        loop {
            tokio::select! { _ = stop.wait() => return, _ = tick.tick() => {} }
            collector.collect().await;
        }
    });
    Ok(())
}

impl Collector {
    async fn collect(&mut self) {
        let pods = self.pods.list();
        for pod in surplus(&pods, self.threshold) {
            self.delete(&pod, None).await;
        }
        for pod in self.orphans(&pods).await {
            self.delete(&pod, Some("PodGC: node no longer exists")).await;
        }
        for pod in pods.iter().filter(|p| p.metadata.deletion_timestamp.is_some() && node_name(p).is_none()) {
            self.delete(pod, None).await;
        }
    }

    /// The pods whose node has been missing for long enough, and is missing on the server too.
    async fn orphans(&mut self, pods: &[Arc<Pod>]) -> Vec<Arc<Pod>> {
        let exists = |n: &str| self.nodes.get(n).is_some();
        let now = Instant::now();
        let ripe =
            ripen(&mut self.missing, pods.iter().filter_map(|p| node_name(p)).filter(|n| !exists(n)), now);
        let api: Api<Node> = Api::all(self.client.clone());
        let mut gone = BTreeSet::new();
        for node in ripe {
            match api.get_metadata_opt(&node).await {
                Ok(None) => {
                    gone.insert(node);
                }
                Ok(Some(_)) => {
                    self.missing.remove(&node);
                }
                Err(e) => tracing::debug!(node, "is the node gone? {e}"),
            }
        }
        pods.iter().filter(|p| node_name(p).is_some_and(|n| gone.contains(n))).cloned().collect()
    }

    async fn delete(&self, pod: &Pod, disruption: Option<&str>) {
        let key = key_of(pod);
        let (Some(namespace), Some(name)) = (pod.metadata.namespace.as_deref(), pod.metadata.name.as_deref())
        else {
            return;
        };
        tracing::info!(pod = key, "pod garbage collector: deleting");
        let api: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        if let (Some(text), true) = (disruption, self.server_minor >= 26 && !is_terminal(pod)) {
            let patch = serde_json::json!({"metadata": {"uid": pod.metadata.uid}, "status": {
                "phase": "Failed",
                "conditions": [{"type": "DisruptionTarget", "status": "True", "reason": "DeletionByPodGC",
                    "message": text, "lastTransitionTime": now().to_string()}],
            }});
            if let Err(e) = api.patch_status(name, &PatchParams::default(), &Patch::Strategic(patch)).await {
                tracing::debug!(pod = key, "marking failed: {e}");
            }
        }
        let params = DeleteParams {
            preconditions: Some(Preconditions { uid: pod.metadata.uid.clone(), resource_version: None }),
            ..DeleteParams::default().grace_period(0)
        };
        match api.delete(name, &params).await {
            Ok(_) => {}
            Err(e) if has_code(&e, 404) || has_code(&e, 409) => {}
            Err(e) => tracing::warn!(pod = key, "pod garbage collector: {e}"),
        }
    }
}

fn node_name(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).filter(|n| !n.is_empty())
}

/// The oldest ended pods over the threshold; 0 keeps all.
fn surplus(pods: &[Arc<Pod>], threshold: i64) -> Vec<Arc<Pod>> {
    let Ok(threshold @ 1..) = usize::try_from(threshold) else { return Vec::new() };
    let mut ended: Vec<Arc<Pod>> = pods.iter().filter(|p| is_terminal(p)).cloned().collect();
    let surplus = ended.len().saturating_sub(threshold);
    let age = |p: &Arc<Pod>| (p.metadata.creation_timestamp.as_ref().map(|t| t.0), p.metadata.name.clone());
    ended.sort_by_key(age);
    ended.truncate(surplus);
    ended
}

/// Notes which nodes are missing since when; those that have been for [`QUARANTINE`].
fn ripen<'a>(
    missing: &mut HashMap<String, Instant>,
    names: impl Iterator<Item = &'a str>,
    now: Instant,
) -> Vec<String> {
    let names: BTreeSet<&str> = names.collect();
    missing.retain(|n, _| names.contains(n.as_str()));
    for name in &names {
        missing.entry((*name).to_string()).or_insert(now);
    }
    let mut ripe: Vec<String> = missing
        .iter()
        .filter(|(_, since)| now.duration_since(**since) >= QUARANTINE)
        .map(|(n, _)| n.clone())
        .collect();
    ripe.sort();
    ripe
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_oldest_ended_pods_go() {
        let pod = |name: &str, phase: &str, created: &str| -> Arc<Pod> {
            Arc::new(
                serde_json::from_value(json!({"metadata": {"name": name, "creationTimestamp": created},
                    "status": {"phase": phase}}))
                .unwrap(),
            )
        };
        let pods = [
            pod("new", "Succeeded", "2024-01-03T00:00:00Z"),
            pod("old", "Failed", "2024-01-01T00:00:00Z"),
            pod("mid", "Succeeded", "2024-01-02T00:00:00Z"),
            pod("runs", "Running", "2023-01-01T00:00:00Z"),
        ];
        let names =
            |n| surplus(&pods, n).iter().map(|p| p.metadata.name.clone().unwrap()).collect::<Vec<_>>();
        assert_eq!(names(1), ["old", "mid"]);
        assert!(names(3).is_empty());
        assert!(names(0).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_is_missing_for_a_while_first() {
        let mut missing = HashMap::new();
        assert!(ripen(&mut missing, ["a"].into_iter(), Instant::now()).is_empty());
        tokio::time::advance(Duration::from_secs(39)).await;
        assert!(ripen(&mut missing, ["a", "b"].into_iter(), Instant::now()).is_empty());
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(ripen(&mut missing, ["a", "b"].into_iter(), Instant::now()), ["a"]);
        assert!(ripen(&mut missing, std::iter::empty(), Instant::now()).is_empty());
        assert!(missing.is_empty());
    }
}
