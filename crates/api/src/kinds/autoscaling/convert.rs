//! Versions of autoscalers. The hub is `v1`, in which objects are stored: what it has no fields for is in annotations.
//! Validation and printing work on the form of `v2`.

use pilothouse_apimachinery::json;
use pilothouse_apimachinery::json::{Map, Value, json};

use super::metrics::{
    each, is_cpu_utilization, spec_to_new, spec_to_old, status_to_new, status_to_old, to_json,
};
use crate::kinds::access::{default_to, is_empty, items, part, present, put, take, text};

const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const CURRENT_METRICS: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";

/// The utilization of the CPU that is aimed at where no metric is given, in percent.
pub(super) const DEFAULT_CPU_UTILIZATION: i64 = 80;

fn take_annotation(object: &mut Value, key: &str) -> Value {
    let text = json::remove(object, &["metadata", "annotations", key]);
    if json::map_at(object, &["metadata", "annotations"]).is_some_and(Map::is_empty) {
        json::remove(object, &["metadata", "annotations"]);
    }
    text.as_ref().and_then(Value::as_str).and_then(|t| serde_json::from_str(t).ok()).unwrap_or(Value::Null)
}

fn put_annotation(object: &mut Value, key: &str, value: &Value) {
    json::set(object, &["metadata", "annotations", key], to_json(value));
}

fn cpu_metric(values: &str, utilization: &Value) -> Value {
    let mut target = json!({ "averageUtilization": utilization });
    if values == "target" {
        put(&mut target, "type", "Utilization");
    }
    json!({"type": "Resource", "resource": {"name": "cpu", values: target}})
}

/// From the hub to the form of `v2` and `v2beta2`.
pub(super) fn to_v2(object: &mut Value) {
    let mut metrics = Vec::new();
    if let Some(spec) = object.get_mut("spec")
        && let Some(cpu) = take(spec, "targetCPUUtilizationPercentage").filter(|v| !v.is_null())
    {
        metrics.push(cpu_metric("target", &cpu));
    }
    // What the annotation has comes before what has a field of its own.
    let others = each(&take_annotation(object, METRICS), spec_to_new);
    metrics.splice(0..0, others.as_array().cloned().unwrap_or_default());
    let behavior = take_annotation(object, BEHAVIOR);
    if !metrics.is_empty() {
        json::set(object, &["spec", "metrics"], Value::Array(metrics.into()));
    }
    if !behavior.is_null() {
        json::set(object, &["spec", "behavior"], recased(&behavior, false));
    }
    if let Some(status) = object.get_mut("status")
        && let Some(cpu) = take(status, "currentCPUUtilizationPercentage").filter(|v| !v.is_null())
    {
        put(status, "currentMetrics", json!([cpu_metric("current", &cpu)]));
    }
    // The annotation holds all metrics, that of the CPU among them.
    let current = each(&take_annotation(object, CURRENT_METRICS), status_to_new);
    if !current.is_null() {
        json::set(object, &["status", "currentMetrics"], current);
    }
    let conditions = take_annotation(object, CONDITIONS);
    if !conditions.is_null() {
        json::set(object, &["status", "conditions"], conditions);
    }
}

