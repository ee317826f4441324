//! The loop: take a pod from the queue, decide, assume, bind. And what happens around it when pods and nodes change.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};
use parking_lot::Mutex;
use pilothouse_client::events::{EventRecorder, reference};
use pilothouse_client::{Change, Informer, key_of};
use pilothouse_component_base::signals::Stop;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::json;
use tokio::time::Instant;

use crate::cache::Cluster;
use crate::extender::Extender;
use crate::framework::{Code, Status};
use crate::listers::Listers;
use crate::metrics::Metrics;
use crate::plugins::default_preemption::Candidate;
use crate::profile::{Failure, Profile, Reservation, Rotation};
use crate::queue::{Nominated, Queue, Queued};
use crate::types::PodInfo;
use crate::writer::{Writer, unschedulable_patch};

/// What the search for nodes carries from pod to pod.
struct Lots {
    start: usize,
    random: StdRng,
}

/// See the module.
pub struct Scheduler {
    /// The cluster as it is known.
    pub cluster: Mutex<Cluster>,
    /// The pods that wait.
    pub queue: Queue,
    profiles: HashMap<String, Profile>,
    pods: Informer<Pod>,
    writer: Arc<dyn Writer>,
    extenders: Arc<Vec<Extender>>,
    events: HashMap<String, EventRecorder>,
    metrics: Metrics,
    lots: Mutex<Lots>,
}

/// What a scheduler is made of.
pub struct Parts {
    /// Objects of other kinds.
    pub listers: Arc<Listers>,
    /// Pods.
    pub pods: Informer<Pod>,
    /// Where it writes.
    pub writer: Arc<dyn Writer>,
    /// Programs outside that have a say.
    pub extenders: Arc<Vec<Extender>>,
    /// Profiles, each with the recorder of its events.
    pub profiles: Vec<(Profile, EventRecorder)>,
    /// The queue.
    pub queue: Queue,
    /// Where it counts.
    pub metrics: Metrics,
    /// What lots are drawn from.
    pub seed: u64,
}

impl Scheduler {
    /// Puts a scheduler together.
    pub fn new(parts: Parts) -> Arc<Scheduler> {
        let mut profiles = HashMap::new();
        let mut events = HashMap::new();
        for (profile, recorder) in parts.profiles {
            events.insert(profile.name.clone(), recorder);
            profiles.insert(profile.name.clone(), profile);
        }
        Arc::new(Scheduler {
            cluster: Mutex::new(Cluster::new(parts.listers)),
            queue: parts.queue,
            profiles,
            pods: parts.pods,
            writer: parts.writer,
            extenders: parts.extenders,
            events,
            metrics: parts.metrics,
            lots: Mutex::new(Lots { start: 0, random: StdRng::seed_from_u64(parts.seed) }),
        })
    }

    /// Keeps up with changes of pods, nodes and the other kinds.
    pub fn follow(self: &Arc<Self>, nodes: &Informer<Node>) {
        let me = self.clone();
        self.pods.on_change(move |c| match c {
            Change::Added(new) => me.pod_changed(None, Some(new)),
            Change::Updated(old, new) => me.pod_changed(Some(old), Some(new)),
            Change::Deleted(old) => me.pod_changed(Some(old), None),
        });
        let me = self.clone();
        nodes.on_change(move |c| me.node_changed(c));
        let listers = self.cluster.lock().listers.clone();
        macro_rules! move_on_change {
            ($($informer:ident),+) => {
                $(let me = self.clone();
                listers.$informer.on_change(move |_| me.queue.move_all());)+
            };
        }
        move_on_change!(services, volumes, claims, classes, csi_nodes);
    }

    /// Whether a pod waits for us.
    fn is_ours(&self, pod: &Pod) -> bool {
        let spec = pod.spec.as_ref();
        let name = spec.and_then(|s| s.scheduler_name.as_deref()).unwrap_or("default-scheduler");
        let gated = spec.and_then(|s| s.scheduling_gates.as_ref()).is_some_and(|g| !g.is_empty());
        self.profiles.contains_key(name) && !gated
    }

