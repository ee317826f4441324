//! A pod's `/etc/hosts` and its host name.

use k8s_openapi::api::core::v1::{HostAlias, Pod};

use crate::pod::PodExt;

/// Longest host name the kernel takes.
const KERNEL_MAX: usize = 64;

/// A pod's host name and domain. The domain is empty where the pod has no subdomain.
pub fn host_name(pod: &Pod, cluster_domain: &str) -> (String, String) {
    let spec = pod.pod_spec();
    let name = spec.hostname.as_deref().filter(|h| !h.is_empty()).unwrap_or(pod.name());
    let cut: String = name.chars().take(63).collect();
    let name = if cut.len() < name.len() { cut.trim_end_matches(['-', '.']).to_string() } else { cut };
    let domain = match spec.subdomain.as_deref().filter(|s| !s.is_empty()) {
        Some(s) => format!("{s}.{}.svc.{cluster_domain}", pod.namespace()),
        None => String::new(),
    };
    (name, domain)
}

/// What the kernel is told: the host name, or all of it where the pod asks so.
pub fn kernel_name(pod: &Pod, cluster_domain: &str) -> Result<String, String> {
    let (name, domain) = host_name(pod, cluster_domain);
    if pod.pod_spec().set_hostname_as_fqdn != Some(true) || domain.is_empty() {
        return Ok(name);
    }
    let full = format!("{name}.{domain}");
    if full.len() > KERNEL_MAX {
        return Err(format!(
            "Failed to construct FQDN from pod hostname and cluster domain, FQDN {full} is too long ({KERNEL_MAX} characters is the max, {} characters requested)",
            full.len()
        ));
    }
    Ok(full)
}

/// The file of a pod with a network of its own.
pub fn managed(ips: &[String], name: &str, domain: &str, aliases: &[HostAlias]) -> String {
    let mut out = String::from(
        "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n",
    );
    for ip in ips {
        if domain.is_empty() {
            out.push_str(&format!("{ip}\t{name}\n"));
        } else {
            out.push_str(&format!("{ip}\t{name}.{domain}\t{name}\n"));
        }
    }
    out.push_str(&entries(aliases));
    out
}

/// The file of a pod in the node's network: the node's own, with the aliases.
pub fn of_node(nodes_file: &str, aliases: &[HostAlias]) -> String {
    format!("# Kubernetes-managed hosts file (host network).\n{nodes_file}{}", entries(aliases))
}

fn entries(aliases: &[HostAlias]) -> String {
    if aliases.is_empty() {
        return String::new();
    }
    let lines = aliases.iter().map(|a| {
        format!(
            "{}\t{}\n",
            a.ip,
            a.hostnames.iter().flatten().map(String::as_str).collect::<Vec<_>>().join("\t")
        )
    });
    format!("\n# Entries added by HostAliases.\n{}", lines.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(spec: Value) -> Pod {
        let mut p: Pod =
            serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "ns"}, "spec": spec}))
                .unwrap();
        p.spec.get_or_insert_default();
        p
    }

    #[test]
    fn names() {
        let names = |spec| host_name(&pod(spec), "cluster.local");
        assert_eq!(names(json!({"containers": []})), ("p".into(), "".into()));
        assert_eq!(
            names(json!({"containers": [], "hostname": "h", "subdomain": "sub"})),
            ("h".into(), "sub.ns.svc.cluster.local".into())
        );
        let p = pod(json!({"containers": [], "subdomain": "sub", "setHostnameAsFQDN": true}));
        assert_eq!(kernel_name(&p, "cluster.local").unwrap(), "p.sub.ns.svc.cluster.local");
        assert!(
            kernel_name(&p, &"x".repeat(60))
                .unwrap_err()
                .contains("is too long (64 characters is the max, 73")
        );
    }

    #[test]
    fn files() {
        let alias: HostAlias =
            serde_json::from_value(json!({"ip": "1.1.1.1", "hostnames": ["a", "b"]})).unwrap();
        let text = managed(&["10.1.1.1".into()], "h", "d", &[]);
        assert_eq!(text.lines().count(), 8);
        assert!(text.ends_with("10.1.1.1\th.d\th\n"));
        let text = managed(&["10.1.1.1".into()], "h", "", std::slice::from_ref(&alias));
        assert!(text.ends_with("10.1.1.1\th\n\n# Entries added by HostAliases.\n1.1.1.1\ta\tb\n"));
        assert_eq!(of_node("x\n", &[]), "# Kubernetes-managed hosts file (host network).\nx\n");
    }
}
