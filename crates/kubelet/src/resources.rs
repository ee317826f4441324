//! Requests and limits: what a pod asks for, its quality of service, and what that means for the kernel.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use pilothouse_apimachinery::quantity::{Format, Quantity};

use crate::pod::{PodExt, SYSTEM_CRITICAL_PRIORITY};

/// Fewest CPU shares that the kernel takes.
pub const MIN_SHARES: u64 = 2;
/// Shares of one processor.
pub const SHARES_PER_CPU: u64 = 1024;
/// Shortest CPU quota, in microseconds.
pub const MIN_QUOTA: i64 = 1000;

/// Amounts by resource.
pub type Amounts = BTreeMap<String, Quantity>;

/// Parses a resource list. What is no quantity is left out: the API server lets none through.
pub fn amounts(list: Option<&BTreeMap<String, Text>>) -> Amounts {
    list.into_iter().flatten().filter_map(|(k, v)| Some((k.clone(), Quantity::parse(&v.0).ok()?))).collect()
}

/// A container's requests.
pub fn requests(c: &Container) -> Amounts {
    amounts(c.resources.as_ref().and_then(|r| r.requests.as_ref()))
}

/// A container's limits.
pub fn limits(c: &Container) -> Amounts {
    amounts(c.resources.as_ref().and_then(|r| r.limits.as_ref()))
}

/// An amount in thousandths; 0 where it is not there.
pub fn milli(amounts: &Amounts, resource: &str) -> i64 {
    amounts.get(resource).map_or(0, Quantity::milli_value)
}

/// An amount in whole units, rounded up; 0 where it is not there.
pub fn value(amounts: &Amounts, resource: &str) -> i64 {
    amounts.get(resource).map_or(0, Quantity::value)
}

fn pod_total(pod: &Pod, of: impl Fn(&Container) -> Amounts) -> Amounts {
    let mut total = Amounts::new();
    for c in &pod.pod_spec().containers {
        for (k, q) in of(c) {
            total.entry(k).and_modify(|t| t.add(&q)).or_insert(q);
        }
    }
    // Init containers run one after the other: the largest of each resource counts.
    for c in pod.init_containers() {
        for (k, q) in of(c) {
            match total.get_mut(&k) {
                Some(t) if t.nanos() >= q.nanos() => {}
                _ => {
                    total.insert(k, q);
                }
            }
        }
    }
    total
}

/// A pod's requests: sum of the containers, at least the largest init container, plus the overhead.
pub fn pod_requests(pod: &Pod) -> Amounts {
    let mut total = pod_total(pod, requests);
    for (k, q) in amounts(pod.pod_spec().overhead.as_ref()) {
        total.entry(k).and_modify(|t| t.add(&q)).or_insert(q);
    }
    total
}

/// A pod's limits; the overhead is added to those that are there.
pub fn pod_limits(pod: &Pod) -> Amounts {
    let mut total = pod_total(pod, limits);
    for (k, q) in amounts(pod.pod_spec().overhead.as_ref()) {
        if let Some(t) = total.get_mut(&k) {
            t.add(&q);
        }
    }
    total
}

/// Quality of service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Qos {
    /// Every container has limits for CPU and memory, and asks for as much.
    Guaranteed,
    /// Something is asked for.
    Burstable,
    /// Nothing is asked for.
    BestEffort,
}

impl Qos {
    /// As `status.qosClass` has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Qos::Guaranteed => "Guaranteed",
            Qos::Burstable => "Burstable",
            Qos::BestEffort => "BestEffort",
        }
    }
}

/// A pod's quality of service. Only CPU and memory count.
pub fn qos(pod: &Pod) -> Qos {
    if let Some(class) = &pod.pod_status().qos_class {
        match class.as_str() {
            "Guaranteed" => return Qos::Guaranteed,
            "Burstable" => return Qos::Burstable,
            "BestEffort" => return Qos::BestEffort,
            _ => {}
        }
    }
    let mut all_requests = Amounts::new();
    let mut all_limits = Amounts::new();
    let mut guaranteed = true;
    let counted = |a: Amounts| a.into_iter().filter(|(k, q)| (k == "cpu" || k == "memory") && q.sign() > 0);
    for c in pod.pod_spec().containers.iter().chain(pod.init_containers()) {
        for (k, q) in counted(requests(c)) {
            all_requests.entry(k).and_modify(|t| t.add(&q)).or_insert(q);
        }
        let mut found = 0;
        for (k, q) in counted(limits(c)) {
            found += 1;
            all_limits.entry(k).and_modify(|t| t.add(&q)).or_insert(q);
        }
        guaranteed &= found == 2;
    }
    if all_requests.is_empty() && all_limits.is_empty() {
        return Qos::BestEffort;
    }
    let same = all_requests.iter().all(|(k, q)| all_limits.get(k).is_some_and(|l| l.nanos() == q.nanos()));
    if guaranteed && same && all_requests.len() == all_limits.len() {
        Qos::Guaranteed
    } else {
        Qos::Burstable
    }
}

/// CPU shares of an amount of thousandths of a processor.
pub fn shares(milli_cpu: i64) -> u64 {
    let milli = u64::try_from(milli_cpu).unwrap_or(0);
    if milli == 0 { MIN_SHARES } else { (milli * SHARES_PER_CPU / 1000).max(MIN_SHARES) }
}

/// CPU quota in microseconds per `period`; 0 for none.
pub fn quota(milli_cpu: i64, period: i64) -> i64 {
    if milli_cpu == 0 { 0 } else { (milli_cpu * period / 1000).max(MIN_QUOTA) }
}

