//! The API server's own metrics, under Kubernetes' names.

use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use pilothouse_apimachinery::version::Release;
use pilothouse_component_base::metrics::Metrics;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

use crate::limits::{Class, Limits};
use crate::request::{Operation, RequestInfo};

/// What a request is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Target {
    verb: String,
    group: String,
    version: String,
    resource: String,
    subresource: String,
    scope: &'static str,
    component: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
#[allow(non_snake_case, reason = "labels' names")]
struct RequestLabels {
    #[prometheus(flatten)]
    target: Target,
    dry_run: &'static str,
    /// Of v1.20 alone.
    contentType: &'static str,
    code: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DurationLabels {
    #[prometheus(flatten)]
    target: Target,
    dry_run: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DeprecatedLabels {
    group: String,
    version: String,
    resource: String,
    subresource: String,
    removed_release: String,
}

/// What was done in a step of admission.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct StepLabels {
    /// `admit` or `validate`; of a webhook that checks, `validating`.
    pub r#type: &'static str,
    /// Of the request.
    pub operation: Operation,
    /// Whether the request was refused.
    pub rejected: bool,
}

impl EncodeLabelValue for Operation {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> std::fmt::Result {
        EncodeLabelValue::encode(&self.name(), encoder)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NamedLabels {
    name: String,
    #[prometheus(flatten)]
    step: StepLabels,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RejectionLabels {
    name: String,
    r#type: &'static str,
    operation: Operation,
    error_type: &'static str,
    rejection_code: u16,
}

/// The buckets of steps of admission, plug-ins and webhooks.
const STEP_BUCKETS: [f64; 5] = [0.005, 0.025, 0.1, 0.5, 2.5];

/// `apiserver_request_duration_seconds`' buckets in v1.20.
const BUCKETS_1_20: [f64; 37] = [
    0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.25, 1.5, 1.75, 2.0,
    2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 15.0, 20.0, 25.0, 30.0, 40.0, 50.0, 60.0,
];

/// … and today.
const BUCKETS: [f64; 23] = [
    0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0,
    20.0, 30.0, 45.0, 60.0,
];

/// From a thousand bytes to a thousand millions.
const SIZE_BUCKETS: [f64; 7] = [1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9];

/// Media types that metrics tell apart.
const MEDIA: &[&str] = &[
    "application/apply-patch+yaml",
    "application/json",
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/vnd.kubernetes.protobuf",
    "application/vnd.kubernetes.protobuf;stream=watch",
    "application/yaml",
    "text/plain",
    "text/plain;charset=utf-8",
];

fn media(content_type: &str) -> &'static str {
    let bare = content_type.split(';').next().unwrap_or("").trim();
    let known = |wanted: &str| MEDIA.iter().find(|m| **m == wanted).copied();
    known(content_type).or_else(|| known(bare)).unwrap_or("other")
}

type Histograms<L> = Family<L, Histogram, fn() -> Histogram>;

/// Counts admission.
#[derive(Debug, Clone)]
pub struct AdmissionMetrics {
    steps: Histograms<StepLabels>,
    plugins: Histograms<NamedLabels>,
    webhooks: Histograms<NamedLabels>,
    rejections: Family<RejectionLabels, Counter>,
}

impl Default for AdmissionMetrics {
    fn default() -> Self {
        fn histogram() -> Histogram {
            Histogram::new(STEP_BUCKETS)
        }
        AdmissionMetrics {
            steps: Family::new_with_constructor(histogram),
            plugins: Family::new_with_constructor(histogram),
            webhooks: Family::new_with_constructor(histogram),
            rejections: Family::default(),
        }
    }
}

impl AdmissionMetrics {
    fn register(&self, registry: &Metrics) {
        registry.register(|r| {
            r.register(
                "apiserver_admission_step_admission_duration_seconds",
                "Admission sub-step latency histogram in seconds, broken out for each operation and API resource and step type (validate or admit)",
                self.steps.clone(),
            );
            r.register(
                "apiserver_admission_controller_admission_duration_seconds",
                "Admission controller latency histogram in seconds, identified by name and broken out for each operation and API resource and type (validate or admit)",
                self.plugins.clone(),
            );
            r.register(
                "apiserver_admission_webhook_admission_duration_seconds",
                "Admission webhook latency histogram in seconds, identified by name and broken out for each operation and API resource and type (validate or admit)",
                self.webhooks.clone(),
            );
            r.register(
                "apiserver_admission_webhook_rejection_count",
                "Admission webhook rejection count, identified by name and broken out for each admission type (validating or admit) and operation. Additional labels specify an error type (calling_webhook_error or apiserver_internal_error if an error occurred; no_error otherwise) and optionally a non-zero rejection code if the webhook rejects the request with an HTTP status code (honored by the apiserver when the code is greater or equal to 400). Codes greater than 600 are truncated to 600, to keep the metrics cardinality bounded",
                self.rejections.clone(),
            );
        });
    }

