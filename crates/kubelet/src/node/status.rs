//! The Node object and its status: plain functions.

use std::collections::BTreeMap;
use std::path::Path;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeSpec,
    NodeStatus, NodeSystemInfo,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use pilothouse_apimachinery::quantity::{Format, Quantity};

use super::machine::{Machine, arch, filesystem_size};
use crate::config::Config;
use crate::resources::{Amounts, amounts};
use crate::runtime::cri;

/// Says that the controllers attach volumes, not the kubelet.
pub const CONTROLLER_ATTACH: &str = "volumes.kubernetes.io/controller-managed-attach-detach";
/// Most names of one image that are shown.
const MAX_NAMES: usize = 5;

/// What presses on the node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pressure {
    /// Memory is short.
    pub memory: bool,
    /// Disk is short.
    pub disk: bool,
    /// Process ids are short.
    pub pid: bool,
}

/// What a status is made of.
pub struct Facts<'a> {
    /// The configuration.
    pub config: &'a Config,
    /// The machine.
    pub machine: &'a Machine,
    /// The node's address.
    pub ip: &'a str,
    /// `v1.20.2`.
    pub version: &'a str,
    /// `containerd://1.6.20`.
    pub runtime: &'a str,
    /// Images, as the runtime lists them.
    pub images: &'a [cri::Image],
    /// Pressure.
    pub pressure: Pressure,
    /// Why the node is not ready; empty where it is.
    pub errors: &'a [String],
    /// Attached volumes in use.
    pub volumes_in_use: Vec<String>,
}

fn binary(bytes: i64) -> Quantity {
    Quantity::from_value(bytes, Format::BinarySi)
}

fn text(q: &Quantity) -> Text {
    Text(q.canonical())
}

/// What the machine has.
pub fn capacity(config: &Config, machine: &Machine) -> Amounts {
    let number = |n: i64| Quantity::from_value(n, Format::DecimalSi);
    let cpus = i64::try_from(machine.cpus).unwrap_or(i64::MAX);
    let pods = match config.pods_per_core {
        0 => config.max_pods,
        n => config.max_pods.min(n * cpus),
    };
    let mut c = Amounts::from([
        ("cpu".to_string(), number(cpus)),
        ("memory".to_string(), binary(machine.memory)),
        ("pods".to_string(), number(pods)),
        ("ephemeral-storage".to_string(), binary(filesystem_size(&config.root_dir))),
    ]);
    for (size, bytes) in &machine.huge_pages {
        c.insert(format!("hugepages-{size}"), binary(*bytes));
    }
    c
}

/// A threshold of eviction in bytes: an amount, or a part of `whole`.
pub fn threshold(value: &str, whole: i64) -> i64 {
    match value.strip_suffix('%').and_then(|p| p.parse::<f64>().ok()) {
        Some(percent) => (whole as f64 * percent / 100.0) as i64,
        None => Quantity::parse(value).map_or(0, |q| q.value()),
    }
}

/// What is left of it for pods: without what is kept for daemons and below which pods are evicted.
pub fn allocatable(config: &Config, capacity: &Amounts) -> Amounts {
    let reserved = |m: &BTreeMap<String, String>| {
        amounts(Some(&m.iter().map(|(k, v)| (k.clone(), Text(v.clone()))).collect()))
    };
    let (kube, system) = (reserved(&config.kube_reserved), reserved(&config.system_reserved));
    let mut out = capacity.clone();
    for (name, amount) in &mut out {
        for part in [&kube, &system] {
            if let Some(q) = part.get(name) {
                amount.sub(q);
            }
        }
        let signal = match name.as_str() {
            "memory" => "memory.available",
            "ephemeral-storage" => "nodefs.available",
            _ => continue,
        };
        if let Some(t) = config.eviction_hard.get(signal) {
            let whole = capacity.get(name).map_or(0, Quantity::value);
            amount.sub(&binary(threshold(t, whole)));
        }
        if amount.sign() < 0 {
            *amount = binary(0);
        }
    }
    // What is kept as huge pages is not to be had as memory.
    let huge: i64 =
        capacity.iter().filter(|(k, _)| k.starts_with("hugepages-")).map(|(_, q)| q.value()).sum();
    if huge > 0
        && let Some(m) = out.get_mut("memory")
    {
        m.sub(&binary(huge));
    }
    out
}

fn images(list: &[cri::Image], max: i64) -> Vec<ContainerImage> {
    let mut all: Vec<ContainerImage> = list
        .iter()
        .map(|i| {
            let names = i.repo_digests.iter().chain(&i.repo_tags).take(MAX_NAMES).cloned().collect();
            ContainerImage { names: Some(names), size_bytes: i64::try_from(i.size).ok() }
        })
        .collect();
    all.sort_by_key(|i| std::cmp::Reverse(i.size_bytes));
    if let Ok(max) = usize::try_from(max) {
        all.truncate(max);
    }
    all
}

