//! The kernel takes the rules, whole and in steps, in a network namespace of the test's own.

use std::collections::BTreeSet;
use std::io::Write;
use std::net::IpAddr;
use std::process::{Command, Stdio};

use pilothouse_proxy::family::Family;
use pilothouse_proxy::model::{Backend, ServiceEntry};
use pilothouse_proxy::rules::{Options, RuleSet, render};
use pilothouse_proxy::{ipvs, nft};

/// Addresses of a family: the service's, an external one, the load balancer's, the network that may use it, and the
/// beginning of pods' addresses.
fn addresses(family: Family) -> [&'static str; 5] {
    match family {
        Family::V4 => ["10.0.0.7", "192.0.2.1", "192.0.2.2", "198.51.100.0/24", "10.244.0."],
        Family::V6 => ["fd00::7", "2001:db8::1", "2001:db8::2", "2001:db8:1::/48", "fd01::"],
    }
}

fn service(family: Family, name: &str, backends: &[u8], affinity_seconds: u32) -> ServiceEntry {
    let [cluster_ip, external, ingress, range, pods] = addresses(family);
    let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
    ServiceEntry {
        id: format!("ns/{name}:"),
        protocol: "tcp".into(),
        cluster_ip: ip(cluster_ip),
        port: 80,
        node_port: 30080,
        external_ips: BTreeSet::from([ip(external)]),
        ingress_ips: BTreeSet::from([ip(ingress)]),
        source_ranges: vec![range.into()],
        affinity_seconds,
        external_local: affinity_seconds > 0,
        internal_local: false,
        backends: backends
            .iter()
            .map(|n| Backend { ip: ip(&format!("{pods}{n}")), port: 8080, local: true })
            .collect(),
    }
}

fn options() -> Options {
    let nets = |list: [&str; 2]| list.map(|net| net.parse().expect("a network")).to_vec();
    Options {
        cluster_cidrs: nets(["10.244.0.0/16", "fd01::/64"]),
        service_cidrs: nets(["10.0.0.0/24", "fd00::/108"]),
        masquerade_all: false,
        node_port_addresses: nets(["127.0.0.0/8", "::1/128"]),
    }
}

/// What comes one after another.
fn steps(family: Family) -> [Vec<ServiceEntry>; 6] {
    [
        vec![service(family, "a", &[2, 3], 60)],
        vec![service(family, "a", &[3], 0)],
        vec![service(family, "a", &[], 0)],
        vec![service(family, "b", &[4], 60)],
        vec![],
        vec![service(family, "c", &[5], 0)],
    ]
}

/// Runs all steps in one namespace, one nft call each, and shows the table that they end with.
fn played(family: Family, steps: &[RuleSet]) -> String {
    let mut commands = String::from("set -e\n");
    let mut old = None;
    for step in steps {
        commands.push_str(&format!("nft -f - <<'END'\n{}END\n", nft::script(old, step)));
        old = Some(step);
    }
    commands.push_str(&format!("nft list table {} kube-proxy\n", family.ip()));
    let mut child = Command::new("unshare")
        .args(["--net", "bash"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("unshare (Debian package util-linux)");
    child.stdin.take().expect("a pipe").write_all(commands.as_bytes()).expect("bash reads");
    let output = child.wait_with_output().expect("bash ends");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn takes_each_step_and_ends_with_what_was_asked() {
    for family in Family::ALL {
        let steps = steps(family).map(|services| render(&services, &options(), family));
        let text = played(family, &steps);
        let (here, gone) = match family {
            Family::V4 => ("dnat to 10.244.0.5:8080", "10.244.0.4"),
            Family::V6 => ("dnat to [fd01::5]:8080", "fd01::4"),
        };
        assert_eq!(text.matches(here).count(), 1, "{text}");
        assert!(!text.contains(gone) && !text.contains("aff-"), "{text}");
    }
}

#[test]
fn takes_what_stands_beside_ipvs() {
    for family in Family::ALL {
        let bound = |services: &[ServiceEntry]| services.iter().map(|s| s.cluster_ip).collect();
        let steps = steps(family)
            .map(|services| ipvs::rules::render(&services, &bound(&services), &options(), family));
        let text = played(family, &steps);
        let [cluster_ip, .., pods] = addresses(family);
        assert!(text.contains(&format!("{cluster_ip} : goto reject-it")), "{text}");
        assert!(text.contains(&format!("{pods}5 . {pods}5 . tcp . 8080")), "{text}");
        assert!(!text.contains(&format!("{pods}4")), "{text}");
    }
}
