//! The kubelet itself: what its parts share, and how a change of a pod reaches the pod's task.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, PodStatus, Service};
use parking_lot::{Mutex, RwLock};
use pilothouse_apimachinery::version::Release;
use pilothouse_client::{EventRecorder, Informer};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::api::PodApi;
use crate::backoff::Backoff;
use crate::cgroups::Cgroups;
use crate::config::Config;
use crate::images::Images;
use crate::images::keyring::Keyring;
use crate::metrics::Metrics;
use crate::node::NodeView;
use crate::objects::Objects;
use crate::pod::PodExt;
use crate::pods::admission::{Rejection, admit};
use crate::pods::conditions;
use crate::pods::preemption::{self, Room};
use crate::pods::registry::Registry;
use crate::pods::status::{Probed, apply_probes};
use crate::pods::status_manager::StatusManager;
use crate::pods::{Control, Eviction};
use crate::probes::{Change, Kind, Probes, Verdict};
use crate::runtime::Cri;
use crate::volumes::VolumeManager;

/// Asks whether a pod may run here, beyond what [`admit`] asks: the eviction manager under pressure.
pub type AdmitHandler = Arc<dyn Fn(&Pod) -> Result<(), Rejection> + Send + Sync>;

/// What a kubelet works with. Tests and hollow nodes give their own.
pub struct Dependencies {
    /// The container runtime.
    pub cri: Arc<dyn Cri>,
    /// Volumes.
    pub volumes: Arc<dyn VolumeManager>,
    /// Config maps, secrets, runtime classes.
    pub objects: Arc<dyn Objects>,
    /// Writes of pods.
    pub api: Arc<dyn PodApi>,
    /// Events.
    pub recorder: EventRecorder,
    /// The cluster's services, for variables.
    pub services: Informer<Service>,
    /// Metrics.
    pub metrics: Metrics,
    /// Cgroups, where pods have them.
    pub cgroups: Option<Cgroups>,
    /// The node.
    pub node: NodeView,
    /// The node's own credentials for registries.
    pub keyring: Keyring,
}

/// See the module.
pub struct Kubelet {
    /// What it is told.
    pub config: Config,
    /// The container runtime.
    pub cri: Arc<dyn Cri>,
    /// Volumes.
    pub volumes: Arc<dyn VolumeManager>,
    /// Config maps, secrets, runtime classes.
    pub objects: Arc<dyn Objects>,
    /// Events.
    pub recorder: EventRecorder,
    /// The pods of this node.
    pub registry: Arc<Registry>,
    /// Their statuses.
    pub status: StatusManager,
    /// Probes of their containers.
    pub probes: Probes,
    /// Images.
    pub images: Images,
    /// Cgroups, where pods have them.
    pub cgroups: Option<Cgroups>,
    /// Metrics.
    pub metrics: Metrics,
    /// The node.
    pub node: NodeView,
    /// The cluster's services.
    pub services: Informer<Service>,
    pub(crate) api: Arc<dyn PodApi>,
    pub(crate) crash_backoff: Backoff,
    workers: Mutex<HashMap<String, Arc<Control>>>,
    workers_changed: Notify,
    rejected: Mutex<HashSet<String>>,
    admit_handlers: RwLock<Vec<AdmitHandler>>,
    runtime_name: RwLock<String>,
    network_error: RwLock<Option<String>>,
    last_start: Mutex<Option<Instant>>,
    last_look: Mutex<Option<Instant>>,
    running: RwLock<HashSet<String>>,
    over: CancellationToken,
    me: Weak<Kubelet>,
}

struct ProbeView<'a>(&'a Probes);

