//! `NodePreferAvoidPods`: nodes may ask, in an annotation, to be spared the pods of some controllers.

use serde_json::Value;

use crate::cache::Cluster;
use crate::framework::{MAX_SCORE, Score, ScorePlugin};
use crate::types::{NodeInfo, PodInfo};

const ANNOTATION: &str = "scheduler.alpha.kubernetes.io/preferAvoidPods";

/// See the module.
#[derive(Debug, Clone, Copy)]
pub struct NodePreferAvoidPods;

impl ScorePlugin for NodePreferAvoidPods {
    fn name(&self) -> &'static str {
        "NodePreferAvoidPods"
    }

    fn pre_score(&self, pod: &PodInfo, nodes: &[&NodeInfo], _: &Cluster) -> Option<Box<dyn Score>> {
        let owners = pod.pod.metadata.owner_references.iter().flatten();
        let owner = owners
            .into_iter()
            .find(|o| o.controller == Some(true))
            .filter(|o| o.kind == "ReplicationController" || o.kind == "ReplicaSet")?;
        let any = nodes.iter().any(|n| annotation(n).is_some());
        any.then(|| Box::new(Owner { kind: owner.kind.clone(), uid: owner.uid.clone() }) as Box<dyn Score>)
    }
}

fn annotation(node: &NodeInfo) -> Option<&String> {
    node.node.as_ref()?.metadata.annotations.as_ref()?.get(ANNOTATION)
}

struct Owner {
    kind: String,
    uid: String,
}

impl Score for Owner {
    fn score(&self, _: &PodInfo, node: &NodeInfo, _: &Cluster) -> i64 {
        let avoids = annotation(node).and_then(|a| serde_json::from_str::<Value>(a).ok());
        let avoids = avoids.as_ref().and_then(|v| v.get("preferAvoidPods")?.as_array());
        let is_owner = |entry: &Value| {
            let c = entry.pointer("/podSignature/podController");
            c.is_some_and(|c| c["kind"] == self.kind.as_str() && c["uid"] == self.uid.as_str())
        };
        if avoids.into_iter().flatten().any(is_owner) { 0 } else { MAX_SCORE }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{cluster, node, pod, scores};
    use serde_json::json;

    #[test]
    fn only_the_named_controller_is_avoided() {
        let avoid = json!({"preferAvoidPods": [{"podSignature": {"podController": {"kind": "ReplicaSet", "uid": "u"}}}]});
        let c = cluster(
            [
                node("a", json!({"metadata": {"annotations": {ANNOTATION: avoid.to_string()}}})),
                node("b", json!({})),
            ],
            [],
        );
        let of = |uid: &str| {
            pod(
                json!({"metadata": {"ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": uid, "controller": true}]}}),
            )
        };
        assert_eq!(scores(&NodePreferAvoidPods, &of("u"), &c), [0, 100]);
        assert_eq!(scores(&NodePreferAvoidPods, &of("v"), &c), [100, 100]);
    }
}
