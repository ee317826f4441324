//! One task for each pod: syncs it when something happened and from time to time, and sees it to its end.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, PodStatus as ApiPodStatus};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::kill::Stopping;
use super::status::none_running;
use super::sync::{Memory, Outcome, error_wait};
use crate::kubelet::Kubelet;
use crate::pod::PodExt;
use crate::resources;
use crate::runtime::status::pod_status;

/// At most so many syncs without a pause.
const MAX_ROW: u32 = 5;

/// An order to end a pod for the node's sake.
#[derive(Debug, Clone)]
pub struct Eviction {
    /// The status it then has: phase, reason, message.
    pub status: ApiPodStatus,
    /// Seconds its containers have; the pod's own where `None`.
    pub grace: Option<i64>,
}

#[derive(Debug)]
struct State {
    pod: Arc<Pod>,
    /// The API server, or the file, no longer has it.
    removed: bool,
    eviction: Option<Eviction>,
}

/// By what others steer a pod's task.
pub(crate) struct Control {
    state: Mutex<State>,
    wake: Notify,
    interrupt: CancellationToken,
    /// The pod holds nothing any more.
    gone: CancellationToken,
    /// The pods in whose place it comes.
    after: Vec<Arc<Control>>,
}

impl Control {
    pub(crate) fn new(pod: Arc<Pod>, after: Vec<Arc<Control>>) -> Control {
        let c = Control {
            state: Mutex::new(State { pod, removed: false, eviction: None }),
            wake: Notify::new(),
            interrupt: CancellationToken::new(),
            gone: CancellationToken::new(),
            after,
        };
        if c.ending() {
            c.interrupt.cancel();
        }
        c
    }

    pub(crate) fn pod(&self) -> Arc<Pod> {
        self.state.lock().pod.clone()
    }

    /// There is something to do.
    pub(crate) fn wake(&self) {
        self.wake.notify_one();
    }

    /// The pod changed. A change of its status alone is no reason to look at it, unless its readiness hangs on it.
    pub(crate) fn update(&self, pod: Arc<Pod>) {
        let matters = {
            let mut s = self.state.lock();
            let old = std::mem::replace(&mut s.pod, pod);
            concerns(&old, &s.pod)
        };
        if matters {
            self.changed();
        }
    }

    /// The pod is gone from its source.
    pub(crate) fn remove(&self) {
        self.state.lock().removed = true;
        self.changed();
    }

    /// The pod is to end for the node's sake.
    pub(crate) fn evict(&self, eviction: Eviction) {
        self.state.lock().eviction.get_or_insert(eviction);
        self.changed();
    }

    fn changed(&self) {
        if self.ending() || self.state.lock().eviction.is_some() {
            self.interrupt.cancel();
        }
        self.wake.notify_one();
    }

    fn removed(&self) -> bool {
        self.state.lock().removed
    }

    fn eviction(&self) -> Option<Eviction> {
        self.state.lock().eviction.clone()
    }

    fn ending(&self) -> bool {
        let s = self.state.lock();
        s.removed || s.pod.deleting()
    }

    /// Seconds until the end as it is now ordered; 0 for a pod that is gone from its source already.
    fn grace(&self) -> Option<i64> {
        let s = self.state.lock();
        match s.removed && !s.pod.is_static() {
            true => Some(0),
            false => s.pod.metadata.deletion_grace_period_seconds,
        }
    }
}

/// Whether two forms of a pod differ in what its task goes by.
fn concerns(old: &Pod, new: &Pod) -> bool {
    let (a, b) = (&old.metadata, &new.metadata);
    let gates = new.pod_spec().readiness_gates.as_ref().is_some_and(|g| !g.is_empty());
    a.labels != b.labels
        || a.annotations != b.annotations
        || a.deletion_timestamp != b.deletion_timestamp
        || a.deletion_grace_period_seconds != b.deletion_grace_period_seconds
        || old.spec != new.spec
        || (gates && old.pod_status().conditions != new.pod_status().conditions)
}

/// How long a pod waits for one in whose place it comes, by the time that one's containers have.
fn patience(victim: &Pod) -> Duration {
    let grace = victim.pod_spec().termination_grace_period_seconds.unwrap_or(30);
    Duration::from_secs(u64::try_from(grace + grace / 2).unwrap_or(0).max(10))
}

/// Waits until the pods in whose place this one comes hold nothing any more.
async fn wait_for_room(control: &Control) {
    for victim in &control.after {
        let pod = victim.pod();
        tokio::select! {
            _ = victim.gone.cancelled() => {}
            _ = control.interrupt.cancelled() => return,
            _ = tokio::time::sleep(patience(&pod)) => {
                tracing::warn!(pod = pod.described(), "preempted, and not ended in time");
            }
        }
    }
}

