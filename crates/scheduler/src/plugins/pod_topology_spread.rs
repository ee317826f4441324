//! `PodTopologySpread`: spread pods over domains, by the pod's own constraints or, where it has none, by the defaults
//! for pods of services, replica sets and the like.

use std::collections::{HashMap, HashSet};

use k8s_openapi::api::core::v1::TopologySpreadConstraint;
use pilothouse_apimachinery::selector::{Operator, Requirement, Selector};

use crate::cache::Cluster;
use crate::framework::{Filter, FilterPlugin, MAX_SCORE, Score, ScorePlugin, Status};
use crate::labels::{self, Labels};
use crate::types::{NodeInfo, PodInfo, tolerated};

const HOSTNAME: &str = "kubernetes.io/hostname";
const ZONE: &str = "topology.kubernetes.io/zone";

/// See the module.
#[derive(Debug, Clone)]
pub struct PodTopologySpread {
    /// Constraints for pods that have none: label, skew, and whether they must hold.
    pub defaults: Vec<(String, i64, bool)>,
    /// Whether a domain's pods are counted on all of its nodes as long as the pod may go to one of them, as up to v1.23;
    /// else only those on nodes that the pod may go to.
    pub counts_whole_domains: bool,
}

impl Default for PodTopologySpread {
    fn default() -> Self {
        PodTopologySpread {
            defaults: vec![(HOSTNAME.into(), 3, false), (ZONE.into(), 5, false)],
            counts_whole_domains: false,
        }
    }
}

#[derive(Debug, Clone)]
struct Constraint {
    key: String,
    max_skew: i64,
    min_domains: i64,
    selector: Selector,
    honor_affinity: bool,
    honor_taints: bool,
}

impl Constraint {
    fn new(c: &TopologySpreadConstraint, pod: &PodInfo) -> Constraint {
        let mut selector = labels::selector(c.label_selector.as_ref());
        let extra: Vec<Requirement> = c
            .match_label_keys
            .iter()
            .flatten()
            .filter_map(|k| Requirement::new(k, Operator::In, vec![pod.labels().get(k)?.clone()]).ok())
            .collect();
        if !extra.is_empty() && !selector.is_nothing() {
            selector = Selector::new(selector.requirements().iter().cloned().chain(extra).collect());
        }
        Constraint {
            key: c.topology_key.clone(),
            max_skew: i64::from(c.max_skew),
            min_domains: i64::from(c.min_domains.unwrap_or(1)),
            selector,
            honor_affinity: c.node_affinity_policy.as_deref() != Some("Ignore"),
            honor_taints: c.node_taints_policy.as_deref() == Some("Honor"),
        }
    }

    /// Whether a node's pods are counted.
    fn counts(&self, pod: &PodInfo, node: &NodeInfo) -> bool {
        (!self.honor_affinity || pod.allows_node(node))
            && (!self.honor_taints
                || !node
                    .taints()
                    .iter()
                    .any(|t| t.effect != "PreferNoSchedule" && !tolerated(pod.tolerations(), t)))
    }

    fn matching(&self, namespace: &str, node: &NodeInfo) -> i64 {
        let means = |p: &&std::sync::Arc<PodInfo>| {
            !p.terminating && p.namespace == namespace && labels::matches(&self.selector, p.labels())
        };
        node.pods.iter().filter(means).count() as i64
    }
}

fn has_keys(constraints: &[Constraint], labels: &Labels) -> bool {
    constraints.iter().all(|c| labels.contains_key(&c.key))
}

impl PodTopologySpread {
    fn constraints(&self, pod: &PodInfo, must_hold: bool, cluster: &Cluster) -> Vec<Constraint> {
        let own = pod.spec().and_then(|s| s.topology_spread_constraints.as_deref()).unwrap_or_default();
        if !own.is_empty() {
            let wanted = if must_hold { "DoNotSchedule" } else { "ScheduleAnyway" };
            let own = own.iter().filter(|c| c.when_unsatisfiable == wanted);
            return own.map(|c| Constraint::new(c, pod)).collect();
        }
        let mut defaults = self.defaults.iter().filter(|d| d.2 == must_hold).peekable();
        if defaults.peek().is_none() {
            return Vec::new();
        }
        let Some(selector) = default_selector(pod, cluster) else { return Vec::new() };
        defaults
            .map(|(key, max_skew, _)| Constraint {
                key: key.clone(),
                max_skew: *max_skew,
                min_domains: 1,
                selector: selector.clone(),
                honor_affinity: true,
                honor_taints: false,
            })
            .collect()
    }
}

