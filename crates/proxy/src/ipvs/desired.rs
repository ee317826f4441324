//! From services to virtual servers, and to the addresses that the node must take for its own. No I/O.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use super::plan::{Key, MH_PORT, PERSISTENT, Protocol, VirtualServer, Wanted};
use crate::family::Family;
use crate::model::{Backend, ServiceEntry};

/// What should be.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Desired {
    /// Virtual servers.
    pub servers: BTreeMap<Key, Wanted>,
    /// Addresses of `kube-ipvs0`.
    pub addresses: BTreeSet<IpAddr>,
}

/// Virtual servers for each service's own address, its external and load balancer addresses, and its node port on each
/// of the node's `own` addresses. Where two services want the same address and port the first has it.
///
/// `node_ports` are the addresses that node ports answer on; `own` all that the node has beside `kube-ipvs0`: a service
/// may name one of them as external, and it must not be taken from where it is.
pub fn desired(
    services: &[ServiceEntry],
    own: &BTreeSet<IpAddr>,
    node_ports: &BTreeSet<IpAddr>,
    scheduler: &str,
) -> Desired {
    let mut desired = Desired::default();
    for service in services {
        let Some(protocol) = Protocol::named(&service.protocol) else { continue };
        let server = virtual_server(service, scheduler);
        let mut add = |ip: IpAddr, port: u16, local_only: bool| {
            let usable = |b: &&Backend| !local_only || b.local;
            let backends =
                service.backends.iter().filter(usable).map(|b| SocketAddr::new(b.ip, b.port)).collect();
            let wanted = Wanted { server: server.clone(), backends };
            desired.servers.entry(Key { ip, protocol, port }).or_insert(wanted);
        };
        add(service.cluster_ip, service.port, service.internal_local);
        for ip in service.outside_addresses() {
            add(ip, service.port, service.external_local);
        }
        if service.node_port != 0 {
            for ip in node_ports.iter().filter(|ip| Family::of(**ip) == service.family()) {
                add(*ip, service.node_port, service.external_local);
            }
        }
        let all = service.outside_addresses().chain([service.cluster_ip]);
        desired.addresses.extend(all.filter(|ip| !own.contains(ip)));
    }
    desired
}

fn virtual_server(service: &ServiceEntry, scheduler: &str) -> VirtualServer {
    let mut flags = if scheduler == "mh" { MH_PORT } else { 0 };
    if service.affinity_seconds > 0 {
        flags |= PERSISTENT;
    }
    VirtualServer { scheduler: scheduler.into(), flags, timeout: service.affinity_seconds }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::tests::service;

    fn ips(list: &[&str]) -> BTreeSet<IpAddr> {
        list.iter().map(|ip| ip.parse().unwrap()).collect()
    }

    fn texts(desired: &Desired) -> Vec<String> {
        let line = |(k, w): (&Key, &Wanted)| {
            let to: Vec<String> = w.backends.iter().map(ToString::to_string).collect();
            format!("{:?} {}:{} -> {}", k.protocol, k.ip, k.port, to.join(" "))
        };
        desired.servers.iter().map(line).collect()
    }

    #[test]
    fn a_virtual_server_for_each_address() {
        let mut s = service(&[("10.244.0.2", true), ("10.244.1.3", false)]);
        s.external_ips = ["192.0.2.1".parse().unwrap(), "20.0.0.5".parse().unwrap()].into();
        s.ingress_ips = ["198.51.100.9".parse().unwrap()].into();
        s.external_local = true;
        let own = ips(&["20.0.0.5", "127.0.0.1"]);
        let desired = desired(&[s], &own, &ips(&["20.0.0.5"]), "rr");
        assert_eq!(
            texts(&desired),
            [
                "Tcp 10.0.0.7:80 -> 10.244.0.2:8080 10.244.1.3:8080",
                "Tcp 20.0.0.5:80 -> 10.244.0.2:8080",
                "Tcp 20.0.0.5:30080 -> 10.244.0.2:8080",
                "Tcp 192.0.2.1:80 -> 10.244.0.2:8080",
                "Tcp 198.51.100.9:80 -> 10.244.0.2:8080",
            ]
        );
        assert_eq!(desired.addresses, ips(&["10.0.0.7", "192.0.2.1", "198.51.100.9"]));
    }

    #[test]
    fn node_ports_are_of_the_services_family() {
        let mut six = service(&[("fd01::2", true)]);
        six.cluster_ip = "fd00::7".parse().unwrap();
        let own = ips(&["20.0.0.5", "fd02::5"]);
        let desired = desired(&[six], &own, &own, "rr");
        assert_eq!(
            texts(&desired),
            ["Tcp fd00::7:80 -> [fd01::2]:8080", "Tcp fd02::5:30080 -> [fd01::2]:8080"]
        );
    }

    #[test]
    fn affinity_is_persistence() {
        let mut s = service(&[("10.244.0.2", true)]);
        s.affinity_seconds = 60;
        let server = virtual_server(&s, "sh");
        assert_eq!(server, VirtualServer { scheduler: "sh".into(), flags: PERSISTENT, timeout: 60 });
        s.affinity_seconds = 0;
        assert_eq!(virtual_server(&s, "mh").flags, MH_PORT);
    }

    #[test]
    fn a_service_without_backends_keeps_its_address_and_the_first_comer_counts() {
        let none = service(&[]);
        let mut other = service(&[("10.244.0.2", true)]);
        other.id = "ns/z:".into();
        other.node_port = 0;
        let desired = desired(&[none, other], &ips(&[]), &ips(&[]), "rr");
        assert_eq!(texts(&desired), ["Tcp 10.0.0.7:80 -> "]);
        assert_eq!(desired.addresses, ips(&["10.0.0.7"]));
    }
}
