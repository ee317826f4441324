//! On which nodes a DaemonSet's pods belong: what the scheduler would say, with the tolerations that daemons get.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{
    Affinity, Node, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec,
    Toleration,
};

use crate::control::tolerates;

const NAME_FIELD: &str = "metadata.name";

/// Whether a node is to have a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fit {
    /// It is to have one.
    Run,
    /// It gets none, but one that is there may stay.
    Stay,
    /// It must not have one.
    Leave,
}

/// Whether a node is to have a pod of a set.
pub fn fit(set: &DaemonSet, node: &Node) -> Fit {
    let Some(spec) = set.spec.as_ref().and_then(|s| s.template.spec.as_ref()) else { return Fit::Leave };
    let name = node.metadata.name.as_deref().unwrap_or_default();
    if spec.node_name.as_deref().is_some_and(|n| !n.is_empty() && n != name) || !selects(spec, node) {
        return Fit::Leave;
    }
    let mut spec = spec.clone();
    add_tolerations(&mut spec);
    let tolerations = spec.tolerations.unwrap_or_default();
    let taints = node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default();
    let mut fit = Fit::Run;
    for taint in taints.iter().filter(|t| !tolerations.iter().any(|o| tolerates(o, t))) {
        match taint.effect.as_str() {
            "NoExecute" => return Fit::Leave,
            "NoSchedule" => fit = Fit::Stay,
            _ => {}
        }
    }
    fit
}

/// Whether a pod's node selector and required node affinity match a node.
fn selects(spec: &PodSpec, node: &Node) -> bool {
    let none = BTreeMap::new();
    let labels = node.metadata.labels.as_ref().unwrap_or(&none);
    if !spec.node_selector.iter().flatten().all(|(k, v)| labels.get(k) == Some(v)) {
        return false;
    }
    let required = spec
        .affinity
        .as_ref()
        .and_then(|a| a.node_affinity.as_ref())
        .and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    let Some(required) = required else { return true };
    let name = node.metadata.name.as_deref().unwrap_or_default();
    required.node_selector_terms.iter().any(|term| {
        let expressions = term.match_expressions.as_deref().unwrap_or_default();
        let fields = term.match_fields.as_deref().unwrap_or_default();
        !(expressions.is_empty() && fields.is_empty())
            && expressions.iter().all(|r| meets(r, labels.get(&r.key).map(String::as_str)))
            && fields.iter().all(|r| meets(r, (r.key == NAME_FIELD).then_some(name)))
    })
}

fn meets(r: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = r.values.as_deref().unwrap_or_default();
    let contains = |v: &str| values.iter().any(|x| x == v);
    let number = |s: Option<&str>| s.and_then(|s| s.parse::<i64>().ok());
    let bound = number(values.first().map(String::as_str));
    match r.operator.as_str() {
        "In" => value.is_some_and(contains),
        "NotIn" => !value.is_some_and(contains),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => matches!((number(value), bound), (Some(v), Some(b)) if v > b),
        "Lt" => matches!((number(value), bound), (Some(v), Some(b)) if v < b),
        _ => false,
    }
}

/// Adds the tolerations that all daemons get.
pub fn add_tolerations(spec: &mut PodSpec) {
    let mut wanted = vec![
        ("node.kubernetes.io/not-ready", "NoExecute"),
        ("node.kubernetes.io/unreachable", "NoExecute"),
        ("node.kubernetes.io/disk-pressure", "NoSchedule"),
        ("node.kubernetes.io/memory-pressure", "NoSchedule"),
        ("node.kubernetes.io/pid-pressure", "NoSchedule"),
        ("node.kubernetes.io/unschedulable", "NoSchedule"),
    ];
    if spec.host_network == Some(true) {
        wanted.push(("node.kubernetes.io/network-unavailable", "NoSchedule"));
    }
    let list = spec.tolerations.get_or_insert_default();
    for (key, effect) in wanted {
        let toleration = Toleration {
            key: Some(key.into()),
            operator: Some("Exists".into()),
            effect: Some(effect.into()),
            ..Default::default()
        };
        let same = |t: &&mut Toleration| {
            t.key == toleration.key && t.effect == toleration.effect && t.operator == toleration.operator
        };
        match list.iter_mut().find(same) {
            Some(t) => *t = toleration,
            None => list.push(toleration),
        }
    }
}

