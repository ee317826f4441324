//! `NodeVolumeLimits` and its kin: how many volumes of a storage driver a node can have.

use std::collections::BTreeSet;
use std::collections::HashMap;

use k8s_openapi::api::core::v1::{PersistentVolume, Volume};

use crate::cache::Cluster;
use crate::framework::{Filter, FilterPlugin, Status};
use crate::types::{NodeInfo, PodInfo};

/// Which drivers are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// CSI drivers, each with the limit that the node's `CSINode` tells.
    Csi,
    /// Amazon's disks.
    Ebs,
    /// Google's disks.
    GcePd,
    /// Azure's disks.
    AzureDisk,
}

/// See the module.
#[derive(Debug, Clone, Copy)]
pub struct NodeVolumeLimits(pub Kind);

impl Kind {
    /// Where the node does not say how many: the clouds' own limits.
    fn default_limit(self) -> i64 {
        match self {
            Kind::Csi => i64::MAX,
            Kind::Ebs => 39,
            Kind::GcePd | Kind::AzureDisk => 16,
        }
    }

    fn resource(self) -> &'static str {
        match self {
            Kind::Csi => "",
            Kind::Ebs => "attachable-volumes-aws-ebs",
            Kind::GcePd => "attachable-volumes-gce-pd",
            Kind::AzureDisk => "attachable-volumes-azure-disk",
        }
    }

    fn inline(self, v: &Volume) -> Option<String> {
        match self {
            Kind::Csi => None,
            Kind::Ebs => v.aws_elastic_block_store.as_ref().map(|d| d.volume_id.clone()),
            Kind::GcePd => v.gce_persistent_disk.as_ref().map(|d| d.pd_name.clone()),
            Kind::AzureDisk => v.azure_disk.as_ref().map(|d| d.disk_name.clone()),
        }
    }

    /// Driver (empty but for CSI) and name of a persistent volume.
    fn persistent(self, pv: &PersistentVolume) -> Option<(String, String)> {
        let spec = pv.spec.as_ref()?;
        match self {
            Kind::Csi => spec.csi.as_ref().map(|c| (c.driver.clone(), c.volume_handle.clone())),
            Kind::Ebs => spec.aws_elastic_block_store.as_ref().map(|d| (String::new(), d.volume_id.clone())),
            Kind::GcePd => spec.gce_persistent_disk.as_ref().map(|d| (String::new(), d.pd_name.clone())),
            Kind::AzureDisk => spec.azure_disk.as_ref().map(|d| (String::new(), d.disk_name.clone())),
        }
    }

    fn provisioner(self) -> &'static str {
        match self {
            Kind::Csi => "",
            Kind::Ebs => "kubernetes.io/aws-ebs",
            Kind::GcePd => "kubernetes.io/gce-pd",
            Kind::AzureDisk => "kubernetes.io/azure-disk",
        }
    }

    /// The volumes of a pod that count: driver and name.
    fn volumes(self, pod: &PodInfo, cluster: &Cluster) -> BTreeSet<(String, String)> {
        let mut found = BTreeSet::new();
        for volume in pod.spec().and_then(|s| s.volumes.as_deref()).unwrap_or_default() {
            found.extend(self.inline(volume).map(|name| (String::new(), name)));
            let Some(source) = &volume.persistent_volume_claim else { continue };
            let Some(claim) = cluster.listers.claims.get(&format!("{}/{}", pod.namespace, source.claim_name))
            else {
                continue;
            };
            let spec = claim.spec.as_ref();
            match spec.and_then(|s| s.volume_name.as_deref()).filter(|n| !n.is_empty()) {
                Some(name) => {
                    found.extend(cluster.listers.volumes.get(name).and_then(|pv| self.persistent(&pv)));
                }
                None => {
                    // A claim without volume will get one from its class's driver.
                    let class = spec.and_then(|s| s.storage_class_name.as_deref());
                    let class = class.and_then(|c| cluster.listers.classes.get(c));
                    let unbound = format!("{}/{}", pod.namespace, source.claim_name);
                    match class.map(|c| c.provisioner.clone()) {
                        Some(p) if self == Kind::Csi && !p.starts_with("kubernetes.io/") => {
                            found.insert((p, unbound));
                        }
                        Some(p) if self != Kind::Csi && p == self.provisioner() => {
                            found.insert((String::new(), unbound));
                        }
                        _ => {}
                    }
                }
            }
        }
        found
    }

    fn limits(self, node: &NodeInfo, cluster: &Cluster) -> HashMap<String, i64> {
        if self != Kind::Csi {
            let limit = node.allocatable.scalar.get(self.resource()).copied();
            return HashMap::from([(String::new(), limit.unwrap_or(self.default_limit()))]);
        }
        let Some(csi) = cluster.listers.csi_nodes.get(&node.name) else { return HashMap::new() };
        let limit = |d: &k8s_openapi::api::storage::v1::CSINodeDriver| {
            Some((d.name.clone(), i64::from(d.allocatable.as_ref()?.count?)))
        };
        csi.spec.drivers.iter().filter_map(limit).collect()
    }
}

