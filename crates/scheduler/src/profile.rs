//! A profile: the rules that are in use for the pods of one scheduler name, and the decision made with them.

use std::collections::{BTreeMap, HashMap};

use async_trait::async_trait;

use crate::cache::Cluster;
use crate::framework::{Code, FilterPlugin, Filters, ScorePlugin, Status};
use crate::plugins::balanced_allocation::BalancedAllocation;
use crate::plugins::default_preemption::{Candidate, DefaultPreemption, fits_with_nominated};
use crate::plugins::image_locality::ImageLocality;
use crate::plugins::inter_pod_affinity::InterPodAffinity;
use crate::plugins::least_allocated::{LeastAllocated, MostAllocated};
use crate::plugins::node_affinity::NodeAffinity;
use crate::plugins::node_name::NodeName;
use crate::plugins::node_ports::NodePorts;
use crate::plugins::node_prefer_avoid_pods::NodePreferAvoidPods;
use crate::plugins::node_resources_fit::NodeResourcesFit;
use crate::plugins::node_unschedulable::NodeUnschedulable;
use crate::plugins::node_volume_limits::{Kind, NodeVolumeLimits};
use crate::plugins::pod_topology_spread::PodTopologySpread;
use crate::plugins::taint_toleration::TaintToleration;
use crate::plugins::volume_binding::VolumeBinding;
use crate::plugins::volume_restrictions::VolumeRestrictions;
use crate::plugins::volume_zone::VolumeZone;
use crate::queue::Nominated;
use crate::types::{NodeInfo, PodInfo};
use crate::writer::Writer;

/// A rule that sets something aside for a pod when its node is decided.
pub trait ReservePlugin: Send + Sync {
    /// Sets aside; `None` where there is nothing to.
    fn reserve(
        &self,
        pod: &PodInfo,
        node: &NodeInfo,
        cluster: &Cluster,
    ) -> Result<Option<Box<dyn Reservation>>, Status>;
}

/// What was set aside; dropping it gives it back.
#[async_trait]
pub trait Reservation: Send + Sync {
    /// What must be done before the pod is bound to its node.
    async fn pre_bind(&self, writer: &dyn Writer) -> Result<(), String>;
}

/// Arguments of the rules.
#[derive(Debug, Clone, Default)]
pub struct Arguments {
    /// Of `NodeResourcesFit`.
    pub fit: NodeResourcesFit,
    /// Of `PodTopologySpread`.
    pub spread: PodTopologySpread,
    /// Of `DefaultPreemption`.
    pub preemption: DefaultPreemption,
    /// Of `InterPodAffinity`; 1 where there is none.
    pub hard_pod_affinity_weight: Option<i64>,
    /// Of `VolumeBinding`.
    pub bind_timeout: Option<std::time::Duration>,
}

/// Names of the filters that are used where configuration says nothing, in their order.
pub const FILTERS: [&str; 15] = [
    "NodeUnschedulable",
    "NodeName",
    "TaintToleration",
    "NodeAffinity",
    "NodePorts",
    "NodeResourcesFit",
    "VolumeRestrictions",
    "EBSLimits",
    "GCEPDLimits",
    "NodeVolumeLimits",
    "AzureDiskLimits",
    "VolumeBinding",
    "VolumeZone",
    "PodTopologySpread",
    "InterPodAffinity",
];

/// Names and weights of the scores that are used where configuration says nothing.
pub const SCORES: [(&str, i64); 8] = [
    ("NodeResourcesBalancedAllocation", 1),
    ("ImageLocality", 1),
    ("InterPodAffinity", 1),
    ("NodeResourcesLeastAllocated", 1),
    ("NodeAffinity", 1),
    ("NodePreferAvoidPods", 10000),
    ("PodTopologySpread", 2),
    ("TaintToleration", 1),
];

/// See the module.
pub struct Profile {
    /// The scheduler name of its pods.
    pub name: String,
    filters: Vec<Box<dyn FilterPlugin>>,
    scores: Vec<(i64, Box<dyn ScorePlugin>)>,
    reserves: Vec<Box<dyn ReservePlugin>>,
    preemption: Option<DefaultPreemption>,
    /// How many of the nodes are looked at until enough fit, in percent; 0 for what suits the size of the cluster.
    pub percentage_of_nodes_to_score: usize,
}

