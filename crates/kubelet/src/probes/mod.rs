//! Probes: is a container alive, is it ready, has it started?
//!
//! [`worker`] decides when to probe and what a row of results means (a state machine without I/O); [`probe`] makes one
//! probe; here are the tasks, one for each probe of each container, and the results they share.

pub mod probe;
pub mod worker;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, PodStatus, Probe};
use parking_lot::{Mutex, RwLock};
use pilothouse_client::EventRecorder;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::metrics::{Metrics, ProbeLabels};
use crate::pod::PodExt;
use crate::runtime::Cri;
use probe::Outcome;
use worker::{Step, Worker};

/// Which probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Restarts a container that fails it.
    Liveness,
    /// Takes a container that fails it out of services.
    Readiness,
    /// Holds back the other two until it succeeds.
    Startup,
}

impl Kind {
    /// As events name it.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Liveness => "Liveness",
            Kind::Readiness => "Readiness",
            Kind::Startup => "Startup",
        }
    }
}

/// What a row of probes means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Well.
    Success,
    /// Not well.
    Failure,
    /// Not known yet.
    Unknown,
}

/// A verdict that changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Which probe.
    pub kind: Kind,
    /// Pod's uid.
    pub uid: String,
    /// The runtime's id of the container.
    pub container_id: String,
    /// What it is now.
    pub verdict: Verdict,
}

/// Gives a pod's status as it stands.
pub type StatusOf = Arc<dyn Fn(&str) -> Option<PodStatus> + Send + Sync>;
/// Is told of changes.
pub type OnChange = Arc<dyn Fn(Change) + Send + Sync>;

type Key = (String, String, Kind);

/// How long after a container's start it is first asked whether it is ready.
const AFTER_START: Duration = Duration::from_millis(700);

struct Handle {
    stop: CancellationToken,
    wake: Arc<Notify>,
}

struct Shared {
    runtime: Arc<dyn Cri>,
    recorder: EventRecorder,
    metrics: Metrics,
    status_of: StatusOf,
    on_change: OnChange,
    workers: Mutex<HashMap<Key, Handle>>,
    results: RwLock<HashMap<(String, Kind), Verdict>>,
    started: Instant,
}

/// See the module. Cheap to clone.
#[derive(Clone)]
pub struct Probes(Arc<Shared>);

impl Probes {
    /// Without probes yet.
    pub fn new(
        runtime: Arc<dyn Cri>,
        recorder: EventRecorder,
        metrics: Metrics,
        status_of: StatusOf,
        on_change: OnChange,
    ) -> Probes {
        Probes(Arc::new(Shared {
            runtime,
            recorder,
            metrics,
            status_of,
            on_change,
            workers: Mutex::default(),
            results: RwLock::default(),
            started: Instant::now(),
        }))
    }

    /// Begins to probe a pod's containers, as far as that has not begun.
    pub fn add_pod(&self, pod: &Arc<Pod>) {
        for c in &pod.pod_spec().containers {
            for (kind, spec) in [
                (Kind::Startup, &c.startup_probe),
                (Kind::Readiness, &c.readiness_probe),
                (Kind::Liveness, &c.liveness_probe),
            ] {
                let Some(spec) = spec else { continue };
                let key = (pod.uid().to_string(), c.name.clone(), kind);
                let mut workers = self.0.workers.lock();
                if workers.contains_key(&key) {
                    continue;
                }
                let handle = Handle { stop: CancellationToken::new(), wake: Arc::new(Notify::new()) };
                let (stop, wake) = (handle.stop.clone(), handle.wake.clone());
                workers.insert(key.clone(), handle);
                drop(workers);
                tokio::spawn(self.clone().work(key, pod.clone(), spec.clone(), stop, wake));
            }
        }
    }

    /// Makes the pod's probes look at its status now: a container has started.
    pub fn wake(&self, uid: &str) {
        for (key, handle) in self.0.workers.lock().iter() {
            if key.0 == uid {
                handle.wake.notify_one();
            }
        }
    }