/// A condition with its times: the transition's is that of `old` while the status is the same.
fn condition(
    old: Option<&NodeStatus>,
    now: Timestamp,
    type_: &str,
    status: bool,
    reason: &str,
    message: &str,
) -> NodeCondition {
    let status = if status { "True" } else { "False" };
    let before = old.and_then(|s| s.conditions.as_ref()).into_iter().flatten().find(|c| c.type_ == type_);
    let kept = before.filter(|c| c.status == status).and_then(|c| c.last_transition_time.clone());
    let now = Time(Timestamp::from_second(now.as_second()).unwrap_or(now));
    NodeCondition {
        type_: type_.into(),
        status: status.into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_heartbeat_time: Some(now.clone()),
        last_transition_time: Some(kept.unwrap_or(now)),
    }
}

/// The node's status. `old` is what it was; what is not the kubelet's stays.
pub fn status(facts: &Facts<'_>, old: Option<&NodeStatus>, now: Timestamp) -> NodeStatus {
    let capacity = capacity(facts.config, facts.machine);
    let allocatable = allocatable(facts.config, &capacity);
    let mut out = old.cloned().unwrap_or_default();
    // Extended resources that a device or an administrator put there stay.
    let list = |own: &Amounts, before: Option<&BTreeMap<String, Text>>| -> BTreeMap<String, Text> {
        let mut m: BTreeMap<String, Text> = before
            .into_iter()
            .flatten()
            .filter(|(k, _)| k.contains('/'))
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect();
        m.extend(own.iter().map(|(k, q)| (k.clone(), text(q))));
        m
    };
    let m = facts.machine;
    let address = |type_: &str, a: &str| NodeAddress { type_: type_.into(), address: a.into() };
    let p = facts.pressure;
    let ready_message = match facts.errors {
        [] => "kubelet is posting ready status".to_string(),
        [one] => one.clone(),
        many => format!("[{}]", many.join(", ")),
    };
    let ready = facts.errors.is_empty();
    let pick = |bad: bool, a: &'static str, b: &'static str| if bad { a } else { b };
    let own = vec![
        condition(
            old,
            now,
            "MemoryPressure",
            p.memory,
            pick(p.memory, "KubeletHasInsufficientMemory", "KubeletHasSufficientMemory"),
            pick(
                p.memory,
                "kubelet has insufficient memory available",
                "kubelet has sufficient memory available",
            ),
        ),
        condition(
            old,
            now,
            "DiskPressure",
            p.disk,
            pick(p.disk, "KubeletHasDiskPressure", "KubeletHasNoDiskPressure"),
            pick(p.disk, "kubelet has disk pressure", "kubelet has no disk pressure"),
        ),
        condition(
            old,
            now,
            "PIDPressure",
            p.pid,
            pick(p.pid, "KubeletHasInsufficientPID", "KubeletHasSufficientPID"),
            pick(p.pid, "kubelet has insufficient PID available", "kubelet has sufficient PID available"),
        ),
        condition(old, now, "Ready", ready, pick(!ready, "KubeletNotReady", "KubeletReady"), &ready_message),
    ];
    let others: Vec<NodeCondition> = old
        .and_then(|s| s.conditions.as_ref())
        .into_iter()
        .flatten()
        .filter(|c| !own.iter().any(|o| o.type_ == c.type_))
        .cloned()
        .collect();
    out.conditions = Some(others.into_iter().chain(own).collect());
    out.capacity = Some(list(&capacity, old.and_then(|s| s.capacity.as_ref())));
    out.allocatable = Some(list(&allocatable, old.and_then(|s| s.allocatable.as_ref())));
    out.addresses = Some(vec![address("InternalIP", facts.ip), address("Hostname", &facts.config.node_name)]);
    out.daemon_endpoints = Some(NodeDaemonEndpoints {
        kubelet_endpoint: Some(DaemonEndpoint { port: i32::from(facts.config.port) }),
    });
    out.images = Some(images(facts.images, facts.config.node_status_max_images)).filter(|l| !l.is_empty());
    out.volumes_in_use = Some(facts.volumes_in_use.clone()).filter(|l| !l.is_empty());
    out.node_info = Some(NodeSystemInfo {
        machine_id: m.machine_id.clone(),
        system_uuid: m.system_uuid.clone(),
        boot_id: m.boot_id.clone(),
        kernel_version: m.kernel.clone(),
        os_image: m.os_image.clone(),
        container_runtime_version: facts.runtime.into(),
        kubelet_version: facts.version.into(),
        kube_proxy_version: facts.version.into(),
        operating_system: "linux".into(),
        architecture: m.arch.clone(),
        swap: None,
    });
    out
}

/// The labels that every node has.
pub fn default_labels(node: &str) -> BTreeMap<String, String> {
    [
        ("beta.kubernetes.io/arch", arch()),
        ("beta.kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", arch()),
        ("kubernetes.io/hostname", node),
        ("kubernetes.io/os", "linux"),
    ]
    .map(|(k, v)| (k.to_string(), v.to_string()))
    .into()
}

