//! `VolumeZone`: volumes that say by their labels in which zone or region they are.

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::core::v1::PersistentVolume;

use crate::cache::Cluster;
use crate::framework::{Filter, FilterPlugin, Status};
use crate::types::{NodeInfo, PodInfo};
use crate::volumes;

const LABELS: [&str; 4] = [
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
];

/// See the module.
#[derive(Debug, Clone, Copy)]
pub struct VolumeZone;

/// Labels of the pod's volumes, each with the values that will do.
#[derive(Clone)]
struct Places(Vec<(String, BTreeSet<String>)>);

impl FilterPlugin for VolumeZone {
    fn name(&self) -> &'static str {
        "VolumeZone"
    }

    fn pre_filter(&self, pod: &PodInfo, cluster: &Cluster) -> Result<Option<Box<dyn Filter>>, Status> {
        let bound = volumes::claims_of(pod).into_iter().filter_map(|name| {
            let claim = cluster.listers.claims.get(&format!("{}/{name}", pod.namespace))?;
            cluster.listers.volumes.get(claim.spec.as_ref()?.volume_name.as_deref()?)
        });
        let places: Vec<_> = bound.flat_map(|pv: Arc<PersistentVolume>| places(&pv)).collect();
        Ok((!places.is_empty()).then(|| Box::new(Places(places)) as Box<dyn Filter>))
    }
}

fn places(pv: &PersistentVolume) -> Vec<(String, BTreeSet<String>)> {
    let labels = pv.metadata.labels.iter().flatten().filter(|(k, _)| LABELS.contains(&k.as_str()));
    labels.map(|(k, v)| (k.clone(), v.split("__").map(String::from).collect())).collect()
}

impl Filter for Places {
    fn filter(&self, _: &PodInfo, node: &NodeInfo, _: &Cluster) -> Result<(), Status> {
        // A node that says nothing of zones is in a cluster without them.
        if !LABELS.iter().any(|l| node.labels().contains_key(*l)) {
            return Ok(());
        }
        match self.0.iter().all(|(key, values)| node.labels().get(key).is_some_and(|v| values.contains(v))) {
            true => Ok(()),
            false => Err(Status::unresolvable("node(s) had no available volume zone")),
        }
    }

    fn copy(&self) -> Box<dyn Filter> {
        Box::new(self.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::listers::Listers;
    use crate::testing::{cluster_with, node, pod, verdicts};
    use serde_json::json;

    #[test]
    fn volumes_hold_pods_in_their_zone() {
        let listers = Listers::default();
        let zone = |z: &str| json!({"metadata": {"labels": {"topology.kubernetes.io/zone": z}}});
        listers.volumes.apply(
            serde_json::from_value(
                json!({"metadata": {"name": "pv", "labels": {"topology.kubernetes.io/zone": "a__b"}}}),
            )
            .unwrap(),
        );
        listers.claims.apply(
            serde_json::from_value(
                json!({"metadata": {"namespace": "ns", "name": "c"}, "spec": {"volumeName": "pv"}}),
            )
            .unwrap(),
        );
        let c = cluster_with(listers, [node("a", zone("a")), node("c", zone("c")), node("d", json!({}))], []);
        let p =
            pod(json!({"spec": {"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]}}));
        let v: Vec<_> = c.nodes().map(|n| n.name.clone()).zip(verdicts(&VolumeZone, &p, &c)).collect();
        for (name, verdict) in v {
            assert_eq!(
                verdict,
                if name == "c" { "node(s) had no available volume zone" } else { "ok" },
                "{name}"
            );
        }
    }
}
