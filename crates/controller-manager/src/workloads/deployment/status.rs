//! A Deployment's status and conditions.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::revision::{max_unavailable, replicas, rs_replicas};

/// The deadline that stands for "none".
const NO_DEADLINE: i32 = i32::MAX;

/// A condition of a status.
pub(super) fn condition<'a>(status: &'a DeploymentStatus, type_: &str) -> Option<&'a DeploymentCondition> {
    status.conditions.iter().flatten().find(|c| c.type_ == type_)
}

/// A condition as of now.
pub(super) fn new_condition(type_: &str, status: &str, reason: &str, message: String) -> DeploymentCondition {
    let now = Time(crate::control::now());
    DeploymentCondition {
        type_: type_.into(),
        status: status.into(),
        reason: Some(reason.into()),
        message: Some(message),
        last_update_time: Some(now.clone()),
        last_transition_time: Some(now),
    }
}

/// Puts a condition in, at the end of the list. One of the same status and reason stays as it is; one of the same
/// status keeps the time of its last transition.
pub(super) fn set_condition(status: &mut DeploymentStatus, mut new: DeploymentCondition) {
    let list = status.conditions.get_or_insert_default();
    if let Some(old) = list.iter().find(|c| c.type_ == new.type_) {
        if old.status == new.status && old.reason == new.reason {
            return;
        }
        if old.status == new.status {
            new.last_transition_time = old.last_transition_time.clone();
        }
    }
    list.retain(|c| c.type_ != new.type_);
    list.push(new);
}

pub(super) fn remove_condition(status: &mut DeploymentStatus, type_: &str) {
    if let Some(list) = &mut status.conditions {
        list.retain(|c| c.type_ != type_);
    }
}

fn sum(sets: &[Arc<ReplicaSet>], f: impl Fn(&ReplicaSet) -> i32) -> i32 {
    sets.iter().map(|rs| f(rs)).sum()
}

pub(super) fn available(sets: &[Arc<ReplicaSet>]) -> i32 {
    sum(sets, |rs| rs.status.as_ref().and_then(|s| s.available_replicas).unwrap_or(0))
}

/// Counts and the `Available` condition; other conditions as they were.
pub(super) fn calculate(
    d: &Deployment,
    all: &[Arc<ReplicaSet>],
    new: Option<&Arc<ReplicaSet>>,
) -> DeploymentStatus {
    let available = available(all);
    let total = sum(all, rs_replicas);
    let old = d.status.clone().unwrap_or_default();
    let mut status = DeploymentStatus {
        observed_generation: d.metadata.generation,
        replicas: Some(sum(all, |rs| rs.status.as_ref().map_or(0, |s| s.replicas))),
        updated_replicas: Some(new.and_then(|rs| rs.status.as_ref()).map_or(0, |s| s.replicas)),
        ready_replicas: Some(sum(all, |rs| rs.status.as_ref().and_then(|s| s.ready_replicas).unwrap_or(0))),
        available_replicas: Some(available),
        unavailable_replicas: Some((total - available).max(0)),
        collision_count: old.collision_count,
        conditions: old.conditions,
        ..Default::default()
    };
    for n in [
        &mut status.replicas,
        &mut status.updated_replicas,
        &mut status.ready_replicas,
        &mut status.available_replicas,
        &mut status.unavailable_replicas,
    ] {
        // Zero is not written.
        if *n == Some(0) {
            *n = None;
        }
    }
    let c = if available >= replicas(d) - max_unavailable(d) {
        new_condition(
            "Available",
            "True",
            "MinimumReplicasAvailable",
            "Deployment has minimum availability.".into(),
        )
    } else {
        new_condition(
            "Available",
            "False",
            "MinimumReplicasUnavailable",
            "Deployment does not have minimum availability.".into(),
        )
    };
    set_condition(&mut status, c);
    status
}