/// How gladly the kernel kills a container's processes when memory runs out, -1000 to 1000.
pub fn oom_score_adj(pod: &Pod, container: &Container, memory_capacity: i64) -> i64 {
    if pod.pod_spec().priority.is_some_and(|p| p >= SYSTEM_CRITICAL_PRIORITY) {
        return -997;
    }
    match qos(pod) {
        Qos::Guaranteed => -997,
        Qos::BestEffort => 1000,
        Qos::Burstable => {
            let request = value(&requests(container), "memory");
            let score = 1000 - (1000 * request) / memory_capacity.max(1);
            // Never as good as a guaranteed container, never as bad as one that asks for nothing.
            match score {
                s if s < 3 => 3,
                1000 => 999,
                s => s,
            }
        }
    }
}

/// What a pod's cgroup is limited to. `None` leaves the kernel's default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CgroupLimits {
    /// CPU shares.
    pub shares: Option<u64>,
    /// CPU quota and period in microseconds; quota -1 is no limit.
    pub quota: Option<(i64, i64)>,
    /// Bytes.
    pub memory: Option<i64>,
    /// Most processes.
    pub pids: Option<i64>,
}

/// The limits of a pod's cgroup.
pub fn pod_cgroup_limits(pod: &Pod, enforce_cpu: bool, period: i64, pids: i64) -> CgroupLimits {
    let (req, lim) = (pod_requests(pod), pod_limits(pod));
    let shares_of = shares(milli(&req, "cpu"));
    let all_have = |resource: &str| {
        pod.pod_spec()
            .containers
            .iter()
            .chain(pod.init_containers())
            .all(|c| value(&limits(c), resource) != 0)
    };
    let cpu_quota = || match quota(milli(&lim, "cpu"), period) {
        q if enforce_cpu && q != 0 => (q, period),
        _ => (-1, period),
    };
    let pids = Some(pids).filter(|p| *p > 0);
    match qos(pod) {
        Qos::Guaranteed => CgroupLimits {
            shares: Some(shares_of),
            quota: Some(cpu_quota()),
            memory: Some(value(&lim, "memory")),
            pids,
        },
        Qos::Burstable => CgroupLimits {
            shares: Some(shares_of),
            quota: all_have("cpu").then(cpu_quota),
            memory: all_have("memory").then(|| value(&lim, "memory")),
            pids,
        },
        Qos::BestEffort => CgroupLimits { shares: Some(MIN_SHARES), pids, ..Default::default() },
    }
}

/// A plain number as a quantity.
pub fn plain(value: i64) -> Text {
    Text(Quantity::from_value(value, Format::DecimalSi).canonical())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(containers: Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": {"containers": containers}}))
            .unwrap()
    }

    fn with(resources: Value) -> Pod {
        pod(json!([{"name": "c", "resources": resources}]))
    }

    #[test]
    fn classes() {
        assert_eq!(qos(&with(json!({}))), Qos::BestEffort);
        assert_eq!(qos(&with(json!({"requests": {"cpu": "1"}}))), Qos::Burstable);
        let both =
            json!({"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "1000m", "memory": "1Gi"}});
        assert_eq!(qos(&with(both.clone())), Qos::Guaranteed);
        assert_eq!(qos(&pod(json!([{"name": "a", "resources": both}, {"name": "b"}]))), Qos::Burstable);
        assert_eq!(qos(&with(json!({"requests": {"nvidia.com/gpu": "1"}}))), Qos::BestEffort);
    }

    #[test]
    fn values_for_the_kernel() {
        assert_eq!(shares(0), 2);
        assert_eq!(shares(100), 102);
        assert_eq!(shares(150), 153);
        assert_eq!(quota(0, 100_000), 0);
        assert_eq!(quota(300, 100_000), 30_000);
        assert_eq!(quota(1500, 100_000), 150_000);
        assert_eq!(quota(1, 100_000), 1000);
        let g = with(
            json!({"requests": {"cpu": "100m", "memory": "64Mi"}, "limits": {"cpu": "100m", "memory": "64Mi"}}),
        );
        assert_eq!(
            pod_cgroup_limits(&g, true, 100_000, -1),
            CgroupLimits {
                shares: Some(102),
                quota: Some((10_000, 100_000)),
                memory: Some(67_108_864),
                pids: None
            }
        );
        let b = with(json!({"requests": {"cpu": "100m", "memory": "20Mi"}, "limits": {"memory": "50Mi"}}));
        let l = pod_cgroup_limits(&b, true, 100_000, 10);
        assert_eq!((l.quota, l.memory, l.pids), (None, Some(52_428_800), Some(10)));
        assert_eq!(pod_cgroup_limits(&with(json!({})), true, 100_000, -1).shares, Some(2));
    }

    #[test]
    fn who_is_killed_first() {
        let c = |p: &Pod| oom_score_adj(p, &p.pod_spec().containers[0], 1 << 30);
        assert_eq!(c(&with(json!({}))), 1000);
        assert_eq!(c(&with(json!({"requests": {"memory": "512Mi"}}))), 500);
        assert_eq!(c(&with(json!({"requests": {"memory": "2Gi"}}))), 3);
        assert_eq!(c(&with(json!({"requests": {"cpu": "1"}}))), 999);
    }

    #[test]
    fn init_containers_count_by_the_largest() {
        let p: Pod = serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": {
            "initContainers": [{"name": "i", "resources": {"requests": {"cpu": "3", "memory": "1"}}}],
            "overhead": {"cpu": "1"},
            "containers": [{"name": "a", "resources": {"requests": {"cpu": "1", "memory": "5"}}},
                           {"name": "b", "resources": {"requests": {"cpu": "1"}}}]}}))
        .unwrap();
        let r = pod_requests(&p);
        assert_eq!((milli(&r, "cpu"), value(&r, "memory")), (4000, 5));
    }
}
