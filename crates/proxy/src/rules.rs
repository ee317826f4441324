//! From services to an nftables rule set: plain data to plain data.
//!
//! Two verdict maps lead from an address and port (or a node port) to the service's chain; the chain chooses a
//! backend at random, or the one that the client had; the backend's chain translates. A service without backends is
//! in a third map, which rejects.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use sha2::{Digest, Sha256};

use crate::family::Family;
use crate::model::{Backend, ServiceEntry};

/// The table that is ours.
pub const TABLE: &str = "kube-proxy";
/// A packet with this mark gets the node's address on its way out.
pub(crate) const MASQUERADE: &str = "0x4000";

/// What the rules depend on beside the services.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Addresses of pods, one network a family: what comes from elsewhere to a service's address is masqueraded.
    pub cluster_cidrs: Vec<IpNet>,
    /// Addresses of services, one network a family: those that no service has are rejected.
    pub service_cidrs: Vec<IpNet>,
    /// Masquerade everything.
    pub masquerade_all: bool,
    /// On which of the node's addresses node ports answer; empty for all.
    pub node_port_addresses: Vec<IpNet>,
}

/// A table's content.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RuleSet {
    /// Whose addresses it has.
    pub family: Family,
    /// Chains that hook into the kernel or are jumped to by them: name to definition and rules.
    pub base: BTreeMap<String, Vec<String>>,
    /// Services' and backends' chains: name to rules.
    pub chains: BTreeMap<String, Vec<String>>,
    /// Maps: name to key type.
    pub maps: BTreeMap<String, String>,
    /// Elements of maps: map, key, verdict.
    pub elements: BTreeMap<(String, String), String>,
    /// Sets of clients for affinity: name to timeout in seconds.
    pub sets: BTreeMap<String, u32>,
    /// UDP services' addresses with their backends, for stale connections.
    pub(crate) udp: BTreeSet<(IpAddr, u16, IpAddr)>,
}

impl RuleSet {
    /// UDP backends that are no longer in `new`: address and port of the service, address of the backend.
    /// Connections to them would go on for as long as the client sends.
    pub fn udp_backends_gone(&self, new: &RuleSet) -> Vec<(IpAddr, u16, IpAddr)> {
        self.udp.difference(&new.udp).copied().collect()
    }

    /// Remembers the backends of a UDP service.
    pub(crate) fn remember_udp(&mut self, s: &ServiceEntry) {
        if s.protocol == "udp" {
            self.udp.extend(s.backends.iter().map(|b| (s.cluster_ip, s.port, b.ip)));
        }
    }
}

/// A short name for what a chain is about. nft's names may have 127 letters; ids may be longer.
pub(crate) fn short(prefix: &str, id: &str) -> String {
    use std::fmt::Write;
    let digest = Sha256::digest(id.as_bytes());
    digest.iter().take(8).fold(format!("{prefix}-"), |mut s, b| {
        let _ = write!(s, "{b:02x}");
        s
    })
}

/// Renders the services of one family.
pub fn render(services: &[ServiceEntry], options: &Options, family: Family) -> RuleSet {
    let mut set = RuleSet { family, base: base(options, family), ..Default::default() };
    let of_address = format!("{} . inet_proto . inet_service : verdict", family.address());
    let of_port = "inet_proto . inet_service : verdict";
    set.maps.insert("service-ips".into(), of_address.clone());
    set.maps.insert("no-endpoint-services".into(), of_address);
    set.maps.insert("service-nodeports".into(), of_port.into());
    set.maps.insert("no-endpoint-nodeports".into(), of_port.into());
    for service in services.iter().filter(|s| s.family() == family) {
        add(&mut set, service, options);
    }
    set
}

/// A chain that hooks into the kernel.
pub(crate) fn hook(kind: &str, hook: &str, priority: &str, rules: &[String]) -> Vec<String> {
    let mut all = vec![format!("type {kind} hook {hook} priority {priority}; policy accept;")];
    all.extend_from_slice(rules);
    all
}

/// A match of the addresses that node ports answer on. Networks of the other family only do not narrow it.
pub(crate) fn node_addresses(options: &Options, family: Family) -> String {
    let (ip, loopback) = (family.ip(), family.loopback());
    let nets = options.node_port_addresses.iter().filter(|net| family.has(net));
    let list: Vec<String> = nets.map(ToString::to_string).collect();
    if list.is_empty() {
        return format!("fib daddr type local {ip} daddr != {loopback}");
    }
    format!("fib daddr type local {ip} daddr {{ {} }}", list.join(", "))
}

