//! The names of a cluster, made from its services and endpoint slices.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, Service};
use kube::api::DynamicObject;

/// What stands under a name. Names are in lower case, without a dot at the end.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Data {
    /// A or AAAA.
    Address(IpAddr),
    /// SRV: port and target. Priority is 0, and all targets have the same weight.
    Service(u16, String),
    /// PTR.
    Pointer(String),
    /// CNAME.
    Alias(String),
    /// TXT.
    Text(String),
}

/// See the module.
#[derive(Debug, Default)]
pub struct Zone {
    domain: String,
    names: HashMap<String, BTreeSet<Data>>,
    /// Names under which nothing stands but names below: they exist.
    inner: HashSet<String>,
    namespaces: HashSet<String>,
}

/// What a zone knows of a name.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// It is not this zone's: another server is asked.
    Foreign,
    /// It does not exist.
    Nothing,
    /// It exists; this stands under it.
    Here(Vec<Data>),
}

/// `_<port>._<protocol>`.
type PortLabel = String;

impl Zone {
    /// Builds a zone.
    pub fn build(
        domain: &str,
        services: &[Arc<Service>],
        slices: &[Arc<DynamicObject>],
        namespaces: &[Arc<Namespace>],
    ) -> Zone {
        let mut zone = Zone {
            domain: domain.to_string(),
            namespaces: namespaces.iter().filter_map(|n| n.metadata.name.clone()).collect(),
            ..Default::default()
        };
        for inner in [domain.to_string(), format!("svc.{domain}"), format!("pod.{domain}")] {
            zone.inner.insert(inner);
        }
        for ns in zone.namespaces.clone() {
            zone.inner.insert(format!("{ns}.svc.{domain}"));
            zone.inner.insert(format!("{ns}.pod.{domain}"));
        }
        zone.add(format!("dns-version.{domain}"), Data::Text("1.1.0".into()));
        let mut by_service: BTreeMap<String, Vec<&DynamicObject>> = BTreeMap::new();
        for slice in slices {
            if let Some(name) =
                slice.metadata.labels.as_ref().and_then(|l| l.get("kubernetes.io/service-name"))
            {
                let namespace = slice.metadata.namespace.as_deref().unwrap_or_default();
                by_service.entry(format!("{name}.{namespace}")).or_default().push(slice);
            }
        }
        for service in services {
            let m = &service.metadata;
            let key = format!(
                "{}.{}",
                m.name.as_deref().unwrap_or_default(),
                m.namespace.as_deref().unwrap_or_default()
            );
            zone.add_service(
                service,
                &format!("{key}.svc.{domain}"),
                by_service.get(&key).map(Vec::as_slice).unwrap_or_default(),
            );
        }
        zone
    }

    fn add(&mut self, name: String, data: Data) {
        // What lies between a name and the domain exists too.
        let mut rest = name.as_str();
        while let Some((_, parent)) = rest.split_once('.') {
            if parent.len() < self.domain.len() || !self.inner.insert(parent.to_string()) {
                break;
            }
            rest = parent;
        }
        self.names.entry(name).or_default().insert(data);
    }

    fn add_service(&mut self, service: &Service, fqdn: &str, slices: &[&DynamicObject]) {
        let spec = service.spec.clone().unwrap_or_default();
        if spec.type_.as_deref() == Some("ExternalName") {
            let target = spec.external_name.unwrap_or_default().trim_end_matches('.').to_lowercase();
            return match target.parse::<IpAddr>() {
                Ok(ip) => self.add(fqdn.to_string(), Data::Address(ip)),
                Err(_) if target.is_empty() => {}
                Err(_) => self.add(fqdn.to_string(), Data::Alias(target)),
            };
        }
        let cluster_ips: Vec<IpAddr> = spec
            .cluster_ips
            .clone()
            .filter(|l| !l.is_empty())
            .or_else(|| spec.cluster_ip.clone().map(|ip| vec![ip]))
            .into_iter()
            .flatten()
            .filter_map(|ip| ip.parse().ok())
            .collect();
        if spec.cluster_ip.as_deref() == Some("None") {
            return self.add_headless(fqdn, slices);
        }
        for ip in &cluster_ips {
            self.add(fqdn.to_string(), Data::Address(*ip));
            self.add(reverse_name(*ip), Data::Pointer(fqdn.to_string()));
        }
        if cluster_ips.is_empty() {
            return;
        }
        for port in spec.ports.iter().flatten() {
            let Some(name) = port.name.as_deref().filter(|n| !n.is_empty()) else { continue };
            let label = port_label(name, port.protocol.as_deref().unwrap_or("TCP"));
            let number = u16::try_from(port.port).unwrap_or(0);
            self.add(format!("{label}.{fqdn}"), Data::Service(number, fqdn.to_string()));
        }
    }

