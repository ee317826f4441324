//! Keeps the status of each pod and writes it to the API server: the last one set is what counts, one write at a time
//! for a pod, again and again until it is there. A pod that has come to its end is deleted once its last status is
//! written.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodCondition, PodStatus};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use super::conditions::OWNED;
use super::patch::status_patch;
use super::registry::Registry;
use crate::api::{ApiError, PodApi};
use crate::pod::{PodExt, now, tail};

/// All termination messages of a pod together are no longer than this, in bytes.
const MAX_MESSAGES: usize = 12 * 1024;
const WRITERS: usize = 16;

#[derive(Default)]
struct Entry {
    status: PodStatus,
    version: u64,
    writing: bool,
    /// Something is new since the write under way began.
    dirty: bool,
    finished: bool,
    /// The pod as the last write left it.
    last: Option<Arc<Pod>>,
    /// Which version that was.
    written: u64,
}

struct Shared {
    api: Arc<dyn PodApi>,
    registry: Arc<Registry>,
    entries: Mutex<HashMap<String, Entry>>,
    writers: Semaphore,
}

/// See the module. Cheap to clone.
#[derive(Clone)]
pub struct StatusManager(Arc<Shared>);

impl StatusManager {
    /// Writes through `api` to the pods in `registry`.
    pub fn new(api: Arc<dyn PodApi>, registry: Arc<Registry>) -> StatusManager {
        StatusManager(Arc::new(Shared {
            api,
            registry,
            entries: Mutex::default(),
            writers: Semaphore::new(WRITERS),
        }))
    }

    /// A pod's status as last set.
    pub fn get(&self, uid: &str) -> Option<PodStatus> {
        self.0.entries.lock().get(uid).filter(|e| e.version > 0).map(|e| e.status.clone())
    }

    /// A pod's status as last set, or else as the API server has it.
    pub fn current(&self, pod: &Pod) -> PodStatus {
        self.get(pod.uid()).unwrap_or_else(|| self.as_read(pod))
    }

    fn as_read(&self, pod: &Pod) -> PodStatus {
        let shown = self.0.registry.in_api(pod.uid());
        shown.as_deref().unwrap_or(pod).pod_status().clone()
    }

    /// Sets a pod's status. Nothing happens where it is the same as before.
    pub fn set(&self, pod: &Pod, mut status: PodStatus) {
        let old = self.current(pod);
        let mut entries = self.0.entries.lock();
        let entry = entries.entry(pod.uid().to_string()).or_default();
        for c in status.conditions.iter_mut().flatten().filter(|c| OWNED.contains(&c.type_.as_str())) {
            let before = old.conditions.iter().flatten().find(|b| b.type_ == c.type_);
            let kept = before.filter(|b| b.status == c.status).and_then(|b| b.last_transition_time.clone());
            c.last_transition_time = Some(kept.unwrap_or_else(now));
        }
        status.start_time = old.start_time.clone().or(status.start_time.take()).or_else(|| Some(now()));
        shorten_messages(pod, &mut status);
        if entry.version > 0 && same(&entry.status, &status) {
            return;
        }
        entry.status = status;
        entry.version += 1;
        drop(entries);
        self.write(pod.uid());
    }

    /// Changes a pod's status where one is set.
    pub fn update(&self, pod: &Pod, change: impl FnOnce(&mut PodStatus)) {
        if let Some(mut status) = self.get(pod.uid()) {
            change(&mut status);
            self.set(pod, status);
        }
    }

    /// Says that nothing of a pod is left on the node: where the pod is to be deleted, it is, after its last status.
    pub fn finish(&self, uid: &str) {
        self.0.entries.lock().entry(uid.to_string()).or_default().finished = true;
        self.write(uid);
    }

    /// Forgets a pod.
    pub fn forget(&self, uid: &str) {
        self.0.entries.lock().remove(uid);
    }

    /// Writes what is not written: the pod, or its mirror pod, may only now be there, or somebody else changed it.
    pub fn retry(&self, uid: &str) {
        self.write(uid);
    }

    fn write(&self, uid: &str) {
        {
            let mut entries = self.0.entries.lock();
            let Some(e) = entries.get_mut(uid) else { return };
            e.dirty = true;
            if std::mem::replace(&mut e.writing, true) {
                return;
            }
        }
        let (me, uid) = (self.clone(), uid.to_string());
        tokio::spawn(async move { me.write_all(&uid).await });
    }

