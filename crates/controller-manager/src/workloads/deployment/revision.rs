//! A Deployment's ReplicaSets: which is new, which are old, their revisions and annotations.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// Label with the hash of a ReplicaSet's template.
pub(super) const HASH: &str = "pod-template-hash";
/// Annotation with a rollout's number.
pub(super) const REVISION: &str = "deployment.kubernetes.io/revision";
const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
/// Annotation with the Deployment's replicas when the ReplicaSet was last scaled.
pub(super) const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
/// Annotation with the most replicas there may be during a rollout.
pub(super) const MAX: &str = "deployment.kubernetes.io/max-replicas";

/// Annotations of a Deployment that its ReplicaSets do not get.
const NOT_COPIED: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    REVISION_HISTORY,
    DESIRED,
    MAX,
    "deprecated.deployment.rollback.to",
];

pub(super) fn replicas(d: &Deployment) -> i32 {
    d.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
}

pub(super) fn rs_replicas(rs: &ReplicaSet) -> i32 {
    rs.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
}

pub(super) fn is_recreate(d: &Deployment) -> bool {
    d.spec.as_ref().and_then(|s| s.strategy.as_ref()).and_then(|s| s.type_.as_deref()) == Some("Recreate")
}

/// How many pods more than wanted, and fewer than wanted, there may be during a rollout. Both at zero would never
/// end: then one may be missing.
pub(super) fn fenceposts(d: &Deployment) -> (i32, i32) {
    if is_recreate(d) {
        return (0, 0);
    }
    let rolling = d.spec.as_ref().and_then(|s| s.strategy.as_ref()).and_then(|s| s.rolling_update.clone());
    let (surge, unavailable) = rolling.map(|r| (r.max_surge, r.max_unavailable)).unwrap_or_default();
    let total = replicas(d);
    let surge = scaled(surge.as_ref(), total, true);
    let unavailable = scaled(unavailable.as_ref(), total, false);
    if surge == 0 && unavailable == 0 { (0, 1) } else { (surge, unavailable) }
}

/// A number, or a percentage of `total`, rounded up or down.
pub(crate) fn scaled(value: Option<&IntOrString>, total: i32, up: bool) -> i32 {
    match value {
        None => 0,
        Some(IntOrString::Int(n)) => *n,
        Some(IntOrString::String(s)) => {
            let percent: i64 = s.trim_end_matches('%').parse().unwrap_or(0);
            let product = percent * i64::from(total);
            let n = if up { (product + 99).div_euclid(100) } else { product.div_euclid(100) };
            i32::try_from(n).unwrap_or(i32::MAX)
        }
    }
}

/// How many pods may be missing: never more than there are.
pub(super) fn max_unavailable(d: &Deployment) -> i32 {
    if replicas(d) == 0 { 0 } else { fenceposts(d).1.min(replicas(d)) }
}

/// Whether two templates are the same but for the hash label.
pub(super) fn same_template(a: &PodTemplateSpec, b: &PodTemplateSpec) -> bool {
    let strip = |t: &PodTemplateSpec| {
        let mut t = t.clone();
        if let Some(m) = &mut t.metadata {
            if let Some(l) = &mut m.labels {
                l.remove(HASH);
                if l.is_empty() {
                    m.labels = None;
                }
            }
            m.creation_timestamp = None;
        }
        t
    };
    strip(a) == strip(b)
}

/// The ReplicaSet that has the Deployment's template: the oldest, where several have it.
pub(super) fn find_new(d: &Deployment, sets: &[Arc<ReplicaSet>]) -> Option<Arc<ReplicaSet>> {
    let template = &d.spec.as_ref()?.template;
    let mut sets: Vec<_> = sets.to_vec();
    sets.sort_by_key(|rs| (rs.metadata.creation_timestamp.clone().map(|t| t.0), rs.metadata.name.clone()));
    sets.into_iter().find(|rs| {
        rs.spec.as_ref().and_then(|s| s.template.as_ref()).is_some_and(|t| same_template(t, template))
    })
}

/// All but the new one.
pub(super) fn find_old(sets: &[Arc<ReplicaSet>], new: Option<&ReplicaSet>) -> Vec<Arc<ReplicaSet>> {
    sets.iter().filter(|rs| new.is_none_or(|n| n.metadata.uid != rs.metadata.uid)).cloned().collect()
}

/// A ReplicaSet's revision; 0 where it has none.
pub(super) fn revision_of(annotations: Option<&BTreeMap<String, String>>) -> i64 {
    annotations.and_then(|a| a.get(REVISION)).and_then(|r| r.parse().ok()).unwrap_or(0)
}

