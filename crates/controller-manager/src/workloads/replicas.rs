//! ReplicaSets and ReplicationControllers: as many pods of one template as asked for. Both are one controller; what
//! differs is in [`Replicated`].

use std::collections::{BTreeMap, HashMap};
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition};
use k8s_openapi::api::core::v1::{
    Pod, PodTemplateSpec, ReplicationController, ReplicationControllerCondition,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use kube::api::PostParams;
use kube::{Api, Client, Resource};
use pilothouse_client::events::reference;
use pilothouse_client::{Change, Informer, Queue, key_of};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::context::Context;
use crate::control::{
    self, Expectations, PodControl, availability, claim, controller_of, controller_ref, deletion_order,
    has_code, is_active, is_ready, is_terminating_namespace, message, pod_from_template, slow_start,
};

/// As many pods are created or deleted in one sync.
const BURST: usize = 500;

/// Counts of a status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    replicas: i32,
    fully_labeled: i32,
    ready: i32,
    available: i32,
}

/// What the controller needs of a kind.
pub trait Replicated:
    Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
    + Clone
    + Debug
    + Serialize
    + DeserializeOwned
    + Send
    + Sync
    + 'static
{
    /// How many pods are wanted.
    fn replicas(&self) -> i32;
    /// Whether labels are selected.
    fn selects(&self, labels: Option<&BTreeMap<String, String>>) -> bool;
    /// The pods' template.
    fn template(&self) -> PodTemplateSpec;
    /// How long a pod must be ready to count as available, in seconds.
    fn min_ready_seconds(&self) -> i32;
    /// Writes the status; returns whether it changed. A failure is the reason and message of `ReplicaFailure`.
    fn set_status(&mut self, counts: Counts, failure: Option<(&str, String)>) -> bool;
}

/// Sets or clears a condition list's `ReplicaFailure`.
macro_rules! set_status {
    ($self:ident, $counts:ident, $failure:ident, $condition:ident) => {{
        let old = $self.status.clone();
        let generation = $self.metadata.generation;
        let status = $self.status.get_or_insert_default();
        status.replicas = $counts.replicas;
        status.fully_labeled_replicas = Some($counts.fully_labeled).filter(|n| *n != 0);
        status.ready_replicas = Some($counts.ready).filter(|n| *n != 0);
        status.available_replicas = Some($counts.available).filter(|n| *n != 0);
        status.observed_generation = generation;
        let conditions = status.conditions.get_or_insert_default();
        match $failure {
            Some((reason, message)) => {
                if !conditions.iter().any(|c| c.type_ == "ReplicaFailure") {
                    conditions.push($condition {
                        type_: "ReplicaFailure".into(),
                        status: "True".into(),
                        reason: Some(reason.into()),
                        message: Some(message),
                        last_transition_time: Some(Time(Timestamp::now())),
                    });
                }
            }
            None => conditions.retain(|c| c.type_ != "ReplicaFailure"),
        }
        if conditions.is_empty() {
            status.conditions = None;
        }
        $self.status != old
    }};
}

impl Replicated for ReplicaSet {
    fn replicas(&self) -> i32 {
        self.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
    }
    fn selects(&self, labels: Option<&BTreeMap<String, String>>) -> bool {
        control::selects(self.spec.as_ref().map(|s| &s.selector), labels)
    }
    fn template(&self) -> PodTemplateSpec {
        self.spec.as_ref().and_then(|s| s.template.clone()).unwrap_or_default()
    }
    fn min_ready_seconds(&self) -> i32 {
        self.spec.as_ref().and_then(|s| s.min_ready_seconds).unwrap_or(0)
    }
    fn set_status(&mut self, counts: Counts, failure: Option<(&str, String)>) -> bool {
        set_status!(self, counts, failure, ReplicaSetCondition)
    }
}

impl Replicated for ReplicationController {
    fn replicas(&self) -> i32 {
        self.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
    }
    fn selects(&self, labels: Option<&BTreeMap<String, String>>) -> bool {
        control::selects_map(self.spec.as_ref().and_then(|s| s.selector.as_ref()), labels)
    }
    fn template(&self) -> PodTemplateSpec {
        self.spec.as_ref().and_then(|s| s.template.clone()).unwrap_or_default()
    }
    fn min_ready_seconds(&self) -> i32 {
        self.spec.as_ref().and_then(|s| s.min_ready_seconds).unwrap_or(0)
    }
    fn set_status(&mut self, counts: Counts, failure: Option<(&str, String)>) -> bool {
        set_status!(self, counts, failure, ReplicationControllerCondition)
    }
}

