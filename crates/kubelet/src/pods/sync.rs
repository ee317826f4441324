//! One sync of a pod: what runs, what it is said to be, what must be done, doing it.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::actions;
use super::start::Start;
use super::status::{self, Inputs, Reasons};
use crate::cgroups::Name;
use crate::containers::apparmor;
use crate::kubelet::Kubelet;
use crate::pod::PodExt;
use crate::resources;
use crate::runtime::status::{PodStatus, State, pod_status};
use crate::volumes::PodMounts;

const DEADLINE: (&str, &str) =
    ("DeadlineExceeded", "Pod was active on the node longer than the specified deadline");
/// How long volumes may fail before an event says so as a whole.
const VOLUMES_PATIENCE: Duration = Duration::from_secs(123);

/// What a worker remembers of its pod between syncs.
#[derive(Debug)]
pub(crate) struct Memory {
    pub(crate) reasons: Reasons,
    pub(crate) errors: u32,
    pub(crate) first_seen: Instant,
    pub(crate) released: bool,
    mount_failures: u32,
    mounting_since: Option<Instant>,
    running: Vec<String>,
}

impl Default for Memory {
    fn default() -> Self {
        Memory {
            reasons: Reasons::new(),
            errors: 0,
            first_seen: Instant::now(),
            released: false,
            mount_failures: 0,
            mounting_since: None,
            running: Vec::new(),
        }
    }
}

/// What a sync came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Something was done: look again at once.
    Acted,
    /// All is as it should be.
    Done,
    /// Something failed: look again after that time, or after the time that errors have earned.
    Failed(Option<Duration>),
}

impl Kubelet {
    /// The pod's status by what runs.
    pub(crate) fn make_status(
        &self,
        pod: &Pod,
        runtime: &PodStatus,
        reasons: &Reasons,
        evicted: Option<(&str, &str)>,
    ) -> k8s_openapi::api::core::v1::PodStatus {
        let previous = self.status.current(pod);
        let host_ip = self.node.ip();
        let runtime_name = self.runtime_name();
        let inputs = Inputs {
            runtime,
            runtime_name: &runtime_name,
            previous: &previous,
            reasons,
            probes: &self.probed(),
            host_ip: &host_ip,
        };
        status::generate(pod, &inputs, evicted)
    }

    /// When the pod's deadline is over, as far as it has one.
    fn deadline(&self, pod: &Pod) -> Option<Duration> {
        let seconds = u64::try_from(pod.pod_spec().active_deadline_seconds?).ok()?;
        let start = self.status.current(pod).start_time?.0;
        let passed = crate::clock::now().duration_since(start);
        Some(Duration::from_secs(seconds).saturating_sub(passed.unsigned_abs()))
    }

    /// How long until the pod must be looked at though nothing happens.
    pub(crate) fn next_look(&self, pod: &Pod) -> Duration {
        let regular = self.config.sync_frequency.mul_f64(1.0 + 0.5 * rand::random::<f64>());
        match self.deadline(pod) {
            Some(d) if !pod.phase_is_terminal() => regular.min(d + Duration::from_millis(50)),
            _ => regular,
        }
    }

