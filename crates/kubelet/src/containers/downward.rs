//! The downward API: fields of the pod and of its containers' resources as text, for variables and for volumes.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, ResourceFieldSelector};
use pilothouse_apimachinery::go::quote;
use pilothouse_apimachinery::quantity::Quantity;

use crate::pod::PodExt;
use crate::resources::{self, Amounts};

/// A field of a pod's metadata by its path, as volumes and variables may have it.
pub fn metadata_field(pod: &Pod, path: &str) -> Result<String, String> {
    let empty = BTreeMap::new();
    let labels = pod.metadata.labels.as_ref().unwrap_or(&empty);
    let annotations = pod.metadata.annotations.as_ref().unwrap_or(&empty);
    if let Some((map, key)) = subscript(path) {
        return match map {
            "metadata.labels" => Ok(labels.get(key).cloned().unwrap_or_default()),
            "metadata.annotations" => Ok(annotations.get(key).cloned().unwrap_or_default()),
            _ => Err(format!("fieldPath {} does not support subscript", quote(map))),
        };
    }
    match path {
        "metadata.name" => Ok(pod.name().into()),
        "metadata.namespace" => Ok(pod.namespace().into()),
        "metadata.uid" => Ok(pod.uid().into()),
        "metadata.labels" => Ok(format_map(labels)),
        "metadata.annotations" => Ok(format_map(annotations)),
        _ => Err(format!("unsupported fieldPath: {path}")),
    }
}

/// `a['b']` as `(a, b)`.
fn subscript(path: &str) -> Option<(&str, &str)> {
    let (map, rest) = path.strip_suffix("']")?.split_once("['")?;
    Some((map, rest))
}

fn format_map(map: &BTreeMap<String, String>) -> String {
    map.iter().map(|(k, v)| format!("{k}={}", quote(v))).collect::<Vec<_>>().join("\n")
}

/// What of a pod only its node knows, for variables.
#[derive(Debug, Clone, Default)]
pub struct NodeFields<'a> {
    /// The node's address.
    pub host_ip: &'a str,
    /// The pod's addresses.
    pub pod_ips: &'a [String],
}

/// A field by its path, as variables may have it.
pub fn env_field(pod: &Pod, path: &str, node: &NodeFields<'_>) -> Result<String, String> {
    match path {
        "spec.nodeName" => Ok(pod.pod_spec().node_name.clone().unwrap_or_default()),
        "spec.serviceAccountName" => Ok(pod.pod_spec().service_account_name.clone().unwrap_or_default()),
        "status.hostIP" | "status.hostIPs" => Ok(node.host_ip.into()),
        "status.podIP" => Ok(node.pod_ips.first().cloned().unwrap_or_default()),
        "status.podIPs" => Ok(node.pod_ips.join(",")),
        _ => metadata_field(pod, path),
    }
}

/// A container's request or limit, divided and rounded up. A limit that is not set is what the node can give.
pub fn resource_field(
    container: &Container,
    selector: &ResourceFieldSelector,
    allocatable: &Amounts,
) -> Result<String, String> {
    let divisor = selector.divisor.as_ref().and_then(|d| Quantity::parse(&d.0).ok()).filter(|d| !d.is_zero());
    let divisor = divisor.map_or(1_000_000_000, |d| d.nanos());
    let unsupported = || format!("Unsupported container resource : {}", selector.resource);
    let (kind, resource) = selector.resource.split_once('.').ok_or_else(unsupported)?;
    let known =
        matches!(resource, "cpu" | "memory" | "ephemeral-storage") || resource.starts_with("hugepages-");
    if !known {
        return Err(unsupported());
    }
    let nanos = match kind {
        "requests" => resources::requests(container).get(resource).map_or(0, Quantity::nanos),
        "limits" => {
            let limit = resources::limits(container).get(resource).map_or(0, Quantity::nanos);
            if limit == 0 { allocatable.get(resource).map_or(0, Quantity::nanos) } else { limit }
        }
        _ => return Err(unsupported()),
    };
    Ok((nanos / divisor + i128::from(nanos % divisor > 0)).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod() -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u", "labels": {"a": "one", "b": ""},
                "annotations": {"m": "x\ny\"z"}},
            "spec": {"nodeName": "node", "containers": [{"name": "c", "resources":
                {"limits": {"cpu": "250m"}, "requests": {"memory": "10Mi"}}}]}}))
        .unwrap()
    }

    #[test]
    fn fields() {
        let p = pod();
        let field = |path| metadata_field(&p, path);
        assert_eq!(field("metadata.labels").unwrap(), "a=\"one\"\nb=\"\"");
        assert_eq!(field("metadata.annotations").unwrap(), "m=\"x\\ny\\\"z\"");
        assert_eq!(field("metadata.labels['a']").unwrap(), "one");
        assert!(field("metadata.none").is_err());
        let ips = ["1.2.3.4".to_string(), "::1".to_string()];
        let node = NodeFields { host_ip: "9.9.9.9", pod_ips: &ips };
        assert_eq!(env_field(&p, "status.podIPs", &node).unwrap(), "1.2.3.4,::1");
        assert_eq!(env_field(&p, "status.hostIP", &node).unwrap(), "9.9.9.9");
        assert_eq!(env_field(&p, "spec.nodeName", &node).unwrap(), "node");
    }

    #[test]
    fn resource_values_are_divided_and_rounded_up() {
        let p = pod();
        let node: Amounts = [("memory", "1000Mi"), ("cpu", "2")]
            .map(|(k, v)| (k.to_string(), Quantity::parse(v).unwrap()))
            .into();
        let get = |resource: &str, divisor: Option<&str>| {
            let selector = ResourceFieldSelector {
                resource: resource.into(),
                divisor: divisor.map(|d| k8s_openapi::apimachinery::pkg::api::resource::Quantity(d.into())),
                container_name: None,
            };
            resource_field(&p.pod_spec().containers[0], &selector, &node).unwrap()
        };
        assert_eq!(get("limits.cpu", Some("1m")), "250");
        assert_eq!(get("limits.cpu", None), "1");
        assert_eq!(get("limits.memory", Some("1Mi")), "1000");
        assert_eq!(get("requests.memory", Some("4Mi")), "3");
        assert_eq!(get("requests.cpu", Some("0")), "0");
    }
}
