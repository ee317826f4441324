//! The disruption controller: keeps the status of PodDisruptionBudgets, from which the API server knows how many pods
//! may be evicted.
//!
//! <https://kubernetes.io/docs/concepts/workloads/pods/disruptions/>

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{Pod, ReplicationController};
use k8s_openapi::api::policy::v1::{PodDisruptionBudgetSpec, PodDisruptionBudgetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, OwnerReference, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::api::{ApiResource, DynamicObject, PostParams, TypeMeta};
use kube::core::{GroupVersionKind, Object};
use kube::discovery::oneshot;
use kube::{Api, Client};
use pilothouse_client::events::reference;
use pilothouse_client::{Change, EventRecorder, Informer, Queue, key_of, served};

use crate::context::Context;
use crate::control::{controller_of, has_code, is_ready, message, selects};

type Budget = Object<PodDisruptionBudgetSpec, PodDisruptionBudgetStatus>;

/// How long an eviction that was allowed may take until the pod counts again.
const DELETION_TIMEOUT: Duration = Duration::from_secs(120);

/// From this release on, pods without a controller are left out of the count instead of failing it.
const LENIENT: u32 = 22;

struct Worker {
    client: Client,
    recorder: EventRecorder,
    resource: ApiResource,
    budgets: Informer<Budget>,
    pods: Informer<Pod>,
    replica_sets: Informer<ReplicaSet>,
    deployments: Informer<Deployment>,
    stateful_sets: Informer<StatefulSet>,
    replication_controllers: Informer<ReplicationController>,
    server_minor: u32,
}

/// Why the status cannot be computed.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("{}", message(.0))]
    Api(#[from] kube::Error),
    #[error("found no controller ref for pod {0:?}")]
    NoControllerRef(String),
    #[error("found no controllers for pod {0:?}")]
    NoControllers(String),
}

/// Starts the controller; does nothing where the server has no budgets.
pub async fn start(context: Context) -> anyhow::Result<()> {
    let Some(resource) = context.served(served::POD_DISRUPTION_BUDGET) else { return Ok(()) };
    let worker = Arc::new(Worker {
        client: context.client.clone(),
        recorder: context.recorder("controllermanager"),
        budgets: context.informer_of::<Budget>(&resource),
        pods: context.informer::<Pod>(),
        replica_sets: context.informer::<ReplicaSet>(),
        deployments: context.informer::<Deployment>(),
        stateful_sets: context.informer::<StatefulSet>(),
        replication_controllers: context.informer::<ReplicationController>(),
        server_minor: context.server_minor,
        resource,
    });
    let queue: Queue<String> = Queue::new();
    let q = queue.clone();
    worker.budgets.on_change(move |c| {
        if !matches!(c, Change::Deleted(_)) {
            q.add(key_of(&**c.object()));
        }
    });
    let (q, me) = (queue.clone(), worker.clone());
    worker.pods.on_change(move |c| {
        let (old, new) = match c {
            Change::Added(p) | Change::Deleted(p) => (None, p),
            Change::Updated(old, new) => (Some(old), new),
        };
        let namespace = new.metadata.namespace.as_deref().unwrap_or_default();
        for budget in me.budgets.list_namespace(namespace) {
            if me.covers(&budget, new) || old.is_some_and(|o| me.covers(&budget, o)) {
                q.add(key_of(&*budget));
            }
        }
    });
    let stop = context.stop.clone();
    tokio::spawn(async move {
        worker.budgets.wait_synced().await;
        worker.pods.wait_synced().await;
        worker.replica_sets.wait_synced().await;
        worker.deployments.wait_synced().await;
        worker.stateful_sets.wait_synced().await;
        worker.replication_controllers.wait_synced().await;
        queue.run("disruption", 2, stop, move |key| {
            let worker = worker.clone();
            async move { worker.sync(&key).await }
        });
    });
    Ok(())
}

impl Worker {
    /// Whether a budget covers a pod. An empty selector covers nothing in `v1beta1`, everything in `v1`.
    fn covers(&self, budget: &Budget, pod: &Pod) -> bool {
        let selector = budget.spec.selector.as_ref();
        let empty = selector.is_none_or(|s| {
            s.match_labels.iter().flatten().next().is_none()
                && s.match_expressions.iter().flatten().next().is_none()
        });
        let empty_covers = self.resource.version != "v1beta1";
        (!empty || empty_covers) && selects(selector, pod.metadata.labels.as_ref())
    }

    async fn sync(&self, key: &str) -> Result<Option<Duration>, Error> {
        let Some(budget) = self.budgets.get(key) else { return Ok(None) };
        let now = Timestamp::now();
        match self.compute(&budget, now).await {
            Ok((status, again)) => {
                self.write(&budget, status).await?;
                Ok(again)
            }
            Err(e) => {
                // Nothing may be evicted while the count is not known.
                let mut status = budget.status.clone().unwrap_or_default();
                status.current_healthy.get_or_insert(0);
                status.desired_healthy.get_or_insert(0);
                status.expected_pods.get_or_insert(0);
                status.disruptions_allowed = Some(0);
                if self.server_minor > 20 {
                    let text = e.to_string();
                    set_condition(&mut status, &budget, now, false, "SyncFailed", &text);
                }
                self.write(&budget, status).await?;
                Err(e)
            }
        }
    }

    async fn compute(
        &self,
        budget: &Budget,
        now: Timestamp,
    ) -> Result<(PodDisruptionBudgetStatus, Option<Duration>), Error> {
        let object = reference(budget, &self.resource);
        let namespace = budget.metadata.namespace.as_deref().unwrap_or_default();
        let pods: Vec<Arc<Pod>> =
            self.pods.list_namespace(namespace).into_iter().filter(|p| self.covers(budget, p)).collect();
        if pods.is_empty() {
            self.recorder.normal(&object, "NoPods", "No matching pods found");
        }
        let by_count = budget.spec.max_unavailable.is_none()
            && !matches!(budget.spec.min_available, Some(IntOrString::String(_)));
        let expected = if by_count {
            i32::try_from(pods.len()).unwrap_or(i32::MAX)
        } else {
            match self.expected(budget, namespace, &pods).await {
                Ok(n) => n,
                Err(e) => {
                    match &e {
                        Error::NoControllerRef(_) => {
                            self.recorder.warning(&object, "NoControllerRef", e.to_string());
                        }
                        Error::NoControllers(_) => {
                            self.recorder.warning(&object, "NoControllers", e.to_string())
                        }
                        Error::Api(_) => {}
                    }
                    let text = format!("Failed to calculate the number of expected pods: {e}");
                    self.recorder.warning(&object, "CalculateExpectedPodCountFailed", text);
                    return Err(e);
                }
            }
        };
        let disrupted = budget.status.as_ref().and_then(|s| s.disrupted_pods.as_ref());
        let (disrupted, overdue, again) = still_disrupted(&pods, disrupted, now);
        for pod in overdue {
            let text = format!("Pod was expected by PDB {} to be deleted but it wasn't", key_of(budget));
            self.recorder.warning(&reference(&*pod, &()), "NotDeleted", text);
        }
        let healthy = pods.iter().filter(|p| {
            let name = p.metadata.name.as_deref().unwrap_or_default();
            p.metadata.deletion_timestamp.is_none() && !disrupted.contains_key(name) && is_ready(p)
        });
        let healthy = i32::try_from(healthy.count()).unwrap_or(i32::MAX);
        let desired = desired_healthy(&budget.spec, expected);
        let allowed = if expected <= 0 { 0 } else { (healthy - desired).max(0) };
        let mut status = PodDisruptionBudgetStatus {
            conditions: budget.status.as_ref().and_then(|s| s.conditions.clone()),
            current_healthy: Some(healthy),
            desired_healthy: Some(desired),
            disrupted_pods: Some(disrupted).filter(|d| !d.is_empty()),
            disruptions_allowed: Some(allowed),
            expected_pods: Some(expected),
            observed_generation: budget.metadata.generation,
        };
        if self.server_minor > 20 {
            let reason = if allowed > 0 { "SufficientPods" } else { "InsufficientPods" };
            set_condition(&mut status, budget, now, allowed > 0, reason, "");
        }
        Ok((status, again))
    }

    /// How many pods there should be: the sum of the scales of the pods' controllers.
    async fn expected(&self, budget: &Budget, namespace: &str, pods: &[Arc<Pod>]) -> Result<i32, Error> {
        let mut scales: BTreeMap<String, i32> = BTreeMap::new();
        let mut seen: BTreeSet<String> = BTreeSet::new();
        let mut unmanaged = Vec::new();
        for pod in pods {
            let name = pod.metadata.name.clone().unwrap_or_default();
            let Some(owner) = controller_of(&pod.metadata) else {
                if self.server_minor >= LENIENT {
                    unmanaged.push(name);
                    continue;
                }
                return Err(Error::NoControllerRef(name));
            };
            if !seen.insert(owner.uid.clone()) {
                continue;
            }
            match self.scale_of(namespace, owner).await? {
                Some((uid, scale)) => {
                    scales.insert(uid, scale);
                }
                None => return Err(Error::NoControllers(name)),
            }
        }
        if !unmanaged.is_empty() {
            let text = format!(
                "Pods selected by this PodDisruptionBudget (selector: {}) were found to be unmanaged. As a result, the \
                 status of the PDB cannot be calculated correctly, which may result in undefined behavior. To account \
                 for these pods please set \".spec.minAvailable\" field of the PDB to an integer value.",
                serde_json::to_string(&budget.spec.selector).unwrap_or_default()
            );
            self.recorder.warning(&reference(budget, &self.resource), "UnmanagedPods", text);
        }
        Ok(scales.values().sum())
    }

    /// Uid and scale of the controller that says how many pods there are: of a ReplicaSet's Deployment, where it has
    /// one.
    async fn scale_of(
        &self,
        namespace: &str,
        owner: &OwnerReference,
    ) -> Result<Option<(String, i32)>, Error> {
        let key = format!("{namespace}/{}", owner.name);
        let group = owner.api_version.split_once('/').map_or("", |(g, _)| g);
        let is = |uid: &Option<String>| uid.as_ref() == Some(&owner.uid);
        match (group, owner.kind.as_str()) {
            ("apps" | "extensions", "ReplicaSet") => {
                let Some(set) = self.replica_sets.get(&key).filter(|s| is(&s.metadata.uid)) else {
                    return Ok(None);
                };
                let Some(parent) = controller_of(&set.metadata) else {
                    return Ok(Some((
                        owner.uid.clone(),
                        set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1),
                    )));
                };
                if parent.kind != "Deployment" {
                    return self.scale_by_subresource(namespace, parent).await;
                }
                let deployment = self.deployments.get(&format!("{namespace}/{}", parent.name));
                Ok(deployment
                    .filter(|d| d.metadata.uid.as_ref() == Some(&parent.uid))
                    .map(|d| (parent.uid.clone(), d.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1))))
            }
            ("apps", "StatefulSet") => {
                let set = self.stateful_sets.get(&key).filter(|s| is(&s.metadata.uid));
                Ok(set.map(|s| (owner.uid.clone(), s.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1))))
            }
            ("", "ReplicationController") => {
                let rc = self.replication_controllers.get(&key).filter(|r| is(&r.metadata.uid));
                Ok(rc.map(|r| (owner.uid.clone(), r.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1))))
            }
            _ => self.scale_by_subresource(namespace, owner).await,
        }
    }

    async fn scale_by_subresource(
        &self,
        namespace: &str,
        owner: &OwnerReference,
    ) -> Result<Option<(String, i32)>, Error> {
        let (group, version) = owner.api_version.split_once('/').unwrap_or(("", &owner.api_version));
        let gvk = GroupVersionKind::gvk(group, version, &owner.kind);
        let Ok((resource, _)) = oneshot::pinned_kind(&self.client, &gvk).await else { return Ok(None) };
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), namespace, &resource);
        match api.get_scale(&owner.name).await {
            Ok(scale) if scale.metadata.uid.as_ref().is_none_or(|u| *u == owner.uid) => {
                Ok(Some((owner.uid.clone(), scale.spec.and_then(|s| s.replicas).unwrap_or(0))))
            }
            Ok(_) => Ok(None),
            Err(e) if has_code(&e, 404) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    async fn write(&self, budget: &Budget, status: PodDisruptionBudgetStatus) -> Result<(), Error> {
        let mut old = budget.status.clone().unwrap_or_default();
        old.disrupted_pods = old.disrupted_pods.filter(|d| !d.is_empty());
        if old == status {
            return Ok(());
        }
        let mut budget = budget.clone();
        budget.types = Some(TypeMeta {
            api_version: self.resource.api_version.clone(),
            kind: self.resource.kind.clone(),
        });
        budget.status = Some(status);
        let namespace = budget.metadata.namespace.clone().unwrap_or_default();
        let name = budget.metadata.name.clone().unwrap_or_default();
        let api: Api<Budget> = Api::namespaced_with(self.client.clone(), &namespace, &self.resource);
        match api.replace_status(&name, &PostParams::default(), &budget).await {
            Ok(_) => Ok(()),
            Err(e) if has_code(&e, 404) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }
}

/// A number, or a share of `total`, rounded up.
fn scaled(value: &IntOrString, total: i32) -> i32 {
    match value {
        IntOrString::Int(n) => *n,
        IntOrString::String(s) => {
            let percent: i64 = s.trim_end_matches('%').parse().unwrap_or(0);
            i32::try_from((percent * i64::from(total) + 99).div_euclid(100)).unwrap_or(i32::MAX)
        }
    }
}

/// How many of `expected` pods must be healthy.
fn desired_healthy(spec: &PodDisruptionBudgetSpec, expected: i32) -> i32 {
    match (&spec.max_unavailable, &spec.min_available) {
        (Some(max), _) => (expected - scaled(max, expected)).max(0),
        (None, Some(min)) => scaled(min, expected),
        (None, None) => 0,
    }
}

type Disrupted = BTreeMap<String, Time>;

/// Of the pods whose eviction was allowed, those that are still awaited, those that should be gone by now, and when the
/// next of them should be.
fn still_disrupted(
    pods: &[Arc<Pod>],
    disrupted: Option<&Disrupted>,
    now: Timestamp,
) -> (Disrupted, Vec<Arc<Pod>>, Option<Duration>) {
    let (mut awaited, mut overdue, mut again) = (Disrupted::new(), Vec::new(), None::<Duration>);
    for pod in pods.iter().filter(|p| p.metadata.deletion_timestamp.is_none()) {
        let name = pod.metadata.name.clone().unwrap_or_default();
        let Some(since) = disrupted.and_then(|d| d.get(&name)) else { continue };
        let due = since.0.as_millisecond() + i64::try_from(DELETION_TIMEOUT.as_millis()).unwrap_or(i64::MAX);
        match u64::try_from(due - now.as_millisecond()) {
            Ok(left) if left > 0 => {
                let left = Duration::from_millis(left);
                again = Some(again.map_or(left, |a| a.min(left)));
                awaited.insert(name, since.clone());
            }
            _ => overdue.push(pod.clone()),
        }
    }
    (awaited, overdue, again)
}

fn set_condition(
    status: &mut PodDisruptionBudgetStatus,
    budget: &Budget,
    now: Timestamp,
    allowed: bool,
    reason: &str,
    text: &str,
) {
    let list = status.conditions.get_or_insert_default();
    let state = if allowed { "True" } else { "False" };
    let old = list.iter().find(|c| c.type_ == "DisruptionAllowed");
    let since = old.filter(|c| c.status == state).map_or(Time(now), |c| c.last_transition_time.clone());
    let condition = Condition {
        type_: "DisruptionAllowed".into(),
        status: state.into(),
        reason: reason.into(),
        message: text.into(),
        last_transition_time: since,
        observed_generation: budget.metadata.generation,
    };
    match list.iter_mut().find(|c| c.type_ == "DisruptionAllowed") {
        Some(c) => *c = condition,
        None => list.push(condition),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn spec(v: serde_json::Value) -> PodDisruptionBudgetSpec {
        serde_json::from_value(v).unwrap()
    }

    #[test]
    fn percentages_round_up() {
        assert_eq!(desired_healthy(&spec(json!({"minAvailable": "50%"})), 3), 2);
        assert_eq!(desired_healthy(&spec(json!({"maxUnavailable": "34%"})), 3), 1);
        assert_eq!(desired_healthy(&spec(json!({"maxUnavailable": 5})), 3), 0);
        assert_eq!(desired_healthy(&spec(json!({"minAvailable": 1})), 0), 1);
        assert_eq!(desired_healthy(&spec(json!({"minAvailable": "0%"})), 3), 0);
    }

    #[test]
    fn an_eviction_is_awaited_for_two_minutes() {
        let pod = |name: &str| Arc::new(serde_json::from_value(json!({"metadata": {"name": name}})).unwrap());
        let pods = [pod("a"), pod("b"), pod("c")];
        let t = |s: &str| Time(s.parse().unwrap());
        let list: Disrupted = [
            ("a".to_string(), t("2024-01-01T00:00:00Z")),
            ("b".to_string(), t("2024-01-01T00:01:00Z")),
            ("gone".to_string(), t("2024-01-01T00:01:00Z")),
        ]
        .into();
        let (awaited, overdue, again) = still_disrupted(&pods, Some(&list), t("2024-01-01T00:02:00Z").0);
        assert_eq!(awaited.keys().collect::<Vec<_>>(), ["b"]);
        assert_eq!(overdue[0].metadata.name.as_deref(), Some("a"));
        assert_eq!(again, Some(Duration::from_secs(60)));
    }
}
