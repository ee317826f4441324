//! `DefaultPreemption`: where a pod fits nowhere, find the node on which it would fit if less important pods went, and
//! the fewest and least important of them.

use std::collections::HashMap;
use std::sync::Arc;

use crate::cache::Cluster;
use crate::framework::{Code, Filters, Status};
use crate::labels;
use crate::listers::Budget;
use crate::queue::Nominated;
use crate::types::{NodeInfo, PodInfo};

/// See the module.
#[derive(Debug, Clone, Copy)]
pub struct DefaultPreemption {
    /// How many candidates are enough, in percent of the nodes.
    pub min_candidate_nodes_percentage: usize,
    /// How many candidates are enough at least.
    pub min_candidate_nodes_absolute: usize,
}

impl Default for DefaultPreemption {
    fn default() -> Self {
        DefaultPreemption { min_candidate_nodes_percentage: 10, min_candidate_nodes_absolute: 100 }
    }
}

/// A node and who would have to go.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// The node's name.
    pub node: String,
    /// Who would have to go, most important first.
    pub victims: Vec<Arc<PodInfo>>,
    /// How many of them a disruption budget protects.
    pub violations: usize,
}

/// More important pods come first: by priority, then by age.
fn importance(a: &Arc<PodInfo>, b: &Arc<PodInfo>) -> std::cmp::Ordering {
    b.priority.cmp(&a.priority).then(a.started.cmp(&b.started))
}

/// Whether the pod may make others go.
fn eligible(pod: &PodInfo, cluster: &Cluster, refusals: &HashMap<String, Status>) -> bool {
    if pod.spec().and_then(|s| s.preemption_policy.as_deref()) == Some("Never") {
        return false;
    }
    let Some(node) = pod.nominated_node() else { return true };
    // The node it was promised can no longer do: another may.
    if refusals.get(node).is_some_and(|s| s.code == Code::Unresolvable) {
        return true;
    }
    // Who was told to go for its sake is still going.
    let going = |n: &NodeInfo| n.pods.iter().any(|p| p.terminating && p.priority < pod.priority);
    !cluster.node(node).is_some_and(going)
}

impl DefaultPreemption {
    /// The best candidate; `start` is where among the nodes the search begins.
    pub fn find(
        &self,
        pod: &PodInfo,
        filters: &Filters,
        refusals: &HashMap<String, Status>,
        cluster: &Cluster,
        nominated: &Nominated,
        start: usize,
    ) -> Option<Candidate> {
        if !eligible(pod, cluster, refusals) {
            return None;
        }
        let may_help = |n: &&NodeInfo| refusals.get(&n.name).is_none_or(|s| s.code == Code::Unschedulable);
        let nodes: Vec<&NodeInfo> = cluster.nodes().filter(may_help).collect();
        if nodes.is_empty() {
            return None;
        }
        let enough = (nodes.len() * self.min_candidate_nodes_percentage / 100)
            .max(self.min_candidate_nodes_absolute)
            .min(nodes.len());
        let budgets: Vec<Arc<Budget>> = cluster.listers.budgets.list();
        let (mut good, mut bad) = (Vec::new(), Vec::new());
        for i in 0..nodes.len() {
            let node = nodes[(start + i) % nodes.len()];
            let Some(candidate) = select_victims(pod, filters, node, cluster, nominated, &budgets) else {
                continue;
            };
            if candidate.violations == 0 {
                good.push(candidate)
            } else {
                bad.push(candidate)
            }
            if !good.is_empty() && good.len() + bad.len() >= enough {
                break;
            }
        }
        good.append(&mut bad);
        pick(good)
    }
}

