//! What to do next with a StatefulSet's pods: plain decisions, one at a time where order counts.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetStatus};
use k8s_openapi::api::core::v1::Pod;

use super::identity::{identity_matches, ordinal, pod_revision, storage_matches};
use crate::control::{is_ready, phase};

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Make the pod with that ordinal, of the update revision or of the current one.
    Create {
        /// Which.
        ordinal: i32,
        /// Whether of the update revision.
        updated: bool,
    },
    /// Delete the pod of that name, which has failed, so that it can be made again.
    Recreate(String),
    /// Delete the pod of that name.
    Delete(String),
    /// Put the identity and storage of the pod with that ordinal right.
    Repair(i32),
}

/// What a status counts, and the steps.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) steps: Vec<Step>,
    pub(super) status: StatefulSetStatus,
}

fn created(pod: &Pod) -> bool {
    pod.status.as_ref().and_then(|s| s.phase.as_deref()).is_some_and(|p| !p.is_empty())
}

fn running_and_ready(pod: &Pod) -> bool {
    phase(pod) == "Running" && is_ready(pod)
}

fn terminating(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

fn healthy(pod: &Pod) -> bool {
    running_and_ready(pod) && !terminating(pod)
}

fn parallel(set: &StatefulSet) -> bool {
    set.spec.as_ref().and_then(|s| s.pod_management_policy.as_deref()) == Some("Parallel")
}

fn partition(set: &StatefulSet) -> i32 {
    let strategy = set.spec.as_ref().and_then(|s| s.update_strategy.as_ref());
    strategy.and_then(|s| s.rolling_update.as_ref()).and_then(|r| r.partition).unwrap_or(0)
}

fn on_delete(set: &StatefulSet) -> bool {
    let strategy = set.spec.as_ref().and_then(|s| s.update_strategy.as_ref());
    strategy.and_then(|s| s.type_.as_deref()) == Some("OnDelete")
}

/// Plans from the pods that there are. `current` and `update` are the revisions' names.
pub(super) fn plan(set: &StatefulSet, pods: &[Arc<Pod>], current: &str, update: &str) -> Plan {
    let wanted = set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1);
    let old = set.status.clone().unwrap_or_default();
    let mut status = StatefulSetStatus {
        observed_generation: set.metadata.generation,
        current_revision: Some(current.to_string()),
        update_revision: Some(update.to_string()),
        collision_count: Some(old.collision_count.unwrap_or(0)),
        ..Default::default()
    };
    let (mut ready, mut on_current, mut on_update) = (0, 0, 0);
    let mut replicas: Vec<Option<Arc<Pod>>> = vec![None; usize::try_from(wanted).unwrap_or(0)];
    let mut condemned: Vec<(i32, Arc<Pod>)> = Vec::new();
    for pod in pods {
        status.replicas += 1;
        if running_and_ready(pod) {
            ready += 1;
        }
        if created(pod) && !terminating(pod) {
            on_current += i32::from(pod_revision(pod) == current);
            on_update += i32::from(pod_revision(pod) == update);
        }
        match ordinal(set, pod) {
            Some(n) if n < wanted => {
                if let Some(slot) = usize::try_from(n).ok().and_then(|i| replicas.get_mut(i)) {
                    *slot = Some(pod.clone());
                }
            }
            Some(n) => condemned.push((n, pod.clone())),
            None => {}
        }
    }
    condemned.sort_by_key(|(n, _)| *n);
    let mut plan = Plan::default();
    let first_unhealthy = replicas
        .iter()
        .flatten()
        .chain(condemned.iter().map(|(_, p)| p))
        .find(|p| !healthy(p))
        .and_then(|p| p.metadata.name.clone());
    if set.metadata.deletion_timestamp.is_none() {
        steps(set, &replicas, &condemned, first_unhealthy.as_deref(), (current, update), &mut plan.steps);
    }
    // Counts run ahead of what the steps will do, as the original's do.
    for step in &plan.steps {
        match step {
            Step::Create { updated, .. } => {
                status.replicas += 1;
                on_update += i32::from(*updated || current == update);
                on_current += i32::from(!*updated || current == update);
            }
            Step::Delete(name) | Step::Recreate(name) => {
                if let Some(pod) = pods.iter().find(|p| p.metadata.name.as_deref() == Some(name)) {
                    on_current -= i32::from(pod_revision(pod) == current && created(pod));
                    on_update -= i32::from(pod_revision(pod) == update && created(pod));
                    if failed(pod) {
                        status.replicas -= 1;
                    }
                }
            }
            Step::Repair(_) => {}
        }
    }
    let set_nonzero = |n: i32| Some(n.max(0)).filter(|n| *n != 0);
    status.ready_replicas = set_nonzero(ready);
    status.current_replicas = set_nonzero(on_current);
    status.updated_replicas = set_nonzero(on_update);
    plan.status = status;
    plan
}