    fn pod_changed(&self, old: Option<&Arc<Pod>>, new: Option<&Arc<Pod>>) {
        let assigned =
            |p: &Pod| p.spec.as_ref().is_some_and(|s| s.node_name.as_ref().is_some_and(|n| !n.is_empty()));
        // A pod of the same name that is another one: the old one is gone.
        if let (Some(o), Some(n)) = (old, new)
            && o.metadata.uid != n.metadata.uid
        {
            self.pod_changed(Some(o), None);
            return self.pod_changed(None, Some(n));
        }
        match (old, new) {
            (_, Some(new)) if assigned(new) => {
                let info = Arc::new(PodInfo::new(new.clone()));
                if old.is_none_or(|o| !assigned(o)) {
                    self.queue.delete(&info.key);
                }
                let mut cluster = self.cluster.lock();
                cluster.set_pod(info.clone());
                self.queue.pod_assigned(&info, &cluster);
            }
            (_, Some(new)) if !self.is_ours(new) => self.queue.delete(&key_of(&**new)),
            (None, Some(new)) => self.queue.add(Arc::new(PodInfo::new(new.clone()))),
            // Its deletion would have it tried at once, and that is over before it begins.
            (Some(old), Some(new))
                if old.metadata.deletion_timestamp.is_none()
                    && new.metadata.deletion_timestamp.is_some()
                    && self.queue.take_waiting(&key_of(&**new)) =>
            {
                self.skip_deleted(new);
            }
            (Some(old), Some(new)) => {
                // What we are binding changes by our own doing.
                if !self.cluster.lock().is_assumed(&key_of(&**new)) {
                    self.queue.update(old, Arc::new(PodInfo::new(new.clone())));
                }
            }
            (Some(old), None) if assigned(old) => {
                self.cluster.lock().remove_pod(&key_of(&**old));
                self.queue.move_all();
            }
            (Some(old), None) => self.queue.delete(&key_of(&**old)),
            (None, None) => {}
        }
    }

    /// Tells that a pod is not scheduled because it is being deleted.
    fn skip_deleted(&self, pod: &Pod) {
        let name = pod.spec.as_ref().and_then(|s| s.scheduler_name.as_deref()).unwrap_or("default-scheduler");
        if let Some(events) = self.events.get(name) {
            let text = format!("skip schedule deleting pod: {}", key_of(pod));
            events.warning(&reference(pod, &()), "FailedScheduling", text);
        }
    }

    fn node_changed(&self, change: &Change<Node>) {
        match change {
            Change::Added(node) => {
                self.cluster.lock().set_node(node.clone());
                self.queue.move_all();
            }
            Change::Updated(old, new) => {
                self.cluster.lock().set_node(new.clone());
                if makes_room(old, new) {
                    self.queue.move_all();
                }
            }
            Change::Deleted(node) => {
                self.cluster.lock().remove_node(node.metadata.name.as_deref().unwrap_or_default());
            }
        }
    }

    /// Schedules pods until `stop`.
    pub async fn run(self: &Arc<Self>, stop: Stop) {
        let mut expiry = tokio::time::interval(std::time::Duration::from_secs(5));
        loop {
            tokio::select! {
                _ = stop.wait() => return,
                _ = expiry.tick() => {
                    self.cluster.lock().expire(Instant::now());
                    let (active, backoff, unschedulable) = self.queue.lengths();
                    self.metrics.pending(active, backoff, unschedulable);
                }
                (queued, cycle) = self.queue.next() => {
                    self.schedule(queued, cycle).await;
                    // A long queue must not keep the rest of this thread's tasks waiting.
                    tokio::task::consume_budget().await;
                }
            }
        }
    }

    /// Decides on one pod and starts its binding.
    pub async fn schedule(self: &Arc<Self>, queued: Queued, cycle: u64) {
        let begin = Instant::now();
        let pod = queued.pod.clone();
        let name = pod.spec().and_then(|s| s.scheduler_name.as_deref()).unwrap_or("default-scheduler");
        let Some(profile) = self.profiles.get(name) else { return };
        if pod.terminating {
            return self.skip_deleted(&pod.pod);
        }
        if self.cluster.lock().is_assumed(&pod.key) {
            return;
        }
        let interested: Vec<&Extender> = self.extenders.iter().filter(|e| e.interested(&pod)).collect();
        let asked = match interested.is_empty() {
            true => None,
            false => Some(self.ask(profile, &pod, &interested).await),
        };
        let (decision, mut cluster) = {
            let cluster = self.cluster.lock();
            let decision = self.with_lots(|nominated, rotation| match asked {
                None => profile.decide(&pod, &cluster, nominated, rotation),
                Some(Ok((nodes, extra))) => profile
                    .choose(&pod, &nodes, &extra, &cluster, rotation.random)
                    .ok_or((Failure::NoNodes, None)),
                Some(Err(failed)) => Err(failed),
            });
            (decision, cluster)
        };
        self.metrics.decided(begin.elapsed());
        let node = match decision {
            Ok(node) => node,
            Err((failure, candidate)) => {
                drop(cluster);
                let result = if matches!(failure, Failure::Error(_)) { "error" } else { "unschedulable" };
                self.metrics.attempt(name, result, begin.elapsed());
                let node = candidate.as_ref().map(|c| c.node.clone());
                self.failed(queued, cycle, "Unschedulable", failure.to_string(), node.as_deref());
                if let Some(candidate) = candidate {
                    self.preempt(pod, candidate);
                }
                return;
            }
        };
        let reservations = match profile.reserve(&pod, &node, &cluster) {
            Ok(reservations) => reservations,
            Err(status) => {
                drop(cluster);
                return self.failed(queued, cycle, "SchedulerError", status.reasons.join(", "), None);
            }
        };
        cluster.assume(pod.clone(), &node);
        drop(cluster);
        self.queue.forget_nomination(&pod.key);
        let me = self.clone();
        tokio::spawn(async move { me.bind(queued, cycle, node, reservations, begin).await });
    }