impl Probed for ProbeView<'_> {
    fn started(&self, uid: &str, name: &str, id: &str) -> Option<bool> {
        match self.0.verdict(id, Kind::Startup) {
            Some(v) => Some(v == Verdict::Success),
            None => self.0.probed(uid, name, Kind::Startup).then_some(false),
        }
    }

    fn ready(&self, uid: &str, name: &str, id: &str) -> Option<bool> {
        match self.0.verdict(id, Kind::Readiness) {
            Some(v) => Some(v == Verdict::Success),
            None => self.0.probed(uid, name, Kind::Readiness).then_some(false),
        }
    }
}

impl Kubelet {
    /// A kubelet that does nothing yet.
    pub fn new(config: Config, d: Dependencies) -> Arc<Kubelet> {
        let registry = Arc::new(Registry::default());
        let status = StatusManager::new(d.api.clone(), registry.clone());
        Arc::new_cyclic(|me: &Weak<Kubelet>| {
            let statuses = status.clone();
            let listener = me.clone();
            let probes = Probes::new(
                d.cri.clone(),
                d.recorder.clone(),
                d.metrics.clone(),
                Arc::new(move |uid| statuses.get(uid)),
                Arc::new(move |change| {
                    if let Some(k) = listener.upgrade() {
                        k.probe_changed(&change);
                    }
                }),
            );
            let images = Images::new(
                d.cri.clone(),
                d.recorder.clone(),
                config.serialize_image_pulls,
                config.registry_qps,
                config.registry_burst,
                d.keyring,
            );
            Kubelet {
                config,
                cri: d.cri,
                volumes: d.volumes,
                objects: d.objects,
                recorder: d.recorder,
                registry,
                status,
                probes,
                images,
                cgroups: d.cgroups,
                metrics: d.metrics,
                node: d.node,
                services: d.services,
                api: d.api,
                crash_backoff: Backoff::new(Duration::from_secs(10), Duration::from_secs(300)),
                workers: Mutex::default(),
                workers_changed: Notify::new(),
                rejected: Mutex::default(),
                admit_handlers: RwLock::default(),
                runtime_name: RwLock::new("containerd".into()),
                network_error: RwLock::default(),
                last_start: Mutex::default(),
                last_look: Mutex::default(),
                running: RwLock::default(),
                over: CancellationToken::new(),
                me: me.clone(),
            }
        })
    }

    /// Adds a question that every new pod is asked first.
    pub fn add_admit_handler(&self, handler: AdmitHandler) {
        self.admit_handlers.write().push(handler);
    }

    /// A pod is new or changed, at the API server or in a file.
    pub fn set_pod(&self, pod: Arc<Pod>) {
        self.registry.set(pod.clone());
        if pod.is_mirror() {
            if let Some(own) = self.registry.static_of(&pod) {
                self.status.retry(own.uid());
                self.wake_worker(own.uid());
            }
            return;
        }
        let known = self.workers.lock().get(pod.uid()).cloned();
        if let Some(control) = known {
            self.status.retry(pod.uid());
            control.update(pod);
            return;
        }
        if !pod.deleting() && self.rejected.lock().contains(pod.uid()) {
            return;
        }
        if !pod.deleting() && !pod.phase_is_terminal() {
            match self.admit(&pod) {
                Ok(room) => {
                    self.probes.add_pod(&pod);
                    let after = room.victims.iter().filter_map(|v| self.preempt(v, &room.missing)).collect();
                    self.start_worker(pod, after);
                }
                Err(r) => self.reject(&pod, &r),
            }
            return;
        }
        self.start_worker(pod, Vec::new());
    }

    /// A pod is gone from its source.
    pub fn remove_pod(&self, pod: &Pod) {
        self.registry.remove(pod);
        if pod.is_mirror() {
            if let Some(own) = self.registry.static_of(pod) {
                self.wake_worker(own.uid());
            }
            return;
        }
        self.rejected.lock().remove(pod.uid());
        let control = self.workers.lock().get(pod.uid()).cloned();
        match control {
            Some(c) => c.remove(),
            None => self.status.forget(pod.uid()),
        }
    }

