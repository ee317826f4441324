//! The server's own figures: CPU, memory and store requests, from `/metrics` or from `/proc`.

use crate::client::{Call, Client};
use crate::process;

/// What a server has used so far.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Usage {
    /// CPU seconds, user and system.
    pub cpu: Option<f64>,
    /// Resident bytes.
    pub resident: Option<f64>,
    /// Reads that it sent to its store.
    pub store_reads: Option<f64>,
}

impl Usage {
    /// Of process `pid` if it is known, else from the server's `/metrics`; figures that can't be had are None.
    pub async fn of(client: &Client, pid: Option<u32>) -> Usage {
        let text =
            client.any(Call { accept: "text/plain", ..Call::get("/metrics") }).await.unwrap_or_default();
        let mut usage = parse(&String::from_utf8_lossy(&text));
        if let Some(own) = pid.and_then(|pid| process::usage(pid).ok()) {
            usage.cpu = Some(own.cpu);
            usage.resident = Some(own.resident as f64);
        }
        usage
    }

    /// CPU seconds since `before`.
    pub fn cpu_since(&self, before: &Usage) -> Option<f64> {
        Some(self.cpu? - before.cpu?)
    }

    /// Reads of the store since `before`.
    pub fn reads_since(&self, before: &Usage) -> Option<f64> {
        Some(self.store_reads? - before.store_reads?)
    }

    /// Resident memory in MiB.
    pub fn mebibytes(&self) -> Option<f64> {
        Some(self.resident? / f64::from(1 << 20))
    }
}

/// Reads Prometheus' text format.
fn parse(text: &str) -> Usage {
    let mut usage = Usage::default();
    for line in text.lines().filter(|l| !l.starts_with('#')) {
        let Some((series, value)) = line.rsplit_once(' ') else { continue };
        let Ok(value) = value.parse::<f64>() else { continue };
        match series.split_once('{') {
            None if series == "process_cpu_seconds_total" => usage.cpu = Some(value),
            None if series == "process_resident_memory_bytes" => usage.resident = Some(value),
            Some(("etcd_request_duration_seconds_count", labels)) => {
                let reads = usage.store_reads.get_or_insert(0.0);
                if labels.contains("operation=\"get\"") || labels.contains("operation=\"list\"") {
                    *reads += value;
                }
            }
            _ => {}
        }
    }
    usage
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_the_text_format() {
        let text = "\
# HELP process_cpu_seconds_total Total
# TYPE process_cpu_seconds_total counter
process_cpu_seconds_total 12.34
process_resident_memory_bytes 3.51182848e+08
etcd_request_duration_seconds_count{operation=\"get\",type=\"*core.Pod\"} 7
etcd_request_duration_seconds_count{operation=\"list\",type=\"*core.Pod\"} 3
etcd_request_duration_seconds_count{operation=\"create\",type=\"*core.Pod\"} 100
other{a=\"b c\"} 1
";
        let usage = parse(text);
        assert_eq!(usage, Usage { cpu: Some(12.34), resident: Some(351182848.0), store_reads: Some(10.0) });
        let before = Usage { cpu: Some(12.0), ..Usage::default() };
        assert!((usage.cpu_since(&before).unwrap() - 0.34).abs() < 1e-9);
        assert_eq!(usage.reads_since(&before), None);
    }

    #[test]
    fn what_is_not_there_is_none() {
        assert_eq!(parse("Forbidden"), Usage::default());
    }
}
