//! How many replicas each of a Deployment's ReplicaSets should have: plain arithmetic.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};

use super::revision::{
    MAX, annotation_number, fenceposts, is_recreate, max_unavailable, new_replicas, replicas, rs_replicas,
};
use super::status::available;

/// A ReplicaSet and how many replicas it should have.
pub(super) type Target = (Arc<ReplicaSet>, i32);

/// The ReplicaSets that have replicas.
pub(super) fn active(sets: &[Arc<ReplicaSet>]) -> Vec<Arc<ReplicaSet>> {
    sets.iter().filter(|rs| rs_replicas(rs) > 0).cloned().collect()
}

/// Whether the Deployment was scaled since its ReplicaSets were: then they are scaled in proportion first.
pub(super) fn is_scaling_event(d: &Deployment, all: &[Arc<ReplicaSet>]) -> bool {
    active(all).iter().any(|rs| {
        annotation_number(rs, super::revision::DESIRED).is_some_and(|desired| desired != replicas(d))
    })
}

/// Scaling outside of a rollout or in the middle of one: where one ReplicaSet has replicas, or the new one has all,
/// that one takes the number; else the difference is spread in proportion.
pub(super) fn scale(d: &Deployment, new: Option<&Arc<ReplicaSet>>, old: &[Arc<ReplicaSet>]) -> Vec<Target> {
    let all: Vec<Arc<ReplicaSet>> = old.iter().cloned().chain(new.cloned()).collect();
    let active_sets = active(&all);
    let one = match active_sets.len() {
        0 => new.cloned().or_else(|| newest(&all)),
        1 => active_sets.first().cloned(),
        _ => None,
    };
    if let Some(rs) = one {
        return vec![(rs, replicas(d))];
    }
    if let Some(n) = new {
        let saturated = rs_replicas(n) == replicas(d)
            && annotation_number(n, super::revision::DESIRED) == Some(replicas(d))
            && n.status.as_ref().and_then(|s| s.available_replicas).unwrap_or(0) == replicas(d);
        if saturated {
            return active(old).into_iter().map(|rs| (rs, 0)).collect();
        }
    }
    if is_recreate(d) {
        return Vec::new();
    }
    proportional(d, active_sets)
}

fn newest(sets: &[Arc<ReplicaSet>]) -> Option<Arc<ReplicaSet>> {
    sets.iter().max_by_key(|rs| rs.metadata.creation_timestamp.clone().map(|t| t.0)).cloned()
}

fn proportional(d: &Deployment, mut sets: Vec<Arc<ReplicaSet>>) -> Vec<Target> {
    let total: i32 = sets.iter().map(|rs| rs_replicas(rs)).sum();
    let allowed = if replicas(d) > 0 { replicas(d) + fenceposts(d).0 } else { 0 };
    let to_add = allowed - total;
    let created = |rs: &ReplicaSet| rs.metadata.creation_timestamp.clone().map(|t| t.0);
    // Largest first; among equals the newest grows first and the oldest shrinks first.
    sets.sort_by(|a, b| {
        rs_replicas(b)
            .cmp(&rs_replicas(a))
            .then_with(|| if to_add > 0 { created(b).cmp(&created(a)) } else { created(a).cmp(&created(b)) })
    });
    let mut added = 0;
    let mut targets: Vec<Target> = sets
        .into_iter()
        .map(|rs| {
            let size = rs_replicas(&rs);
            if to_add == 0 {
                return (rs, size);
            }
            let share = proportion(d, &rs, to_add, added);
            added += share;
            (rs, (size + share).max(0))
        })
        .collect();
    if let Some(first) = targets.first_mut() {
        first.1 = (first.1 + to_add - added).max(0);
    }
    targets
}

/// A ReplicaSet's part of `to_add`, of which `added` is given out already.
fn proportion(d: &Deployment, rs: &ReplicaSet, to_add: i32, added: i32) -> i32 {
    let size = rs_replicas(rs);
    if size == 0 || to_add == 0 || to_add == added {
        return 0;
    }
    let fraction = if replicas(d) == 0 {
        -size
    } else {
        let max = replicas(d) + fenceposts(d).0;
        let annotated = annotation_number(rs, MAX)
            .unwrap_or_else(|| d.status.as_ref().and_then(|s| s.replicas).unwrap_or(1));
        let new_size = f64::from(size * max) / f64::from(annotated.max(1));
        new_size.round() as i32 - size
    };
    let left = to_add - added;
    if to_add > 0 { fraction.min(left) } else { fraction.max(left) }
}

/// A rolling update's next step for the new ReplicaSet, where it has one.
pub(super) fn grow_new(d: &Deployment, all: &[Arc<ReplicaSet>], new: &Arc<ReplicaSet>) -> Option<Target> {
    let have = rs_replicas(new);
    let target = if have > replicas(d) { replicas(d) } else { new_replicas(d, all, new) };
    (target != have).then(|| (new.clone(), target))
}

