//! What servers say of themselves: CPU, memory and an etcd's reads, from `/metrics` or from `/proc`.

use anyhow::Result;

use crate::args::Server;
use crate::client::{Call, Client};
use crate::process;
use crate::target::Target;

/// What a server has used so far.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Usage {
    /// CPU seconds, user and system.
    pub cpu: Option<f64>,
    /// Resident bytes.
    pub resident: Option<f64>,
    /// Ranges that an etcd was asked for.
    pub ranges: Option<f64>,
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

    /// Of the etcd whose `/metrics` `client` asks; nothing without one.
    pub async fn of_etcd(client: Option<&Client>) -> Usage {
        match client {
            Some(client) => Usage::of(client, None).await,
            None => Usage::default(),
        }
    }

    /// CPU seconds since `before`.
    pub fn cpu_since(&self, before: &Usage) -> Option<f64> {
        Some(self.cpu? - before.cpu?)
    }

    /// Ranges since `before`.
    pub fn ranges_since(&self, before: &Usage) -> Option<f64> {
        Some(self.ranges? - before.ranges?)
    }

    /// Resident memory in MiB.
    pub fn mebibytes(&self) -> Option<f64> {
        Some(self.resident? / f64::from(1 << 20))
    }
}

/// A connection to the plain HTTP `/metrics` of the etcd at `url`.
pub async fn etcd(url: Option<&String>, allow_remote: bool) -> Result<Option<Client>> {
    let Some(url) = url else { return Ok(None) };
    let args = Server { server: Some(url.clone()), http1: true, allow_remote, ..Server::default() };
    Ok(Some(Client::connect(&Target::from_args(&args)?, 1, 1).await?))
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
            Some(("grpc_server_handled_total", labels)) if labels.contains("grpc_method=\"Range\"") => {
                *usage.ranges.get_or_insert(0.0) += value;
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
grpc_server_handled_total{grpc_code=\"OK\",grpc_method=\"Range\",grpc_service=\"etcdserverpb.KV\"} 7
grpc_server_handled_total{grpc_code=\"Unavailable\",grpc_method=\"Range\",grpc_service=\"etcdserverpb.KV\"} 3
grpc_server_handled_total{grpc_code=\"OK\",grpc_method=\"Txn\",grpc_service=\"etcdserverpb.KV\"} 100
other{a=\"b c\"} 1
";
        let usage = parse(text);
        assert_eq!(usage, Usage { cpu: Some(12.34), resident: Some(351182848.0), ranges: Some(10.0) });
        let before = Usage { cpu: Some(12.0), ..Usage::default() };
        assert!((usage.cpu_since(&before).unwrap() - 0.34).abs() < 1e-9);
        assert_eq!(usage.ranges_since(&before), None);
    }

    #[test]
    fn what_is_not_there_is_none() {
        assert_eq!(parse("Forbidden"), Usage::default());
    }
}
