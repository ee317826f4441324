//! Validation of autoscalers, in the form of `v2`.

use pilothouse_apimachinery::field::{self, ErrorList, Path};
use pilothouse_apimachinery::json::Value;
use pilothouse_apimachinery::names;
use pilothouse_apimachinery::version::Release;

use crate::go_print;
use crate::kinds::access::{items, number, optional, part, present, text};
use crate::kinds::checks::invalid_each;
use crate::kinds::pod::resources::quantity;

/// Faults of an autoscaler's spec.
pub(super) fn spec(spec: &Value, release: Release) -> ErrorList {
    let path = Path::new("spec");
    let mut errs = ErrorList::new();
    let min = optional(spec, "minReplicas");
    let max = number(spec, "maxReplicas");
    if let Some(min) = min.filter(|n| *n < 1) {
        let detail = "must be greater than or equal to 1";
        errs.push(field::invalid(&path.child("minReplicas"), min, detail));
    }
    if max < 1 {
        errs.push(field::invalid(&path.child("maxReplicas"), max, "must be greater than 0"));
    }
    if min.is_some_and(|min| max < min) {
        let detail = "must be greater than or equal to `minReplicas`";
        errs.push(field::invalid(&path.child("maxReplicas"), max, detail));
    }
    errs.extend(reference(part(spec, "scaleTargetRef"), &path.child("scaleTargetRef")));
    for (i, metric) in items(spec, "metrics").iter().enumerate() {
        errs.extend(self::metric(metric, release, &path.child("metrics").index(i)));
    }
    let behavior = part(spec, "behavior");
    for key in ["scaleUp", "scaleDown"] {
        errs.extend(scaling_rules(part(behavior, key), &path.child("behavior").child(key)));
    }
    errs
}

fn reference(reference: &Value, path: &Path) -> ErrorList {
    let mut errs = ErrorList::new();
    for key in ["kind", "name"] {
        errs.extend(path_segment(text(reference, key), &path.child(key), ""));
    }
    errs
}

/// Faults of a text that becomes a part of a path, and must be there.
fn path_segment(value: &str, path: &Path, missing: &str) -> ErrorList {
    if value.is_empty() {
        return vec![field::required(path, missing)];
    }
    invalid_each(path, value, names::path_segment_name(value, false))
}

/// Sorts of metrics, with the field that describes each.
const SOURCES: &[(&str, &str)] = &[
    ("ContainerResource", "containerResource"),
    ("External", "external"),
    ("Object", "object"),
    ("Pods", "pods"),
    ("Resource", "resource"),
];

fn metric(metric: &Value, release: Release, path: &Path) -> ErrorList {
    let mut errs = ErrorList::new();
    let kind = text(metric, "type");
    if kind.is_empty() {
        errs.push(field::required(&path.child("type"), "must specify a metric source type"));
    }
    let expected = SOURCES.iter().find(|(k, _)| *k == kind).map(|(_, field)| *field);
    let kinds: Vec<&str> = SOURCES.iter().map(|(k, _)| *k).collect();
    let unknown = || field::not_supported(&path.child("type"), kind, &kinds);
    if expected.is_none() {
        errs.push(unknown());
    }
    let found: Vec<&str> = ["object", "external", "pods", "resource", "containerResource"]
        .into_iter()
        .filter(|key| present(metric, key))
        .collect();
    if let Some(first) = found.first() {
        errs.extend(source(first, part(metric, first), &path.child(first)));
    }
    if let Some(expected) = expected.filter(|key| !present(metric, key)) {
        let detail = match (expected, release) {
            ("containerResource", Release::V1_20) => {
                "must populate information for the given metric source (only allowed when HPAContainerMetrics feature is enabled)"
            }
            _ => "must populate information for the given metric source",
        };
        errs.push(field::required(&path.child(expected), detail));
    }
    // The original says this twice.
    if expected.is_none() {
        errs.push(unknown());
    }
    if found.len() != 1 {
        for key in found.iter().filter(|key| Some(**key) != expected) {
            errs.push(field::forbidden(&path.child(key), "must populate the given metric source only"));
        }
    }
    errs
}

