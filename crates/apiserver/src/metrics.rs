//! The API server's own metrics, under Kubernetes' names.

use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use pilothouse_apimachinery::version::Release;
use pilothouse_component_base::metrics::Metrics;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

use crate::limits::{Class, Limits};
use crate::request::{Operation, RequestInfo};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    verb: String,
    dry_run: String,
    group: String,
    version: String,
    resource: String,
    subresource: String,
    scope: &'static str,
    component: &'static str,
    code: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DurationLabels {
    verb: String,
    dry_run: String,
    group: String,
    version: String,
    resource: String,
    subresource: String,
    scope: &'static str,
    component: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LongLabels {
    verb: String,
    group: String,
    version: String,
    resource: String,
    subresource: String,
    scope: &'static str,
    component: &'static str,
}

/// The buckets of steps of admission.
const STEP_BUCKETS: [f64; 5] = [0.005, 0.025, 0.1, 0.5, 2.5];

/// `apiserver_request_duration_seconds`' buckets in v1.20, thinned out.
const BUCKETS: [f64; 16] =
    [0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.5, 2.0, 4.0, 8.0, 20.0, 60.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StepLabels {
    operation: &'static str,
    rejected: &'static str,
    r#type: &'static str,
}

/// Counts requests.
#[derive(Debug, Clone)]
pub struct ServerMetrics {
    /// Where they are registered.
    pub registry: Metrics,
    requests: Family<RequestLabels, Counter>,
    durations: Family<DurationLabels, Histogram, fn() -> Histogram>,
    long_running: Family<LongLabels, Gauge>,
    steps: Family<StepLabels, Histogram, fn() -> Histogram>,
    long_name: &'static str,
}

/// Counts a long-running request until dropped.
#[derive(Debug)]
pub struct LongRunning(Gauge);

impl Drop for LongRunning {
    fn drop(&mut self) {
        self.0.dec();
    }
}

fn scope(info: &RequestInfo) -> &'static str {
    match info {
        _ if !info.is_resource => "",
        _ if !info.name.is_empty() => "resource",
        _ if !info.namespace.is_empty() => "namespace",
        _ => "cluster",
    }
}

/// The verb as metrics show it.
fn metric_verb(info: &RequestInfo, method: &str) -> String {
    match info.verb.as_str() {
        "list" => "LIST".into(),
        "watch" => "WATCH".into(),
        "patch" if method == "PATCH" => "PATCH".into(),
        "get" | "head" => "GET".into(),
        "create" => "POST".into(),
        "update" => "PUT".into(),
        "delete" => "DELETE".into(),
        "deletecollection" => "DELETECOLLECTION".into(),
        _ => method.to_string(),
    }
}

impl ServerMetrics {
    /// Registers the metrics.
    pub fn new(release: Release) -> ServerMetrics {
        let registry = Metrics::default();
        let long_name = if release == Release::V1_20 {
            "apiserver_longrunning_gauge"
        } else {
            "apiserver_longrunning_requests"
        };
        let m = ServerMetrics {
            registry: registry.clone(),
            requests: Family::default(),
            durations: Family::new_with_constructor(|| Histogram::new(BUCKETS)),
            long_running: Family::default(),
            steps: Family::new_with_constructor(|| Histogram::new(STEP_BUCKETS)),
            long_name,
        };
        registry.register(|r| {
            r.register(
                "apiserver_request_total",
                "Counter of apiserver requests broken out for each verb, dry run value, group, version, resource, scope, component, and HTTP response code",
                m.requests.clone(),
            );
            r.register(
                "apiserver_request_duration_seconds",
                "Response latency distribution in seconds for each verb, dry run value, group, version, resource, subresource, scope and component",
                m.durations.clone(),
            );
            r.register(
                "apiserver_admission_step_admission_duration_seconds",
                "Admission sub-step latency histogram in seconds, broken out for each operation and API resource and step type (validate or admit)",
                m.steps.clone(),
            );
            r.register(m.long_name, "Gauge of all active long-running apiserver requests", m.long_running.clone());
        });
        m
    }

    /// Counts a finished request.
    pub fn finished(
        &self,
        info: &RequestInfo,
        method: &str,
        code: u16,
        dry_run: bool,
        took: Duration,
        long: bool,
    ) {
        let verb = metric_verb(info, method);
        let dry_run = if dry_run { "All".to_string() } else { String::new() };
        let labels = DurationLabels {
            verb,
            dry_run,
            group: info.group.clone(),
            version: info.version.clone(),
            resource: info.resource.clone(),
            subresource: info.subresource.clone(),
            scope: scope(info),
            component: "apiserver",
        };
        if !long {
            self.durations.get_or_create(&labels).observe(took.as_secs_f64());
        }
        let DurationLabels { verb, dry_run, group, version, resource, subresource, scope, component } =
            labels;
        let labels =
            RequestLabels { verb, dry_run, group, version, resource, subresource, scope, component, code };
        self.requests.get_or_create(&labels).inc();
    }

    /// Counts the plug-ins' changes (`admit`) or checks (`validate`) of one request.
    pub fn admitted(&self, step: &'static str, operation: Operation, rejected: bool, took: Duration) {
        let operation = match operation {
            Operation::Create => "CREATE",
            Operation::Update => "UPDATE",
            Operation::Delete => "DELETE",
            Operation::Connect => "CONNECT",
        };
        let rejected = if rejected { "true" } else { "false" };
        self.steps
            .get_or_create(&StepLabels { operation, rejected, r#type: step })
            .observe(took.as_secs_f64());
    }

    /// Counts a long-running request until the result is dropped.
    pub fn long_running(&self, info: &RequestInfo, method: &str) -> LongRunning {
        let labels = LongLabels {
            verb: metric_verb(info, method),
            group: info.group.clone(),
            version: info.version.clone(),
            resource: info.resource.clone(),
            subresource: info.subresource.clone(),
            scope: scope(info),
            component: "apiserver",
        };
        let gauge = self.long_running.get_or_create(&labels).clone();
        gauge.inc();
        LongRunning(gauge)
    }

    /// The whole text of `/metrics`. `objects` has resources as metrics name them, with the number of objects and of
    /// watchers.
    pub fn encode(&self, release: Release, limits: &Limits, objects: &[(String, usize, usize)]) -> String {
        let mut out = self.registry.encode();
        let inflight = "apiserver_current_inflight_requests";
        // Writing to a String cannot fail.
        let _ = writeln!(
            out,
            "# HELP {inflight} Maximal number of currently used inflight request limit of this apiserver per request kind in last second."
        );
        let _ = writeln!(out, "# TYPE {inflight} gauge");
        for (kind, class) in [("mutating", Class::Mutating), ("readOnly", Class::ReadOnly)] {
            let _ = writeln!(out, "{inflight}{{request_kind=\"{kind}\"}} {}", limits.current(class));
        }
        let counts =
            if release == Release::V1_20 { "etcd_object_counts" } else { "apiserver_storage_objects" };
        let _ = writeln!(
            out,
            "# HELP {counts} Number of stored objects at the time of last check split by kind."
        );
        let _ = writeln!(out, "# TYPE {counts} gauge");
        for (resource, n, _) in objects {
            let _ = writeln!(out, "{counts}{{resource=\"{resource}\"}} {n}");
        }
        let watchers = "apiserver_registered_watchers";
        let _ =
            writeln!(out, "# HELP {watchers} Number of currently registered watchers for a given resources");
        let _ = writeln!(out, "# TYPE {watchers} gauge");
        for (resource, _, n) in objects.iter().filter(|(_, _, n)| *n > 0) {
            let _ = writeln!(out, "{watchers}{{resource=\"{resource}\"}} {n}");
        }
        out
    }
}

/// The metrics, shared.
pub type SharedMetrics = Arc<ServerMetrics>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_under_kubernetes_names() {
        let m = ServerMetrics::new(Release::V1_20);
        let info = RequestInfo {
            is_resource: true,
            verb: "list".into(),
            version: "v1".into(),
            resource: "pods".into(),
            namespace: "n".into(),
            ..RequestInfo::default()
        };
        m.finished(&info, "GET", 200, false, Duration::from_millis(3), false);
        let watching = m.long_running(&RequestInfo { verb: "watch".into(), ..info.clone() }, "GET");
        let limits = Limits::new(1, 1);
        let text = m.encode(Release::V1_20, &limits, &[("pods".into(), 5, 1)]);
        assert!(text.contains("apiserver_request_total{verb=\"LIST\",dry_run=\"\",group=\"\",version=\"v1\",resource=\"pods\",subresource=\"\",scope=\"namespace\",component=\"apiserver\",code=\"200\"} 1"));
        assert!(text.contains("apiserver_longrunning_gauge{verb=\"WATCH\""));
        assert!(text.contains("etcd_object_counts{resource=\"pods\"} 5"));
        assert!(text.contains("apiserver_request_duration_seconds_bucket{le=\"0.005\""));
        drop(watching);
        assert!(m.encode(Release::V1_20, &limits, &[]).contains("component=\"apiserver\"} 0"));
    }
}