/// Gives the node's address to what has the mark, and takes the mark off.
pub(crate) fn masquerade_marked() -> [String; 3] {
    [
        format!("meta mark & {MASQUERADE} == 0 return"),
        format!("meta mark set meta mark ^ {MASQUERADE}"),
        "masquerade fully-random".into(),
    ]
}

/// Who may use a service's load balancer addresses, as elements of a set; nothing where nobody of this family may.
pub(crate) fn ranges(s: &ServiceEntry) -> Option<String> {
    let nets = s.source_ranges.iter().filter_map(|r| r.trim().parse().ok());
    let list: Vec<String> =
        nets.filter(|net| s.family().has(net)).map(|net: IpNet| net.trunc().to_string()).collect();
    (!list.is_empty()).then(|| list.join(", "))
}

fn base(options: &Options, family: Family) -> BTreeMap<String, Vec<String>> {
    let node_addresses = node_addresses(options, family);
    let ip = family.ip();
    let services = vec![
        format!("{ip} daddr . meta l4proto . th dport vmap @service-ips"),
        format!("{node_addresses} meta l4proto . th dport vmap @service-nodeports"),
    ];
    let mut refuse = vec![
        format!("{ip} daddr . meta l4proto . th dport vmap @no-endpoint-services"),
        format!("{node_addresses} meta l4proto . th dport vmap @no-endpoint-nodeports"),
    ];
    if let Some(cidr) = family.first(&options.service_cidrs) {
        refuse.push(format!("{ip} daddr {cidr} goto reject-it"));
    }
    let jump = |chain: &str| vec![format!("jump {chain}")];
    let new = |chain: &str| vec![format!("ct state new jump {chain}")];
    [
        ("nat-prerouting", hook("nat", "prerouting", "-100", &jump("services"))),
        ("nat-output", hook("nat", "output", "-100", &jump("services"))),
        ("nat-postrouting", hook("nat", "postrouting", "100", &masquerade_marked())),
        ("filter-input", hook("filter", "input", "0", &new("refuse"))),
        ("filter-forward", hook("filter", "forward", "0", &new("refuse"))),
        ("filter-output", hook("filter", "output", "0", &new("refuse"))),
        ("services", services),
        ("refuse", refuse),
        // An ICMP error does not come back to a sender on this machine where services are routed to loopback.
        ("reject-it", vec!["meta l4proto tcp reject with tcp reset".to_string(), "reject".to_string()]),
        ("drop-it", vec!["drop".to_string()]),
        ("mark-masquerade", vec![format!("meta mark set meta mark | {MASQUERADE}")]),
    ]
    .into_iter()
    .map(|(name, rules)| (name.to_string(), rules))
    .collect()
}

fn add(set: &mut RuleSet, s: &ServiceEntry, options: &Options) {
    let (family, ip) = (s.family(), s.family().ip());
    let service_key = |ip: IpAddr, port: u16| format!("{ip} . {} . {port}", s.protocol);
    let node_key = format!("{} . {}", s.protocol, s.node_port);
    let externals: Vec<IpAddr> = s.outside_addresses().collect();
    if s.backends.is_empty() {
        let reject = "goto reject-it".to_string();
        for ip in externals.into_iter().chain([s.cluster_ip]) {
            set.elements.insert(("no-endpoint-services".into(), service_key(ip, s.port)), reject.clone());
        }
        if s.node_port != 0 {
            set.elements.insert(("no-endpoint-nodeports".into(), node_key), reject);
        }
        return;
    }
    let id = format!("{} {}", s.id, s.protocol);
    let local: Vec<Backend> = s.backends.iter().filter(|b| b.local).cloned().collect();
    // Pods reach the service's own address as themselves; others get the node's address, so that answers come back.
    let mut inside: Vec<String> = Vec::new();
    if options.masquerade_all {
        inside.push("jump mark-masquerade".into());
    } else if let Some(cidr) = family.first(&options.cluster_cidrs) {
        inside.push(format!("{ip} saddr != {cidr} jump mark-masquerade"));
    }
    let internal = if s.internal_local { &local } else { &s.backends };
    let internal_chain = short("svc", &id);
    if internal.is_empty() {
        set.elements.insert(("service-ips".into(), service_key(s.cluster_ip, s.port)), "goto drop-it".into());
    } else {
        inside.extend(choose(set, s, &id, internal));
        set.chains.insert(internal_chain.clone(), inside);
        set.elements.insert(
            ("service-ips".into(), service_key(s.cluster_ip, s.port)),
            format!("goto {internal_chain}"),
        );
    }
    if !externals.is_empty() || s.node_port != 0 {
        let chain = short("ext", &id);
        let mut rules: Vec<String> = Vec::new();
        if s.external_local {
            // Pods, and this node itself, are inside and may use every backend.
            if let Some(cidr) = family.first(&options.cluster_cidrs).filter(|_| !internal.is_empty()) {
                rules.push(format!("{ip} saddr {cidr} goto {internal_chain}"));
            }
            rules.push("fib saddr type local jump mark-masquerade".into());
            if !internal.is_empty() {
                rules.push(format!("fib saddr type local goto {internal_chain}"));
            }
            if local.is_empty() {
                rules.push("drop".into());
            } else {
                rules.extend(choose(set, s, &id, &local));
            }
        } else {
            rules.push("jump mark-masquerade".into());
            rules.extend(choose(set, s, &id, &s.backends));
        }
        set.chains.insert(chain.clone(), rules);
        let guarded = if s.source_ranges.is_empty() {
            chain.clone()
        } else {
            let guard = short("fw", &id);
            // Others are not translated, and so end at the node itself or at the fence.
            let rules = ranges(s).map(|list| format!("{ip} saddr {{ {list} }} goto {chain}"));
            set.chains.insert(guard.clone(), rules.into_iter().collect());
            guard
        };
        for ip in externals {
            let chain = if s.ingress_ips.contains(&ip) { &guarded } else { &chain };
            set.elements.insert(("service-ips".into(), service_key(ip, s.port)), format!("goto {chain}"));
        }
        if s.node_port != 0 {
            set.elements.insert(("service-nodeports".into(), node_key), format!("goto {chain}"));
        }
    }
    set.remember_udp(s);
}

