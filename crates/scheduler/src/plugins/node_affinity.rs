//! `NodeAffinity`: node selectors and node affinity, required and preferred.

use crate::cache::Cluster;
use crate::framework::{Filter, FilterPlugin, Score, ScorePlugin, Status, default_normalize};
use crate::types::{NodeInfo, PodInfo};

/// See the module.
#[derive(Debug, Clone, Copy)]
pub struct NodeAffinity;

impl FilterPlugin for NodeAffinity {
    fn name(&self) -> &'static str {
        "NodeAffinity"
    }

    fn pre_filter(&self, pod: &PodInfo, _: &Cluster) -> Result<Option<Box<dyn Filter>>, Status> {
        let asks = !pod.node_selector.is_empty() || pod.node_affinity.is_some();
        Ok(asks.then(|| Box::new(NodeAffinity) as Box<dyn Filter>))
    }
}

impl Filter for NodeAffinity {
    fn filter(&self, pod: &PodInfo, node: &NodeInfo, _: &Cluster) -> Result<(), Status> {
        if pod.allows_node(node) {
            return Ok(());
        }
        Err(Status::unresolvable("node(s) didn't match Pod's node affinity"))
    }

    fn copy(&self) -> Box<dyn Filter> {
        Box::new(*self)
    }
}

impl ScorePlugin for NodeAffinity {
    fn name(&self) -> &'static str {
        "NodeAffinity"
    }

    fn pre_score(&self, pod: &PodInfo, _: &[&NodeInfo], _: &Cluster) -> Option<Box<dyn Score>> {
        (!pod.preferred_nodes.is_empty()).then(|| Box::new(NodeAffinity) as Box<dyn Score>)
    }
}

impl Score for NodeAffinity {
    fn score(&self, pod: &PodInfo, node: &NodeInfo, _: &Cluster) -> i64 {
        let fits = pod.preferred_nodes.iter().filter(|(_, t)| t.matches(&node.name, node.labels()));
        fits.map(|(weight, _)| weight).sum()
    }

    fn normalize(&self, _: &[&NodeInfo], scores: &mut [i64]) {
        default_normalize(scores, false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{cluster, node, pod, scores, verdicts};
    use serde_json::json;

    #[test]
    fn required_and_preferred() {
        let disk = |d: &str| json!({"metadata": {"labels": {"disk": d}}});
        let c = cluster([node("a", disk("ssd")), node("b", disk("hdd"))], []);
        let no = "node(s) didn't match Pod's node affinity";
        assert_eq!(verdicts(&NodeAffinity, &pod(json!({})), &c), ["ok", "ok"]);
        assert_eq!(
            verdicts(&NodeAffinity, &pod(json!({"spec": {"nodeSelector": {"disk": "ssd"}}})), &c),
            ["ok", no]
        );
        let term = |d: &str| json!({"matchExpressions": [{"key": "disk", "operator": "In", "values": [d]}]});
        let required =
            json!({"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term("hdd")]}});
        let p = pod(json!({"spec": {"affinity": {"nodeAffinity": required}}}));
        assert_eq!(verdicts(&NodeAffinity, &p, &c), [no, "ok"]);
        let preferred = json!({"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 20, "preference": term("ssd")}, {"weight": 80, "preference": term("hdd")}]});
        let p = pod(json!({"spec": {"affinity": {"nodeAffinity": preferred}}}));
        assert_eq!(scores(&NodeAffinity, &p, &c), [25, 100]);
    }
}
