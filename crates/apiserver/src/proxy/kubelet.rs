//! How to reach a node's kubelet.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use pilothouse_apimachinery::json::Value;
use pilothouse_apimachinery::status::Status;

use crate::config;
use crate::json::{i64_at, list_at, str_at};
use crate::outbound::Target;
use crate::outbound::tls::{self, Trust};
use crate::request::Objects;

/// The kubelets' own port.
const PORT: u16 = 10250;

/// How this server reaches kubelets.
pub struct Kubelets {
    tls: Arc<rustls::ClientConfig>,
    address_types: Vec<String>,
    /// Time limit of a connection attempt.
    pub timeout: Duration,
}

/// A node's port for its kubelet.
pub fn port(node: &Value) -> u16 {
    let said = i64_at(node, &["status", "daemonEndpoints", "kubeletEndpoint", "Port"]);
    said.and_then(|p| u16::try_from(p).ok()).filter(|p| *p != 0).unwrap_or(PORT)
}

/// A node's addresses, those of the preferred types first.
fn addresses<'a>(node: &'a Value, types: &[String]) -> Vec<&'a str> {
    let all = list_at(node, &["status", "addresses"]);
    types
        .iter()
        .flat_map(|t| all.iter().filter(move |a| str_at(a, &["type"]) == t).map(|a| str_at(a, &["address"])))
        .filter(|a| !a.is_empty())
        .collect()
}

/// A node's addresses, as Go prints them.
fn known(node: &Value) -> String {
    let all = list_at(node, &["status", "addresses"]).iter();
    let shown = all.map(|a| format!("{{{} {}}}", str_at(a, &["type"]), str_at(a, &["address"])));
    format!("[{}]", shown.collect::<Vec<_>>().join(" "))
}

impl Kubelets {
    /// From the flags. Errors name the file.
    pub fn new(config: &config::Kubelet) -> Result<Kubelets, String> {
        let identity = match &config.client {
            Some((cert, key)) => Some(tls::identity_of_files(cert, key)?),
            None => None,
        };
        let pem = match &config.ca {
            Some(file) => Some(std::fs::read(file).map_err(|e| format!("{}: {e}", file.display()))?),
            None => None,
        };
        let trust = pem.as_deref().map_or(Trust::Anything, Trust::Pem);
        Ok(Kubelets {
            tls: tls::client(trust, identity)?,
            address_types: config.address_types.clone(),
            timeout: if config.timeout.is_zero() { Duration::from_secs(5) } else { config.timeout },
        })
    }

    /// The kubelet of a node.
    pub async fn of_node(&self, objects: &dyn Objects, name: &str) -> Result<Target, Status> {
        let node = objects.get_latest("", "nodes", "", name).await?;
        let port = port(&node);
        let candidates = addresses(&node, &self.address_types);
        let Some(first) = candidates.first() else {
            return Err(Status::failure(
                500,
                "",
                format!("no preferred addresses found; known addresses: {}", known(&node)),
            ));
        };
        let mut target =
            Target { host: (*first).to_string(), port, addresses: vec![], tls: Some(self.tls.clone()) };
        for candidate in &candidates {
            if let Ok(ip) = candidate.parse::<IpAddr>() {
                target.host = (*candidate).to_string();
                target.addresses = vec![SocketAddr::new(ip, port)];
                return Ok(target);
            }
            // A node's name is often known to the nodes' own resolver only: where it does not resolve here, its
            // addresses are as good.
            if let Ok(found) = tokio::net::lookup_host((*candidate, port)).await {
                target.host = (*candidate).to_string();
                target.addresses = found.collect();
                return Ok(target);
            }
        }
        Ok(target)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::FakeObjects;
    use pilothouse_apimachinery::json::json;

    #[tokio::test]
    async fn prefers_addresses_as_told() {
        let o = FakeObjects::default();
        let list = json!([{"type": "Hostname", "address": "no such host.invalid"}, {"type": "InternalIP", "address": "192.0.2.7"}]);
        o.put(
            "",
            "nodes",
            json!({"metadata": {"name": "n"}, "status": {"addresses": list,
            "daemonEndpoints": {"kubeletEndpoint": {"Port": 10260}}}}),
        );
        let config = config::Kubelet {
            ca: None,
            client: None,
            address_types: vec!["Hostname".into(), "InternalIP".into()],
            timeout: Duration::ZERO,
        };
        let target = Kubelets::new(&config).unwrap().of_node(&o, "n").await.unwrap();
        assert_eq!(target.addresses, ["192.0.2.7:10260".parse().unwrap()]);
        assert_eq!(target.authority(), "192.0.2.7:10260");
        assert_eq!(Kubelets::new(&config).unwrap().of_node(&o, "x").await.err().unwrap().code, 404);
    }
}
