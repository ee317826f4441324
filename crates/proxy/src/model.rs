//! What the API says about services, in the form that rules are made from.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Service, ServicePort};
use kube::api::DynamicObject;
use serde_json::Value;

use crate::family::Family;

/// A pod's address and port behind a service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Backend {
    /// Address.
    pub ip: IpAddr,
    /// Port.
    pub port: u16,
    /// Whether it is on this node.
    pub local: bool,
}

/// One port of one service, in one family of addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceEntry {
    /// `namespace/name:port`.
    pub id: String,
    /// `tcp`, `udp`, `sctp`.
    pub protocol: String,
    /// The service's own address.
    pub cluster_ip: IpAddr,
    /// Its port.
    pub port: u16,
    /// Port on every node, 0 for none.
    pub node_port: u16,
    /// External addresses.
    pub external_ips: BTreeSet<IpAddr>,
    /// The load balancer's addresses.
    pub ingress_ips: BTreeSet<IpAddr>,
    /// Who may use the load balancer addresses; empty for all.
    pub source_ranges: Vec<String>,
    /// A client stays with its backend for so many seconds; 0 for not.
    pub affinity_seconds: u32,
    /// From outside only backends of this node, without masquerade.
    pub external_local: bool,
    /// From inside only backends of this node.
    pub internal_local: bool,
    /// Where connections go.
    pub backends: Vec<Backend>,
}

impl ServiceEntry {
    /// Whose addresses it has.
    pub fn family(&self) -> Family {
        Family::of(self.cluster_ip)
    }

    /// External and load balancer addresses.
    pub fn outside_addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.external_ips.union(&self.ingress_ips).copied().filter(|ip| *ip != self.cluster_ip)
    }
}

/// Builds the model.
pub fn build(services: &[Arc<Service>], slices: &[Arc<DynamicObject>], node: &str) -> Vec<ServiceEntry> {
    let mut by_service: BTreeMap<(String, Family), Vec<&DynamicObject>> = BTreeMap::new();
    for slice in slices {
        let name = slice.metadata.labels.as_ref().and_then(|l| l.get("kubernetes.io/service-name"));
        let family = Family::ALL.into_iter().find(|f| slice.data["addressType"].as_str() == Some(f.name()));
        if let (Some(name), Some(family)) = (name, family) {
            let namespace = slice.metadata.namespace.as_deref().unwrap_or_default();
            by_service.entry((format!("{namespace}/{name}"), family)).or_default().push(slice);
        }
    }
    let mut entries = Vec::new();
    for service in services {
        let meta = &service.metadata;
        let key = format!(
            "{}/{}",
            meta.namespace.as_deref().unwrap_or_default(),
            meta.name.as_deref().unwrap_or_default()
        );
        let spec = service.spec.clone().unwrap_or_default();
        // The first of the addresses is also there alone, and was before services could have two.
        let more = spec.cluster_ips.iter().flatten().skip(1);
        let cluster_ips: Vec<IpAddr> =
            spec.cluster_ip.iter().chain(more).filter_map(|ip| ip.parse().ok()).collect();
        if spec.type_.as_deref() == Some("ExternalName") {
            continue;
        }
        let ingress = service.status.iter().filter_map(|s| s.load_balancer.as_ref());
        // A balancer that is a proxy itself wants its traffic to go through it, from inside too.
        let ingress_ips: BTreeSet<IpAddr> = ingress
            .flat_map(|l| l.ingress.iter().flatten())
            .filter(|i| i.ip_mode.as_deref() != Some("Proxy"))
            .filter_map(|i| i.ip.as_deref()?.parse().ok())
            .collect();
        let external_ips: BTreeSet<IpAddr> =
            spec.external_ips.iter().flatten().filter_map(|ip| ip.parse().ok()).collect();
        let affinity_seconds = if spec.session_affinity.as_deref() == Some("ClientIP") {
            let config = spec.session_affinity_config.as_ref().and_then(|c| c.client_ip.as_ref());
            config.and_then(|c| c.timeout_seconds).and_then(|s| u32::try_from(s).ok()).unwrap_or(10_800)
        } else {
            0
        };
        for cluster_ip in cluster_ips {
            let family = Family::of(cluster_ip);
            let of_family = |ips: &BTreeSet<IpAddr>| {
                ips.iter().copied().filter(|ip| Family::of(*ip) == family).collect::<BTreeSet<_>>()
            };
            let slices = by_service.get(&(key.clone(), family)).map(Vec::as_slice).unwrap_or_default();
            for port in spec.ports.iter().flatten() {
                let name = port.name.clone().unwrap_or_default();
                entries.push(ServiceEntry {
                    id: format!("{key}:{name}"),
                    protocol: port.protocol.clone().unwrap_or_else(|| "TCP".into()).to_lowercase(),
                    cluster_ip,
                    port: number(port.port),
                    node_port: port.node_port.map(number).unwrap_or(0),
                    external_ips: of_family(&external_ips),
                    ingress_ips: of_family(&ingress_ips),
                    source_ranges: spec.load_balancer_source_ranges.clone().unwrap_or_default(),
                    affinity_seconds,
                    external_local: spec.external_traffic_policy.as_deref() == Some("Local"),
                    internal_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
                    backends: backends(slices, port, node),
                });
            }
        }
    }
    entries.sort_by(|a, b| (&a.id, &a.protocol, a.cluster_ip).cmp(&(&b.id, &b.protocol, b.cluster_ip)));
    entries
}