/// Takes all less important pods from a node and lets as many return as possible.
fn select_victims(
    pod: &PodInfo,
    filters: &Filters,
    node: &NodeInfo,
    cluster: &Cluster,
    nominated: &Nominated,
    budgets: &[Arc<Budget>],
) -> Option<Candidate> {
    let mut potential: Vec<Arc<PodInfo>> =
        node.pods.iter().filter(|p| p.priority < pod.priority).cloned().collect();
    if potential.is_empty() {
        return None;
    }
    let (mut filters, mut imagined) = (filters.copy(), node.clone());
    for victim in &potential {
        filters.remove_pod(pod, victim, &mut imagined, cluster);
    }
    let fits = |filters: &Filters, node: &NodeInfo| {
        fits_with_nominated(pod, filters, node, cluster, nominated).is_ok()
    };
    if !fits(&filters, &imagined) {
        return None;
    }
    potential.sort_by(importance);
    let (protected, others) = split_by_budgets(potential, budgets);
    let (mut victims, mut violations) = (Vec::new(), 0);
    for (p, is_protected) in
        protected.into_iter().map(|p| (p, true)).chain(others.into_iter().map(|p| (p, false)))
    {
        filters.add_pod(pod, &p, &mut imagined, cluster);
        if !fits(&filters, &imagined) {
            filters.remove_pod(pod, &p, &mut imagined, cluster);
            violations += usize::from(is_protected);
            victims.push(p);
        }
    }
    Some(Candidate { node: node.name.clone(), victims, violations })
}

/// Whether a pod fits a node, with and without the pods for which the node is being made free.
pub fn fits_with_nominated(
    pod: &PodInfo,
    filters: &Filters,
    node: &NodeInfo,
    cluster: &Cluster,
    nominated: &Nominated,
) -> Result<(), Status> {
    let expected: Vec<&Arc<PodInfo>> = nominated
        .on(&node.name)
        .filter(|p| {
            p.priority >= pod.priority && p.uid != pod.uid && !node.pods.iter().any(|n| n.uid == p.uid)
        })
        .collect();
    if !expected.is_empty() {
        let (mut filters, mut imagined) = (filters.copy(), node.clone());
        for p in expected {
            filters.add_pod(pod, p, &mut imagined, cluster);
        }
        filters.run(pod, &imagined, cluster)?;
    }
    // They may also never come, and then an affinity to them would not hold.
    filters.run(pod, node, cluster)
}

/// Pods that a disruption budget protects, and the others.
fn split_by_budgets(
    pods: Vec<Arc<PodInfo>>,
    budgets: &[Arc<Budget>],
) -> (Vec<Arc<PodInfo>>, Vec<Arc<PodInfo>>) {
    let compiled: Vec<_> = budgets.iter().map(|b| labels::selector(b.spec.selector.as_ref())).collect();
    let allowed =
        |b: &Arc<Budget>| b.status.as_ref().and_then(|s| s.disruptions_allowed).map_or(0, i64::from);
    let mut allowed: Vec<i64> = budgets.iter().map(allowed).collect();
    pods.into_iter().partition(|pod| {
        let mut protected = false;
        if pod.labels().is_empty() {
            return false;
        }
        for (i, budget) in budgets.iter().enumerate() {
            let gone = budget.status.as_ref().and_then(|s| s.disrupted_pods.as_ref());
            if budget.metadata.namespace.as_deref() != Some(&pod.namespace)
                || compiled[i].is_everything()
                || !labels::matches(&compiled[i], pod.labels())
                || gone.is_some_and(|d| d.contains_key(&pod.name))
            {
                continue;
            }
            allowed[i] -= 1;
            protected |= allowed[i] < 0;
        }
        protected
    })
}

