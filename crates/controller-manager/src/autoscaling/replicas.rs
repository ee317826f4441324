//! How many replicas a metric asks for. Plain functions over pods and their metrics; values are in thousandths.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use pilothouse_apimachinery::quantity::Quantity;

use crate::control::{phase, pod_condition};

/// A pod's metric.
#[derive(Debug, Clone, PartialEq)]
pub struct PodMetric {
    /// When it was taken.
    pub at: Timestamp,
    /// Over which time.
    pub window: Duration,
    /// Thousandths.
    pub value: i64,
}

/// Metrics by pod name.
pub type PodMetrics = BTreeMap<String, PodMetric>;

/// What the flags say about metrics.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// By how much the ratio of usage to target may differ from 1 without a change.
    pub tolerance: f64,
    /// How long after its start a pod's CPU samples may be skipped.
    pub cpu_initialization: Duration,
    /// A pod that got unready within this time of its start counts as never ready.
    pub initial_readiness: Duration,
}

/// What a calculation looks at besides metrics.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// The target's pods.
    pub pods: &'a [Arc<Pod>],
    /// Flags.
    pub rules: &'a Rules,
    /// Now.
    pub now: Timestamp,
}

/// What came out.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Proposal {
    /// How many replicas.
    pub replicas: i32,
    /// Usage in percent of what is requested, where that is what was asked for.
    pub utilization: i32,
    /// Usage a pod.
    pub average: i64,
}

#[derive(Debug, Default, PartialEq)]
struct Groups {
    ready: usize,
    ignored: BTreeSet<String>,
    missing: BTreeSet<String>,
}

fn name(pod: &Pod) -> String {
    pod.metadata.name.clone().unwrap_or_default()
}

/// Tells pods that count from those whose metrics are to be ignored and those that have none.
fn group(metrics: &PodMetrics, cpu: bool, view: View<'_>) -> Groups {
    let mut groups = Groups::default();
    for pod in view.pods {
        if pod.metadata.deletion_timestamp.is_some() || phase(pod) == "Failed" {
            continue;
        }
        if phase(pod) == "Pending" {
            groups.ignored.insert(name(pod));
            continue;
        }
        let Some(metric) = metrics.get(&name(pod)) else {
            groups.missing.insert(name(pod));
            continue;
        };
        if cpu && !settled(pod, metric, view.rules, view.now) {
            groups.ignored.insert(name(pod));
        } else {
            groups.ready += 1;
        }
    }
    groups
}

/// Whether a pod's CPU metric says something about its usual load: not while it starts.
fn settled(pod: &Pod, metric: &PodMetric, rules: &Rules, now: Timestamp) -> bool {
    let started = pod.status.as_ref().and_then(|s| s.start_time.as_ref()).map(|t| t.0);
    let (Some(condition), Some(started)) = (pod_condition(pod, "Ready"), started) else { return false };
    let changed = condition.last_transition_time.as_ref().map_or(Timestamp::UNIX_EPOCH, |t| t.0);
    let unready = condition.status == "False";
    if started + rules.cpu_initialization > now {
        !unready && metric.at >= changed + metric.window
    } else {
        !(unready && started + rules.initial_readiness > changed)
    }
}

/// What the containers of each pod request together, in thousandths.
fn requests(pods: &[Arc<Pod>], container: &str, resource: &str) -> Result<BTreeMap<String, i64>, String> {
    let mut all = BTreeMap::new();
    for pod in pods {
        let mut sum = 0;
        for c in pod.spec.iter().flat_map(|s| &s.containers) {
            if !container.is_empty() && c.name != container {
                continue;
            }
            let request =
                c.resources.as_ref().and_then(|r| r.requests.as_ref()).and_then(|r| r.get(resource));
            let Some(q) = request else { return Err(format!("missing request for {resource}")) };
            sum += Quantity::parse(&q.0).map_or(0, |q| q.milli_value());
        }
        all.insert(name(pod), sum);
    }
    Ok(all)
}

/// Usage over target, usage in percent of the requests, and usage a pod.
fn utilization(
    metrics: &PodMetrics,
    requests: &BTreeMap<String, i64>,
    target: i32,
) -> Result<(f64, i32, i64), String> {
    let known: Vec<(i64, i64)> =
        metrics.iter().filter_map(|(pod, m)| requests.get(pod).map(|r| (m.value, *r))).collect();
    let used: i64 = known.iter().map(|k| k.0).sum();
    let requested: i64 = known.iter().map(|k| k.1).sum();
    if requested == 0 {
        return Err("no metrics returned matched known pods".into());
    }
    let percent = i32::try_from(used * 100 / requested).unwrap_or(i32::MAX);
    let count = i64::try_from(known.len()).unwrap_or(i64::MAX);
    Ok((f64::from(percent) / f64::from(target), percent, used / count))
}