impl FilterPlugin for NodeVolumeLimits {
    fn name(&self) -> &'static str {
        match self.0 {
            Kind::Csi => "NodeVolumeLimits",
            Kind::Ebs => "EBSLimits",
            Kind::GcePd => "GCEPDLimits",
            Kind::AzureDisk => "AzureDiskLimits",
        }
    }

    fn pre_filter(&self, pod: &PodInfo, cluster: &Cluster) -> Result<Option<Box<dyn Filter>>, Status> {
        let wanted = self.0.volumes(pod, cluster);
        Ok((!wanted.is_empty()).then(|| Box::new(Wanted { kind: self.0, wanted }) as Box<dyn Filter>))
    }
}

#[derive(Clone)]
struct Wanted {
    kind: Kind,
    wanted: BTreeSet<(String, String)>,
}

impl Filter for Wanted {
    fn filter(&self, _: &PodInfo, node: &NodeInfo, cluster: &Cluster) -> Result<(), Status> {
        let limits = self.kind.limits(node, cluster);
        if limits.is_empty() {
            return Ok(());
        }
        let there: BTreeSet<_> = node.pods.iter().flat_map(|p| self.kind.volumes(p, cluster)).collect();
        for (driver, limit) in limits {
            let of =
                |set: &BTreeSet<(String, String)>| set.iter().filter(|(d, _)| *d == driver).count() as i64;
            let new = self.wanted.difference(&there).filter(|(d, _)| *d == driver).count() as i64;
            if new > 0 && of(&there) + new > limit {
                return Err(Status::unschedulable("node(s) exceed max volume count"));
            }
        }
        Ok(())
    }

    fn copy(&self) -> Box<dyn Filter> {
        Box::new(self.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::listers::Listers;
    use crate::testing::{cluster_with, node, placed, pod, verdicts};
    use serde_json::{Value, json};

    #[test]
    fn a_node_takes_as_many_volumes_as_it_says() {
        let listers = Listers::default();
        for i in 0..3 {
            listers.volumes.apply(serde_json::from_value(json!({"metadata": {"name": format!("pv{i}")}, "spec": {"csi": {"driver": "d", "volumeHandle": format!("h{i}")}}})).unwrap());
            listers.claims.apply(serde_json::from_value(json!({"metadata": {"namespace": "ns", "name": format!("c{i}")}, "spec": {"volumeName": format!("pv{i}")}})).unwrap());
        }
        listers.csi_nodes.apply(serde_json::from_value(json!({"metadata": {"name": "a"}, "spec": {"drivers": [{"name": "d", "nodeID": "a", "allocatable": {"count": 2}}]}})).unwrap());
        let claims = |names: &[&str]| -> Value {
            let volumes: Vec<Value> =
                names.iter().map(|n| json!({"name": n, "persistentVolumeClaim": {"claimName": n}})).collect();
            json!({"spec": {"volumes": volumes}})
        };
        let c = cluster_with(
            listers,
            [node("a", json!({})), node("b", json!({}))],
            [placed("x", "a", "x", claims(&["c0", "c1"]))],
        );
        let csi = NodeVolumeLimits(Kind::Csi);
        assert_eq!(verdicts(&csi, &pod(claims(&["c1"])), &c), ["ok", "ok"]);
        assert_eq!(verdicts(&csi, &pod(claims(&["c2"])), &c), ["node(s) exceed max volume count", "ok"]);
    }
}
