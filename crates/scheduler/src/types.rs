//! Pods and nodes as the scheduler sees them: what its rules ask for, worked out once.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Node, Pod, PodAffinityTerm, PodSpec, Taint, Toleration};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use pilothouse_apimachinery::quantity;
use pilothouse_apimachinery::selector::Selector;

use crate::labels::{self, Labels, NodeTerm, NodeTerms};

/// What scoring takes a container to use that says nothing of CPU, in thousandths.
const DEFAULT_MILLI_CPU: i64 = 100;
/// What scoring takes a container to use that says nothing of memory, in bytes.
const DEFAULT_MEMORY: i64 = 200 * 1024 * 1024;

/// Amounts of resources.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resources {
    /// Thousandths of a CPU.
    pub milli_cpu: i64,
    /// Bytes.
    pub memory: i64,
    /// Bytes.
    pub ephemeral_storage: i64,
    /// Extended resources, huge pages and the like.
    pub scalar: BTreeMap<String, i64>,
}

/// The whole number that a quantity stands for, rounded up; 0 where it is malformed.
pub fn whole(q: &Quantity) -> i64 {
    quantity::Quantity::parse(&q.0).map_or(0, |q| q.value())
}

fn milli(q: &Quantity) -> i64 {
    quantity::Quantity::parse(&q.0).map_or(0, |q| q.milli_value())
}

fn is_scalar(name: &str) -> bool {
    // Native resources have no domain, or one of Kubernetes' own.
    let native = !name.contains('/') || name.contains("kubernetes.io/");
    !native
        || name.starts_with("hugepages-")
        || name.contains("kubernetes.io/")
        || name.starts_with("attachable-volumes-")
}

impl Resources {
    /// From a resource list.
    pub fn new(list: &BTreeMap<String, Quantity>) -> Resources {
        let mut r = Resources::default();
        for (name, q) in list {
            match name.as_str() {
                "cpu" => r.milli_cpu = milli(q),
                "memory" => r.memory = whole(q),
                "ephemeral-storage" => r.ephemeral_storage = whole(q),
                name if is_scalar(name) => {
                    r.scalar.insert(name.into(), whole(q));
                }
                _ => {}
            }
        }
        r
    }

    /// Adds `sign` times `other`.
    pub fn add(&mut self, other: &Resources, sign: i64) {
        self.milli_cpu += sign * other.milli_cpu;
        self.memory += sign * other.memory;
        self.ephemeral_storage += sign * other.ephemeral_storage;
        for (name, n) in &other.scalar {
            *self.scalar.entry(name.clone()).or_default() += sign * n;
        }
    }

    /// Raises each amount to that of `other`.
    fn raise(&mut self, other: &Resources) {
        self.milli_cpu = self.milli_cpu.max(other.milli_cpu);
        self.memory = self.memory.max(other.memory);
        self.ephemeral_storage = self.ephemeral_storage.max(other.ephemeral_storage);
        for (name, n) in &other.scalar {
            let have = self.scalar.entry(name.clone()).or_default();
            *have = (*have).max(*n);
        }
    }

    /// Whether nothing is asked for.
    pub fn is_zero(&self) -> bool {
        self.milli_cpu == 0
            && self.memory == 0
            && self.ephemeral_storage == 0
            && self.scalar.values().all(|n| *n == 0)
    }
}

fn requests_of(c: &Container) -> Resources {
    c.resources.as_ref().and_then(|r| r.requests.as_ref()).map(Resources::new).unwrap_or_default()
}

/// As [`requests_of`], with defaults where CPU or memory is not named.
fn non_zero_of(c: &Container) -> Resources {
    let requests = c.resources.as_ref().and_then(|r| r.requests.as_ref());
    let named = |name| requests.is_some_and(|r| r.contains_key(name));
    let mut r = requests.map(Resources::new).unwrap_or_default();
    if !named("cpu") {
        r.milli_cpu = DEFAULT_MILLI_CPU;
    }
    if !named("memory") {
        r.memory = DEFAULT_MEMORY;
    }
    r
}

