//! A pod's `resolv.conf`: what the runtime is told to write into it.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Pod, PodDNSConfig};

use crate::pod::PodExt;
use crate::runtime::cri;

const MAX_SERVERS: usize = 3;
const MAX_SEARCHES: usize = 6;
const MAX_SEARCH_CHARS: usize = 256;

/// Parses a resolv.conf as the kubelet does: servers, searches, options; a later `search` replaces an earlier one.
pub fn parse(text: &str) -> cri::DnsConfig {
    let mut out = cri::DnsConfig::default();
    for line in text.lines().map(str::trim).filter(|l| !l.starts_with('#')) {
        let mut fields = line.split_whitespace();
        match fields.next() {
            Some("nameserver") => out.servers.extend(fields.next().map(String::from)),
            Some("search") => {
                out.searches =
                    fields.filter(|s| *s != ".").map(|s| s.trim_end_matches('.').to_string()).collect()
            }
            Some("options") => {
                for o in fields {
                    set_option(&mut out.options, o.to_string());
                }
            }
            _ => {}
        }
    }
    out
}

fn set_option(options: &mut Vec<String>, option: String) {
    let name = |o: &str| o.split(':').next().unwrap_or("").to_string();
    match options.iter_mut().find(|o| name(o) == name(&option)) {
        Some(o) => *o = option,
        None => options.push(option),
    }
}

fn without_duplicates(list: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    for s in list {
        if !out.contains(&s) {
            out.push(s);
        }
    }
    out
}

/// What the node has to say about names.
pub struct Node<'a> {
    /// Text of the node's resolv.conf; `None` where the kubelet is told to use none.
    pub resolv_conf: Option<&'a str>,
    /// The cluster's name servers.
    pub cluster_dns: &'a [IpAddr],
    /// The cluster's domain.
    pub cluster_domain: &'a str,
}