/// Why a pod got no node.
#[derive(Debug, Clone)]
pub enum Failure {
    /// There is no node at all.
    NoNodes,
    /// No node fits; who refused, and why.
    Unfit(HashMap<String, Status>, usize),
    /// It could not be told.
    Error(String),
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Failure::NoNodes => f.write_str("no nodes available to schedule pods"),
            Failure::Error(text) => f.write_str(text),
            Failure::Unfit(refusals, nodes) => {
                let mut counts: HashMap<&str, usize> = HashMap::new();
                for reason in refusals.values().flat_map(|s| &s.reasons) {
                    *counts.entry(reason).or_default() += 1;
                }
                let mut texts: Vec<String> =
                    counts.into_iter().map(|(reason, n)| format!("{n} {reason}")).collect();
                texts.sort();
                write!(f, "0/{nodes} nodes are available: {}.", texts.join(", "))
            }
        }
    }
}

/// The nodes that a pod fits.
#[derive(Debug)]
pub struct Fit {
    /// Their names.
    pub nodes: Vec<String>,
    /// Who refused, and why.
    pub refusals: HashMap<String, Status>,
}

/// What is drawn by lot or goes on from pod to pod.
pub struct Rotation<'a> {
    /// Where among the nodes the search begins; moved on by it.
    pub start: &'a mut usize,
    /// A number below its argument, at random.
    pub random: &'a mut dyn FnMut(usize) -> usize,
}

impl Profile {
    /// A profile of the named rules; an error for a name that is not known.
    pub fn new(
        name: &str,
        filters: &[String],
        scores: &[(String, i64)],
        preempts: bool,
        arguments: &Arguments,
        binding: &VolumeBinding,
    ) -> Result<Profile, String> {
        let affinity =
            InterPodAffinity { hard_pod_affinity_weight: arguments.hard_pod_affinity_weight.unwrap_or(1) };
        let mut profile = Profile {
            name: name.into(),
            filters: Vec::new(),
            scores: Vec::new(),
            reserves: Vec::new(),
            preemption: preempts.then_some(arguments.preemption),
            percentage_of_nodes_to_score: 0,
        };
        for filter in filters {
            profile.filters.push(match filter.as_str() {
                "NodeUnschedulable" => Box::new(NodeUnschedulable),
                "NodeName" => Box::new(NodeName),
                "TaintToleration" => Box::new(TaintToleration),
                "NodeAffinity" => Box::new(NodeAffinity),
                "NodePorts" => Box::new(NodePorts),
                "NodeResourcesFit" => Box::new(arguments.fit.clone()),
                "VolumeRestrictions" => Box::new(VolumeRestrictions),
                "EBSLimits" => Box::new(NodeVolumeLimits(Kind::Ebs)),
                "GCEPDLimits" => Box::new(NodeVolumeLimits(Kind::GcePd)),
                "NodeVolumeLimits" => Box::new(NodeVolumeLimits(Kind::Csi)),
                "AzureDiskLimits" => Box::new(NodeVolumeLimits(Kind::AzureDisk)),
                "VolumeBinding" => {
                    profile.reserves.push(Box::new(binding.clone()));
                    Box::new(binding.clone())
                }
                "VolumeZone" => Box::new(VolumeZone),
                "PodTopologySpread" => Box::new(arguments.spread.clone()),
                "InterPodAffinity" => Box::new(affinity),
                other => return Err(format!("plugin {other:?} does not exist as a filter")),
            });
        }
        for (score, weight) in scores {
            let plugin: Box<dyn ScorePlugin> = match score.as_str() {
                "NodeResourcesBalancedAllocation" => Box::new(BalancedAllocation),
                "ImageLocality" => Box::new(ImageLocality),
                "InterPodAffinity" => Box::new(affinity),
                "NodeResourcesLeastAllocated" => Box::new(LeastAllocated),
                "NodeResourcesMostAllocated" => Box::new(MostAllocated),
                "NodeAffinity" => Box::new(NodeAffinity),
                "NodePreferAvoidPods" => Box::new(NodePreferAvoidPods),
                "PodTopologySpread" => Box::new(arguments.spread.clone()),
                "TaintToleration" => Box::new(TaintToleration),
                other => return Err(format!("plugin {other:?} does not exist as a score")),
            };
            profile.scores.push((*weight, plugin));
        }
        Ok(profile)
    }