    fn add_headless(&mut self, fqdn: &str, slices: &[&DynamicObject]) {
        for slice in slices {
            let ports: Vec<(PortLabel, u16)> = slice.data["ports"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|p| {
                    let name = p["name"].as_str().filter(|n| !n.is_empty())?;
                    let number = u16::try_from(p["port"].as_u64()?).ok()?;
                    Some((port_label(name, p["protocol"].as_str().unwrap_or("TCP")), number))
                })
                .collect();
            for endpoint in slice.data["endpoints"].as_array().into_iter().flatten() {
                if endpoint["conditions"]["ready"].as_bool() == Some(false) {
                    continue;
                }
                for ip in endpoint["addresses"].as_array().into_iter().flatten() {
                    let Some(ip) = ip.as_str().and_then(|a| a.parse::<IpAddr>().ok()) else { continue };
                    let host = match endpoint["hostname"].as_str().filter(|h| !h.is_empty()) {
                        Some(h) => h.to_lowercase(),
                        None => ip.to_string().replace(['.', ':'], "-"),
                    };
                    let host = format!("{host}.{fqdn}");
                    self.add(fqdn.to_string(), Data::Address(ip));
                    self.add(host.clone(), Data::Address(ip));
                    self.add(reverse_name(ip), Data::Pointer(host.clone()));
                    for (label, number) in &ports {
                        self.add(format!("{label}.{fqdn}"), Data::Service(*number, host.clone()));
                    }
                }
            }
        }
    }

    /// The domain.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// What is known of a name (lower case, no dot at the end).
    pub fn find(&self, name: &str) -> Found {
        if let Some(data) = self.names.get(name) {
            return Found::Here(data.iter().cloned().collect());
        }
        let Some(below) = name.strip_suffix(&self.domain).filter(|b| b.is_empty() || b.ends_with('.')) else {
            return Found::Foreign;
        };
        if self.inner.contains(name) {
            return Found::Here(Vec::new());
        }
        // `10-244-0-2.<namespace>.pod.<domain>` is that address, whether or not there is such a pod.
        let labels: Vec<&str> = below.trim_end_matches('.').split('.').collect();
        if let [dashed, namespace, "pod"] = labels.as_slice()
            && self.namespaces.contains(*namespace)
            && let Ok(ip) = dashed.replace('-', ".").parse::<Ipv4Addr>()
        {
            return Found::Here(vec![Data::Address(ip.into())]);
        }
        Found::Nothing
    }
}

fn port_label(name: &str, protocol: &str) -> PortLabel {
    format!("_{}._{}", name.to_lowercase(), protocol.to_lowercase())
}

