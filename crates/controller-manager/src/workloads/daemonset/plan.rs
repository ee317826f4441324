//! What is to be done for a DaemonSet, and its status.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetStatus};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::nodes::{Fit, fit, target};
use crate::control::{availability, is_ready, phase};
use crate::workloads::history::HASH;

/// Label with the generation of the template that a pod was made from.
pub const GENERATION: &str = "pod-template-generation";
/// Annotation of the set with that generation.
pub const GENERATION_ANNOTATION: &str = "deprecated.daemonset.template.generation";

/// A set as it is now.
pub struct Scene<'a> {
    /// The set.
    pub set: &'a DaemonSet,
    /// All nodes.
    pub nodes: &'a [Arc<Node>],
    /// The set's pods.
    pub pods: &'a [Arc<Pod>],
    /// Hash of the template as it is.
    pub hash: &'a str,
    /// Now.
    pub now: Timestamp,
}

/// What is to be done.
#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    /// Nodes that are to get a pod.
    pub create: Vec<String>,
    /// Pods that are to go.
    pub delete: Vec<Arc<Pod>>,
    /// Pods that failed, with their node. They go once their back-off allows.
    pub failed: Vec<(String, Arc<Pod>)>,
}

fn name_of(node: &Node) -> &str {
    node.metadata.name.as_deref().unwrap_or_default()
}

