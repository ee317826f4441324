//! What `kubectl get hpa` shows.

use pilothouse_apimachinery::json::Value;

use super::convert::v2_form;
use crate::kinds::access::{items, number, part, present, text};
use crate::kinds::columns::{AGE, NAME, text as column};
use crate::kinds::{Column, RowContext};
use crate::table::{age_cell, name_cell};

pub(super) const COLUMNS: &[Column] = &[
    NAME,
    column(
        "Reference",
        "scaleTargetRef points to the target resource to scale, and is used to the pods for which metrics should be collected, as well as to actually change the replica count.",
    ),
    column(
        "Targets",
        "metrics contains the specifications for which to use to calculate the desired replica count (the maximum replica count across all metrics will be used).  The desired replica count is calculated multiplying the ratio between the target value and the current value by the current number of pods.  Ergo, metrics used must decrease as the pod count is increased, and vice-versa.  See the individual metric source types for more information about how each type of metric must respond.",
    ),
    column(
        "MinPods",
        "minReplicas is the lower limit for the number of replicas to which the autoscaler can scale down.  It defaults to 1 pod.  minReplicas is allowed to be 0 if the alpha feature gate HPAScaleToZero is enabled and at least one Object or External metric is configured.  Scaling is active as long as at least one metric value is available.",
    ),
    column(
        "MaxPods",
        "maxReplicas is the upper limit for the number of replicas to which the autoscaler can scale up. It cannot be less that minReplicas.",
    ),
    column(
        "Replicas",
        "currentReplicas is current number of replicas of pods managed by this autoscaler, as last seen by the autoscaler.",
    ),
    AGE,
];

pub(super) fn row(object: &Value, context: &RowContext) -> Vec<Value> {
    let form = v2_form(object);
    let (spec, status) = (part(&form, "spec"), part(&form, "status"));
    let target = part(spec, "scaleTargetRef");
    let min = match part(spec, "minReplicas") {
        Value::Null => "<unset>".to_string(),
        n => n.to_string(),
    };
    vec![
        name_cell(object),
        Value::from(format!("{}/{}", text(target, "kind"), text(target, "name"))),
        Value::from(targets(items(spec, "metrics"), items(status, "currentMetrics"))),
        Value::from(min),
        Value::from(number(spec, "maxReplicas")),
        Value::from(number(status, "currentReplicas")),
        age_cell(object, context),
    ]
}

/// How many metrics are shown.
const SHOWN: usize = 2;

fn targets(specs: &[Value], statuses: &[Value]) -> String {
    if specs.is_empty() {
        return "<none>".into();
    }
    let shown: Vec<String> = specs
        .iter()
        .enumerate()
        .take(SHOWN)
        .map(|(i, spec)| target(spec, statuses.get(i).unwrap_or(&Value::Null)))
        .collect();
    let shown = shown.join(", ");
    if specs.len() > SHOWN { format!("{shown} + {} more...", specs.len() - SHOWN) } else { shown }
}

fn target(spec: &Value, status: &Value) -> String {
    let key = match text(spec, "type") {
        "External" => "external",
        "Pods" => "pods",
        "Object" => "object",
        "Resource" => "resource",
        "ContainerResource" => "containerResource",
        _ => return "<unknown type>".into(),
    };
    let target = part(part(spec, key), "target");
    let current = part(part(status, key), "current");
    let quantity = |v: &Value, key: &str| match part(v, key) {
        Value::String(s) => Some(s.to_string()),
        Value::Null => None,
        other => Some(other.to_string()),
    };
    let now = |key: &str| quantity(current, key).unwrap_or_else(|| "<unknown>".into());
    let aim = |key: &str| quantity(target, key).unwrap_or_else(|| "0".into());
    let average = present(target, "averageValue");
    match key {
        "pods" => format!("{}/{}", now("averageValue"), aim("averageValue")),
        "external" | "object" if average => {
            format!("{}/{} (avg)", now("averageValue"), aim("averageValue"))
        }
        "external" | "object" => format!("{}/{}", now("value"), aim("value")),
        _ if average => format!("{}/{}", now("averageValue"), aim("averageValue")),
        _ => {
            let percent = |v: &Value, none: &str| match part(v, "averageUtilization") {
                Value::Null => none.to_string(),
                n => format!("{n}%"),
            };
            format!("{}/{}", percent(current, "<unknown>"), percent(target, "<auto>"))
        }
    }
}

#[cfg(test)]
mod tests {
    use pilothouse_apimachinery::json::json;

    use super::*;

    #[test]
    fn rows() {
        let hpa = json!({"metadata": {"name": "h"}, "spec": {"maxReplicas": 10, "minReplicas": 1,
            "scaleTargetRef": {"kind": "Deployment", "name": "d"}, "targetCPUUtilizationPercentage": 50}});
        assert_eq!(
            row(&hpa, &RowContext { now: 0 })[1..6],
            [json!("Deployment/d"), json!("<unknown>/50%"), json!("1"), json!(10), json!(0)]
        );
    }

    #[test]
    fn many_metrics() {
        let metric = json!({"type": "Pods", "pods": {"target": {"averageValue": "10"}}});
        let status = json!({"pods": {"current": {"averageValue": "7"}}});
        let specs = vec![metric; 4];
        assert_eq!(targets(&specs, &[status]), "7/10, <unknown>/10 + 2 more...");
    }
}
