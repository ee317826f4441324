//! The service `kubernetes` in `default`, and who is behind it.
//!
//! Each server writes its address under `<prefix>/masterleases/`, with a time to live; whose key is there is alive.
//! Keys and values are Kubernetes' own, so servers of both kinds can be members of one cluster.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pilothouse_apimachinery::json::{Value, json};
use pilothouse_apimachinery::status::Status;
use pilothouse_component_base::signals::Stop;
use pilothouse_store::{Expect, Range, prefix_end};

use crate::config::{Backend, Config};
use crate::json::{get, list_at, set};
use crate::request::Objects;
use crate::state::ServerState;
use crate::storage::store_failure;

/// How often a server says that it is alive.
const INTERVAL: Duration = Duration::from_secs(10);
/// How long others believe it.
const LEASE: Duration = Duration::from_secs(15);
const NAME: &str = "kubernetes";
const NAMESPACE: &str = "default";

fn service(config: &Config, ip: IpAddr, port: u16) -> Value {
    let mut port = json!({"name": "https", "protocol": "TCP", "port": 443, "targetPort": port});
    let mut kind = "ClusterIP";
    if config.kubernetes_service_node_port != 0 {
        port["nodePort"] = json!(config.kubernetes_service_node_port);
        kind = "NodePort";
    }
    json!({
        "metadata": {"name": NAME, "namespace": NAMESPACE, "labels": {"component": "apiserver", "provider": NAME}},
        "spec": {"type": kind, "clusterIP": ip.to_string(), "sessionAffinity": "None", "ports": [port]},
    })
}

fn ports(port: u16) -> Value {
    json!([{"name": "https", "port": port, "protocol": "TCP"}])
}

fn subsets(addresses: &BTreeSet<IpAddr>, port: u16) -> Value {
    if addresses.is_empty() {
        return json!([]);
    }
    let list: Vec<Value> = addresses.iter().map(|ip| json!({"ip": ip.to_string()})).collect();
    json!([{"addresses": list, "ports": ports(port)}])
}

async fn endpoints(objects: &dyn Objects, addresses: &BTreeSet<IpAddr>, port: u16) -> Result<(), Status> {
    let wanted = subsets(addresses, port);
    match objects.get("", "endpoints", NAMESPACE, NAME) {
        None => {
            let labels = json!({"endpointslice.kubernetes.io/skip-mirror": "true"});
            let object = json!({"metadata": {"name": NAME, "namespace": NAMESPACE, "labels": labels}, "subsets": wanted});
            super::ensure(objects, "", "endpoints", object).await
        }
        Some(e) if list_at(&e, &["subsets"]) == wanted.as_array().map_or(&[][..], Vec::as_slice) => Ok(()),
        Some(_) => {
            let change = |e: &mut Value| {
                set(e, &["subsets"], wanted.clone());
                Ok(())
            };
            objects.update("", "endpoints", "", NAMESPACE, NAME, &change).await.map(drop)
        }
    }
}

async fn slice(objects: &dyn Objects, addresses: &BTreeSet<IpAddr>, port: u16) -> Result<(), Status> {
    let group = "discovery.k8s.io";
    let family = if addresses.first().is_some_and(IpAddr::is_ipv6) { "IPv6" } else { "IPv4" };
    let list: Vec<Value> = addresses
        .iter()
        .map(|ip| json!({"addresses": [ip.to_string()], "conditions": {"ready": true}}))
        .collect();
    match objects.get(group, "endpointslices", NAMESPACE, NAME) {
        None => {
            let labels = json!({"kubernetes.io/service-name": NAME});
            let object = json!({"metadata": {"name": NAME, "namespace": NAMESPACE, "labels": labels},
                "addressType": family, "endpoints": list, "ports": ports(port)});
            super::ensure(objects, group, "endpointslices", object).await
        }
        Some(s) => {
            let current: BTreeSet<&str> = list_at(&s, &["endpoints"])
                .iter()
                .flat_map(|e| list_at(e, &["addresses"]))
                .filter_map(Value::as_str)
                .collect();
            let wanted: BTreeSet<String> = addresses.iter().map(ToString::to_string).collect();
            let same_port = get(list_at(&s, &["ports"]).first().unwrap_or(&Value::Null), &["port"]).as_i64()
                == Some(port.into());
            if same_port && current.iter().copied().eq(wanted.iter().map(String::as_str)) {
                return Ok(());
            }
            let change = |s: &mut Value| {
                set(s, &["endpoints"], json!(list));
                set(s, &["ports"], ports(port));
                Ok(())
            };
            objects.update(group, "endpointslices", "", NAMESPACE, NAME, &change).await.map(drop)
        }
    }
}