fn average(metrics: &PodMetrics, target: i64) -> (f64, i64) {
    let count = i64::try_from(metrics.len()).unwrap_or(i64::MAX).max(1);
    let value = metrics.values().map(|m| m.value).sum::<i64>() / count;
    (value as f64 / target as f64, value)
}

fn within(ratio: f64, tolerance: f64) -> bool {
    (1.0 - ratio).abs() <= tolerance
}

/// `ratio` of `count`, rounded up.
fn scaled(ratio: f64, count: usize) -> i32 {
    (ratio * count as f64).ceil() as i32
}

/// The replicas for what pods use of a resource, as a percentage of what they request. `container`: only that one's,
/// empty for all.
pub fn for_utilization(
    current: i32,
    target: i32,
    resource: &str,
    container: &str,
    mut metrics: PodMetrics,
    view: View<'_>,
) -> Result<Proposal, String> {
    if view.pods.is_empty() {
        return Err("no pods returned by selector while calculating replica count".into());
    }
    let groups = group(&metrics, resource == "cpu", view);
    metrics.retain(|pod, _| !groups.ignored.contains(pod));
    let requests = requests(view.pods, container, resource)?;
    if metrics.is_empty() {
        return Err("did not receive metrics for any ready pods".into());
    }
    let (ratio, percent, average) = utilization(&metrics, &requests, target)?;
    let fill = |pod: &str| requests.get(pod).copied().unwrap_or(0);
    let replicas = settle(current, ratio, groups, metrics, view.rules, fill, |m| {
        utilization(m, &requests, target).map(|(r, ..)| r)
    })?;
    Ok(Proposal { replicas, utilization: percent, average })
}

/// The replicas for the value that a metric has a pod. `cpu`: samples of starting pods are skipped.
pub fn for_average(
    current: i32,
    target: i64,
    cpu: bool,
    mut metrics: PodMetrics,
    view: View<'_>,
) -> Result<Proposal, String> {
    if view.pods.is_empty() {
        return Err("no pods returned by selector while calculating replica count".into());
    }
    let groups = group(&metrics, cpu, view);
    metrics.retain(|pod, _| !groups.ignored.contains(pod));
    if metrics.is_empty() {
        return Err("did not receive metrics for any ready pods".into());
    }
    let (ratio, value) = average(&metrics, target);
    let replicas =
        settle(current, ratio, groups, metrics, view.rules, |_| target, |m| Ok(average(m, target).0))?;
    Ok(Proposal { replicas, utilization: 0, average: value })
}

/// From the ratio of usage to target to replicas. Pods without metrics are thought of as using all that they may
/// (`full`) before fewer pods are asked for, and nothing before more are; so are ignored ones before more are.
fn settle(
    current: i32,
    ratio: f64,
    groups: Groups,
    mut metrics: PodMetrics,
    rules: &Rules,
    full: impl Fn(&str) -> i64,
    again: impl Fn(&PodMetrics) -> Result<f64, String>,
) -> Result<i32, String> {
    let rebalance = !groups.ignored.is_empty() && ratio > 1.0;
    if !rebalance && groups.missing.is_empty() {
        return Ok(if within(ratio, rules.tolerance) { current } else { scaled(ratio, groups.ready) });
    }
    let guess = |value| PodMetric { at: Timestamp::UNIX_EPOCH, window: Duration::ZERO, value };
    for pod in groups.missing {
        if ratio < 1.0 {
            let value = full(&pod);
            metrics.insert(pod, guess(value));
        } else if ratio > 1.0 {
            metrics.insert(pod, guess(0));
        }
    }
    if rebalance {
        metrics.extend(groups.ignored.into_iter().map(|pod| (pod, guess(0))));
    }
    let new = again(&metrics)?;
    if within(new, rules.tolerance) || (ratio < 1.0 && new > 1.0) || (ratio > 1.0 && new < 1.0) {
        return Ok(current);
    }
    let replicas = scaled(new, metrics.len());
    if (new < 1.0 && replicas > current) || (new > 1.0 && replicas < current) {
        return Ok(current);
    }
    Ok(replicas)
}

/// The replicas for a metric that is not a pod's, whose value is to be `target`.
pub fn for_value(current: i32, value: i64, target: i64, view: View<'_>) -> Result<i32, String> {
    let ratio = value as f64 / target as f64;
    if current == 0 {
        return Ok(ratio.ceil() as i32);
    }
    if within(ratio, view.rules.tolerance) {
        return Ok(current);
    }
    if view.pods.is_empty() {
        return Err(
            "unable to calculate ready pods: no pods returned by selector while calculating replica count"
                .into(),
        );
    }
    let ready = view.pods.iter().filter(|p| phase(p) == "Running" && crate::control::is_ready(p)).count();
    Ok(scaled(ratio, ready))
}

