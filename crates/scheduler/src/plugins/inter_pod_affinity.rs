//! `InterPodAffinity`: pods that want to be near others, or away from them. A term holds within a domain: the nodes that
//! have the same value of the term's label.

use std::collections::HashMap;

use crate::cache::Cluster;
use crate::framework::{Code, Filter, FilterPlugin, MAX_SCORE, Score, ScorePlugin, Status};
use crate::types::{AffinityTerm, NodeInfo, PodInfo};

const NOT_MATCHED: &str = "node(s) didn't match pod affinity/anti-affinity";
const AFFINITY: &str = "node(s) didn't match pod affinity rules";
const ANTI_AFFINITY: &str = "node(s) didn't match pod anti-affinity rules";
const OF_EXISTING: &str = "node(s) didn't satisfy existing pods anti-affinity rules";

/// See the module.
#[derive(Debug, Clone, Copy)]
pub struct InterPodAffinity {
    /// What an existing pod's required affinity to the pod counts in scoring.
    pub hard_pod_affinity_weight: i64,
}

/// How many pods count in a domain: by label and its value.
#[derive(Debug, Clone, Default)]
struct Domains(HashMap<String, HashMap<String, i64>>);

impl Domains {
    fn add(&mut self, key: &str, node: &NodeInfo, n: i64) {
        let Some(value) = node.labels().get(key) else { return };
        if !self.0.contains_key(key) {
            self.0.insert(key.to_string(), HashMap::new());
        }
        let Some(values) = self.0.get_mut(key) else { return };
        match values.get_mut(value) {
            Some(count) => *count += n,
            None => {
                values.insert(value.clone(), n);
            }
        }
    }

    fn get(&self, key: &str, node: &NodeInfo) -> i64 {
        let count = || self.0.get(key)?.get(node.labels().get(key)?).copied();
        count().unwrap_or(0)
    }

    fn is_empty(&self) -> bool {
        self.0.values().all(|v| v.values().all(|n| *n == 0))
    }
}

#[derive(Debug, Clone, Default)]
struct Counts {
    /// Domains of existing pods that do not want the pod near them.
    existing: Domains,
    /// Domains of pods that all of the pod's affinity terms mean.
    affinity: Domains,
    /// Domains of pods that one of the pod's anti-affinity terms means.
    anti_affinity: Domains,
}

impl Counts {
    fn update(&mut self, pod: &PodInfo, other: &PodInfo, node: &NodeInfo, sign: i64, cluster: &Cluster) {
        for term in &other.anti_affinity {
            if term.matches(pod, cluster) {
                self.existing.add(&term.topology_key, node, sign);
            }
        }
        if !pod.affinity.is_empty() && matches_all(&pod.affinity, other, cluster) {
            for term in &pod.affinity {
                self.affinity.add(&term.topology_key, node, sign);
            }
        }
        for term in &pod.anti_affinity {
            if term.matches(other, cluster) {
                self.anti_affinity.add(&term.topology_key, node, sign);
            }
        }
    }
}

fn matches_all(terms: &[AffinityTerm], pod: &PodInfo, cluster: &Cluster) -> bool {
    terms.iter().all(|t| t.matches(pod, cluster))
}

impl FilterPlugin for InterPodAffinity {
    fn name(&self) -> &'static str {
        "InterPodAffinity"
    }

    fn pre_filter(&self, pod: &PodInfo, cluster: &Cluster) -> Result<Option<Box<dyn Filter>>, Status> {
        let asks = !(pod.affinity.is_empty() && pod.anti_affinity.is_empty());
        let mut counts = Counts::default();
        for node in cluster.nodes().filter(|n| asks || n.with_affinity.1 > 0) {
            for other in node.pods.iter().filter(|p| asks || !p.anti_affinity.is_empty()) {
                counts.update(pod, other, node, 1, cluster);
            }
        }
        Ok(Some(Box::new(counts)))
    }
}

