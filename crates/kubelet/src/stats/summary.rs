//! `/stats/summary`, as the kubelet's Summary API has it.

use serde_json::{Map, Value, json};

use super::collector::{ContainerUsage, Group, PodUsage, Sample, VolumeUsage, show_time};
use super::filesystem::{Space, Used};
use super::machine::Interface;
use crate::pod::PodExt;

fn cpu(g: &Group) -> Value {
    let mut v = json!({"time": show_time(g.at)});
    if let Some(rate) = g.rate {
        v["usageNanoCores"] = rate.into();
    }
    v["usageCoreNanoSeconds"] = g.usage.cpu.total.into();
    v
}

fn memory(g: &Group) -> Value {
    let m = &g.usage.memory;
    let mut v = json!({"time": show_time(g.at)});
    if let Some(limit) = m.limit {
        v["availableBytes"] = limit.saturating_sub(m.working_set).into();
    }
    v["usageBytes"] = m.usage.into();
    v["workingSetBytes"] = m.working_set.into();
    v["rssBytes"] = m.rss.into();
    v["pageFaults"] = m.faults.into();
    v["majorPageFaults"] = m.major_faults.into();
    v
}

/// A file system, with how much of it something uses.
fn fs(at: &str, space: &Space, used: Option<Used>) -> Value {
    let used = used.unwrap_or(Used { bytes: space.used, inodes: space.inodes_used() });
    json!({"time": at, "availableBytes": space.available, "capacityBytes": space.capacity, "usedBytes": used.bytes,
        "inodesFree": space.inodes_free, "inodes": space.inodes, "inodesUsed": used.inodes})
}

fn network(at: &str, interfaces: &[Interface]) -> Value {
    let show = |i: &Interface| json!({"name": i.name, "rxBytes": i.rx[0], "rxErrors": i.rx[2], "txBytes": i.tx[0], "txErrors": i.tx[2]});
    let mut v = json!({"time": at, "name": ""});
    // The main interface stands at the top as well.
    if let Some(main) = interfaces.iter().find(|i| i.name == "eth0")
        && let (Some(all), Value::Object(own)) = (v.as_object_mut(), show(main))
    {
        all.extend(own);
    }
    v["interfaces"] = interfaces.iter().map(show).collect();
    v
}

fn container(c: &ContainerUsage, s: &Sample, small: bool) -> Value {
    let mut v = json!({"name": c.name, "startTime": show_time(c.created), "cpu": cpu(&c.group), "memory": memory(&c.group)});
    if !small {
        let at = show_time(s.at);
        v["rootfs"] = fs(&at, &s.image_fs, Some(c.rootfs));
        v["logs"] = fs(&at, &s.node_fs, Some(c.logs));
    }
    v
}

fn volume(at: &str, v: &VolumeUsage) -> Value {
    let mut out = fs(at, &v.space, Some(v.used));
    out["name"] = v.name.as_str().into();
    out
}

fn pod(p: &PodUsage, s: &Sample, small: bool) -> Value {
    let start = p
        .pod
        .pod_status()
        .start_time
        .as_ref()
        .map_or_else(|| show_time(p.sandbox.created), |t| t.0.to_string());
    let mut v = json!({
        "podRef": {"name": p.pod.name(), "namespace": p.pod.namespace(), "uid": p.pod.uid()},
        "startTime": start,
        "containers": p.containers.iter().map(|c| container(c, s, small)).collect::<Vec<_>>(),
        "cpu": cpu(&p.group),
        "memory": memory(&p.group),
    });
    if small {
        return v;
    }
    let at = show_time(s.at);
    if !p.network.is_empty() {
        v["network"] = network(&at, &p.network);
    }
    if !p.volumes.is_empty() {
        v["volume"] = p.volumes.iter().map(|x| volume(&at, x)).collect();
    }
    v["ephemeral-storage"] = fs(&at, &s.node_fs, Some(p.ephemeral()));
    v["process_stats"] = json!({"process_count": p.processes()});
    v
}

