//! The cluster as the scheduler knows it: nodes with their pods, and pods that are assumed to be on nodes although the
//! API server has not said so yet.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use pilothouse_apimachinery::selector::Selector;
use tokio::time::Instant;

use crate::labels;
use crate::listers::Listers;
use crate::types::{Namespaces, NodeInfo, PodInfo};

/// How long a bound pod is assumed to be on its node while the API server does not say so.
const ASSUMED_FOR: Duration = Duration::from_secs(30);

struct Placed {
    pod: Arc<PodInfo>,
    node: String,
    /// Whether we only assume it to be there.
    assumed: bool,
    /// When the assumption ends; not before its binding has ended.
    until: Option<Instant>,
}

/// See the module.
pub struct Cluster {
    slots: Vec<NodeInfo>,
    by_name: HashMap<String, usize>,
    /// Nodes that have an object, one of each zone in turn.
    order: Vec<usize>,
    pods: HashMap<String, Placed>,
    /// On how many nodes each image is.
    images: HashMap<String, usize>,
    /// Objects of other kinds.
    pub listers: Arc<Listers>,
}

impl Namespaces for Cluster {
    fn selected(&self, namespace: &str, selector: &Selector) -> bool {
        let found = self.listers.namespaces.get(namespace);
        labels::matches(
            selector,
            found.as_ref().and_then(|n| n.metadata.labels.as_ref()).unwrap_or(&BTreeMap::new()),
        )
    }
}

impl Cluster {
    /// A cluster without nodes.
    pub fn new(listers: Arc<Listers>) -> Cluster {
        Cluster {
            slots: Vec::new(),
            by_name: HashMap::new(),
            order: Vec::new(),
            pods: HashMap::new(),
            images: HashMap::new(),
            listers,
        }
    }

    /// How many nodes there are.
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// Whether there is no node.
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// The node at a place in the order of zones.
    pub fn at(&self, i: usize) -> &NodeInfo {
        &self.slots[self.order[i % self.order.len()]]
    }

    /// All nodes, in the order of zones.
    pub fn nodes(&self) -> impl Iterator<Item = &NodeInfo> {
        self.order.iter().map(|i| &self.slots[*i])
    }

    /// A node by its name.
    pub fn node(&self, name: &str) -> Option<&NodeInfo> {
        self.by_name.get(name).map(|i| &self.slots[*i]).filter(|n| n.node.is_some())
    }

    /// On how many nodes an image is.
    pub fn nodes_with_image(&self, image: &str) -> usize {
        self.images.get(image).copied().unwrap_or(0)
    }

    fn slot(&mut self, name: &str) -> &mut NodeInfo {
        let i = match self.by_name.get(name) {
            Some(i) => *i,
            None => {
                self.slots.push(NodeInfo::new(name));
                self.by_name.insert(name.to_string(), self.slots.len() - 1);
                self.slots.len() - 1
            }
        };
        &mut self.slots[i]
    }

    /// Takes a node in, new or changed.
    pub fn set_node(&mut self, node: Arc<Node>) {
        let name = node.metadata.name.clone().unwrap_or_default();
        let slot = self.slot(&name);
        let before = slot.node.as_ref().map(|n| zone_of(n));
        let old_images = std::mem::take(&mut slot.images);
        let zone = zone_of(&node);
        slot.set_node(node);
        let new_images: Vec<String> = slot.images.keys().cloned().collect();
        self.count_images(old_images.into_keys(), new_images);
        if before != Some(zone) {
            self.reorder();
        }
    }

    /// Takes a node away. Pods on it stay known until they are gone, too.
    pub fn remove_node(&mut self, name: &str) {
        let Some(i) = self.by_name.get(name).copied() else { return };
        let images = std::mem::take(&mut self.slots[i].images);
        self.slots[i].node = None;
        self.count_images(images.into_keys(), Vec::new());
        self.drop_if_unused(name);
        self.reorder();
    }

    fn count_images(&mut self, old: impl Iterator<Item = String>, new: Vec<String>) {
        for image in old {
            if let Some(n) = self.images.get_mut(&image) {
                *n -= 1;
                if *n == 0 {
                    self.images.remove(&image);
                }
            }
        }
        for image in new {
            *self.images.entry(image).or_default() += 1;
        }
    }

    fn drop_if_unused(&mut self, name: &str) {
        let Some(i) = self.by_name.get(name).copied() else { return };
        if self.slots[i].node.is_some() || !self.slots[i].pods.is_empty() {
            return;
        }
        self.by_name.remove(name);
        self.slots.swap_remove(i);
        if let Some(moved) = self.slots.get(i) {
            self.by_name.insert(moved.name.clone(), i);
            self.reorder();
        }
    }