    async fn write_all(&self, uid: &str) {
        let mut wait = Duration::from_millis(500);
        loop {
            match self.0.entries.lock().get_mut(uid) {
                Some(e) => e.dirty = false,
                None => return,
            }
            let Ok(permit) = self.0.writers.acquire().await else { return };
            let done = self.write_once(uid).await;
            drop(permit);
            if let Err(e) = done {
                tracing::warn!(uid, "failed to update status for pod: {e}");
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(Duration::from_secs(10));
                continue;
            }
            wait = Duration::from_millis(500);
            match self.0.entries.lock().get_mut(uid) {
                Some(e) if e.dirty => {}
                Some(e) => {
                    e.writing = false;
                    return;
                }
                None => return,
            }
        }
    }

    /// Writes a pod's status as it now is, and deletes the pod where it is time.
    async fn write_once(&self, uid: &str) -> Result<(), ApiError> {
        let Some(shown) = self.0.registry.in_api(uid) else { return Ok(()) };
        let (status, version, finished, last, written) = {
            let entries = self.0.entries.lock();
            let Some(e) = entries.get(uid) else { return Ok(()) };
            (e.status.clone(), e.version, e.finished, e.last.clone(), e.written)
        };
        // What the watch shows may be our own last write: then there is nothing to mend, whatever the server made of it.
        let ours =
            last.as_ref().is_some_and(|l| l.metadata.resource_version == shown.metadata.resource_version);
        let base = newer(shown.clone(), last);
        if version > 0 && (version > written || !ours) {
            let wanted = with_others(base.pod_status(), status);
            if let Some(patch) = status_patch(shown.uid(), base.pod_status(), &wanted) {
                match self.0.api.patch_status(shown.namespace(), shown.name(), &patch).await {
                    Ok(pod) => {
                        if let Some(e) = self.0.entries.lock().get_mut(uid) {
                            e.last = Some(Arc::new(pod));
                            e.written = version;
                        }
                    }
                    Err(ApiError::NotFound) => {}
                    Err(ApiError::Conflict(why) | ApiError::Refused(why)) => {
                        tracing::info!(pod = shown.described(), "status not written: {why}");
                    }
                    Err(e) => return Err(e),
                }
            }
        }
        if finished && !shown.is_mirror() && shown.deleting() {
            match self.0.api.delete(shown.namespace(), shown.name(), shown.uid()).await {
                Ok(()) | Err(ApiError::NotFound | ApiError::Conflict(_)) => {}
                Err(ApiError::Refused(why)) => {
                    tracing::warn!(pod = shown.described(), "pod not deleted: {why}");
                }
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

/// The newer of two forms of a pod: what our own write gave may be ahead of what the watch has shown.
fn newer(shown: Arc<Pod>, last: Option<Arc<Pod>>) -> Arc<Pod> {
    let version = |p: &Pod| p.metadata.resource_version.as_deref().and_then(|v| v.parse::<u64>().ok());
    match last {
        Some(l) if l.uid() == shown.uid() && version(&l) > version(&shown) => l,
        _ => shown,
    }
}

/// The kubelet's status with the conditions of others as they are now.
fn with_others(old: &PodStatus, mut new: PodStatus) -> PodStatus {
    let owned = |c: &PodCondition| OWNED.contains(&c.type_.as_str());
    let mut list: Vec<PodCondition> =
        old.conditions.iter().flatten().filter(|c| !owned(c)).cloned().collect();
    list.extend(new.conditions.take().into_iter().flatten().filter(owned));
    new.conditions = Some(list).filter(|l| !l.is_empty());
    new.nominated_node_name = old.nominated_node_name.clone();
    new.observed_generation = old.observed_generation;
    new.host_ips = old.host_ips.clone();
    new
}

/// Whether two statuses differ in nothing that is the kubelet's.
fn same(a: &PodStatus, b: &PodStatus) -> bool {
    let own = |s: &PodStatus| PodStatus {
        conditions: Some(
            s.conditions.iter().flatten().filter(|c| OWNED.contains(&c.type_.as_str())).cloned().collect(),
        ),
        ..s.clone()
    };
    own(a) == own(b)
}

fn shorten_messages(pod: &Pod, status: &mut PodStatus) {
    let count = (pod.pod_spec().containers.len() + pod.init_containers().len()).max(1);
    let max = MAX_MESSAGES / count;
    let shorten = |c: &mut ContainerStatus| {
        for state in [&mut c.state, &mut c.last_state].into_iter().flatten() {
            if let Some(m) = state.terminated.as_mut().and_then(|t| t.message.as_mut())
                && m.len() > max
            {
                // The end of a message says more than its beginning, but v1.20 keeps the beginning.
                let mut end = max;
                while !m.is_char_boundary(end) {
                    end -= 1;
                }
                m.truncate(end);
            }
        }
    };
    status.container_statuses.iter_mut().flatten().for_each(shorten);
    status.init_container_statuses.iter_mut().flatten().for_each(shorten);
    if let Some(m) = &mut status.message {
        *m = tail(m, 64 * 1024).to_string();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use async_trait::async_trait;
    use serde_json::{Value, json};

    #[derive(Default)]
    struct Fake {
        writes: Mutex<Vec<Value>>,
        failures: Mutex<u32>,
        deleted: Mutex<Vec<String>>,
    }

    #[async_trait]
    impl PodApi for Fake {
        async fn patch_status(&self, _: &str, _: &str, patch: &Value) -> Result<Pod, ApiError> {
            let mut left = self.failures.lock();
            if *left > 0 {
                *left -= 1;
                return Err(ApiError::Failed("no".into()));
            }
            self.writes.lock().push(patch["status"].clone());
            let mut p = (*pod()).clone();
            p.metadata.resource_version = Some("9".into());
            p.status = serde_json::from_value(json!({"phase": patch["status"]["phase"]})).unwrap();
            Ok(p)
        }
        async fn delete(&self, _: &str, name: &str, uid: &str) -> Result<(), ApiError> {
            self.deleted.lock().push(format!("{name}/{uid}"));
            Ok(())
        }
        async fn create(&self, pod: &Pod) -> Result<Pod, ApiError> {
            Ok(pod.clone())
        }
    }

    fn pod() -> Arc<Pod> {
        Arc::new(
            serde_json::from_value(
                json!({"metadata": {"name": "p", "namespace": "n", "uid": "u", "resourceVersion": "1"},
                "spec": {"containers": [{"name": "c"}]},
                "status": {"phase": "Pending", "conditions": [{"type": "mine", "status": "True"}]}}),
            )
            .unwrap(),
        )
    }

    fn setup() -> (Arc<Fake>, Arc<Registry>, StatusManager) {
        let (api, registry) = (Arc::new(Fake::default()), Arc::new(Registry::default()));
        registry.set(pod());
        (api.clone(), registry.clone(), StatusManager::new(api, registry))
    }

    fn phase(p: &str) -> PodStatus {
        PodStatus { phase: Some(p.into()), ..Default::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn writes_differences_until_they_are_there() {
        let (api, _, m) = setup();
        *api.failures.lock() = 2;
        m.set(&pod(), phase("Running"));
        tokio::time::sleep(Duration::from_secs(10)).await;
        m.set(&pod(), phase("Running"));
        tokio::time::sleep(Duration::from_secs(10)).await;
        let writes = api.writes.lock();
        assert_eq!(writes.len(), 1);
        assert_eq!(writes[0]["phase"], "Running");
        assert!(writes[0]["startTime"].is_string() && writes[0].get("conditions").is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn transition_times_change_with_the_status_only() {
        let (_, _, m) = setup();
        let ready = |s: bool| PodStatus {
            conditions: Some(vec![super::super::conditions::condition("Ready", s, "", "")]),
            ..phase("Running")
        };
        let time = || m.get("u").unwrap().conditions.unwrap()[0].last_transition_time.clone().unwrap();
        m.set(&pod(), ready(false));
        let first = time();
        tokio::time::advance(Duration::from_secs(5)).await;
        m.set(&pod(), PodStatus { reason: Some("x".into()), ..ready(false) });
        assert_eq!(time(), first);
        m.update(&pod(), |s| s.conditions.as_mut().unwrap()[0].status = "True".into());
        assert!(time() >= first);
        assert_eq!(m.get("u").unwrap().reason.as_deref(), Some("x"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_at_its_end_is_deleted_if_it_is_to_be() {
        let (api, registry, m) = setup();
        m.set(&pod(), phase("Succeeded"));
        m.finish("u");
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(api.deleted.lock().is_empty());
        let mut going = (*pod()).clone();
        going.metadata.deletion_timestamp = Some(now());
        registry.set(Arc::new(going));
        m.finish("u");
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(*api.deleted.lock(), ["p/u"]);
    }
}
