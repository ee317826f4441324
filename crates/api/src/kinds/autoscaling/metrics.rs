//! Metrics of autoscalers in the form of `v2` (one target for all sorts) and in that of `v1` and `v2beta1` (fields of
//! their own for each sort).

use pilothouse_apimachinery::json::{Map, Text, Value, json};

use crate::kinds::access::{items, part, present, put, text};

/// Copies fields that are there, under their new names.
fn copied(from: &Value, fields: &[(&str, &str)]) -> Value {
    let mut to = Map::new();
    for (old, new) in fields {
        if present(from, old) {
            to.insert((*new).to_string(), part(from, old).clone());
        }
    }
    Value::Object(to)
}

/// Converts each metric of a list.
pub(super) fn each(list: &Value, convert: impl Fn(&Value) -> Value) -> Value {
    match list {
        Value::Array(list) => Value::Array(list.iter().map(convert).collect()),
        _ => Value::Null,
    }
}

/// A metric's specification, from the old form to the new.
pub(super) fn spec_to_new(old: &Value) -> Value {
    let mut new = copied(old, &[("type", "type")]);
    for key in ["resource", "containerResource"] {
        let source = part(old, key);
        if !source.is_null() {
            let mut target = copied(
                source,
                &[("targetAverageUtilization", "averageUtilization"), ("targetAverageValue", "averageValue")],
            );
            let utilization = present(source, "targetAverageUtilization");
            put(&mut target, "type", if utilization { "Utilization" } else { "AverageValue" });
            let mut converted = copied(source, &[("name", "name"), ("container", "container")]);
            put(&mut converted, "target", target);
            put(&mut new, key, converted);
        }
    }
    let pods = part(old, "pods");
    if !pods.is_null() {
        let mut target = copied(pods, &[("targetAverageValue", "averageValue")]);
        put(&mut target, "type", "AverageValue");
        put(&mut new, "pods", json!({ "metric": identifier(pods, "selector"), "target": target }));
    }
    let object = part(old, "object");
    if !object.is_null() {
        let average = present(object, "averageValue");
        let mut target = copied(object, &[("averageValue", "averageValue")]);
        put(&mut target, "type", if average { "AverageValue" } else { "Value" });
        if !average || text(object, "targetValue") != "0" {
            let value = part(object, "targetValue").clone();
            put(&mut target, "value", if value.is_null() { Value::from("0") } else { value });
        }
        put(
            &mut new,
            "object",
            json!({ "describedObject": part(object, "target"), "metric": identifier(object, "selector"), "target": target }),
        );
    }
    let external = part(old, "external");
    if !external.is_null() {
        let mut target =
            copied(external, &[("targetValue", "value"), ("targetAverageValue", "averageValue")]);
        let value = present(external, "targetValue");
        put(&mut target, "type", if value { "Value" } else { "AverageValue" });
        put(
            &mut new,
            "external",
            json!({ "metric": identifier(external, "metricSelector"), "target": target }),
        );
    }
    new
}

fn identifier(source: &Value, selector: &str) -> Value {
    let mut metric = copied(source, &[("metricName", "name"), (selector, "selector")]);
    if !present(&metric, "name") {
        put(&mut metric, "name", "");
    }
    metric
}

/// The metric's name and selector, for the old form.
fn flattened(source: &Value, selector: &str) -> Value {
    copied(part(source, "metric"), &[("name", "metricName"), ("selector", selector)])
}

fn merge(into: &mut Value, more: Value) {
    if let (Some(into), Value::Object(more)) = (into.as_object_mut(), more) {
        into.extend(more);
    }
}

/// A metric's specification, from the new form to the old.
pub(super) fn spec_to_old(new: &Value) -> Value {
    let mut old = copied(new, &[("type", "type")]);
    for key in ["resource", "containerResource"] {
        let source = part(new, key);
        if !source.is_null() {
            let mut converted = copied(source, &[("name", "name"), ("container", "container")]);
            let target = copied(
                part(source, "target"),
                &[("averageUtilization", "targetAverageUtilization"), ("averageValue", "targetAverageValue")],
            );
            merge(&mut converted, target);
            put(&mut old, key, converted);
        }
    }
    let pods = part(new, "pods");
    if !pods.is_null() {
        let mut converted = flattened(pods, "selector");
        merge(&mut converted, copied(part(pods, "target"), &[("averageValue", "targetAverageValue")]));
        put(&mut old, "pods", converted);
    }
    let object = part(new, "object");
    if !object.is_null() {
        let mut converted = flattened(object, "selector");
        put(&mut converted, "targetValue", "0");
        merge(
            &mut converted,
            copied(part(object, "target"), &[("value", "targetValue"), ("averageValue", "averageValue")]),
        );
        put(&mut converted, "target", part(object, "describedObject").clone());
        put(&mut old, "object", converted);
    }
    let external = part(new, "external");
    if !external.is_null() {
        let mut converted = flattened(external, "metricSelector");
        merge(
            &mut converted,
            copied(
                part(external, "target"),
                &[("value", "targetValue"), ("averageValue", "targetAverageValue")],
            ),
        );
        put(&mut old, "external", converted);
    }
    old
}

