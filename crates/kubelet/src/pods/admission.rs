//! May a pod run here at all? The scheduler has seen to it for most pods, but some are bound by hand, and the node may
//! have changed since. Reasons and messages are those of v1.20's kubelet.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, NodeSelectorRequirement, NodeSelectorTerm, Pod};

use super::preemption::{self, Room};
use crate::pod::PodExt;
use crate::resources::{self, Amounts};

/// Why not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// The status' reason and the event's.
    pub reason: String,
    /// The event's message; the status says `Pod ` before it.
    pub message: String,
}

/// A resource of which the node has not enough left. Amounts are whole units, of CPU thousandths.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shortage {
    /// Resource.
    pub resource: String,
    /// What the pod asks for.
    pub requested: i64,
    /// What the others have.
    pub used: i64,
    /// What there is.
    pub capacity: i64,
}

impl Shortage {
    /// How much must become free.
    pub fn missing(&self) -> i64 {
        self.requested - (self.capacity - self.used)
    }
}

impl From<&Shortage> for Rejection {
    fn from(s: &Shortage) -> Rejection {
        let Shortage { resource, requested, used, capacity } = s;
        Rejection {
            reason: format!("OutOf{resource}"),
            message: format!(
                "Node didn't have enough resource: {resource}, requested: {requested}, used: {used}, capacity: {capacity}"
            ),
        }
    }
}

fn no(reason: &str, message: impl Into<String>) -> Result<(), Rejection> {
    Err(Rejection { reason: reason.into(), message: message.into() })
}

/// Asks all that can be asked of a pod and its node. `others` are the pods that run or are to run here. A critical pod
/// that only finds too little left is given what makes room for it.
pub fn admit(
    pod: &Pod,
    others: &[Arc<Pod>],
    node: &Node,
    unsafe_sysctls: &[String],
) -> Result<Room, Rejection> {
    sysctls(pod, unsafe_sysctls)?;
    let missing = shortages(pod, others, node);
    let Some(first) = missing.first() else {
        return right_node(pod, others, node).map(|()| Room::default());
    };
    if !pod.is_critical() {
        return Err(first.into());
    }
    right_node(pod, others, node)?;
    preemption::make_room(pod, others, &missing).map_err(|e| Rejection {
        reason: "UnexpectedAdmissionError".into(),
        message: format!("Unexpected error while attempting to recover from admission failure: {e}"),
    })
}

/// What does not depend on how much is left.
fn right_node(pod: &Pod, others: &[Arc<Pod>], node: &Node) -> Result<(), Rejection> {
    let labels = node.metadata.labels.clone().unwrap_or_default();
    let name = node.metadata.name.as_deref().unwrap_or("");
    if !matches_node(pod, name, &labels) {
        return no("NodeAffinity", "Predicate NodeAffinity failed");
    }
    if pod.pod_spec().node_name.as_deref().is_some_and(|n| !n.is_empty() && n != name) {
        return no("NodeName", "Predicate NodeName failed");
    }
    if ports_conflict(pod, others) {
        return no("NodePorts", "Predicate NodePorts failed");
    }
    Ok(())
}

const SAFE_SYSCTLS: [&str; 3] =
    ["kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.tcp_syncookies"];

fn sysctls(pod: &Pod, allowed: &[String]) -> Result<(), Rejection> {
    let sc = pod.pod_spec().security_context.as_ref();
    for s in sc.and_then(|s| s.sysctls.as_ref()).into_iter().flatten() {
        let name = &s.name;
        let in_network = name.starts_with("net.");
        let in_ipc = name.starts_with("kernel.shm")
            || name.starts_with("kernel.msg")
            || name == "kernel.sem"
            || name.starts_with("fs.mqueue.");
        let whitelisted = SAFE_SYSCTLS.contains(&name.as_str())
            || allowed.iter().any(|a| match a.strip_suffix('*') {
                Some(prefix) => name.starts_with(prefix),
                None => a == name,
            });
        let why = if !whitelisted {
            "not whitelisted"
        } else if in_network && pod.host_network() {
            "not allowed with host net enabled"
        } else if in_ipc && pod.pod_spec().host_ipc == Some(true) {
            "not allowed with host ipc enabled"
        } else {
            continue;
        };
        return no("SysctlForbidden", format!("forbidden sysctl: \"{name}\" {why}"));
    }
    Ok(())
}