/// From the form of `v2` and `v2beta2` to the hub, defaults of `v2` set on the way.
pub(super) fn from_v2(object: &mut Value) {
    default_v2(object);
    let (metrics, behavior) = match object.get_mut("spec") {
        Some(spec) => (take(spec, "metrics"), take(spec, "behavior")),
        None => (None, None),
    };
    let metrics = metrics.unwrap_or(Value::Null);
    let metrics = items_of(&metrics);
    if let Some(cpu) = metrics.iter().find(|m| is_cpu_utilization(m, "target")) {
        let utilization = json::get(cpu, &["resource", "target", "averageUtilization"]).clone();
        json::set(object, &["spec", "targetCPUUtilizationPercentage"], utilization);
    }
    let others: Vec<Value> =
        metrics.iter().filter(|m| !is_cpu_utilization(m, "target")).map(spec_to_old).collect();
    if !others.is_empty() {
        put_annotation(object, METRICS, &Value::Array(others.into()));
    }
    if let Some(behavior) = behavior.filter(|b| !b.is_null()) {
        put_annotation(object, BEHAVIOR, &recased(&behavior, true));
    }
    let (current, conditions) = match object.get_mut("status") {
        Some(status) => (take(status, "currentMetrics"), take(status, "conditions")),
        None => (None, None),
    };
    let current = current.unwrap_or(Value::Null);
    if let Some(cpu) = items_of(&current).iter().rev().find(|m| is_cpu_utilization(m, "current")) {
        let utilization = json::get(cpu, &["resource", "current", "averageUtilization"]).clone();
        json::set(object, &["status", "currentCPUUtilizationPercentage"], utilization);
    }
    if !items_of(&current).is_empty() {
        put_annotation(object, CURRENT_METRICS, &each(&current, status_to_old));
    }
    if let Some(conditions) = conditions.filter(|c| !items_of(c).is_empty()) {
        put_annotation(object, CONDITIONS, &conditions);
    }
}

fn items_of(list: &Value) -> &[Value] {
    list.as_array().map_or(&[], Vec::as_slice)
}

/// From the hub to `v2beta1`.
pub(super) fn to_v2beta1(object: &mut Value) {
    to_v2(object);
    old_metrics(object, "spec", "metrics", spec_to_old);
    old_metrics(object, "status", "currentMetrics", status_to_old);
}

/// From `v2beta1` to the hub.
pub(super) fn from_v2beta1(object: &mut Value) {
    old_metrics(object, "spec", "metrics", spec_to_new);
    old_metrics(object, "status", "currentMetrics", status_to_new);
    from_v2(object);
}

fn old_metrics(object: &mut Value, holder: &str, key: &str, convert: fn(&Value) -> Value) {
    if let Some(list) = object.get_mut(holder).and_then(|h| h.get_mut(key)).filter(|l| l.is_array()) {
        *list = each(list, convert);
    }
}

fn default_v2(object: &mut Value) {
    let Some(spec) = object.get_mut("spec") else { return };
    if is_empty(spec, "metrics") {
        put(spec, "metrics", json!([cpu_metric("target", &Value::from(DEFAULT_CPU_UTILIZATION))]));
    }
    let Some(behavior) = spec.get_mut("behavior").filter(|b| b.is_object()) else { return };
    let percent = json!({"type": "Percent", "value": 100, "periodSeconds": 15});
    let pods = json!({"type": "Pods", "value": 4, "periodSeconds": 15});
    default_to(behavior, "scaleUp", json!({}));
    default_to(behavior, "scaleDown", json!({}));
    default_to(&mut behavior["scaleUp"], "stabilizationWindowSeconds", 0);
    for (key, policies) in [("scaleUp", json!([pods, percent])), ("scaleDown", json!([percent]))] {
        let rules = &mut behavior[key];
        default_to(rules, "selectPolicy", "Max");
        default_to(rules, "policies", policies);
    }
}

/// `scaleUp` as `ScaleUp` and so on, or back: the annotation holds the fields as Go names them.
fn recased(v: &Value, upper: bool) -> Value {
    match v {
        Value::Object(map) => {
            let renamed = map.iter().filter(|(_, v)| upper || !v.is_null()).map(|(key, value)| {
                let mut chars = key.chars();
                let first = chars.next().map_or(String::new(), |c| {
                    if upper { c.to_uppercase().collect() } else { c.to_lowercase().collect() }
                });
                (first + chars.as_str(), recased(value, upper))
            });
            let mut map: Map = renamed.collect();
            if upper && (map.contains_key("Policies") || map.contains_key("SelectPolicy")) {
                map.entry("StabilizationWindowSeconds").or_insert(Value::Null);
            }
            Value::Object(map)
        }
        Value::Array(list) => Value::Array(list.iter().map(|v| recased(v, upper)).collect()),
        other => other.clone(),
    }
}