/// What selects the pod's siblings: the selectors of its services and of its controller together.
fn default_selector(pod: &PodInfo, cluster: &Cluster) -> Option<Selector> {
    let mut all: Vec<Requirement> = Vec::new();
    let equal = |map: &Labels| -> Vec<Requirement> {
        map.iter().filter_map(|(k, v)| Requirement::new(k, Operator::Equals, vec![v.clone()]).ok()).collect()
    };
    let mut add = |selector: Selector| {
        if !selector.is_nothing() && labels::matches(&selector, pod.labels()) {
            for r in selector.requirements() {
                if !all.contains(r) {
                    all.push(r.clone());
                }
            }
        }
    };
    let listers = &cluster.listers;
    for service in listers.services.list_namespace(&pod.namespace) {
        if let Some(selector) =
            service.spec.as_ref().and_then(|s| s.selector.as_ref()).filter(|s| !s.is_empty())
        {
            add(Selector::new(equal(selector)));
        }
    }
    for rc in listers.replication_controllers.list_namespace(&pod.namespace) {
        if let Some(selector) = rc.spec.as_ref().and_then(|s| s.selector.as_ref()).filter(|s| !s.is_empty()) {
            add(Selector::new(equal(selector)));
        }
    }
    let non_empty = |s: Selector| if s.is_everything() { Selector::nothing() } else { s };
    for rs in listers.replica_sets.list_namespace(&pod.namespace) {
        add(non_empty(labels::selector(rs.spec.as_ref().map(|s| &s.selector))));
    }
    for sts in listers.stateful_sets.list_namespace(&pod.namespace) {
        add(non_empty(labels::selector(sts.spec.as_ref().map(|s| &s.selector))));
    }
    (!all.is_empty()).then(|| Selector::new(all))
}

impl FilterPlugin for PodTopologySpread {
    fn name(&self) -> &'static str {
        "PodTopologySpread"
    }

    fn pre_filter(&self, pod: &PodInfo, cluster: &Cluster) -> Result<Option<Box<dyn Filter>>, Status> {
        let constraints = self.constraints(pod, true, cluster);
        if constraints.is_empty() {
            return Ok(None);
        }
        let mut counts = vec![HashMap::<String, i64>::new(); constraints.len()];
        for node in cluster.nodes().filter(|n| has_keys(&constraints, n.labels())) {
            for (c, counts) in constraints.iter().zip(&mut counts).filter(|(c, _)| c.counts(pod, node)) {
                let count = if self.counts_whole_domains { 0 } else { c.matching(&pod.namespace, node) };
                *counts.entry(node.labels()[&c.key].clone()).or_default() += count;
            }
        }
        if self.counts_whole_domains {
            for node in cluster.nodes() {
                for (c, counts) in constraints.iter().zip(&mut counts) {
                    if let Some(n) = node.labels().get(&c.key).and_then(|value| counts.get_mut(value)) {
                        *n += c.matching(&pod.namespace, node);
                    }
                }
            }
        }
        Ok(Some(Box::new(Spread { constraints, counts, whole_domains: self.counts_whole_domains })))
    }
}

#[derive(Clone)]
struct Spread {
    constraints: Vec<Constraint>,
    /// Per constraint, how many pods each domain has.
    counts: Vec<HashMap<String, i64>>,
    whole_domains: bool,
}

impl Spread {
    fn update(&mut self, pod: &PodInfo, other: &PodInfo, node: &NodeInfo, n: i64) {
        if other.namespace != pod.namespace
            || other.terminating
            || !has_keys(&self.constraints, node.labels())
        {
            return;
        }
        for (c, counts) in self.constraints.iter().zip(&mut self.counts) {
            if !labels::matches(&c.selector, other.labels()) {
                continue;
            }
            let value = &node.labels()[&c.key];
            if self.whole_domains {
                if let Some(count) = counts.get_mut(value) {
                    *count += n;
                }
            } else if c.counts(pod, node) {
                *counts.entry(value.clone()).or_default() += n;
            }
        }
    }
}

