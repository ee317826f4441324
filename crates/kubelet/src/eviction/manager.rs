//! Looks at each sample of the statistics, sets the node's conditions, makes room, and ends pods, one at a time.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ObjectReference, Pod, PodStatus};
use parking_lot::{Mutex, RwLock};
use pilothouse_component_base::signals::Stop;
use tokio::time::Instant;

use super::limits;
use super::ranking;
use super::signal::{Condition, Signal, observe};
use super::threshold::{self, State, Threshold};
use crate::images::gc::ImageGc;
use crate::kubelet::Kubelet;
use crate::node::status::Pressure as NodePressure;
use crate::pod::PodExt;
use crate::pods::admission::Rejection;
use crate::resources::{Qos, qos};
use crate::stats::{PodUsage, Sample, Stats};

/// How long after an eviction nothing else is ended: until its effect can be seen.
const SETTLE: Duration = Duration::from_secs(30);

/// What the node is short of. Cheap to clone.
#[derive(Clone, Default)]
pub struct Pressure {
    conditions: Arc<RwLock<BTreeSet<Condition>>>,
    shown: Arc<Mutex<NodePressure>>,
}

impl Pressure {
    /// Told to the node's status by `shown`.
    pub fn new(shown: Arc<Mutex<NodePressure>>) -> Pressure {
        Pressure { conditions: Arc::default(), shown }
    }

    fn set(&self, conditions: &BTreeSet<Condition>) {
        let has = |c| conditions.contains(&c);
        *self.shown.lock() = NodePressure {
            memory: has(Condition::Memory),
            disk: has(Condition::Disk),
            pid: has(Condition::Pids),
        };
        let mut now = self.conditions.write();
        if *now != *conditions {
            tracing::info!(
                "node conditions: {:?}",
                conditions.iter().map(|c| c.as_str()).collect::<Vec<_>>()
            );
            now.clone_from(conditions);
        }
    }

    /// May a pod be taken on now?
    pub fn admit(&self, pod: &Pod) -> Result<(), Rejection> {
        let conditions = self.conditions.read();
        if conditions.is_empty() || pod.is_critical() {
            return Ok(());
        }
        let only_memory = conditions.len() == 1 && conditions.contains(&Condition::Memory);
        if only_memory && (qos(pod) != Qos::BestEffort || tolerates_memory_pressure(pod)) {
            return Ok(());
        }
        let names: Vec<&str> = conditions.iter().map(|c| c.as_str()).collect();
        Err(Rejection {
            reason: "Evicted".into(),
            message: format!("The node had condition: [{}]. ", names.join(" ")),
        })
    }
}

fn tolerates_memory_pressure(pod: &Pod) -> bool {
    const TAINT: &str = "node.kubernetes.io/memory-pressure";
    pod.pod_spec().tolerations.iter().flatten().any(|t| {
        let effect = t.effect.as_deref().unwrap_or("");
        let key = t.key.as_deref().unwrap_or("");
        let exists = t.operator.as_deref() == Some("Exists");
        // The taint has no value.
        let value = exists || t.value.as_deref().unwrap_or("").is_empty();
        matches!(effect, "" | "NoSchedule") && (key == TAINT || (key.is_empty() && exists)) && value
    })
}

/// See the module.
pub struct Manager {
    kubelet: Arc<Kubelet>,
    images: Arc<ImageGc>,
    node: ObjectReference,
    thresholds: Vec<Threshold>,
    transition: Duration,
    max_grace: i64,
    pressure: Pressure,
}

impl Manager {
    /// As the configuration has it. Events are about `node`.
    pub fn new(
        kubelet: Arc<Kubelet>,
        images: Arc<ImageGc>,
        node: ObjectReference,
        pressure: Pressure,
    ) -> Result<Manager, String> {
        let config = &kubelet.config.kubelet;
        Ok(Manager {
            thresholds: threshold::parse(config)?,
            transition: config.duration("evictionPressureTransitionPeriod")?,
            max_grace: config.int("evictionMaxPodGracePeriod"),
            kubelet,
            images,
            node,
            pressure,
        })
    }

