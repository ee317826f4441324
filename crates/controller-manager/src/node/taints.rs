//! Taints that say how a node is, and tolerations.

use k8s_openapi::api::core::v1::{Node, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};

use super::condition;
use crate::control::{has_code, now};

/// The node is not ready.
pub const NOT_READY: &str = "node.kubernetes.io/not-ready";
/// Nothing is heard of the node.
pub const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// Condition, its status, and the taint that it brings.
const BY_CONDITION: &[(&str, &str, &str)] = &[
    ("Ready", "False", NOT_READY),
    ("Ready", "Unknown", UNREACHABLE),
    ("MemoryPressure", "True", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "True", "node.kubernetes.io/disk-pressure"),
    ("NetworkUnavailable", "True", "node.kubernetes.io/network-unavailable"),
    ("PIDPressure", "True", "node.kubernetes.io/pid-pressure"),
];

/// A taint without a value.
pub fn taint(key: &str, effect: &str) -> Taint {
    Taint { key: key.into(), effect: effect.into(), ..Default::default() }
}

/// A node's taints.
pub fn of(node: &Node) -> &[Taint] {
    node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default()
}

/// Whether a node has a taint of that key and effect.
pub fn has(node: &Node, key: &str, effect: &str) -> bool {
    of(node).iter().any(|t| t.key == key && t.effect == effect)
}

/// The `NoSchedule` taints that are to be added to a node and taken off it, by its conditions.
pub fn no_schedule_changes(node: &Node) -> (Vec<Taint>, Vec<Taint>) {
    let mut wanted: Vec<&str> = BY_CONDITION
        .iter()
        .filter(|(type_, status, _)| condition(node, type_).is_some_and(|c| c.status == *status))
        .map(|(_, _, key)| *key)
        .collect();
    if node.spec.as_ref().and_then(|s| s.unschedulable) == Some(true) {
        wanted.push(UNSCHEDULABLE);
    }
    let is_ours = |key: &str| key == UNSCHEDULABLE || BY_CONDITION.iter().any(|(_, _, k)| *k == key);
    let add = wanted.iter().filter(|k| !has(node, k, "NoSchedule")).map(|k| taint(k, "NoSchedule")).collect();
    let remove = of(node)
        .iter()
        .filter(|t| t.effect == "NoSchedule" && is_ours(&t.key) && !wanted.contains(&t.key.as_str()))
        .cloned()
        .collect();
    (add, remove)
}

/// A list of taints with some added, with the time of it, and some taken off; `None` where that changes nothing.
pub fn changed(taints: &[Taint], add: &[Taint], remove: &[Taint]) -> Option<Vec<Taint>> {
    let same = |a: &Taint, b: &Taint| a.key == b.key && a.effect == b.effect;
    let mut list: Vec<Taint> =
        taints.iter().filter(|t| !remove.iter().any(|r| same(r, t))).cloned().collect();
    for t in add {
        if !list.iter().any(|x| same(x, t)) {
            list.push(Taint { time_added: Some(Time(now())), ..t.clone() });
        }
    }
    (list != taints).then_some(list)
}

/// Adds taints to a node and takes taints off it, on the server.
pub async fn swap(client: &Client, name: &str, add: &[Taint], remove: &[Taint]) -> Result<(), kube::Error> {
    let api: Api<Node> = Api::all(client.clone());
    let mut tries = 0;
    loop {
        let Some(node) = api.get_opt(name).await? else { return Ok(()) };
        let Some(taints) = changed(of(&node), add, remove) else { return Ok(()) };
        let patch = serde_json::json!({
            "metadata": {"resourceVersion": node.metadata.resource_version},
            "spec": {"taints": taints},
        });
        match api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await {
            Ok(_) => return Ok(()),
            Err(e) if has_code(&e, 409) && tries < 5 => tries += 1,
            Err(e) if has_code(&e, 404) => return Ok(()),
            Err(e) => return Err(e),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::tolerates;
    use k8s_openapi::api::core::v1::Toleration;
    use serde_json::json;

    #[test]
    fn conditions_bring_taints_and_take_them_off() {
        let node: Node = serde_json::from_value(json!({"metadata": {"name": "n"},
            "spec": {"unschedulable": true, "taints": [
                {"key": NOT_READY, "effect": "NoSchedule"}, {"key": "own", "effect": "NoSchedule"},
                {"key": NOT_READY, "effect": "NoExecute"}]},
            "status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "DiskPressure", "status": "True"}]}}))
        .unwrap();
        let (add, remove) = no_schedule_changes(&node);
        let keys = |l: &[Taint]| l.iter().map(|t| t.key.clone()).collect::<Vec<_>>();
        assert_eq!(keys(&add), ["node.kubernetes.io/disk-pressure", UNSCHEDULABLE]);
        assert_eq!(keys(&remove), [NOT_READY]);
        let list = changed(of(&node), &add, &remove).unwrap();
        assert_eq!(list.len(), 4);
        assert!(list[3].time_added.is_some());
        assert_eq!(changed(&list, &add, &remove), None);
    }

    #[test]
    fn tolerations() {
        let t = |v: serde_json::Value| serde_json::from_value::<Toleration>(v).unwrap();
        let out = Taint { value: Some("v".into()), ..taint("out", "NoExecute") };
        assert!(tolerates(&t(json!({"operator": "Exists"})), &out));
        assert!(tolerates(&t(json!({"key": "out", "value": "v"})), &out));
        assert!(!tolerates(&t(json!({"key": "out"})), &out));
        assert!(!tolerates(&t(json!({"key": "out", "operator": "Exists", "effect": "NoSchedule"})), &out));
    }
}
