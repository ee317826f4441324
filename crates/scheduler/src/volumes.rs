//! Claims and volumes: which volume a claim can have, and what must be done so that it gets it. Plain functions; the
//! rule is [`plugins::volume_binding`](crate::plugins::volume_binding).

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::labels::{self, NodeTerms};
use crate::types::{NodeInfo, PodInfo, whole};

/// Set by the scheduler on a claim whose volume is to be made for a node.
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// Set by the volume controller when a claim and a volume are bound to each other.
pub const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
/// Set on what was bound by the system, not by the user.
pub const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
/// The provisioner of classes whose volumes are made by hand.
pub const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";

/// Names of the claims that a pod uses.
pub fn claims_of(pod: &PodInfo) -> Vec<String> {
    let volumes = pod.spec().and_then(|s| s.volumes.as_deref()).unwrap_or_default();
    let name = |v: &k8s_openapi::api::core::v1::Volume| match (&v.persistent_volume_claim, &v.ephemeral) {
        (Some(source), _) => Some(source.claim_name.clone()),
        (None, Some(_)) => Some(format!("{}-{}", pod.name, v.name)),
        _ => None,
    };
    volumes.iter().filter_map(name).collect()
}

fn annotation<'a>(meta: &'a kube::api::ObjectMeta, name: &str) -> Option<&'a str> {
    meta.annotations.as_ref()?.get(name).map(String::as_str)
}

/// Whether a claim has its volume for good.
pub fn is_bound(claim: &PersistentVolumeClaim) -> bool {
    volume_name(claim).is_some() && annotation(&claim.metadata, BIND_COMPLETED).is_some()
}

/// The volume that a claim has or asks for by name.
pub fn volume_name(claim: &PersistentVolumeClaim) -> Option<&str> {
    claim.spec.as_ref()?.volume_name.as_deref().filter(|n| !n.is_empty())
}

/// The node for which a claim's volume is being made.
pub fn selected_node(claim: &PersistentVolumeClaim) -> Option<&str> {
    annotation(&claim.metadata, SELECTED_NODE)
}

/// The class of a claim; empty for none.
pub fn class_of(claim: &PersistentVolumeClaim) -> &str {
    annotation(&claim.metadata, "volume.beta.kubernetes.io/storage-class")
        .or_else(|| claim.spec.as_ref()?.storage_class_name.as_deref())
        .unwrap_or_default()
}

fn class_of_volume(pv: &PersistentVolume) -> &str {
    annotation(&pv.metadata, "volume.beta.kubernetes.io/storage-class")
        .or_else(|| pv.spec.as_ref()?.storage_class_name.as_deref())
        .unwrap_or_default()
}

/// Whether claims of a class wait for a pod before they get a volume.
pub fn waits(class: &StorageClass) -> bool {
    class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer")
}

/// Whether a volume can be used on a node.
pub fn fits_node(pv: &PersistentVolume, node: &NodeInfo) -> bool {
    let required = pv.spec.as_ref().and_then(|s| s.node_affinity.as_ref()?.required.as_ref());
    required.is_none_or(|r| NodeTerms::new(r).matches(&node.name, node.labels()))
}

/// Whether a class makes volumes for a node.
pub fn allows_topology(class: &StorageClass, node: &NodeInfo) -> bool {
    let terms = class.allowed_topologies.as_deref().unwrap_or_default();
    let matches = |t: &k8s_openapi::api::core::v1::TopologySelectorTerm| {
        let mut expressions = t.match_label_expressions.iter().flatten();
        expressions.all(|e| node.labels().get(&e.key).is_some_and(|v| e.values.contains(v)))
    };
    terms.is_empty() || terms.iter().any(matches)
}

/// Whether a volume is meant for a claim: reserved for it by name and, where the reservation says so, by UID.
fn is_for(pv: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    pv.spec.as_ref().and_then(|s| s.claim_ref.as_ref()).is_some_and(|r| {
        r.name == claim.metadata.name
            && r.namespace == claim.metadata.namespace
            && r.uid.as_deref().is_none_or(|u| u.is_empty() || Some(u) == claim.metadata.uid.as_deref())
    })
}