    /// Syncs a pod. `interrupt` tells that the pod is to end: what takes long is given up.
    pub(crate) async fn sync_pod(
        self: &Arc<Self>,
        pod: &Arc<Pod>,
        memory: &mut Memory,
        interrupt: &CancellationToken,
    ) -> Outcome {
        if pod.is_static() {
            self.ensure_mirror(pod).await;
        }
        let runtime = match pod_status(self.cri.as_ref(), pod.uid()).await {
            Ok(s) => s,
            Err(e) => {
                tracing::warn!(pod = pod.described(), "what runs is not known: {e}");
                return Outcome::Failed(None);
            }
        };
        let current = self.status.current(pod);
        if pod.phase_is_terminal() && status::none_running(current.container_statuses.as_ref()) {
            // The API server has its last word; all that is left is to let go of what it held.
            return self.end_pod(pod, &runtime, memory).await;
        }
        let late = pod.pod_status().reason.as_deref() == Some(DEADLINE.0);
        let over = late || !pod.phase_is_terminal() && self.deadline(pod).is_some_and(|d| d.is_zero());
        let before = current.phase;
        let mut new = self.make_status(pod, &runtime, &memory.reasons, over.then_some(DEADLINE));
        let begun = !matches!(pod.pod_status().phase.as_deref(), None | Some("" | "Pending"));
        let blocked = apparmor::refusal(pod, apparmor::Host::read).filter(|_| !begun && !over);
        if let Some(why) = &blocked {
            status::block(&mut new, apparmor::REASON, why);
        }
        if over && before.as_deref() != Some("Failed") {
            self.recorder.normal(&pod.reference(), DEADLINE.0, DEADLINE.1);
        }
        let phase = new.phase.clone().unwrap_or_default();
        if phase == "Running" && before.as_deref() == Some("Pending") {
            self.metrics.pod_running(memory.first_seen.elapsed());
        }
        self.status.set(pod, new);
        self.note_running(pod, &runtime, memory);

        if over || phase == "Failed" || phase == "Succeeded" {
            return self.end_pod(pod, &runtime, memory).await;
        }
        if let Some(why) = blocked {
            tracing::warn!(pod = pod.described(), "pod cannot be run: {why}");
            if runtime.anything_runs()
                && let Err(e) = self.kill_pod(Some(pod), &runtime, Default::default()).await
            {
                self.recorder.warning(&pod.reference(), "FailedKillPod", format!("error killing pod: {e}"));
            }
            return Outcome::Failed(None);
        }
        if let (Some(why), false) = (self.network_error(), pod.host_network()) {
            self.recorder.warning(
                &pod.reference(),
                "NetworkNotReady",
                format!("network is not ready: {why}"),
            );
            return Outcome::Failed(Some(Duration::from_secs(1)));
        }
        if let Err(e) = self.ensure_cgroup(pod).await {
            let text = format!("unable to ensure pod container exists: {e}");
            self.recorder.warning(&pod.reference(), "FailedCreatePodContainer", text);
            return Outcome::Failed(None);
        }
        if let Err(e) = self.make_dirs(pod) {
            self.recorder.warning(
                &pod.reference(),
                "FailedMakePodDataDirectories",
                format!("error making pod data directories: {e}"),
            );
            return Outcome::Failed(None);
        }
        let mounts = match self.mount(pod, memory, interrupt).await {
            Ok(m) => m,
            Err(again) => return Outcome::Failed(Some(again)),
        };
        let outcome = self.act(pod, &runtime, &mounts, memory, interrupt).await;
        if outcome == Outcome::Done {
            self.collect_dead(pod, &runtime).await;
        }
        outcome
    }

    /// Probes look at a container as soon as it runs.
    fn note_running(&self, pod: &Arc<Pod>, runtime: &PodStatus, memory: &mut Memory) {
        let running: Vec<String> =
            runtime.containers.iter().filter(|c| c.state == State::Running).map(|c| c.id.clone()).collect();
        if running.iter().any(|id| !memory.running.contains(id)) {
            self.probes.wake(pod.uid());
        }
        memory.running = running;
    }

    /// A pod whose containers have ended, or must: nothing of it runs on, and it lets go of what it held.
    async fn end_pod(self: &Arc<Self>, pod: &Arc<Pod>, runtime: &PodStatus, memory: &mut Memory) -> Outcome {
        let ran = runtime.running().next().is_some();
        if runtime.anything_runs() {
            if let Err(e) = self.kill_pod(Some(pod), runtime, Default::default()).await {
                self.recorder.warning(&pod.reference(), "FailedKillPod", format!("error killing pod: {e}"));
                return Outcome::Failed(None);
            }
            if ran {
                return Outcome::Acted;
            }
        }
        if !memory.released {
            self.probes.remove_pod(pod.uid());
            if let Err(e) = self.release(pod.uid(), resources::qos(pod)).await {
                tracing::warn!(pod = pod.described(), "resources of an ended pod not released: {e}");
                return Outcome::Failed(None);
            }
            memory.released = true;
        }
        Outcome::Done
    }

