//! Pods that take more of the disk than they may: `sizeLimit` of an `emptyDir`, limits of `ephemeral-storage`.

use pilothouse_apimachinery::quantity::Quantity;

use crate::pod::PodExt;
use crate::resources;
use crate::stats::PodUsage;

fn over(used: u64, limit: &Quantity) -> bool {
    i64::try_from(used).unwrap_or(i64::MAX) > limit.value()
}

/// What a pod has done wrong: the signal it counts under, and the eviction's message.
pub fn exceeded(p: &PodUsage) -> Option<(&'static str, String)> {
    for v in p.pod.pod_spec().volumes.iter().flatten() {
        let limit = v.empty_dir.as_ref().and_then(|e| e.size_limit.as_ref());
        let Some(limit) = limit.and_then(|q| Quantity::parse(&q.0).ok()).filter(|q| q.sign() > 0) else {
            continue;
        };
        let used = p.volumes.iter().find(|u| u.name == v.name).map_or(0, |u| u.used.bytes);
        if over(used, &limit) {
            let text =
                format!("Usage of EmptyDir volume {:?} exceeds the limit {:?}. ", v.name, limit.to_string());
            return Some(("emptydirfs.limit", text));
        }
    }
    let limits = resources::pod_limits(&p.pod);
    if let Some(limit) = limits.get("ephemeral-storage")
        && over(p.ephemeral().bytes, limit)
    {
        let text =
            format!("Pod ephemeral local storage usage exceeds the total limit of containers {limit}. ");
        return Some(("ephemeralpodfs.limit", text));
    }
    for c in &p.containers {
        let spec = p.pod.pod_spec().containers.iter().find(|s| s.name == c.name);
        let limits = spec.map(resources::limits).unwrap_or_default();
        if let Some(limit) = limits.get("ephemeral-storage")
            && over(c.rootfs.bytes + c.logs.bytes, limit)
        {
            let text = format!(
                "Container {} exceeded its local ephemeral storage limit {:?}. ",
                c.name,
                limit.to_string()
            );
            return Some(("ephemeralcontainerfs.limit", text));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eviction::ranking::tests::pod;
    use crate::stats::collector::VolumeUsage;
    use crate::stats::filesystem::Used;
    use serde_json::{Value, json};
    use std::sync::Arc;

    fn check(spec: Value, disk: u64, volume: u64) -> Option<String> {
        let mut p = pod("p", 0, "0", 0, disk);
        p.pod = Arc::new(serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap());
        let used = Used { bytes: volume, inodes: 1 };
        p.volumes = vec![VolumeUsage { name: "v".into(), used, ephemeral: true, ..Default::default() }];
        exceeded(&p).map(|(_, m)| m)
    }

    #[test]
    fn messages_of_v1_20() {
        let volumes = json!({"containers": [{"name": "c"}], "volumes": [{"name": "v", "emptyDir": {"sizeLimit": "1Mi"}}]});
        assert_eq!(check(volumes.clone(), 0, 1 << 20), None);
        let text = check(volumes, 0, (1 << 20) + 1).unwrap();
        assert_eq!(text, "Usage of EmptyDir volume \"v\" exceeds the limit \"1Mi\". ");
        let limit = |l: &str| json!({"name": "c", "resources": {"limits": {"ephemeral-storage": l}}});
        let text = check(json!({"containers": [limit("1Ki")]}), 1000, 100).unwrap();
        assert_eq!(text, "Pod ephemeral local storage usage exceeds the total limit of containers 1Ki. ");
        let two = json!({"containers": [limit("1Ki"), {"name": "d", "resources": {"limits": {"ephemeral-storage": "1Gi"}}}]});
        let text = check(two, 2000, 0).unwrap();
        assert_eq!(text, "Container c exceeded its local ephemeral storage limit \"1Ki\". ");
    }
}
