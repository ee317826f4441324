//! What the queues look like: metrics and the tables below `/debug/api_priority_and_fairness/`.

use std::fmt::Write;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use super::Fairness;
use super::level::{BUCKETS, Durations, REFUSALS};

/// A table as Go's tabwriter aligns it, a comma behind every cell.
fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width =
        |c: usize| rows.iter().filter_map(|r| r.get(c)).map(|s| s.len() + 2).max().unwrap_or(0).max(8);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for row in rows {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{:<width$}", format!("{cell},"))).collect();
        out.push_str(cells.concat().trim_end());
        out.push('\n');
    }
    out
}

fn row(cells: &[&dyn std::fmt::Display]) -> Vec<String> {
    cells.iter().map(ToString::to_string).collect()
}

const NONE: &str = "<none>";

impl Fairness {
    /// `dump_priority_levels`.
    pub fn dump_levels(&self) -> String {
        let mut rows = vec![row(&[
            &"PriorityLevelName",
            &"ActiveQueues",
            &"IsIdle",
            &"IsQuiescing",
            &"WaitingRequests",
            &"ExecutingRequests",
        ])];
        for (name, level) in &*self.levels.lock() {
            rows.push(match &level.queues {
                None => row(&[name, &NONE, &NONE, &NONE, &NONE, &NONE]),
                Some(queues) => {
                    let q = queues.lock();
                    let active = q.queues().iter().filter(|q| !q.waiting.is_empty()).count();
                    let idle = q.executing() + q.waiting() == 0;
                    row(&[name, &active, &idle, &false, &q.waiting(), &q.executing()])
                }
            });
        }
        table(&rows)
    }

    /// `dump_queues`.
    pub fn dump_queues(&self) -> String {
        let mut rows = vec![row(&[
            &"PriorityLevelName",
            &"Index",
            &"PendingRequests",
            &"ExecutingRequests",
            &"VirtualStart",
        ])];
        for (name, level) in &*self.levels.lock() {
            match &level.queues {
                None => rows.push(row(&[name, &NONE, &NONE, &NONE, &NONE])),
                Some(queues) => {
                    for (i, q) in queues.lock().queues().iter().enumerate() {
                        rows.push(row(&[
                            name,
                            &i,
                            &q.waiting.len(),
                            &q.executing,
                            &format!("{:.4}", q.virtual_start),
                        ]));
                    }
                }
            }
        }
        table(&rows)
    }

    /// `dump_requests`.
    pub fn dump_requests(&self) -> String {
        let mut rows = vec![row(&[
            &"PriorityLevelName",
            &"FlowSchemaName",
            &"QueueIndex",
            &"RequestIndexInQueue",
            &"FlowDistingsher",
            &"ArriveTime",
        ])];
        for (name, level) in &*self.levels.lock() {
            let Some(queues) = &level.queues else {
                rows.push(row(&[name, &NONE, &NONE, &NONE, &NONE, &NONE]));
                continue;
            };
            for (i, q) in queues.lock().queues().iter().enumerate() {
                for (n, w) in q.waiting.iter().enumerate() {
                    rows.push(row(&[name, &w.schema, &i, &n, &w.distinguisher, &stamp(w.since)]));
                }
            }
        }
        table(&rows)
    }