/// Whether the rollout is over.
pub(super) fn complete(d: &Deployment, s: &DeploymentStatus) -> bool {
    s.updated_replicas.unwrap_or(0) == replicas(d)
        && s.replicas.unwrap_or(0) == replicas(d)
        && s.available_replicas.unwrap_or(0) == replicas(d)
        && s.observed_generation >= d.metadata.generation
}

fn progressing(d: &Deployment, new: &DeploymentStatus) -> bool {
    let old = d.status.clone().unwrap_or_default();
    let n = |x: Option<i32>| x.unwrap_or(0);
    let old_old = n(old.replicas) - n(old.updated_replicas);
    let new_old = n(new.replicas) - n(new.updated_replicas);
    n(new.updated_replicas) > n(old.updated_replicas)
        || new_old < old_old
        || n(new.ready_replicas) > n(old.ready_replicas)
        || n(new.available_replicas) > n(old.available_replicas)
}

fn deadline(d: &Deployment) -> Option<i32> {
    d.spec.as_ref().and_then(|s| s.progress_deadline_seconds).filter(|s| *s != NO_DEADLINE)
}

/// Whether nothing has moved for longer than the deadline.
fn timed_out(d: &Deployment, new: &DeploymentStatus, now: Timestamp) -> bool {
    let (Some(deadline), Some(c)) = (deadline(d), condition(new, "Progressing")) else { return false };
    match c.reason.as_deref() {
        Some("NewReplicaSetAvailable") => false,
        Some("ProgressDeadlineExceeded") => true,
        _ => {
            let from = c.last_update_time.as_ref().map_or(now, |t| t.0);
            now.as_second() - from.as_second() > i64::from(deadline)
        }
    }
}

/// The status during a rollout: [`calculate`] with the `Progressing` and `ReplicaFailure` conditions.
pub(super) fn rollout(
    d: &Deployment,
    all: &[Arc<ReplicaSet>],
    new: Option<&Arc<ReplicaSet>>,
    now: Timestamp,
) -> DeploymentStatus {
    let mut status = calculate(d, all, new);
    if deadline(d).is_none() {
        remove_condition(&mut status, "Progressing");
    }
    let current = d.status.as_ref().and_then(|s| condition(s, "Progressing")).cloned();
    let done = d.status.as_ref().is_some_and(|s| s.replicas.unwrap_or(0) == s.updated_replicas.unwrap_or(0))
        && current.as_ref().and_then(|c| c.reason.as_deref()) == Some("NewReplicaSetAvailable");
    if deadline(d).is_some() && !done {
        let name = d.metadata.name.as_deref().unwrap_or_default();
        let rs = new.and_then(|rs| rs.metadata.name.as_deref());
        let text = |with: &str, without: &str| match rs {
            Some(rs) => format!("ReplicaSet {rs:?} {with}"),
            None => format!("Deployment {name:?} {without}"),
        };
        if complete(d, &status) {
            let message = text("has successfully progressed.", "has successfully progressed.");
            set_condition(
                &mut status,
                new_condition("Progressing", "True", "NewReplicaSetAvailable", message),
            );
        } else if progressing(d, &status) {
            let message = text("is progressing.", "is progressing.");
            let mut c = new_condition("Progressing", "True", "ReplicaSetUpdated", message);
            // Each step counts anew against the deadline, also where the reason stays.
            if let Some(current) = current {
                if current.status == "True" {
                    c.last_transition_time = current.last_transition_time;
                }
                remove_condition(&mut status, "Progressing");
            }
            set_condition(&mut status, c);
        } else if timed_out(d, &status, now) {
            let message = text("has timed out progressing.", "has timed out progressing.");
            set_condition(
                &mut status,
                new_condition("Progressing", "False", "ProgressDeadlineExceeded", message),
            );
        }
    }
    let failure = new.into_iter().chain(all).find_map(|rs| {
        rs.status
            .iter()
            .flat_map(|s| s.conditions.iter().flatten())
            .find(|c| c.type_ == "ReplicaFailure")
            .cloned()
    });
    match failure {
        Some(f) => {
            let mut c = new_condition(
                "ReplicaFailure",
                &f.status,
                f.reason.as_deref().unwrap_or_default(),
                f.message.unwrap_or_default(),
            );
            c.last_transition_time = f.last_transition_time.or(c.last_transition_time);
            set_condition(&mut status, c);
        }
        None => remove_condition(&mut status, "ReplicaFailure"),
    }
    status
}