fn failed(pod: &Pod) -> bool {
    phase(pod) == "Failed"
}

fn steps(
    set: &StatefulSet,
    replicas: &[Option<Arc<Pod>>],
    condemned: &[(i32, Arc<Pod>)],
    first_unhealthy: Option<&str>,
    (current, update): (&str, &str),
    steps: &mut Vec<Step>,
) {
    let monotonic = !parallel(set);
    let partition = partition(set);
    for (i, slot) in replicas.iter().enumerate() {
        let n = i32::try_from(i).unwrap_or(i32::MAX);
        // Below the partition, and before a rolling update has begun there, new pods are of the old revision.
        let updated = current == update
            || (!on_delete(set) && n >= partition && rolled_past(set, n, replicas, update))
            || (on_delete(set) && n >= current_replicas(set));
        let create = Step::Create { ordinal: n, updated };
        let Some(pod) = slot else {
            steps.push(create);
            if monotonic {
                return;
            }
            continue;
        };
        let name = pod.metadata.name.clone().unwrap_or_default();
        if failed(pod) && !terminating(pod) {
            steps.push(Step::Recreate(name));
            steps.push(create);
            if monotonic {
                return;
            }
            continue;
        }
        if monotonic && (terminating(pod) || !running_and_ready(pod)) {
            let right = identity_matches(set, pod, n) && storage_matches(set, pod, n);
            if !terminating(pod) && !right {
                steps.push(Step::Repair(n));
            }
            return;
        }
        if !identity_matches(set, pod, n) || !storage_matches(set, pod, n) {
            steps.push(Step::Repair(n));
        }
    }
    for (_, pod) in condemned.iter().rev() {
        let name = pod.metadata.name.clone().unwrap_or_default();
        if terminating(pod) {
            if monotonic {
                return;
            }
            continue;
        }
        // A pod that is not ready holds the others' removal up, but not its own.
        if monotonic && !running_and_ready(pod) && first_unhealthy != Some(&name) {
            return;
        }
        steps.push(Step::Delete(name));
        if monotonic {
            return;
        }
    }
    if on_delete(set) || !steps.is_empty() && monotonic {
        return;
    }
    for (i, slot) in replicas.iter().enumerate().rev() {
        if i32::try_from(i).unwrap_or(0) < partition {
            break;
        }
        let Some(pod) = slot else { return };
        if pod_revision(pod) != update && !terminating(pod) {
            steps.push(Step::Delete(pod.metadata.name.clone().unwrap_or_default()));
            return;
        }
        if !healthy(pod) {
            return;
        }
    }
}

fn current_replicas(set: &StatefulSet) -> i32 {
    set.status.as_ref().and_then(|s| s.current_replicas).unwrap_or(0)
}

/// Whether a rolling update has come down to ordinal `n`: the pod that is missing there is one that the update took.
fn rolled_past(set: &StatefulSet, n: i32, replicas: &[Option<Arc<Pod>>], update: &str) -> bool {
    let above = usize::try_from(n + 1).unwrap_or(0);
    replicas.iter().skip(above).all(|p| p.as_ref().is_some_and(|p| pod_revision(p) == update))
        || n >= partition(set) + current_replicas(set)
}