/// Ties a pod to one node, in place of what its affinity required before.
pub fn pin(spec: &mut PodSpec, node: &str) {
    let term = NodeSelectorTerm {
        match_fields: Some(vec![NodeSelectorRequirement {
            key: NAME_FIELD.into(),
            operator: "In".into(),
            values: Some(vec![node.into()]),
        }]),
        match_expressions: None,
    };
    let affinity: &mut Affinity = spec.affinity.get_or_insert_default();
    let nodes: &mut NodeAffinity = affinity.node_affinity.get_or_insert_default();
    nodes.required_during_scheduling_ignored_during_execution =
        Some(NodeSelector { node_selector_terms: vec![term] });
}

/// The node that a pod is on, or is tied to.
pub fn target(pod: &Pod) -> Option<&str> {
    let spec = pod.spec.as_ref()?;
    if let Some(node) = spec.node_name.as_deref().filter(|n| !n.is_empty()) {
        return Some(node);
    }
    let required = spec
        .affinity
        .as_ref()?
        .node_affinity
        .as_ref()?
        .required_during_scheduling_ignored_during_execution
        .as_ref()?;
    required
        .node_selector_terms
        .iter()
        .flat_map(|t| t.match_fields.iter().flatten())
        .find(|r| r.key == NAME_FIELD && r.operator == "In")
        .and_then(|r| match r.values.as_deref() {
            Some([node]) => Some(node.as_str()),
            _ => None,
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn set(spec: Value) -> DaemonSet {
        let mut spec = spec;
        spec["containers"] = json!([]);
        serde_json::from_value(
            json!({"metadata": {"name": "ds"}, "spec": {"selector": {}, "template": {"spec": spec}}}),
        )
        .unwrap()
    }

    fn node(labels: Value, taints: Value) -> Node {
        serde_json::from_value(
            json!({"metadata": {"name": "n", "labels": labels}, "spec": {"taints": taints}}),
        )
        .unwrap()
    }

    #[test]
    fn selectors_and_affinity() {
        let n = node(json!({"disk": "ssd", "cores": "8"}), json!([]));
        assert_eq!(fit(&set(json!({})), &n), Fit::Run);
        assert_eq!(fit(&set(json!({"nodeSelector": {"disk": "hdd"}})), &n), Fit::Leave);
        assert_eq!(fit(&set(json!({"nodeName": "other"})), &n), Fit::Leave);
        let affinity = |terms: Value| {
            set(json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
                {"nodeSelectorTerms": terms}}}}))
        };
        let gt = json!([{"matchExpressions": [{"key": "cores", "operator": "Gt", "values": ["4"]}]}]);
        assert_eq!(fit(&affinity(gt), &n), Fit::Run);
        assert_eq!(fit(&affinity(json!([{}])), &n), Fit::Leave);
        let field = json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["x"]}]}]);
        assert_eq!(fit(&affinity(field), &n), Fit::Leave);
    }

    #[test]
    fn taints() {
        let with = |key: &str, effect: &str| node(json!({}), json!([{"key": key, "effect": effect}]));
        let ds = set(json!({}));
        assert_eq!(fit(&ds, &with("node.kubernetes.io/unreachable", "NoExecute")), Fit::Run);
        assert_eq!(fit(&ds, &with("x", "NoSchedule")), Fit::Stay);
        assert_eq!(fit(&ds, &with("x", "NoExecute")), Fit::Leave);
        assert_eq!(fit(&ds, &with("x", "PreferNoSchedule")), Fit::Run);
        assert_eq!(fit(&ds, &with("node.kubernetes.io/network-unavailable", "NoSchedule")), Fit::Stay);
        let host = set(json!({"hostNetwork": true}));
        assert_eq!(fit(&host, &with("node.kubernetes.io/network-unavailable", "NoSchedule")), Fit::Run);
    }

    #[test]
    fn a_pinned_pod_has_its_node() {
        let mut pod = Pod { spec: Some(PodSpec::default()), ..Default::default() };
        assert_eq!(target(&pod), None);
        pin(pod.spec.as_mut().unwrap(), "n");
        assert_eq!(target(&pod), Some("n"));
    }
}