/// What a pod needs: its containers together, or its largest init container where that is more; init containers that
/// stay on count with both.
fn total(spec: &PodSpec, of: impl Fn(&Container) -> Resources) -> Resources {
    let mut sum = Resources::default();
    for c in &spec.containers {
        sum.add(&of(c), 1);
    }
    let (mut staying, mut peak) = (Resources::default(), Resources::default());
    for c in spec.init_containers.iter().flatten() {
        let mut needs = of(c);
        if c.restart_policy.as_deref() == Some("Always") {
            sum.add(&needs, 1);
            staying.add(&needs, 1);
            needs = staying.clone();
        } else {
            needs.add(&staying, 1);
        }
        peak.raise(&needs);
    }
    sum.raise(&peak);
    if let Some(pod) = spec.resources.as_ref().and_then(|r| r.requests.as_ref()) {
        let whole_pod = Resources::new(pod);
        sum.milli_cpu = if pod.contains_key("cpu") { whole_pod.milli_cpu } else { sum.milli_cpu };
        sum.memory = if pod.contains_key("memory") { whole_pod.memory } else { sum.memory };
        sum.scalar.extend(whole_pod.scalar);
    }
    if let Some(overhead) = &spec.overhead {
        sum.add(&Resources::new(overhead), 1);
    }
    sum
}

/// A port of the node that a pod takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPort {
    /// Empty or `0.0.0.0` for all addresses.
    pub ip: String,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// The port.
    pub port: i32,
}

impl HostPort {
    fn any_address(&self) -> bool {
        self.ip.is_empty() || self.ip == "0.0.0.0"
    }

    /// Whether not both can be had on one node.
    pub fn conflicts(&self, other: &HostPort) -> bool {
        self.port == other.port
            && self.protocol == other.protocol
            && (self.any_address() || other.any_address() || self.ip == other.ip)
    }
}

/// A term of pod affinity or anti-affinity.
#[derive(Debug, Clone)]
pub struct AffinityTerm {
    namespaces: BTreeSet<String>,
    namespace_selector: Option<Selector>,
    selector: Selector,
    /// Which label of the nodes makes a domain.
    pub topology_key: String,
}

/// Labels of namespaces, for terms that select by them.
pub trait Namespaces {
    /// Whether a selector selects a namespace.
    fn selected(&self, namespace: &str, selector: &Selector) -> bool;
}

impl AffinityTerm {
    fn new(term: &PodAffinityTerm, namespace: &str) -> AffinityTerm {
        let mut namespaces: BTreeSet<String> = term.namespaces.iter().flatten().cloned().collect();
        let namespace_selector = term.namespace_selector.as_ref().map(|s| labels::selector(Some(s)));
        if namespaces.is_empty() && namespace_selector.is_none() {
            namespaces.insert(namespace.to_string());
        }
        AffinityTerm {
            namespaces,
            namespace_selector,
            selector: labels::selector(term.label_selector.as_ref()),
            topology_key: term.topology_key.clone(),
        }
    }

    /// Whether the term means a pod.
    pub fn matches(&self, pod: &PodInfo, namespaces: &dyn Namespaces) -> bool {
        labels::matches(&self.selector, pod.labels())
            && (self.namespaces.contains(&pod.namespace)
                || self.namespace_selector.as_ref().is_some_and(|s| namespaces.selected(&pod.namespace, s)))
    }
}

static NO_LABELS: Labels = Labels::new();