fn is_extended(resource: &str) -> bool {
    resource.contains('/') && !resource.contains("kubernetes.io/") && !resource.starts_with("requests.")
}

fn shortages(pod: &Pod, others: &[Arc<Pod>], node: &Node) -> Vec<Shortage> {
    let mut missing = Vec::new();
    let mut short = |resource: &str, requested, used, capacity| {
        missing.push(Shortage { resource: resource.into(), requested, used, capacity });
    };
    let allocatable = resources::amounts(node.status.as_ref().and_then(|s| s.allocatable.as_ref()));
    let count = i64::try_from(others.len()).unwrap_or(i64::MAX);
    let most = resources::value(&allocatable, "pods");
    if count + 1 > most {
        short("pods", 1, count, most);
    }
    let wanted = resources::pod_requests(pod);
    let used: Vec<Amounts> = others.iter().map(|p| resources::pod_requests(p)).collect();
    let first = ["cpu", "memory", "ephemeral-storage"].map(String::from);
    let rest = wanted.keys().filter(|k| !first.contains(k)).cloned();
    for resource in first.iter().cloned().chain(rest) {
        // What no node has is counted elsewhere (a scheduler extender), not here.
        if is_extended(&resource) && !allocatable.contains_key(&resource) {
            continue;
        }
        let amount = |a: &Amounts| match resource.as_str() {
            "cpu" => resources::milli(a, "cpu"),
            r => resources::value(a, r),
        };
        let (want, have, capacity) =
            (amount(&wanted), used.iter().map(amount).sum::<i64>(), amount(&allocatable));
        if want > 0 && want + have > capacity {
            short(&resource, want, have, capacity);
        }
    }
    missing
}

fn requirement_holds(r: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = r.values.as_deref().unwrap_or(&[]);
    let one_of = |v: &str| values.iter().any(|x| x == v);
    match r.operator.as_str() {
        "In" => value.is_some_and(one_of),
        "NotIn" => !value.is_some_and(one_of),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        op @ ("Gt" | "Lt") => {
            let limit = values.first().and_then(|v| v.parse::<i64>().ok());
            match (value.and_then(|v| v.parse::<i64>().ok()), limit) {
                (Some(v), Some(l)) => (op == "Gt" && v > l) || (op == "Lt" && v < l),
                _ => false,
            }
        }
        _ => false,
    }
}

fn term_holds(t: &NodeSelectorTerm, node: &str, labels: &BTreeMap<String, String>) -> bool {
    let (expressions, fields) = (t.match_expressions.as_deref(), t.match_fields.as_deref());
    // A term without conditions matches nothing.
    if expressions.is_none_or(<[_]>::is_empty) && fields.is_none_or(<[_]>::is_empty) {
        return false;
    }
    expressions.into_iter().flatten().all(|r| requirement_holds(r, labels.get(&r.key).map(String::as_str)))
        && fields.into_iter().flatten().all(|r| {
            let value = (r.key == "metadata.name").then_some(node);
            requirement_holds(r, value)
        })
}

/// Whether a pod's `nodeSelector` and required node affinity fit a node.
pub fn matches_node(pod: &Pod, node: &str, labels: &BTreeMap<String, String>) -> bool {
    let spec = pod.pod_spec();
    if !spec.node_selector.iter().flatten().all(|(k, v)| labels.get(k) == Some(v)) {
        return false;
    }
    let required = spec
        .affinity
        .as_ref()
        .and_then(|a| a.node_affinity.as_ref())
        .and_then(|n| n.required_during_scheduling_ignored_during_execution.as_ref());
    required.is_none_or(|r| r.node_selector_terms.iter().any(|t| term_holds(t, node, labels)))
}

fn host_ports(pod: &Pod) -> impl Iterator<Item = (String, &str, i32)> {
    pod.pod_spec().containers.iter().flat_map(|c| c.ports.iter().flatten()).filter_map(|p| {
        let port = p.host_port.filter(|p| *p > 0)?;
        let ip = p.host_ip.clone().filter(|i| !i.is_empty()).unwrap_or_else(|| "0.0.0.0".into());
        Some((ip, p.protocol.as_deref().unwrap_or("TCP"), port))
    })
}