/// Starts the controller of ReplicaSets.
pub async fn start_replica_sets(context: Context) -> anyhow::Result<()> {
    start::<ReplicaSet>(context, "replicaset", "replicaset-controller").await
}

/// Starts the controller of ReplicationControllers.
pub async fn start_replication_controllers(context: Context) -> anyhow::Result<()> {
    start::<ReplicationController>(context, "replicationcontroller", "replication-controller").await
}

async fn start<K: Replicated>(context: Context, name: &'static str, component: &str) -> anyhow::Result<()> {
    let (owners, pods) = (context.informer::<K>(), context.informer::<Pod>());
    let expectations = Expectations::default();
    let queue: Queue<String> = Queue::new();
    let (q, e) = (queue.clone(), expectations.clone());
    owners.on_change(move |c| {
        let key = key_of(&**c.object());
        if matches!(c, Change::Deleted(_)) {
            e.forget(&key);
        }
        q.add(key);
    });
    watch_pods(&owners, &pods, &queue, &expectations);
    let worker = Arc::new(Worker {
        client: context.client.clone(),
        control: PodControl::new(context.client.clone(), context.recorder(component)),
        owners,
        pods,
        expectations,
    });
    let (stop, workers) = (context.stop.clone(), context.config.workers(name));
    tokio::spawn(async move {
        worker.owners.wait_synced().await;
        worker.pods.wait_synced().await;
        queue.run(name, workers, stop, move |key| {
            let worker = worker.clone();
            async move { worker.sync(&key).await }
        });
    });
    Ok(())
}

/// Queues the owner of each pod that changes, and whoever may adopt an orphan.
fn watch_pods<K: Replicated>(
    owners: &Informer<K>,
    pods: &Informer<Pod>,
    queue: &Queue<String>,
    expectations: &Expectations,
) {
    let (owners, q, e) = (owners.clone(), queue.clone(), expectations.clone());
    pods.on_change(move |c| {
        let owner = |pod: &Pod| owner_key(&owners, pod);
        let orphan = |pod: &Pod| {
            if controller_of(&pod.metadata).is_none() && pod.metadata.deletion_timestamp.is_none() {
                for o in owners.list_namespace(pod.metadata.namespace.as_deref().unwrap_or_default()) {
                    if o.selects(pod.metadata.labels.as_ref()) {
                        q.add(key_of(&*o));
                    }
                }
            }
        };
        let gone = |pod: &Pod| {
            if let Some(key) = owner(pod) {
                e.deleted(&key, &key_of(pod));
                q.add(key);
            }
        };
        match c {
            Change::Added(pod) if pod.metadata.deletion_timestamp.is_some() => gone(pod),
            Change::Added(pod) => match owner(pod) {
                Some(key) => {
                    e.created(&key);
                    q.add(key);
                }
                None => orphan(pod),
            },
            Change::Updated(old, pod) => {
                if pod.metadata.deletion_timestamp.is_some() {
                    gone(pod);
                    return;
                }
                let (before, now) = (owner(old), owner(pod));
                if before != now {
                    before.into_iter().for_each(|k| q.add(k));
                }
                match now {
                    Some(key) => q.add(key),
                    None if old.metadata.labels != pod.metadata.labels
                        || controller_of(&old.metadata).is_some() =>
                    {
                        orphan(pod);
                    }
                    None => {}
                }
            }
            Change::Deleted(pod) => gone(pod),
        }
    });
}

/// The key of a pod's controller, where that is one of `owners`.
fn owner_key<K: Replicated>(owners: &Informer<K>, pod: &Pod) -> Option<String> {
    let r = controller_of(&pod.metadata).filter(|r| r.kind == K::kind(&()))?;
    let key = format!("{}/{}", pod.metadata.namespace.as_deref()?, r.name);
    owners.get(&key).filter(|o| o.meta().uid.as_ref() == Some(&r.uid)).map(|_| key)
}

struct Worker<K> {
    client: Client,
    control: PodControl,
    owners: Informer<K>,
    pods: Informer<Pod>,
    expectations: Expectations,
}

