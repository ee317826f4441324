//! Metrics in Prometheus' text format, under Kubernetes' names.

use std::sync::Arc;

use parking_lot::Mutex;
use prometheus_client::registry::Registry;

/// A component's metrics. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Metrics(Arc<Mutex<Registry>>);

impl Metrics {
    /// Runs `f` on the registry, to register metrics.
    pub fn register<T>(&self, f: impl FnOnce(&mut Registry) -> T) -> T {
        f(&mut self.0.lock())
    }

    /// The text form (version 0.0.4 as Prometheus scrapes it), with the `process_*` metrics of this process.
    pub fn encode(&self) -> String {
        let mut out = String::new();
        let _ = prometheus_client::encoding::text::encode(&mut out, &self.0.lock());
        // OpenMetrics' end marker is not part of the 0.0.4 text format.
        let mut out = out.strip_suffix("# EOF\n").map(String::from).unwrap_or(out);
        out.push_str(&process());
        out
    }
}

fn process() -> String {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> =
        stat.rsplit_once(") ").map(|(_, r)| r.split_whitespace().collect()).unwrap_or_default();
    let n = |i: usize| fields.get(i).and_then(|s| s.parse::<f64>().ok()).unwrap_or(0.0);
    // Fields 14, 15, 22, 24 of proc(5), counted from the third; the clock runs at 100 Hz on every Linux we support.
    let (cpu, rss, start) = ((n(11) + n(12)) / 100.0, n(21) * 4096.0, n(19) / 100.0);
    let boot = std::fs::read_to_string("/proc/stat")
        .ok()
        .and_then(|s| {
            s.lines().find_map(|l| l.strip_prefix("btime ").and_then(|b| b.trim().parse::<f64>().ok()))
        })
        .unwrap_or(0.0);
    let fds = std::fs::read_dir("/proc/self/fd").map(|d| d.count()).unwrap_or(0);
    format!(
        "# HELP process_cpu_seconds_total Total user and system CPU time spent in seconds.\n\
         # TYPE process_cpu_seconds_total counter\nprocess_cpu_seconds_total {cpu}\n\
         # HELP process_resident_memory_bytes Resident memory size in bytes.\n\
         # TYPE process_resident_memory_bytes gauge\nprocess_resident_memory_bytes {rss}\n\
         # HELP process_open_fds Number of open file descriptors.\n\
         # TYPE process_open_fds gauge\nprocess_open_fds {fds}\n\
         # HELP process_start_time_seconds Start time of the process since unix epoch in seconds.\n\
         # TYPE process_start_time_seconds gauge\nprocess_start_time_seconds {}\n",
        boot + start
    )
}
