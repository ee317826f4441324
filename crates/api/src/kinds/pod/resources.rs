//! Validation of resource requests and limits, and the quality-of-service class that follows from them.

use std::collections::BTreeMap;

use pilothouse_apimachinery::field::{self, ErrorList, Path};
use pilothouse_apimachinery::json::{Value, json};
use pilothouse_apimachinery::names;
use pilothouse_apimachinery::quantity::Quantity;

use super::Rules;
use crate::kinds::access::{entries, items, part, present};
use crate::kinds::checks::invalid_each;
use crate::kinds::numbers::NEGATIVE;

/// The quantity of a field; 0 where it is none.
pub(crate) fn quantity(v: &Value) -> Quantity {
    let parsed = match v {
        Value::String(s) => Quantity::parse(s.trim()),
        Value::Number(n) => Quantity::parse(&n.to_string()),
        _ => return Quantity::default(),
    };
    parsed.unwrap_or_default()
}

const CONTAINER_RESOURCES: &[&str] = &["cpu", "ephemeral-storage", "memory"];

const STANDARD_RESOURCES: &[&str] = &[
    "configmaps",
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "persistentvolumeclaims",
    "pods",
    "replicationcontrollers",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
    "requests.storage",
    "resourcequotas",
    "secrets",
    "services",
    "services.loadbalancers",
    "services.nodeports",
    "storage",
];

/// Resources without a domain, or with one of Kubernetes' own.
fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

fn is_huge_page(name: &str) -> bool {
    name.starts_with("hugepages-")
}

/// Resources of devices, such as `nvidia.com/gpu`.
pub(crate) fn is_extended(name: &str) -> bool {
    !is_native(name)
        && !name.starts_with("requests.")
        && names::qualified_name(&format!("requests.{name}")).is_empty()
}

/// Whether pods may be promised more of it than there is.
fn may_overcommit(name: &str) -> bool {
    is_native(name) && !is_huge_page(name)
}

/// Faults of the name of a container's resource.
fn resource_name(name: &str, path: &Path) -> ErrorList {
    let mut errs = invalid_each(path, name, names::qualified_name(name));
    let plain = !name.contains('/');
    let standard = CONTAINER_RESOURCES.contains(&name)
        || STANDARD_RESOURCES.contains(&name)
        || is_huge_page(name)
        || name.starts_with("requests.hugepages-");
    if errs.is_empty() && plain && !standard {
        errs.push(field::invalid(path, name, "must be a standard resource type or fully qualified"));
    }
    if plain {
        if !CONTAINER_RESOURCES.contains(&name) && !is_huge_page(name) {
            errs.push(field::invalid(path, name, "must be a standard resource for containers"));
        }
    } else if !is_native(name) && !is_extended(name) {
        errs.push(field::invalid(path, name, "doesn't follow extended resource name standard"));
    }
    errs
}

fn resource_value(name: &str, q: &Quantity, path: &Path) -> ErrorList {
    let mut errs = ErrorList::new();
    if q.sign() < 0 {
        errs.push(field::invalid(path, q.canonical(), NEGATIVE));
    }
    if is_extended(name) && q.milli_value() % 1000 != 0 {
        let shown = crate::go_print::quantity(&q.canonical());
        errs.push(field::invalid_shown(path, &shown, "must be an integer"));
    }
    if is_huge_page(name) {
        let page = Quantity::parse(name.trim_start_matches("hugepages-")).map_or(0, |q| q.value());
        if q.sign() < 0 || page <= 0 || q.value() % page != 0 {
            let detail = format!("{} is not positive integer multiple of {name}", q.canonical());
            errs.push(field::invalid(path, q.canonical(), &detail));
        }
    }
    errs
}

