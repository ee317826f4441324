//! A pod network for machines on one network: each node's range of pod addresses (`spec.podCIDR`) becomes a CNI
//! configuration there, and a route on every other node. What pods send out of the cluster gets the node's address.
//!
//! Any other CNI network can be put in its place; nothing else knows of this one.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::Node;
use kube::runtime::watcher;
use kube::{Api, ResourceExt};
use pilothouse_client::Informer;
use pilothouse_component_base::flags::Flags;
use pilothouse_component_base::notify;
use pilothouse_component_base::signals::Stop;
use tokio::process::Command;
use tokio::sync::Notify;

use crate::up::network::nft;

/// The flag table.
pub const FLAGS: &str = include_str!("pod_network/flags.tsv");

const NAME: &str = "pod-network";
/// The mark in the routing table by which our routes are known (`proto`).
const PROTO: &str = "112";
const CONFLIST: &str = "10-pilothouse.conflist";
const TABLE: &str = "pilothouse-pods";
const RETRY: Duration = Duration::from_secs(5);

/// What it was asked to do.
#[derive(Debug)]
pub struct Config {
    kubeconfig: PathBuf,
    node_name: String,
    cni_conf_dir: PathBuf,
    cluster_cidr: Ipv4Net,
}

impl Config {
    /// Reads the flags. The error is one line that names the flag.
    pub fn from_flags(flags: &Flags) -> Result<Config, String> {
        let need = |name: &str| flags.opt(name).ok_or_else(|| format!("--{name} is required"));
        let cidr = flags.string("cluster-cidr");
        Ok(Config {
            kubeconfig: need("kubeconfig")?.into(),
            node_name: need("hostname-override")?.to_lowercase(),
            cni_conf_dir: flags.string("cni-conf-dir").into(),
            cluster_cidr: cidr.parse().map_err(|e| format!("--cluster-cidr {cidr:?}: {e}"))?,
        })
    }
}

/// What this node's network should be.
#[derive(Debug, Default, PartialEq, Eq)]
struct Plan {
    /// This node's range, once it has one.
    own: Option<Ipv4Net>,
    /// Other nodes' ranges and addresses.
    routes: BTreeMap<Ipv4Net, Ipv4Addr>,
}

fn plan(nodes: &[Arc<Node>], own: &str) -> Plan {
    let mut plan = Plan::default();
    for node in nodes {
        let range = node.spec.as_ref().and_then(|s| s.pod_cidr.as_deref()).and_then(|c| c.parse().ok());
        let Some(range) = range else { continue };
        if node.name_any() == own {
            plan.own = Some(range);
            continue;
        }
        let addresses = node.status.as_ref().and_then(|s| s.addresses.as_deref()).unwrap_or_default();
        let internal =
            addresses.iter().find(|a| a.type_ == "InternalIP").and_then(|a| a.address.parse().ok());
        if let Some(address) = internal {
            plan.routes.insert(range, address);
        }
    }
    plan
}