fn source(key: &str, source: &Value, path: &Path) -> ErrorList {
    let (target, at) = (part(source, "target"), path.child("target"));
    let mut errs = ErrorList::new();
    let (value, average) = (present(target, "value"), present(target, "averageValue"));
    match key {
        "object" | "external" => {
            if key == "object" {
                errs.extend(reference(part(source, "describedObject"), &path.child("describedObject")));
            }
            errs.extend(identifier(part(source, "metric"), &path.child("metric")));
            errs.extend(self::target(target, &at));
            if !value && !average {
                let detail = match key {
                    "object" => "must set either a target value or averageValue",
                    _ => "must set either a target value for metric or a per-pod target",
                };
                errs.push(field::required(&at.child("averageValue"), detail));
            }
            if key == "external" && value && average {
                let detail = "may not set both a target value for metric and a per-pod target";
                errs.push(field::forbidden(&at.child("value"), detail));
            }
        }
        "pods" => {
            errs.extend(identifier(part(source, "metric"), &path.child("metric")));
            errs.extend(self::target(target, &at));
            if quantity(part(target, "averageValue")).sign() != 1 {
                let detail = "must specify a positive target averageValue";
                errs.push(field::required(&at.child("averageValue"), detail));
            }
        }
        _ => {
            if text(source, "name").is_empty() {
                errs.push(field::required(&path.child("name"), "must specify a resource name"));
            }
            if key == "containerResource" && text(source, "container").is_empty() {
                errs.push(field::required(&path.child("container"), "must specify a container"));
            }
            errs.extend(self::target(target, &at));
            let utilization = present(target, "averageUtilization");
            if !utilization && !average {
                let detail = "must set either a target raw value or a target utilization";
                errs.push(field::required(&at.child("averageUtilization"), detail));
            }
            if utilization && average {
                let detail = "may not set both a target raw value and a target utilization";
                errs.push(field::forbidden(&at.child("averageValue"), detail));
            }
        }
    }
    errs
}

fn identifier(metric: &Value, path: &Path) -> ErrorList {
    path_segment(text(metric, "name"), &path.child("name"), "must specify a metric name")
}

fn target(target: &Value, path: &Path) -> ErrorList {
    let mut errs = ErrorList::new();
    let kind = text(target, "type");
    if kind.is_empty() {
        errs.push(field::required(&path.child("type"), "must specify a metric target type"));
    }
    if !["Utilization", "Value", "AverageValue"].contains(&kind) {
        let detail = "must be either Utilization, Value, or AverageValue";
        errs.push(field::invalid(&path.child("type"), kind, detail));
    }
    for key in ["value", "averageValue"] {
        if present(target, key) {
            let q = quantity(part(target, key));
            if q.sign() != 1 {
                let shown = go_print::quantity(&q.canonical());
                errs.push(field::invalid_shown(&path.child(key), &shown, "must be positive"));
            }
        }
    }
    if let Some(n) = optional(target, "averageUtilization").filter(|n| *n < 1) {
        errs.push(field::invalid(&path.child("averageUtilization"), n, "must be greater than 0"));
    }
    errs
}

const MAX_STABILIZATION_SECONDS: i64 = 3600;
const MAX_PERIOD_SECONDS: i64 = 1800;

fn scaling_rules(rules: &Value, path: &Path) -> ErrorList {
    let mut errs = ErrorList::new();
    if rules.is_null() {
        return errs;
    }
    let at = path.child("stabilizationWindowSeconds");
    match optional(rules, "stabilizationWindowSeconds") {
        Some(n) if n < 0 => errs.push(field::invalid(&at, n, "must be greater than or equal to zero")),
        Some(n) if n > MAX_STABILIZATION_SECONDS => {
            let detail = format!("must be less than or equal to {MAX_STABILIZATION_SECONDS}");
            errs.push(field::invalid(&at, n, &detail));
        }
        _ => {}
    }
    const SELECT: &[&str] = &["Disabled", "Max", "Min"];
    if let Some(policy) = part(rules, "selectPolicy").as_str().filter(|p| !SELECT.contains(p)) {
        errs.push(field::not_supported(&path.child("selectPolicy"), policy, SELECT));
    }
    let (policies, at) = (items(rules, "policies"), path.child("policies"));
    if policies.is_empty() {
        errs.push(field::required(&at, "must specify at least one Policy"));
    }
    for (i, policy) in policies.iter().enumerate() {
        errs.extend(scaling_policy(policy, &at.index(i)));
    }
    errs
}

