//! What IPVS does not do: masquerading, source ranges, and refusing what a service's address has no port for. The
//! rules stand in the same table as those of a proxy without IPVS, so that either replaces the other in one step.
//!
//! Packets are marked before IPVS takes them (it does so on their way in to this machine, and out of it) and
//! masqueraded after it, by the mark.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::family::Family;
use crate::model::ServiceEntry;
use crate::rules::{MASQUERADE, Options, RuleSet, hook, masquerade_marked, node_addresses, ranges, short};

const MARK: &str = "goto mark-masquerade";

/// Renders the services of one family. `addresses` are those of `kube-ipvs0`.
pub fn render(
    services: &[ServiceEntry],
    addresses: &BTreeSet<IpAddr>,
    options: &Options,
    family: Family,
) -> RuleSet {
    let mut set = RuleSet { family, base: base(options, family), ..Default::default() };
    let address = family.address();
    let of_address = format!("{address} . inet_proto . inet_service : verdict");
    set.maps.insert("service-ips".into(), of_address.clone());
    set.maps.insert("known-services".into(), of_address);
    set.maps.insert("known-ips".into(), format!("{address} : verdict"));
    set.maps.insert("service-nodeports".into(), "inet_proto . inet_service : verdict".into());
    set.maps.insert("hairpin".into(), format!("{address} . {address} . inet_proto . inet_service : verdict"));
    for service in services.iter().filter(|s| s.family() == family) {
        add(&mut set, service);
    }
    for ip in addresses.iter().filter(|ip| Family::of(**ip) == family) {
        set.elements.insert(("known-ips".into(), ip.to_string()), "goto reject-it".into());
    }
    set
}

fn base(options: &Options, family: Family) -> BTreeMap<String, Vec<String>> {
    let node_addresses = node_addresses(options, family);
    let ip = family.ip();
    let services = vec![
        format!("{ip} daddr . meta l4proto . th dport vmap @service-ips"),
        format!("{node_addresses} meta l4proto . th dport vmap @service-nodeports"),
    ];
    // Pods reach the service's own address as themselves. The node itself would do so from the service's address, as
    // that is its own too, and would get no answer.
    let mut inside = Vec::new();
    if options.masquerade_all {
        inside.push("jump mark-masquerade".to_string());
    } else if let Some(cidr) = family.first(&options.cluster_cidrs) {
        inside.push(format!("{ip} saddr != {cidr} jump mark-masquerade"));
    } else {
        inside.push("fib saddr type local jump mark-masquerade".to_string());
    }
    // The node has these addresses, but its own programs do not answer on them.
    let mut refuse = vec![
        format!("{ip} daddr . meta l4proto . th dport vmap @known-services"),
        format!("meta l4proto {{ tcp, udp, sctp }} {ip} daddr vmap @known-ips"),
    ];
    if let Some(cidr) = family.first(&options.service_cidrs) {
        refuse.push(format!("{ip} daddr {cidr} goto reject-it"));
    }
    let mut leave = vec![format!("{ip} saddr . {ip} daddr . meta l4proto . th dport vmap @hairpin")];
    leave.extend(masquerade_marked());
    let jump = |chain: &str| vec![format!("ct state new jump {chain}")];
    [
        ("mark-prerouting", hook("filter", "prerouting", "-100", &jump("services"))),
        ("mark-output", hook("filter", "output", "-101", &jump("services"))),
        ("nat-postrouting", hook("nat", "postrouting", "100", &leave)),
        ("filter-input", hook("filter", "input", "0", &jump("refuse"))),
        ("filter-forward", hook("filter", "forward", "0", &jump("refuse"))),
        ("filter-output", hook("filter", "output", "0", &jump("refuse"))),
        ("services", services),
        ("cluster-ips", inside),
        ("refuse", refuse),
        ("reject-it", vec!["meta l4proto tcp reject with tcp reset".to_string(), "reject".to_string()]),
        ("mark-masquerade", vec![format!("meta mark set meta mark | {MASQUERADE}")]),
        ("from-this-node", vec!["fib saddr type local jump mark-masquerade".to_string()]),
        ("masquerade-it", vec!["masquerade fully-random".to_string()]),
    ]
    .into_iter()
    .map(|(name, rules)| (name.to_string(), rules))
    .collect()
}

