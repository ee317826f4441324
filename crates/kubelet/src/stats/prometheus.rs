//! `/metrics/cadvisor` and `/metrics/resource`: what is used, under the names that dashboards know.

use std::fmt::{Display, Write};
use std::path::Path;

use super::collector::{ContainerUsage, Group, PodUsage, Sample};
use super::machine;
use crate::pod::PodExt;

/// Prometheus' text format. A family without samples is not shown.
#[derive(Default)]
struct Text {
    out: String,
    head: String,
}

impl Text {
    fn family(&mut self, name: &str, type_: &str, help: &str) {
        self.head = format!("# HELP {name} {help}\n# TYPE {name} {type_}\n");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        self.out.push_str(&std::mem::take(&mut self.head));
        self.out.push_str(name);
        let mut mark = '{';
        for (k, v) in labels {
            let v = v.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.out, "{mark}{k}=\"{v}\"");
            mark = ',';
        }
        if !labels.is_empty() {
            self.out.push('}');
        }
        let _ = writeln!(self.out, " {value}");
    }
}

fn seconds(nanos: u64) -> f64 {
    nanos as f64 / 1e9
}

/// `/metrics/resource`: what the metrics server reads.
pub fn resource(s: &Sample) -> String {
    let mut t = Text::default();
    let of = |p: &PodUsage| [p.pod.namespace().to_string(), p.pod.name().to_string()];
    let containers = || s.pods.iter().flat_map(|p| p.containers.iter().map(move |c| (of(p), c)));
    let name = "container_cpu_usage_seconds_total";
    t.family(name, "counter", "[ALPHA] Cumulative cpu time consumed by the container in core-seconds");
    for ([ns, pod], c) in containers() {
        t.sample(
            name,
            &[("container", &c.name), ("namespace", &ns), ("pod", &pod)],
            at(seconds(c.group.usage.cpu.total), &c.group),
        );
    }
    let name = "container_memory_working_set_bytes";
    t.family(name, "gauge", "[ALPHA] Current working set of the container in bytes");
    for ([ns, pod], c) in containers() {
        t.sample(
            name,
            &[("container", &c.name), ("namespace", &ns), ("pod", &pod)],
            at(c.group.usage.memory.working_set, &c.group),
        );
    }
    let name = "node_cpu_usage_seconds_total";
    t.family(name, "counter", "[ALPHA] Cumulative cpu time consumed by the node in core-seconds");
    t.sample(name, &[], at(seconds(s.node.usage.cpu.total), &s.node));
    let name = "node_memory_working_set_bytes";
    t.family(name, "gauge", "[ALPHA] Current working set of the node in bytes");
    t.sample(name, &[], at(s.node.usage.memory.working_set, &s.node));
    let name = "pod_cpu_usage_seconds_total";
    t.family(name, "counter", "[ALPHA] Cumulative cpu time consumed by the pod in core-seconds");
    for p in &s.pods {
        let [ns, pod] = of(p);
        t.sample(name, &[("namespace", &ns), ("pod", &pod)], at(seconds(p.group.usage.cpu.total), &p.group));
    }
    let name = "pod_memory_working_set_bytes";
    t.family(name, "gauge", "[ALPHA] Current working set of the pod in bytes");
    for p in &s.pods {
        let [ns, pod] = of(p);
        t.sample(name, &[("namespace", &ns), ("pod", &pod)], at(p.group.usage.memory.working_set, &p.group));
    }
    t.family(
        "scrape_error",
        "gauge",
        "[ALPHA] 1 if there was an error while getting container metrics, 0 otherwise",
    );
    t.sample("scrape_error", &[], 0);
    t.out
}

/// How much the logs of containers take: a part of `/metrics`.
pub fn logs(s: &Sample) -> String {
    let mut t = Text::default();
    let name = "kubelet_container_log_filesystem_used_bytes";
    t.family(name, "gauge", "[ALPHA] Bytes used by the container's logs on the filesystem.");
    for (p, c) in s.pods.iter().flat_map(|p| p.containers.iter().map(move |c| (&p.pod, c))) {
        let labels =
            [("uid", p.uid()), ("namespace", p.namespace()), ("pod", p.name()), ("container", &c.name)];
        t.sample(name, &labels, c.logs.bytes);
    }
    t.out
}