    /// Stops liveness and startup probes of a pod that is going: they must not restart what is being stopped.
    pub fn stop_liveness(&self, uid: &str) {
        self.end(|k| k.0 == uid && k.2 != Kind::Readiness);
    }

    /// Stops all probes of a pod.
    pub fn remove_pod(&self, uid: &str) {
        self.end(|k| k.0 == uid);
    }

    /// Stops all probes.
    pub fn stop_all(&self) {
        self.end(|_| true);
    }

    fn end(&self, which: impl Fn(&Key) -> bool) {
        self.0.workers.lock().retain(|k, h| {
            let ends = which(k);
            if ends {
                h.stop.cancel();
            }
            !ends
        });
    }

    /// The verdict on a container, where there is one.
    pub fn verdict(&self, container_id: &str, kind: Kind) -> Option<Verdict> {
        self.0.results.read().get(&(container_id.to_string(), kind)).copied()
    }

    /// Whether a container has such a probe running.
    pub fn probed(&self, uid: &str, container: &str, kind: Kind) -> bool {
        self.0.workers.lock().contains_key(&(uid.to_string(), container.to_string(), kind))
    }

    fn set(&self, uid: &str, container_id: &str, kind: Kind, verdict: Verdict) {
        let old = self.0.results.write().insert((container_id.to_string(), kind), verdict);
        if old != Some(verdict) {
            (self.0.on_change)(Change { kind, uid: uid.into(), container_id: container_id.into(), verdict });
        }
    }