    fn with_lots<T>(&self, f: impl FnOnce(&Nominated, Rotation<'_>) -> T) -> T {
        self.queue.with_nominated(|nominated| {
            let mut lots = self.lots.lock();
            let Lots { start, random } = &mut *lots;
            let mut random = |n: usize| random.random_range(0..n.max(1));
            f(nominated, Rotation { start, random: &mut random })
        })
    }

    /// The nodes that a pod fits and that the extenders agree to, with the extenders' scores. Nothing is locked while
    /// they are asked.
    async fn ask(
        &self,
        profile: &Profile,
        pod: &PodInfo,
        extenders: &[&Extender],
    ) -> Result<(Vec<String>, BTreeMap<String, i64>), (Failure, Option<Candidate>)> {
        let (fit, mut nodes, count) = {
            let cluster = self.cluster.lock();
            let fit = self
                .with_lots(|nominated, mut rotation| profile.fit(pod, &cluster, nominated, &mut rotation))?;
            let nodes: Vec<Node> = fit
                .nodes
                .iter()
                .filter_map(|n| cluster.node(n))
                .filter_map(|n| n.node.as_deref().cloned())
                .collect();
            (fit, nodes, cluster.len())
        };
        let mut refusals = fit.refusals;
        for extender in extenders {
            if nodes.is_empty() {
                break;
            }
            match extender.filter(pod, &nodes).await {
                Ok(filtered) => {
                    nodes.retain(|n| n.metadata.name.as_ref().is_some_and(|n| filtered.fit.contains(n)));
                    for (node, why) in filtered.failed {
                        let status = refusals
                            .entry(node)
                            .or_insert_with(|| Status { code: Code::Unschedulable, reasons: Vec::new() });
                        status.reasons.push(why.into());
                    }
                }
                Err(e) if extender.ignorable() => {
                    tracing::warn!("skipping an extender that is ignorable: {e}");
                }
                Err(e) => return Err((Failure::Error(e), None)),
            }
        }
        if nodes.is_empty() {
            let cluster = self.cluster.lock();
            let candidate = self.with_lots(|nominated, rotation| {
                let start = (rotation.random)(count);
                profile.candidate(pod, &refusals, &cluster, nominated, start)
            });
            return Err((Failure::Unfit(refusals, count), candidate));
        }
        let mut extra: BTreeMap<String, i64> = BTreeMap::new();
        if nodes.len() > 1 {
            for extender in extenders {
                match extender.prioritize(pod, &nodes).await {
                    Ok(scores) => {
                        scores.into_iter().for_each(|(node, s)| *extra.entry(node).or_default() += s);
                    }
                    Err(e) => tracing::warn!("an extender gave no scores: {e}"),
                }
            }
        }
        Ok((nodes.into_iter().filter_map(|n| n.metadata.name).collect(), extra))
    }

    async fn bind(
        &self,
        queued: Queued,
        cycle: u64,
        node: String,
        reservations: Vec<Box<dyn Reservation>>,
        begin: Instant,
    ) {
        let pod = queued.pod.clone();
        let name = pod.spec().and_then(|s| s.scheduler_name.as_deref()).unwrap_or("default-scheduler");
        let binding = Instant::now();
        let result = async {
            for reservation in &reservations {
                reservation
                    .pre_bind(&*self.writer)
                    .await
                    .map_err(|e| format!("running PreBind plugin \"VolumeBinding\": {e}"))?;
            }
            match self.extenders.iter().find(|e| e.binds() && e.interested(&pod)) {
                Some(extender) => extender.bind(&pod, &node).await,
                None => self.writer.bind(&pod, &node).await,
            }
        };
        match result.await {
            Ok(()) => {
                self.cluster.lock().finish_binding(&pod.key);
                if let Some(events) = self.events.get(name) {
                    let text = format!("Successfully assigned {} to {node}", pod.key);
                    events.normal(&reference(&*pod.pod, &()), "Scheduled", text);
                }
                self.metrics.attempt(name, "scheduled", begin.elapsed());
                self.metrics.bound(binding.elapsed(), queued.first.elapsed(), queued.attempts);
            }
            Err(error) => {
                tracing::warn!(pod = pod.key, node, "binding failed: {error}");
                self.cluster.lock().forget(&pod.key);
                self.metrics.attempt(name, "error", begin.elapsed());
                self.failed(queued, cycle, "SchedulerError", error, None);
                self.queue.move_all();
            }
        }
    }

    /// Puts a pod back and tells why.
    fn failed(&self, mut queued: Queued, cycle: u64, reason: &str, message: String, nominated: Option<&str>) {
        let Some(now) = self.pods.get(&queued.pod.key) else { return };
        let info = if now.metadata.resource_version == queued.pod.pod.metadata.resource_version {
            queued.pod.clone()
        } else {
            Arc::new(PodInfo::new(now.clone()))
        };
        if info.node_name().is_some() || info.uid != queued.pod.uid {
            return;
        }
        queued.pod = info.clone();
        let name = info.spec().and_then(|s| s.scheduler_name.as_deref()).unwrap_or("default-scheduler");
        self.queue.put_back(queued, cycle, nominated);
        if let Some(events) = self.events.get(name) {
            events.warning(&reference(&*now, &()), "FailedScheduling", message.clone());
        }
        if let Some(patch) = unschedulable_patch(&now, reason, &message, nominated) {
            let writer = self.writer.clone();
            tokio::spawn(async move {
                if let Err(e) = writer.patch_status(&info, patch).await {
                    tracing::debug!(pod = info.key, "status not written: {e}");
                }
            });
        }
    }

    /// Makes the victims go, and takes the node from pods that are less important and had it promised.
    fn preempt(self: &Arc<Self>, pod: Arc<PodInfo>, candidate: Candidate) {
        self.metrics.preempted(candidate.victims.len());
        let displaced = self.queue.nominated_below(&candidate.node, pod.priority);
        displaced.iter().for_each(|p| self.queue.forget_nomination(&p.key));
        let me = self.clone();
        tokio::spawn(async move {
            let name = pod.spec().and_then(|s| s.scheduler_name.as_deref()).unwrap_or("default-scheduler");
            for victim in candidate.victims {
                if let Err(e) = me.writer.delete(&victim).await {
                    tracing::warn!(pod = victim.key, "preemption: {e}");
                    me.queue.forget_nomination(&pod.key);
                    return;
                }
                if let Some(events) = me.events.get(name) {
                    let text = format!("Preempted by {} on node {}", pod.key, candidate.node);
                    events.normal(&reference(&*victim.pod, &()), "Preempted", text);
                }
            }
            for other in displaced {
                let patch = json!({ "nominatedNodeName": null });
                if let Err(e) = me.writer.patch_status(&other, patch).await {
                    tracing::debug!(pod = other.key, "nomination not cleared: {e}");
                }
            }
        });
    }
}

/// Whether a change of a node may make it fit pods that it did not fit.
fn makes_room(old: &Node, new: &Node) -> bool {
    let cordoned = |n: &Node| n.spec.as_ref().and_then(|s| s.unschedulable).unwrap_or(false);
    let taints = |n: &Node| n.spec.as_ref().and_then(|s| s.taints.clone()).unwrap_or_default();
    let allocatable = |n: &Node| n.status.as_ref().and_then(|s| s.allocatable.clone());
    let conditions = |n: &Node| -> Vec<(String, String)> {
        let all = n.status.iter().flat_map(|s| s.conditions.iter().flatten());
        all.map(|c| (c.type_.clone(), c.status.clone())).collect()
    };
    (cordoned(old) && !cordoned(new))
        || taints(old) != taints(new)
        || allocatable(old) != allocatable(new)
        || old.metadata.labels != new.metadata.labels
        || conditions(old) != conditions(new)
}

#[cfg(test)]
mod tests;
