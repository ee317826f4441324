//! Who goes first, and what is said of it.

use std::cmp::Ordering;

use pilothouse_apimachinery::quantity::{Format, Quantity};

use super::signal::Signal;
use crate::pod::PodExt;
use crate::resources;
use crate::stats::{ContainerUsage, PodUsage};

fn usage(signal: Signal, p: &PodUsage) -> i64 {
    let n = match signal {
        Signal::Memory => p.group.usage.memory.working_set,
        Signal::NodeFs | Signal::ImageFs => p.ephemeral().bytes,
        Signal::NodeFsInodes | Signal::ImageFsInodes => p.ephemeral().inodes,
        Signal::Pids => 0,
    };
    i64::try_from(n).unwrap_or(i64::MAX)
}

fn request(signal: Signal, p: &PodUsage) -> i64 {
    match signal {
        Signal::Memory | Signal::NodeFs | Signal::ImageFs => {
            resources::value(&resources::pod_requests(&p.pod), signal.resource())
        }
        _ => 0,
    }
}

fn priority(p: &PodUsage) -> i32 {
    p.pod.pod_spec().priority.unwrap_or(0)
}

/// Sorts pods: who takes more than asked for, then who matters less, then who takes most.
pub fn rank(signal: Signal, pods: &mut [&PodUsage]) {
    let exceeds = |p: &PodUsage| usage(signal, p) > request(signal, p);
    let excess = |p: &PodUsage| usage(signal, p) - request(signal, p);
    pods.sort_by(|a, b| {
        let by_usage = match signal {
            Signal::Pids => Ordering::Equal,
            _ => exceeds(b).cmp(&exceeds(a)),
        };
        by_usage.then(priority(a).cmp(&priority(b))).then(match signal {
            Signal::Pids => Ordering::Equal,
            _ => excess(b).cmp(&excess(a)),
        })
    });
}

fn container_usage(signal: Signal, c: &ContainerUsage) -> Option<i64> {
    let n = match signal {
        Signal::Memory => c.group.usage.memory.working_set,
        Signal::NodeFs | Signal::ImageFs => c.rootfs.bytes + c.logs.bytes,
        _ => return None,
    };
    i64::try_from(n).ok()
}

/// The message of an eviction.
pub fn message(signal: Signal, p: &PodUsage) -> String {
    let mut text = format!("The node was low on resource: {}. ", signal.resource());
    for c in &p.containers {
        let Some(spec) = p.pod.pod_spec().containers.iter().find(|s| s.name == c.name) else { continue };
        let Some(used) = container_usage(signal, c) else { continue };
        let requests = resources::requests(spec);
        let asked = requests.get(signal.resource());
        if used > asked.map_or(0, Quantity::value) {
            let used = Quantity::from_value(used, Format::BinarySi);
            let asked = asked.map_or_else(|| "0".into(), ToString::to_string);
            text.push_str(&format!(
                "Container {} was using {used}, which exceeds its request of {asked}. ",
                c.name
            ));
        }
    }
    text
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::stats::collector::Group;
    use crate::stats::filesystem::Used;
    use serde_json::json;
    use std::sync::Arc;

    pub(crate) fn pod(name: &str, priority: i32, asked: &str, memory: u64, disk: u64) -> PodUsage {
        let pod = json!({"metadata": {"name": name, "namespace": "n", "uid": name}, "spec": {"priority": priority,
            "containers": [{"name": "c", "resources": {"requests": {"memory": asked}}}]}});
        let mut group = Group::default();
        group.usage.memory.working_set = memory;
        let c = ContainerUsage {
            name: "c".into(),
            group: group.clone(),
            rootfs: Used { bytes: disk, inodes: 1 },
            ..Default::default()
        };
        PodUsage {
            pod: Arc::new(serde_json::from_value(pod).unwrap()),
            group,
            sandbox: ContainerUsage::default(),
            containers: vec![c],
            network: vec![],
            volumes: vec![],
        }
    }

    #[test]
    fn order_of_v1_20() {
        let pods = [
            pod("within", 0, "2Ki", 1024, 9),
            pod("high", 5, "0", 9999, 7),
            pod("low", 0, "1Ki", 1500, 8),
            pod("most", 0, "1Ki", 3000, 0),
        ];
        let names = |signal| {
            let mut refs: Vec<&PodUsage> = pods.iter().collect();
            rank(signal, &mut refs);
            refs.iter().map(|p| p.pod.name().to_string()).collect::<Vec<_>>()
        };
        assert_eq!(names(Signal::Memory), ["most", "low", "high", "within"]);
        assert_eq!(names(Signal::NodeFs), ["within", "low", "high", "most"]);
        assert_eq!(names(Signal::Pids)[3], "high");
    }

    #[test]
    fn messages_of_v1_20() {
        let p = pod("p", 0, "1Ki", 2048, 4096);
        assert_eq!(
            message(Signal::Memory, &p),
            "The node was low on resource: memory. Container c was using 2Ki, which exceeds its request of 1Ki. "
        );
        assert_eq!(
            message(Signal::NodeFs, &p),
            "The node was low on resource: ephemeral-storage. Container c was using 4Ki, which exceeds its request of 0. "
        );
        assert_eq!(message(Signal::Pids, &p), "The node was low on resource: pids. ");
    }
}