    /// Ends a pod in whose place a critical one comes.
    fn preempt(&self, victim: &Pod, missing: &str) -> Option<Arc<Control>> {
        tracing::info!(pod = victim.described(), "preempted in order to admit a critical pod");
        self.recorder.warning(&victim.reference(), preemption::REASON, preemption::MESSAGE);
        let control = self.workers.lock().get(victim.uid()).cloned()?;
        let status = PodStatus {
            phase: Some("Failed".into()),
            reason: Some(preemption::REASON.into()),
            message: Some(preemption::MESSAGE.into()),
            ..Default::default()
        };
        // Its share counts as free from now on: a pod that comes next must not be weighed against it.
        self.status.set(victim, status.clone());
        control.evict(Eviction { status, grace: None });
        self.metrics.preempted(missing);
        Some(control)
    }

    /// Whether a pod may run here, and what makes room for it.
    fn admit(&self, pod: &Pod) -> Result<Room, Rejection> {
        for handler in self.admit_handlers.read().iter() {
            handler(pod)?;
        }
        let others: Vec<Arc<Pod>> = self.active_pods().into_iter().filter(|p| p.uid() != pod.uid()).collect();
        admit(pod, &others, &self.node.get(), &self.config.allowed_unsafe_sysctls)
    }

    fn reject(&self, pod: &Pod, r: &Rejection) {
        self.rejected.lock().insert(pod.uid().to_string());
        self.recorder.warning(&pod.reference(), &r.reason, r.message.as_str());
        let status = PodStatus {
            phase: Some("Failed".into()),
            reason: Some(r.reason.clone()),
            message: Some(format!("Pod {}", r.message)),
            ..Default::default()
        };
        self.status.set(pod, status);
    }

    /// Ends a pod for the node's sake: it gets that status, its containers that many seconds. `false` where it has
    /// no task.
    pub fn evict(&self, uid: &str, status: PodStatus, grace: Option<i64>) -> bool {
        let control = self.workers.lock().get(uid).cloned();
        if let Some(c) = &control {
            c.evict(Eviction { status, grace });
        }
        control.is_some()
    }

    /// The pods that run or are to run: admitted, and not at their end.
    pub fn active_pods(&self) -> Vec<Arc<Pod>> {
        let pods: Vec<Arc<Pod>> = self.workers.lock().values().map(|c| c.pod()).collect();
        pods.into_iter()
            .filter(|p| {
                let status = self.status.current(p);
                let terminal = matches!(status.phase.as_deref(), Some("Failed" | "Succeeded"));
                !(terminal && crate::pods::status::none_running(status.container_statuses.as_ref()))
            })
            .collect()
    }

    /// Starts a pod's task, which begins when those in `after` have let go of what they held.
    fn start_worker(&self, pod: Arc<Pod>, after: Vec<Arc<Control>>) {
        let Some(me) = self.me.upgrade() else { return };
        let control = Arc::new(Control::new(pod.clone(), after));
        self.workers.lock().insert(pod.uid().to_string(), control.clone());
        self.metrics.pod_started(pod.pod_spec().containers.len(), Duration::ZERO);
        let over = self.over.clone();
        tokio::spawn(async move {
            tokio::select! { _ = over.cancelled() => {}, _ = me.work(control) => {} }
        });
    }

    /// Ends all tasks of pods and all probes. Containers run on, for the next kubelet.
    pub fn shut_down(&self) {
        self.over.cancel();
        self.probes.stop_all();
    }

    pub(crate) fn forget_worker(&self, uid: &str) {
        self.workers.lock().remove(uid);
        self.workers_changed.notify_waiters();
    }

    pub(crate) fn has_worker(&self, uid: &str) -> bool {
        self.workers.lock().contains_key(uid)
    }

    pub(crate) fn wake_worker(&self, uid: &str) {
        if let Some(c) = self.workers.lock().get(uid) {
            c.wake();
        }
    }

