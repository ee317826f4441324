//! `NodeUnschedulable`: cordoned nodes take only pods that tolerate it.

use k8s_openapi::api::core::v1::Taint;

use crate::cache::Cluster;
use crate::framework::{Filter, FilterPlugin, Status};
use crate::types::{NodeInfo, PodInfo, tolerated};

/// See the module.
#[derive(Debug, Clone, Copy)]
pub struct NodeUnschedulable;

impl FilterPlugin for NodeUnschedulable {
    fn name(&self) -> &'static str {
        "NodeUnschedulable"
    }

    fn pre_filter(&self, pod: &PodInfo, _: &Cluster) -> Result<Option<Box<dyn Filter>>, Status> {
        let taint = Taint {
            key: "node.kubernetes.io/unschedulable".into(),
            effect: "NoSchedule".into(),
            ..Taint::default()
        };
        Ok((!tolerated(pod.tolerations(), &taint)).then(|| Box::new(NodeUnschedulable) as Box<dyn Filter>))
    }
}

impl Filter for NodeUnschedulable {
    fn filter(&self, _: &PodInfo, node: &NodeInfo, _: &Cluster) -> Result<(), Status> {
        match node.node.as_ref().and_then(|n| n.spec.as_ref()?.unschedulable) {
            Some(true) => Err(Status::unresolvable("node(s) were unschedulable")),
            _ => Ok(()),
        }
    }

    fn copy(&self) -> Box<dyn Filter> {
        Box::new(*self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{cluster, node, pod, verdicts};
    use serde_json::json;

    #[test]
    fn cordoned_nodes_take_only_pods_that_tolerate_it() {
        let c = cluster([node("a", json!({"spec": {"unschedulable": true}})), node("b", json!({}))], []);
        assert_eq!(verdicts(&NodeUnschedulable, &pod(json!({})), &c), ["node(s) were unschedulable", "ok"]);
        let tolerant = pod(
            json!({"spec": {"tolerations": [{"key": "node.kubernetes.io/unschedulable", "operator": "Exists"}]}}),
        );
        assert_eq!(verdicts(&NodeUnschedulable, &tolerant, &c), ["ok", "ok"]);
    }
}