/// The summary of a node; `small` with CPU and memory only.
pub fn summary(node: &str, s: &Sample, small: bool) -> Value {
    let at = show_time(s.at);
    let mut system = Vec::new();
    if let Some(g) = &s.kubepods {
        let mut g = g.clone();
        g.usage.memory.limit.get_or_insert(s.machine.memory);
        system.push(json!({"name": "pods", "startTime": show_time(g.usage.created * 1_000_000_000),
            "cpu": cpu(&g), "memory": memory(&g)}));
    }
    let mut v = Map::new();
    v.insert("nodeName".into(), node.into());
    v.insert("systemContainers".into(), system.into());
    v.insert("startTime".into(), show_time(s.machine.boot_time * 1_000_000_000).into());
    v.insert("cpu".into(), cpu(&s.node));
    v.insert("memory".into(), memory(&s.node));
    if !small {
        v.insert("network".into(), network(&at, &s.network));
        v.insert("fs".into(), fs(&at, &s.node_fs, None));
        let images = Used { bytes: s.images, inodes: s.image_fs.inodes_used() };
        v.insert("runtime".into(), json!({"imageFs": fs(&at, &s.image_fs, Some(images))}));
        v.insert("rlimit".into(), json!({"time": at, "maxpid": s.processes.0, "curproc": s.processes.1}));
    }
    // A pod of which only the sandbox runs uses nothing worth telling.
    let pods = s.pods.iter().filter(|p| !p.containers.is_empty());
    json!({"node": v, "pods": pods.map(|p| pod(p, s, small)).collect::<Vec<_>>()})
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::stats::cgroup::Usage;
    use std::sync::Arc;

    /// One pod with one container.
    pub(crate) fn sample() -> Sample {
        let group = |path: &str| {
            let mut usage = Usage::default();
            usage.cpu.total = 2_500_000_000;
            usage.memory.working_set = 1000;
            usage.created = 5;
            Group { path: path.into(), usage, rate: Some(7), at: 1_000_000_000 }
        };
        let c = |name: &str, path: &str| ContainerUsage {
            name: name.into(),
            id: format!("id-{name}"),
            image: "busybox".into(),
            created: 3_000_000_000,
            group: group(path),
            rootfs: Used { bytes: 4096, inodes: 2 },
            logs: Used { bytes: 100, inodes: 1 },
        };
        let pod =
            serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}})).unwrap();
        Sample {
            at: 1_000_000_000,
            node: group("/"),
            kubepods: Some(group("/kubepods")),
            others: vec![group("/kubepods"), group("/system.slice")],
            pods: vec![PodUsage {
                pod: Arc::new(pod),
                group: group("/kubepods/podu"),
                sandbox: c("POD", "/kubepods/podu/id-POD"),
                containers: vec![c("c", "/kubepods/podu/id-c")],
                network: vec![Interface { name: "eth0".into(), rx: [1, 2, 3, 4], tx: [5, 6, 7, 8] }],
                volumes: vec![VolumeUsage {
                    name: "v".into(),
                    used: Used { bytes: 10, inodes: 1 },
                    ephemeral: true,
                    ..Default::default()
                }],
            }],
            ..Sample::default()
        }
    }

    #[test]
    fn has_the_fields_of_v1_20() {
        let v = summary("node01", &sample(), false);
        let pod = &v["pods"][0];
        assert_eq!(v["node"]["nodeName"], "node01");
        assert_eq!(v["node"]["systemContainers"][0]["name"], "pods");
        assert_eq!(v["node"]["startTime"], "1970-01-01T00:00:00Z");
        assert_eq!(pod["network"]["name"], "eth0");
        assert_eq!(pod["network"]["rxErrors"], 3);
        assert_eq!(pod["ephemeral-storage"]["usedBytes"], 4206);
        assert_eq!(pod["containers"][0]["rootfs"]["usedBytes"], 4096);
        assert_eq!(
            pod["containers"][0]["cpu"],
            json!({"time": "1970-01-01T00:00:01Z", "usageNanoCores": 7, "usageCoreNanoSeconds": 2_500_000_000u64})
        );
        assert!(pod["memory"].get("availableBytes").is_none(), "without a limit nothing is available");
        assert!(v["node"]["systemContainers"][0]["memory"].get("availableBytes").is_some());
        let small = summary("node01", &sample(), true);
        assert!(small["node"].get("fs").is_none() && small["pods"][0].get("network").is_none());
        assert!(small["pods"][0]["containers"][0].get("rootfs").is_none());
    }
}
