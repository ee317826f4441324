//! Names of resources and their quantities, as quotas, limit ranges, nodes and volumes check them.

use std::cmp::Ordering;

use pilothouse_apimachinery::field::{self, ErrorList, Path};
use pilothouse_apimachinery::json::Value;
use pilothouse_apimachinery::names;
use pilothouse_apimachinery::quantity::Quantity;

use crate::go_print;
use crate::kinds::checks::invalid_each;

const CONTAINER: &[&str] = &["cpu", "memory", "ephemeral-storage"];

const QUOTA: &[&str] = &[
    "cpu",
    "memory",
    "ephemeral-storage",
    "requests.cpu",
    "requests.memory",
    "requests.storage",
    "requests.ephemeral-storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
    "pods",
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "persistentvolumeclaims",
    "configmaps",
    "services.nodeports",
    "services.loadbalancers",
];

const WHOLE: &[&str] = &[
    "pods",
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "configmaps",
    "persistentvolumeclaims",
    "services.nodeports",
    "services.loadbalancers",
];

/// A quantity's canonical text.
pub fn text(value: &Value) -> String {
    match value {
        Value::String(s) => s.to_string(),
        Value::Null => "0".into(),
        other => other.to_string(),
    }
}

/// The quantity; zero where it is malformed, which the decoder does not let through.
pub fn quantity(value: &Value) -> Quantity {
    Quantity::parse(&text(value)).unwrap_or_default()
}

/// Compares two quantities.
pub fn compare(a: &Value, b: &Value) -> Ordering {
    quantity(a).cmp(&quantity(b))
}

/// -1, 0 or 1.
pub fn sign(value: &Value) -> i32 {
    match quantity(value).cmp(&Quantity::default()) {
        Ordering::Less => -1,
        Ordering::Equal => 0,
        Ordering::Greater => 1,
    }
}

/// Whether it is the name of a huge-page resource.
pub fn is_huge_page(name: &str) -> bool {
    name.starts_with("hugepages-")
}

fn is_quota_huge_page(name: &str) -> bool {
    is_huge_page(name) || name.starts_with("requests.hugepages-")
}

/// Whether it is a standard resource name of any kind.
pub fn is_standard(name: &str) -> bool {
    is_standard_quota(name) || name == "storage"
}

/// Whether it is a standard resource name for quotas.
pub fn is_standard_quota(name: &str) -> bool {
    QUOTA.contains(&name) || is_quota_huge_page(name)
}

/// Whether it is a standard resource name for containers.
pub fn is_standard_container(name: &str) -> bool {
    CONTAINER.contains(&name) || is_huge_page(name)
}

/// Whether the resource belongs to Kubernetes itself.
pub fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

/// Whether it is an extended resource, such as `nvidia.com/gpu`.
pub fn is_extended(name: &str) -> bool {
    !is_native(name)
        && !name.starts_with("requests.")
        && names::qualified_name(&format!("requests.{name}")).is_empty()
}

/// Whether limits of the resource may be above requests.
pub fn is_overcommit_allowed(name: &str) -> bool {
    is_native(name) && !is_huge_page(name)
}

/// Faults of a resource name.
pub fn name_faults(name: &str, path: &Path) -> ErrorList {
    let mut errs = invalid_each(path, name, names::qualified_name(name));
    if errs.is_empty() && !name.contains('/') && !is_standard(name) {
        errs.push(field::invalid(path, name, "must be a standard resource type or fully qualified"));
    }
    errs
}

/// Faults of a resource name of a container.
pub fn container_name_faults(name: &str, path: &Path) -> ErrorList {
    let mut errs = name_faults(name, path);
    if !name.contains('/') {
        if !is_standard_container(name) {
            errs.push(field::invalid(path, name, "must be a standard resource for containers"));
        }
    } else if !is_native(name) && !is_extended(name) {
        errs.push(field::invalid(path, name, "doesn't follow extended resource name standard"));
    }
    errs
}

/// Faults of a resource name of a quota.
pub fn quota_name_faults(name: &str, path: &Path) -> ErrorList {
    let mut errs = name_faults(name, path);
    if !name.contains('/') && !is_standard_quota(name) {
        errs.push(field::invalid(path, name, "must be a standard resource for quota"));
    }
    errs
}

/// Faults of a resource's quantity: not negative, and whole where the resource is counted.
pub fn value_faults(name: &str, value: &Value, path: &Path) -> ErrorList {
    let mut errs = non_negative(value, path);
    if (WHOLE.contains(&name) || is_extended(name)) && !is_whole(value) {
        errs.push(field::invalid_shown(path, &go_print::quantity(&text(value)), "must be an integer"));
    }
    errs
}

fn is_whole(value: &Value) -> bool {
    quantity(value).milli_value() % 1000 == 0
}

/// An error where the quantity is negative.
pub fn non_negative(value: &Value, path: &Path) -> ErrorList {
    match sign(value) {
        -1 => vec![field::invalid(path, text(value), "must be greater than or equal to 0")],
        _ => ErrorList::new(),
    }
}

/// An error where the quantity is not positive.
pub fn positive(value: &Value, path: &Path) -> ErrorList {
    match sign(value) {
        1 => ErrorList::new(),
        _ => vec![field::invalid(path, text(value), "must be greater than zero")],
    }
}

/// An error where the quantity is negative, in the words that volumes use.
pub fn basic(value: &Value, path: &Path) -> ErrorList {
    match sign(value) {
        -1 => vec![field::invalid(path, quantity(value).value(), "must be a valid resource quantity")],
        _ => ErrorList::new(),
    }
}

#[cfg(test)]
mod tests {
    use pilothouse_apimachinery::json::json;

    use super::*;

    #[test]
    fn names() {
        let p = Path::new("r");
        assert!(container_name_faults("cpu", &p).is_empty());
        assert!(container_name_faults("hugepages-2Mi", &p).is_empty());
        assert!(container_name_faults("nvidia.com/gpu", &p).is_empty());
        assert_eq!(container_name_faults("wire", &p).len(), 2);
        assert!(quota_name_faults("count/deployments.apps", &p).is_empty());
        assert!(quota_name_faults("requests.hugepages-2Mi", &p).is_empty());
        assert_eq!(
            quota_name_faults("storage", &p)[0].to_string(),
            "r: Invalid value: \"storage\": must be a standard resource for quota"
        );
        assert_eq!(name_faults("a b", &p).len(), 1);
    }

    #[test]
    fn values() {
        let p = Path::new("q");
        assert!(value_faults("cpu", &json!("100m"), &p).is_empty());
        assert_eq!(
            value_faults("cpu", &json!("-1"), &p)[0].to_string(),
            "q: Invalid value: \"-1\": must be greater than or equal to 0"
        );
        assert!(value_faults("pods", &json!("1500m"), &p)[0].body.ends_with("must be an integer"));
        assert_eq!(
            positive(&json!("0"), &p)[0].to_string(),
            "q: Invalid value: \"0\": must be greater than zero"
        );
        assert_eq!(compare(&json!("1Gi"), &json!("1000M")), Ordering::Greater);
    }
}