fn is_going(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

fn bound(
    set: &DaemonSet,
    which: impl Fn(&k8s_openapi::api::apps::v1::RollingUpdateDaemonSet) -> Option<IntOrString>,
    desired: usize,
) -> usize {
    let update =
        set.spec.as_ref().and_then(|s| s.update_strategy.as_ref()).and_then(|u| u.rolling_update.as_ref());
    match update.and_then(which) {
        Some(IntOrString::Int(n)) => usize::try_from(n).unwrap_or(0),
        Some(IntOrString::String(s)) => {
            let percent: usize = s.trim_end_matches('%').parse().unwrap_or(0);
            (desired * percent).div_ceil(100)
        }
        None => 0,
    }
}

impl Scene<'_> {
    /// The pods by the node they are on or tied to.
    fn by_node(&self) -> BTreeMap<&str, Vec<&Arc<Pod>>> {
        let mut map: BTreeMap<&str, Vec<&Arc<Pod>>> = BTreeMap::new();
        for pod in self.pods {
            if let Some(node) = target(pod) {
                map.entry(node).or_default().push(pod);
            }
        }
        // Those that are on the node first, then the oldest.
        let unassigned =
            |p: &Pod| p.spec.as_ref().and_then(|s| s.node_name.as_deref()).is_none_or(str::is_empty);
        for pods in map.values_mut() {
            pods.sort_by_key(|p| {
                (unassigned(p), p.metadata.creation_timestamp.as_ref().map(|t| t.0), p.metadata.name.clone())
            });
        }
        map
    }

    fn is_updated(&self, pod: &Pod) -> bool {
        let label = |k: &str| pod.metadata.labels.as_ref().and_then(|l| l.get(k));
        let generation = self.set.metadata.annotations.as_ref().and_then(|a| a.get(GENERATION_ANNOTATION));
        (!self.hash.is_empty() && label(HASH).is_some_and(|h| h == self.hash))
            || (generation.is_some() && label(GENERATION) == generation)
    }

    fn min_ready(&self) -> i32 {
        self.set.spec.as_ref().and_then(|s| s.min_ready_seconds).unwrap_or(0)
    }

    fn is_available(&self, pod: &Pod) -> bool {
        availability(pod, self.min_ready(), self.now).is_ok()
    }

    fn max_surge(&self, desired: usize) -> usize {
        bound(self.set, |u| u.max_surge.clone(), desired)
    }

    fn desired(&self) -> usize {
        self.nodes.iter().filter(|n| fit(self.set, n) == Fit::Run).count()
    }

    /// Pods that are missing, and pods that are where they must not be or are too many.
    pub fn manage(&self) -> Plan {
        let mut plan = Plan::default();
        let by_node = self.by_node();
        let surging = self.max_surge(self.nodes.len()) > 0;
        for node in self.nodes {
            let name = name_of(node);
            let pods = by_node.get(name).map(Vec::as_slice).unwrap_or_default();
            match (fit(self.set, node), pods) {
                (Fit::Run, []) => plan.create.push(name.to_string()),
                (Fit::Leave, _) => {
                    plan.delete.extend(pods.iter().filter(|p| !is_going(p)).map(|p| (*p).clone()))
                }
                _ => self.manage_node(name, pods, surging, &mut plan),
            }
        }
        // Pods that wait for a node that is gone will never start.
        let known: BTreeSet<&str> = self.nodes.iter().map(|n| name_of(n)).collect();
        for (_, pods) in by_node.iter().filter(|(n, _)| !known.contains(*n)) {
            let waits = |p: &&&Arc<Pod>| {
                p.spec.as_ref().and_then(|s| s.node_name.as_deref()).is_none_or(str::is_empty)
            };
            plan.delete.extend(pods.iter().filter(waits).filter(|p| !is_going(p)).map(|p| (*p).clone()));
        }
        plan
    }

    fn manage_node(&self, name: &str, pods: &[&Arc<Pod>], surging: bool, plan: &mut Plan) {
        let mut running: Vec<&Arc<Pod>> = Vec::new();
        for pod in pods.iter().copied().filter(|p| !is_going(p)) {
            if phase(pod) == "Failed" {
                plan.failed.push((name.to_string(), pod.clone()));
            } else {
                running.push(pod);
            }
        }
        if surging {
            // One of the old template and one of the new may be there side by side.
            let (new, old): (Vec<_>, Vec<_>) = running.into_iter().partition(|p| self.is_updated(p));
            for surplus in [new, old] {
                plan.delete.extend(surplus.into_iter().skip(1).cloned());
            }
        } else {
            plan.delete.extend(running.into_iter().skip(1).cloned());
        }
    }

    /// The next step of a rolling update.
    pub fn roll(&self) -> Plan {
        let desired = self.desired();
        let surge = self.max_surge(desired);
        let mut max_unavailable = bound(self.set, |u| u.max_unavailable.clone(), desired);
        if max_unavailable == 0 && surge == 0 {
            max_unavailable = 1;
        }
        if surge > 0 { self.roll_with_surge(surge) } else { self.roll_in_place(max_unavailable) }
    }

    fn roll_in_place(&self, max_unavailable: usize) -> Plan {
        let by_node = self.by_node();
        let has_available = |n: &&Arc<Node>| {
            by_node.get(name_of(n)).is_some_and(|l| l.iter().any(|p| self.is_available(p) && !is_going(p)))
        };
        let unavailable =
            self.nodes.iter().filter(|n| fit(self.set, n) == Fit::Run).filter(|n| !has_available(n)).count();
        let (available, broken): (Vec<Arc<Pod>>, Vec<Arc<Pod>>) = by_node
            .values()
            .flatten()
            .filter(|p| !self.is_updated(p) && !is_going(p))
            .map(|p| (*p).clone())
            .partition(|p| self.is_available(p));
        let mut plan = Plan { delete: broken, ..Default::default() };
        plan.delete.extend(available.into_iter().take(max_unavailable.saturating_sub(unavailable)));
        plan
    }

    fn roll_with_surge(&self, max_surge: usize) -> Plan {
        let by_node = self.by_node();
        let mut plan = Plan::default();
        let (mut surging, mut candidates) = (0, Vec::new());
        for node in self.nodes.iter().filter(|n| fit(self.set, n) == Fit::Run) {
            let pods = by_node.get(name_of(node)).map(Vec::as_slice).unwrap_or_default();
            let live = || pods.iter().filter(|p| !is_going(p));
            let (new, old) = (live().find(|p| self.is_updated(p)), live().find(|p| !self.is_updated(p)));
            match (new, old) {
                (_, None) => {}
                // One that does not work anyway is replaced at once.
                (None, Some(old)) if !self.is_available(old) => plan.create.push(name_of(node).to_string()),
                (None, Some(_)) => candidates.push(name_of(node).to_string()),
                (Some(new), Some(old)) => {
                    surging += 1;
                    if self.is_available(new) {
                        plan.delete.push((*old).clone());
                    }
                }
            }
        }
        let left = max_surge.saturating_sub(surging + plan.create.len());
        plan.create.extend(candidates.into_iter().take(left));
        plan
    }

    /// The status. `observed`: whether this generation has been acted on.
    pub fn status(&self, observed: bool) -> DaemonSetStatus {
        let by_node = self.by_node();
        let (mut desired, mut current, mut wrong, mut ready, mut available, mut updated) = (0, 0, 0, 0, 0, 0);
        for node in self.nodes {
            let pods = by_node.get(name_of(node)).map(Vec::as_slice).unwrap_or_default();
            if fit(self.set, node) != Fit::Run {
                wrong += i32::from(!pods.is_empty());
                continue;
            }
            desired += 1;
            let Some(first) = pods.first() else { continue };
            current += 1;
            if is_ready(first) {
                ready += 1;
                available += i32::from(self.is_available(first));
            }
            updated += i32::from(self.is_updated(first));
        }
        let old = self.set.status.clone().unwrap_or_default();
        let set = |n: i32| Some(n).filter(|n| *n != 0);
        DaemonSetStatus {
            current_number_scheduled: current,
            desired_number_scheduled: desired,
            number_misscheduled: wrong,
            number_ready: ready,
            number_available: set(available),
            number_unavailable: set(desired - available),
            updated_number_scheduled: set(updated),
            observed_generation: if observed {
                self.set.metadata.generation
            } else {
                old.observed_generation
            },
            collision_count: old.collision_count,
            conditions: old.conditions,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn set(update: serde_json::Value) -> DaemonSet {
        serde_json::from_value(json!({"metadata": {"name": "ds", "generation": 2},
            "spec": {"selector": {}, "template": {"spec": {"containers": []}},
                "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": update}}}))
        .unwrap()
    }

    fn nodes(n: usize) -> Vec<Arc<Node>> {
        (0..n)
            .map(|i| {
                Arc::new(serde_json::from_value(json!({"metadata": {"name": format!("n{i}")}})).unwrap())
            })
            .collect()
    }

    fn pod(name: &str, node: &str, hash: &str, ready: bool) -> Arc<Pod> {
        Arc::new(
            serde_json::from_value(json!({"metadata": {"name": name, "labels": {HASH: hash}},
                "spec": {"containers": [], "nodeName": node},
                "status": {"phase": "Running", "conditions": [{"type": "Ready",
                    "status": if ready {"True"} else {"False"}}]}}))
            .unwrap(),
        )
    }

    fn scene<'a>(set: &'a DaemonSet, nodes: &'a [Arc<Node>], pods: &'a [Arc<Pod>]) -> Scene<'a> {
        Scene { set, nodes, pods, hash: "new", now: Timestamp::UNIX_EPOCH }
    }

    fn names(pods: &[Arc<Pod>]) -> Vec<&str> {
        pods.iter().map(|p| p.metadata.name.as_deref().unwrap()).collect()
    }

    #[test]
    fn one_pod_on_each_node() {
        let (s, n) = (set(json!({"maxUnavailable": 1})), nodes(3));
        let pods =
            [pod("a", "n0", "new", true), pod("b", "n0", "new", true), pod("gone", "elsewhere", "new", true)];
        let plan = scene(&s, &n, &pods).manage();
        assert_eq!(plan.create, ["n1", "n2"]);
        assert_eq!(names(&plan.delete), ["b"]);
        let status = scene(&s, &n, &pods).status(true);
        assert_eq!((status.desired_number_scheduled, status.current_number_scheduled), (3, 1));
        assert_eq!((status.number_unavailable, status.updated_number_scheduled), (Some(2), Some(1)));
        assert_eq!(status.observed_generation, Some(2));
    }

    #[test]
    fn a_rolling_update_keeps_to_its_bound() {
        let (s, n) = (set(json!({"maxUnavailable": "50%"})), nodes(4));
        let pods: Vec<_> = (0..4).map(|i| pod(&format!("p{i}"), &format!("n{i}"), "old", i != 3)).collect();
        // One is broken: it goes anyway, and one more may go.
        assert_eq!(names(&scene(&s, &n, &pods).roll().delete), ["p3", "p0"]);
        let stuck: Vec<_> = (0..4)
            .map(|i| pod(&format!("p{i}"), &format!("n{i}"), if i < 2 { "new" } else { "old" }, i > 1))
            .collect();
        assert!(scene(&s, &n, &stuck).roll().delete.is_empty());
    }

    #[test]
    fn a_surge_makes_the_new_pod_first() {
        let (s, n) = (set(json!({"maxUnavailable": 0, "maxSurge": 1})), nodes(2));
        let old = [pod("a", "n0", "old", true), pod("b", "n1", "old", true)];
        let plan = scene(&s, &n, &old).roll();
        assert_eq!((plan.create, plan.delete.len()), (vec!["n0".to_string()], 0));
        let both = [pod("a", "n0", "old", true), pod("c", "n0", "new", true), pod("b", "n1", "old", true)];
        assert_eq!(names(&scene(&s, &n, &both).roll().delete), ["a"]);
        assert!(scene(&s, &n, &both).manage().delete.is_empty());
    }
}