/// An event that the making of a configuration calls for: reason and message.
pub type Warning = (&'static str, String);

/// A pod's DNS configuration, with warnings for its events.
pub fn pod_dns(pod: &Pod, node: &Node<'_>) -> Result<(cri::DnsConfig, Vec<Warning>), String> {
    let mut warnings = Vec::new();
    let host = node.resolv_conf.map(parse);
    let policy = pod.pod_spec().dns_policy.as_deref().unwrap_or("ClusterFirst");
    let cluster = match policy {
        "None" => None,
        "ClusterFirstWithHostNet" => Some(true),
        "ClusterFirst" => Some(!pod.host_network()),
        "Default" => Some(false),
        other => return Err(format!("invalid DNSPolicy={other}")),
    };
    let mut dns = match cluster {
        None => cri::DnsConfig::default(),
        Some(true) if !node.cluster_dns.is_empty() => cri::DnsConfig {
            servers: node.cluster_dns.iter().map(ToString::to_string).collect(),
            searches: cluster_searches(
                pod.namespace(),
                node.cluster_domain,
                host.unwrap_or_default().searches,
            ),
            options: vec!["ndots:5".into()],
        },
        Some(of_cluster) => {
            if of_cluster {
                let text = format!(
                    "kubelet does not have ClusterDNS IP configured and cannot create Pod using \"{policy}\" policy. Falling back to \"Default\" policy.",
                    policy = "ClusterFirst"
                );
                warnings.push(("MissingClusterDNS", format!("pod: \"{}\". {text}", pod.described())));
            }
            host.unwrap_or_else(|| cri::DnsConfig {
                servers: vec!["127.0.0.1".into()],
                searches: vec![".".into()],
                options: Vec::new(),
            })
        }
    };
    if let Some(own) = &pod.pod_spec().dns_config {
        append(&mut dns, own);
    }
    fit(&mut dns, &mut warnings);
    Ok((dns, warnings))
}

fn cluster_searches(namespace: &str, domain: &str, of_host: Vec<String>) -> Vec<String> {
    if domain.is_empty() {
        return of_host;
    }
    let own = [format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.to_string()];
    without_duplicates(own.into_iter().chain(of_host))
}

fn append(dns: &mut cri::DnsConfig, own: &PodDNSConfig) {
    let more = |list: &mut Vec<String>, with: &Option<Vec<String>>| {
        *list = without_duplicates(std::mem::take(list).into_iter().chain(with.iter().flatten().cloned()));
    };
    more(&mut dns.servers, &own.nameservers);
    more(&mut dns.searches, &own.searches);
    for o in own.options.iter().flatten() {
        let Some(name) = &o.name else { continue };
        let option = match o.value.as_deref() {
            Some(v) if !v.is_empty() => format!("{name}:{v}"),
            _ => name.clone(),
        };
        set_option(&mut dns.options, option);
    }
}

/// Cuts what the resolver library would not read.
fn fit(dns: &mut cri::DnsConfig, warnings: &mut Vec<Warning>) {
    if dns.servers.len() > MAX_SERVERS {
        dns.servers.truncate(MAX_SERVERS);
        warnings.push((
            "DNSConfigForming",
            format!(
                "Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: {}",
                dns.servers.join(" ")
            ),
        ));
    }
    let mut cut = dns.searches.len() > MAX_SEARCHES;
    dns.searches.truncate(MAX_SEARCHES);
    while dns.searches.join(" ").len() > MAX_SEARCH_CHARS {
        dns.searches.pop();
        cut = true;
    }
    if cut {
        warnings.push((
            "DNSConfigForming",
            format!(
                "Search Line limits were exceeded, some search paths have been omitted, the applied search line is: {}",
                dns.searches.join(" ")
            ),
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const HOST: &str = "# c\nsearch example.test.\nnameserver 20.0.0.53\noptions ndots:1\n";

    fn run(spec: Value) -> (String, Vec<Warning>) {
        let mut base = json!({"containers": []});
        base.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        let pod: Pod =
            serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "ns"}, "spec": base}))
                .unwrap();
        let dns = ["10.0.0.10".parse().unwrap()];
        let node = Node { resolv_conf: Some(HOST), cluster_dns: &dns, cluster_domain: "cluster.local" };
        let (d, w) = pod_dns(&pod, &node).unwrap();
        (format!("{} | {} | {}", d.searches.join(" "), d.servers.join(" "), d.options.join(" ")), w)
    }

    #[test]
    fn policies() {
        let cluster =
            "ns.svc.cluster.local svc.cluster.local cluster.local example.test | 10.0.0.10 | ndots:5";
        let host = "example.test | 20.0.0.53 | ndots:1";
        assert_eq!(run(json!({})).0, cluster);
        assert_eq!(run(json!({"hostNetwork": true})).0, host);
        assert_eq!(run(json!({"hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet"})).0, cluster);
        let none = json!({"dnsPolicy": "None", "dnsConfig": {"nameservers": ["9.9.9.9"], "searches": ["x", "y"],
            "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}]}});
        assert_eq!(run(none).0, "x y | 9.9.9.9 | ndots:2 edns0");
    }

    #[test]
    fn limits() {
        let (text, w) = run(
            json!({"dnsPolicy": "Default", "dnsConfig": {"nameservers": ["9.9.9.1", "9.9.9.2", "9.9.9.3"]}}),
        );
        assert_eq!(text, "example.test | 20.0.0.53 9.9.9.1 9.9.9.2 | ndots:1");
        assert_eq!(
            w[0].1,
            "Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: 20.0.0.53 9.9.9.1 9.9.9.2"
        );
        let (text, w) = run(json!({"dnsConfig": {"searches": ["a.test", "b.test", "c.test"]}}));
        assert!(text.starts_with(
            "ns.svc.cluster.local svc.cluster.local cluster.local example.test a.test b.test |"
        ));
        assert_eq!(w.len(), 1);
        let (text, _) = run(json!({"dnsConfig": {"searches": ["x".repeat(200), "y".repeat(50)]}}));
        assert!(!text.contains("xx"));
        let (text, w) = run(json!({"dnsConfig": {"searches": ["svc.cluster.local", "x.test", "x.test"]}}));
        assert!(text.contains("example.test x.test |") && w.is_empty());
    }
}
