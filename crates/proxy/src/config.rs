//! From flags and a KubeProxyConfiguration file to a typed configuration. With `--config`, the file counts and
//! flags are ignored, as with the original.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use pilothouse_component_base::flags::Flags;
use serde::Deserialize;

use crate::rules;

/// What the proxy was asked to do.
#[derive(Debug, Clone)]
pub struct Config {
    /// Credentials for the API server.
    pub kubeconfig: PathBuf,
    /// `iptables`, `ipvs`, …: what the configuration names; nftables serves in place of all.
    pub mode: String,
    /// This node's name.
    pub node_name: String,
    /// Where `/healthz` is.
    pub healthz_bind_address: Option<SocketAddr>,
    /// Where `/metrics` is.
    pub metrics_bind_address: Option<SocketAddr>,
    /// What the rules depend on.
    pub rules: rules::Options,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct File {
    kind: String,
    client_connection: ClientConnection,
    #[serde(rename = "clusterCIDR")]
    cluster_cidr: String,
    hostname_override: String,
    healthz_bind_address: Option<String>,
    metrics_bind_address: Option<String>,
    mode: String,
    node_port_addresses: Option<Vec<String>>,
    iptables: Iptables,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ClientConnection {
    kubeconfig: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Iptables {
    masquerade_all: bool,
}

impl Config {
    /// Reads flags and file. The error is one line that names the flag or the file.
    pub fn from_flags(flags: &Flags) -> Result<Config, String> {
        let file = match flags.opt("config") {
            Some(path) => read(Path::new(&path))?,
            None => File {
                client_connection: ClientConnection { kubeconfig: flags.string("kubeconfig") },
                cluster_cidr: flags.string("cluster-cidr"),
                hostname_override: flags.string("hostname-override"),
                healthz_bind_address: flags.opt("healthz-bind-address"),
                metrics_bind_address: flags.opt("metrics-bind-address"),
                mode: flags.string("proxy-mode"),
                node_port_addresses: Some(flags.strings("nodeport-addresses")),
                iptables: Iptables { masquerade_all: flags.bool("masquerade-all") },
                ..File::default()
            },
        };
        let address = |name: &str, v: Option<String>, default: &str| -> Result<Option<SocketAddr>, String> {
            match v.as_deref().unwrap_or(default) {
                "" => Ok(None),
                v => with_port(v, default).map(Some).ok_or_else(|| format!("{name}: {v:?} is no address")),
            }
        };
        let cidr = |name: &str, v: &str| -> Result<Option<IpNet>, String> {
            match v {
                "" => Ok(None),
                // Of a pair of families the IPv4 one counts here.
                v => v
                    .split(',')
                    .next()
                    .unwrap_or(v)
                    .parse()
                    .map(Some)
                    .map_err(|e| format!("{name} {v:?}: {e}")),
            }
        };
        if file.client_connection.kubeconfig.is_empty() {
            return Err("no kubeconfig: --kubeconfig, or clientConnection.kubeconfig in --config".into());
        }
        let node_name = match file.hostname_override.as_str() {
            "" => {
                std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_lowercase()
            }
            n => n.trim().to_lowercase(),
        };
        let node_port_addresses = file
            .node_port_addresses
            .unwrap_or_default()
            .iter()
            .map(|a| a.parse().map_err(|e| format!("nodePortAddresses: {a:?}: {e}")))
            .collect::<Result<Vec<IpNet>, String>>()?;
        Ok(Config {
            kubeconfig: PathBuf::from(file.client_connection.kubeconfig),
            mode: file.mode,
            node_name,
            healthz_bind_address: address("healthzBindAddress", file.healthz_bind_address, "0.0.0.0:10256")?,
            metrics_bind_address: address(
                "metricsBindAddress",
                file.metrics_bind_address,
                "127.0.0.1:10249",
            )?,
            rules: rules::Options {
                cluster_cidr: cidr("clusterCIDR", &file.cluster_cidr)?,
                service_cidr: cidr("--service-cluster-ip-range", &flags.string("service-cluster-ip-range"))?,
                masquerade_all: file.iptables.masquerade_all,
                node_port_addresses,
            },
        })
    }
}

/// An address that may lack its port.
fn with_port(v: &str, default: &str) -> Option<SocketAddr> {
    let port = default.rsplit_once(':')?.1;
    v.parse()
        .ok()
        .or_else(|| format!("{v}:{port}").parse().ok())
        .or_else(|| format!("[{v}]:{port}").parse().ok())
}

fn read(path: &Path) -> Result<File, String> {
    let bad = |e: String| format!("{}: {e}", path.display());
    let text = std::fs::read_to_string(path).map_err(|e| bad(e.to_string()))?;
    let file: File = serde_yaml_ng::from_str(&text).map_err(|e| bad(e.to_string()))?;
    if file.kind != "KubeProxyConfiguration" {
        return Err(bad(format!("kind is {:?}, not KubeProxyConfiguration", file.kind)));
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use pilothouse_component_base::flags;

    fn config(args: &[&str]) -> Result<Config, String> {
        Config::from_flags(&Flags::parse(&flags::table(crate::FLAGS), args.iter().copied()).unwrap())
    }

    #[test]
    fn the_file_counts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.yaml");
        std::fs::write(
            &path,
            "kind: KubeProxyConfiguration\napiVersion: kubeproxy.config.k8s.io/v1alpha1\nmode: ipvs\n\
             clientConnection:\n  kubeconfig: /k\nclusterCIDR: 10.244.0.0/16\nhostnameOverride: N1\n\
             metricsBindAddress: 0.0.0.0\n",
        )
        .unwrap();
        let c = config(&[&format!("--config={}", path.display())]).unwrap();
        assert_eq!((c.mode.as_str(), c.node_name.as_str()), ("ipvs", "n1"));
        assert_eq!(c.metrics_bind_address.unwrap().to_string(), "0.0.0.0:10249");
        assert_eq!(c.healthz_bind_address.unwrap().to_string(), "0.0.0.0:10256");
        std::fs::write(&path, "kind: Pod").unwrap();
        assert!(config(&[&format!("--config={}", path.display())]).unwrap_err().contains("p.yaml"));
    }

    #[test]
    fn names_what_is_wrong() {
        assert!(config(&[]).unwrap_err().contains("kubeconfig"));
        let e = config(&["--kubeconfig=/k", "--cluster-cidr=10.244.0.0/99"]).unwrap_err();
        assert!(e.contains("clusterCIDR"), "{e}");
    }
}
