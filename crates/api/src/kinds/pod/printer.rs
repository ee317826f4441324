//! What `kubectl get pods` shows.

use pilothouse_apimachinery::json::{Value, json};

use crate::kinds::access::{items, number, part, present, text};
use crate::kinds::columns::{AGE, NAME, integer, text as column, wide};
use crate::kinds::{Column, RowContext};
use crate::table::{age_cell, name_cell, or_none};

/// Columns of pods.
pub(super) const COLUMNS: &[Column] = &[
    NAME,
    column("Ready", "The aggregate readiness state of this pod for accepting traffic."),
    column("Status", "The aggregate status of the containers in this pod."),
    integer("Restarts", "The number of times the containers in this pod have been restarted."),
    AGE,
    wide(
        "IP",
        "IP address allocated to the pod. Routable at least within the cluster. Empty if not yet allocated.",
    ),
    wide(
        "Node",
        "NodeName is a request to schedule this pod onto a specific node. If it is non-empty, the scheduler simply schedules this pod onto that node, assuming that it fits resource requirements.",
    ),
    wide(
        "Nominated Node",
        "nominatedNodeName is set only when this pod preempts other pods on the node, but it cannot be scheduled right away as preemption victims receive their graceful termination periods. This field does not guarantee that the pod will be scheduled on this node. Scheduler may decide to place the pod elsewhere if other nodes become available sooner. Scheduler may also decide to give the resources on this node to a higher priority pod that is created after preemption. As a result, this field may be different than PodSpec.nodeName when the pod is scheduled.",
    ),
    wide(
        "Readiness Gates",
        "If specified, all readiness gates will be evaluated for pod readiness. A pod is ready when all its containers are ready AND all conditions specified in the readiness gates have status equal to \"True\" More info: https://git.k8s.io/enhancements/keps/sig-network/0007-pod-ready%2B%2B.md",
    ),
];

/// The conditions that a table's row carries for a pod that ended.
pub(super) fn row_conditions(pod: &Value) -> Option<Value> {
    let (reason, message) = match text(part(pod, "status"), "phase") {
        "Succeeded" => ("Succeeded", "The pod has completed successfully."),
        "Failed" => ("Failed", "The pod failed."),
        _ => return None,
    };
    Some(json!([{"type": "Completed", "status": "True", "reason": reason, "message": message}]))
}

/// A pod's row.
pub(super) fn row(pod: &Value, context: &RowContext) -> Vec<Value> {
    let (spec, status) = (part(pod, "spec"), part(pod, "status"));
    let summary = summary(pod);
    let ip = items(status, "podIPs").first().map_or("", |ip| text(ip, "ip"));
    vec![
        name_cell(pod),
        Value::from(format!("{}/{}", summary.ready, items(spec, "containers").len())),
        Value::from(summary.status),
        Value::from(summary.restarts),
        age_cell(pod, context),
        or_none(if ip.is_empty() { text(status, "podIP") } else { ip }),
        or_none(text(spec, "nodeName")),
        or_none(text(status, "nominatedNodeName")),
        readiness_gates(spec, status),
    ]
}

struct Summary {
    ready: usize,
    status: String,
    restarts: i64,
}

/// The reason of a container's end: its own, or `Signal:9`, or `ExitCode:1`.
fn end_reason(terminated: &Value, prefix: &str) -> String {
    let reason = text(terminated, "reason");
    if !reason.is_empty() {
        return format!("{prefix}{reason}");
    }
    match number(terminated, "signal") {
        0 => format!("{prefix}ExitCode:{}", number(terminated, "exitCode")),
        signal => format!("{prefix}Signal:{signal}"),
    }
}

fn summary(pod: &Value) -> Summary {
    let (spec, status) = (part(pod, "spec"), part(pod, "status"));
    let mut s = Summary { ready: 0, status: text(status, "phase").to_string(), restarts: 0 };
    if !text(status, "reason").is_empty() {
        s.status = text(status, "reason").to_string();
    }
    if !initializing(spec, status, &mut s) {
        running(status, &mut s);
    }
    if present(part(pod, "metadata"), "deletionTimestamp") {
        s.status = if text(status, "reason") == "NodeLost" { "Unknown" } else { "Terminating" }.to_string();
    }
    s
}

/// The status while init containers have not all succeeded; whether that is so.
fn initializing(spec: &Value, status: &Value, s: &mut Summary) -> bool {
    let containers = items(spec, "initContainers");
    let restartable = |name: &str| {
        containers.iter().any(|c| text(c, "name") == name && text(c, "restartPolicy") == "Always")
    };
    for (i, container) in items(status, "initContainerStatuses").iter().enumerate() {
        s.restarts += number(container, "restartCount");
        let state = part(container, "state");
        let (terminated, waiting) = (part(state, "terminated"), part(state, "waiting"));
        if !terminated.is_null() && number(terminated, "exitCode") == 0 {
            continue;
        }
        if restartable(text(container, "name")) && part(container, "started") == &Value::Bool(true) {
            continue;
        }
        s.status = if !terminated.is_null() {
            end_reason(terminated, "Init:")
        } else if !matches!(text(waiting, "reason"), "" | "PodInitializing") {
            format!("Init:{}", text(waiting, "reason"))
        } else {
            format!("Init:{i}/{}", containers.len())
        };
        return true;
    }
    false
}

