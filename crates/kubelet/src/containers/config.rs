//! A container as the runtime is told to make it.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod};

use super::expansion::expand;
use super::security::{self, ImageUser};
use crate::config::Config;
use crate::resources;
use crate::runtime::{cri, labels};

/// What has been made ready for the container.
pub struct Prepared<'a> {
    /// Reference of the image that is there.
    pub image: &'a str,
    /// Whom the image runs as.
    pub user: &'a ImageUser,
    /// Environment.
    pub environment: &'a BTreeMap<String, String>,
    /// Mounts.
    pub mounts: Vec<cri::Mount>,
    /// Devices.
    pub devices: Vec<cri::Device>,
    /// Supplemental groups.
    pub groups: Vec<i64>,
    /// How often it was started before.
    pub restart_count: u32,
    /// The node's memory, in bytes.
    pub memory_capacity: i64,
}

/// Limits of a container, as the kernel takes them.
pub fn linux_resources(
    pod: &Pod,
    container: &Container,
    config: &Config,
    memory_capacity: i64,
) -> cri::LinuxContainerResources {
    let (requests, limits) = (resources::requests(container), resources::limits(container));
    let period = i64::try_from(config.cpu_cfs_quota_period.as_micros()).unwrap_or(100_000);
    let (request, limit) = (resources::milli(&requests, "cpu"), resources::milli(&limits, "cpu"));
    // A limit without a request asks for the limit. The API server says so too, but not for static pods.
    let shares = resources::shares(if request == 0 { limit } else { request });
    cri::LinuxContainerResources {
        cpu_shares: i64::try_from(shares).unwrap_or(0),
        cpu_period: if config.cpu_cfs_quota { period } else { 0 },
        cpu_quota: if config.cpu_cfs_quota { resources::quota(limit, period) } else { 0 },
        memory_limit_in_bytes: resources::value(&limits, "memory"),
        oom_score_adj: resources::oom_score_adj(pod, container, memory_capacity),
        hugepage_limits: limits
            .iter()
            .filter_map(|(k, q)| {
                let size =
                    k.strip_prefix("hugepages-")?.replace("Mi", "MB").replace("Gi", "GB").replace("Ki", "KB");
                Some(cri::HugepageLimit { page_size: size, limit: u64::try_from(q.value()).unwrap_or(0) })
            })
            .collect(),
        ..Default::default()
    }
}

/// A container's configuration.
pub fn container_config(
    pod: &Pod,
    container: &Container,
    config: &Config,
    p: Prepared<'_>,
) -> cri::ContainerConfig {
    let expanded = |list: &Option<Vec<String>>| -> Vec<String> {
        list.iter().flatten().map(|s| expand(s, |name| p.environment.get(name).cloned())).collect()
    };
    cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata { name: container.name.clone(), attempt: p.restart_count }),
        image: Some(cri::ImageSpec { image: p.image.to_string(), ..Default::default() }),
        command: expanded(&container.command),
        args: expanded(&container.args),
        working_dir: container.working_dir.clone().unwrap_or_default(),
        envs: p.environment.iter().map(|(k, v)| cri::KeyValue { key: k.clone(), value: v.clone() }).collect(),
        labels: labels::container_labels(pod, container),
        annotations: labels::container_annotations(pod, container, p.restart_count),
        log_path: format!("{}/{}.log", container.name, p.restart_count),
        stdin: container.stdin.unwrap_or(false),
        stdin_once: container.stdin_once.unwrap_or(false),
        tty: container.tty.unwrap_or(false),
        linux: Some(cri::LinuxContainerConfig {
            resources: Some(linux_resources(pod, container, config, p.memory_capacity)),
            security_context: Some(security::container(
                pod,
                container,
                p.user,
                p.groups,
                &config.seccomp_root,
            )),
        }),
        mounts: p.mounts,
        devices: p.devices,
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::PodExt;
    use serde_json::json;

    #[test]
    fn a_container_as_the_runtime_gets_it() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {"containers": [{"name": "c", "image": "i", "command": ["sh", "$(A)"], "args": ["$(NO)"],
                "resources": {"limits": {"cpu": "500m", "memory": "32Mi", "hugepages-2Mi": "4Mi"}}}]}}))
        .unwrap();
        let config = crate::testing::config(std::path::Path::new("/r"));
        let env = [("A".to_string(), "x".to_string())].into();
        let prepared = Prepared {
            image: "sha256:1",
            user: &ImageUser::Id(0),
            environment: &env,
            mounts: vec![],
            devices: vec![],
            groups: vec![],
            restart_count: 2,
            memory_capacity: 1 << 30,
        };
        let c = container_config(&pod, &pod.pod_spec().containers[0], &config, prepared);
        assert_eq!((c.command, c.args), (vec!["sh".to_string(), "x".into()], vec!["$(NO)".to_string()]));
        assert_eq!(c.log_path, "c/2.log");
        let r = c.linux.unwrap().resources.unwrap();
        assert_eq!((r.cpu_shares, r.cpu_quota, r.cpu_period), (512, 50_000, 100_000));
        assert_eq!(r.memory_limit_in_bytes, 33_554_432);
        assert_eq!(r.hugepage_limits[0].page_size, "2MB");
    }
}