    /// The profile of v1.20's defaults.
    pub fn default_for(name: &str) -> Profile {
        let scores = SCORES.map(|(n, w)| (n.to_string(), w));
        let arguments = Arguments::default();
        match Profile::new(
            name,
            &FILTERS.map(String::from),
            &scores,
            true,
            &arguments,
            &VolumeBinding::default(),
        ) {
            Ok(profile) => profile,
            Err(e) => unreachable!("the defaults are known: {e}"),
        }
    }

    /// How many fitting nodes are enough.
    fn enough(&self, nodes: usize) -> usize {
        const MIN: usize = 100;
        if nodes < MIN || self.percentage_of_nodes_to_score >= 100 {
            return nodes;
        }
        let percentage = match self.percentage_of_nodes_to_score {
            0 => 50usize.saturating_sub(nodes / 125).max(5),
            p => p,
        };
        (nodes * percentage / 100).max(MIN)
    }

    /// The node for a pod. On failure also who could be made to go for it.
    pub fn decide(
        &self,
        pod: &PodInfo,
        cluster: &Cluster,
        nominated: &Nominated,
        mut rotation: Rotation<'_>,
    ) -> Result<String, (Failure, Option<Candidate>)> {
        let fit = self.fit(pod, cluster, nominated, &mut rotation)?;
        let chosen = self.choose(pod, &fit.nodes, &BTreeMap::new(), cluster, rotation.random);
        chosen.ok_or((Failure::NoNodes, None))
    }

    /// The nodes that a pod fits; at least one. On failure also who could be made to go for it.
    pub fn fit(
        &self,
        pod: &PodInfo,
        cluster: &Cluster,
        nominated: &Nominated,
        rotation: &mut Rotation<'_>,
    ) -> Result<Fit, (Failure, Option<Candidate>)> {
        let nodes = cluster.len();
        if nodes == 0 {
            return Err((Failure::NoNodes, None));
        }
        let filters = match Filters::prepare(&self.filters, pod, cluster) {
            Ok(filters) => filters,
            Err(s) if s.code == Code::Error => return Err((Failure::Error(s.reasons.join(", ")), None)),
            Err(status) => {
                let all = cluster.nodes().map(|n| (n.name.clone(), status.clone())).collect();
                return Err((Failure::Unfit(all, nodes), None));
            }
        };
        let (mut fit, mut refusals) = (Vec::new(), HashMap::new());
        let enough = self.enough(nodes);
        let mut seen = 0;
        while seen < nodes && fit.len() < enough {
            let node = cluster.at(*rotation.start + seen);
            seen += 1;
            match fits_with_nominated(pod, &filters, node, cluster, nominated) {
                Ok(()) => fit.push(node),
                Err(s) if s.code == Code::Error => return Err((Failure::Error(s.reasons.join(", ")), None)),
                Err(status) => {
                    refusals.insert(node.name.clone(), status);
                }
            }
        }
        *rotation.start = (*rotation.start + seen) % nodes;
        if fit.is_empty() {
            let start = (rotation.random)(nodes);
            let find = |p: DefaultPreemption| p.find(pod, &filters, &refusals, cluster, nominated, start);
            let candidate = self.preemption.and_then(find);
            return Err((Failure::Unfit(refusals, nodes), candidate));
        }
        Ok(Fit { nodes: fit.into_iter().map(|n| n.name.clone()).collect(), refusals })
    }

    /// Who could be made to go for a pod that extenders want nowhere.
    pub fn candidate(
        &self,
        pod: &PodInfo,
        refusals: &HashMap<String, Status>,
        cluster: &Cluster,
        nominated: &Nominated,
        start: usize,
    ) -> Option<Candidate> {
        let filters = Filters::prepare(&self.filters, pod, cluster).ok()?;
        self.preemption?.find(pod, &filters, refusals, cluster, nominated, start)
    }

    /// The best of the nodes that are still there. `extra`: scores to add.
    pub fn choose(
        &self,
        pod: &PodInfo,
        nodes: &[String],
        extra: &BTreeMap<String, i64>,
        cluster: &Cluster,
        random: &mut dyn FnMut(usize) -> usize,
    ) -> Option<String> {
        let there: Vec<&NodeInfo> = nodes.iter().filter_map(|n| cluster.node(n)).collect();
        match there[..] {
            [] => None,
            [node] => Some(node.name.clone()),
            _ => Some(self.best(pod, &there, extra, cluster, random)),
        }
    }