/// When to look again whether the deadline has passed.
pub(super) fn look_again(d: &Deployment, new: &DeploymentStatus, now: Timestamp) -> Option<Duration> {
    let c = condition(new, "Progressing")?;
    if complete(d, new) || timed_out(d, new, now) || c.reason.as_deref() == Some("NewReplicaSetAvailable") {
        return None;
    }
    let after = c.last_update_time.as_ref()?.0.as_second() + i64::from(deadline(d)?) - now.as_second();
    Some(Duration::from_secs(u64::try_from(after + 1).unwrap_or(1)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn deployment(status: serde_json::Value) -> Deployment {
        serde_json::from_value(json!({"apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": "d", "generation": 1},
            "spec": {"replicas": 2, "selector": {}, "template": {}, "progressDeadlineSeconds": 60,
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}},
            "status": status}))
        .unwrap()
    }

    fn rs(replicas: i32, available: i32) -> Arc<ReplicaSet> {
        Arc::new(
            serde_json::from_value(json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": "d-1"},
                "spec": {"replicas": 2, "selector": {}},
                "status": {"replicas": replicas, "readyReplicas": available, "availableReplicas": available}}))
            .unwrap(),
        )
    }

    #[test]
    fn goes_from_progressing_to_available_and_stays() {
        let now = Timestamp::now();
        let new = rs(2, 1);
        let s = rollout(&deployment(json!({})), std::slice::from_ref(&new), Some(&new), now);
        assert_eq!(condition(&s, "Available").unwrap().status, "False");
        assert_eq!(condition(&s, "Progressing").unwrap().reason.as_deref(), Some("ReplicaSetUpdated"));
        assert_eq!(
            condition(&s, "Progressing").unwrap().message.as_deref(),
            Some("ReplicaSet \"d-1\" is progressing.")
        );
        let new = rs(2, 2);
        let d = deployment(serde_json::to_value(&s).unwrap());
        let s = rollout(&d, std::slice::from_ref(&new), Some(&new), now);
        assert_eq!(condition(&s, "Progressing").unwrap().reason.as_deref(), Some("NewReplicaSetAvailable"));
        assert_eq!(s.unavailable_replicas, None);
        let d = deployment(serde_json::to_value(&s).unwrap());
        assert_eq!(rollout(&d, std::slice::from_ref(&new), Some(&new), now), s);
    }

    #[test]
    fn times_out() {
        let d =
            deployment(json!({"replicas": 2, "updatedReplicas": 2, "observedGeneration": 1, "conditions": [
            {"type": "Progressing", "status": "True", "reason": "ReplicaSetUpdated",
             "lastUpdateTime": "2024-01-01T00:00:00Z", "lastTransitionTime": "2024-01-01T00:00:00Z"}]}));
        let new = rs(2, 0);
        let early = "2024-01-01T00:00:30Z".parse().unwrap();
        let s = rollout(&d, std::slice::from_ref(&new), Some(&new), early);
        assert_eq!(condition(&s, "Progressing").unwrap().status, "True");
        assert_eq!(look_again(&d, &s, early), Some(Duration::from_secs(31)));
        let late = "2024-01-01T00:01:01Z".parse().unwrap();
        let s = rollout(&d, std::slice::from_ref(&new), Some(&new), late);
        assert_eq!(condition(&s, "Progressing").unwrap().reason.as_deref(), Some("ProgressDeadlineExceeded"));
        assert_eq!(look_again(&d, &s, late), None);
    }
}