impl Filter for Spread {
    fn filter(&self, pod: &PodInfo, node: &NodeInfo, _: &Cluster) -> Result<(), Status> {
        for (c, counts) in self.constraints.iter().zip(&self.counts) {
            let Some(value) = node.labels().get(&c.key) else {
                let text = "node(s) didn't match pod topology spread constraints (missing required label)";
                return Err(Status::unresolvable(text));
            };
            if counts.is_empty() {
                continue;
            }
            let least = if (counts.len() as i64) < c.min_domains {
                0
            } else {
                counts.values().copied().min().unwrap_or(0)
            };
            let itself = i64::from(labels::matches(&c.selector, pod.labels()));
            if counts.get(value).copied().unwrap_or(0) + itself - least > c.max_skew {
                return Err(Status::unschedulable("node(s) didn't match pod topology spread constraints"));
            }
        }
        Ok(())
    }

    fn add_pod(&mut self, pod: &PodInfo, other: &PodInfo, node: &NodeInfo, _: &Cluster) {
        self.update(pod, other, node, 1);
    }

    fn remove_pod(&mut self, pod: &PodInfo, other: &PodInfo, node: &NodeInfo, _: &Cluster) {
        self.update(pod, other, node, -1);
    }

    fn copy(&self) -> Box<dyn Filter> {
        Box::new(self.clone())
    }
}

impl ScorePlugin for PodTopologySpread {
    fn name(&self) -> &'static str {
        "PodTopologySpread"
    }

    fn pre_score(&self, pod: &PodInfo, nodes: &[&NodeInfo], cluster: &Cluster) -> Option<Box<dyn Score>> {
        let constraints = self.constraints(pod, false, cluster);
        if constraints.is_empty() {
            return None;
        }
        let (fit, ignored): (Vec<&NodeInfo>, Vec<&NodeInfo>) =
            nodes.iter().copied().partition(|n| has_keys(&constraints, n.labels()));
        // Domains are those of the nodes that fit; hosts are counted when they are scored.
        let mut counts: Vec<HashMap<String, i64>> = constraints
            .iter()
            .map(|c| match c.key == HOSTNAME {
                true => HashMap::new(),
                false => fit.iter().map(|n| (n.labels()[&c.key].clone(), 0)).collect(),
            })
            .collect();
        for node in cluster.nodes().filter(|n| has_keys(&constraints, n.labels())) {
            for (c, counts) in constraints.iter().zip(&mut counts).filter(|(c, _)| c.counts(pod, node)) {
                if let Some(count) = counts.get_mut(&node.labels()[&c.key]) {
                    *count += c.matching(&pod.namespace, node);
                }
            }
        }
        let weight = |(c, counts): (&Constraint, &HashMap<String, i64>)| {
            let domains = if c.key == HOSTNAME { fit.len() } else { counts.len() };
            ((domains + 2) as f64).ln()
        };
        Some(Box::new(Preference {
            weights: constraints.iter().zip(&counts).map(weight).collect(),
            ignored: ignored.iter().map(|n| n.name.clone()).collect(),
            constraints,
            counts,
        }))
    }
}

struct Preference {
    constraints: Vec<Constraint>,
    counts: Vec<HashMap<String, i64>>,
    /// Per constraint; the more domains, the more a pod counts.
    weights: Vec<f64>,
    /// Nodes without the labels that domains are made by.
    ignored: HashSet<String>,
}

impl Score for Preference {
    fn score(&self, pod: &PodInfo, node: &NodeInfo, _: &Cluster) -> i64 {
        if self.ignored.contains(&node.name) {
            return 0;
        }
        let mut score = 0.0;
        for ((c, counts), weight) in self.constraints.iter().zip(&self.counts).zip(&self.weights) {
            let Some(value) = node.labels().get(&c.key) else { continue };
            let count = match c.key == HOSTNAME {
                true => c.matching(&pod.namespace, node),
                false => counts.get(value).copied().unwrap_or(0),
            };
            score += count as f64 * weight + (c.max_skew - 1) as f64;
        }
        score as i64
    }

