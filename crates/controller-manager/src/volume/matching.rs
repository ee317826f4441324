//! Which volume fits a claim: the smallest that is large enough, has the modes, class and labels, and is free.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use pilothouse_apimachinery::quantity::Quantity;

use crate::control::selects;

/// A volume's phase.
pub(super) fn volume_phase(v: &PersistentVolume) -> &str {
    v.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default()
}

/// A claim's phase.
pub(super) fn claim_phase(c: &PersistentVolumeClaim) -> &str {
    c.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default()
}

/// The class that a claim asks for; `""` for none.
pub(super) fn claim_class(c: &PersistentVolumeClaim) -> &str {
    let annotation =
        c.metadata.annotations.as_ref().and_then(|a| a.get("volume.beta.kubernetes.io/storage-class"));
    annotation
        .or_else(|| c.spec.as_ref().and_then(|s| s.storage_class_name.as_ref()))
        .map(String::as_str)
        .unwrap_or_default()
}

/// A volume's class.
pub(super) fn volume_class(v: &PersistentVolume) -> &str {
    let annotation =
        v.metadata.annotations.as_ref().and_then(|a| a.get("volume.beta.kubernetes.io/storage-class"));
    annotation
        .or_else(|| v.spec.as_ref().and_then(|s| s.storage_class_name.as_ref()))
        .map(String::as_str)
        .unwrap_or_default()
}

/// Whether a volume is kept for that claim: by name, and by uid where it has one.
pub(super) fn is_for(v: &PersistentVolume, c: &PersistentVolumeClaim) -> bool {
    v.spec.as_ref().and_then(|s| s.claim_ref.as_ref()).is_some_and(|r| {
        r.name == c.metadata.name
            && r.namespace == c.metadata.namespace
            && r.uid.as_ref().is_none_or(|u| u.is_empty() || Some(u) == c.metadata.uid.as_ref())
    })
}

fn capacity(v: &PersistentVolume) -> Option<Quantity> {
    v.spec.as_ref()?.capacity.as_ref()?.get("storage")?.0.parse().ok()
}

fn requested(c: &PersistentVolumeClaim) -> Option<Quantity> {
    c.spec.as_ref()?.resources.as_ref()?.requests.as_ref()?.get("storage")?.0.parse().ok()
}

/// Why a volume that a user chose cannot be the claim's.
pub(super) fn misfit(v: &PersistentVolume, c: &PersistentVolumeClaim) -> Option<&'static str> {
    let (vs, cs) = (v.spec.clone().unwrap_or_default(), c.spec.clone().unwrap_or_default());
    if let (Some(want), Some(have)) = (requested(c), capacity(v))
        && have < want
    {
        return Some("requested PV is too small");
    }
    if volume_class(v) != claim_class(c) {
        return Some("storageClassName does not match");
    }
    if volume_mode(vs.volume_mode.as_deref()) != volume_mode(cs.volume_mode.as_deref()) {
        return Some("incompatible volumeMode");
    }
    if !has_modes(v, c) {
        return Some("incompatible accessMode");
    }
    None
}

fn volume_mode(mode: Option<&str>) -> &str {
    mode.filter(|m| !m.is_empty()).unwrap_or("Filesystem")
}

fn has_modes(v: &PersistentVolume, c: &PersistentVolumeClaim) -> bool {
    let have = v.spec.as_ref().and_then(|s| s.access_modes.clone()).unwrap_or_default();
    c.spec.as_ref().and_then(|s| s.access_modes.as_ref()).into_iter().flatten().all(|m| have.contains(m))
}

/// The best volume for a claim. With `delayed` only one that a user has kept for it counts: the scheduler chooses
/// among the others.
pub(super) fn find(
    c: &PersistentVolumeClaim,
    volumes: &[Arc<PersistentVolume>],
    delayed: bool,
) -> Option<Arc<PersistentVolume>> {
    let fits = |v: &PersistentVolume| {
        let (vs, cs) = (v.spec.clone().unwrap_or_default(), c.spec.clone().unwrap_or_default());
        volume_mode(vs.volume_mode.as_deref()) == volume_mode(cs.volume_mode.as_deref())
            && has_modes(v, c)
            && v.metadata.deletion_timestamp.is_none()
            && match (capacity(v), requested(c)) {
                (Some(have), Some(want)) => have >= want,
                _ => false,
            }
    };
    if let Some(kept) = volumes.iter().find(|v| is_for(v, c) && fits(v)) {
        return Some(kept.clone());
    }
    if delayed {
        return None;
    }
    let mut best: Option<(Quantity, &Arc<PersistentVolume>)> = None;
    for v in volumes {
        let free = v.spec.as_ref().is_none_or(|s| s.claim_ref.is_none()) && volume_phase(v) == "Available";
        let labels_match = c
            .spec
            .as_ref()
            .and_then(|s| s.selector.as_ref())
            .is_none_or(|s| selects(Some(s), v.metadata.labels.as_ref()));
        if !free || !labels_match || volume_class(v) != claim_class(c) || !fits(v) {
            continue;
        }
        let Some(size) = capacity(v) else { continue };
        if best.as_ref().is_none_or(|(b, _)| size < *b) {
            best = Some((size, v));
        }
    }
    best.map(|(_, v)| v.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn volume(name: &str, size: &str, more: serde_json::Value) -> Arc<PersistentVolume> {
        let mut spec = json!({"capacity": {"storage": size}, "accessModes": ["ReadWriteOnce"]});
        spec.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap_or_default());
        Arc::new(
            serde_json::from_value(
                json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name},
                "spec": spec, "status": {"phase": "Available"}}),
            )
            .unwrap(),
        )
    }

    fn claim(size: &str) -> PersistentVolumeClaim {
        serde_json::from_value(json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "metadata": {"name": "c", "namespace": "ns", "uid": "u"},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}}}))
        .unwrap()
    }

    #[test]
    fn the_smallest_that_is_large_enough() {
        let all = [
            volume("big", "10Gi", json!({})),
            volume("fit", "2Gi", json!({})),
            volume("small", "1Gi", json!({})),
        ];
        let name = |v: Option<Arc<PersistentVolume>>| v.and_then(|v| v.metadata.name.clone());
        assert_eq!(name(find(&claim("1500Mi"), &all, false)).as_deref(), Some("fit"));
        assert_eq!(name(find(&claim("1500Mi"), &all, true)), None);
        assert_eq!(name(find(&claim("20Gi"), &all, false)), None);
        let classed = [volume("x", "5Gi", json!({"storageClassName": "fast"}))];
        assert_eq!(name(find(&claim("1Gi"), &classed, false)), None);
        let kept =
            [volume("k", "5Gi", json!({"claimRef": {"name": "c", "namespace": "ns"}})), all[1].clone()];
        assert_eq!(name(find(&claim("1Gi"), &kept, true)).as_deref(), Some("k"));
        let others =
            [volume("o", "5Gi", json!({"claimRef": {"name": "c", "namespace": "ns", "uid": "other"}}))];
        assert_eq!(name(find(&claim("1Gi"), &others, false)), None);
    }

    #[test]
    fn says_why_not() {
        assert_eq!(misfit(&volume("s", "1Gi", json!({})), &claim("2Gi")), Some("requested PV is too small"));
        assert_eq!(misfit(&volume("s", "3Gi", json!({})), &claim("2Gi")), None);
    }
}
