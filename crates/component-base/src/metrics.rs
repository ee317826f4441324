//! Metrics in Prometheus' text format, under Kubernetes' names.

use std::borrow::Cow;
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

    /// Everything in Prometheus' text format 0.0.4, with the `process_*` metrics of this process. A metric has the name
    /// that it was registered under.
    pub fn encode(&self) -> String {
        self.encode_only(|_| true)
    }

    /// The same for the families whose names fit.
    pub fn encode_only(&self, wanted: impl Fn(&str) -> bool) -> String {
        let mut open = String::new();
        // Writing to a String cannot fail.
        let _ = prometheus_client::encoding::text::encode(&mut open, &self.0.lock());
        open.push_str(&process());
        plain(&open, wanted)
    }
}

/// The media type of what [`Metrics::encode`] gives.
pub const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// OpenMetrics, which the library writes, as Prometheus' own text format: there a counter's samples are called as the
/// counter is, help texts end as they were given, numbers are Go's, and nothing marks the end.
fn plain(open: &str, wanted: impl Fn(&str) -> bool) -> String {
    let mut out = String::with_capacity(open.len());
    let (mut help, mut counter, mut shown) = ("", None, false);
    for line in open.lines() {
        if let Some(text) = line.strip_prefix("# HELP ") {
            help = text.strip_suffix('.').unwrap_or(text);
        } else if let Some(family) = line.strip_prefix("# TYPE ") {
            let (name, kind) = family.split_once(' ').unwrap_or((family, "untyped"));
            shown = wanted(name);
            counter = (kind == "counter").then_some(name);
            if shown {
                out.push_str(&format!("# HELP {help}\n# TYPE {name} {kind}\n"));
            }
        } else if shown && !line.starts_with('#') {
            let line = match counter.and_then(|name| Some((name, line.strip_prefix(name)?))) {
                Some((name, rest)) => format!("{name}{}", rest.strip_prefix("_total").unwrap_or(rest)),
                None => line.to_string(),
            };
            let line = with_bound(&line);
            out.push_str(line.strip_suffix(".0").unwrap_or(&line));
            out.push('\n');
        }
    }
    out
}

/// A bucket's line with its bound as Go writes numbers: `1`, `0.5`, `1e+06`.
fn with_bound(line: &str) -> Cow<'_, str> {
    let found = line.split_once("{le=\"").and_then(|(name, rest)| Some((name, rest.split_once('"')?)));
    let Some((name, (bound, rest))) = found else { return line.into() };
    let text = match bound.parse::<f64>() {
        Ok(n) if n.is_finite() && n >= 1e6 => {
            let text = format!("{n:e}");
            let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
            format!("{digits}e+{exponent:0>2}")
        }
        _ => bound.strip_suffix(".0").unwrap_or(bound).to_string(),
    };
    format!("{name}{{le=\"{text}\"{rest}").into()
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

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;
    use prometheus_client::metrics::histogram::Histogram;

    use super::*;

    #[test]
    fn bounds_are_gos() {
        for (line, want) in [
            ("a_bucket{le=\"1.0\"} 1", "a_bucket{le=\"1\"} 1"),
            ("a_bucket{le=\"0.25\",x=\"1.0\"} 1", "a_bucket{le=\"0.25\",x=\"1.0\"} 1"),
            ("a_bucket{le=\"100000.0\",x=\"y\"} 1", "a_bucket{le=\"100000\",x=\"y\"} 1"),
            ("a_bucket{le=\"1000000.0\"} 1", "a_bucket{le=\"1e+06\"} 1"),
            ("a_bucket{le=\"+Inf\"} 1", "a_bucket{le=\"+Inf\"} 1"),
            ("a{x=\"le\"} 1", "a{x=\"le\"} 1"),
        ] {
            assert_eq!(with_bound(line), want);
        }
    }

    #[test]
    fn names_are_those_registered() {
        let metrics = Metrics::default();
        let (total, odd) = (Counter::<u64>::default(), Counter::<u64>::default());
        let seconds = Histogram::new([0.5, 1.0]);
        metrics.register(|r| {
            r.register("a_total", "How many", total.clone());
            r.register("kubelet_evictions", "Old name", odd.clone());
            r.register("b_seconds", "How long", seconds.clone());
        });
        total.inc();
        seconds.observe(2.0);
        let text = metrics.encode_only(|name| !name.starts_with("process_"));
        let want = "# HELP a_total How many\n# TYPE a_total counter\na_total 1\n\
            # HELP kubelet_evictions Old name\n# TYPE kubelet_evictions counter\nkubelet_evictions 0\n\
            # HELP b_seconds How long\n# TYPE b_seconds histogram\nb_seconds_sum 2\nb_seconds_count 1\n\
            b_seconds_bucket{le=\"0.5\"} 0\nb_seconds_bucket{le=\"1\"} 0\nb_seconds_bucket{le=\"+Inf\"} 1\n";
        assert_eq!(text, want);
        assert!(metrics.encode().contains("\nprocess_open_fds "));
    }
}