/// A metric's present value, from the old form to the new.
pub(super) fn status_to_new(old: &Value) -> Value {
    let mut new = copied(old, &[("type", "type")]);
    for key in ["resource", "containerResource"] {
        let source = part(old, key);
        if !source.is_null() {
            let mut converted = copied(source, &[("name", "name"), ("container", "container")]);
            let current = copied(
                source,
                &[
                    ("currentAverageUtilization", "averageUtilization"),
                    ("currentAverageValue", "averageValue"),
                ],
            );
            put(&mut converted, "current", current);
            put(&mut new, key, converted);
        }
    }
    for (key, selector) in [("pods", "selector"), ("object", "selector"), ("external", "metricSelector")] {
        let source = part(old, key);
        if source.is_null() {
            continue;
        }
        let current = copied(
            source,
            &[
                ("currentValue", "value"),
                ("currentAverageValue", "averageValue"),
                ("averageValue", "averageValue"),
            ],
        );
        let mut converted = json!({ "metric": identifier(source, selector), "current": current });
        if key == "object" {
            put(&mut converted, "describedObject", part(source, "target").clone());
        }
        put(&mut new, key, converted);
    }
    new
}

/// A metric's present value, from the new form to the old.
pub(super) fn status_to_old(new: &Value) -> Value {
    let mut old = copied(new, &[("type", "type")]);
    for key in ["resource", "containerResource"] {
        let source = part(new, key);
        if !source.is_null() {
            let mut converted = copied(source, &[("name", "name"), ("container", "container")]);
            put(&mut converted, "currentAverageValue", "0");
            let current = copied(
                part(source, "current"),
                &[
                    ("averageUtilization", "currentAverageUtilization"),
                    ("averageValue", "currentAverageValue"),
                ],
            );
            merge(&mut converted, current);
            put(&mut old, key, converted);
        }
    }
    for (key, selector) in [("pods", "selector"), ("object", "selector"), ("external", "metricSelector")] {
        let source = part(new, key);
        if source.is_null() {
            continue;
        }
        let mut converted = flattened(source, selector);
        let current = part(source, "current");
        let fields: &[(&str, &str)] = match key {
            "pods" => &[("averageValue", "currentAverageValue")],
            "object" => &[("value", "currentValue"), ("averageValue", "averageValue")],
            _ => &[("value", "currentValue"), ("averageValue", "currentAverageValue")],
        };
        put(&mut converted, if key == "pods" { "currentAverageValue" } else { "currentValue" }, "0");
        merge(&mut converted, copied(current, fields));
        if key == "object" {
            put(&mut converted, "target", part(source, "describedObject").clone());
        }
        put(&mut old, key, converted);
    }
    old
}

/// Whether a metric is the CPU's utilization, which `v1` has a field of its own for.
pub(super) fn is_cpu_utilization(metric: &Value, values: &str) -> bool {
    let resource = part(metric, "resource");
    text(metric, "type") == "Resource"
        && text(resource, "name") == "cpu"
        && present(part(resource, values), "averageUtilization")
}

/// The order in which Go writes the fields of the types that annotations hold.
const ORDER: &[&str] = &[
    "type",
    "status",
    "lastTransitionTime",
    "reason",
    "message",
    "object",
    "pods",
    "resource",
    "containerResource",
    "external",
    "target",
    "kind",
    "metricName",
    "name",
    "apiVersion",
    "metricSelector",
    "targetValue",
    "currentValue",
    "targetAverageUtilization",
    "currentAverageUtilization",
    "targetAverageValue",
    "currentAverageValue",
    "selector",
    "averageValue",
    "container",
    "matchLabels",
    "matchExpressions",
    "ScaleUp",
    "ScaleDown",
    "StabilizationWindowSeconds",
    "SelectPolicy",
    "Policies",
    "Tolerance",
    "Type",
    "Value",
    "PeriodSeconds",
];

/// JSON with the fields in the order in which Go writes them.
pub(super) fn to_json(v: &Value) -> String {
    match v {
        Value::Object(map) => {
            let mut fields: Vec<(&Text, &Value)> = map.iter().collect();
            let rank = |key: &str| ORDER.iter().position(|k| *k == key).unwrap_or(ORDER.len());
            fields.sort_by_key(|(key, _)| (rank(key), *key));
            let fields: Vec<String> = fields
                .into_iter()
                .map(|(key, value)| {
                    let value = if key == "matchLabels" { value.to_string() } else { to_json(value) };
                    format!("{}:{value}", Value::from(key.as_str()))
                })
                .collect();
            format!("{{{}}}", fields.join(","))
        }
        Value::Array(_) => {
            let values: Vec<String> = items(&json!({ "v": v }), "v").iter().map(to_json).collect();
            format!("[{}]", values.join(","))
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips() {
        let specs = [
            json!({"type": "Resource", "resource": {"name": "cpu", "targetAverageUtilization": 50}}),
            json!({"type": "Resource", "resource": {"name": "memory", "targetAverageValue": "1Gi"}}),
            json!({"type": "Pods", "pods": {"metricName": "m", "targetAverageValue": "10", "selector": {"matchLabels": {"a": "b"}}}}),
            json!({"type": "Object", "object": {"target": {"kind": "Service", "name": "s"}, "metricName": "m", "targetValue": "5"}}),
            json!({"type": "External", "external": {"metricName": "m", "targetAverageValue": "5"}}),
        ];
        for spec in specs {
            assert_eq!(spec_to_old(&spec_to_new(&spec)), spec);
        }
        let status = json!({"type": "Resource", "resource": {"name": "cpu", "currentAverageUtilization": 50, "currentAverageValue": "100m"}});
        assert_eq!(status_to_old(&status_to_new(&status)), status);
    }

    #[test]
    fn json_in_go_s_order() {
        let v = json!([{"resource": {"targetAverageValue": "1", "name": "memory"}, "type": "Resource"}]);
        assert_eq!(
            to_json(&v),
            r#"[{"type":"Resource","resource":{"name":"memory","targetAverageValue":"1"}}]"#
        );
    }
}