/// The CNI configuration: a pair of interfaces for each pod (so that all it sends passes the node's own packet filter,
/// also what goes to a neighbour), addresses from the node's range, host ports.
fn conflist(range: Ipv4Net) -> serde_json::Value {
    serde_json::json!({
        "cniVersion": "0.4.0",
        "name": "pilothouse",
        "plugins": [
            {
                "type": "ptp",
                "ipMasq": false,
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{"subnet": range.to_string()}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": true}, "snat": true},
        ],
    })
}

/// Keeps this node's network until `stop`. It stays as it is when this ends.
pub async fn run(config: Config, stop: Stop) -> anyhow::Result<()> {
    let client = pilothouse_client::config::connect(&config.kubeconfig, NAME).await?;
    let nodes: Informer<Node> = Informer::new();
    let changed = Arc::new(Notify::new());
    let tell = changed.clone();
    nodes.on_change(move |_| tell.notify_one());
    nodes.run(Api::all(client), watcher::Config::default(), stop.clone());
    tokio::select! { _ = stop.wait() => return Ok(()), _ = nodes.wait_synced() => {} }
    let mut done: Option<Plan> = None;
    loop {
        let wanted = plan(&nodes.list(), &config.node_name);
        if done.as_ref() != Some(&wanted) {
            match apply(&config, &wanted).await {
                Ok(()) => {
                    tracing::info!(range = ?wanted.own, routes = ?wanted.routes, "pod network");
                    let status = match wanted.own {
                        Some(range) => format!("pods have {range}"),
                        None => format!("waiting for node {} and its range", config.node_name),
                    };
                    notify::ready(NAME, &status);
                    done = Some(wanted);
                }
                Err(e) => {
                    tracing::error!("{e:#}");
                    done = None;
                    let again = changed.clone();
                    tokio::spawn(async move {
                        tokio::time::sleep(RETRY).await;
                        again.notify_one();
                    });
                }
            }
        }
        tokio::select! { _ = stop.wait() => return Ok(()), _ = changed.notified() => {} }
    }
}

async fn apply(config: &Config, plan: &Plan) -> anyhow::Result<()> {
    if let Some(range) = plan.own {
        if let Err(e) = std::fs::write("/proc/sys/net/ipv4/ip_forward", "1") {
            tracing::warn!("net.ipv4.ip_forward: {e}");
        }
        nft(&masquerade(range, config.cluster_cidr)).await?;
    }
    let have: Vec<serde_json::Value> =
        serde_json::from_str(&ip(&["-4", "-j", "route", "show", "proto", PROTO]).await?)?;
    for old in have.iter().filter_map(|r| r["dst"].as_str()) {
        if !plan.routes.keys().any(|range| range.to_string() == old) {
            ip(&["-4", "route", "del", old, "proto", PROTO]).await?;
        }
    }
    let mut unreachable = Vec::new();
    for (range, address) in &plan.routes {
        let (range, address) = (range.to_string(), address.to_string());
        let route = ["-4", "route", "replace", &range, "via", &address, "proto", PROTO];
        if let Err(e) = ip(&route).await {
            unreachable.push(format!("pods in {range} are out of reach: {e}"));
        }
    }
    // Other nodes may not hold up this one's pods.
    if let Some(range) = plan.own {
        let text = serde_json::to_string_pretty(&conflist(range))? + "\n";
        write_if_changed(&config.cni_conf_dir.join(CONFLIST), &text)?;
    }
    if !unreachable.is_empty() {
        bail!("{}", unreachable.join("; "));
    }
    Ok(())
}

/// What leaves the cluster's pods for somewhere else gets this node's address; what goes to a pod keeps its own.
fn masquerade(range: Ipv4Net, cluster: Ipv4Net) -> String {
    format!(
        "table ip {TABLE} {{}}\ndelete table ip {TABLE}\ntable ip {TABLE} {{\n\
         chain postrouting {{\ntype nat hook postrouting priority 110; policy accept;\n\
         ip saddr {range} ip daddr != {cluster} ip daddr != 224.0.0.0/4 fib daddr type != local masquerade\n}}\n}}\n"
    )
}

fn write_if_changed(path: &Path, text: &str) -> anyhow::Result<()> {
    if std::fs::read_to_string(path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    pilothouse_pki::files::write_public(path, text.as_bytes())?;
    Ok(())
}

async fn ip(args: &[&str]) -> anyhow::Result<String> {
    let output =
        Command::new("ip").args(args).stdin(Stdio::null()).output().await.context("ip (package iproute2)")?;
    if !output.status.success() {
        bail!("ip {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, range: Option<&str>, address: Option<&str>) -> Arc<Node> {
        let mut node = serde_json::json!({"metadata": {"name": name}, "spec": {}, "status": {}});
        if let Some(range) = range {
            node["spec"]["podCIDR"] = range.into();
        }
        if let Some(address) = address {
            node["status"]["addresses"] = serde_json::json!([{"type": "Hostname", "address": name}, {"type": "InternalIP", "address": address}]);
        }
        Arc::new(serde_json::from_value(node).unwrap())
    }

    #[test]
    fn routes_to_all_others() {
        let nodes = [
            node("a", Some("10.244.0.0/24"), Some("20.0.0.103")),
            node("b", Some("10.244.1.0/24"), Some("20.0.0.104")),
            node("new", None, Some("20.0.0.105")),
            node("lost", Some("10.244.3.0/24"), None),
        ];
        let p = plan(&nodes, "a");
        assert_eq!(p.own.unwrap().to_string(), "10.244.0.0/24");
        assert_eq!(p.routes.len(), 1);
        assert_eq!(p.routes[&"10.244.1.0/24".parse().unwrap()].to_string(), "20.0.0.104");
        assert_eq!(plan(&nodes, "new").own, None);
        let text = conflist(p.own.unwrap()).to_string();
        assert!(text.contains(r#""subnet":"10.244.0.0/24""#), "{text}");
    }
}
