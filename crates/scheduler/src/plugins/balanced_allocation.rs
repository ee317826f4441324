//! `NodeResourcesBalancedAllocation`: prefer nodes whose CPU and memory are taken to the same degree.

use super::least_allocated::cpu_and_memory;
use crate::cache::Cluster;
use crate::framework::{MAX_SCORE, Score, ScorePlugin};
use crate::types::{NodeInfo, PodInfo};

/// See the module.
#[derive(Debug, Clone, Copy)]
pub struct BalancedAllocation;

impl ScorePlugin for BalancedAllocation {
    fn name(&self) -> &'static str {
        "NodeResourcesBalancedAllocation"
    }

    fn pre_score(&self, _: &PodInfo, _: &[&NodeInfo], _: &Cluster) -> Option<Box<dyn Score>> {
        Some(Box::new(*self))
    }
}

impl Score for BalancedAllocation {
    fn score(&self, pod: &PodInfo, node: &NodeInfo, _: &Cluster) -> i64 {
        let part =
            |(capacity, taken): (i64, i64)| if capacity == 0 { 1.0 } else { taken as f64 / capacity as f64 };
        let [cpu, memory] = cpu_and_memory(pod, node).map(part);
        if cpu >= 1.0 || memory >= 1.0 {
            return 0;
        }
        ((1.0 - (cpu - memory).abs()) * MAX_SCORE as f64) as i64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{cluster, node, placed, pod, scores};
    use serde_json::json;

    #[test]
    fn the_difference_counts() {
        let cpu = json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "2", "memory": "1"}}}]}});
        let full = json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "4"}}}]}});
        let c = cluster(
            [node("a", json!({})), node("b", json!({})), node("c", json!({}))],
            [placed("x", "b", "x", cpu), placed("y", "c", "x", full)],
        );
        let p = pod(
            json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "1", "memory": "2Gi"}}}]}}),
        );
        assert_eq!(scores(&BalancedAllocation, &p, &c), [100, 50, 0]);
    }
}
