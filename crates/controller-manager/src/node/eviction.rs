//! Evicts pods from nodes with `NoExecute` taints that they do not tolerate, or not for longer.
//!
//! <https://kubernetes.io/docs/concepts/scheduling-eviction/taint-and-toleration/#taint-based-evictions>

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, ObjectReference, Pod, Taint, Toleration};
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::{Api, Client};
use parking_lot::Mutex;
use pilothouse_client::{Change, EventRecorder, Informer, Queue, key_of};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::{index_by_node, pods_on, taints};
use crate::context::Context;
use crate::control::{has_code, now, tolerates};

/// How long a pod may stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stay {
    /// As long as it likes.
    Forever,
    /// So long from when its node was tainted.
    For(Duration),
}

/// How long a pod with these tolerations may stay on a node with these taints.
fn stay(taints: &[Taint], tolerations: &[Toleration]) -> Stay {
    let mut least: Option<Duration> = None;
    for taint in taints {
        let Some(t) = tolerations.iter().find(|t| tolerates(t, taint)) else {
            return Stay::For(Duration::ZERO);
        };
        if let Some(seconds) = t.toleration_seconds {
            let d = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
            least = Some(least.map_or(d, |l| l.min(d)));
        }
    }
    least.map_or(Stay::Forever, Stay::For)
}

struct Scheduled {
    since: Instant,
    at: Instant,
    task: JoinHandle<()>,
}

struct Manager {
    client: Client,
    recorder: EventRecorder,
    server_minor: u32,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    scheduled: Mutex<HashMap<String, Scheduled>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    Node(String),
    Pod(String),
}

/// Starts watching; it is part of the node life cycle controller.
pub fn start(context: &Context) {
    let manager = Arc::new(Manager {
        client: context.client.clone(),
        recorder: context.recorder("taint-controller"),
        server_minor: context.server_minor,
        pods: context.informer::<Pod>(),
        nodes: context.informer::<Node>(),
        scheduled: Mutex::default(),
    });
    index_by_node(&manager.pods);
    let queue: Queue<Key> = Queue::new();
    let q = queue.clone();
    manager.nodes.on_change(move |c| {
        let same = matches!(c, Change::Updated(old, new) if no_execute(old) == no_execute(new));
        let none = matches!(c, Change::Added(n) if no_execute(n).is_empty());
        if !same && !none {
            q.add(Key::Node(key_of(&**c.object())));
        }
    });
    let q = queue.clone();
    manager.pods.on_change(move |c| {
        let what = |p: &Pod| p.spec.as_ref().map(|s| (s.node_name.clone(), s.tolerations.clone()));
        if !matches!(c, Change::Updated(old, new) if what(old) == what(new)) {
            q.add(Key::Pod(key_of(&**c.object())));
        }
    });
    let stop = context.stop.clone();
    tokio::spawn(async move {
        manager.pods.wait_synced().await;
        manager.nodes.wait_synced().await;
        queue.run("taint-eviction", 4, stop, move |key| {
            let manager = manager.clone();
            async move {
                match key {
                    Key::Node(name) => manager.look_at_node(&name),
                    Key::Pod(key) => manager.look_at_pod(&key),
                }
                Ok::<_, std::convert::Infallible>(None)
            }
        });
    });
}

fn no_execute(node: &Node) -> Vec<Taint> {
    taints::of(node).iter().filter(|t| t.effect == "NoExecute").cloned().collect()
}

fn reference(key: &str) -> ObjectReference {
    let (namespace, name) = key.split_once('/').unwrap_or_default();
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Pod".into()),
        namespace: Some(namespace.into()),
        name: Some(name.into()),
        ..Default::default()
    }
}

impl Manager {
    fn look_at_node(self: &Arc<Self>, name: &str) {
        let Some(node) = self.nodes.get(name) else { return };
        let taints = no_execute(&node);
        for pod in pods_on(&self.pods, name) {
            self.consider(&pod, &taints);
        }
    }