fn ports_conflict(pod: &Pod, others: &[Arc<Pod>]) -> bool {
    let used: HashSet<_> = others.iter().flat_map(|p| host_ports(p)).collect();
    host_ports(pod).any(|(ip, protocol, port)| {
        used.iter().any(|(other, p, n)| {
            *p == protocol && *n == port && (*other == ip || other == "0.0.0.0" || ip == "0.0.0.0")
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn node() -> Node {
        serde_json::from_value(json!({"metadata": {"name": "node01", "labels": {"zone": "a", "n": "5"}},
            "status": {"allocatable": {"cpu": "2", "memory": "1Gi", "pods": "3", "hugepages-2Mi": "0"}}}))
        .unwrap()
    }

    fn pod(spec: Value) -> Arc<Pod> {
        let mut base = json!({"containers": [{"name": "c"}]});
        base.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        Arc::new(serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": base})).unwrap())
    }

    fn asks(resources: Value) -> Arc<Pod> {
        pod(json!({"containers": [{"name": "c", "resources": {"requests": resources}}]}))
    }

    fn rejected(pod: &Pod, others: &[Arc<Pod>]) -> (String, String) {
        let r =
            admit(pod, others, &node(), &["net.core.somaxconn".into(), "kernel.msg*".into()]).unwrap_err();
        (r.reason, r.message)
    }

    #[test]
    fn resources_must_be_there() {
        let (reason, message) =
            rejected(&asks(json!({"cpu": "1000", "memory": "9Ti"})), &[asks(json!({"cpu": "500m"}))]);
        assert_eq!(reason, "OutOfcpu");
        assert_eq!(
            message,
            "Node didn't have enough resource: cpu, requested: 1000000, used: 500, capacity: 2000"
        );
        assert_eq!(rejected(&asks(json!({"hugepages-2Mi": "4Mi"})), &[]).0, "OutOfhugepages-2Mi");
        let three = [pod(json!({})), pod(json!({})), pod(json!({}))];
        assert_eq!(rejected(&pod(json!({})), &three).0, "OutOfpods");
        let critical = pod(json!({"priority": 2_000_000_000}));
        assert_eq!(admit(&critical, &three, &node(), &[]).unwrap().victims.len(), 1);
        let elsewhere = pod(json!({"priority": 2_000_000_000, "nodeSelector": {"no": "such"}}));
        assert_eq!(rejected(&elsewhere, &three).0, "NodeAffinity");
        assert!(admit(&asks(json!({"example.test/gpu": "1"})), &[], &node(), &[]).is_ok());
    }

    #[test]
    fn the_node_must_be_the_right_one() {
        assert_eq!(
            rejected(&pod(json!({"nodeSelector": {"no": "such"}})), &[]).1,
            "Predicate NodeAffinity failed"
        );
        let affinity = |r: Value| {
            pod(json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
                {"nodeSelectorTerms": [{"matchExpressions": [r]}]}}}}))
        };
        assert!(
            admit(&affinity(json!({"key": "n", "operator": "Gt", "values": ["4"]})), &[], &node(), &[])
                .is_ok()
        );
        assert_eq!(
            rejected(&affinity(json!({"key": "zone", "operator": "NotIn", "values": ["a"]})), &[]).0,
            "NodeAffinity"
        );
        assert_eq!(rejected(&pod(json!({"nodeName": "other"})), &[]).0, "NodeName");
    }

    #[test]
    fn ports_and_sysctls() {
        let port = |ip: &str| {
            pod(
                json!({"containers": [{"name": "c", "ports": [{"containerPort": 1, "hostPort": 80, "hostIP": ip}]}]}),
            )
        };
        assert_eq!(rejected(&port(""), &[port("1.1.1.1")]).0, "NodePorts");
        assert!(admit(&port("2.2.2.2"), &[port("1.1.1.1")], &node(), &[]).is_ok());
        let sysctl = |name: &str, host: bool| {
            pod(json!({"hostNetwork": host, "securityContext": {"sysctls": [{"name": name, "value": "1"}]}}))
        };
        assert_eq!(
            rejected(&sysctl("vm.swappiness", false), &[]).1,
            "forbidden sysctl: \"vm.swappiness\" not whitelisted"
        );
        assert_eq!(
            rejected(&sysctl("net.ipv4.tcp_syncookies", true), &[]).1,
            "forbidden sysctl: \"net.ipv4.tcp_syncookies\" not allowed with host net enabled"
        );
        assert!(admit(&sysctl("kernel.msgmax", false), &[], &node(), &["kernel.msg*".into()]).is_ok());
    }
}