    /// `apiserver_flowcontrol_*`, as text of `/metrics`.
    pub fn metrics(&self) -> String {
        let mut out = String::new();
        let counts: Vec<_> = self.counts.lock().iter().map(|(k, c)| (k.clone(), c.clone())).collect();
        let labels = |(level, schema): &(String, String)| {
            format!("priority_level=\"{level}\",flow_schema=\"{schema}\"")
        };
        let mut family = |name: &str, kind: &str, help: &str, lines: Vec<String>| {
            // Writing to a String cannot fail.
            let _ = write!(
                out,
                "# HELP apiserver_flowcontrol_{name} {help}\n# TYPE apiserver_flowcontrol_{name} {kind}\n"
            );
            for line in lines {
                let _ = writeln!(out, "apiserver_flowcontrol_{name}{line}");
            }
        };
        let load = |n: &std::sync::atomic::AtomicU64| n.load(Ordering::Relaxed);
        let each = |value: &dyn Fn(&super::Counts) -> u64| -> Vec<String> {
            counts.iter().map(|(k, c)| format!("{{{}}} {}", labels(k), value(c))).collect()
        };
        family(
            "dispatched_requests_total",
            "counter",
            "Number of requests released by API Priority and Fairness system for service",
            each(&|c| load(&c.dispatched)),
        );
        let refused = counts.iter().flat_map(|(k, c)| {
            let of = |(i, (_, reason)): (usize, &(_, &str))| match load(&c.refused[i]) {
                0 => None,
                n => Some(format!("{{{},reason=\"{reason}\"}} {n}", labels(k))),
            };
            REFUSALS.iter().enumerate().filter_map(of).collect::<Vec<_>>()
        });
        family(
            "rejected_requests_total",
            "counter",
            "Number of requests rejected by API Priority and Fairness system",
            refused.collect(),
        );
        family(
            "current_inqueue_requests",
            "gauge",
            "Number of requests currently pending in queues of the API Priority and Fairness system",
            each(&|c| load(&c.waiting)),
        );
        family(
            "current_executing_requests",
            "gauge",
            "Number of requests in regular execution phase in the API Priority and Fairness system",
            each(&|c| load(&c.executing)),
        );
        let limits = self
            .rights
            .lock()
            .iter()
            .map(|r| {
                let limit = r.level.queues.as_ref().map_or(0, |q| q.lock().limit());
                format!("{{priority_level=\"{}\"}} {limit}", r.level.name)
            })
            .collect();
        family(
            "request_concurrency_limit",
            "gauge",
            "Shared concurrency limit in the API Priority and Fairness system",
            limits,
        );
        if self.lending {
            let nominal = self
                .rights
                .lock()
                .iter()
                .map(|r| format!("{{priority_level=\"{}\"}} {}", r.level.name, r.nominal))
                .collect();
            family(
                "nominal_limit_seats",
                "gauge",
                "Nominal number of execution seats configured for each priority level",
                nominal,
            );
            let now = self
                .rights
                .lock()
                .iter()
                .map(|r| {
                    let limit = r.level.queues.as_ref().map_or(0, |q| q.lock().limit());
                    format!("{{priority_level=\"{}\"}} {limit}", r.level.name)
                })
                .collect();
            family(
                "current_limit_seats",
                "gauge",
                "current derived number of execution seats available to each priority level",
                now,
            );
        }
        let waited = counts.iter().flat_map(|(k, c)| {
            let mut lines = histogram(&format!("{},execute=\"true\"", labels(k)), &c.waited);
            lines.extend(histogram(&format!("{},execute=\"false\"", labels(k)), &c.waited_in_vain));
            lines
        });
        let waited: Vec<String> = waited.collect();
        let executed: Vec<String> =
            counts.iter().flat_map(|(k, c)| histogram(&labels(k), &c.executed)).collect();
        family(
            "request_wait_duration_seconds",
            "histogram",
            "Length of time a request spent waiting in its queue",
            waited,
        );
        family(
            "request_execution_seconds",
            "histogram",
            "Duration of request execution in the API Priority and Fairness system",
            executed,
        );
        out
    }
}

fn stamp(time: SystemTime) -> String {
    jiff::Timestamp::try_from(time).map(|t| t.to_string()).unwrap_or_default()
}

/// Lines of a histogram behind its name; none where nothing has been seen.
fn histogram(labels: &str, durations: &Durations) -> Vec<String> {
    let (counts, sum) = durations.read();
    let total: u64 = counts.iter().sum();
    if total == 0 {
        return Vec::new();
    }
    let mut lines = Vec::new();
    let mut below = 0;
    for (bound, n) in BUCKETS.iter().zip(&counts) {
        below += n;
        lines.push(format!("_bucket{{{labels},le=\"{bound}\"}} {below}"));
    }
    lines.push(format!("_bucket{{{labels},le=\"+Inf\"}} {total}"));
    lines.push(format!("_sum{{{labels}}} {sum}"));
    lines.push(format!("_count{{{labels}}} {total}"));
    lines
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::request::{RequestContext, UserInfo};

    #[tokio::test(start_paused = true)]
    async fn queues_can_be_looked_at() {
        let f = Fairness::new(1, Duration::from_secs(1), false);
        let joe = UserInfo {
            name: "joe".into(),
            groups: vec!["system:authenticated".into()],
            ..UserInfo::default()
        };
        let info = RequestContext::for_test("GET", "/api/v1/nodes").info;
        let _place = f.enter(&joe, &info).await;
        assert!(f.enter(&joe, &info).await.place.is_err());
        let levels = f.dump_levels();
        assert!(
            levels.starts_with(
                "PriorityLevelName, ActiveQueues, IsIdle, IsQuiescing, WaitingRequests, ExecutingRequests,\n"
            ),
            "{levels}"
        );
        assert!(
            levels.contains("catch-all,         0,            false,  false,       0,               1,\n"),
            "{levels}"
        );
        assert!(
            levels
                .contains("exempt,            <none>,       <none>, <none>,      <none>,          <none>,\n"),
            "{levels}"
        );
        assert!(f.dump_queues().contains("exempt,"));
        assert!(f.dump_requests().contains("FlowDistingsher"));
        let metrics = f.metrics();
        for line in [
            "apiserver_flowcontrol_dispatched_requests_total{priority_level=\"catch-all\",flow_schema=\"catch-all\"} 1\n",
            "apiserver_flowcontrol_rejected_requests_total{priority_level=\"catch-all\",flow_schema=\"catch-all\",reason=\"concurrency-limit\"} 1\n",
            "apiserver_flowcontrol_current_executing_requests{priority_level=\"catch-all\",flow_schema=\"catch-all\"} 1\n",
            "apiserver_flowcontrol_request_concurrency_limit{priority_level=\"catch-all\"} 1\n",
            "apiserver_flowcontrol_request_wait_duration_seconds_bucket{priority_level=\"catch-all\",flow_schema=\"catch-all\",execute=\"true\",le=\"0\"} 1\n",
        ] {
            assert!(metrics.contains(line), "{line}{metrics}");
        }
    }
}
