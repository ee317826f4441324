//! `NodeResourcesLeastAllocated` and `NodeResourcesMostAllocated`: prefer nodes of which little, or much, is taken.

use crate::cache::Cluster;
use crate::framework::{MAX_SCORE, Score, ScorePlugin};
use crate::types::{NodeInfo, PodInfo};

/// CPU and memory that there is, and that would be taken with the pod on the node.
pub(super) fn cpu_and_memory(pod: &PodInfo, node: &NodeInfo) -> [(i64, i64); 2] {
    [
        (node.allocatable.milli_cpu, node.non_zero.0 + pod.non_zero.0),
        (node.allocatable.memory, node.non_zero.1 + pod.non_zero.1),
    ]
}

/// See the module.
#[derive(Debug, Clone, Copy)]
pub struct LeastAllocated;

impl ScorePlugin for LeastAllocated {
    fn name(&self) -> &'static str {
        "NodeResourcesLeastAllocated"
    }

    fn pre_score(&self, _: &PodInfo, _: &[&NodeInfo], _: &Cluster) -> Option<Box<dyn Score>> {
        Some(Box::new(*self))
    }
}

impl Score for LeastAllocated {
    fn score(&self, pod: &PodInfo, node: &NodeInfo, _: &Cluster) -> i64 {
        let score = |(capacity, taken): (i64, i64)| {
            if capacity == 0 || taken > capacity { 0 } else { (capacity - taken) * MAX_SCORE / capacity }
        };
        cpu_and_memory(pod, node).map(score).iter().sum::<i64>() / 2
    }
}

/// See the module.
#[derive(Debug, Clone, Copy)]
pub struct MostAllocated;

impl ScorePlugin for MostAllocated {
    fn name(&self) -> &'static str {
        "NodeResourcesMostAllocated"
    }

    fn pre_score(&self, _: &PodInfo, _: &[&NodeInfo], _: &Cluster) -> Option<Box<dyn Score>> {
        Some(Box::new(*self))
    }
}

impl Score for MostAllocated {
    fn score(&self, pod: &PodInfo, node: &NodeInfo, _: &Cluster) -> i64 {
        let score = |(capacity, taken): (i64, i64)| {
            if capacity == 0 || taken > capacity { 0 } else { taken * MAX_SCORE / capacity }
        };
        cpu_and_memory(pod, node).map(score).iter().sum::<i64>() / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{cluster, node, placed, pod, scores};
    use serde_json::json;

    #[test]
    fn half_taken_is_half_the_score() {
        let half = json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "1", "memory": "3Gi"}}}]}});
        let c = cluster([node("a", json!({})), node("b", json!({}))], [placed("x", "b", "x", half)]);
        let p = pod(
            json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "1", "memory": "1Gi"}}}]}}),
        );
        assert_eq!(scores(&LeastAllocated, &p, &c), [81, 50]);
        assert_eq!(scores(&MostAllocated, &p, &c), [18, 50]);
    }
}
