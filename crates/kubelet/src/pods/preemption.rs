//! Making room for a critical pod: which of the others must go so that it fits. The deciding is v1.20's: the fewest and
//! smallest pods of the lowest quality of service.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

use super::admission::Shortage;
use crate::pod::PodExt;
use crate::resources::{self, Qos};

/// The reason that a pod which had to go has.
pub const REASON: &str = "Preempting";
/// The message that a pod which had to go has.
pub const MESSAGE: &str = "Preempted in order to admit critical pod";

/// What is still missing: resource and amount (of CPU in thousandths).
type Needs = Vec<(String, i64)>;

fn asked(pod: &Pod, resource: &str) -> i64 {
    match resource {
        "pods" => 1,
        "cpu" => resources::milli(&resources::pod_requests(pod), "cpu"),
        r => resources::value(&resources::pod_requests(pod), r),
    }
}

fn without<'a>(needs: &Needs, pods: impl Iterator<Item = &'a Arc<Pod>> + Clone) -> Needs {
    let left = |(r, n): &(String, i64)| (r.clone(), n - pods.clone().map(|p| asked(p, r)).sum::<i64>());
    needs.iter().map(left).filter(|(_, n)| *n > 0).collect()
}

/// What is missing, as texts show it.
fn shown(needs: &[(String, i64)]) -> String {
    let each: String = needs.iter().map(|(r, n)| format!("(res: {r}, q: {n}), ")).collect();
    format!("[{each}]")
}

fn none_found(needs: &Needs) -> String {
    format!("no set of running pods found to reclaim resources: {}", shown(needs))
}

/// How far a pod is from giving what is needed: 0 where it gives all.
fn distance(needs: &Needs, pod: &Pod) -> f64 {
    let of = |(r, n): &(String, i64)| {
        let left = (n - asked(pod, r)).max(0);
        (left as f64 / *n as f64).powi(2)
    };
    needs.iter().map(of).sum()
}

fn smaller(a: &Pod, b: &Pod) -> bool {
    for r in ["memory", "cpu"] {
        let (x, y) = (asked(a, r), asked(b, r));
        if x != y {
            return x < y;
        }
    }
    true
}

fn nearest(mut pods: Vec<Arc<Pod>>, mut needs: Needs) -> Result<Vec<Arc<Pod>>, String> {
    let mut out = Vec::new();
    while !needs.is_empty() {
        let mut best: Option<(usize, f64)> = None;
        for (i, p) in pods.iter().enumerate() {
            let d = distance(&needs, p);
            if best.is_none_or(|(b, least)| d < least || (d == least && smaller(p, &pods[b]))) {
                best = Some((i, d));
            }
        }
        let (i, _) = best.ok_or_else(|| none_found(&needs))?;
        let pod = pods.swap_remove(i);
        needs = without(&needs, std::iter::once(&pod));
        out.push(pod);
    }
    Ok(out)
}

/// Whether one pod may take the place of another.
fn yields(pod: &Pod, to: &Pod) -> bool {
    if to.is_critical() && !pod.is_critical() {
        return true;
    }
    matches!((to.pod_spec().priority, pod.pod_spec().priority), (Some(a), Some(b)) if a > b)
}

/// What makes room for a pod that is taken on.
#[derive(Debug, Clone, Default)]
pub struct Room {
    /// The pods that must go.
    pub victims: Vec<Arc<Pod>>,
    /// What was missing, as texts show it; empty where nothing was.
    pub missing: String,
}

/// The pods among `others` that must go so that `pod` fits, where that much is missing. Errors are the text of the
/// refusal.
pub fn make_room(pod: &Pod, others: &[Arc<Pod>], missing: &[Shortage]) -> Result<Room, String> {
    let needs: Needs = missing.iter().map(|s| (s.resource.clone(), s.missing())).collect();
    let of = |qos: Qos| -> Vec<Arc<Pod>> {
        others.iter().filter(|p| yields(p, pod) && resources::qos(p) == qos).cloned().collect()
    };
    let (best_effort, burstable, guaranteed) = (of(Qos::BestEffort), of(Qos::Burstable), of(Qos::Guaranteed));
    let failed = |e: String| format!("preemption: error finding a set of pods to preempt: {e}");
    let never = without(&needs, best_effort.iter().chain(&burstable).chain(&guaranteed));
    if !never.is_empty() {
        return Err(failed(none_found(&never)));
    }
    // Of each class only as many as are needed where all of the lower ones go, and what the higher ones gave.
    let left = without(&needs, best_effort.iter().chain(&burstable));
    let guaranteed = nearest(guaranteed, left).map_err(failed)?;
    let left = without(&needs, best_effort.iter().chain(&guaranteed));
    let burstable = nearest(burstable, left).map_err(failed)?;
    let left = without(&needs, burstable.iter().chain(&guaranteed));
    let best_effort = nearest(best_effort, left).map_err(failed)?;
    let victims = best_effort.into_iter().chain(burstable).chain(guaranteed).collect();
    Ok(Room { victims, missing: shown(&needs) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(name: &str, priority: i32, requests: Value, limits: Value) -> Arc<Pod> {
        Arc::new(
            serde_json::from_value(json!({"metadata": {"name": name}, "spec": {"priority": priority,
                "containers": [{"name": "c", "resources": {"requests": requests, "limits": limits}}]}}))
            .unwrap(),
        )
    }

    fn missing(resource: &str, amount: i64) -> Shortage {
        Shortage { resource: resource.into(), requested: amount, used: 0, capacity: 0 }
    }

    fn go(others: &[Arc<Pod>], needs: &[Shortage]) -> Result<Vec<String>, String> {
        let critical = pod("critical", 2_000_000_000, json!({}), json!({}));
        let room = make_room(&critical, others, needs)?;
        Ok(room.victims.iter().map(|p| p.name().to_string()).collect())
    }

    #[test]
    fn the_lowest_quality_goes_first() {
        let none = || json!({});
        let best = pod("best", 0, none(), none());
        let small = pod("small", 0, json!({"cpu": "100m", "memory": "100Mi"}), none());
        let large = pod("large", 0, json!({"cpu": "1", "memory": "1Gi"}), none());
        let sure = pod("sure", 0, none(), json!({"cpu": "1", "memory": "1Gi"}));
        let system = pod("system", 2_000_000_000, json!({"cpu": "4"}), none());
        let all = [best, small, large, sure, system];
        assert_eq!(go(&all, &[missing("pods", 1)]).unwrap(), ["best"]);
        assert_eq!(go(&all, &[missing("cpu", 50)]).unwrap(), ["small"]);
        assert_eq!(go(&all, &[missing("cpu", 500)]).unwrap(), ["large"]);
        assert_eq!(go(&all, &[missing("cpu", 1050), missing("memory", 1)]).unwrap(), ["large", "small"]);
        assert_eq!(go(&all, &[]).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn what_cannot_be_had_is_said() {
        let others = [pod("a", 0, json!({"cpu": "1"}), json!({}))];
        assert_eq!(
            go(&others, &[missing("cpu", 1500), missing("memory", 10)]).unwrap_err(),
            "preemption: error finding a set of pods to preempt: no set of running pods found to reclaim resources: \
             [(res: cpu, q: 500), (res: memory, q: 10), ]"
        );
    }
}
