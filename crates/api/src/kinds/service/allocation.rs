//! Addresses and node ports of services: which are needed, kept and given back. The pools themselves are the
//! server's; here are the rules.

use std::collections::{BTreeMap, BTreeSet};

use pilothouse_apimachinery::field::{self, ErrorList, Path};
use pilothouse_apimachinery::json::{Value, get_i64, has, json, list_at, list_mut, remove, set, str_at};
use pilothouse_apimachinery::names;

use super::{HEADLESS, is_headless, type_of};
use crate::kinds::checks::strings;

/// A pool of ports.
pub trait Ports {
    /// Takes a certain port. The error's text is one like `provided port is already allocated`.
    fn allocate(&mut self, port: i64) -> Result<(), String>;
    /// Takes any port.
    fn allocate_next(&mut self) -> Result<i64, String>;
}

/// Whether services of this type have addresses.
pub fn needs_cluster_ip(service: &Value) -> bool {
    matches!(type_of(service), "ClusterIP" | "NodePort" | "LoadBalancer")
}

/// Whether an address is to be allocated, or checked against the range: not for headless services.
pub fn takes_from_pool(service: &Value) -> bool {
    needs_cluster_ip(service) && str_at(service, &["spec", "clusterIP"]) != HEADLESS
}

/// Whether services of this type get node ports.
pub fn needs_node_port(service: &Value) -> bool {
    match type_of(service) {
        "NodePort" => true,
        "LoadBalancer" => service.pointer("/spec/allocateLoadBalancerNodePorts") != Some(&Value::Bool(false)),
        _ => false,
    }
}

/// Whether `externalTrafficPolicy` means something for this type.
pub fn has_external_policy(service: &Value) -> bool {
    matches!(type_of(service), "NodePort" | "LoadBalancer")
}

/// Whether the load balancer asks nodes for their health on a port of its own.
pub fn needs_health_check_port(service: &Value) -> bool {
    type_of(service) == "LoadBalancer" && str_at(service, &["spec", "externalTrafficPolicy"]) == "Local"
}

/// The node ports of a service, without 0 and without the port for health checks.
pub fn node_ports(service: &Value) -> BTreeSet<i64> {
    list_at(service, &["spec", "ports"])
        .iter()
        .map(|p| get_i64(p, &["nodePort"]))
        .filter(|n| *n != 0)
        .collect()
}

/// Node ports and health check port that the old service holds and the new one (`None`: deleted) does not.
pub fn released_ports(old: &Value, new: Option<&Value>) -> BTreeSet<i64> {
    let all = |s: &Value| {
        let mut ports = node_ports(s);
        ports.extend(Some(get_i64(s, &["spec", "healthCheckNodePort"])).filter(|p| *p != 0));
        ports
    };
    let kept = new.map(all).unwrap_or_default();
    all(old).difference(&kept).copied().collect()
}

/// Addresses that the old service holds and the new one (`None`: deleted) does not.
pub fn released_ips(old: &Value, new: Option<&Value>) -> Vec<String> {
    let of = |s: &Value| -> BTreeSet<String> {
        strings(s, &["spec", "clusterIPs"])
            .into_iter()
            .filter(|ip| *ip != HEADLESS && !ip.is_empty())
            .map(ToString::to_string)
            .collect()
    };
    let kept = new.map(of).unwrap_or_default();
    of(old).difference(&kept).cloned().collect()
}

/// Why a service does not get its ports.
#[derive(Debug)]
pub enum Refusal {
    /// What the client asked for is not to be had.
    Invalid(ErrorList),
    /// Not the client's fault, or told as if it were not.
    Internal(String),
}

fn port_error(i: usize, port: i64, why: &str) -> Refusal {
    Refusal::Invalid(vec![field::invalid(&Path::new("spec.ports").index(i).child("nodePort"), port, why)])
}

fn any_port(pool: &mut dyn Ports) -> Result<i64, Refusal> {
    pool.allocate_next().map_err(|e| Refusal::Internal(format!("failed to allocate a nodePort: {e}")))
}