    /// Unmounts the volumes of a pod of which nothing runs, and removes its cgroup.
    pub(crate) async fn release(&self, uid: &str, qos: resources::Qos) -> Result<(), String> {
        self.volumes.unmount(uid).await.map_err(|e| e.to_string())?;
        if let Some(c) = &self.cgroups {
            c.remove(&Name::of_pod(qos, uid)).await.map_err(|e| e.to_string())?;
            self.update_burstable().await;
        }
        Ok(())
    }

    async fn ensure_cgroup(&self, pod: &Pod) -> std::io::Result<()> {
        let Some(cgroups) = &self.cgroups else { return Ok(()) };
        let name = Name::of_pod(resources::qos(pod), pod.uid());
        if cgroups.exists(&name) {
            return Ok(());
        }
        self.update_burstable().await;
        let period = i64::try_from(self.config.cpu_cfs_quota_period.as_micros()).unwrap_or(100_000);
        let pids = self.config.kubelet.int("podPidsLimit");
        let limits = resources::pod_cgroup_limits(pod, self.config.cpu_cfs_quota, period, pids);
        cgroups.ensure(&name, &limits).await
    }

    /// The burstable pods together get the CPU that they ask for together.
    async fn update_burstable(&self) {
        let Some(cgroups) = &self.cgroups else { return };
        let milli = self
            .active_pods()
            .iter()
            .filter(|p| resources::qos(p) == resources::Qos::Burstable)
            .map(|p| resources::milli(&resources::pod_requests(p), "cpu"))
            .sum();
        if let Err(e) = cgroups.set_burstable_cpu(milli).await {
            tracing::warn!("cgroup of burstable pods: {e}");
        }
    }

    fn make_dirs(&self, pod: &Pod) -> std::io::Result<()> {
        use std::os::unix::fs::DirBuilderExt;
        let dir = self.config.pod_dir(pod.uid());
        for d in [dir.clone(), dir.join("volumes"), dir.join("plugins")] {
            std::fs::DirBuilder::new().recursive(true).mode(0o750).create(d)?;
        }
        Ok(())
    }

    async fn mount(
        &self,
        pod: &Arc<Pod>,
        memory: &mut Memory,
        interrupt: &CancellationToken,
    ) -> Result<PodMounts, Duration> {
        let mounted = tokio::select! {
            m = self.volumes.mount(pod) => m,
            _ = interrupt.cancelled() => return Err(Duration::ZERO),
        };
        let error = match mounted {
            Ok(m) => {
                (memory.mount_failures, memory.mounting_since) = (0, None);
                return Ok(m);
            }
            Err(e) => e,
        };
        for f in &error.failures {
            self.recorder.warning(&pod.reference(), f.reason, f.message.as_str());
        }
        let since = *memory.mounting_since.get_or_insert_with(Instant::now);
        if since.elapsed() >= VOLUMES_PATIENCE {
            memory.mounting_since = Some(Instant::now());
            let all: Vec<&str> = pod.pod_spec().volumes.iter().flatten().map(|v| v.name.as_str()).collect();
            let text = format!(
                "Unable to attach or mount volumes: unmounted volumes=[{}], unattached volumes=[{}]: timed out waiting for the condition",
                error.unmounted.join(" "),
                all.join(" ")
            );
            self.recorder.warning(&pod.reference(), "FailedMount", text);
        }
        memory.mount_failures += 1;
        let wait = Duration::from_millis(500) * 2u32.saturating_pow((memory.mount_failures - 1).min(8));
        Err(wait.min(Duration::from_secs(122)))
    }