    fn normalize(&self, nodes: &[&NodeInfo], scores: &mut [i64]) {
        let counted = || nodes.iter().zip(scores.iter()).filter(|(n, _)| !self.ignored.contains(&n.name));
        let min = counted().map(|(_, s)| *s).min().unwrap_or(0);
        let max = counted().map(|(_, s)| *s).max().unwrap_or(0);
        for (node, score) in nodes.iter().zip(scores) {
            *score = match max {
                _ if self.ignored.contains(&node.name) => 0,
                0 => MAX_SCORE,
                _ => MAX_SCORE * (max + min - *score) / max,
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::listers::Listers;
    use crate::testing::{cluster, cluster_with, node, placed, pod, scores, verdicts};
    use serde_json::{Value, json};

    fn zone(z: &str) -> Value {
        json!({"metadata": {"labels": {ZONE: z}}})
    }

    fn spread(key: &str, skew: i64, when: &str) -> Value {
        json!({"metadata": {"labels": {"app": "web"}}, "spec": {"topologySpreadConstraints": [{"maxSkew": skew, "topologyKey": key,
            "whenUnsatisfiable": when, "labelSelector": {"matchLabels": {"app": "web"}}}]}})
    }

    #[test]
    fn the_skew_must_hold() {
        let nodes =
            || [node("a", zone("a")), node("b", zone("a")), node("c", zone("b")), node("d", json!({}))];
        let web = |name: &str, on: &str| placed(name, on, "web", json!({}));
        let c = cluster(nodes(), [web("x", "a"), web("y", "b"), placed("z", "c", "db", json!({}))]);
        let p = pod(spread(ZONE, 1, "DoNotSchedule"));
        let by_name = |p: &PodInfo| -> HashMap<String, String> {
            c.nodes().map(|n| n.name.clone()).zip(verdicts(&PodTopologySpread::default(), p, &c)).collect()
        };
        let v = by_name(&p);
        assert_eq!(v["a"], "node(s) didn't match pod topology spread constraints");
        assert_eq!(v["c"], "ok");
        assert_eq!(v["d"], "node(s) didn't match pod topology spread constraints (missing required label)");
        assert_eq!(by_name(&pod(spread(ZONE, 3, "DoNotSchedule")))["a"], "ok");
        // Only nodes that the pod may use count: without zone b, zone a is the emptiest.
        let mut only_a = spread(ZONE, 1, "DoNotSchedule");
        only_a["spec"]["nodeSelector"] = json!({ZONE: "a"});
        assert_eq!(by_name(&pod(only_a))["a"], "ok");
        let mut domains = spread(ZONE, 1, "DoNotSchedule");
        domains["spec"]["topologySpreadConstraints"][0]["minDomains"] = json!(3);
        assert_eq!(by_name(&pod(domains))["c"], "ok");
    }

    #[test]
    fn whole_domains_may_count() {
        let nodes = [
            node("a", zone("a")),
            node("b", json!({"metadata": {"labels": {ZONE: "a", "disk": "hdd"}}})),
            node("c", json!({"metadata": {"labels": {ZONE: "b", "disk": "hdd"}}})),
        ];
        let c = cluster(nodes, [placed("x", "a", "web", json!({}))]);
        let mut p = spread(ZONE, 1, "DoNotSchedule");
        p["spec"]["nodeSelector"] = json!({"disk": "hdd"});
        let p = pod(p);
        let on_b = |plugin: &PodTopologySpread| -> String {
            let at = c.nodes().position(|n| n.name == "b").unwrap();
            verdicts(plugin, &p, &c)[at].clone()
        };
        assert_eq!(on_b(&PodTopologySpread::default()), "ok");
        let whole = PodTopologySpread { counts_whole_domains: true, ..Default::default() };
        assert_eq!(on_b(&whole), "node(s) didn't match pod topology spread constraints");
    }

    #[test]
    fn anyway_prefers_the_emptiest() {
        let web = |name: &str, on: &str| placed(name, on, "web", json!({}));
        let c = cluster(
            [node("a", json!({})), node("b", json!({})), node("c", json!({}))],
            [web("x", "a"), web("y", "a"), web("z", "b")],
        );
        let p = pod(spread(HOSTNAME, 1, "ScheduleAnyway"));
        assert_eq!(scores(&PodTopologySpread::default(), &p, &c), [0, 66, 100]);
    }

    #[test]
    fn siblings_of_a_service_spread_by_default() {
        let listers = Listers::default();
        listers.services.apply(
            serde_json::from_value(
                json!({"metadata": {"namespace": "ns", "name": "s"}, "spec": {"selector": {"app": "web"}}}),
            )
            .unwrap(),
        );
        let nodes = [node("a", zone("a")), node("b", zone("b"))];
        let c = cluster_with(listers, nodes, [placed("x", "a", "web", json!({}))]);
        let s =
            scores(&PodTopologySpread::default(), &pod(json!({"metadata": {"labels": {"app": "web"}}})), &c);
        assert!(s[0] < s[1], "{s:?}");
        assert_eq!(
            scores(&PodTopologySpread::default(), &pod(json!({"metadata": {"labels": {"app": "db"}}})), &c),
            [0, 0]
        );
    }
}