/// Gives a new service its node ports. Ports of one number with several protocols share a node port.
pub fn assign_node_ports(service: &mut Value, pool: &mut dyn Ports) -> Result<(), Refusal> {
    if !needs_node_port(service) {
        return Ok(());
    }
    let requested: Vec<(i64, i64)> = list_at(service, &["spec", "ports"])
        .iter()
        .map(|p| (get_i64(p, &["port"]), get_i64(p, &["nodePort"])))
        .collect();
    let mut given: BTreeMap<i64, i64> = BTreeMap::new();
    for (i, port) in list_mut(service, &["spec", "ports"]).iter_mut().enumerate() {
        let (number, wanted) = requested[i];
        match given.get(&number) {
            None => {
                let first = requested[i..].iter().find(|(n, w)| *n == number && *w != 0).map(|(_, w)| *w);
                let node_port = match first {
                    Some(wanted) => {
                        pool.allocate(wanted).map_err(|e| port_error(i, wanted, &e))?;
                        wanted
                    }
                    None => any_port(pool)?,
                };
                set(port, &["nodePort"], node_port);
                given.insert(number, node_port);
            }
            Some(shared) if wanted == 0 => set(port, &["nodePort"], *shared),
            Some(shared) if wanted != *shared => {
                pool.allocate(wanted).map_err(|e| port_error(i, wanted, &e))?;
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// Gives an updated service the node ports that it lacks. What it had, it may keep.
pub fn reassign_node_ports(new: &mut Value, old: &Value, pool: &mut dyn Ports) -> Result<(), Refusal> {
    if !needs_node_port(new) {
        return Ok(());
    }
    let mut held = if needs_node_port(old) { node_ports(old) } else { BTreeSet::new() };
    for (i, port) in list_mut(new, &["spec", "ports"]).iter_mut().enumerate() {
        let wanted = get_i64(port, &["nodePort"]);
        if wanted == 0 {
            let node_port = any_port(pool)?;
            set(port, &["nodePort"], node_port);
        } else if held.insert(wanted) {
            pool.allocate(wanted).map_err(|e| port_error(i, wanted, &e))?;
        }
    }
    Ok(())
}

/// Gives a service its port for health checks where it needs one, and takes it away where it does not.
/// `old` is the service before an update. A port that is set may not change.
pub fn assign_health_check_port(
    service: &mut Value,
    old: Option<&Value>,
    pool: &mut dyn Ports,
) -> Result<(), Refusal> {
    let path = Path::new("spec.healthCheckNodePort");
    let wanted = get_i64(service, &["spec", "healthCheckNodePort"]);
    let before = old.filter(|o| needs_health_check_port(o));
    let needed = needs_health_check_port(service);
    match (before, needed) {
        (None, true) => {
            let port = if wanted == 0 {
                pool.allocate_next().map_err(|e| {
                    Refusal::Internal(format!("failed to allocate a HealthCheck NodePort 0: {e}"))
                })?
            } else {
                pool.allocate(wanted).map_err(|e| {
                    let what = format!("failed to allocate requested HealthCheck NodePort {wanted}: {e}");
                    Refusal::Internal(what)
                })?;
                wanted
            };
            set(service, &["spec", "healthCheckNodePort"], port);
        }
        (Some(_), false) => {
            remove(service, &["spec", "healthCheckNodePort"]);
        }
        (Some(old), true) if wanted != get_i64(old, &["spec", "healthCheckNodePort"]) => {
            return Err(Refusal::Invalid(vec![field::invalid(
                &path,
                wanted,
                "cannot change healthCheckNodePort on loadBalancer service with externalTraffic=Local during update",
            )]));
        }
        _ => {}
    }
    Ok(())
}

/// Fills in families and family policy (newer than v1.20, where these fields are behind a gate that is off).
/// `configured` are the families of the cluster's service ranges, the first the default one.
pub fn default_families(
    service: &mut Value,
    old: Option<&Value>,
    configured: &[&'static str],
) -> Result<(), ErrorList> {
    if !needs_cluster_ip(service) {
        return Ok(());
    }
    let Some(primary) = configured.first() else { return Ok(()) };
    let spec = Path::new("spec");
    let ips: Vec<String> =
        strings(service, &["spec", "clusterIPs"]).into_iter().map(ToString::to_string).collect();
    let mut families: Vec<String> =
        strings(service, &["spec", "ipFamilies"]).into_iter().map(ToString::to_string).collect();
    let family_of = |ip: &str| if names::is_ipv6(ip) { "IPv6" } else { "IPv4" };
    let headless = is_headless(service);
    let selectorless = !has(service, &["spec", "selector"]);
    if str_at(service, &["spec", "ipFamilyPolicy"]).is_empty() {
        let policy = if families.len() > 1 || ips.len() > 1 {
            "RequireDualStack"
        } else if headless && selectorless && old.is_none() && configured.len() > 1 && families.is_empty() {
            "PreferDualStack"
        } else {
            "SingleStack"
        };
        set(service, &["spec", "ipFamilyPolicy"], policy);
    }
    let policy = str_at(service, &["spec", "ipFamilyPolicy"]).to_string();
    if !headless {
        for (i, ip) in ips.iter().enumerate().skip(families.len()) {
            let family = family_of(ip);
            if !configured.contains(&family) {
                let why = format!("an {family} value can not be used: the cluster is not configured for it");
                return Err(vec![field::invalid(&spec.child("clusterIPs").index(i), ip.as_str(), &why)]);
            }
            families.push(family.to_string());
        }
    }
    for (i, family) in families.iter().enumerate() {
        if !configured.contains(&family.as_str()) {
            return Err(vec![field::invalid(
                &spec.child("ipFamilies").index(i),
                family.as_str(),
                "not configured on this cluster",
            )]);
        }
    }
    if policy == "SingleStack" && (families.len() > 1 || ips.len() > 1) {
        return Err(vec![field::invalid(
            &spec.child("ipFamilyPolicy"),
            policy.as_str(),
            "must be RequireDualStack or PreferDualStack when multiple ipFamilies are specified",
        )]);
    }
    if policy == "RequireDualStack" && configured.len() < 2 && !(headless && selectorless) {
        return Err(vec![field::invalid(
            &spec.child("ipFamilyPolicy"),
            policy.as_str(),
            "this cluster is not configured for dual-stack services",
        )]);
    }
    if families.is_empty() {
        families.push((*primary).to_string());
    }
    if policy != "SingleStack" && families.len() == 1 {
        families.extend(configured.iter().find(|f| **f != families[0]).map(ToString::to_string));
    }
    set(service, &["spec", "ipFamilies"], json!(families));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Pool(BTreeSet<i64>, i64);

    impl Ports for Pool {
        fn allocate(&mut self, port: i64) -> Result<(), String> {
            if self.0.insert(port) { Ok(()) } else { Err("provided port is already allocated".into()) }
        }
        fn allocate_next(&mut self) -> Result<i64, String> {
            self.1 += 1;
            self.0.insert(self.1);
            Ok(self.1)
        }
    }

    fn pool() -> Pool {
        Pool(BTreeSet::from([30007]), 30000)
    }

    #[test]
    fn one_number_shares_a_node_port() {
        let mut s = json!({"spec": {"type": "NodePort", "ports": [
            {"port": 53, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}, {"port": 80, "protocol": "TCP", "nodePort": 30080}]}});
        assign_node_ports(&mut s, &mut pool()).unwrap();
        let ports: Vec<i64> =
            list_at(&s, &["spec", "ports"]).iter().map(|p| get_i64(p, &["nodePort"])).collect();
        assert_eq!(ports, [30001, 30001, 30080]);
    }

    #[test]
    fn taken_ports_are_errors() {
        let mut s = json!({"spec": {"type": "NodePort", "ports": [{"port": 80, "nodePort": 30007}]}});
        let Refusal::Invalid(errs) = assign_node_ports(&mut s, &mut pool()).unwrap_err() else {
            panic!("not the client's fault")
        };
        assert_eq!(
            errs[0].to_string(),
            "spec.ports[0].nodePort: Invalid value: 30007: provided port is already allocated"
        );
    }

    #[test]
    fn updates_keep_their_own() {
        let old = json!({"spec": {"type": "NodePort", "ports": [{"port": 80, "nodePort": 30007}, {"port": 81, "nodePort": 30008}]}});
        let mut new =
            json!({"spec": {"type": "NodePort", "ports": [{"port": 80, "nodePort": 30007}, {"port": 82}]}});
        reassign_node_ports(&mut new, &old, &mut pool()).unwrap();
        assert_eq!(new["spec"]["ports"][1]["nodePort"], 30001);
        assert_eq!(released_ports(&old, Some(&new)), BTreeSet::from([30008]));
        assert_eq!(released_ports(&old, None).len(), 2);
    }

    #[test]
    fn health_check_ports() {
        let mut s = json!({"spec": {"type": "LoadBalancer", "externalTrafficPolicy": "Local"}});
        assign_health_check_port(&mut s, None, &mut pool()).unwrap();
        assert_eq!(s["spec"]["healthCheckNodePort"], 30001);
        let mut taken = json!({"spec": {"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 30007}});
        let Err(Refusal::Internal(why)) = assign_health_check_port(&mut taken, None, &mut pool()) else {
            panic!("port 30007 is taken")
        };
        assert_eq!(
            why,
            "failed to allocate requested HealthCheck NodePort 30007: provided port is already allocated"
        );
        let mut changed = s.clone();
        set(&mut changed, &["spec", "healthCheckNodePort"], 5);
        assert!(assign_health_check_port(&mut changed, Some(&s), &mut pool()).is_err());
        set(&mut changed, &["spec", "externalTrafficPolicy"], "Cluster");
        assign_health_check_port(&mut changed, Some(&s), &mut pool()).unwrap();
        assert!(!has(&changed, &["spec", "healthCheckNodePort"]));
    }

    #[test]
    fn families() {
        let mut s = json!({"spec": {"type": "ClusterIP", "selector": {"a": "b"}}});
        default_families(&mut s, None, &["IPv4"]).unwrap();
        assert_eq!(s["spec"]["ipFamilies"], json!(["IPv4"]));
        assert_eq!(s["spec"]["ipFamilyPolicy"], "SingleStack");
        let mut s = json!({"spec": {"type": "ClusterIP", "ipFamilyPolicy": "PreferDualStack", "clusterIPs": ["fd00::1"]}});
        default_families(&mut s, None, &["IPv4", "IPv6"]).unwrap();
        assert_eq!(s["spec"]["ipFamilies"], json!(["IPv6", "IPv4"]));
        let mut s = json!({"spec": {"type": "ClusterIP", "ipFamilies": ["IPv6"]}});
        assert!(default_families(&mut s, None, &["IPv4"]).is_err());
    }
}