/// A pod with what the rules ask of it.
#[derive(Debug)]
pub struct PodInfo {
    /// The object.
    pub pod: Arc<Pod>,
    /// `namespace/name`.
    pub key: String,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// UID.
    pub uid: String,
    /// Priority; 0 where there is none.
    pub priority: i32,
    /// What it asks for.
    pub requests: Resources,
    /// CPU (thousandths) and memory (bytes) that scoring takes it to use.
    pub non_zero: (i64, i64),
    /// Ports of the node that it takes.
    pub ports: Vec<HostPort>,
    /// `spec.nodeSelector`.
    pub node_selector: Labels,
    /// Required node affinity.
    pub node_affinity: Option<NodeTerms>,
    /// Preferred node affinity, with weights.
    pub preferred_nodes: Vec<(i64, NodeTerm)>,
    /// Required pod affinity.
    pub affinity: Vec<AffinityTerm>,
    /// Required pod anti-affinity.
    pub anti_affinity: Vec<AffinityTerm>,
    /// Preferred pod affinity, with weights; anti-affinity has negative ones.
    pub preferred_pods: Vec<(i64, AffinityTerm)>,
    /// Whether it is being deleted.
    pub terminating: bool,
    /// When its containers were first seen to; now where they were not yet.
    pub started: Timestamp,
}

impl PodInfo {
    /// Works out a pod.
    pub fn new(pod: Arc<Pod>) -> PodInfo {
        let default_spec = PodSpec::default();
        let spec = pod.spec.as_ref().unwrap_or(&default_spec);
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        let name = pod.metadata.name.clone().unwrap_or_default();
        let non_zero = total(spec, non_zero_of);
        let affinity = spec.affinity.as_ref();
        let node = affinity.and_then(|a| a.node_affinity.as_ref());
        let near = affinity.and_then(|a| a.pod_affinity.as_ref());
        let far = affinity.and_then(|a| a.pod_anti_affinity.as_ref());
        let term = |t: &PodAffinityTerm| AffinityTerm::new(t, &namespace);
        let required = |terms: Option<&Vec<PodAffinityTerm>>| terms.into_iter().flatten().map(term).collect();
        let mut preferred_pods: Vec<(i64, AffinityTerm)> = Vec::new();
        for t in
            near.iter().flat_map(|a| a.preferred_during_scheduling_ignored_during_execution.iter().flatten())
        {
            preferred_pods.push((i64::from(t.weight), term(&t.pod_affinity_term)));
        }
        for t in
            far.iter().flat_map(|a| a.preferred_during_scheduling_ignored_during_execution.iter().flatten())
        {
            preferred_pods.push((-i64::from(t.weight), term(&t.pod_affinity_term)));
        }
        let staying =
            spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
        let ports = spec
            .containers
            .iter()
            .chain(staying)
            .flat_map(|c| c.ports.iter().flatten())
            .filter_map(|p| {
                Some(HostPort {
                    ip: p.host_ip.clone().unwrap_or_default(),
                    protocol: p.protocol.clone().unwrap_or_else(|| "TCP".into()),
                    port: p.host_port.filter(|p| *p > 0)?,
                })
            })
            .collect();
        PodInfo {
            key: format!("{namespace}/{name}"),
            uid: pod.metadata.uid.clone().unwrap_or_default(),
            priority: spec.priority.unwrap_or(0),
            requests: total(spec, requests_of),
            non_zero: (non_zero.milli_cpu, non_zero.memory),
            ports,
            node_selector: spec.node_selector.clone().unwrap_or_default(),
            node_affinity: node
                .and_then(|n| n.required_during_scheduling_ignored_during_execution.as_ref())
                .map(NodeTerms::new),
            preferred_nodes: node
                .iter()
                .flat_map(|n| n.preferred_during_scheduling_ignored_during_execution.iter().flatten())
                .filter(|t| t.weight != 0)
                .filter_map(|t| Some((i64::from(t.weight), NodeTerm::new(&t.preference)?)))
                .collect(),
            affinity: required(
                near.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref()),
            ),
            anti_affinity: required(
                far.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref()),
            ),
            preferred_pods,
            terminating: pod.metadata.deletion_timestamp.is_some(),
            started: pod
                .status
                .as_ref()
                .and_then(|s| s.start_time.as_ref())
                .map_or_else(Timestamp::now, |t| t.0),
            namespace,
            name,
            pod,
        }
    }

    /// Its labels.
    pub fn labels(&self) -> &Labels {
        self.pod.metadata.labels.as_ref().unwrap_or(&NO_LABELS)
    }

    /// Its specification.
    pub fn spec(&self) -> Option<&PodSpec> {
        self.pod.spec.as_ref()
    }

    /// The node it is on.
    pub fn node_name(&self) -> Option<&str> {
        self.spec().and_then(|s| s.node_name.as_deref()).filter(|n| !n.is_empty())
    }

    /// The node that is being made free for it.
    pub fn nominated_node(&self) -> Option<&str> {
        self.pod.status.as_ref().and_then(|s| s.nominated_node_name.as_deref()).filter(|n| !n.is_empty())
    }

    /// Its tolerations.
    pub fn tolerations(&self) -> &[Toleration] {
        self.spec().and_then(|s| s.tolerations.as_deref()).unwrap_or_default()
    }

    /// Whether its node selector and required node affinity allow a node.
    pub fn allows_node(&self, node: &NodeInfo) -> bool {
        self.node_selector.iter().all(|(k, v)| node.labels().get(k) == Some(v))
            && self.node_affinity.as_ref().is_none_or(|t| t.matches(&node.name, node.labels()))
    }

    /// Whether it cares where other pods are.
    pub fn has_affinity(&self) -> bool {
        !(self.affinity.is_empty() && self.anti_affinity.is_empty() && self.preferred_pods.is_empty())
    }
}

