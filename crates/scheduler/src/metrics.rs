//! The scheduler's metrics, under Kubernetes' names.

use std::time::Duration;

use pilothouse_component_base::metrics::Metrics as Registry;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};

/// Labels of an attempt.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Attempt {
    profile: String,
    result: &'static str,
}

/// The label of a queue.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct QueueName {
    queue: &'static str,
}

/// See the module. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Metrics {
    attempts: Family<Attempt, Counter>,
    end_to_end: Family<Attempt, Histogram>,
    algorithm: Histogram,
    binding: Histogram,
    pod_duration: Histogram,
    pod_attempts: Histogram,
    preemption_attempts: Counter,
    preemption_victims: Histogram,
    pending: Family<QueueName, Gauge>,
}

fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 15))
}

impl Metrics {
    /// Registers the metrics.
    pub fn new(registry: &Registry) -> Metrics {
        let m = Metrics {
            attempts: Family::default(),
            end_to_end: Family::new_with_constructor(seconds as fn() -> Histogram),
            algorithm: seconds(),
            binding: seconds(),
            pod_duration: Histogram::new(exponential_buckets(0.01, 2.0, 20)),
            pod_attempts: Histogram::new(exponential_buckets(1.0, 2.0, 5)),
            preemption_attempts: Counter::default(),
            preemption_victims: Histogram::new(exponential_buckets(1.0, 2.0, 7)),
            pending: Family::default(),
        };
        registry.register(|r| {
            r.register(
                "scheduler_schedule_attempts_total",
                "Number of attempts to schedule pods, by the result",
                m.attempts.clone(),
            );
            r.register(
                "scheduler_e2e_scheduling_duration_seconds",
                "E2e scheduling latency in seconds (scheduling algorithm + binding)",
                m.end_to_end.clone(),
            );
            r.register(
                "scheduler_scheduling_algorithm_duration_seconds",
                "Scheduling algorithm latency in seconds",
                m.algorithm.clone(),
            );
            r.register("scheduler_binding_duration_seconds", "Binding latency in seconds", m.binding.clone());
            r.register(
                "scheduler_pod_scheduling_duration_seconds",
                "E2e latency for a pod being scheduled which may include multiple scheduling attempts",
                m.pod_duration.clone(),
            );
            r.register(
                "scheduler_pod_scheduling_attempts",
                "Number of attempts to successfully schedule a pod",
                m.pod_attempts.clone(),
            );
            r.register(
                "scheduler_preemption_attempts_total",
                "Total preemption attempts in the cluster till now",
                m.preemption_attempts.clone(),
            );
            r.register(
                "scheduler_preemption_victims",
                "Number of selected preemption victims",
                m.preemption_victims.clone(),
            );
            r.register(
                "scheduler_pending_pods",
                "Number of pending pods, by the queue type",
                m.pending.clone(),
            );
        });
        m
    }

    /// Counts an attempt: `scheduled`, `unschedulable` or `error`.
    pub fn attempt(&self, profile: &str, result: &'static str, took: Duration) {
        let labels = Attempt { profile: profile.into(), result };
        self.attempts.get_or_create(&labels).inc();
        self.end_to_end.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// Notes how long a decision took.
    pub fn decided(&self, took: Duration) {
        self.algorithm.observe(took.as_secs_f64());
    }

    /// Notes a pod that is on its node: how long the binding took, how long it took since the pod came, and how many
    /// tries.
    pub fn bound(&self, binding: Duration, total: Duration, attempts: u32) {
        self.binding.observe(binding.as_secs_f64());
        self.pod_duration.observe(total.as_secs_f64());
        self.pod_attempts.observe(f64::from(attempts));
    }

    /// Notes that `victims` pods are made to go.
    pub fn preempted(&self, victims: usize) {
        self.preemption_attempts.inc();
        self.preemption_victims.observe(victims as f64);
    }

    /// Notes how many pods wait.
    pub fn pending(&self, active: usize, backoff: usize, unschedulable: usize) {
        for (queue, n) in [("active", active), ("backoff", backoff), ("unschedulable", unschedulable)] {
            self.pending.get_or_create(&QueueName { queue }).set(n as i64);
        }
    }
}