    /// One node of each zone in turn, so that the first few are in different zones.
    fn reorder(&mut self) {
        let mut zones: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        let mut nodes: Vec<(usize, &NodeInfo)> = self.slots.iter().enumerate().collect();
        nodes.sort_by(|a, b| a.1.name.cmp(&b.1.name));
        for (i, info) in nodes {
            if let Some(node) = &info.node {
                zones.entry(zone_of(node)).or_default().push(i);
            }
        }
        let longest = zones.values().map(Vec::len).max().unwrap_or(0);
        self.order =
            (0..longest).flat_map(|n| zones.values().filter_map(move |z| z.get(n).copied())).collect();
    }

    /// Assumes that a pod is on a node, which its binding will make true.
    pub fn assume(&mut self, pod: Arc<PodInfo>, node: &str) {
        self.place(pod, node, true);
    }

    /// Takes in that a pod's binding has ended well: the API server should tell soon.
    pub fn finish_binding(&mut self, key: &str) {
        if let Some(placed) = self.pods.get_mut(key).filter(|p| p.assumed) {
            placed.until = Some(Instant::now() + ASSUMED_FOR);
        }
    }

    /// Takes back an assumption.
    pub fn forget(&mut self, key: &str) {
        if self.is_assumed(key) {
            self.remove_pod(key);
        }
    }

    /// Whether a pod is only assumed to be on its node.
    pub fn is_assumed(&self, key: &str) -> bool {
        self.pods.get(key).is_some_and(|p| p.assumed)
    }

    /// Ends assumptions that the API server has not confirmed in time.
    pub fn expire(&mut self, now: Instant) {
        let late = |p: &Placed| p.assumed && p.until.is_some_and(|u| u <= now);
        let keys: Vec<String> = self.pods.iter().filter(|(_, p)| late(p)).map(|(k, _)| k.clone()).collect();
        keys.iter().for_each(|k| self.remove_pod(k));
    }

    /// Takes a pod in that the API server says is on a node, new or changed.
    pub fn set_pod(&mut self, pod: Arc<PodInfo>) {
        let Some(node) = pod.node_name().map(String::from) else { return };
        self.place(pod, &node, false);
    }

    fn place(&mut self, pod: Arc<PodInfo>, node: &str, assumed: bool) {
        self.remove_pod(&pod.key);
        self.slot(node).add_pod(pod.clone());
        self.pods.insert(pod.key.clone(), Placed { pod, node: node.into(), assumed, until: None });
    }

    /// Takes a pod away.
    pub fn remove_pod(&mut self, key: &str) {
        let Some(placed) = self.pods.remove(key) else { return };
        if let Some(i) = self.by_name.get(&placed.node).copied() {
            self.slots[i].remove_pod(&placed.pod.uid);
            self.drop_if_unused(&placed.node);
        }
    }

    /// A pod that is on a node, or assumed to be.
    pub fn pod(&self, key: &str) -> Option<&Arc<PodInfo>> {
        self.pods.get(key).map(|p| &p.pod)
    }
}

/// The zone of a node, region included.
fn zone_of(node: &Node) -> String {
    let labels = node.metadata.labels.as_ref();
    let label = |names: [&str; 2]| {
        labels.and_then(|l| names.iter().find_map(|n| l.get(*n))).map(String::as_str).unwrap_or_default()
    };
    let region = label(["topology.kubernetes.io/region", "failure-domain.beta.kubernetes.io/region"]);
    let zone = label(["topology.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/zone"]);
    if region.is_empty() && zone.is_empty() { String::new() } else { format!("{region}:\0:{zone}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{cluster, node, pod};
    use serde_json::json;

    #[test]
    fn zones_take_turns() {
        let zone = |z: &str| json!({"metadata": {"labels": {"topology.kubernetes.io/zone": z}}});
        let c = cluster(
            [node("a1", zone("a")), node("a2", zone("a")), node("b1", zone("b")), node("a3", zone("a"))],
            [],
        );
        assert_eq!(c.nodes().map(|n| n.name.as_str()).collect::<Vec<_>>(), ["a1", "b1", "a2", "a3"]);
    }

    #[tokio::test(start_paused = true)]
    async fn assumptions_end_or_come_true() {
        let mut c = cluster([node("n", json!({}))], []);
        let p = |name: &str, node: Option<&str>| {
            Arc::new(pod(
                json!({"metadata": {"name": name}, "spec": {"nodeName": node, "containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}}}]}}),
            ))
        };
        for name in ["a", "b", "c"] {
            c.assume(p(name, None), "n");
        }
        assert_eq!(c.node("n").unwrap().requested.milli_cpu, 3000);
        c.forget("ns/a");
        c.finish_binding("ns/b");
        c.finish_binding("ns/c");
        c.set_pod(p("c", Some("n")));
        assert!(!c.is_assumed("ns/c") && c.is_assumed("ns/b"));
        c.expire(Instant::now() + Duration::from_secs(29));
        assert_eq!(c.node("n").unwrap().pods.len(), 2);
        c.expire(Instant::now() + Duration::from_secs(31));
        assert_eq!(c.node("n").unwrap().requested.milli_cpu, 1000);
        c.remove_node("n");
        assert!(c.node("n").is_none() && c.is_empty());
        c.remove_pod("ns/c");
        assert!(c.slots.is_empty());
    }
}