    /// Counts all plug-ins' changes or checks of one request.
    pub fn step(&self, labels: StepLabels, took: Duration) {
        self.steps.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// Where a plug-in's latencies are counted.
    pub fn plugin(&self, name: &str, labels: StepLabels) -> Histogram {
        self.plugins.get_or_create(&NamedLabels { name: name.to_string(), step: labels }).clone()
    }

    /// Counts a call of a webhook.
    pub fn webhook(&self, name: &str, labels: StepLabels, took: Duration) {
        let labels = NamedLabels { name: name.to_string(), step: labels };
        self.webhooks.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// Counts a request that a webhook refused (with `code`), or that was refused as the call failed (`error_type`).
    pub fn rejected(&self, name: &str, step: StepLabels, error_type: &'static str, code: u16) {
        let StepLabels { r#type, operation, .. } = step;
        let rejection_code = code.min(600);
        let labels =
            RejectionLabels { name: name.to_string(), r#type, operation, error_type, rejection_code };
        self.rejections.get_or_create(&labels).inc();
    }
}

/// Counts requests.
#[derive(Debug, Clone)]
pub struct ServerMetrics {
    /// Where they are registered.
    pub registry: Metrics,
    /// Admission's.
    pub admission: AdmissionMetrics,
    release: Release,
    requests: Family<RequestLabels, Counter>,
    durations: Histograms<DurationLabels>,
    sizes: Histograms<Target>,
    long_running: Family<Target, Gauge>,
    deprecated: Family<DeprecatedLabels, Gauge>,
}

/// A request that has been answered.
pub struct Finished<'a> {
    /// What was asked for.
    pub info: &'a RequestInfo,
    /// By which method.
    pub method: &'a str,
    /// Whether nothing was to be stored.
    pub dry_run: bool,
    /// The answer's status.
    pub code: u16,
    /// Its `Content-Type`.
    pub content_type: &'a str,
    /// Its size in bytes, where it is known.
    pub size: Option<u64>,
    /// Since the request came.
    pub took: Duration,
    /// Whether it is a watch or another that goes on.
    pub long: bool,
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

fn target(info: &RequestInfo, method: &str) -> Target {
    Target {
        verb: metric_verb(info, method),
        group: info.group.clone(),
        version: info.version.clone(),
        resource: info.resource.clone(),
        subresource: info.subresource.clone(),
        scope: scope(info),
        component: "apiserver",
    }
}

impl ServerMetrics {
    /// Registers the metrics.
    pub fn new(release: Release) -> ServerMetrics {
        let registry = Metrics::default();
        let old = release == Release::V1_20;
        let durations: fn() -> Histogram =
            if old { || Histogram::new(BUCKETS_1_20) } else { || Histogram::new(BUCKETS) };
        let m = ServerMetrics {
            registry: registry.clone(),
            admission: AdmissionMetrics::default(),
            release,
            requests: Family::default(),
            durations: Family::new_with_constructor(durations),
            sizes: Family::new_with_constructor(|| Histogram::new(SIZE_BUCKETS)),
            long_running: Family::default(),
            deprecated: Family::default(),
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
                "apiserver_response_sizes",
                "Response size distribution in bytes for each group, version, verb, resource, subresource, scope and component",
                m.sizes.clone(),
            );
            r.register(
                "apiserver_requested_deprecated_apis",
                "Gauge of deprecated APIs that have been requested, broken out by API group, version, resource, subresource, and removed_release",
                m.deprecated.clone(),
            );
            let long = if old { "apiserver_longrunning_gauge" } else { "apiserver_longrunning_requests" };
            r.register(long, "Gauge of all active long-running apiserver requests", m.long_running.clone());
        });
        m.admission.register(&registry);
        m
    }

    /// Counts a finished request.
    pub fn finished(&self, request: &Finished<'_>) {
        let target = target(request.info, request.method);
        let dry_run = if request.dry_run { "All" } else { "" };
        if let Some(size) = request.size.filter(|_| matches!(target.verb.as_str(), "GET" | "LIST")) {
            self.sizes.get_or_create(&target).observe(size as f64);
        }
        let labels = DurationLabels { target, dry_run };
        if !request.long {
            self.durations.get_or_create(&labels).observe(request.took.as_secs_f64());
        }
        let target = labels.target;
        let content_type = if self.release == Release::V1_20 { media(request.content_type) } else { "" };
        let labels = RequestLabels { target, dry_run, contentType: content_type, code: request.code };
        self.requests.get_or_create(&labels).inc();
    }

    /// Notes a request for a version that is deprecated, and will be gone in `removed` where that is known.
    pub fn deprecated(&self, info: &RequestInfo, removed: Option<u32>) {
        let labels = DeprecatedLabels {
            group: info.group.clone(),
            version: info.version.clone(),
            resource: info.resource.clone(),
            subresource: info.subresource.clone(),
            removed_release: removed.map(|minor| format!("1.{minor}")).unwrap_or_default(),
        };
        self.deprecated.get_or_create(&labels).set(1);
    }

    /// Counts a long-running request until the result is dropped.
    pub fn long_running(&self, info: &RequestInfo, method: &str) -> LongRunning {
        let gauge = self.long_running.get_or_create(&target(info, method)).clone();
        gauge.inc();
        LongRunning(gauge)
    }

    /// The whole text of `/metrics`. `resources` has what there is of each kind.
    pub fn encode(&self, limits: &Limits, resources: &[Count]) -> String {
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
            if self.release == Release::V1_20 { "etcd_object_counts" } else { "apiserver_storage_objects" };
        let _ = writeln!(
            out,
            "# HELP {counts} Number of stored objects at the time of last check split by kind."
        );
        let _ = writeln!(out, "# TYPE {counts} gauge");
        for r in resources {
            let dot = if r.group.is_empty() { "" } else { "." };
            let _ = writeln!(out, "{counts}{{resource=\"{}{dot}{}\"}} {}", r.plural, r.group, r.objects);
        }
        let watchers = "apiserver_registered_watchers";
        let _ =
            writeln!(out, "# HELP {watchers} Number of currently registered watchers for a given resources");
        let _ = writeln!(out, "# TYPE {watchers} gauge");
        for r in resources.iter().filter(|r| r.watchers > 0) {
            let Count { group, version, kind, .. } = r;
            let _ = writeln!(
                out,
                "{watchers}{{group=\"{group}\",kind=\"{kind}\",version=\"{version}\"}} {}",
                r.watchers
            );
        }
        out
    }
}

/// What there is of a kind.
#[derive(Debug, Clone, Default)]
pub struct Count {
    /// API group.
    pub group: String,
    /// Version that is stored.
    pub version: String,
    /// Kind.
    pub kind: String,
    /// Plural.
    pub plural: String,
    /// How many objects.
    pub objects: usize,
    /// How many watches.
    pub watchers: usize,
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
        let request = Finished {
            info: &info,
            method: "GET",
            dry_run: false,
            code: 200,
            content_type: "application/json; charset=utf-8",
            size: Some(1500),
            took: Duration::from_millis(3),
            long: false,
        };
        m.finished(&request);
        m.deprecated(&info, Some(22));
        let watching = m.long_running(&RequestInfo { verb: "watch".into(), ..info.clone() }, "GET");
        let limits = Limits::new(1, 1);
        let pods = Count {
            version: "v1".into(),
            kind: "Pod".into(),
            plural: "pods".into(),
            objects: 5,
            watchers: 1,
            ..Count::default()
        };
        let text = m.encode(&limits, &[pods]);
        let of = "verb=\"LIST\",group=\"\",version=\"v1\",resource=\"pods\",subresource=\"\",scope=\"namespace\",component=\"apiserver\"";
        for line in [
            format!("apiserver_request_total{{{of},dry_run=\"\",contentType=\"application/json\",code=\"200\"}} 1"),
            format!("apiserver_request_duration_seconds_bucket{{le=\"0.05\",{of},dry_run=\"\"}} 1"),
            format!("apiserver_response_sizes_bucket{{le=\"1000\",{of}}} 0"),
            format!("apiserver_response_sizes_bucket{{le=\"10000\",{of}}} 1"),
            "apiserver_requested_deprecated_apis{group=\"\",version=\"v1\",resource=\"pods\",subresource=\"\",removed_release=\"1.22\"} 1".into(),
            "etcd_object_counts{resource=\"pods\"} 5".into(),
            "apiserver_registered_watchers{group=\"\",kind=\"Pod\",version=\"v1\"} 1".into(),
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
        assert!(text.contains("apiserver_longrunning_gauge{verb=\"WATCH\""));
        drop(watching);
        assert!(m.encode(&limits, &[]).contains("component=\"apiserver\"} 0"));
    }

    #[test]
    fn counts_admission() {
        let m = ServerMetrics::new(Release::V1_20);
        let step = |r#type, rejected| StepLabels { r#type, operation: Operation::Create, rejected };
        m.admission.plugin("LimitRanger", step("admit", false)).observe(0.01);
        m.admission.step(step("admit", false), Duration::from_millis(1));
        m.admission.webhook("w.example.com", step("validating", true), Duration::from_millis(30));
        m.admission.rejected("w.example.com", step("validating", true), "no_error", 700);
        let text = m.encode(&Limits::new(1, 1), &[]);
        for line in [
            "apiserver_admission_step_admission_duration_seconds_bucket{le=\"0.005\",type=\"admit\",operation=\"CREATE\",rejected=\"false\"} 1",
            "apiserver_admission_controller_admission_duration_seconds_bucket{le=\"0.025\",name=\"LimitRanger\",type=\"admit\",operation=\"CREATE\",rejected=\"false\"} 1",
            "apiserver_admission_webhook_admission_duration_seconds_bucket{le=\"0.1\",name=\"w.example.com\",type=\"validating\",operation=\"CREATE\",rejected=\"true\"} 1",
            "apiserver_admission_webhook_rejection_count{name=\"w.example.com\",type=\"validating\",operation=\"CREATE\",error_type=\"no_error\",rejection_code=\"600\"} 1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn media_types_are_few() {
        assert_eq!(media("application/json; charset=utf-8"), "application/json");
        assert_eq!(media("application/vnd.kubernetes.protobuf;stream=watch"), MEDIA[6]);
        assert_eq!(media("text/html"), "other");
        assert_eq!(media(""), "other");
    }
}
