//! `TaintToleration`: nodes keep off pods that do not tolerate their taints; `PreferNoSchedule` only makes them worse.

use crate::cache::Cluster;
use crate::framework::{Filter, FilterPlugin, Score, ScorePlugin, Status, default_normalize};
use crate::types::{NodeInfo, PodInfo, tolerated};
use k8s_openapi::api::core::v1::Toleration;

/// See the module.
#[derive(Debug, Clone, Copy)]
pub struct TaintToleration;

impl FilterPlugin for TaintToleration {
    fn name(&self) -> &'static str {
        "TaintToleration"
    }

    fn pre_filter(&self, _: &PodInfo, _: &Cluster) -> Result<Option<Box<dyn Filter>>, Status> {
        Ok(Some(Box::new(TaintToleration)))
    }
}

impl Filter for TaintToleration {
    fn filter(&self, pod: &PodInfo, node: &NodeInfo, _: &Cluster) -> Result<(), Status> {
        let mut hard = node.taints().iter().filter(|t| t.effect == "NoSchedule" || t.effect == "NoExecute");
        match hard.find(|t| !tolerated(pod.tolerations(), t)) {
            None => Ok(()),
            Some(t) => {
                let value = t.value.as_deref().unwrap_or_default();
                Err(Status::unresolvable(format!(
                    "node(s) had taint {{{}: {value}}}, that the pod didn't tolerate",
                    t.key
                )))
            }
        }
    }

    fn copy(&self) -> Box<dyn Filter> {
        Box::new(*self)
    }
}

impl ScorePlugin for TaintToleration {
    fn name(&self) -> &'static str {
        "TaintToleration"
    }

    fn pre_score(&self, pod: &PodInfo, _: &[&NodeInfo], _: &Cluster) -> Option<Box<dyn Score>> {
        let soft =
            |t: &&Toleration| t.effect.as_deref().is_none_or(|e| e.is_empty() || e == "PreferNoSchedule");
        Some(Box::new(Preference(pod.tolerations().iter().filter(soft).cloned().collect())))
    }
}

/// The pod's tolerations of soft taints.
struct Preference(Vec<Toleration>);

impl Score for Preference {
    fn score(&self, _: &PodInfo, node: &NodeInfo, _: &Cluster) -> i64 {
        let soft = node.taints().iter().filter(|t| t.effect == "PreferNoSchedule");
        soft.filter(|t| !tolerated(&self.0, t)).count() as i64
    }

    fn normalize(&self, _: &[&NodeInfo], scores: &mut [i64]) {
        default_normalize(scores, true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{cluster, node, pod, scores, verdicts};
    use serde_json::json;

    #[test]
    fn hard_taints_refuse_and_soft_ones_cost() {
        let tainted =
            |effect: &str| json!({"spec": {"taints": [{"key": "t", "value": "v", "effect": effect}]}});
        let c = cluster(
            [node("a", tainted("NoSchedule")), node("b", tainted("PreferNoSchedule")), node("c", json!({}))],
            [],
        );
        let p = pod(json!({}));
        assert_eq!(
            verdicts(&TaintToleration, &p, &c),
            ["node(s) had taint {t: v}, that the pod didn't tolerate", "ok", "ok"]
        );
        assert_eq!(scores(&TaintToleration, &p, &c), [100, 0, 100]);
        let p = pod(json!({"spec": {"tolerations": [{"key": "t", "operator": "Exists"}]}}));
        assert_eq!(verdicts(&TaintToleration, &p, &c), ["ok", "ok", "ok"]);
        assert_eq!(scores(&TaintToleration, &p, &c), [100, 100, 100]);
    }
}