impl<K: Replicated> Worker<K> {
    async fn sync(&self, key: &str) -> Result<Option<Duration>, kube::Error> {
        let Some(owner) = self.owners.get(key) else {
            self.expectations.forget(key);
            return Ok(None);
        };
        let Some((namespace, name)) = key.split_once('/') else { return Ok(None) };
        let manage = self.expectations.satisfied(key) && owner.meta().deletion_timestamp.is_none();
        let owner_ref = controller_ref(&*owner);
        let active: Vec<Arc<Pod>> =
            self.pods.list_namespace(namespace).into_iter().filter(|p| is_active(p)).collect();
        let api: Api<K> = Api::namespaced(self.client.clone(), namespace);
        let live = || async {
            Ok::<Option<ObjectMeta>, kube::Error>(api.get_opt(name).await?.map(|o| o.meta().clone()))
        };
        let selects = |p: &Pod| owner.selects(p.metadata.labels.as_ref());
        let mine = claim(&self.client, &owner_ref, owner.meta(), selects, active, live).await?;
        let failure = if manage { self.manage(key, &owner, &owner_ref, &mine).await.err() } else { None };
        let now = Timestamp::now();
        let (counts, again) = count(&*owner, &mine, now);
        let mut updated = (*owner).clone();
        let reason = failure
            .as_ref()
            .map(|(missing, e)| (if *missing { "FailedCreate" } else { "FailedDelete" }, message(e)));
        if updated.set_status(counts, reason) {
            match api.replace_status(name, &PostParams::default(), &updated).await {
                Ok(_) => {}
                Err(e) if has_code(&e, 404) => return Ok(None),
                Err(e) => return Err(e),
            }
        }
        match failure {
            Some((_, e)) => Err(e),
            None => Ok(again),
        }
    }

    /// Creates what is missing or deletes what is too much. An error says whether something was missing.
    async fn manage(
        &self,
        key: &str,
        owner: &K,
        owner_ref: &OwnerReference,
        mine: &[Arc<Pod>],
    ) -> Result<(), (bool, kube::Error)> {
        let namespace = owner.meta().namespace.as_deref().unwrap_or_default();
        let object = reference(owner, &());
        let wanted = usize::try_from(owner.replicas()).unwrap_or(0);
        if mine.len() < wanted {
            let missing = (wanted - mine.len()).min(BURST);
            self.expectations.expect_creations(key, missing);
            let pod = pod_from_template(&owner.template(), owner_ref, namespace);
            let (tried, error) = (std::sync::atomic::AtomicUsize::new(0), |_: usize| async {
                match self.control.create(&pod, &object).await {
                    Ok(_) => Ok(()),
                    Err(e) if is_terminating_namespace(&e) => {
                        self.expectations.created(key);
                        Ok(())
                    }
                    Err(e) => {
                        self.expectations.created(key);
                        Err(e)
                    }
                }
            });
            let (_, failed) = slow_start(missing, |i| {
                tried.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                error(i)
            })
            .await;
            // What was not tried is not expected either.
            for _ in tried.load(std::sync::atomic::Ordering::Relaxed)..missing {
                self.expectations.created(key);
            }
            return failed.map_or(Ok(()), |e| Err((true, e)));
        }
        if mine.len() > wanted {
            let surplus = (mine.len() - wanted).min(BURST);
            let doomed = choose(mine, surplus, &self.related(owner));
            self.expectations.expect_deletions(key, doomed.iter().map(|p| key_of(&**p)));
            let results = futures::future::join_all(doomed.iter().map(|p| async {
                let name = p.metadata.name.as_deref().unwrap_or_default();
                let result = self.control.delete(namespace, name, &object).await;
                if result.is_err() {
                    self.expectations.deleted(key, &key_of(&**p));
                }
                result
            }))
            .await;
            return results.into_iter().find_map(Result::err).map_or(Ok(()), |e| Err((false, e)));
        }
        Ok(())
    }

    /// The active pods of all controllers of this kind with the same owner (the ReplicaSets of one Deployment):
    /// surplus pods go first where many of them share a node.
    fn related(&self, owner: &K) -> Vec<Arc<Pod>> {
        let namespace = owner.meta().namespace.as_deref().unwrap_or_default();
        let parent = controller_of(owner.meta()).map(|r| r.uid.clone());
        let uids: Vec<String> = self
            .owners
            .list_namespace(namespace)
            .into_iter()
            .filter(|o| {
                o.meta().uid == owner.meta().uid
                    || (parent.is_some() && controller_of(o.meta()).map(|r| r.uid.clone()) == parent)
            })
            .filter_map(|o| o.meta().uid.clone())
            .collect();
        self.pods
            .list_namespace(namespace)
            .into_iter()
            .filter(|p| is_active(p) && controller_of(&p.metadata).is_some_and(|r| uids.contains(&r.uid)))
            .collect()
    }
}