impl Kubelet {
    /// The task of a pod.
    pub(crate) async fn work(self: Arc<Self>, control: Arc<Control>) {
        let mut memory = Memory::default();
        let uid = control.pod().uid().to_string();
        self.wait_for_turn(&control).await;
        wait_for_room(&control).await;
        let mut row = 0;
        let mut evicted = false;
        while !control.ending() {
            let pod = control.pod();
            if let Some(e) = control.eviction() {
                if !evicted {
                    evicted = self.evict_now(&pod, &e).await;
                }
                if evicted {
                    control.gone.cancel();
                }
                let wait = if evicted { Duration::from_secs(3600) } else { Duration::from_secs(1) };
                let _ = tokio::time::timeout(wait, control.wake.notified()).await;
                continue;
            }
            let started = Instant::now();
            let outcome = self.sync_pod(&pod, &mut memory, &control.interrupt).await;
            self.metrics.pod_synced(if row == 0 { "sync" } else { "update" }, started.elapsed());
            let wait = match outcome {
                Outcome::Acted if row < MAX_ROW => {
                    row += 1;
                    Duration::ZERO
                }
                Outcome::Acted => Duration::from_secs(1),
                Outcome::Done => {
                    (row, memory.errors) = (0, 0);
                    self.next_look(&pod)
                }
                Outcome::Failed(wait) => {
                    row = 0;
                    let wait = wait.unwrap_or_else(|| error_wait(memory.errors));
                    memory.errors += 1;
                    wait.min(self.next_look(&pod))
                }
            };
            if !wait.is_zero() {
                let _ = tokio::time::timeout(wait, control.wake.notified()).await;
            }
        }
        let mut errors = 0;
        while let Err(e) = self.end(&control, &mut memory, evicted).await {
            tracing::warn!(pod = control.pod().described(), "pod not ended: {e}");
            tokio::time::sleep(error_wait(errors)).await;
            errors += 1;
        }
        control.gone.cancel();
        // The API server's word that the pod is gone ends the task: until then its name is taken.
        while !control.removed() {
            if tokio::time::timeout(Duration::from_secs(30), control.wake.notified()).await.is_err() {
                self.status.finish(&uid);
            }
        }
        let pod = control.pod();
        if pod.is_static() {
            self.remove_mirror(&pod).await;
        }
        self.remove_logs(&pod);
        self.status.forget(&uid);
        self.forget_worker(&uid);
    }

    /// A static pod whose file changed has a new uid and the same name: it waits until the old one is gone.
    async fn wait_for_turn(&self, control: &Control) {
        let pod = control.pod();
        if !pod.is_static() {
            return;
        }
        while !control.ending() && self.older_of_name(&pod) {
            let _ = tokio::time::timeout(Duration::from_secs(1), self.workers_changed()).await;
        }
    }

    /// Carries out an eviction; whether it is done.
    async fn evict_now(self: &Arc<Self>, pod: &Arc<Pod>, e: &Eviction) -> bool {
        self.status.set(pod, e.status.clone());
        self.probes.remove_pod(pod.uid());
        let how = Stopping { grace: e.grace, ..Default::default() };
        let result = async {
            let runtime = pod_status(self.cri.as_ref(), pod.uid()).await.map_err(|e| e.to_string())?;
            if runtime.anything_runs() {
                self.kill_pod(Some(pod), &runtime, how).await?;
            }
            let runtime = pod_status(self.cri.as_ref(), pod.uid()).await.map_err(|e| e.to_string())?;
            self.remove_all(&runtime).await?;
            self.release(pod.uid(), resources::qos(pod)).await
        }
        .await;
        if let Err(e) = &result {
            tracing::warn!(pod = pod.described(), "eviction: {e}");
        }
        result.is_ok()
    }

    /// Ends a pod: stops what runs, says so, removes what is left, lets the API server delete it.
    async fn end(
        self: &Arc<Self>,
        control: &Control,
        memory: &mut Memory,
        evicted: bool,
    ) -> Result<(), String> {
        let pod = control.pod();
        let uid = pod.uid();
        self.probes.stop_liveness(uid);
        let known = |e: crate::runtime::RuntimeError| e.to_string();
        let mut runtime = pod_status(self.cri.as_ref(), uid).await.map_err(known)?;
        let ran = runtime.running().next().is_some()
            || !none_running(self.status.current(&pod).container_statuses.as_ref());
        let mut without_hooks = false;
        while runtime.anything_runs() {
            let grace = control.grace();
            let mut current = (*control.pod()).clone();
            current.metadata.deletion_grace_period_seconds = grace;
            let how = Stopping { grace: None, without_hooks };
            let mut killing = Box::pin(self.kill_pod(Some(&current), &runtime, how));
            let killed = loop {
                tokio::select! {
                    r = &mut killing => break Some(r),
                    _ = control.wake.notified() => {
                        if control.grace() < grace {
                            // Less time than before: begin anew, without the hooks.
                            break None;
                        }
                    }
                }
            };
            drop(killing);
            if let Some(result) = killed {
                result?;
            }
            without_hooks = true;
            runtime = pod_status(self.cri.as_ref(), uid).await.map_err(known)?;
        }
        if ran && !evicted {
            let status = self.make_status(&control.pod(), &runtime, &memory.reasons, None);
            self.status.set(&pod, status);
        }
        self.probes.remove_pod(uid);
        self.release(uid, resources::qos(&pod)).await?;
        self.remove_all(&runtime).await?;
        self.remove_pod_dir(uid)?;
        self.crash_backoff.reset_prefix(uid);
        self.status.finish(uid);
        Ok(())
    }
}