/// The name under which an address' PTR record is.
fn reverse_name(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(a) => {
            let [a, b, c, d] = a.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa")
        }
        IpAddr::V6(a) => {
            let digits: Vec<String> = a
                .octets()
                .iter()
                .rev()
                .flat_map(|o| [format!("{:x}", o & 15), format!("{:x}", o >> 4)])
                .collect();
            format!("{}.ip6.arpa", digits.join("."))
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use serde_json::json;

    pub(crate) fn zone() -> Zone {
        let service = |v| Arc::new(serde_json::from_value::<Service>(v).unwrap());
        let slice = |v| Arc::new(serde_json::from_value::<DynamicObject>(v).unwrap());
        let services = [
            service(
                json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "kube-dns", "namespace": "kube-system"},
                "spec": {"clusterIP": "10.0.0.10", "ports": [{"name": "dns", "port": 53, "protocol": "UDP"}]}}),
            ),
            service(
                json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "nginx", "namespace": "default"},
                "spec": {"clusterIP": "None", "ports": [{"name": "web", "port": 80}]}}),
            ),
            service(
                json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "ext", "namespace": "default"},
                "spec": {"type": "ExternalName", "externalName": "Example.com."}}),
            ),
            service(
                json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "empty", "namespace": "default"},
                "spec": {"clusterIP": "None"}}),
            ),
        ];
        let slices = [slice(json!({"metadata": {"name": "nginx-x", "namespace": "default",
                "labels": {"kubernetes.io/service-name": "nginx"}},
            "addressType": "IPv4", "ports": [{"name": "web", "port": 80, "protocol": "TCP"}],
            "endpoints": [
                {"addresses": ["10.244.0.7"], "hostname": "web-0", "conditions": {"ready": true}},
                {"addresses": ["10.244.0.8"], "conditions": {}},
                {"addresses": ["10.244.0.9"], "hostname": "web-2", "conditions": {"ready": false}}]}))];
        let namespaces: Vec<Arc<Namespace>> = ["default", "kube-system"]
            .map(|n| {
                Arc::new(
                    serde_json::from_value(
                        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": n}}),
                    )
                    .unwrap(),
                )
            })
            .to_vec();
        Zone::build("cluster.local", &services, &slices, &namespaces)
    }

    fn address(ip: &str) -> Data {
        Data::Address(ip.parse().unwrap())
    }

    #[test]
    fn services_and_pods_by_name() {
        let z = zone();
        let here = |n: &str| match z.find(n) {
            Found::Here(d) => d,
            other => panic!("{n}: {other:?}"),
        };
        assert_eq!(here("kube-dns.kube-system.svc.cluster.local"), [address("10.0.0.10")]);
        assert_eq!(here("web-0.nginx.default.svc.cluster.local"), [address("10.244.0.7")]);
        assert_eq!(here("10-244-0-8.nginx.default.svc.cluster.local"), [address("10.244.0.8")]);
        assert_eq!(here("nginx.default.svc.cluster.local"), [address("10.244.0.7"), address("10.244.0.8")]);
        assert_eq!(
            here("_web._tcp.nginx.default.svc.cluster.local"),
            [
                Data::Service(80, "10-244-0-8.nginx.default.svc.cluster.local".into()),
                Data::Service(80, "web-0.nginx.default.svc.cluster.local".into())
            ]
        );
        assert_eq!(
            here("7.0.244.10.in-addr.arpa"),
            [Data::Pointer("web-0.nginx.default.svc.cluster.local".into())]
        );
        assert_eq!(here("ext.default.svc.cluster.local"), [Data::Alias("example.com".into())]);
        assert_eq!(here("10-1-2-3.default.pod.cluster.local"), [address("10.1.2.3")]);
        assert_eq!(here("dns-version.cluster.local"), [Data::Text("1.1.0".into())]);
    }

    #[test]
    fn what_is_there_without_records_and_what_is_not() {
        let z = zone();
        for n in [
            "cluster.local",
            "svc.cluster.local",
            "default.svc.cluster.local",
            "_tcp.nginx.default.svc.cluster.local",
        ] {
            assert_eq!(z.find(n), Found::Here(vec![]), "{n}");
        }
        for n in [
            "nope.default.svc.cluster.local",
            "empty.default.svc.cluster.local",
            "web-2.nginx.default.svc.cluster.local",
            "x.nowhere.svc.cluster.local",
            "10-1-2-3.nowhere.pod.cluster.local",
        ] {
            assert_eq!(z.find(n), Found::Nothing, "{n}");
        }
        for n in ["example.com", "notcluster.local", "", "1.2.3.4.in-addr.arpa"] {
            assert_eq!(z.find(n), Found::Foreign, "{n}");
        }
    }
}