/// The rules that choose one of `backends`, whose chains are added too.
fn choose(set: &mut RuleSet, s: &ServiceEntry, id: &str, backends: &[Backend]) -> Vec<String> {
    let mut rules = Vec::new();
    let mut targets = Vec::new();
    let ip = s.family().ip();
    for b in backends {
        let at = SocketAddr::new(b.ip, b.port);
        let backend_id = format!("{id} {at}");
        let chain = short("ep", &backend_id);
        // A set keeps its timeout: with another it is another set.
        let affinity = short("aff", &format!("{backend_id} {}", s.affinity_seconds));
        // A pod that reaches itself through the service must not see its own address as the other's.
        let mut own = vec![format!("{ip} saddr {} jump mark-masquerade", b.ip)];
        if s.affinity_seconds > 0 {
            set.sets.insert(affinity.clone(), s.affinity_seconds);
            own.push(format!("update @{affinity} {{ {ip} saddr }}"));
            rules.push(format!("{ip} saddr @{affinity} goto {chain}"));
        }
        own.push(format!("meta l4proto {} dnat to {at}", s.protocol));
        set.chains.insert(chain.clone(), own);
        targets.push(chain);
    }
    if let [one] = targets.as_slice() {
        rules.push(format!("goto {one}"));
    } else {
        let map: Vec<String> = targets.iter().enumerate().map(|(i, c)| format!("{i} : goto {c}")).collect();
        rules.push(format!("numgen random mod {} vmap {{ {} }}", targets.len(), map.join(", ")));
    }
    rules
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn service(backends: &[(&str, bool)]) -> ServiceEntry {
        ServiceEntry {
            id: "ns/s:web".into(),
            protocol: "tcp".into(),
            cluster_ip: [10, 0, 0, 7].into(),
            port: 80,
            node_port: 30080,
            external_ips: BTreeSet::new(),
            ingress_ips: BTreeSet::new(),
            source_ranges: Vec::new(),
            affinity_seconds: 0,
            external_local: false,
            internal_local: false,
            backends: backends
                .iter()
                .map(|(ip, local)| Backend { ip: ip.parse().unwrap(), port: 8080, local: *local })
                .collect(),
        }
    }

    pub(crate) fn element(set: &RuleSet, map: &str, key: &str) -> Option<String> {
        set.elements.get(&(map.to_string(), key.to_string())).cloned()
    }

    #[test]
    fn leads_from_the_address_to_a_backend() {
        let set = render(
            &[service(&[("10.244.0.2", true), ("10.244.0.3", false)])],
            &Options::default(),
            Family::V4,
        );
        let verdict = element(&set, "service-ips", "10.0.0.7 . tcp . 80").unwrap();
        let rules = &set.chains[verdict.strip_prefix("goto ").unwrap()];
        assert!(rules.last().unwrap().starts_with("numgen random mod 2 vmap"), "{rules:?}");
        let translations = set.chains.values().flatten().filter(|r| r.contains("dnat to")).count();
        assert_eq!(translations, 2);
        assert!(element(&set, "service-nodeports", "tcp . 30080").is_some());
    }

    #[test]
    fn without_backends_it_rejects() {
        let set = render(&[service(&[])], &Options::default(), Family::V4);
        assert_eq!(element(&set, "service-ips", "10.0.0.7 . tcp . 80"), None);
        assert!(element(&set, "no-endpoint-services", "10.0.0.7 . tcp . 80").is_some());
        assert!(element(&set, "no-endpoint-nodeports", "tcp . 30080").is_some());
    }

    #[test]
    fn local_only_uses_what_is_here() {
        let mut s = service(&[("10.244.0.2", true), ("10.244.9.3", false)]);
        s.external_local = true;
        let set = render(&[s], &Options::default(), Family::V4);
        let verdict = element(&set, "service-nodeports", "tcp . 30080").unwrap();
        let rules = &set.chains[verdict.strip_prefix("goto ").unwrap()];
        assert!(rules.last().unwrap().starts_with("goto ep-"), "{rules:?}");
    }

    #[test]
    fn affinity_looks_for_the_clients_backend_first() {
        let mut s = service(&[("10.244.0.2", true), ("10.244.0.3", false)]);
        s.affinity_seconds = 60;
        let set = render(&[s], &Options::default(), Family::V4);
        assert_eq!(set.sets.values().collect::<Vec<_>>(), [&60, &60]);
    }

    #[test]
    fn each_family_has_its_own_services() {
        let mut six = service(&[("fd01::2", true), ("fd01::3", false)]);
        six.cluster_ip = "fd00::7".parse().unwrap();
        six.external_local = true;
        six.affinity_seconds = 60;
        six.ingress_ips = ["2001:db8::1".parse().unwrap()].into();
        six.source_ranges = vec!["198.51.100.0/24".into(), "2001:db8:1::/48".into()];
        let nets = |list: [&str; 2]| list.map(|n| n.parse().unwrap()).to_vec();
        let options = Options {
            cluster_cidrs: nets(["10.244.0.0/16", "fd01::/64"]),
            service_cidrs: nets(["10.0.0.0/24", "fd00::/108"]),
            node_port_addresses: nets(["20.0.0.0/24", "fd02::/64"]),
            masquerade_all: false,
        };
        let both = [service(&[("10.244.0.2", true)]), six];
        let (four, six) = (render(&both, &options, Family::V4), render(&both, &options, Family::V6));
        assert!(element(&four, "service-ips", "10.0.0.7 . tcp . 80").is_some());
        assert!(element(&four, "service-ips", "fd00::7 . tcp . 80").is_none());
        assert!(element(&six, "service-ips", "fd00::7 . tcp . 80").is_some());
        let text = format!("{six:?}");
        assert!(
            text.contains("dnat to [fd01::2]:8080") && text.contains("ip6 saddr { 2001:db8:1::/48 }"),
            "{text}"
        );
        for other in ["ipv4_addr", "ip saddr", "ip daddr", "10.244", "20.0.0", "198.51"] {
            assert!(!text.contains(other), "{other}: {text}");
        }
    }

    #[test]
    fn nothing_leads_to_a_chain_that_is_not_there() {
        let mut s = service(&[("10.244.9.3", false)]);
        (s.external_local, s.internal_local) = (true, true);
        let options = Options { cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap()], ..Options::default() };
        let set = render(&[s], &options, Family::V4);
        let led = set.chains.values().flatten().filter_map(|r| r.split("goto ").nth(1));
        for chain in led.chain(set.elements.values().filter_map(|v| v.strip_prefix("goto "))) {
            assert!(set.chains.contains_key(chain) || set.base.contains_key(chain), "{chain}: {set:?}");
        }
    }

    #[test]
    fn another_time_of_affinity_is_another_set() {
        let of = |seconds| {
            let mut s = service(&[("10.244.0.2", true)]);
            s.affinity_seconds = seconds;
            render(&[s], &Options::default(), Family::V4).sets
        };
        assert!(of(60).keys().all(|name| !of(600).contains_key(name)));
        assert_eq!((of(60).len(), of(600).into_values().next()), (1, Some(600)));
    }

    #[test]
    fn udp_backends_that_go_are_told() {
        let udp = |ips: &[(&str, bool)]| {
            let mut s = service(ips);
            s.protocol = "udp".into();
            render(&[s], &Options::default(), Family::V4)
        };
        let gone = udp(&[("10.244.0.2", true), ("10.244.0.3", true)])
            .udp_backends_gone(&udp(&[("10.244.0.3", true)]));
        assert_eq!(gone, [([10, 0, 0, 7].into(), 80, [10, 244, 0, 2].into())]);
    }
}