impl Filter for Counts {
    fn filter(&self, pod: &PodInfo, node: &NodeInfo, cluster: &Cluster) -> Result<(), Status> {
        let status =
            |code, reason: &'static str| Status { code, reasons: vec![NOT_MATCHED.into(), reason.into()] };
        let has_keys = || pod.affinity.iter().all(|t| node.labels().contains_key(&t.topology_key));
        let near = || pod.affinity.iter().all(|t| self.affinity.get(&t.topology_key, node) > 0);
        // The first pod of a group that wants to be together has nobody to join but itself.
        let first = || self.affinity.is_empty() && matches_all(&pod.affinity, pod, cluster);
        if !pod.affinity.is_empty() && !(has_keys() && (near() || first())) {
            return Err(status(Code::Unresolvable, AFFINITY));
        }
        if pod.anti_affinity.iter().any(|t| self.anti_affinity.get(&t.topology_key, node) > 0) {
            return Err(status(Code::Unschedulable, ANTI_AFFINITY));
        }
        if self.existing.0.keys().any(|key| self.existing.get(key, node) > 0) {
            return Err(status(Code::Unschedulable, OF_EXISTING));
        }
        Ok(())
    }

    fn add_pod(&mut self, pod: &PodInfo, other: &PodInfo, node: &NodeInfo, cluster: &Cluster) {
        self.update(pod, other, node, 1, cluster);
    }

    fn remove_pod(&mut self, pod: &PodInfo, other: &PodInfo, node: &NodeInfo, cluster: &Cluster) {
        self.update(pod, other, node, -1, cluster);
    }

    fn copy(&self) -> Box<dyn Filter> {
        Box::new(self.clone())
    }
}

impl ScorePlugin for InterPodAffinity {
    fn name(&self) -> &'static str {
        "InterPodAffinity"
    }

    fn pre_score(&self, pod: &PodInfo, _: &[&NodeInfo], cluster: &Cluster) -> Option<Box<dyn Score>> {
        let asks = !pod.preferred_pods.is_empty();
        let mut weights = Domains::default();
        for node in cluster.nodes().filter(|n| asks || n.with_affinity.0 > 0) {
            for other in node.pods.iter().filter(|p| asks || p.has_affinity()) {
                let mut add = |weight: i64, term: &AffinityTerm, means: &PodInfo| {
                    if weight != 0 && term.matches(means, cluster) {
                        weights.add(&term.topology_key, node, weight);
                    }
                };
                pod.preferred_pods.iter().for_each(|(weight, term)| add(*weight, term, other));
                other.affinity.iter().for_each(|term| add(self.hard_pod_affinity_weight, term, pod));
                other.preferred_pods.iter().for_each(|(weight, term)| add(*weight, term, pod));
            }
        }
        (!weights.0.is_empty()).then(|| Box::new(Weights(weights)) as Box<dyn Score>)
    }
}

struct Weights(Domains);

impl Score for Weights {
    fn score(&self, _: &PodInfo, node: &NodeInfo, _: &Cluster) -> i64 {
        self.0.0.keys().map(|key| self.0.get(key, node)).sum()
    }