/// The defaults of the hub version: an autoscaler without metrics looks at the CPU.
pub(super) fn default_v1(object: &mut Value) {
    let has_metrics = !text(json::get(object, &["metadata", "annotations"]), METRICS).is_empty();
    let Some(spec) = object.get_mut("spec") else { return };
    default_to(spec, "minReplicas", 1);
    if !has_metrics && !present(spec, "targetCPUUtilizationPercentage") {
        put(spec, "targetCPUUtilizationPercentage", DEFAULT_CPU_UTILIZATION);
    }
}

/// The hub object in the form of `v2`.
pub(super) fn v2_form(object: &Value) -> Value {
    let mut form = object.clone();
    to_v2(&mut form);
    form
}

/// Removes metrics of single containers, which v1.20 has off by default.
pub(super) fn without_container_metrics(form: &mut Value) {
    if let Some(spec) = form.get_mut("spec") {
        for metric in crate::kinds::access::items_mut(spec, "metrics") {
            take(metric, "containerResource");
        }
    }
}

/// Whether the object has metrics of single containers.
pub(super) fn has_container_metrics(form: &Value) -> bool {
    items(part(form, "spec"), "metrics").iter().any(|m| present(m, "containerResource"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn v2beta1_and_back() {
        let original = json!({"metadata": {"name": "h"}, "spec": {"maxReplicas": 3, "metrics": [
            {"type": "Resource", "resource": {"name": "memory", "targetAverageValue": "1Gi"}},
            {"type": "Resource", "resource": {"name": "cpu", "targetAverageUtilization": 50}},
        ]}});
        let mut object = original.clone();
        from_v2beta1(&mut object);
        assert_eq!(object["spec"], json!({"maxReplicas": 3, "targetCPUUtilizationPercentage": 50}));
        assert_eq!(
            object["metadata"]["annotations"][METRICS],
            r#"[{"type":"Resource","resource":{"name":"memory","targetAverageValue":"1Gi"}}]"#
        );
        to_v2beta1(&mut object);
        assert_eq!(object, original);
    }

    #[test]
    fn behavior_is_an_annotation_in_v1() {
        let mut object =
            json!({"metadata": {}, "spec": {"behavior": {"scaleDown": {"selectPolicy": "Min"}}}});
        from_v2(&mut object);
        assert_eq!(
            object["metadata"]["annotations"][BEHAVIOR],
            r#"{"ScaleUp":{"StabilizationWindowSeconds":0,"SelectPolicy":"Max","Policies":[{"Type":"Pods","Value":4,"PeriodSeconds":15},{"Type":"Percent","Value":100,"PeriodSeconds":15}]},"ScaleDown":{"StabilizationWindowSeconds":null,"SelectPolicy":"Min","Policies":[{"Type":"Percent","Value":100,"PeriodSeconds":15}]}}"#
        );
        assert_eq!(object["spec"]["targetCPUUtilizationPercentage"], 80);
        to_v2(&mut object);
        assert_eq!(object["spec"]["behavior"]["scaleDown"]["selectPolicy"], "Min");
        assert!(object["spec"]["behavior"]["scaleDown"].get("stabilizationWindowSeconds").is_none());
        assert!(object["metadata"].get("annotations").is_none());
    }

    #[test]
    fn statuses() {
        let mut object = json!({"metadata": {}, "spec": {}, "status": {
            "conditions": [{"type": "AbleToScale", "status": "True"}],
            "currentMetrics": [{"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": 7, "averageValue": "3m"}}}],
        }});
        let original = object["status"].clone();
        from_v2(&mut object);
        assert_eq!(object["status"], json!({"currentCPUUtilizationPercentage": 7}));
        to_v2(&mut object);
        assert_eq!(object["status"], original);
    }
}