/// Which `n` pods go.
fn choose(mine: &[Arc<Pod>], n: usize, related: &[Arc<Pod>]) -> Vec<Arc<Pod>> {
    let node = |p: &Pod| p.spec.as_ref().and_then(|s| s.node_name.clone()).unwrap_or_default();
    let mut per_node: HashMap<String, usize> = HashMap::new();
    for p in related {
        *per_node.entry(node(p)).or_default() += 1;
    }
    let mut ranked: Vec<(Arc<Pod>, usize)> =
        mine.iter().map(|p| (p.clone(), per_node.get(&node(p)).copied().unwrap_or(0))).collect();
    ranked.sort_by(deletion_order);
    ranked.into_iter().take(n).map(|(p, _)| p).collect()
}

/// The counts of a status, and when to look again because a pod will have become available by then.
fn count<K: Replicated>(owner: &K, mine: &[Arc<Pod>], now: Timestamp) -> (Counts, Option<Duration>) {
    let template = owner.template();
    let labels = template.metadata.and_then(|m| m.labels).unwrap_or_default();
    let mut counts = Counts { replicas: i32::try_from(mine.len()).unwrap_or(i32::MAX), ..Default::default() };
    let mut again: Option<Duration> = None;
    for pod in mine {
        let has = pod.metadata.labels.clone().unwrap_or_default();
        if labels.iter().all(|(k, v)| has.get(k) == Some(v)) {
            counts.fully_labeled += 1;
        }
        if is_ready(pod) {
            counts.ready += 1;
            match availability(pod, owner.min_ready_seconds(), now) {
                Ok(()) => counts.available += 1,
                Err(Some(left)) => again = Some(again.map_or(left, |a| a.min(left))),
                Err(None) => {}
            }
        }
    }
    (counts, again)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn rs() -> ReplicaSet {
        serde_json::from_value(json!({"apiVersion": "apps/v1", "kind": "ReplicaSet",
            "metadata": {"name": "r", "namespace": "ns", "uid": "u", "generation": 3},
            "spec": {"replicas": 2, "minReadySeconds": 10, "selector": {"matchLabels": {"a": "b"}},
                "template": {"metadata": {"labels": {"a": "b", "t": "1"}}}}}))
        .unwrap()
    }

    fn pod(name: &str, ready_at: Option<&str>, node: &str) -> Arc<Pod> {
        Arc::new(
            serde_json::from_value(json!({"apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": name, "labels": {"a": "b"}},
                "spec": {"containers": [], "nodeName": node},
                "status": {"phase": "Running", "conditions": [{"type": "Ready",
                    "status": if ready_at.is_some() {"True"} else {"False"}, "lastTransitionTime": ready_at}]}}))
            .unwrap(),
        )
    }

    #[test]
    fn counts_and_when_to_look_again() {
        let now = "2024-01-01T00:00:10Z".parse().unwrap();
        let pods = [
            pod("a", Some("2024-01-01T00:00:00Z"), "n"),
            pod("b", Some("2024-01-01T00:00:06Z"), "n"),
            pod("c", None, "n"),
        ];
        let (c, again) = count(&rs(), &pods, now);
        assert_eq!(c, Counts { replicas: 3, fully_labeled: 0, ready: 2, available: 1 });
        assert_eq!(again, Some(Duration::from_secs(6)));
    }

    #[test]
    fn a_failure_is_a_condition_until_it_is_over() {
        let mut r = rs();
        assert!(r.set_status(Counts::default(), Some(("FailedCreate", "quota".into()))));
        assert_eq!(r.status.as_ref().unwrap().observed_generation, Some(3));
        assert!(!r.set_status(Counts::default(), Some(("FailedCreate", "again".into()))));
        assert!(r.set_status(Counts::default(), None));
        assert!(r.status.unwrap().conditions.is_none());
    }

    #[test]
    fn surplus_goes_where_it_is_crowded() {
        let ready = Some("2024-01-01T00:00:00Z");
        let pods = [pod("a", ready, "n1"), pod("b", ready, "n2"), pod("c", ready, "n2")];
        let gone = choose(&pods, 1, &pods);
        assert_ne!(gone[0].metadata.name.as_deref(), Some("a"));
    }
}
