//! The downward API: which fields of a pod and which resources of its containers may be shown to it.

use pilothouse_apimachinery::field::{self, ErrorList, Path};
use pilothouse_apimachinery::json::Value;
use pilothouse_apimachinery::names;

use crate::kinds::access::{part, text};
use crate::kinds::checks::invalid_each;

/// Fields that environment variables may show.
pub(super) const ENV_FIELDS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.podIP",
    "status.podIPs",
];

/// The same, today.
pub(super) const ENV_FIELDS_TODAY: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

/// Fields that files may show.
pub(super) const VOLUME_FIELDS: &[&str] =
    &["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];

const RESOURCES: &[&str] = &[
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];

/// Splits `metadata.labels['key']` into path and key.
fn subscript(field: &str) -> Option<(&str, &str)> {
    field.strip_suffix("']")?.split_once("['").filter(|(path, _)| !path.is_empty())
}

/// The internal name of a pod's field, as the downward API knows it.
fn convert_label(version: &str, label: &str, fields: &[&str]) -> Result<String, String> {
    if version != "v1" {
        return Err(format!("unsupported pod version: {version}"));
    }
    if let Some((path, _)) = subscript(label) {
        return match path {
            "metadata.annotations" | "metadata.labels" => Ok(label.to_string()),
            _ => Err(format!("field label does not support subscript: {label}")),
        };
    }
    match label {
        "metadata.annotations"
        | "metadata.labels"
        | "metadata.name"
        | "metadata.namespace"
        | "metadata.uid"
        | "spec.nodeName"
        | "spec.restartPolicy"
        | "spec.serviceAccountName"
        | "spec.schedulerName"
        | "status.phase"
        | "status.hostIP"
        | "status.podIP"
        | "status.podIPs" => Ok(label.to_string()),
        "spec.host" => Ok("spec.nodeName".to_string()),
        label if fields.contains(&label) => Ok(label.to_string()),
        _ => Err(format!("field label not supported: {label}")),
    }
}

/// Faults of an `ObjectFieldSelector`.
pub(super) fn field_selector(selector: &Value, fields: &[&str], path: &Path) -> ErrorList {
    let (version, label) = (text(selector, "apiVersion"), text(selector, "fieldPath"));
    if version.is_empty() {
        return vec![field::required(&path.child("apiVersion"), "")];
    }
    let at = path.child("fieldPath");
    if label.is_empty() {
        return vec![field::required(&at, "")];
    }
    let internal = match convert_label(version, label, fields) {
        Ok(internal) => internal,
        Err(e) => return vec![field::invalid(&at, label, &format!("error converting fieldPath: {e}"))],
    };
    match subscript(&internal) {
        Some(("metadata.annotations", key)) => {
            invalid_each(path, key, names::qualified_name(&key.to_lowercase()))
        }
        Some(("metadata.labels", key)) => invalid_each(path, key, names::qualified_name(key)),
        Some((other, _)) => vec![field::invalid(path, other, "does not support subscript")],
        None if !fields.contains(&internal.as_str()) => {
            vec![field::not_supported(&at, internal, fields)]
        }
        None => ErrorList::new(),
    }
}

/// Faults of a `ResourceFieldSelector`; in a volume the container must be named.
pub(super) fn resource_selector(selector: &Value, path: &Path, in_volume: bool) -> ErrorList {
    let mut errs = ErrorList::new();
    let resource = text(selector, "resource");
    if in_volume && text(selector, "containerName").is_empty() {
        errs.push(field::required(&path.child("containerName"), ""));
    } else if resource.is_empty() {
        errs.push(field::required(&path.child("resource"), ""));
    } else if !RESOURCES.contains(&resource) {
        errs.push(field::not_supported(&path.child("resource"), resource, RESOURCES));
    }
    errs.extend(divisor(resource, part(selector, "divisor"), &path.child("divisor")));
    errs
}

fn divisor(resource: &str, divisor: &Value, path: &Path) -> Option<field::Error> {
    let divisor = match divisor {
        Value::String(s) => s.clone(),
        Value::Number(n) => n.to_string().into(),
        _ => return None,
    };
    const SIZES: &[&str] =
        &["1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"];
    let (allowed, values, what): (&[&str], &str, &str) = match resource.split_once('.').map(|(_, r)| r) {
        _ if divisor.is_empty() || divisor == "0" => return None,
        Some("cpu") => (&["1m", "1"], "1m and 1", "cpu resource"),
        Some("memory") => (SIZES, SIZE_TEXT, "memory resource"),
        Some("ephemeral-storage") => (SIZES, SIZE_TEXT, "local ephemeral storage resource"),
        _ => return None,
    };
    if allowed.contains(&divisor.as_str()) {
        return None;
    }
    Some(field::invalid(
        path,
        resource,
        &format!("only divisor's values {values} are supported with the {what}"),
    ))
}

const SIZE_TEXT: &str = "1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei";

#[cfg(test)]
mod tests {
    use pilothouse_apimachinery::json::json;

    use super::*;

    fn env(label: &str) -> Vec<String> {
        let selector = json!({"apiVersion": "v1", "fieldPath": label});
        field_selector(&selector, ENV_FIELDS, &Path::new("f")).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn fields_of_environment_variables() {
        assert!(env("status.podIP").is_empty());
        assert!(env("spec.host").is_empty());
        assert!(env("metadata.labels['app']").is_empty());
        assert_eq!(
            env("spec.foo"),
            [
                "f.fieldPath: Invalid value: \"spec.foo\": error converting fieldPath: field label not supported: spec.foo"
            ]
        );
        assert_eq!(
            env("metadata.labels"),
            [
                "f.fieldPath: Unsupported value: \"metadata.labels\": supported values: \"metadata.name\", \"metadata.namespace\", \"metadata.uid\", \"spec.nodeName\", \"spec.serviceAccountName\", \"status.hostIP\", \"status.podIP\", \"status.podIPs\""
            ]
        );
    }

    #[test]
    fn divisors() {
        let faults = |resource: &str, divisor: &str| {
            resource_selector(&json!({"resource": resource, "divisor": divisor}), &Path::new("r"), false)
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
        };
        assert!(faults("limits.cpu", "1m").is_empty());
        assert!(faults("limits.memory", "0").is_empty());
        assert_eq!(
            faults("limits.cpu", "2"),
            [
                "r.divisor: Invalid value: \"limits.cpu\": only divisor's values 1m and 1 are supported with the cpu resource"
            ]
        );
    }
}