/// The lease's value, as Kubernetes writes it.
fn lease_value(ip: IpAddr) -> Bytes {
    let object = json!({
        "kind": "Endpoints", "apiVersion": "v1", "metadata": {"creationTimestamp": null},
        "subsets": [{"addresses": [{"ip": ip.to_string()}]}],
    });
    Bytes::from(object.to_string())
}

struct Members<'a> {
    state: &'a ServerState,
    prefix: String,
    own: IpAddr,
}

impl Members<'_> {
    fn key(&self) -> Bytes {
        Bytes::from(format!("{}{}", self.prefix, self.own))
    }

    /// Whether other servers can be members at all.
    fn shared(&self) -> bool {
        matches!(self.state.config.backend, Backend::Etcd { .. })
    }

    /// Says that this server is alive, and asks who else is.
    async fn renew(&self) -> Result<BTreeSet<IpAddr>, Status> {
        if !self.shared() {
            return Ok(BTreeSet::from([self.own]));
        }
        let put = self.state.store.put(self.key(), lease_value(self.own), Expect::Any, Some(LEASE));
        put.await.map_err(store_failure)?;
        self.list().await
    }

    async fn list(&self) -> Result<BTreeSet<IpAddr>, Status> {
        let start = Bytes::from(self.prefix.clone());
        let range = Range { end: prefix_end(&start), start, ..Range::default() };
        let found = self.state.store.range(range).await.map_err(store_failure)?;
        let names =
            found.kvs.iter().filter_map(|kv| std::str::from_utf8(&kv.key).ok()?.strip_prefix(&self.prefix));
        Ok(names.filter_map(|ip| ip.parse().ok()).collect())
    }

    async fn leave(&self) -> Result<(), Status> {
        if !self.shared() {
            return Ok(());
        }
        self.state.store.delete(self.key(), Expect::Any).await.map_err(store_failure)?;
        let rest = self.list().await?;
        self.publish(&rest).await
    }

    async fn publish(&self, members: &BTreeSet<IpAddr>) -> Result<(), Status> {
        let port = self.state.address.port();
        let objects = &*self.state.objects;
        endpoints(objects, members, port).await?;
        slice(objects, members, port).await
    }
}

/// Keeps the service and its endpoints, until `stop`.
pub async fn keep(state: Arc<ServerState>, address: Option<IpAddr>, stop: Stop) {
    let config = &state.config;
    let prefix = format!("{}/masterleases/", config.etcd_prefix.trim_end_matches('/'));
    let members = Members { state: &state, prefix, own: config.advertise_address };
    // Endpoints may not lead to whatever machine reads them.
    let published = config.endpoint_reconciler != "none" && !config.advertise_address.is_loopback();
    if !published {
        tracing::info!("the address {} is not published as an endpoint", config.advertise_address);
    }
    loop {
        let round = async {
            if let Some(ip) = address {
                super::ensure(&*state.objects, "", "services", service(config, ip, state.address.port()))
                    .await?;
            }
            if published {
                members.publish(&members.renew().await?).await?;
            }
            Ok::<_, Status>(())
        };
        let wait = match round.await {
            Ok(()) => INTERVAL,
            Err(e) => {
                tracing::warn!("the service kubernetes cannot be kept: {e}");
                Duration::from_secs(1)
            }
        };
        tokio::select! { () = stop.wait() => break, () = tokio::time::sleep(wait) => {} }
    }
    if published && let Err(e) = members.leave().await {
        tracing::debug!("endpoints are left to the other servers: {e}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::FakeObjects;

    #[tokio::test]
    async fn publishes_members_and_nothing_else() {
        let o = FakeObjects::default();
        let members = |list: &[&str]| list.iter().map(|ip| ip.parse().unwrap()).collect::<BTreeSet<IpAddr>>();
        let two = members(&["20.0.0.2", "20.0.0.1"]);
        for _ in 0..2 {
            endpoints(&o, &two, 6443).await.unwrap();
            slice(&o, &two, 6443).await.unwrap();
        }
        let e = o.get("", "endpoints", "default", "kubernetes").unwrap();
        assert_eq!(e["subsets"][0]["addresses"], json!([{"ip": "20.0.0.1"}, {"ip": "20.0.0.2"}]));
        assert_eq!(e["metadata"]["resourceVersion"], "1");
        endpoints(&o, &members(&["20.0.0.1"]), 6443).await.unwrap();
        slice(&o, &members(&["20.0.0.1"]), 6443).await.unwrap();
        let s = o.get("discovery.k8s.io", "endpointslices", "default", "kubernetes").unwrap();
        assert_eq!(s["endpoints"].as_array().unwrap().len(), 1);
    }
}