fn number(port: i32) -> u16 {
    u16::try_from(port).unwrap_or(0)
}

/// Ready backends; where none is ready, those that still serve while they terminate.
fn backends(slices: &[&DynamicObject], port: &ServicePort, node: &str) -> Vec<Backend> {
    let (mut ready, mut serving) = (BTreeSet::new(), BTreeSet::new());
    for slice in slices {
        let wanted = port.name.as_deref().unwrap_or_default();
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        let target = slice.data["ports"].as_array().into_iter().flatten().find(|p| {
            p["name"].as_str().unwrap_or_default() == wanted
                && p["protocol"].as_str().unwrap_or("TCP") == protocol
        });
        let Some(target) = target.and_then(|p| p["port"].as_u64()).and_then(|p| u16::try_from(p).ok()) else {
            continue;
        };
        for endpoint in slice.data["endpoints"].as_array().into_iter().flatten() {
            let conditions = &endpoint["conditions"];
            let Some(ip) = endpoint["addresses"][0].as_str().and_then(|a| a.parse().ok()) else { continue };
            let backend = Backend { ip, port: target, local: node_of(endpoint) == node };
            if conditions["ready"].as_bool().unwrap_or(true) {
                ready.insert(backend);
            } else if conditions["serving"] == Value::Bool(true)
                && conditions["terminating"] == Value::Bool(true)
            {
                serving.insert(backend);
            }
        }
    }
    if ready.is_empty() { serving } else { ready }.into_iter().collect()
}

fn node_of(endpoint: &Value) -> &str {
    endpoint["nodeName"]
        .as_str()
        .or_else(|| endpoint["topology"]["kubernetes.io/hostname"].as_str())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn joins_services_and_slices() {
        let service = |v: Value| Arc::new(serde_json::from_value::<Service>(v).unwrap());
        let slice = |v: Value| Arc::new(serde_json::from_value::<DynamicObject>(v).unwrap());
        let services = [
            service(
                json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s", "namespace": "ns"},
                "spec": {"clusterIP": "10.0.0.7", "ports": [{"name": "web", "port": 80, "nodePort": 30080}]}}),
            ),
            service(
                json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "h", "namespace": "ns"},
                "spec": {"clusterIP": "None", "ports": [{"port": 80}]}}),
            ),
        ];
        let slices = [slice(json!({"metadata": {"name": "s-1", "namespace": "ns",
                "labels": {"kubernetes.io/service-name": "s"}},
            "addressType": "IPv4", "ports": [{"name": "web", "port": 8080, "protocol": "TCP"}],
            "endpoints": [
                {"addresses": ["10.244.0.2"], "conditions": {"ready": true}, "topology": {"kubernetes.io/hostname": "n1"}},
                {"addresses": ["10.244.0.3"], "conditions": {"ready": false}, "nodeName": "n1"}]}))];
        let model = build(&services, &slices, "n1");
        assert_eq!(model.len(), 1);
        assert_eq!((model[0].id.as_str(), model[0].node_port), ("ns/s:web", 30080));
        assert_eq!(model[0].backends, [Backend { ip: [10, 244, 0, 2].into(), port: 8080, local: true }]);
    }

    #[test]
    fn a_service_of_two_families_is_two() {
        let service: Service = serde_json::from_value(json!({"metadata": {"name": "s", "namespace": "ns"},
            "spec": {"clusterIP": "fd00::7", "clusterIPs": ["fd00::7", "10.0.0.7"], "ports": [{"port": 80}],
                "externalIPs": ["192.0.2.1", "2001:db8::1"]},
            "status": {"loadBalancer": {"ingress": [
                {"ip": "192.0.2.2", "ipMode": "Proxy"}, {"ip": "192.0.2.3"}, {"hostname": "h"}]}}}))
        .unwrap();
        let slice = |kind: &str, ip: &str| {
            let slice = json!({"metadata": {"name": kind, "namespace": "ns",
                "labels": {"kubernetes.io/service-name": "s"}}, "addressType": kind,
                "ports": [{"name": "", "port": 8080, "protocol": "TCP"}], "endpoints": [{"addresses": [ip]}]});
            Arc::new(serde_json::from_value::<DynamicObject>(slice).unwrap())
        };
        let slices = [slice("IPv4", "10.244.0.2"), slice("IPv6", "fd01::2"), slice("FQDN", "a.example")];
        let entries = build(&[Arc::new(service)], &slices, "n1");
        let texts: Vec<String> = entries
            .iter()
            .map(|e| {
                let outside: Vec<String> = e.outside_addresses().map(|ip| ip.to_string()).collect();
                format!("{} {} {}", e.cluster_ip, outside.join(","), e.backends[0].ip)
            })
            .collect();
        assert_eq!(texts, ["10.0.0.7 192.0.2.1,192.0.2.3 10.244.0.2", "fd00::7 2001:db8::1 fd01::2"]);
    }
}