fn scaling_policy(policy: &Value, path: &Path) -> ErrorList {
    let mut errs = ErrorList::new();
    const TYPES: &[&str] = &["Percent", "Pods"];
    let kind = text(policy, "type");
    if !TYPES.contains(&kind) {
        errs.push(field::not_supported(&path.child("type"), kind, TYPES));
    }
    for key in ["value", "periodSeconds"] {
        let n = number(policy, key);
        if n <= 0 {
            errs.push(field::invalid(&path.child(key), n, "must be greater than zero"));
        }
        if key == "periodSeconds" && n > MAX_PERIOD_SECONDS {
            let detail = format!("must be less than or equal to {MAX_PERIOD_SECONDS}");
            errs.push(field::invalid(&path.child(key), n, &detail));
        }
    }
    errs
}

#[cfg(test)]
mod tests {
    use pilothouse_apimachinery::json::json;

    use super::*;

    fn faults(v: Value) -> Vec<String> {
        spec(&v, Release::V1_20).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn replicas_and_reference() {
        assert_eq!(
            faults(json!({"minReplicas": 1, "maxReplicas": 0, "scaleTargetRef": {"kind": "D/x"}})),
            [
                "spec.maxReplicas: Invalid value: 0: must be greater than 0",
                "spec.maxReplicas: Invalid value: 0: must be greater than or equal to `minReplicas`",
                "spec.scaleTargetRef.kind: Invalid value: \"D/x\": may not contain '/'",
                "spec.scaleTargetRef.name: Required value",
            ]
        );
    }

    #[test]
    fn metrics() {
        let with = |metrics: Value| {
            faults(
                json!({"maxReplicas": 1, "scaleTargetRef": {"kind": "D", "name": "d"}, "metrics": metrics}),
            )
        };
        assert_eq!(
            with(
                json!([{"type": "Resource", "resource": {"target": {"type": "Utilization", "averageUtilization": 50}}}])
            ),
            ["spec.metrics[0].resource.name: Required value: must specify a resource name"]
        );
        assert_eq!(
            with(
                json!([{"type": "Pods", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 0}}}])
            ),
            [
                "spec.metrics[0].resource.target.averageUtilization: Invalid value: 0: must be greater than 0",
                "spec.metrics[0].pods: Required value: must populate information for the given metric source",
            ]
        );
        assert_eq!(
            with(json!([{"type": "X"}])),
            ["spec.metrics[0].type: Unsupported value: \"X\": supported values: \"ContainerResource\", \"External\", \"Object\", \"Pods\", \"Resource\"";
                2]
        );
        assert_eq!(
            with(json!([{"type": "ContainerResource"}])),
            [
                "spec.metrics[0].containerResource: Required value: must populate information for the given metric source (only allowed when HPAContainerMetrics feature is enabled)"
            ]
        );
        let object = json!({"describedObject": {"kind": "K", "name": "n"}, "metric": {"name": "m"}, "target": {"type": "Value"}});
        assert_eq!(
            with(json!([{"type": "Object", "object": object}])),
            [
                "spec.metrics[0].object.target.averageValue: Required value: must set either a target value or averageValue"
            ]
        );
    }

    #[test]
    fn behavior() {
        let rules = json!({"stabilizationWindowSeconds": 4000, "policies": [{"type": "Pods", "value": 1, "periodSeconds": 2000}]});
        let texts: Vec<String> =
            scaling_rules(&rules, &Path::new("b")).iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "b.stabilizationWindowSeconds: Invalid value: 4000: must be less than or equal to 3600",
                "b.policies[0].periodSeconds: Invalid value: 2000: must be less than or equal to 1800",
            ]
        );
    }
}