    async fn work(self, key: Key, pod: Arc<Pod>, spec: Probe, stop: CancellationToken, wake: Arc<Notify>) {
        let (uid, name, kind) = (&key.0, &key.1, key.2);
        let period =
            Duration::from_secs(u64::try_from(spec.period_seconds.unwrap_or(10)).unwrap_or(10).max(1));
        let mut worker = Worker::new(kind, &spec, pod.restart_policy() == "Never");
        // After a restart of the kubelet all probes would begin at once: spread them over their period.
        if self.0.started.elapsed() < period {
            let part = period.mul_f64(rand::random::<f64>());
            tokio::select! { _ = stop.cancelled() => return, _ = tokio::time::sleep(part) => {} }
        }
        let mut ticks = tokio::time::interval(period);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = stop.cancelled() => break,
                _ = ticks.tick() => {}
                _ = wake.notified() => {
                    // A container has just started: soon ask whether it is ready, but give it time to fail.
                    ticks.reset_after(if kind == Kind::Liveness { period } else { period.min(AFTER_START) });
                    continue;
                }
            }
            if stop.is_cancelled() {
                break;
            }
            let Some(status) = (self.0.status_of)(uid) else { continue };
            let step = worker.step(&status, name, crate::clock::now());
            if let Some(old) = worker.take_replaced() {
                self.0.results.write().remove(&(old, kind));
            }
            match step {
                Step::Wait => {}
                Step::Set(id, verdict) => self.set(uid, &id, kind, verdict),
                Step::Stop(id) => {
                    if let Some(id) = id {
                        self.set(uid, &id, kind, Verdict::Failure);
                    }
                    break;
                }
                Step::Probe { id, initial } => {
                    if let Some(v) = initial {
                        self.set(uid, &id, kind, v);
                    }
                    let outcome = tokio::select! {
                        _ = stop.cancelled() => break,
                        o = self.probe(&pod, name, kind, &spec, &id, &status) => o,
                    };
                    if let Some(v) = worker.result(outcome) {
                        self.set(uid, &id, kind, v);
                    }
                }
            }
        }
        if let Some(id) = worker.container_id() {
            self.0.results.write().remove(&(id.to_string(), kind));
        }
        // A later worker of the same name may stand here already; it has another token.
        let mut workers = self.0.workers.lock();
        if workers.get(&key).is_some_and(|h| Arc::ptr_eq(&h.wake, &wake)) {
            workers.remove(&key);
        }
    }

    /// One probe with its events and metrics; `None` where the probe itself failed.
    async fn probe(
        &self,
        pod: &Pod,
        container: &str,
        kind: Kind,
        spec: &Probe,
        id: &str,
        status: &PodStatus,
    ) -> Option<bool> {
        let c = pod.container(container)?;
        let ip = status.pod_ip.as_deref().unwrap_or("");
        let mut outcome = probe::run(self.0.runtime.as_ref(), spec, c, id, ip).await;
        // A probe that could not be made is tried three times in all.
        for _ in 0..2 {
            if !matches!(outcome, Outcome::Errored(_)) {
                break;
            }
            outcome = probe::run(self.0.runtime.as_ref(), spec, c, id, ip).await;
        }
        let about = pod.container_reference(container);
        let events = &self.0.recorder;
        let (result, verdict) = match &outcome {
            Outcome::Success => ("successful", Some(true)),
            Outcome::Warning(text) => {
                events.warning(&about, "ProbeWarning", format!("{} probe warning: {text}", kind.as_str()));
                ("successful", Some(true))
            }
            Outcome::Failure(text) => {
                events.warning(&about, "Unhealthy", format!("{} probe failed: {text}", kind.as_str()));
                ("failed", Some(false))
            }
            Outcome::Errored(text) => {
                events.warning(&about, "Unhealthy", format!("{} probe errored: {text}", kind.as_str()));
                ("unknown", None)
            }
        };
        self.0.metrics.probed(&ProbeLabels {
            probe_type: kind.as_str().into(),
            result: result.into(),
            container: container.into(),
            pod: pod.name().into(),
            namespace: pod.namespace().into(),
            pod_uid: pod.uid().into(),
        });
        verdict
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::fake::FakeCri;
    use crate::runtime::{ExecOutput, cri};
    use serde_json::json;

    #[tokio::test(start_paused = true)]
    async fn three_failures_in_a_row_are_one_verdict() {
        let fake = FakeCri::default();
        let id =
            fake.create_container("s", cri::ContainerConfig::default(), Default::default()).await.unwrap();
        fake.start_container(&id).await.unwrap();
        fake.on_exec("check", ExecOutput { exit_code: 1, stderr: b"bad".to_vec(), ..Default::default() });
        let pod: Arc<Pod> = Arc::new(
            serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": {
                "containers": [{"name": "c", "livenessProbe": {"exec": {"command": ["check"]}, "failureThreshold": 3,
                    "periodSeconds": 1, "successThreshold": 1, "timeoutSeconds": 1}}]}}))
            .unwrap(),
        );
        let status: PodStatus = serde_json::from_value(json!({"phase": "Running", "containerStatuses": [{
            "name": "c", "image": "", "imageID": "", "ready": true, "restartCount": 0, "started": true,
            "containerID": format!("containerd://{id}"), "state": {"running": {"startedAt": "1970-01-01T00:00:00Z"}}}]}))
        .unwrap();
        let changes = Arc::new(Mutex::new(Vec::new()));
        let (recorder, events) = EventRecorder::for_test("kubelet");
        let log = changes.clone();
        let probes = Probes::new(
            Arc::new(fake),
            recorder,
            Metrics::unread(),
            Arc::new(move |_| Some(status.clone())),
            Arc::new(move |c| log.lock().push((c.verdict, Instant::now()))),
        );
        tokio::time::sleep(Duration::from_secs(2)).await;
        let began = Instant::now();
        probes.add_pod(&pod);
        assert!(probes.probed("u", "c", Kind::Liveness));
        tokio::time::sleep(Duration::from_secs(10)).await;
        let seen: Vec<_> =
            changes.lock().iter().map(|(v, t)| (*v, t.duration_since(began).as_secs())).collect();
        assert_eq!(seen, [(Verdict::Success, 0), (Verdict::Failure, 2)]);
        assert_eq!(probes.verdict(&id, Kind::Liveness), Some(Verdict::Failure));
        assert_eq!(events.lock().len(), 3, "a failed container is not probed again");
        assert_eq!(events.lock()[0].message.as_deref(), Some("Liveness probe failed: bad"));
        probes.remove_pod("u");
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(probes.verdict(&id, Kind::Liveness), None);
    }
}