/// Whether tolerations tolerate a taint.
pub fn tolerated(tolerations: &[Toleration], taint: &Taint) -> bool {
    let full = |s: &Option<String>| s.clone().unwrap_or_default();
    tolerations.iter().any(|t| {
        let effect = t.effect.as_deref().unwrap_or_default();
        let key = t.key.as_deref().unwrap_or_default();
        (effect.is_empty() || effect == taint.effect)
            && (key.is_empty() || key == taint.key)
            && match t.operator.as_deref().unwrap_or("Equal") {
                "Exists" => true,
                "Equal" | "" => full(&t.value) == full(&taint.value),
                _ => false,
            }
    })
}

/// A node with the pods on it, summed up.
#[derive(Debug, Clone)]
pub struct NodeInfo {
    /// Its name.
    pub name: String,
    /// The object; none where only pods of it are known yet.
    pub node: Option<Arc<Node>>,
    /// The pods on it, assumed ones included.
    pub pods: Vec<Arc<PodInfo>>,
    /// What they ask for together.
    pub requested: Resources,
    /// CPU and memory that scoring takes them to use.
    pub non_zero: (i64, i64),
    /// What there is.
    pub allocatable: Resources,
    /// How many pods there may be.
    pub allowed_pods: i64,
    /// Sizes of the images that are there, in bytes, by every name they have.
    pub images: HashMap<String, i64>,
    /// How many of its pods care where other pods are, and how many have required anti-affinity.
    pub with_affinity: (usize, usize),
}

impl NodeInfo {
    /// A node of which nothing is known but its name.
    pub fn new(name: &str) -> NodeInfo {
        NodeInfo {
            name: name.into(),
            node: None,
            pods: Vec::new(),
            requested: Resources::default(),
            non_zero: (0, 0),
            allocatable: Resources::default(),
            allowed_pods: 0,
            images: HashMap::new(),
            with_affinity: (0, 0),
        }
    }

    /// Takes the node's object in.
    pub fn set_node(&mut self, node: Arc<Node>) {
        let status = node.status.as_ref();
        let allocatable = status.and_then(|s| s.allocatable.as_ref());
        self.allocatable = allocatable.map(Resources::new).unwrap_or_default();
        self.allowed_pods = allocatable.and_then(|a| a.get("pods")).map_or(0, whole);
        self.images = status
            .iter()
            .flat_map(|s| s.images.iter().flatten())
            .flat_map(|i| i.names.iter().flatten().map(|n| (n.clone(), i.size_bytes.unwrap_or(0))))
            .collect();
        self.node = Some(node);
    }

    /// Its labels.
    pub fn labels(&self) -> &Labels {
        self.node.as_ref().and_then(|n| n.metadata.labels.as_ref()).unwrap_or(&NO_LABELS)
    }

    /// Its taints.
    pub fn taints(&self) -> &[Taint] {
        self.node.as_ref().and_then(|n| n.spec.as_ref()?.taints.as_deref()).unwrap_or_default()
    }