fn storage(list: Option<&BTreeMap<String, Quantity>>) -> i64 {
    list.and_then(|l| l.get("storage")).map_or(0, whole)
}

/// The best volume for a claim on a node: one that is reserved for it, else the smallest that is large enough.
/// `taken` tells volumes that somebody else is about to get.
pub fn find_volume(
    claim: &PersistentVolumeClaim,
    volumes: &[Arc<PersistentVolume>],
    node: &NodeInfo,
    taken: impl Fn(&str) -> bool,
) -> Option<Arc<PersistentVolume>> {
    let spec = claim.spec.clone().unwrap_or_default();
    let wanted = storage(spec.resources.as_ref().and_then(|r| r.requests.as_ref()));
    let mode = |m: Option<&str>| m.unwrap_or("Filesystem").to_string();
    let selector = spec.selector.as_ref().map(|s| labels::selector(Some(s)));
    let mut best: Option<(i64, Arc<PersistentVolume>)> = None;
    for pv in volumes {
        let Some(has) = &pv.spec else { continue };
        let name = pv.metadata.name.as_deref().unwrap_or_default();
        let reserved = is_for(pv, claim);
        if pv.metadata.deletion_timestamp.is_some()
            || taken(name)
            || mode(has.volume_mode.as_deref()) != mode(spec.volume_mode.as_deref())
            || !fits_node(pv, node)
        {
            continue;
        }
        let size = storage(has.capacity.as_ref());
        if reserved {
            if size >= wanted {
                return Some(pv.clone());
            }
            continue;
        }
        let available = pv.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Available");
        let no_labels = labels::Labels::new();
        let labels_of = pv.metadata.labels.as_ref().unwrap_or(&no_labels);
        if has.claim_ref.is_some()
            || !available
            || selector.as_ref().is_some_and(|s| !labels::matches(s, labels_of))
            || class_of_volume(pv) != class_of(claim)
            || size < wanted
            || !spec.access_modes.iter().flatten().all(|m| has.access_modes.iter().flatten().any(|h| h == m))
        {
            continue;
        }
        if best.as_ref().is_none_or(|(s, _)| size < *s) {
            best = Some((size, pv.clone()));
        }
    }
    best.map(|(_, pv)| pv)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{cluster, node};
    use serde_json::{Value, json};

    fn pv(name: &str, size: &str, host: &str, claim: Value) -> Arc<PersistentVolume> {
        Arc::new(serde_json::from_value(json!({"metadata": {"name": name}, "status": {"phase": "Available"}, "spec": {
            "capacity": {"storage": size}, "accessModes": ["ReadWriteOnce"], "storageClassName": "c", "claimRef": claim,
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [host]}]}]}}}})).unwrap())
    }

    #[test]
    fn the_smallest_that_is_large_enough_or_the_reserved_one() {
        let c = cluster([node("a", json!({}))], []);
        let a = c.node("a").unwrap();
        let claim: PersistentVolumeClaim = serde_json::from_value(json!({"metadata": {"namespace": "ns", "name": "x"}, "spec": {
            "accessModes": ["ReadWriteOnce"], "storageClassName": "c", "resources": {"requests": {"storage": "2Gi"}}}})).unwrap();
        let mut all = vec![
            pv("small", "1Gi", "a", Value::Null),
            pv("large", "9Gi", "a", Value::Null),
            pv("right", "3Gi", "a", Value::Null),
            pv("elsewhere", "2Gi", "b", Value::Null),
            pv("others", "2Gi", "a", json!({"namespace": "ns", "name": "y"})),
        ];
        let find = |all: &[Arc<PersistentVolume>], taken: &str| {
            find_volume(&claim, all, a, |n| n == taken).and_then(|pv| pv.metadata.name.clone())
        };
        assert_eq!(find(&all, "").as_deref(), Some("right"));
        assert_eq!(find(&all, "right").as_deref(), Some("large"));
        all.push(pv("mine", "50Gi", "a", json!({"namespace": "ns", "name": "x"})));
        assert_eq!(find(&all, "").as_deref(), Some("mine"));
        assert_eq!(find(&all[3..5], ""), None);
    }
}