    /// Works until `stop`.
    pub async fn run(self, stats: Arc<Stats>, stop: Stop) {
        let mut samples = stats.watch();
        let mut state = State::default();
        let mut rest_until: Option<Instant> = None;
        loop {
            tokio::select! { _ = stop.wait() => return, r = samples.changed() => if r.is_err() { return } }
            let sample = samples.borrow_and_update().clone();
            let now = Instant::now();
            let acting = state.step(&self.thresholds, &observe(&sample), self.transition, now);
            self.pressure.set(state.conditions());
            if self.end_exceeding(&sample) || rest_until.is_some_and(|t| now < t) {
                continue;
            }
            rest_until = None;
            if let Some(threshold) = acting.first()
                && self.reclaim(threshold, &sample, &stats).await
            {
                rest_until = Some(Instant::now() + SETTLE);
            }
        }
    }

    /// Ends the pods that take more of the disk than they may; whether there were any.
    fn end_exceeding(&self, s: &Sample) -> bool {
        let mut any = false;
        for p in &s.pods {
            if let Some((signal, message)) = limits::exceeded(p) {
                any |= self.evict(p, signal, &message, 0);
            }
        }
        any
    }

    /// Makes room: what nobody needs first, then a pod. Whether one was ended.
    async fn reclaim(&self, t: &Threshold, s: &Sample, stats: &Arc<Stats>) -> bool {
        tracing::warn!("eviction manager: attempting to reclaim {}", t.signal.resource());
        let text = format!("Attempting to reclaim {}", t.signal.resource());
        self.kubelet.recorder.warning(&self.node, "EvictionThresholdMet", text);
        let images_help = match t.signal {
            Signal::ImageFs | Signal::ImageFsInodes => true,
            Signal::NodeFs | Signal::NodeFsInodes => s.one_fs,
            _ => false,
        };
        if images_help {
            if let Err(e) = self.images.remove_unused().await {
                tracing::warn!("eviction manager: {e}");
            }
            let after = observe(&*stats.sample().await);
            // Enough is enough.
            let mut fresh = State::default();
            if fresh.step(std::slice::from_ref(t), &after, Duration::ZERO, Instant::now()).is_empty()
                && t.hard
            {
                return false;
            }
        }
        let mut pods: Vec<&PodUsage> = s.pods.iter().collect();
        ranking::rank(t.signal, &mut pods);
        let grace = if t.hard { 0 } else { self.max_grace };
        pods.into_iter().any(|p| self.evict(p, t.signal.name(), &ranking::message(t.signal, p), grace))
    }

    /// Ends a pod; `false` where that may not be or it is ending already.
    fn evict(&self, p: &PodUsage, signal: &str, message: &str, grace: i64) -> bool {
        let pod = &p.pod;
        let over = self.kubelet.status.current(pod).phase.is_some_and(|p| p == "Failed" || p == "Succeeded");
        if pod.is_critical() || pod.deleting() || over {
            return false;
        }
        let status = PodStatus {
            phase: Some("Failed".into()),
            reason: Some("Evicted".into()),
            message: Some(message.to_string()),
            ..Default::default()
        };
        if !self.kubelet.evict(pod.uid(), status, Some(grace)) {
            return false;
        }
        self.kubelet.recorder.warning(&pod.reference(), "Evicted", message);
        self.kubelet.metrics.evicted(signal);
        tracing::warn!(pod = pod.described(), "evicted: {message}");
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn who_is_taken_on_under_pressure() {
        let pressure = Pressure::default();
        let pod = |spec: Value| -> Pod {
            serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap()
        };
        let plain = pod(json!({"containers": [{"name": "c"}]}));
        let asks = pod(json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}}}]}));
        let critical = pod(json!({"priority": 2_000_000_000, "containers": [{"name": "c"}]}));
        let tolerant = pod(json!({"containers": [{"name": "c"}],
            "tolerations": [{"key": "node.kubernetes.io/memory-pressure", "operator": "Exists", "effect": "NoSchedule"}]}));
        assert!(pressure.admit(&plain).is_ok());
        pressure.set(&[Condition::Memory].into());
        let e = pressure.admit(&plain).unwrap_err();
        assert_eq!(
            (e.reason.as_str(), e.message.as_str()),
            ("Evicted", "The node had condition: [MemoryPressure]. ")
        );
        assert!([&asks, &critical, &tolerant].iter().all(|p| pressure.admit(p).is_ok()));
        pressure.set(&[Condition::Memory, Condition::Disk].into());
        assert!([&asks, &tolerant].iter().all(|p| pressure.admit(p).is_err()));
        assert!(pressure.admit(&critical).is_ok());
    }
}