/// Whether a rolling update is over: then the update revision becomes the current one.
pub(super) fn complete(set: &StatefulSet, status: &StatefulSetStatus) -> bool {
    !on_delete(set)
        && status.updated_replicas.unwrap_or(0) == status.replicas
        && status.ready_replicas.unwrap_or(0) == status.replicas
        && status.current_revision != status.update_revision
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn set(replicas: i32, policy: &str, partition: i32) -> StatefulSet {
        serde_json::from_value(json!({"apiVersion": "apps/v1", "kind": "StatefulSet",
            "metadata": {"name": "web", "namespace": "ns"},
            "spec": {"serviceName": "s", "replicas": replicas, "selector": {}, "template": {},
                "podManagementPolicy": policy,
                "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": partition}}}}))
        .unwrap()
    }

    fn pod(n: i32, revision: &str, ready: bool) -> Arc<Pod> {
        Arc::new(
            serde_json::from_value(json!({"apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": format!("web-{n}"), "namespace": "ns",
                    "labels": {"statefulset.kubernetes.io/pod-name": format!("web-{n}"), "controller-revision-hash": revision}},
                "spec": {"containers": []},
                "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": if ready {"True"} else {"False"}}]}}))
            .unwrap(),
        )
    }

    fn create(ordinal: i32, updated: bool) -> Step {
        Step::Create { ordinal, updated }
    }

    #[test]
    fn one_after_another() {
        let s = set(3, "OrderedReady", 0);
        assert_eq!(plan(&s, &[], "a", "a").steps, [create(0, true)]);
        assert_eq!(plan(&s, &[pod(0, "a", false)], "a", "a").steps, []);
        assert_eq!(plan(&s, &[pod(0, "a", true)], "a", "a").steps, [create(1, true)]);
        let p = set(3, "Parallel", 0);
        assert_eq!(plan(&p, &[pod(0, "a", false)], "a", "a").steps, [create(1, true), create(2, true)]);
    }

    #[test]
    fn down_from_the_top() {
        let s = set(1, "OrderedReady", 0);
        let pods = [pod(0, "a", true), pod(1, "a", true), pod(2, "a", true)];
        assert_eq!(plan(&s, &pods, "a", "a").steps, [Step::Delete("web-2".into())]);
        let pods = [pod(0, "a", true), pod(1, "a", false), pod(2, "a", true)];
        assert_eq!(plan(&s, &pods, "a", "a").steps, [Step::Delete("web-2".into())]);
        let pods = [pod(0, "a", false), pod(1, "a", true)];
        assert_eq!(plan(&s, &pods, "a", "a").steps, []);
    }

    #[test]
    fn rolls_from_the_top_to_the_partition() {
        let s = set(3, "OrderedReady", 1);
        let pods = [pod(0, "a", true), pod(1, "a", true), pod(2, "a", true)];
        assert_eq!(plan(&s, &pods, "a", "b").steps, [Step::Delete("web-2".into())]);
        let pods = [pod(0, "a", true), pod(1, "a", true)];
        assert_eq!(plan(&s, &pods, "a", "b").steps, [create(2, true)]);
        let pods = [pod(0, "a", true), pod(1, "a", true), pod(2, "b", false)];
        assert_eq!(plan(&s, &pods, "a", "b").steps, []);
        let pods = [pod(0, "a", true), pod(1, "b", true), pod(2, "b", true)];
        assert_eq!(plan(&s, &pods, "a", "b").steps, []);
        let pods = [pod(1, "b", true), pod(2, "b", true)];
        assert_eq!(plan(&s, &pods, "a", "b").steps, [create(0, false)]);
    }

    #[test]
    fn a_failed_pod_is_made_again() {
        let s = set(1, "OrderedReady", 0);
        let mut failed = (*pod(0, "a", false)).clone();
        failed.status.as_mut().unwrap().phase = Some("Failed".into());
        let plan = plan(&s, &[Arc::new(failed)], "a", "a");
        assert_eq!(plan.steps, [Step::Recreate("web-0".into()), create(0, true)]);
    }
}