    pub(crate) async fn workers_changed(&self) {
        self.workers_changed.notified().await;
    }

    /// Whether a pod of that name has a task.
    pub(crate) fn worker_of_name(&self, pod: &Pod) -> bool {
        let name = pod.full_name();
        self.workers.lock().values().any(|c| c.pod().full_name() == name)
    }

    /// Whether another pod of that name is still ending.
    pub(crate) fn older_of_name(&self, pod: &Pod) -> bool {
        let (name, uid) = (pod.full_name(), pod.uid());
        self.workers
            .lock()
            .iter()
            .any(|(u, c)| u != uid && c.pod().full_name() == name && self.registry.get(u).is_none())
    }

    fn probe_changed(&self, change: &Change) {
        let Some(pod) = self.registry.get(&change.uid) else { return };
        match (change.kind, change.verdict) {
            (Kind::Liveness, Verdict::Failure) => self.wake_worker(&change.uid),
            // v1.20 restarts a container that does not start at its pod's next regular look only.
            (Kind::Startup, Verdict::Failure) if self.node.release().get() > Release::V1_20 => {
                self.wake_worker(&change.uid);
            }
            (Kind::Readiness, _) | (Kind::Startup, Verdict::Success) => {
                let view = self.probed();
                self.status.update(&pod, |status| {
                    apply_probes(&pod, status, &view);
                    let spec = pod.pod_spec();
                    let phase = status.phase.clone().unwrap_or_default();
                    let others: Vec<_> = pod.pod_status().conditions.clone().unwrap_or_default();
                    let containers = status.container_statuses.clone();
                    for c in status.conditions.iter_mut().flatten() {
                        match c.type_.as_str() {
                            "Ready" => *c = conditions::ready(spec, &others, containers.as_deref(), &phase),
                            "ContainersReady" => {
                                *c = conditions::containers_ready(spec, containers.as_deref(), &phase);
                            }
                            _ => {}
                        }
                    }
                });
            }
            _ => {}
        }
    }

    pub(crate) fn probed(&self) -> impl Probed + '_ {
        ProbeView(&self.probes)
    }

    /// Which probe of a container says that it must be restarted.
    pub(crate) fn failed_probe(&self, id: &str) -> Option<&'static str> {
        let failed = |kind| self.probes.verdict(id, kind) == Some(Verdict::Failure);
        if failed(Kind::Liveness) {
            Some("liveness")
        } else if failed(Kind::Startup) {
            Some("startup")
        } else {
            None
        }
    }

    /// The runtime's name, as it stands before container ids.
    pub fn runtime_name(&self) -> String {
        self.runtime_name.read().clone()
    }

    pub(crate) fn set_runtime_name(&self, name: &str) {
        *self.runtime_name.write() = name.to_string();
    }

    /// Why pods get no network; `None` where they do.
    pub fn network_error(&self) -> Option<String> {
        self.network_error.read().clone()
    }

    pub(crate) fn set_network_error(&self, error: Option<String>) {
        *self.network_error.write() = error;
    }

    pub(crate) fn started_something(&self) {
        *self.last_start.lock() = Some(Instant::now());
    }

    pub(crate) fn since_start(&self) -> Duration {
        self.last_start.lock().map_or(Duration::MAX, |t| t.elapsed())
    }

    pub(crate) fn looked(&self) {
        *self.last_look.lock() = Some(Instant::now());
    }

    /// How long ago the runtime was last looked at; `None` where it never was.
    pub fn since_look(&self) -> Option<Duration> {
        self.last_look.lock().map(|t| t.elapsed())
    }

    pub(crate) fn set_running(&self, pods: HashSet<String>) {
        *self.running.write() = pods;
    }

    /// The uids of the pods of which something runs, as last seen.
    pub fn running_pods(&self) -> HashSet<String> {
        self.running.read().clone()
    }
}

#[cfg(test)]
mod tests;