    fn look_at_pod(self: &Arc<Self>, key: &str) {
        let Some(pod) = self.pods.get(key) else {
            self.cancel(key);
            return;
        };
        let node = pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).and_then(|n| self.nodes.get(n));
        let taints = node.map(|n| no_execute(&n)).unwrap_or_default();
        if !taints.is_empty() {
            self.consider(&pod, &taints);
        }
    }

    fn consider(self: &Arc<Self>, pod: &Pod, taints: &[Taint]) {
        let key = key_of(pod);
        if taints.is_empty() {
            self.cancel(&key);
            return;
        }
        let tolerations = pod.spec.as_ref().and_then(|s| s.tolerations.as_deref()).unwrap_or_default();
        let stay = match stay(taints, tolerations) {
            Stay::Forever => return,
            Stay::For(d) => d,
        };
        let (mut since, mut at) = (Instant::now(), Instant::now() + stay);
        if stay.is_zero() {
            self.cancel(&key);
        } else if let Some((first, due)) = self.scheduled.lock().get(&key).map(|s| (s.since, s.at)) {
            // The time counts from when the pod was first found to have to go.
            since = first;
            if first + stay >= due {
                return;
            }
            at = first + stay;
            self.cancel(&key);
        }
        let (me, k) = (self.clone(), key.clone());
        let task = tokio::spawn(async move {
            tokio::time::sleep_until(at).await;
            me.scheduled.lock().remove(&k);
            me.evict(&k).await;
        });
        let mut scheduled = self.scheduled.lock();
        // The task may have ended before it could be noted.
        if !task.is_finished() {
            scheduled.insert(key, Scheduled { since, at, task });
        }
    }

    /// Calls an eviction off, with an event, where one is scheduled.
    fn cancel(&self, key: &str) {
        let scheduled = self.scheduled.lock().remove(key);
        if let Some(s) = scheduled.filter(|s| !s.task.is_finished()) {
            s.task.abort();
            let text = format!("Cancelling deletion of Pod {key}");
            self.recorder.normal(&reference(key), "TaintManagerEviction", text);
        }
    }

    async fn evict(&self, key: &str) {
        let Some((namespace, name)) = key.split_once('/') else { return };
        self.recorder.normal(
            &reference(key),
            "TaintManagerEviction",
            format!("Marking for deletion Pod {key}"),
        );
        let api: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        if self.server_minor >= 26 {
            let patch = serde_json::json!({"status": {"conditions": [{
                "type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager",
                "message": "Taint manager: deleting due to NoExecute taint",
                "lastTransitionTime": now().to_string(),
            }]}});
            if let Err(e) = api.patch_status(name, &PatchParams::default(), &Patch::Strategic(patch)).await {
                tracing::debug!(pod = key, "marking failed: {e}");
            }
        }
        for _ in 0..5 {
            match api.delete(name, &DeleteParams::default()).await {
                Ok(_) => return,
                Err(e) if has_code(&e, 404) => return,
                Err(e) => tracing::debug!(pod = key, "eviction failed: {e}"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        tracing::warn!(pod = key, "could not evict the pod");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_shortest_toleration_counts() {
        let taints = [taints::taint("a", "NoExecute"), taints::taint("b", "NoExecute")];
        let t = |v: serde_json::Value| serde_json::from_value::<Vec<Toleration>>(v).unwrap();
        assert_eq!(stay(&taints, &[]), Stay::For(Duration::ZERO));
        let one = t(json!([{"key": "a", "operator": "Exists"}]));
        assert_eq!(stay(&taints, &one), Stay::For(Duration::ZERO));
        let both = t(json!([{"key": "a", "operator": "Exists", "tolerationSeconds": 9},
            {"key": "b", "operator": "Exists", "tolerationSeconds": 4}]));
        assert_eq!(stay(&taints, &both), Stay::For(Duration::from_secs(4)));
        assert_eq!(stay(&taints, &t(json!([{"operator": "Exists"}]))), Stay::Forever);
        assert_eq!(stay(&[], &[]), Stay::Forever);
    }
}
