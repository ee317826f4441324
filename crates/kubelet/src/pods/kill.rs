//! Stopping containers: their hooks, their time, their sandbox.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use k8s_openapi::api::core::v1::{Container, Pod};
use tokio::time::Instant;

use crate::hooks;
use crate::kubelet::Kubelet;
use crate::pod::PodExt;
use crate::runtime::labels;
use crate::runtime::status::{ContainerStatus, PodStatus, ready};

/// No container is killed faster than this, in seconds, unless an eviction says so.
const MIN_GRACE: i64 = 2;

/// How to stop.
#[derive(Debug, Clone, Copy, Default)]
pub struct Stopping {
    /// Seconds; the pod's own where `None`.
    pub grace: Option<i64>,
    /// Leave out `preStop` hooks: they have run.
    pub without_hooks: bool,
}

/// The time a container has, in seconds, by its pod and by what was noted when it was made.
fn grace_of(pod: Option<&Pod>, status: &ContainerStatus) -> i64 {
    let of_pod = pod.and_then(|p| {
        p.metadata.deletion_grace_period_seconds.or(p.pod_spec().termination_grace_period_seconds)
    });
    of_pod.or(status.info.grace).unwrap_or(MIN_GRACE)
}

impl Kubelet {
    /// Stops one container: `preStop` hook, signal, force. `message` is the event's; empty for the usual one.
    pub(crate) async fn kill_container(
        self: &Arc<Self>,
        pod: Option<&Pod>,
        status: &ContainerStatus,
        message: &str,
        how: Stopping,
    ) -> Result<(), String> {
        let restored = self.container_of(pod, status).await;
        let mut grace = grace_of(pod, status);
        if let Some(pod) = pod {
            let init = pod.init_containers().iter().any(|c| c.name == status.name);
            // v1.20 says nothing of init containers that end with their pod.
            if !(init && pod.deleting()) {
                let text = match message {
                    "" => format!("Stopping container {}", status.name),
                    m => m.to_string(),
                };
                self.recorder.normal(&pod.container_reference(&status.name), "Killing", text);
            }
            let hook = restored.as_ref().and_then(|c| Some((c, c.lifecycle.as_ref()?.pre_stop.as_ref()?)));
            if let Some((container, hook)) = hook
                && grace > 0
                && !how.without_hooks
            {
                let started = Instant::now();
                let ip = self.status.current(pod).pod_ip.unwrap_or_default();
                let run = hooks::run(self.cri.as_ref(), pod, container, &status.id, &ip, hook);
                let limit = Duration::from_secs(u64::try_from(grace).unwrap_or(0));
                if let Ok(Err(e)) = tokio::time::timeout(limit, run).await {
                    self.recorder.warning(
                        &pod.container_reference(&status.name),
                        "FailedPreStopHook",
                        e.message,
                    );
                }
                grace -= i64::try_from(started.elapsed().as_secs()).unwrap_or(0);
            }
        }
        let grace = how.grace.unwrap_or(grace.max(MIN_GRACE));
        self.cri.stop_container(&status.id, grace).await.map_err(|e| e.to_string())
    }

    /// A container's spec: the pod's, or what was noted on it.
    async fn container_of(&self, pod: Option<&Pod>, status: &ContainerStatus) -> Option<Container> {
        if let Some(c) = pod.and_then(|p| p.any_container(&status.name)) {
            return Some(c.into_owned());
        }
        let noted = self.cri.container_status(&status.id).await.ok()?;
        Some(labels::restored_container(&noted))
    }

    /// Stops all that runs of a pod: the containers, then the sandboxes. The pod is `None` where nobody knows it.
    pub(crate) async fn kill_pod(
        self: &Arc<Self>,
        pod: Option<&Pod>,
        status: &PodStatus,
        how: Stopping,
    ) -> Result<(), String> {
        let killed = join_all(status.running().map(|c| self.kill_container(pod, c, "", how))).await;
        let mut errors: Vec<String> = killed.into_iter().filter_map(Result::err).collect();
        // A sandbox that is not ready may still hold its network: it is stopped as well.
        for s in &status.sandboxes {
            if let Err(e) = self.cri.stop_sandbox(&s.id).await {
                errors.push(e.to_string());
            }
        }
        if errors.is_empty() { Ok(()) } else { Err(errors.join(", ")) }
    }

    /// Removes dead containers that nobody needs any more: of each container the present one and the one before it
    /// stay (of init containers the present one), and of the sandboxes the newest and those that hold a container that
    /// stays.
    pub(crate) async fn collect_dead(&self, pod: &Pod, status: &PodStatus) {
        let mut seen = std::collections::HashMap::<&str, u32>::new();
        let mut kept = std::collections::HashSet::<&str>::new();
        let mut removed = false;
        for c in &status.containers {
            let n = seen.entry(&c.name).or_default();
            *n += 1;
            let dead = c.state == crate::runtime::status::State::Exited;
            let init = pod.init_containers().iter().any(|i| i.name == c.name);
            if *n <= if init { 1 } else { 2 } || !dead {
                kept.insert(&c.sandbox);
                continue;
            }
            self.remove_container(c).await;
            removed = true;
        }
        for s in status.sandboxes.iter().skip(1).filter(|s| !ready(s) && !kept.contains(s.id.as_str())) {
            if let Err(e) = self.cri.remove_sandbox(&s.id).await {
                tracing::debug!(sandbox = s.id, "sandbox not removed: {e}");
            }
            removed = true;
        }
        if removed {
            tracing::trace!("dead containers removed");
        }
    }

    /// Removes a container with its log.
    pub(crate) async fn remove_container(&self, c: &ContainerStatus) {
        if let Err(e) = self.cri.remove_container(&c.id).await {
            tracing::debug!(container = c.id, "container not removed: {e}");
            return;
        }
        remove_log(&c.log_path);
        for entry in std::fs::read_dir(&self.config.container_links).into_iter().flatten().flatten() {
            let name = entry.file_name();
            if name.to_string_lossy().contains(c.id.as_str()) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }

    /// Removes all containers and sandboxes of a pod. All must be stopped.
    pub(crate) async fn remove_all(&self, status: &PodStatus) -> Result<(), String> {
        for c in &status.containers {
            self.remove_container(c).await;
        }
        for s in &status.sandboxes {
            self.cri.remove_sandbox(&s.id).await.map_err(|e| e.to_string())?;
        }
        Ok(())
    }
}

/// Removes a log with what it was rotated to.
fn remove_log(path: &str) {
    let path = std::path::Path::new(path);
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else { return };
    let name = name.to_string_lossy();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let other = entry.file_name();
        let other = other.to_string_lossy();
        if *other == *name || other.starts_with(&format!("{name}.")) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}