/// The Node as the kubelet registers it.
pub fn new_node(facts: &Facts<'_>, now: Timestamp) -> Node {
    let config = facts.config;
    let mut labels = default_labels(&config.node_name);
    labels.extend(config.node_labels.clone());
    let mut taints = config.taints.clone();
    if !config.register_schedulable {
        taints.push(k8s_openapi::api::core::v1::Taint {
            key: "node.kubernetes.io/unschedulable".into(),
            effect: "NoSchedule".into(),
            ..Default::default()
        });
    }
    Node {
        metadata: ObjectMeta {
            name: Some(config.node_name.clone()),
            labels: Some(labels),
            annotations: config
                .controller_attach_detach
                .then(|| [(CONTROLLER_ATTACH.to_string(), "true".to_string())].into()),
            ..Default::default()
        },
        spec: Some(NodeSpec {
            taints: Some(taints).filter(|t| !t.is_empty()),
            unschedulable: (!config.register_schedulable).then_some(true),
            provider_id: Some(config.provider_id.clone()).filter(|p| !p.is_empty()),
            ..Default::default()
        }),
        status: Some(status(facts, None, now)),
    }
}

/// Whether two statuses differ in more than the times of heartbeats.
pub fn differs(a: &NodeStatus, b: &NodeStatus) -> bool {
    let still = |s: &NodeStatus| {
        let mut s = s.clone();
        for c in s.conditions.iter_mut().flatten() {
            c.last_heartbeat_time = None;
        }
        s
    };
    still(a) != still(b)
}

/// The folder whose file system a node's ephemeral storage is.
pub fn storage_root(config: &Config) -> &Path {
    &config.root_dir
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn machine() -> Machine {
        Machine {
            cpus: 2,
            memory: 24_643_812 * 1024,
            huge_pages: [("2Mi".to_string(), 0)].into(),
            arch: "amd64".into(),
            ..Default::default()
        }
    }

    fn facts<'a>(config: &'a Config, machine: &'a Machine, errors: &'a [String]) -> Facts<'a> {
        Facts {
            config,
            machine,
            ip: "20.0.0.103",
            version: "v1.20.2",
            runtime: "containerd://1.6.20",
            images: &[],
            pressure: Pressure::default(),
            errors,
            volumes_in_use: vec![],
        }
    }

    #[test]
    fn a_node_as_it_is_registered() {
        let config = crate::testing::config(Path::new("/nowhere"));
        let m = machine();
        let n = new_node(&facts(&config, &m, &[]), Timestamp::UNIX_EPOCH);
        let v = serde_json::to_value(&n).unwrap();
        assert_eq!(v["status"]["capacity"]["memory"], "24643812Ki");
        assert_eq!(v["status"]["allocatable"]["memory"], "24541412Ki");
        assert_eq!(v["status"]["allocatable"]["cpu"], "2");
        assert_eq!(v["metadata"]["labels"]["kubernetes.io/hostname"], "node01");
        assert_eq!(v["metadata"]["annotations"][CONTROLLER_ATTACH], "true");
        let types: Vec<&str> = v["status"]["conditions"]
            .as_array()
            .unwrap()
            .iter()
            .map(|c| c["type"].as_str().unwrap())
            .collect();
        assert_eq!(types, ["MemoryPressure", "DiskPressure", "PIDPressure", "Ready"]);
        assert_eq!(
            v["status"]["addresses"],
            json!([{"type": "InternalIP", "address": "20.0.0.103"}, {"type": "Hostname", "address": "node01"}])
        );
        assert_eq!(v["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"], 10250);
    }

    #[test]
    fn transitions_and_heartbeats() {
        let config = crate::testing::config(Path::new("/nowhere"));
        let m = machine();
        let at = |s: i64| Timestamp::from_second(s).unwrap();
        let first = status(&facts(&config, &m, &[]), None, at(10));
        let same = status(&facts(&config, &m, &[]), Some(&first), at(20));
        assert!(!differs(&first, &same));
        let ready = |s: &NodeStatus| {
            s.conditions.as_ref().unwrap().iter().find(|c| c.type_ == "Ready").cloned().unwrap()
        };
        assert_eq!(ready(&same).last_transition_time, ready(&first).last_transition_time);
        assert_ne!(ready(&same).last_heartbeat_time, ready(&first).last_heartbeat_time);
        let errors = ["a".to_string(), "b".to_string()];
        let bad = status(&facts(&config, &m, &errors), Some(&same), at(30));
        assert_eq!((ready(&bad).status.as_str(), ready(&bad).message.as_deref()), ("False", Some("[a, b]")));
        assert!(differs(&same, &bad));
    }

    #[test]
    fn thresholds() {
        assert_eq!(threshold("100Mi", 0), 100 << 20);
        assert_eq!(threshold("10%", 1000), 100);
    }

    #[test]
    fn images_are_listed_largest_first() {
        let image =
            |name: &str, size| cri::Image { repo_tags: vec![name.into()], size, ..Default::default() };
        let list = images(&[image("a", 1), image("b", 3), image("c", 2)], 2);
        assert_eq!(list.iter().map(|i| i.size_bytes.unwrap()).collect::<Vec<_>>(), [3, 2]);
        assert_eq!(images(&[image("a", 1)], -1).len(), 1);
    }
}
