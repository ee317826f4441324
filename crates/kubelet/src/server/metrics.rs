//! `/metrics` and `/metrics/probes`, and the counters of the server itself.

use std::time::Duration;

use pilothouse_component_base::metrics::Metrics;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

/// What one request is counted under.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Labels {
    /// `GET`, …
    pub method: String,
    /// The first part of the path; two parts of those of metrics.
    pub path: String,
    /// `readwrite` or `readonly`.
    pub server_type: String,
    /// Whether it may take as long as the client likes.
    pub long_running: String,
}

fn buckets() -> Histogram {
    Histogram::new([0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0])
}

/// The server's counters. Cheap to clone.
#[derive(Clone)]
pub struct Requests {
    total: Family<Labels, Counter>,
    seconds: Family<Labels, Histogram, fn() -> Histogram>,
    inflight: Family<Labels, Gauge>,
}

impl Requests {
    /// Counters that are registered in `into`.
    pub fn new(into: &Metrics) -> Requests {
        let r = Requests {
            total: Family::default(),
            seconds: Family::new_with_constructor(buckets),
            inflight: Family::default(),
        };
        into.register(|m| {
            m.register(
                "kubelet_http_requests_total",
                "Number of the http requests received since the server started",
                r.total.clone(),
            );
            m.register(
                "kubelet_http_requests_duration_seconds",
                "Duration in seconds to serve http requests",
                r.seconds.clone(),
            );
            m.register(
                "kubelet_http_inflight_requests",
                "Number of the inflight http requests",
                r.inflight.clone(),
            );
        });
        r
    }

    /// A request has come.
    pub fn begin(&self, labels: &Labels) {
        self.inflight.get_or_create(labels).inc();
    }

    /// It is answered.
    pub fn end(&self, labels: &Labels, took: Duration) {
        self.inflight.get_or_create(labels).dec();
        self.total.get_or_create(labels).inc();
        self.seconds.get_or_create(labels).observe(took.as_secs_f64());
    }
}

/// The labels of a request.
pub fn labels(method: &str, path: &str, read_only: bool) -> Labels {
    let mut parts = path.trim_start_matches('/').split('/');
    let first = parts.next().unwrap_or("");
    let long = matches!(first, "exec" | "attach" | "portForward" | "containerLogs" | "debug");
    let shown = match (first, parts.next()) {
        ("metrics", Some(second)) => format!("metrics/{second}"),
        // What anybody may ask for without being known must not fill the memory.
        (
            "healthz" | "pods" | "stats" | "metrics" | "configz" | "run" | "exec" | "attach" | "portForward"
            | "containerLogs" | "runningpods" | "logs" | "debug",
            _,
        ) => first.to_string(),
        _ => "other".to_string(),
    };
    let shown = match shown.as_str() {
        "metrics/cadvisor" | "metrics/probes" | "metrics/resource" => shown,
        s if s.starts_with("metrics/") => "other".into(),
        _ => shown,
    };
    let method = match method {
        m @ ("GET" | "POST" | "PUT" | "PATCH" | "DELETE" | "HEAD" | "OPTIONS" | "CONNECT" | "TRACE") => m,
        _ => "other",
    };
    Labels {
        method: method.into(),
        path: shown,
        server_type: if read_only { "readonly" } else { "readwrite" }.into(),
        long_running: long.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_have_prometheus_names() {
        let base = Metrics::default();
        let m = crate::metrics::Metrics::new(&base, "node01");
        m.evicted("memory.available");
        m.probed(&crate::metrics::ProbeLabels {
            probe_type: "Liveness".into(),
            result: "failed".into(),
            container: "c".into(),
            pod: "p".into(),
            namespace: "n".into(),
            pod_uid: "u".into(),
        });
        m.runtime_operation("version", Duration::from_millis(1), false);
        let all = base.encode_only(|n| !n.starts_with("prober_"));
        assert!(all.contains("# TYPE kubelet_runtime_operations_total counter\n"), "{all}");
        assert!(
            all.contains("# TYPE kubelet_evictions counter\nkubelet_evictions{eviction_signal="),
            "{all}"
        );
        assert!(all.contains("# TYPE process_open_fds gauge\n"));
        assert!(!all.contains("prober"));
        let probes = base.encode_only(|n| n.starts_with("prober_"));
        assert!(probes.starts_with("# HELP prober_probe_total "), "{probes}");
        assert!(probes.contains("\n# TYPE prober_probe_total counter\nprober_probe_total{"), "{probes}");
    }

    #[test]
    fn requests_are_counted_by_a_few_paths() {
        assert_eq!(labels("GET", "/metrics/cadvisor", false).path, "metrics/cadvisor");
        assert_eq!(labels("GET", "/metrics/x", false).path, "other");
        assert_eq!(labels("GET", "/exec/n/p/c", false).long_running, "true");
        assert_eq!(
            labels("BREW", "/tea", true),
            Labels {
                method: "other".into(),
                path: "other".into(),
                server_type: "readonly".into(),
                long_running: "false".into(),
            }
        );
    }
}