    /// One of the nodes with the highest score, by lot.
    fn best(
        &self,
        pod: &PodInfo,
        nodes: &[&NodeInfo],
        extra: &BTreeMap<String, i64>,
        cluster: &Cluster,
        random: &mut dyn FnMut(usize) -> usize,
    ) -> String {
        let mut totals = vec![0i64; nodes.len()];
        let mut scores = vec![0i64; nodes.len()];
        for (weight, plugin) in &self.scores {
            let Some(score) = plugin.pre_score(pod, nodes, cluster) else { continue };
            for (s, node) in scores.iter_mut().zip(nodes) {
                *s = score.score(pod, node, cluster);
            }
            score.normalize(nodes, &mut scores);
            totals.iter_mut().zip(&scores).for_each(|(total, s)| *total += weight * s);
        }
        for (total, node) in totals.iter_mut().zip(nodes) {
            *total += extra.get(&node.name).copied().unwrap_or(0);
        }
        let highest = totals.iter().copied().max().unwrap_or(0);
        let best: Vec<usize> = (0..nodes.len()).filter(|i| totals[*i] == highest).collect();
        nodes[best[random(best.len())]].name.clone()
    }

    /// Sets aside what a pod needs on its node.
    pub fn reserve(
        &self,
        pod: &PodInfo,
        node: &str,
        cluster: &Cluster,
    ) -> Result<Vec<Box<dyn Reservation>>, Status> {
        let Some(node) = cluster.node(node) else { return Ok(Vec::new()) };
        self.reserves.iter().filter_map(|r| r.reserve(pod, node, cluster).transpose()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{cluster, node, placed, pod};
    use serde_json::json;

    fn decide(profile: &Profile, p: &PodInfo, c: &Cluster) -> Result<String, String> {
        let rotation = Rotation { start: &mut 0, random: &mut |_| 0 };
        profile.decide(p, c, &Nominated::default(), rotation).map_err(|(failure, _)| failure.to_string())
    }

    #[test]
    fn refusals_are_counted_and_sorted() {
        let profile = Profile::default_for("default-scheduler");
        let p = pod(
            json!({"spec": {"nodeSelector": {"disk": "ssd"}, "containers": [{"name": "c", "resources": {"requests": {"cpu": "9"}}}]}}),
        );
        assert_eq!(
            decide(&profile, &p, &cluster([], [])).unwrap_err(),
            "no nodes available to schedule pods"
        );
        let ssd = json!({"metadata": {"labels": {"disk": "ssd"}}});
        let tainted = json!({"spec": {"taints": [{"key": "t", "value": "v", "effect": "NoSchedule"}]}});
        let c = cluster(
            [node("a", ssd.clone()), node("b", json!({})), node("c", json!({})), node("d", tainted)],
            [],
        );
        assert_eq!(
            decide(&profile, &p, &c).unwrap_err(),
            "0/4 nodes are available: 1 Insufficient cpu, 1 node(s) had taint {t: v}, that the pod didn't tolerate, \
             2 node(s) didn't match Pod's node affinity."
        );
        let small = pod(json!({"spec": {"nodeSelector": {"disk": "ssd"}}}));
        assert_eq!(decide(&profile, &small, &c).unwrap(), "a");
    }

    #[test]
    fn the_emptier_node_wins() {
        let profile = Profile::default_for("default-scheduler");
        let big = json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "2", "memory": "4Gi"}}}]}});
        let c = cluster([node("a", json!({})), node("b", json!({}))], [placed("x", "a", "x", big)]);
        assert_eq!(decide(&profile, &pod(json!({})), &c).unwrap(), "b");
    }

    #[test]
    fn large_clusters_are_sampled() {
        let mut profile = Profile::default_for("x");
        assert_eq!(
            [50, 99, 100, 1000, 5000, 10_000].map(|n| profile.enough(n)),
            [50, 99, 100, 420, 500, 500]
        );
        profile.percentage_of_nodes_to_score = 30;
        assert_eq!(profile.enough(1000), 300);
    }
}