    fn normalize(&self, _: &[&NodeInfo], scores: &mut [i64]) {
        let min = scores.iter().copied().min().unwrap_or(0);
        let max = scores.iter().copied().max().unwrap_or(0);
        for score in scores {
            let part = if max > min { (*score - min) as f64 / (max - min) as f64 } else { 0.0 };
            *score = (MAX_SCORE as f64 * part) as i64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{cluster, node, placed, pod, scores, verdicts};
    use serde_json::{Value, json};

    const PLUGIN: InterPodAffinity = InterPodAffinity { hard_pod_affinity_weight: 1 };

    fn zone(z: &str) -> Value {
        json!({"metadata": {"labels": {"zone": z}}})
    }

    fn term(app: &str, key: &str) -> Value {
        json!({"labelSelector": {"matchLabels": {"app": app}}, "topologyKey": key})
    }

    fn required(kind: &str, terms: Value) -> Value {
        json!({"spec": {"affinity": {kind: {"requiredDuringSchedulingIgnoredDuringExecution": terms}}}})
    }

    fn short(verdicts: Vec<String>) -> Vec<&'static str> {
        let last = |v: &String| match v.rsplit(", ").next() {
            Some("ok") => "ok",
            Some(AFFINITY) => "affinity",
            Some(ANTI_AFFINITY) => "anti",
            Some(OF_EXISTING) => "existing",
            _ => panic!("{v}"),
        };
        verdicts.iter().map(last).collect()
    }

    #[test]
    fn required_terms() {
        let nodes =
            || [node("a1", zone("a")), node("a2", zone("a")), node("b1", zone("b")), node("c", json!({}))];
        let c = cluster(nodes(), [placed("x", "a1", "web", json!({}))]);
        let check = |fields| short(verdicts(&PLUGIN, &pod(fields), &c));
        assert_eq!(
            check(required("podAffinity", json!([term("web", "zone")]))),
            ["ok", "ok", "affinity", "affinity"]
        );
        assert_eq!(check(required("podAffinity", json!([term("none", "zone")]))), ["affinity"; 4]);
        assert_eq!(
            check(required("podAntiAffinity", json!([term("web", "zone")]))),
            ["anti", "anti", "ok", "ok"]
        );
        let two = json!([term("web", "zone"), term("web", "kubernetes.io/hostname")]);
        assert_eq!(check(required("podAffinity", two)), ["ok", "affinity", "affinity", "affinity"]);
        // A pod that means itself may be the first.
        let mut me = required("podAffinity", json!([term("db", "zone")]));
        me["metadata"] = json!({"labels": {"app": "db"}});
        assert_eq!(check(me), ["ok", "ok", "ok", "affinity"]);
        let other = json!({"metadata": {"namespace": "other"}, "spec": required("podAffinity", json!([term("web", "zone")]))["spec"]});
        assert_eq!(check(other), ["affinity"; 4]);
    }

    #[test]
    fn existing_pods_keep_others_away() {
        let c = cluster(
            [node("a", zone("a")), node("b", zone("b"))],
            [placed("x", "a", "db", required("podAntiAffinity", json!([term("web", "zone")])))],
        );
        let p = pod(json!({"metadata": {"labels": {"app": "web"}}}));
        assert_eq!(short(verdicts(&PLUGIN, &p, &c)), ["existing", "ok"]);
        let mut filter = PLUGIN.pre_filter(&p, &c).unwrap().unwrap();
        let (a, x) = (c.node("a").unwrap(), c.pod("ns/x").unwrap());
        filter.remove_pod(&p, x, a, &c);
        assert!(filter.filter(&p, a, &c).is_ok());
        filter.add_pod(&p, x, a, &c);
        assert!(filter.filter(&p, a, &c).is_err());
    }

    #[test]
    fn preferences_of_both_sides() {
        let nodes = [node("a", zone("a")), node("b", zone("b")), node("c", zone("c"))];
        let c = cluster(
            nodes,
            [
                placed("x", "a", "web", json!({})),
                placed("y", "b", "db", required("podAffinity", json!([term("me", "zone")]))),
            ],
        );
        let prefer = |kind: &str, weight: i64| {
            let terms = json!([{"weight": weight, "podAffinityTerm": term("web", "zone")}]);
            pod(
                json!({"metadata": {"labels": {"app": "me"}}, "spec": {"affinity": {kind: {"preferredDuringSchedulingIgnoredDuringExecution": terms}}}}),
            )
        };
        assert_eq!(scores(&PLUGIN, &prefer("podAffinity", 10), &c), [100, 10, 0]);
        assert_eq!(scores(&PLUGIN, &prefer("podAntiAffinity", 1), &c), [0, 100, 50]);
        assert_eq!(scores(&PLUGIN, &pod(json!({})), &c), [0, 0, 0]);
    }
}
