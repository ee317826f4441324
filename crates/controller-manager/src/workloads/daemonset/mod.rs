//! The DaemonSet controller: one pod on each node that suits.
//!
//! <https://kubernetes.io/docs/concepts/workloads/controllers/daemonset/>

mod nodes;
mod plan;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, DaemonSetStatus};
use k8s_openapi::api::core::v1::{Node, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::PostParams;
use kube::{Api, Client};
use parking_lot::Mutex;
use pilothouse_client::events::reference;
use pilothouse_client::{Change, Informer, Queue, key_of};
use tokio::time::Instant;

use crate::context::Context;
use crate::control::{
    Expectations, PodControl, claim, controller_of, controller_ref, has_code, is_terminating_namespace,
    pod_from_template, selects, slow_start,
};
use crate::workloads::history;
use plan::{GENERATION, GENERATION_ANNOTATION, Plan, Scene};

/// So many pods are created or deleted in one sync.
const BURST: usize = 250;
/// Failed pods of a node are removed after this, doubling each time.
const BACKOFF: Duration = Duration::from_secs(1);
const MAX_BACKOFF: Duration = Duration::from_secs(15 * 60);

struct Worker {
    client: Client,
    control: PodControl,
    sets: Informer<DaemonSet>,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    revisions: Informer<ControllerRevision>,
    expectations: Expectations,
    server_minor: u32,
    /// When failed pods were last removed, and how long until the next time, by set, generation and node.
    backoff: Mutex<HashMap<(String, i64, String), (Instant, Duration)>>,
}

/// Starts the controller.
pub async fn start(context: Context) -> anyhow::Result<()> {
    let worker = Arc::new(Worker {
        client: context.client.clone(),
        control: PodControl::new(context.client.clone(), context.recorder("daemonset-controller")),
        sets: context.informer::<DaemonSet>(),
        pods: context.informer::<Pod>(),
        nodes: context.informer::<Node>(),
        revisions: context.informer::<ControllerRevision>(),
        expectations: Expectations::default(),
        server_minor: context.server_minor,
        backoff: Mutex::default(),
    });
    let queue: Queue<String> = Queue::new();
    worker.watch(&queue);
    let stop = context.stop.clone();
    tokio::spawn(async move {
        worker.sets.wait_synced().await;
        worker.pods.wait_synced().await;
        worker.nodes.wait_synced().await;
        worker.revisions.wait_synced().await;
        queue.run("daemonset", 2, stop, move |key| {
            let worker = worker.clone();
            async move { worker.sync(&key).await }
        });
    });
    Ok(())
}

impl Worker {
    fn watch(&self, queue: &Queue<String>) {
        let (q, e) = (queue.clone(), self.expectations.clone());
        self.sets.on_change(move |c| {
            let key = key_of(&**c.object());
            if matches!(c, Change::Deleted(_)) {
                e.forget(&key);
            }
            q.add(key);
        });
        let (q, sets) = (queue.clone(), self.sets.clone());
        self.nodes.on_change(move |c| {
            for set in sets.list() {
                let fit = |n: &Node| nodes::fit(&set, n);
                let matters = match c {
                    Change::Added(n) => fit(n) != nodes::Fit::Leave,
                    Change::Updated(old, new) => fit(old) != fit(new),
                    Change::Deleted(n) => fit(n) != nodes::Fit::Leave,
                };
                if matters {
                    q.add(key_of(&*set));
                }
            }
        });
        let (q, e, sets) = (queue.clone(), self.expectations.clone(), self.sets.clone());
        self.pods.on_change(move |c| {
            let pod = c.object();
            let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
            let owner = |p: &Pod| {
                let r = controller_of(&p.metadata).filter(|r| r.kind == "DaemonSet")?;
                let key = format!("{namespace}/{}", r.name);
                sets.get(&key).filter(|s| s.metadata.uid.as_ref() == Some(&r.uid)).map(|_| key)
            };
            if let Change::Updated(old, _) = c {
                owner(old).filter(|k| owner(pod).as_ref() != Some(k)).into_iter().for_each(|k| q.add(k));
            }
            match owner(pod) {
                Some(key) => {
                    let gone = matches!(c, Change::Deleted(_)) || pod.metadata.deletion_timestamp.is_some();
                    if gone {
                        e.deleted(&key, &key_of(&**pod));
                    } else if matches!(c, Change::Added(_)) {
                        e.created(&key);
                    }
                    q.add(key);
                }
                None if controller_of(&pod.metadata).is_none() => {
                    for s in sets.list_namespace(namespace) {
                        if selects(s.spec.as_ref().map(|s| &s.selector), pod.metadata.labels.as_ref()) {
                            q.add(key_of(&*s));
                        }
                    }
                }
                None => {}
            }
        });
    }

    async fn sync(&self, key: &str) -> Result<Option<Duration>, kube::Error> {
        let Some(set) = self.sets.get(key) else {
            self.expectations.forget(key);
            return Ok(None);
        };
        let Some((namespace, name)) = key.split_once('/') else { return Ok(None) };
        let object = reference(&*set, &());
        let selector = set.spec.as_ref().map(|s| s.selector.clone()).unwrap_or_default();
        if selector == Default::default() {
            let text = "This daemon set is selecting all pods. A non-empty selector is required.";
            self.control.recorder().warning(&object, "SelectingAll", text);
            return Ok(None);
        }
        if set.metadata.deletion_timestamp.is_some() {
            return Ok(None);
        }
        let owner = controller_ref(&*set);
        let (current, others) = self.ensure_revision(&set, &owner).await?;
        let hash =
            current.metadata.labels.as_ref().and_then(|l| l.get(history::HASH)).cloned().unwrap_or_default();
        let nodes = self.nodes.list();
        let mut again = None;
        let mut failed = None;
        let acted = self.expectations.satisfied(key);
        if acted {
            let pods = self.own_pods(&set, &owner, namespace, name).await?;
            let scene = Scene { set: &set, nodes: &nodes, pods: &pods, hash: &hash, now: Timestamp::now() };
            let mut plan = scene.manage();
            again = self.admit_failed(&set, &mut plan, &object);
            failed = self.carry_out(key, &set, &owner, &hash, plan, &object).await.err();
            let rolling =
                set.spec.as_ref().and_then(|s| s.update_strategy.as_ref()).and_then(|u| u.type_.as_deref());
            if failed.is_none() && self.expectations.satisfied(key) && rolling != Some("OnDelete") {
                failed = self.carry_out(key, &set, &owner, &hash, scene.roll(), &object).await.err();
            }
        }
        let pods = self.own_pods(&set, &owner, namespace, name).await?;
        if acted && failed.is_none() {
            let limit = set.spec.as_ref().and_then(|s| s.revision_history_limit).unwrap_or(10);
            history::truncate(&self.client, &others, limit, |r| {
                let hash = r.metadata.labels.as_ref().and_then(|l| l.get(history::HASH));
                pods.iter().any(|p| p.metadata.labels.as_ref().and_then(|l| l.get(history::HASH)) == hash)
            })
            .await?;
        }
        let scene = Scene { set: &set, nodes: &nodes, pods: &pods, hash: &hash, now: Timestamp::now() };
        let status = scene.status(acted && failed.is_none());
        let min_ready = set.spec.as_ref().and_then(|s| s.min_ready_seconds).unwrap_or(0);
        if min_ready > 0 && status.number_ready != status.number_available.unwrap_or(0) {
            let d = Duration::from_secs(u64::try_from(min_ready).unwrap_or(0));
            again = Some(again.map_or(d, |a: Duration| a.min(d)));
        }
        self.write_status(&set, status).await?;
        failed.map_or(Ok(again), Err)
    }

    async fn own_pods(
        &self,
        set: &DaemonSet,
        owner: &OwnerReference,
        namespace: &str,
        name: &str,
    ) -> Result<Vec<Arc<Pod>>, kube::Error> {
        let api: Api<DaemonSet> = Api::namespaced(self.client.clone(), namespace);
        let live =
            || async { Ok::<Option<ObjectMeta>, kube::Error>(api.get_opt(name).await?.map(|s| s.metadata)) };
        let matches = |p: &Pod| selects(set.spec.as_ref().map(|s| &s.selector), p.metadata.labels.as_ref());
        claim(&self.client, owner, &set.metadata, matches, self.pods.list_namespace(namespace), live).await
    }

    /// Finds or makes the revision of the template as it is; returns the others too.
    async fn ensure_revision(
        &self,
        set: &DaemonSet,
        owner: &OwnerReference,
    ) -> Result<(ControllerRevision, Vec<Arc<ControllerRevision>>), kube::Error> {
        let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
        let api: Api<DaemonSet> = Api::namespaced(self.client.clone(), namespace);
        let name = set.metadata.name.as_deref().unwrap_or_default();
        let live =
            || async { Ok::<Option<ObjectMeta>, kube::Error>(api.get_opt(name).await?.map(|s| s.metadata)) };
        let matches = |r: &ControllerRevision| {
            selects(set.spec.as_ref().map(|s| &s.selector), r.metadata.labels.as_ref())
        };
        let own = claim(
            &self.client,
            owner,
            &set.metadata,
            matches,
            self.revisions.list_namespace(namespace),
            live,
        )
        .await?;
        let template = set.spec.as_ref().map(|s| &s.template);
        let value = serde_json::to_value(template).map_err(kube::Error::SerdeError)?;
        let data = history::data(&value, self.server_minor);
        let current = match history::find_equal(&own, &data) {
            Some(equal) => {
                let highest =
                    own.iter().filter(|r| r.metadata.uid != equal.metadata.uid).map(|r| r.revision).max();
                match highest {
                    // The template went back to what it was: that revision is the newest again.
                    Some(h) if h >= equal.revision => history::renumber(&self.client, equal, h + 1).await?,
                    _ => (**equal).clone(),
                }
            }
            None => {
                let next = history::next_number(&own);
                let labels = template.and_then(|t| t.metadata.as_ref()).and_then(|m| m.labels.clone());
                let before = set.status.as_ref().and_then(|s| s.collision_count).unwrap_or(0);
                let mut collisions = before;
                let make = |collision| {
                    let labels = labels.clone().unwrap_or_default();
                    history::make(
                        owner,
                        &set.metadata,
                        (labels, history::HASH),
                        data.clone(),
                        next,
                        collision,
                    )
                };
                let made = history::create(&self.client, make, &mut collisions).await?;
                if collisions != before {
                    let mut status = set.status.clone().unwrap_or_default();
                    status.collision_count = Some(collisions);
                    self.write_status(set, status).await?;
                }
                made
            }
        };
        let others = own.into_iter().filter(|r| r.metadata.uid != current.metadata.uid).collect();
        Ok((current, others))
    }

    /// Adds those failed pods to what goes whose back-off is over, with an event each; when to look again.
    fn admit_failed(&self, set: &DaemonSet, plan: &mut Plan, object: &ObjectReference) -> Option<Duration> {
        let mut again: Option<Duration> = None;
        let uid = set.metadata.uid.clone().unwrap_or_default();
        let generation = set.status.as_ref().and_then(|s| s.observed_generation).unwrap_or(0);
        let mut backoff = self.backoff.lock();
        backoff.retain(|_, (at, wait)| at.elapsed() < 2 * (*wait).max(MAX_BACKOFF));
        for (node, pod) in std::mem::take(&mut plan.failed) {
            let entry = backoff.entry((uid.clone(), generation, node.clone()));
            let now = Instant::now();
            match entry {
                std::collections::hash_map::Entry::Occupied(mut e) => {
                    let (at, wait) = *e.get();
                    let left = wait.saturating_sub(at.elapsed());
                    if !left.is_zero() {
                        again = Some(again.map_or(left, |a| a.min(left)));
                        continue;
                    }
                    e.insert((now, (wait * 2).min(MAX_BACKOFF)));
                }
                std::collections::hash_map::Entry::Vacant(e) => {
                    e.insert((now, BACKOFF));
                }
            }
            let text =
                format!("Found failed daemon pod {} on node {node}, will try to kill it", key_of(&*pod));
            self.control.recorder().warning(object, "FailedDaemonPod", text);
            plan.delete.push(pod);
        }
        again
    }

    async fn carry_out(
        &self,
        key: &str,
        set: &DaemonSet,
        owner: &OwnerReference,
        hash: &str,
        mut plan: Plan,
        object: &ObjectReference,
    ) -> Result<(), kube::Error> {
        plan.create.truncate(BURST);
        plan.delete.truncate(BURST);
        if plan.create.is_empty() && plan.delete.is_empty() {
            return Ok(());
        }
        let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
        self.expectations.expect(key, plan.create.len(), plan.delete.iter().map(|p| key_of(&**p)));
        let tried = std::sync::atomic::AtomicUsize::new(0);
        let pods: Vec<Pod> = plan.create.iter().map(|node| new_pod(set, owner, hash, node)).collect();
        let (_, create_error) = slow_start(pods.len(), |i| {
            tried.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let pod = &pods[i];
            async move {
                match self.control.create(pod, object).await {
                    Ok(_) => Ok(()),
                    Err(e) => {
                        self.expectations.created(key);
                        if is_terminating_namespace(&e) { Ok(()) } else { Err(e) }
                    }
                }
            }
        })
        .await;
        for _ in tried.into_inner()..pods.len() {
            self.expectations.created(key);
        }
        let deletions = futures::future::join_all(plan.delete.iter().map(|pod| async {
            let name = pod.metadata.name.as_deref().unwrap_or_default();
            let result = self.control.delete(namespace, name, object).await;
            if result.is_err() {
                self.expectations.deleted(key, &key_of(&**pod));
            }
            result
        }))
        .await;
        let delete_error = deletions.into_iter().find_map(Result::err);
        create_error.or(delete_error).map_or(Ok(()), Err)
    }

    async fn write_status(&self, set: &DaemonSet, status: DaemonSetStatus) -> Result<(), kube::Error> {
        let mut old = set.status.clone().unwrap_or_default();
        for n in [&mut old.number_available, &mut old.number_unavailable, &mut old.updated_number_scheduled] {
            *n = n.filter(|n| *n != 0);
        }
        if set.status.is_some() && old == status {
            return Ok(());
        }
        let mut set = set.clone();
        set.status = Some(status);
        let (namespace, name) = (
            set.metadata.namespace.clone().unwrap_or_default(),
            set.metadata.name.clone().unwrap_or_default(),
        );
        let api: Api<DaemonSet> = Api::namespaced(self.client.clone(), &namespace);
        match api.replace_status(&name, &PostParams::default(), &set).await {
            Ok(_) => Ok(()),
            Err(e) if has_code(&e, 404) => Ok(()),
            Err(e) => Err(e),
        }
    }
}

/// A pod of a set for one node.
fn new_pod(set: &DaemonSet, owner: &OwnerReference, hash: &str, node: &str) -> Pod {
    let template = set.spec.as_ref().map(|s| s.template.clone()).unwrap_or_default();
    let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
    let mut pod = pod_from_template(&template, owner, namespace);
    let labels = pod.metadata.labels.get_or_insert_default();
    let generation = set.metadata.annotations.as_ref().and_then(|a| a.get(GENERATION_ANNOTATION));
    if let Some(generation) = generation {
        labels.insert(GENERATION.into(), generation.clone());
    }
    labels.insert(history::HASH.into(), hash.into());
    let spec = pod.spec.get_or_insert_default();
    nodes::add_tolerations(spec);
    nodes::pin(spec, node);
    pod
}