    /// Does what [`actions::compute`] says.
    async fn act(
        self: &Arc<Self>,
        pod: &Arc<Pod>,
        runtime: &PodStatus,
        mounts: &PodMounts,
        memory: &mut Memory,
        interrupt: &CancellationToken,
    ) -> Outcome {
        let a = actions::compute(pod, runtime, &|id| self.failed_probe(id));
        let mut acted = false;
        if a.create_sandbox && !a.sandbox.is_empty() {
            let text = "Pod sandbox changed, it will be killed and re-created.";
            self.recorder.normal(&pod.reference(), "SandboxChanged", text);
        }
        if a.kill_pod {
            if (a.create_sandbox && !runtime.sandboxes.is_empty()) || runtime.anything_runs() {
                if let Err(e) = self.kill_pod(Some(pod), runtime, Default::default()).await {
                    self.recorder.warning(
                        &pod.reference(),
                        "FailedKillPod",
                        format!("error killing pod: {e}"),
                    );
                    return Outcome::Failed(None);
                }
                acted = true;
            }
            if a.create_sandbox {
                for c in runtime
                    .containers
                    .iter()
                    .filter(|c| pod.init_containers().iter().any(|i| i.name == c.name))
                {
                    self.remove_container(c).await;
                }
            }
        } else {
            for k in &a.kill {
                let Some(c) = runtime.containers.iter().find(|c| c.id == k.id) else { continue };
                if let Err(e) = self.kill_container(Some(pod), c, &k.message, Default::default()).await {
                    tracing::warn!(pod = pod.described(), container = k.name, "not killed: {e}");
                    return Outcome::Failed(None);
                }
                acted = true;
            }
        }
        if !a.create_sandbox && a.next_init.is_none() && a.start.is_empty() && a.ephemeral.is_empty() {
            return if acted { Outcome::Acted } else { Outcome::Done };
        }

        let config = match self.sandbox_config(pod, a.attempt, &mounts.groups) {
            Ok(c) => c,
            Err(e) => {
                self.sandbox_failed(pod, &e);
                return Outcome::Failed(None);
            }
        };
        let (mut sandbox, mut ips) = (a.sandbox.clone(), runtime.ips.clone());
        if a.create_sandbox {
            match self.create_sandbox(pod, &config).await {
                Ok(made) => (sandbox, ips) = made,
                Err(e) => {
                    self.sandbox_failed(pod, &e);
                    return Outcome::Failed(None);
                }
            }
            acted = true;
        }
        if pod.host_network() {
            ips = vec![self.node.ip()];
        }
        let secrets = self.pull_secrets(pod).await;
        let start = Start {
            pod,
            runtime,
            sandbox: &sandbox,
            sandbox_config: &config,
            ips: &ips,
            mounts,
            secrets: &secrets,
            interrupt,
        };
        let (mut failed, mut again) = (false, None::<Duration>);
        for name in a.ephemeral.iter().chain(&a.next_init).chain(&a.start) {
            if interrupt.is_cancelled() {
                return Outcome::Acted;
            }
            let Some(container) = pod.any_container(name) else { continue };
            match self.start_container(&start, &container).await {
                Ok(()) => {
                    memory.reasons.remove(name);
                    acted = true;
                }
                Err(n) => {
                    failed = true;
                    // The sooner of all waits; one of no known length is that of errors.
                    let wait = n.again.unwrap_or_else(|| error_wait(memory.errors));
                    again = Some(again.map_or(wait, |w| w.min(wait)));
                    memory.reasons.insert(name.clone(), n.why);
                }
            }
        }
        if failed {
            // What was found out is shown now, not at the next look.
            if let Ok(now) = pod_status(self.cri.as_ref(), pod.uid()).await {
                let status = self.make_status(pod, &now, &memory.reasons, None);
                self.status.set(pod, status);
                self.note_running(pod, &now, memory);
            }
            return Outcome::Failed(again);
        }
        if acted { Outcome::Acted } else { Outcome::Done }
    }

    fn sandbox_failed(&self, pod: &Pod, why: &str) {
        let text = format!("Failed to create pod sandbox: {why}");
        self.recorder.warning(&pod.reference(), "FailedCreatePodSandBox", text);
    }
}

/// How long to wait after so many failed syncs in a row: 1 s, 2 s, 4 s, 8 s, then about 10 s.
pub(crate) fn error_wait(errors: u32) -> Duration {
    match errors {
        0..=3 => Duration::from_secs(1 << errors),
        _ => Duration::from_secs(10).mul_f64(1.0 + 0.5 * rand::random::<f64>()),
    }
}
