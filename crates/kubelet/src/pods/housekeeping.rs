//! What is left of pods that nobody knows any more: pods that were deleted while the kubelet was down, folders,
//! cgroups, logs.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use pilothouse_component_base::signals::Stop;

use super::kill::Stopping;
use crate::kubelet::Kubelet;
use crate::pod::PodExt;
use crate::resources::Qos;
use crate::runtime::labels::POD_UID;
use crate::runtime::status::pod_status;

const INTERVAL: Duration = Duration::from_secs(30);

impl Kubelet {
    /// Tidies up now and then until `stop`. To be started when all sources of pods have spoken.
    pub(crate) async fn keep_house(self: Arc<Self>, stop: Stop) {
        let mut running: HashMap<String, tokio::task::JoinHandle<()>> = HashMap::new();
        loop {
            running.retain(|_, task| !task.is_finished());
            for uid in self.orphans().await {
                if self.has_worker(&uid) || running.contains_key(&uid) {
                    continue;
                }
                let me = self.clone();
                let of = uid.clone();
                let task = tokio::spawn(async move {
                    if let Err(e) = me.end_orphan(&of).await {
                        tracing::warn!(uid = of, "what is left of a pod was not removed: {e}");
                    }
                });
                running.insert(uid, task);
            }
            self.remove_orphaned_mirrors().await;
            self.remove_dead_links();
            tokio::select! { _ = stop.wait() => return, _ = tokio::time::sleep(INTERVAL) => {} }
        }
    }

    /// The uids of pods that left something and are not known.
    async fn orphans(&self) -> BTreeSet<String> {
        let mut uids = BTreeSet::new();
        for s in self.cri.list_sandboxes(None).await.unwrap_or_default() {
            uids.extend(s.labels.get(POD_UID).cloned());
        }
        for c in self.cri.list_containers(None).await.unwrap_or_default() {
            uids.extend(c.labels.get(POD_UID).cloned());
        }
        uids.extend(names(&self.config.root_dir.join("pods")));
        if let Some(c) = &self.cgroups {
            uids.extend(c.pods().into_iter().map(|(uid, _)| uid));
        }
        uids.extend(
            names(&self.config.pod_logs)
                .into_iter()
                .filter_map(|n| n.rsplit_once('_').map(|(_, u)| u.to_string())),
        );
        uids.retain(|u| self.registry.get(u).is_none());
        uids
    }

    async fn end_orphan(self: &Arc<Self>, uid: &str) -> Result<(), String> {
        let status = pod_status(self.cri.as_ref(), uid).await.map_err(|e| e.to_string())?;
        if status.anything_runs() {
            tracing::info!(uid, "ending a pod that nobody knows");
            self.kill_pod(None, &status, Stopping::default()).await?;
        }
        self.volumes.unmount(uid).await.map_err(|e| e.to_string())?;
        self.remove_all(&status).await?;
        if let Some(c) = &self.cgroups {
            for qos in [Qos::Guaranteed, Qos::Burstable, Qos::BestEffort] {
                c.remove(&crate::cgroups::Name::of_pod(qos, uid)).await.map_err(|e| e.to_string())?;
            }
        }
        self.remove_pod_dir(uid)?;
        for name in names(&self.config.pod_logs) {
            if name.ends_with(&format!("_{uid}")) {
                let _ = std::fs::remove_dir_all(self.config.pod_logs.join(name));
            }
        }
        Ok(())
    }

    /// Removes a pod's folder. Never through a mount: while one is left in it, nothing is removed.
    pub(crate) fn remove_pod_dir(&self, uid: &str) -> Result<(), String> {
        let dir = self.config.pod_dir(uid);
        if uid.is_empty() || !dir.exists() {
            return Ok(());
        }
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").map_err(|e| e.to_string())?;
        if let Some(m) = mounted_below(&mounts, &dir) {
            return Err(format!("{m} is still mounted"));
        }
        std::fs::remove_dir_all(&dir).map_err(|e| format!("{}: {e}", dir.display()))
    }

    /// Removes the logs of a pod that is gone.
    pub(crate) fn remove_logs(&self, pod: &Pod) {
        let dir = self.config.pod_log_dir(pod.namespace(), pod.name(), pod.uid());
        let _ = std::fs::remove_dir_all(dir);
    }

    async fn remove_orphaned_mirrors(&self) {
        for mirror in self.registry.mirrors() {
            if self.registry.static_of(&mirror).is_none() && !self.worker_of_name(&mirror) {
                self.remove_mirror(&mirror).await;
            }
        }
    }

    /// Links to logs that are gone.
    fn remove_dead_links(&self) {
        for name in names(&self.config.container_links) {
            let link = self.config.container_links.join(name);
            if link.is_symlink() && !link.exists() {
                let _ = std::fs::remove_file(link);
            }
        }
    }
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect()
}

/// A mount point in or below a folder, by the text of `/proc/self/mountinfo`.
fn mounted_below(mountinfo: &str, dir: &Path) -> Option<String> {
    mountinfo
        .lines()
        .filter_map(|l| l.split(' ').nth(4))
        .map(|p| p.replace("\\040", " "))
        .find(|p| Path::new(p).starts_with(dir))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_below_a_folder_are_seen() {
        let info = "30 20 0:1 / /var/lib/kubelet/pods/u/volumes/x rw - tmpfs tmpfs rw\n31 20 0:1 / /var/lib/kubelet/pods/u2 rw - a b c";
        assert!(mounted_below(info, Path::new("/var/lib/kubelet/pods/u")).is_some());
        assert!(mounted_below(info, Path::new("/var/lib/kubelet/pods/u3")).is_none());
    }
}
