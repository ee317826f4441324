//! From a service to the addresses behind it.

use std::net::{IpAddr, SocketAddr};

use pilothouse_apimachinery::json::Value;
use rand::seq::SliceRandom;

use crate::json::{i64_at, list_at, str_at};
use crate::request::Objects;

/// Addresses of the pods behind a service's port (its number or name, `""` for the only one), in random order.
/// `Err` says what is missing, as v1.20's proxy says it.
pub fn endpoints(
    objects: &dyn Objects,
    namespace: &str,
    name: &str,
    port: &str,
) -> Result<Vec<SocketAddr>, Missing> {
    let service = objects.get("", "services", namespace, name).ok_or(Missing::Service)?;
    let ports = list_at(&service, &["spec", "ports"]);
    let wanted = match port {
        "" => ports.first(),
        text => ports.iter().find(|p| {
            str_at(p, &["name"]) == text || i64_at(p, &["port"]).is_some_and(|n| n.to_string() == text)
        }),
    };
    // A service without ports of that name may still have endpoints with it.
    let port_name = wanted.map_or(port, |p| str_at(p, &["name"]));
    let mut out = match objects.get("", "endpoints", namespace, name) {
        Some(endpoints) => addresses(&endpoints, port_name),
        None => return Err(Missing::Endpoints),
    };
    if out.is_empty() {
        return Err(Missing::Ready);
    }
    out.shuffle(&mut rand::rng());
    Ok(out)
}

/// What a service lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// The service itself.
    Service,
    /// Its Endpoints object.
    Endpoints,
    /// A ready address with the port.
    Ready,
}

/// The ready addresses of an Endpoints object with a port of that name.
fn addresses(endpoints: &Value, port: &str) -> Vec<SocketAddr> {
    let mut out = Vec::new();
    for subset in list_at(endpoints, &["subsets"]) {
        let port = list_at(subset, &["ports"]).iter().find(|p| str_at(p, &["name"]) == port);
        let Some(port) = port.and_then(|p| u16::try_from(i64_at(p, &["port"])?).ok()) else { continue };
        let ips = list_at(subset, &["addresses"]).iter();
        out.extend(
            ips.filter_map(|a| str_at(a, &["ip"]).parse::<IpAddr>().ok()).map(|ip| SocketAddr::new(ip, port)),
        );
    }
    out
}

/// Where a service named by a webhook is reached: the pods behind it, else its cluster address.
pub fn service(
    objects: &dyn Objects,
    namespace: &str,
    name: &str,
    port: u16,
) -> Result<Vec<SocketAddr>, String> {
    match endpoints(objects, namespace, name, &port.to_string()) {
        Ok(addresses) => return Ok(addresses),
        Err(Missing::Service) => return Err(format!("service {name:?} not found")),
        Err(_) => {}
    }
    let service =
        objects.get("", "services", namespace, name).ok_or_else(|| format!("service {name:?} not found"))?;
    match str_at(&service, &["spec", "clusterIP"]).parse::<IpAddr>() {
        Ok(ip) => Ok(vec![SocketAddr::new(ip, port)]),
        Err(_) => Err(format!("no endpoints available for service {name:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::FakeObjects;
    use pilothouse_apimachinery::json::json;

    #[test]
    fn finds_ready_addresses_by_port() {
        let o = FakeObjects::default();
        assert_eq!(endpoints(&o, "n", "s", ""), Err(Missing::Service));
        o.put("", "services", json!({"metadata": {"name": "s", "namespace": "n"}, "spec": {"clusterIP": "10.0.0.9", "ports": [{"name": "web", "port": 80}]}}));
        assert_eq!(endpoints(&o, "n", "s", "80"), Err(Missing::Endpoints));
        assert_eq!(service(&o, "n", "s", 80), Ok(vec!["10.0.0.9:80".parse().unwrap()]));
        o.put("", "endpoints", json!({"metadata": {"name": "s", "namespace": "n"}, "subsets": [
            {"addresses": [{"ip": "10.1.0.1"}], "notReadyAddresses": [{"ip": "10.1.0.2"}], "ports": [{"name": "web", "port": 8080}]}]}));
        for port in ["", "80", "web"] {
            assert_eq!(endpoints(&o, "n", "s", port), Ok(vec!["10.1.0.1:8080".parse().unwrap()]), "{port}");
        }
        assert_eq!(endpoints(&o, "n", "s", "other"), Err(Missing::Ready));
    }
}