/// The highest revision of these.
pub(super) fn max_revision(sets: &[Arc<ReplicaSet>]) -> i64 {
    sets.iter().map(|rs| revision_of(rs.metadata.annotations.as_ref())).max().unwrap_or(0)
}

/// Sets the new ReplicaSet's annotations: the Deployment's own, and the revision. Returns whether one changed.
pub(super) fn annotate_new(d: &Deployment, rs: &mut ReplicaSet, revision: i64, exists: bool) -> bool {
    let own = d.metadata.annotations.clone().unwrap_or_default();
    let annotations = rs.metadata.annotations.get_or_insert_default();
    let before = annotations.clone();
    for (k, v) in own.into_iter().filter(|(k, _)| !NOT_COPIED.contains(&k.as_str())) {
        annotations.insert(k, v);
    }
    let old = annotations.get(REVISION).cloned();
    if old.as_ref().and_then(|r| r.parse::<i64>().ok()).unwrap_or(0) < revision {
        annotations.insert(REVISION.into(), revision.to_string());
        // A template that comes back keeps the numbers that it had.
        if let Some(old) = old.filter(|_| exists) {
            let history = annotations.get(REVISION_HISTORY).cloned().unwrap_or_default();
            let history = if history.is_empty() { old } else { format!("{history},{old}") };
            annotations.insert(REVISION_HISTORY.into(), history);
        }
    }
    if !exists {
        set_replicas_annotations(annotations, replicas(d), replicas(d) + fenceposts(d).0);
    }
    *annotations != before
}

/// Sets the annotations that proportional scaling goes by. Returns whether one changed.
pub(super) fn set_replicas_annotations(
    annotations: &mut BTreeMap<String, String>,
    desired: i32,
    max: i32,
) -> bool {
    let mut changed = false;
    for (key, value) in [(DESIRED, desired), (MAX, max)] {
        let value = value.to_string();
        changed |= annotations.insert(key.into(), value.clone()).as_ref() != Some(&value);
    }
    changed
}

/// A number in an annotation.
pub(super) fn annotation_number(rs: &ReplicaSet, key: &str) -> Option<i32> {
    rs.metadata.annotations.as_ref()?.get(key)?.parse().ok()
}

/// How many replicas the new ReplicaSet should have now, given all there are.
pub(super) fn new_replicas(d: &Deployment, all: &[Arc<ReplicaSet>], new: &ReplicaSet) -> i32 {
    if is_recreate(d) {
        return replicas(d);
    }
    let current: i32 = all.iter().map(|rs| rs_replicas(rs)).sum();
    let max = replicas(d) + fenceposts(d).0;
    let have = rs_replicas(new);
    if current >= max { have } else { have + (max - current).min(replicas(d) - have) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn deployment(spec: serde_json::Value) -> Deployment {
        serde_json::from_value(json!({"apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": "d", "annotations": {"mine": "1", REVISION: "9"}}, "spec": spec}))
        .unwrap()
    }

    #[test]
    fn fenceposts_round_in_favour_of_progress() {
        let d = |n: i32, surge: serde_json::Value, unavailable: serde_json::Value| {
            deployment(json!({"replicas": n, "selector": {}, "template": {},
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}}}))
        };
        assert_eq!(fenceposts(&d(10, json!("25%"), json!("25%"))), (3, 2));
        assert_eq!(fenceposts(&d(1, json!("25%"), json!("25%"))), (1, 0));
        assert_eq!(fenceposts(&d(10, json!(0), json!("1%"))), (0, 1));
        assert_eq!(max_unavailable(&d(0, json!(1), json!(1))), 0);
    }

    #[test]
    fn a_template_that_comes_back_keeps_its_numbers() {
        let d = deployment(json!({"replicas": 1, "selector": {}, "template": {}}));
        let mut rs = ReplicaSet::default();
        assert!(annotate_new(&d, &mut rs, 1, false));
        assert_eq!(rs.metadata.annotations.as_ref().unwrap()[REVISION], "1");
        assert_eq!(rs.metadata.annotations.as_ref().unwrap()["mine"], "1");
        assert!(annotate_new(&d, &mut rs, 3, true));
        assert_eq!(rs.metadata.annotations.as_ref().unwrap()[REVISION_HISTORY], "1");
        assert!(!annotate_new(&d, &mut rs, 3, true));
    }

    #[test]
    fn the_hash_label_does_not_make_templates_differ() {
        let t = |labels: serde_json::Value| -> PodTemplateSpec {
            serde_json::from_value(json!({"metadata": {"labels": labels}})).unwrap()
        };
        assert!(same_template(&t(json!({"a": "b", HASH: "x"})), &t(json!({"a": "b"}))));
        assert!(!same_template(&t(json!({"a": "c"})), &t(json!({"a": "b"}))));
    }
}