    /// Adds a pod.
    pub fn add_pod(&mut self, pod: Arc<PodInfo>) {
        self.count(&pod, 1);
        self.with_affinity.0 += usize::from(pod.has_affinity());
        self.with_affinity.1 += usize::from(!pod.anti_affinity.is_empty());
        self.pods.push(pod);
    }

    /// Takes a pod away; whether it was there.
    pub fn remove_pod(&mut self, uid: &str) -> bool {
        let Some(i) = self.pods.iter().position(|p| p.uid == uid) else { return false };
        let pod = self.pods.swap_remove(i);
        self.count(&pod, -1);
        self.with_affinity.0 -= usize::from(pod.has_affinity());
        self.with_affinity.1 -= usize::from(!pod.anti_affinity.is_empty());
        true
    }

    fn count(&mut self, pod: &PodInfo, sign: i64) {
        self.requested.add(&pod.requests, sign);
        self.non_zero.0 += sign * pod.non_zero.0;
        self.non_zero.1 += sign * pod.non_zero.1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::pod;
    use serde_json::json;

    #[test]
    fn requests_are_the_larger_of_containers_and_init_containers() {
        let p = pod(json!({"spec": {
            "containers": [{"name": "a", "resources": {"requests": {"cpu": "500m", "memory": "1Gi"}}}, {"name": "b", "resources": {"requests": {"cpu": "1", "example.com/gpu": "2"}}}],
            "initContainers": [{"name": "i", "resources": {"requests": {"cpu": "2", "memory": "1Mi"}}}],
            "overhead": {"cpu": "10m"}}}));
        assert_eq!((p.requests.milli_cpu, p.requests.memory), (2010, 1 << 30));
        assert_eq!(p.requests.scalar["example.com/gpu"], 2);
        assert_eq!(p.non_zero, (2010, (1 << 30) + DEFAULT_MEMORY));
        let p = pod(json!({"spec": {"containers": [{"name": "a"}]}}));
        assert!(p.requests.is_zero());
        assert_eq!(p.non_zero, (DEFAULT_MILLI_CPU, DEFAULT_MEMORY));
    }

    #[test]
    fn sidecars_count_with_containers_and_later_init_containers() {
        let req = |cpu: &str| json!({"requests": {"cpu": cpu}});
        let p = pod(json!({"spec": {
            "containers": [{"name": "a", "resources": req("1")}],
            "initContainers": [{"name": "s", "restartPolicy": "Always", "resources": req("500m")}, {"name": "i", "resources": req("2")}]}}));
        assert_eq!(p.requests.milli_cpu, 2500);
    }

    #[test]
    fn host_ports_conflict_by_address() {
        let p = |ip: &str, protocol: &str, port| HostPort { ip: ip.into(), protocol: protocol.into(), port };
        assert!(p("", "TCP", 80).conflicts(&p("127.0.0.1", "TCP", 80)));
        assert!(p("127.0.0.1", "TCP", 80).conflicts(&p("0.0.0.0", "TCP", 80)));
        assert!(!p("127.0.0.1", "TCP", 80).conflicts(&p("127.0.0.2", "TCP", 80)));
        assert!(!p("", "TCP", 80).conflicts(&p("", "UDP", 80)));
    }

    #[test]
    fn tolerations() {
        let taint: Taint =
            serde_json::from_value(json!({"key": "k", "value": "v", "effect": "NoSchedule"})).unwrap();
        let t = |v| tolerated(&[serde_json::from_value(v).unwrap()], &taint);
        assert!(t(json!({"operator": "Exists"})));
        assert!(t(json!({"key": "k", "value": "v"})));
        assert!(t(json!({"key": "k", "operator": "Exists", "effect": "NoSchedule"})));
        assert!(!t(json!({"key": "k", "operator": "Exists", "effect": "NoExecute"})));
        assert!(!t(json!({"key": "k", "value": "w"})));
        assert!(!t(json!({"key": "other", "operator": "Exists"})));
    }
}