/// The best of the candidates: fewest protected victims, then the least important first victim, then the lowest sum of
/// priorities, then the fewest victims, then those that began last.
fn pick(candidates: Vec<Candidate>) -> Option<Candidate> {
    let key = |c: &Candidate| {
        let highest = c.victims.first().map_or(i64::MIN, |p| i64::from(p.priority));
        // Shifted so that many unimportant victims do not weigh less than few.
        let sum: i64 = c.victims.iter().map(|p| i64::from(p.priority) + i64::from(i32::MAX) + 1).sum();
        let oldest = c.victims.iter().filter(|p| i64::from(p.priority) == highest).map(|p| p.started).min();
        (c.violations, highest, sum, c.victims.len(), std::cmp::Reverse(oldest))
    };
    let mut best: Option<Candidate> = None;
    for candidate in candidates {
        if best.as_ref().is_none_or(|b| key(&candidate) < key(b)) {
            best = Some(candidate);
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::framework::FilterPlugin;
    use crate::listers::Listers;
    use crate::plugins::node_resources_fit::NodeResourcesFit;
    use crate::testing::{cluster_with, node, placed, pod};
    use serde_json::json;

    fn running(name: &str, on: &str, cpu: &str, priority: i32, started: &str) -> PodInfo {
        placed(
            name,
            on,
            "x",
            json!({"status": {"startTime": started}, "spec": {"priority": priority,
            "containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]}}),
        )
    }

    fn preempt(listers: Listers, policy: &str, pods: Vec<PodInfo>) -> Option<(String, Vec<String>)> {
        let mut c = cluster_with(listers, [node("a", json!({})), node("b", json!({}))], []);
        pods.into_iter().for_each(|p| c.set_pod(Arc::new(p)));
        let p = pod(
            json!({"spec": {"priority": 1000, "preemptionPolicy": policy, "containers": [{"name": "c", "resources": {"requests": {"cpu": "3"}}}]}}),
        );
        let plugins: Vec<Box<dyn FilterPlugin>> = vec![Box::new(NodeResourcesFit::default())];
        let filters = Filters::prepare(&plugins, &p, &c).unwrap();
        let refusals =
            c.nodes().filter_map(|n| Some((n.name.clone(), filters.run(&p, n, &c).err()?))).collect();
        let found =
            DefaultPreemption::default().find(&p, &filters, &refusals, &c, &Nominated::default(), 0)?;
        Some((found.node, found.victims.iter().map(|v| v.name.clone()).collect()))
    }

    const EARLY: &str = "2020-01-01T00:00:00Z";
    const LATE: &str = "2020-01-01T00:00:09Z";

    #[test]
    fn only_as_many_go_as_must_and_the_least_important_first() {
        let on_a = || {
            vec![
                running("a1", "a", "1", 10, EARLY),
                running("a2", "a", "1", 10, LATE),
                running("a3", "a", "1", 20, EARLY),
            ]
        };
        let full_b = || running("b1", "b", "4", 5000, EARLY);
        let with = |extra| [on_a(), vec![full_b()], extra].concat_owned();
        assert_eq!(
            preempt(Listers::default(), "PreemptLowerPriority", with(vec![])),
            Some(("a".into(), vec!["a1".into(), "a2".into()]))
        );
        assert_eq!(preempt(Listers::default(), "Never", with(vec![])), None);
    }

    trait Concat {
        fn concat_owned(self) -> Vec<PodInfo>;
    }
    impl<const N: usize> Concat for [Vec<PodInfo>; N] {
        fn concat_owned(self) -> Vec<PodInfo> {
            self.into_iter().flatten().collect()
        }
    }

    #[test]
    fn nodes_are_compared_by_budgets_priorities_numbers_and_ages() {
        let go = |pods| preempt(Listers::default(), "PreemptLowerPriority", pods);
        let b = Some(("b".to_string(), vec!["b".to_string()]));
        assert_eq!(go(vec![running("a", "a", "3", 20, EARLY), running("b", "b", "3", 10, EARLY)]), b);
        assert_eq!(
            go(vec![
                running("a", "a", "2", 10, EARLY),
                running("a2", "a", "2", 10, EARLY),
                running("b", "b", "3", 10, EARLY)
            ]),
            b
        );
        assert_eq!(go(vec![running("a", "a", "3", 10, EARLY), running("b", "b", "3", 10, LATE)]), b);
        let listers = Listers::default();
        listers.budgets.apply(serde_json::from_value(json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget",
            "metadata": {"namespace": "ns", "name": "b"}, "spec": {"selector": {"matchLabels": {"app": "x"}}}, "status": {"disruptionsAllowed": 0,
            "currentHealthy": 1, "desiredHealthy": 1, "expectedPods": 1, "disruptedPods": {"b": "2020-01-01T00:00:00Z"}}})).unwrap());
        let pods = vec![running("a", "a", "3", 10, EARLY), running("b", "b", "3", 20, EARLY)];
        assert_eq!(preempt(listers, "PreemptLowerPriority", pods), b);
    }
}
