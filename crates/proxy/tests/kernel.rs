//! The kernel takes the rules, whole and in steps, in a network namespace of the test's own.

use std::collections::BTreeSet;
use std::io::Write;
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};

use pilothouse_proxy::model::{Backend, ServiceEntry};
use pilothouse_proxy::nft;
use pilothouse_proxy::rules::{Options, render};

fn service(name: &str, backends: &[&str], affinity_seconds: u32) -> ServiceEntry {
    ServiceEntry {
        id: format!("ns/{name}:"),
        protocol: "tcp".into(),
        cluster_ip: Ipv4Addr::new(10, 0, 0, 7),
        port: 80,
        node_port: 30080,
        external_ips: BTreeSet::from([Ipv4Addr::new(192, 0, 2, 1)]),
        ingress_ips: BTreeSet::from([Ipv4Addr::new(192, 0, 2, 2)]),
        source_ranges: vec!["198.51.100.0/24".into()],
        affinity_seconds,
        external_local: affinity_seconds > 0,
        internal_local: false,
        backends: backends
            .iter()
            .map(|ip| Backend { ip: ip.parse().expect("an address"), port: 8080, local: true })
            .collect(),
    }
}

#[test]
fn takes_each_step_and_ends_with_what_was_asked() {
    let options = Options {
        cluster_cidr: Some("10.244.0.0/16".parse().unwrap()),
        service_cidr: Some("10.0.0.0/24".parse().unwrap()),
        masquerade_all: false,
        node_port_addresses: vec!["127.0.0.0/8".parse().unwrap()],
    };
    let steps = [
        render(&[service("a", &["10.244.0.2", "10.244.0.3"], 60)], &options),
        render(&[service("a", &["10.244.0.3"], 0)], &options),
        render(&[service("a", &[], 0)], &options),
        render(&[service("b", &["10.244.0.4"], 60)], &options),
        render(&[], &options),
        render(&[service("c", &["10.244.0.5"], 0)], &options),
    ];
    // All steps run in one namespace, one nft call each, then the table is shown.
    let mut commands = String::from("set -e\n");
    let mut old = None;
    for step in &steps {
        commands.push_str(&format!("nft -f - <<'END'\n{}END\n", nft::script(old, step)));
        old = Some(step);
    }
    commands.push_str("nft list table ip kube-proxy\n");
    let mut child = Command::new("unshare")
        .args(["--net", "bash"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("unshare (Debian package util-linux)");
    child.stdin.take().unwrap().write_all(commands.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(text.matches("dnat to 10.244.0.5:8080").count(), 1, "{text}");
    assert!(!text.contains("10.244.0.4") && !text.contains("aff-"), "{text}");
}