/// Faults of a container's `resources`.
pub(super) fn resource_requirements(requirements: &Value, path: &Path, _rules: &Rules) -> ErrorList {
    let mut errs = ErrorList::new();
    let (limits, requests) = (path.child("limits"), path.child("requests"));
    let (mut huge, mut compute) = (false, false);
    let mut seen = |name: &str| {
        huge |= is_huge_page(name);
        compute |= matches!(name, "cpu" | "memory");
    };
    for (name, value) in entries(requirements, "limits") {
        let at = limits.key(name);
        errs.extend(resource_name(name, &at));
        errs.extend(resource_value(name, &quantity(value), &at));
        seen(name);
    }
    for (name, value) in entries(requirements, "requests") {
        let at = requests.key(name);
        let q = quantity(value);
        errs.extend(resource_name(name, &at));
        errs.extend(resource_value(name, &q, &at));
        let limit = part(part(requirements, "limits"), name);
        if !limit.is_null() {
            let limit = quantity(limit);
            if q != limit && !may_overcommit(name) {
                let detail = format!("must be equal to {name} limit");
                errs.push(field::invalid(&requests, q.canonical(), &detail));
            } else if q > limit {
                let detail = format!("must be less than or equal to {name} limit");
                errs.push(field::invalid(&requests, q.canonical(), &detail));
            }
        } else if !may_overcommit(name) {
            errs.push(field::required(&limits, "Limit must be set for non overcommitable resources"));
        }
        seen(name);
    }
    if huge && !compute {
        errs.push(field::forbidden(path, "HugePages require cpu or memory"));
    }
    errs
}

/// Faults of `overhead`: those of limits.
pub(super) fn overhead(overhead: &Value, path: &Path, rules: &Rules) -> ErrorList {
    resource_requirements(&json!({ "limits": overhead }), path, rules)
}

/// A pod's quality-of-service class, from the CPU and memory of its containers.
pub fn qos_class(spec: &Value) -> &'static str {
    let (mut requests, mut limits) = (BTreeMap::new(), BTreeMap::new());
    let mut guaranteed = true;
    for container in items(spec, "containers").iter().chain(items(spec, "initContainers")) {
        let resources = part(container, "resources");
        add_compute(part(resources, "requests"), &mut requests);
        if add_compute(part(resources, "limits"), &mut limits) < 2 {
            guaranteed = false;
        }
    }
    if requests.is_empty() && limits.is_empty() {
        return "BestEffort";
    }
    if guaranteed && requests.len() == limits.len() && requests.iter().all(|(k, v)| limits.get(k) == Some(v))
    {
        "Guaranteed"
    } else {
        "Burstable"
    }
}

/// Adds what a container has of CPU and memory; how many of the two it has.
fn add_compute(list: &Value, sums: &mut BTreeMap<&'static str, Quantity>) -> usize {
    let mut found = 0;
    for name in ["cpu", "memory"] {
        if !present(list, name) {
            continue;
        }
        let q = quantity(part(list, name));
        if q.sign() > 0 {
            found += 1;
            sums.entry(name).or_default().add(&q);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use pilothouse_apimachinery::json::json;

    use super::*;

    const RULES: Rules = Rules { allow_privileged: true, today: false };

    fn faults(requirements: Value) -> Vec<String> {
        resource_requirements(&requirements, &Path::new("r"), &RULES)
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn names_and_values() {
        assert!(faults(json!({"limits": {"cpu": "1", "nvidia.com/gpu": "1"}, "requests": {"cpu": "100m", "nvidia.com/gpu": "1"}})).is_empty());
        assert_eq!(
            faults(json!({"limits": {"gpu": "1"}})),
            [
                "r.limits[gpu]: Invalid value: \"gpu\": must be a standard resource type or fully qualified",
                "r.limits[gpu]: Invalid value: \"gpu\": must be a standard resource for containers",
            ]
        );
        assert_eq!(
            faults(json!({"limits": {"memory": "1Mi"}, "requests": {"memory": "2Mi", "x.io/y": "1"}})),
            [
                "r.requests: Invalid value: \"2Mi\": must be less than or equal to memory limit",
                "r.limits: Required value: Limit must be set for non overcommitable resources",
            ]
        );
        assert_eq!(
            faults(json!({"requests": {"cpu": "-1"}})),
            ["r.requests[cpu]: Invalid value: \"-1\": must be greater than or equal to 0"]
        );
        assert_eq!(
            faults(json!({"limits": {"hugepages-2Mi": "3Mi"}})),
            [
                "r.limits[hugepages-2Mi]: Invalid value: \"3Mi\": 3Mi is not positive integer multiple of hugepages-2Mi",
                "r: Forbidden: HugePages require cpu or memory",
            ]
        );
    }

    #[test]
    fn qos_classes() {
        let class = |resources: Value| qos_class(&json!({"containers": [{"resources": resources}]}));
        assert_eq!(class(json!({})), "BestEffort");
        assert_eq!(class(json!({"requests": {"cpu": "1"}})), "Burstable");
        let full = json!({"cpu": "1", "memory": "1Gi"});
        assert_eq!(class(json!({"requests": full, "limits": full})), "Guaranteed");
        assert_eq!(class(json!({"limits": full})), "Burstable");
    }
}