/// The replicas for a metric that is not a pod's, whose value is to be `target` for each of the pods; and its value a
/// pod.
pub fn for_value_per_pod(status: i32, value: i64, target: i64, rules: &Rules) -> (i32, i64) {
    let ratio = value as f64 / (target as f64 * f64::from(status));
    let wanted =
        if within(ratio, rules.tolerance) { status } else { (value as f64 / target as f64).ceil() as i32 };
    (wanted, (value as f64 / f64::from(status)).ceil() as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: Rules = Rules {
        tolerance: 0.1,
        cpu_initialization: Duration::from_secs(300),
        initial_readiness: Duration::from_secs(30),
    };

    fn view(pods: &[Arc<Pod>]) -> View<'_> {
        View { pods, rules: &RULES, now: now() }
    }

    fn now() -> Timestamp {
        "2024-01-01T12:00:00Z".parse().unwrap()
    }

    fn pod(name: &str, phase: &str, ready: &str, started: &str) -> Arc<Pod> {
        let value = serde_json::json!({"metadata": {"name": name},
            "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "100m"}}}]},
            "status": {"phase": phase, "startTime": started, "conditions": [
                {"type": "Ready", "status": ready, "lastTransitionTime": started}]}});
        Arc::new(serde_json::from_value(value).unwrap())
    }

    fn pods(n: usize) -> Vec<Arc<Pod>> {
        (0..n).map(|i| pod(&format!("p{i}"), "Running", "True", "2024-01-01T10:00:00Z")).collect()
    }

    fn metrics(values: &[i64]) -> PodMetrics {
        let metric = |value| PodMetric { at: now(), window: Duration::from_secs(60), value };
        values.iter().enumerate().map(|(i, v)| (format!("p{i}"), metric(*v))).collect()
    }

    fn cpu(current: i32, target: i32, pods: &[Arc<Pod>], m: PodMetrics) -> Result<Proposal, String> {
        for_utilization(current, target, "cpu", "", m, view(pods))
    }

    #[test]
    fn usage_over_requests_gives_the_replicas() {
        let p = cpu(3, 30, &pods(3), metrics(&[30, 50, 70])).unwrap();
        assert_eq!(p, Proposal { replicas: 5, utilization: 50, average: 50 });
        // Within the tolerance nothing changes.
        assert_eq!(cpu(3, 48, &pods(3), metrics(&[30, 50, 70])).unwrap().replicas, 3);
        assert_eq!(cpu(3, 100, &pods(3), metrics(&[30, 30, 30])).unwrap().replicas, 1);
    }

    #[test]
    fn missing_metrics_hold_back_either_way() {
        // Down: the one without counts as using all it requests.
        assert_eq!(cpu(4, 100, &pods(4), metrics(&[10, 10, 10])).unwrap().replicas, 2);
        // Up: as using nothing.
        assert_eq!(cpu(4, 50, &pods(4), metrics(&[100, 100])).unwrap().replicas, 4);
    }

    #[test]
    fn pods_that_start_are_ignored() {
        let mut all = pods(2);
        all.push(pod("p2", "Running", "False", "2024-01-01T11:59:50Z"));
        all.push(pod("p3", "Pending", "False", "2024-01-01T11:59:50Z"));
        let g = group(&metrics(&[100, 100, 900]), true, view(&all));
        assert_eq!((g.ready, g.ignored.len(), g.missing.len()), (2, 2, 0));
        assert_eq!(group(&metrics(&[100, 100, 900]), false, view(&all)).ready, 3);
    }

    #[test]
    fn errors_say_what_is_missing() {
        assert_eq!(
            cpu(1, 50, &[], metrics(&[1])).unwrap_err(),
            "no pods returned by selector while calculating replica count"
        );
        assert_eq!(
            cpu(1, 50, &pods(1), metrics(&[])).unwrap_err(),
            "did not receive metrics for any ready pods"
        );
        let bare: Pod = serde_json::from_value(serde_json::json!({"metadata": {"name": "p0"},
            "spec": {"containers": [{"name": "c"}]}, "status": {"phase": "Running"}}))
        .unwrap();
        assert_eq!(cpu(1, 50, &[Arc::new(bare)], metrics(&[1])).unwrap_err(), "missing request for cpu");
    }

    #[test]
    fn values_of_other_objects() {
        assert_eq!(for_value(2, 20_000, 10_000, view(&pods(2))), Ok(4));
        assert_eq!(for_value(0, 3_000, 2_000, view(&[])), Ok(2));
        assert_eq!(for_value_per_pod(3, 8_000, 2_000, &RULES), (4, 2_667));
        assert_eq!(for_value_per_pod(4, 8_000, 2_000, &RULES), (4, 2_000));
    }
}