/// A value with the time at which it was so, in milliseconds.
fn at(value: impl Display, g: &Group) -> String {
    format!("{value} {}", g.at / 1_000_000)
}

/// One cgroup with who it belongs to.
struct Row<'a> {
    group: &'a Group,
    container: &'a str,
    image: &'a str,
    name: &'a str,
    namespace: &'a str,
    pod: &'a str,
    usage: Option<&'a PodUsage>,
    processes: Option<Processes>,
}

struct Processes {
    files: u64,
    sockets: u64,
    open_files: Option<i64>,
}

fn rows(s: &Sample) -> Vec<Row<'_>> {
    let plain = |g| Row {
        group: g,
        container: "",
        image: "",
        name: "",
        namespace: "",
        pod: "",
        usage: None,
        processes: None,
    };
    let mut rows: Vec<Row<'_>> = std::iter::once(&s.node).chain(&s.others).map(plain).collect();
    for p in &s.pods {
        let of = |c: &'_ ContainerUsage| {
            let pids = &c.group.usage.processes;
            let (files, sockets) = machine::descriptors(pids);
            Processes { files, sockets, open_files: pids.first().and_then(|p| machine::open_files_limit(*p)) }
        };
        rows.push(Row { namespace: p.pod.namespace(), pod: p.pod.name(), ..plain(&p.group) });
        for (c, usage) in p.containers.iter().map(|c| (c, None)).chain([(&p.sandbox, Some(p))]) {
            rows.push(Row {
                container: &c.name,
                image: &c.image,
                name: &c.id,
                namespace: p.pod.namespace(),
                pod: p.pod.name(),
                usage,
                processes: Some(of(c)),
                ..plain(&c.group)
            });
        }
    }
    rows.retain(|r| !r.group.path.is_empty());
    rows
}

impl Row<'_> {
    /// The labels that every sample has, with more.
    fn labels<'b>(&'b self, more: &[(&'b str, &'b str)]) -> Vec<(&'b str, &'b str)> {
        let mut l = vec![
            ("container", self.container),
            ("id", self.group.path.as_str()),
            ("image", self.image),
            ("name", self.name),
            ("namespace", self.namespace),
            ("pod", self.pod),
        ];
        l.extend_from_slice(more);
        l.sort_unstable();
        l
    }
}

