//! `VolumeRestrictions`: disks that only one pod, or only readers, may use on a node.

use k8s_openapi::api::core::v1::Volume;

use crate::cache::Cluster;
use crate::framework::{Filter, FilterPlugin, Status};
use crate::types::{NodeInfo, PodInfo};

/// See the module.
#[derive(Debug, Clone, Copy)]
pub struct VolumeRestrictions;

impl FilterPlugin for VolumeRestrictions {
    fn name(&self) -> &'static str {
        "VolumeRestrictions"
    }

    fn pre_filter(&self, pod: &PodInfo, _: &Cluster) -> Result<Option<Box<dyn Filter>>, Status> {
        let restricted = volumes(pod).iter().any(|v| {
            v.gce_persistent_disk.is_some()
                || v.aws_elastic_block_store.is_some()
                || v.rbd.is_some()
                || v.iscsi.is_some()
        });
        Ok(restricted.then(|| Box::new(VolumeRestrictions) as Box<dyn Filter>))
    }
}

fn volumes(pod: &PodInfo) -> &[Volume] {
    pod.spec().and_then(|s| s.volumes.as_deref()).unwrap_or_default()
}

/// Whether two volumes are the same disk and cannot both be used on one node.
fn conflict(a: &Volume, b: &Volume) -> bool {
    let both_read = |a: Option<bool>, b: Option<bool>| a == Some(true) && b == Some(true);
    if let (Some(a), Some(b)) = (&a.gce_persistent_disk, &b.gce_persistent_disk) {
        return a.pd_name == b.pd_name && !both_read(a.read_only, b.read_only);
    }
    if let (Some(a), Some(b)) = (&a.aws_elastic_block_store, &b.aws_elastic_block_store) {
        return a.volume_id == b.volume_id;
    }
    if let (Some(a), Some(b)) = (&a.iscsi, &b.iscsi) {
        return a.iqn == b.iqn && !both_read(a.read_only, b.read_only);
    }
    if let (Some(a), Some(b)) = (&a.rbd, &b.rbd) {
        let same =
            a.monitors.iter().any(|m| b.monitors.contains(m)) && a.pool == b.pool && a.image == b.image;
        return same && !both_read(a.read_only, b.read_only);
    }
    false
}

impl Filter for VolumeRestrictions {
    fn filter(&self, pod: &PodInfo, node: &NodeInfo, _: &Cluster) -> Result<(), Status> {
        let there = node.pods.iter().flat_map(|p| volumes(p));
        if there.into_iter().any(|t| volumes(pod).iter().any(|v| conflict(v, t))) {
            return Err(Status::unschedulable("node(s) had no available disk"));
        }
        Ok(())
    }

    fn copy(&self) -> Box<dyn Filter> {
        Box::new(*self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{cluster, node, placed, pod, verdicts};
    use serde_json::json;

    #[test]
    fn one_disk_has_one_writer_per_node() {
        let disk = |read_only: bool| json!({"spec": {"volumes": [{"name": "v", "gcePersistentDisk": {"pdName": "d", "readOnly": read_only}}]}});
        let c = cluster([node("a", json!({})), node("b", json!({}))], [placed("x", "a", "x", disk(true))]);
        assert_eq!(verdicts(&VolumeRestrictions, &pod(disk(true)), &c), ["ok", "ok"]);
        assert_eq!(
            verdicts(&VolumeRestrictions, &pod(disk(false)), &c),
            ["node(s) had no available disk", "ok"]
        );
    }
}
