//! The kubelet's own metrics, under Kubernetes' names.

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Operation {
    operation_type: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Handler {
    runtime_handler: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct State {
    container_state: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Signal {
    eviction_signal: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Missing {
    preemption_signal: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Node {
    node: String,
}

/// The probes' counter.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ProbeLabels {
    /// `Liveness`, `Readiness` or `Startup`.
    pub probe_type: String,
    /// `successful`, `failed` or `unknown`.
    pub result: String,
    /// Container.
    pub container: String,
    /// Pod.
    pub pod: String,
    /// Namespace.
    pub namespace: String,
    /// Pod's uid.
    pub pod_uid: String,
}

fn default_buckets() -> Histogram {
    Histogram::new([0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0])
}

fn long_buckets() -> Histogram {
    Histogram::new(exponential_buckets(0.005, 2.5, 14))
}

struct Inner {
    operations: Family<Operation, Counter>,
    operation_errors: Family<Operation, Counter>,
    operation_seconds: Family<Operation, Histogram, fn() -> Histogram>,
    sandbox_seconds: Family<Handler, Histogram, fn() -> Histogram>,
    sandbox_errors: Family<Handler, Counter>,
    relist_seconds: Histogram,
    relist_interval: Histogram,
    last_seen: Gauge,
    discarded: Counter,
    running_pods: Gauge,
    running_containers: Family<State, Gauge>,
    containers_per_pod: Histogram,
    pod_start: Histogram,
    worker_start: Histogram,
    worker_seconds: Family<Operation, Histogram, fn() -> Histogram>,
    evictions: Family<Signal, Counter>,
    preemptions: Family<Missing, Counter>,
    cgroup_seconds: Family<Operation, Histogram, fn() -> Histogram>,
    probes: Family<ProbeLabels, Counter>,
}

/// See the module. Cheap to clone; all clones count together.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

impl Metrics {
    /// Metrics registered in `into`, for the node of that name.
    pub fn new(into: &pilothouse_component_base::metrics::Metrics, node: &str) -> Metrics {
        let m = Inner {
            operations: Family::default(),
            operation_errors: Family::default(),
            operation_seconds: Family::new_with_constructor(long_buckets),
            sandbox_seconds: Family::new_with_constructor(default_buckets),
            sandbox_errors: Family::default(),
            relist_seconds: default_buckets(),
            relist_interval: default_buckets(),
            last_seen: Gauge::default(),
            discarded: Counter::default(),
            running_pods: Gauge::default(),
            running_containers: Family::default(),
            containers_per_pod: Histogram::new(exponential_buckets(1.0, 2.0, 5)),
            pod_start: default_buckets(),
            worker_start: default_buckets(),
            worker_seconds: Family::new_with_constructor(default_buckets),
            evictions: Family::default(),
            preemptions: Family::default(),
            cgroup_seconds: Family::new_with_constructor(default_buckets),
            probes: Family::default(),
        };
        into.register(|r| {
            let k = |name: &str| format!("kubelet_{name}");
            r.register(
                k("runtime_operations_total"),
                "Cumulative number of runtime operations by operation type",
                m.operations.clone(),
            );
            r.register(
                k("runtime_operations_errors_total"),
                "Cumulative number of runtime operation errors by operation type",
                m.operation_errors.clone(),
            );
            r.register(
                k("runtime_operations_duration_seconds"),
                "Duration in seconds of runtime operations, by operation type",
                m.operation_seconds.clone(),
            );
            r.register(
                k("run_podsandbox_duration_seconds"),
                "Duration in seconds of the run_podsandbox operations, by runtime handler",
                m.sandbox_seconds.clone(),
            );
            r.register(
                k("run_podsandbox_errors_total"),
                "Cumulative number of the run_podsandbox operation errors by runtime handler",
                m.sandbox_errors.clone(),
            );
            r.register(
                k("pleg_relist_duration_seconds"),
                "Duration in seconds for relisting pods",
                m.relist_seconds.clone(),
            );
            r.register(
                k("pleg_relist_interval_seconds"),
                "Interval in seconds between relisting",
                m.relist_interval.clone(),
            );
            r.register(
                k("pleg_last_seen_seconds"),
                "Timestamp in seconds when relisting was last seen active",
                m.last_seen.clone(),
            );
            r.register(k("pleg_discard_events"), "The number of discard events", m.discarded.clone());
            r.register(
                k("running_pods"),
                "Number of pods that have a running pod sandbox",
                m.running_pods.clone(),
            );
            r.register(
                k("running_containers"),
                "Number of containers currently running",
                m.running_containers.clone(),
            );
            r.register(
                k("containers_per_pod_count"),
                "The number of containers per pod",
                m.containers_per_pod.clone(),
            );
            r.register(
                k("pod_start_duration_seconds"),
                "Duration in seconds for a single pod to go from pending to running",
                m.pod_start.clone(),
            );
            r.register(
                k("pod_worker_start_duration_seconds"),
                "Duration in seconds from seeing a pod to starting a worker",
                m.worker_start.clone(),
            );
            r.register(
                k("pod_worker_duration_seconds"),
                "Duration in seconds to sync a single pod, by operation type",
                m.worker_seconds.clone(),
            );
            r.register(
                k("evictions"),
                "Cumulative number of pod evictions by eviction signal",
                m.evictions.clone(),
            );
            r.register(
                k("preemptions"),
                "Cumulative number of pods that had to go for a critical one",
                m.preemptions.clone(),
            );
            r.register(
                k("cgroup_manager_duration_seconds"),
                "Duration in seconds for cgroup manager operations, by method",
                m.cgroup_seconds.clone(),
            );
            r.register(
                "prober_probe_total",
                "Cumulative number of a liveness, readiness or startup probe for a container by result",
                m.probes.clone(),
            );
            let name: Family<Node, Gauge> = Family::default();
            name.get_or_create(&Node { node: node.to_string() }).set(1);
            r.register(k("node_name"), "The node's name. The count is always 1", name);
        });
        Metrics(Arc::new(m))
    }

    /// Metrics that nobody reads.
    pub fn unread() -> Metrics {
        Metrics::new(&Default::default(), "")
    }

    /// One call of the runtime.
    pub fn runtime_operation(&self, operation: &str, took: Duration, failed: bool) {
        let labels = Operation { operation_type: operation.to_string() };
        self.0.operations.get_or_create(&labels).inc();
        self.0.operation_seconds.get_or_create(&labels).observe(took.as_secs_f64());
        if failed {
            self.0.operation_errors.get_or_create(&labels).inc();
        }
    }

    /// One start of a sandbox.
    pub fn run_sandbox(&self, handler: &str, took: Duration, failed: bool) {
        let labels = Handler { runtime_handler: handler.to_string() };
        self.0.sandbox_seconds.get_or_create(&labels).observe(took.as_secs_f64());
        if failed {
            self.0.sandbox_errors.get_or_create(&labels).inc();
        }
    }

    /// One look at what runs: how long it took, how long ago the last one was, how many sandboxes run, and how many
    /// containers there are by state.
    pub fn relisted(
        &self,
        took: Duration,
        interval: Option<Duration>,
        pods: i64,
        containers: &[(&str, i64)],
    ) {
        self.0.relist_seconds.observe(took.as_secs_f64());
        if let Some(i) = interval {
            self.0.relist_interval.observe(i.as_secs_f64());
        }
        self.0.last_seen.set(jiff::Timestamp::now().as_second());
        self.0.running_pods.set(pods);
        for (state, n) in containers {
            self.0.running_containers.get_or_create(&State { container_state: state.to_string() }).set(*n);
        }
    }

    /// A pod was taken on, with so many containers, so long after it was first seen.
    pub fn pod_started(&self, containers: usize, waited: Duration) {
        self.0.containers_per_pod.observe(containers as f64);
        self.0.worker_start.observe(waited.as_secs_f64());
    }

    /// A pod went from pending to running.
    pub fn pod_running(&self, took: Duration) {
        self.0.pod_start.observe(took.as_secs_f64());
    }

    /// One sync of a pod: `create`, `update` or `sync`.
    pub fn pod_synced(&self, operation: &str, took: Duration) {
        let labels = Operation { operation_type: operation.to_string() };
        self.0.worker_seconds.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// One eviction.
    pub fn evicted(&self, signal: &str) {
        self.0.evictions.get_or_create(&Signal { eviction_signal: signal.to_string() }).inc();
    }

    /// One pod that had to go for a critical one, because of what was missing.
    pub fn preempted(&self, missing: &str) {
        self.0.preemptions.get_or_create(&Missing { preemption_signal: missing.to_string() }).inc();
    }

    /// One operation on cgroups: `create`, `update` or `destroy`.
    pub fn cgroup(&self, operation: &str, took: Duration) {
        let labels = Operation { operation_type: operation.to_string() };
        self.0.cgroup_seconds.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// One probe.
    pub fn probed(&self, labels: &ProbeLabels) {
        self.0.probes.get_or_create(labels).inc();
    }
}