/// What is read off one cgroup; the value `None` where it has none.
type Of = fn(&Row<'_>) -> Option<f64>;

fn num(n: u64) -> Option<f64> {
    Some(n as f64)
}

/// The families with one value a cgroup.
const SIMPLE: &[(&str, &str, &str, Of)] = &[
    // Without its load reader, cAdvisor gives 0 here as well.
    (
        "container_cpu_load_average_10s",
        "gauge",
        "Value of container cpu load average over the last 10 seconds.",
        |_| Some(0.0),
    ),
    (
        "container_cpu_system_seconds_total",
        "counter",
        "Cumulative system cpu time consumed in seconds.",
        |r| Some(seconds(r.group.usage.cpu.system)),
    ),
    ("container_cpu_user_seconds_total", "counter", "Cumulative user cpu time consumed in seconds.", |r| {
        Some(seconds(r.group.usage.cpu.user))
    }),
    ("container_file_descriptors", "gauge", "Number of open file descriptors for the container.", |r| {
        num(r.processes.as_ref()?.files)
    }),
    ("container_last_seen", "gauge", "Last time a container was seen by the exporter", |r| {
        Some((r.group.at / 1_000_000_000) as f64)
    }),
    ("container_memory_cache", "gauge", "Number of bytes of page cache memory.", |r| {
        num(r.group.usage.memory.cache)
    }),
    ("container_memory_failcnt", "counter", "Number of memory usage hits limits", |r| {
        num(r.group.usage.memory.failures)
    }),
    ("container_memory_mapped_file", "gauge", "Size of memory mapped files in bytes.", |r| {
        num(r.group.usage.memory.mapped)
    }),
    ("container_memory_max_usage_bytes", "gauge", "Maximum memory usage recorded in bytes", |r| {
        num(r.group.usage.memory.max_usage)
    }),
    ("container_memory_rss", "gauge", "Size of RSS in bytes.", |r| num(r.group.usage.memory.rss)),
    ("container_memory_swap", "gauge", "Container swap usage in bytes.", |r| num(r.group.usage.memory.swap)),
    (
        "container_memory_usage_bytes",
        "gauge",
        "Current memory usage in bytes, including all memory regardless of when it was accessed",
        |r| num(r.group.usage.memory.usage),
    ),
    ("container_memory_working_set_bytes", "gauge", "Current working set in bytes.", |r| {
        num(r.group.usage.memory.working_set)
    }),
    ("container_processes", "gauge", "Number of processes running inside the container.", |r| {
        num(r.group.usage.processes.len() as u64)
    }),
    ("container_sockets", "gauge", "Number of open sockets for the container.", |r| {
        num(r.processes.as_ref()?.sockets)
    }),
    ("container_spec_cpu_period", "gauge", "CPU period of the container.", |r| num(r.group.usage.period)),
    ("container_spec_cpu_quota", "gauge", "CPU quota of the container.", |r| num(r.group.usage.quota?)),
    ("container_spec_cpu_shares", "gauge", "CPU share of the container.", |r| num(r.group.usage.shares)),
    ("container_spec_memory_limit_bytes", "gauge", "Memory limit for the container.", |r| {
        num(r.group.usage.memory.limit.unwrap_or(0))
    }),
    (
        "container_spec_memory_reservation_limit_bytes",
        "gauge",
        "Memory reservation limit for the container.",
        |r| num(r.group.usage.memory.soft_limit.unwrap_or(0)),
    ),
    ("container_spec_memory_swap_limit_bytes", "gauge", "Memory swap limit for the container.", |r| {
        num(r.group.usage.memory.swap_limit.unwrap_or(0))
    }),
    (
        "container_start_time_seconds",
        "gauge",
        "Start time of the container since unix epoch in seconds.",
        |r| Some(r.group.usage.created as f64),
    ),
    ("container_threads", "gauge", "Number of threads running inside the container", |r| {
        num(r.group.usage.threads)
    }),
    (
        "container_threads_max",
        "gauge",
        "Maximum number of threads allowed inside the container, infinity if value is zero",
        |r| num(r.group.usage.threads_max.unwrap_or(0)),
    ),
];

/// Position in an interface's counters, with the family's name and help.
const NETWORK: &[(usize, &str, &str)] = &[
    (0, "bytes_total", "Cumulative count of bytes"),
    (2, "errors_total", "Cumulative count of errors encountered while"),
    (3, "packets_dropped_total", "Cumulative count of packets dropped while"),
    (1, "packets_total", "Cumulative count of packets"),
];

/// Position in a disk's counters, divisor, family and help.
const DISK: &[(usize, f64, &str, &str, &str)] = &[
    (8, 1.0, "container_fs_io_current", "gauge", "Number of I/Os currently in progress"),
    (
        9,
        1000.0,
        "container_fs_io_time_seconds_total",
        "counter",
        "Cumulative count of seconds spent doing I/Os",
    ),
    (
        10,
        1000.0,
        "container_fs_io_time_weighted_seconds_total",
        "counter",
        "Cumulative weighted I/O time in seconds",
    ),
    (3, 1000.0, "container_fs_read_seconds_total", "counter", "Cumulative count of seconds spent reading"),
    (1, 1.0, "container_fs_reads_merged_total", "counter", "Cumulative count of reads merged"),
    (0, 1.0, "container_fs_reads_total", "counter", "Cumulative count of reads completed"),
    (2, 1.0, "container_fs_sector_reads_total", "counter", "Cumulative count of sector reads completed"),
    (6, 1.0, "container_fs_sector_writes_total", "counter", "Cumulative count of sector writes completed"),
    (7, 1000.0, "container_fs_write_seconds_total", "counter", "Cumulative count of seconds spent writing"),
    (5, 1.0, "container_fs_writes_merged_total", "counter", "Cumulative count of writes merged"),
    (4, 1.0, "container_fs_writes_total", "counter", "Cumulative count of writes completed"),
];

/// `/metrics/cadvisor`. `root` is the kubelet's folder, whose disk is the node's.
pub fn cadvisor(s: &Sample, root: &Path) -> String {
    let mut t = Text::default();
    let rows = rows(s);
    let m = &s.machine;
    t.family("cadvisor_version_info", "gauge", "A metric with a constant '1' value labeled by kernel version, OS version, docker version, cadvisor version & cadvisor revision.");
    let info = [
        ("cadvisorRevision", ""),
        ("cadvisorVersion", ""),
        ("dockerVersion", ""),
        ("kernelVersion", &m.kernel),
        ("osVersion", &m.os),
    ];
    t.sample("cadvisor_version_info", &info, 1);
    let name = "container_cpu_usage_seconds_total";
    t.family(name, "counter", "Cumulative cpu time consumed in seconds.");
    for r in &rows {
        t.sample(name, &r.labels(&[("cpu", "total")]), at(seconds(r.group.usage.cpu.total), r.group));
    }
    for (name, type_, help, of) in SIMPLE {
        t.family(name, type_, help);
        for (r, v) in rows.iter().filter_map(|r| Some((r, of(r)?))) {
            t.sample(name, &r.labels(&[]), v);
        }
    }
    let name = "container_memory_failures_total";
    t.family(name, "counter", "Cumulative count of memory allocation failures.");
    for r in &rows {
        let m = &r.group.usage.memory;
        for (kind, n) in [("pgfault", m.faults), ("pgmajfault", m.major_faults)] {
            for scope in ["container", "hierarchy"] {
                t.sample(name, &r.labels(&[("failure_type", kind), ("scope", scope)]), n);
            }
        }
    }
    for (at, what, help) in NETWORK {
        for (direction, done) in [("receive", "received"), ("transmit", "transmitted")] {
            let name = format!("container_network_{direction}_{what}");
            t.family(&name, "counter", &format!("{help} {done}"));
            for r in &rows {
                let interfaces = match r.usage {
                    Some(p) => &p.network,
                    None if r.group.path == "/" => &s.network,
                    None => continue,
                };
                for i in interfaces {
                    let n = if direction == "receive" { i.rx[*at] } else { i.tx[*at] };
                    t.sample(&name, &r.labels(&[("interface", &i.name)]), n);
                }
            }
        }
    }
    let name = "container_tasks_state";
    t.family(name, "gauge", "Number of tasks in given state");
    for r in &rows {
        for state in ["iowaiting", "running", "sleeping", "stopped", "uninterruptible"] {
            // As the load above.
            t.sample(name, &r.labels(&[("state", state)]), 0);
        }
    }
    let name = "container_ulimits_soft";
    t.family(
        name,
        "gauge",
        "Soft ulimit values for the container root process. Unlimited if -1, except priority and nice",
    );
    for (r, n) in rows.iter().filter_map(|r| Some((r, r.processes.as_ref()?.open_files?))) {
        t.sample(name, &r.labels(&[("ulimit", "max_open_files")]), n);
    }
    disks(&mut t, s, &rows, root);
    t.family(
        "container_scrape_error",
        "gauge",
        "1 if there was an error while getting container metrics, 0 otherwise",
    );
    t.sample("container_scrape_error", &[], 0);
    let ids =
        [("boot_id", m.boot_id.as_str()), ("machine_id", &m.machine_id), ("system_uuid", &m.system_uuid)];
    for (name, help, n) in [
        ("machine_cpu_cores", "Number of logical CPU cores.", m.cores as u64),
        ("machine_cpu_physical_cores", "Number of physical CPU cores.", m.physical_cores as u64),
        ("machine_cpu_sockets", "Number of CPU sockets.", m.sockets as u64),
        ("machine_memory_bytes", "Amount of memory installed on the machine.", m.memory),
        // No machine that this runs on has such memory as these two are about.
        ("machine_nvm_avg_power_budget_watts", "NVM power budget.", 0),
    ] {
        t.family(name, "gauge", help);
        t.sample(name, &ids, n);
    }
    t.family(
        "machine_nvm_capacity",
        "gauge",
        "NVM capacity value labeled by NVM mode (memory mode or app direct mode).",
    );
    for mode in ["app_direct_mode", "memory_mode"] {
        let labels = [ids[0], ids[1], ("mode", mode), ids[2]];
        t.sample("machine_nvm_capacity", &labels, 0);
    }
    t.family(
        "machine_scrape_error",
        "gauge",
        "1 if there was an error while getting machine metrics, 0 otherwise.",
    );
    t.sample("machine_scrape_error", &[], 0);
    t.out
}

/// The node's disk, and what containers have on it.
fn disks(t: &mut Text, s: &Sample, rows: &[Row<'_>], root: &Path) {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let Some((device, number)) = machine::device_of(&mounts, root) else { return };
    let Some(node) = rows.iter().find(|r| r.group.path == "/") else { return };
    let labels = node.labels(&[("device", &device)]);
    for (name, help, n) in [
        ("container_fs_inodes_free", "Number of available Inodes", s.node_fs.inodes_free),
        ("container_fs_inodes_total", "Number of Inodes", s.node_fs.inodes),
        (
            "container_fs_limit_bytes",
            "Number of bytes that can be consumed by the container on this filesystem.",
            s.node_fs.capacity,
        ),
        (
            "container_fs_usage_bytes",
            "Number of bytes that are consumed by the container on this filesystem.",
            s.node_fs.used,
        ),
    ] {
        t.family(name, "gauge", help);
        t.sample(name, &labels, n);
        if name == "container_fs_usage_bytes" {
            for (c, r) in s
                .pods
                .iter()
                .flat_map(|p| &p.containers)
                .filter_map(|c| Some((c, rows.iter().find(|r| r.name == c.id)?)))
            {
                t.sample(name, &r.labels(&[("device", &device)]), c.rootfs.bytes + c.logs.bytes);
            }
        }
    }
    let counters = machine::disk_counters(&number);
    for (at, divisor, name, type_, help) in DISK {
        t.family(name, type_, help);
        t.sample(name, &labels, counters.get(*at).copied().unwrap_or(0) as f64 / divisor);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::summary::tests::sample;

    #[test]
    fn names_and_labels_of_v1_20() {
        let text = cadvisor(&sample(), Path::new("/"));
        for line in [
            "container_cpu_usage_seconds_total{container=\"c\",cpu=\"total\",id=\"/kubepods/podu/id-c\",image=\"busybox\",name=\"id-c\",namespace=\"n\",pod=\"p\"} 2.5 1000\n",
            "container_memory_working_set_bytes{container=\"\",id=\"/system.slice\",image=\"\",name=\"\",namespace=\"\",pod=\"\"} 1000\n",
            "container_network_receive_errors_total{container=\"POD\",id=\"/kubepods/podu/id-POD\",image=\"busybox\",interface=\"eth0\",name=\"id-POD\",namespace=\"n\",pod=\"p\"} 3\n",
            "# TYPE machine_nvm_capacity gauge\n",
            "# TYPE container_fs_io_time_weighted_seconds_total counter\n",
        ] {
            assert!(text.contains(line), "{line}\nin\n{text}");
        }
        assert!(logs(&sample()).ends_with("{uid=\"u\",namespace=\"n\",pod=\"p\",container=\"c\"} 100\n"));
        let text = resource(&sample());
        assert!(text.contains("pod_cpu_usage_seconds_total{namespace=\"n\",pod=\"p\"} 2.5 1000\n"), "{text}");
        assert!(text.contains("\nscrape_error 0\n"));
    }
}
