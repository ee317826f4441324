//! `NodeResourcesFit`: what a pod asks for must be left on the node.

use std::borrow::Cow;

use crate::cache::Cluster;
use crate::framework::{Code, Filter, FilterPlugin, Status};
use crate::types::{NodeInfo, PodInfo};

/// See the module.
#[derive(Debug, Clone, Default)]
pub struct NodeResourcesFit {
    /// Extended resources that some extender looks after.
    pub ignored_resources: Vec<String>,
    /// The same, by the part before the slash.
    pub ignored_groups: Vec<String>,
}

impl NodeResourcesFit {
    fn ignores(&self, name: &str) -> bool {
        self.ignored_resources.iter().any(|r| r == name)
            || name.split_once('/').is_some_and(|(group, _)| self.ignored_groups.iter().any(|g| g == group))
    }
}

impl FilterPlugin for NodeResourcesFit {
    fn name(&self) -> &'static str {
        "NodeResourcesFit"
    }

    fn pre_filter(&self, _: &PodInfo, _: &Cluster) -> Result<Option<Box<dyn Filter>>, Status> {
        Ok(Some(Box::new(self.clone())))
    }
}

impl Filter for NodeResourcesFit {
    fn filter(&self, pod: &PodInfo, node: &NodeInfo, _: &Cluster) -> Result<(), Status> {
        let mut reasons: Vec<Cow<'static, str>> = Vec::new();
        if node.pods.len() as i64 + 1 > node.allowed_pods {
            reasons.push("Too many pods".into());
        }
        let (asks, used, has) = (&pod.requests, &node.requested, &node.allocatable);
        if !asks.is_zero() {
            if has.milli_cpu < asks.milli_cpu + used.milli_cpu {
                reasons.push("Insufficient cpu".into());
            }
            if has.memory < asks.memory + used.memory {
                reasons.push("Insufficient memory".into());
            }
            if has.ephemeral_storage < asks.ephemeral_storage + used.ephemeral_storage {
                reasons.push("Insufficient ephemeral-storage".into());
            }
            for (name, n) in &asks.scalar {
                let of = |r: &crate::types::Resources| r.scalar.get(name).copied().unwrap_or(0);
                if of(has) < n + of(used) && !self.ignores(name) {
                    reasons.push(format!("Insufficient {name}").into());
                }
            }
        }
        if reasons.is_empty() { Ok(()) } else { Err(Status { code: Code::Unschedulable, reasons }) }
    }

    fn copy(&self) -> Box<dyn Filter> {
        Box::new(self.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{cluster, node, placed, pod, verdicts};
    use serde_json::json;

    #[test]
    fn counts_what_is_left() {
        let small = json!({"status": {"allocatable": {"cpu": "1", "memory": "1Gi", "pods": "1", "example.com/gpu": "1"}}});
        let c = cluster([node("a", small), node("b", json!({}))], [placed("x", "a", "x", json!({}))]);
        let asks = |requests: serde_json::Value| {
            pod(json!({"spec": {"containers": [{"name": "c", "resources": {"requests": requests}}]}}))
        };
        let fit = NodeResourcesFit::default();
        assert_eq!(verdicts(&fit, &asks(json!({})), &c), ["Too many pods", "ok"]);
        assert_eq!(
            verdicts(&fit, &asks(json!({"cpu": "2", "memory": "9Gi"})), &c),
            ["Too many pods, Insufficient cpu, Insufficient memory", "Insufficient memory"]
        );
        assert_eq!(
            verdicts(&fit, &asks(json!({"example.com/gpu": "1"})), &c),
            ["Too many pods", "Insufficient example.com/gpu"]
        );
        let fit =
            NodeResourcesFit { ignored_groups: vec!["example.com".into()], ..NodeResourcesFit::default() };
        assert_eq!(verdicts(&fit, &asks(json!({"example.com/gpu": "5"})), &c)[1], "ok");
    }
}