/// A rolling update's next step for the old ones: pods that are not available go first, then available ones as long
/// as enough are left.
pub(super) fn shrink_old(
    d: &Deployment,
    all: &[Arc<ReplicaSet>],
    old: &[Arc<ReplicaSet>],
    new: Option<&Arc<ReplicaSet>>,
) -> Vec<Target> {
    let mut sizes: Vec<Target> = old.iter().map(|rs| (rs.clone(), rs_replicas(rs))).collect();
    sizes.sort_by_key(|(rs, _)| rs.metadata.creation_timestamp.clone().map(|t| t.0));
    if sizes.iter().all(|(_, n)| *n == 0) {
        return Vec::new();
    }
    let total: i32 = all.iter().map(|rs| rs_replicas(rs)).sum();
    let min_available = replicas(d) - max_unavailable(d);
    let new_unavailable =
        new.map_or(0, |n| rs_replicas(n) - n.status.as_ref().and_then(|s| s.available_replicas).unwrap_or(0));
    let max_down = total - min_available - new_unavailable;
    if max_down <= 0 {
        return Vec::new();
    }
    let mut cleaned = 0;
    for (rs, size) in &mut sizes {
        if cleaned >= max_down || *size == 0 {
            continue;
        }
        let unhealthy = *size - rs.status.as_ref().and_then(|s| s.available_replicas).unwrap_or(0);
        // It was scaled down and its status is from before that: what is available is not known until it changes.
        if unhealthy < 0 {
            return Vec::new();
        }
        let down = (max_down - cleaned).min(unhealthy);
        *size -= down;
        cleaned += down;
    }
    let available = available(all);
    if available > min_available {
        let mut left = available - min_available;
        for (_, size) in &mut sizes {
            let down = left.min(*size).max(0);
            *size -= down;
            left -= down;
        }
    }
    sizes.into_iter().filter(|(rs, n)| *n != rs_replicas(rs)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn deployment(replicas: i32, surge: i32, unavailable: i32) -> Deployment {
        serde_json::from_value(json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"},
            "spec": {"replicas": replicas, "selector": {}, "template": {}, "strategy": {"type": "RollingUpdate",
                "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}}}}))
        .unwrap()
    }

    fn rs(name: &str, replicas: i32, available: i32, max: i32) -> Arc<ReplicaSet> {
        Arc::new(
            serde_json::from_value(json!({"apiVersion": "apps/v1", "kind": "ReplicaSet",
                "metadata": {"name": name, "uid": name, "creationTimestamp": format!("2024-01-01T00:00:0{}Z", name.len()),
                    "annotations": {MAX: max.to_string()}},
                "spec": {"replicas": replicas, "selector": {}},
                "status": {"replicas": replicas, "availableReplicas": available}}))
            .unwrap(),
        )
    }

    fn numbers(targets: &[Target]) -> Vec<(String, i32)> {
        targets.iter().map(|(rs, n)| (rs.metadata.name.clone().unwrap(), *n)).collect()
    }

    #[test]
    fn a_rolling_update_never_goes_below_what_must_be_available() {
        let d = deployment(10, 3, 2);
        let (old, new) = (rs("o", 10, 10, 13), rs("nn", 0, 0, 13));
        let all = [old.clone(), new.clone()];
        assert_eq!(grow_new(&d, &all, &new).unwrap().1, 3);
        let new = rs("nn", 3, 0, 13);
        let all = [old.clone(), new.clone()];
        assert_eq!(numbers(&shrink_old(&d, &all, std::slice::from_ref(&old), Some(&new))), [("o".into(), 8)]);
        let old = rs("o", 8, 8, 13);
        assert!(
            shrink_old(&d, &[old.clone(), new.clone()], std::slice::from_ref(&old), Some(&new)).is_empty()
        );
    }

    #[test]
    fn broken_old_pods_go_first() {
        let d = deployment(3, 1, 0);
        let (old, new) = (rs("o", 3, 1, 4), rs("nn", 1, 1, 4));
        assert_eq!(
            numbers(&shrink_old(&d, &[old.clone(), new.clone()], std::slice::from_ref(&old), Some(&new))),
            [("o".into(), 2)]
        );
    }

    #[test]
    fn a_status_from_before_the_last_scaling_says_nothing() {
        let d = deployment(5, 3, 2);
        let new = rs("nn", 3, 0, 8);
        let old = rs("o", 5, 8, 8);
        assert!(
            shrink_old(&d, &[old.clone(), new.clone()], std::slice::from_ref(&old), Some(&new)).is_empty()
        );
        let old = rs("o", 5, 5, 8);
        let steps = shrink_old(&d, &[old.clone(), new.clone()], std::slice::from_ref(&old), Some(&new));
        assert_eq!(numbers(&steps), [("o".into(), 3)]);
    }

    #[test]
    fn scaling_during_a_rollout_is_proportional() {
        let d = deployment(15, 3, 2);
        let (old, new) = (rs("o", 8, 8, 13), rs("nn", 5, 0, 13));
        let t = scale(&d, Some(&new), &[old]);
        assert_eq!(t.iter().map(|(_, n)| n).sum::<i32>(), 18);
        assert_eq!(numbers(&t), [("o".into(), 11), ("nn".into(), 7)]);
    }

    #[test]
    fn alone_it_takes_all() {
        let new = rs("nn", 3, 3, 4);
        assert_eq!(numbers(&scale(&deployment(5, 1, 0), Some(&new), &[])), [("nn".into(), 5)]);
    }
}