fn running(status: &Value, s: &mut Summary) {
    let mut has_running = false;
    // The last of the init containers' restarts do not count any more.
    s.restarts = 0;
    for container in items(status, "containerStatuses").iter().rev() {
        s.restarts += number(container, "restartCount");
        let state = part(container, "state");
        let (terminated, waiting) = (part(state, "terminated"), part(state, "waiting"));
        if !text(waiting, "reason").is_empty() {
            s.status = text(waiting, "reason").to_string();
        } else if !terminated.is_null() {
            s.status = end_reason(terminated, "");
        } else if part(container, "ready") == &Value::Bool(true) && present(state, "running") {
            has_running = true;
            s.ready += 1;
        }
    }
    // A pod that has ended containers but still runs others.
    if s.status == "Completed" && has_running {
        let ready = items(status, "conditions")
            .iter()
            .any(|c| text(c, "type") == "Ready" && text(c, "status") == "True");
        s.status = if ready { "Running" } else { "NotReady" }.to_string();
    }
}

fn readiness_gates(spec: &Value, status: &Value) -> Value {
    let gates = items(spec, "readinessGates");
    if gates.is_empty() {
        return Value::from("<none>");
    }
    let conditions = items(status, "conditions");
    let open = gates.iter().filter(|gate| {
        let condition = conditions.iter().find(|c| text(c, "type") == text(gate, "conditionType"));
        condition.is_some_and(|c| text(c, "status") == "True")
    });
    Value::from(format!("{}/{}", open.count(), gates.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status_of(pod: Value) -> (String, String) {
        let cells = row(&pod, &RowContext { now: 0 });
        (cells[1].as_str().unwrap_or("").into(), cells[2].as_str().unwrap_or("").into())
    }

    #[test]
    fn statuses() {
        let pod = |status: Value| json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c"}], "initContainers": [{"name": "i"}]}, "status": status});
        let is = |status: Value, ready: &str, shown: &str| {
            assert_eq!(status_of(pod(status)), (ready.to_string(), shown.to_string()));
        };
        is(json!({"phase": "Pending"}), "0/1", "Pending");
        is(
            json!({"phase": "Pending", "initContainerStatuses": [{"state": {"waiting": {"reason": "PodInitializing"}}}]}),
            "0/1",
            "Init:0/1",
        );
        is(
            json!({"phase": "Pending", "initContainerStatuses": [{"state": {"terminated": {"exitCode": 1, "reason": "Error"}}}]}),
            "0/1",
            "Init:Error",
        );
        is(
            json!({"phase": "Running", "containerStatuses": [{"state": {"waiting": {"reason": "CrashLoopBackOff"}}}]}),
            "0/1",
            "CrashLoopBackOff",
        );
        is(
            json!({"phase": "Running", "containerStatuses": [{"ready": true, "state": {"running": {}}}]}),
            "1/1",
            "Running",
        );
        is(
            json!({"phase": "Succeeded", "containerStatuses": [{"state": {"terminated": {"reason": "Completed"}}}]}),
            "0/1",
            "Completed",
        );
        is(
            json!({"phase": "Failed", "containerStatuses": [{"state": {"terminated": {"signal": 9}}}]}),
            "0/1",
            "Signal:9",
        );
        is(json!({"phase": "Failed", "reason": "Evicted"}), "0/1", "Evicted");
        is(
            json!({"phase": "Running", "containerStatuses": [
            {"ready": true, "state": {"running": {}}}, {"state": {"terminated": {"reason": "Completed"}}}]}),
            "1/1",
            "NotReady",
        );
    }

    #[test]
    fn deleted_pods() {
        let pod = json!({"metadata": {"deletionTimestamp": "2021-01-01T00:00:00Z"}, "spec": {"containers": []}, "status": {"phase": "Running"}});
        assert_eq!(status_of(pod).1, "Terminating");
        let lost = json!({"metadata": {"deletionTimestamp": "2021-01-01T00:00:00Z"}, "spec": {"containers": []}, "status": {"reason": "NodeLost"}});
        assert_eq!(status_of(lost).1, "Unknown");
    }

    #[test]
    fn wide_columns() {
        let pod = json!({"metadata": {}, "spec": {"containers": [], "nodeName": "n", "readinessGates": [{"conditionType": "a"}, {"conditionType": "b"}]},
            "status": {"podIPs": [{"ip": "10.1.2.3"}], "conditions": [{"type": "b", "status": "True"}]}});
        let cells = row(&pod, &RowContext { now: 0 });
        assert_eq!(cells[5..], [json!("10.1.2.3"), json!("n"), json!("<none>"), json!("1/2")]);
        assert!(row_conditions(&pod).is_none());
    }
}
