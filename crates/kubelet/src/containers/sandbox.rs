//! A pod's sandbox as the runtime is told to make it.

use k8s_openapi::api::core::v1::Pod;

use super::{hosts, security};
use crate::config::Config;
use crate::pod::PodExt;
use crate::resources;
use crate::runtime::{cri, labels};

/// The ports that are reachable at the node.
fn ports(pod: &Pod) -> Vec<cri::PortMapping> {
    let all = pod.pod_spec().containers.iter().flat_map(|c| c.ports.iter().flatten());
    all.map(|p| cri::PortMapping {
        protocol: match p.protocol.as_deref() {
            Some("UDP") => cri::Protocol::Udp,
            Some("SCTP") => cri::Protocol::Sctp,
            _ => cri::Protocol::Tcp,
        } as i32,
        container_port: p.container_port,
        host_port: p.host_port.unwrap_or(0),
        host_ip: p.host_ip.clone().unwrap_or_default(),
    })
    .collect()
}

/// A sandbox's configuration. `attempt` counts its sandboxes; `cgroup_parent` is empty where pods have no cgroups.
pub fn sandbox_config(
    pod: &Pod,
    attempt: u32,
    config: &Config,
    dns: cri::DnsConfig,
    cgroup_parent: String,
    groups: Vec<i64>,
) -> Result<cri::PodSandboxConfig, String> {
    let hostname = match pod.host_network() {
        true => String::new(),
        false => hosts::kernel_name(pod, &config.cluster_domain)?,
    };
    let sysctls = pod.pod_spec().security_context.as_ref().and_then(|s| s.sysctls.as_ref());
    let period = i64::try_from(config.cpu_cfs_quota_period.as_micros()).unwrap_or(100_000);
    let overhead = resources::amounts(pod.pod_spec().overhead.as_ref());
    Ok(cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata {
            name: pod.name().into(),
            uid: pod.uid().into(),
            namespace: pod.namespace().into(),
            attempt,
        }),
        hostname,
        log_directory: config.pod_log_dir(pod.namespace(), pod.name(), pod.uid()).display().to_string(),
        dns_config: Some(dns),
        port_mappings: ports(pod),
        labels: labels::sandbox_labels(pod),
        annotations: labels::sandbox_annotations(pod),
        linux: Some(cri::LinuxPodSandboxConfig {
            cgroup_parent,
            security_context: Some(security::sandbox(pod, groups)),
            sysctls: sysctls.into_iter().flatten().map(|s| (s.name.clone(), s.value.clone())).collect(),
            overhead: (!overhead.is_empty()).then(|| cri::LinuxContainerResources {
                cpu_shares: i64::try_from(resources::shares(resources::milli(&overhead, "cpu"))).unwrap_or(0),
                cpu_quota: resources::quota(resources::milli(&overhead, "cpu"), period),
                cpu_period: period,
                memory_limit_in_bytes: resources::value(&overhead, "memory"),
                ..Default::default()
            }),
            resources: None,
        }),
        windows: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_sandbox_has_the_pods_name_ports_and_sysctls() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {"securityContext": {"sysctls": [{"name": "a", "value": "1"}]},
                "containers": [{"name": "c", "ports": [{"containerPort": 80, "hostPort": 8080, "protocol": "UDP"}]}]}}))
        .unwrap();
        let config = crate::testing::config(std::path::Path::new("/r"));
        let s =
            sandbox_config(&pod, 2, &config, Default::default(), "/kubepods/podu".into(), vec![]).unwrap();
        assert_eq!(s.hostname, "p");
        assert_eq!(s.metadata.unwrap().attempt, 2);
        assert_eq!((s.port_mappings[0].host_port, s.port_mappings[0].protocol), (8080, 1));
        assert!(s.log_directory.ends_with("/n_p_u"));
        assert_eq!(s.linux.unwrap().sysctls["a"], "1");
    }
}