fn add(set: &mut RuleSet, s: &ServiceEntry) {
    let mut element = |map: &str, key: String, verdict: &str| {
        set.elements.entry((map.to_string(), key)).or_insert_with(|| verdict.to_string());
    };
    let key = |ip: &dyn std::fmt::Display| format!("{ip} . {} . {}", s.protocol, s.port);
    element("service-ips", key(&s.cluster_ip), "goto cluster-ips");
    element("known-services", key(&s.cluster_ip), "return");
    // Who comes from outside to a service that keeps to the node's own backends is let through as who it is.
    let guard = short("fw", &format!("{} {}", s.id, s.protocol));
    for ip in s.outside_addresses() {
        element("known-services", key(&ip), "return");
        if s.ingress_ips.contains(&ip) && !s.source_ranges.is_empty() {
            element("service-ips", key(&ip), &format!("goto {guard}"));
        } else if !s.external_local {
            element("service-ips", key(&ip), MARK);
        } else {
            element("service-ips", key(&ip), "goto from-this-node");
        }
    }
    if s.node_port != 0 {
        let verdict = if s.external_local { "goto from-this-node" } else { MARK };
        element("service-nodeports", format!("{} . {}", s.protocol, s.node_port), verdict);
    }
    for b in s.backends.iter().filter(|b| b.local) {
        // A pod that reaches itself through the service must not see its own address as the other's.
        let loops = format!("{0} . {0} . {1} . {2}", b.ip, s.protocol, b.port);
        element("hairpin", loops, "goto masquerade-it");
    }
    if !s.ingress_ips.is_empty() && !s.source_ranges.is_empty() {
        let next = if s.external_local { "goto from-this-node" } else { MARK };
        let mut rules = vec![format!("fib saddr type local {next}")];
        let ip = s.family().ip();
        rules.extend(ranges(s).map(|list| format!("{ip} saddr {{ {list} }} {next}")));
        rules.push("drop".into());
        set.chains.insert(guard, rules);
    }
    set.remember_udp(s);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::tests::{element, service};

    #[test]
    fn marks_what_would_not_find_its_way_back() {
        let mut s = service(&[("10.244.0.2", true), ("10.244.1.3", false)]);
        s.external_ips = ["192.0.2.1".parse().unwrap()].into();
        let options = Options { cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap()], ..Options::default() };
        let set = render(&[s.clone()], &["10.0.0.7".parse().unwrap()].into(), &options, Family::V4);
        assert_eq!(element(&set, "service-ips", "10.0.0.7 . tcp . 80").as_deref(), Some("goto cluster-ips"));
        assert_eq!(element(&set, "service-ips", "192.0.2.1 . tcp . 80").as_deref(), Some(MARK));
        assert_eq!(element(&set, "service-nodeports", "tcp . 30080").as_deref(), Some(MARK));
        let hairpins: Vec<_> = set.elements.keys().filter(|(map, _)| map == "hairpin").collect();
        assert_eq!(hairpins.len(), 1);
        assert_eq!(hairpins[0].1, "10.244.0.2 . 10.244.0.2 . tcp . 8080");
        assert_eq!(set.base["cluster-ips"], ["ip saddr != 10.244.0.0/16 jump mark-masquerade"]);
        assert_eq!(element(&set, "known-ips", "10.0.0.7").as_deref(), Some("goto reject-it"));
        s.external_local = true;
        let set = render(&[s], &BTreeSet::new(), &options, Family::V4);
        assert_eq!(element(&set, "service-nodeports", "tcp . 30080").as_deref(), Some("goto from-this-node"));
    }

    #[test]
    fn source_ranges_are_of_load_balancers_only() {
        let mut s = service(&[("10.244.0.2", true)]);
        s.external_ips = ["192.0.2.1".parse().unwrap()].into();
        s.ingress_ips = ["192.0.2.2".parse().unwrap()].into();
        s.source_ranges = vec!["198.51.100.0/24".into(), "fd00::/8".into()];
        let set = render(&[s], &BTreeSet::new(), &Options::default(), Family::V4);
        assert_eq!(element(&set, "service-ips", "192.0.2.1 . tcp . 80").as_deref(), Some(MARK));
        let guard = element(&set, "service-ips", "192.0.2.2 . tcp . 80").unwrap();
        let rules = &set.chains[guard.strip_prefix("goto ").unwrap()];
        assert_eq!(rules[1..], [format!("ip saddr {{ 198.51.100.0/24 }} {MARK}"), "drop".to_string()]);
    }
}
